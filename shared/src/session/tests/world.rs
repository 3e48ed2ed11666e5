//! Scripted clients against a broker whose host commits after each event; what a client gets is one short line a packet.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Write,
    sync::Arc,
};

use bytes::Bytes;

use super::store::Store;
use crate::{
    auth::{Action, Permissions, Rule},
    mqtt::{
        PacketId, Version,
        packet::{
            Ack, ConnAck, Connect, Disconnect, Packet, Publish, PublishProperties, Qos, Reason,
            Subscribe, SubscribeFilter, SubscriptionOptions, Unsubscribe, Will,
        },
    },
    record::mqtt::{to_message, to_record},
    session::{
        ConnectionId, Decision, Delivery, Effect, Event, Fanout, Now, Outgoing, Settings, State,
        event::Peer,
    },
};

pub(super) struct World {
    pub(super) state: State,
    pub(super) store: Store,
    pub(super) now: Now,
    pub(super) settings: Settings,
    pub(super) dropped: Vec<&'static str>,
    /// Properties and all of the last CONNACK.
    pub(super) connack: Option<ConnAck>,
    pub(super) wake_ms: Option<u64>,
    /// The last decision with changes waited for them.
    pub(super) waited: bool,
    fanout: Fanout,
    fed: usize,
    outboxes: BTreeMap<ConnectionId, Vec<String>>,
    next_connection: u64,
    pub(super) permissions: Arc<Permissions>,
}

pub(super) type Client = ConnectionId;

pub(super) fn world() -> World {
    World::new(Settings::default(), Fanout::AtOnce)
}

impl World {
    pub(super) fn new(settings: Settings, fanout: Fanout) -> Self {
        let now =
            Now { mono_ms: 1_000_000, wall_ms: 1_700_000_000_000, lasting_ms: 1_700_000_000_000 };
        let store = Store::default();
        Self {
            state: State::new(settings.clone(), fanout, store.restored(), now),
            store,
            now,
            settings,
            dropped: Vec::new(),
            connack: None,
            wake_ms: None,
            waited: false,
            fanout,
            fed: 0,
            outboxes: BTreeMap::new(),
            next_connection: 1,
            permissions: Arc::default(),
        }
    }

