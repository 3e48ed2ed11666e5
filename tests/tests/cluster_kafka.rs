//! Kafka clients of a cluster of three nodes do not notice that nodes are drained, killed and come back: what is acknowledged is
//! there once, in order, and what a group committed does not fall. Clients see no error that they do not hide themselves.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, ClientContext, Message as _, Offset, TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, Rebalance},
    error::{KafkaError, RDKafkaErrorCode as Code},
    producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext},
};
use tributary_tests::{
    Cloud,
    kafka::Reader,
    kafka_clients::{clients, note, produce},
    process::until,
};

const TOPIC: &str = "all";
const PARTITIONS: i32 = 6;
const ASKED: Duration = Duration::from_secs(30);

/// Three nodes over one folder.
struct Nodes {
    nodes: Vec<Cloud>,
    _folder: tempfile::TempDir,
}

impl Nodes {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = format!("file://{}", folder.path().display());
        let partitions = format!("log.default_partitions={PARTITIONS}");
        let start = |node: usize| {
            let name = format!("n{node}");
            let extra = ["--node", &name, "--set", &partitions, "--set", "engine.shards=6"];
            Cloud::start_with(&data, &extra)
        };
        let nodes: Vec<_> = (1..=3).map(start).collect();
        let nodes = Self { nodes, _folder: folder };
        // Makes the topic.
        drop(Reader::new(nodes.nodes[0].kafka, TOPIC));
        nodes.until_balanced();
        nodes
    }

    fn brokers(&self) -> String {
        let addresses: Vec<_> = self.nodes.iter().map(|node| node.kafka.to_string()).collect();
        addresses.join(",")
    }

    /// Leaders of the topic's partitions, as one node tells them: index of the node, by partition.
    fn leaders(&self, asked: usize) -> Vec<Option<usize>> {
        let asking: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", self.nodes[asked].kafka.to_string())
            .create()
            .unwrap();
        let Ok(told) = asking.fetch_metadata(Some(TOPIC), ASKED) else { return Vec::new() };
        let ports: HashMap<i32, i32> =
            told.brokers().iter().map(|broker| (broker.id(), broker.port())).collect();
        let index =
            |port: i32| self.nodes.iter().position(|node| i32::from(node.kafka.port()) == port);
        let mut leaders = vec![None; PARTITIONS as usize];
        for partition in told.topics().iter().flat_map(|topic| topic.partitions()) {
            let leader = ports.get(&partition.leader()).copied();
            leaders[partition.id() as usize] = leader.and_then(index);
        }
        leaders
    }

    /// Every node leads something, and all nodes say the same.
    fn until_balanced(&self) {
        until("each node leads a partition", || {
            let told: Vec<_> = (0..3).map(|node| self.leaders(node)).collect();
            let led: BTreeSet<_> = told[0].iter().flatten().collect();
            led.len() == 3 && told.iter().all(|other| *other == told[0])
        });
    }

    fn leader(&self, partition: usize) -> usize {
        self.leaders(0)[partition].expect("a leader")
    }

    fn drain(&mut self, node: usize) {
        assert_eq!(self.nodes[node].process.stop(), Some(0), "a drain ends well");
    }

    fn start_again(&mut self, node: usize) {
        self.nodes[node].start_again().unwrap();
        self.until_balanced();
    }

    fn kill(&mut self, node: usize) {
        self.nodes[node].process.kill();
        let other = (node + 1) % 3;
        until("the others have taken over", || {
            let leaders = self.leaders(other);
            leaders.iter().all(|leader| leader.is_some_and(|leader| leader != node))
        });
    }
}

/// What a client may say while nodes come and go: that it cannot reach one.
fn is_passing(error: &KafkaError) -> bool {
    let code = error.rdkafka_error_code();
    code.is_some_and(|code| {
        matches!(
            code,
            Code::BrokerTransportFailure | Code::AllBrokersDown | Code::OperationTimedOut
        )
    })
}

/// Collects what a client says that is not passing.
#[derive(Clone, Default)]
struct Complaints(Arc<Mutex<Vec<String>>>);

impl Complaints {
    fn hear(&self, error: &KafkaError, why: &str) {
        if !is_passing(error) {
            self.0.lock().unwrap().push(format!("{error}: {why}"));
        }
    }

    fn assert_none(&self) {
        assert_eq!(*self.0.lock().unwrap(), Vec::<String>::new());
    }
}

/// When a record was acknowledged, and of which partition it is.
type Delivery = (Instant, i32);

/// Tells of every delivery.
struct Deliveries(mpsc::SyncSender<Delivery>, Complaints);

