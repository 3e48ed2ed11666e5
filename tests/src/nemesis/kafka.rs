//! Kafka clients of a run, over librdkafka: idempotent and plain producers, readers of all partitions, a group that commits, and one
//! who watches the high watermarks.
//!
//! Change here: how they are set up. Not here: what they find (`history`).

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, ClientContext, Message as _, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    consumer::{BaseConsumer, CommitMode, Consumer as _},
    message::OwnedMessage,
    producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext},
};

use super::{history::STREAM, run::Run};
use crate::bridge::Message;

/// Topic of the Kafka producers.
pub(super) const TOPIC: &str = "nemesis";
/// Its partitions; each is a lane of its own.
pub(super) const PARTITIONS: i32 = 4;
/// One message a partition each so often.
const PACE: Duration = Duration::from_millis(20);
/// Five requests are in flight at most to a node, each for as long as a flush. When all are and more is due, librdkafka's
/// threads spin; then the nodes get no time on a small machine.
const LINGER_MS: &str = "60";
/// Bytes of a payload.
const BYTES: usize = 100;
/// How long the answers to what was sent are waited for at the end.
const ANSWERS: Duration = Duration::from_mins(1);
/// How long a question may take.
const ANSWER: Duration = Duration::from_secs(5);

fn config(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", brokers)
        .set("socket.timeout.ms", "4000")
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "400")
        .set("topic.metadata.refresh.interval.ms", "5000")
        .set("log_level", "2");
    config
}

/// Makes the topic; waits until it and the other doors' stream can be read. How many partitions that has.
pub(super) fn prepare(brokers: &str) -> Result<i32, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let admin: AdminClient<_> = config(brokers).create().map_err(|error| error.to_string())?;
    let topic = NewTopic::new(TOPIC, PARTITIONS, TopicReplication::Fixed(1));
    let made = admin.create_topics([&topic], &AdminOptions::new());
    let made = runtime.expect("a runtime").block_on(made).map_err(|error| error.to_string())?;
    if let Some(Err((_, code))) = made.into_iter().next() {
        return Err(format!("topic {TOPIC}: {code}"));
    }
    let consumer: BaseConsumer = config(brokers)
        .set("group.id", "unused")
        .set("allow.auto.create.topics", "true")
        .create()
        .map_err(|error| error.to_string())?;
    let partitions = |topic| {
        let mut found = 0;
        crate::process::until(&format!("{topic} has partitions"), || {
            let metadata = consumer.fetch_metadata(Some(topic), ANSWER);
            found =
                metadata.map_or(0, |of| of.topics().first().map_or(0, |t| t.partitions().len()));
            found > 0
        });
        found as i32
    };
    partitions(TOPIC);
    Ok(partitions(STREAM))
}

/// Tells of deliveries.
struct Deliveries {
    run: Arc<Run>,
    name: &'static str,
    incarnation: u32,
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = Box<(i32, u64)>;

    fn delivery(&self, delivered: &DeliveryResult<'_>, sent: Self::DeliveryOpaque) {
        let (partition, seq) = *sent;
        if delivered.is_ok() {
            self.run.acked(&source(self.name, partition), self.incarnation, seq);
        }
    }
}

/// Of a producer of that name: one a partition.
pub(super) fn lanes(name: &str) -> impl Iterator<Item = String> {
    (0..PARTITIONS).map(move |partition| source(name, partition))
}

fn source(name: &str, partition: i32) -> String {
    format!("{name}p{partition}")
}

/// Sends to every partition in turn until the run is quiet, and then until all of it was answered. `exact`: idempotent.
pub(super) fn produce(run: &Arc<Run>, brokers: &str, name: &'static str, exact: bool) {
    while !run.is_quiet() {
        // Only a fatal error ends it before.
        produce_one_life(run, brokers, name, exact);
    }
}

fn produce_one_life(run: &Arc<Run>, brokers: &str, name: &'static str, exact: bool) {
    let incarnations: Vec<_> = (0..PARTITIONS).map(|p| run.begin(&source(name, p))).collect();
    let incarnation = incarnations[0];
    let producer: BaseProducer<Deliveries> = config(brokers)
        .set("enable.idempotence", if exact { "true" } else { "false" })
        .set("acks", "all")
        .set("linger.ms", LINGER_MS)
        .set("request.timeout.ms", "5000")
        .set("message.timeout.ms", "120000")
        .create_with_context(Deliveries { run: run.clone(), name, incarnation })
        .expect("a producer");
    let mut seq = 0;
    while !run.is_quiet() && producer.client().fatal_error().is_none() {
        for partition in 0..PARTITIONS {
            let source = source(name, partition);
            let message = Message { source, incarnation, seq };
            let payload = message.payload(BYTES);
            run.sent(&message.source, incarnation, seq);
            let record =
                BaseRecord::<(), str, _>::with_opaque_to(TOPIC, Box::new((partition, seq)));
            // A full queue: the message was never sent, which is allowed.
            let _ = producer.send(record.payload(&payload).partition(partition));
        }
        seq += 1;
        producer.poll(PACE);
        std::thread::sleep(PACE / 2);
    }
    let deadline = Instant::now() + ANSWERS;
    while producer.in_flight_count() > 0 && !run.is_over() && Instant::now() < deadline {
        producer.poll(Duration::from_millis(50));
    }
}

