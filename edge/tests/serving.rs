//! The edge as its users meet it: a process, its ports, its exit codes.
#![allow(missing_docs, reason = "a test program")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that fails, fails"
)]

mod common;

use std::{path::Path, time::Instant};

use common::{Client, Edge, command};
use tributary_shared::mqtt::{Packet, Qos, Reason, packet::Ack};

// [MQTT-4.3.2-4]
#[test]
fn what_was_acknowledged_survives_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let edge = Edge::start(folder.path(), &[]);
    let mut reader = Client::connect(edge.mqtt, "reader", true);
    reader.subscribe("a/#", Qos::AtLeastOnce);
    drop(reader);
    let mut device = Client::connect(edge.mqtt, "device", true);
    for i in 0..50 {
        let ack = device.publish("a/b", format!("{i}").as_bytes(), Qos::AtLeastOnce, false);
        assert_eq!(ack.unwrap().reason, Reason::SUCCESS);
    }
    device.publish("a/state", b"on", Qos::AtLeastOnce, true);
    let received = device.publish("a/twice", b"2", Qos::ExactlyOnce, false).unwrap();
    edge.kill();

    let edge = Edge::start(folder.path(), &[]);
    let mut device = Client::connect(edge.mqtt, "device", false);
    assert!(device.connack.session_present);
    // The PUBLISH of QoS 2 was taken; only its release is left.
    device.send(&Packet::PubRel(Ack::new(received.packet_id, Reason::SUCCESS)));
    assert!(matches!(device.packet(), Packet::PubComp(ack) if ack.reason == Reason::SUCCESS));
    let mut reader = Client::connect(edge.mqtt, "reader", false);
    assert!(reader.connack.session_present);
    let got: Vec<_> = (0..52).map(|_| reader.message().payload).collect();
    let mut expected: Vec<_> = (0..50).map(|i| i.to_string()).collect();
    expected.extend(["on".to_owned(), "2".to_owned()]);
    assert_eq!(got, expected);
    let mut late = Client::connect(edge.mqtt, "late", true);
    late.subscribe("a/state", Qos::AtMostOnce);
    let retained = late.message();
    assert_eq!((&retained.payload[..], retained.retain), (&b"on"[..], true));
}

#[test]
fn a_queue_longer_than_memory_comes_back_from_disk_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let more = ["--set", "session.queue_messages=10"];
    let edge = Edge::start(folder.path(), &more);
    let mut reader = Client::connect(edge.mqtt, "reader", true);
    reader.subscribe("q/#", Qos::AtLeastOnce);
    drop(reader);
    let mut device = Client::connect(edge.mqtt, "device", true);
    for i in 0..300 {
        device.publish("q/x", format!("{i}").as_bytes(), Qos::AtLeastOnce, false);
    }
    let mut reader = Client::connect(edge.mqtt, "reader", false);
    for i in 0..150 {
        assert_eq!(reader.message().payload, i.to_string());
    }
    drop(reader);
    edge.kill();
    let edge = Edge::start(folder.path(), &more);
    let mut reader = Client::connect(edge.mqtt, "reader", false);
    // What was in flight when the connection ended may come again.
    let first: usize =
        String::from_utf8(reader.message().payload.to_vec()).unwrap().parse().unwrap();
    assert!(first <= 150, "{first}");
    for i in first + 1..300 {
        assert_eq!(reader.message().payload, i.to_string());
    }
}

#[test]
fn a_full_lane_that_refuses_says_so_and_keeps_what_it_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("edge.toml");
    let text = "[[lanes]]\nname = \"bulk\"\nbudget_bytes = 1048576\npolicy = \"refuse\"\n";
    std::fs::write(&config, text).unwrap();
    let more = [
        "--cloud",
        "mqtt://127.0.0.1:9",
        "--set",
        "inventory.interval_s=0",
        "--config",
        config.to_str().unwrap(),
    ];
    let edge = Edge::start(&folder.path().join("data"), &more);
    let mut device = Client::connect(edge.mqtt, "device", true);
    // Noise, so that compression does not help.
    let mut noise = 1_u64;
    let payload: Vec<u8> = (0..100_000)
        .map(|_| {
            noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (noise >> 56) as u8
        })
        .collect();
    let mut taken = 0;
    let reason = loop {
        let reason = device.publish("x", &payload, Qos::AtLeastOnce, false).unwrap().reason;
        if reason.is_error() || taken == 100 {
            break reason;
        }
        taken += 1;
    };
    assert_eq!(reason, Reason::QUOTA_EXCEEDED);
    assert!((10..13).contains(&taken), "{taken}");
    let status = edge.get("/status");
    assert!(status.contains(&format!("\"buffered\":{taken},")), "{status}");
    assert!(edge.get("/metrics").contains("tributary_messages_dropped_total{why=\"lane_full\"} 1"));
    assert!(edge.get("/health").contains("publishers are refused"));
}

