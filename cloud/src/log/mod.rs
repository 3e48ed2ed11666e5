//! THE contract that heads see: streams of partitions of record batches, appended and read by offset.
//!
//! ```text
//!  head --submit(Transaction)--> shard owner task: checks guards, assigns offsets, groups many into one engine write
//!                                   |  write                    |  durable
//!                                 engine                        v
//!  head <--------------------- Committed (base offsets) --- high watermark moves, followers wake
//! ```
//! Promises: transactions of one shard take effect in submit order, each wholly or not at all; an answer comes only after
//! the transaction is durable; readers never see above the high watermark, which never falls; offsets of a partition
//! are contiguous, until compaction by key leaves gaps between batches, never within one. Each stream's partition lives in one shard; each shard has one owning task.
//! Change here: order, offsets, durability. Not here: storage (`engine`), protocols (heads), where to route (`route`).

mod catalog;
mod compact;
mod compaction;
#[cfg(test)]
mod compaction_tests;
mod copy;
mod decide;
mod elsewhere;
pub mod error;
#[cfg(test)]
mod fault_tests;
mod follow;
mod guard;
mod inner;
mod keys;
pub mod lease;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
pub(crate) mod nodes_tests;
mod owner;
mod ownership;
mod partition;
#[cfg(test)]
mod random_tests;
mod read;
pub mod remote;
mod retention;
mod slot;
mod stored;
pub mod stream;
#[cfg(test)]
mod stream_tests;
pub mod tail;
pub mod testing;
#[cfg(test)]
mod tests;
pub mod turns;
mod writing;

use std::sync::Arc;

use bytes::Bytes;
pub use copy::StreamList;
pub use error::LogError;
pub use follow::Follower;
#[cfg(test)]
pub(crate) use guard::EDGE_BATCHES;
use inner::Inner;
pub use lease::Lease;
pub use remote::{Far, Heard, Remote, StreamChange};
pub use slot::Opening;
pub use stream::{Stream, StreamConfig, StreamId};
use tokio::sync::oneshot;
use tributary_shared::record::Batch;

use crate::engine::{Engine, ScanLimit, ShardId, Usage, Write};

/// Offset of a record in its partition.
pub type Offset = i64;

/// A partition of a stream: stream id in the upper 32 bits, index in the lower. Never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionId(pub u64);

impl PartitionId {
    /// Partition `index` of `stream`.
    pub fn new(stream: StreamId, index: u32) -> Self {
        Self(u64::from(stream.0) << 32 | u64::from(index))
    }

    /// Its stream.
    pub fn stream(self) -> StreamId {
        StreamId((self.0 >> 32) as u32)
    }

    /// Its index.
    pub fn index(self) -> u32 {
        self.0 as u32
    }
}

/// What must hold for a transaction to be applied, and what is remembered with it so that a repeat is known.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Guard {
    /// Nothing.
    #[default]
    None,
    /// Kafka idempotent producer: id, epoch and sequence are read from the headers of the transaction's batches
    /// (batches without a producer id pass). A repeat of one of the last 5 answers with its offset.
    Producer,
    /// An edge's batch `[seq, seq + count)` of an epoch (DESIGN 6, "Cloud rule").
    Edge {
        /// Edge id.
        edge: Arc<str>,
        /// Epoch.
        epoch: i64,
        /// First sequence.
        seq: u64,
        /// Records.
        count: u32,
        /// One a record: its fingerprint, so that a repeat is known from other records under the same sequences. Empty:
        /// not known (a declared gap), like anything.
        prints: Arc<[u32]>,
        /// The connection it came by: after a clash nothing more of it is taken under that epoch.
        connection: u64,
    },
}

/// One append.
#[derive(Debug, Clone)]
pub struct Append {
    /// Where; all partitions of a transaction live in its shard.
    pub partition: PartitionId,
    /// What; its offset is assigned by the log.
    pub batch: Batch,
}

/// Key-value writes that need the offsets just assigned (one base offset an append, in order).
pub type Index = Box<dyn FnOnce(&[Offset]) -> Vec<Write> + Send>;

