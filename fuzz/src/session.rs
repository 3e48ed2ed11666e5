//! The broker core with a host that stores and restarts, and three clients that do what they like.
//!
//! Held: every packet to a client is legal in its version and within its maximum size; a packet id is in flight once; the
//! client's receive maximum is kept; CONNACK comes first and nothing after the end; changes fit the store (the unit
//! tests' model of it); ticks end. At the end the broker is started again on the store, and gives the same messages to the
//! same clients as the one that went on.

mod client;
#[path = "../../shared/src/session/tests/store.rs"]
#[expect(dead_code, reason = "what the unit tests need beside")]
mod store;
mod world;

pub(crate) use tributary_shared::session::*;

use tributary_shared::{
    auth::{Action, Permissions, Rule},
    mqtt::{
        Packet, Qos, Reason, Version,
        packet::{
            Ack, Disconnect, Publish, PublishProperties, Subscribe, SubscribeFilter,
            SubscriptionOptions, Unsubscribe, Will,
        },
    },
};

use crate::input::Input;
use client::{NAMES, connect, id};
use world::World;

const TOPICS: [&str; 7] = ["t/a", "t/b", "s/x", "t", "$SYS/x", "t/a/b/c/d/e/f/g/h/i", ""];
const FILTERS: [&str; 12] = [
    "t/#",
    "t/+",
    "s/x",
    "#",
    "+/a",
    "$share/g/t/#",
    "$share/g/s/+",
    "$SYS/#",
    "t/#/x",
    "",
    "$share/g",
    "t/a",
];
const QOS: [Qos; 3] = [Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce];
const VERSIONS: [Version; 4] = [Version::V5, Version::V311, Version::V5, Version::V31];
/// Longer inputs say nothing that these cannot.
const EVENTS: usize = 400;

/// One scenario, one byte a choice.
pub fn scenario(data: &[u8]) {
    let mut input = Input(data);
    let small = input.byte();
    let settings = Settings {
        inflight_messages: 1 + u16::from(small & 7),
        inflight_bytes: if small & 8 == 0 { 1 << 20 } else { 40 },
        queue_messages: if small & 16 == 0 { 1_000 } else { 3 },
        queue_bytes: if small & 32 == 0 { 1 << 20 } else { 60 },
        queue_stored_messages: if small & 64 == 0 { 100_000 } else { 6 },
        retained_messages: if small & 128 == 0 { 1_000 } else { 2 },
        receive_maximum: 3,
        subscriptions: 5,
        sessions: 4,
        topic_levels: 8,
        topic_alias_maximum: 2,
        ..Settings::default()
    };
    let mut world = World::new(settings);
    for _ in 0..EVENTS {
        if input.is_empty() {
            break;
        }
        step(&mut world, &mut input);
    }
    world.compare_with_a_restart();
}

fn step(world: &mut World, input: &mut Input<'_>) {
    let at = input.below(NAMES.len());
    match input.byte() % 24 {
        0 | 1 => join(world, at, input),
        2 => world.cut(at),
        3 => {
            let reason = [Reason::SUCCESS, Reason::DISCONNECT_WITH_WILL][input.below(2)];
            let session_expiry = input.flag().then(|| u32::from(input.byte()));
            let disconnect = Disconnect { session_expiry, ..Disconnect::new(reason) };
            world.send(at, Packet::Disconnect(disconnect));
        }
        4..=7 => world.send(at, Packet::Publish(publish(input))),
        8 | 9 => world.send(at, Packet::Subscribe(subscribe(input))),
        10 => {
            let filters = (0..=input.below(2)).map(|_| input.choose(&FILTERS).into()).collect();
            let packet_id = id(input.byte());
            world.send(
                at,
                Packet::Unsubscribe(Unsubscribe {
                    packet_id,
                    filters,
                    user_properties: Vec::new(),
                }),
            );
        }
        11..=15 => world.answer(at, input.below(4)),
        16 => {
            let reason = [Reason::SUCCESS, Reason::UNSPECIFIED, Reason::NO_MATCHING_SUBSCRIBERS]
                [input.below(3)];
            let kind =
                [Packet::PubAck, Packet::PubRec, Packet::PubRel, Packet::PubComp][input.below(4)];
            let wild = kind(Ack::new(id(input.byte()), reason));
            world.send(at, wild);
        }
        17 => world.send(at, Packet::PingReq),
        18 => world.load(),
        19 => world.pass(u64::from(input.byte()).pow(2)),
        20 => world.restart(),
        21 => world.permit(rules(input)),
        22 => {
            let size = input.below(64);
            world.raw(at, input.take(size));
        }
        _ => world.fault(at, Reason::KEEP_ALIVE_TIMEOUT),
    }
}

