//! Reading: batches by offset, waiting for more, offsets by time, and the heads' own keys.
//!
//! Records come from memory or from the engine, always below the high watermark. State is answered only once it is durable.
//! Not here: what memory keeps (`partition`).

use std::sync::PoisonError;

use bytes::Bytes;
use tributary_shared::record::Batch;

use super::{
    LogError, Offset, PartitionId, StateSpace, Watermarks,
    follow::Follower,
    inner::Inner,
    keys::{self, ByOffset},
    partition::{Marks, Partition},
    stored::IndexEntry,
};
use crate::engine::{EngineError, ScanLimit, ShardId};

/// Most bytes of one read from the engine, whatever was asked.
const MAX_READ_BYTES: usize = 64 * 1024 * 1024;
/// Most batches of one read from the engine.
const MAX_READ_BATCHES: usize = 16 * 1024;
/// A step of a search through batches.
const SEARCH: ScanLimit = ScanLimit { entries: 64, bytes: 2 * 1024 * 1024 };
/// A record batch unpacks to at most this in a search by time.
pub(super) const UNPACKED: usize = 64 * 1024 * 1024;

impl Inner {
    pub(super) async fn read(
        &self,
        id: PartitionId,
        from: Offset,
        max_bytes: usize,
    ) -> Result<Vec<Batch>, LogError> {
        let partition = self.served(id)?;
        let marks = partition.marks();
        check_range(from, marks)?;
        if from == marks.high {
            return Ok(Vec::new());
        }
        if let Some(batches) = partition.cached(from, marks.high, max_bytes) {
            return Ok(batches);
        }
        let bytes = max_bytes.clamp(1, MAX_READ_BYTES);
        let limit = ScanLimit { entries: MAX_READ_BATCHES, bytes };
        let batches = self.stored_batches(&partition, from, marks.high, limit).await?;
        match batches.first() {
            Some(first) if first.header().base_offset <= from => Ok(batches),
            // Trimmed while it was read, or compacted by key, or else lost.
            first => {
                let marks = partition.marks();
                check_range(from, marks)?;
                if first.is_some() && from < marks.gaps {
                    return Ok(batches);
                }
                Err(broken(format!("records at offset {from} of partition {} are gone", id.0)))
            }
        }
    }

    /// Batches that end in `from..to`.
    pub(super) async fn stored_batches(
        &self,
        partition: &Partition,
        from: Offset,
        to: Offset,
        limit: ScanLimit,
    ) -> Result<Vec<Batch>, LogError> {
        let range = ByOffset::Records.range(partition.id, from..to);
        let found = self.scan(partition.shard, range, limit).await?;
        found.into_iter().map(|(_, value)| Batch::trusted(value).map_err(LogError::from)).collect()
    }

    pub(super) async fn scan(
        &self,
        shard: ShardId,
        range: std::ops::Range<Bytes>,
        limit: ScanLimit,
    ) -> Result<Vec<(Bytes, Bytes)>, LogError> {
        let (open, _) = self.opened(shard)?;
        open.scan(range, limit).await.map_err(|error| self.explain(shard, error))
    }

    /// What an error of the engine means to a reader.
    pub(super) fn explain(&self, shard: ShardId, error: EngineError) -> LogError {
        match self.handle(shard) {
            // Its owner here notices with the next write.
            Ok(_) if matches!(error, EngineError::Fenced(_)) && self.remote.is_some() => {
                LogError::NotOwner
            }
            Ok(handle) => handle.slot.explain(error),
            Err(refused) => refused,
        }
    }

    pub(super) fn watermarks(&self, id: PartitionId) -> Result<Watermarks, LogError> {
        self.served(id).map(|partition| partition.watermarks())
    }

    pub(super) async fn wait_above(
        &self,
        id: PartitionId,
        seen: Offset,
    ) -> Result<Offset, LogError> {
        let partition = self.served(id)?;
        let (_, opening) = self.opened(partition.shard)?;
        let mut watch = partition.watch();
        let moved = watch.wait_for(|marks| marks.high > seen || marks.gone);
        let marks = tokio::select! {
            moved = moved => *moved.map_err(|_| LogError::Closed)?,
            () = self.gone(partition.shard, opening) => return Err(LogError::NotOwner),
            () = self.stop.cancelled() => return Err(LogError::Closed),
        };
        if marks.gone {
            // Says by name what is gone.
            self.partition(id)?;
        }
        Ok(marks.high)
    }

    pub(super) fn follow(&self) -> Follower {
        let follower = self.shared.followers.join();
        let partitions = self.shared.partitions.read().unwrap_or_else(PoisonError::into_inner);
        let filled = partitions.values().filter(|partition| {
            let marks = partition.marks();
            marks.high > marks.start
        });
        let ids: Vec<_> = filled.map(|partition| partition.id).collect();
        drop(partitions);
        follower.add(&ids);
        if self.stop.is_cancelled() {
            self.shared.followers.close();
        }
        follower
    }

