//! PUBLISH from a client, and PUBREL that ends its QoS 2 flow (3.3, 3.6, 4.3).
//!
//! The acknowledgement waits for the message to be durable. Not here: who gets it (`fanout`).

use bytestring::ByteString;

use super::{
    Change, ConnectionId, Decision, Effect, Now, RefusedPublish, State, action::Author,
    client::Connection, own::may_publish,
};
use crate::{
    message::Message,
    mqtt::{
        Version,
        packet::{Ack, Packet, PacketId, Publish, Qos, Reason},
        write::Encoded,
    },
};

/// QoS 2 ids that a session may have received and not released. A connection of version 5 has no more than our Receive
/// Maximum of its own (`connection` counts); this leaves room for what earlier connections left, and for older versions,
/// which know no such number.
const RECEIVED: usize = 1_024;

/// Where a message would go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// The topic that is meant.
    pub topic: ByteString,
    /// Not at once.
    pub delayed: bool,
}

impl State {
    /// Where a PUBLISH would go if it came next on its connection; `None`: the core will find it at fault.
    pub fn destination(&self, connection: ConnectionId, publish: &Publish) -> Option<Destination> {
        let link = self.connections.get(&connection)?;
        let mut topic = match publish.topic_alias {
            Some(alias) if publish.topic.is_empty() => link.aliases.get(&alias)?.clone(),
            _ => publish.topic.clone(),
        };
        let who = self.sessions.get(&link.session)?.who();
        let delay_s = self.templates.readdress(who, &mut topic).ok()?;
        (!topic.is_empty()).then_some(Destination { topic, delayed: delay_s.is_some() })
    }

    /// PUBLISH; `refused`: the host does not take it.
    pub(super) fn publish(
        &mut self,
        connection: ConnectionId,
        mut publish: Publish,
        refused: Option<Reason>,
        now: Now,
        out: &mut Decision,
    ) {
        let Some(link) = self.connections.get_mut(&connection) else { return };
        let (version, owner) = (link.version, link.session);
        if let Err(reason) = resolve_alias(link, &mut publish, self.settings.topic_alias_maximum) {
            return self.fault(connection, reason, now, out);
        }
        let Some(session) = self.sessions.get_mut(&owner) else { return };
        if let (Qos::ExactlyOnce, Some(id)) = (publish.qos, publish.packet_id) {
            if session.received.contains(&id) {
                // MQTT-4.3.3-10: not delivered again. Its first PUBREC may still wait for the store; so does this one.
                out.wait = true;
                return send(out, connection, Packet::PubRec(Ack::new(id, Reason::SUCCESS)));
            }
            if session.received.len() >= RECEIVED.max(self.settings.receive_maximum.into()) {
                return self.fault(connection, Reason::RECEIVE_MAXIMUM_EXCEEDED, now, out);
            }
        }
        let delay_s = match self.templates.readdress(session.who(), &mut publish.topic) {
            Ok(delay_s) => delay_s,
            Err(reason) => return self.refuse(connection, version, &publish, reason, now, out),
        };
        let may = may_publish(&self.permissions, session.who(), &publish.topic);
        if !may {
            self.denied.publishes += 1;
        }
        let forbidden = (!may).then_some(Reason::NOT_AUTHORIZED);
        if let Some(reason) = forbidden.or(refused).or_else(|| self.refuses(&publish, delay_s)) {
            return self.refuse(connection, version, &publish, reason, now, out);
        }
        let Some(session) = self.sessions.get_mut(&owner) else { return };
        let (id, stored, publisher) = (session.id, session.stored, session.client_id.clone());
        let author = Author::of(session);
        let (qos, packet_id) = (publish.qos, publish.packet_id);
        if let (Qos::ExactlyOnce, Some(packet_id)) = (qos, packet_id) {
            session.received.insert(packet_id);
            if stored {
                out.changes.push(Change::Received { session: id, packet_id });
            }
        }
        self.submit(message(publish, publisher, now), delay_s, author, now, out);
        match (qos, packet_id) {
            (Qos::AtLeastOnce, Some(id)) => {
                out.wait = true;
                send(out, connection, Packet::PubAck(Ack::new(id, Reason::SUCCESS)));
            }
            (Qos::ExactlyOnce, Some(id)) => {
                out.wait = true;
                send(out, connection, Packet::PubRec(Ack::new(id, Reason::SUCCESS)));
            }
            _ => {}
        }
    }

