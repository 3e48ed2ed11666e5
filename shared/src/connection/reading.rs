//! Socket to broker: one read, all its packets, one message.
//!
//! Buffers: a worker thread has one chunk that all its connections read into, so an idle connection holds none; packets
//! are slices of it. Only the beginning of an unfinished packet is copied into a buffer of its own.

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    io,
    pin::pin,
    sync::atomic::Ordering,
    task::{Context as Task, Poll},
    time::Duration,
};

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    sync::mpsc::error::TrySendError,
    time::{Instant, sleep_until},
};

use super::{
    Again, End, Incoming, count,
    run::{LAST_WRITES, Link},
};
use crate::{
    mqtt::{Packet, Reader, Reason, packet::Auth},
    session::Outgoing,
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

/// The reading side.
#[derive(Debug)]
pub(super) struct Reading<R> {
    pub(super) half: R,
    pub(super) reader: Reader,
    /// What came and is not yet taken.
    pub(super) buffer: BytesMut,
    /// Answers AUTH.
    pub(super) again: Option<Again>,
}

impl<R: AsyncRead + Unpin> Reading<R> {
    /// Reads until the connection ends from the client's side.
    pub(super) async fn run(&mut self, link: &Link<'_>) -> End {
        let mut last = Instant::now();
        let mut alarm = pin!(sleep_until(last + UNTIL_CONNACK));
        let mut armed = true;
        loop {
            if let Err(end) = self.forward(link).await {
                if end == End::Gone {
                    // After DISCONNECT the broker closes; it may have an answer to a wrong one (3.14.2.2.2).
                    alarm.as_mut().reset(Instant::now() + LAST_WRITES);
                    alarm.await;
                }
                return end;
            }
            loop {
                let read = tokio::select! {
                    biased;
                    read = poll_fn(|task| self.poll_read(task)) => Some(read),
                    () = alarm.as_mut(), if armed => None,
                };
                match read {
                    Some(Ok(0) | Err(_)) => return End::Gone,
                    Some(Ok(bytes)) => {
                        link.context.counters.bytes_in.fetch_add(bytes as u64, Ordering::Relaxed);
                        last = Instant::now();
                        break;
                    }
                    None => match next_alarm(link, last) {
                        Some(due) if due <= Instant::now() => {
                            count(&link.context.counters.keep_alive_timeouts);
                            return End::KeepAlive;
                        }
                        Some(due) => alarm.as_mut().reset(due),
                        None => armed = false,
                    },
                }
            }
        }
    }

    /// Hands every whole packet in the buffer to the broker.
    async fn forward(&mut self, link: &Link<'_>) -> Result<(), End> {
        loop {
            let forwarded = self.forward_at_once(link)?;
            if let Some(packets) = forwarded.waiting {
                Box::pin(send_slowly(packets, link)).await?;
            }
            if let Some(end) = forwarded.end {
                return Err(*end);
            }
            if !forwarded.more {
                return Ok(());
            }
        }
    }

    fn forward_at_once(&mut self, link: &Link<'_>) -> Result<Forwarded, End> {
        let (packets, end) = self.parse(link);
        let more = packets.len() == BATCH && end.is_none();
        let waiting = if packets.is_empty() {
            None
        } else {
            if !more {
                // Also when it is empty: it would keep the chunk alive.
                self.buffer = BytesMut::from(self.buffer.as_ref());
            }
            send_at_once(Incoming::Packets(link.outbox.connection(), packets), link)?
        };
        Ok(Forwarded { waiting: waiting.map(Box::new), end: end.map(Box::new), more })
    }

    /// The next packets, at most [`BATCH`], and why there will be no more, if so.
    fn parse(&mut self, link: &Link<'_>) -> (Vec<Packet>, Option<End>) {
        let mut packets = Vec::new();
        let mut end = None;
        while packets.len() < BATCH && end.is_none() {
            let read = self.reader.read(&mut self.buffer);
            let counted = read.and_then(|packet| {
                packet.as_ref().map_or(Ok(()), |packet| link.quota.read(packet)).map(|()| packet)
            });
            match counted {
                Ok(Some(packet)) => {
                    match &packet {
                        Packet::Disconnect(_) => end = Some(End::Gone),
                        Packet::Auth(auth) => end = self.prove_again(auth, link).err(),
                        _ => {}
                    }
                    packets.push(packet);
                }
                Ok(None) => break,
                Err(malformed) => {
                    count(&link.context.counters.malformed);
                    end = Some(End::Malformed(malformed));
                }
            }
        }
        link.context.counters.packets_in.fetch_add(packets.len() as u64, Ordering::Relaxed);
        (packets, end)
    }

    /// Answers an AUTH of a client that has an authentication method; without one the broker does.
    fn prove_again(&mut self, auth: &Auth, link: &Link<'_>) -> Result<(), End> {
        let Some(again) = &mut self.again else { return Ok(()) };
        if !link.accepted.load(Ordering::Acquire) {
            return Err(End::Unproven(Reason::PROTOCOL_ERROR));
        }
        let answer = again.answer(auth.clone()).map_err(End::Unproven)?;
        // Only messages can be refused.
        let _ = link.outbox.send(Outgoing::Packet(Box::new(Packet::Auth(answer))));
        Ok(())
    }

    /// One read: behind the part of a packet that is there, or into the thread's chunk.
    fn poll_read(&mut self, task: &mut Task<'_>) -> Poll<io::Result<usize>> {
        if !self.buffer.is_empty() {
            // Doubling, never by what the packet says its length is.
            self.buffer.reserve(self.buffer.len().clamp(LEAST, 1024 * 1024));
            return pin!(self.half.read_buf(&mut self.buffer)).poll(task);
        }
        READ_CHUNK.with_borrow_mut(|chunk| {
            if chunk.capacity() < LEAST {
                chunk.reserve(CHUNK);
            }
            let read = pin!(self.half.read_buf(chunk)).poll(task);
            if !chunk.is_empty() {
                self.buffer = chunk.split();
            }
            read
        })
    }
}

/// What came of one batch of packets.
struct Forwarded {
    /// Not sent yet: the broker or the client is slow.
    waiting: Option<Box<Incoming>>,
    end: Option<Box<End>>,
    /// The buffer may hold further packets.
    more: bool,
}

/// Mostly there is room. Gives the packets back where there is something to wait for.
fn send_at_once(packets: Incoming, link: &Link<'_>) -> Result<Option<Incoming>, End> {
    if !link.outbox.has_room() {
        return Ok(Some(packets));
    }
    match link.context.handle.incoming.try_send(packets) {
        Ok(()) => Ok(None),
        Err(TrySendError::Full(packets)) => Ok(Some(packets)),
        Err(TrySendError::Closed(_)) => Err(End::Stopping),
    }
}

async fn send_slowly(packets: Box<Incoming>, link: &Link<'_>) -> Result<(), End> {
    poll_fn(|task| link.outbox.poll_room(task)).await;
    link.context.handle.incoming.send(*packets).await.map_err(|_| End::Stopping)
}

/// When to look again, or when the client is too late (MQTT-3.1.2-22: one and a half times the keep-alive).
fn next_alarm(link: &Link<'_>, last: Instant) -> Option<Instant> {
    if !link.accepted.load(Ordering::Acquire) {
        return Some(Instant::now() + UNTIL_CONNACK);
    }
    let seconds = link.keep_alive_s.load(Ordering::Acquire);
    (seconds > 0).then(|| last + Duration::from_millis(u64::from(seconds) * 1_500))
}
