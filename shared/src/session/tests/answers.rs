//! Answers: each request gets its own, with its id, and what is refused gets nothing more.

use super::world::*;
use crate::{
    mqtt::packet::{
        Ack, Connect, Packet, Publish, Reason, Subscribe, SubscribeFilter, SubscriptionOptions,
        Unsubscribe,
    },
    session::{Fanout, Settings},
};

// [MQTT-2.2.1-6] [MQTT-3.8.4-2] [MQTT-3.10.4-5]
#[test]
fn answers_carry_the_ids_of_their_requests() {
    let mut w = world();
    let client = w.join(v5("c"));
    for packet_id in [id(1), id(300), id(u16::MAX)] {
        let options = SubscriptionOptions::default();
        let filter = SubscribeFilter { filter: "t".into(), options };
        let subscribe = Subscribe {
            packet_id,
            filters: vec![filter],
            subscription_id: None,
            user_properties: Vec::new(),
        };
        w.packet(client, Packet::Subscribe(subscribe));
        let filters = vec!["t".into()];
        let unsubscribe = Unsubscribe { packet_id, filters, user_properties: Vec::new() };
        w.packet(client, Packet::Unsubscribe(unsubscribe.clone()));
        w.packet(client, Packet::Unsubscribe(unsubscribe));
        w.expect(
            client,
            &[
                &format!("SUBACK {packet_id} 00"),
                &format!("UNSUBACK {packet_id} 00"),
                &format!("UNSUBACK {packet_id} 11"),
            ],
        );
    }
}

// [MQTT-3.8.4-5] [MQTT-3.10.4-6]
#[test]
fn several_filters_in_one_packet_are_as_several_packets() {
    let options = |qos| SubscriptionOptions { qos, ..Default::default() };
    let filters = [("t", options(Q0)), ("u", options(Q1)), ("t", options(Q2)), ("#", options(Q0))];
    let mut got = Vec::new();
    for together in [true, false] {
        let mut w = world();
        let client = w.join(v5("c"));
        w.publish(client, retained("u", "kept"));
        if together {
            w.subscribe_with(client, &filters, Some(5));
        } else {
            for one in filters {
                w.subscribe_with(client, &[one], Some(5));
            }
        }
        w.publish(client, publish("t", "x", Q2, 1));
        if together {
            w.unsubscribe(client, &["t", "#", "t"]);
        } else {
            for one in ["t", "#", "t"] {
                w.unsubscribe(client, &[one]);
            }
        }
        w.publish(client, publish("t", "y", Q0, 0));
        let mut lines = w.take(client);
        let acks: Vec<String> = lines.extract_if(.., |line| line.contains("SUBACK")).collect();
        let codes: Vec<&str> = acks.iter().flat_map(|line| line.split(' ').skip(2)).collect();
        assert_eq!(codes, ["00", "01", "02", "00", "00", "00", "11"]);
        got.push(lines);
    }
    assert_eq!(got[0], got[1]);
    assert_eq!(got[0].len(), 4, "retained for both that match, one message, its PUBREC: {got:?}");
}

// [MQTT-3.1.3-8] [MQTT-3.1.4-2] [MQTT-3.1.4-6] [MQTT-4.13.2-1]
#[test]
fn after_a_refused_connect_nothing_is_done_for_the_client() {
    let mut w = world();
    let reader = w.join_subscribed(v5("r"), "#", Q0);
    let will = Some(will("will", 0));
    let client = w.connect(Connect { client_id: "x".repeat(300).into(), will, ..v5("") });
    w.expect(client, &["CONNACK 85", "closed 85"]);
    w.subscribe(client, "t", Q0);
    w.publish(client, publish("t", "x", Q1, 1));
    w.packet(client, Packet::PingReq);
    w.cut(client);
    w.expect(client, &[]);
    w.expect(reader, &[]);
    assert_eq!((w.state.stats().sessions, w.state.stats().subscriptions), (1, 1));
}

// [MQTT-3.1.3-5]
#[test]
fn every_client_id_that_the_standard_demands_is_taken() {
    let mut w = world();
    let all = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    for length in 1..=23 {
        for start in (0..all.len() - length).step_by(7) {
            w.join(v5(&all[start..start + length]));
        }
    }
    for unusual in ["a b", "\u{e9}/\u{1f600}", "+#$", &"x".repeat(256)] {
        w.join(v5(unusual));
    }
}

// [MQTT-3.1.2-28]
#[test]
fn response_information_is_for_those_who_ask() {
    let settings = Settings { response_prefix: "answers".into(), ..Settings::default() };
    let mut w = World::new(settings, Fanout::AtOnce);
    for (ask, told) in [(false, None), (true, Some("answers/c"))] {
        w.join(Connect { request_response_information: ask, ..v5("c") });
        let properties = w.connack.take().unwrap().properties;
        assert_eq!(properties.response_information.as_deref(), told);
    }
}

