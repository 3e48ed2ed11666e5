//! Unmodified RabbitMQ clients in four languages against the binary: what each does stands in `clients/amqp/README.md`.
//! Here also what needs a hand on the cloud itself: a kill under load, and counting afterwards.

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
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use futures::StreamExt;
use lapin::{
    BasicProperties, Connection, ConnectionProperties,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
        ConfirmSelectOptions, QueueBindOptions, QueueDeclareOptions,
    },
    types::{AMQPValue, FieldTable},
};
use tributary_tests::Cloud;

const WAIT: Duration = Duration::from_secs(30);

/// Not captured: what was left out must be seen.
fn note(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Installs the clients (once) and returns how each is started; those that cannot be had are named and left out.
fn clients() -> BTreeMap<&'static str, Command> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/amqp");
    let to = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/clients/amqp");
    let said = Command::new(here.join("install")).arg(&to).output().unwrap();
    let said = String::from_utf8_lossy(&said.stdout);
    let to = to.canonicalize().unwrap();
    let with = |program: PathBuf, script: Option<PathBuf>| {
        let mut command = Command::new(program);
        command.args(script);
        command
    };
    let mut found = BTreeMap::new();
    for line in said.lines() {
        match line.split_once(' ').unwrap() {
            ("python", "ok") => {
                for name in ["pika", "kombu"] {
                    let script = here.join(format!("python/{name}_client.py"));
                    found.insert(name, with(to.join("venv/bin/python"), Some(script)));
                }
            }
            ("amqplib", "ok") => {
                let mut node = with("node".into(), Some(here.join("js/client.js")));
                node.env("NODE_PATH", to.join("js/node_modules"));
                found.insert("amqplib", node);
            }
            ("amqp091", "ok") => drop(found.insert("amqp091-go", with(to.join("amqp091"), None))),
            (_, "ok") => panic!("{line}: installed and not tested"),
            _ => note(&format!("SKIP amqp client {line}")),
        }
    }
    assert!(!found.is_empty(), "no AMQP client could be installed: {said}");
    found
}

#[test]
fn unmodified_clients_of_four_languages_work() {
    let folder = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(folder.path());
    let port = cloud.amqp.port().to_string();
    let runs: Vec<_> = clients()
        .into_iter()
        .map(|(name, mut command)| {
            let port = port.clone();
            // cargo's path would give clients the libraries that the tests are built with.
            command.arg(port).env_remove("LD_LIBRARY_PATH");
            (name, std::thread::spawn(move || command.output().unwrap()))
        })
        .collect();
    for (name, run) in runs {
        let output = run.join().unwrap();
        let (out, err) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && out.trim() == "ok", "{name}: {out}{err}");
    }
}

