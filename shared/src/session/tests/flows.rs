//! QoS 0, 1 and 2 both ways: acknowledgements, windows, queues, redelivery, expiry.

use super::world::*;
use crate::{
    mqtt::packet::{Ack, Connect, Packet, Publish, PublishProperties, Reason},
    session::{Change, ConnectionId, Decision, Event, Fanout, Settings, event::Peer},
};

fn limited(settings: Settings) -> World {
    World::new(settings, Fanout::AtOnce)
}

// [MQTT-3.8.4-8] [MQTT-4.3.1-1] [MQTT-4.3.2-2] [MQTT-4.3.3-2]
#[test]
fn a_message_arrives_with_the_lower_of_both_qos() {
    for (published, line) in [(Q0, ["q0"; 3]), (Q1, ["q0", "q1", "q1"]), (Q2, ["q0", "q1", "q2"])] {
        let mut w = world();
        let readers = [Q0, Q1, Q2].map(|qos| w.join_subscribed(v5(&format!("{qos:?}")), "t", qos));
        let writer = w.join(v311("w", true));
        w.publish(writer, publish("t", "x", published, 7));
        for (reader, qos) in readers.into_iter().zip(line) {
            let id = if qos == "q0" { "" } else { " #1" };
            w.expect(reader, &[&format!("t x {qos}{id}")]);
        }
    }
}

// [MQTT-2.2.1-5] [MQTT-3.3.4-1] [MQTT-3.7.2-1] [MQTT-4.3.2-4] [MQTT-4.3.3-8] [MQTT-4.3.3-9]
// [MQTT-4.3.3-11] [MQTT-4.3.3-12]
#[test]
fn a_publisher_is_answered_as_its_qos_says() {
    let mut w = world();
    let client = w.join(v5("c"));
    w.publish(client, publish("t", "x", Q0, 0));
    w.expect(client, &[]);
    w.publish(client, publish("t", "x", Q1, 7));
    w.expect(client, &["PUBACK 7"]);
    w.publish(client, publish("t", "x", Q2, 7));
    w.expect(client, &["PUBREC 7"]);
    w.ack(client, Packet::PubRel, 7);
    w.expect(client, &["PUBCOMP 7"]);
    w.ack(client, Packet::PubRel, 7);
    w.expect(client, &["PUBCOMP 7 92"]);
}

// [MQTT-4.3.2-4] [MQTT-4.3.3-8]
#[test]
fn what_is_acknowledged_waits_for_what_is_stored() {
    let mut w = world();
    for (connect, wait) in [(v5_kept("kept"), true), (v5("clean"), false)] {
        let mut out = Decision::default();
        let peer = Peer { principal: None, address: None, proof: None };
        let connect =
            Event::Connect { connection: ConnectionId(99), connect: Box::new(connect), peer };
        w.state.decide(connect, w.now, &mut out);
        assert_eq!(out.wait, wait);
    }
    let client = w.join(v5_kept("c"));
    let waits = |w: &mut World, packet| {
        let mut out = Decision::default();
        w.state.decide(Event::Packet { connection: client, packet }, w.now, &mut out);
        (out.wait, out.changes.len())
    };
    let publish = |qos, id| Packet::Publish(publish("t", "x", qos, id));
    assert_eq!(waits(&mut w, publish(Q0, 0)), (false, 1));
    assert_eq!(waits(&mut w, publish(Q1, 1)), (true, 1));
    assert_eq!(waits(&mut w, publish(Q2, 1)), (true, 2));
    assert_eq!(waits(&mut w, publish(Q2, 1)), (true, 0), "a repeat waits for the first");
    assert_eq!(waits(&mut w, Packet::PubRel(Ack::new(id(1), Reason::SUCCESS))), (true, 1));
}

// [MQTT-4.3.3-10] [MQTT-4.3.3-12]
#[test]
fn a_qos_2_message_is_taken_once_until_its_id_is_released_even_over_a_restart() {
    let mut w = world();
    let again = || Publish { dup: true, ..publish("t", "x", Q2, 7) };
    let mut client = w.join(v5_kept("c"));
    w.publish(client, publish("t", "x", Q2, 7));
    w.publish(client, again());
    w.expect(client, &["PUBREC 7", "PUBREC 7"]);
    w.restart();
    client = w.join(v5_kept("c"));
    w.publish(client, again());
    w.expect(client, &["PUBREC 7"]);
    assert_eq!(w.store.log.len(), 1);
    w.ack(client, Packet::PubRel, 7);
    w.publish(client, publish("t", "y", Q2, 7));
    w.expect(client, &["PUBCOMP 7", "PUBREC 7"]);
    assert_eq!(w.store.log.len(), 2);
}

