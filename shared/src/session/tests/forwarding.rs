//! What a subscriber gets is what was published: topic, payload and properties as they came, flags of its own.

use super::{legal::as_publish, world::*};
use crate::{
    mqtt::packet::{Packet, Publish, PublishProperties, Reason, SubscriptionOptions},
    session::{Decision, Effect, Event, Outgoing},
};

/// All that may go with a message.
fn properties() -> PublishProperties {
    PublishProperties {
        payload_format: Some(1),
        message_expiry: None,
        content_type: Some("text/plain; charset=\u{e9}\u{feff}".into()),
        response_topic: Some("answers/1".into()),
        correlation_data: Some(vec![0, 1, 0xFF].into()),
        user_properties: [("b", "2"), ("a", "1"), ("b", "1"), ("", "")]
            .map(|(name, value)| (name.into(), value.into()))
            .into(),
    }
}

/// The messages that an event sends, as their receivers see them.
fn sent(w: &mut World, event: Event) -> Vec<Publish> {
    let mut out = Decision::default();
    w.state.decide(event, w.now, &mut out);
    let publish = |effect| match effect {
        Effect::Send { outgoing: Outgoing::Publish(delivery), .. } => Some(as_publish(&delivery)),
        _ => None,
    };
    out.effects.into_iter().filter_map(publish).collect()
}

// [MQTT-3.1.3-10] [MQTT-3.3.2-4] [MQTT-3.3.2-15] [MQTT-3.3.2-16] [MQTT-3.3.2-17] [MQTT-3.3.2-18]
// [MQTT-3.3.2-20]
#[test]
fn properties_go_on_as_they_came_and_in_their_order() {
    let mut w = world();
    w.join_subscribed(v5("r"), "t", Q0);
    let connection = w.join(v5("w"));
    for retain in [false, true] {
        let original = Publish { retain, properties: properties(), ..publish("t", "x", Q1, 1) };
        let packet = Packet::Publish(original);
        let got = sent(&mut w, Event::Packet { connection, packet });
        assert_eq!(got.len(), 1);
        assert_eq!(got[0].properties, properties());
    }
    let mut connect = v5("gone");
    connect.will = Some(will("t", 0));
    connect.will.as_mut().unwrap().properties = properties();
    let connection = w.join(connect);
    let got = sent(&mut w, Event::Closed { connection, reason: None });
    assert_eq!(got.len(), 1);
    assert_eq!((&got[0].payload[..], &got[0].properties), (&b"gone"[..], &properties()));
}

// [MQTT-3.3.1-3]
#[test]
fn an_alias_and_dup_of_the_publisher_stay_with_it() {
    let mut w = world();
    w.join_subscribed(v5("r"), "#", Q1);
    let connection = w.join(v5("w"));
    for (dup, topic) in [(true, "t"), (false, "")] {
        let original = Publish { dup, topic_alias: Some(1), ..publish(topic, "x", Q1, 1) };
        let packet = Packet::Publish(original);
        let got = sent(&mut w, Event::Packet { connection, packet });
        assert_eq!((got.len(), got[0].dup, got[0].topic.as_ref()), (1, false, "t"));
        assert_eq!(got[0].topic_alias, None, "to a client that takes none");
    }
}

// [MQTT-1.5.4-3] [MQTT-3.3.2-3] [MQTT-3.10.4-1] [MQTT-4.7.3-4]
#[test]
fn topics_are_compared_character_by_character_and_not_changed() {
    let mut w = world();
    let topics =
        ["a/b", "A/b", "a//b", "a/b/", "/a/b", "a/ b", "\u{e9}", "e\u{301}", "\u{feff}a/b"];
    let readers = topics.map(|topic| w.join_subscribed(v5(topic), topic, Q0));
    let writer = w.join(v5("w"));
    for topic in topics {
        w.publish(writer, publish(topic, "x", Q0, 0));
    }
    for (reader, topic) in readers.into_iter().zip(topics) {
        w.expect(reader, &[&format!("{topic} x q0")]);
    }
    let reader = w.join_subscribed(v5("all"), "a/b", Q0);
    w.unsubscribe(reader, &["A/b", "a/b/", "a/+", "#"]);
    w.expect(reader, &["UNSUBACK 1 11 11 11 11"]);
}

