//! What the store still knew at start: the sum of all [`Change`](super::Change)s that were durable.

use std::sync::Arc;

use super::action::{SavedSession, SavedSubscription};
use crate::{message::Message, mqtt::PacketId};

/// Everything. `Default` is an empty store.
#[derive(Debug, Default)]
pub struct Restored {
    /// Sessions saved and not removed.
    pub sessions: Vec<RestoredSession>,
    /// Their subscriptions. One of an unknown session is ignored.
    pub subscriptions: Vec<SavedSubscription>,
    /// Retained messages.
    pub retained: Vec<Arc<Message>>,
    /// Any number above every session number ever stored; 0 = take it from `sessions`.
    pub next_session: u64,
    /// Random number of this start: makes assigned client ids impossible to guess.
    pub seed: u64,
}

/// A session and the state of its flows.
#[derive(Debug, Clone)]
pub struct RestoredSession {
    /// As last saved.
    pub saved: SavedSession,
    /// QoS 2 ids received and not released.
    pub received: Vec<PacketId>,
    /// What waits for it.
    pub queue: RestoredQueue,
}

/// A session's stored queue entries, without reading them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RestoredQueue {
    /// Entries.
    pub messages: u64,
    /// Bytes of their payloads and topics; 0 if not known.
    pub bytes: u64,
    /// Lowest seq; 0 without entries.
    pub first_seq: u64,
    /// Highest seq; 0 without entries.
    pub last_seq: u64,
}
