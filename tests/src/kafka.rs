//! Reading and writing through librdkafka, as the tests need it.

use std::{net::SocketAddr, time::Duration};

use rdkafka::{
    ClientConfig, Message as _, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
    message::{Headers as _, OwnedMessage},
};

/// A consumer of all partitions of one topic from the beginning, without a group.
pub struct Reader {
    consumer: BaseConsumer,
}

impl Reader {
    /// Waits until the topic exists.
    pub fn new(kafka: SocketAddr, topic: &str) -> Self {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", kafka.to_string())
            .set("group.id", "unused")
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "earliest")
            .set("allow.auto.create.topics", "true")
            .set("reconnect.backoff.ms", "20")
            .set("reconnect.backoff.max.ms", "200")
            .create()
            .expect("consumer");
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        let partitions = loop {
            let metadata = consumer.fetch_metadata(Some(topic), Duration::from_secs(10));
            let count =
                metadata.ok().map_or(0, |m| m.topics().first().map_or(0, |t| t.partitions().len()));
            if count > 0 {
                break count;
            }
            assert!(std::time::Instant::now() < deadline, "topic {topic} did not appear");
        };
        let mut list = TopicPartitionList::new();
        for partition in 0..partitions {
            list.add_partition_offset(topic, partition as i32, rdkafka::Offset::Beginning)
                .expect("offset");
        }
        consumer.assign(&list).expect("assign");
        Self { consumer }
    }

    /// High watermarks of all partitions.
    pub fn watermarks(&self, topic: &str) -> Vec<(i32, i64)> {
        let timeout = Duration::from_secs(10);
        let metadata = self.consumer.fetch_metadata(Some(topic), timeout).expect("metadata");
        let partitions = metadata.topics().iter().flat_map(|topic| topic.partitions());
        let high = |partition| {
            let found = self.consumer.fetch_watermarks(topic, partition, timeout);
            (partition, found.expect("watermarks").1)
        };
        partitions.map(|partition| high(partition.id())).collect()
    }

    /// The next message, if one comes in time.
    pub fn next(&self, timeout: Duration) -> Option<OwnedMessage> {
        let deadline = std::time::Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            // Errors (broker down and the like) and other events: librdkafka goes on by itself.
            if let Some(Ok(message)) = self.consumer.poll(left) {
                return Some(message.detach());
            }
            if left.is_zero() {
                return None;
            }
        }
    }
}

/// First value of a header.
pub fn header(message: &OwnedMessage, name: &str) -> Option<Vec<u8>> {
    message.headers()?.iter().find(|h| h.key == name).and_then(|h| h.value.map(<[u8]>::to_vec))
}