#[test]
fn sigterm_tells_clients_and_ends_within_five_seconds() {
    let folder = tempfile::tempdir().unwrap();
    let mut edge = Edge::start(folder.path(), &["--cloud", "mqtt://127.0.0.1:9"]);
    let mut device = Client::connect(edge.mqtt, "device", true);
    device.publish("x", b"1", Qos::AtLeastOnce, false);
    let began = Instant::now();
    let told = std::thread::spawn(move || device.packet());
    assert_eq!(edge.stop(), Some(0));
    assert!(began.elapsed().as_secs() < 5, "{:?}", began.elapsed());
    let Packet::Disconnect(told) = told.join().unwrap() else { panic!("no DISCONNECT") };
    assert_eq!(told.reason, Reason::SERVER_SHUTTING_DOWN);
}

/// It does not start: this exit code (78: settings, which do not mend themselves) and one sentence that holds `words`.
fn refuses(code: i32, data: &Path, more: &[&str], words: &str) {
    let ended = command(data, more).output().unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(code), "{said}");
    assert!(said.contains(words), "{said:?} has no {words:?}");
    let last = said.lines().filter(|line| line.starts_with("tributary-edge: ")).count();
    assert_eq!(last, 1, "{said}");
}

#[test]
fn a_wrong_start_is_one_sentence_and_an_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    refuses(1, &file, &[], "cannot be used");
    refuses(1, &file.join("below"), &[], "cannot be used");
    let data = folder.path().join("data");
    refuses(78, &data, &["--set", "store.comit_window_ms=3"], "comit_window_ms");
    refuses(78, &data, &["--set", "uplink.window_batches=0"], "window_batches");
    refuses(78, &data, &["--id", "a/b"], "`id`");
    refuses(78, &data, &["--cloud", "cloud:1884"], "uplink.cloud");
    refuses(78, &data, &["--mqtt", "0.0.0.0:0"], "loopback");
    refuses(78, &data, &["--mqtt", "nowhere"], "listen.mqtt");
    let edge = Edge::start(&data, &[]);
    refuses(1, &data, &[], "in use by another");
    refuses(
        1,
        &folder.path().join("other"),
        &["--mqtt", &edge.mqtt.to_string()],
        "another process uses",
    );
}

#[test]
fn at_sighup_rules_are_taken_and_bad_settings_change_nothing_and_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("edge.toml");
    let rule = |topic: &str| format!("[[rules]]\nwho = [\"anonymous\"]\ntopics = [\"{topic}\"]\n");
    std::fs::write(&file, rule("old/#")).unwrap();
    let data = folder.path().join("data");
    let edge = Edge::start(&data, &["--config", file.to_str().unwrap()]);
    let mut device = Client::connect(edge.mqtt, "device", true);
    let mut publish =
        |topic: &str| device.publish(topic, b"x", Qos::AtLeastOnce, false).unwrap().reason;
    assert_eq!((publish("old/a"), publish("new/a")), (Reason::SUCCESS, Reason::NOT_AUTHORIZED));
    std::fs::write(&file, rule("new/#")).unwrap();
    edge.hang_up();
    while !edge.get("/metrics").contains("tributary_access_reloads_total 1\n") {}
    assert_eq!((publish("old/a"), publish("new/a")), (Reason::NOT_AUTHORIZED, Reason::SUCCESS));
    std::fs::write(&file, "[[rulez]]\n").unwrap();
    edge.hang_up();
    while !edge.get("/status").contains("settings not read again") {}
    assert_eq!((publish("old/a"), publish("new/a")), (Reason::NOT_AUTHORIZED, Reason::SUCCESS));
}
