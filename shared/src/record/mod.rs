//! The one message form that is stored and shipped: Kafka record, in a Kafka record batch v2.
//!
//! Holds: the record, the batch (checked bytes), building, iterating, patching. Pure.
//! Change here: how records look in bytes. Not here: which stream or offset (`cloud::log`), MQTT mapping (`record::mqtt`).

pub mod batch;
mod builder;
pub mod compression;
mod error;
pub mod mqtt;
mod unpacked;
mod varint;

#[cfg(test)]
mod tests;

pub use batch::{Batch, BatchHeader};
pub use builder::{BatchBuilder, Producer};
pub use compression::Compression;
pub use error::BatchError;
pub use unpacked::{RawRecord, RawRecords, Unpacked};

use bytes::Bytes;
use bytestring::ByteString;

/// One record. Cheap to clone: all parts share their batch's buffer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Record {
    /// Key.
    pub key: Option<Bytes>,
    /// Payload bytes, untouched; `None` = tombstone.
    pub value: Option<Bytes>,
    /// ms since 1970.
    pub timestamp_ms: i64,
    /// In order; names may repeat, values may be null.
    pub headers: Vec<Header>,
}

/// One header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Name.
    pub name: ByteString,
    /// Value.
    pub value: Option<Bytes>,
}

impl Record {
    /// The first header of that name, if its value is not null.
    pub fn header(&self, name: &str) -> Option<&Bytes> {
        self.headers.iter().find(|h| h.name == name).and_then(|h| h.value.as_ref())
    }
}
