//! The records inside a batch, read one by one out of one decompressed buffer.
//!
//! Holds: [`Unpacked`], the buffer; [`RawRecord`], a record that borrows from it; turning one into an owned
//! [`Record`] without copying. Numbers and lengths are checked as they are met; a count that lies allocates nothing.

use bytes::Bytes;
use bytestring::ByteString;

use super::{BatchError, BatchHeader, Header, Record, varint};

/// The fewest bytes a record takes: length, attributes, timestamp, offset, key, value, header count.
const RECORD_LEN_MIN: usize = 7;
/// Room made for headers before they are seen; more than that grows as they come.
const HEADERS_USUAL: usize = 16;
/// The fewest bytes a header takes: two lengths.
const HEADER_LEN_MIN: usize = 2;

/// A batch's records, decompressed.
#[derive(Debug, Clone)]
pub struct Unpacked {
    header: BatchHeader,
    bytes: Bytes,
}

/// A record where it lies, borrowed: to look at keys or headers without an allocation.
#[derive(Debug, Clone, Copy)]
pub struct RawRecord<'a> {
    /// Offset in the partition.
    pub offset: i64,
    /// ms since 1970.
    pub timestamp_ms: i64,
    /// Key.
    pub key: Option<&'a [u8]>,
    /// Value.
    pub value: Option<&'a [u8]>,
    /// Headers it says it has; each is checked when it is read.
    pub header_count: usize,
    index: usize,
    headers: &'a [u8],
}

/// See [`Unpacked::iter`].
#[derive(Debug, Clone)]
pub struct RawRecords<'a> {
    batch: BatchHeader,
    rest: &'a [u8],
    index: usize,
    failed: bool,
}

impl Unpacked {
    pub(super) fn new(header: BatchHeader, bytes: Bytes) -> Self {
        Self { header, bytes }
    }

    /// Records one by one, borrowed. The first error ends it; too few or too many bytes for the count are an error.
    pub fn iter(&self) -> RawRecords<'_> {
        RawRecords { batch: self.header, rest: &self.bytes, index: 0, failed: false }
    }

    /// `raw`, one of this batch's, as a record that shares the buffer.
    pub fn record(&self, raw: &RawRecord<'_>) -> Result<Record, BatchError> {
        let share = |part: &[u8]| self.bytes.slice_ref(part);
        let mut headers = Vec::with_capacity(raw.header_count.min(HEADERS_USUAL));
        for header in raw.headers() {
            let (name, value) = header?;
            headers.push(Header { name: text(share(name)), value: value.map(share) });
        }
        Ok(Record {
            key: raw.key.map(share),
            value: raw.value.map(share),
            timestamp_ms: raw.timestamp_ms,
            headers,
        })
    }

    /// All of them.
    pub fn records(&self) -> Result<Vec<Record>, BatchError> {
        let count = usize::try_from(self.header.count).unwrap_or_default();
        let mut records = Vec::with_capacity(count.min(self.bytes.len() / RECORD_LEN_MIN));
        for raw in self {
            records.push(self.record(&raw?)?);
        }
        Ok(records)
    }

    /// Every record has a legal shape and the offset that its place says.
    pub(super) fn check(&self) -> Result<(), BatchError> {
        for (expected, raw) in (self.header.base_offset..).zip(self.iter()) {
            let raw = raw?;
            if raw.offset != expected {
                return Err(varint::malformed(raw.index, "its offset is not its place"));
            }
            for header in raw.headers() {
                header?;
            }
        }
        Ok(())
    }
}

