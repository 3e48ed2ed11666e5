//! The life of one connection after its CONNECT.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::atomic::{AtomicBool, AtomicU16, Ordering},
    task::Poll,
    time::Duration,
};

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadHalf, WriteHalf},
    time::timeout,
};

use super::{
    Context, Incoming, Opened, Outbox, Until,
    handshake::say_goodbye,
    quota::Quota,
    reading::Reading,
    writing::{Takes, writing},
};
use crate::{
    mqtt::{Malformed, Packet, Reason, Version, packet::Disconnect},
    session::{Outgoing, event::Peer},
};

/// How long the last packets of a connection that we end may take.
pub(super) const LAST_WRITES: Duration = Duration::from_secs(2);

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The client went: with DISCONNECT, or without.
    Gone,
    /// The broker closed it.
    Closed,
    /// A packet was against the standard.
    Malformed(Malformed),
    /// Nothing came for one and a half times the keep-alive.
    KeepAlive,
    /// The client took no byte for too long.
    Stalled,
    /// The client's proof of who it is has run out.
    Expired,
    /// The client did not prove again who it is.
    Unproven(Reason),
    /// This process stops.
    Stopping,
}

impl End {
    /// For log, metrics, and DISCONNECT.
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Self::Gone | Self::Closed => None,
            Self::Malformed(malformed) => Some(malformed.reason),
            Self::KeepAlive => Some(Reason::KEEP_ALIVE_TIMEOUT),
            Self::Stalled => Some(Reason::QUOTA_EXCEEDED),
            Self::Expired => Some(Reason::NOT_AUTHORIZED),
            Self::Unproven(reason) => Some(*reason),
            Self::Stopping => Some(Reason::SERVER_SHUTTING_DOWN),
        }
    }

    /// We end it, and the client still reads.
    fn is_ours(&self) -> bool {
        !matches!(self, Self::Gone | Self::Stalled)
    }
}

/// What both directions of a connection know.
#[derive(Debug)]
pub(super) struct Link<'a> {
    pub(super) context: &'a Context,
    pub(super) outbox: Outbox,
    pub(super) takes: Takes,
    /// What the client has no answer to yet.
    pub(super) quota: Quota,
    /// CONNACK with success was sent.
    pub(super) accepted: AtomicBool,
    /// Seconds, 0 = off: what CONNECT asked for, or CONNACK told.
    pub(super) keep_alive_s: AtomicU16,
}

impl Link<'_> {
    /// The client takes no packet as large as an answer it must get: without that it would wait for ever, and get what must
    /// not come before CONNACK.
    pub(super) fn give_up(&self) {
        let told = self.takes.version == Version::V5 && self.accepted.load(Ordering::Acquire);
        let last = Packet::Disconnect(Disconnect::new(Reason::PACKET_TOO_LARGE));
        self.outbox.cut_with(told.then(|| Outgoing::Packet(Box::new(last))));
    }
}

/// Serves a connection to its end, which the broker has been told when this returns. `peer`: who it is, established
/// by the host from the CONNECT and the stream.
///
/// What happens once, or rarely, is boxed: the task of an idle connection is as large as its largest moment.
pub fn run<S>(
    opened: Opened<S>,
    peer: Peer,
    context: &Context,
) -> impl Future<Output = End> + use<'_, S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Opened { stream, mut reader, mut buffer, connect, mut until, again } = opened;
    if buffer.is_empty() {
        buffer = BytesMut::new();
    }
    let connection = context.next_connection();
    let link = Link {
        context,
        outbox: Outbox::new(connection, &context.settings),
        takes: Takes::of(&connect),
        quota: Quota::new(connect.version),
        accepted: AtomicBool::new(false),
        keep_alive_s: AtomicU16::new(connect.keep_alive),
    };
    let outbox = link.outbox.clone();
    let hello = Incoming::Connect { connection, connect, peer, outbox };
    let telling = Box::pin(context.handle.incoming.send(hello));
    reader.set_maximum(context.packet_bytes);
    let (read_half, mut write_half) = tokio::io::split(stream);
    let mut reading = Reading { half: read_half, reader, buffer, again };
    async move {
        if telling.await.is_err() {
            return End::Stopping;
        }
        let end = both(&link, &mut reading, &mut write_half, &mut until).await;
        tracing::debug!(connection = connection.0, ?end, "connection ended");
        if end.is_ours() {
            let stream = reading.half.unsplit(write_half);
            Box::pin(async move { say_goodbye(&mut { stream }, &[]).await }).await;
        }
        end
    }
}

/// Both directions until one ends, then the end of the other.
async fn both<S>(
    link: &Link<'_>,
    reading: &mut Reading<ReadHalf<S>>,
    write_half: &mut WriteHalf<S>,
    until: &mut Option<Until>,
) -> End
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut write = pin!(writing(write_half, link));
    let end = tokio::select! {
        biased;
        () = link.context.stop.cancelled() => End::Stopping,
        () = expired(until) => End::Expired,
        end = write.as_mut() => end,
        end = reading.run(link) => end,
    };
    let accepted = link.accepted.load(Ordering::Acquire);
    link.outbox.close_with(last_packet(&end, link.takes.version).filter(|_| accepted));
    Box::pin(async {
        let closed = Incoming::Closed(link.outbox.connection(), end.reason());
        let flushed = async {
            if end.is_ours() && end != End::Closed {
                // Late or not, the socket is closed next.
                let _ = timeout(LAST_WRITES, write).await;
            }
        };
        // A broker that is gone needs no telling.
        let _ = tokio::join!(link.context.handle.incoming.send(closed), flushed);
    })
    .await;
    end
}

/// No `async fn`: that would keep room for what it waits for twice.
fn expired(until: &mut Option<Until>) -> impl Future<Output = ()> {
    poll_fn(|task| until.as_mut().map_or(Poll::Pending, |until| until.0.as_mut().poll(task)))
}

/// What the client is told last (MQTT-3.14.0-1: only after a CONNACK that accepted it; only version 5 has it).
fn last_packet(end: &End, version: Version) -> Option<Outgoing> {
    let reason = end.reason().filter(|_| version == Version::V5 && end.is_ours())?;
    Some(Outgoing::Packet(Box::new(Packet::Disconnect(Disconnect::new(reason)))))
}
