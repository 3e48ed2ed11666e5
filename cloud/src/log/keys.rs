//! The keys of a shard: kind first, then big-endian numbers, so that key order is the order of what they name.
//!
//! ```text
//! R | bucket u8 | partition u64 | last offset u64
//!                                            a record batch. The LAST offset: a scan from X finds the batch that holds X.
//!                                            Buckets keep partitions apart in storage (`engine::segment_len`)
//! I | partition u64 | base offset u64        where to look by time or size: about one a MiB of batches
//! T | partition u64                          tail: start, next offset, sizes
//! P | partition u64 | producer id i64        Kafka producer: epoch, last 5 batches
//! E | edge (u16 length, bytes) | epoch i64   edge: next sequence
//! D | stream id u32                          stream (shard 0)
//! N |                                        next stream id, number of changes of the streams (shard 0)
//! F |                                        nothing: written to see whether the shard is still ours
//! g o a q k s r m | any bytes                a head's own (`StateSpace`)
//! ```
//! Change here: the layout. Not here: what the values hold (`stored`).

use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};

use super::{Offset, PartitionId, StateSpace, StreamId};

const RECORDS: u8 = crate::engine::BUCKETED;

const INDEX: u8 = b'I';
const TAIL: u8 = b'T';
const PRODUCER: u8 = b'P';
const EDGE: u8 = b'E';
const STREAM: u8 = b'D';
const NEXT_STREAM: u8 = b'N';
const TOUCH: u8 = b'F';

/// A partition's own kinds of keys that lie in offset order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ByOffset {
    /// Record batches, by last offset.
    Records,
    /// Index entries, by base offset.
    Index,
}

impl ByOffset {
    fn prefix(self, partition: PartitionId) -> BytesMut {
        let mut key = BytesMut::with_capacity(18);
        match self {
            Self::Records => {
                key.put_u8(RECORDS);
                key.put_u8(bucket(partition));
            }
            Self::Index => key.put_u8(INDEX),
        }
        key.put_u64(partition.0);
        key
    }

    pub(super) fn key(self, partition: PartitionId, offset: Offset) -> Bytes {
        let mut key = self.prefix(partition);
        key.put_i64(offset);
        key.freeze()
    }

    /// Keys of offsets in `offsets`.
    pub(super) fn range(self, partition: PartitionId, offsets: Range<Offset>) -> Range<Bytes> {
        self.key(partition, offsets.start)..self.key(partition, offsets.end)
    }

    /// The offset in a key of this kind.
    pub(super) fn offset(self, key: &[u8]) -> Option<Offset> {
        let (kind, len) = match self {
            Self::Records => (RECORDS, 18),
            Self::Index => (INDEX, 17),
        };
        if key.len() != len || key.first() != Some(&kind) {
            return None;
        }
        read_u64(key, len - 8).map(|offset| offset as Offset)
    }
}

/// Spreads streams and partitions that follow each other over the buckets, also
/// those that share a shard.
fn bucket(partition: PartitionId) -> u8 {
    let stream = partition.stream().0.wrapping_mul(0x9e37_79b1);
    let index = partition.index().wrapping_mul(0x91e1_0da5);
    (stream.wrapping_add(index) >> 29) as u8
}

pub(super) fn tail(partition: PartitionId) -> Bytes {
    numbers(TAIL, &[partition.0])
}

pub(super) fn tails() -> Range<Bytes> {
    kind_range(TAIL)
}

pub(super) fn tail_partition(key: &[u8]) -> Option<PartitionId> {
    (key.len() == 9 && key.first() == Some(&TAIL))
        .then(|| read_u64(key, 1))
        .flatten()
        .map(PartitionId)
}

pub(super) fn producer(partition: PartitionId, id: i64) -> Bytes {
    numbers(PRODUCER, &[partition.0, id as u64])
}

