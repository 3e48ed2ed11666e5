//! Bad input gets an answer on the right layer, never a panic, never silence, never memory: garbage on every port, wrong
//! protocols, lengths that lie; and a start that cannot work ends with one sentence and exit code 1.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::{Command, Stdio},
    time::Duration,
};

use tributary_tests::{Cloud, Device, Edge, http_get, process::binary};

/// Sends bytes, closes the sending side, returns what came until the server closed.
fn throw(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).expect("connect");
    stream.set_read_timeout(Some(Duration::from_secs(15))).expect("timeout");
    // The server may close before it has read everything.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        Err(error) => panic!("{address} keeps a senseless connection open: {error}"),
    }
    answer
}

fn garbage(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

fn everything() -> Vec<(&'static str, Vec<u8>)> {
    let mut cases = vec![
        ("http", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        ("tls hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec()),
        ("a kafka frame of 2 GiB", b"\x7f\xff\xff\xff\x00\x03\x00\x01".to_vec()),
        ("a kafka frame of -1", b"\xff\xff\xff\xff\x00\x03\x00\x01".to_vec()),
        (
            "a kafka array of 2^31-1 topics",
            b"\x00\x00\x00\x0e\x00\x03\x00\x01\x00\x00\x00\x01\xff\xff\x7f\xff\xff\xff".to_vec(),
        ),
        ("an mqtt CONNECT of 256 MiB", b"\x10\xff\xff\xff\x7f\x00\x04MQTT".to_vec()),
        ("an mqtt length of 5 bytes", b"\x10\xff\xff\xff\xff\x7f".to_vec()),
        ("an mqtt PUBLISH first", b"\x30\x05\x00\x01ahi".to_vec()),
        ("an amqp frame of 4 GiB", b"AMQP\x00\x00\x09\x01\x01\x00\x00\xff\xff\xff\xff".to_vec()),
        ("amqp 1.0", b"AMQP\x00\x01\x00\x00".to_vec()),
    ];
    for seed in 1..20 {
        cases.push(("garbage", garbage(seed, 4096)));
    }
    cases
}

#[test]
fn garbage_on_any_port_is_answered_or_closed_and_costs_no_memory() {
    let folder = tempfile::tempdir().expect("folder");
    let cloud = Cloud::start(&folder.path().join("cloud"));
    let edge = Edge::start(&folder.path().join("edge"), "gw1", Some(cloud.mqtt));
    let before = (cloud.process.rss_kib(), edge.process.rss_kib());
    for address in [cloud.mqtt, cloud.kafka, cloud.amqp, edge.mqtt] {
        for (_, bytes) in everything() {
            let mut stream = TcpStream::connect(address).expect("connect");
            let _ = stream.write_all(&bytes);
            // Half-closed: nothing more can come, so the server has to end it.
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let mut rest = Vec::new();
            stream.set_read_timeout(Some(Duration::from_secs(15))).expect("timeout");
            match stream.read_to_end(&mut rest) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    panic!("{address} keeps a dead connection open")
                }
                _ => {}
            }
        }
    }
    let after = (cloud.process.rss_kib(), edge.process.rss_kib());
    assert!(after.0 < before.0 + 64 * 1024, "cloud grew from {} to {} KiB", before.0, after.0);
    assert!(after.1 < before.1 + 16 * 1024, "edge grew from {} to {} KiB", before.1, after.1);
    Device::connect(cloud.mqtt, "alive").expect("the cloud goes on");
    Device::connect(edge.mqtt, "alive").expect("the edge goes on");
    assert!(http_get(edge.admin, "/health").contains("ready"));
    assert!(http_get(cloud.admin, "/health").contains("ready"));
}

#[test]
fn an_amqp_port_tells_its_version_to_the_wrong_protocol() {
    let folder = tempfile::tempdir().expect("folder");
    let cloud = Cloud::start(folder.path());
    assert_eq!(throw(cloud.amqp, b"AMQP\x00\x01\x00\x00"), b"AMQP\x00\x00\x09\x01");
}

// [MQTT-3.1.2-2]
#[test]
fn an_mqtt_port_refuses_an_unknown_version_by_code() {
    let folder = tempfile::tempdir().expect("folder");
    let edge = Edge::start(folder.path(), "gw1", None);
    let answer = throw(edge.mqtt, b"\x10\x0d\x00\x04MQTT\x09\x02\x00\x3c\x00\x01a");
    assert_eq!(answer.first(), Some(&0x20), "a CONNACK, not {answer:?}");
}

/// Runs to its end; returns exit code and stderr.
fn fails(binary_name: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(binary(binary_name))
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("started");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_start_that_cannot_work_says_why_in_one_sentence() {
    let folder = tempfile::tempdir().expect("folder");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("port");
    let taken = taken.local_addr().expect("address").to_string();
    let data = folder.path().join("data").display().to_string();
    let url = format!("file://{data}");
    let file = folder.path().join("file");
    std::fs::write(&file, "not a folder").expect("file");
    let blocked = file.join("data").display().to_string();
    let blocked_url = format!("file://{blocked}");
    let config = folder.path().join("bad.toml");
    std::fs::write(&config, "[telemetry]\nno_such_key = 1\n").expect("config");
    let config = config.display().to_string();
    let any = "127.0.0.1:0";
    let cases: Vec<(&str, Vec<&str>, &str)> = vec![
        ("tributary-edge", vec!["serve", "--data", &data, "--id", "g", "--mqtt", &taken], &taken),
        ("tributary-edge", vec!["serve", "--data", &blocked, "--id", "g", "--mqtt", any], &blocked),
        (
            "tributary-edge",
            vec!["serve", "--data", &data, "--id", "g", "--mqtt", any, "--config", &config],
            "no_such_key",
        ),
        ("tributary-edge", vec!["serve", "--data", &data, "--id", "a/b", "--mqtt", any], "a/b"),
        (
            "tributary-edge",
            vec!["serve", "--data", &data, "--id", "g", "--mqtt", "0.0.0.0:0"],
            "0.0.0.0",
        ),
        (
            "tributary-cloud",
            vec!["serve", "--data", &url, "--mqtt", any, "--kafka", &taken],
            &taken,
        ),
        ("tributary-cloud", vec!["serve", "--data", &blocked_url, "--mqtt", any], &blocked),
        ("tributary-cloud", vec!["serve", "--data", &url, "--config", &config], "no_such_key"),
        ("tributary-cloud", vec!["serve", "--data", "ftp://x/y", "--mqtt", any], "ftp"),
    ];
    for (name, arguments, names) in cases {
        let (code, stderr) = fails(name, &arguments);
        // What does not mend itself has a code of its own, at which a service is not started again (config/systemd).
        let settings =
            name == "tributary-edge" && ["no_such_key", "a/b", "0.0.0.0"].contains(&names);
        let expected = if settings { 78 } else { 1 };
        assert_eq!(code, Some(expected), "{name} {arguments:?}: {stderr}");
        assert!(stderr.contains(names), "{name} {arguments:?} does not name `{names}`: {stderr}");
        assert!(!stderr.contains("panicked"), "{stderr}");
    }
}

#[test]
fn sigterm_stops_cleanly() {
    let folder = tempfile::tempdir().expect("folder");
    let mut cloud = Cloud::start(&folder.path().join("cloud"));
    let mut edge = Edge::start(&folder.path().join("edge"), "gw1", Some(cloud.mqtt));
    let mut device = Device::connect(edge.mqtt, "d").expect("connect");
    device.publish_all([("a".to_owned(), "b".into())], 1, |_| ()).expect("published");
    let started = std::time::Instant::now();
    assert_eq!(edge.process.stop(), Some(0));
    assert_eq!(cloud.process.stop(), Some(0));
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}
