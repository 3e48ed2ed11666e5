//! Measures the whole path, Kafka and AMQP against running or own servers; one JSON line a figure.
//!
//! `bench path`                 device -> edge -> cloud -> Kafka consumer: paced latency, then full speed
//! `bench kafka SIZE COUNT`     produce (idempotent, acks=all) and consume through librdkafka
//! `bench amqp URI NAME COUNT`  publish with confirms to a durable queue, then consume with prefetch 1000 and acks
//! `bench idle`                 resident memory and size of the two binaries
//! MQTT alone is `mqtt-bench`. `scripts/bench` runs all of them, with their peers, in one run.

use std::{
    net::SocketAddr,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use futures::StreamExt as _;
use lapin::{
    BasicProperties, Connection, ConnectionProperties,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
        ConfirmSelectOptions, QueueDeclareOptions, QueuePurgeOptions,
    },
    types::FieldTable,
};
use rdkafka::{
    ClientConfig, Message as _,
    producer::{BaseRecord, Producer as _, ThreadedProducer},
};
use serde_json::json;
use tributary_tests::{Cloud, Device, Edge, kafka::Reader, process::binary, say};

const QUIET: Duration = Duration::from_secs(30);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["path"] => path(),
        ["kafka", size, count] => kafka(number(size), number(count)),
        ["amqp", uri, name, count] => {
            let runtime = tokio::runtime::Runtime::new().expect("runtime");
            runtime.block_on(amqp(uri, name, number(count)));
        }
        ["amqp", "own", count] => {
            let folder = tempfile::tempdir().expect("folder");
            let cloud = Cloud::start(folder.path());
            let uri = format!("amqp://guest:guest@{}/%2f", cloud.amqp);
            let runtime = tokio::runtime::Runtime::new().expect("runtime");
            runtime.block_on(amqp(&uri, "tributary-cloud", number(count)));
        }
        ["idle"] => idle(),
        _ => panic!("see the first lines of this program"),
    }
}

fn number(text: &str) -> usize {
    text.parse().unwrap_or_else(|_| panic!("{text} is not a number"))
}

fn micros() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_micros() as u64
}

fn rate(count: usize, took: Duration) -> u64 {
    (count as f64 / took.as_secs_f64()) as u64
}

fn percentile(sorted: &[u64], percent: f64) -> f64 {
    let at = ((sorted.len() as f64 * percent / 100.0) as usize).min(sorted.len() - 1);
    sorted[at] as f64 / 1000.0
}

/// 256 bytes that start with the time the message was due, in microseconds since 1970.
fn stamped(due: u64) -> String {
    format!("{due:020} {:<235}", "{\"sensor\":\"temp\",\"unit\":\"C\",\"value\":21.5}")
}

fn path() {
    let folder = tempfile::tempdir().expect("folder");
    let cloud = Cloud::start(&folder.path().join("cloud"));
    let edge = Edge::start(&folder.path().join("edge"), "bench", Some(cloud.mqtt));
    let publish_one = |device: &mut Device, due: u64| {
        device
            .publish_all([("bench/a".to_owned(), stamped(due).into())], 1, |_| ())
            .expect("published");
    };
    let mut device = Device::connect(edge.mqtt, "bench").expect("connect");
    publish_one(&mut device, micros());
    let reader = Reader::new(cloud.kafka, "mqtt.messages");
    reader.next(QUIET).expect("the first message");

    // Paced: 500 a second from one device; latency from the scheduled time, so a stall counts for all it delays.
    let (count, interval) = (5_000_usize, 2_000_u64);
    let address = edge.mqtt;
    let sender = std::thread::spawn(move || paced(address, count, interval));
    let mut latencies: Vec<u64> = (0..count)
        .map(|_| {
            let message = reader.next(QUIET).expect("a paced message");
            let due = std::str::from_utf8(&message.payload().expect("payload")[..20])
                .expect("digits")
                .parse()
                .expect("a time");
            micros().saturating_sub(due)
        })
        .collect();
    sender.join().expect("sender");
    latencies.sort_unstable();
    say(&json!({
        "bench": "device to Kafka, paced", "rate_per_s": 500, "messages": count, "payload_bytes": 256,
        "p50_ms": percentile(&latencies, 50.0), "p99_ms": percentile(&latencies, 99.0),
        "max_ms": percentile(&latencies, 100.0),
    })
    .to_string());

    let (devices, each) = (8_usize, 50_000_usize);
    let started = Instant::now();
    let senders: Vec<_> = (0..devices)
        .map(|number| std::thread::spawn(move || flood(address, number, each)))
        .collect();
    let mut at_kafka = 0;
    while at_kafka < devices * each {
        reader.next(QUIET).expect("a message");
        at_kafka += 1;
    }
    let took = started.elapsed();
    let acked = senders.into_iter().map(|s| s.join().expect("sender")).max().expect("one");
    say(&json!({
        "bench": "device to Kafka, full speed", "devices": devices, "window": 100,
        "messages": devices * each, "payload_bytes": 256,
        "acked_by_edge_per_s": rate(devices * each, acked), "at_kafka_per_s": rate(devices * each, took),
        "edge_rss_kib": edge.process.rss_kib(), "cloud_rss_kib": cloud.process.rss_kib(),
    })
    .to_string());
}

