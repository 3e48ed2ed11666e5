//! SUBSCRIBE, UNSUBSCRIBE and what matches.

use super::world::*;
use crate::{
    mqtt::packet::{Connect, Reason, Subscribe, SubscribeFilter, SubscriptionOptions},
    session::{Event, Fanout, Settings},
};

fn options(qos: crate::mqtt::Qos) -> SubscriptionOptions {
    SubscriptionOptions { qos, ..Default::default() }
}

// [MQTT-3.8.4-1] [MQTT-3.8.4-6] [MQTT-3.8.4-7] [MQTT-3.9.3-1] [MQTT-3.9.3-2]
#[test]
fn each_filter_is_answered_by_itself() {
    let limits =
        Settings { subscriptions: 3, filter_bytes: 10, topic_levels: 3, ..Settings::default() };
    let filters = ["a", "a#", "b/#", "", "1234567890a", "a/b/c/d", "$share/g", "c", "d", "a"];
    let filters = filters.map(|filter| (filter, options(Q1)));
    for (connect, line) in [
        (v5("c"), "SUBACK 1 01 8f 01 8f 97 97 8f 01 97 01"),
        (v311("c", true), "SUBACK 1 01 80 01 80 80 80 80 01 80 01"),
    ] {
        let mut w = World::new(limits.clone(), Fanout::AtOnce);
        let client = w.join(connect);
        w.subscribe_with(client, &filters, None);
        w.expect(client, &[line]);
        assert_eq!(w.state.stats().subscriptions, 3);
    }
}

#[test]
fn filters_that_the_host_refuses_are_answered_by_themselves() {
    for (connect, line) in [(v5("c"), "SUBACK 1 00 87 00"), (v311("c", true), "SUBACK 1 00 80 00")]
    {
        let mut w = world();
        let connection = w.join(connect);
        let filter = |filter: &str| SubscribeFilter { filter: filter.into(), options: options(Q0) };
        let subscribe = Box::new(Subscribe {
            packet_id: id(1),
            filters: ["a", "secret", "b"].map(filter).into(),
            subscription_id: None,
            user_properties: Vec::new(),
        });
        let refused = vec![None, Some(Reason::NOT_AUTHORIZED)];
        w.event(Event::RefusedFilters { connection, subscribe, refused });
        w.expect(connection, &[line]);
        assert_eq!(w.state.stats().subscriptions, 2);
        let filters = ["a"].map(filter).into();
        let (packet_id, user_properties) = (id(2), Vec::new());
        let again = Subscribe { packet_id, filters, subscription_id: None, user_properties };
        let refused = vec![Some(Reason::NOT_AUTHORIZED)];
        w.event(Event::RefusedFilters { connection, subscribe: Box::new(again), refused });
        assert_eq!(w.state.stats().subscriptions, 1, "what it had before is taken from it");
    }
}

// [MQTT-3.10.4-1] [MQTT-3.10.4-2] [MQTT-3.10.4-4] [MQTT-3.10.4-5] [MQTT-3.11.3-1] [MQTT-3.11.3-2]
#[test]
fn unsubscribing_says_what_there_was() {
    let mut w = world();
    let client = w.join(v5_kept("c"));
    w.subscribe_with(client, &[("a/+", options(Q1)), ("$share/g/b", options(Q0))], None);
    w.take(client);
    w.unsubscribe(client, &["a/+", "a/b", "$share/g/b", "a#"]);
    w.expect(client, &["UNSUBACK 1 00 11 00 8f"]);
    assert_eq!((w.state.stats().subscriptions, w.store.subscriptions.len()), (0, 0));
    w.publish(client, publish("a/b", "x", Q0, 0));
    w.expect(client, &[]);
    let old = w.join(v311("old", true));
    w.unsubscribe(old, &["a"]);
    w.expect(old, &["UNSUBACK 1"]);
}

// [MQTT-3.3.4-2] [MQTT-3.3.4-3] [MQTT-3.3.4-4] [MQTT-3.3.4-5]
#[test]
fn overlapping_subscriptions_give_one_copy_with_the_highest_qos_and_all_ids() {
    let mut w = world();
    let client = w.join(v5("c"));
    w.subscribe_with(client, &[("a/+", options(Q1))], Some(3));
    w.subscribe_with(client, &[("#", options(Q0))], Some(1));
    w.subscribe_with(client, &[("a/b", options(Q2))], None);
    w.take(client);
    w.publish(client, publish("a/b", "x", Q2, 1));
    let line = w.take(client).remove(0);
    assert!(
        ["a/b x q2 #1 ids=[1, 3]", "a/b x q2 #1 ids=[3, 1]"].contains(&line.as_str()),
        "{line}"
    );
}

