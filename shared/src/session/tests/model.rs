//! Random clients, disconnects, takeovers and crashes, checked against what MQTT promises.
//!
//! The host commits when it likes and crashes when it likes: what was decided and not committed is gone, and effects of such
//! decisions were carried out only if they do not wait. Clients keep their own session state as the standard says.
//! Promised: a QoS 1 message that was acknowledged reaches every subscriber; a QoS 2 message reaches each exactly once; first
//! arrivals of a topic are in the order published; a shared group as a whole gets each QoS 1 message, and each QoS 2 message once;
//! what a subscriber is sent again is marked as such.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{
    store::Store,
    world::{Q1, Q2, id, publish, v5_kept},
};
use crate::{
    mqtt::packet::{
        Ack, Connect, Packet, Publish, Qos, Reason, Subscribe, SubscribeFilter, SubscriptionOptions,
    },
    session::{
        Change, ConnectionId, Decision, Effect, Event, Fanout, Now, Outgoing, SessionId, Settings,
        State, event::Peer,
    },
};

/// Before the topics of kind `d`.
const DELAYED: &str = "$delayed/1/";

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// A flow of a publishing client.
#[derive(Debug, Clone)]
struct Flow {
    publish: Publish,
    /// PUBREC came.
    released: bool,
}

#[derive(Debug, Default)]
struct Client {
    name: String,
    connection: Option<ConnectionId>,
    /// CONNACK came on this connection.
    joined: bool,
    /// CONNACK came once.
    known: bool,
    inbox: VecDeque<Outgoing>,
    /// Own messages on their way, in order.
    flows: Vec<Flow>,
    next_id: u16,
    /// Messages by topic.
    published: BTreeMap<(char, Qos), u32>,
    acknowledged: BTreeSet<(String, u32)>,
    /// QoS 2 ids received and not released.
    held: BTreeSet<u16>,
    /// QoS 1 and 2 of this connection that we have not acknowledged; what we announced.
    open: BTreeSet<u16>,
    receive_maximum: u16,
    /// How often each QoS 1 message was sent to the broker.
    sent: BTreeMap<(String, u32), u32>,
    /// Arrivals by topic.
    got: BTreeMap<String, Vec<u32>>,
    /// How often each QoS 1 message came without DUP.
    unmarked: BTreeMap<(String, u32), u32>,
}

struct Model {
    random: Random,
    settings: Settings,
    fanout: Fanout,
    state: State,
    store: Store,
    now: Now,
    /// Decided, not committed.
    changes: Vec<Change>,
    /// Not carried out yet.
    effects: Vec<Effect>,
    /// These effects wait for those changes.
    wait: bool,
    /// Effects that need not wait are carried out at once, but for those of a connection that has others waiting.
    eager: bool,
    /// Log entries handed in, and of them those durably so.
    fed: usize,
    fed_durable: usize,
    /// Questions to the store that are open: session, first seq, entries, bytes.
    loads: VecDeque<(SessionId, u64, usize, usize)>,
    clients: Vec<Client>,
    next_connection: u64,
}

impl Model {
    fn new(seed: u64, fanout: Fanout) -> Self {
        let mut random = Random(seed);
        let settings = Settings {
            inflight_messages: 1 + random.below(4) as u16,
            inflight_bytes: 20,
            queue_messages: 1 + random.below(5) as usize,
            queue_bytes: 40,
            receive_maximum: 10,
            ..Settings::default()
        };
        let store = Store::default();
        let now = Now { mono_ms: 0, wall_ms: 1, lasting_ms: 1 };
        let client = |name: &str| Client { name: name.into(), ..Client::default() };
        let mut model = Self {
            random,
            state: State::new(settings.clone(), fanout, store.restored(), now),
            settings,
            fanout,
            store,
            now,
            changes: Vec::new(),
            effects: Vec::new(),
            wait: false,
            eager: seed.is_multiple_of(2),
            fed: 0,
            fed_durable: 0,
            loads: VecDeque::new(),
            clients: ["a", "b", "c"].map(client).into(),
            next_connection: 1,
        };
        for at in 0..3 {
            model.connect(at);
            let options = SubscriptionOptions { qos: Q2, ..Default::default() };
            let filters = ["t/#", "d/#", "$share/g/s/#"];
            let filters = filters.map(|one| SubscribeFilter { filter: one.into(), options }).into();
            let user_properties = Vec::new();
            let subscribe =
                Subscribe { packet_id: id(1), filters, subscription_id: None, user_properties };
            model.send(at, Packet::Subscribe(subscribe));
            model.commit();
        }
        model
    }