/// One atomic change of one shard: records, marks and a head's own keys (see [`Log::state_key`]).
#[derive(Default)]
pub struct Transaction {
    /// Records.
    pub appends: Vec<Append>,
    /// Condition.
    pub guard: Guard,
    /// Head's keys.
    pub writes: Vec<Write>,
    /// Head's keys that depend on the offsets. Not called for a duplicate.
    pub index: Option<Index>,
    /// Only in this opening of the shard, else [`LogError::NotOwner`]: for who keeps state of the shard in memory, which is of
    /// no use once another node may have changed it.
    pub opening: Option<Opening>,
}

/// A durable transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// Base offset of each append, in order. For a duplicate under [`Guard::Producer`] the old ones; under
    /// [`Guard::Edge`] empty.
    pub base_offsets: Vec<Offset>,
    /// It had been applied before; nothing was written now, and the earlier one is durable.
    pub duplicate: bool,
}

/// A submitted transaction; resolves when it is durable or refused.
pub type Pending = oneshot::Receiver<Result<Committed, LogError>>;

/// Start and end of what can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watermarks {
    /// First offset still there.
    pub start: Offset,
    /// One past the last durable record.
    pub high: Offset,
}

/// Cheap handle; clones share everything.
#[derive(Clone)]
pub struct Log {
    inner: Arc<Inner>,
}

impl Log {
    /// Opens all shards of `engine`, reads the streams and their ends, starts one owner task a shard.
    pub async fn open(engine: Arc<dyn Engine>, settings: Settings) -> Result<Self, LogError> {
        inner::open(engine, settings).await.map(|inner| Self { inner })
    }

    /// Stops the owners after what was submitted is durable; later calls return [`LogError::Closed`].
    pub async fn close(&self) -> Result<(), LogError> {
        self.inner.close().await
    }

    /// Limits and defaults.
    pub fn settings(&self) -> &Settings {
        &self.inner.settings
    }

    // ---- streams ----

    /// Makes a stream durably. Existing: [`LogError::StreamExists`]. `partitions: None` = one a shard.
    pub async fn create_stream(
        &self,
        name: &str,
        partitions: Option<u32>,
        config: StreamConfig,
    ) -> Result<Arc<Stream>, LogError> {
        self.change_stream(StreamChange::Create { name: name.into(), partitions, config }).await
    }

    /// The stream, made with default settings if it is not there. Waits a while if nobody can make it now.
    pub async fn ensure_stream(&self, name: &str) -> Result<Arc<Stream>, LogError> {
        self.inner.ensure_stream(name).await
    }

    async fn change_stream(&self, change: StreamChange) -> Result<Arc<Stream>, LogError> {
        self.inner.change_streams(change).await?.ok_or(LogError::NotOwner)
    }

    /// By name.
    pub fn stream(&self, name: &str) -> Option<Arc<Stream>> {
        self.inner.catalog.by_name(name).map(|entry| Arc::clone(&entry.stream))
    }

    /// By id.
    pub fn stream_by_id(&self, id: StreamId) -> Option<Arc<Stream>> {
        self.inner.catalog.by_id(id).map(|entry| Arc::clone(&entry.stream))
    }

    /// All, by name.
    pub fn streams(&self) -> Vec<Arc<Stream>> {
        self.inner.catalog.all().iter().map(|entry| Arc::clone(&entry.stream)).collect()
    }

    /// Adds partitions up to `partitions`.
    pub async fn grow_stream(&self, name: &str, partitions: u32) -> Result<Arc<Stream>, LogError> {
        self.change_stream(StreamChange::Grow { name: name.into(), partitions }).await
    }

    /// Changes a stream's settings.
    pub async fn configure_stream(
        &self,
        name: &str,
        config: StreamConfig,
    ) -> Result<Arc<Stream>, LogError> {
        self.change_stream(StreamChange::Configure { name: name.into(), config }).await
    }

    /// Deletes a stream; its records go in the background.
    pub async fn delete_stream(&self, name: &str) -> Result<(), LogError> {
        self.inner.change_streams(StreamChange::Delete { name: name.into() }).await.map(drop)
    }

    /// Shards there are.
    pub fn shards(&self) -> u16 {
        self.inner.engine.shards()
    }

    /// What was asked of the store, by shard.
    pub fn usage(&self) -> Vec<Usage> {
        self.inner.engine.usage()
    }

    /// The shard a partition lives in.
    pub fn shard_of(&self, partition: PartitionId) -> Result<ShardId, LogError> {
        self.inner.partition(partition).map(|partition| partition.shard)
    }