// [MQTT-3.3.4-5]
#[test]
fn where_it_is_wanted_each_overlapping_subscription_gives_its_own_copy() {
    let settings = Settings { copy_each_match: true, ..Settings::default() };
    let mut w = World::new(settings, Fanout::AtOnce);
    let client = w.join(v5("c"));
    w.subscribe_with(client, &[("a/+", options(Q1))], Some(3));
    w.subscribe_with(client, &[("#", options(Q0))], Some(1));
    w.subscribe_with(client, &[("a/b", options(Q2))], None);
    w.take(client);
    w.publish(client, publish("a/b", "x", Q2, 1));
    let mut lines = w.take(client);
    lines.sort_unstable();
    assert_eq!(lines.len(), 4);
    let each = ["PUBREC 1", "a/b x q0 ids=[1]", "a/b x q1 #", "a/b x q2 #"];
    assert!(lines.iter().zip(each).all(|(line, begin)| line.starts_with(begin)), "{lines:?}");
    assert!(lines[2].ends_with("ids=[3]") && !lines[3].contains("ids"));
}

// [MQTT-3.8.3-3]
#[test]
fn no_local_keeps_a_clients_own_messages_from_it() {
    let mut w = world();
    let no_local = SubscriptionOptions { no_local: true, ..options(Q1) };
    let (one, other) = (w.join(v5("one")), w.join(v5("other")));
    for client in [one, other] {
        w.subscribe_with(client, &[("t", no_local)], Some(1));
        w.take(client);
    }
    w.publish(one, publish("t", "x", Q0, 0));
    w.expect(one, &[]);
    w.expect(other, &["t x q0 ids=[1]"]);
    w.subscribe_with(one, &[("#", options(Q0))], Some(2));
    w.take(one);
    w.publish(one, publish("t", "x", Q0, 0));
    w.expect(one, &["t x q0 ids=[2]"]);
}

// [MQTT-3.8.4-3]
#[test]
fn a_repeated_subscription_replaces_the_first() {
    let mut w = world();
    let client = w.join_subscribed(v5("c"), "t", Q2);
    w.subscribe(client, "t", Q0);
    w.expect(client, &["SUBACK 1 00"]);
    w.publish(client, publish("t", "x", Q1, 1));
    w.expect(client, &["t x q0", "PUBACK 1"]);
}

// [MQTT-4.7.2-1]
#[test]
fn leading_wildcards_do_not_match_dollar_topics() {
    let mut w = world();
    let all = w.join_subscribed(v5("all"), "#", Q0);
    let level = w.join_subscribed(v5("level"), "+/status", Q0);
    let named = w.join_subscribed(v5("named"), "$SYS/+", Q0);
    let message = w.join(v5("w"));
    w.publish(message, publish("$SYS/status", "x", Q0, 0));
    w.expect(all, &[]);
    w.expect(level, &[]);
    w.expect(named, &["$SYS/status x q0"]);
}

#[test]
fn subscriptions_of_a_kept_session_are_there_after_a_restart_with_their_options() {
    let mut w = world();
    let client = w.join(v5_kept("c"));
    let as_published = SubscriptionOptions { retain_as_published: true, ..options(Q1) };
    w.subscribe_with(client, &[("t/#", as_published)], Some(9));
    w.restart();
    let client = w.connect(v5_kept("c"));
    w.expect(client, &["CONNACK 00 present"]);
    w.publish(client, crate::mqtt::packet::Publish { retain: true, ..publish("t", "x", Q1, 1) });
    w.expect(client, &["t x q1 #1 retain ids=[9]", "PUBACK 1"]);
}

#[test]
fn a_message_from_the_host_reaches_subscribers_and_is_kept_for_those_away() {
    let mut w = world();
    let reader = w.join_subscribed(v5_kept("r"), "t", Q1);
    w.cut(reader);
    let writer = w.join(v5("w"));
    w.publish(writer, publish("t", "x", Q1, 1));
    let message = w.store.log[0].clone();
    w.event(Event::Message { message, stored: None });
    assert_eq!((w.store.log.len(), w.store.queue.len()), (1, 2), "not taken for a client's");
    let reader = w.connect(Connect { receive_maximum: Some(9), ..v5_kept("r") });
    w.expect(reader, &["CONNACK 00 present", "t x q1 #1", "t x q1 #2"]);
}
