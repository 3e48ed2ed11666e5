//! The compressions of Kafka record batches.

/// Attribute bits 0 to 2 of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
#[repr(i16)]
pub enum Compression {
    None = 0,
    Gzip = 1,
    /// Xerial-framed, as Java writes it; raw blocks are read too.
    Snappy = 2,
    /// Frame format.
    Lz4 = 3,
    Zstd = 4,
}