// [MQTT-3.3.4-7]
#[test]
fn a_session_keeps_a_bounded_number_of_unreleased_ids() {
    let mut w = world();
    let client = w.join(v5("c"));
    for id in 1..=1_025 {
        w.publish(client, publish("t", "x", Q2, id));
    }
    assert_eq!(w.take(client)[1_023..], ["PUBREC 1024", "DISCONNECT 93", "closed 93"]);
}

/// Our Receive Maximum may have been larger when they were received.
#[test]
fn ids_that_an_earlier_connection_left_do_not_count_against_the_next() {
    let mut w = world();
    let client = w.join(v5_kept("c"));
    for id in 1..=3 {
        w.publish(client, publish("t", "x", Q2, id));
    }
    w.settings.receive_maximum = 1;
    w.restart();
    let client = w.join(v5_kept("c"));
    w.publish(client, publish("t", "x", Q2, 4));
    w.expect(client, &["PUBREC 4"]);
}

// [MQTT-3.3.4-8] [MQTT-3.3.4-9] [MQTT-3.3.4-10] [MQTT-4.3.2-3] [MQTT-4.9.0-1] [MQTT-4.9.0-2]
// [MQTT-4.9.0-3]
#[test]
fn no_more_is_sent_than_the_client_takes_and_the_rest_follows_in_order() {
    let mut w = world();
    let reader = w.join_subscribed(Connect { receive_maximum: Some(2), ..v5("r") }, "t", Q2);
    let writer = w.join(v5("w"));
    for (number, qos) in [(1, Q1), (2, Q2), (3, Q1), (4, Q1)] {
        w.publish(writer, publish("t", &number.to_string(), qos, number));
    }
    w.publish(writer, publish("t", "0", Q0, 0));
    w.expect(reader, &["t 1 q1 #1", "t 2 q2 #2", "t 0 q0"]);
    w.ack(reader, Packet::PubRec, 2);
    w.expect(reader, &["PUBREL 2"]);
    w.ack(reader, Packet::PubAck, 1);
    w.expect(reader, &["t 3 q1 #3"]);
    w.ack(reader, Packet::PubComp, 2);
    w.expect(reader, &["t 4 q1 #4"]);
}

// [MQTT-3.5.2-1] [MQTT-3.6.2-1] [MQTT-4.3.3-4]
#[test]
fn an_error_in_pubrec_ends_the_flow_and_an_unknown_id_is_said_to_be_unknown() {
    let mut w = world();
    let reader = w.join_subscribed(Connect { receive_maximum: Some(1), ..v5("r") }, "t", Q2);
    let writer = w.join(v5("w"));
    w.publish(writer, publish("t", "1", Q2, 1));
    w.publish(writer, publish("t", "2", Q2, 2));
    w.expect(reader, &["t 1 q2 #1"]);
    w.packet(reader, Packet::PubRec(Ack::new(id(1), Reason::QUOTA_EXCEEDED)));
    w.expect(reader, &["t 2 q2 #2"]);
    w.ack(reader, Packet::PubRec, 9);
    w.expect(reader, &["PUBREL 9 92"]);
    w.ack(reader, Packet::PubComp, 9);
    w.ack(reader, Packet::PubAck, 2);
    w.expect(reader, &[]);
}

// [MQTT-2.2.1-4] [MQTT-3.1.2-5] [MQTT-3.2.0-1] [MQTT-3.3.1-1] [MQTT-4.3.2-3] [MQTT-4.3.3-3]
// [MQTT-4.3.3-4] [MQTT-4.3.3-5] [MQTT-4.3.3-6] [MQTT-4.4.0-1] [MQTT-4.6.0-1]
#[test]
fn what_was_not_acknowledged_is_sent_again_in_order_with_its_ids() {
    for restart in [false, true] {
        let mut w = world();
        let reader = w.join_subscribed(v5_kept("r"), "t", Q2);
        let writer = w.join(v5("w"));
        for (number, qos) in [(1, Q1), (2, Q2), (3, Q2), (4, Q1)] {
            w.publish(writer, publish("t", &number.to_string(), qos, number));
        }
        assert_eq!(w.take(reader).len(), 4);
        w.ack(reader, Packet::PubRec, 2);
        w.expect(reader, &["PUBREL 2"]);
        w.ack(reader, Packet::PubAck, 1);
        if restart {
            w.restart();
        } else {
            w.cut(reader);
        }
        let writer = w.join(v5("w"));
        w.publish(writer, publish("t", "5", Q1, 5));
        let reader = w.connect(v5_kept("r"));
        w.expect(
            reader,
            &["CONNACK 00 present", "PUBREL 2", "t 3 q2 #3 dup", "t 4 q1 #4 dup", "t 5 q1 #5"],
        );
        w.ack(reader, Packet::PubComp, 2);
        w.ack(reader, Packet::PubRec, 3);
        w.ack(reader, Packet::PubComp, 3);
        w.ack(reader, Packet::PubAck, 4);
        w.ack(reader, Packet::PubAck, 5);
        w.expect(reader, &["PUBREL 3"]);
        assert!(w.store.queue.is_empty());
    }
}

