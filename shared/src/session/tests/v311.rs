//! What MQTT 3.1.1 demands of a server, with clients of that version only: one test a promise, with the ids that it shows.

use super::world::*;
use crate::{
    mqtt::{
        Version,
        packet::{Connect, Disconnect, Packet, Publish, Reason, SubscriptionOptions, Will},
    },
    session::{Event, Fanout, Settings},
};

fn options(qos: crate::mqtt::Qos) -> SubscriptionOptions {
    SubscriptionOptions { qos, ..Default::default() }
}

/// A kept session with a subscription of QoS 2.
fn kept(w: &mut World, filter: &str) -> Client {
    w.join_subscribed(v311("r", false), filter, Q2)
}

// [MQTT311-3.1.2-4] [MQTT311-3.1.2-6] [MQTT311-3.1.3-2] [MQTT311-3.1.4-3] [MQTT311-3.2.2-1] [MQTT311-3.2.2-2]
// [MQTT311-3.2.2-3] [MQTT311-4.1.0-1] [MQTT311-4.1.0-2]
#[test]
fn a_kept_session_goes_on_and_a_clean_one_starts_and_ends_with_its_connection() {
    let mut w = world();
    let writer = w.join(v311("w", true));
    for (clean, connack, subscribed) in [
        (false, "CONNACK 00", false),
        (false, "CONNACK 00 present", true),
        (true, "CONNACK 00", false),
        (false, "CONNACK 00", false),
        (true, "CONNACK 00", false),
        (true, "CONNACK 00", false),
    ] {
        let client = w.connect(v311("c", clean));
        w.expect(client, &[connack]);
        w.publish(writer, publish("t", "x", Q0, 0));
        w.expect(client, if subscribed { &["t x q0"] } else { &[] });
        w.subscribe(client, "t", Q1);
        w.expect(client, &["SUBACK 1 01"]);
        w.pass(1_000);
        w.publish(writer, publish("t", "later", Q0, 0));
        w.expect(client, &["t later q0"]);
        w.cut(client);
    }
}

// [MQTT311-3.1.2-5] [MQTT311-3.1.4-4] [MQTT311-3.2.0-1] [MQTT311-4.5.0-1]
#[test]
fn what_matches_while_a_client_is_away_comes_after_its_connack() {
    for restart in [false, true] {
        let mut w = world();
        let reader = kept(&mut w, "t/+");
        w.cut(reader);
        let writer = w.join(v311("w", true));
        w.publish(writer, publish("t/1", "one", Q1, 1));
        w.publish(writer, publish("t/2", "two", Q2, 2));
        w.publish(writer, publish("other", "x", Q1, 3));
        w.expect(writer, &["PUBACK 1", "PUBREC 2", "PUBACK 3"]);
        if restart {
            w.restart();
        }
        let reader = w.connect(v311("r", false));
        w.expect(reader, &["CONNACK 00 present", "t/1 one q1 #1", "t/2 two q2 #2"]);
    }
}

// [MQTT311-3.1.2-7]
#[test]
fn retained_messages_outlive_the_session_that_left_them() {
    let mut w = world();
    let writer = w.join(v311("w", true));
    w.publish(writer, retained("t", "x"));
    w.packet(writer, Packet::Disconnect(Disconnect::new(Reason::SUCCESS)));
    assert_eq!(w.state.stats().sessions, 0);
    let reader = w.join(v311("r", true));
    w.subscribe(reader, "t", Q0);
    w.expect(reader, &["SUBACK 1 00", "t x q0 retain"]);
}