async fn channel(cloud: &Cloud) -> (Connection, lapin::Channel) {
    let uri = format!("amqp://guest:guest@{}/%2f", cloud.amqp);
    let connection = Connection::connect(&uri, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    (connection, channel)
}

async fn queue(channel: &lapin::Channel, name: &str) {
    channel
        .queue_declare(name.into(), QueueDeclareOptions::durable(), FieldTable::default())
        .await
        .unwrap();
}

async fn consume(channel: &lapin::Channel, name: &str) -> lapin::Consumer {
    let options = BasicConsumeOptions::default();
    channel.basic_consume(name.into(), "c".into(), options, FieldTable::default()).await.unwrap()
}

async fn publish(channel: &lapin::Channel, exchange: &str, key: &str, body: &[u8]) {
    let confirmation = channel
        .basic_publish(
            exchange.into(),
            key.into(),
            BasicPublishOptions::default(),
            body,
            BasicProperties::default().with_delivery_mode(2),
        )
        .await
        .unwrap()
        .await
        .unwrap();
    assert!(confirmation.is_ack(), "{confirmation:?}");
}

async fn next(consumer: &mut lapin::Consumer) -> lapin::message::Delivery {
    tokio::time::timeout(WAIT, consumer.next()).await.expect("in time").unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_confirmed_outlives_a_kill_and_what_was_acked_does_not_come_again() {
    const MESSAGES: usize = 500;
    let folder = tempfile::tempdir().unwrap();
    let mut cloud = Cloud::start(folder.path());
    {
        let (_connection, channel) = channel(&cloud).await;
        queue(&channel, "work").await;
        channel
            .queue_bind(
                "work".into(),
                "amq.topic".into(),
                "k.#".into(),
                QueueBindOptions::default(),
                FieldTable::default(),
            )
            .await
            .unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        for i in 0..MESSAGES {
            let exchange = if i % 2 == 0 { "" } else { "amq.topic" };
            let key = if i % 2 == 0 { "work" } else { "k.v" };
            publish(&channel, exchange, key, i.to_string().as_bytes()).await;
        }
        channel.basic_qos(50, BasicQosOptions::default()).await.unwrap();
        let mut consumer = consume(&channel, "work").await;
        for i in 0..100 {
            let delivery = next(&mut consumer).await;
            assert_eq!(delivery.data, i.to_string().as_bytes());
            delivery.ack(BasicAckOptions::default()).await.unwrap();
        }
        // An ack has no answer. A commit on another queue of the same virtual host is stored after it.
        queue(&channel, "fence").await;
        publish(&channel, "", "fence", b"x").await;
    }
    cloud.process.kill();
    let cloud = cloud.restart();
    let (_connection, channel) = channel(&cloud).await;
    let mut consumer = consume(&channel, "work").await;
    for i in 100..MESSAGES {
        let delivery = next(&mut consumer).await;
        assert_eq!(delivery.data, i.to_string().as_bytes(), "in order, none missing, none twice");
        assert!(delivery.redelivered);
        delivery.ack(BasicAckOptions::default()).await.unwrap();
    }
    let left = channel
        .queue_declare(
            "work".into(),
            QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() },
            FieldTable::default(),
        )
        .await
        .unwrap();
    assert_eq!(left.message_count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_between_devices_and_queues_neither_misses_nor_repeats() {
    let folder = tempfile::tempdir().unwrap();
    let mut cloud = Cloud::start(folder.path());
    {
        let (_connection, channel) = channel(&cloud).await;
        queue(&channel, "devices").await;
        channel
            .queue_bind(
                "devices".into(),
                "amq.topic".into(),
                "site.#".into(),
                QueueBindOptions::default(),
                FieldTable::default(),
            )
            .await
            .unwrap();
    }
    let mut sent = 0;
    for _ in 0..3 {
        let (kafka, from) = (cloud.kafka, sent);
        tokio::task::spawn_blocking(move || produce(kafka, from..from + 200)).await.unwrap();
        sent += 200;
        // Wherever the router is now: it must go on from there.
        cloud.process.kill();
        cloud = cloud.restart();
    }
    let (_connection, channel) = channel(&cloud).await;
    let mut consumer = consume(&channel, "devices").await;
    for i in 0..sent {
        let delivery = next(&mut consumer).await;
        assert_eq!(delivery.data, i.to_string().as_bytes(), "in order, none missing, none twice");
        assert_eq!(delivery.routing_key.as_str(), "site.a.value");
        let headers = delivery.properties.headers().clone().unwrap();
        assert_eq!(headers.inner().get("x-stream-offset"), Some(&AMQPValue::LongLongInt(i)));
        delivery.ack(BasicAckOptions::default()).await.unwrap();
    }
}

/// As a Kafka client, durably, to one partition.
fn produce(kafka: std::net::SocketAddr, values: std::ops::Range<i64>) {
    use rdkafka::{
        ClientConfig,
        producer::{BaseRecord, Producer as _, ThreadedProducer},
    };
    let producer: ThreadedProducer<_> = ClientConfig::new()
        .set("bootstrap.servers", kafka.to_string())
        .set("enable.idempotence", "true")
        .create()
        .unwrap();
    for value in values {
        let text = value.to_string();
        producer.send(BaseRecord::to("site").key("site/a/value").payload(&text)).unwrap();
    }
    producer.flush(WAIT).unwrap();
}
