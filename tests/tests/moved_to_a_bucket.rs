//! The commands that work on data directly: `migrate` carries a single node's data to a bucket, however often it is broken off, and a
//! cluster serves it as it was; a `compactor` apart compacts for nodes that leave that to it, and may be killed at any time.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

use std::{
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use futures::future::try_join_all;
use rdkafka::{
    ClientConfig, Message as _, Offset, TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer as _},
    producer::{FutureProducer, FutureRecord},
};
use tributary_shared::mqtt::{Qos, Version, packet::Publish};
use tributary_tests::{
    Checker, Cloud, Device, Edge, Random,
    checker::{Verdict, is_payload, payload},
    device::connect_packet,
    http_get,
    kafka::Reader,
    process::{binary, run, until},
    s3::{ACCESS_KEY, Control, Faults, MemoryS3, SECRET_KEY},
};

const WAIT: Duration = Duration::from_secs(30);
const QUICK: [&str; 4] =
    ["--set", "uplink.backoff_min_ms=50", "--set", "uplink.backoff_max_ms=500"];
const ORDERS: i64 = 300;

/// A store in memory, and how faults are set in it.
struct Store {
    at: MemoryS3,
    s3: SocketAddr,
    control: Control,
}

impl Store {
    async fn start() -> Self {
        let (at, any) = (MemoryS3::default(), "127.0.0.1:0".parse().unwrap());
        let (s3, control) = (at.serve(any).await.unwrap(), at.serve_control(any).await.unwrap());
        Self { at, s3, control: Control(control) }
    }

    fn endpoint(&self) -> String {
        format!("engine.s3_endpoint=http://{}", self.s3)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary("tributary-cloud"));
        command.env("AWS_ACCESS_KEY_ID", ACCESS_KEY).env("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
        command.args(arguments).args(["--set", &self.endpoint()]);
        command
    }

    fn node(&self, name: &str, prefix: &str, settings: &[&str]) -> Cloud {
        let endpoint = self.endpoint();
        let mut arguments = vec!["--node", name, "--set", &endpoint];
        arguments.extend(settings.iter().flat_map(|setting| ["--set", setting]));
        Cloud::start_with(&format!("s3://test/{prefix}"), &arguments)
    }
}

async fn blocking(test: impl FnOnce() + Send + 'static) {
    tokio::task::spawn_blocking(test).await.unwrap();
}

fn producer(brokers: &str) -> FutureProducer {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("enable.idempotence", "true");
    config.create().unwrap()
}

/// Its value is its number; where it went.
async fn order(producer: &FutureProducer, number: i64) -> (i32, i64) {
    let (key, value) = (format!("key {number}"), number.to_string());
    let record = FutureRecord::to("orders").key(&key).payload(&value);
    let delivered = producer.send(record, WAIT).await.map_err(|(error, _)| error).unwrap();
    (delivered.partition, delivered.offset)
}

/// Of all partitions: each order by where it is.
fn orders(kafka: SocketAddr, count: i64) -> Vec<(i32, i64, String)> {
    let reader = Reader::new(kafka, "orders");
    let all = (0..count).map(|_| reader.next(WAIT).expect("an order"));
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let told = all.map(|record| {
        (record.partition(), record.offset(), text(record.payload().unwrap_or_default()))
    });
    let mut all: Vec<_> = told.collect();
    all.sort();
    all
}

fn member(kafka: SocketAddr) -> BaseConsumer {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", kafka.to_string()).set("group.id", "readers");
    config.create().unwrap()
}

fn sleeper(mqtt: SocketAddr) -> Device {
    let mut connect = connect_packet("sleeper", Version::V311);
    connect.clean_start = false;
    Device::connect_with(mqtt, connect).unwrap()
}

