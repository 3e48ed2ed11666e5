//! AMQP virtual hosts over the log: exchanges, bindings, queues. A queue = index + cursor + unacknowledged set over the one
//! log; payloads are stored once.
//!
//! ```text
//!  connections --Command--> owner task: State decides (pure) -> Plan --one log transaction--> durable
//!                                                                          |
//!  connections <--Event---- deliveries, confirms, replies <----------------+
//!  router: every record of another protocol -> Command::Routed -> the same owner
//! ```
//! The owner is the virtual host, not the queue: a message fans out to many queues in one transaction
//! (docs/decisions/0030-one-owner-a-virtual-host.md). In: [`Command`]s in order. Out: [`Event`]s in order, for each connection.
//! Change here: what the parts exchange, and the limits. Not here: frames (`amqp`), offsets (`log`).

pub mod arguments;
#[cfg(test)]
mod backlog_tests;
pub mod dead_letter;
pub mod deliver;
pub mod exchange;
mod keeper;
pub mod line;
pub mod load;
pub mod message;
mod method;
pub mod outbox;
pub mod owner;
pub mod parts;
pub mod pattern;
pub mod plan;

pub mod router;
pub mod state;
pub mod store;

use std::sync::{Arc, atomic::AtomicU64};

use bytes::Bytes;
use bytestring::ByteString;
pub use keeper::home;
pub use message::{Message, TOPIC_EXCHANGE};
pub use outbox::Outbox;
pub use owner::VirtualHost;
use tributary_shared::amqp::{Method, Properties, Refusal};

/// Every cap of a virtual host, with its reason.
pub mod limits {
    /// Queues: each costs about a kilobyte of memory.
    pub const QUEUES: usize = 50_000;
    /// Exchanges.
    pub const EXCHANGES: usize = 50_000;
    /// Bindings of one exchange.
    pub const BINDINGS: usize = 200_000;
    /// Consumers of one channel.
    pub const CONSUMERS: usize = 2_000;
    /// Unacknowledged messages of one channel; more are not delivered before some are acknowledged.
    pub const UNACKED: usize = 100_000;
    /// Bytes of them.
    pub const UNACKED_BYTES: usize = 256 * 1024 * 1024;
    /// Bytes of deliveries on their way to one connection's socket.
    pub const CREDIT_BYTES: i64 = 1024 * 1024;
    /// Bytes that one channel's open transaction may hold.
    pub const TRANSACTION_BYTES: usize = 64 * 1024 * 1024;
    /// `basic.get`s that wait for a backlog to be read, per queue.
    pub const WAITING_GETS: usize = 1024;
    /// Batches of commands that wait for the owner.
    pub const COMMANDS: usize = 256;
    /// Deaths listed in `x-death`.
    pub const DEATHS: usize = 64;
}

/// Numbers of a virtual host, for metrics.
#[derive(Debug, Default)]
pub struct Numbers {
    /// Queues now.
    pub queues: AtomicU64,
    /// Messages that clients published.
    pub published: AtomicU64,
    /// Messages that clients were sent.
    pub delivered: AtomicU64,
    /// Queued messages whose record the log no longer had.
    pub lost: AtomicU64,
}

/// Number of a connection, of one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// Number of a queue of a virtual host, never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueId(pub u64);

/// A content that was published.
#[derive(Debug, Clone, PartialEq)]
pub struct Publish {
    /// Exchange.
    pub exchange: ByteString,
    /// Routing key.
    pub routing_key: ByteString,
    /// To be returned if it reaches no queue.
    pub mandatory: bool,
    /// Decoded.
    pub properties: Properties,
    /// The same as they came.
    pub raw: Bytes,
    /// Body.
    pub body: Bytes,
}

/// What the owner is told. Commands of one connection are taken in order.
#[derive(Debug)]
pub enum Command {
    /// A connection opened the virtual host.
    Attach {
        /// Which.
        connection: ConnectionId,
        /// How it is reached.
        outbox: Outbox,
        /// Who logged in.
        user: Arc<str>,
    },
    /// It is gone: its messages return, its exclusive queues go.
    Detach(ConnectionId),
    /// The connection closed a channel by itself: its messages return. Nothing is answered.
    Abandon(ConnectionId, u16),
    /// It wrote this many bytes of deliveries to its socket.
    Written(ConnectionId, i64),
    /// A method on a channel, without content. `channel.open` makes the channel, `channel.close` ends it.
    Method {
        /// From.
        connection: ConnectionId,
        /// Channel.
        channel: u16,
        /// What.
        method: Method,
    },
    /// A content.
    Publish {
        /// From.
        connection: ConnectionId,
        /// Channel.
        channel: u16,
        /// What.
        publish: Box<Publish>,
    },
    /// Records that came by another protocol.
    Routed(Box<router::Routed>),
}

/// What a connection is told.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A message for a consumer.
    Deliver {
        /// Channel.
        channel: u16,
        /// Consumer.
        consumer: ByteString,
        /// Delivery tag.
        tag: u64,
        /// It may have been delivered before.
        redelivered: bool,
        /// The message.
        message: Arc<Message>,
    },
    /// The answer to `basic.get`.
    Got {
        /// Channel.
        channel: u16,
        /// Delivery tag.
        tag: u64,
        /// It may have been delivered before.
        redelivered: bool,
        /// Messages left.
        left: u32,
        /// The message.
        message: Arc<Message>,
    },
    /// A mandatory message reached no queue.
    Return {
        /// Channel.
        channel: u16,
        /// The message.
        message: Arc<Message>,
    },
    /// Publishes of a confirming channel are durable (or, `ok = false`, one was refused).
    Confirm {
        /// Channel.
        channel: u16,
        /// Sequence number.
        tag: u64,
        /// All up to it, too.
        multiple: bool,
        /// Durable.
        ok: bool,
    },
    /// An answer, or a method that the server sends by itself.
    Method {
        /// Channel.
        channel: u16,
        /// What.
        method: Method,
    },
    /// The channel, or with a hard code the connection, is to be closed.
    Refused {
        /// Channel.
        channel: u16,
        /// Why.
        refusal: Refusal,
    },
}

impl Event {
    /// What it costs to keep, about.
    pub fn size(&self) -> usize {
        match self {
            Self::Deliver { message, .. }
            | Self::Got { message, .. }
            | Self::Return { message, .. } => message.size() + 128,
            _ => 128,
        }
    }
}
