//! What time brings: keep-alive, the end of sessions, delayed wills, expired retained messages.
//!
//! Each connection and session has at most one entry; a tick does a bounded share of what is due, and asks for the next at once
//! if there is more.

use std::collections::BTreeSet;

use bytestring::ByteString;

use super::{
    Change, ConnectionId, Decision, Now, SessionId, State, action::Author, client::Session,
};
use crate::mqtt::packet::Reason;

/// Timers, sessions to save and replays that one tick handles.
const A_TICK: usize = 256;
/// Between two steps of replays, ms: a step of QoS 0 messages is written before the next one comes.
const REPLAY_MS: u64 = 5;
/// How often expired retained messages are looked for, ms, and how many topics at a time.
const SWEEP_MS: u64 = 10_000;
const SWEEP: usize = 1024;

/// Whose time it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    KeepAlive(ConnectionId),
    Session(SessionId),
}

/// All timers, by monotonic ms.
#[derive(Debug, Default)]
pub(super) struct Timers {
    due: BTreeSet<(u64, Timer)>,
    /// When replays go on.
    replay: Option<u64>,
    /// When retained messages are looked at, and the last topic seen.
    sweep: Option<u64>,
    swept: Option<ByteString>,
}

impl Timers {
    pub(super) fn set(&mut self, at: u64, timer: Timer) {
        self.due.insert((at, timer));
    }

    pub(super) fn cancel(&mut self, at: u64, timer: Timer) {
        self.due.remove(&(at, timer));
    }

    fn pop(&mut self, mono_ms: u64) -> Option<(u64, Timer)> {
        let first = *self.due.first()?;
        (first.0 <= mono_ms).then(|| self.due.pop_first()).flatten()
    }
}

impl State {
    /// When the next tick is due.
    pub(super) fn wake_ms(&mut self, now: Now) -> Option<u64> {
        if !self.unsaved.is_empty() {
            return Some(now.mono_ms);
        }
        let timers = &mut self.timers;
        if timers.replay.is_none() && !self.replaying.is_empty() {
            timers.replay = Some(now.mono_ms + REPLAY_MS);
        }
        if timers.sweep.is_none() && self.retained.can_expire() {
            timers.sweep = Some(now.mono_ms + SWEEP_MS);
        }
        timers
            .due
            .first()
            .map(|(at, _)| *at)
            .into_iter()
            .chain(self.delayed.next_due())
            .chain(timers.sweep)
            .chain(timers.replay)
            .min()
    }

    pub(super) fn tick(&mut self, now: Now, out: &mut Decision) {
        for _ in 0..A_TICK {
            let Some((at, timer)) = self.timers.pop(now.mono_ms) else { break };
            match timer {
                Timer::KeepAlive(connection) => self.listen(connection, now, out),
                Timer::Session(id) => self.session_due(id, at, now, out),
            }
        }
        for _ in 0..A_TICK {
            let Some(id) = self.unsaved.pop_front() else { break };
            let ends = |session: &Session| session.ends.is_some_and(|at| at <= now.mono_ms);
            if let Some(session) = self.sessions.get(&id).filter(|session| !ends(session)) {
                out.changes.push(Change::SessionSaved(session.to_save()));
            }
        }
        self.publish_due(now, out);
        if self.timers.replay.is_some_and(|at| at <= now.mono_ms) {
            self.timers.replay = None;
            self.replay_some(now, out);
        }
        if self.timers.sweep.is_some_and(|at| at <= now.mono_ms) {
            self.sweep(now, out);
        }
    }

    fn replay_some(&mut self, now: Now, out: &mut Decision) {
        for _ in 0..self.replaying.len().min(A_TICK) {
            let Some(id) = self.replaying.pop_front() else { break };
            if let Some(session) = self.sessions.get_mut(&id) {
                session.replaying = false;
                self.replay(id, now, out);
            }
        }
    }

    /// Was the client silent for too long (MQTT-3.1.2-22)?
    fn listen(&mut self, connection: ConnectionId, now: Now, out: &mut Decision) {
        let Some(link) = self.connections.get_mut(&connection) else { return };
        link.timer = None;
        let heard_ms = if link.held { now.mono_ms } else { link.heard_ms };
        let at = heard_ms + link.silence_ms;
        if at <= now.mono_ms {
            return self.fault(connection, Reason::KEEP_ALIVE_TIMEOUT, now, out);
        }
        link.timer = Some(at);
        self.timers.set(at, Timer::KeepAlive(connection));
    }

    fn session_due(&mut self, id: SessionId, at: u64, now: Now, out: &mut Decision) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if session.ends.is_some_and(|ends| ends <= at) {
            self.expired += 1;
            return self.end_session(id, now, out);
        }
        self.publish_will(id, now, out);
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if session.stored {
            out.changes.push(Change::SessionSaved(session.to_save()));
        }
        if let Some(at) = session.due() {
            self.timers.set(at, Timer::Session(id));
        }
    }

    fn sweep(&mut self, now: Now, out: &mut Decision) {
        let after = self.timers.swept.take();
        let (topics, after) = self.retained.expired(after.as_ref(), SWEEP, now.lasting_ms);
        for topic in topics {
            self.retained.remove(&topic);
            out.changes.push(Change::Retained { topic, message: None, author: Author::Host });
        }
        self.timers.swept = after;
        self.timers.sweep = None;
    }
}