impl ClientContext for Deliveries {
    fn error(&self, error: KafkaError, why: &str) {
        self.1.hear(&error, why);
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, delivered: &DeliveryResult<'_>, (): ()) {
        let message = match delivered {
            Ok(message) => message,
            Err((error, message)) => {
                self.1.0.lock().unwrap().push(format!("not delivered: {error}"));
                message
            }
        };
        let _ = self.0.send((Instant::now(), message.partition()));
    }
}

/// Sends numbers in order, each partition its own, until it is told to stop; returns how many.
fn produce_numbers(
    brokers: &str,
    stop: &AtomicBool,
    told: mpsc::SyncSender<Delivery>,
    complaints: &Complaints,
) -> usize {
    let producer: BaseProducer<Deliveries> = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("enable.idempotence", "true")
        .set("linger.ms", "1")
        .set("reconnect.backoff.max.ms", "200")
        .create_with_context(Deliveries(told, complaints.clone()))
        .unwrap();
    let mut number = 0;
    while !stop.load(Ordering::Acquire) {
        let text = number.to_string();
        let partition = number as i32 % PARTITIONS;
        let mut record = BaseRecord::<(), str>::to(TOPIC).payload(&text).partition(partition);
        // A full queue empties while we poll.
        while let Err((_, back)) = producer.send(record) {
            record = back;
            producer.poll(Duration::from_millis(10));
        }
        number += 1;
        // About a thousand a second, so that there is something under way at every moment.
        producer.poll(Duration::from_millis(1));
    }
    producer.flush(Duration::from_mins(1)).unwrap();
    number
}

/// Listens to a member of a group.
struct Member(Complaints);

impl ClientContext for Member {
    fn error(&self, error: KafkaError, why: &str) {
        self.0.hear(&error, why);
    }
}

impl ConsumerContext for Member {
    fn pre_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        if let Rebalance::Error(error) = rebalance {
            self.0.hear(error, "rebalance");
        }
    }
}

/// Reads as a member of a group and commits what it has read, until it is told to stop and has read as many as there are;
/// returns (partition, offset) -> number.
fn consume_numbers(
    brokers: &str,
    count: &Mutex<Option<usize>>,
    complaints: &Complaints,
) -> BTreeMap<(i32, i64), usize> {
    let consumer: BaseConsumer<Member> = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "lasting")
        .set("auto.offset.reset", "earliest")
        .set("enable.auto.commit", "true")
        .set("auto.commit.interval.ms", "100")
        .set("heartbeat.interval.ms", "200")
        .set("reconnect.backoff.max.ms", "200")
        .create_with_context(Member(complaints.clone()))
        .unwrap();
    consumer.subscribe(&[TOPIC]).unwrap();
    let mut seen = BTreeMap::new();
    let mut quiet_since = Instant::now();
    while count.lock().unwrap().is_none_or(|count| seen.len() < count) {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                let at = (message.partition(), message.offset());
                let number = std::str::from_utf8(message.payload().unwrap()).unwrap();
                let before = seen.insert(at, number.parse().unwrap());
                assert_eq!(before, None, "{at:?} twice");
                quiet_since = Instant::now();
            }
            Some(Err(error)) => complaints.hear(&error, "poll"),
            None => assert!(quiet_since.elapsed() < ASKED, "nothing comes after {}", seen.len()),
        }
    }
    match consumer
        .commit_consumer_state(CommitMode::Sync)
        .map_err(|error| error.rdkafka_error_code())
    {
        // Everything was committed before.
        Ok(()) | Err(Some(Code::NoOffset)) => {}
        failed => panic!("{failed:?}"),
    }
    seen
}

/// Tells those who wait for these that it is over, also when the test fails.
struct Over<'a>([&'a AtomicBool; 2]);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.iter().for_each(|over| over.store(true, Ordering::Release));
    }
}

/// Looks at what the group has committed again and again until it is told to stop: no partition's offset falls.
fn watch_commits(brokers: &str, stop: &AtomicBool) -> usize {
    let watcher: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "lasting")
        .set("reconnect.backoff.max.ms", "200")
        .create()
        .unwrap();
    let mut partitions = TopicPartitionList::new();
    partitions.add_partition_range(TOPIC, 0, PARTITIONS - 1);
    let mut highest = vec![-1; PARTITIONS as usize];
    let mut looks = 0;
    while !stop.load(Ordering::Acquire) {
        // It may not be reached in time while its node is gone.
        let Ok(told) = watcher.committed_offsets(partitions.clone(), ASKED) else { continue };
        looks += 1;
        for element in told.elements() {
            let before = &mut highest[element.partition() as usize];
            let now = if let Offset::Offset(now) = element.offset() { now } else { -1 };
            assert!(now >= *before, "partition {}: {now} after {before}", element.partition());
            *before = now;
        }
    }
    looks
}