    fn decide(&mut self, event: Event) {
        let mut out = Decision::default();
        self.state.decide(event, self.now, &mut out);
        self.changes.extend(out.changes);
        self.wait |= out.wait;
        for effect in out.effects {
            let same = |other: &Effect| target(other).is_some() && target(other) == target(&effect);
            if self.eager && !out.wait && !self.effects.iter().any(same) {
                self.act(vec![effect]);
            } else {
                self.effects.push(effect);
            }
        }
    }

    fn send(&mut self, at: usize, packet: Packet) {
        if let Some(connection) = self.clients[at].connection {
            self.decide(Event::Packet { connection, packet });
        }
    }

    fn commit(&mut self) {
        for change in std::mem::take(&mut self.changes) {
            self.store.apply(change);
        }
        self.fed_durable = self.fed;
        self.wait = false;
        let effects = std::mem::take(&mut self.effects);
        self.act(effects);
    }

    fn act(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Send { connection, outgoing } => {
                    if let Some(client) =
                        self.clients.iter_mut().find(|one| one.connection == Some(connection))
                    {
                        client.inbox.push_back(outgoing);
                    }
                }
                Effect::Close { connection, reason } => {
                    assert_eq!(reason, Reason::SESSION_TAKEN_OVER);
                    assert!(self.clients.iter().all(|one| one.connection != Some(connection)));
                }
                Effect::Load { session, from, max, bytes } => {
                    assert!(self.loads.iter().all(|open| open.0 != session), "one at a time");
                    self.loads.push_back((session, from, max, bytes));
                }
                Effect::Dropped { why, .. } => panic!("dropped: {why}"),
            }
        }
    }

    fn crash(&mut self) {
        self.changes.clear();
        self.effects.clear();
        self.wait = false;
        self.loads.clear();
        self.fed = self.fed_durable;
        self.state =
            State::new(self.settings.clone(), self.fanout, self.store.restored(), self.now);
        for client in &mut self.clients {
            client.cut();
        }
        self.decide(Event::Tick);
    }

    fn connect(&mut self, at: usize) {
        let connection = ConnectionId(self.next_connection);
        self.next_connection += 1;
        let receive_maximum = 1 + self.random.below(6) as u16;
        let client = &mut self.clients[at];
        client.cut();
        client.connection = Some(connection);
        client.receive_maximum = receive_maximum;
        let connect = Connect { receive_maximum: Some(receive_maximum), ..v5_kept(&client.name) };
        let peer = Peer { principal: None, address: None, proof: None };
        self.decide(Event::Connect { connection, connect: Box::new(connect), peer });
    }

    /// One packet that came for the client is looked at and answered.
    fn receive(&mut self, at: usize) {
        if let Some(outgoing) = self.clients[at].inbox.pop_front() {
            self.look_at(at, outgoing);
        }
    }

    fn look_at(&mut self, at: usize, outgoing: Outgoing) {
        let answers = match outgoing {
            Outgoing::Publish(delivery) => self.clients[at].receive_message(&delivery),
            Outgoing::Packet(packet) => self.clients[at].receive_packet(*packet),
        };
        for answer in answers {
            self.send(at, answer);
        }
    }

    fn publish(&mut self, at: usize) {
        let qos = if self.random.chance(50) { Q1 } else { Q2 };
        let kind = match self.random.below(10) {
            0..=5 => 't',
            6..=8 => 's',
            _ => 'd',
        };
        let client = &mut self.clients[at];
        if !client.joined || client.flows.len() >= 4 {
            return;
        }
        let number = client.published.entry((kind, qos)).or_default();
        *number += 1;
        let topic = topic(kind, &client.name, qos);
        client.next_id = client.next_id % 6 + 1;
        while client.flows.iter().any(|flow| flow.publish.packet_id == Some(id(client.next_id))) {
            client.next_id = client.next_id % 6 + 1;
        }
        let to = if kind == 'd' { format!("{DELAYED}{topic}") } else { topic };
        let publish = publish(&to, &number.to_string(), qos, client.next_id);
        client.flows.push(Flow { publish: publish.clone(), released: false });
        client.count_sent(&publish);
        self.send(at, Packet::Publish(publish));
    }

    fn step(&mut self) {
        let at = self.random.below(3) as usize;
        match self.random.below(100) {
            0..=1 => self.crash(),
            2..=4 => {
                if let Some(connection) = self.clients[at].connection {
                    self.clients[at].cut();
                    self.decide(Event::Closed { connection, reason: None });
                }
            }
            5..=11 if self.clients[at].connection.is_none() || self.random.chance(20) => {
                self.connect(at);
            }
            12..=30 => self.commit(),
            31..=45 => self.publish(at),
            46..=60 => self.host_event(),
            61..=65 if self.eager || !self.wait => {
                if !self.wait {
                    let effects = std::mem::take(&mut self.effects);
                    self.act(effects);
                }
                if self.random.chance(30) {
                    while let Some(outgoing) = self.clients[at].inbox.pop_front() {
                        self.look_at(at, outgoing);
                    }
                    self.crash();
                }
            }
            66..=68 => self.decide(Event::Tick),
            _ => self.receive(at),
        }
        self.now.mono_ms += 10;
        self.now.wall_ms += 10;
        self.now.lasting_ms += 10;
    }

    fn host_event(&mut self) {
        if let Some((session, from, max, bytes)) = self.loads.pop_front() {
            let (entries, complete) = self.store.load(session, from, max, bytes);
            self.decide(Event::Loaded { session, entries, complete });
        } else if self.fanout == Fanout::FromLog && self.fed < self.store.log.len() {
            let message = self.store.log[self.fed].clone();
            let stored = Some(Store::reference(self.fed));
            self.fed += 1;
            self.decide(Event::Message { message, stored });
        }
    }

    /// Everything is well again; runs until nothing moves.
    fn settle(&mut self) {
        for at in 0..3 {
            self.connect(at);
        }
        for _ in 0..20_000 {
            self.commit();
            self.host_event();
            self.now.mono_ms += 10;
            self.now.wall_ms += 10;
            self.now.lasting_ms += 10;
            self.decide(Event::Tick);
            (0..3).for_each(|at| self.receive(at));
            let quiet = self.effects.is_empty()
                && self.store.delayed.is_empty()
                && self.changes.is_empty()
                && self.loads.is_empty()
                && self.clients.iter().all(|client| client.inbox.is_empty())
                && (self.fanout == Fanout::AtOnce || self.fed == self.store.log.len());
            if quiet {
                return;
            }
        }
        panic!("never quiet");
    }

    fn check(&self) {
        assert!(self.store.queue.is_empty(), "everything was delivered: {:?}", self.store.queue);
        assert!(self.store.received.is_empty());
        for publisher in &self.clients {
            assert!(publisher.flows.is_empty(), "every flow ended");
            for (&(kind, qos), &count) in &publisher.published {
                let topic = topic(kind, &publisher.name, qos);
                let acknowledged =
                    |number| publisher.acknowledged.contains(&(topic.clone(), number));
                assert!((1..=count).all(acknowledged));
                let got =
                    self.clients.iter().map(|one| one.got.get(&topic).cloned().unwrap_or_default());
                if kind == 's' {
                    let mut got = got.flatten().collect::<Vec<_>>();
                    got.sort_unstable();
                    arrived(&topic, qos, &got, count);
                } else {
                    got.for_each(|got| arrived(&topic, qos, &got, count));
                }
            }
            for (message, sent) in &publisher.sent {
                // Another member of a shared group has not seen it before.
                let once = message.0.starts_with('s')
                    || self.clients.iter().all(|one| one.unmarked.get(message) <= Some(sent));
                assert!(once, "{message:?} came again without DUP");
            }
        }
    }
}

