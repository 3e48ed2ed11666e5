//! Why bytes are not a batch.

/// Why bytes are not a batch, or its records not records.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum BatchError {
    #[error("batch is cut short: {have} of {need} bytes")]
    Truncated { have: usize, need: usize },
    #[error("{0} bytes follow the batch")]
    Trailing(usize),
    #[error("batch length {0} is out of range")]
    Length(i32),
    #[error("magic {0} is not 2")]
    Magic(i8),
    #[error("crc {stored:#010x} stored, {computed:#010x} computed")]
    Crc { stored: u32, computed: u32 },
    #[error("{count} records but last offset delta {last_offset_delta}")]
    Count { count: i32, last_offset_delta: i32 },
    #[error("compression type {0} is unknown")]
    UnknownCompression(i16),
    #[error("records do not decompress: {0}")]
    Decompress(String),
    #[error("records do not compress: {0}")]
    Compress(String),
    #[error("records unpack to more than {0} bytes")]
    TooLarge(usize),
    #[error("record {index} is malformed: {detail}")]
    Record { index: usize, detail: &'static str },
    #[error("a batch needs at least one record")]
    Empty,
}
