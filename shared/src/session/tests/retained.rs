//! Retained messages.

use std::collections::BTreeSet;

use super::world::*;
use crate::{
    mqtt::packet::{Packet, Publish, SubscriptionOptions},
    session::{Fanout, Settings},
};

// [MQTT-3.3.1-5] [MQTT-3.3.1-6] [MQTT-3.3.1-8]
#[test]
fn a_new_subscription_gets_the_last_retained_message_of_each_topic() {
    for restart in [false, true] {
        let mut w = world();
        let writer = w.join(v5("w"));
        for (topic, payload) in [
            ("a", "1"),
            ("a", "2"),
            ("a/b", "3"),
            ("ab", "4"),
            ("$x", "5"),
            ("a/c", "6"),
            ("a/c", ""),
        ] {
            w.publish(writer, retained(topic, payload));
        }
        w.publish(writer, publish("a/d", "not retained", Q0, 0));
        if restart {
            w.restart();
        }
        for (filter, lines) in [
            ("a/#", &["a 2 q0 retain", "a/b 3 q0 retain"][..]),
            ("#", &["a 2 q0 retain", "a/b 3 q0 retain", "ab 4 q0 retain"]),
            ("+", &["a 2 q0 retain", "ab 4 q0 retain"]),
            ("a/b", &["a/b 3 q0 retain"]),
            ("$x/#", &["$x 5 q0 retain"]),
            ("c", &[]),
        ] {
            let reader = w.join(v311("r", true));
            w.subscribe(reader, filter, Q1);
            let got = w.take(reader);
            assert_eq!(got[0], "SUBACK 1 01");
            assert_eq!(&got[1..], lines, "{filter}");
        }
    }
}

// [MQTT-3.8.3-3]
#[test]
fn no_local_keeps_a_clients_own_retained_messages_from_it() {
    for restart in [false, true] {
        let mut w = world();
        let (one, other) = (w.join(v5("one")), w.join(v5("other")));
        w.publish(one, retained("t/1", "mine"));
        w.publish(other, retained("t/2", "theirs"));
        if restart {
            w.restart();
        }
        for (no_local, lines) in [
            (true, &["t/2 theirs q0 retain"][..]),
            (false, &["t/1 mine q0 retain", "t/2 theirs q0 retain"]),
        ] {
            let one = w.join(v5("one"));
            let options = SubscriptionOptions { no_local, ..Default::default() };
            w.subscribe_with(one, &[("t/#", options)], None);
            assert_eq!(&w.take(one)[1..], lines, "restart: {restart}");
        }
    }
}

// [MQTT-3.3.1-9] [MQTT-3.3.1-10] [MQTT-3.3.1-11]
#[test]
fn retain_handling_says_when_retained_messages_are_sent() {
    for (handling, first, second) in [(0, 1, 1), (1, 1, 0), (2, 0, 0)] {
        let mut w = world();
        let client = w.join(v5("c"));
        w.publish(client, retained("t", "x"));
        for expected in [first, second] {
            let options = SubscriptionOptions { retain_handling: handling, ..Default::default() };
            w.subscribe_with(client, &[("t", options)], None);
            assert_eq!(w.take(client).len(), 1 + expected, "{handling}");
        }
    }
}

// [MQTT-3.8.4-5]
// [MQTT311-3.8.4-4]
#[test]
fn a_filter_twice_in_one_packet_is_as_good_as_two_packets() {
    let mut w = world();
    let client = w.join(v5("c"));
    w.publish(client, Publish { retain: true, ..publish("t", "x", Q1, 1) });
    w.expect(client, &["PUBACK 1"]);
    let options =
        |qos, retain_handling| SubscriptionOptions { qos, retain_handling, ..Default::default() };
    w.subscribe_with(
        client,
        &[("t", options(Q1, 1)), ("t", options(Q0, 0)), ("t", options(Q0, 1))],
        None,
    );
    w.expect(client, &["SUBACK 1 01 00 00", "t x q1 #1 retain", "t x q0 retain"]);
}

// [MQTT-3.3.1-6] [MQTT-3.3.1-7] [MQTT-3.3.1-12] [MQTT-3.3.1-13]
#[test]
fn the_retain_flag_goes_on_only_as_published_is_asked_for() {
    let mut w = world();
    let (plain, kept) = (w.join(v5("plain")), w.join(v5("kept")));
    let as_published = SubscriptionOptions { retain_as_published: true, ..Default::default() };
    w.subscribe_with(plain, &[("t", SubscriptionOptions::default())], None);
    w.subscribe_with(kept, &[("t", as_published)], None);
    w.take(plain);
    w.take(kept);
    let writer = w.join(v5("w"));
    w.publish(writer, retained("t", "x"));
    w.publish(writer, publish("t", "y", Q0, 0));
    w.publish(writer, retained("t", ""));
    w.expect(plain, &["t x q0", "t y q0", "t  q0"]);
    w.expect(kept, &["t x q0 retain", "t y q0", "t  q0 retain"]);
    assert!(w.store.retained.is_empty());
}

