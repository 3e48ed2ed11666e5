//! Kafka record batch v2: checked bytes and what their header says.
//!
//! ```text
//! baseOffset i64 | batchLength i32 | partitionLeaderEpoch i32 | magic i8 = 2 | crc u32 (crc32c of all that follows)
//! attributes i16 | lastOffsetDelta i32 | baseTimestamp i64 | maxTimestamp i64 | producerId i64 | producerEpoch i16
//! baseSequence i32 | count i32 | records (compressed as a whole)
//! ```
//! baseOffset and partitionLeaderEpoch lie outside the CRC: assigning an offset patches 12 bytes.
//! Not here: what is inside the records (`unpacked`), making a batch (`builder`).

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{Compression, Record, Unpacked};
pub use super::{
    builder::{BatchBuilder, Producer},
    error::BatchError,
};

/// Bytes before the records.
pub const HEADER_LEN: usize = 61;
/// Bytes that `batchLength` does not count: baseOffset and itself.
const LENGTH_END: usize = 12;
const MAGIC_AT: usize = 16;
const MAGIC: i8 = 2;
/// The CRC covers everything from the attributes on.
const CRC_AT: usize = 17;
const CRC_END: usize = 21;
const MAX_TIMESTAMP_AT: usize = 35;

const LOG_APPEND_TIME: i16 = 0x08;
const TRANSACTIONAL: i16 = 0x10;
const CONTROL: i16 = 0x20;

/// A batch whose header, length, CRC and count have been checked. The records inside are still as compressed.
/// Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// At least [`HEADER_LEN`], exactly as many as the header says.
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

impl BatchHeader {
    /// Timestamps are when the log took the batch: `max_timestamp_ms`, for each record.
    pub fn is_log_append_time(&self) -> bool {
        self.attributes & LOG_APPEND_TIME != 0
    }

    /// Part of a Kafka transaction.
    pub fn is_transactional(&self) -> bool {
        self.attributes & TRANSACTIONAL != 0
    }

    /// Holds a transaction marker, no application data.
    pub fn is_control(&self) -> bool {
        self.attributes & CONTROL != 0
    }

    /// Offset of the last record.
    pub fn last_offset(&self) -> i64 {
        self.base_offset.saturating_add(i64::from(self.last_offset_delta))
    }

    fn read(bytes: &Bytes) -> Self {
        let mut rest = bytes.as_ref();
        let base_offset = rest.get_i64();
        rest.advance(4); // length
        let leader_epoch = rest.get_i32();
        rest.advance(5); // magic, crc
        Self {
            base_offset,
            leader_epoch,
            attributes: rest.get_i16(),
            last_offset_delta: rest.get_i32(),
            base_timestamp_ms: rest.get_i64(),
            max_timestamp_ms: rest.get_i64(),
            producer_id: rest.get_i64(),
            producer_epoch: rest.get_i16(),
            base_sequence: rest.get_i32(),
            count: rest.get_i32(),
        }
    }

    /// Appends the header of a batch whose records take `records` bytes, with room for the CRC ([`seal`]).
    pub(super) fn write(&self, records: usize, out: &mut impl BufMut) -> Result<(), BatchError> {
        let length = i32::try_from(HEADER_LEN - LENGTH_END + records)
            .map_err(|_| BatchError::TooLarge(i32::MAX as usize))?;
        out.put_i64(self.base_offset);
        out.put_i32(length);
        out.put_i32(self.leader_epoch);
        out.put_i8(MAGIC);
        out.put_u32(0);
        out.put_i16(self.attributes);
        out.put_i32(self.last_offset_delta);
        out.put_i64(self.base_timestamp_ms);
        out.put_i64(self.max_timestamp_ms);
        out.put_i64(self.producer_id);
        out.put_i16(self.producer_epoch);
        out.put_i32(self.base_sequence);
        out.put_i32(self.count);
        Ok(())
    }
}

/// Computes the CRC of a whole batch and writes it in its place.
pub(super) fn seal(mut bytes: BytesMut) -> Batch {
    let crc = crc(&bytes);
    patch(&mut bytes, CRC_AT, &crc.to_be_bytes());
    Batch { bytes: bytes.freeze() }
}

fn crc(batch: &[u8]) -> u32 {
    crc32c::crc32c(batch.get(CRC_END..).unwrap_or_default())
}

fn patch(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}

/// Whole length of the first batch in `bytes`, all of which is there.
fn measure(bytes: &[u8]) -> Result<usize, BatchError> {
    let cut = |need| BatchError::Truncated { have: bytes.len(), need };
    if let Some(&magic) = bytes.get(MAGIC_AT)
        && magic.cast_signed() != MAGIC
    {
        return Err(BatchError::Magic(magic.cast_signed()));
    }
    let length = bytes.get(8..).unwrap_or_default().try_get_i32().map_err(|_| cut(HEADER_LEN))?;
    let total = usize::try_from(length)
        .map(|length| length + LENGTH_END)
        .ok()
        .filter(|total| *total >= HEADER_LEN)
        .ok_or(BatchError::Length(length))?;
    if bytes.len() < total { Err(cut(total)) } else { Ok(total) }
}

