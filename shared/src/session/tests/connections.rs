//! CONNECT, DISCONNECT, sessions and time.

use super::world::*;
use crate::{
    mqtt::{
        Version,
        packet::{Auth, ConnAckProperties, Connect, Packet, Publish, Reason},
    },
    session::{Event, Fanout, Settings},
};

// [MQTT-3.1.3-2] [MQTT-3.1.4-3] [MQTT-3.1.4-5] [MQTT-3.12.4-1]
#[test]
fn a_second_connection_of_a_client_takes_the_session_over() {
    let mut w = world();
    let old = w.join(v5_kept("c"));
    let new = w.connect(v5_kept("c"));
    w.expect(old, &["DISCONNECT 8e", "closed 8e"]);
    w.expect(new, &["CONNACK 00 present"]);
    w.packet(old, Packet::PingReq);
    w.cut(old);
    w.expect(old, &[]);
    w.packet(new, Packet::PingReq);
    w.expect(new, &["PINGRESP"]);
}

#[test]
fn an_old_version_that_is_taken_over_is_closed_without_a_word() {
    let mut w = world();
    let old = w.join(v311("c", true));
    let new = w.connect(v311("c", false));
    w.expect(old, &["closed 8e"]);
    w.expect(new, &["CONNACK 00"]);
}

// [MQTT-3.1.2-4] [MQTT-3.1.2-5] [MQTT-3.1.2-6] [MQTT-3.1.3-2] [MQTT-3.1.4-4] [MQTT-3.2.2-2]
// [MQTT-3.2.2-3]
#[test]
fn a_session_is_present_as_long_as_it_was_kept_and_no_clean_start_ended_it() {
    let mut w = world();
    for (connect, present) in [
        (v5_kept("c"), false),
        (v5_kept("c"), true),
        (v5("c"), false),
        (v5_kept("c"), false),
        (v311("c", false), true),
        (v311("c", true), false),
        (v311("c", false), false),
        (Connect { session_expiry: None, ..v5_kept("c") }, true),
        (v5_kept("c"), false),
    ] {
        let client = w.connect(connect.clone());
        let line = if present { "CONNACK 00 present" } else { "CONNACK 00" };
        w.expect(client, &[line]);
        w.cut(client);
    }
}

// [MQTT-3.1.2-23] [MQTT-4.1.0-1] [MQTT-4.1.0-2]
#[test]
fn a_session_ends_when_its_expiry_has_passed_and_not_before() {
    let mut w = world();
    let connect = Connect { session_expiry: Some(10), ..v5_kept("c") };
    let client = w.join(connect.clone());
    w.pass(100);
    w.cut(client);
    w.pass(9);
    let client = w.connect(connect.clone());
    w.expect(client, &["CONNACK 00 present"]);
    w.subscribe(client, "t", Q1);
    w.publish(client, publish("t", "x", Q1, 1));
    w.cut(client);
    w.pass(11);
    assert_eq!(w.dropped, ["session_ended"]);
    assert_eq!((w.state.stats().sessions, w.store.sessions.len()), (0, 0));
    let client = w.connect(connect);
    w.expect(client, &["CONNACK 00"]);
}

#[test]
fn expiry_is_capped_and_the_client_is_told() {
    let mut w =
        World::new(Settings { session_expiry_s: 60, ..Settings::default() }, Fanout::AtOnce);
    for (asked, told) in [(None, None), (Some(30), None), (Some(u32::MAX), Some(60))] {
        let client = w.join(Connect { session_expiry: asked, ..v5("c") });
        assert_eq!(w.connack.take().unwrap().properties.session_expiry, told);
        w.cut(client);
    }
    w.pass(61);
    assert_eq!(w.state.stats().sessions, 0);
}

// [MQTT-3.14.2-2]
#[test]
fn disconnect_changes_the_expiry_but_not_from_nothing() {
    let mut w = world();
    let client = w.join(v5_kept("a"));
    w.disconnect(client, Reason::SUCCESS, Some(0));
    w.expect(client, &["closed 00"]);
    assert_eq!(w.state.stats().sessions, 0);
    let client = w.join(v5_kept("b"));
    w.disconnect(client, Reason::SUCCESS, Some(5));
    w.pass(6);
    assert_eq!(w.state.stats().sessions, 0);
    let client = w.join(v5("c"));
    w.disconnect(client, Reason::SUCCESS, Some(5));
    w.expect(client, &["DISCONNECT 82", "closed 82"]);
}

