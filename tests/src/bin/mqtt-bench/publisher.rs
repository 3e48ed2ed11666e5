//! A publisher that sends as fast as its window allows.

use std::sync::{Arc, atomic::Ordering};

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::yield_now,
};

use crate::{
    Failure, Run,
    client::{Client, READ, Template, put_ack},
    frames::Frame,
    histogram::Histogram,
};

/// Bytes in one write.
const WRITE: usize = 32 * 1024;

pub(crate) async fn publish(run: Arc<Run>, number: usize) -> Result<Histogram, Failure> {
    let client_id = format!("bench-{}-p{number}", run.name);
    let client = Client::connect(&run.load, client_id, 0, false).await?;
    let template = Template::new(&run, number);
    if run.load.qos == 0 {
        blast(&run, client, &template).await?;
        return Ok(Histogram::default());
    }
    windowed(&run, client, &template).await
}

/// QoS 0: only the socket, and `--ahead`, hold it back.
async fn blast(run: &Run, mut client: Client, template: &Template) -> Result<(), Failure> {
    let mut out = BytesMut::new();
    let mut left = run.load.messages;
    while left > 0 && !run.is_over() {
        let ahead = run.sent.load(Ordering::Relaxed).saturating_sub(run.delivered());
        if run.load.ahead > 0 && ahead >= run.load.ahead {
            yield_now().await;
            continue;
        }
        let room = if run.load.ahead > 0 { run.load.ahead - ahead } else { left };
        let mut batch = 0;
        let now = run.now_ns();
        while batch < room.min(left) && out.len() < WRITE {
            template.put(0, now, &mut out);
            batch += 1;
        }
        // Counted before it is sent: a receiver must never be ahead of this.
        run.sent.fetch_add(batch, Ordering::Relaxed);
        client.stream.write_all(&out).await?;
        out.clear();
        left -= batch;
    }
    run.last_ns.fetch_max(run.now_ns(), Ordering::Relaxed);
    // The broker closes when it has read everything.
    client.leave().await
}

async fn windowed(
    run: &Run,
    mut client: Client,
    template: &Template,
) -> Result<Histogram, Failure> {
    let mut acks = Histogram::default();
    let mut free: Vec<u16> = (1..=run.load.window).rev().collect();
    let mut sent_ns = vec![0; usize::from(run.load.window) + 1];
    let mut out = BytesMut::new();
    let mut left = run.load.messages;
    let mut waiting = 0;
    while left > 0 || waiting > 0 {
        let mut batch = 0;
        if run.is_over() {
            left = 0;
        }
        while left > 0
            && out.len() < WRITE
            && let Some(packet_id) = free.pop()
        {
            let now = run.now_ns();
            if let Some(place) = sent_ns.get_mut(usize::from(packet_id)) {
                *place = now;
            }
            template.put(packet_id, now, &mut out);
            batch += 1;
            left -= 1;
        }
        waiting += batch;
        run.sent.fetch_add(batch, Ordering::Relaxed);
        if !out.is_empty() {
            client.stream.write_all(&out).await?;
            out.clear();
        }
        if waiting == 0 {
            break;
        }
        client.buffer.reserve(READ);
        if client.stream.read_buf(&mut client.buffer).await? == 0 {
            return Err("publisher was closed by the broker".into());
        }
        let mut done = 0;
        let now = run.now_ns();
        while let Some(frame) = client.next()? {
            let Some(packet_id) = acknowledged(frame, &mut out)? else { continue };
            acks.record(now - sent_ns.get(usize::from(packet_id)).copied().unwrap_or(now));
            free.push(packet_id);
            done += 1;
        }
        waiting -= done;
        run.acked.fetch_add(done, Ordering::Relaxed);
        run.last_ns.fetch_max(now, Ordering::Relaxed);
    }
    client.stream.write_all(&[0xE0, 0]).await?;
    Ok(acks)
}

/// The packet id of a message's last acknowledgement; a PUBREC is answered.
pub(crate) fn acknowledged(frame: Frame, out: &mut BytesMut) -> Result<Option<u16>, Failure> {
    match frame {
        Frame::Done(id) => Ok(Some(id.get())),
        Frame::Answer(first, id) => {
            put_ack(first, id, out);
            Ok(None)
        }
        Frame::Publish { .. } => Err("a publisher was sent a message".into()),
    }
}
