//! What the broker wants done.
//!
//! Rule: `effects` are carried out in order, and when `wait` is set only after all `changes` up to and including this
//! decision's are durable. That is how an acknowledgement is a promise: a PUBACK is an effect that waits.

use std::sync::Arc;

use bytestring::ByteString;

use super::event::{ConnectionId, SessionId};
use crate::{
    message::Message,
    mqtt::packet::{Packet, PacketId, Qos, Reason, SubscriptionOptions},
};

/// The outcome of one or several events.
#[derive(Debug, Default)]
pub struct Decision {
    /// To store, atomically, in order.
    pub changes: Vec<Change>,
    /// To do.
    pub effects: Vec<Effect>,
    /// The effects wait for the changes to be durable.
    pub wait: bool,
    /// Next monotonic ms at which [`super::Event::Tick`] is due.
    pub wake_ms: Option<u64>,
}

/// One entry of a session's queue of QoS 1 and 2 messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queued {
    /// Whose.
    pub session: SessionId,
    /// Place in that session's queue: starts at 1, no gaps when made, never reused.
    pub seq: u64,
    /// QoS it goes out with: min(published, subscribed).
    pub qos: Qos,
    /// Retain flag it goes out with.
    pub retain: bool,
    /// Ids of the matching subscriptions.
    pub subscription_ids: Vec<u32>,
    /// Packet id, once sent.
    pub packet_id: Option<PacketId>,
    /// QoS 2: PUBREC was received, PUBREL is what is resent.
    pub released: bool,
}

/// What to store. A host stores a message body once, however many queues refer to it.
#[derive(Debug, Clone)]
pub enum Change {
    /// A message was accepted from a connection or made here (will). Edge: append it to its outbound lane (if one takes
    /// the topic) and to the queues. Cloud: append it to the log (`queued` is empty there: fan-out follows the log).
    Message {
        /// The message.
        message: Arc<Message>,
        /// Persistent sessions that need it.
        queued: Vec<Queued>,
        /// Not to go into an outbound lane or the log: it came from there. The queues refer to it.
        stored: Option<crate::message::MessageRef>,
    },
    /// A message that is not new to the broker (retained, moved to another member of a shared subscription, handed in by
    /// the host without a reference) goes into queues: keep the body for them. Not for an outbound lane or the log.
    Enqueued {
        /// The message.
        message: Arc<Message>,
        /// Persistent sessions that need it; never empty.
        queued: Vec<Queued>,
    },
    /// The retained message of a topic; `None` = cleared.
    Retained {
        /// Topic.
        topic: ByteString,
        /// Message.
        message: Option<Arc<Message>>,
        /// Who answers for it.
        author: Author,
    },
    /// A session that must survive a restart was made or changed; one without expiry for its will alone.
    SessionSaved(Box<SavedSession>),
    /// A session ended, with all its subscriptions, queue entries and ids.
    SessionRemoved(SessionId),
    /// A subscription was made or replaced, or its retained messages have come further.
    Subscribed(SavedSubscription),
    /// A subscription ended.
    Unsubscribed {
        /// Whose.
        session: SessionId,
        /// Which.
        filter: ByteString,
    },
    /// A queue entry was sent for the first time or its state moved (packet id, released).
    Inflight(Queued),
    /// A queue entry is done (acknowledged, expired, dropped).
    Dequeued {
        /// Whose.
        session: SessionId,
        /// Which.
        seq: u64,
    },
    /// A message was accepted that is not published before its time; nobody else hears of it until then.
    Delayed(SavedDelayed),
    /// A delayed message is due, or cannot be published any more; what is to be stored of its publication follows.
    DelayedDone(u64),
    /// The host's own, stored with what it brought: it has read `source` up to before `next`.
    Followed {
        /// Number of what is read.
        source: u64,
        /// Place there.
        next: u64,
    },
    /// The host's own: what it read of is another now, all such places are forgotten.
    FollowsAnew,
    /// QoS 2 publish received; its id stays reserved until released.
    Received {
        /// Publisher's session.
        session: SessionId,
        /// Id.
        packet_id: PacketId,
    },
    /// PUBREL received.
    Released {
        /// Publisher's session.
        session: SessionId,
        /// Id.
        packet_id: PacketId,
    },
}