// [MQTT-3.1.3-6] [MQTT-3.1.3-7] [MQTT-3.1.3-8] [MQTT-3.2.2-16]
#[test]
fn a_missing_client_id_is_assigned_where_the_version_allows() {
    let mut w = world();
    for (connect, line) in [
        (v5(""), "CONNACK 00"),
        (Connect { clean_start: false, ..v5("") }, "CONNACK 00"),
        (v311("", true), "CONNACK 00"),
        (v311("", false), "CONNACK 85"),
        (Connect { version: Version::V31, ..v311("", true) }, "CONNACK 85"),
        (v5(&"x".repeat(257)), "CONNACK 85"),
        (Connect { version: Version::V31, ..v311(&"é".repeat(24), true) }, "CONNACK 85"),
    ] {
        let version = connect.version;
        let client = w.connect(connect);
        assert_eq!(w.take(client)[0], line);
        let assigned = w.connack.take().unwrap().properties.assigned_client_id;
        assert_eq!(assigned.is_some(), version == Version::V5 && line == "CONNACK 00");
    }
    assert_eq!(w.state.stats().sessions, 3, "each has its own");
}

// MQTT 3.1, section 3.1: a client id has 1 to 23 characters.
#[test]
fn version_3_1_takes_client_ids_of_up_to_23_characters() {
    let mut w = world();
    for client in ["x", &"é".repeat(23)] {
        let connect = Connect { version: Version::V31, ..v311(client, false) };
        w.join(connect.clone());
        let again = w.connect(connect);
        assert_eq!(w.take(again)[0], "CONNACK 00 present", "written to 3.1 without it");
    }
}

// [MQTT-3.2.2-6] [MQTT-3.2.2-7]
#[test]
fn a_session_belongs_to_the_principal_that_made_it() {
    let mut w = world();
    let owner = w.connect_as(v5_kept("c"), Some("alice"));
    w.take(owner);
    for principal in [Some("mallory"), None] {
        let thief = w.connect_as(v5("c"), principal);
        w.expect(thief, &["CONNACK 87", "closed 87"]);
    }
    w.packet(owner, Packet::PingReq);
    w.expect(owner, &["PINGRESP"]);
    w.restart();
    let thief = w.connect_as(v5("c"), Some("mallory"));
    w.expect(thief, &["CONNACK 87", "closed 87"]);
    let owner = w.connect_as(v5_kept("c"), Some("alice"));
    w.expect(owner, &["CONNACK 00 present"]);
}

// [MQTT311-3.1.0-2] [MQTT311-4.8.0-1]
// [MQTT-3.1.0-2] [MQTT-3.2.0-2] [MQTT-4.12.0-1] [MQTT-4.12.0-7]
#[test]
fn what_a_client_may_not_send_ends_its_connection() {
    let auth = Auth {
        reason: Reason::REAUTHENTICATE,
        method: None,
        data: None,
        reason_string: None,
        user_properties: Vec::new(),
    };
    for packet in [Packet::Connect(Box::new(v5("c"))), Packet::Auth(auth), Packet::PingResp] {
        let mut w = world();
        let client = w.join(v5("c"));
        w.packet(client, packet.clone());
        w.expect(client, &["DISCONNECT 82", "closed 82"]);
        let client = w.join(v311("c", true));
        w.packet(client, packet);
        w.expect(client, &["closed 82"]);
    }
    let mut w = world();
    let method = Some("SCRAM-SHA-256".into());
    let client = w.connect(Connect { authentication_method: method, ..v5("c") });
    w.expect(client, &["CONNACK 8c", "closed 8c"]);
    assert_eq!(w.state.stats().sessions, 0);
}

// [MQTT-3.1.2-22] [MQTT-3.2.2-21] [MQTT-3.2.2-22]
#[test]
fn a_silent_client_is_disconnected_after_one_and_a_half_keep_alives() {
    let mut w = world();
    let client = w.join(Connect { keep_alive: 10, ..v5("c") });
    w.pass(10);
    w.packet(client, Packet::PingReq);
    w.expect(client, &["PINGRESP"]);
    w.pass(14);
    w.expect(client, &[]);
    w.publish(client, publish("t", "x", Q0, 0));
    w.pass(14);
    w.expect(client, &[]);
    w.pass(1);
    w.expect(client, &["DISCONNECT 8d", "closed 8d"]);
    let quiet = w.join(v5("quiet"));
    w.pass(1_000_000);
    w.expect(quiet, &[]);
}

// [MQTT-3.1.2-21] [MQTT-3.2.2-21]
#[test]
fn a_longest_keep_alive_is_told_and_kept() {
    let mut w = World::new(Settings { keep_alive_s: 30, ..Settings::default() }, Fanout::AtOnce);
    for (asked, told) in [(0, Some(30)), (31, Some(30)), (30, None), (5, None)] {
        let client = w.join(Connect { keep_alive: asked, ..v5("c") });
        assert_eq!(w.connack.take().unwrap().properties.server_keep_alive, told, "{asked}");
        w.pass(46);
        assert_eq!(w.take(client).len(), 2, "closed in time");
    }
}

