//! Where shards live: ordered key-value stores with atomic writes and a durability point.
//!
//! Holds: the two small traits every storage engine implements, and the table URL -> engine. No protocol types, no
//! offsets: `log` gives keys their meaning. In `contract` stand the tests that every engine must pass.
//! Change here: what is asked of a store. Not here: key layout (`log::keys`).

pub mod memory;

use std::{ops::Range, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;

/// Number of a shard: 0 to `Engine::shards() - 1`. Shard 0 also holds the metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u16);

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
