//! CONNECT: who may have which session, takeover, and what the server announces (3.1, 3.2).
//!
//! Nothing is touched before all checks passed. CONNACK waits for a stored session to be durable.
//! Not here: the end of a connection (`disconnect`).

use std::collections::{BTreeSet, VecDeque};

use bytestring::ByteString;

use super::{
    Change, ConnectionId, Decision, Effect, Now, SessionId, State,
    client::{Connection, Online, Session},
    delayed,
    event::Peer,
    ids::{IdMap, IdSet},
    publish::send,
    queue::Queue,
    timers::Timer,
};
use crate::auth::Who;
use crate::mqtt::{
    Version,
    packet::{ConnAck, ConnAckProperties, Connect, Disconnect, Packet, Reason},
};

/// Characters of a client id in MQTT 3.1 (section 3.1 there, "Client Identifier"); longer ones are refused with return code 2.
const V31_CLIENT_ID: usize = 23;

impl State {
    pub(super) fn connect(
        &mut self,
        connection: ConnectionId,
        mut connect: Connect,
        peer: Peer,
        now: Now,
        out: &mut Decision,
    ) {
        if let Err(reason) = self.check_connect(&connect, &peer) {
            send_connack(out, connection, false, reason, ConnAckProperties::default());
            out.effects.push(Effect::Close { connection, reason });
            self.denied.connects += u64::from(reason == Reason::NOT_AUTHORIZED);
            return;
        }
        // A copy: as it came it would keep all of the read it came in.
        connect.client_id = ByteString::from(&*connect.client_id);
        let assigned = connect.client_id.is_empty();
        if assigned {
            connect.client_id = self.assign_client_id();
        }
        let principal = peer.principal.as_deref();
        let checked = self.readdress_will(&mut connect, principal);
        if let Err(reason) = checked.and_then(|()| self.check_rights(&connect, principal)) {
            let denied = reason == Reason::NOT_AUTHORIZED || reason == Reason::CLIENT_ID_NOT_VALID;
            self.denied.connects += u64::from(denied);
            send_connack(out, connection, false, reason, ConnAckProperties::default());
            out.effects.push(Effect::Close { connection, reason });
            return;
        }
        self.take_over(&connect.client_id, connect.clean_start, now, out);
        let present = self.clients.contains_key(&connect.client_id);
        let id = self.session_for(&connect, peer.principal);
        self.attach(connection, id, &connect, now, out);
        let mut properties = self.announce(&connect, assigned);
        properties.authentication_method.clone_from(&connect.authentication_method); // MQTT-4.12.0-5
        properties.authentication_data = peer.proof.filter(|data| !data.is_empty());
        send_connack(out, connection, present, Reason::SUCCESS, properties);
        self.resume(id, now, out);
        self.auto_subscribe(id, now, out);
    }

    /// The will's topic becomes the one that is meant; when, stays before it.
    fn readdress_will(&self, connect: &mut Connect, principal: Option<&str>) -> Result<(), Reason> {
        let who = Who { principal, client_id: &connect.client_id };
        self.templates.check_names(who)?;
        let Some(will) = &mut connect.will else { return Ok(()) };
        let delay_s = self.templates.readdress(who, &mut will.topic)?;
        if will.topic.split('/').count() > self.settings.topic_levels {
            return Err(Reason::TOPIC_NAME_INVALID);
        }
        if let Some(delay_s) = delay_s {
            will.topic = delayed::topic(delay_s, &will.topic);
        }
        Ok(())
    }

