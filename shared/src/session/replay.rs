//! Retained messages for new subscriptions, in bounded steps (3.3.1.3, 3.8.3.1).
//!
//! A step follows SUBACK, the next ones the tick, and acknowledgements where the queue was full. How far a stored session
//! has come is stored with what the step gave it. Not here: finding them (`retained`).

use std::cell::OnceCell;

use super::{
    Change, Decision, Now, SessionId, State,
    action::{Author, SavedSubscription},
    client::Session,
    deliver::Offer,
    retained::Replay,
};
use crate::mqtt::packet::Qos;

/// Messages one step may send, and topics it may look at.
const STEP: usize = 64;
const SCAN: usize = 1024;

impl State {
    /// Goes on with a session's replays now or with the next tick.
    pub(super) fn schedule_replay(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if !session.replaying && !session.replays.is_empty() {
            session.replaying = true;
            self.replaying.push_back(id);
        }
    }

    /// One step for one session.
    pub(super) fn replay(&mut self, id: SessionId, now: Now, out: &mut Decision) {
        self.replay_step(id, now, out);
        if let Some(session) = self.sessions.get_mut(&id).filter(|session| session.stored) {
            session.save_replays(out);
        }
    }

    fn replay_step(&mut self, id: SessionId, now: Now, out: &mut Decision) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if session.online.is_none() || !session.queue.is_roomy(&self.settings) {
            return; // its next connection, or the next acknowledgement, schedules it
        }
        let (mut sent, mut looked) = (0, 0);
        while sent < STEP && looked < STEP {
            let Some(session) = self.sessions.get_mut(&id) else { return };
            let Some(mut replay) = session.replays.pop_front() else { return };
            looked += 1;
            let page = self.retained.page(&replay, &self.permissions, STEP - sent, SCAN);
            self.denied.deliveries += page.denied;
            sent += page.messages.len();
            let mut full = false;
            for message in page.messages {
                if full {
                    break;
                }
                if message.expires_ms.is_some_and(|at| at <= now.lasting_ms) {
                    self.retained.remove(&message.topic);
                    let topic = message.topic.clone();
                    out.changes.push(Change::Retained {
                        topic,
                        message: None,
                        author: Author::Host,
                    });
                    continue;
                }
                replay.after = Some(message.topic.clone());
                full = !self.replay_one(id, &replay, &message, now, out);
            }
            let Some(session) = self.sessions.get_mut(&id) else { return };
            if full {
                session.replays.push_front(replay);
                return;
            }
            if page.after.is_some() {
                replay.after = page.after;
                session.replays.push_front(replay);
                break;
            }
            if replay.stored.is_some() {
                out.changes.push(session.replay_to_save(&replay, false));
            }
        }
        self.schedule_replay(id);
    }

    /// Says whether there is room for another.
    fn replay_one(
        &mut self,
        id: SessionId,
        replay: &Replay,
        message: &std::sync::Arc<crate::message::Message>,
        now: Now,
        out: &mut Decision,
    ) -> bool {
        let Some(session) = self.sessions.get_mut(&id) else { return false };
        if replay.options.no_local && message.publisher.as_ref() == Some(&session.client_id) {
            return true; // MQTT-3.8.3-3
        }
        let offer = Offer {
            message,
            kept: &OnceCell::from(message.clone()),
            qos: replay.options.qos.min(message.qos),
            retain: true, // MQTT-3.3.1-8
            subscription_ids: replay.id.into_iter().collect(),
            group: None,
        };
        let direct = offer.qos == Qos::AtMostOnce;
        if let Some(queued) = session.offer(offer, &self.settings, now, out) {
            let message = message.clone();
            out.changes.push(Change::Enqueued { message, queued: vec![queued] });
        }
        direct || session.queue.is_roomy(&self.settings)
    }
}

impl Session {
    /// Stores how far those have come that are not at their end; of several for one filter the last.
    fn save_replays(&mut self, out: &mut Decision) {
        for at in 0..self.replays.len() {
            let Some(replay) = self.replays.get(at) else { return };
            let now = replay.to_save();
            let mut later = self.replays.iter().skip(at + 1);
            if replay.stored.as_ref() == Some(&now) || later.any(|r| r.pattern == replay.pattern) {
                continue;
            }
            out.changes.push(self.replay_to_save(replay, true));
            if let Some(replay) = self.replays.get_mut(at) {
                replay.stored = Some(now);
            }
        }
    }

    fn replay_to_save(&self, replay: &Replay, open: bool) -> Change {
        Change::Subscribed(SavedSubscription {
            session: self.id,
            filter: replay.pattern.clone(),
            options: replay.subscribed.0,
            subscription_id: replay.subscribed.1,
            replay: open.then(|| replay.to_save()),
        })
    }
}
