//! A store that does what the contract of [`Change`] says, and nothing else.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytestring::ByteString;

use crate::{
    message::{Message, MessageRef},
    mqtt::PacketId,
    record::mqtt::{to_message, to_record},
    session::{
        Change, Queued, Restored, RestoredQueue, RestoredSession, SessionId,
        action::{Author, SavedDelayed, SavedSession, SavedSubscription},
        event::LoadedEntry,
    },
};

#[derive(Debug, Default, Clone)]
pub(super) struct Store {
    pub(super) sessions: BTreeMap<SessionId, SavedSession>,
    pub(super) subscriptions: BTreeMap<(SessionId, ByteString), SavedSubscription>,
    pub(super) queue: BTreeMap<(SessionId, u64), (Queued, Arc<Message>)>,
    pub(super) retained: BTreeMap<ByteString, (Arc<Message>, Author)>,
    pub(super) delayed: BTreeMap<u64, SavedDelayed>,
    pub(super) received: BTreeSet<(SessionId, PacketId)>,
    /// Messages taken from clients, in order: the outbound lane or the log.
    pub(super) log: Vec<Arc<Message>>,
    next_session: u64,
}

impl Store {
    pub(super) fn apply(&mut self, change: Change) {
        match change {
            Change::Message { message, queued, stored } => {
                if stored.is_none() {
                    self.log.push(message.clone());
                }
                self.enqueue(message, queued);
            }
            Change::Enqueued { message, queued } => {
                assert!(!queued.is_empty());
                self.enqueue(message, queued);
            }
            Change::Retained { topic, message: Some(message), author } => {
                self.retained.insert(topic, (message, author));
            }
            Change::Retained { topic, message: None, .. } => drop(self.retained.remove(&topic)),
            Change::SessionSaved(saved) => {
                self.next_session = self.next_session.max(saved.session.0 + 1);
                self.sessions.insert(saved.session, *saved);
            }
            Change::SessionRemoved(id) => {
                assert!(self.sessions.remove(&id).is_some(), "removed twice");
                self.subscriptions.retain(|(session, _), _| *session != id);
                self.queue.retain(|(session, _), _| *session != id);
                self.received.retain(|(session, _)| *session != id);
            }
            Change::Subscribed(saved) => {
                assert!(self.sessions.contains_key(&saved.session));
                self.subscriptions.insert((saved.session, saved.filter.clone()), saved);
            }
            Change::Unsubscribed { session, filter } => {
                self.subscriptions.remove(&(session, filter)).expect("was subscribed");
            }
            Change::Inflight(queued) => {
                let key = (queued.session, queued.seq);
                self.queue.get_mut(&key).expect("entry is stored").0 = queued;
            }
            Change::Dequeued { session, seq } => {
                self.queue.remove(&(session, seq)).expect("entry is stored");
            }
            Change::Delayed(saved) => {
                assert!(self.delayed.insert(saved.number, saved).is_none(), "number is new");
            }
            Change::DelayedDone(number) => {
                self.delayed.remove(&number).expect("it waits");
            }
            Change::Received { session, packet_id } => {
                assert!(self.received.insert((session, packet_id)));
            }
            Change::Followed { .. } | Change::FollowsAnew => {}
            Change::Released { session, packet_id } => {
                assert!(self.received.remove(&(session, packet_id)));
            }
        }
    }

    fn enqueue(&mut self, message: Arc<Message>, queued: Vec<Queued>) {
        for entry in queued {
            assert!(self.sessions.contains_key(&entry.session), "queue of a stored session");
            let key = (entry.session, entry.seq);
            assert!(self.queue.insert(key, (entry, message.clone())).is_none(), "seq is new");
        }
    }

    pub(super) fn restored(&self) -> Restored {
        let session = |saved: &SavedSession| {
            let id = saved.session;
            let entries = || self.queue.range((id, 0)..=(id, u64::MAX));
            RestoredSession {
                saved: saved.clone(),
                received: self.received.iter().filter(|one| one.0 == id).map(|one| one.1).collect(),
                queue: RestoredQueue {
                    messages: entries().count() as u64,
                    bytes: 0,
                    first_seq: entries().next().map_or(0, |(key, _)| key.1),
                    last_seq: entries().next_back().map_or(0, |(key, _)| key.1),
                },
            }
        };
        Restored {
            sessions: self.sessions.values().map(session).collect(),
            subscriptions: self.subscriptions.values().cloned().collect(),
            retained: self.retained.values().cloned().collect(),
            delayed: self.delayed.values().cloned().collect(),
            next_session: self.next_session,
            seed: 42,
        }
    }

    pub(super) fn load(
        &self,
        id: SessionId,
        from: u64,
        max: usize,
        bytes: usize,
    ) -> (Vec<LoadedEntry>, bool) {
        let mut entries = Vec::new();
        let mut size = 0;
        for (queued, message) in
            self.queue.range((id, from)..=(id, u64::MAX)).map(|(_, entry)| entry)
        {
            if entries.len() == max || size > bytes {
                return (entries, false);
            }
            size += message.topic.len() + message.payload.len();
            // As hosts have it: from its record.
            let message = to_message(&to_record(message), "");
            entries.push(LoadedEntry { queued: queued.clone(), message: Some(Arc::new(message)) });
        }
        (entries, true)
    }

    pub(super) fn reference(at: usize) -> MessageRef {
        MessageRef(0, at as u64)
    }
}