    /// The shard of a name (edge id, group, virtual host, client id): a stable hash.
    pub fn home_shard(&self, name: &str) -> ShardId {
        self.inner.home_shard(name)
    }

    // ---- writing ----

    /// Hands a transaction to the shard's owner, in call order; waits only for room in its bounded queue.
    pub async fn submit(
        &self,
        shard: ShardId,
        transaction: Transaction,
    ) -> Result<Pending, LogError> {
        self.inner.submit(shard, transaction).await
    }

    /// [`Log::submit`], and waits for the answer.
    pub async fn commit(
        &self,
        shard: ShardId,
        transaction: Transaction,
    ) -> Result<Committed, LogError> {
        self.inner.submit(shard, transaction).await?.await.map_err(|_| LogError::Closed)?
    }

    /// Appends one batch under `guard`; returns its base offset.
    pub async fn append(
        &self,
        partition: PartitionId,
        batch: Batch,
        guard: Guard,
    ) -> Result<Committed, LogError> {
        let shard = self.shard_of(partition)?;
        let appends = vec![Append { partition, batch }];
        self.commit(shard, Transaction { appends, guard, ..Transaction::default() }).await
    }

    /// `next` of every epoch known of an edge: (epoch, next seq). Those that brought something last come last.
    pub async fn edge_marks(&self, edge: &str) -> Result<Vec<(i64, u64)>, LogError> {
        self.inner.edge_marks(edge).await
    }

    // ---- reading ----

    /// Whole batches from the one that contains `from` on, below the high watermark, about `max_bytes` but at least one;
    /// empty at the high watermark. Out of range: [`LogError::OffsetOutOfRange`]. Recent batches come from memory. Only what is
    /// here: see [`Log::read_anywhere`].
    pub async fn read(
        &self,
        partition: PartitionId,
        from: Offset,
        max_bytes: usize,
    ) -> Result<Vec<Batch>, LogError> {
        self.inner.read(partition, from, max_bytes).await
    }

    /// [`Log::read`]; of a partition elsewhere what was heard of it, or else what its owner answers.
    pub async fn read_anywhere(
        &self,
        partition: PartitionId,
        from: Offset,
        max_bytes: usize,
    ) -> Result<Vec<Batch>, LogError> {
        self.inner.read_anywhere(partition, from, max_bytes).await
    }

    /// [`Log::read_anywhere`] of a record that the caller knows to have been committed, so that an end which is old news counts for
    /// nothing. `None`: it is gone for good, by retention or with its stream. What passes by itself, because this node has not
    /// heard of the stream or reaches no owner, is [`LogError::NotOwner`].
    pub async fn read_known(
        &self,
        partition: PartitionId,
        from: Offset,
        max_bytes: usize,
    ) -> Result<Option<Vec<Batch>>, LogError> {
        self.inner.read_known(partition, from, max_bytes).await
    }

    /// Whether the stream was there once and is no more. One that this node has not heard of yet is not deleted.
    pub fn is_deleted(&self, stream: StreamId) -> bool {
        self.inner.catalog.is_deleted(stream)
    }

    /// [`Log::watermarks`]; of a partition elsewhere as last heard. Nothing heard yet: [`LogError::NotOwner`].
    pub fn watermarks_anywhere(&self, partition: PartitionId) -> Result<Watermarks, LogError> {
        self.inner.watermarks_anywhere(partition)
    }

    /// The end of a partition, wherever it is; what is not known is asked of its owner.
    pub async fn end(&self, partition: PartitionId) -> Result<Offset, LogError> {
        self.inner.end(partition).await
    }

    /// Start and end of a partition that is here.
    pub fn watermarks(&self, partition: PartitionId) -> Result<Watermarks, LogError> {
        self.inner.watermarks(partition)
    }

    /// Returns when the partition's high watermark is above `seen` (at once if it is), or with [`LogError::NotOwner`] when it
    /// leaves.
    pub async fn wait_above(
        &self,
        partition: PartitionId,
        seen: Offset,
    ) -> Result<Offset, LogError> {
        self.inner.wait_above(partition, seen).await
    }

    /// A follower of everything: tells which partitions moved, never polls, never loses a move (moves coalesce).
    pub fn follow(&self) -> Follower {
        self.inner.follow()
    }

