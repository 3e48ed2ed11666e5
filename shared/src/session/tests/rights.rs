//! Rights at every place where they matter, and the holes that other brokers had there.

use std::collections::BTreeMap;

use super::world::*;
use crate::{
    auth::{Action, Who},
    mqtt::packet::{Ack, Connect, Packet, Publish, Qos, Will},
    session::{Denied, Fanout, RefusedPublish, Settings},
};

/// Connects under a name, and expects to be let in.
pub(super) fn join_as(w: &mut World, connect: Connect, name: &str) -> Client {
    let client = w.connect_as(connect, Some(name));
    let got = w.take(client);
    assert!(got.first().is_some_and(|line| line.starts_with("CONNACK 00")), "{got:?}");
    client
}

// [MQTT-3.3.5-2] [MQTT-4.13.1-2]
// [MQTT311-3.3.5-2]
#[test]
fn a_publish_that_is_not_allowed_reaches_nobody_and_its_sender_is_told_where_it_can_be() {
    for (version, drop, qos, answers) in [
        (5, false, Q0, &[][..]),
        (5, false, Q1, &["PUBACK 7 87"]),
        (5, true, Q2, &["PUBREC 7 87"]),
        (4, false, Q0, &[]),
        (4, false, Q1, &["closed 87"]),
        (4, false, Q2, &["closed 87"]),
        (4, true, Q1, &["PUBACK 7"]),
        (4, true, Q2, &["PUBREC 7"]),
    ] {
        let refused_publish = if drop { RefusedPublish::Drop } else { RefusedPublish::Close };
        let settings = Settings { refused_publish, ..Settings::default() };
        let mut w = World::new(settings, Fanout::AtOnce);
        w.rules(&["* sub #", "ann pub ann/#"]);
        let reader = join_as(&mut w, v5("r"), "reader");
        w.subscribe(reader, "#", Q2);
        w.take(reader);
        let connect = if version == 5 { v5("c") } else { v311("c", true) };
        let client = join_as(&mut w, connect, "ann");
        let mut forbidden = publish("bob/x", "m", qos, 7);
        forbidden.retain = true;
        w.publish(client, forbidden);
        w.expect(client, answers);
        assert!(w.take(reader).is_empty());
        assert_eq!(w.state.stats().retained, 0);
        assert_eq!(w.state.stats().denied, Denied { publishes: 1, ..Denied::default() });
        assert_eq!(w.dropped, ["refused"]);
        if answers == ["PUBREC 7"] {
            w.ack(client, Packet::PubRel, 7);
            w.expect(client, &["PUBCOMP 7 92"]);
        }
        if answers != ["closed 87"] {
            w.publish(client, publish("ann/x", "m", Q0, 0));
            w.expect(reader, &["ann/x m q0"]);
        }
    }
}

#[test]
fn a_topic_alias_does_not_hide_the_topic() {
    let mut w = world();
    w.rules(&["ann pub ann/#"]);
    let client = join_as(&mut w, v5("c"), "ann");
    for (topic, answer) in [("secret", "PUBACK 7 87"), ("", "PUBACK 7 87")] {
        let mut one = publish(topic, "m", Q1, 7);
        one.topic_alias = Some(1);
        w.publish(client, one);
        w.expect(client, &[answer]);
    }
}

// [MQTT-3.9.3-1] and 3.8.4 of 3.1.1
// [MQTT-3.8.4-7]
#[test]
fn each_filter_of_a_subscribe_is_allowed_or_not_by_itself() {
    for (connect, answer) in
        [(v5("c"), "SUBACK 1 01 87 01 87 8f"), (v311("c", true), "SUBACK 1 01 80 01 80 80")]
    {
        let mut w = world();
        w.rules(&["* !sub a/secret", "ann sub a/b/# a/x"]);
        let client = join_as(&mut w, connect, "ann");
        let options = crate::mqtt::packet::SubscriptionOptions { qos: Q1, ..Default::default() };
        let filters =
            ["a/b/+", "a/+", "$share/g/a/x", "#", "a/#/b"].map(|filter| (filter, options));
        w.subscribe_with(client, &filters, None);
        w.expect(client, &[answer]);
        assert_eq!(w.state.stats().subscriptions, 2);
        assert_eq!(w.state.stats().denied.subscriptions, 2);
    }
}

