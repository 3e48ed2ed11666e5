//! `uplink.format = "mqtt"`: any MQTT 5 broker can be the cloud. Nothing acknowledged is lost; it may come twice.

use tributary_shared::mqtt::{
    Qos,
    packet::{Publish, PublishProperties},
};
use tributary_tests::{
    Checker, Device, Edge,
    checker::payload,
    differential::mosquitto::{Mosquitto, installed},
    http_get,
    process::free_address,
};

const PLAIN: [&str; 8] = [
    "--set",
    "uplink.format=mqtt",
    "--set",
    "uplink.prefix=site-7/",
    "--set",
    "uplink.backoff_min_ms=20",
    "--set",
    "uplink.backoff_max_ms=200",
];

/// Messages the subscriber's broker may hold for it.
const MORE: &str = "max_queued_messages 0\nmax_inflight_messages 0";

#[test]
fn every_acknowledged_message_reaches_a_foreign_broker_through_kills_of_the_edge() {
    let binary = installed().expect("mosquitto is installed by scripts/install");
    let folder = tempfile::tempdir().expect("folder");
    let address = free_address();
    let mut edge = Edge::start_with(folder.path(), "gw1", Some(address), &PLAIN);
    let mut checker = Checker::default();
    let mut publish = |edge: &Edge, range: std::ops::Range<u64>| {
        let mut device = Device::connect(edge.mqtt, "d").expect("connect");
        let from = range.start;
        range.clone().for_each(|seq| checker.sent("d", seq));
        let messages = range.map(|seq| ("out/d".to_owned(), payload("d", seq).into()));
        device
            .publish_all(messages, 100, |index| checker.acked("d", from + index as u64))
            .expect("published");
    };
    publish(&edge, 0..3_000);
    edge.process.kill();
    // There before the edge is again: a broker keeps nothing for a subscription to come.
    let broker = Mosquitto::start_at(address, &binary, MORE);
    let mut subscriber = Device::connect_persistent(broker.address, "backend").expect("connect");
    subscriber.subscribe("site-7/#", Qos::AtLeastOnce).expect("subscribe");
    for round in 1..=3 {
        edge = edge.restart();
        publish(&edge, round * 3_000..(round + 1) * 3_000);
    }
    while !checker.complete() {
        let message = subscriber.message().expect("the backlog goes on");
        assert_eq!(&*message.topic, "site-7/out/d");
        checker.read(&message.payload);
    }
    let verdict = checker.verdict();
    assert_eq!((verdict.lost, verdict.disordered, verdict.strange), (0, 0, 0), "{verdict:?}");
    assert_eq!(checker.acked_count(), 12_000);
}

#[test]
fn a_message_keeps_its_topic_properties_and_retain_flag() {
    let binary = installed().expect("mosquitto is installed by scripts/install");
    let folder = tempfile::tempdir().expect("folder");
    let broker = Mosquitto::start(&binary, MORE);
    let edge = Edge::start_with(folder.path(), "gw1", Some(broker.address), &PLAIN);
    let mut subscriber = Device::connect_persistent(broker.address, "backend").expect("connect");
    subscriber.subscribe("site-7/#", Qos::AtLeastOnce).expect("subscribe");
    let mut device = Device::connect_persistent(edge.mqtt, "dev").expect("connect");
    let user = |name: &str, value: &str| (name.into(), value.into());
    let properties = PublishProperties {
        payload_format: Some(1),
        message_expiry: Some(600),
        content_type: Some("text/plain".into()),
        response_topic: Some("answers/dev".into()),
        correlation_data: Some("\0\u{1}".into()),
        user_properties: vec![user("a", "1"), user("a", "2"), user("b", "")],
    };
    let publish = Publish {
        qos: Qos::AtLeastOnce,
        retain: true,
        topic: "state/\u{fc}".into(),
        payload: "on".into(),
        properties: properties.clone(),
        ..Publish::default()
    };
    device.publish(publish).expect("published");
    let message = subscriber.message().expect("message");
    assert_eq!((&*message.topic, &message.payload[..]), ("site-7/state/\u{fc}", &b"on"[..]));
    let left = message.properties.message_expiry;
    assert!(left.is_some_and(|left| (1..=600).contains(&left)), "{left:?}");
    assert_eq!(PublishProperties { message_expiry: Some(600), ..message.properties }, properties);
    let mut late = Device::connect_persistent(broker.address, "late").expect("connect");
    late.subscribe("site-7/#", Qos::AtLeastOnce).expect("subscribe");
    assert!(late.message().expect("retained").retain);
}

#[test]
fn a_message_that_the_broker_refuses_is_put_aside_and_the_others_go_on() {
    let binary = installed().expect("mosquitto is installed by scripts/install");
    let folder = tempfile::tempdir().expect("folder");
    let rights = folder.path().join("rights");
    std::fs::write(&rights, "topic readwrite site-7/open/#\n").expect("written");
    let more = format!("{MORE}\nacl_file {}", rights.display());
    let address = free_address();
    let data = folder.path().join("edge");
    let mut edge = Edge::start_with(&data, "gw1", Some(address), &PLAIN);
    let mut device = Device::connect(edge.mqtt, "d").expect("connect");
    let topic = |seq: u64| if seq == 70 { "closed/d" } else { "open/d" };
    let messages = (0..200).map(|seq| (topic(seq).to_owned(), payload("d", seq).into()));
    device.publish_all(messages, 100, |_| ()).expect("published");
    edge.process.kill();
    let broker = Mosquitto::start_at(address, &binary, &more);
    let mut subscriber = Device::connect_persistent(broker.address, "backend").expect("connect");
    subscriber.subscribe("site-7/#", Qos::AtLeastOnce).expect("subscribe");
    let edge = edge.restart();
    let mut checker = Checker::default();
    for seq in (0..200).filter(|seq| *seq != 70) {
        // More than once is allowed.
        (0..10).for_each(|_| checker.sent("d", seq));
        checker.acked("d", seq);
    }
    while !checker.complete() {
        checker.read(&subscriber.message().expect("the others go on").payload);
    }
    let verdict = checker.verdict();
    assert_eq!((verdict.lost, verdict.strange), (0, 0), "{verdict:?}");
    let metrics = http_get(edge.admin, "/metrics");
    assert!(metrics.contains("given_up_total{lane=\"normal\"} 1\n"), "{metrics}");
}
