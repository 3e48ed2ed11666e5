//! The life of one connection after its CONNECT.

use std::{
    pin::pin,
    sync::atomic::{AtomicBool, AtomicU16, Ordering},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};

use super::{
    Context, Incoming, Opened, Outbox,
    handshake::say_goodbye,
    reading::{Agreed, reading},
    writing::{Takes, writing},
};
use crate::{
    mqtt::{Malformed, Packet, Reason, Version, packet::Disconnect},
    session::{Outgoing, event::Peer},
};

/// How long the last packets of a connection that we end may take.
const LAST_WRITES: Duration = Duration::from_secs(2);

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
            Self::Stopping => Some(Reason::SERVER_SHUTTING_DOWN),
        }
    }

    /// We end it, and the client still reads.
    fn is_ours(&self) -> bool {
        matches!(self, Self::Closed | Self::Malformed(_) | Self::KeepAlive | Self::Stopping)
    }
}

/// Serves a connection to its end, which the broker has been told when this returns. `peer`: who it is, established
/// by the host from the CONNECT and the stream.
pub async fn run<S>(opened: Opened<S>, peer: Peer, context: &Context) -> End
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let connection = context.next_connection();
    let outbox = Outbox::new(connection, &context.settings);
    let takes = Takes::of(&opened.connect);
    let agreed = Agreed {
        accepted: AtomicBool::new(false),
        keep_alive_s: AtomicU16::new(opened.connect.keep_alive),
    };
    let Opened { stream, mut reader, buffer, connect } = opened;
    let hello = Incoming::Connect { connection, connect, peer, outbox: outbox.clone() };
    // Boxed, as all that happens once: a connection keeps its largest moment's size while it is idle.
    if Box::pin(context.handle.incoming.send(hello)).await.is_err() {
        return End::Stopping;
    }
    reader.set_maximum(context.packet_bytes);
    let (mut read_half, mut write_half) = tokio::io::split(stream);
    let end = {
        let mut write = pin!(writing(&mut write_half, takes, &outbox, &agreed, context));
        let read = reading(&mut read_half, reader, buffer, connection, &outbox, &agreed, context);
        let end = tokio::select! {
            biased;
            () = context.stop.cancelled() => End::Stopping,
            end = write.as_mut() => end,
            end = read => end,
        };
        let accepted = agreed.accepted.load(Ordering::Acquire);
        outbox.close_with(last_packet(&end, takes.version).filter(|_| accepted));
        Box::pin(async {
            let told = context.handle.incoming.send(Incoming::Closed(connection, end.reason()));
            let flushed = async {
                if end.is_ours() && end != End::Closed {
                    // Late or not, the socket is closed next.
                    let _ = timeout(LAST_WRITES, write).await;
                }
            };
            // A broker that is gone needs no telling.
            let _ = tokio::join!(told, flushed);
        })
        .await;
        end
    };
    tracing::debug!(connection = connection.0, ?end, "connection ended");
    if end.is_ours() {
        Box::pin(say_goodbye(&mut read_half.unsplit(write_half), &[])).await;
    }
    end
}

/// What the client is told last (MQTT-3.14.0-1: only after a CONNACK that accepted it; only version 5 has it).
fn last_packet(end: &End, version: Version) -> Option<Outgoing> {
    let reason = end.reason().filter(|_| version == Version::V5 && end.is_ours())?;
    Some(Outgoing::Packet(Box::new(Packet::Disconnect(Disconnect::new(reason)))))
}
