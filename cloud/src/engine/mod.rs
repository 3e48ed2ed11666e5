//! Where shards live: ordered key-value stores with atomic writes and a durability point.
//!
//! Holds: the two small traits every storage engine implements, and the table URL -> engine. No protocol types, no
//! offsets: `log` gives keys their meaning. In `contract` stand the tests that every engine must pass.
//! Change here: what is asked of a store. Not here: key layout (`log::keys`).

pub mod command;
pub mod contract;
pub mod memory;
pub mod slate;
mod usage;

pub use usage::Usage;

use std::{ops::Range, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use slatedb::object_store::{ObjectStore, path::Path};

/// Number of a shard: 0 to `Engine::shards() - 1`. Shard 0 also holds the metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ShardId(pub u16);

/// Keys of this kind (first byte) are many, large and only appended: their second byte parts them further.
pub const BUCKETED: u8 = b'R';

/// How many leading bytes of a key name its segment. Engines may store each segment by itself: what is appended apart from
/// what is overwritten. Part of the stored form: it never changes.
pub fn segment_len(key: &[u8]) -> usize {
    if key.first() == Some(&BUCKETED) { 2 } else { 1 }
}

/// One key-value change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Sets a key.
    Put(Bytes, Bytes),
    /// Removes a key, which need not exist.
    Delete(Bytes),
}

/// A commit's place in the order of one shard's commits, of one opening of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct CommitId(pub u64);

/// How much a scan returns at the most; it returns at least one entry if there is one.
#[derive(Debug, Clone, Copy)]
pub struct ScanLimit {
    /// Entries.
    pub entries: usize,
    /// Sum of key and value bytes.
    pub bytes: usize,
}

/// What an engine cannot do.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EngineError {
    /// Another process opened the shard: this one must stop serving it.
    #[error("shard {} is owned by another process", .0.0)]
    Fenced(ShardId),
    /// The store failed; the text names it and the operation.
    #[error("storage: {0}")]
    Store(String),
    /// Closed here.
    #[error("storage is closed")]
    Closed,
}

/// A set of shards at one URL.
#[async_trait]
pub trait Engine: Send + Sync + 'static {
    /// Fixed when the data was first made.
    fn shards(&self) -> u16;
    /// Opens a shard for writing and fences every earlier opener. What can be read in a new opening is durable.
    async fn open(&self, shard: ShardId) -> Result<Arc<dyn Shard>, EngineError>;
    /// What was asked of a store that charges for it, one entry a shard.
    fn usage(&self) -> Vec<Usage> {
        Vec::new()
    }
}

/// One open shard. Writes take effect in call order; reads see every earlier write of this opening, durable or not
/// (whoever promises something waits with [`Shard::durable`]).
#[async_trait]
pub trait Shard: Send + Sync + 'static {
    /// Applies all of `writes` or none.
    async fn write(&self, writes: Vec<Write>) -> Result<CommitId, EngineError>;
    /// Returns once `commit`, and every commit before it, would survive the loss of this machine's memory
    /// (of the machine, on an object store).
    async fn durable(&self, commit: CommitId) -> Result<(), EngineError>;
    /// Value of a key.
    async fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError>;
    /// Entries of a key range in ascending order.
    async fn scan(
        &self,
        range: Range<Bytes>,
        limit: ScanLimit,
    ) -> Result<Vec<(Bytes, Bytes)>, EngineError>;
    /// Makes everything durable and lets go. Later calls return [`EngineError::Closed`].
    async fn close(&self) -> Result<(), EngineError>;
}

/// What writing to a bucket is tuned for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// Flushed every 50 ms.
    Latency,
    /// Every 200 ms.
    #[default]
    Balanced,
    /// Every second; tables are looked after every ten.
    Cost,
}

/// Who rewrites small tables into larger ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compactor {
    /// The shard's owner.
    #[default]
    Here,
    /// `tributary-cloud compactor`, which must run then: a shard with too many small tables takes no more writes.
    Elsewhere,
}

tributary_shared::settings! {
    /// Storage: where the shards lie and how they are written.
    pub struct Settings {
        /// Shards of new data; 0 = 1 in a folder, 8 in a bucket. Fixed once the data is made; another number is refused.
        pub shards: u16 = 0,
        /// What writing to a bucket is tuned for: `latency` (flushed every 50 ms), `balanced` (200 ms) or `cost` (1 s). An
        /// acknowledgement waits for the flush; each is a PUT a shard.
        pub profile: Profile = Profile::Balanced,
        /// How long writes are gathered before they are made durable, ms; 0 = in a folder not at all while the disk is idle, in a
        /// bucket as `profile` says.
        pub flush_ms: u64 = 0,
        /// Where the write-ahead log lies: a URL as for `data`, of a faster store; empty = with the data. Fixed once the data is
        /// made: without its log, data lacks what was acknowledged last.
        pub wal: String = String::new(),
        /// Who compacts: `here`, or `elsewhere`: one `tributary-cloud compactor` for the data, which must run then.
        pub compactor: Compactor = Compactor::Here,
        /// Size of a shard's in-memory table, MiB. Up to 8 times as much waits in memory when the store is slow.
        pub l0_mib: u32 = 16,
        /// Memory for blocks and indexes read from the store, MiB, all shards together.
        pub block_cache_mib: u32 = 128,
        /// What the store charges for 1,000,000 PUT or LIST requests, in cents; only for the cost that metrics project.
        pub put_cents_per_million: u64 = 500,
        /// What it charges for 1,000,000 GET or HEAD requests, in cents.
        pub get_cents_per_million: u64 = 40,
        /// Endpoint of an S3-compatible server, such as `http://127.0.0.1:9000`; empty = as the AWS_* variables say.
        pub s3_endpoint: String = String::new(),
    }
}

/// Who else may open the same data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Nobody.
    Alone,
    /// The other nodes of a cluster.
    Cluster,
}

/// Where the objects of an engine lie.
#[derive(Debug, Clone)]
pub struct Place {
    /// The store.
    pub objects: Arc<dyn ObjectStore>,
    /// All keys begin with it.
    pub prefix: Path,
    /// As in errors.
    pub url: String,
}

/// The engine at `url`: `file:///path`, a bucket (`s3://`, `gs://`, `az://`) or `memory://`, and where it lies if others can reach it. The
/// error is a sentence for the operator.
pub async fn open(
    url: &str,
    settings: &Settings,
    sharing: Sharing,
) -> Result<(Arc<dyn Engine>, Option<Place>), EngineError> {
    let slate = if url == "memory://" {
        return Ok((Arc::new(memory::MemoryEngine::new(settings.shards.max(1))), None));
    } else if let Some(path) = url.strip_prefix("file://") {
        slate::SlateEngine::folder(url, path, settings, sharing).await?
    } else {
        slate::SlateEngine::bucket(url, settings, sharing).await?
    };
    let place = slate.place();
    Ok((Arc::new(slate), Some(place)))
}
