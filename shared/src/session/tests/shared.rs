//! Shared subscriptions.

use super::world::*;
use crate::{
    mqtt::packet::{Packet, SubscriptionOptions},
    session::{Fanout, Settings},
};

// [MQTT-4.8.2-4] [MQTT-4.8.2-5]
#[test]
fn each_group_gets_each_message_once_in_turn() {
    let mut w = world();
    let members = ["a", "b"].map(|name| w.join_subscribed(v5(name), "$share/g/t/#", Q1));
    let other = w.join_subscribed(v5("other"), "$share/h/t/#", Q0);
    let plain = w.join_subscribed(v5("plain"), "t/#", Q0);
    let writer = w.join(v5("w"));
    for number in 1..=4 {
        w.publish(writer, publish("t/x", &number.to_string(), Q1, 1));
    }
    w.expect(members[0], &["t/x 1 q1 #1", "t/x 3 q1 #2"]);
    w.expect(members[1], &["t/x 2 q1 #1", "t/x 4 q1 #2"]);
    assert_eq!((w.take(other).len(), w.take(plain).len()), (4, 4));
}

// [MQTT-3.8.3-4] [MQTT-4.8.2-1] [MQTT-4.8.2-2]
#[test]
fn a_shared_subscription_has_no_no_local_and_gets_nothing_retained() {
    let mut w = world();
    let client = w.join(v5("c"));
    w.publish(client, retained("t", "x"));
    w.subscribe(client, "$share/g/t", Q0);
    w.expect(client, &["SUBACK 1 00"]);
    let no_local = SubscriptionOptions { no_local: true, ..Default::default() };
    w.subscribe_with(client, &[("$share/g/t", no_local)], None);
    w.expect(client, &["DISCONNECT 82", "closed 82"]);
}

#[test]
fn members_that_are_away_or_full_are_passed_over() {
    let small = Settings { inflight_messages: 1, queue_messages: 2, ..Settings::default() };
    let mut w = World::new(small, Fanout::AtOnce);
    let away = w.join_subscribed(v5_kept("away"), "$share/g/t", Q1);
    w.cut(away);
    let slow = w.join_subscribed(v5("slow"), "$share/g/t", Q1);
    let quick = w.join_subscribed(v5("quick"), "$share/g/t", Q1);
    let writer = w.join(v5("w"));
    let mut got = 0;
    for _ in 0..20 {
        w.publish(writer, publish("t", "x", Q1, 1));
        for line in w.take(quick) {
            got += 1;
            w.ack(quick, Packet::PubAck, line.rsplit('#').next().unwrap().parse().unwrap());
        }
    }
    assert_eq!((got, w.take(slow).len(), w.store.queue.len()), (17, 1, 0));
}

#[test]
fn a_message_goes_to_a_member_that_keeps_it_rather_than_to_one_that_drops_it() {
    let small = Settings { inflight_messages: 1, queue_messages: 2, ..Settings::default() };
    let mut w = World::new(small, Fanout::AtOnce);
    let away = w.join_subscribed(v5_kept("away"), "$share/g/t", Q1);
    w.cut(away);
    w.join_subscribed(v5("stuck"), "$share/g/t", Q1);
    let writer = w.join(v5("w"));
    for _ in 0..10 {
        w.publish(writer, publish("t", "x", Q1, 1));
    }
    assert_eq!((w.store.queue.len(), w.dropped.len()), (7, 0));
}

#[test]
fn a_group_without_connected_members_keeps_messages_for_one_that_is_away() {
    let mut w = world();
    let away = w.join_subscribed(v5_kept("away"), "$share/g/t", Q1);
    w.cut(away);
    let writer = w.join(v5("w"));
    w.publish(writer, publish("t", "x", Q1, 1));
    w.publish(writer, publish("t", "x", Q0, 0));
    w.restart();
    let away = w.connect(v5_kept("away"));
    w.expect(away, &["CONNACK 00 present", "t x q1 #1"]);
}

// [MQTT-4.8.2-4]
#[test]
fn what_a_leaving_member_had_goes_to_the_others() {
    for (leaver, stayer) in [(false, false), (false, true), (true, false), (true, true)] {
        let small = Settings { inflight_messages: 2, ..Settings::default() };
        let mut w = World::new(small, Fanout::AtOnce);
        let connect = |name: &str, kept| if kept { v5_kept(name) } else { v5(name) };
        let leaving = w.join_subscribed(connect("leaving", leaver), "$share/g/t", Q2);
        let writer = w.join(v5("w"));
        for (number, qos) in [(1, Q1), (2, Q2), (3, Q2)] {
            w.publish(writer, publish("t", &number.to_string(), qos, number));
        }
        w.expect(leaving, &["t 1 q1 #1", "t 2 q2 #2"]);
        let staying = w.join_subscribed(connect("staying", stayer), "$share/g/t", Q2);
        w.cut(leaving);
        w.expect(staying, &["t 1 q1 #1", "t 3 q2 #2"]);
        let stored = w.store.queue.len();
        assert_eq!(
            stored,
            usize::from(leaver) + 2 * usize::from(stayer),
            "a sent QoS 2 message stays"
        );
    }
}
