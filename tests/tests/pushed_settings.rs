//! Settings pushed from the cloud to a gateway: taken, refused, taken back, kept; and no message is lost by any of it.

use std::{
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use rdkafka::Message as _;
use serde_json::Value;
use tributary_shared::mqtt::{Qos, Version, packet::Publish};
use tributary_tests::{
    Checker, Cloud, Device, Edge,
    checker::{Verdict, payload},
    device::connect_packet,
    http_get,
    kafka::Reader,
    process::until,
};

const WAIT: Duration = Duration::from_mins(1);
const QUICK: [&str; 6] = [
    "--set",
    "uplink.backoff_min_ms=20",
    "--set",
    "uplink.backoff_max_ms=200",
    "--set",
    "downlink.confirm_s=5",
];

fn status(admin: SocketAddr) -> Value {
    serde_json::from_str(&http_get(admin, "/status")).unwrap_or_default()
}

/// Retained, as an operator does it.
fn push(cloud: &Cloud, text: &str) {
    let mut operator =
        Device::connect_with(cloud.mqtt, connect_packet("operator", Version::V5)).expect("connect");
    let publish = Publish {
        qos: Qos::AtLeastOnce,
        retain: true,
        topic: "tributary/gw1/settings".into(),
        payload: text.to_owned().into(),
        ..Publish::default()
    };
    assert!(!operator.publish(publish).expect("published").expect("answered").reason.is_error());
}

fn becomes(edge: &Edge, state: &str, version: &str) -> Value {
    let mut now = Value::Null;
    until(&format!("{state} {version}"), || {
        now = status(edge.admin)["settings"].clone();
        now["state"] == state && (now["version"] == version || now["refused"] == version)
    });
    now
}

fn publish(edge: &Edge, checker: &mut Checker, range: std::ops::Range<u64>) {
    let mut device = Device::connect(edge.mqtt, "d").expect("connect");
    let from = range.start;
    let messages: Vec<_> =
        range.map(|seq| ("out/d".to_owned(), payload("d", seq).into())).collect();
    (from..from + messages.len() as u64).for_each(|seq| checker.sent("d", seq));
    device
        .publish_all(messages, 100, |index| checker.acked("d", from + index as u64))
        .expect("published");
}

#[test]
fn settings_from_the_cloud_are_applied_or_refused_and_the_cloud_hears_which() {
    let folder = tempfile::tempdir().expect("folder");
    let cloud = Cloud::start(&folder.path().join("cloud"));
    let mut operator =
        Device::connect_with(cloud.mqtt, connect_packet("watcher", Version::V5)).expect("connect");
    operator.subscribe("tributary/+/settings/state", Qos::AtLeastOnce).expect("subscribe");
    let edge = Edge::start_with(&folder.path().join("edge"), "gw1", Some(cloud.mqtt), &QUICK);
    let mut checker = Checker::default();
    publish(&edge, &mut checker, 0..500);
    push(&cloud, "version = 1\n[[lanes]]\nname = \"urgent\"\nfilters = [\"alarm/#\"]\n[[lanes]]\n");
    becomes(&edge, "applied", "1");
    let lanes = status(edge.admin)["lanes"].clone();
    let lanes = lanes.as_array().expect("lanes");
    assert!(lanes.len() == 2 && lanes.iter().any(|lane| lane["name"] == "urgent"), "{lanes:?}");
    publish(&edge, &mut checker, 500..1000);

    push(&cloud, "version = 2\n[uplink]\ncloud = \"mqtt://elsewhere\"\n");
    let refused = becomes(&edge, "refused", "2");
    assert!(refused["reason"].as_str().expect("why").contains("uplink.cloud"), "{refused}");
    push(&cloud, "version = 3\n[uplink]\nwindow_batchs = 3\n");
    let refused = becomes(&edge, "refused", "3");
    assert!(refused["reason"].as_str().expect("why").contains("window_batchs"), "{refused}");

    let edge = edge.restart();
    assert_eq!(status(edge.admin)["lanes"].as_array().map(Vec::len), Some(2), "kept");
    publish(&edge, &mut checker, 1000..1200);
    arrives(&cloud, &mut checker);
    assert_eq!(checker.verdict(), Verdict::default());
    let mut told = Vec::new();
    while told.last() != Some(&("refused".to_owned(), Value::from("3"))) {
        let message = operator.message().expect("told upstream");
        let state: Value = serde_json::from_slice(&message.payload).expect("JSON");
        let version =
            if state["state"] == "refused" { &state["refused"] } else { &state["version"] };
        told.push((state["state"].as_str().expect("state").to_owned(), version.clone()));
    }
    let expected = [("trial", "1"), ("applied", "1"), ("refused", "2"), ("refused", "3")];
    let mut expected = expected.iter().peekable();
    for (state, version) in &told {
        expected.next_if(|(s, v)| s == state && v == version);
    }
    assert!(expected.peek().is_none(), "{told:?}");
}

/// A way to the cloud that can be closed for new connections.
struct Way {
    address: SocketAddr,
    left: Arc<AtomicUsize>,
}

impl Way {
    /// Open for so many connections.
    fn to(cloud: SocketAddr, connections: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("port");
        let address = listener.local_addr().expect("address");
        let left = Arc::new(AtomicUsize::new(connections));
        let counted = left.clone();
        std::thread::spawn(move || {
            for from in listener.incoming().map_while(Result::ok) {
                let one = |left: usize| left.checked_sub(1);
                if counted.fetch_update(SeqCst, SeqCst, one).is_err() {
                    continue;
                }
                let Ok(to) = TcpStream::connect(cloud) else { continue };
                let pairs = [
                    (from.try_clone().expect("socket"), to.try_clone().expect("socket")),
                    (to, from),
                ];
                for (mut from, mut to) in pairs {
                    std::thread::spawn(move || {
                        let _ = std::io::copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Both);
                    });
                }
            }
        });
        Self { address, left }
    }
}