/// Producers of one partition.
pub(super) fn producers_of(partition: PartitionId) -> Range<Bytes> {
    numbers(PRODUCER, &[partition.0])..numbers(PRODUCER, &[partition.0 + 1])
}

pub(super) fn producers() -> Range<Bytes> {
    kind_range(PRODUCER)
}

pub(super) fn producer_parts(key: &[u8]) -> Option<(PartitionId, i64)> {
    if key.len() != 17 || key.first() != Some(&PRODUCER) {
        return None;
    }
    Some((PartitionId(read_u64(key, 1)?), read_u64(key, 9)? as i64))
}

/// Edge ids are shorter than 64 KiB (checked by [`edge_fits`]).
pub(super) fn edge(edge: &str, epoch: i64) -> Bytes {
    let mut key = edge_prefix(edge);
    key.put_i64(epoch);
    key.freeze()
}

pub(super) fn edge_fits(edge: &str) -> bool {
    u16::try_from(edge.len()).is_ok()
}

/// All epochs of an edge; epochs are not negative.
pub(super) fn edges_of(edge: &str) -> Range<Bytes> {
    let start = edge_prefix(edge).freeze();
    let end = after_prefix(&start);
    start..end
}

pub(super) fn edge_epoch(key: &[u8]) -> Option<i64> {
    let at = key.len().checked_sub(8)?;
    read_u64(key, at).map(|epoch| epoch as i64)
}

fn edge_prefix(edge: &str) -> BytesMut {
    let mut key = BytesMut::with_capacity(edge.len() + 11);
    key.put_u8(EDGE);
    key.put_u16(edge.len() as u16);
    key.put_slice(edge.as_bytes());
    key
}

pub(super) fn stream(id: StreamId) -> Bytes {
    let mut key = BytesMut::with_capacity(5);
    key.put_u8(STREAM);
    key.put_u32(id.0);
    key.freeze()
}

pub(super) fn streams() -> Range<Bytes> {
    kind_range(STREAM)
}

pub(super) fn next_stream() -> Bytes {
    Bytes::from_static(&[NEXT_STREAM])
}

pub(super) fn touch() -> Bytes {
    Bytes::from_static(&[TOUCH])
}

/// First byte of a head's keys.
fn space(space: StateSpace) -> u8 {
    match space {
        StateSpace::Group => b'g',
        StateSpace::GroupOffset => b'o',
        StateSpace::Amqp => b'a',
        StateSpace::Queue => b'q',
        StateSpace::QueueAck => b'k',
        StateSpace::Session => b's',
        StateSpace::Retained => b'r',
        StateSpace::Meta => b'm',
    }
}

pub(super) fn state(of: StateSpace, key: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(1 + key.len());
    bytes.put_u8(space(of));
    bytes.put_slice(key);
    bytes.freeze()
}

/// A head may write only keys of the heads' spaces.
pub(super) fn is_state(key: &[u8]) -> bool {
    key.first().is_some_and(u8::is_ascii_lowercase)
}

/// Keys of a space that start with `prefix` and lie after `after`.
pub(super) fn state_range(of: StateSpace, prefix: &[u8], after: Option<&[u8]>) -> Range<Bytes> {
    let first = state(of, prefix);
    let end = after_prefix(&first);
    let start = match after {
        Some(after) => {
            let mut next = BytesMut::from(&state(of, after)[..]);
            next.put_u8(0);
            next.freeze().max(first)
        }
        None => first,
    };
    start..end
}

/// The first key that is greater than every key with this prefix; prefixes start with a kind, never 0xff.
fn after_prefix(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            break;
        }
    }
    Bytes::from(end)
}

fn kind_range(kind: u8) -> Range<Bytes> {
    Bytes::copy_from_slice(&[kind])..Bytes::copy_from_slice(&[kind + 1])
}

fn numbers(kind: u8, numbers: &[u64]) -> Bytes {
    let mut key = BytesMut::with_capacity(1 + 8 * numbers.len());
    key.put_u8(kind);
    for number in numbers {
        key.put_u64(*number);
    }
    key.freeze()
}