/// The longest time without a delivery of a partition between `from` and `to`.
fn longest_gap(deliveries: &[Delivery], from: Instant, to: Instant, partition: i32) -> Duration {
    let within = deliveries.iter().filter(|(at, of)| *of == partition && (from..to).contains(at));
    let mut last = from;
    let mut longest = Duration::ZERO;
    for (at, _) in within {
        longest = longest.max(*at - last);
        last = *at;
    }
    longest
}

#[test]
fn a_producer_and_a_group_notice_neither_a_drain_nor_a_kill() {
    let mut nodes = Nodes::start();
    let brokers = &nodes.brokers();
    let (complaints, count) = (&Complaints::default(), &Mutex::new(None));
    let (producing, watching) = (&AtomicBool::new(false), &AtomicBool::new(false));
    let (told, deliveries) = mpsc::sync_channel(1_000_000);
    std::thread::scope(|scope| {
        let producer = scope.spawn(move || produce_numbers(brokers, producing, told, complaints));
        let consumer = scope.spawn(move || consume_numbers(brokers, count, complaints));
        let watcher = scope.spawn(move || watch_commits(brokers, watching));
        let over = Over([producing, watching]);
        let mut delivered = Vec::new();
        let mut deliver = |more: usize| {
            let until = delivered.len() + more;
            while delivered.len() < until {
                delivered.push(deliveries.recv_timeout(ASKED).expect("a delivery"));
            }
        };
        deliver(1_000);
        let drained = nodes.leader(0);
        let drain = Instant::now();
        nodes.drain(drained);
        deliver(1_000);
        nodes.start_again(drained);
        deliver(1_000);
        let killed = nodes.leader(1);
        let kill = Instant::now();
        nodes.kill(killed);
        deliver(1_000);
        nodes.start_again(killed);
        deliver(1_000);
        producing.store(true, Ordering::Release);
        let sent = producer.join().unwrap();
        delivered.extend(deliveries.iter());
        *count.lock().unwrap() = Some(sent);
        let seen = consumer.join().unwrap();
        drop(over);
        assert!(watcher.join().unwrap() > 0);

        complaints.assert_none();
        assert_eq!(delivered.len(), sent);
        let (after_drain, after_kill) = (
            longest_gap(&delivered, drain, kill, 0),
            longest_gap(&delivered, kill, Instant::now(), 1),
        );
        note(&format!(
            "{sent} records; {after_drain:?} without a drained node's partition, {after_kill:?} without a killed one's"
        ));
        // In order and whole, partition by partition.
        let mut next: HashMap<i32, (i64, usize)> = HashMap::new();
        for ((partition, offset), number) in seen {
            let (expected_offset, expected) =
                next.get(&partition).copied().unwrap_or((0, partition as usize));
            assert_eq!((offset, number), (expected_offset, expected), "partition {partition}");
            next.insert(partition, (offset + 1, number + PARTITIONS as usize));
        }
    });
}

/// Drains and kills nodes, one after another, until told to stop; at least one of each.
fn disturb(nodes: &mut Nodes, stop: &AtomicBool) {
    for round in 0.. {
        let node = round % 3;
        if round % 2 == 0 {
            nodes.drain(node);
        } else {
            nodes.kill(node);
        }
        nodes.start_again(node);
        if round > 0 && stop.load(Ordering::Acquire) {
            return;
        }
    }
}

/// Runs `clients` while nodes come and go.
fn disturbed<T>(nodes: &mut Nodes, clients: impl FnOnce() -> T) -> T {
    let stop = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        let disturbing = scope.spawn(move || disturb(nodes, stop));
        let over = Over([stop, stop]);
        let answer = clients();
        drop(over);
        disturbing.join().unwrap();
        answer
    })
}

#[test]
fn clients_of_many_makers_produce_while_nodes_come_and_go() {
    const COUNT: usize = 200;
    let mut clients = clients();
    // It hands a refused connection to the program instead of trying another node: with any broker, not only with ours.
    clients.retain(|client| client.name != "kafkajs");
    let clients = &clients;
    let mut nodes = Nodes::start();
    let brokers = &nodes.brokers();
    let first = disturbed(&mut nodes, || produce(clients, brokers, TOPIC, "first", COUNT));

    // The log itself has each record once.
    let reader = Reader::new(nodes.nodes[0].kafka, TOPIC);
    let mut left = first;
    while !left.is_empty() {
        let message = reader.next(ASKED).expect("a record that was acked");
        let value = String::from_utf8(message.payload().unwrap().to_vec()).unwrap();
        let name: Vec<&str> = value.split('/').take(4).collect();
        assert!(left.remove(&name.join("/")), "{value} twice");
    }
    assert!(reader.next(Duration::from_millis(500)).is_none(), "more than was sent");
}