// [MQTT-4.3.2-5] [MQTT-4.3.3-9] [MQTT-4.3.3-12]
#[test]
fn a_message_with_a_packet_id_that_was_answered_is_a_new_one() {
    let mut w = world();
    let reader = w.join_subscribed(v5("r"), "t", Q0);
    let writer = w.join(v5("w"));
    for dup in [false, true, true] {
        w.publish(writer, Publish { dup, ..publish("t", "x", Q1, 7) });
        w.expect(writer, &["PUBACK 7"]);
        w.expect(reader, &["t x q0"]);
    }
    for _ in 0..2 {
        w.publish(writer, publish("t", "y", Q2, 7));
        w.ack(writer, Packet::PubRel, 7);
        w.expect(writer, &["PUBREC 7", "PUBCOMP 7"]);
        w.expect(reader, &["t y q0"]);
    }
    let reason = Reason::QUOTA_EXCEEDED;
    let refused = Box::new(publish("t", "z", Q2, 8));
    w.event(Event::Refused { connection: writer, publish: refused, reason });
    w.publish(writer, publish("t", "z", Q2, 8));
    w.expect(writer, &["PUBREC 8 97", "PUBREC 8"]);
    w.expect(reader, &["t z q0"]);
}

// [MQTT-4.4.0-2]
#[test]
fn a_message_that_was_refused_by_its_receiver_is_not_sent_again() {
    for restart in [false, true] {
        let mut w = world();
        let reader = w.join_subscribed(v5_kept("r"), "t", Q2);
        let writer = w.join(v5("w"));
        w.publish(writer, publish("t", "1", Q1, 1));
        w.publish(writer, publish("t", "2", Q2, 2));
        w.publish(writer, publish("t", "3", Q1, 3));
        w.expect(reader, &["t 1 q1 #1", "t 2 q2 #2", "t 3 q1 #3"]);
        for (ack, id_) in [(Packet::PubAck as fn(_) -> _, 1), (Packet::PubRec, 2)] {
            let refused = crate::mqtt::packet::Ack::new(id(id_), Reason::UNSPECIFIED);
            w.packet(reader, ack(refused));
        }
        w.expect(reader, &[]);
        if restart {
            w.restart();
        } else {
            w.cut(reader);
        }
        let reader = w.connect(v5_kept("r"));
        w.expect(reader, &["CONNACK 00 present", "t 3 q1 #3 dup"]);
    }
}

// [MQTT-3.10.4-2] [MQTT-3.10.4-3] [MQTT-4.3.3-7] [MQTT-4.3.3-13]
#[test]
fn a_flow_that_began_is_finished_whatever_became_of_message_and_subscription() {
    let mut w = world();
    let reader = w.join_subscribed(v5_kept("r"), "t", Q2);
    let writer = w.join(v5("w"));
    w.publish(writer, expiring(publish("t", "1", Q1, 1), 5));
    w.publish(writer, expiring(publish("t", "2", Q2, 2), 5));
    w.publish(writer, expiring(publish("t", "3", Q2, 3), 5));
    w.ack(reader, Packet::PubRec, 3);
    w.take(reader);
    w.unsubscribe(reader, &["t"]);
    w.publish(writer, publish("t", "4", Q1, 4));
    w.expect(reader, &["UNSUBACK 1 00"]);
    w.pass(10);
    w.cut(reader);
    let reader = w.connect(v5_kept("r"));
    let mut got = w.take(reader);
    got.sort_unstable();
    assert_eq!(
        got,
        ["CONNACK 00 present", "PUBREL 3", "t 1 q1 #1 dup expiry=0", "t 2 q2 #2 dup expiry=0"]
    );
    w.ack(reader, Packet::PubComp, 3);
    w.ack(reader, Packet::PubAck, 1);
    w.ack(reader, Packet::PubRec, 2);
    w.expect(reader, &["PUBREL 2"]);
    w.ack(reader, Packet::PubComp, 2);
    assert!(w.store.queue.is_empty());
}

// [MQTT-3.8.4-4]
#[test]
fn replacing_a_subscription_loses_nothing_and_sends_retained_messages_again() {
    let mut w = world();
    let reader = w.join_subscribed(v5("r"), "t", Q2);
    let writer = w.join(v5("w"));
    w.publish(writer, publish("t", "1", Q1, 1));
    w.publish(writer, Publish { retain: true, ..publish("t", "2", Q1, 2) });
    w.subscribe_with(reader, &[("t", SubscriptionOptions { qos: Q1, ..Default::default() })], None);
    w.publish(writer, publish("t", "3", Q1, 3));
    w.expect(reader, &["t 1 q1 #1", "t 2 q1 #2", "SUBACK 1 01", "t 2 q1 #3 retain", "t 3 q1 #4"]);
}
