//! Committed offsets, as durable state of the log.
//!
//! ```text
//! space GroupOffset: group length u16 | group | stream u32 | partition u32
//!                 -> 1 u8 | offset i64 | leader epoch i32 | committed at, ms i64 | metadata
//! ```
//! All of a group lives in its home shard. In: commits. Out: writes for the log, and what was read back.
//! Not here: who may commit (`state`), when offsets expire (`task`), members (`stored`).

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{
    engine::{ScanLimit, Write},
    log::{Log, LogError, PartitionId, StateSpace},
};

const FORM: u8 = 1;

/// Entries read at once.
const PAGE: ScanLimit = ScanLimit { entries: 1_000, bytes: 1 << 20 };

/// A position in a partition, as a group committed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommittedOffset {
    /// Next offset to read.
    pub offset: i64,
    /// Leader epoch of the last record read; -1 = not said.
    pub leader_epoch: i32,
    /// When, ms since 1970.
    pub committed_ms: i64,
    /// Free text of the client.
    pub metadata: String,
}

pub(super) fn key(group: &str, partition: PartitionId) -> Bytes {
    let mut key = prefix(group);
    key.put_u64(partition.0);
    Log::state_key(StateSpace::GroupOffset, &key)
}

fn prefix(group: &str) -> BytesMut {
    let mut prefix = BytesMut::with_capacity(2 + group.len() + 8);
    prefix.put_u16(group.len() as u16);
    prefix.put_slice(group.as_bytes());
    prefix
}

pub(super) fn put(group: &str, partition: PartitionId, committed: &CommittedOffset) -> Write {
    Write::Put(key(group, partition), encode(committed))
}

fn encode(committed: &CommittedOffset) -> Bytes {
    let mut value = BytesMut::with_capacity(21 + committed.metadata.len());
    value.put_u8(FORM);
    value.put_i64(committed.offset);
    value.put_i32(committed.leader_epoch);
    value.put_i64(committed.committed_ms);
    value.put_slice(committed.metadata.as_bytes());
    value.freeze()
}

fn decode(mut value: Bytes) -> Option<CommittedOffset> {
    if value.try_get_u8().ok()? != FORM {
        return None;
    }
    Some(CommittedOffset {
        offset: value.try_get_i64().ok()?,
        leader_epoch: value.try_get_i32().ok()?,
        committed_ms: value.try_get_i64().ok()?,
        metadata: String::from_utf8_lossy(&value).into_owned(),
    })
}

/// One committed offset.
pub(super) async fn get(
    log: &Log,
    group: &str,
    partition: PartitionId,
) -> Result<Option<CommittedOffset>, LogError> {
    let mut key = prefix(group);
    key.put_u64(partition.0);
    let value = log.state_get(log.home_shard(group), StateSpace::GroupOffset, &key).await?;
    Ok(value.and_then(decode))
}

/// All of a group.
pub(super) async fn all(
    log: &Log,
    group: &str,
) -> Result<Vec<(PartitionId, CommittedOffset)>, LogError> {
    let prefix = prefix(group);
    let shard = log.home_shard(group);
    let mut found = Vec::new();
    let mut after: Option<Bytes> = None;
    loop {
        let page =
            log.state_scan(shard, StateSpace::GroupOffset, &prefix, after.as_deref(), PAGE).await?;
        let Some((last, _)) = page.last() else { return Ok(found) };
        after = Some(last.clone());
        for (key, value) in page {
            let partition = key.get(prefix.len()..).and_then(|mut rest| rest.try_get_u64().ok());
            if let (Some(partition), Some(committed)) = (partition, decode(value)) {
                found.push((PartitionId(partition), committed));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_committed_offset_reads_back_as_written() {
        let committed = CommittedOffset {
            offset: 1 << 40,
            leader_epoch: -1,
            committed_ms: 1_700_000_000_000,
            metadata: "läuft".to_owned(),
        };
        assert_eq!(decode(encode(&committed)), Some(committed));
        assert_eq!(decode(Bytes::from_static(&[1, 2, 3])), None);
        assert_eq!(decode(Bytes::from_static(&[9])), None);
    }
}
