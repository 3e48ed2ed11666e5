//! Reading what other nodes own: Kafka's Fetch, as a follower would, and changes of streams by HTTP.
//!
//! In: the log's questions ([`Remote`]). Out: what the owners answer. A node that does not answer fails everybody who asks for
//! it at once for a while, and nobody else. Not here: bytes on the wire (`wire`), keeping ends heard (`follow`).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use kafka_protocol::{
    messages::{
        BrokerId, FetchRequest, FetchResponse, TopicName,
        fetch_request::{FetchPartition, FetchTopic},
        fetch_response::PartitionData,
    },
    protocol::StrBytes,
};
use tokio::{sync::Mutex as Turn, time::Instant};
use tributary_shared::{backoff::Backoff, record::Batch};

use super::{Header, Peers, Protocol, pages, wire::Wire};
use crate::{
    cluster::{Node, NodeId},
    engine::ShardId,
    log::{Far, Heard, LogError, Offset, Remote, StreamChange, Watermarks},
};

/// For the answer to one read.
const READ: Duration = Duration::from_secs(5);
/// After a node could not be reached.
const AGAIN_SHORTEST: Duration = Duration::from_millis(50);
const AGAIN_LONGEST: Duration = Duration::from_secs(2);

/// Kafka's codes that mean something here.
const OFFSET_OUT_OF_RANGE: i16 = 1;
/// Shard 0 holds the streams.
pub(super) const STREAMS: ShardId = ShardId(0);

/// The way to the owners, for the log. Cheap to clone.
#[derive(Clone)]
pub struct Owners {
    pub(super) peers: Peers,
    nodes: Arc<Mutex<HashMap<NodeId, Arc<Turn<Slot>>>>>,
}

/// The connection to one node; one task at a time makes it.
struct Slot {
    wire: Option<(String, Wire)>,
    backoff: Backoff,
    not_before: Instant,
}

impl Slot {
    fn new() -> Self {
        let backoff = Backoff::new(AGAIN_SHORTEST, AGAIN_LONGEST);
        Self { wire: None, backoff, not_before: Instant::now() }
    }

    /// The connection, made if there is none. `None`: the node cannot be reached now.
    async fn wire(&mut self, peers: &Peers, node: &Node) -> Option<Wire> {
        let address = &node.addresses.peer;
        if let Some((to, wire)) = &self.wire
            && to == address
            && !wire.is_lost()
        {
            return Some(wire.clone());
        }
        self.wire = None;
        if Instant::now() < self.not_before {
            return None;
        }
        match peers.connect(node, &Header::own(Protocol::Kafka)).await {
            Ok(stream) => {
                let wire = Wire::start(stream);
                self.wire = Some((address.clone(), wire.clone()));
                self.backoff.reset();
                Some(wire)
            }
            Err(error) => {
                tracing::warn!(%error, "records cannot be read from their owner");
                self.not_before = Instant::now() + self.backoff.next_wait();
                None
            }
        }
    }
}

impl Owners {
    /// Over `peers`.
    pub fn new(peers: Peers) -> Self {
        Self { peers, nodes: Arc::default() }
    }

    /// The owner of a shard, if that is another node.
    pub(super) fn owner(&self, shard: ShardId) -> Option<Arc<Node>> {
        let view = self.peers.cluster().view();
        view.owner(shard).filter(|node| node.id != view.me).cloned()
    }

    fn slot(&self, node: NodeId) -> Arc<Turn<Slot>> {
        let view = self.peers.cluster().view();
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        // As many as there are nodes.
        nodes.retain(|known, _| *known == node || view.nodes.contains_key(known));
        Arc::clone(nodes.entry(node).or_insert_with(|| Arc::new(Turn::new(Slot::new()))))
    }

    async fn fetch(&self, node: &Node, request: &FetchRequest) -> Result<FetchResponse, LogError> {
        let slot = self.slot(node.id);
        let wire = slot.lock().await.wire(&self.peers, node).await.ok_or(LogError::NotOwner)?;
        match wire.fetch(request, READ).await {
            Ok(response) => Ok(response),
            Err(error) => {
                tracing::warn!(node = node.name, %error, "reading from the owner of records failed");
                // What waits on it fails by itself; the next one makes another.
                slot.lock().await.wire = None;
                Err(LogError::NotOwner)
            }
        }
    }
}

#[async_trait]
impl Remote for Owners {
    async fn read(&self, far: &Far, from: Offset, max_bytes: usize) -> Result<Heard, LogError> {
        let node = self.owner(far.shard).ok_or(LogError::NotOwner)?;
        let topics = vec![topic(&far.stream.name, vec![partition(far, from, max_bytes)])];
        let request = request(topics, max_bytes, Duration::ZERO);
        let response = self.fetch(&node, &request).await?;
        let index = far.partition.index() as i32;
        let found = response.responses.into_iter().flat_map(|topic| topic.partitions);
        let found = found.into_iter().find(|data| data.partition_index == index);
        heard(from, found.ok_or(LogError::NotOwner)?)
    }

    async fn change(&self, change: StreamChange) -> Result<(), LogError> {
        let node = self.owner(STREAMS).ok_or(LogError::NotOwner)?;
        pages::change(&self.peers, &node, &change).await
    }
}

/// A partition to be asked for.
pub(super) fn partition(far: &Far, from: Offset, max_bytes: usize) -> FetchPartition {
    FetchPartition::default()
        .with_partition(far.partition.index() as i32)
        .with_current_leader_epoch(-1)
        .with_fetch_offset(from)
        .with_partition_max_bytes(i32::try_from(max_bytes).unwrap_or(i32::MAX))
}

pub(super) fn topic(name: &str, partitions: Vec<FetchPartition>) -> FetchTopic {
    let name = TopicName(StrBytes::from_string(name.to_owned()));
    FetchTopic::default().with_topic(name).with_partitions(partitions)
}

/// `wait`: how long to wait for anything at all.
pub(super) fn request(topics: Vec<FetchTopic>, max_bytes: usize, wait: Duration) -> FetchRequest {
    FetchRequest::default()
        .with_replica_id(BrokerId(-1))
        .with_max_wait_ms(i32::try_from(wait.as_millis()).unwrap_or(i32::MAX))
        .with_min_bytes(1)
        .with_max_bytes(i32::try_from(max_bytes).unwrap_or(i32::MAX))
        .with_session_epoch(-1)
        .with_topics(topics)
}

/// What an owner said of a partition that was asked for from `from` on.
pub(super) fn heard(from: Offset, data: PartitionData) -> Result<Heard, LogError> {
    let marks = Watermarks { start: data.log_start_offset, high: data.high_watermark };
    match data.error_code {
        0 => Ok(Heard { marks, batches: batches(data.records.unwrap_or_default())? }),
        OFFSET_OUT_OF_RANGE if marks.high >= 0 => {
            Err(LogError::OffsetOutOfRange { asked: from, start: marks.start, high: marks.high })
        }
        // Not its owner (any more), or it has not heard of the stream yet: the map and the list will tell.
        code => {
            tracing::debug!(code, "the node that was asked for records does not serve them");
            Err(LogError::NotOwner)
        }
    }
}

fn batches(mut bytes: Bytes) -> Result<Vec<Batch>, LogError> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        all.push(Batch::split_first(&mut bytes)?);
    }
    Ok(all)
}