// [MQTT311-3.1.2-8] [MQTT311-3.1.2-10] [MQTT311-3.1.2-12] [MQTT311-3.1.2-16] [MQTT311-3.1.2-17] [MQTT311-3.14.4-3]
#[test]
fn a_will_comes_once_when_its_connection_ends_without_disconnect() {
    let mut w = world();
    let reader = w.join_subscribed(v311("r", true), "#", Q2);
    for clean in [true, false] {
        for retain in [true, false] {
            let will = Some(Will { retain, ..will("w", 0) });
            let connect = Connect { will, ..v311("c", clean) };
            let client = w.join(connect.clone());
            w.disconnect(client, Reason::SUCCESS, None);
            w.expect(reader, &[]);
            let client = w.join(connect.clone());
            w.cut(client);
            let lines = w.take(reader);
            assert!(lines.len() == 1 && lines[0].starts_with("w gone q1"), "{lines:?}");
            assert_eq!(w.state.stats().retained, usize::from(retain));
            let client = w.join(v311("c", clean));
            w.cut(client);
            w.expect(reader, &[]);
            let cleaner = w.join(v311("cleaner", true));
            w.publish(cleaner, retained("w", ""));
            w.take(reader);
        }
    }
}

// [MQTT311-3.1.2-24]
#[test]
fn one_and_a_half_keep_alives_of_silence_are_as_a_failed_network() {
    let mut w = world();
    let reader = w.join_subscribed(v311("r", true), "w", Q0);
    let client = w.join(Connect { keep_alive: 10, will: Some(will("w", 0)), ..v311("c", true) });
    w.pass(14);
    w.packet(client, Packet::PingReq);
    w.pass(14);
    w.expect(client, &["PINGRESP"]);
    w.pass(1);
    w.expect(client, &["closed 8d"]);
    w.expect(reader, &["w gone q0"]);
}

// [MQTT311-3.1.2-24]
#[test]
fn a_client_that_is_not_read_from_is_not_taken_for_silent() {
    let mut w = world();
    let reader = w.join_subscribed(v311("r", true), "w", Q0);
    let client = w.join(Connect { keep_alive: 10, will: Some(will("w", 0)), ..v311("c", true) });
    w.event(Event::Held { connection: client });
    w.pass(1000);
    w.expect(client, &[]);
    w.packet(client, Packet::PingReq);
    w.pass(14);
    w.expect(client, &["PINGRESP"]);
    w.pass(1);
    w.expect(client, &["closed 8d"]);
    w.expect(reader, &["w gone q0"]);
}

// [MQTT311-3.1.3-5] [MQTT311-3.1.3-6] [MQTT311-3.1.3-8] [MQTT311-3.1.3-9] [MQTT311-3.1.4-5] [MQTT311-3.2.2-4]
// [MQTT311-3.2.2-5]
#[test]
fn client_ids_are_taken_assigned_or_refused_and_who_is_refused_is_not_heard() {
    let mut w = world();
    let letters = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    for start in 0..letters.len() - 23 {
        w.join(v311(&letters[start..start + 23], true));
        w.join(v311(&letters[start..=start], false));
    }
    let sessions = w.state.stats().sessions;
    w.join(v311("", true));
    w.join(v311("", true));
    assert_eq!(w.state.stats().sessions, sessions + 2, "each has an id of its own");
    let reader = w.join_subscribed(v311("reader", true), "t", Q0);
    for connect in [v311("", false), v311(&"x".repeat(257), false), v311(&"x".repeat(257), true)] {
        let client = w.connect(connect);
        w.expect(client, &["CONNACK 85", "closed 85"]);
        w.publish(client, publish("t", "x", Q0, 0));
        w.packet(client, Packet::PingReq);
        w.expect(client, &[]);
    }
    w.expect(reader, &[]);
    let owner = w.connect_as(v311("owned", false), Some("ann"));
    w.expect(owner, &["CONNACK 00"]);
    let thief = w.connect_as(v311("owned", false), Some("bob"));
    w.expect(thief, &["CONNACK 87", "closed 87"]);
}

// [MQTT311-3.1.4-2]
#[test]
fn who_connects_again_ends_its_older_connection() {
    let mut w = world();
    let old = w.join(v311("c", false));
    let new = w.connect(v311("c", false));
    w.expect(old, &["closed 8e"]);
    w.packet(new, Packet::PingReq);
    w.expect(new, &["CONNACK 00 present", "PINGRESP"]);
}

