//! The host: one decision, one commit, its effects; clients at their ends of the connections.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Debug,
    sync::{Arc, OnceLock},
};

use bytes::{Buf as _, BytesMut};
use tributary_shared::{
    auth::Permissions,
    mqtt::{
        Packet, Qos, Reason, Version,
        packet::{Ack, Connect},
        write::{self, Alias, Head, Output, PROTOCOL_MAXIMUM, write, write_limited},
    },
    session::event::Peer,
};

use super::{
    ConnectionId, Decision, Delivery, Effect, Event, Fanout, Now, Outgoing, SessionId, Settings,
    State,
    client::{Link, NAMES, connect},
    store::Store,
};
use crate::codec::connected;

/// Ticks that a scenario may lead to without time passing.
const TICKS: usize = 10_000;

pub(super) struct World {
    state: State,
    store: Store,
    settings: Settings,
    now: Now,
    wake_ms: Option<u64>,
    links: BTreeMap<usize, Link>,
    next_connection: u64,
    loads: VecDeque<(SessionId, u64, usize, usize)>,
    permissions: Arc<Permissions>,
    /// Something happened after which a restart may change more than it should: see `compare_with_a_restart`.
    incomparable: bool,
}

impl World {
    pub(super) fn new(settings: Settings) -> Self {
        let now = Now {
            mono_ms: 1_000_000,
            wall_ms: 1_700_000_000_000,
            lasting_ms: 1_700_000_000_000,
        };
        let store = Store::default();
        Self {
            state: State::new(settings.clone(), Fanout::AtOnce, store.restored(), now),
            store,
            settings,
            now,
            wake_ms: None,
            links: BTreeMap::new(),
            next_connection: 1,
            loads: VecDeque::new(),
            permissions: Arc::default(),
            incomparable: false,
        }
    }

