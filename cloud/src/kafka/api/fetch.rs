//! Fetch (1): stored batches as they are, with a long poll that appends wake.
//!
//! ```text
//! read all partitions -> min_bytes there, an error, or time up? -> answer
//!        ^------- those that moved <-- wait for any ----'
//! ```
//! Whole batches, from the one that holds the offset on; at least one, whatever its size. Sessions are declined (id 0).
//! Not here: the answer's bytes (`fetch_answer`), reading (`log`).

use std::time::Duration;

use bytes::Bytes;
use futures::{FutureExt, StreamExt, stream::FuturesUnordered};
use tokio::time::{Instant, sleep_until};
use tributary_shared::record::Batch;
use uuid::Uuid;

use super::{Patience, fetch_answer};
use crate::{
    kafka::{
        Client, Numbers,
        error::Code,
        frame::{
            Close, Request,
            wire::fetch_request::{FetchPartition, FetchRequest},
        },
        place::{self, Named},
    },
    log::{Log, LogError, PartitionId, Stream, StreamId},
};

/// First version that names topics by id.
pub(super) const BY_ID_FROM: i16 = 13;

/// A topic of the request.
pub(super) struct Topic {
    pub(super) name: String,
    pub(super) id: Uuid,
    stream: Option<StreamId>,
    pub(super) partitions: Vec<Part>,
}

/// A partition of the request, and what was found.
pub(super) struct Part {
    pub(super) index: i32,
    from: i64,
    max_bytes: usize,
    partition: Result<PartitionId, Code>,
    pub(super) error: Code,
    /// Id and epoch, for who is refused by this node.
    pub(super) leader: Option<(i32, i32)>,
    pub(super) start: i64,
    pub(super) high: i64,
    /// High watermark before it was read: what is above it was perhaps not seen.
    seen: i64,
    pub(super) batches: Vec<Batch>,
    pub(super) bytes: usize,
}

pub(super) async fn answer(client: &Client, request: &Request) -> Result<Vec<Bytes>, Close> {
    let asked: FetchRequest = request.decode()?;
    if asked.session_id != 0 {
        return Ok(fetch_answer::no_session(request));
    }
    let head = &client.head;
    let wait = (asked.max_wait_ms.max(0) as u64).min(head.settings.max_wait_ms);
    let deadline = Instant::now() + Duration::from_millis(wait);
    let max_bytes = (asked.max_bytes.max(0) as usize).min(head.settings.max_fetch_bytes);
    let min_bytes = (asked.min_bytes.max(0) as usize).min(max_bytes);
    let mut topics = resolve(client, request.version, asked).await;
    fill(&head.log, &mut topics, max_bytes).await;
    loop {
        let bytes: usize = parts(&topics).map(|part| part.bytes).sum();
        let failed = parts(&topics).any(|part| part.error != Code::None);
        let over = Instant::now() >= deadline || head.stop.is_cancelled();
        if bytes >= min_bytes || failed || over {
            Numbers::add(&head.numbers.fetched_bytes_total, bytes as u64);
            let leaders = name_leaders(client, &mut topics);
            return Ok(fetch_answer::encode(request, &topics, &leaders.nodes));
        }
        tokio::select! {
            moved = any_moved(&head.log, &topics) => {
                for part in topics.iter_mut().flat_map(|topic| &mut topic.partitions) {
                    if part.partition.is_ok_and(|partition| moved.contains(&partition)) {
                        part.clear();
                    }
                }
                fill(&head.log, &mut topics, max_bytes).await;
            }
            () = sleep_until(deadline) => {}
            () = head.stop.cancelled() => {}
        }
    }
}

fn parts(topics: &[Topic]) -> impl Iterator<Item = &Part> {
    topics.iter().flat_map(|topic| &topic.partitions)
}

/// Finds the topics and partitions asked for.
async fn resolve(client: &Client, version: i16, asked: FetchRequest) -> Vec<Topic> {
    let head = &client.head;
    let patience = Patience::begin();
    let mut topics = Vec::with_capacity(asked.topics.len());
    for topic in asked.topics {
        let stream = if version >= BY_ID_FROM {
            head.topic_ids.find(&head.log, topic.topic_id).ok_or(Code::UnknownTopicId)
        } else {
            head.log.stream(&topic.topic).ok_or(Code::UnknownTopicOrPartition)
        };
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for asked in &topic.partitions {
            let partition = match &stream {
                Ok(stream) => find(client, stream, asked, patience).await,
                Err(missing) => Err(*missing),
            };
            partitions.push(Part::new(asked, partition));
        }
        let (name, id) = (topic.topic.to_string(), topic.topic_id);
        topics.push(Topic { name, id, stream: stream.ok().map(|stream| stream.id), partitions });
    }
    topics
}

