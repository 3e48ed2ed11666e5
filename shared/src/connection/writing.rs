//! Broker to socket: all that waits becomes as few writes as possible.

use std::{
    cell::Cell,
    collections::VecDeque,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::atomic::Ordering,
    task::{Context as Task, Poll},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    time::timeout,
};

use super::{Context, End, Incoming, Outbox, count, reading::Agreed};
use crate::{
    mqtt::{
        Packet, PacketId, Qos, Reason, Version,
        packet::Ack,
        write::{self, Head, Output, PROTOCOL_MAXIMUM},
    },
    session::{Delivery, Outgoing},
};

/// Bytes that are encoded before they are written.
const WRITE: usize = 64 * 1024;
/// Buffers and queues larger than this are not kept.
const KEEP: usize = 2 * WRITE;

thread_local! {
    static WRITE_BUFFER: Cell<BytesMut> = Cell::default();
}

/// What the client takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Takes {
    pub(super) version: Version,
    /// Bytes of a packet.
    pub(super) maximum: usize,
    /// Reason strings and user properties on every answer (MQTT-3.1.2-29).
    pub(super) problem_information: bool,
}

impl Takes {
    pub(super) fn of(connect: &crate::mqtt::packet::Connect) -> Self {
        Self {
            version: connect.version,
            maximum: connect.maximum_packet_size.map_or(PROTOCOL_MAXIMUM, |bytes| bytes as usize),
            problem_information: connect.request_problem_information,
        }
    }
}

/// Writes until the outbox is closed and empty, or the client takes no more.
pub(super) async fn writing<W>(
    half: &mut W,
    takes: Takes,
    outbox: &Outbox,
    agreed: &Agreed,
    context: &Context,
) -> End
where
    W: AsyncWrite + Unpin,
{
    let stall = Duration::from_millis(context.settings.write_stall_ms);
    let mut batch = VecDeque::new();
    loop {
        if !poll_fn(|task| outbox.poll_take(task, &mut batch)).await {
            return End::Closed;
        }
        while !batch.is_empty() {
            let mut output = Output::with_buffer(WRITE_BUFFER.take());
            let undeliverable = encode(&mut batch, &mut output, takes, agreed, context);
            if let Err(end) = flush(half, &mut output, stall, context).await {
                return end;
            }
            let buffer = output.into_buffer();
            if buffer.capacity() <= KEEP {
                WRITE_BUFFER.set(buffer);
            }
            if !undeliverable.is_empty() {
                let packets = Incoming::Packets(outbox.connection(), undeliverable);
                if Box::pin(context.handle.incoming.send(packets)).await.is_err() {
                    return End::Stopping;
                }
            }
        }
        if batch.capacity() * size_of::<Outgoing>() > KEEP {
            batch = VecDeque::new();
        }
    }
}

/// Encodes from the front of `batch` until a write is full. Returns answers in the client's name to messages that are too
/// large for it: they count as delivered (MQTT-3.1.2-25).
fn encode(
    batch: &mut VecDeque<Outgoing>,
    output: &mut Output,
    takes: Takes,
    agreed: &Agreed,
    context: &Context,
) -> Vec<Packet> {
    let mut undeliverable = Vec::new();
    let mut packets = 0;
    while output.len() < WRITE
        && let Some(outgoing) = batch.pop_front()
    {
        let written = match outgoing {
            Outgoing::Publish(delivery) => {
                let written = encode_delivery(&delivery, takes, output);
                if let (false, Some(packet_id)) = (written, delivery.packet_id) {
                    undeliverable.push(give_up(packet_id, delivery.qos));
                }
                written
            }
            Outgoing::Packet(packet) => encode_packet(*packet, takes, agreed, output),
        };
        if written {
            packets += 1;
        } else {
            count(&context.counters.too_large);
        }
    }
    context.counters.packets_out.fetch_add(packets, Ordering::Relaxed);
    undeliverable
}

fn encode_delivery(delivery: &Delivery, takes: Takes, output: &mut Output) -> bool {
    let head = Head {
        dup: delivery.dup,
        qos: delivery.qos,
        retain: delivery.retain,
        packet_id: delivery.packet_id,
        subscription_ids: &delivery.subscription_ids,
        expiry_s: delivery.expiry_s,
    };
    write::publish(&delivery.message, &head, takes.version, takes.maximum, output).is_ok()
}

fn give_up(packet_id: PacketId, qos: Qos) -> Packet {
    let ack = Ack::new(packet_id, Reason::PACKET_TOO_LARGE);
    if qos == Qos::ExactlyOnce { Packet::PubRec(ack) } else { Packet::PubAck(ack) }
}

fn encode_packet(packet: Packet, takes: Takes, agreed: &Agreed, output: &mut Output) -> bool {
    if let Packet::ConnAck(connack) = &packet
        && !connack.reason.is_error()
    {
        if let Some(seconds) = connack.properties.server_keep_alive {
            agreed.keep_alive_s.store(seconds, Ordering::Release);
        }
        agreed.accepted.store(true, Ordering::Release);
    }
    let always = matches!(packet, Packet::ConnAck(_) | Packet::Disconnect(_) | Packet::Publish(_));
    let packet = if takes.problem_information || always {
        packet
    } else {
        write::without_diagnostics(&packet, true).unwrap_or(packet)
    };
    write::write_limited(&packet, takes.version, takes.maximum, output.tail()).is_ok()
}

/// Writes all of `output`. Most is taken at once; only a slow client needs a timer, and room for one in the task.
async fn flush<W>(
    half: &mut W,
    output: &mut Output,
    stall: Duration,
    context: &Context,
) -> Result<(), End>
where
    W: AsyncWrite + Unpin,
{
    output.seal();
    context.counters.bytes_out.fetch_add(output.remaining() as u64, Ordering::Relaxed);
    match poll_fn(|task| Poll::Ready(poll_write(half, output, task))).await {
        Poll::Ready(done) => done,
        Poll::Pending => Box::pin(flush_slowly(half, output, stall, context)).await,
    }
}

fn poll_write<W>(half: &mut W, output: &mut Output, task: &mut Task<'_>) -> Poll<Result<(), End>>
where
    W: AsyncWrite + Unpin,
{
    while output.has_remaining() {
        match pin!(half.write_buf(output)).poll(task) {
            Poll::Ready(Ok(1..)) => {}
            Poll::Ready(_) => return Poll::Ready(Err(End::Gone)),
            Poll::Pending => return Poll::Pending,
        }
    }
    Pin::new(half).poll_flush(task).map_err(|_| End::Gone)
}

async fn flush_slowly<W>(
    half: &mut W,
    output: &mut Output,
    stall: Duration,
    context: &Context,
) -> Result<(), End>
where
    W: AsyncWrite + Unpin,
{
    let stalled = |_| {
        count(&context.counters.stalled);
        End::Stalled
    };
    while output.has_remaining() {
        let written = timeout(stall, half.write_buf(output)).await.map_err(stalled)?;
        if !matches!(written, Ok(1..)) {
            return Err(End::Gone);
        }
    }
    timeout(stall, half.flush()).await.map_err(stalled)?.map_err(|_| End::Gone)
}
