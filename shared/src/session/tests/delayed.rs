//! `$delayed/{seconds}/{topic}`: neither early nor late, once, through restarts, and only for those who may.

use super::world::*;
use crate::{
    mqtt::packet::{Connect, Packet, Publish, Reason},
    session::{Fanout, Settings},
};

fn worlds() -> [World; 2] {
    [Fanout::AtOnce, Fanout::FromLog].map(|fanout| World::new(Settings::default(), fanout))
}

#[test]
fn a_delayed_message_comes_to_its_topic_when_it_is_due_and_is_not_in_the_log_before() {
    for mut w in worlds() {
        for restart in [false, true] {
            let mut reader = w.join_subscribed(v5_kept("r"), "t/#", Q2);
            let all = w.join_subscribed(v5("all"), "#", Q0);
            let writer = w.join(v5("w"));
            let before = w.store.log.len();
            w.publish(writer, publish("$delayed/10/t/a", "x", Q1, 1));
            w.expect(writer, &["PUBACK 1"]);
            w.pass(9);
            if restart {
                w.restart();
                reader = w.join(v5_kept("r"));
            }
            assert!(w.take(reader).is_empty() && w.take(all).is_empty(), "not early");
            assert_eq!((w.store.log.len(), w.store.delayed.len()), (before, 1));
            w.pass(1);
            w.expect(reader, &["t/a x q1 #1"]);
            assert_eq!((w.store.log.len(), w.store.delayed.len()), (before + 1, 0));
            assert_eq!(w.store.log[before].received_ms, w.now.wall_ms);
            w.restart();
            w.pass(100);
            assert_eq!(w.store.log.len(), before + 1, "once");
            let reader = w.join(Connect { session_expiry: None, ..v5("r") });
            w.disconnect(reader, Reason::SUCCESS, None);
        }
    }
}

#[test]
fn the_store_has_a_delayed_message_before_its_publisher_is_told() {
    for (qos, packet_id) in [(Q1, 1), (Q2, 2)] {
        let mut w = world();
        let writer = w.join(v5("w"));
        w.publish(writer, publish("$delayed/10/t", "x", qos, packet_id));
        assert!(w.waited, "the acknowledgement waits");
        assert_eq!(w.store.delayed.len(), 1);
    }
}

// MQTT-4.3.3-10
#[test]
fn a_delayed_message_of_qos_2_that_is_sent_again_comes_once() {
    let mut w = world();
    let reader = w.join_subscribed(v5("r"), "t", Q2);
    let writer = w.join(v5_kept("w"));
    w.publish(writer, publish("$delayed/1/t", "x", Q2, 1));
    w.restart();
    let writer = w.join(v5_kept("w"));
    w.publish(writer, Publish { dup: true, ..publish("$delayed/1/t", "x", Q2, 1) });
    w.ack(writer, Packet::PubRel, 1);
    w.expect(writer, &["PUBREC 1", "PUBCOMP 1"]);
    w.pass(5);
    assert_eq!((w.store.log.len(), w.take(reader).len()), (1, 0));
}

#[test]
fn delayed_messages_of_one_time_come_in_their_order_and_shorter_delays_first() {
    let mut w = world();
    let reader = w.join_subscribed(v5("r"), "t", Q0);
    let writer = w.join(v5("w"));
    for (seconds, payload) in [(3, "c"), (2, "a"), (2, "b"), (0, "now")] {
        w.publish(writer, publish(&format!("$delayed/{seconds}/t"), payload, Q0, 0));
    }
    w.expect(reader, &["t now q0"]);
    w.pass(10);
    w.expect(reader, &["t a q0", "t b q0", "t c q0"]);
}

#[test]
fn a_delayed_message_is_retained_when_it_is_due() {
    for mut w in worlds() {
        let writer = w.join(v5("w"));
        w.publish(writer, retained("$delayed/10/t", "x"));
        w.pass(9);
        assert!(w.store.retained.is_empty());
        w.pass(1);
        assert_eq!(w.store.retained["t"].0.payload, "x");
    }
}

// MQTT-3.3.2-5, MQTT-3.3.2-6
#[test]
fn the_delay_counts_for_the_expiry() {
    for mut w in worlds() {
        let reader = w.join_subscribed(v5("r"), "t", Q0);
        for kept in ["k", "late"] {
            let kept = w.join_subscribed(v5_kept(kept), "t", Q1);
            w.cut(kept);
        }
        let writer = w.join(v5("w"));
        for seconds in [10, 30] {
            w.publish(writer, expiring(publish("$delayed/20/t", "x", Q1, 1), seconds));
        }
        w.pass(20);
        w.expect(reader, &["t x q0 expiry=10"]);
        assert_eq!(w.dropped, ["expired"]);
        // From a queue, too.
        w.restart();
        w.pass(4);
        let kept = w.join(v5_kept("k"));
        w.expect(kept, &["t x q1 #1 expiry=6"]);
        w.pass(6);
        let late = w.join(v5_kept("late"));
        w.expect(late, &[]);
        assert_eq!(w.dropped, ["expired"; 2]);
    }
}

