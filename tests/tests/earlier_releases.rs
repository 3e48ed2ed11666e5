//! Data that an earlier release stored is served by the programs of now: everything is there for clients of all doors, groups, sessions,
//! queues and edges go on where they were, and what is written now comes after what was there.
//!
//! The sets lie in `data`, one a release; `scripts/release-data` makes them, and `scripts/lib/release_data.py` says what is in them.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use lapin::{
    BasicProperties, Connection, ConnectionProperties,
    options::{BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions},
    types::FieldTable,
};
use rdkafka::{
    ClientConfig, Message as _, Offset,
    consumer::{BaseConsumer, Consumer as _},
    message::OwnedMessage,
    producer::{FutureProducer, FutureRecord},
};
use tributary_shared::mqtt::{Qos, Version, packet::Publish};
use tributary_tests::{
    Cloud, Device, Edge,
    device::connect_packet,
    kafka::{Reader, header},
    process::until,
};

const WAIT: Duration = Duration::from_secs(30);
const QUICK: [&str; 4] =
    ["--set", "uplink.backoff_min_ms=50", "--set", "uplink.backoff_max_ms=500"];

/// The packed sets; there is one at least.
fn sets() -> Vec<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("data");
    let mut found: Vec<_> =
        std::fs::read_dir(here).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    assert!(!found.is_empty(), "no data of any release: run scripts/release-data");
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_earlier_release_stored_is_served_and_goes_on() {
    for set in sets() {
        tributary_tests::say(&format!("opening {}", set.display()));
        let folder = tempfile::tempdir().unwrap();
        let tar = Command::new("tar").arg("-xzf").arg(&set).arg("-C").arg(folder.path()).status();
        assert!(tar.unwrap().success(), "{} is not unpacked", set.display());
        let mut cloud = Cloud::start(&folder.path().join("cloud"));
        orders_and_their_group_go_on(cloud.kafka).await;
        the_queue_goes_on(cloud.amqp).await;
        sessions_and_retained_go_on(cloud.mqtt);
        the_edge_goes_on(&folder.path().join("edge"), &cloud);
        // What was written now is stored as it has to be, too.
        cloud.process.stop();
        let cloud = cloud.restart();
        assert_eq!(records(cloud.kafka, "orders").len(), 21);
        assert_eq!(heat(cloud.kafka), (0..=10).collect::<Vec<_>>());
    }
}

/// All records of a topic up to where it ends now.
fn records(kafka: SocketAddr, topic: &str) -> Vec<OwnedMessage> {
    let reader = Reader::new(kafka, topic);
    let count: i64 = reader.watermarks(topic).iter().map(|(_, high)| high).sum();
    (0..count).map(|_| reader.next(WAIT).expect("a record")).collect()
}

fn text(bytes: Option<&[u8]>) -> String {
    String::from_utf8(bytes.unwrap_or_default().to_vec()).unwrap()
}

async fn orders_and_their_group_go_on(kafka: SocketAddr) {
    let orders = records(kafka, "orders");
    assert_eq!(orders.len(), 20);
    for record in orders {
        let number = 2 * record.offset() + i64::from(record.partition());
        assert_eq!(text(record.payload()), format!("order {number} {}", "x".repeat(40)));
        assert_eq!(text(record.key()), format!("key {number}"));
        assert_eq!(header(&record, "number"), Some(number.to_string().into_bytes()));
    }
    let member: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", kafka.to_string())
        .set("group.id", "readers")
        .set("auto.offset.reset", "error")
        .set("enable.auto.commit", "false")
        .create()
        .unwrap();
    member.subscribe(&["orders"]).unwrap();
    // Committed were 5 of 10 and 7 of 10.
    let mut read = BTreeSet::new();
    let deadline = Instant::now() + WAIT;
    while read.len() < 8 {
        assert!(Instant::now() < deadline, "only {read:?}");
        // Nothing is returned when the group is joined, too.
        let Some(record) = member.poll(Duration::from_secs(1)) else { continue };
        let record = record.unwrap();
        read.insert((record.partition(), record.offset()));
    }
    let rest = (5..10).map(|offset| (0, offset)).chain((7..10).map(|offset| (1, offset)));
    assert_eq!(read, rest.collect());
    let committed = member.committed(WAIT).unwrap();
    let of = |partition| committed.find_partition("orders", partition).unwrap();
    assert_eq!((of(0).offset(), of(1).offset()), (Offset::Offset(5), Offset::Offset(7)));
    // confluent-kafka sends the zero at the end of a C string, too.
    assert_eq!(of(1).metadata().trim_end_matches('\0'), "half of it");
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", kafka.to_string())
        .set("enable.idempotence", "true")
        .create()
        .unwrap();
    let new = FutureRecord::to("orders").key("new").payload("new").partition(0);
    let delivered = producer.send(new, WAIT).await.unwrap();
    assert_eq!(delivered.offset, 10, "after what was there");
}

