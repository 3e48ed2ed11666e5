//! The values under the log's keys, in bytes; each starts with a format byte, 1 now.
//!
//! Change here: what is remembered of a partition, a producer, an edge, a stream. Not here: where it lies (`keys`), the
//! rules (`guard`).

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::{
    LogError, Offset, Stream,
    guard::{EDGE_BATCHES, Edge, Producer, Seen, SentBatch},
};
use crate::engine::EngineError;

const FORMAT: u8 = 1;

/// End and sizes of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tail {
    /// First offset that can be read.
    pub start: Offset,
    /// Offset of the next record.
    pub next: Offset,
    /// Below it nothing is stored any more.
    pub erased: Offset,
    /// Greatest timestamp so far, ms; `i64::MIN` before the first record.
    pub max_timestamp_ms: i64,
    /// Bytes of all batches ever appended.
    pub bytes_appended: u64,
    /// Bytes of all batches erased since.
    pub bytes_erased: u64,
    /// How far it is compacted by key.
    pub cleaned: Cleaned,
}

/// What compaction by key has done in a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Cleaned {
    /// Below it records may be missing.
    pub gaps: Offset,
    /// Below it a key is there once.
    pub to: Offset,
    /// Bytes that had been appended below `to`, about.
    pub bytes: u64,
    /// Records without a value below it have replaced what they had to before `tombstones_ms`.
    pub tombstones_to: Offset,
    pub tombstones_ms: i64,
    /// Records without a value that were seen below `to`, and stayed.
    pub tombstones: u64,
}

impl Default for Tail {
    fn default() -> Self {
        Self {
            start: 0,
            next: 0,
            erased: 0,
            max_timestamp_ms: i64::MIN,
            bytes_appended: 0,
            bytes_erased: 0,
            cleaned: Cleaned::default(),
        }
    }
}

impl Tail {
    pub(super) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(97);
        out.put_u8(FORMAT);
        out.put_i64(self.start);
        out.put_i64(self.next);
        out.put_i64(self.erased);
        out.put_i64(self.max_timestamp_ms);
        out.put_u64(self.bytes_appended);
        out.put_u64(self.bytes_erased);
        // Only where it says something: a tail is written with every group of appends.
        if self.cleaned != Cleaned::default() {
            out.put_i64(self.cleaned.gaps);
            out.put_i64(self.cleaned.to);
            out.put_u64(self.cleaned.bytes);
            out.put_i64(self.cleaned.tombstones_to);
            out.put_i64(self.cleaned.tombstones_ms);
            out.put_u64(self.cleaned.tombstones);
        }
        out.freeze()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, LogError> {
        let mut body = body(bytes, "tail", 48)?;
        Ok(Self {
            start: body.get_i64(),
            next: body.get_i64(),
            erased: body.get_i64(),
            max_timestamp_ms: body.get_i64(),
            bytes_appended: body.get_u64(),
            bytes_erased: body.get_u64(),
            cleaned: Cleaned::read(body),
        })
    }
}

impl Cleaned {
    fn read(mut body: &[u8]) -> Self {
        if body.len() < 48 {
            return Self::default();
        }
        Self {
            gaps: body.get_i64(),
            to: body.get_i64(),
            bytes: body.get_u64(),
            tombstones_to: body.get_i64(),
            tombstones_ms: body.get_i64(),
            tombstones: body.get_u64(),
        }
    }
}

/// What lay before a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct IndexEntry {
    /// Greatest timestamp of all earlier records.
    pub max_timestamp_ms: i64,
    /// Bytes of all earlier batches.
    pub bytes: u64,
}

impl IndexEntry {
    pub(super) fn encode(self) -> Bytes {
        let mut out = BytesMut::with_capacity(17);
        out.put_u8(FORMAT);
        out.put_i64(self.max_timestamp_ms);
        out.put_u64(self.bytes);
        out.freeze()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, LogError> {
        let mut body = body(bytes, "index", 16)?;
        Ok(Self { max_timestamp_ms: body.get_i64(), bytes: body.get_u64() })
    }
}

impl Producer {
    pub(super) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(11 + 16 * self.sent().len());
        out.put_u8(FORMAT);
        out.put_i16(self.epoch);
        out.put_i64(self.seen_ms);
        for batch in self.sent() {
            out.put_i32(batch.first);
            out.put_i32(batch.last);
            out.put_i64(batch.offset);
        }
        out.freeze()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, LogError> {
        let mut body = body(bytes, "producer", 10)?;
        let mut producer = Self::new(body.get_i16(), body.get_i64());
        while body.remaining() >= 16 {
            producer.push(SentBatch {
                first: body.get_i32(),
                last: body.get_i32(),
                offset: body.get_i64(),
            });
        }
        Ok(producer)
    }
}

/// Of [`Edge`]: 1 had no time.
const EDGE_FORMAT: u8 = 2;

impl Edge {
    pub(super) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(17 + 8 * usize::from(EDGE_BATCHES));
        out.put_u8(EDGE_FORMAT);
        out.put_u64(self.next);
        out.put_i64(self.seen_ms);
        for seen in self.recent() {
            out.put_u32(seen.count);
            out.put_u32(seen.print);
        }
        out.freeze()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, LogError> {
        let timed = bytes.first() == Some(&EDGE_FORMAT);
        let mut body = match bytes.split_first() {
            Some((_, rest)) if timed && rest.len() >= 16 => rest,
            _ => body(bytes, "edge", 8)?,
        };
        let mut edge = Self::new(body.get_u64());
        if timed {
            edge.seen_ms = body.get_i64();
        }
        while body.remaining() >= 8 {
            edge.push(Seen { count: body.get_u32(), print: body.get_u32() });
        }
        Ok(edge)
    }
}

/// A stream and where its partitions live.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoredStream {
    pub stream: Stream,
    /// Shard of each partition.
    pub shards: Vec<u16>,
    /// Its keys are being removed.
    #[serde(default)]
    pub deleted: bool,
}