    fn check_connect(&self, connect: &Connect, peer: &Peer) -> Result<(), Reason> {
        if connect.authentication_method.is_some() != peer.proof.is_some() {
            return Err(Reason::BAD_AUTHENTICATION_METHOD); // MQTT-4.12.0-1
        }
        let id = &connect.client_id;
        let assignable = match connect.version {
            Version::V31 => false,
            Version::V311 => connect.clean_start, // MQTT-3.1.3-8
            Version::V5 => true,
        };
        let too_long = match connect.version {
            Version::V31 => id.chars().count() > V31_CLIENT_ID,
            _ => false,
        };
        if (id.is_empty() && !assignable) || too_long || id.len() > self.settings.client_id_bytes {
            return Err(Reason::CLIENT_ID_NOT_VALID);
        }
        let settings = &self.settings;
        let will = connect.will.as_ref();
        if settings.too_many(&connect.user_properties)
            || will.is_some_and(|will| settings.too_many(&will.properties.user_properties))
            || will.is_some_and(|will| will.payload.len() > settings.will_bytes)
        {
            return Err(Reason::QUOTA_EXCEEDED);
        }
        match self.clients.get(id).and_then(|id| self.sessions.get(id)) {
            Some(session) if session.principal != peer.principal => Err(Reason::NOT_AUTHORIZED),
            None if self.sessions.len() >= self.settings.sessions => Err(Reason::QUOTA_EXCEEDED),
            _ => Ok(()),
        }
    }

    /// Not to be guessed from one's own, and new.
    fn assign_client_id(&self) -> ByteString {
        let mut number = self.seed ^ self.next_session;
        loop {
            number = scramble(number.wrapping_add(0x9E37_79B9_7F4A_7C15));
            let id = ByteString::from(format!(
                "auto-{number:016x}{:016x}",
                scramble(!number ^ self.seed)
            ));
            if !self.clients.contains_key(&id) {
                return id;
            }
        }
    }

    /// Ends another connection of the client (MQTT-3.1.4-3), and its session for a clean start (MQTT-3.1.2-4) or when its
    /// time is over, though no tick has said so yet.
    fn take_over(&mut self, client: &ByteString, clean: bool, now: Now, out: &mut Decision) {
        if let Some(online) = self.session_of_client(client).and_then(|session| session.online) {
            if online.version == Version::V5 {
                let disconnect = Disconnect::new(Reason::SESSION_TAKEN_OVER);
                send(out, online.connection, Packet::Disconnect(disconnect));
            }
            let reason = Reason::SESSION_TAKEN_OVER;
            out.effects.push(Effect::Close { connection: online.connection, reason });
            self.disconnected(online.connection, now, out);
        }
        let session = self.session_of_client(client).map(|session| (session.id, session.ends));
        if let Some((id, ends)) = session
            && (clean || ends.is_some_and(|at| at <= now.mono_ms))
        {
            self.end_session(id, now, out);
        }
    }

    fn session_of_client(&self, client: &ByteString) -> Option<&Session> {
        self.sessions.get(self.clients.get(client)?).map(|session| &**session)
    }

    /// The client's session, made if there is none.
    fn session_for(&mut self, connect: &Connect, principal: Option<ByteString>) -> SessionId {
        if let Some(&id) = self.clients.get(&connect.client_id) {
            return id;
        }
        let id = SessionId(self.next_session);
        self.next_session += 1;
        self.clients.insert(connect.client_id.clone(), id);
        let session = Session {
            id,
            client_id: connect.client_id.clone(),
            principal,
            stored: false,
            saved: false,
            expiry_s: 0,
            online: None,
            disconnected_ms: None,
            will: None,
            will_due: None,
            ends: None,
            subscriptions: BTreeSet::new(),
            received: IdSet::default(),
            queue: Queue::new(),
            replays: VecDeque::new(),
            replaying: false,
            met: (0, 0),
        };
        self.sessions.insert(id, Box::new(session));
        id
    }