async fn find(
    client: &Client,
    stream: &Stream,
    asked: &FetchPartition,
    patience: Patience,
) -> Result<PartitionId, Code> {
    let index = super::partition_index(stream, asked.partition);
    let partition = PartitionId::new(stream.id, index.map_err(|error| Code::from(&error))?);
    let epoch = client.head.leads(partition, patience).await?;
    place::check_epoch(asked.current_leader_epoch, epoch)?;
    Ok(partition)
}

/// Says who leads every partition that is not served here, or was asked for in an epoch that is over.
fn name_leaders(client: &Client, topics: &mut [Topic]) -> Named {
    let head = &client.head;
    let view = head.cluster.view();
    let mut named = Named::default();
    for topic in topics {
        let gone = |part: &&mut Part| {
            matches!(part.error, Code::NotLeaderOrFollower | Code::FencedLeaderEpoch)
        };
        for part in topic.partitions.iter_mut().filter(gone) {
            let index = u32::try_from(part.index).ok();
            let Some((stream, index)) = topic.stream.zip(index) else { continue };
            let leader = head.leader(&view, PartitionId::new(stream, index));
            part.leader = named.leader(client, &view, leader);
        }
    }
    named
}

/// Reads every partition that has nothing yet, as far as `max_bytes` for all goes.
async fn fill(log: &Log, topics: &mut [Topic], max_bytes: usize) {
    let mut total: usize = parts(topics).map(|part| part.bytes).sum();
    for part in topics.iter_mut().flat_map(|topic| &mut topic.partitions) {
        let Ok(partition) = part.partition else { continue };
        if part.bytes > 0 {
            continue;
        }
        let room = max_bytes.saturating_sub(total).min(part.max_bytes);
        match part.read(log, partition, room, total == 0).await {
            Ok(()) => total += part.bytes,
            Err(error) => part.error = Code::from(&error),
        }
    }
}

impl Part {
    fn new(asked: &FetchPartition, partition: Result<PartitionId, Code>) -> Self {
        Self {
            index: asked.partition,
            from: asked.fetch_offset,
            max_bytes: asked.partition_max_bytes.max(0) as usize,
            error: partition.err().unwrap_or(Code::None),
            leader: None,
            partition,
            start: -1,
            high: -1,
            seen: -1,
            batches: Vec::new(),
            bytes: 0,
        }
    }

    fn clear(&mut self) {
        self.batches.clear();
        self.bytes = 0;
    }

    /// Reads whole batches of together at most `room` bytes; the `first` of the answer may be larger.
    async fn read(
        &mut self,
        log: &Log,
        partition: PartitionId,
        room: usize,
        first: bool,
    ) -> Result<(), LogError> {
        let before = log.watermarks(partition)?;
        (self.seen, self.high, self.start) = (before.high, before.high, before.start);
        if self.from < before.start || self.from > before.high {
            return Err(LogError::OffsetOutOfRange {
                asked: self.from,
                start: before.start,
                high: before.high,
            });
        }
        if self.from == before.high || (room == 0 && !first) {
            return Ok(());
        }
        for batch in log.read(partition, self.from, room).await? {
            let size = batch.bytes().len();
            let may_exceed = first && self.batches.is_empty();
            if self.bytes + size > room && !may_exceed {
                break;
            }
            self.bytes += size;
            self.batches.push(batch);
        }
        // What was read may be above the watermark of before.
        self.high = log.watermarks(partition)?.high.max(self.high);
        Ok(())
    }
}

/// Waits until at least one partition has more than was seen; says which have.
async fn any_moved(log: &Log, topics: &[Topic]) -> Vec<PartitionId> {
    let mut waits: FuturesUnordered<_> = parts(topics)
        .filter_map(|part| Some((part.partition.ok()?, part.seen)))
        .map(|(partition, seen)| log.wait_above(partition, seen).map(move |_| partition))
        .collect();
    let Some(one) = waits.next().await else {
        // Nothing to wait for: only time ends this.
        return std::future::pending().await;
    };
    let mut moved = vec![one];
    while let Some(Some(another)) = waits.next().now_or_never() {
        moved.push(another);
    }
    moved
}