async fn the_queue_goes_on(amqp: SocketAddr) {
    let uri = format!("amqp://guest:guest@{amqp}/%2f");
    let connection = Connection::connect(&uri, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    // By the exchange and the binding that were there.
    let (options, kept) = (BasicPublishOptions::default(), BasicProperties::default());
    let confirmation = channel
        .basic_publish(
            "events".into(),
            "made.now".into(),
            options,
            b"work 6",
            kept.with_delivery_mode(2),
        )
        .await
        .unwrap()
        .await
        .unwrap();
    assert!(confirmation.is_ack());
    let options = BasicConsumeOptions::default();
    let mut work = channel
        .basic_consume("work".into(), "c".into(), options, FieldTable::default())
        .await
        .unwrap();
    // Two of six were acknowledged.
    for number in 2..=6 {
        let delivery = tokio::time::timeout(WAIT, work.next()).await.expect("in time");
        let delivery = delivery.unwrap().unwrap();
        assert_eq!(text(Some(&delivery.data)), format!("work {number}"));
        delivery.ack(BasicAckOptions::default()).await.unwrap();
    }
}

fn published(topic: &str, payload: &str) -> Publish {
    Publish {
        qos: Qos::AtLeastOnce,
        topic: topic.into(),
        payload: payload.to_owned().into(),
        ..Publish::default()
    }
}

/// At the cloud and at the edge alike.
fn sessions_and_retained_go_on(mqtt: SocketAddr) {
    let mut connect = connect_packet("sleeper", Version::V311);
    connect.clean_start = false;
    let mut sleeper = Device::connect_with(mqtt, connect).unwrap();
    assert!(sleeper.connack.session_present);
    for number in 0..5 {
        let message = sleeper.message().unwrap();
        assert_eq!(message.topic, format!("later/{number}"));
        assert_eq!(message.payload, format!("later {number}"));
    }
    let mut other = Device::connect(mqtt, "other").unwrap();
    other.publish(published("later/now", "now")).unwrap();
    assert_eq!(sleeper.message().unwrap().topic, "later/now", "it is still subscribed");
    other.subscribe("state/#", Qos::AtLeastOnce).unwrap();
    let kept = other.message().unwrap();
    assert!(kept.retain && kept.topic == "state/door" && kept.payload == "open", "{kept:?}");
    sleeper.publish(published("state/end", "")).unwrap();
    assert_eq!(other.message().unwrap().topic, "state/end", "nothing else was retained");
}

/// What the gateway's sensor said, in the order of the log.
fn heat(kafka: SocketAddr) -> Vec<u32> {
    let all = records(kafka, "mqtt.messages");
    let own = all.iter().filter(|record| header(record, "edge.id").is_some());
    let said = own.filter_map(|record| text(record.payload()).strip_prefix("heat ")?.parse().ok());
    said.collect()
}

fn the_edge_goes_on(folder: &Path, cloud: &Cloud) {
    assert_eq!(heat(cloud.kafka), (0..5).collect::<Vec<_>>(), "the rest was still at the edge");
    let edge = Edge::start_with(folder, "gw1", Some(cloud.mqtt), &QUICK);
    let mut sensor = Device::connect(edge.mqtt, "sensor").unwrap();
    sensor.publish(published("plant/heat", "heat 10")).unwrap();
    sessions_and_retained_go_on(edge.mqtt);
    until("the edge has handed everything over", || heat(cloud.kafka).contains(&10));
}
