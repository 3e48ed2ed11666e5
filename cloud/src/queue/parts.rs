//! PURE. What a virtual host is made of: queues, consumers, connections, channels, and what waits in them.
//!
//! Not here: what changes them (`state`, `method`, `deliver`).

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

use bytestring::ByteString;
use tributary_shared::amqp::Table;

use super::{
    ConnectionId, Publish, QueueId,
    arguments::Arguments,
    line::{Line, Ready},
};

/// A queue.
pub struct Queue {
    pub(super) name: ByteString,
    pub(super) declared: QueueDeclared,
    pub(super) arguments: Arguments,
    pub(super) owner: Option<ConnectionId>,
    pub(super) line: Line,
    pub(super) consumers: VecDeque<Consumer>,
    pub(super) exclusive_consumer: bool,
    pub(super) gets: VecDeque<(ConnectionId, u16, bool)>,
    /// Exchanges that may have a binding to it.
    pub(super) bound: HashSet<ByteString>,
    /// A read is under way; its number, so that one from before a purge is known.
    pub(super) loading: Option<u64>,
    pub(super) loads: u64,
    pub(super) dirty: bool,
    pub(super) deadline: Option<i64>,
    pub(super) used_ms: i64,
    /// Positions below were there when the process started.
    pub(super) restored: u64,
}

/// What `queue.declare` says of a queue.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct QueueDeclared {
    pub durable: bool,
    pub exclusive: bool,
    pub auto_delete: bool,
    pub arguments: Table,
}

/// A consumer, from its queue's side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consumer {
    pub(super) connection: ConnectionId,
    pub(super) channel: u16,
    pub(super) tag: ByteString,
}

/// A connection.
pub struct Connection {
    pub(super) user: Arc<str>,
    pub(super) channels: HashMap<u16, Channel>,
    /// Bytes of deliveries that may be sent now.
    pub(super) credit: i64,
    /// A delivery waited for credit.
    pub(super) stalled: bool,
    pub(super) exclusive: HashSet<QueueId>,
}

/// A channel.
#[derive(Default)]
pub struct Channel {
    pub(super) mode: Mode,
    /// Tag of the first slot.
    pub(super) first_tag: u64,
    /// By delivery tag; `None` is settled.
    pub(super) slots: VecDeque<Option<Unacked>>,
    pub(super) unacked: usize,
    pub(super) unacked_bytes: usize,
    /// For consumers to come; 0 = no limit.
    pub(super) prefetch: u16,
    /// For all of them together; 0 = no limit.
    pub(super) prefetch_all: u16,
    /// A delivery waited for an acknowledgement.
    pub(super) stalled: bool,
    pub(super) consumers: HashMap<ByteString, ChannelConsumer>,
    pub(super) last_queue: Option<ByteString>,
}

/// How a channel publishes.
#[derive(Default)]
pub enum Mode {
    /// Without answers.
    #[default]
    Plain,
    /// With confirms; the last sequence number.
    Confirm(u64),
    /// In transactions.
    Transaction(Transaction),
}

/// What waits for `tx.commit`.
#[derive(Default)]
pub struct Transaction {
    pub(super) publishes: Vec<Publish>,
    pub(super) bytes: usize,
    pub(super) settles: Vec<Settle>,
}

/// An acknowledgement or rejection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settle {
    pub(super) tag: u64,
    pub(super) multiple: bool,
    pub(super) how: Settled,
}

/// How a message is settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Settled {
    Acked,
    Requeued,
    Rejected,
}

/// A delivered message, from its channel's side.
#[derive(Debug, Clone)]
pub struct Unacked {
    pub(super) queue: QueueId,
    pub(super) position: u64,
    pub(super) size: usize,
    /// `None`: by `basic.get`.
    pub(super) consumer: Option<ByteString>,
}

/// A consumer, from its channel's side.
pub struct ChannelConsumer {
    pub(super) queue: QueueId,
    pub(super) no_ack: bool,
    pub(super) prefetch: u16,
    pub(super) outstanding: u32,
}

/// A backlog to read: entries of `queue` in `[from, until)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Load {
    pub queue: QueueId,
    pub number: u64,
    pub from: u64,
    pub until: u64,
    /// Positions below were in the store when the process started: they may have been out before.
    pub restored: u64,
}

/// What [`Load`] gave.
#[derive(Debug)]
pub struct Loaded {
    /// What was asked.
    pub load: Load,
    /// In order.
    pub messages: Vec<Ready>,
    /// Positions whose record is not in the log any more.
    pub lost: Vec<u64>,
    /// Everything below was read.
    pub until: u64,
}

/// Entries of `queue` in `[from, until)` are to be removed, and the purge mark with them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Sweep {
    pub queue: QueueId,
    pub from: u64,
    pub until: u64,
}

/// A queue's stored entries, counted at start.
#[derive(Debug, Clone, Copy, Default)]
#[allow(missing_docs)]
pub struct Count {
    pub floor: u64,
    pub next: u64,
    pub messages: u64,
    pub bytes: u64,
}

impl Queue {
    pub(super) fn new(
        name: ByteString,
        declared: QueueDeclared,
        arguments: Arguments,
        owner: Option<ConnectionId>,
        now_ms: i64,
    ) -> Self {
        Self {
            name,
            declared,
            arguments,
            owner,
            line: Line::default(),
            consumers: VecDeque::new(),
            exclusive_consumer: false,
            gets: VecDeque::new(),
            bound: HashSet::new(),
            loading: None,
            loads: 0,
            dirty: false,
            deadline: None,
            used_ms: now_ms,
            restored: 0,
        }
    }

    /// Its definition survives a restart.
    pub(super) fn is_stored(&self) -> bool {
        self.declared.durable && !self.declared.exclusive
    }

    /// When it goes if nobody uses it, ms since 1970.
    pub(super) fn unused_until(&self) -> Option<i64> {
        let expires_ms = self.arguments.expires_ms?;
        self.consumers.is_empty().then(|| self.used_ms.saturating_add(expires_ms))
    }
}

impl Connection {
    pub(super) fn new(user: Arc<str>) -> Self {
        Self {
            user,
            channels: HashMap::new(),
            credit: super::limits::CREDIT_BYTES,
            stalled: false,
            exclusive: HashSet::new(),
        }
    }
}
