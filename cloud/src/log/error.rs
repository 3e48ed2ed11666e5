//! What the log refuses, one variant a fact; heads map them to their wire codes, each in one place.

use crate::engine::EngineError;

/// Why a log operation was not done.
#[derive(Debug, Clone, thiserror::Error)]
#[allow(missing_docs)]
pub enum LogError {
    #[error("stream `{0}` not found")]
    StreamNotFound(String),
    #[error("stream `{0}` exists")]
    StreamExists(String),
    #[error("`{0}` is not a legal stream name: 1 to 249 letters, digits, `.`, `_`, `-`")]
    BadStreamName(String),
    #[error("partition {1} of stream `{0}` not found")]
    PartitionNotFound(String, u32),
    #[error("{0}")]
    BadConfig(String),
    #[error("offset {asked} is outside {start}..={high}")]
    OffsetOutOfRange { asked: i64, start: i64, high: i64 },
    #[error("batch of {size} bytes is over the limit of {limit}")]
    BatchTooLarge { size: usize, limit: usize },
    #[error("record batch: {0}")]
    BadBatch(#[from] tributary_shared::record::BatchError),
    #[error("producer {producer} sent sequence {got}, expected {expected}")]
    OutOfOrderSequence { producer: i64, got: i32, expected: i32 },
    #[error("producer {producer} epoch {got} is older than {current}")]
    StaleProducerEpoch { producer: i64, got: i16, current: i16 },
    #[error("a compacted stream takes no record without a key")]
    KeylessRecord,
    #[error("edge sequence gap: expected {expected}")]
    EdgeGap { expected: u64 },
    #[error("other records came before with the same epoch and sequences")]
    EdgeClash,
    #[error("this node does not own the shard")]
    NotOwner,
    #[error("log is closed")]
    Closed,
    #[error(transparent)]
    Engine(#[from] EngineError),
}
