//! What a decision changes, as keys to write and records to append. Pure.
//!
//! In: the core's changes, in order. Out: [`Stored`]. Not here: byte forms (`stored`), committing (`broker`).

use std::sync::Arc;

use tributary_shared::{
    message::Message,
    session::{Change, Queued, SessionId},
};

use super::stored::{
    Body, Unreadable, entry_key, kind, retained_key, session_key, write_delayed, write_flight,
    write_message, write_queued, write_session, write_subscription,
};
use crate::{
    engine::Write,
    log::{Log, StateSpace},
};

/// The storable outcome of some decisions.
#[derive(Debug, Default)]
pub(super) struct Stored {
    /// The head's own keys.
    pub(super) writes: Vec<Write>,
    /// New messages, in order, for the log.
    pub(super) messages: Vec<Arc<Message>>,
    /// Sessions whose other keys can go now.
    pub(super) ended: Vec<SessionId>,
    /// Highest number of a session among the changes.
    pub(super) highest_session: u64,
}

impl Stored {
    /// Adds one change.
    pub(super) fn add(&mut self, change: Change) -> Result<(), Unreadable> {
        match change {
            Change::Message { message, stored: None, .. } => self.messages.push(message),
            Change::Message { message, queued, stored: Some(place) } => {
                self.queue(&message, &queued, &Body::Ref(place))?;
            }
            Change::Enqueued { message, queued } => {
                let body = Body::Own(Box::new(Message::clone(&message)));
                self.queue(&message, &queued, &body)?;
            }
            Change::Retained { topic, message: None, .. } => {
                let key = Log::state_key(StateSpace::Retained, &retained_key(&topic));
                self.writes.push(Write::Delete(key));
            }
            Change::Retained { topic, message: Some(message), .. } => {
                let key = Log::state_key(StateSpace::Retained, &retained_key(&topic));
                self.writes.push(Write::Put(key, write_message(&message)?));
            }
            Change::SessionSaved(saved) => {
                self.highest_session = self.highest_session.max(saved.session.0);
                self.put(session_key(kind::SESSION, saved.session, &[]), write_session(&saved)?);
            }
            Change::SessionRemoved(session) => {
                self.delete(&session_key(kind::SESSION, session, &[]));
                self.ended.push(session);
            }
            Change::Subscribed(saved) => {
                let key = session_key(kind::SUBSCRIPTION, saved.session, saved.filter.as_bytes());
                self.put(key, write_subscription(&saved));
            }
            Change::Unsubscribed { session, filter } => {
                self.delete(&session_key(kind::SUBSCRIPTION, session, filter.as_bytes()));
            }
            Change::Inflight(queued) => {
                let key = entry_key(kind::INFLIGHT, queued.session, queued.seq);
                self.put(key, write_flight(&queued));
            }
            Change::Dequeued { session, seq } => {
                self.delete(&entry_key(kind::QUEUED, session, seq));
                self.delete(&entry_key(kind::INFLIGHT, session, seq));
            }
            Change::Delayed(saved) => {
                let key = session_key(kind::DELAYED, SessionId(saved.number), &[]);
                self.put(key, write_delayed(&saved)?);
            }
            Change::DelayedDone(number) => {
                self.delete(&session_key(kind::DELAYED, SessionId(number), &[]));
            }
            // An edge's: it follows this log.
            Change::Followed { .. } | Change::FollowsAnew => {}
            Change::Received { session, packet_id } => {
                let key = session_key(kind::RECEIVED, session, &packet_id.get().to_be_bytes());
                self.put(key, bytes::Bytes::new());
            }
            Change::Released { session, packet_id } => {
                self.delete(&session_key(kind::RECEIVED, session, &packet_id.get().to_be_bytes()));
            }
        }
        Ok(())
    }

    fn queue(
        &mut self,
        message: &Message,
        queued: &[Queued],
        body: &Body,
    ) -> Result<(), Unreadable> {
        let bytes = message.topic.len() + message.payload.len();
        for entry in queued {
            let key = entry_key(kind::QUEUED, entry.session, entry.seq);
            self.put(key, write_queued(entry, bytes as u32, body)?);
        }
        Ok(())
    }

    /// Sets a key of space Session.
    pub(super) fn put(&mut self, key: Vec<u8>, value: bytes::Bytes) {
        self.writes.push(Write::Put(Log::state_key(StateSpace::Session, &key), value));
    }

    fn delete(&mut self, key: &[u8]) {
        self.writes.push(Write::Delete(Log::state_key(StateSpace::Session, key)));
    }
}