/// Who answers for a retained or delayed message: it is delivered as long as its author may publish it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Author {
    /// The host: it came from the log, from upstream, or was stored before authors were.
    #[default]
    Host,
    /// A client without a name. Its client id is the message's publisher, as for the next.
    Anonymous,
    /// A client of this name.
    Principal(ByteString),
}

/// The stored form of a delayed message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedDelayed {
    /// Unique among those that wait.
    pub number: u64,
    /// When it is due, in `Now::lasting_ms`.
    pub due_ms: i64,
    /// It, with the topic it goes to.
    pub message: Arc<Message>,
    /// Who answers for it.
    pub author: Author,
}

/// The stored form of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedSession {
    /// Number.
    pub session: SessionId,
    /// Client id.
    pub client_id: ByteString,
    /// Owner.
    pub principal: Option<ByteString>,
    /// Seconds after the connection ends; `u32::MAX` = never.
    pub expiry_s: u32,
    /// `Now::lasting_ms` when the connection ended; `None` = connected (after a restart: ended at the restart).
    pub disconnected_ms: Option<i64>,
    /// Will that is still to be published.
    pub will: Option<crate::mqtt::packet::Will>,
    /// Next queue seq to give out.
    pub next_seq: u64,
}

/// The stored form of a subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedSubscription {
    /// Whose.
    pub session: SessionId,
    /// Filter, `$share/..` included.
    pub filter: ByteString,
    /// Options as granted.
    pub options: SubscriptionOptions,
    /// Subscription id.
    pub subscription_id: Option<u32>,
    /// Retained messages still to be sent for it; `None`: it has them all.
    pub replay: Option<SavedReplay>,
}

/// How far the retained messages for a new subscription have come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedReplay {
    /// Last topic that was looked at.
    pub after: Option<ByteString>,
    /// Wall ms of the subscription: later messages came by it.
    pub since_ms: i64,
}

/// What to do.
#[derive(Debug, Clone)]
pub enum Effect {
    /// Put on the connection's outbox.
    Send {
        /// To.
        connection: ConnectionId,
        /// What.
        outgoing: Outgoing,
    },
    /// Write what is in the outbox, then close. A version 5 DISCONNECT was sent before, where the standard asks for one.
    Close {
        /// Which.
        connection: ConnectionId,
        /// For log and metrics.
        reason: Reason,
    },
    /// Read stored queue entries of a session, from `from` on, at most `max` entries and (but for the first) `bytes` bytes.
    /// Answered by exactly one [`super::Event::Loaded`], also if there is nothing. At most one is open a session. The
    /// decision has `wait` set: the read must see all changes made so far.
    Load {
        /// Whose.
        session: SessionId,
        /// First seq.
        from: u64,
        /// Entries.
        max: usize,
        /// Bytes of payloads and topics.
        bytes: usize,
    },
    /// A limit was hit, or a session ended, and messages were not delivered or not kept (P3).
    Dropped {
        /// Whose, if a session's.
        session: Option<SessionId>,
        /// Why, a metric label.
        why: &'static str,
        /// How many messages.
        count: u64,
    },
}

/// What goes to a client.
#[derive(Debug, Clone)]
pub enum Outgoing {
    /// A message. Encoded once per version, shared by all receivers.
    Publish(Delivery),
    /// Anything else.
    Packet(Box<Packet>),
}

/// A message for one receiver.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Shared body.
    pub message: Arc<Message>,
    /// QoS of this delivery.
    pub qos: Qos,
    /// Redelivery.
    pub dup: bool,
    /// Retain flag of this delivery.
    pub retain: bool,
    /// For QoS 1 and 2.
    pub packet_id: Option<PacketId>,
    /// Matching subscriptions' ids.
    pub subscription_ids: Vec<u32>,
    /// Seconds left, where the message expires.
    pub expiry_s: Option<u32>,
}