impl StoredStream {
    pub(super) fn encode(&self) -> Result<Bytes, LogError> {
        let mut out = vec![FORMAT];
        serde_json::to_writer(&mut out, self).map_err(|error| broken("stream", &error))?;
        Ok(out.into())
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, LogError> {
        serde_json::from_slice(body(bytes, "stream", 0)?).map_err(|error| broken("stream", &error))
    }
}

/// The next stream id, and how often the streams have changed.
pub(super) fn encode_counter(next_id: u32, version: u64) -> Bytes {
    let mut out = BytesMut::with_capacity(13);
    out.put_u8(FORMAT);
    out.put_u32(next_id);
    out.put_u64(version);
    out.freeze()
}

/// An earlier release did not count the changes.
pub(super) fn decode_counter(bytes: &[u8]) -> Result<(u32, u64), LogError> {
    let mut body = body(bytes, "counter", 4)?;
    Ok((body.get_u32(), body.try_get_u64().unwrap_or(0)))
}

/// What follows the format byte, at least `len` bytes.
fn body<'a>(bytes: &'a [u8], what: &'static str, len: usize) -> Result<&'a [u8], LogError> {
    match bytes.split_first() {
        Some((&FORMAT, body)) if body.len() >= len => Ok(body),
        Some((&FORMAT, _)) | None => Err(broken(what, &"cut short")),
        Some((other, _)) => {
            Err(broken(what, &format!("format {other} is newer than this program")))
        }
    }
}

fn broken(what: &'static str, detail: &dyn std::fmt::Display) -> LogError {
    LogError::Engine(EngineError::Store(format!("stored {what} is not readable: {detail}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::{StreamConfig, StreamId};

    #[test]
    fn every_value_comes_back_from_its_bytes() {
        let tail = Tail {
            start: 3,
            next: 9,
            erased: 2,
            max_timestamp_ms: -7,
            bytes_appended: 1 << 40,
            bytes_erased: 5,
            cleaned: Cleaned::default(),
        };
        assert_eq!((Tail::decode(&tail.encode()).unwrap(), tail.encode().len()), (tail, 49));
        let cleaned = Cleaned {
            gaps: 8,
            to: 7,
            bytes: 99,
            tombstones_to: 6,
            tombstones_ms: 1_700_000_000_000,
            tombstones: 2,
        };
        let tail = Tail { cleaned, ..tail };
        assert_eq!(Tail::decode(&tail.encode()).unwrap(), tail);
        let entry = IndexEntry { max_timestamp_ms: i64::MIN, bytes: 77 };
        assert_eq!(IndexEntry::decode(&entry.encode()).unwrap(), entry);
        let mut producer = Producer::new(3, 1_700_000_000_000);
        for n in 0..5 {
            producer.push(SentBatch { first: n * 10, last: n * 10 + 9, offset: i64::from(n) * 10 });
        }
        assert_eq!(Producer::decode(&producer.encode()).unwrap(), producer);
        let mut edge = Edge::new(u64::MAX);
        edge.seen_ms = 1_700_000_000_000;
        assert_eq!(Edge::decode(&edge.encode()).unwrap(), edge);
        edge.push(Seen { count: 3, print: 7 });
        edge.push(Seen { count: u32::MAX, print: 0 });
        assert_eq!(Edge::decode(&edge.encode()).unwrap(), edge);
        assert_eq!(decode_counter(&encode_counter(9, 4)).unwrap(), (9, 4));
        let stream = StoredStream {
            stream: Stream {
                id: StreamId(4),
                name: "plant.temperature".into(),
                uuid: uuid::Uuid::from_u128(5),
                partitions: 2,
                config: StreamConfig { retention_ms: Some(-1), ..StreamConfig::default() },
            },
            shards: vec![1, 0],
            deleted: false,
        };
        assert_eq!(StoredStream::decode(&stream.encode().unwrap()).unwrap(), stream);
    }

    #[test]
    fn what_an_edge_was_known_by_before_times_were_kept_is_read() {
        let old = [[1, 0, 0, 0, 0, 0, 0, 0, 9].as_slice(), &[0, 0, 0, 2, 0, 0, 0, 7]].concat();
        let mut known = Edge::new(9);
        assert_eq!(Edge::decode(&old[..9]).unwrap(), known);
        known.push(Seen { count: 2, print: 7 });
        assert_eq!(Edge::decode(&old).unwrap(), known);
        assert!(Edge::decode(&old[..8]).is_err() && Edge::decode(&[3; 60]).is_err());
        assert!(Edge::decode(&known.encode()[..16]).is_err());
    }

    #[test]
    fn short_or_foreign_bytes_are_refused() {
        for bytes in [&[][..], &[1], &[1, 0, 0], &[2; 60]] {
            assert!(Tail::decode(bytes).is_err());
            assert!(Producer::decode(bytes).is_err());
            assert!(StoredStream::decode(bytes).is_err());
        }
    }
}