/// The rules a new batch must keep.
fn check(batch: Batch) -> Result<Batch, BatchError> {
    let stored = batch.bytes.get(CRC_AT..).unwrap_or_default().try_get_u32().unwrap_or_default();
    let computed = crc(&batch.bytes);
    if stored != computed {
        return Err(BatchError::Crc { stored, computed });
    }
    let BatchHeader { count, last_offset_delta, .. } = batch.header();
    if count == 0 {
        return Err(BatchError::Empty);
    }
    if count < 0 || last_offset_delta != count - 1 {
        return Err(BatchError::Count { count, last_offset_delta });
    }
    batch.compression()?;
    Ok(batch)
}

impl Batch {
    /// Checks exactly one batch. Lengths are checked before anything is allocated.
    pub fn parse(bytes: Bytes) -> Result<Self, BatchError> {
        match measure(&bytes)? {
            total if total == bytes.len() => check(Self { bytes }),
            total => Err(BatchError::Trailing(bytes.len() - total)),
        }
    }

    /// Splits off the first batch of `bytes`, which may hold several (a produce request, a fetch answer), and checks it.
    /// After an error `bytes` is where it was.
    pub fn split_first(bytes: &mut Bytes) -> Result<Self, BatchError> {
        let total = measure(bytes)?;
        let batch = check(Self { bytes: bytes.slice(..total) })?;
        bytes.advance(total);
        Ok(batch)
    }

    /// For bytes that this process checked before (read back from an engine whose own checksums cover them): checks
    /// shape only.
    pub fn trusted(bytes: Bytes) -> Result<Self, BatchError> {
        match measure(&bytes)? {
            total if total == bytes.len() => Ok(Self { bytes }),
            total => Err(BatchError::Trailing(bytes.len() - total)),
        }
    }

    /// The whole batch.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Header.
    pub fn header(&self) -> BatchHeader {
        BatchHeader::read(&self.bytes)
    }

    /// Offset of the first record.
    pub fn base_offset(&self) -> i64 {
        self.header().base_offset
    }

    /// Offset of the last record.
    pub fn last_offset(&self) -> i64 {
        self.header().last_offset()
    }

    /// Records in it.
    pub fn count(&self) -> usize {
        usize::try_from(self.header().count).unwrap_or_default()
    }

    /// Latest timestamp of its records, ms since 1970, as its producer says.
    pub fn max_timestamp_ms(&self) -> i64 {
        self.header().max_timestamp_ms
    }

    /// The same batch at another offset: 12 bytes patched, CRC unchanged.
    #[must_use]
    pub fn at_offset(&self, base_offset: i64, leader_epoch: i32) -> Self {
        let mut bytes = BytesMut::from(self.bytes.as_ref());
        patch(&mut bytes, 0, &base_offset.to_be_bytes());
        patch(&mut bytes, LENGTH_END, &leader_epoch.to_be_bytes());
        Self { bytes: bytes.freeze() }
    }

    /// The same batch with the log's time for every record (`message.timestamp.type=LogAppendTime`).
    #[must_use]
    pub fn with_append_time(&self, timestamp_ms: i64) -> Self {
        let mut bytes = BytesMut::from(self.bytes.as_ref());
        let attributes = self.header().attributes | LOG_APPEND_TIME;
        patch(&mut bytes, CRC_END, &attributes.to_be_bytes());
        patch(&mut bytes, MAX_TIMESTAMP_AT, &timestamp_ms.to_be_bytes());
        seal(bytes)
    }

    /// How the records are compressed.
    pub fn compression(&self) -> Result<Compression, BatchError> {
        Compression::from_attributes(self.header().attributes)
    }

    /// The records' bytes, decompressed into at most `limit` bytes while streaming; uncompressed ones are not copied.
    /// What is in them is read record by record: [`Unpacked::iter`].
    pub fn unpack(&self, limit: usize) -> Result<Unpacked, BatchError> {
        let packed = self.bytes.slice(HEADER_LEN..);
        let records = match self.compression()? {
            Compression::None if packed.len() > limit => return Err(BatchError::TooLarge(limit)),
            Compression::None => packed,
            compression => compression.unpack(&packed, limit)?.into(),
        };
        Ok(Unpacked::new(self.header(), records))
    }

    /// All records, decompressed into at most `limit` bytes while streaming. They share one buffer.
    pub fn records(&self, limit: usize) -> Result<Vec<Record>, BatchError> {
        self.unpack(limit)?.records()
    }

    /// Checks every record inside without keeping any: shape, and offsets 0, 1, 2 ... One pass, no copies.
    /// A batch that passes can be read by every client.
    pub fn check_records(&self, limit: usize) -> Result<(), BatchError> {
        self.unpack(limit)?.check()
    }
}
