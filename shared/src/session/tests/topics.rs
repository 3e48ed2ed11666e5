//! What the settings make of clients' topics: rewriting, and subscriptions by themselves.

use super::world::*;
use crate::{
    auth::Action,
    mqtt::packet::{Connect, Reason},
    session::{AutoSubscribe, Fanout, Rewrite, Settings},
};

fn rule(action: Action, filter: &str, to: &str) -> Rewrite {
    Rewrite { action, filter: filter.into(), to: to.into() }
}

fn rewriting(rules: &[(Action, &str, &str)]) -> Settings {
    let rewrite = rules.iter().map(|(action, filter, to)| rule(*action, filter, to)).collect();
    Settings { rewrite, ..Settings::default() }
}

fn auto(filter: &str, qos: u8) -> AutoSubscribe {
    AutoSubscribe { filter: filter.into(), qos, ..AutoSubscribe::default() }
}

fn subscribing(entries: &[AutoSubscribe]) -> Settings {
    Settings { auto_subscribe: entries.into(), ..Settings::default() }
}

fn in_world(settings: Settings) -> World {
    assert_eq!(settings.check_all("session"), Ok(()));
    World::new(settings, Fanout::AtOnce)
}

#[test]
fn a_topic_becomes_what_the_first_rule_that_matches_says() {
    for (filter, to, topic, expected) in [
        ("old/#", "new/{#}", "old/a/b", "new/a/b"),
        ("old/#", "new/{#}", "old", "new"),
        ("old/#", "new/{#}", "older/a", "older/a"),
        ("old/#", "{#}", "old/a/b", "a/b"),
        ("old/#", "{#}", "old", "later"),
        ("+/x/+", "y/{2}/{1}", "a/x/b", "y/b/a"),
        ("+/x/+/#", "{2}/{1}/{#}", "a/x/b/c/d", "b/a/c/d"),
        ("a", "%u/%c/100%%", "a", "ann/c1/100%"),
        ("a", "dev-%c", "a", "dev-c1"),
        ("#", "all/{#}", "$x/a", "$x/a"),
        ("/a", "/b", "/a", "/b"),
        ("a/#", "b/{#}", "a/", "b/"),
    ] {
        let mut w = in_world(rewriting(&[
            (Action::Subscribe, filter, "never"),
            (Action::Publish, filter, to),
            (Action::Publish, filter, "later"),
        ]));
        let client = w.connect_as(v5("c1"), Some("ann"));
        w.publish(client, publish(topic, "x", Q1, 1));
        w.expect(client, &["CONNACK 00", "PUBACK 1"]);
        assert_eq!(w.store.log[0].topic, expected, "{filter} {to} {topic}");
    }
}

#[test]
fn filters_wills_and_delayed_messages_are_rewritten_too() {
    let mut w = in_world(rewriting(&[(Action::Both, "old/#", "new/{#}")]));
    let reader = w.join(v5("r"));
    for filter in ["old/+", "$share/g/old/#"] {
        w.subscribe(reader, filter, Q0);
        w.expect(reader, &["SUBACK 1 00"]);
    }
    let client = w.join(Connect { will: Some(will("old/will", 0)), ..v5("c") });
    w.publish(client, publish("$delayed/1/old/late", "x", Q0, 0));
    w.cut(client);
    w.expect(reader, &["new/will gone q0"; 2]);
    w.pass(1);
    w.expect(reader, &["new/late x q0"; 2]);
    w.unsubscribe(reader, &["old/+", "$share/g/old/#", "old/+"]);
    w.expect(reader, &["UNSUBACK 1 00 00 11"]);
}

#[test]
fn an_alias_stands_for_the_topic_as_it_was_sent() {
    let mut w = in_world(rewriting(&[(Action::Both, "a/#", "a/x/{#}")]));
    let client = w.join(v5("c"));
    for topic in ["a/b", ""] {
        let publish =
            crate::mqtt::packet::Publish { topic_alias: Some(1), ..publish(topic, "x", Q0, 0) };
        w.publish(client, publish);
    }
    let topics: Vec<_> = w.store.log.iter().map(|one| one.topic.to_string()).collect();
    assert_eq!(topics, ["a/x/b"; 2], "once, not again for the alias");
}