#[test]
fn a_topic_that_is_no_delayed_one_is_refused_as_a_bad_name() {
    let mut w = world();
    let client = w.join(v5("c"));
    for topic in ["$delayed/x/t", "$delayed/5", "$delayed/5/$delayed/5/t"] {
        w.publish(client, publish(topic, "x", Q1, 1));
        w.expect(client, &["PUBACK 1 90"]);
    }
    w.publish(client, publish("$delayed/x/t", "x", Q0, 0));
    assert!(w.take(client).is_empty());
    let old = w.join(v311("o", true));
    w.publish(old, publish("$delayed/x/t", "x", Q1, 1));
    w.expect(old, &["closed 90"]);
    assert!(w.store.log.is_empty() && w.store.delayed.is_empty());
}

#[test]
fn delays_have_bounds_in_time_number_and_bytes() {
    for (settings, topics) in [
        (Settings { delayed_s: 5, ..Settings::default() }, ["$delayed/5/t", "$delayed/6/t"]),
        (
            Settings { delayed_s: 5, ..Settings::default() },
            ["$delayed/5/t", "$delayed/99999999999/t"],
        ),
        (Settings { delayed_messages: 1, ..Settings::default() }, ["$delayed/1/t"; 2]),
        (Settings { delayed_bytes: 300, ..Settings::default() }, ["$delayed/1/t"; 2]),
    ] {
        let mut w = World::new(settings, Fanout::AtOnce);
        let client = w.join(v5("c"));
        for topic in topics {
            w.publish(client, publish(topic, "x", Q1, 1));
        }
        w.expect(client, &["PUBACK 1", "PUBACK 1 97"]);
        let old = w.join(v311("o", true));
        w.publish(old, publish(topics[1], "x", Q1, 1));
        w.expect(old, &["closed 97"]);
        w.pass(10);
        w.publish(client, publish("$delayed/1/t", "x", Q1, 2));
        w.expect(client, &["PUBACK 2"]);
    }
}

#[test]
fn the_right_to_publish_is_asked_for_at_once_and_again_when_it_is_due() {
    let mut w = world();
    w.rules(&["* pub t", "anonymous sub #"]);
    let reader = w.join_subscribed(v5("r"), "#", Q0);
    let writer = w.connect_as(v5("w"), Some("ann"));
    w.publish(writer, publish("$delayed/5/secret", "x", Q1, 1));
    w.publish(writer, publish("$delayed/5/$SYS/broker/x", "x", Q1, 2));
    w.publish(writer, publish("$delayed/5/t", "in time", Q1, 3));
    w.expect(writer, &["CONNACK 00", "PUBACK 1 87", "PUBACK 2 87", "PUBACK 3"]);
    w.cut(writer);
    w.pass(5);
    w.expect(reader, &["t in time q0"]);
    let writer = w.connect_as(v5("w"), Some("ann"));
    w.publish(writer, publish("$delayed/5/t", "too late", Q1, 1));
    w.restart();
    w.rules(&["anonymous sub #"]);
    w.pass(10);
    assert_eq!((w.store.log.len(), w.state.stats().denied.delayed), (1, 1));
    assert!(w.store.delayed.is_empty());
}

#[test]
fn a_clock_that_went_back_adds_no_more_than_the_longest_delay() {
    let mut w = World::new(Settings { delayed_s: 60, ..Settings::default() }, Fanout::AtOnce);
    let writer = w.join(v5("w"));
    w.publish(writer, publish("$delayed/10/t", "x", Q1, 1));
    w.now.lasting_ms -= 1_000_000_000;
    w.restart();
    w.pass(60);
    assert_eq!(w.store.log.len(), 1);
}

// MQTT-3.1.2-8
#[test]
fn a_will_may_be_delayed_so_too() {
    let mut w = world();
    let reader = w.join_subscribed(v5_kept("r"), "t", Q0);
    let client = w.join(Connect { will: Some(will("$delayed/10/t", 0)), ..v5("c") });
    w.cut(client);
    w.pass(9);
    assert!(w.take(reader).is_empty());
    w.pass(1);
    w.expect(reader, &["t gone q0"]);
    let client = w.connect(Connect { will: Some(will("$delayed/x/t", 0)), ..v5("c") });
    w.expect(client, &["CONNACK 90", "closed 90"]);
}
