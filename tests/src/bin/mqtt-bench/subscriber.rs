//! A subscriber: receives, acknowledges, measures.

use std::sync::{Arc, atomic::Ordering};

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use crate::{
    Failure, Run,
    client::{Client, READ, put_ack},
    frames::Frame,
    histogram::Histogram,
};

pub(crate) struct Subscriber {
    run: Arc<Run>,
    client: Client,
}

/// None if it subscribed and left.
pub(crate) async fn connect(run: Arc<Run>, number: usize) -> Result<Option<Subscriber>, Failure> {
    let client_id = format!("bench-{}-s{number}", run.name);
    let mut client = Client::connect(&run.load, client_id, 0, run.load.kept).await?;
    // One filter where it can be one: brokers limit how many a SUBSCRIBE has.
    let filters = if run.load.all || run.load.subscribers == 1 {
        vec![format!("bench/{}/#", run.name)]
    } else {
        let mine = (0..run.load.publishers).filter(|p| p % run.load.subscribers == number);
        mine.map(|publisher| run.topic(publisher)).collect()
    };
    // Who comes back is subscribed, and is sent messages at once.
    if !filters.is_empty() && !run.load.back {
        client.subscribe(&run, filters).await?;
    }
    if run.load.away {
        client.leave().await?;
        return Ok(None);
    }
    Ok(Some(Subscriber { run, client }))
}

impl Subscriber {
    pub(crate) async fn receive(mut self, stop: CancellationToken) -> Result<Histogram, Failure> {
        let mut latency = Histogram::default();
        let mut out = BytesMut::new();
        loop {
            self.client.buffer.reserve(READ);
            let read = tokio::select! {
                biased;
                read = self.client.stream.read_buf(&mut self.client.buffer) => read?,
                () = stop.cancelled() => return Ok(latency),
            };
            if read == 0 {
                return Err("subscriber was closed by the broker".into());
            }
            let now = self.run.now_ns();
            let mut received = 0;
            while let Some(frame) = self.client.next()? {
                match frame {
                    Frame::Publish { ack, stamp_ns } => {
                        received += 1;
                        if let Some(stamp) = stamp_ns {
                            latency.record(now.saturating_sub(stamp));
                        }
                        if let Some((first, id)) = ack {
                            put_ack(first, id, &mut out);
                        }
                    }
                    Frame::Answer(first, id) => put_ack(first, id, &mut out),
                    Frame::Done(_) => return Err("a subscriber was acknowledged something".into()),
                }
            }
            self.run.received.fetch_add(received, Ordering::Relaxed);
            self.run.last_ns.fetch_max(now, Ordering::Relaxed);
            if !out.is_empty() {
                self.client.stream.write_all(&out).await?;
                out.clear();
            }
        }
    }
}