fn target(effect: &Effect) -> Option<ConnectionId> {
    match effect {
        Effect::Send { connection, .. } | Effect::Close { connection, .. } => Some(*connection),
        Effect::Load { .. } | Effect::Dropped { .. } => None,
    }
}

fn topic(kind: char, publisher: &str, qos: Qos) -> String {
    format!("{kind}/{publisher}/{}", qos as u8)
}

/// All, first arrivals in order, and at QoS 2 once.
fn arrived(topic: &str, qos: Qos, got: &[u32], count: u32) {
    let mut first = Vec::new();
    for &number in got {
        if !first.contains(&number) {
            first.push(number);
        }
    }
    assert_eq!(first, (1..=count).collect::<Vec<_>>(), "{topic}");
    assert!(qos == Q1 || got.len() == first.len(), "{topic}: once, got {got:?}");
}

impl Client {
    fn cut(&mut self) {
        self.connection = None;
        self.joined = false;
        self.inbox.clear();
        self.open.clear();
    }

    fn receive_message(&mut self, delivery: &crate::session::Delivery) -> Vec<Packet> {
        let number = std::str::from_utf8(&delivery.message.payload).unwrap().parse().unwrap();
        let packet_id = delivery.packet_id.expect("QoS 1 or 2");
        self.open.insert(packet_id.get());
        assert!(self.open.len() <= usize::from(self.receive_maximum), "receive maximum is kept");
        let ack = Ack::new(packet_id, Reason::SUCCESS);
        let topic = delivery.message.topic.to_string();
        if delivery.qos == Q1 {
            self.open.remove(&packet_id.get());
            if !delivery.dup {
                *self.unmarked.entry((topic.clone(), number)).or_default() += 1;
            }
            self.got.entry(topic).or_default().push(number);
            return vec![Packet::PubAck(ack)];
        }
        if self.held.insert(packet_id.get()) {
            self.got.entry(topic).or_default().push(number);
        }
        vec![Packet::PubRec(ack)]
    }

