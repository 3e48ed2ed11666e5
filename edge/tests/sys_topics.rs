//! What the edge says of itself below `$SYS/broker/`, as its clients and its metrics page see it.
#![allow(missing_docs, reason = "a test program")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that fails, fails"
)]

mod common;

use std::collections::BTreeMap;

use common::{Client, Edge};
use tributary_shared::mqtt::{Qos, Reason};

/// What mosquitto 2 tells and dashboards read, but for its memory tracking and what it calls deprecated.
const MOSQUITTO: [&str; 22] = [
    "version",
    "uptime",
    "clients/total",
    "clients/connected",
    "clients/disconnected",
    "clients/maximum",
    "clients/expired",
    "messages/received",
    "messages/sent",
    "messages/stored",
    "store/messages/count",
    "store/messages/bytes",
    "subscriptions/count",
    "retained messages/count",
    "bytes/received",
    "bytes/sent",
    "publish/messages/dropped",
    "publish/messages/received",
    "publish/messages/sent",
    "publish/bytes/received",
    "publish/bytes/sent",
    "connections/socket/count",
];

/// Values as they come, until `enough`.
fn read_until(
    client: &mut Client,
    values: &mut BTreeMap<String, String>,
    enough: impl Fn(&BTreeMap<String, String>) -> bool,
) {
    while !enough(values) {
        let message = client.message();
        let topic = message.topic.strip_prefix("$SYS/broker/").unwrap().to_owned();
        values.insert(topic, String::from_utf8(message.payload.to_vec()).unwrap());
    }
}

#[test]
fn the_tree_has_mosquittos_names_and_moves_with_the_messages() {
    let folder = tempfile::tempdir().unwrap();
    // What the edge publishes itself would be counted in the lane.
    let quiet = ["--set", "inventory.interval_s=0"];
    let more = ["--set", "sys.interval_s=1", "--cloud", "mqtt://127.0.0.1:9"];
    let more = [&more[..], &quiet].concat();
    let edge = Edge::start(folder.path(), &more);
    let mut reader = Client::connect(edge.mqtt, "reader", true);
    reader.subscribe("$SYS/#", Qos::ExactlyOnce);
    let mut values = BTreeMap::new();
    let all = |values: &BTreeMap<String, String>| {
        let loads = ["messages", "publish", "bytes"]
            .iter()
            .flat_map(|what| ["received", "sent"].map(|way| format!("load/{what}/{way}/15min")));
        MOSQUITTO.iter().all(|name| values.contains_key(*name))
            && loads.into_iter().all(|name| values.contains_key(&name))
    };
    read_until(&mut reader, &mut values, all);
    assert!(values["version"].starts_with("tributary-edge version "), "{values:?}");
    assert!(values["uptime"].ends_with(" seconds"), "{values:?}");

    let mut device = Client::connect(edge.mqtt, "device", true);
    device.publish("t", b"1234", Qos::AtLeastOnce, true);
    let lane = "tributary/lanes/normal/messages";
    read_until(&mut reader, &mut values, |values| {
        let is = |name: &str, value: &str| values.get(name).is_some_and(|found| found == value);
        is("publish/messages/received", "1")
            && is("publish/bytes/received", "4")
            && is("retained messages/count", "1")
            && is("clients/connected", "2")
            && is(lane, "1")
            && is("tributary/uplink/connected", "0")
    });
    let metrics = edge.get("/metrics");
    for line in [
        "tributary_messages_in_total 1\n",
        "tributary_retained_messages 1\n",
        "tributary_sessions 2\n",
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
    assert!(metrics.contains("tributary_disk_free_bytes "), "{metrics}");

    let refused = device.publish("$SYS/broker/uptime", b"forged", Qos::AtLeastOnce, true).unwrap();
    assert_eq!(refused.reason, Reason::NOT_AUTHORIZED);
    let mut late = Client::connect(edge.mqtt, "late", true);
    late.subscribe("$SYS/broker/version", Qos::AtMostOnce);
    let version = late.message();
    assert!(version.retain && version.payload.starts_with(b"tributary-edge"));
}

#[test]
fn an_interval_of_zero_tells_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let edge = Edge::start(folder.path(), &["--set", "sys.interval_s=0"]);
    let mut client = Client::connect(edge.mqtt, "c", true);
    client.subscribe("$SYS/#", Qos::AtMostOnce);
    client.subscribe("mine", Qos::AtMostOnce);
    client.publish("mine", b"first", Qos::AtMostOnce, false);
    assert_eq!(&client.message().payload[..], b"first");
}
