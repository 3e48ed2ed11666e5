//! P1 and P2 under SIGKILL: what the edge acknowledged is in the cloud log exactly once and in order, whoever is killed
//! and whenever. (Power cuts are another test: a kill alone proves nothing about the disk.)

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rdkafka::Message as _;
use tributary_tests::{
    Checker, Cloud, Device, Edge,
    checker::{Verdict, payload},
    kafka::Reader,
};

const DEVICES: usize = 3;
const WINDOW: usize = 50;

/// Publishes without end, in order, again from the first unacknowledged message after each lost connection.
fn device(
    name: String,
    edge: std::net::SocketAddr,
    checker: Arc<Mutex<Checker>>,
    stop: Arc<AtomicBool>,
) {
    let mut first = 0;
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut device) = Device::connect(edge, &name) else {
            thread::yield_now();
            continue;
        };
        let (from, mut acked) = (first, 0);
        let messages = (from..from + 500).map(|seq| {
            checker.lock().expect("checker").sent(&name, seq);
            (format!("load/{name}"), payload(&name, seq).into())
        });
        let _ = device.publish_all(messages, WINDOW, |index| {
            checker.lock().expect("checker").acked(&name, from + index as u64);
            acked = acked.max(index as u64 + 1);
        });
        first += acked;
    }
}

/// Kills by turns under load, then reads the whole log.
fn run(
    rounds: usize,
    mut act: impl FnMut(usize, Cloud, Edge) -> (Cloud, Edge),
) -> (Verdict, usize) {
    let folder = tempfile::tempdir().expect("folder");
    let mut cloud = Cloud::start(&folder.path().join("cloud"));
    let edge_folder = folder.path().join("edge");
    let quick = ["--set", "uplink.backoff_min_ms=50", "--set", "uplink.backoff_max_ms=500"];
    let mut edge = Edge::start_with(&edge_folder, "gw1", Some(cloud.mqtt), &quick);
    let checker = Arc::new(Mutex::new(Checker::default()));
    let stop = Arc::new(AtomicBool::new(false));
    let devices: Vec<_> = (0..DEVICES)
        .map(|number| {
            let (checker, stop, address) = (checker.clone(), stop.clone(), edge.mqtt);
            thread::spawn(move || device(format!("d{number}"), address, checker, stop))
        })
        .collect();
    let count = || checker.lock().expect("checker").acked_count();
    for round in 0..rounds {
        // Only a run under load says anything: each round sees at least 300 more acknowledged.
        let (before, deadline) = (count(), Instant::now() + Duration::from_mins(1));
        while count() < before + 300 {
            assert!(Instant::now() < deadline, "devices are stuck in round {round}");
            thread::yield_now();
        }
        (cloud, edge) = act(round, cloud, edge);
    }
    stop.store(true, Ordering::Relaxed);
    devices.into_iter().for_each(|device| device.join().expect("device"));
    let reader = Reader::new(cloud.kafka, "mqtt.messages");
    let mut checker = checker.lock().expect("checker");
    while !checker.complete() {
        let Some(message) = reader.next(Duration::from_secs(30)) else { break };
        checker.read(message.payload().unwrap_or_default());
    }
    // Whatever is still on its way would be a duplicate or something never acked.
    while let Some(message) = reader.next(Duration::from_secs(2)) {
        checker.read(message.payload().unwrap_or_default());
    }
    drop(edge);
    (checker.verdict(), checker.acked_count())
}

#[test]
fn killing_the_edge_loses_and_repeats_nothing() {
    let (verdict, acked) = run(10, |_, cloud, edge| (cloud, edge.restart()));
    assert_eq!(verdict, Verdict::default(), "of {acked} acknowledged");
}

#[test]
fn killing_the_cloud_loses_and_repeats_nothing() {
    let (verdict, acked) = run(6, |_, cloud, edge| (cloud.restart(), edge));
    assert_eq!(verdict, Verdict::default(), "of {acked} acknowledged");
}

#[test]
fn killing_both_by_turns_loses_and_repeats_nothing() {
    let (verdict, acked) =
        run(
            8,
            |round, cloud, edge| {
                if round % 2 == 0 { (cloud.restart(), edge) } else { (cloud, edge.restart()) }
            },
        );
    assert_eq!(verdict, Verdict::default(), "of {acked} acknowledged");
}