// [MQTT311-2.3.1-5] [MQTT311-2.3.1-6] [MQTT311-3.3.4-1] [MQTT311-4.3.1-1] [MQTT311-4.3.2-2] [MQTT311-4.3.3-2]
#[test]
fn a_publisher_is_answered_by_its_qos_and_its_ids_are_new_when_they_were_done_with() {
    let mut w = world();
    let reader = w.join_subscribed(v311("r", true), "t", Q0);
    let client = w.join(v311("c", false));
    w.publish(client, publish("t", "0", Q0, 0));
    w.expect(client, &[]);
    w.expect(reader, &["t 0 q0"]);
    for (dup, payload) in [(false, "1"), (true, "2")] {
        w.publish(client, Publish { dup, ..publish("t", payload, Q1, 7) });
        w.expect(client, &["PUBACK 7"]);
        w.expect(reader, &[&format!("t {payload} q0")]);
    }
    for payload in ["3", "4"] {
        w.publish(client, publish("t", payload, Q2, 7));
        w.publish(client, Publish { dup: true, ..publish("t", payload, Q2, 7) });
        w.publish(client, publish("t", payload, Q2, 7));
        w.expect(client, &["PUBREC 7", "PUBREC 7", "PUBREC 7"]);
        w.expect(reader, &[&format!("t {payload} q0")]);
        w.ack(client, Packet::PubRel, 7);
        w.take(client);
        w.ack(client, Packet::PubRel, 7);
        assert!(w.take(client)[0].starts_with("PUBCOMP 7"));
    }
}

// [MQTT311-2.3.1-4] [MQTT311-3.3.1-3] [MQTT311-4.3.2-1] [MQTT311-4.3.3-1]
#[test]
fn a_message_keeps_its_own_id_until_its_receiver_is_done_with_it() {
    let mut w = world();
    let reader = w.join_subscribed(v311("r", true), "t", Q2);
    let writer = w.join(v311("w", true));
    for (number, qos) in [(1, Q1), (2, Q2), (3, Q1)] {
        let dup = number == 3;
        w.publish(writer, Publish { dup, ..publish("t", "x", qos, number) });
    }
    w.expect(reader, &["t x q1 #1", "t x q2 #2", "t x q1 #3"]);
    w.ack(reader, Packet::PubRec, 2);
    w.ack(reader, Packet::PubRec, 2);
    w.expect(reader, &["PUBREL 2", "PUBREL 2"]);
    w.ack(reader, Packet::PubAck, 1);
    w.ack(reader, Packet::PubComp, 2);
    for number in 4..=6 {
        w.publish(writer, publish("t", "x", Q1, number));
    }
    w.expect(reader, &["t x q1 #4", "t x q1 #5", "t x q1 #6"]);
}

// [MQTT311-2.3.1-3] [MQTT311-3.3.1-1] [MQTT311-4.4.0-1] [MQTT311-4.6.0-1] [MQTT311-4.6.0-4]
#[test]
fn what_is_not_acknowledged_comes_again_in_order_with_its_ids() {
    for restart in [false, true] {
        let mut w = world();
        let reader = kept(&mut w, "t");
        let writer = w.join(v311("w", true));
        for (number, qos) in [(1, Q2), (2, Q1), (3, Q2), (4, Q2)] {
            w.publish(writer, publish("t", &number.to_string(), qos, number));
        }
        w.take(reader);
        w.ack(reader, Packet::PubRec, 1);
        w.ack(reader, Packet::PubRec, 3);
        w.expect(reader, &["PUBREL 1", "PUBREL 3"]);
        if restart {
            w.restart();
        } else {
            w.cut(reader);
        }
        let reader = w.connect(v311("r", false));
        let mut lines = w.take(reader);
        assert_eq!(lines.remove(0), "CONNACK 00 present");
        let (releases, messages): (Vec<_>, Vec<_>) =
            lines.into_iter().partition(|line| line.starts_with("PUBREL"));
        assert_eq!(releases, ["PUBREL 1", "PUBREL 3"]);
        assert_eq!(messages, ["t 2 q1 #2 dup", "t 4 q2 #4 dup"]);
    }
}

