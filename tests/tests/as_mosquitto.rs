//! The edge beside mosquitto: the same random sequences give the same packets but for differences that are explained, and
//! mosquitto's bridge works with it as it comes.
//!
//! By hand, for more: `cargo run --bin mqtt-differential -- --count 100000`. What differs and why: docs/reference/mqtt-differences.md.

use std::collections::BTreeSet;

use bytes::Bytes;
use tributary_shared::mqtt::{Qos, packet::Publish};
use tributary_tests::{
    Device, Edge,
    differential::{Mosquitto, campaign, mosquitto, rules::RULES},
    say,
};

const SEQUENCES: u64 = 300;

#[test]
fn random_sequences_are_answered_as_mosquitto_does_or_the_difference_is_explained() {
    let Some(binary) = mosquitto::installed() else { return say("SKIP no mosquitto here") };
    let folder = tempfile::tempdir().expect("folder");
    let edge = Edge::start(folder.path(), "gw1", None);
    let theirs = Mosquitto::start(&binary, "");
    let outcome = campaign(1..1 + SEQUENCES, 16, edge.mqtt, theirs.address);
    let stories: Vec<&str> = outcome.unexplained.iter().map(|(_, text)| text.as_str()).collect();
    assert!(stories.is_empty(), "{}", stories.join("\n"));
    assert_eq!(outcome.equal + outcome.explained, SEQUENCES);
    assert!(outcome.equal > SEQUENCES / 5, "rules that swallow all: {outcome:?}");
}

#[test]
fn every_explained_difference_has_its_row() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/mqtt-differences.md");
    let page = std::fs::read_to_string(page).expect("the page");
    let row = |line: &str| line.strip_prefix("| `")?.split('`').next().map(str::to_owned);
    let rows: BTreeSet<String> = page.lines().filter_map(row).collect();
    let rules: BTreeSet<String> = RULES.iter().map(|rule| rule.name.to_owned()).collect();
    assert_eq!(rows, rules);
}

/// A bridge first asks with the highest bit of the protocol level set (0x83, 0x84), is refused with return code 1, and asks
/// again as a plain client.
// [MQTT311-3.1.2-2]
#[test]
fn a_mosquitto_bridge_gets_through_both_ways_as_it_comes() {
    let Some(binary) = mosquitto::installed() else { return say("SKIP no mosquitto here") };
    for version in ["mqttv31", "mqttv311", "mqttv50"] {
        let folder = tempfile::tempdir().expect("folder");
        let edge = Edge::start(folder.path(), "gw1", None);
        let bridge = format!(
            "connection up\naddress {}\nbridge_protocol_version {version}\nrestart_timeout 1\n\
             notifications_local_only true\ntopic down/# in 1\ntopic up/# out 1",
            edge.mqtt
        );
        let theirs = Mosquitto::start(&binary, &bridge);
        let mut near = Device::connect(theirs.address, "near").expect("near");
        near.subscribe("$SYS/broker/connection/+/state", Qos::AtLeastOnce).expect("granted");
        while near.message().expect("state").payload != "1" {}
        let mut far = Device::connect(edge.mqtt, "far").expect("far");
        far.subscribe("up/#", Qos::AtLeastOnce).expect("granted");
        publish(&mut near, "up/a", "1");
        let message = far.message().expect("message");
        assert_eq!((&*message.topic, &message.payload[..]), ("up/a", &b"1"[..]), "{version}");
        // The bridge subscribed before it sent that.
        near.subscribe("down/#", Qos::AtLeastOnce).expect("granted");
        publish(&mut far, "down/b", "2");
        while near.message().expect("message").topic != "down/b" {}
    }
}

fn publish(device: &mut Device, topic: &str, payload: &'static str) {
    let (topic, payload) = (topic.into(), Bytes::from_static(payload.as_bytes()));
    let publish = Publish { qos: Qos::AtLeastOnce, topic, payload, ..Publish::default() };
    device.publish(publish).expect("acknowledged");
}