/// mosquitto#3553, emqx#3340, mochi-mqtt#504, EMQX CVE-2026-6564; nanomq#2333 for the clean start.
#[test]
fn a_session_belongs_to_its_principal_and_nobody_else_can_touch_it() {
    for (thief, clean) in [(Some("bob"), false), (Some("bob"), true), (None, false), (None, true)] {
        let mut w = world();
        let ann = join_as(&mut w, v5_kept("c"), "ann");
        w.subscribe(ann, "t", Q1);
        w.expect(ann, &["SUBACK 1 01"]);
        let other = w.connect_as(Connect { clean_start: clean, ..v5_kept("c") }, thief);
        w.expect(other, &["CONNACK 87", "closed 87"]);
        let sender = w.join(v5("s"));
        w.publish(sender, publish("t", "1", Q0, 0));
        w.expect(ann, &["t 1 q0"]);
        w.cut(ann);
        w.publish(sender, publish("t", "2", Q1, 1));
        let other = w.connect_as(Connect { clean_start: clean, ..v5_kept("c") }, thief);
        w.expect(other, &["CONNACK 87", "closed 87"]);
        w.restart();
        let other = w.connect_as(Connect { clean_start: clean, ..v5_kept("c") }, thief);
        w.expect(other, &["CONNACK 87", "closed 87"]);
        let ann = w.connect_as(v5_kept("c"), Some("ann"));
        w.expect(ann, &["CONNACK 00 present", "t 2 q1 #1"]);
    }
}

/// mosquitto CVE-2017-7650, RabbitMQ CVE-2026-44838, nanomq#2344, emqx-docs#3598.
#[test]
fn a_name_with_wildcards_is_not_let_in_where_rules_use_it() {
    let mut w = world();
    w.rules(&["* all d/%c/# u/%u/#"]);
    for (client_id, name, answer) in [
        ("+", "ann", "CONNACK 85"),
        ("#", "ann", "CONNACK 85"),
        ("a/b", "ann", "CONNACK 85"),
        ("$a", "ann", "CONNACK 85"),
        ("c", "a+", "CONNACK 87"),
        ("c", "a/b", "CONNACK 87"),
    ] {
        let client = w.connect_as(v5(client_id), Some(name));
        let closed = answer.replace("CONNACK", "closed");
        w.expect(client, &[answer, &closed]);
    }
    let client = join_as(&mut w, v5("c1"), "ann");
    for (filter, answer) in [
        ("d/c1/#", "SUBACK 1 01"),
        ("u/ann/x", "SUBACK 1 01"),
        ("d/+/x", "SUBACK 1 87"),
        ("d/c2/#", "SUBACK 1 87"),
    ] {
        w.subscribe(client, filter, Q1);
        w.expect(client, &[answer]);
    }
    assert_eq!(w.state.stats().sessions, 1);
}

/// mosquitto CVE-2018-20145 and its kind: wills went past the rules.
#[test]
fn a_will_is_checked_at_connect_and_when_it_is_due() {
    let with_will = |client| Connect {
        will: Some(will("wills/ann", 10)),
        session_expiry: Some(100),
        ..v5(client)
    };
    let mut w = world();
    w.rules(&["reader sub #", "ann pub wills/#"]);
    let reader = join_as(&mut w, v5("r"), "reader");
    w.subscribe(reader, "#", Q0);
    w.take(reader);
    let bob = w.connect_as(with_will("b"), Some("bob"));
    w.expect(bob, &["CONNACK 87", "closed 87"]);
    for (rules, expected) in [
        (&["reader sub #", "ann pub wills/#"][..], &["wills/ann gone q0"][..]),
        (&["reader sub #", "ann pub else"], &[]),
    ] {
        w.rules(&["reader sub #", "ann pub wills/#"]);
        let ann = join_as(&mut w, with_will("a"), "ann");
        w.cut(ann);
        w.rules(rules);
        w.pass(20);
        w.expect(reader, expected);
    }
    assert_eq!(w.state.stats().denied.wills, 1);
}

/// mosquitto CVE-2018-12546 and CVE-2021-34434: what was allowed once stayed so.
#[test]
fn new_rules_end_subscriptions_and_the_client_learns_of_it() {
    for restart in [false, true] {
        let mut w = world();
        w.rules(&["* all #"]);
        let ann = join_as(&mut w, v5_kept("c"), "ann");
        w.subscribe(ann, "open", Q1);
        w.subscribe(ann, "secret", Q1);
        w.take(ann);
        w.rules(&["* pub #", "* sub open"]);
        w.expect(ann, &["DISCONNECT 87", "closed 87"]);
        assert_eq!(w.state.stats().denied.revoked, 1);
        if restart {
            w.restart();
            assert_eq!(w.state.stats().denied.revoked, 0, "stored");
        }
        let sender = join_as(&mut w, v5("s"), "bob");
        w.publish(sender, publish("secret", "1", Q1, 1));
        w.publish(sender, publish("open", "2", Q1, 2));
        let ann = w.connect_as(v5_kept("c"), Some("ann"));
        w.expect(ann, &["CONNACK 00 present", "open 2 q1 #1"]);
        w.subscribe(ann, "secret", Q1);
        w.expect(ann, &["SUBACK 1 87"]);
    }
}

