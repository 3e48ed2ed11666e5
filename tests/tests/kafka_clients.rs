//! Unmodified Kafka clients in five languages: topics, every codec, idempotent produce, groups with a rebalance, and a kill of
//! the cloud between commit and resume. What each client does: `clients/kafka/README.md`.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use rdkafka::Message as _;
use serde_json::Value;
use tributary_tests::{Cloud, kafka::Reader};

/// Records a client sends with each codec.
const COUNT: usize = 50;
const COUNT_AGAIN: usize = 10;
const TOPIC: &str = "all";

/// A client program and how it is started.
struct Client {
    name: &'static str,
    program: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(&'static str, PathBuf)>,
}

impl Client {
    /// Runs one step; its last line is its answer.
    fn run(&self, step: &str, kafka: SocketAddr, which: &str, count: usize) -> Value {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).arg(step);
        command.args([&kafka.to_string(), TOPIC, which, &count.to_string()]);
        // cargo's path would give clients the librdkafka that the tests are built with.
        command.env_remove("LD_LIBRARY_PATH");
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let output = command.stderr(Stdio::piped()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "{} {step}: {text}{}",
            self.name,
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_str(text.lines().last().unwrap_or_default()).unwrap()
    }
}

/// Not captured: what was left out must be seen.
fn note(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Installs the clients (once); those that cannot be had are named and left out.
fn clients() -> Vec<Client> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/kafka");
    let to = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/clients/kafka");
    let said = Command::new(here.join("install")).arg(&to).output().unwrap();
    let said = String::from_utf8_lossy(&said.stdout);
    let to = to.canonicalize().unwrap();
    let text = |path: PathBuf| path.display().to_string();
    let python = |name, script: &str| Client {
        name,
        program: to.join("venv/bin/python"),
        arguments: vec![text(here.join("python").join(script))],
        environment: Vec::new(),
    };
    let mut found = Vec::new();
    for line in said.lines() {
        let (name, state) = line.split_once(' ').unwrap();
        if state != "ok" {
            note(&format!("SKIP kafka client {line}"));
            continue;
        }
        match name {
            "python" => {
                found.push(python("confluent", "confluent.py"));
                found.push(python("kafka-python", "pure.py"));
            }
            "kafkajs" => found.push(Client {
                name: "kafkajs",
                program: "node".into(),
                arguments: vec![text(here.join("js/client.js"))],
                environment: vec![("NODE_PATH", to.join("js/node_modules"))],
            }),
            "java" => {
                let jars = format!("{0}/kafka-client-1.jar:{0}/lib/*", to.join("java").display());
                let quiet = "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn".to_owned();
                found.push(Client {
                    name: "java",
                    program: "java".into(),
                    arguments: vec![quiet, "-cp".into(), jars, "Client".into()],
                    environment: Vec::new(),
                });
            }
            "franz" => found.push(Client {
                name: "franz",
                program: to.join("franz"),
                arguments: Vec::new(),
                environment: Vec::new(),
            }),
            other => panic!("{other} is installed and not tested"),
        }
    }
    assert!(!found.is_empty(), "no Kafka client could be installed: {said}");
    found
}

/// Every client at the same time; their answers by name.
fn all(clients: &[Client], step: impl Fn(&Client) -> Value + Sync) -> BTreeMap<&str, Value> {
    std::thread::scope(|scope| {
        let step = &step;
        let runs: Vec<_> =
            clients.iter().map(|client| (client.name, scope.spawn(move || step(client)))).collect();
        runs.into_iter().map(|(name, run)| (name, run.join().unwrap())).collect()
    })
}

/// All clients produce; the values that are in the log after it.
fn produce(clients: &[Client], kafka: SocketAddr, run: &str, count: usize) -> BTreeSet<String> {
    let answers = all(clients, |client| client.run("produce", kafka, run, count));
    let mut values = BTreeSet::new();
    for (name, answer) in answers {
        let codecs = answer["codecs"].as_array().unwrap();
        assert_eq!(codecs.len(), 5, "{name}");
        for codec in codecs.iter().map(|codec| codec.as_str().unwrap()) {
            values.extend((0..count).map(|i| format!("{name}/{run}/{codec}/{i}")));
        }
    }
    values
}

fn values(answer: &Value) -> Vec<String> {
    let values = answer["values"].as_array().unwrap();
    values.iter().map(|value| value.as_str().unwrap().to_owned()).collect()
}

#[test]
fn every_client_reads_what_every_client_wrote_and_resumes_after_a_kill() {
    let clients = clients();
    let folder = tempfile::tempdir().unwrap();
    let mut cloud = Cloud::start(folder.path());
    let first = produce(&clients, cloud.kafka, "first", COUNT);

    let kafka = cloud.kafka;
    let group = |client: &Client| format!("group-{}", client.name);
    for (name, answer) in
        all(&clients, |client| client.run("consume", kafka, &group(client), first.len()))
    {
        assert_eq!(BTreeSet::from_iter(values(&answer)), first, "{name}");
        assert!(!answer["shares"].as_array().unwrap().contains(&Value::from(0)), "{name}");
    }

    cloud.process.kill();
    let cloud = cloud.restart();
    let second = produce(&clients, cloud.kafka, "second", COUNT_AGAIN);
    for (name, answer) in
        all(&clients, |client| client.run("resume", cloud.kafka, &group(client), second.len()))
    {
        let mut got = values(&answer);
        got.sort_unstable();
        assert_eq!(got, second.iter().cloned().collect::<Vec<_>>(), "{name}");
    }

    // The log itself has each record once.
    let reader = Reader::new(cloud.kafka, TOPIC);
    let mut left: BTreeSet<String> = first.union(&second).cloned().collect();
    while !left.is_empty() {
        let message = reader.next(Duration::from_secs(20)).expect("a record that was acked");
        let value = String::from_utf8(message.payload().unwrap().to_vec()).unwrap();
        let name: Vec<&str> = value.split('/').take(4).collect();
        assert!(left.remove(&name.join("/")), "{value} twice");
    }
    assert!(reader.next(Duration::from_millis(500)).is_none(), "more than was sent");
}

#[test]
fn kcat_lists_produces_and_consumes_in_a_group() {
    let kcat = |arguments: &[&str], input: &str| -> Option<String> {
        let child = Command::new("kcat")
            .args(arguments)
            .env_remove("LD_LIBRARY_PATH")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let Ok(mut child) = child else {
            note("SKIP kafka client kcat missing: no kcat");
            return None;
        };
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "kcat {arguments:?}: {complaint}");
        Some(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let folder = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(folder.path());
    let broker = cloud.kafka.to_string();
    let mut sent = BTreeSet::new();
    for codec in ["none", "gzip", "snappy", "lz4", "zstd"] {
        let lines: Vec<String> = (0..100).map(|i| format!("{codec}-{i}")).collect();
        let arguments =
            ["-b", &broker, "-P", "-t", "k", "-z", codec, "-X", "enable.idempotence=true"];
        if kcat(&arguments, &lines.join("\n")).is_none() {
            return;
        }
        sent.extend(lines);
    }
    let listed = kcat(&["-b", &broker, "-L", "-t", "k"], "").unwrap();
    assert!(listed.contains("topic \"k\" with"), "{listed}");
    let arguments = ["-b", &broker, "-e", "-q", "-X", "auto.offset.reset=earliest", "-G", "g", "k"];
    let read = kcat(&arguments, "").unwrap();
    assert_eq!(read.lines().map(str::to_owned).collect::<BTreeSet<_>>(), sent);
    // The group has read it all.
    assert_eq!(kcat(&arguments, "").unwrap(), "");
}