// [MQTT-3.2.2-9] [MQTT-3.2.2-10] [MQTT-3.2.2-12] [MQTT-3.2.2-13] [MQTT-4.12.0-6]
#[test]
fn everything_is_available_and_so_not_mentioned() {
    let mut w = world();
    let filters = [Q0, Q1, Q2].map(|qos| {
        (
            ["0", "+/1", "$share/g/2"][qos as usize],
            SubscriptionOptions { qos, ..Default::default() },
        )
    });
    for qos in [Q0, Q1, Q2] {
        let mut connect = Connect { session_expiry: None, ..v5("c") };
        connect.will = Some(crate::mqtt::packet::Will { qos, retain: true, ..will("w", 0) });
        let client = w.join(connect);
        let told = w.connack.take().unwrap().properties;
        assert_eq!((told.maximum_qos, told.retain_available), (None, None));
        assert_eq!((told.wildcard_available, told.shared_available), (None, None));
        assert_eq!(told.subscription_ids_available, None);
        assert_eq!((told.authentication_method, told.authentication_data), (None, None));
        w.subscribe_with(client, &filters, Some(7));
        w.expect(client, &["SUBACK 1 00 01 02"]);
        w.cut(client);
        let reader = w.join_subscribed(v5("r"), "x", Q0);
        w.subscribe(reader, "w", Q2);
        let id = if qos == Q0 { "" } else { " #1" };
        w.expect(reader, &["SUBACK 1 02", &format!("w gone q{}{id} retain", qos as u8)]);
    }
}

// [MQTT-3.1.2-14] [MQTT-3.1.2-15]
#[test]
fn a_will_is_retained_only_if_it_says_so() {
    let mut w = world();
    let as_published = SubscriptionOptions { retain_as_published: true, ..Default::default() };
    let reader = w.join(v5("r"));
    w.subscribe_with(reader, &[("will", as_published)], None);
    w.take(reader);
    for retain in [false, true] {
        let mut connect = v5("c");
        connect.will = Some(crate::mqtt::packet::Will { retain, ..will("will", 0) });
        let client = w.join(connect);
        w.cut(client);
        let flag = if retain { " retain" } else { "" };
        w.expect(reader, &[&format!("will gone q0{flag}")]);
        assert_eq!(w.store.retained.len(), usize::from(retain));
    }
}

// [MQTT-4.8.2-3] [MQTT-4.8.2-4] [MQTT-4.8.2-5] [MQTT-4.8.2-6]
#[test]
fn a_group_keeps_to_what_each_member_was_granted_and_nobody_gets_what_another_refused_or_holds() {
    let mut w = world();
    let low = w.join_subscribed(v5_kept("low"), "$share/g/t", Q0);
    let high = w.join_subscribed(v5_kept("high"), "$share/g/t", Q2);
    let writer = w.join(v5("w"));
    for number in 1..=4_u16 {
        w.publish(writer, publish("t", &number.to_string(), Q2, number));
    }
    w.expect(low, &["t 1 q0", "t 3 q0"]);
    w.expect(high, &["t 2 q2 #1", "t 4 q2 #2"]);
    w.packet(high, Packet::PubRec(Ack::new(id(1), Reason::UNSPECIFIED)));
    w.expect(low, &[]);
    w.cut(high);
    w.expect(low, &[]);
    let high = w.connect(v5_kept("high"));
    w.expect(high, &["CONNACK 00 present", "t 4 q2 #2 dup"]);
    w.disconnect(high, Reason::SUCCESS, Some(0));
    w.expect(low, &[]);
}

// [MQTT-4.6.0-2] [MQTT-4.6.0-3] [MQTT-4.6.0-4]
#[test]
fn a_receiver_answers_in_the_order_it_received() {
    let mut w = world();
    let reader = w.join_subscribed(v5("r"), "t", Q2);
    let writer = w.join(v5("w"));
    for packet_id in [5, 2, 9, 1] {
        w.publish(writer, publish("t", "x", Q2, packet_id));
        w.publish(writer, publish("t", "x", Q1, packet_id + 100));
    }
    let answers = [5, 2, 9, 1].map(|id| [format!("PUBREC {id}"), format!("PUBACK {}", id + 100)]);
    assert_eq!(w.take(writer), answers.concat());
    w.take(reader);
    for packet_id in [3, 1, 7, 5] {
        w.ack(reader, Packet::PubRec, packet_id);
    }
    w.expect(reader, &["PUBREL 3", "PUBREL 1", "PUBREL 7", "PUBREL 5"]);
}

// [MQTT-3.2.2-18]
#[test]
fn without_a_topic_alias_maximum_no_alias_is_taken() {
    let settings = Settings { topic_alias_maximum: 0, ..Settings::default() };
    let mut w = World::new(settings, Fanout::AtOnce);
    let client = w.join(v5("c"));
    let told = w.connack.take().unwrap().properties.topic_alias_maximum;
    assert!(matches!(told, None | Some(0)));
    w.publish(client, Publish { topic_alias: Some(1), ..publish("t", "x", Q0, 0) });
    w.expect(client, &["DISCONNECT 94", "closed 94"]);
}
