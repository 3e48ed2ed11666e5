//! Clients' messages as record batches for the log.
//!
//! In: messages in the order they were taken. Out: one batch a partition (more where it would be too large).
//! Not here: which partition (`route`), what a record looks like (`record::mqtt`).

use std::{collections::HashMap, sync::Arc};

use tributary_shared::{
    message::Message,
    mqtt::packet::{Publish, PublishProperties},
    record::{Batch, BatchBuilder, BatchError, Compression, mqtt::to_record},
    telemetry::brief,
};

use super::{Head, door};
use crate::log::{Append, Log, LogError, PartitionId, Stream};

/// From so many messages on a batch is compressed: below it costs more than it saves.
const COMPRESS_FROM: usize = 10;
/// What a record of a message has beside its parts: headers of ours with short values, lengths, the batch's header.
const OVERHEAD: usize = 1_024;
/// What a header has beside its name and value.
const HEADER_OVERHEAD: usize = 16;

/// What a publish takes in a batch of its own, at the most.
pub(super) fn weight(publish: &Publish) -> usize {
    weigh(publish.topic.len(), publish.payload.len(), &publish.properties)
}

fn weigh(topic: usize, payload: usize, properties: &PublishProperties) -> usize {
    let user: usize = properties
        .user_properties
        .iter()
        .map(|(name, value)| name.len() + value.len() + HEADER_OVERHEAD)
        .sum();
    // The topic may stand in a header too.
    2 * topic
        + payload
        + user
        + properties.content_type.as_ref().map_or(0, |text| text.len())
        + properties.response_topic.as_ref().map_or(0, |text| text.len())
        + properties.correlation_data.as_ref().map_or(0, bytes::Bytes::len)
        + OVERHEAD
}

/// Bytes of the largest batch that `stream` takes.
pub(super) fn limit(log: &Log, stream: &Stream) -> usize {
    stream.config.max_batch_bytes.unwrap_or(log.settings().max_batch_bytes)
}

/// Appends to partitions of the head's shard; the messages of a partition stay in order.
pub(super) async fn batches(
    head: &Head,
    messages: &[Arc<Message>],
) -> Result<Vec<Append>, LogError> {
    let mut shares: Vec<Share> = Vec::new();
    let mut index: HashMap<PartitionId, usize> = HashMap::new();
    for message in messages {
        // A will whose topic was not what it said, or settings that are others now.
        if door::is_closed(&message.topic) {
            tracing::error!(
                topic = &*message.topic,
                "a message to a topic that clients do not publish to"
            );
            head.numbers.dropped("not_authorized");
            continue;
        }
        let place = match head.routing.place(&head.log, head.home, &message.topic).await {
            Ok(place) => place,
            Err(error @ (LogError::Closed | LogError::NotOwner | LogError::Engine(_))) => {
                return Err(error);
            }
            // Publishes were asked about before they were taken; a will was not.
            Err(error) => {
                let topic = brief(&message.topic);
                tracing::error!(%error, topic, "a message has no stream to go to");
                head.numbers.dropped("no_stream");
                continue;
            }
        };
        let weight = weigh(message.topic.len(), message.payload.len(), &message.properties);
        let limit = limit(&head.log, &place.stream);
        if weight > limit {
            let topic = brief(&message.topic);
            tracing::error!(topic, weight, limit, "a message is too large");
            head.numbers.dropped("too_large");
            continue;
        }
        let mut record = to_record(message);
        place.target.set_key(&mut record, &message.topic);
        let at = *index.entry(place.partition).or_insert_with(|| {
            shares.push(Share::new(place.partition));
            shares.len() - 1
        });
        if let Some(share) = shares.get_mut(at) {
            if share.builder.count() > 0 && share.builder.size() + weight > limit {
                share.cut()?;
            }
            share.builder.push(&record);
        }
    }
    let mut appends = Vec::new();
    for mut share in shares {
        share.cut()?;
        let partition = share.partition;
        appends.extend(share.done.into_iter().map(|batch| Append { partition, batch }));
    }
    Ok(appends)
}

/// What goes to one partition.
struct Share {
    partition: PartitionId,
    done: Vec<Batch>,
    builder: BatchBuilder,
}

impl Share {
    fn new(partition: PartitionId) -> Self {
        Self { partition, done: Vec::new(), builder: BatchBuilder::new() }
    }

    fn cut(&mut self) -> Result<(), BatchError> {
        let builder = std::mem::take(&mut self.builder);
        let many = builder.count() >= COMPRESS_FROM;
        let compression = if many { Compression::Zstd } else { Compression::None };
        self.done.push(builder.finish(compression, None)?);
        Ok(())
    }
}