    /// One event, committed; then what it leads to.
    pub(super) fn event(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let mut out = Decision::default();
            self.state.decide(event, self.now, &mut out);
            self.wake_ms = out.wake_ms;
            if !out.changes.is_empty() {
                self.waited = out.wait;
            }
            for change in out.changes {
                self.store.apply(change);
            }
            for effect in out.effects {
                match effect {
                    Effect::Send { connection, outgoing } => self.receive(connection, outgoing),
                    Effect::Close { connection, reason } => {
                        self.line(connection, format!("closed {:02x}", reason.0));
                    }
                    Effect::Load { session, from, max, bytes } => {
                        assert!(out.wait, "a load sees all changes");
                        let (entries, complete) = self.store.load(session, from, max, bytes);
                        events.push_back(Event::Loaded { session, entries, complete });
                    }
                    Effect::Dropped { why, count, .. } => {
                        self.dropped.extend((0..count).map(|_| why));
                    }
                }
            }
            while self.fanout == Fanout::FromLog && self.fed < self.store.log.len() {
                let message = to_message(&to_record(&self.store.log[self.fed]), "");
                events.push_back(Event::Message {
                    message: Arc::new(message),
                    stored: Some(Store::reference(self.fed)),
                });
                self.fed += 1;
            }
        }
    }

    pub(super) fn packet(&mut self, connection: Client, packet: Packet) {
        self.event(Event::Packet { connection, packet });
    }

    /// New rules, each `who action topic` (action: pub, sub, all; with `!` before it: not).
    pub(super) fn rules(&mut self, rules: &[&str]) {
        let rules: Vec<Rule> = rules.iter().map(|rule| parse_rule(rule)).collect();
        self.permissions = Arc::new(Permissions::new(&rules).expect("rules"));
        self.event(Event::Permissions(Arc::clone(&self.permissions)));
    }

    /// Kills the broker and starts it on what was stored.
    pub(super) fn restart(&mut self) {
        self.restart_before_tick();
        self.event(Event::Permissions(Arc::clone(&self.permissions)));
        self.event(Event::Tick);
    }

    pub(super) fn restart_before_tick(&mut self) {
        self.outboxes.clear();
        let restored = self.store.restored();
        self.state = State::new(self.settings.clone(), self.fanout, restored, self.now);
    }

    /// Time passes, with a tick wherever one is asked for.
    pub(super) fn pass(&mut self, seconds: u64) {
        let end = self.now.mono_ms + seconds * 1000;
        self.ticks(end);
        self.now.wall_ms += (end - self.now.mono_ms) as i64;
        self.now.lasting_ms += (end - self.now.mono_ms) as i64;
        self.now.mono_ms = end;
        self.ticks(end);
    }

    fn ticks(&mut self, end: u64) {
        let mut rounds = 0;
        while let Some(at) = self.wake_ms.filter(|at| *at <= end) {
            let at = at.max(self.now.mono_ms);
            self.now.wall_ms += (at - self.now.mono_ms) as i64;
            self.now.lasting_ms += (at - self.now.mono_ms) as i64;
            self.now.mono_ms = at;
            self.event(Event::Tick);
            rounds += 1;
            assert!(rounds < 10_000, "ticks for ever");
        }
    }

    pub(super) fn connect(&mut self, connect: Connect) -> Client {
        self.connect_as(connect, None)
    }

    pub(super) fn connect_as(&mut self, connect: Connect, principal: Option<&str>) -> Client {
        let connection = ConnectionId(self.next_connection);
        self.next_connection += 1;
        let peer = Peer { principal: principal.map(Into::into), address: None, proof: None };
        self.event(Event::Connect { connection, connect: Box::new(connect), peer });
        connection
    }

    /// Connects, and expects to be let in.
    pub(super) fn join(&mut self, connect: Connect) -> Client {
        let client = self.connect(connect);
        let connack = self.connack.as_ref().expect("CONNACK");
        assert_eq!(connack.reason, Reason::SUCCESS);
        let outbox = self.outboxes.get_mut(&client).expect("outbox");
        assert!(outbox.remove(0).starts_with("CONNACK 00"));
        client
    }

    /// Connects and subscribes with options.
    pub(super) fn join_subscribed(&mut self, connect: Connect, filter: &str, qos: Qos) -> Client {
        let client = self.join(connect);
        self.subscribe(client, filter, qos);
        self.expect(client, &[&format!("SUBACK 1 {:02x}", qos as u8)]);
        client
    }

    pub(super) fn cut(&mut self, connection: Client) {
        self.event(Event::Closed { connection, reason: None });
    }

    pub(super) fn disconnect(&mut self, client: Client, reason: Reason, expiry: Option<u32>) {
        let disconnect = Disconnect { session_expiry: expiry, ..Disconnect::new(reason) };
        self.packet(client, Packet::Disconnect(disconnect));
    }

    pub(super) fn subscribe(&mut self, client: Client, filter: &str, qos: Qos) {
        let options = SubscriptionOptions { qos, ..Default::default() };
        self.subscribe_with(client, &[(filter, options)], None);
    }

    pub(super) fn subscribe_with(
        &mut self,
        client: Client,
        filters: &[(&str, SubscriptionOptions)],
        subscription_id: Option<u32>,
    ) {
        let filters = filters
            .iter()
            .map(|(filter, options)| SubscribeFilter {
                filter: (*filter).into(),
                options: *options,
            })
            .collect();
        let user_properties = Vec::new();
        let subscribe = Subscribe { packet_id: id(1), filters, subscription_id, user_properties };
        self.packet(client, Packet::Subscribe(subscribe));
    }

    pub(super) fn unsubscribe(&mut self, client: Client, filters: &[&str]) {
        let filters = filters.iter().map(|filter| (*filter).into()).collect();
        let unsubscribe = Unsubscribe { packet_id: id(1), filters, user_properties: Vec::new() };
        self.packet(client, Packet::Unsubscribe(unsubscribe));
    }

    pub(super) fn publish(&mut self, client: Client, publish: Publish) {
        self.packet(client, Packet::Publish(publish));
    }

    pub(super) fn ack(&mut self, client: Client, ack: fn(Ack) -> Packet, packet_id: u16) {
        self.packet(client, ack(Ack::new(id(packet_id), Reason::SUCCESS)));
    }

    /// What a client got since it was asked last.
    pub(super) fn take(&mut self, client: Client) -> Vec<String> {
        self.outboxes.remove(&client).unwrap_or_default()
    }

    /// The client got exactly this since it was asked last.
    #[track_caller]
    pub(super) fn expect(&mut self, client: Client, lines: &[&str]) {
        assert_eq!(self.take(client), lines);
    }

    fn line(&mut self, connection: ConnectionId, line: String) {
        self.outboxes.entry(connection).or_default().push(line);
    }

    fn receive(&mut self, connection: ConnectionId, outgoing: Outgoing) {
        if let Outgoing::Packet(packet) = &outgoing
            && let Packet::ConnAck(connack) = &**packet
        {
            self.connack = Some((**connack).clone());
        }
        self.line(connection, text(&outgoing));
    }
}

fn parse_rule(text: &str) -> Rule {
    let mut words = text.split(' ').map(str::to_owned);
    let (who, action) = (words.next().expect("who"), words.next().expect("action"));
    let allow = !action.starts_with('!');
    let action = match action.trim_start_matches('!') {
        "pub" => Action::Publish,
        "sub" => Action::Subscribe,
        _ => Action::Both,
    };
    Rule { who: vec![who], action, topics: words.collect(), allow }
}

