//! The uplink is gone: devices and local subscribers go on, nothing acknowledged is lost when it comes back.

use std::time::Duration;

use rdkafka::Message as _;
use tributary_shared::mqtt::Qos;
use tributary_tests::{
    Checker, Cloud, Device, Edge,
    checker::{Verdict, payload},
    http_get,
    kafka::Reader,
};

#[test]
fn a_backlog_arrives_once_and_in_order_after_an_outage_and_an_edge_restart() {
    let folder = tempfile::tempdir().expect("folder");
    let mut cloud = Cloud::start(&folder.path().join("cloud"));
    let quick = ["--set", "uplink.backoff_min_ms=50", "--set", "uplink.backoff_max_ms=500"];
    let edge = Edge::start_with(&folder.path().join("edge"), "gw1", Some(cloud.mqtt), &quick);
    cloud.process.kill();
    let mut checker = Checker::default();
    let mut publish = |edge: &Edge, range: std::ops::Range<u64>| {
        let mut device = Device::connect(edge.mqtt, "d").expect("connect");
        let from = range.start;
        let messages: Vec<_> =
            range.map(|seq| ("out/d".to_owned(), payload("d", seq).into())).collect();
        for index in 0..messages.len() as u64 {
            checker.sent("d", from + index);
        }
        device
            .publish_all(messages, 100, |index| checker.acked("d", from + index as u64))
            .expect("published without an uplink");
    };
    publish(&edge, 0..10_000);
    let edge = edge.restart();
    publish(&edge, 10_000..20_000);
    let cloud = cloud.restart();
    let reader = Reader::new(cloud.kafka, "mqtt.messages");
    while !checker.complete() {
        let message = reader.next(Duration::from_mins(1)).expect("the backlog goes on");
        checker.read(message.payload().unwrap_or_default());
    }
    while let Some(message) = reader.next(Duration::from_secs(1)) {
        checker.read(message.payload().unwrap_or_default());
    }
    assert_eq!(checker.verdict(), Verdict::default());
    assert_eq!(checker.acked_count(), 20_000);
}

// [MQTT-4.4.0-1]
// [MQTT311-4.1.0-1]
#[test]
fn sessions_queues_and_retained_messages_survive_a_kill_of_the_edge() {
    let folder = tempfile::tempdir().expect("folder");
    let edge = Edge::start(folder.path(), "gw1", None);
    let mut subscriber = Device::connect_persistent(edge.mqtt, "sub").expect("connect");
    subscriber.subscribe("q/#", Qos::AtLeastOnce).expect("subscribe");
    drop(subscriber);
    let mut device = Device::connect(edge.mqtt, "dev").expect("connect");
    let messages = (0..100).map(|seq| ("q/a".to_owned(), payload("dev", seq).into()));
    device.publish_all(messages, 10, |_| ()).expect("published");
    let retained = tributary_shared::mqtt::packet::Publish {
        qos: Qos::AtLeastOnce,
        retain: true,
        topic: "state/a".into(),
        payload: "on".into(),
        ..Default::default()
    };
    device.publish(retained).expect("retained");
    let edge = edge.restart();
    let mut subscriber = Device::connect_persistent(edge.mqtt, "sub").expect("connect");
    assert!(subscriber.connack.session_present);
    for seq in 0..100 {
        let message = subscriber.message().expect("queued message");
        assert_eq!(message.payload, payload("dev", seq).as_bytes());
    }
    subscriber.subscribe("state/+", Qos::AtLeastOnce).expect("subscribe");
    let message = subscriber.message().expect("retained message");
    assert!(message.retain);
    assert_eq!(&message.payload[..], b"on");
    assert!(http_get(edge.admin, "/metrics").contains("tributary_"));
}