#[test]
fn queued_messages_are_not_delivered_to_who_may_not_have_them_any_more() {
    for (online, restart, qos) in [
        (false, false, Q1),
        (false, true, Q1),
        (false, true, Q2),
        (true, false, Q1),
        (true, false, Q2),
    ] {
        let mut w = world();
        w.rules(&["* all #"]);
        let reader = Connect { receive_maximum: Some(1), ..v5_kept("c") };
        let ann = join_as(&mut w, reader.clone(), "ann");
        w.subscribe(ann, "+/x", qos);
        w.take(ann);
        if !online {
            w.cut(ann);
        }
        let sender = join_as(&mut w, v5("s"), "bob");
        for (at, topic) in (1..).zip(["a/x", "secret/x", "a/x", "secret/x"]) {
            w.publish(sender, publish(topic, &at.to_string(), qos, at));
            if qos == Qos::ExactlyOnce {
                w.ack(sender, Packet::PubRel, at);
            }
        }
        w.rules(&["* pub #", "* !sub secret/#", "* sub #"]);
        if restart {
            w.restart();
        }
        let ann = w.connect_as(reader, Some("ann"));
        let mut got = w.take(ann);
        assert_eq!(got.remove(0), "CONNACK 00 present");
        finish(&mut w, ann, &mut got);
        let payloads: Vec<&str> = got.iter().filter_map(|line| line.split(' ').nth(1)).collect();
        assert_eq!(payloads, ["1", "3"], "{online} {restart} {qos:?}");
        assert_eq!(w.state.stats().denied.deliveries, 2);
        assert_eq!(w.dropped.iter().filter(|why| **why == "not_authorized").count(), 2);
        assert!(w.store.queue.is_empty(), "nothing of it stays in the store");
    }
}

/// Acknowledges whatever comes until nothing does; `got` keeps the messages.
fn finish(w: &mut World, client: Client, got: &mut Vec<String>) {
    let mut new = got.clone();
    got.clear();
    while !new.is_empty() {
        for line in std::mem::take(&mut new) {
            let number = |word: &str| word.trim_start_matches('#').parse().ok();
            let id = line.split(' ').find(|word| word.starts_with('#')).and_then(number);
            if let Some(id) = id {
                let ack: fn(Ack) -> Packet =
                    if line.contains(" q2") { Packet::PubRec } else { Packet::PubAck };
                w.ack(client, ack, id);
                got.push(line);
            } else if let Some(id) = line.strip_prefix("PUBREL ").and_then(number) {
                w.ack(client, Packet::PubComp, id);
            }
            new.extend(w.take(client));
        }
    }
}

#[test]
fn retained_messages_come_only_to_who_may_have_them() {
    let mut w = world();
    w.rules(&["bob pub #", "ann sub a/#"]);
    let bob = join_as(&mut w, v5("b"), "bob");
    w.publish(bob, retained("a/x", "1"));
    w.publish(bob, retained("secret", "2"));
    let ann = join_as(&mut w, v5("c"), "ann");
    w.subscribe(ann, "#", Q0);
    w.subscribe(ann, "secret", Q0);
    w.subscribe(ann, "a/#", Q0);
    w.expect(ann, &["SUBACK 1 87", "SUBACK 1 87", "SUBACK 1 00", "a/x 1 q0 retain"]);
}

#[test]
fn rules_that_change_nothing_disturb_nobody() {
    let mut w = world();
    let ann = join_as(&mut w, v5("c"), "ann");
    w.subscribe(ann, "a", Q0);
    w.take(ann);
    w.rules(&["* all #"]);
    w.rules(&["* all #", "bob all $SYS/#"]);
    assert!(w.take(ann).is_empty());
    assert_eq!(w.state.stats().denied, Denied::default());
}

const NAMES: [&str; 3] = ["ann", "bob", "gw-1"];
const TOPICS: [&str; 4] = ["a/x", "a/ann", "secret/x", "b"];
const FILTERS: [&str; 8] =
    ["#", "a/#", "+/x", "a/ann", "secret/x", "b", "$share/g/a/+", "$share/g/+/x"];
const RULES: [&[&str]; 5] = [
    &["* all #"],
    &["* pub #", "* !sub secret/#", "* sub #", "* sub a/#"],
    &["ann all #", "gw-* pub a/%u b", "bob sub b"],
    &["bob !pub secret/#", "* all a/# secret/#"],
    &["* pub a/%u", "* sub +/x"],
];