fn measure(edge: &Edge, numbers: std::ops::Range<u64>, checker: &mut Checker) {
    let mut device = Device::connect(edge.mqtt, "d").unwrap();
    let from = numbers.start;
    numbers.clone().for_each(|seq| checker.sent("d", seq));
    let messages = numbers.map(|seq| ("b/d".to_owned(), payload("d", seq).into()));
    device.publish_all(messages, 50, |index| checker.acked("d", from + index as u64)).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_nodes_data_goes_to_a_bucket_and_a_cluster_serves_it() {
    let store = Store::start().await;
    let runtime = tokio::runtime::Handle::current();
    blocking(move || moved(&store, &runtime)).await;
}

fn moved(store: &Store, runtime: &tokio::runtime::Handle) {
    let folder = tempfile::tempdir().unwrap();
    let data = format!("file://{}", folder.path().join("cloud").display());
    let mut single = Cloud::start_with(&data, &["--set", "engine.shards=3"]);
    let mut checker = Checker::default();
    fill(&single, folder.path(), &mut checker, runtime);
    let before = orders(single.kafka, ORDERS);
    let refused = migrate(store, &data, "s3://test/moved");
    assert_eq!(refused.status.code(), Some(1), "it is served");
    assert!(said(&refused).contains("in use"), "{}", said(&refused));
    assert_eq!(single.process.stop(), Some(0));

    broken_off(store, &data);
    let done = migrate(store, &data, "s3://test/moved");
    assert_eq!(done.status.code(), Some(0), "{}", said(&done));
    assert!(said(&done).contains("compared byte by byte"), "{}", said(&done));
    assert!(!said(&done).contains("(0 were there)"), "it went on: {}", said(&done));
    let again = migrate(store, &data, "s3://test/moved");
    assert!(said(&again).contains("holds data already"), "{}", said(&again));

    let nodes = ["n1", "n2"].map(|name| store.node(name, "moved", &["cluster.settle_ms=50"]));
    until("each has its share, and nothing moves any more", || {
        let [one, two] = nodes.each_ref().map(shards);
        one > 0 && two > 0 && one + two == 3
    });
    assert_eq!(orders(nodes[1].kafka, ORDERS), before);
    let mut all = TopicPartitionList::new();
    all.add_partition("orders", 0);
    let committed = member(nodes[0].kafka).committed_offsets(all, WAIT).unwrap();
    assert_eq!(committed.find_partition("orders", 0).unwrap().offset(), Offset::Offset(7));
    let mut sleeping = sleeper(nodes[1].mqtt);
    assert!(sleeping.connack.session_present);
    assert_eq!(sleeping.message().unwrap().payload, "sleeping");
    let brokers = format!("{},{}", nodes[0].kafka, nodes[1].kafka);
    let (partition, offset) = runtime.block_on(order(&producer(&brokers), ORDERS));
    let there = before.iter().filter(|(of, ..)| *of == partition).count();
    assert_eq!(offset, there as i64, "after what was there");
    // The edge says again what it is not sure of; the marks came along.
    let edge = Edge::start_with(&folder.path().join("edge"), "gw1", Some(nodes[1].mqtt), &QUICK);
    measure(&edge, 500..800, &mut checker);
    let reader = Reader::new(nodes[0].kafka, "mqtt.messages");
    while !checker.complete() {
        let record = reader.next(WAIT).expect("more");
        // The sleeper's message is there, too.
        if let Some(payload) = record.payload().filter(|payload| is_payload(payload)) {
            checker.read(payload);
        }
    }
    assert_eq!(checker.verdict(), Verdict::default());
}

/// How many shards it serves.
fn shards(node: &Cloud) -> usize {
    let metrics = http_get(node.admin, "/metrics");
    let served = metrics.lines().filter(|line| line.starts_with("tributary_shard_served{"));
    served.filter(|line| line.ends_with(" 1")).count()
}

/// Orders of which a group has read some, a session with a message that waits, an edge.
fn fill(single: &Cloud, folder: &Path, checker: &mut Checker, runtime: &tokio::runtime::Handle) {
    drop(Reader::new(single.kafka, "orders"));
    let to = producer(&single.kafka.to_string());
    for number in 0..ORDERS {
        runtime.block_on(order(&to, number));
    }
    let mut read = TopicPartitionList::new();
    read.add_partition_offset("orders", 0, Offset::Offset(7)).unwrap();
    member(single.kafka).commit(&read, CommitMode::Sync).unwrap();
    let mut sleeping = sleeper(single.mqtt);
    sleeping.subscribe("to/sleeper", Qos::AtLeastOnce).unwrap();
    drop(sleeping);
    let waits = Publish {
        qos: Qos::AtLeastOnce,
        topic: "to/sleeper".into(),
        payload: "sleeping".into(),
        ..Publish::default()
    };
    Device::connect(single.mqtt, "waker").unwrap().publish(waits).unwrap();
    let edge = Edge::start_with(&folder.join("edge"), "gw1", Some(single.mqtt), &QUICK);
    measure(&edge, 0..500, checker);
}

fn migrate(store: &Store, from: &str, to: &str) -> Output {
    run(store.command(&["migrate", from, to]), WAIT * 4)
}

fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

/// Kills a copy twice on its way; what is there is half a copy, and nobody serves it.
fn broken_off(store: &Store, from: &str) {
    store.control.set(&Faults { latency_ms: [20, 40], ..Faults::default() }).unwrap();
    let before = store.at.objects();
    for objects in [20, 40] {
        let mut copy = quiet(store.command(&["migrate", from, "s3://test/moved"]));
        until("half of it is there", || store.at.objects() >= before + objects);
        copy.kill().unwrap();
        assert!(!copy.wait().unwrap().success(), "it was not done yet");
    }
    store.control.set(&Faults::default()).unwrap();
    let doors = ["--mqtt", "--kafka", "--amqp", "--admin"];
    let mut serve = store.command(&["serve", "--data", "s3://test/moved", "--node", "n1"]);
    serve.args(doors.iter().flat_map(|door| [door, "127.0.0.1:0"]));
    let refused = run(serve, WAIT);
    assert_eq!(refused.status.code(), Some(1));
    assert!(said(&refused).contains("is half a copy; run the same"), "{}", said(&refused));
    // As if it were other data.
    let other = migrate(store, &format!("{from}/"), "s3://test/moved");
    assert_eq!(other.status.code(), Some(1), "{}", said(&other));
    assert!(said(&other).contains("is half a copy of"), "{}", said(&other));
}

fn quiet(mut command: Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// MB that are written, into tables of 1 MiB.
const LARGE: i64 = 96;
/// A compactor notes what it begins and what it has done; one that only starts notes less.
const COMPACTIONS: usize = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compactor_apart_compacts_and_may_be_killed() {
    let store = Store::start().await;
    let runtime = tokio::runtime::Handle::current();
    blocking(move || compacted(&store, &runtime)).await;
}

fn compacted(store: &Store, runtime: &tokio::runtime::Handle) {
    let settings =
        ["engine.shards=1", "engine.l0_mib=1", "engine.compactor=elsewhere", "engine.flush_ms=20"];
    let node = store.node("n1", "apart", &settings);
    drop(Reader::new(node.kafka, "large"));
    let compactor = || quiet(store.command(&["compactor", "--data", "s3://test/apart"]));
    let mut compacting = compactor();
    let to = producer(&node.kafka.to_string());
    // Nothing that compresses.
    let value = Random::new(1).bytes(500_000);
    for number in 0..LARGE {
        let halves = [0, 1].map(|_| {
            let record = FutureRecord::<(), [u8]>::to("large").payload(&value).partition(0);
            to.send(record, WAIT * 2)
        });
        runtime.block_on(try_join_all(halves)).map_err(|(error, _)| error).unwrap();
        if number % 24 == 12 {
            compacting.kill().unwrap();
            compacting.wait().unwrap();
            compacting = compactor();
        }
    }
    let mut node = node;
    node.process.kill();
    let node = node.restart();
    let reader = Reader::new(node.kafka, "large");
    for offset in 0..2 * LARGE {
        let record = reader.next(WAIT).expect("a record");
        assert!(record.offset() == offset && record.payload() == Some(&value), "{offset}");
    }
    until("it compacts", || store.at.objects_of("/compactions/") >= COMPACTIONS);
    compacting.kill().unwrap();
    compacting.wait().unwrap();
}