// [MQTT-3.3.4-9]
#[test]
fn a_smaller_window_on_reconnect_is_kept_for_redeliveries_too() {
    let mut w = world();
    let reader = w.join_subscribed(v5_kept("r"), "t", Q1);
    let writer = w.join(v5("w"));
    for number in 1..=3 {
        w.publish(writer, publish("t", &number.to_string(), Q1, number));
    }
    w.cut(reader);
    let reader = w.connect(Connect { receive_maximum: Some(1), ..v5_kept("r") });
    w.expect(reader, &["CONNACK 00 present", "t 1 q1 #1 dup"]);
    w.ack(reader, Packet::PubAck, 1);
    w.expect(reader, &["t 2 q1 #2 dup"]);
    w.ack(reader, Packet::PubAck, 3);
    w.expect(reader, &[]);
    w.ack(reader, Packet::PubAck, 2);
    w.expect(reader, &["t 3 q1 #3 dup"]);
}

#[test]
fn memory_stays_bounded_while_a_kept_session_loses_nothing() {
    let small = Settings { inflight_messages: 2, queue_messages: 3, ..Settings::default() };
    let mut w = limited(small);
    let reader = w.join_subscribed(v5_kept("r"), "t", Q1);
    let writer = w.join(v5("w"));
    for number in 1..=50 {
        w.publish(writer, publish("t", &number.to_string(), Q1, 1));
    }
    let mut got = Vec::new();
    loop {
        let lines = w.take(reader);
        if lines.is_empty() {
            break;
        }
        for line in lines {
            let mut words = line.split(' ').skip(1);
            got.push(words.next().unwrap().parse::<u32>().unwrap());
            let id = words.nth(1).unwrap().trim_start_matches('#').parse().unwrap();
            w.ack(reader, Packet::PubAck, id);
        }
    }
    assert_eq!(got, (1..=50).collect::<Vec<_>>());
    assert!(w.store.queue.is_empty());
    assert!(w.dropped.is_empty());
}

#[test]
fn a_full_queue_of_a_clean_session_drops_and_counts() {
    let small = Settings { inflight_messages: 1, queue_messages: 2, ..Settings::default() };
    let mut w = limited(small);
    let reader = w.join_subscribed(v5("r"), "t", Q1);
    let writer = w.join(v5("w"));
    for number in 1..=5 {
        w.publish(writer, publish("t", &number.to_string(), Q1, 1));
    }
    assert_eq!(w.dropped, ["queue_full"; 2]);
    for id in 1..=3 {
        w.ack(reader, Packet::PubAck, id);
    }
    w.expect(reader, &["t 1 q1 #1", "t 2 q1 #2", "t 3 q1 #3"]);
}

#[test]
fn a_full_disk_queue_drops_and_counts() {
    let mut w = limited(Settings { queue_stored_messages: 2, ..Settings::default() });
    let reader = w.join_subscribed(v5_kept("r"), "t", Q1);
    w.cut(reader);
    let writer = w.join(v5("w"));
    for number in 1..=4 {
        w.publish(writer, publish("t", &number.to_string(), Q1, 1));
    }
    assert_eq!((w.store.queue.len(), w.dropped.len()), (2, 2));
    let reader = w.connect(v5_kept("r"));
    w.expect(reader, &["CONNACK 00 present", "t 1 q1 #1", "t 2 q1 #2"]);
}

#[test]
fn what_the_host_dropped_from_a_queue_makes_room_in_it() {
    let mut w = limited(Settings { queue_stored_messages: 2, ..Settings::default() });
    let reader = w.join_subscribed(v5_kept("r"), "t", Q1);
    w.cut(reader);
    let writer = w.join(v5("w"));
    w.publish(writer, publish("t", "1", Q1, 1));
    w.publish(writer, publish("t", "2", Q1, 1));
    let (session, _) = *w.store.queue.first_key_value().expect("an entry").0;
    w.store.queue.remove(&(session, 1));
    w.event(Event::Trimmed { session, messages: 1, bytes: 2 });
    w.publish(writer, publish("t", "3", Q1, 1));
    let reader = w.connect(v5_kept("r"));
    w.expect(reader, &["CONNACK 00 present", "t 2 q1 #1", "t 3 q1 #2"]);
}

