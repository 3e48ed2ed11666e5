//! Unmodified MQTT clients in seven languages against an edge: every QoS both ways, retained messages, wills, and a session that
//! is taken up again after the edge was killed. What each client does: `clients/mqtt/README.md`.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use tributary_shared::mqtt::{
    Packet, PacketId, Qos, Reason,
    packet::{Ack, Publish},
};
use tributary_tests::{Device, Edge};

/// Messages published at each QoS for a client that is away.
const LATER: usize = 20;

/// Not captured: what was left out must be seen.
fn note(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// A client program that speaks one version over one transport.
#[derive(Clone)]
struct Client {
    name: String,
    program: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(&'static str, PathBuf)>,
    version: &'static str,
    websocket: bool,
}

impl Client {
    /// Runs one step; its last line is its answer.
    fn run(&self, step: &str, edge: &Edge) -> Value {
        let url = if self.websocket {
            format!("ws://{}/mqtt", edge.process.address("listeners[0]"))
        } else {
            format!("mqtt://{}", edge.mqtt)
        };
        if self.name.starts_with("mosquitto") {
            return mosquitto(step, self.version, edge.mqtt, &self.name);
        }
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).args([step, self.version, &url, &self.name]);
        command.env_remove("LD_LIBRARY_PATH");
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{} {step}: {text}{complaint}", self.name);
        serde_json::from_str(text.lines().last().unwrap_or_default())
            .unwrap_or_else(|_| panic!("{} {step}: {text}{complaint}", self.name))
    }
}

/// Installs the clients (once); those that cannot be had are named and left out.
fn clients() -> Vec<Client> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/mqtt");
    let to = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/clients/mqtt");
    let said = Command::new(here.join("install")).arg(&to).output().unwrap();
    let said = String::from_utf8_lossy(&said.stdout);
    let to = to.canonicalize().unwrap();
    let text = |path: PathBuf| path.display().to_string();
    let mut found = Vec::new();
    let mut add = |name: &str, program: PathBuf, arguments: &[String], transports: &[bool]| {
        for version in ["3", "5"] {
            for &websocket in transports {
                let transport = if websocket { "-ws" } else { "" };
                found.push(Client {
                    name: format!("{name}-{version}{transport}"),
                    program: program.clone(),
                    arguments: arguments.to_vec(),
                    environment: vec![("NODE_PATH", to.join("js/node_modules"))],
                    version,
                    websocket,
                });
            }
        }
    };
    for line in said.lines() {
        let (name, state) = line.split_once(' ').unwrap();
        if state != "ok" {
            note(&format!("SKIP MQTT client {line}"));
            continue;
        }
        match name {
            "python" => {
                for (name, transports) in
                    [("paho", &[false, true][..]), ("aiomqtt", &[false]), ("gmqtt", &[false])]
                {
                    let script = text(here.join(format!("python/{name}_client.py")));
                    add(name, to.join("venv/bin/python"), &[script], transports);
                }
            }
            "mqttjs" => {
                add("mqttjs", "node".into(), &[text(here.join("js/client.js"))], &[false, true]);
            }
            "java" => {
                let jars = format!("{0}/mqtt-client-1.jar:{0}/lib/*", to.join("java").display());
                add(
                    "hivemq",
                    "java".into(),
                    &["-cp".to_owned(), jars, "Client".to_owned()],
                    &[false],
                );
            }
            "go" => add("paho-go", to.join("paho-go"), &[], &[false]),
            "c" => add("paho-c", to.join("paho-c"), &[], &[false]),
            other => panic!("{other} is installed and not tested"),
        }
    }
    if Command::new("mosquitto_sub").arg("--help").output().is_ok() {
        add("mosquitto", PathBuf::new(), &[], &[false]);
        let mut oldest = found.last().cloned().unwrap();
        (oldest.name, oldest.version) = ("mosquitto-3.1".to_owned(), "31");
        found.push(oldest);
    } else {
        note("SKIP MQTT client mosquitto missing: no mosquitto_sub");
    }
    assert!(found.len() > 2, "no MQTT client could be installed: {said}");
    found
}

