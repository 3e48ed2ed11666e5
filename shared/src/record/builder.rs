//! Making a batch, record by record.

use bytes::{BufMut, BytesMut};

use super::{
    Batch, BatchError, BatchHeader, Compression, Record,
    batch::{HEADER_LEN, seal},
    varint,
};

/// Builds one batch.
#[derive(Debug, Default)]
pub struct BatchBuilder {
    /// Encoded.
    records: Vec<u8>,
    count: usize,
    /// Of the first record; the others are written as distances to it.
    base_timestamp_ms: i64,
    max_timestamp_ms: i64,
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

impl Producer {
    /// Who no one is: what Kafka writes for a batch without a producer.
    const NONE: Self = Self { id: -1, epoch: -1, base_sequence: -1 };
}

impl BatchBuilder {
    /// Empty.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one record.
    pub fn push(&mut self, record: &Record) {
        if self.count == 0 {
            self.base_timestamp_ms = record.timestamp_ms;
            self.max_timestamp_ms = record.timestamp_ms;
        }
        self.max_timestamp_ms = self.max_timestamp_ms.max(record.timestamp_ms);
        // Wraps as Java's subtraction does, and the reader's addition wraps back.
        let timestamp = record.timestamp_ms.wrapping_sub(self.base_timestamp_ms);
        let offset = self.count as i64;
        let (key, value) = (record.key.as_deref(), record.value.as_deref());

        let mut length = 1
            + varint::len(timestamp)
            + varint::len(offset)
            + varint::len_bytes(key)
            + varint::len_bytes(value)
            + varint::len(record.headers.len() as i64);
        for header in &record.headers {
            length += varint::len_bytes(Some(header.name.as_bytes()))
                + varint::len_bytes(header.value.as_deref());
        }

        let out = &mut self.records;
        out.reserve(length + varint::len(length as i64));
        varint::write(length as i64, out);
        out.push(0); // attributes: none are defined
        varint::write(timestamp, out);
        varint::write(offset, out);
        varint::write_bytes(key, out);
        varint::write_bytes(value, out);
        varint::write(record.headers.len() as i64, out);
        for header in &record.headers {
            varint::write_bytes(Some(header.name.as_bytes()), out);
            varint::write_bytes(header.value.as_deref(), out);
        }
        self.count += 1;
    }

    /// Records so far.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Uncompressed bytes so far, header included.
    pub fn size(&self) -> usize {
        self.records.len() + HEADER_LEN
    }

    /// The batch, at base offset 0. At least one record was pushed, else [`BatchError::Empty`].
    /// More than 2^31 records or packed bytes: [`BatchError::TooLarge`].
    pub fn finish(
        self,
        compression: Compression,
        producer: Option<Producer>,
    ) -> Result<Batch, BatchError> {
        let count =
            i32::try_from(self.count).map_err(|_| BatchError::TooLarge(i32::MAX as usize))?;
        if count == 0 {
            return Err(BatchError::Empty);
        }
        let producer = producer.unwrap_or(Producer::NONE);
        let header = BatchHeader {
            base_offset: 0,
            leader_epoch: -1,
            attributes: compression as i16,
            last_offset_delta: count - 1,
            base_timestamp_ms: self.base_timestamp_ms,
            max_timestamp_ms: self.max_timestamp_ms,
            producer_id: producer.id,
            producer_epoch: producer.epoch,
            base_sequence: producer.base_sequence,
            count,
        };
        let mut packed = Vec::new();
        let records = if compression == Compression::None {
            &self.records
        } else {
            compression
                .pack(&self.records, &mut packed)
                .map_err(|error| BatchError::Compress(error.to_string()))?;
            &packed
        };
        let mut bytes = BytesMut::with_capacity(HEADER_LEN + records.len());
        header.write(records.len(), &mut bytes)?;
        bytes.put_slice(records);
        Ok(seal(bytes))
    }
}
