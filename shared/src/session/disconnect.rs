//! The end of a connection and of a session (3.14, 4.13), with wills (3.1.2.5, 3.1.3.2).
//!
//! A will is published when its connection ends without DISCONNECT 0x00: at once, after its delay if the session lives, and when
//! the session ends at the latest. Not here: time (`timers`).

use super::{
    Change, ConnectionId, Decision, Effect, Now, SessionId, State,
    action::Author,
    client::Session,
    delayed::{self, Target},
    fanout::Given,
    own::may_publish,
    publish::{expires_ms, send},
    queue::Entry,
    routes::Fit,
    timers::Timer,
};
use crate::{
    message::Message,
    mqtt::{
        Version,
        packet::{Disconnect, Packet, Reason},
        write::Encoded,
    },
    topic::filter::Subscribed,
};

impl State {
    /// A peer's fault, or the host's wish: version 5 is told why, the connection ends, the will stands.
    pub(super) fn fault(
        &mut self,
        connection: ConnectionId,
        reason: Reason,
        now: Now,
        out: &mut Decision,
    ) {
        let Some(link) = self.connections.get(&connection) else { return };
        if link.version == Version::V5 {
            send(out, connection, Packet::Disconnect(Disconnect::new(reason)));
        }
        out.effects.push(Effect::Close { connection, reason });
        self.disconnected(connection, now, out);
    }

    /// DISCONNECT from the client.
    pub(super) fn leave(
        &mut self,
        connection: ConnectionId,
        disconnect: &Disconnect,
        now: Now,
        out: &mut Decision,
    ) {
        let Some(link) = self.connections.get(&connection) else { return };
        let asked =
            disconnect.session_expiry.map(|asked| asked.min(self.settings.session_expiry_s));
        if link.expiry_s == 0 && asked.is_some_and(|asked| asked > 0) {
            return self.fault(connection, Reason::PROTOCOL_ERROR, now, out); // 3.14.2.2.2
        }
        if let Some(session) = self.sessions.get_mut(&link.session) {
            session.expiry_s = asked.unwrap_or(session.expiry_s);
            if disconnect.reason == Reason::SUCCESS {
                session.will = None; // MQTT-3.14.4-3
            }
        }
        out.effects.push(Effect::Close { connection, reason: disconnect.reason });
        self.disconnected(connection, now, out);
    }

    /// The connection is no more.
    pub(super) fn disconnected(&mut self, connection: ConnectionId, now: Now, out: &mut Decision) {
        let Some(link) = self.connections.remove(&connection) else { return };
        if let Some(at) = link.timer {
            self.timers.cancel(at, Timer::KeepAlive(connection));
        }
        let id = link.session;
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.online = None;
        if session.expiry_s == 0 {
            return self.end_session(id, now, out);
        }
        session.disconnected_ms = Some(now.lasting_ms);
        let at = now.mono_ms;
        session.ends = ends_after(session.expiry_s, at);
        session.will_due = session.will.as_ref().map(|will| at + u64::from(will.delay) * 1000);
        self.share_out(id, Fit::Ready, now, out);
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.queue.forget();
        if session.will_due == Some(at) {
            self.publish_will(id, now, out);
        }
        let Some(session) = self.sessions.get_mut(&id) else { return };
        out.changes.push(Change::SessionSaved(session.to_save()));
        if let Some(at) = session.due() {
            self.timers.set(at, Timer::Session(id));
        }
    }

    /// The session is no more; its will is published now at the latest (MQTT-3.1.2-8).
    pub(super) fn end_session(&mut self, id: SessionId, now: Now, out: &mut Decision) {
        self.share_out(id, Fit::Away, now, out);
        let Some(mut session) = self.sessions.remove(&id) else { return };
        if let Some(at) = session.due() {
            self.timers.cancel(at, Timer::Session(id));
        }
        self.clients.remove(&session.client_id);
        for filter in &session.subscriptions {
            if let Ok(parsed) = Subscribed::parse(filter) {
                self.routes.remove(filter, parsed, id);
            }
        }
        self.subscriptions -= session.subscriptions.len();
        if session.queue.messages() > 0 {
            let (why, count) = ("session_ended", session.queue.messages());
            out.effects.push(Effect::Dropped { session: Some(id), why, count });
        }
        if session.saved {
            out.changes.push(Change::SessionRemoved(id));
        }
        if let Some((will, delay_s)) = self.will_message(&mut session, now, out) {
            self.submit(will, delay_s, Author::of(&session), now, out);
        }
    }

    /// The will is due.
    pub(super) fn publish_will(&mut self, id: SessionId, now: Now, out: &mut Decision) {
        let Some(mut session) = self.sessions.remove(&id) else { return };
        session.will_due = None;
        let will = self.will_message(&mut session, now, out);
        let author = Author::of(&session);
        self.sessions.insert(id, session);
        if let Some((will, delay_s)) = will {
            self.submit(will, delay_s, author, now, out);
        }
    }

    /// The will, if its client may still publish it; and in how many seconds, where its topic says so.
    fn will_message(
        &mut self,
        session: &mut Session,
        now: Now,
        out: &mut Decision,
    ) -> Option<(Message, Option<u32>)> {
        let will = session.will.take()?;
        // Its form was looked at when it came.
        let Target { topic, delay_s } = delayed::target(&will.topic).ok()?;
        if !may_publish(&self.permissions, session.who(), topic) {
            self.denied.wills += 1;
            session.dropped("not_authorized", out);
            return None;
        }
        let bytes = topic.len() + will.payload.len();
        if delay_s.is_some_and(|delay_s| self.refuses_delay(delay_s, bytes).is_some()) {
            session.dropped("delayed_full", out);
            return None;
        }
        let message = Message {
            topic: will.topic.slice_ref(topic),
            payload: will.payload,
            qos: will.qos,
            retain: will.retain,
            expires_ms: expires_ms(will.properties.message_expiry, now),
            properties: will.properties,
            publisher: Some(session.client_id.clone()),
            received_ms: now.wall_ms,
            encoded: Encoded::default(),
            place: None,
        };
        Some((message, delay_s))
    }

    /// Gives what a leaving member of shared subscriptions has in memory to others that fit at least so (4.8.2). A QoS 2 message
    /// that was sent stays with its client.
    pub(super) fn share_out(&mut self, id: SessionId, least: Fit, now: Now, out: &mut Decision) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if !session.subscriptions.iter().any(|filter| filter.starts_with("$share/")) {
            return;
        }
        let mut moved = Vec::new();
        for entry in session.queue.movable() {
            let Entry { message, group: Some(filter), .. } = &entry else { continue };
            let given = self.give_again(message, filter, id, least, now, out);
            let Given::To(queued) = given else { continue };
            if let Some(queued) = queued {
                let message = message.clone();
                out.changes.push(Change::Enqueued { message, queued: vec![queued] });
            }
            moved.push((entry.seq, entry.bytes()));
        }
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.queue.remove(&moved);
        for (seq, bytes) in moved {
            session.done(seq, bytes, out);
        }
    }
}

/// Monotonic ms when a session that lives so long after its connection ends; `None` = never.
pub(super) fn ends_after(expiry_s: u32, mono_ms: u64) -> Option<u64> {
    (expiry_s != u32::MAX).then(|| mono_ms + u64::from(expiry_s) * 1000)
}
