//! Compaction by key as a Kafka client sees it, with a cloud that is killed while it compacts: the latest record of every key is always
//! there, at its offset, and in the end nothing else.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, Message as _, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer as _},
    producer::{BaseRecord, Producer as _, ThreadedProducer},
};
use tributary_tests::Cloud;

const TOPIC: &str = "compacted";
const KEYS: usize = 10;
const VERSIONS: usize = 100;
/// Keys below this are deleted in the end.
const DELETED: usize = 3;
const KILLS: usize = 5;
const PATIENCE: Duration = Duration::from_mins(1);
/// Passes of few keys, one after the other.
const QUICK: [&str; 6] = [
    "--set",
    "log.compaction_interval_ms=50",
    "--set",
    "log.compaction_keys=4",
    "--set",
    "log.compaction_dirty_percent=0",
];

fn config(cloud: &Cloud) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", cloud.kafka.to_string());
    config
}

fn topic(cloud: &Cloud) {
    let admin: AdminClient<DefaultClientContext> = config(cloud).create().expect("admin");
    let topic = NewTopic::new(TOPIC, 1, TopicReplication::Fixed(1))
        .set("cleanup.policy", "compact")
        .set("delete.retention.ms", "500");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let made = admin.create_topics([&topic], &AdminOptions::new());
    let made = runtime.expect("runtime").block_on(made).expect("asked");
    made.into_iter().for_each(|one| assert_eq!(one, Ok(TOPIC.to_owned())));
}

/// All versions of all keys in turn, then the end of some, then one record more, which stays as the last.
fn produce(cloud: &Cloud) {
    let producer: ThreadedProducer<_> = config(cloud)
        .set("enable.idempotence", "true")
        .set("compression.type", "lz4")
        .set("batch.num.messages", "25")
        .create()
        .expect("producer");
    let send = |key: &str, value: Option<&str>| {
        let mut record = BaseRecord::<str, str>::to(TOPIC).key(key).partition(0);
        record.payload = value;
        producer.send(record).map_err(|(error, _)| error).expect("queued");
    };
    for version in 0..VERSIONS {
        (0..KEYS).for_each(|key| send(&format!("k{key}"), Some(&format!("v{version}"))));
    }
    (0..DELETED).for_each(|key| send(&format!("k{key}"), None));
    send("last", Some("v"));
    producer.flush(PATIENCE).expect("acknowledged");
}

type Found = Vec<(i64, String, Option<String>)>;

/// Everything from the first offset to the high watermark, and that.
fn read(cloud: &Cloud) -> (Found, i64) {
    let consumer: BaseConsumer =
        config(cloud).set("group.id", "unused").create().expect("consumer");
    let marks = consumer.fetch_watermarks(TOPIC, 0, PATIENCE).expect("watermarks");
    assert_eq!(marks.0, 0, "its beginning does not move");
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(TOPIC, 0, Offset::Beginning).expect("offset");
    consumer.assign(&list).expect("assigned");
    let mut found = Found::new();
    while found.last().is_none_or(|(offset, ..)| offset + 1 < marks.1) {
        let message = consumer.poll(PATIENCE).expect("a record").expect("no error").detach();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
        let key = text(message.key().expect("a key"));
        found.push((message.offset(), key, message.payload().map(text)));
    }
    (found, marks.1)
}

/// In order, and the latest of each key there; keys that are deleted may be told of, and have no value.
fn check(found: &Found, high: i64) {
    assert_eq!(high as usize, KEYS * VERSIONS + DELETED + 1, "its end does not move");
    assert!(found.windows(2).all(|pair| pair[0].0 < pair[1].0), "out of order: {found:?}");
    let latest: BTreeMap<_, _> = found.iter().map(|(_, key, value)| (key, value)).collect();
    for key in DELETED..KEYS {
        let of_key = latest.get(&format!("k{key}"));
        assert_eq!(of_key, Some(&&Some(format!("v{}", VERSIONS - 1))), "{found:?}");
    }
    for key in 0..DELETED {
        let of_key = latest.get(&format!("k{key}"));
        assert!(of_key.is_none_or(|value| value.is_none()), "k{key} is back: {found:?}");
    }
}

#[test]
fn the_latest_record_of_each_key_is_always_there_and_in_the_end_alone_also_when_the_cloud_is_killed()
 {
    let folder = tempfile::tempdir().expect("folder");
    let data = format!("file://{}", folder.path().join("data").display());
    let mut cloud = Cloud::start_with(&data, &QUICK);
    topic(&cloud);
    produce(&cloud);
    let deadline = Instant::now() + PATIENCE;
    let (mut before, mut kills) = (usize::MAX, 0);
    loop {
        let (found, high) = read(&cloud);
        check(&found, high);
        assert!(found.len() <= before, "{} records after {before}", found.len());
        if found.len() == KEYS - DELETED + 1 {
            break;
        }
        assert!(Instant::now() < deadline, "{} left: {found:?}", found.len());
        if found.len() < before && kills < KILLS {
            cloud.process.kill();
            cloud.start_again().expect("started");
            kills += 1;
        }
        before = found.len();
    }
    assert!(kills > 0, "compacted before it could be killed");
}