    /// PUBREL: the id is free again. PUBCOMP waits, or a restart would take the id's next message for a repeat.
    pub(super) fn release(&mut self, connection: ConnectionId, id: PacketId, out: &mut Decision) {
        let Some(link) = self.connections.get(&connection) else { return };
        let Some(session) = self.sessions.get_mut(&link.session) else { return };
        let reason = if session.received.remove(&id) {
            if session.stored {
                out.wait = true;
                out.changes.push(Change::Released { session: session.id, packet_id: id });
            }
            Reason::SUCCESS
        } else {
            Reason::PACKET_ID_NOT_FOUND
        };
        send(out, connection, Packet::PubComp(Ack::new(id, reason)));
    }

    /// Limits of the core that a PUBLISH is over.
    fn refuses(&self, publish: &Publish, delay_s: Option<u32>) -> Option<Reason> {
        let separators = publish.topic.bytes().filter(|byte| *byte == b'/').count();
        if separators >= self.settings.topic_levels {
            return Some(Reason::TOPIC_NAME_INVALID);
        }
        if self.settings.too_many(&publish.properties.user_properties) {
            return Some(Reason::QUOTA_EXCEEDED);
        }
        if let Some(delay_s) = delay_s {
            return self.refuses_delay(delay_s, publish.topic.len() + publish.payload.len());
        }
        let keeps = publish.retain && !publish.payload.is_empty();
        let bytes = publish.topic.len() + publish.payload.len();
        (keeps && !self.retained.fits(&publish.topic, bytes, &self.settings))
            .then_some(Reason::QUOTA_EXCEEDED)
    }

    /// Tells a publisher that its message is not taken: in the acknowledgement where that has a code (3.4.2.1, 3.5.2.1), else by
    /// ending the connection, or as the settings say (MQTT-3.3.5-2 of 3.1.1). QoS 0 has no answer in version 5 either; it is dropped and counted.
    fn refuse(
        &mut self,
        connection: ConnectionId,
        version: Version,
        publish: &Publish,
        reason: Reason,
        now: Now,
        out: &mut Decision,
    ) {
        out.effects.push(Effect::Dropped { session: None, why: "refused", count: 1 });
        let drop = reason == Reason::NOT_AUTHORIZED
            && self.settings.refused_publish == RefusedPublish::Drop;
        match (version, publish.qos, publish.packet_id) {
            (Version::V5, Qos::AtLeastOnce, Some(id)) => {
                send(out, connection, Packet::PubAck(Ack::new(id, reason)));
            }
            (Version::V5, Qos::ExactlyOnce, Some(id)) => {
                send(out, connection, Packet::PubRec(Ack::new(id, reason)));
            }
            (_, Qos::AtMostOnce, _) => {}
            (_, Qos::AtLeastOnce, Some(id)) if drop => {
                send(out, connection, Packet::PubAck(Ack::new(id, Reason::SUCCESS)));
            }
            (_, Qos::ExactlyOnce, Some(id)) if drop => {
                send(out, connection, Packet::PubRec(Ack::new(id, Reason::SUCCESS)));
            }
            _ => self.fault(connection, reason, now, out),
        }
    }
}

/// Puts the full topic in place of an alias (3.3.2.3.4).
fn resolve_alias(link: &mut Connection, publish: &mut Publish, maximum: u16) -> Result<(), Reason> {
    let Some(alias) = publish.topic_alias.take() else {
        return if publish.topic.is_empty() { Err(Reason::PROTOCOL_ERROR) } else { Ok(()) };
    };
    if alias == 0 || alias > maximum {
        return Err(Reason::TOPIC_ALIAS_INVALID);
    }
    if publish.topic.is_empty() {
        publish.topic = link.aliases.get(&alias).ok_or(Reason::PROTOCOL_ERROR)?.clone();
    } else {
        // A copy: as it came it would keep all of the read it came in.
        link.aliases.insert(alias, ByteString::from(&*publish.topic));
    }
    Ok(())
}

fn message(publish: Publish, publisher: ByteString, now: Now) -> Message {
    let expires_ms = expires_ms(publish.properties.message_expiry, now);
    Message {
        topic: publish.topic,
        payload: publish.payload,
        qos: publish.qos,
        retain: publish.retain,
        properties: publish.properties,
        publisher: Some(publisher),
        received_ms: now.wall_ms,
        expires_ms,
        encoded: Encoded::default(),
        place: None,
    }
}

/// When, in [`Now::lasting_ms`], a message published now expires.
pub(super) fn expires_ms(expiry_s: Option<u32>, now: Now) -> Option<i64> {
    expiry_s.map(|seconds| now.lasting_ms.saturating_add(i64::from(seconds) * 1000))
}

/// Puts a packet on a connection's outbox.
pub(super) fn send(out: &mut Decision, connection: ConnectionId, packet: Packet) {
    let outgoing = super::Outgoing::Packet(Box::new(packet));
    out.effects.push(Effect::Send { connection, outgoing });
}