    fn event(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let mut out = Decision::default();
            show("", &event);
            self.state.decide(event, self.now, &mut out);
            self.wake_ms = out.wake_ms;
            for change in out.changes {
                self.store.apply(change);
            }
            for effect in out.effects {
                show("    ", &effect);
                match effect {
                    Effect::Send { connection, outgoing } => {
                        events.extend(self.deliver(connection, outgoing));
                    }
                    Effect::Close { connection, .. } => {
                        let before = self.links.len();
                        self.links.retain(|_, link| link.connection != connection);
                        assert!(self.links.len() < before, "closed once");
                        // The connection's task says so afterwards, too.
                        events.push_back(Event::Closed { connection, reason: None });
                    }
                    Effect::Load { session, from, max, bytes } => {
                        assert!(out.wait, "a load sees all changes");
                        assert!(self.loads.iter().all(|open| open.0 != session), "one at a time");
                        self.loads.push_back((session, from, max, bytes));
                    }
                    Effect::Dropped { .. } => {}
                }
            }
            let stats = self.state.stats();
            assert_eq!(stats.retained, self.store.retained.len());
            assert_eq!(stats.connections, self.links.len());
            assert!(stats.sessions >= self.store.sessions.len());
            assert!(stats.subscriptions >= self.store.subscriptions.len());
        }
    }

    /// As the connection's writer does: encoded within the client's limit, or given up in the client's name.
    fn deliver(&mut self, connection: ConnectionId, outgoing: Outgoing) -> Option<Event> {
        let link = self.links.values_mut().find(|link| link.connection == connection);
        let link = link.expect("nothing is sent to a connection that ended");
        match outgoing {
            Outgoing::Publish(delivery) => {
                let Some(bytes) = encode(&delivery, link.version, link.maximum) else {
                    let packet_id = delivery.packet_id?;
                    let ack = Ack::new(packet_id, Reason::PACKET_TOO_LARGE);
                    let exactly = delivery.qos == Qos::ExactlyOnce;
                    let packet = if exactly { Packet::PubRec(ack) } else { Packet::PubAck(ack) };
                    return Some(Event::Packet { connection, packet });
                };
                let Packet::Publish(got) = link.receive(&bytes) else { panic!("a PUBLISH") };
                assert_eq!(got.payload, delivery.message.payload);
                assert!(got.topic == delivery.message.topic || got.topic_alias.is_some());
                assert_eq!(got.packet_id.is_some(), got.qos > Qos::AtMostOnce);
            }
            Outgoing::Packet(packet) => {
                let mut bytes = BytesMut::new();
                if write_limited(&packet, link.version, link.maximum, &mut bytes).is_ok() {
                    if !bytes.is_empty() {
                        link.receive(&bytes);
                    }
                } else if matches!(*packet, Packet::ConnAck(_)) {
                    link.joined = true;
                }
            }
        }
        None
    }

    pub(super) fn connect(&mut self, at: usize, packet: Connect) {
        let version = packet.version;
        let mut bytes = BytesMut::new();
        write(&Packet::Connect(Box::new(packet)), version, &mut bytes);
        let mut reader = tributary_shared::mqtt::Reader::server(1 << 20);
        // What the fuzzer chose may not be legal.
        if let Ok(Some(Packet::Connect(connect))) = reader.read(&mut bytes) {
            self.join(at, *connect);
        }
    }

    fn join(&mut self, at: usize, connect: Connect) {
        let connection = ConnectionId(self.next_connection);
        self.next_connection += 1;
        // The link that is taken over stays until it is closed: at a place beyond the clients'.
        if let Some(old) = self.links.remove(&at) {
            self.links.insert(1_000 + old.connection.0 as usize, old);
        }
        self.incomparable |= connect.will.is_some() && connect.session_expiry.unwrap_or(0) == 0;
        self.links.insert(at, Link::new(connection, &connect));
        let peer = Peer { principal: None, address: None, proof: None };
        self.event(Event::Connect { connection, connect: Box::new(connect), peer });
    }

    /// A client's packet, as the codec lets it through.
    pub(super) fn send(&mut self, at: usize, packet: Packet) {
        let Some(link) = self.links.get(&at).filter(|link| link.joined) else { return };
        let mut bytes = BytesMut::new();
        write(&packet, link.version, &mut bytes);
        self.raw(at, &bytes);
    }

    /// A client's bytes.
    pub(super) fn raw(&mut self, at: usize, bytes: &[u8]) {
        let Some(link) = self.links.get(&at).filter(|link| link.joined) else { return };
        let mut reader = connected(link.version);
        let mut buffer = BytesMut::from(bytes);
        loop {
            let read = reader.read(&mut buffer);
            let Some(link) = self.links.get_mut(&at) else { return };
            let connection = link.connection;
            match read {
                Ok(Some(packet)) => {
                    link.sends(&packet);
                    if let Packet::Subscribe(subscribe) = &packet {
                        self.incomparable |=
                            subscribe.filters.iter().any(|one| one.filter.starts_with("$share"));
                    }
                    self.event(Event::Packet { connection, packet });
                }
                Ok(None) => return,
                Err(malformed) => {
                    return self
                        .event(Event::Closed { connection, reason: Some(malformed.reason) });
                }
            }
        }
    }

    pub(super) fn answer(&mut self, at: usize, which: usize) {
        let answer = self.links.get(&at).and_then(|link| link.answer(which));
        if let Some(packet) = answer {
            self.send(at, packet);
        }
    }

    pub(super) fn cut(&mut self, at: usize) {
        if let Some(link) = self.links.remove(&at) {
            self.event(Event::Closed { connection: link.connection, reason: None });
        }
    }

    pub(super) fn fault(&mut self, at: usize, reason: Reason) {
        if let Some(link) = self.links.get(&at) {
            let connection = link.connection;
            self.event(Event::Closed { connection, reason: Some(reason) });
        }
    }

    /// The oldest open question to the store is answered.
    pub(super) fn load(&mut self) {
        if let Some((session, from, max, bytes)) = self.loads.pop_front() {
            let (entries, complete) = self.store.load(session, from, max, bytes);
            self.event(Event::Loaded { session, entries, complete });
        }
    }

    pub(super) fn pass(&mut self, seconds: u64) {
        let end = self.now.mono_ms + seconds * 1000;
        self.ticks(end);
        self.now.wall_ms += (end - self.now.mono_ms) as i64;
        self.now.lasting_ms += (end - self.now.mono_ms) as i64;
        self.now.mono_ms = end;
        self.event(Event::Tick);
        self.ticks(end);
    }

    fn ticks(&mut self, end: u64) {
        for _ in 0..TICKS {
            let Some(at) = self.wake_ms.filter(|at| *at <= end) else { return };
            let at = at.max(self.now.mono_ms);
            self.now.wall_ms += (at - self.now.mono_ms) as i64;
            self.now.lasting_ms += (at - self.now.mono_ms) as i64;
            self.now.mono_ms = at;
            self.event(Event::Tick);
        }
        panic!("ticks for ever");
    }

    pub(super) fn permit(&mut self, permissions: Permissions) {
        self.incomparable = true;
        self.permissions = Arc::new(permissions);
        self.event(Event::Permissions(Arc::clone(&self.permissions)));
    }

    /// Killed and started on what was stored.
    pub(super) fn restart(&mut self) {
        self.links.clear();
        self.loads.clear();
        let restored = self.store.restored();
        self.state = State::new(self.settings.clone(), Fanout::AtOnce, restored, self.now);
        let stats = self.state.stats();
        assert_eq!(stats.sessions, self.store.sessions.len());
        assert_eq!(stats.subscriptions, self.store.subscriptions.len());
        assert_eq!(stats.retained, self.store.retained.len());
        self.event(Event::Permissions(Arc::clone(&self.permissions)));
        self.event(Event::Tick);
        self.ticks(self.now.mono_ms);
    }

    /// What each client finds after a restart is what it would have found without one. Not compared: wills of sessions that
    /// end with their connection (a crash is not their client's end), shared subscriptions (which member gets a
    /// message depends on the order in which they went), and rights that changed.
    pub(super) fn compare_with_a_restart(mut self) {
        // What is too large for a client counts as delivered; on its next connection it may not be too large.
        let picky = self.links.values().any(|link| link.maximum < PROTOCOL_MAXIMUM);
        if self.incomparable || picky {
            return;
        }
        let store = self.store.clone();
        let mut other = Self::new(self.settings.clone());
        other.store = store;
        other.now = self.now;
        other.next_connection = self.next_connection;
        other.restart();
        let all: Vec<usize> = self.links.keys().copied().collect();
        all.into_iter().for_each(|at| self.cut(at));
        self.ticks(self.now.mono_ms);
        while !self.loads.is_empty() {
            self.load();
        }
        for (at, name) in NAMES.iter().enumerate() {
            assert_eq!(self.everything(at), other.everything(at), "for {name}");
        }
        let retained = |world: &Self| {
            let one = world.store.retained.iter();
            one.map(|(topic, one)| (topic.clone(), one.0.payload.clone())).collect::<Vec<_>>()
        };
        assert_eq!(retained(&self), retained(&other));
        assert_eq!(self.state.stats().sessions, other.state.stats().sessions);
        assert_eq!(self.state.stats().subscriptions, other.state.stats().subscriptions);
    }

    /// A client comes back, and takes all that waits for it.
    fn everything(&mut self, at: usize) -> Vec<String> {
        let mut hello = connect(NAMES[at], Version::V5);
        hello.session_expiry = Some(1_000);
        self.join(at, hello);
        for _ in 0..TICKS {
            self.load();
            self.ticks(self.now.mono_ms);
            let answer = self.links.get(&at).and_then(|link| link.answer(0));
            match answer {
                Some(packet) => self.send(at, packet),
                None if self.loads.is_empty() => {
                    let mut got =
                        self.links.get(&at).map(|link| link.got.clone()).unwrap_or_default();
                    got.sort();
                    return got;
                }
                None => {}
            }
        }
        panic!("messages for ever");
    }
}

fn encode(delivery: &Delivery, version: Version, maximum: usize) -> Option<Vec<u8>> {
    let head = Head {
        dup: delivery.dup,
        qos: delivery.qos,
        retain: delivery.retain,
        packet_id: delivery.packet_id,
        subscription_ids: &delivery.subscription_ids,
        expiry_s: delivery.expiry_s,
        alias: Alias::None,
    };
    let mut output = Output::default();
    write::publish(&delivery.message, &head, version, maximum, &mut output).ok()?;
    output.seal();
    Some(output.copy_to_bytes(output.remaining()).to_vec())
}

/// With `SHOW` set (`scripts/fuzz repeat` does) the scenario is told step by step.
fn show(indent: &str, what: &dyn Debug) {
    static SHOW: OnceLock<bool> = OnceLock::new();
    if *SHOW.get_or_init(|| std::env::var_os("SHOW").is_some()) {
        eprintln!("{indent}{what:?}");
    }
}
