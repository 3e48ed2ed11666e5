//! Which partition of a stream: by key as Kafka's Java client does, or one in a home shard.

use crate::{
    engine::ShardId,
    log::{Log, LogError, PartitionId, Stream},
};

/// murmur2 with Kafka's seed, as `org.apache.kafka.common.utils.Utils.murmur2`.
pub fn murmur2(data: &[u8]) -> i32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c_u32 ^ data.len() as u32;
    let (words, tail) = data.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    if !tail.is_empty() {
        for (index, byte) in tail.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * index);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    (hash ^ (hash >> 15)) as i32
}

/// Partition index of `key` among `partitions`, as the Java client's default partitioner.
pub fn key_index(key: &[u8], partitions: u32) -> u32 {
    (murmur2(key) & 0x7fff_ffff) as u32 % partitions.max(1)
}

/// The partition of `stream` in shard `home` that `key` picks; `None`: the stream has none there.
pub(super) fn at_home(
    log: &Log,
    stream: &Stream,
    home: ShardId,
    key: &[u8],
) -> Result<Option<PartitionId>, LogError> {
    if log.shards() == 1 {
        let index = key_index(key, stream.partitions);
        return Ok(Some(PartitionId::new(stream.id, index)));
    }
    let mut there = Vec::new();
    for index in 0..stream.partitions {
        let partition = PartitionId::new(stream.id, index);
        if log.shard_of(partition)? == home {
            there.push(partition);
        }
    }
    let index = key_index(key, there.len() as u32);
    Ok(there.get(index as usize).copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn murmur2_is_the_java_clients() {
        for (key, hash) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key.as_bytes()), hash, "{key}");
        }
        assert_eq!(key_index(b"foobar", 1), 0);
        assert_eq!(key_index(b"21", 7), 3);
    }
}
