//! What the store still knew at start: the sum of all [`Change`](super::Change)s that were durable.

use std::sync::Arc;

use super::{
    Now, State,
    action::{Author, SavedDelayed, SavedSession, SavedSubscription},
    client::Session,
    disconnect::ends_after,
    own::is_own,
    queue::Queue,
    retained::Replay,
    routes::Subscriber,
    timers::Timer,
};
use crate::{message::Message, mqtt::PacketId, topic::filter::Subscribed};

/// Everything. `Default` is an empty store.
#[derive(Debug, Default)]
pub struct Restored {
    /// Sessions saved and not removed.
    pub sessions: Vec<RestoredSession>,
    /// Their subscriptions. One of an unknown session is ignored.
    pub subscriptions: Vec<SavedSubscription>,
    /// Retained messages, and who answers for them.
    pub retained: Vec<(Arc<Message>, Author)>,
    /// Delayed messages that are not done.
    pub delayed: Vec<SavedDelayed>,
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

impl State {
    pub(super) fn restore(&mut self, restored: Restored, now: Now) {
        for session in restored.sessions {
            self.restore_session(session, now);
        }
        for (message, author) in restored.retained {
            if !is_own(&message.topic) {
                self.retained.insert(message, author);
            }
        }
        for saved in restored.subscriptions {
            self.restore_subscription(saved);
        }
        for saved in restored.delayed {
            self.restore_delayed(saved, now);
        }
    }

    fn restore_session(&mut self, restored: RestoredSession, now: Now) {
        let RestoredSession { saved, received, queue } = restored;
        let id = saved.session;
        self.next_session = self.next_session.max(id.0 + 1);
        // Time that went back, as servers' may, gives time and takes none.
        let ended_ms = saved.disconnected_ms.unwrap_or(now.lasting_ms);
        let ago = u64::try_from(now.lasting_ms.saturating_sub(ended_ms)).unwrap_or(0);
        let after = |at: u64| now.mono_ms.saturating_add(at.saturating_sub(ago));
        let session = Session {
            id,
            client_id: saved.client_id.clone(),
            principal: saved.principal,
            stored: true,
            saved: true,
            expiry_s: saved.expiry_s,
            online: None,
            disconnected_ms: Some(ended_ms),
            will_due: saved.will.as_ref().map(|will| after(u64::from(will.delay) * 1000)),
            will: saved.will.map(Box::new),
            ends: ends_after(saved.expiry_s, 0).map(after),
            subscriptions: std::collections::BTreeSet::new(),
            received: received.into_iter().collect(),
            queue: Queue::restored(queue, saved.next_seq),
            replays: std::collections::VecDeque::new(),
            replaying: false,
            met: (0, 0),
        };
        if let Some(at) = session.due() {
            self.timers.set(at, Timer::Session(id));
        }
        if saved.disconnected_ms.is_none() {
            self.unsaved.push_back(id);
        }
        self.clients.insert(saved.client_id, id);
        self.sessions.insert(id, Box::new(session));
    }

    fn restore_subscription(&mut self, saved: SavedSubscription) {
        let SavedSubscription { session, filter, options, subscription_id: id, replay } = saved;
        let (Some(owner), Ok(parsed)) =
            (self.sessions.get_mut(&session), Subscribed::parse(&filter))
        else {
            return;
        };
        self.routes.insert(&filter, parsed, Subscriber { session, options, id });
        if let Some(stored) = replay {
            owner.replays.push_back(Replay {
                pattern: filter.clone(),
                options,
                id,
                after: stored.after.clone(),
                version: self.retained.version(),
                subscribed: (options, id),
                since_ms: stored.since_ms,
                restored: true,
                stored: Some(stored),
            });
        }
        self.subscriptions += usize::from(owner.subscriptions.insert(filter));
    }
}