#[test]
fn many_retained_messages_come_in_bounded_steps_and_within_the_queue() {
    let small = Settings { inflight_messages: 5, queue_messages: 10, ..Settings::default() };
    for (qos, kept) in [(Q0, false), (Q1, false), (Q1, true)] {
        let mut w = World::new(small.clone(), Fanout::AtOnce);
        let writer = w.join(v5("w"));
        for number in 0..500 {
            let retained =
                Publish { retain: true, ..publish(&format!("t/{number:03}"), "x", Q1, 1) };
            w.publish(writer, retained);
        }
        let reader = w.join(if kept { v5_kept("r") } else { v5("r") });
        w.subscribe(reader, "t/+", qos);
        let first = w.take(reader);
        assert!(first.len() <= 65, "{} at once", first.len());
        let mut topics = Vec::new();
        let mut lines = first[1..].to_vec();
        while !lines.is_empty() {
            for line in lines {
                topics.push(line[..5].to_owned());
                if let Some((_, id)) = line.split_once('#') {
                    let id = id.split(' ').next().unwrap().parse().unwrap();
                    w.ack(reader, Packet::PubAck, id);
                }
            }
            w.pass(1);
            lines = w.take(reader);
        }
        let expected: Vec<String> = (0..500).map(|number| format!("t/{number:03}")).collect();
        assert_eq!(topics, expected);
        assert!(w.dropped.is_empty() && w.store.queue.is_empty());
    }
}

#[test]
fn what_is_published_during_a_replay_comes_once() {
    let mut w = world();
    let writer = w.join(v5("w"));
    for number in 0..200 {
        w.publish(writer, retained(&format!("t/{number:03}"), "old"));
    }
    let reader = w.join(v5("r"));
    w.subscribe(reader, "t/+", Q0);
    w.publish(writer, retained("t/199", "new"));
    w.pass(1);
    let last: Vec<String> =
        w.take(reader).into_iter().filter(|line| line.starts_with("t/199")).collect();
    assert_eq!(last, ["t/199 new q0"]);
}

#[test]
fn retained_messages_are_limited_and_the_publisher_is_told() {
    let small = Settings { retained_messages: 2, retained_bytes: 20, ..Settings::default() };
    let mut w = World::new(small, Fanout::AtOnce);
    let writer = w.join(v5("w"));
    let retained = |topic, payload, id| Publish { retain: true, ..publish(topic, payload, Q1, id) };
    w.publish(writer, retained("a", "x", 1));
    w.publish(writer, retained("b", "x", 2));
    w.publish(writer, retained("c", "x", 3));
    w.publish(writer, retained("a", "a longer payload", 4));
    w.publish(writer, retained("a", "even longer payload", 5));
    w.publish(writer, retained("b", "", 6));
    w.publish(writer, retained("c", "x", 7));
    w.expect(
        writer,
        &["PUBACK 1", "PUBACK 2", "PUBACK 3 97", "PUBACK 4", "PUBACK 5 97", "PUBACK 6", "PUBACK 7"],
    );
    assert_eq!(w.state.stats().retained, w.store.retained.len());
}

// [MQTT-3.3.2-5]
#[test]
fn an_expired_retained_message_is_not_sent_and_goes() {
    let mut w = world();
    let client = w.join(v5("c"));
    w.publish(client, expiring(retained("t", "x"), 5));
    w.pass(2);
    w.subscribe(client, "t", Q0);
    w.expect(client, &["SUBACK 1 00", "t x q0 retain expiry=3"]);
    w.pass(4);
    w.subscribe(client, "t", Q0);
    w.expect(client, &["SUBACK 1 00"]);
    w.publish(client, expiring(retained("t", "x"), 5));
    w.pass(30);
    assert_eq!((w.state.stats().retained, w.store.retained.len()), (0, 0));
}

/// The retained messages for a new subscription come whole, though the broker was killed while they were on their way; and
/// those that came by the subscription itself do not come again.
// MQTT-3.3.1-9
#[test]
fn a_restart_does_not_end_the_replay_of_retained_messages() {
    let small = Settings { inflight_messages: 2, queue_messages: 10, ..Settings::default() };
    let mut w = World::new(small, Fanout::AtOnce);
    let writer = w.join(v5_kept("w"));
    for number in 0..300 {
        w.publish(
            writer,
            Publish { retain: true, ..publish(&format!("t/{number:03}"), "x", Q1, 1) },
        );
    }
    let mut reader = w.join(v5_kept("r"));
    w.subscribe(reader, "t/#", Q1);
    w.now.wall_ms += 1;
    w.publish(writer, Publish { retain: true, ..publish("t/290", "later", Q1, 1) });
    w.publish(writer, Publish { retain: true, ..publish("t/400", "later", Q1, 1) });
    let (mut got, mut new) = (BTreeSet::new(), Vec::new());
    for round in 0..2_000 {
        for line in w.take(reader) {
            let Some((before, id)) = line.split_once(" q1 #") else { continue };
            let id = id.split(' ').next().unwrap().parse().unwrap();
            w.ack(reader, Packet::PubAck, id);
            got.insert(before.to_owned());
            if !line.contains(" dup") {
                new.push(before.to_owned());
            }
        }
        if round % 40 == 20 {
            w.restart();
            reader = w.connect(v5_kept("r"));
        }
        w.pass(1);
    }
    assert_eq!(got.len(), 301, "299 from before, 2 from after");
    let sent = new.len();
    new.sort();
    new.dedup();
    assert_eq!(new.len(), sent, "nothing is sent as new twice");
    assert!(w.store.queue.is_empty());
    assert!(w.store.subscriptions.values().all(|one| one.replay.is_none()));
}