#[test]
fn settings_with_which_the_cloud_is_not_reached_are_taken_back_and_what_the_gateway_holds_arrives()
{
    let folder = tempfile::tempdir().expect("folder");
    let cloud = Cloud::start(&folder.path().join("cloud"));
    // One for the lane, one for commands; with the new settings there is none.
    let way = Way::to(cloud.mqtt, 2);
    let edge = Edge::start_with(&folder.path().join("edge"), "gw1", Some(way.address), &QUICK);
    let mut checker = Checker::default();
    publish(&edge, &mut checker, 0..300);
    until("connected", || status(edge.admin)["commands"]["connected"] == true);
    until("sent", || status(edge.admin)["buffered"] == 0);
    push(&cloud, "version = 9\n[uplink]\nwindow_batches = 3\n");
    becomes(&edge, "trial", "9");
    until("it serves with them", || {
        let now = status(edge.admin);
        now["ready"] == true && now["commands"]["connected"] == false
    });
    publish(&edge, &mut checker, 300..600);
    let state = becomes(&edge, "rolled_back", "9");
    assert!(state["reason"].as_str().expect("why").contains("not reached"), "{state}");
    assert_eq!(state["version"], Value::Null);
    let edge = edge.restart();
    publish(&edge, &mut checker, 600..900);
    // It was the line and not the settings: they lie at the cloud, and are tried again.
    way.left.store(usize::MAX, SeqCst);
    becomes(&edge, "applied", "9");
    arrives(&cloud, &mut checker);
    assert_eq!(checker.verdict(), Verdict::default());
}

/// Reads until everything acknowledged is there, and then whether something comes twice.
fn arrives(cloud: &Cloud, checker: &mut Checker) {
    let reader = Reader::new(cloud.kafka, "mqtt.messages");
    loop {
        let wait = if checker.complete() { Duration::from_secs(1) } else { WAIT };
        match reader.next(wait) {
            Some(message) if message.key() == Some(b"out/d") => {
                checker.read(message.payload().unwrap_or_default());
            }
            Some(_) => {}
            None => break,
        }
    }
}

#[test]
fn what_waits_in_a_lane_that_is_taken_away_still_arrives() {
    let folder = tempfile::tempdir().expect("folder");
    let mut cloud = Cloud::start(&folder.path().join("cloud"));
    let edge = Edge::start_with(&folder.path().join("edge"), "gw1", Some(cloud.mqtt), &QUICK);
    push(&cloud, "version = 1\n[[lanes]]\nname = \"data\"\n");
    becomes(&edge, "applied", "1");
    push(&cloud, "version = 2\n[[lanes]]\nname = \"other\"\n");
    becomes(&edge, "applied", "2");
    // Back to the first: its lane fills while the cloud is away, and is gone when it comes back.
    push(&cloud, "version = 3\n[[lanes]]\nname = \"data\"\n");
    becomes(&edge, "applied", "3");
    cloud.process.kill();
    let mut checker = Checker::default();
    publish(&edge, &mut checker, 0..2_000);
    let mut edge = edge;
    edge.process.kill();
    let cloud = cloud.restart();
    push(&cloud, "version = 4\n[[lanes]]\nname = \"other\"\n");
    let edge = edge.restart();
    publish(&edge, &mut checker, 2_000..2_100);
    becomes(&edge, "applied", "4");
    publish(&edge, &mut checker, 2_100..2_200);
    arrives(&cloud, &mut checker);
    let verdict = checker.verdict();
    assert_eq!((verdict.lost, verdict.duplicated), (0, 0), "{verdict:?}");
}
