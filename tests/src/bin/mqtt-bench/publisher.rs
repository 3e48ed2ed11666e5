//! A publisher that sends as fast as its window allows.

use std::sync::{Arc, atomic::Ordering};

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::yield_now,
};
use tributary_shared::mqtt::{Packet, packet::Ack};

use crate::{
    Failure, Run,
    client::{Client, READ, Template, put_ack},
    histogram::Histogram,
};

/// Bytes in one write.
const WRITE: usize = 32 * 1024;

pub(crate) async fn publish(run: Arc<Run>, number: usize) -> Result<Histogram, Failure> {
    let client = Client::connect(&run.load, format!("bench-{}-p{number}", run.name), 0).await?;
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
    while left > 0 {
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
    client.stream.write_all(&[0xE0, 0]).await?;
    client.stream.shutdown().await?;
    // The broker closes when it has read everything.
    while client.stream.read_buf(&mut client.buffer).await? > 0 {}
    Ok(())
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
    let mut waiting = run.load.messages;
    while waiting > 0 {
        let mut batch = 0;
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
        run.sent.fetch_add(batch, Ordering::Relaxed);
        if !out.is_empty() {
            client.stream.write_all(&out).await?;
            out.clear();
        }
        client.buffer.reserve(READ);
        if client.stream.read_buf(&mut client.buffer).await? == 0 {
            return Err("publisher was closed by the broker".into());
        }
        let mut done = 0;
        while let Some(packet) = client.reader.read(&mut client.buffer)? {
            let Some(ack) = acknowledged(packet, &mut out)? else { continue };
            let packet_id = ack.packet_id.get();
            let now = run.now_ns();
            acks.record(now - sent_ns.get(usize::from(packet_id)).copied().unwrap_or(now));
            free.push(packet_id);
            done += 1;
        }
        waiting -= done;
        run.acked.fetch_add(done, Ordering::Relaxed);
        run.last_ns.fetch_max(run.now_ns(), Ordering::Relaxed);
    }
    client.stream.write_all(&[0xE0, 0]).await?;
    Ok(acks)
}

/// The last acknowledgement of a message; a PUBREC is answered.
pub(crate) fn acknowledged(packet: Packet, out: &mut BytesMut) -> Result<Option<Ack>, Failure> {
    match packet {
        Packet::PubRec(ack) if !ack.reason.is_error() => {
            put_ack(0x62, ack.packet_id, out);
            Ok(None)
        }
        Packet::PubAck(ack) | Packet::PubComp(ack) if !ack.reason.is_error() => Ok(Some(ack)),
        other => Err(format!("PUBLISH was answered with {other:?}").into()),
    }
}
