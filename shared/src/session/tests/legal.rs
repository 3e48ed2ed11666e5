//! Any packets in any order: what the broker sends is what the standard lets a server send.

use std::collections::BTreeMap;

use bytes::BytesMut;
use proptest::{collection::vec, prelude::*};

use super::{store::Store, world::id};
use crate::{
    mqtt::{
        Reader, Version,
        check::Sender,
        packet::{Connect, Packet, Publish, Subscribe, Unsubscribe},
        tests::arbitrary,
        write::write,
    },
    session::{
        ConnectionId, Decision, Delivery, Effect, Event, Fanout, Now, Outgoing, Settings, State,
        event::Peer,
    },
};

/// What a connection was sent, and what it waits for.
struct Link {
    version: Version,
    /// Bytes of a packet that it takes.
    maximum: usize,
    sent: u32,
    connected: bool,
    closed: bool,
    /// Requests in order, as the bytes their answers begin with.
    asked: Vec<(u8, u16)>,
}

#[derive(Debug, Clone)]
enum Step {
    Connect(Box<Connect>, usize),
    Packet(Box<Packet>, usize),
    Tick(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let connect = (arbitrary::first(), 0..4usize, 0..3usize, any::<bool>());
    let connect = connect.prop_map(|(first, name, version, method)| {
        let Packet::Connect(connect) = first else { unreachable!() };
        let version = [Version::V31, Version::V311, Version::V5][version];
        let Some(Packet::Connect(mut connect)) =
            arbitrary::in_version(&Packet::Connect(connect), version, Sender::Client)
        else {
            unreachable!()
        };
        connect.client_id = ["a", "b", "c", ""][name].into();
        connect.keep_alive %= 100;
        connect.maximum_packet_size = connect.maximum_packet_size.map(|most| most % 100 + 1);
        if !method {
            connect.authentication_method = None;
            connect.authentication_data = None;
        }
        Step::Connect(connect, name)
    });
    let packet = (arbitrary::from_client(), 0..4usize).prop_map(|(packet, link)| {
        let few = |topic: &str| ["t", "t/u", "+/u", "t/#", "$share/g/t"][topic.len() % 5].into();
        let packet = match packet {
            Packet::Publish(publish) if !publish.topic.is_empty() => {
                let topic = ["t", "t/u"][publish.topic.len() % 2].into();
                let alias = publish.topic_alias.map(|alias| alias % 20 + 1);
                Packet::Publish(Publish { topic, topic_alias: alias, ..publish })
            }
            Packet::Subscribe(mut subscribe) => {
                for one in &mut subscribe.filters {
                    one.filter = few(&one.filter);
                }
                Packet::Subscribe(Subscribe { packet_id: id(9), ..subscribe })
            }
            Packet::Unsubscribe(mut unsubscribe) => {
                for filter in &mut unsubscribe.filters {
                    *filter = few(filter);
                }
                Packet::Unsubscribe(Unsubscribe { packet_id: id(10), ..unsubscribe })
            }
            packet => packet,
        };
        Step::Packet(Box::new(packet), link)
    });
    let step = prop_oneof![
        2 => connect,
        12 => packet,
        1 => (0..200_000u64).prop_map(Step::Tick),
    ];
    vec(step, 1..120)
}

struct Checked {
    state: State,
    store: Store,
    now: Now,
    links: BTreeMap<ConnectionId, Link>,
    /// The connection that a step speaks of.
    current: [Option<ConnectionId>; 4],
}

impl Checked {
    fn new() -> Self {
        let now = Now { mono_ms: 1_000, wall_ms: 1_700_000_000_000, lasting_ms: 1_700_000_000_000 };
        let store = Store::default();
        let settings = Settings { receive_maximum: 3, inflight_messages: 3, ..Default::default() };
        let state = State::new(settings, Fanout::AtOnce, store.restored(), now);
        Self { state, store, now, links: BTreeMap::new(), current: [None; 4] }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Connect(connect, name) => {
                let connection = ConnectionId(self.links.len() as u64 + 1);
                self.current[name] = Some(connection);
                let version = connect.version;
                let maximum = connect.maximum_packet_size.map_or(usize::MAX, |most| most as usize);
                let link = Link {
                    version,
                    maximum,
                    sent: 0,
                    connected: false,
                    closed: false,
                    asked: Vec::new(),
                };
                self.links.insert(connection, link);
                let peer = Peer { principal: None, address: None, proof: None };
                self.event(Event::Connect { connection, connect, peer });
            }
            Step::Packet(packet, at) => {
                let Some(connection) = self.current[at] else { return };
                let Some(link) = self.links.get_mut(&connection) else { return };
                let Some(packet) = arbitrary::in_version(&packet, link.version, Sender::Client)
                else {
                    return;
                };
                match &packet {
                    Packet::Subscribe(one) => link.asked.push((0x90, one.packet_id.get())),
                    Packet::Unsubscribe(one) => link.asked.push((0xB0, one.packet_id.get())),
                    Packet::PingReq => link.asked.push((0xD0, 0)),
                    _ => {}
                }
                self.event(Event::Packet { connection, packet });
                let link = &self.links[&connection];
                assert!(link.closed || link.asked.is_empty(), "unanswered: {:?}", link.asked);
            }
            Step::Tick(ms) => {
                self.now.mono_ms += ms;
                self.now.wall_ms += ms as i64;
                self.now.lasting_ms += ms as i64;
                self.event(Event::Tick);
            }
        }
    }

