//! PUBACK, PUBREC and PUBCOMP from a receiver (3.4, 3.5, 3.7, 4.3).
//!
//! PUBREL waits for the note that PUBREC came, or a restart could send the message again to a client that has forgotten its id.
//! Not here: what is sent next (`deliver`).

use super::{Change, ConnectionId, Decision, Now, State, client::Session, queue::Releasing};
use crate::mqtt::packet::{Ack, PacketId, Qos, Reason};

impl State {
    /// PUBACK. An unknown id is passed over: it may belong to an earlier connection.
    pub(super) fn acknowledged(
        &mut self,
        connection: ConnectionId,
        id: PacketId,
        now: Now,
        out: &mut Decision,
    ) {
        let Some(session) = self.session_of(connection) else { return };
        let matches = |entry: &super::queue::Entry| {
            entry.packet_id == Some(id) && entry.qos == Qos::AtLeastOnce
        };
        let Some(entry) = session.queue.take_sent(matches) else { return };
        session.done(entry.seq, entry.bytes(), out);
        self.go_on(connection, now, out);
    }

    /// PUBREC.
    pub(super) fn received(
        &mut self,
        connection: ConnectionId,
        ack: &Ack,
        now: Now,
        out: &mut Decision,
    ) {
        let Some(session) = self.session_of(connection) else { return };
        let id = ack.packet_id;
        let matches = |entry: &super::queue::Entry| {
            entry.packet_id == Some(id) && entry.qos == Qos::ExactlyOnce
        };
        let Some(entry) = session.queue.take_sent(matches) else {
            return session.received_again(id, ack.reason, out);
        };
        if ack.reason.is_error() {
            // MQTT-4.3.3-4: the receiver does not take it, so the id is free.
            session.done(entry.seq, entry.bytes(), out);
            return self.go_on(connection, now, out);
        }
        if session.stored {
            out.wait = true;
            out.changes.push(Change::Inflight(entry.queued(session.id, true)));
        }
        let releasing = Releasing { seq: entry.seq, packet_id: id, bytes: entry.bytes() };
        session.queue.releasing.push_back(releasing);
        session.send_release(id, Reason::SUCCESS, out);
        self.go_on(connection, now, out);
    }

    /// PUBCOMP.
    pub(super) fn completed(
        &mut self,
        connection: ConnectionId,
        id: PacketId,
        now: Now,
        out: &mut Decision,
    ) {
        let Some(session) = self.session_of(connection) else { return };
        let Some(releasing) = session.queue.take_releasing(id) else { return };
        session.done(releasing.seq, releasing.bytes, out);
        self.go_on(connection, now, out);
    }

    /// The window moved: sends what waited, and goes on with retained messages that waited for room.
    pub(super) fn go_on(&mut self, connection: ConnectionId, now: Now, out: &mut Decision) {
        let Some(link) = self.connections.get(&connection) else { return };
        let Some(session) = self.sessions.get_mut(&link.session) else { return };
        session.pump(&self.settings, now, out);
        if !session.replays.is_empty() && session.queue.is_roomy(&self.settings) {
            self.schedule_replay(link.session);
        }
    }

    fn session_of(&mut self, connection: ConnectionId) -> Option<&mut Session> {
        let link = self.connections.get(&connection)?;
        self.sessions.get_mut(&link.session).map(|session| &mut **session)
    }
}

impl Session {
    /// PUBREC for an id that is not waiting for one.
    fn received_again(&mut self, id: PacketId, reason: Reason, out: &mut Decision) {
        let releasing = self.queue.releasing.iter().any(|one| one.packet_id == id);
        if releasing {
            if reason.is_error() {
                return;
            }
            out.wait |= self.stored;
            self.send_release(id, Reason::SUCCESS, out);
            return;
        }
        // Its message may not be sent again or not even loaded yet; once it is, it is acknowledged again.
        let later = self.queue.is_behind()
            || self.queue.waiting.iter().any(|entry| entry.packet_id == Some(id));
        if !later {
            self.send_release(id, Reason::PACKET_ID_NOT_FOUND, out);
        }
    }
}