    fn receive_packet(&mut self, packet: Packet) -> Vec<Packet> {
        match packet {
            Packet::ConnAck(connack) => {
                assert_eq!(connack.reason, Reason::SUCCESS);
                assert!(connack.session_present || !self.known, "the session was promised");
                (self.known, self.joined) = (true, true);
                for flow in self.flows.clone() {
                    self.count_sent(&flow.publish);
                }
                return self.flows.iter().map(Flow::again).collect();
            }
            Packet::SubAck(_) => {}
            Packet::PubAck(ack) => self.finish(&ack, Q1),
            Packet::PubRec(ack) => {
                let known = |flow: &&mut Flow| flow.publish.packet_id == Some(ack.packet_id);
                let flow = self.flows.iter_mut().find(known).expect("a flow for PUBREC");
                flow.released = true;
                return vec![Packet::PubRel(Ack::new(ack.packet_id, Reason::SUCCESS))];
            }
            Packet::PubComp(ack) => self.finish(&ack, Q2),
            Packet::PubRel(ack) => {
                self.held.remove(&ack.packet_id.get());
                self.open.remove(&ack.packet_id.get());
                return vec![Packet::PubComp(Ack::new(ack.packet_id, Reason::SUCCESS))];
            }
            other => panic!("unexpected {other:?}"),
        }
        Vec::new()
    }

    fn count_sent(&mut self, publish: &Publish) {
        if publish.qos == Q1 {
            let number = std::str::from_utf8(&publish.payload).unwrap().parse().unwrap();
            let topic = publish.topic.trim_start_matches(DELAYED).to_owned();
            *self.sent.entry((topic, number)).or_default() += 1;
        }
    }

    fn finish(&mut self, ack: &Ack, qos: Qos) {
        let Some(at) =
            self.flows.iter().position(|flow| flow.publish.packet_id == Some(ack.packet_id))
        else {
            return;
        };
        let flow = self.flows.remove(at);
        assert_eq!(flow.publish.qos, qos);
        let number = std::str::from_utf8(&flow.publish.payload).unwrap().parse().unwrap();
        let topic = flow.publish.topic.trim_start_matches(DELAYED);
        self.acknowledged.insert((topic.to_owned(), number));
    }
}

impl Flow {
    fn again(&self) -> Packet {
        if self.released {
            let packet_id = self.publish.packet_id.expect("QoS 2");
            return Packet::PubRel(Ack::new(packet_id, Reason::SUCCESS));
        }
        Packet::Publish(Publish { dup: true, ..self.publish.clone() })
    }
}

fn run(seed: u64, fanout: Fanout) {
    let outcome = std::panic::catch_unwind(|| {
        let mut model = Model::new(seed, fanout);
        for _ in 0..600 {
            model.step();
        }
        model.settle();
        model.check();
    });
    assert!(outcome.is_ok(), "with seed {seed}");
}

// [MQTT-4.3.3-1] [MQTT-4.5.0-1] [MQTT-4.6.0-5] [MQTT-4.6.0-6]
#[test]
fn no_crash_loses_doubles_or_reorders_when_fanned_out_at_once() {
    (0..300).for_each(|seed| run(seed, Fanout::AtOnce));
}

#[test]
fn no_crash_loses_doubles_or_reorders_when_fanned_out_from_the_log() {
    (1000..1300).for_each(|seed| run(seed, Fanout::FromLog));
}