#[test]
fn the_server_says_what_its_limits_are() {
    let settings = Settings { response_prefix: "answers".into(), ..Settings::default() };
    let mut w = World::new(settings, Fanout::AtOnce);
    w.join(Connect { request_response_information: true, ..v5("c") });
    let properties = w.connack.take().unwrap().properties;
    assert_eq!(properties.receive_maximum, Some(100));
    assert_eq!(properties.maximum_packet_size, Some(256 * 1024));
    assert_eq!(properties.topic_alias_maximum, Some(16));
    assert_eq!(properties.response_information.as_deref(), Some("answers/c"));
    w.join(v311("d", true));
    assert_eq!(w.connack.take().unwrap().properties, ConnAckProperties::default());
}

#[test]
fn one_session_too_many_is_refused() {
    let mut w = World::new(Settings { sessions: 1, ..Settings::default() }, Fanout::AtOnce);
    w.join(v5_kept("a"));
    let second = w.connect(v5("b"));
    w.expect(second, &["CONNACK 97", "closed 97"]);
    w.join(v5_kept("a"));
}

// [MQTT311-4.8.0-1]
// [MQTT-4.13.1-1] [MQTT-4.13.2-1]
#[test]
fn a_fault_found_by_the_host_is_told_to_version_5() {
    let mut w = world();
    let (new, old) = (w.join(v5("new")), w.join(v311("old", true)));
    for connection in [new, old] {
        w.event(Event::Closed { connection, reason: Some(Reason::MALFORMED_PACKET) });
    }
    w.expect(new, &["DISCONNECT 81", "closed 81"]);
    w.expect(old, &["closed 81"]);
}

// [MQTT-3.3.2-7] to [MQTT-3.3.2-12]
// [MQTT-3.2.2-17] [MQTT-3.3.2-7] [MQTT-3.3.2-9] [MQTT-3.3.2-12]
#[test]
fn a_topic_alias_stands_for_a_topic_of_its_connection_only() {
    let mut w = world();
    let reader = w.join_subscribed(v5("r"), "#", Q0);
    let alias =
        |topic: &str, alias| Publish { topic_alias: Some(alias), ..publish(topic, "x", Q0, 0) };
    let writer = w.join(v5("w"));
    for (topic, number) in [("a", 1), ("", 1), ("b", 1), ("", 1), ("c", 16)] {
        w.publish(writer, alias(topic, number));
    }
    w.expect(reader, &["a x q0", "a x q0", "b x q0", "b x q0", "c x q0"]);
    for (topic, number, code) in [("a", 0, "94"), ("a", 17, "94"), ("", 2, "82")] {
        let writer = w.join(v5("w"));
        w.publish(writer, alias(topic, number));
        w.expect(writer, &[&format!("DISCONNECT {code}"), &format!("closed {code}")]);
    }
    w.expect(reader, &[]);
}

// [MQTT-4.1.0-2]
#[test]
fn after_a_restart_sessions_live_on_for_what_is_left_of_their_time() {
    let mut w = world();
    let gone = w.join(Connect { session_expiry: Some(100), ..v5_kept("gone") });
    w.join(Connect { session_expiry: Some(100), ..v5_kept("there") });
    w.cut(gone);
    w.pass(60);
    w.restart();
    w.pass(50);
    assert_eq!(w.store.sessions.len(), 1, "one was disconnected by the restart only");
    w.restart();
    w.pass(40);
    assert_eq!(w.store.sessions.len(), 1);
    w.pass(11);
    assert_eq!(w.store.sessions.len(), 0);
}

// A gateway without a battery clock.
#[test]
fn a_wall_clock_that_jumps_ends_no_session_and_makes_no_message_or_delay_too_old() {
    const TEN_YEARS_MS: i64 = 10 * 365 * 86_400_000;
    for jump in [TEN_YEARS_MS, -TEN_YEARS_MS] {
        let mut w = world();
        let reader =
            w.join_subscribed(Connect { session_expiry: Some(100), ..v5_kept("r") }, "#", Q1);
        w.cut(reader);
        let writer = w.join(v5("w"));
        w.publish(writer, publish("t", "waits", Q1, 1));
        w.publish(writer, publish("$delayed/50/late", "waits", Q1, 2));
        w.pass(10);
        w.now.wall_ms += jump;
        w.restart();
        w.pass(1);
        assert_eq!(w.store.log.len(), 1, "the delayed one still waits");
        w.pass(38);
        assert_eq!(w.store.log.len(), 1, "the delayed one still waits");
        w.pass(2);
        assert_eq!(w.store.log.len(), 2);
        assert_eq!(w.store.sessions.len(), 1);
        assert_eq!(w.state.queued().0, 2);
        w.pass(50);
        assert_eq!(w.store.sessions.len(), 0, "in its time it ends");
    }
}
