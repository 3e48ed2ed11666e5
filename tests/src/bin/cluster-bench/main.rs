//! What more nodes add: Kafka produce throughput of one, two and three nodes over one store; one JSON line each.
//!
//! `cluster-bench [SECONDS [MBIT]]`: each node's line to the store carries MBIT million bits a second and direction (64, as a small
//! machine's network), so that the nodes' lines are the limit before the cores of the one machine that all run on; `0` takes
//! that limit off and shows what the cores do. The store, the nodes and the producer share the cores in every row.
//! Not here: correctness (`nemesis`).

mod metered;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use metered::Metered;
use rdkafka::{
    ClientConfig, ClientContext,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer},
};
use serde_json::json;
use tributary_tests::{Cloud, process::free_address, s3::MemoryS3, say};

/// Bytes of a record's value.
const PAYLOAD: usize = 1024;
const SHARDS: u32 = 12;
/// Before the count begins: connections are made, tables of the store have their first flush.
const WARM_UP: Duration = Duration::from_secs(5);

/// Counts what was acknowledged.
#[derive(Clone, Default)]
struct Acked(Arc<AtomicU64>);

impl ClientContext for Acked {}

impl ProducerContext for Acked {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        match result {
            Ok(message) => {
                self.0.fetch_add(message.payload_len() as u64, Ordering::Relaxed);
            }
            Err((error, _)) => panic!("not acknowledged: {error}"),
        }
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<u64>().expect("a number"));
    let seconds = arguments.next().unwrap_or(20);
    let mbit = arguments.next().unwrap_or(64);
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let mut alone = None;
    for nodes in 1..=3 {
        let rate = runtime.block_on(run(nodes, Duration::from_secs(seconds), mbit));
        let alone = *alone.get_or_insert(rate);
        say(&json!({
            "bench": "Kafka produce, nodes over one store", "nodes": nodes, "line_mbit_per_s": mbit,
            "payload_bytes": PAYLOAD, "acked_mb_per_s": (rate / 1e4).round() / 100.0,
            "times_one_node": (rate / alone * 100.0).round() / 100.0,
        })
        .to_string());
    }
}

/// Acknowledged bytes a second.
async fn run(nodes: usize, for_: Duration, mbit: u64) -> f64 {
    let store = MemoryS3::default();
    let s3 = store.serve(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("store");
    let mut clouds = Vec::new();
    for node in 1..=nodes {
        let line = Metered::start(s3, mbit * 1_000_000 / 8).await;
        let start = move || start(node, line);
        clouds.push(tokio::task::spawn_blocking(start).await.expect("node"));
    }
    let kafka: Vec<String> = clouds.iter().map(|cloud| cloud.kafka.to_string()).collect();
    let kafka = kafka.join(",");
    topic(&kafka).await;
    let rate = tokio::task::spawn_blocking(move || produce(&kafka, nodes, for_)).await;
    tokio::task::spawn_blocking(move || drop(clouds)).await.expect("stopped");
    rate.expect("produced")
}

fn start(node: usize, store: SocketAddr) -> Cloud {
    let peer = free_address();
    let (name, endpoint) = (format!("n{node}"), format!("engine.s3_endpoint=http://{store}"));
    let (peer, shards) = (peer.to_string(), format!("engine.shards={SHARDS}"));
    let extra = ["--node", &name, "--peer", &peer, "--set", &endpoint, "--set", &shards];
    Cloud::start_with("s3://test/bench", &extra)
}

async fn topic(kafka: &str) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", kafka).create().expect("admin");
    let topic = NewTopic::new("bench", SHARDS as i32, TopicReplication::Fixed(1));
    let made = admin.create_topics([&topic], &AdminOptions::new()).await.expect("asked");
    made.into_iter().for_each(|one| drop(one.expect("made")));
}

/// Sends as fast as it is taken, once every node has its share of the shards.
fn produce(kafka: &str, nodes: usize, for_: Duration) -> f64 {
    let acked = Acked::default();
    let producer: ThreadedProducer<Acked> = ClientConfig::new()
        .set("bootstrap.servers", kafka)
        .set("enable.idempotence", "true")
        .set("linger.ms", "20")
        .set("batch.size", "500000")
        .set("queue.buffering.max.messages", "40000")
        .set("topic.metadata.refresh.interval.ms", "1000")
        .create_with_context(acked.clone())
        .expect("producer");
    until_spread(&producer, nodes);
    // Stored as it is sent: nobody here compresses.
    let payload = vec![b'x'; PAYLOAD];
    let began = Instant::now();
    let mut counted = None;
    let mut next = 0_u32;
    while began.elapsed() < WARM_UP + for_ {
        if counted.is_none() && began.elapsed() >= WARM_UP {
            counted = Some((Instant::now(), acked.0.load(Ordering::Relaxed)));
        }
        let partition = (next % SHARDS) as i32;
        let record = BaseRecord::<(), _>::to("bench").payload(&payload).partition(partition);
        match producer.send(record) {
            Ok(()) => next = next.wrapping_add(1),
            // The queue is full: the producer is faster, as it is to be.
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    let (since, before) = counted.expect("longer than the warm-up");
    let rate = (acked.0.load(Ordering::Relaxed) - before) as f64 / since.elapsed().as_secs_f64();
    producer.flush(Duration::from_mins(2)).expect("all acknowledged");
    rate
}

/// Until each node leads a partition.
fn until_spread(producer: &ThreadedProducer<Acked>, nodes: usize) {
    tributary_tests::process::until("each node leads its share", || {
        let client = producer.client();
        let Ok(found) = client.fetch_metadata(Some("bench"), Duration::from_secs(5)) else {
            return false;
        };
        let Some(topic) = found.topics().first() else { return false };
        let mut leads = std::collections::BTreeMap::new();
        for partition in topic.partitions() {
            *leads.entry(partition.leader()).or_insert(0_usize) += 1;
        }
        leads.len() == nodes && leads.values().all(|count| *count == SHARDS as usize / nodes)
    });
}
