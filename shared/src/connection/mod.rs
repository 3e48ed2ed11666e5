//! One task a MQTT client: bytes in, packets to the broker; what the broker sends, bytes out.
//!
//! Holds: the handshake with its deadline, the read and write loop, keep-alive, the bounded outbox.
//! In: an accepted stream and the broker's [`Handle`]. Out: [`Incoming`] to the broker.
//! Two steps, so that a host can look at the CONNECT between them (authenticate, refuse, hand an edge to its bridge):
//! [`handshake`] gives an [`Opened`], [`run`] serves it to its end. An idle connection holds no buffers.
//! Change here: buffering, batching, what happens to a slow reader. Not here: what packets mean (`session`), accepting (`net`).

mod aliases;
mod handshake;
pub mod outbox;
mod quota;
mod reading;
mod run;
#[cfg(test)]
mod tests;
mod writing;

use std::sync::atomic::{AtomicU64, Ordering};

use tokio_util::sync::CancellationToken;

use crate::{
    mqtt::packet::{Connect, Packet, Reason},
    session::event::{ConnectionId, Peer},
};
pub use handshake::{Again, Opened, Refused, Until, auth, handshake};
pub use outbox::Outbox;
pub use run::{End, run};

crate::settings! {
    /// MQTT connections: what a peer may cost before and after its CONNECT.
    pub struct Settings {
        /// Milliseconds from accepting to a whole CONNECT.
        pub handshake_ms: u64 = 5_000,
        /// Bytes of the longest CONNECT we take, its will included.
        pub connect_bytes: usize = 16 * 1024,
        /// QoS 0 messages waiting for a client that reads too slowly; further ones are dropped and counted.
        pub outbox_messages: usize = 20_000,
        /// Bytes of messages waiting; further QoS 0 messages are dropped and counted.
        pub outbox_bytes: usize = 4 * 1024 * 1024,
        /// Answers a client may leave unread; then its requests are not read either.
        pub outbox_answers: usize = 10_000,
        /// Topic aliases used toward a client that takes them; 0 = none.
        pub topic_aliases: u16 = 16 => 0..=64,
        /// A client that takes no byte for so long while something waits for it is disconnected, milliseconds.
        pub write_stall_ms: u64 = 30_000,
    }
}

/// What connections tell the broker; one bounded channel for all of them.
#[derive(Debug)]
pub enum Incoming {
    /// A client sent a legal CONNECT. From here on `outbox` reaches it.
    Connect {
        /// Id.
        connection: ConnectionId,
        /// CONNECT.
        connect: Box<Connect>,
        /// Who.
        peer: Peer,
        /// Its outbox.
        outbox: Outbox,
    },
    /// Packets in the order they came: all that one read gave, at most 1,024. Nothing follows a DISCONNECT.
    Packets(ConnectionId, Vec<Packet>),
    /// The end: nothing follows. The client was told already, where its version has a way to; what is put on the outbox
    /// from here on is ignored.
    Closed(ConnectionId, Option<Reason>),
}

/// The broker's door for connections.
#[derive(Debug, Clone)]
pub struct Handle {
    /// Bounded; a full one stops the reader, which stops the socket. An item may hold all of one read (32 KiB of bytes,
    /// about ten times that as packets), so keep the capacity small: some tens.
    pub incoming: tokio::sync::mpsc::Sender<Incoming>,
}

/// What all connections of one broker share.
#[derive(Debug)]
pub struct Context {
    /// The broker.
    pub handle: Handle,
    /// Limits.
    pub settings: Settings,
    /// Bytes of the longest packet taken after CONNECT: what CONNACK tells.
    pub packet_bytes: usize,
    /// Counted here, shown by the host.
    pub counters: Counters,
    /// Cancelled: version 5 clients get DISCONNECT 0x8B, all are closed.
    pub stop: CancellationToken,
    next: AtomicU64,
}

impl Context {
    /// For one broker.
    pub fn new(
        handle: Handle,
        settings: Settings,
        packet_bytes: usize,
        stop: CancellationToken,
    ) -> Self {
        let counters = Counters::default();
        Self { handle, settings, packet_bytes, counters, stop, next: AtomicU64::new(1) }
    }

    fn next_connection(&self) -> ConnectionId {
        ConnectionId(self.next.fetch_add(1, Ordering::Relaxed))
    }
}

/// Counts since the start.
#[derive(Debug, Default)]
pub struct Counters {
    /// Bytes read.
    pub bytes_in: AtomicU64,
    /// Packets read.
    pub packets_in: AtomicU64,
    /// Bytes written.
    pub bytes_out: AtomicU64,
    /// Packets written.
    pub packets_out: AtomicU64,
    /// Connections that sent something else than MQTT first.
    pub wrong_protocol: AtomicU64,
    /// Connections without a whole CONNECT in time.
    pub handshake_timeouts: AtomicU64,
    /// Connections closed for a packet against the standard.
    pub malformed: AtomicU64,
    /// Connections silent for one and a half times their keep-alive.
    pub keep_alive_timeouts: AtomicU64,
    /// Connections closed because the client did not read.
    pub stalled: AtomicU64,
    /// Packets not sent because the client takes no packet of that size.
    pub too_large: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
