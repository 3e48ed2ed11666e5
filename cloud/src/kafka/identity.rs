//! What must stay the same: the cluster's id, producer ids that are never given twice, topics by their ids.
//!
//! Stored as `Meta` state: a single node's id in shard 0, producer ids in every shard. Not here: which producer may write what
//! (`log`).

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use bytes::Bytes;
use tokio::sync::Mutex;
use uuid::Uuid;

use crate::{
    engine::{ShardId, Write},
    log::{Log, LogError, Opening, StateSpace, Stream, StreamId, Transaction},
};

const CLUSTER_ID: &[u8] = b"kafka.cluster_id";
const PRODUCER_IDS: &[u8] = b"kafka.producer_ids";

/// Producer ids of a shard are its number and so many bits of a count.
const COUNT_BITS: u32 = 40;

/// Ids reserved by one write, as Kafka does it.
const BLOCK: i64 = 1_000;

/// The cluster's id, made at the first start.
pub(super) async fn cluster_id(log: &Log) -> Result<String, LogError> {
    if let Some(stored) = log.state_get(ShardId(0), StateSpace::Meta, CLUSTER_ID).await? {
        return Ok(String::from_utf8_lossy(&stored).into_owned());
    }
    // Kafka's have 22 letters of base64: 22 hex digits are as good to every client.
    let id: String = Uuid::new_v4().simple().to_string().chars().take(22).collect();
    put(log, ShardId(0), None, CLUSTER_ID, Bytes::from(id.clone())).await?;
    Ok(id)
}

async fn put(
    log: &Log,
    shard: ShardId,
    opening: Option<Opening>,
    key: &[u8],
    value: Bytes,
) -> Result<(), LogError> {
    let writes = vec![Write::Put(Log::state_key(StateSpace::Meta, key), value)];
    log.commit(shard, Transaction { writes, opening, ..Transaction::default() }).await?;
    Ok(())
}

/// Gives out producer ids.
pub(super) struct ProducerIds {
    log: Log,
    /// Next id and end of the block.
    block: Mutex<(i64, i64)>,
}

impl ProducerIds {
    pub(super) fn new(log: Log) -> Self {
        Self { log, block: Mutex::new((0, 0)) }
    }

    /// An id that no node ever gave before: the block is durable before its first id is given, in a shard that is here. A node
    /// without shards has none to give: [`LogError::NotOwner`].
    pub(super) async fn next(&self) -> Result<i64, LogError> {
        let mut block = self.block.lock().await;
        let (next, end) = *block;
        if next < end {
            block.0 += 1;
            return Ok(next);
        }
        let log = &self.log;
        let here = |shard| Some((ShardId(shard), log.opening(ShardId(shard))?));
        let (shard, opening) = (0..log.shards()).find_map(here).ok_or(LogError::NotOwner)?;
        let stored = log.state_get(shard, StateSpace::Meta, PRODUCER_IDS).await?;
        let counted = stored.and_then(|stored| stored.first_chunk::<8>().copied());
        let counted = counted.map_or(0, i64::from_be_bytes);
        let value = Bytes::copy_from_slice(&(counted + BLOCK).to_be_bytes());
        // Not in another opening than it was read in: another node may have counted on in between.
        put(log, shard, Some(opening), PRODUCER_IDS, value).await?;
        let first = i64::from(shard.0) << COUNT_BITS | counted;
        *block = (first + 1, first + BLOCK);
        Ok(first)
    }
}

/// Finds streams by Kafka topic id. Ids are never reused, so what was found once stays true until the stream goes.
#[derive(Default)]
pub(super) struct TopicIds {
    known: RwLock<HashMap<Uuid, StreamId>>,
}

impl TopicIds {
    pub(super) fn find(&self, log: &Log, uuid: Uuid) -> Option<Arc<Stream>> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner).get(&uuid).copied();
        if let Some(id) = known {
            return log.stream_by_id(id);
        }
        let streams = log.streams();
        let found = streams.iter().find(|stream| stream.uuid == uuid).cloned()?;
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.clear();
        known.extend(streams.iter().map(|stream| (stream.uuid, stream.id)));
        Some(found)
    }
}
