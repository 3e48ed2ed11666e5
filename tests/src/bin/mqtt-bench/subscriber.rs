//! A subscriber: receives, acknowledges, measures.

use std::sync::{Arc, atomic::Ordering};

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;
use tributary_shared::mqtt::{Packet, Qos};

use crate::{
    Failure, Run,
    client::{Client, READ, put_ack},
    histogram::Histogram,
};

pub(crate) struct Subscriber {
    run: Arc<Run>,
    client: Client,
}

pub(crate) async fn connect(run: Arc<Run>, number: usize) -> Result<Subscriber, Failure> {
    let client_id = format!("bench-{}-s{number}", run.name);
    let mut client = Client::connect(&run.load, client_id, 0).await?;
    let filters = if run.load.all {
        vec![format!("bench/{}/#", run.name)]
    } else {
        let mine = (0..run.load.publishers).filter(|p| p % run.load.subscribers == number);
        mine.map(|publisher| run.topic(publisher)).collect()
    };
    if !filters.is_empty() {
        client.subscribe(&run, filters).await?;
    }
    Ok(Subscriber { run, client })
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
            while let Some(packet) = self.client.reader.read(&mut self.client.buffer)? {
                match packet {
                    Packet::Publish(publish) => {
                        received += 1;
                        if let Some(stamp) = publish.payload.first_chunk() {
                            latency.record(now.saturating_sub(u64::from_be_bytes(*stamp)));
                        }
                        match (publish.qos, publish.packet_id) {
                            (Qos::AtLeastOnce, Some(id)) => put_ack(0x40, id, &mut out),
                            (Qos::ExactlyOnce, Some(id)) => put_ack(0x50, id, &mut out),
                            _ => {}
                        }
                    }
                    Packet::PubRel(ack) => put_ack(0x70, ack.packet_id, &mut out),
                    other => return Err(format!("subscriber was sent {other:?}").into()),
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
