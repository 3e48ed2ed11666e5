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
    collections::{BTreeSet, HashMap},
    io::Write as _,
    net::SocketAddr,
    process::{Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, ClientContext, Message as _,
    consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, Rebalance},
    producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext},
};
use serde_json::Value;
use tributary_tests::{
    Cloud,
    kafka::Reader,
    kafka_clients::{all, clients, note, produce, values},
};

/// Records a client sends with each codec.
const COUNT: usize = 50;
const COUNT_AGAIN: usize = 10;
const TOPIC: &str = "all";

#[test]
fn every_client_reads_what_every_client_wrote_and_resumes_after_a_kill() {
    let clients = clients();
    let folder = tempfile::tempdir().unwrap();
    let mut cloud = Cloud::start(folder.path());
    let first = produce(&clients, &cloud.kafka.to_string(), TOPIC, "first", COUNT);

    let kafka = cloud.kafka.to_string();
    let group = |client: &tributary_tests::kafka_clients::Client| format!("group-{}", client.name);
    for (name, answer) in
        all(&clients, |client| client.run("consume", &kafka, TOPIC, &group(client), first.len()))
    {
        assert_eq!(BTreeSet::from_iter(values(&answer)), first, "{name}");
        assert!(!answer["shares"].as_array().unwrap().contains(&Value::from(0)), "{name}");
    }

    cloud.process.kill();
    let cloud = cloud.restart();
    let second = produce(&clients, &cloud.kafka.to_string(), TOPIC, "second", COUNT_AGAIN);
    for (name, answer) in
        all(&clients, |client| client.run("resume", &kafka, TOPIC, &group(client), second.len()))
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

/// Tells of every delivery.
struct Deliveries(mpsc::SyncSender<Result<(), String>>);

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, delivered: &DeliveryResult<'_>, (): ()) {
        let told = delivered.as_ref().map(|_| ()).map_err(|(error, _)| error.to_string());
        let _ = self.0.send(told);
    }
}

/// Sends `0..count` in order, each partition its own numbers, idempotently.
fn produce_numbers(
    kafka: SocketAddr,
    partitions: i32,
    count: usize,
    told: mpsc::SyncSender<Result<(), String>>,
) {
    let producer: BaseProducer<Deliveries> = ClientConfig::new()
        .set("bootstrap.servers", kafka.to_string())
        .set("enable.idempotence", "true")
        .set("linger.ms", "1")
        .set("batch.num.messages", "50")
        .set("reconnect.backoff.max.ms", "200")
        .create_with_context(Deliveries(told))
        .unwrap();
    for number in 0..count {
        let text = number.to_string();
        let partition = number as i32 % partitions;
        let mut record = BaseRecord::<(), str>::to(TOPIC).payload(&text).partition(partition);
        // A full queue empties while we poll.
        while let Err((_, back)) = producer.send(record) {
            record = back;
            producer.poll(Duration::from_millis(10));
        }
        producer.poll(Duration::ZERO);
    }
    producer.flush(Duration::from_mins(1)).unwrap();
}

#[test]
fn an_idempotent_producer_loses_and_repeats_nothing_through_kills() {
    const COUNT: usize = 40_000;
    const PARTITIONS: i32 = 3;
    let folder = tempfile::tempdir().unwrap();
    let data = format!("file://{}", folder.path().display());
    let defaults = format!("log.default_partitions={PARTITIONS}");
    let mut cloud = Cloud::start_with(&data, &["--set", &defaults]);
    let kafka = cloud.kafka;
    // Makes the topic.
    drop(Reader::new(kafka, TOPIC));
    let (told, deliveries) = mpsc::sync_channel(COUNT);
    let producer = std::thread::spawn(move || produce_numbers(kafka, PARTITIONS, COUNT, told));
    for delivered in 1..=COUNT {
        let told = deliveries.recv_timeout(Duration::from_mins(1)).expect("a delivery");
        told.expect("delivered");
        if delivered == COUNT / 4 || delivered == COUNT / 2 {
            cloud.process.kill();
            cloud = cloud.restart();
        }
    }
    producer.join().unwrap();
    let reader = Reader::new(kafka, TOPIC);
    let mut last: HashMap<i32, usize> = HashMap::new();
    for _ in 0..COUNT {
        let message = reader.next(Duration::from_secs(20)).expect("a record that was acked");
        let number: usize =
            std::str::from_utf8(message.payload().unwrap()).unwrap().parse().unwrap();
        let partition = message.partition();
        let expected = last.get(&partition).map_or(partition as usize, |n| n + PARTITIONS as usize);
        assert_eq!(number, expected, "partition {partition}");
        last.insert(partition, number);
    }
    assert!(reader.next(Duration::from_millis(500)).is_none(), "more than was sent");
}

/// Tells of every rebalance.
struct Rebalances(mpsc::SyncSender<&'static str>);

impl ClientContext for Rebalances {}

impl ConsumerContext for Rebalances {
    fn pre_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        let what = match rebalance {
            Rebalance::Assign(_) => "assigned",
            Rebalance::Revoke(_) => "revoked",
            Rebalance::Error(_) => "failed",
        };
        let _ = self.0.try_send(what);
    }
}

#[test]
fn a_consumer_in_a_group_rereads_nothing_after_a_kill_of_the_cloud() {
    const COUNT: usize = 300;
    let folder = tempfile::tempdir().unwrap();
    let data = format!("file://{}", folder.path().display());
    let mut cloud = Cloud::start_with(&data, &["--set", "log.default_partitions=3"]);
    drop(Reader::new(cloud.kafka, TOPIC));
    let (told, rebalances) = mpsc::sync_channel(100);
    let consumer: BaseConsumer<Rebalances> = ClientConfig::new()
        .set("bootstrap.servers", cloud.kafka.to_string())
        .set("group.id", "lasting")
        .set("auto.offset.reset", "earliest")
        // Commits nothing while this test runs.
        .set("auto.commit.interval.ms", "60000")
        .set("heartbeat.interval.ms", "200")
        .set("reconnect.backoff.max.ms", "200")
        .create_with_context(Rebalances(told))
        .unwrap();
    consumer.subscribe(&[TOPIC]).unwrap();
    let mut seen: HashMap<(i32, i64), usize> = HashMap::new();
    for round in 1..=3 {
        let (told, deliveries) = mpsc::sync_channel(COUNT);
        produce_numbers(cloud.kafka, 3, COUNT, told);
        assert!(deliveries.iter().take(COUNT).all(|told| told.is_ok()));
        let deadline = Instant::now() + Duration::from_secs(30);
        while seen.len() < round * COUNT {
            assert!(Instant::now() < deadline, "{} of {}", seen.len(), round * COUNT);
            // Errors (the cloud is not there) and other events: librdkafka goes on by itself.
            if let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) {
                let at = (message.partition(), message.offset());
                assert_eq!(seen.insert(at, round), None, "{at:?} twice");
            }
        }
        if round < 3 {
            cloud.process.kill();
            cloud = cloud.restart();
        }
    }
    // It is still the member that it was.
    consumer.commit_consumer_state(CommitMode::Sync).expect("a commit");
    assert!(consumer.poll(Duration::from_secs(1)).is_none_or(|polled| polled.is_err()));
    assert_eq!(rebalances.try_iter().collect::<Vec<_>>(), ["assigned"]);
}