/// Random clients under rules that change, with restarts: nobody gets what they may not have at that moment.
#[test]
fn whatever_happens_nobody_gets_what_the_rules_of_the_moment_forbid() {
    let mut delivered = 0;
    for seed in 0..300_u64 {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut below = |limit: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % limit as u64) as usize
        };
        let mut w = world();
        let mut online: BTreeMap<&str, Client> = BTreeMap::new();
        w.rules(RULES[below(RULES.len())]);
        for step in 0..120_u16 {
            let name = NAMES[below(NAMES.len())];
            let mut new = None;
            match (below(12), online.get(name).copied()) {
                (0, _) => w.rules(RULES[below(RULES.len())]),
                (1, _) if below(3) == 0 => {
                    online.clear();
                    w.restart();
                }
                (2, Some(client)) => {
                    w.cut(client);
                    online.remove(name);
                }
                (3..=5, Some(client)) => {
                    let qos = [Q0, Q1, Q2][below(3)];
                    w.subscribe(client, FILTERS[below(FILTERS.len())], qos);
                }
                (_, Some(client)) => {
                    let qos = [Q0, Q1, Q2][below(3)];
                    let mut one = publish(TOPICS[below(TOPICS.len())], name, qos, step + 1);
                    one.retain = below(4) == 0;
                    w.publish(client, one);
                }
                (_, None) => {
                    let will = Some(will(TOPICS[below(TOPICS.len())], 0));
                    let will = will.filter(|_| below(2) == 0);
                    new = Some(w.connect_as(Connect { will, ..v5_kept(name) }, Some(name)));
                }
            }
            online.extend(new.map(|client| (name, client)));
            for (name, client) in online.clone() {
                let who = Who { principal: Some(name), client_id: name };
                for line in w.take(client) {
                    if line.starts_with("closed") {
                        online.remove(name);
                    }
                    let topic = line.split(' ').next().unwrap();
                    if !TOPICS.contains(&topic) {
                        continue;
                    }
                    delivered += 1;
                    let may = w.permissions.may(who, Action::Subscribe, topic);
                    assert!(may, "seed {seed} step {step}: {name} got {line}");
                    // Nothing is in flight, or a full window would hide the rest.
                    let id = line.split(' ').find_map(|word| word.strip_prefix('#'));
                    if let Some(id) = id.map(|id| id.parse().unwrap()) {
                        if line.contains(" q2") {
                            w.ack(client, Packet::PubRec, id);
                            w.ack(client, Packet::PubComp, id);
                        } else {
                            w.ack(client, Packet::PubAck, id);
                        }
                    }
                }
            }
        }
    }
    assert!(delivered > 3_000, "{delivered} deliveries prove nothing");
}

/// mosquitto CVE-2018-12546: what was retained stayed to be had when its publisher had lost the right to publish it.
#[test]
fn a_retained_message_is_held_back_as_long_as_its_publisher_may_not_publish_it() {
    let mut w = world();
    let all = ["* all #", "anonymous all #"];
    w.rules(&all);
    let keep = |topic: &str| Publish { retain: true, ..publish(topic, topic, Q1, 1) };
    let ann = join_as(&mut w, v5("ann"), "ann");
    let with_will =
        Connect { will: Some(Will { retain: true, ..will("t/will", 0) }), ..v5("mallory") };
    let mallory = join_as(&mut w, with_will, "mallory");
    let nobody = w.join(v5("nobody"));
    w.publish(ann, keep("t/ann"));
    w.publish(mallory, keep("t/mallory"));
    w.publish(mallory, keep("t/both"));
    w.publish(nobody, keep("t/nobody"));
    w.cut(mallory);
    w.rules(&["mallory !pub #", "* all #", "anonymous sub #"]);
    w.take(ann);
    let seen = |w: &mut World, filter: &str| {
        let reader = join_as(w, v5("reader"), "reader");
        w.subscribe(reader, filter, Q0);
        let seen = w.take(reader);
        seen.iter()
            .filter_map(|line| Some(line.strip_prefix("t/")?.split(' ').next()?.to_owned()))
            .collect::<Vec<_>>()
    };
    assert_eq!(seen(&mut w, "t/#"), ["ann"]);
    assert!(seen(&mut w, "t/mallory").is_empty(), "by its very topic");
    w.publish(ann, keep("t/both"));
    assert_eq!(seen(&mut w, "t/#"), ["ann", "both"], "another answers for it now");
    w.restart();
    assert_eq!(seen(&mut w, "t/#"), ["ann", "both"]);
    assert_eq!(w.state.stats().retained, 5, "nothing is deleted");
    w.rules(&all);
    assert_eq!(seen(&mut w, "t/#"), ["ann", "both", "mallory", "nobody", "will"]);
}
