//! A disk that is full, or fails: what was acknowledged stays, publishers are told or wait, and all goes on by itself.

use std::{
    io::{BufRead as _, BufReader, ErrorKind},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tributary_shared::mqtt::{
    Packet, PacketId, Qos, Reason, Version,
    packet::{Connect, Publish},
};
use tributary_tests::{Device, Edge, device::connect_packet, http_get, process::until};

/// Why a test did not run, for whoever reads the output.
#[expect(clippy::print_stdout, reason = "a skipped test says so")]
fn say(text: &str) {
    println!("{text}");
}

/// A small file system of its own, where that is allowed.
struct Small(PathBuf);

impl Small {
    fn mount(at: &Path, size: &str) -> Option<Self> {
        std::fs::create_dir_all(at).expect("folder");
        let size = format!("size={size}");
        let mount = ["-t", "tmpfs", "-o", &size, "tmpfs"];
        let done = Command::new("mount").args(mount).arg(at).stderr(Stdio::null()).status();
        done.is_ok_and(|status| status.success()).then(|| Self(at.to_owned()))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn kept(client_id: &str, version: Version) -> Connect {
    Connect {
        clean_start: false,
        session_expiry: (version == Version::V5).then_some(3600),
        ..connect_packet(client_id, version)
    }
}

fn noise(number: usize, bytes: usize) -> Bytes {
    let mut state = number as u64 + 1;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    (0..bytes).map(|_| next()).collect()
}

fn message(payload: Bytes) -> Publish {
    Publish { topic: "t".into(), payload, qos: Qos::AtLeastOnce, ..Publish::default() }
}

#[test]
fn a_full_disk_refuses_publishers_loses_nothing_and_goes_on_when_there_is_room() {
    let folder = tempfile::tempdir().expect("folder");
    let at = folder.path().join("small");
    let Some(small) = Small::mount(&at, "32m") else {
        say("SKIP no file system can be mounted here");
        return;
    };
    let filler = at.join("filler");
    std::fs::write(&filler, vec![0_u8; 12 << 20]).expect("filler");
    let set = ["--set", "store.ballast_bytes=4194304", "--set", "store.checkpoint_pages=100"];
    let mut edge = Edge::start_with(&at.join("data"), "gw1", None, &set);
    let mut reader = Device::connect_with(edge.mqtt, kept("reader", Version::V5)).expect("reader");
    reader.subscribe("t", Qos::AtLeastOnce).expect("subscribed");
    drop(reader);
    let mut writer =
        Device::connect_with(edge.mqtt, connect_packet("w5", Version::V5)).expect("writer");
    let mut acked = Vec::new();
    for number in 0.. {
        let payload = noise(number, 16_000);
        let ack = writer.publish(message(payload.clone())).expect("an answer").expect("PUBACK");
        if ack.reason == Reason::QUOTA_EXCEEDED {
            break;
        }
        assert_eq!(ack.reason, Reason::SUCCESS);
        acked.push(payload);
        assert!(number < 3000, "a disk of 32 MiB is never full");
    }
    assert!(http_get(edge.admin, "/metrics").contains("tributary_disk_full 1\n"));
    // 3.1.1 has no code for it: no answer, and the connection stays.
    let mut older = Device::connect(edge.mqtt, "w311").expect("older");
    older.set_timeout(Duration::from_millis(700)).expect("timeout");
    let packet_id = PacketId::new(77);
    let waiting = Publish { packet_id, ..message("waited".into()) };
    older.send(&Packet::Publish(waiting)).expect("sent");
    let silence = older.receive().expect_err("no answer");
    assert!(matches!(silence.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{silence}");
    assert!(http_get(edge.admin, "/metrics").contains("tributary_connections_held 1\n"));
    // Reading and acknowledging go on: the first half of what was acknowledged.
    let mut reader = Device::connect_with(edge.mqtt, kept("reader", Version::V5)).expect("reader");
    let half = acked.len() / 2;
    for payload in &acked[..half] {
        assert_eq!(&reader.message().expect("a message").payload, payload);
    }
    // Room.
    std::fs::remove_file(&filler).expect("removed");
    older.set_timeout(Duration::from_mins(1)).expect("timeout");
    match older.receive().expect("an answer") {
        Packet::PubAck(ack) => assert_eq!(Some(ack.packet_id), packet_id),
        other => panic!("{other:?}"),
    }
    let last = writer.publish(message("last".into())).expect("an answer").expect("PUBACK");
    assert_eq!(last.reason, Reason::SUCCESS);
    drop(reader);
    edge = edge.restart();
    let mut reader = Device::connect_with(edge.mqtt, kept("reader", Version::V5)).expect("reader");
    let mut rest = Vec::new();
    while rest.last().is_none_or(|last| last != "last") {
        rest.push(reader.message().expect("a message").payload);
    }
    let expected = acked.into_iter().chain(["waited".into(), "last".into()]);
    let expected: Vec<Bytes> = expected.collect();
    // Some at the seam were delivered and their PUBACK was lost with the connection.
    let from = expected.len() - rest.len();
    assert!(from <= half, "{from} of {half} are gone");
    assert_eq!(rest, expected[from..]);
    drop((edge, small));
}

#[test]
fn an_edge_whose_disk_is_full_stops_when_it_is_told_to_and_has_all_that_it_acknowledged() {
    let folder = tempfile::tempdir().expect("folder");
    let set = ["--set", "store.max_bytes=1048576", "--set", "store.ballast_bytes=0"];
    let mut edge = Edge::start_with(folder.path(), "gw1", None, &set);
    let mut reader = Device::connect_with(edge.mqtt, kept("reader", Version::V5)).expect("reader");
    reader.subscribe("t", Qos::AtLeastOnce).expect("subscribed");
    drop(reader);
    // 3.1.1: what finds no room is neither refused nor acknowledged.
    let mut writer = Device::connect(edge.mqtt, "writer").expect("writer");
    writer.set_timeout(Duration::from_secs(3)).expect("timeout");
    let mut acked = Vec::new();
    while let Ok(Some(_)) = writer.publish(message(noise(acked.len(), 150_000))) {
        acked.push(noise(acked.len(), 150_000));
        assert!(acked.len() < 20, "a store of one MiB is never full");
    }
    assert!(http_get(edge.admin, "/metrics").contains("tributary_disk_full 1\n"));
    let began = Instant::now();
    edge.process.signal("TERM");
    while !edge.process.has_ended() {
        assert!(began.elapsed() < Duration::from_secs(20), "it does not stop");
        std::thread::sleep(Duration::from_millis(20));
    }
    let edge = Edge::start(folder.path(), "gw1", None);
    let mut reader = Device::connect_with(edge.mqtt, kept("reader", Version::V5)).expect("reader");
    for (number, payload) in acked.iter().enumerate() {
        assert_eq!(&reader.message().expect("a message").payload, payload, "message {number}");
    }
}

#[test]
fn a_disk_that_fails_acknowledges_nothing_and_the_store_is_opened_again() {
    let folder = tempfile::tempdir().expect("folder");
    let edge = Edge::start(folder.path(), "gw1", None);
    let mut reader =
        Device::connect_with(edge.mqtt, kept("reader", Version::V311)).expect("reader");
    reader.subscribe("t", Qos::AtLeastOnce).expect("subscribed");
    drop(reader);
    let pid = edge.process.id().to_string();
    let inject = "inject=fdatasync:error=EIO:when=40";
    let strace = ["-f", "-q", "-e", "trace=fdatasync", "-e", inject, "-p", &pid];
    let tracer = Command::new("strace").args(strace).stderr(Stdio::piped()).spawn();
    let Ok(mut tracer) = tracer else {
        say("SKIP strace is not installed");
        return;
    };
    // Its first line about a call says that it is attached.
    let (send, calls) = std::sync::mpsc::channel();
    let lines = BufReader::new(tracer.stderr.take().expect("piped")).lines();
    std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| drop(send.send(line))));
    let mut writer = Device::connect(edge.mqtt, "w").expect("writer");
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut acked = 0;
    let publish = |device: &mut Device, number: u64| {
        device.publish_all([("t".to_owned(), number.to_string().into())], 1, |_| ())
    };
    loop {
        if calls.try_iter().any(|line| line.contains("fdatasync")) {
            break;
        }
        if tracer.try_wait().expect("strace").is_some() || Instant::now() > deadline {
            say("SKIP strace may not look at processes here");
            let _ = tracer.kill();
            return;
        }
        publish(&mut writer, acked).expect("acknowledged");
        acked += 1;
    }
    let mut lost = 0;
    let goal = acked + 100;
    while acked < goal {
        if publish(&mut writer, acked).is_ok() {
            acked += 1;
            continue;
        }
        lost += 1;
        // It counts by thread, and the store has new ones.
        let _ = tracer.kill();
        assert!(lost < 100, "the store does not come back");
        let mut back = None;
        until("the store comes back", || {
            back = Device::connect(edge.mqtt, "w").ok();
            back.is_some()
        });
        writer = back.expect("a connection");
    }
    let _ = tracer.kill();
    let _ = tracer.wait();
    assert!(lost > 0, "the disk never failed");
    assert!(http_get(edge.admin, "/metrics").contains("tributary_store_reopened_total 1\n"));
    let mut reader =
        Device::connect_with(edge.mqtt, kept("reader", Version::V311)).expect("reader");
    // At least once: what was not acknowledged may be there twice.
    let mut next = 0;
    while next < acked {
        let payload = reader.message().expect("a message").payload;
        let number: u64 = std::str::from_utf8(&payload).expect("text").parse().expect("a number");
        assert!(number <= next, "{next} is missing");
        next = next.max(number + 1);
    }
}