/// A few at a time (each is a process, some are large); their answers by name.
fn all(clients: &[Client], step: &str, edge: &Edge) -> BTreeMap<String, Value> {
    let mut answers = BTreeMap::new();
    for few in clients.chunks(6) {
        std::thread::scope(|scope| {
            let run = |client: &Client| (client.name.clone(), client.run(step, edge));
            let runs: Vec<_> = few.iter().map(|client| scope.spawn(move || run(client))).collect();
            answers.extend(runs.into_iter().map(|run| run.join().unwrap()));
        });
    }
    answers
}

/// The same steps with mosquitto's own clients.
fn mosquitto(step: &str, version: &str, mqtt: SocketAddr, name: &str) -> Value {
    let version = match version {
        "3" => "mqttv311",
        "31" => "mqttv31",
        _ => "mqttv5",
    };
    let (host, port) = (mqtt.ip().to_string(), mqtt.port().to_string());
    let command = |program: &str, arguments: &str| {
        let mut command = Command::new(program);
        command.args(["-h", &host, "-p", &port, "-V", version]).args(arguments.split(' '));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command
    };
    let keep = if version == "mqttv5" { "-c -x 3600" } else { "-c" };
    let publish = |arguments: &str, lines: &str| {
        let mut child = command("mosquitto_pub", arguments).spawn().unwrap();
        child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "{arguments}");
    };
    let first = step == "first";
    let everything =
        format!("-t in/{name}/# --will-topic will/{name} --will-payload gone --will-qos 1");
    let more = if first { everything } else { "-q 2".to_owned() };
    let subscribe = format!("-i {name} {keep} -q 2 -t state/{name} -F %t_%p_%q {more}");
    if first {
        publish(&format!("-q 1 -r -t state/{name} -m on"), "");
    }
    let mut child = command("mosquitto_sub", &subscribe).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut got = Vec::new();
    // So many of each kind, in any order of kinds.
    let mut take = |wanted: &[(usize, String)]| {
        let mut wanted = wanted.to_vec();
        while wanted.iter().any(|(left, _)| *left > 0) {
            let line = lines.next().expect("a message").unwrap().replace('_', " ");
            let kind = wanted.iter_mut().find(|(left, kind)| *left > 0 && line.starts_with(kind));
            if let Some((left, _)) = kind {
                *left -= 1;
                got.push(line);
            }
        }
    };
    let state = (1, format!("state/{name}"));
    if first {
        // Says that it is subscribed.
        take(&[state]);
        let numbers = "0\n1\n2\n3\n4\n5\n6\n7\n8\n9\n";
        for qos in 0..3 {
            publish(&format!("-q {qos} -t in/{name}/q{qos} -l"), numbers);
        }
        take(&[(30, format!("in/{name}/q"))]);
        got.remove(0);
    } else {
        take(&[(2 * LATER, format!("in/{name}/later")), state]);
    }
    // SIGKILL: no DISCONNECT.
    child.kill().unwrap();
    child.wait().unwrap();
    json!({ "present": true, "got": got })
}

fn got(answer: &Value) -> Vec<String> {
    let mut got: Vec<String> = answer["got"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one.as_str().unwrap().to_owned())
        .collect();
    got.sort_unstable();
    got
}

/// Publishes and goes through the whole QoS 2 flow.
fn publish_exactly_once(device: &mut Device, topic: &str, payload: &str, id: u16) {
    let packet_id = PacketId::new(id).unwrap();
    device
        .send(&Packet::Publish(Publish {
            qos: Qos::ExactlyOnce,
            topic: topic.into(),
            packet_id: Some(packet_id),
            payload: payload.to_owned().into(),
            ..Publish::default()
        }))
        .unwrap();
    let Packet::PubRec(ack) = device.receive().unwrap() else { panic!("no PUBREC") };
    assert_eq!((ack.packet_id, ack.reason.is_error()), (packet_id, false));
    device.send(&Packet::PubRel(Ack::new(packet_id, Reason::SUCCESS))).unwrap();
    assert!(matches!(device.receive().unwrap(), Packet::PubComp(_)));
}

