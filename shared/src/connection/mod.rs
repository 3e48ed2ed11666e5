//! One task a MQTT client: bytes in, packets to the broker; what the broker sends, bytes out.
//!
//! Holds: the read and write loop, the CONNECT deadline, the bounded outbox. In: an accepted stream and the broker's
//! [`Handle`]. Out: [`Incoming`] to the broker. Change here: buffering, batching, what happens to a slow reader.
//! Not here: what packets mean (`session`), accepting (`net`).

pub mod outbox;

use crate::{
    mqtt::packet::{Connect, Packet, Reason},
    session::event::{ConnectionId, Peer},
};
pub use outbox::Outbox;

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
    /// Packets in the order they came: all that one read gave.
    Packets(ConnectionId, Vec<Packet>),
    /// The end: nothing follows.
    Closed(ConnectionId, Option<Reason>),
}

/// The broker's door for connections.
#[derive(Debug, Clone)]
pub struct Handle {
    /// Bounded; a full one stops the reader, which stops the socket.
    pub incoming: tokio::sync::mpsc::Sender<Incoming>,
}
