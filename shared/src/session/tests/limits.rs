//! What one packet of a client may hold, and how it is told that it was too much.

use bytes::Bytes;

use super::world::*;
use crate::{
    mqtt::packet::{
        Connect, Publish, PublishProperties, SubscriptionOptions, UserProperties, Will,
    },
    session::{Fanout, Settings},
};

fn pairs(count: usize, bytes: usize) -> UserProperties {
    (0..count).map(|_| ("k".into(), "v".repeat(bytes - 1).into())).collect()
}

fn properties(user_properties: UserProperties) -> PublishProperties {
    PublishProperties { user_properties, ..PublishProperties::default() }
}

/// Three of the most that the defaults allow, each with one more.
fn too_many() -> [(UserProperties, bool); 4] {
    [
        (pairs(32, 128), true),
        (pairs(33, 2), false),
        (pairs(1, 4_096), true),
        (pairs(1, 4_097), false),
    ]
}

#[test]
fn a_message_with_too_many_user_properties_is_refused() {
    for (user, taken) in too_many() {
        let mut w = world();
        let client = w.join(v5("c"));
        for qos in [Q0, Q1, Q2] {
            let properties = properties(user.clone());
            w.publish(client, Publish { properties, ..publish("t", "x", qos, 1) });
        }
        let lines: &[&str] =
            if taken { &["PUBACK 1", "PUBREC 1"] } else { &["PUBACK 1 97", "PUBREC 1 97"] };
        w.expect(client, lines);
        assert_eq!((w.store.log.len(), w.dropped.len()), if taken { (3, 0) } else { (0, 3) });
    }
}

#[test]
fn a_connect_with_too_many_user_properties_or_too_large_a_will_is_refused() {
    let mut connects = Vec::new();
    for (user, taken) in too_many() {
        connects.push((Connect { user_properties: user.clone(), ..v5("c") }, taken));
        let will = Will { properties: properties(user), ..will("t", 0) };
        connects.push((Connect { will: Some(will), ..v5("c") }, taken));
    }
    for (bytes, taken) in [(65_536, true), (65_537, false)] {
        let will = Will { payload: Bytes::from(vec![0; bytes]), ..will("t", 0) };
        connects.push((Connect { will: Some(will), ..v5("c") }, taken));
    }
    for (connect, taken) in connects {
        let mut w = world();
        let client = w.connect(connect);
        let lines: &[&str] = if taken { &["CONNACK 00"] } else { &["CONNACK 97", "closed 97"] };
        w.expect(client, lines);
    }
}

// MQTT-3.9.3-1
#[test]
fn filters_over_the_limit_are_refused_each_by_itself_and_all_can_be_given_up() {
    let mut w = World::new(Settings { filters: 2, ..Settings::default() }, Fanout::AtOnce);
    for (connect, refused) in [(v5("five"), "97"), (v311("three", true), "80")] {
        let client = w.join(connect);
        let filters = ["a", "b", "c", "d"].map(|filter| (filter, SubscriptionOptions::default()));
        w.subscribe_with(client, &filters, None);
        w.expect(client, &[&format!("SUBACK 1 00 00 {refused} {refused}")]);
    }
    let client = w.join(v5("c"));
    for filter in ["a", "b", "c"] {
        w.subscribe(client, filter, Q0);
    }
    w.take(client);
    w.unsubscribe(client, &["a", "b", "c"]);
    w.expect(client, &["UNSUBACK 1 00 00 00"]);
}
