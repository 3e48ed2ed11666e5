//! What a log needs of the shards that other nodes own.
//!
//! In: answers of the owners, brought by an implementation (`peer`). Out: reads and changes of streams that the log cannot do by
//! itself. A log of one node has none. Not here: how the owner is reached.

use std::sync::Arc;

use async_trait::async_trait;
use tributary_shared::record::Batch;

use super::{LogError, Offset, PartitionId, Stream, StreamConfig, Watermarks};
use crate::engine::ShardId;

/// A partition of a shard that is not here.
#[derive(Debug, Clone)]
pub struct Far {
    /// Which.
    pub partition: PartitionId,
    /// Its stream.
    pub stream: Arc<Stream>,
    /// Its shard.
    pub shard: ShardId,
}

/// What its owner says of it.
#[derive(Debug, Clone)]
pub struct Heard {
    /// Start and end of what can be read; durable.
    pub marks: Watermarks,
    /// Whole batches from the one that contains the offset asked for; may be empty.
    pub batches: Vec<Batch>,
}

/// A change of the streams, for the owner of shard 0.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum StreamChange {
    /// [`super::Log::create_stream`]
    Create {
        /// Name.
        name: String,
        /// How many; `None` = one a shard.
        partitions: Option<u32>,
        /// Settings.
        config: StreamConfig,
    },
    /// [`super::Log::grow_stream`]
    Grow {
        /// Name.
        name: String,
        /// At least so many.
        partitions: u32,
    },
    /// [`super::Log::configure_stream`]
    Configure {
        /// Name.
        name: String,
        /// Settings.
        config: StreamConfig,
    },
    /// [`super::Log::delete_stream`]
    Delete {
        /// Name.
        name: String,
    },
}

/// The way to the owners.
#[async_trait]
pub trait Remote: Send + Sync + 'static {
    /// Reads from the owner, about `max_bytes` but at least one batch if there is one at `from`.
    /// Nobody owns it, or it cannot be reached: [`LogError::NotOwner`].
    async fn read(&self, far: &Far, from: Offset, max_bytes: usize) -> Result<Heard, LogError>;

    /// Has the owner of shard 0 change the streams; returns when that is durable there. The log waits then until it has heard
    /// of it itself.
    async fn change(&self, change: StreamChange) -> Result<(), LogError>;
}
