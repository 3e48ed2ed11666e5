//! What the broker says of itself, `$SYS/broker/...`.

use bytes::Bytes;

use super::{rights::join_as, world::*};
use crate::{
    message::Message,
    mqtt::{
        Qos,
        packet::{PublishProperties, Will},
        write::Encoded,
    },
    session::{Change, Decision, Event, RefusedPublish, Settings},
};

fn own(w: &mut World, values: &[(&'static str, &'static str)]) {
    let value = |&(topic, value): &(&'static str, &'static str)| {
        (topic.into(), Bytes::from_static(value.as_bytes()))
    };
    w.event(Event::Own(values.iter().map(value).collect()));
}

// [MQTT-4.7.2-1] [MQTT311-4.7.2-1]
#[test]
fn what_the_broker_says_reaches_explicit_filters_only_old_and_new_subscribers() {
    let mut w = world();
    let all = w.join_subscribed(v5("all"), "#", Q2);
    let level = w.join_subscribed(v5("level"), "+/broker/uptime", Q2);
    let early = w.join_subscribed(v5_kept("early"), "$SYS/#", Q2);
    let values = [("$SYS/broker/uptime", "1 seconds"), ("$SYS/broker/version", "v")];
    own(&mut w, &values);
    w.expect(early, &["$SYS/broker/uptime 1 seconds q0", "$SYS/broker/version v q0"]);
    own(&mut w, &[("$SYS/broker/uptime", "2 seconds"), ("$SYS/broker/version", "v")]);
    w.expect(early, &["$SYS/broker/uptime 2 seconds q0"]);
    let late = w.join(v311("late", true));
    w.subscribe(late, "$SYS/broker/+", Q1);
    let all_of_it = [
        "SUBACK 1 01",
        "$SYS/broker/uptime 2 seconds q0 retain",
        "$SYS/broker/version v q0 retain",
    ];
    w.expect(late, &all_of_it);
    w.subscribe(all, "#", Q2);
    w.expect(all, &["SUBACK 1 02"]);
    w.expect(level, &[]);
}

#[test]
fn what_the_broker_says_is_not_stored_not_queued_and_counts_for_no_limit() {
    let settings = Settings { retained_messages: 1, retained_bytes: 10, ..Settings::default() };
    let mut w = World::new(settings, crate::session::Fanout::AtOnce);
    let reader = w.join_subscribed(v5_kept("r"), "$SYS/#", Q2);
    w.cut(reader);
    own(&mut w, &[("$SYS/broker/a", "1"), ("$SYS/broker/b", "a long value of it")]);
    assert_eq!((w.store.retained.len(), w.store.queue.len(), w.store.log.len()), (0, 0, 0));
    let stats = w.state.stats();
    assert_eq!((stats.retained, stats.retained_bytes), (0, 0));
    let writer = w.join(v5("w"));
    w.publish(
        writer,
        crate::mqtt::packet::Publish {
            qos: Q1,
            packet_id: std::num::NonZeroU16::new(1),
            ..retained("t", "x")
        },
    );
    w.expect(writer, &["PUBACK 1"]);
    w.restart();
    let reader = w.connect(v5_kept("r"));
    w.expect(reader, &["CONNACK 00 present"]);
}

#[test]
fn topics_that_are_not_the_brokers_own_are_not_told_by_it() {
    let mut w = world();
    let reader = w.join_subscribed(v5("r"), "a", Q0);
    own(&mut w, &[("a", "x"), ("$SYS/brokers", "x"), ("$SYS/broker/empty", "")]);
    assert!(w.take(reader).is_empty());
    assert_eq!(w.state.stats().retained, 0);
}

#[test]
fn nobody_but_the_broker_publishes_below_its_topics_or_leaves_a_will_there() {
    for (drop, answers) in [(false, &["closed 87"][..]), (true, &["PUBACK 3"])] {
        let refused_publish = if drop { RefusedPublish::Drop } else { RefusedPublish::Close };
        let settings = Settings { refused_publish, ..Settings::default() };
        let mut w = World::new(settings, crate::session::Fanout::AtOnce);
        let reader = w.join_subscribed(v5("r"), "$SYS/#", Q0);
        let client = w.join(v5("c"));
        w.publish(client, publish("$SYS/broker/uptime", "forged", Q1, 1));
        w.publish(client, publish("$SYS/broker", "forged", Q2, 2));
        w.publish(client, publish("$SYS/broker/uptime", "forged", Q0, 0));
        w.expect(client, &["PUBACK 1 87", "PUBREC 2 87"]);
        let old = w.join(v311("old", true));
        w.publish(old, publish("$SYS/broker/uptime", "forged", Q1, 3));
        w.expect(old, answers);
        // Others below `$SYS` are as rules say (here: none).
        w.publish(client, publish("$SYS/test", "x", Q0, 0));
        w.expect(reader, &["$SYS/test x q0"]);
    }
    let mut w = world();
    let mut connect = v5("c");
    connect.will = Some(Will {
        topic: "$SYS/broker/uptime".into(),
        payload: Bytes::new(),
        qos: Q0,
        retain: true,
        delay: 0,
        properties: crate::mqtt::packet::PublishProperties::default(),
    });
    let client = w.connect(connect);
    assert_eq!(w.take(client), ["CONNACK 87", "closed 87"]);
}

#[test]
fn rules_decide_who_reads_what_the_broker_says() {
    let mut w = world();
    w.rules(&["* all #", "ann sub $SYS/broker/clients/#"]);
    own(&mut w, &[("$SYS/broker/clients/total", "1"), ("$SYS/broker/uptime", "1 seconds")]);
    let ann = join_as(&mut w, v5("a"), "ann");
    w.subscribe(ann, "$SYS/#", Q0);
    w.subscribe(ann, "$SYS/broker/clients/#", Q0);
    w.expect(ann, &["SUBACK 1 87", "SUBACK 1 00", "$SYS/broker/clients/total 1 q0 retain"]);
    let bob = join_as(&mut w, v5("b"), "bob");
    w.subscribe(bob, "$SYS/broker/clients/#", Q0);
    w.expect(bob, &["SUBACK 1 87"]);
}

fn of_the_host(topic: &str) -> std::sync::Arc<Message> {
    std::sync::Arc::new(Message {
        topic: topic.into(),
        payload: Bytes::from_static(b"x"),
        qos: Qos::AtLeastOnce,
        retain: false,
        properties: PublishProperties::default(),
        publisher: None,
        received_ms: 0,
        expires_ms: None,
        encoded: Encoded::default(),
        place: None,
    })
}

#[test]
fn what_the_host_publishes_is_stored_as_a_clients_is_and_what_it_brings_is_not() {
    let mut w = world();
    w.join_subscribed(v5_kept("kept"), "a/#", Q1);
    let mut out = Decision::default();
    w.state.decide(Event::Publish(of_the_host("a/1")), w.now, &mut out);
    assert!(out.wait);
    let [Change::Message { queued, stored: None, .. }] = &out.changes[..] else {
        panic!("{:?}", out.changes)
    };
    assert_eq!(queued.len(), 1);
    out = Decision::default();
    let message = of_the_host("a/2");
    w.state.decide(Event::Message { message, stored: None }, w.now, &mut out);
    assert!(matches!(&out.changes[..], [Change::Enqueued { queued, .. }] if queued.len() == 1));
}