    /// Joins a connection and a session.
    fn attach(
        &mut self,
        connection: ConnectionId,
        id: SessionId,
        connect: &Connect,
        now: Now,
        out: &mut Decision,
    ) {
        let expiry_s = self.expiry_s(connect);
        let keep_alive = self.keep_alive_s(connect);
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if let Some(at) = session.due() {
            self.timers.cancel(at, Timer::Session(id));
        }
        session.will_due = None; // MQTT-3.1.3-9: the new connection keeps it from being sent.
        session.ends = None;
        session.disconnected_ms = None;
        session.will = connect.will.clone().map(Box::new);
        session.expiry_s = expiry_s;
        session.stored |= expiry_s > 0;
        session.saved |= session.stored || session.will.is_some(); // MQTT-3.1.2-7
        let window = connect.receive_maximum.unwrap_or(u16::MAX);
        session.online = Some(Online {
            connection,
            version: connect.version,
            window: window.min(self.settings.inflight_messages),
            packet_bytes: connect.maximum_packet_size,
        });
        if session.saved {
            out.wait = true;
            out.changes.push(Change::SessionSaved(session.to_save()));
        }
        let silence_ms = u64::from(keep_alive) * 1500; // MQTT-3.1.2-22
        let timer = (silence_ms > 0).then_some(now.mono_ms + silence_ms);
        if let Some(at) = timer {
            self.timers.set(at, Timer::KeepAlive(connection));
        }
        let link = Connection {
            session: id,
            version: connect.version,
            silence_ms,
            heard_ms: now.mono_ms,
            held: false,
            timer,
            expiry_s,
            enhanced: connect.authentication_method.is_some(),
            aliases: IdMap::default(),
        };
        self.connections.insert(connection, link);
    }

    /// What waits for the client comes now.
    fn resume(&mut self, id: SessionId, now: Now, out: &mut Decision) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.pump(&self.settings, now, out);
        if !session.replays.is_empty() {
            self.schedule_replay(id);
        }
    }

    fn expiry_s(&self, connect: &Connect) -> u32 {
        let asked = match (connect.version, connect.clean_start) {
            (Version::V5, _) => connect.session_expiry.unwrap_or(0),
            (_, true) => 0,
            (_, false) => u32::MAX,
        };
        asked.min(self.settings.session_expiry_s)
    }

    /// Seconds; only version 5 can be told another than it asked for.
    fn keep_alive_s(&self, connect: &Connect) -> u16 {
        let (asked, longest) = (connect.keep_alive, self.settings.keep_alive_s);
        let over = longest > 0 && (asked == 0 || asked > longest);
        if over && connect.version == Version::V5 { longest } else { asked }
    }

    fn announce(&self, connect: &Connect, assigned: bool) -> ConnAckProperties {
        if connect.version != Version::V5 {
            return ConnAckProperties::default();
        }
        let settings = &self.settings;
        let expiry_s = self.expiry_s(connect);
        let keep_alive = self.keep_alive_s(connect);
        let prefix = &settings.response_prefix;
        let respond = connect.request_response_information && !prefix.is_empty();
        ConnAckProperties {
            session_expiry: (Some(expiry_s) != connect.session_expiry
                && connect.session_expiry.is_some())
            .then_some(expiry_s),
            receive_maximum: Some(settings.receive_maximum),
            maximum_packet_size: (settings.packet_bytes > 0).then_some(settings.packet_bytes),
            assigned_client_id: assigned.then(|| connect.client_id.clone()),
            topic_alias_maximum: Some(settings.topic_alias_maximum),
            server_keep_alive: (keep_alive != connect.keep_alive).then_some(keep_alive),
            response_information: respond.then(|| format!("{prefix}/{}", connect.client_id).into()),
            ..ConnAckProperties::default()
        }
    }
}

fn send_connack(
    out: &mut Decision,
    connection: ConnectionId,
    session_present: bool,
    reason: Reason,
    properties: ConnAckProperties,
) {
    let connack = ConnAck { session_present, reason, properties };
    send(out, connection, Packet::ConnAck(Box::new(connack)));
}

/// SplitMix64's finish.
fn scramble(mut number: u64) -> u64 {
    number = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    number = (number ^ (number >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    number ^ (number >> 31)
}
