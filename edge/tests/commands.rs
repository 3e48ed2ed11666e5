//! The sub-commands as an operator meets them: what they print, and their exit codes.
#![allow(missing_docs, reason = "a test program")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that fails, fails"
)]

mod common;

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Output, Stdio},
};

use common::Edge;

/// Runs a command with arguments and stdin to its end.
fn run(arguments: &[&str], stdin: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tributary-edge"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // One that ends early does not read all of it.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    child.wait_with_output().unwrap()
}

/// Runs a command that is to end with `code`; what it printed.
fn ends(code: i32, arguments: &[&str], stdin: &str) -> String {
    let output = run(arguments, stdin.as_bytes());
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    let out = String::from_utf8(output.stdout).unwrap();
    if code == 0 { out } else { format!("{out}{said}") }
}

#[test]
fn what_is_published_is_printed_from_every_source_with_every_protocol_version() {
    let folder = tempfile::tempdir().unwrap();
    let edge = Edge::start(&folder.path().join("data"), &[]);
    let port = edge.mqtt.port().to_string();
    let file = folder.path().join("file");
    std::fs::write(&file, "from a file").unwrap();
    let file = file.to_str().unwrap();
    for (version, qos) in [("mqttv5", "0"), ("mqttv311", "1"), ("mqttv31", "2"), ("5", "2")] {
        for (source, stdin, expected) in [
            (&["-m", "-1.5"][..], "", "-1.5"),
            (&["-f", file], "", "from a file"),
            (&["-s"], "two\nlines", "two\nlines"),
        ] {
            let publish =
                ["pub", "-p", &port, "-V", version, "-q", qos, "-t", "t/1", "-r", "-i", "p"];
            ends(0, &[&publish[..], source].concat(), stdin);
            let read = ["sub", "-p", &port, "-V", version, "-q", qos, "-t", "t/+", "-C", "1", "-v"];
            assert_eq!(ends(0, &read, ""), format!("t/1 {expected}\n"), "{version} {source:?}");
        }
    }
    let read = ["sub", "-p", &port, "-t", "t/1", "-C", "1", "-N", "-F", "%t|%q|%r|%l"];
    assert_eq!(ends(0, &read, ""), "t/1|0|1|9");
    ends(0, &["pub", "-p", &port, "-t", "t/1", "-r", "-n"], "");
    assert!(ends(27, &["sub", "-p", &port, "-t", "t/1", "-W", "1"], "").contains("time is over"));
}

#[test]
fn a_kept_session_gives_every_line_once_and_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let edge = Edge::start(folder.path(), &[]);
    let port = edge.mqtt.port().to_string();
    let reader = ["sub", "-p", &port, "-i", "keeper", "-c", "-t", "q/#", "-q", "2"];
    ends(27, &[&reader[..], &["-W", "1"]].concat(), "");
    let numbers: Vec<String> = (0..500).map(|at| at.to_string()).collect();
    let lines = numbers.join("\n") + "\n";
    ends(0, &["pub", "-p", &port, "-t", "q/1", "-q", "2", "-l"], &lines);
    assert_eq!(ends(0, &[&reader[..], &["-C", "500"]].concat(), ""), lines);
}

#[test]
fn what_goes_wrong_is_one_sentence_and_an_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    let edge = Edge::start(folder.path(), &[]);
    let port = edge.mqtt.port().to_string();
    let admin = edge.admin.port().to_string();
    for (code, arguments, words) in [
        (1, &["sub", "-p", "1", "-t", "a"][..], "cannot connect to 127.0.0.1:1"),
        (1, &["pub", "-p", &admin, "-t", "a", "-m", "x"], "does not speak MQTT"),
        (1, &["pub", "-p", &port, "-t", "a", "-f", "/no/such"], "/no/such"),
        (1, &["sub", "--unix", "/no/such", "-t", "a"], "/no/such"),
        (1, &["sub", "-p", &port, "-t", "a", "--cafile", "/no/such"], "/no/such"),
        (2, &["sub", "-p", &port], "--topic"),
        (2, &["pub", "-p", &port, "-t", "a"], "--message"),
        (2, &["sub", "-t", "a", "-q", "3"], "0, 1 or 2"),
        (3, &["sub", "-p", &port, "-t", "a/#/b"], "0x8F"),
        (3, &["pub", "-p", &port, "-t", "$SYS/broker/x", "-m", "x", "-q", "1"], "0x87"),
        (3, &["pub", "-p", &port, "-t", "a", "-m", "x", "-i", &"i".repeat(300)], "0x85"),
    ] {
        let said = ends(code, arguments, "");
        assert!(said.contains(words), "{arguments:?}: {said}");
        let ours = said.lines().filter(|line| line.starts_with("tributary-edge: ")).count();
        assert_eq!(ours, usize::from(code != 2), "{said}");
    }
}