    pub(super) async fn offset_at_time(
        &self,
        id: PartitionId,
        timestamp_ms: i64,
    ) -> Result<Option<(Offset, i64)>, LogError> {
        let partition = self.served(id)?;
        let marks = partition.marks();
        if marks.max_timestamp_ms < timestamp_ms {
            return Ok(None);
        }
        let floor = self
            .index_floor(&partition, |entry| entry.max_timestamp_ms < timestamp_ms)
            .await?
            .map_or(0, |(base, _)| base);
        let mut from = floor.max(marks.start);
        while from < marks.high {
            let batches = self.stored_batches(&partition, from, marks.high, SEARCH).await?;
            let Some(last) = batches.last() else { break };
            let next = end_of(last);
            for batch in &batches {
                if batch.header().max_timestamp_ms >= timestamp_ms
                    && let Some(found) = first_at(batch, timestamp_ms, from)
                {
                    return Ok(Some(found));
                }
            }
            from = next;
        }
        Ok(None)
    }

    /// The last index entry of a partition for which `early` holds; it must hold up to some entry and for none after.
    pub(super) async fn index_floor(
        &self,
        partition: &Partition,
        early: impl Fn(&IndexEntry) -> bool,
    ) -> Result<Option<(Offset, IndexEntry)>, LogError> {
        let marks = partition.marks();
        let (mut low, mut high) = (marks.start, marks.high);
        let mut found = None;
        let one = ScanLimit { entries: 1, bytes: 1 };
        while low < high {
            let middle = low + (high - low) / 2;
            let range = ByOffset::Index.range(partition.id, middle..high);
            let entries = self.scan(partition.shard, range, one).await?;
            let Some((key, value)) = entries.first() else {
                high = middle;
                continue;
            };
            let base = ByOffset::Index.offset(key).unwrap_or(middle);
            let entry = IndexEntry::decode(value)?;
            if early(&entry) {
                found = Some((base, entry));
                low = base + 1;
            } else {
                high = middle;
            }
        }
        Ok(found)
    }

    pub(super) async fn edge_marks(&self, edge: &str) -> Result<Vec<(i64, u64)>, LogError> {
        if !keys::edge_fits(edge) {
            return Ok(Vec::new());
        }
        let shard = self.home_shard(edge);
        let mut range = keys::edges_of(edge);
        let mut marks = Vec::new();
        loop {
            let limit = ScanLimit { entries: 1000, bytes: 256 * 1024 };
            let page = self.durable_scan(shard, range.clone(), limit).await?;
            let Some((last, _)) = page.last() else { break };
            range.start = [last, &b"\0"[..]].concat().into();
            for (key, value) in &page {
                if let Some(epoch) = keys::edge_epoch(key) {
                    let edge = super::guard::Edge::decode(value)?;
                    marks.push((edge.seen_ms, epoch, edge.next));
                }
            }
        }
        marks.sort_unstable();
        Ok(marks.into_iter().map(|(_, epoch, next)| (epoch, next)).collect())
    }

    pub(super) async fn state_get(
        &self,
        shard: ShardId,
        space: StateSpace,
        key: &[u8],
    ) -> Result<Option<Bytes>, LogError> {
        let (open, opening) = self.opened(shard)?;
        let value = open.get(&keys::state(space, key)).await;
        let value = value.map_err(|error| self.explain(shard, error))?;
        self.handle(shard)?.slot.landed(opening).await?;
        Ok(value)
    }

    pub(super) async fn state_scan(
        &self,
        shard: ShardId,
        space: StateSpace,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: ScanLimit,
    ) -> Result<Vec<(Bytes, Bytes)>, LogError> {
        let range = keys::state_range(space, prefix, after);
        let found = self.durable_scan(shard, range, limit).await?;
        Ok(found.into_iter().map(|(key, value)| (key.slice(1..), value)).collect())
    }

    async fn durable_scan(
        &self,
        shard: ShardId,
        range: std::ops::Range<Bytes>,
        limit: ScanLimit,
    ) -> Result<Vec<(Bytes, Bytes)>, LogError> {
        let (open, opening) = self.opened(shard)?;
        let found = open.scan(range, limit).await;
        let found = found.map_err(|error| self.explain(shard, error))?;
        self.handle(shard)?.slot.landed(opening).await?;
        Ok(found)
    }
}

pub(super) fn check_range(from: Offset, marks: Marks) -> Result<(), LogError> {
    let Marks { start, high, .. } = marks;
    if from < start || from > high {
        return Err(LogError::OffsetOutOfRange { asked: from, start, high });
    }
    Ok(())
}

/// One past a batch's last offset.
pub(super) fn end_of(batch: &Batch) -> Offset {
    let header = batch.header();
    header.base_offset + i64::from(header.last_offset_delta) + 1
}

/// The first record of `batch` at or after `from` with at least that timestamp. A batch that cannot be unpacked answers with
/// its beginning: its header says that such a record is inside.
fn first_at(batch: &Batch, timestamp_ms: i64, from: Offset) -> Option<(Offset, i64)> {
    let header = batch.header();
    let whole = (header.base_offset.max(from), header.max_timestamp_ms);
    if header.is_log_append_time() {
        return Some(whole);
    }
    let Ok(records) = batch.records(UNPACKED) else { return Some(whole) };
    (header.base_offset..)
        .zip(records)
        .find(|(offset, record)| *offset >= from && record.timestamp_ms >= timestamp_ms)
        .map(|(offset, record)| (offset, record.timestamp_ms))
}

fn broken(text: String) -> LogError {
    LogError::Engine(EngineError::Store(text))
}