// [MQTT-3.3.2-5] [MQTT-3.3.2-6]
#[test]
fn a_message_that_expires_while_it_waits_is_not_sent_and_one_that_does_not_says_what_is_left() {
    let mut w = world();
    let reader = w.join_subscribed(v5_kept("r"), "t", Q1);
    w.cut(reader);
    let writer = w.join(v5("w"));
    w.publish(writer, expiring(publish("t", "short", Q1, 1), 5));
    w.publish(writer, expiring(publish("t", "long", Q1, 2), 60));
    w.pass(10);
    let reader = w.connect(v5_kept("r"));
    w.expect(reader, &["CONNACK 00 present", "t long q1 #1 expiry=50"]);
    assert_eq!((w.dropped.as_slice(), w.store.queue.len()), (["expired"].as_slice(), 1));
    w.pass(100);
    w.cut(reader);
    let reader = w.connect(v5_kept("r"));
    w.expect(reader, &["CONNACK 00 present", "t long q1 #1 dup expiry=0"]);
}

// [MQTT-3.1.2-24] [MQTT-3.1.2-25]
#[test]
fn a_packet_larger_than_the_client_takes_is_dropped_as_if_it_had_been_sent() {
    let mut w = world();
    let exact = Publish {
        properties: PublishProperties {
            content_type: Some("text".into()),
            user_properties: vec![("k".into(), "v".into())],
            ..Default::default()
        },
        ..publish("t", "12345", Q1, 1)
    };
    // 1 type, 1 length, 3 topic, 2 id, 1 properties, 7 content type, 7 user property, 5 payload
    for (limit, fits) in [(27, true), (26, false)] {
        let connect = Connect { maximum_packet_size: Some(limit), ..v5_kept(&limit.to_string()) };
        let reader = w.join_subscribed(connect, "t", Q1);
        let writer = w.join(v5("w"));
        w.publish(writer, exact.clone());
        w.publish(writer, publish("t", "x", Q1, 2));
        let lines = w.take(reader);
        assert_eq!(lines.len(), if fits { 2 } else { 1 });
        assert_eq!(lines.last().map(String::as_str), Some("t x q1 #2"));
        w.cut(reader);
    }
    assert_eq!(w.dropped, ["packet_too_large"]);
}

// [MQTT-3.4.2-1] [MQTT-3.5.2-1]
// [MQTT311-4.8.0-2]
#[test]
fn a_message_the_host_refuses_is_answered_where_the_version_can() {
    let mut w = world();
    let refuse = |w: &mut World, connection, qos| {
        let publish = Box::new(publish("t", "x", qos, 7));
        w.event(Event::Refused { connection, publish, reason: Reason::QUOTA_EXCEEDED });
    };
    let client = w.join(v5("new"));
    for qos in [Q0, Q1, Q2] {
        refuse(&mut w, client, qos);
    }
    w.expect(client, &["PUBACK 7 97", "PUBREC 7 97"]);
    let client = w.join(v311("old", true));
    refuse(&mut w, client, Q1);
    w.expect(client, &["closed 97"]);
    assert!(w.store.log.is_empty());
}

#[test]
fn a_topic_with_too_many_levels_is_refused() {
    let mut w = limited(Settings { topic_levels: 2, ..Settings::default() });
    let client = w.join(v5("c"));
    w.publish(client, publish("a/b", "x", Q1, 1));
    w.publish(client, publish("a/b/c", "x", Q1, 2));
    w.expect(client, &["PUBACK 1", "PUBACK 2 90"]);
}

#[test]
fn from_the_log_a_message_is_acknowledged_first_and_delivered_when_it_comes_back() {
    let mut w = World::new(Settings::default(), Fanout::FromLog);
    let reader = w.join_subscribed(v5_kept("r"), "t", Q1);
    let mut out = Decision::default();
    let packet = Packet::Publish(Publish { retain: true, ..publish("t", "x", Q1, 1) });
    w.state.decide(Event::Packet { connection: reader, packet: packet.clone() }, w.now, &mut out);
    assert_eq!(out.effects.len(), 1);
    assert!(
        matches!(out.changes.as_slice(), [Change::Message { queued, stored: None, .. }] if queued.is_empty())
    );
    w.packet(reader, packet);
    w.expect(reader, &["PUBACK 1", "t x q1 #1"]);
    assert_eq!((w.store.retained.len(), w.store.log.len(), w.store.queue.len()), (1, 1, 1));
}

// [MQTT-2.2.1-4] [MQTT-4.3.2-1] [MQTT-4.3.3-1]
#[test]
fn packet_ids_go_round_without_meeting_one_in_use() {
    let mut w = world();
    let reader = w.join_subscribed(v5("r"), "t", Q1);
    let writer = w.join(v5("w"));
    w.publish(writer, publish("t", "first", Q1, 1));
    w.expect(reader, &["t first q1 #1"]);
    for round in 0..65_534_u32 {
        w.publish(writer, publish("t", "x", Q1, 1));
        let id = (round + 2) as u16;
        w.ack(reader, Packet::PubAck, id);
    }
    w.take(reader);
    w.publish(writer, publish("t", "next", Q1, 1));
    w.expect(reader, &["t next q1 #2"]);
}