impl<'a> IntoIterator for &'a Unpacked {
    type Item = Result<RawRecord<'a>, BatchError>;
    type IntoIter = RawRecords<'a>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// Header names are UTF-8 by the protocol, yet some clients send any bytes: those are replaced, not refused, since the
/// batch was accepted.
fn text(bytes: Bytes) -> ByteString {
    ByteString::try_from(bytes.clone())
        .unwrap_or_else(|_| String::from_utf8_lossy(&bytes).into_owned().into())
}

impl<'a> Iterator for RawRecords<'a> {
    type Item = Result<RawRecord<'a>, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        if i32::try_from(self.index).is_ok_and(|index| index >= self.batch.count) {
            if self.rest.is_empty() {
                return None;
            }
            self.failed = true;
            return Some(Err(varint::malformed(self.index, "bytes follow the last record")));
        }
        let record = self.record();
        self.failed = record.is_err();
        self.index += 1;
        Some(record.map_err(|detail| varint::malformed(self.index - 1, detail)))
    }
}

impl<'a> RawRecords<'a> {
    fn record(&mut self) -> Result<RawRecord<'a>, &'static str> {
        let mut body = varint::read_bytes(&mut self.rest)
            .flatten()
            .ok_or("its length is more than what is left")?;
        let (_attributes, rest) = body.split_first().ok_or("it has no attributes")?;
        body = rest;
        let timestamp = varint::read(&mut body).ok_or("its timestamp is no number")?;
        let offset = varint::read(&mut body)
            .and_then(|offset| i32::try_from(offset).ok())
            .filter(|offset| (0..=self.batch.last_offset_delta).contains(offset))
            .ok_or("its offset is outside the batch")?;
        let key = varint::read_bytes(&mut body).ok_or("its key is cut short")?;
        let value = varint::read_bytes(&mut body).ok_or("its value is cut short")?;
        let header_count = varint::read(&mut body)
            .and_then(|count| usize::try_from(count).ok())
            .filter(|count| *count <= body.len() / HEADER_LEN_MIN)
            .ok_or("it has no room for its headers")?;
        if header_count == 0 && !body.is_empty() {
            return Err("bytes follow its last header");
        }
        let timestamp_ms = if self.batch.is_log_append_time() {
            self.batch.max_timestamp_ms
        } else {
            self.batch.base_timestamp_ms.wrapping_add(timestamp)
        };
        Ok(RawRecord {
            offset: self.batch.base_offset.saturating_add(i64::from(offset)),
            timestamp_ms,
            key,
            value,
            index: self.index,
            header_count,
            headers: body,
        })
    }
}

impl<'a> RawRecord<'a> {
    /// Name and value of each header, in order; the first error ends it.
    pub fn headers(
        &self,
    ) -> impl Iterator<Item = Result<(&'a [u8], Option<&'a [u8]>), BatchError>> {
        let Self { index, header_count, headers: mut rest, .. } = *self;
        let mut left = header_count;
        std::iter::from_fn(move || {
            if left == 0 {
                return None;
            }
            left -= 1;
            let name = varint::read_bytes(&mut rest).flatten();
            let header = name.and_then(|name| Some((name, varint::read_bytes(&mut rest)?)));
            let done = left == 0 && !rest.is_empty();
            if header.is_none() || done {
                left = 0;
                return Some(Err(varint::malformed(index, "a header is cut short or too long")));
            }
            header.map(Ok)
        })
    }

    /// A number that another time, key or value very likely does not have (CRC-32C of the three). Headers do not count:
    /// they may be added to on the way.
    pub fn fingerprint(&self) -> u32 {
        let part = |crc, part: Option<&[u8]>| {
            let length = part.map_or(u64::MAX, |part| part.len() as u64);
            let crc = crc32c::crc32c_append(crc, &length.to_be_bytes());
            crc32c::crc32c_append(crc, part.unwrap_or_default())
        };
        let time = crc32c::crc32c(&self.timestamp_ms.to_be_bytes());
        part(part(time, self.key), self.value)
    }

    /// The value of the first header of that name, if it has one; a malformed header counts as none.
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        self.headers()
            .map_while(Result::ok)
            .find(|(found, _)| *found == name.as_bytes())
            .and_then(|(_, value)| value)
    }
}