fn write(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn sub_and_pub_speak_tls_with_certificates_and_unix_sockets() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let key = || rcgen::KeyPair::generate().unwrap();
    let (own, device) = (key(), key());
    let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = rcgen::CertifiedIssuer::self_signed(params, key()).unwrap();
    let signed = |names: &str, key: &rcgen::KeyPair| {
        let params = rcgen::CertificateParams::new(vec![names.to_owned()]).unwrap();
        params.signed_by(key, &authority).unwrap().pem()
    };
    let ca = write(folder, "ca.pem", &authority.pem());
    let cert = write(folder, "cert.pem", &signed("localhost", &own));
    let key = write(folder, "key.pem", &own.serialize_pem());
    let device_cert = write(folder, "device.pem", &signed("dev-1", &device));
    let device_key = write(folder, "device.key", &device.serialize_pem());
    let socket = folder.join("mqtt.sock");
    let config = format!(
        "[[listeners]]\naddress = \"127.0.0.1:0\"\ntransport = \"tls\"\ncertificate = \"{cert}\"\nkey = \"{key}\"\n\
         client_ca = \"{ca}\"\n[[listeners]]\naddress = \"unix:{}\"\n",
        socket.display()
    );
    let config = write(folder, "edge.toml", &config);
    let edge = Edge::start(&folder.join("data"), &["--config", &config]);
    let port = edge.ready["listeners[0]"].as_str().unwrap().rsplit(':').next().unwrap().to_owned();
    let tls = ["-h", "localhost", "-p", &port, "--cafile", &ca];
    let shown = ["--cert", &device_cert, "--key", &device_key, "-i", "dev-1"];
    let what = ["-t", "t", "-q", "1", "-m", "hidden", "-r"];
    ends(0, &[&["pub"], &tls[..], &shown, &what].concat(), "");
    let socket = socket.to_str().unwrap();
    assert_eq!(ends(0, &["sub", "--unix", socket, "-t", "t", "-C", "1"], ""), "hidden\n");
    // Nothing to show, then an authority that did not sign the broker.
    ends(1, &[&["pub"], &tls[..], &what].concat(), "");
    let wrong = ["-h", "localhost", "-p", &port, "--cafile", &device_cert];
    let said = ends(1, &[&["pub"], &wrong[..], &what].concat(), "");
    assert!(said.contains("certificate"), "{said}");
}

#[test]
fn status_shows_numbers_lanes_and_what_was_warned_of() {
    let folder = tempfile::tempdir().unwrap();
    // Of its own the edge publishes nothing here.
    let set = ["--cloud", "mqtt://127.0.0.1:9", "--set", "inventory.interval_s=0"];
    let edge = Edge::start(folder.path(), &set);
    let (port, admin) = (edge.mqtt.port().to_string(), edge.admin.to_string());
    ends(0, &["pub", "-p", &port, "-t", "t", "-q", "1", "-m", "x"], "");
    while !edge.get("/status").contains("no connection to the cloud") {}
    let text = ends(0, &["status", "--once", "--admin", &admin], "");
    for part in [
        "gw1  tributary-edge ",
        "serves, with notes",
        "since start  1 in, 0 out, 0 dropped",
        "NOT CONNECTED",
        "lane normal: not connected to the cloud",
        "no connection to the cloud",
    ] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
    assert!(!text.contains('\x1b'), "no terminal, no control");
    let json = ends(0, &["status", "--json", "--admin", &admin], "");
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["received"], &json["lanes"][0]["buffered"]), (&1.into(), &1.into()));
    let mqtt = edge.mqtt.to_string();
    for (address, words) in [("127.0.0.1:1", "no edge at"), (&mqtt, "no edge")] {
        let said = ends(1, &["status", "--once", "--admin", address], "");
        assert!(said.contains(words), "{said}");
    }
}

#[test]
fn doctor_finds_ports_disk_and_the_cloud_and_its_exit_code_says_whether_anything_fails() {
    let folder = tempfile::tempdir().unwrap();
    let (mine, other) = (folder.path().join("mine"), folder.path().join("other"));
    // Any MQTT server answers CONNECT.
    let cloud = Edge::start(&other, &["--id", "cloud", "--set", "sys.interval_s=0"]);
    let cloud_url = format!("mqtt://{}", cloud.mqtt);
    let edge = Edge::start(&mine, &["--cloud", &cloud_url]);
    let (data, mqtt, admin) =
        (mine.to_str().unwrap(), edge.mqtt.to_string(), edge.admin.to_string());
    let base = ["doctor", "--id", "gw1", "--data", data, "--admin", &admin];
    let text = ends(0, &[&base[..], &["--mqtt", &mqtt, "--cloud", &cloud_url]].concat(), "");
    for part in [
        "OK    settings: good".to_owned(),
        "clock: ".to_owned(),
        format!("OK    data: {data}"),
        "disk: ".to_owned(),
        "flush: ".to_owned(),
        format!("OK    listen.mqtt: {mqtt} is served by this edge"),
        format!("OK    listen.admin: {admin} is served by this edge"),
        "OK    cloud: takes CONNECT in ".to_owned(),
    ] {
        assert!(text.contains(&part), "{part} is not in:\n{text}");
    }
    let wrong = ["--mqtt", &cloud.mqtt.to_string(), "--cloud", "mqtt://127.0.0.1:1", "--id", "gw2"];
    let base = ["doctor", "--data", data, "--admin", &admin];
    let text = ends(1, &[&base[..], &wrong].concat(), "");
    for part in [
        "is in use by another program\n      -> stop it",
        "WARN  listen.admin: another edge, `gw1`, runs there",
        "FAIL  cloud: no connection to 127.0.0.1:1",
        "see FAIL above",
    ] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
    let text = ends(1, &["doctor", "--id", "gw1", "--set", "sys.intervl_s=1"], "");
    assert!(text.contains("FAIL  settings: ") && text.contains("intervl_s"), "{text}");
}
