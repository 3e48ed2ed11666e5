//! Kafka record batch v2: checked bytes and what is inside.
//!
//! ```text
//! baseOffset i64 | batchLength i32 | partitionLeaderEpoch i32 | magic i8 = 2 | crc u32 (crc32c of all that follows)
//! attributes i16 | lastOffsetDelta i32 | baseTimestamp i64 | maxTimestamp i64 | producerId i64 | producerEpoch i16
//! baseSequence i32 | count i32 | records (compressed as a whole)
//! ```
//! baseOffset and partitionLeaderEpoch lie outside the CRC: assigning an offset patches 12 bytes.

use bytes::Bytes;

use super::{Compression, Record};

/// Bytes before the records.
pub const HEADER_LEN: usize = 61;

/// A batch whose header, length, CRC and count have been checked. The records inside are still as compressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    bytes: Bytes,
}

/// The header, decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct BatchHeader {
    pub base_offset: i64,
    pub leader_epoch: i32,
    pub attributes: i16,
    pub last_offset_delta: i32,
    pub base_timestamp_ms: i64,
    pub max_timestamp_ms: i64,
    pub producer_id: i64,
    pub producer_epoch: i16,
    pub base_sequence: i32,
    pub count: i32,
}

/// Why bytes are not a batch, or its records not records.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum BatchError {
    #[error("batch is cut short: {have} of {need} bytes")]
    Truncated { have: usize, need: usize },
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
    #[error("records unpack to more than {0} bytes")]
    TooLarge(usize),
    #[error("record {index} is malformed: {detail}")]
    Record { index: usize, detail: &'static str },
    #[error("a batch needs at least one record")]
    Empty,
}

impl Batch {
    /// Checks exactly one batch. Lengths are checked before anything is allocated.
    pub fn parse(bytes: Bytes) -> Result<Self, BatchError> {
        let _ = Self { bytes };
        unimplemented!()
    }

    /// Splits off the first batch of `bytes`, which may hold several (a produce request, a fetch answer).
    pub fn split_first(bytes: &mut Bytes) -> Result<Self, BatchError> {
        let _ = bytes;
        unimplemented!()
    }

    /// For bytes that this process checked before (read back from an engine whose own checksums cover them): checks shape only.
    pub fn trusted(bytes: Bytes) -> Result<Self, BatchError> {
        let _ = bytes;
        unimplemented!()
    }

    /// The whole batch.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Header.
    pub fn header(&self) -> BatchHeader {
        unimplemented!()
    }

    /// The same batch at another offset: 12 bytes patched, CRC unchanged.
    #[must_use]
    pub fn at_offset(&self, base_offset: i64, leader_epoch: i32) -> Self {
        let _ = (base_offset, leader_epoch);
        unimplemented!()
    }

    /// How the records are compressed.
    pub fn compression(&self) -> Result<Compression, BatchError> {
        unimplemented!()
    }

    /// All records, decompressed into at most `limit` bytes while streaming.
    pub fn records(&self, limit: usize) -> Result<Vec<Record>, BatchError> {
        let _ = limit;
        unimplemented!()
    }
}

/// Builds one batch.
#[derive(Debug)]
pub struct BatchBuilder {
    records: Vec<u8>,
}

/// Producer fields of a batch: Kafka's idempotent producer, or an edge's epoch and sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Producer {
    /// Producer id or edge epoch.
    pub id: i64,
    /// Producer epoch; 0 for edges.
    pub epoch: i16,
    /// First sequence, mod 2^31.
    pub base_sequence: i32,
}

impl BatchBuilder {
    /// Empty.
    pub fn new() -> Self {
        Self { records: Vec::new() }
    }

    /// Adds one record.
    pub fn push(&mut self, record: &Record) {
        let _ = record;
        unimplemented!()
    }

    /// Records so far.
    pub fn count(&self) -> usize {
        unimplemented!()
    }

    /// Uncompressed bytes so far, header included.
    pub fn size(&self) -> usize {
        self.records.len() + HEADER_LEN
    }

    /// The batch, at base offset 0. At least one record was pushed, else [`BatchError::Empty`].
    pub fn finish(
        self,
        compression: Compression,
        producer: Option<Producer>,
    ) -> Result<Batch, BatchError> {
        let _ = (compression, producer);
        unimplemented!()
    }
}

impl Default for BatchBuilder {
    fn default() -> Self {
        Self::new()
    }
}