// [MQTT311-4.6.0-2] [MQTT311-4.6.0-3] [MQTT311-4.6.0-5] [MQTT311-4.6.0-6]
#[test]
fn messages_and_answers_keep_their_order() {
    let mut w = world();
    let reader = w.join_subscribed(v311("r", true), "#", Q2);
    let writer = w.join(v311("w", true));
    let mut expected = Vec::new();
    for number in 1..=15_u16 {
        let (qos, answer) = if number % 2 == 0 { (Q1, "PUBACK") } else { (Q2, "PUBREC") };
        w.publish(writer, publish("t", &number.to_string(), qos, number));
        expected.push(format!("{answer} {number}"));
    }
    assert_eq!(w.take(writer), expected);
    let order: Vec<String> = (1..=15).map(|number| number.to_string()).collect();
    let got: Vec<String> =
        w.take(reader).iter().map(|line| line.split(' ').nth(1).unwrap().to_owned()).collect();
    assert_eq!(got, order);
}

// [MQTT311-3.3.1-5] [MQTT311-3.3.1-6] [MQTT311-3.3.1-7] [MQTT311-3.3.1-8] [MQTT311-3.3.1-9] [MQTT311-3.3.1-10]
// [MQTT311-3.3.1-11] [MQTT311-3.3.1-12]
#[test]
fn the_last_retained_message_of_a_topic_comes_to_new_subscriptions_marked_as_such() {
    let mut w = world();
    let there = w.join_subscribed(v311("there", true), "t", Q2);
    let writer = w.join(v311("w", true));
    let keep = |payload, qos| Publish { retain: true, ..publish("t", payload, qos, 1) };
    for (message, now, later) in [
        (keep("1", Q1), "t 1 q1", Some("t 1 q1")),
        (keep("2", Q0), "t 2 q0", Some("t 2 q0")),
        (publish("t", "3", Q1, 1), "t 3 q1", Some("t 2 q0")),
        (publish("t", "", Q1, 1), "t  q1", Some("t 2 q0")),
        (keep("", Q1), "t  q1", None),
        (keep("", Q1), "t  q1", None),
    ] {
        w.publish(writer, message);
        let line = w.take(there).remove(0);
        assert!(line.starts_with(now) && !line.contains("retain"), "{line}");
        let new = w.join(v311("new", true));
        w.subscribe(new, "t", Q2);
        let mut lines = w.take(new);
        assert_eq!(lines.remove(0), "SUBACK 1 02");
        assert_eq!(lines.len(), usize::from(later.is_some()), "{lines:?}");
        if let Some(later) = later {
            assert!(lines[0].starts_with(later) && lines[0].ends_with("retain"), "{lines:?}");
        }
    }
    assert_eq!(w.state.stats().retained, 0);
}

// [MQTT311-3.8.4-1] [MQTT311-3.8.4-2] [MQTT311-3.8.4-4] [MQTT311-3.8.4-5] [MQTT311-3.9.3-1] [MQTT311-3.9.3-2]
// [MQTT311-4.7.1-2] [MQTT311-4.7.1-3] [MQTT311-4.7.3-1]
#[test]
fn each_filter_of_a_subscribe_is_answered_in_its_place() {
    let limits = Settings { subscriptions: 4, ..Settings::default() };
    let filters = [
        ("a", options(Q0)),
        ("b#", options(Q0)),
        ("+/b", options(Q1)),
        ("#/c", options(Q1)),
        ("", options(Q1)),
        ("a+", options(Q1)),
        ("#", options(Q2)),
        ("a", options(Q2)),
        ("c/+/#", options(Q1)),
        ("one too many", options(Q1)),
    ];
    for version in [Version::V31, Version::V311] {
        let mut w = World::new(limits.clone(), Fanout::AtOnce);
        let client = w.join(Connect { version, ..v311("c", true) });
        w.subscribe_with(client, &filters, None);
        w.expect(client, &["SUBACK 1 00 80 01 80 80 80 02 02 01 80"]);
    }
}