#[test]
fn rights_are_those_for_the_topic_that_comes_out() {
    let mut w = in_world(rewriting(&[(Action::Both, "mine/#", "dev/%u/{#}")]));
    w.rules(&["* all dev/%u/#"]);
    let client = w.connect_as(v5("c"), Some("ann"));
    w.publish(client, publish("mine/t", "x", Q1, 1));
    w.publish(client, publish("other", "x", Q1, 2));
    w.subscribe(client, "mine/#", Q0);
    w.subscribe(client, "other", Q0);
    w.expect(client, &["CONNACK 00", "PUBACK 1", "PUBACK 2 87", "SUBACK 1 00", "SUBACK 1 87"]);
    assert_eq!(w.store.log[0].topic, "dev/ann/t");
    let nameless = w.join(v5("n"));
    w.publish(nameless, publish("mine/t", "x", Q1, 1));
    w.expect(nameless, &["PUBACK 1 87"]);
}

/// RabbitMQ CVE-2026-44838, mosquitto CVE-2017-7650: names that are patterns.
#[test]
fn names_that_would_be_patterns_are_refused_where_topics_are_made_of_them() {
    for evil in ["+", "#", "a/b", "$x"] {
        for settings in
            [rewriting(&[(Action::Both, "mine", "dev/%c")]), subscribing(&[auto("dev/%c/#", 0)])]
        {
            let mut w = in_world(settings);
            let client = w.connect(v5(evil));
            w.expect(client, &["CONNACK 85", "closed 85"]);
        }
        let mut w = in_world(subscribing(&[auto("dev/%u/#", 0)]));
        let client = w.connect_as(v5("c"), Some(evil));
        w.expect(client, &["CONNACK 87", "closed 87"]);
        w.join(v5(evil));
    }
}

#[test]
fn clients_have_the_subscriptions_of_the_settings_if_they_may() {
    let entries = [auto("dev/%c/#", 1), auto("user/%u", 0), auto("secret", 2)];
    let mut w = in_world(subscribing(&entries));
    let writer = w.join(v5("w"));
    w.publish(
        writer,
        crate::mqtt::packet::Publish { retain: true, ..publish("dev/c/r", "kept", Q1, 1) },
    );
    w.rules(&["* sub dev/%c/#", "* sub user/%u", "anonymous all #", "* pub #"]);
    for _ in 0..2 {
        let client = w.connect_as(Connect { session_expiry: Some(9), ..v5("c") }, Some("ann"));
        w.expect(client, &["CONNACK 00", "dev/c/r kept q1 #1 retain"]);
        for topic in ["dev/c/x", "dev/d/x", "user/ann", "secret"] {
            w.publish(writer, publish(topic, "x", Q1, 2));
        }
        w.expect(client, &["dev/c/x x q1 #2", "user/ann x q0"]);
        let denied = w.state.stats().denied.subscriptions;
        assert!(denied > 0, "secret");
        assert_eq!(w.store.subscriptions.len(), 2);
        w.disconnect(client, Reason::SUCCESS, Some(0));
        w.take(writer);
    }
}

#[test]
fn what_is_wrong_with_a_template_is_said_with_the_key() {
    for (filter, to) in [
        ("a/#/b", "x"),
        ("", "x"),
        ("a", ""),
        ("a", "x/+"),
        ("a", "x/#"),
        ("a", "{1}"),
        ("+", "{2}"),
        ("+", "{0}"),
        ("+", "x{1}"),
        ("a", "{#}"),
        ("#", "{#}/x"),
        ("a", "%x"),
        ("a", "%"),
    ] {
        let settings = rewriting(&[(Action::Both, "fine", "fine"), (Action::Both, filter, to)]);
        let error = settings.check_all("mqtt.session").unwrap_err();
        assert!(error.starts_with("`mqtt.session.rewrite` 2"), "{error}");
    }
    let shared = AutoSubscribe { no_local: true, ..auto("$share/g/t", 0) };
    for entry in [auto("", 0), auto("a/#/b", 0), auto("{1}", 0), auto("%x", 0), shared] {
        let error = subscribing(&[entry]).check_all("session").unwrap_err();
        assert!(error.starts_with("`session.auto_subscribe` 1"), "{error}");
    }
}
