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

use super::{End, Incoming, aliases::Aliases, count, run::Link};
use crate::{
    mqtt::{
        Packet, PacketId, Qos, Reason, Version,
        packet::Ack,
        write::{self, Alias, Head, Output, PROTOCOL_MAXIMUM},
    },
    session::{Delivery, Outgoing},
};

/// Bytes that are encoded before they are written.
const WRITE: usize = 64 * 1024;
/// Buffers larger than this are not kept.
const KEEP: usize = 2 * WRITE;

thread_local! {
    static WRITE_BUFFER: Cell<BytesMut> = Cell::default();
}

/// What the client takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Takes {
    pub(super) version: Version,
    /// Bytes of a packet; the protocol has no larger ones.
    maximum: u32,
    /// Reason strings and user properties on every answer (MQTT-3.1.2-29).
    pub(super) problem_information: bool,
    /// Topic aliases.
    pub(super) aliases: u16,
}

impl Takes {
    pub(super) fn of(connect: &crate::mqtt::packet::Connect) -> Self {
        Self {
            version: connect.version,
            maximum: connect.maximum_packet_size.unwrap_or(PROTOCOL_MAXIMUM as u32),
            problem_information: connect.request_problem_information,
            aliases: connect.topic_alias_maximum,
        }
    }

    fn maximum(self) -> usize {
        self.maximum as usize
    }
}