fn text(outgoing: &Outgoing) -> String {
    let packet = match outgoing {
        Outgoing::Publish(delivery) => return delivery_text(delivery),
        Outgoing::Packet(packet) => &**packet,
    };
    let ack = |name: &str, ack: &Ack| match ack.reason {
        Reason::SUCCESS => format!("{name} {}", ack.packet_id),
        reason => format!("{name} {} {:02x}", ack.packet_id, reason.0),
    };
    let reasons = |reasons: &[Reason]| {
        reasons.iter().fold(String::new(), |text, reason| format!("{text} {:02x}", reason.0))
    };
    match packet {
        Packet::ConnAck(connack) => {
            let present = if connack.session_present { " present" } else { "" };
            format!("CONNACK {:02x}{present}", connack.reason.0)
        }
        Packet::PubAck(one) => ack("PUBACK", one),
        Packet::PubRec(one) => ack("PUBREC", one),
        Packet::PubRel(one) => ack("PUBREL", one),
        Packet::PubComp(one) => ack("PUBCOMP", one),
        Packet::SubAck(one) => format!("SUBACK {}{}", one.packet_id, reasons(&one.reasons)),
        Packet::UnsubAck(one) => format!("UNSUBACK {}{}", one.packet_id, reasons(&one.reasons)),
        Packet::PingResp => "PINGRESP".into(),
        Packet::Disconnect(one) => format!("DISCONNECT {:02x}", one.reason.0),
        other => panic!("not for a client: {other:?}"),
    }
}

fn delivery_text(delivery: &Delivery) -> String {
    let message = &delivery.message;
    let payload = String::from_utf8_lossy(&message.payload);
    let mut text = format!("{} {payload} q{}", message.topic, delivery.qos as u8);
    if let Some(id) = delivery.packet_id {
        let _ = write!(text, " #{id}");
    }
    if delivery.dup {
        text += " dup";
    }
    if delivery.retain {
        text += " retain";
    }
    if !delivery.subscription_ids.is_empty() {
        let _ = write!(text, " ids={:?}", delivery.subscription_ids);
    }
    if let Some(seconds) = delivery.expiry_s {
        let _ = write!(text, " expiry={seconds}");
    }
    text
}

pub(super) fn id(number: u16) -> PacketId {
    PacketId::new(number).expect("not 0")
}

/// CONNECT of version 5 with a clean start.
pub(super) fn v5(client: &str) -> Connect {
    Connect {
        version: Version::V5,
        client_id: client.into(),
        clean_start: true,
        keep_alive: 0,
        will: None,
        user_name: None,
        password: None,
        session_expiry: None,
        receive_maximum: None,
        maximum_packet_size: None,
        topic_alias_maximum: 0,
        request_response_information: false,
        request_problem_information: true,
        user_properties: Vec::new(),
        authentication_method: None,
        authentication_data: None,
    }
}

/// CONNECT of version 5 that keeps or goes on with a session.
pub(super) fn v5_kept(client: &str) -> Connect {
    Connect { clean_start: false, session_expiry: Some(3600), ..v5(client) }
}

/// CONNECT of version 3.1.1.
pub(super) fn v311(client: &str, clean: bool) -> Connect {
    Connect { version: Version::V311, clean_start: clean, ..v5(client) }
}

/// A PUBLISH; its packet id for QoS over 0 is `packet_id`.
pub(super) fn publish(topic: &str, payload: &str, qos: Qos, packet_id: u16) -> Publish {
    Publish {
        qos,
        topic: topic.into(),
        packet_id: (qos > Qos::AtMostOnce).then(|| id(packet_id)),
        payload: Bytes::copy_from_slice(payload.as_bytes()),
        ..Default::default()
    }
}

pub(super) fn retained(topic: &str, payload: &str) -> Publish {
    Publish { retain: true, ..publish(topic, payload, Qos::AtMostOnce, 0) }
}

pub(super) fn expiring(publish: Publish, seconds: u32) -> Publish {
    let properties = PublishProperties { message_expiry: Some(seconds), ..publish.properties };
    Publish { properties, ..publish }
}

pub(super) fn will(topic: &str, delay: u32) -> Will {
    Will {
        topic: topic.into(),
        payload: Bytes::from_static(b"gone"),
        qos: Qos::AtLeastOnce,
        retain: false,
        delay,
        properties: PublishProperties::default(),
    }
}

pub(super) const Q0: Qos = Qos::AtMostOnce;
pub(super) const Q1: Qos = Qos::AtLeastOnce;
pub(super) const Q2: Qos = Qos::ExactlyOnce;
