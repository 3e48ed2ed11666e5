//! Wills: neither early nor late, once.

use super::world::*;
use crate::{
    mqtt::packet::{Connect, Reason},
    session::Event,
};

fn with_will(delay: u32) -> Connect {
    Connect { will: Some(will("will", delay)), session_expiry: Some(100), ..v5("c") }
}

// [MQTT-3.1.2-8] [MQTT-3.1.2-10] [MQTT-3.14.4-3]
#[test]
fn the_way_a_connection_ends_decides_on_its_will() {
    type End = fn(&mut World, Client);
    let ends: [(End, bool); 6] = [
        (|w, c| w.cut(c), true),
        (|w, c| w.disconnect(c, Reason::SUCCESS, None), false),
        (|w, c| w.disconnect(c, Reason::DISCONNECT_WITH_WILL, None), true),
        (|w, c| w.disconnect(c, Reason::UNSPECIFIED, None), true),
        (|w, c| w.subscribe(c, "a", Q0), false),
        (
            |w, connection| {
                w.event(Event::Closed { connection, reason: Some(Reason::MALFORMED_PACKET) });
            },
            true,
        ),
    ];
    for connect in [with_will(0), Connect { session_expiry: None, ..with_will(0) }] {
        for (at, (end, published)) in ends.iter().enumerate() {
            let mut w = world();
            let reader = w.join_subscribed(v5("r"), "will", Q1);
            let client = w.join(connect.clone());
            end(&mut w, client);
            let line: &[&str] = if *published { &["will gone q1 #1"] } else { &[] };
            w.expect(reader, line);
            w.pass(200);
            assert!(w.take(reader).is_empty(), "{at}: once");
        }
    }
}

// [MQTT-3.1.2-8] [MQTT-3.1.3-9]
#[test]
fn a_delayed_will_comes_when_it_is_due_or_its_session_ends() {
    for (delay, expiry, at) in [(10, 100, 10), (100, 10, 10), (10, 0, 0), (10, 10, 10)] {
        for restart in [false, true] {
            let mut w = world();
            let reader = w.join_subscribed(v5_kept("r"), "will", Q1);
            let client = w.join(Connect { session_expiry: Some(expiry), ..with_will(delay) });
            w.pass(50);
            w.cut(client);
            let mut got = w.take(reader);
            if at > 0 {
                assert!(got.is_empty(), "not at once");
                w.pass(at - 1);
                assert!(w.take(reader).is_empty(), "not early");
                if restart {
                    w.restart();
                    let again = w.join(v5_kept("r"));
                    w.pass(1);
                    got = w.take(again);
                } else {
                    w.pass(1);
                    got = w.take(reader);
                }
            }
            assert_eq!(got, ["will gone q1 #1"], "{delay} {expiry} {restart}");
        }
    }
}

// [MQTT-3.1.3-9]
#[test]
fn a_delayed_will_is_dropped_when_the_session_goes_on_and_sent_when_it_does_not() {
    for (clean, line) in [(false, &[][..]), (true, &["will gone q1 #1"])] {
        let mut w = world();
        let reader = w.join_subscribed(v5("r"), "will", Q1);
        let client = w.join(with_will(10));
        w.cut(client);
        w.pass(5);
        w.join(Connect { clean_start: clean, will: None, ..with_will(0) });
        w.pass(60);
        w.expect(reader, line);
    }
}

#[test]
fn a_taken_over_connection_leaves_its_will() {
    for (delay, line) in [(0, &["will gone q1 #1"][..]), (10, &[])] {
        let mut w = world();
        let reader = w.join_subscribed(v5("r"), "will", Q1);
        w.join(with_will(delay));
        w.join(Connect { clean_start: false, ..with_will(delay) });
        w.expect(reader, line);
    }
}

// [MQTT-3.1.2-7]
#[test]
fn the_will_of_a_client_that_a_restart_cut_off_comes_after_its_delay() {
    let mut w = world();
    w.join_subscribed(v5_kept("r"), "will", Q1);
    w.join(with_will(10));
    w.restart();
    w.pass(9);
    assert_eq!(w.store.queue.len(), 0);
    w.pass(1);
    assert_eq!(w.store.queue.len(), 1);
    w.restart();
    w.pass(50);
    assert_eq!(w.store.queue.len(), 1, "once");
}

// [MQTT-3.1.2-14] [MQTT-3.1.2-15]
#[test]
fn a_will_can_be_retained() {
    let mut w = world();
    let mut connect = with_will(0);
    connect.will.as_mut().unwrap().retain = true;
    let client = w.join(connect);
    w.cut(client);
    let reader = w.join(v5("r"));
    w.subscribe(reader, "will", Q0);
    w.expect(reader, &["SUBACK 1 00", "will gone q0 retain"]);
}

/// A restart is the end of the connection and of a session without expiry, whatever the delay (3.1.2.5, 3.1.3.2.2).
// MQTT-3.1.2-7, MQTT-3.1.2-8, MQTT311-3.1.2-8
#[test]
fn the_will_of_a_session_that_ends_with_its_connection_comes_after_a_restart() {
    let v5_clean = Connect { session_expiry: None, ..with_will(100) };
    let v311_clean = Connect { will: Some(will("will", 0)), ..v311("c", true) };
    for connect in [v5_clean, v311_clean] {
        for client_is_back_first in [false, true] {
            let mut w = world();
            w.join_subscribed(v5_kept("r"), "will", Q1);
            w.join(connect.clone());
            assert_eq!(w.store.sessions.len(), 2);
            if client_is_back_first {
                w.restart_before_tick();
                w.join(Connect { clean_start: false, will: None, ..connect.clone() });
            }
            w.restart();
            assert_eq!(w.store.queue.len(), 1);
            let kept = usize::from(client_is_back_first && connect.session_expiry.is_none());
            assert!(w.store.sessions.len() <= 1 + kept);
            w.restart();
            w.pass(200);
            assert_eq!(w.store.queue.len(), 1, "once");
        }
    }
}

// MQTT-3.14.4-3
#[test]
fn a_will_that_was_withdrawn_does_not_come_after_a_restart() {
    let mut w = world();
    w.join_subscribed(v5_kept("r"), "will", Q1);
    let client = w.join(Connect { session_expiry: None, ..with_will(0) });
    w.disconnect(client, Reason::SUCCESS, None);
    assert_eq!(w.store.sessions.len(), 1);
    w.restart();
    assert!(w.store.queue.is_empty());
}

#[test]
fn nothing_of_a_session_without_expiry_is_stored_but_its_will() {
    let mut w = world();
    let client = w.join(Connect { session_expiry: None, ..with_will(0) });
    w.subscribe(client, "t", Q2);
    w.publish(client, publish("t", "x", Q2, 1));
    let store = &w.store;
    assert_eq!((store.sessions.len(), store.subscriptions.len()), (1, 0));
    assert!(store.queue.is_empty() && store.received.is_empty());
}