fn paced(address: SocketAddr, count: usize, interval: u64) {
    let mut device = Device::connect(address, "paced").expect("connect");
    let start = micros();
    // The window lets later messages leave on time while earlier ones are not acknowledged yet.
    let messages = (0..count as u64).map(|index| {
        let due = start + index * interval;
        while let Some(left) = due.checked_sub(micros()).filter(|left| *left > 0) {
            std::thread::sleep(Duration::from_micros(left));
        }
        ("bench/a".to_owned(), stamped(due).into())
    });
    device.publish_all(messages, 1, |_| ()).expect("published");
}

fn flood(address: SocketAddr, number: usize, count: usize) -> Duration {
    let mut device = Device::connect(address, &format!("flood-{number}")).expect("connect");
    let started = Instant::now();
    let topic = format!("bench/{number}");
    let messages = (0..count).map(|_| (topic.clone(), stamped(micros()).into()));
    device.publish_all(messages, 100, |_| ()).expect("published");
    started.elapsed()
}

fn kafka(size: usize, count: usize) {
    let folder = tempfile::tempdir().expect("folder");
    let cloud = Cloud::start(folder.path());
    let producer: ThreadedProducer<_> = ClientConfig::new()
        .set("bootstrap.servers", cloud.kafka.to_string())
        .set("enable.idempotence", "true")
        .set("linger.ms", "5")
        .set("batch.size", "262144")
        .set("queue.buffering.max.messages", "200000")
        .create()
        .expect("producer");
    let payload = vec![b'x'; size];
    let started = Instant::now();
    for _ in 0..count {
        let mut record = BaseRecord::<(), [u8]>::to("bench").payload(&payload);
        while let Err((_, back)) = producer.send(record) {
            record = back;
            producer.poll(Duration::from_millis(1));
        }
    }
    producer.flush(Duration::from_mins(2)).expect("flushed");
    let produced = started.elapsed();
    let started = Instant::now();
    let reader = Reader::new(cloud.kafka, "bench");
    for read in 0..count {
        assert!(reader.next(QUIET).is_some(), "only {read} of {count}");
    }
    let consumed = started.elapsed();
    say(&json!({
        "bench": "Kafka, librdkafka", "record_bytes": size, "records": count, "acks": "all, idempotent",
        "produced_per_s": rate(count, produced), "consumed_per_s": rate(count, consumed),
        "produced_mb_per_s": rate(count, produced) as usize * size / 1_000_000,
        "consumed_mb_per_s": rate(count, consumed) as usize * size / 1_000_000,
        "cloud_rss_kib": cloud.process.rss_kib(),
    })
    .to_string());
}

async fn amqp(uri: &str, name: &str, count: usize) {
    let connection =
        Connection::connect(uri, ConnectionProperties::default()).await.expect("login");
    let channel = connection.create_channel().await.expect("channel");
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
    channel
        .queue_declare("bench".into(), QueueDeclareOptions::durable(), FieldTable::default())
        .await
        .expect("declare");
    channel.queue_purge("bench".into(), QueuePurgeOptions::default()).await.expect("purge");
    let payload = vec![b'x'; 256];
    let persistent = BasicProperties::default().with_delivery_mode(2);
    let started = Instant::now();
    let mut confirms = std::collections::VecDeque::new();
    for _ in 0..count {
        let confirm = channel
            .basic_publish(
                "".into(),
                "bench".into(),
                BasicPublishOptions::default(),
                &payload,
                persistent.clone(),
            )
            .await
            .expect("publish");
        confirms.push_back(confirm);
        if confirms.len() == 1000 {
            confirms.pop_front().expect("one").await.expect("confirmed");
        }
    }
    for confirm in confirms {
        confirm.await.expect("confirmed");
    }
    let published = started.elapsed();
    channel.basic_qos(1000, BasicQosOptions::default()).await.expect("qos");
    let started = Instant::now();
    let mut consumer = channel
        .basic_consume(
            "bench".into(),
            "bench".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        )
        .await
        .expect("consume");
    let mut read = 0;
    for index in 1..=count {
        let delivery = consumer.next().await.expect("open").expect("delivery");
        read += delivery.data.len();
        if index % 100 == 0 || index == count {
            delivery.ack(BasicAckOptions { multiple: true }).await.expect("ack");
        }
    }
    let consumed = started.elapsed();
    assert_eq!(read, count * payload.len());
    say(&json!({
        "bench": "AMQP, lapin", "broker": name, "messages": count, "payload_bytes": 256,
        "published_confirmed_per_s": rate(count, published), "consumed_acked_per_s": rate(count, consumed),
    })
    .to_string());
}

fn idle() {
    let folder = tempfile::tempdir().expect("folder");
    let cloud = Cloud::start(&folder.path().join("cloud"));
    let edge = Edge::start(&folder.path().join("edge"), "idle", None);
    for (name, process) in [("tributary-edge", &edge.process), ("tributary-cloud", &cloud.process)]
    {
        let size = std::fs::metadata(binary(name)).expect("binary").len();
        say(&json!({
            "bench": "idle", "binary": name, "size_bytes": size, "rss_kib": process.rss_kib(),
        })
        .to_string());
    }
}