#[test]
fn every_client_publishes_subscribes_and_finds_its_session_after_a_kill() {
    let clients = clients();
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("edge.toml");
    fs::write(&config, "[[listeners]]\naddress = '127.0.0.1:0'\ntransport = 'ws'\n").unwrap();
    let config = config.display().to_string();
    let edge = Edge::start_with(&folder.path().join("data"), "gw", None, &["--config", &config]);
    let mut watcher = Device::connect_persistent(edge.mqtt, "watcher").unwrap();
    watcher.subscribe("will/#", Qos::AtLeastOnce).unwrap();

    for (name, answer) in all(&clients, "first", &edge) {
        let numbers = |qos| (0..10).map(move |i| format!("in/{}/q{qos} {i} {qos}", "NAME"));
        let mut expected: Vec<String> =
            (0..3).flat_map(numbers).map(|line| line.replace("NAME", &name)).collect();
        expected.sort_unstable();
        assert_eq!(got(&answer), expected, "{name}");
    }
    let mut wills: Vec<String> =
        clients.iter().map(|_| watcher.message().unwrap().topic.to_string()).collect();
    let mut expected: Vec<String> =
        clients.iter().map(|client| format!("will/{}", client.name)).collect();
    wills.sort_unstable();
    expected.sort_unstable();
    assert_eq!(wills, expected);

    let mut device = Device::connect(edge.mqtt, "device").unwrap();
    for client in &clients {
        let topic = format!("in/{}/later", client.name);
        let messages = (0..LATER).map(|i| (topic.clone(), i.to_string().into()));
        device.publish_all(messages, LATER, |_| ()).unwrap();
        for i in 0..LATER {
            publish_exactly_once(&mut device, &topic, &i.to_string(), 30_000 + i as u16);
        }
    }
    let edge = edge.restart();

    for (name, answer) in all(&clients, "second", &edge) {
        let mut expected: Vec<String> = [1, 2]
            .into_iter()
            .flat_map(|qos| (0..LATER).map(move |i| (i, qos)))
            .map(|(i, qos)| format!("in/{name}/later {i} {qos}"))
            .collect();
        expected.push(format!("state/{name} on 1"));
        expected.sort_unstable();
        assert_eq!(got(&answer), expected, "{name}");
        assert_eq!(answer["present"], Value::Bool(true), "{name}");
    }
}

/// mosquitto's clients share a subscription: each message goes to one of them.
#[test]
fn two_clients_of_a_shared_subscription_get_each_message_once_between_them() {
    if Command::new("mosquitto_sub").arg("--help").output().is_err() {
        return note("SKIP MQTT client mosquitto missing: no mosquitto_sub");
    }
    let folder = tempfile::tempdir().unwrap();
    let edge = Edge::start(folder.path(), "gw", None);
    let ready = Publish {
        qos: Qos::AtLeastOnce,
        retain: true,
        topic: "ready".into(),
        payload: "ready".into(),
        ..Publish::default()
    };
    let mut device = Device::connect(edge.mqtt, "device").unwrap();
    device.publish(ready).unwrap();
    let mut members: Vec<_> = (0..2)
        .map(|_| {
            let mut child = Command::new("mosquitto_sub")
                .args(["-p", &edge.mqtt.port().to_string(), "-V", "mqttv5", "-q", "1"])
                .args(["-t", "$share/group/work/#", "-t", "ready", "-t", "done"])
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            assert_eq!(lines.next().unwrap().unwrap(), "ready");
            (child, lines)
        })
        .collect();
    let messages = (0..200).map(|i| (format!("work/{i}"), i.to_string().into()));
    device.publish_all(messages.collect::<Vec<_>>(), 20, |_| ()).unwrap();
    device.publish_all([("done".to_owned(), "done".into())], 1, |_| ()).unwrap();
    let mut got = Vec::new();
    for (child, lines) in &mut members {
        let own: Vec<u32> = lines
            .map_while(Result::ok)
            .take_while(|line| line != "done")
            .map(|line| line.parse().unwrap())
            .collect();
        assert!(!own.is_empty() && own.is_sorted(), "its share, in order: {own:?}");
        got.extend(own);
        child.kill().unwrap();
        child.wait().unwrap();
    }
    got.sort_unstable();
    assert_eq!(got, (0..200).collect::<Vec<_>>());
}