/// Writes until the outbox is closed and empty, or the client takes no more.
pub(super) async fn writing<W>(half: &mut W, link: &Link<'_>) -> End
where
    W: AsyncWrite + Unpin,
{
    let mut batch = VecDeque::new();
    let mut aliases = Aliases::new(link.takes.aliases, link.context.settings.topic_aliases);
    loop {
        if !poll_fn(|task| link.outbox.poll_take(task, &mut batch)).await {
            return End::Closed;
        }
        while !batch.is_empty() {
            let written =
                poll_fn(|task| Poll::Ready(write_some(half, &mut batch, &mut aliases, link, task)));
            if let Some(rest) = written.await
                && let Err(end) = Box::pin(write_slowly(half, rest, link)).await
            {
                return end;
            }
        }
    }
}

/// What one write left undone.
struct Rest {
    output: Output,
    /// Answers in the client's name to messages that are too large for it.
    undeliverable: Vec<Packet>,
}

/// Encodes and writes as much as the socket takes now. Mostly that is everything; else it gives back the rest.
fn write_some<W>(
    half: &mut W,
    batch: &mut VecDeque<Outgoing>,
    aliases: &mut Option<Box<Aliases>>,
    link: &Link<'_>,
    task: &mut Task<'_>,
) -> Option<Box<Rest>>
where
    W: AsyncWrite + Unpin,
{
    let mut output = Output::with_buffer(WRITE_BUFFER.take());
    let undeliverable = encode(batch, aliases, &mut output, link);
    output.seal();
    link.context.counters.bytes_out.fetch_add(output.remaining() as u64, Ordering::Relaxed);
    let mut flushed = false;
    while !flushed {
        let taken = if output.has_remaining() {
            pin!(half.write_buf(&mut output)).poll(task).map(|written| matches!(written, Ok(1..)))
        } else {
            flushed = true;
            Pin::new(&mut *half).poll_flush(task).map(|result| result.is_ok())
        };
        // A socket that failed says so again to whoever writes the rest.
        if taken != Poll::Ready(true) {
            return Some(Box::new(Rest { output, undeliverable }));
        }
    }
    keep(output);
    if undeliverable.is_empty() {
        return None;
    }
    Some(Box::new(Rest { output: Output::default(), undeliverable }))
}

/// The rest, as fast as the client takes it.
async fn write_slowly<W>(half: &mut W, rest: Box<Rest>, link: &Link<'_>) -> Result<(), End>
where
    W: AsyncWrite + Unpin,
{
    let Rest { mut output, undeliverable } = *rest;
    let stall = Duration::from_millis(link.context.settings.write_stall_ms);
    let stalled = |_| {
        count(&link.context.counters.stalled);
        End::Stalled
    };
    while output.has_remaining() {
        let written = timeout(stall, half.write_buf(&mut output)).await.map_err(stalled)?;
        if !matches!(written, Ok(1..)) {
            return Err(End::Gone);
        }
    }
    timeout(stall, half.flush()).await.map_err(stalled)?.map_err(|_| End::Gone)?;
    keep(output);
    if undeliverable.is_empty() {
        return Ok(());
    }
    let packets = Incoming::Packets(link.outbox.connection(), undeliverable);
    link.context.handle.incoming.send(packets).await.map_err(|_| End::Stopping)
}

/// Keeps the empty buffer for the thread's next write.
fn keep(output: Output) {
    let buffer = output.into_buffer();
    if buffer.capacity() <= KEEP {
        WRITE_BUFFER.set(buffer);
    }
}

/// Encodes from the front of `batch` until a write is full. Returns answers in the client's name to messages that are too
/// large for it: they count as delivered (MQTT-3.1.2-25).
fn encode(
    batch: &mut VecDeque<Outgoing>,
    aliases: &mut Option<Box<Aliases>>,
    output: &mut Output,
    link: &Link<'_>,
) -> Vec<Packet> {
    let takes = link.takes;
    let mut undeliverable = Vec::new();
    let mut packets = 0;
    while output.len() < WRITE
        && let Some(outgoing) = batch.pop_front()
    {
        let written = match outgoing {
            Outgoing::Publish(delivery) => {
                let written = encode_delivery(&delivery, takes, aliases, output);
                if let (false, Some(packet_id)) = (written, delivery.packet_id) {
                    undeliverable.push(give_up(packet_id, delivery.qos));
                }
                written
            }
            Outgoing::Packet(packet) => {
                let answer = !matches!(*packet, Packet::Disconnect(_));
                let written = encode_packet(*packet, link, output);
                if !written && answer {
                    batch.clear();
                    link.give_up();
                }
                written
            }
        };
        if written {
            packets += 1;
        } else {
            count(&link.context.counters.too_large);
        }
    }
    link.context.counters.packets_out.fetch_add(packets, Ordering::Relaxed);
    undeliverable
}

fn encode_delivery(
    delivery: &Delivery,
    takes: Takes,
    aliases: &mut Option<Box<Aliases>>,
    output: &mut Output,
) -> bool {
    let topic = &*delivery.message.topic;
    let alias = aliases.as_mut().map_or(Alias::None, |aliases| aliases.find(topic));
    let head = Head {
        dup: delivery.dup,
        qos: delivery.qos,
        retain: delivery.retain,
        packet_id: delivery.packet_id,
        subscription_ids: &delivery.subscription_ids,
        expiry_s: delivery.expiry_s,
        alias,
    };
    let mut put = |head| {
        write::publish(&delivery.message, head, takes.version, takes.maximum(), output).is_ok()
    };
    let written = put(&head);
    let (Alias::New(number), Some(aliases)) = (alias, aliases) else { return written };
    if written {
        aliases.introduced(number, topic);
        return true;
    }
    // Three bytes more than without an alias: they may be what is too much (MQTT-3.1.2-24).
    put(&Head { alias: Alias::None, ..head })
}

fn give_up(packet_id: PacketId, qos: Qos) -> Packet {
    let ack = Ack::new(packet_id, Reason::PACKET_TOO_LARGE);
    if qos == Qos::ExactlyOnce { Packet::PubRec(ack) } else { Packet::PubAck(ack) }
}

fn encode_packet(packet: Packet, link: &Link<'_>, output: &mut Output) -> bool {
    let takes = link.takes;
    if let Packet::ConnAck(connack) = &packet
        && !connack.reason.is_error()
    {
        if let Some(seconds) = connack.properties.server_keep_alive {
            link.keep_alive_s.store(seconds, Ordering::Release);
        }
        link.quota.announce(connack.properties.receive_maximum);
    }
    let accepts = matches!(&packet, Packet::ConnAck(connack) if !connack.reason.is_error());
    link.quota.written(&packet);
    let always = matches!(packet, Packet::ConnAck(_) | Packet::Disconnect(_) | Packet::Publish(_));
    let packet = if takes.problem_information || always {
        packet
    } else {
        write::without_diagnostics(&packet, true).unwrap_or(packet)
    };
    let written = write::write_limited(&packet, takes.version, takes.maximum(), output.tail());
    if accepts && written.is_ok() {
        link.accepted.store(true, Ordering::Release);
    }
    written.is_ok()
}
