//! The Kafka client programs in `clients/kafka`: installed once, started step by step.
//!
//! Not here: what they do (`clients/kafka/README.md`), what is to come of it (the tests).

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;

/// A client program and how it is started.
#[derive(Debug)]
pub struct Client {
    /// First part of the values that it sends.
    pub name: &'static str,
    program: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(&'static str, PathBuf)>,
}

impl Client {
    /// Runs one step; its last line is its answer.
    pub fn run(&self, step: &str, brokers: &str, topic: &str, which: &str, count: usize) -> Value {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).arg(step);
        command.args([brokers, topic, which, &count.to_string()]);
        // cargo's path would give clients the librdkafka that the tests are built with.
        command.env_remove("LD_LIBRARY_PATH");
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let output = command.stderr(Stdio::piped()).output().expect("a client program");
        let text = String::from_utf8_lossy(&output.stdout);
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{} {step}: {text}{complaint}", self.name);
        serde_json::from_str(text.lines().last().unwrap_or_default()).expect("an answer")
    }
}

/// Not captured: what was left out must be seen.
pub fn note(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Installs the clients (once); those that cannot be had are named and left out.
pub fn clients() -> Vec<Client> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/kafka");
    let to = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/clients/kafka");
    let said = Command::new(here.join("install")).arg(&to).output().expect("the installer");
    let said = String::from_utf8_lossy(&said.stdout);
    let to = to.canonicalize().expect("the clients' folder");
    let text = |path: PathBuf| path.display().to_string();
    let python = |name, script: &str| Client {
        name,
        program: to.join("venv/bin/python"),
        arguments: vec![text(here.join("python").join(script))],
        environment: Vec::new(),
    };
    let mut found = Vec::new();
    for line in said.lines() {
        let (name, state) = line.split_once(' ').expect("a name and a state");
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
pub fn all(clients: &[Client], step: impl Fn(&Client) -> Value + Sync) -> BTreeMap<&str, Value> {
    std::thread::scope(|scope| {
        let step = &step;
        let runs: Vec<_> =
            clients.iter().map(|client| (client.name, scope.spawn(move || step(client)))).collect();
        runs.into_iter().map(|(name, run)| (name, run.join().expect("a step"))).collect()
    })
}

/// All clients produce; the values that are in the log after it.
pub fn produce(
    clients: &[Client],
    brokers: &str,
    topic: &str,
    run: &str,
    count: usize,
) -> BTreeSet<String> {
    let answers = all(clients, |client| client.run("produce", brokers, topic, run, count));
    let mut values = BTreeSet::new();
    for (name, answer) in answers {
        let codecs = answer["codecs"].as_array().expect("codecs");
        assert_eq!(codecs.len(), 5, "{name}");
        for codec in codecs.iter().filter_map(|codec| codec.as_str()) {
            values.extend((0..count).map(|i| format!("{name}/{run}/{codec}/{i}")));
        }
    }
    values
}

/// The values in an answer.
pub fn values(answer: &Value) -> Vec<String> {
    let values = answer["values"].as_array().expect("values");
    values.iter().filter_map(|value| value.as_str()).map(str::to_owned).collect()
}