    fn event(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let mut out = Decision::default();
            self.state.decide(event, self.now, &mut out);
            out.changes.into_iter().for_each(|change| self.store.apply(change));
            for effect in out.effects {
                match effect {
                    Effect::Send { connection, outgoing } => self.sent(connection, outgoing),
                    Effect::Close { connection, .. } => {
                        self.links.get_mut(&connection).unwrap().closed = true;
                    }
                    Effect::Load { session, from, max, bytes } => {
                        let (entries, complete) = self.store.load(session, from, max, bytes);
                        events.push(Event::Loaded { session, entries, complete });
                    }
                    Effect::Dropped { .. } => {}
                }
            }
        }
    }

    /// It is legal there and then, and on the wire.
    fn sent(&mut self, connection: ConnectionId, outgoing: Outgoing) {
        let link = self.links.get_mut(&connection).expect("a connection");
        assert!(!link.closed, "after the end: {outgoing:?}");
        let packet = match outgoing {
            Outgoing::Packet(packet) => *packet,
            Outgoing::Publish(delivery) => Packet::Publish(as_publish(&delivery)),
        };
        let mut bytes = BytesMut::new();
        write(&packet, link.version, &mut bytes);
        let read = Reader::client(link.version, 1 << 20).read(&mut bytes.clone());
        assert!(matches!(read, Ok(Some(_))), "{read:?}: {packet:?}");
        assert!(bytes.len() <= link.maximum || !matches!(packet, Packet::Publish(_)), "{packet:?}");
        let is_connack = matches!(packet, Packet::ConnAck(_));
        assert_eq!(is_connack, link.sent == 0, "CONNACK comes first and once: {packet:?}");
        link.sent += 1;
        if let Packet::ConnAck(connack) = &packet {
            link.connected = !connack.reason.is_error();
            assert!(link.connected || !connack.session_present);
        }
        assert!(is_connack || link.connected, "after a refusal: {packet:?}");
        assert!(!matches!(packet, Packet::Auth(_)), "AUTH without a method");
        let at = |at: usize| *bytes.get(at).unwrap_or(&0);
        let head = (at(0), u16::from_be_bytes([at(2), at(3)]));
        if let Some(first) = link.asked.first().filter(|first| first.0 == head.0) {
            assert!(first.0 == 0xD0 || *first == head, "the answer has the id of its request");
            link.asked.remove(0);
        }
    }
}

pub(super) fn as_publish(delivery: &Delivery) -> Publish {
    let message = &delivery.message;
    assert_eq!(delivery.packet_id.is_some(), delivery.qos != crate::mqtt::Qos::AtMostOnce);
    assert!(delivery.packet_id.is_some() || !delivery.dup);
    Publish {
        dup: delivery.dup,
        qos: delivery.qos,
        retain: delivery.retain,
        topic: message.topic.clone(),
        packet_id: delivery.packet_id,
        payload: message.payload.clone(),
        properties: message.properties.clone(),
        topic_alias: None,
        subscription_ids: delivery.subscription_ids.clone(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    // [MQTT-2.2.1-2] [MQTT-3.1.4-5] [MQTT-3.2.0-1] [MQTT-3.2.0-2] [MQTT-3.2.2-6] [MQTT-3.2.2-8]
    // [MQTT-3.3.1-2] [MQTT-3.4.2-1] [MQTT-3.5.2-1] [MQTT-3.6.2-1] [MQTT-3.7.2-1] [MQTT-3.8.4-1]
    // [MQTT-3.9.3-2] [MQTT-3.10.4-4] [MQTT-3.11.3-2] [MQTT-3.12.4-1] [MQTT-3.14.0-1]
    // [MQTT-3.14.2-1] [MQTT-3.14.2-2] [MQTT-3.14.4-1] [MQTT-4.3.1-1]
    #[test]
    fn whatever_clients_send_the_broker_sends_only_what_a_server_may(steps in steps()) {
        let mut checked = Checked::new();
        for step in steps {
            checked.step(step);
        }
    }
}
