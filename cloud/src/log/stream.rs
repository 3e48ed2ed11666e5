//! What a stream is: name, partitions, retention.

use serde::{Deserialize, Serialize};

/// Number of a stream, never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StreamId(pub u32);

/// A stream = a Kafka topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stream {
    /// Number.
    pub id: StreamId,
    /// Legal Kafka topic name (1 to 249 of `a-zA-Z0-9._-`, not `.` or `..`).
    pub name: String,
    /// Kafka topic id.
    pub uuid: uuid::Uuid,
    /// How many.
    pub partitions: u32,
    /// Settings.
    pub config: StreamConfig,
}

/// A stream's settings. `None` = the cloud's default.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StreamConfig {
    /// Records older than this go, ms; -1 = never.
    pub retention_ms: Option<i64>,
    /// Oldest records go when a partition is larger, bytes; -1 = never.
    pub retention_bytes: Option<i64>,
    /// Keep only the last record of each key; age and size count only with `compact_and_delete`.
    pub compact: bool,
    /// A compacted stream's records go by age and size as well.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub compact_and_delete: bool,
    /// Records younger than this are not compacted, ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_compaction_lag_ms: Option<i64>,
    /// A record without a value outlives those of its key that it replaced by at least this, ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delete_retention_ms: Option<i64>,
    /// Largest batch, bytes.
    pub max_batch_bytes: Option<usize>,
    /// Timestamps are the log's, not the producer's.
    pub log_append_time: bool,
}