fn reader(brokers: &str, of_stream: i32) -> BaseConsumer {
    let consumer: BaseConsumer = config(brokers)
        .set("group.id", "unused")
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "error")
        .set("fetch.wait.max.ms", "200")
        .create()
        .expect("a consumer");
    let mut list = TopicPartitionList::new();
    for (topic, partitions) in [(TOPIC, PARTITIONS), (STREAM, of_stream)] {
        for partition in 0..partitions {
            list.add_partition_offset(topic, partition, Offset::Offset(0)).expect("an offset");
        }
    }
    consumer.assign(&list).expect("assigned");
    consumer
}

/// Reads all partitions forward while it all happens.
pub(super) fn read(run: &Run, brokers: &str, of_stream: i32) {
    let consumer = reader(brokers, of_stream);
    while !run.is_over() {
        if let Some(message) = next(&consumer, Duration::from_millis(100)) {
            let payload = message.payload().unwrap_or_default();
            let (topic, partition) = (message.topic(), message.partition());
            run.history().read_on("live", topic, partition, message.offset(), payload);
        }
    }
}

fn next(consumer: &BaseConsumer, patience: Duration) -> Option<OwnedMessage> {
    // Errors (a broker is down and the like): librdkafka goes on by itself.
    consumer.poll(patience)?.ok().map(|message| message.detach())
}

/// Reads everything once more, from the first offset to the high watermarks as they are now. False: it did not get there in time.
pub(super) fn read_again(run: &Run, brokers: &str, of_stream: i32, patience: Duration) -> bool {
    let consumer = reader(brokers, of_stream);
    let deadline = Instant::now() + patience;
    let mut left: HashMap<(String, i32), i64> = HashMap::new();
    for (topic, partitions) in [(TOPIC, PARTITIONS), (STREAM, of_stream)] {
        for partition in 0..partitions {
            let high = loop {
                if let Ok((_, high)) = consumer.fetch_watermarks(topic, partition, ANSWER) {
                    break high;
                }
                if Instant::now() > deadline {
                    return false;
                }
            };
            run.history().high(topic, partition, high);
            if high > 0 {
                left.insert((topic.to_owned(), partition), high);
            }
        }
    }
    while !left.is_empty() && Instant::now() < deadline {
        let Some(message) = next(&consumer, Duration::from_millis(200)) else { continue };
        let payload = message.payload().unwrap_or_default();
        let (topic, partition, offset) = (message.topic(), message.partition(), message.offset());
        run.history().read_on("again", topic, partition, offset, payload);
        let at = (topic.to_owned(), partition);
        if left.get(&at).is_some_and(|high| offset + 1 >= *high) {
            left.remove(&at);
        }
    }
    left.is_empty()
}

/// Asks for all high watermarks, again and again, one after the other.
pub(super) fn watch(run: &Run, brokers: &str, of_stream: i32) {
    let consumer: BaseConsumer =
        config(brokers).set("group.id", "unused").create().expect("a consumer");
    while !run.is_over() {
        for (topic, partitions) in [(TOPIC, PARTITIONS), (STREAM, of_stream)] {
            for partition in 0..partitions {
                if run.is_over() {
                    return;
                }
                if let Ok((_, high)) =
                    consumer.fetch_watermarks(topic, partition, Duration::from_secs(2))
                {
                    run.history().high(topic, partition, high);
                }
            }
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A group of one that reads the topic and commits what it has read; it asks what is committed, too, and comes back as another
/// member now and then.
pub(super) fn commit(run: &Run, brokers: &str) {
    while !run.is_over() {
        let consumer: BaseConsumer = config(brokers)
            .set("group.id", "committed")
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "earliest")
            .set("session.timeout.ms", "6000")
            .set("heartbeat.interval.ms", "500")
            .create()
            .expect("a consumer");
        consumer.subscribe(&[TOPIC]).expect("subscribed");
        // Long enough to go through a fault, short enough that members change in every run.
        let until = run.now_ms() + 12_000;
        while !run.is_over() && run.now_ms() < until {
            commit_once(run, &consumer);
        }
    }
}

fn commit_once(run: &Run, consumer: &BaseConsumer) {
    for _ in 0..50 {
        let Some(message) = next(consumer, Duration::from_millis(20)) else { continue };
        let payload = message.payload().unwrap_or_default();
        let (topic, partition) = (message.topic(), message.partition());
        run.history().saw("group", topic, partition, message.offset(), payload);
    }
    let Ok(read) = consumer.position() else { return };
    let known = |list: &TopicPartitionList| -> Vec<(i32, i64)> {
        let offset = |offset| if let Offset::Offset(offset) = offset { Some(offset) } else { None };
        list.elements().iter().filter_map(|e| Some((e.partition(), offset(e.offset())?))).collect()
    };
    let positions = known(&read);
    let mut list = TopicPartitionList::new();
    for (partition, offset) in &positions {
        let _ = list.add_partition_offset(TOPIC, *partition, Offset::Offset(*offset));
    }
    // What it has committed is asked for before the next commit, and by the only one who commits.
    if let Ok(committed) = consumer.committed(ANSWER) {
        let mut history = run.history();
        for (partition, offset) in known(&committed) {
            history.resumes_at(TOPIC, partition, offset);
        }
    }
    if !positions.is_empty() && consumer.commit(&list, CommitMode::Sync).is_ok() {
        let mut history = run.history();
        for (partition, offset) in positions {
            history.committed(TOPIC, partition, offset);
        }
    }
}