fn join(world: &mut World, at: usize, input: &mut Input<'_>) {
    let flags = input.byte();
    let version = input.choose(&VERSIONS);
    let mut packet = connect(NAMES[at], version);
    packet.clean_start = flags & 1 != 0;
    if version == Version::V5 {
        packet.session_expiry = (flags & 2 != 0).then(|| 100 * u32::from(input.byte()));
        packet.receive_maximum = (flags & 4 != 0).then(|| 1 + u16::from(input.byte() % 4));
        packet.maximum_packet_size = (flags & 8 != 0).then(|| 1 + u32::from(input.byte()));
        packet.topic_alias_maximum = u16::from(flags >> 5 & 1) * 2;
        packet.request_problem_information = flags & 64 == 0;
    }
    packet.keep_alive = u16::from(flags & 128);
    packet.will = (flags & 16 != 0).then(|| will(input, version));
    world.connect(at, packet);
}

fn will(input: &mut Input<'_>, version: Version) -> Will {
    let choice = input.byte();
    Will {
        topic: TOPICS[usize::from(choice & 3)].into(),
        payload: "gone".into(),
        qos: QOS[usize::from(choice >> 2) % 3],
        retain: choice & 128 != 0,
        delay: if version == Version::V5 { u32::from(choice >> 4 & 3) * 50 } else { 0 },
        properties: PublishProperties::default(),
    }
}

fn publish(input: &mut Input<'_>) -> Publish {
    let flags = input.byte();
    let qos = QOS[usize::from(flags & 3) % 3];
    let topic_alias = (flags & 4 != 0).then(|| u16::from(input.byte() % 4));
    let length = input.byte();
    let length = if length < 250 { usize::from(length % 50) } else { 3_000 };
    Publish {
        qos,
        dup: flags & 8 != 0 && qos > Qos::AtMostOnce,
        retain: flags & 16 != 0,
        topic: input.choose(&TOPICS).into(),
        packet_id: (qos > Qos::AtMostOnce).then(|| id(input.byte())),
        payload: vec![b'a' + input.byte() % 26; length].into(),
        properties: PublishProperties {
            message_expiry: (flags & 32 != 0).then(|| u32::from(input.byte())),
            content_type: (flags & 64 != 0).then(|| "text/plain".into()),
            user_properties: if flags & 128 != 0 {
                vec![("k".into(), "v".into())]
            } else {
                Vec::new()
            },
            ..PublishProperties::default()
        },
        topic_alias,
        subscription_ids: Vec::new(),
    }
}

fn subscribe(input: &mut Input<'_>) -> Subscribe {
    let mut filter = || {
        let choice = input.byte();
        let options = SubscriptionOptions {
            qos: QOS[usize::from(choice & 3) % 3],
            no_local: choice & 4 != 0,
            retain_as_published: choice & 8 != 0,
            retain_handling: (choice >> 4 & 3) % 3,
        };
        SubscribeFilter { filter: FILTERS[input.below(FILTERS.len())].into(), options }
    };
    let filters = vec![filter(), filter()];
    let subscription_id = input.flag().then(|| 1 + u32::from(input.byte()));
    Subscribe { packet_id: id(input.byte()), filters, subscription_id, user_properties: Vec::new() }
}

fn rules(input: &mut Input<'_>) -> Permissions {
    let choice = input.byte();
    let topics = vec![["t/#", "s/#", "t/a", "#"][usize::from(choice & 3)].to_owned()];
    let action = [Action::Publish, Action::Subscribe, Action::Both][usize::from(choice >> 2) % 3];
    let rule = |action, topics, allow| Rule { who: vec!["*".to_owned()], action, topics, allow };
    let rules =
        [rule(action, topics, choice & 128 != 0), rule(Action::Both, vec!["#".to_owned()], true)];
    Permissions::new(&rules).expect("legal rules")
}