// [MQTT311-3.8.4-3]
#[test]
fn a_subscription_is_replaced_and_its_retained_messages_come_again() {
    let mut w = world();
    let writer = w.join(v311("w", true));
    w.publish(writer, Publish { retain: true, ..publish("t", "x", Q1, 1) });
    w.take(writer);
    let client = w.join(v311("c", true));
    w.subscribe(client, "t", Q0);
    w.expect(client, &["SUBACK 1 00", "t x q0 retain"]);
    w.subscribe(client, "t", Q1);
    w.expect(client, &["SUBACK 1 01", "t x q1 #1 retain"]);
    w.publish(writer, publish("t", "y", Q2, 2));
    w.expect(client, &["t y q1 #2"]);
    assert_eq!(w.state.stats().subscriptions, 1);
}

// [MQTT311-3.3.5-1] [MQTT311-3.8.4-6]
#[test]
fn a_message_comes_with_the_lower_qos_of_its_own_and_the_highest_subscription() {
    let mut w = world();
    let client = w.join(v311("c", true));
    w.subscribe_with(
        client,
        &[("t/#", options(Q0)), ("t/+", options(Q2)), ("+/+", options(Q1))],
        None,
    );
    w.expect(client, &["SUBACK 1 00 02 01"]);
    let writer = w.join(v311("w", true));
    for (qos, line) in [(Q0, "t/x m q0"), (Q1, "t/x m q1 #1"), (Q2, "t/x m q2 #2")] {
        w.publish(writer, publish("t/x", "m", qos, 9));
        w.expect(client, &[line]);
    }
}

// [MQTT311-2.3.1-7] [MQTT311-3.10.4-1] [MQTT311-3.10.4-2] [MQTT311-3.10.4-3] [MQTT311-3.10.4-4] [MQTT311-3.10.4-5]
// [MQTT311-3.10.4-6]
#[test]
fn an_unsubscribed_filter_brings_nothing_new_and_what_was_begun_is_finished() {
    let mut w = world();
    let client = w.join(v311("c", false));
    w.subscribe_with(
        client,
        &[("t/+", options(Q2)), ("t/a", options(Q2)), ("u", options(Q2))],
        None,
    );
    w.take(client);
    let writer = w.join(v311("w", true));
    w.publish(writer, publish("t/b", "begun", Q2, 1));
    w.expect(client, &["t/b begun q2 #1"]);
    w.unsubscribe(client, &["t/b", "t/#", "T/+"]);
    w.expect(client, &["UNSUBACK 1"]);
    assert_eq!(w.state.stats().subscriptions, 3, "only the very same filter");
    w.unsubscribe(client, &["t/+", "u"]);
    w.expect(client, &["UNSUBACK 1"]);
    w.publish(writer, publish("t/b", "late", Q2, 2));
    w.publish(writer, publish("u", "late", Q2, 3));
    w.expect(client, &[]);
    w.cut(client);
    let client = w.connect(v311("c", false));
    w.expect(client, &["CONNACK 00 present", "t/b begun q2 #1 dup"]);
    w.ack(client, Packet::PubRec, 1);
    w.ack(client, Packet::PubComp, 1);
    w.expect(client, &["PUBREL 1"]);
}

// [MQTT311-4.7.2-1] [MQTT311-4.7.3-4]
// [MQTT311-3.3.2-3]
#[test]
fn topics_match_as_they_are_written() {
    let mut w = world();
    let filters = ["#", "+/x", "$a/x", "A/x", "a//x", "a/x/", " a/x", "é"];
    let client = w.join(v311("c", true));
    let writer = w.join(v311("w", true));
    for filter in filters {
        w.subscribe(client, filter, Q0);
        w.take(client);
        for topic in ["$a/x", "A/x", "a/x", "a//x", "a/x/", " a/x", "é", "e\u{301}"] {
            w.publish(writer, publish(topic, "", Q0, 0));
            let expected = match filter {
                "#" => !topic.starts_with('$'),
                "+/x" => ["A/x", "a/x", " a/x"].contains(&topic),
                exact => exact == topic,
            };
            assert_eq!(w.take(client).len(), usize::from(expected), "{filter} {topic}");
        }
        w.unsubscribe(client, &[filter]);
        w.take(client);
    }
}

// [MQTT311-3.12.4-1]
#[test]
fn a_ping_is_answered() {
    let mut w = world();
    let client = w.join(v311("c", true));
    w.packet(client, Packet::PingReq);
    w.expect(client, &["PINGRESP"]);
}
