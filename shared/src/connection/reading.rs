//! Socket to broker: one read, all its packets, one message.
//!
//! Buffers: a worker thread has one chunk that all its connections read into, so an idle connection holds none; packets
//! are slices of it. Only the beginning of an unfinished packet is copied into a buffer of its own.

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    io,
    pin::pin,
    sync::atomic::{AtomicBool, AtomicU16, Ordering},
    task::{Context as TaskContext, Poll},
    time::Duration,
};

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    sync::mpsc::error::TrySendError,
    time::{Instant, sleep_until},
};

use super::{Context, End, Incoming, Outbox, count};
use crate::{
    mqtt::{Packet, Reader},
    session::event::ConnectionId,
};

/// Packets in one message to the broker: bounds what 32 KiB of PINGREQs become in memory.
pub(super) const BATCH: usize = 1_024;
/// Bytes of a thread's read chunk.
const CHUNK: usize = 32 * 1024;
/// Room that is worth a read.
const LEAST: usize = 4 * 1024;
/// How often a connection without keep-alive looks whether CONNACK brought one.
const UNTIL_CONNACK: Duration = Duration::from_secs(10);

thread_local! {
    static READ_CHUNK: RefCell<BytesMut> = RefCell::default();
}

/// What CONNACK settled, told by the writing side.
#[derive(Debug)]
pub(super) struct Agreed {
    /// CONNACK with success was sent.
    pub(super) accepted: AtomicBool,
    /// Seconds, 0 = off.
    pub(super) keep_alive_s: AtomicU16,
}

/// Reads until the connection ends from the client's side.
pub(super) async fn reading<R>(
    mut half: R,
    mut reader: Reader,
    mut buffer: BytesMut,
    connection: ConnectionId,
    outbox: &Outbox,
    agreed: &Agreed,
    context: &Context,
) -> End
where
    R: AsyncRead + Unpin,
{
    let mut last = Instant::now();
    let mut alarm = pin!(sleep_until(last + UNTIL_CONNACK));
    let mut armed = true;
    loop {
        if let Err(end) = forward(&mut reader, &mut buffer, connection, outbox, context).await {
            return end;
        }
        loop {
            let read = poll_fn(|task| poll_read(&mut half, task, &mut buffer));
            let outcome = tokio::select! {
                biased;
                read = read => Some(read),
                () = alarm.as_mut(), if armed => None,
            };
            match outcome {
                Some(Ok(0) | Err(_)) => return End::Gone,
                Some(Ok(bytes)) => {
                    context.counters.bytes_in.fetch_add(bytes as u64, Ordering::Relaxed);
                    last = Instant::now();
                    break;
                }
                None => match next_alarm(agreed, last) {
                    Some(due) if due <= Instant::now() => {
                        count(&context.counters.keep_alive_timeouts);
                        return End::KeepAlive;
                    }
                    Some(due) => alarm.as_mut().reset(due),
                    None => armed = false,
                },
            }
        }
    }
}

/// When to look again, or when the client is too late (MQTT-3.1.2-22: one and a half times the keep-alive).
fn next_alarm(agreed: &Agreed, last: Instant) -> Option<Instant> {
    if !agreed.accepted.load(Ordering::Acquire) {
        return Some(Instant::now() + UNTIL_CONNACK);
    }
    let seconds = agreed.keep_alive_s.load(Ordering::Acquire);
    (seconds > 0).then(|| last + Duration::from_millis(u64::from(seconds) * 1_500))
}

/// Hands every whole packet in `buffer` to the broker.
async fn forward(
    reader: &mut Reader,
    buffer: &mut BytesMut,
    connection: ConnectionId,
    outbox: &Outbox,
    context: &Context,
) -> Result<(), End> {
    loop {
        let (packets, end) = parse(reader, buffer, context);
        let more = packets.len() == BATCH;
        if !packets.is_empty() {
            // Also when it is empty: it would keep the chunk alive.
            if !more {
                *buffer = BytesMut::from(buffer.as_ref());
            }
            let packets = Incoming::Packets(connection, packets);
            if let Err(packets) = send_at_once(packets, outbox, context) {
                Box::pin(send_slowly(packets, outbox, context)).await?;
            }
        }
        if let Some(end) = end {
            return Err(end);
        }
        if !more {
            return Ok(());
        }
    }
}

/// The next packets, at most [`BATCH`], and why there will be no more, if so.
fn parse(
    reader: &mut Reader,
    buffer: &mut BytesMut,
    context: &Context,
) -> (Vec<Packet>, Option<End>) {
    let mut packets = Vec::new();
    let mut end = None;
    while packets.len() < BATCH && end.is_none() {
        match reader.read(buffer) {
            Ok(Some(packet)) => {
                if matches!(packet, Packet::Disconnect(_)) {
                    end = Some(End::Gone);
                }
                packets.push(packet);
            }
            Ok(None) => break,
            Err(malformed) => {
                count(&context.counters.malformed);
                end = Some(End::Malformed(malformed));
            }
        }
    }
    context.counters.packets_in.fetch_add(packets.len() as u64, Ordering::Relaxed);
    (packets, end)
}

/// Mostly there is room. Gives the packets back where there is something to wait for.
fn send_at_once(packets: Incoming, outbox: &Outbox, context: &Context) -> Result<(), Incoming> {
    if !outbox.has_room() {
        return Err(packets);
    }
    context.handle.incoming.try_send(packets).map_err(TrySendError::into_inner)
}

/// Boxed by the caller: an idle connection has no room for this in its task.
async fn send_slowly(packets: Incoming, outbox: &Outbox, context: &Context) -> Result<(), End> {
    poll_fn(|task| outbox.poll_room(task)).await;
    context.handle.incoming.send(packets).await.map_err(|_| End::Stopping)
}

/// One read: behind the part of a packet that is there, or into the thread's chunk.
fn poll_read<R>(
    half: &mut R,
    task: &mut TaskContext<'_>,
    buffer: &mut BytesMut,
) -> Poll<io::Result<usize>>
where
    R: AsyncRead + Unpin,
{
    if !buffer.is_empty() {
        // Doubling, never by what the packet says its length is.
        buffer.reserve(buffer.len().clamp(LEAST, 1024 * 1024));
        return pin!(half.read_buf(buffer)).poll(task);
    }
    READ_CHUNK.with_borrow_mut(|chunk| {
        if chunk.capacity() < LEAST {
            chunk.reserve(CHUNK);
        }
        let read = pin!(half.read_buf(chunk)).poll(task);
        if !chunk.is_empty() {
            *buffer = chunk.split();
        }
        read
    })
}