fn read_u64(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.try_into().ok().map(u64::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: PartitionId = PartitionId(0x0000_0007_0000_0003);

    #[test]
    fn every_kind_comes_back_from_its_key() {
        for by in [ByOffset::Records, ByOffset::Index] {
            for offset in [0, 1, 255, 256, i64::MAX] {
                assert_eq!(by.offset(&by.key(P, offset)), Some(offset));
            }
        }
        assert_eq!(ByOffset::Index.offset(&ByOffset::Records.key(P, 1)), None);
        assert_eq!(tail_partition(&tail(P)), Some(P));
        for id in [0, 1, i64::MAX, -1] {
            assert_eq!(producer_parts(&producer(P, id)), Some((P, id)));
        }
        for epoch in [0, 7, i64::MAX] {
            assert_eq!(edge_epoch(&edge("gw1", epoch)), Some(epoch));
        }
    }

    #[test]
    fn key_order_is_offset_order() {
        let keys: Vec<_> =
            [0, 1, 255, 256, 65_536, i64::MAX].map(|o| ByOffset::Records.key(P, o)).into();
        assert!(keys.is_sorted());
    }

    #[test]
    fn few_partitions_share_no_bucket() {
        let by_index: std::collections::BTreeSet<_> =
            (0..8).map(|n| bucket(PartitionId::new(StreamId(1), n))).collect();
        let by_stream: std::collections::BTreeSet<_> =
            (1..9).map(|n| bucket(PartitionId::new(StreamId(n), 0))).collect();
        assert!(by_index.len() >= 6 && by_stream.len() >= 6, "{by_index:?} {by_stream:?}");
        // Stored: never to be changed.
        assert_eq!(ByOffset::Records.key(P, 1)[..2], [b'R', bucket(P)]);
        assert_eq!(bucket(P), 0);
    }

    #[test]
    fn ranges_hold_their_own_keys_and_no_others() {
        assert!(tails().contains(&tail(P)) && !tails().contains(&producer(P, 1)));
        assert!(streams().contains(&stream(StreamId(u32::MAX))));
        assert!(producers_of(P).contains(&producer(P, i64::MAX)));
        assert!(producers_of(P).contains(&producer(P, -1)));
        assert!(!producers_of(P).contains(&producer(PartitionId(P.0 + 1), 0)));
        assert!(edges_of("gw1").contains(&edge("gw1", i64::MAX)));
        assert!(!edges_of("gw1").contains(&edge("gw10", 0)));
        assert!(!edges_of("gw10").contains(&edge("gw1", 0)));
    }

    #[test]
    fn state_ranges_keep_to_prefix_and_continue_after_a_key() {
        let key = |k: &[u8]| state(StateSpace::Queue, k);
        let all = state_range(StateSpace::Queue, b"", None);
        assert!(all.contains(&key(b"")) && all.contains(&key(&[0xff; 9])));
        assert!(!all.contains(&state(StateSpace::Session, b"")));
        let prefixed = state_range(StateSpace::Queue, &[1, 0xff], None);
        assert!(prefixed.contains(&key(&[1, 0xff, 0xff])) && !prefixed.contains(&key(&[2])));
        let after = state_range(StateSpace::Queue, b"a", Some(b"ab"));
        assert!(!after.contains(&key(b"ab")) && after.contains(&key(b"ab\0")));
        assert!(after.contains(&key(b"ac")) && !after.contains(&key(b"b")));
    }

    #[test]
    fn heads_cannot_name_the_logs_keys() {
        assert!(is_state(&state(StateSpace::Meta, b"")));
        for own in
            [tail(P), producer(P, 0), edge("e", 0), stream(StreamId(0)), next_stream(), touch()]
        {
            assert!(!is_state(&own));
        }
        assert!(!is_state(&ByOffset::Records.key(P, 0)) && !is_state(b""));
    }
}
