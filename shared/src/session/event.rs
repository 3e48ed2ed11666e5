//! What can happen to the broker.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use bytestring::ByteString;

use crate::{
    auth::Permissions,
    message::{Message, MessageRef},
    mqtt::packet::{Connect, Packet, Publish, Reason, Subscribe},
};

/// A network connection, unique for the life of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// A session, unique for the life of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// The time of a decision, given by the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Monotonic ms since the process started: timers.
    pub mono_ms: u64,
    /// Wall clock, ms since 1970: the times of messages. May jump.
    pub wall_ms: i64,
    /// Ms of a time that goes on over restarts: sessions, messages, delays end by it. Servers: the wall clock. The edge: what it
    /// saw pass, which no clock can make jump.
    pub lasting_ms: i64,
}

/// Who is at the other end, established before the event is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Authenticated principal; `None` = anonymous.
    pub principal: Option<ByteString>,
    /// Remote address.
    pub address: Option<SocketAddr>,
    /// It proved its name by the authentication method of its CONNECT (MQTT 5, 4.12): the data that CONNACK ends that with.
    /// `None`: it did not, and a CONNECT that asks for one is refused.
    pub proof: Option<Bytes>,
}

/// One event.
#[derive(Debug)]
pub enum Event {
    /// A checked CONNECT of an authenticated peer. Nothing was touched before it.
    Connect {
        /// New connection.
        connection: ConnectionId,
        /// Its CONNECT.
        connect: Box<Connect>,
        /// Who.
        peer: Peer,
    },
    /// Any later packet.
    Packet {
        /// Connection it came on.
        connection: ConnectionId,
        /// The packet, checked by the codec.
        packet: Packet,
    },
    /// A PUBLISH that the host does not take (rights, disk full). Version 5 is told in the acknowledgement; older clients have
    /// no way to be told and are disconnected.
    Refused {
        /// Connection it came on.
        connection: ConnectionId,
        /// The packet.
        publish: Box<Publish>,
        /// Why: 0x80 and above.
        reason: Reason,
    },
    /// The host does not read from it until it has room: its silence is not its fault. The next packet or refusal ends that.
    Held {
        /// Which.
        connection: ConnectionId,
    },
    /// A SUBSCRIBE of which the host does not grant every filter (rights). Each is answered by itself; before version 5 all
    /// refusals are 0x80.
    RefusedFilters {
        /// Connection it came on.
        connection: ConnectionId,
        /// The packet.
        subscribe: Box<Subscribe>,
        /// For each filter, in order, why not (0x80 and above), or `None`: granted, as are filters beyond the end.
        refused: Vec<Option<Reason>>,
    },
    /// The socket is gone or must go; DISCONNECT itself arrives as a packet. The will is due unless that said otherwise.
    Closed {
        /// Which.
        connection: ConnectionId,
        /// For a peer's fault: the code to send in DISCONNECT (or CONNACK) before closing.
        reason: Option<Reason>,
    },
    /// The host publishes something: it goes where a client's message of that topic would go, and nobody's rights are asked.
    Publish(Arc<Message>),
    /// A message that did not come from a connection: downlink, log.
    Message {
        /// It.
        message: Arc<Message>,
        /// Where the host has it already; `None`: not stored yet.
        stored: Option<MessageRef>,
    },
    /// Answer to [`super::Effect::Load`].
    Loaded {
        /// Whose queue.
        session: SessionId,
        /// In order of `seq`, without gaps from the one asked for.
        entries: Vec<LoadedEntry>,
        /// Nothing is stored after these. Always so without entries.
        complete: bool,
    },
    /// What the broker says of itself: values for topics below `$SYS/broker/`. The host has a fixed set of such topics: no limit
    /// holds for them.
    Own(Vec<(ByteString, Bytes)>),
    /// The host dropped entries of a queue that it had stored, to keep its limits.
    Trimmed {
        /// Whose queue.
        session: SessionId,
        /// How many.
        messages: u64,
        /// Their bytes.
        bytes: u64,
    },
    /// What clients may do, from now on; subscriptions and queues are looked at again. Until the first one everybody may do
    /// everything.
    Permissions(Arc<Permissions>),
    /// Time passed. The host calls at [`super::Decision::wake_ms`] at the latest.
    Tick,
}

/// A stored queue entry brought back to memory.
#[derive(Debug, Clone)]
pub struct LoadedEntry {
    /// Place in the session's queue.
    pub queued: super::Queued,
    /// The message; `None`: its body is gone (salvage), the entry is to be dropped and counted.
    pub message: Option<Arc<Message>>,
}