    /// The first record with a timestamp of at least `timestamp_ms`: (offset, its timestamp).
    pub async fn offset_at_time(
        &self,
        partition: PartitionId,
        timestamp_ms: i64,
    ) -> Result<Option<(Offset, i64)>, LogError> {
        self.inner.offset_at_time(partition, timestamp_ms).await
    }

    /// Removes records below `before`.
    pub async fn trim(
        &self,
        partition: PartitionId,
        before: Offset,
    ) -> Result<Watermarks, LogError> {
        self.inner.trim(partition, before).await
    }

    /// Applies retention once, as of `now_ms`; it also runs by itself every `retention_interval_ms`.
    pub async fn run_retention(&self, now_ms: i64) -> Result<(), LogError> {
        self.inner.run_retention(now_ms, true).await
    }

    /// Compacts by key once, as of `now_ms`; it also runs by itself every `compaction_interval_ms`.
    pub async fn run_compaction(&self, now_ms: i64) -> Result<(), LogError> {
        self.inner.run_compaction(now_ms).await
    }

    // ---- a head's own durable state, in the same shards and commits ----

    /// A key of head `space` (one letter each: see `keys`) for [`Transaction::writes`] and the reads below.
    pub fn state_key(space: StateSpace, key: &[u8]) -> Bytes {
        keys::state(space, key)
    }

    /// One value; sees what was submitted before, as far as it is durable.
    pub async fn state_get(
        &self,
        shard: ShardId,
        space: StateSpace,
        key: &[u8],
    ) -> Result<Option<Bytes>, LogError> {
        self.inner.state_get(shard, space, key).await
    }

    /// Entries whose key starts with `prefix`, after `after` if given; keys come back without the space's prefix.
    pub async fn state_scan(
        &self,
        shard: ShardId,
        space: StateSpace,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: ScanLimit,
    ) -> Result<Vec<(Bytes, Bytes)>, LogError> {
        self.inner.state_scan(shard, space, prefix, after, limit).await
    }
}

/// Whose keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StateSpace {
    /// Consumer groups: members' metadata.
    Group,
    /// Consumer groups: committed offsets.
    GroupOffset,
    /// AMQP: exchanges, queues, bindings, users.
    Amqp,
    /// AMQP queue index entries.
    Queue,
    /// AMQP queue acknowledgements and router cursors.
    QueueAck,
    /// MQTT sessions, subscriptions, queue entries.
    Session,
    /// MQTT retained messages.
    Retained,
    /// Metadata of the cloud itself: routes, settings.
    Meta,
}

tributary_shared::settings! {
    /// The log: limits and defaults of streams.
    pub struct Settings {
        /// Largest record batch taken, bytes.
        pub max_batch_bytes: usize = 1_048_588,
        /// Partitions of a stream that is made without saying how many; 0 = one a shard.
        pub default_partitions: u32 = 0,
        /// Memory for recent batches, bytes, all partitions together.
        pub cache_bytes: usize = 64 * 1024 * 1024,
        /// Bytes of batches that may be submitted and not yet durable, a shard; more wait.
        pub in_flight_bytes: usize = 64 * 1024 * 1024,
        /// Streams there may be; each costs about 1 kB of memory.
        pub max_streams: u32 = 10_000,
        /// Partitions there may be, all streams together; each costs about 1 kB of memory and one key read at a start.
        pub max_partitions: u32 = 50_000,
        /// Records older than this go, ms, unless their stream says otherwise; -1 = never.
        pub retention_ms: i64 = 604_800_000,
        /// A partition's oldest records go when it is larger, bytes, unless its stream says otherwise; -1 = never.
        pub retention_bytes: i64 = -1,
        /// How often retention is applied, ms.
        pub retention_interval_ms: u64 = 60_000,
        /// How often compacted streams are looked after, ms.
        pub compaction_interval_ms: u64 = 15_000,
        /// A compacted partition is read through when this share of its bytes came since the last time, percent.
        pub compaction_dirty_percent: u64 = 50,
        /// Keys that one pass of compaction holds in memory, about 60 bytes each; more take several passes.
        pub compaction_keys: usize = 500_000,
        /// Records younger than this are not compacted, ms, unless their stream says otherwise.
        pub min_compaction_lag_ms: i64 = 0,
        /// A record without a value outlives those of its key that it replaced by at least this, ms, unless its stream says
        /// otherwise.
        pub delete_retention_ms: i64 = 86_400_000,
    }
}

/// ms since 1970.
fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as i64)
}
