//! What goes: old or surplus records, deleted streams, producers not seen for long. Whole batches, in bounded steps.
//!
//! First the start moves durably, so that nobody reads what goes; then the keys are removed. A crash between leaves keys that
//! the next run removes. Change here: what goes when. Not here: the offsets (`decide`).

use std::{
    sync::{Arc, PoisonError, Weak},
    time::Duration,
};

use tokio::time::Instant;
use tracing::warn;
use tributary_shared::{record::Batch, tasks};

use super::{
    LogError, Offset, PartitionId, Watermarks,
    catalog::Entry,
    decide::Change,
    guard::Producer,
    inner::Inner,
    keys::{self, ByOffset},
    now_ms,
    partition::Partition,
    read::end_of,
    stored::Tail,
};
use crate::engine::{ScanLimit, ShardId};

/// One step of removal: keys of one engine write, and bytes read to find them.
const STEP: ScanLimit = ScanLimit { entries: 512, bytes: 4 * 1024 * 1024 };

/// A producer that was not seen for this long is forgotten (Kafka's `producer.id.expiration.ms`).
const PRODUCER_EXPIRES_MS: i64 = 86_400_000;
/// How often producers are looked at: all of them are read.
const PRODUCERS_EVERY: Duration = Duration::from_hours(1);

impl Inner {
    /// Starts retention.
    pub(super) fn start_background(self: &Arc<Self>) {
        let every = Duration::from_millis(self.settings.retention_interval_ms.max(1));
        let (weak, stop) = (Arc::downgrade(self), self.stop.clone());
        let work = self.background.track_future(async move {
            let mut producers_due = Instant::now() + PRODUCERS_EVERY;
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(every) => {}
                }
                let Some(inner) = Weak::upgrade(&weak) else { return };
                let producers = Instant::now() >= producers_due;
                if producers {
                    producers_due = Instant::now() + PRODUCERS_EVERY;
                }
                tokio::select! {
                    () = stop.cancelled() => return,
                    done = inner.run_retention(now_ms(), producers) => if let Err(error) = done {
                        warn!(%error, "retention stopped early; it goes on at the next run");
                    }
                }
            }
        });
        drop(tasks::spawn("retention", work));
    }

    pub(super) async fn trim(
        &self,
        id: PartitionId,
        before: Offset,
    ) -> Result<Watermarks, LogError> {
        let partition = self.served(id)?;
        let Watermarks { start, high } = partition.watermarks();
        if before > high || before < 0 {
            return Err(LogError::OffsetOutOfRange { asked: before, start, high });
        }
        self.move_start(&partition, before).await?;
        self.erase(&partition).await?;
        Ok(partition.watermarks())
    }

    /// One round over all records, and `producers` if told, as of `now_ms`.
    pub(super) async fn run_retention(&self, now_ms: i64, producers: bool) -> Result<(), LogError> {
        for entry in self.catalog.all() {
            for partition in &entry.partitions {
                if self.served(partition.id).is_err() {
                    continue;
                }
                match self.retain(&entry, partition, now_ms).await {
                    // Deleted meanwhile; or its shard went, and retention is its new owner's.
                    Err(_) if partition.marks().gone => {}
                    Ok(()) | Err(LogError::NotOwner) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        let shards = if producers { self.engine.shards() } else { 0 };
        for shard in 0..shards {
            match self.expire_producers(ShardId(shard), now_ms - PRODUCER_EXPIRES_MS).await {
                Ok(()) | Err(LogError::NotOwner) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn retain(
        &self,
        entry: &Entry,
        partition: &Arc<Partition>,
        now_ms: i64,
    ) -> Result<(), LogError> {
        let config = &entry.stream.config;
        if config.compact && !config.compact_and_delete {
            return self.erase(partition).await;
        }
        let age = config.retention_ms.unwrap_or(self.settings.retention_ms);
        let size = config.retention_bytes.unwrap_or(self.settings.retention_bytes);
        let mut start = partition.marks().start;
        if age >= 0 {
            start = start.max(self.start_by_time(partition, now_ms.saturating_sub(age)).await?);
        }
        if size >= 0 {
            start = start.max(self.start_by_size(partition, size as u64).await?);
        }
        self.move_start(partition, start).await?;
        self.erase(partition).await
    }

    /// The first batch with a record that is not older than `oldest_ms`, or the end.
    async fn start_by_time(
        &self,
        partition: &Partition,
        oldest_ms: i64,
    ) -> Result<Offset, LogError> {
        let marks = partition.marks();
        if marks.max_timestamp_ms < oldest_ms || marks.start == marks.high {
            return Ok(marks.high);
        }
        let first = partition.retained().first;
        if first.is_some_and(|(base, max)| base >= marks.start && max >= oldest_ms) {
            return Ok(marks.start);
        }
        let floor = self.index_floor(partition, |entry| entry.max_timestamp_ms < oldest_ms).await?;
        let from = floor.map_or(marks.start, |(base, _)| base).max(marks.start);
        let mut found = None;
        let start = self
            .first_batch(partition, from, |batch| {
                let header = batch.header();
                found = Some((header.base_offset, header.max_timestamp_ms));
                header.max_timestamp_ms >= oldest_ms
            })
            .await?;
        partition.retained().first = found.filter(|(base, _)| *base == start);
        Ok(start.max(marks.start))
    }

    /// The first batch that must stay so that at least `keep` bytes stay.
    async fn start_by_size(&self, partition: &Partition, keep: u64) -> Result<Offset, LogError> {
        let marks = partition.marks();
        let tail = self.tail(partition).await?;
        if tail.bytes_appended - tail.bytes_erased.min(tail.bytes_appended) <= keep {
            return Ok(marks.start);
        }
        let surplus = tail.bytes_appended - keep;
        // The index counts what was appended; of a compacted partition that is not what is there.
        let floor = match tail.cleaned.gaps {
            0 => self.index_floor(partition, |entry| entry.bytes <= surplus).await?,
            _ => None,
        };
        // Before the first index entry lies less than one entry's worth of what is there.
        let (from, mut before) =
            floor.map_or((tail.erased, tail.bytes_erased), |(base, entry)| (base, entry.bytes));
        self.first_batch(partition, from, |batch| {
            before += batch.bytes().len() as u64;
            before > surplus
        })
        .await
    }

    /// Base offset of the first batch from `from` on for which `stays` holds, or the high watermark.
    async fn first_batch(
        &self,
        partition: &Partition,
        mut from: Offset,
        mut stays: impl FnMut(&Batch) -> bool,
    ) -> Result<Offset, LogError> {
        let high = partition.marks().high;
        while from < high {
            let range = ByOffset::Records.range(partition.id, from..high);
            let page = self.scan(partition.shard, range, STEP).await?;
            if page.is_empty() {
                // Erased meanwhile; what was not seen is not judged.
                return Ok(from);
            }
            for (_, value) in page {
                let batch = Batch::trusted(value)?;
                if stays(&batch) {
                    return Ok(batch.header().base_offset);
                }
                from = end_of(&batch);
            }
        }
        Ok(high)
    }

    pub(super) async fn tail(&self, partition: &Partition) -> Result<Tail, LogError> {
        let (shard, _) = self.opened(partition.shard)?;
        let stored = shard.get(&keys::tail(partition.id)).await;
        match stored.map_err(|error| self.explain(partition.shard, error))? {
            Some(bytes) => Tail::decode(&bytes),
            None => Ok(Tail::default()),
        }
    }

    async fn move_start(&self, partition: &Arc<Partition>, before: Offset) -> Result<(), LogError> {
        if before > partition.marks().start {
            let change = Change::Trim { partition: Arc::clone(partition), before };
            self.change(partition.shard, change).await?;
        }
        Ok(())
    }

    /// Removes the keys below the start.
    async fn erase(&self, partition: &Partition) -> Result<(), LogError> {
        let start = partition.marks().start;
        while partition.retained().erased < start {
            let erased = self.tail(partition).await?.erased;
            partition.retained().erased = erased;
            if erased >= start {
                return Ok(());
            }
            let range = ByOffset::Records.range(partition.id, erased..start);
            let found = self.scan(partition.shard, range, STEP).await?;
            let bytes = found.iter().map(|(_, value)| value.len() as u64).sum();
            let last = found.last().and_then(|(key, _)| ByOffset::Records.offset(key));
            // Only an empty page says that nothing is left below the start.
            let to = last.map_or(start, |last| last + 1);
            let mut keys: Vec<_> = found.into_iter().map(|(key, _)| key).collect();
            keys.extend(self.index_keys(partition, erased..to).await?);
            let change = Change::Erase { partition: partition.id, keys, to, bytes };
            self.change(partition.shard, change).await?;
        }
        Ok(())
    }

    /// Keys of index entries; there are fewer than batches.
    async fn index_keys(
        &self,
        partition: &Partition,
        offsets: std::ops::Range<Offset>,
    ) -> Result<Vec<bytes::Bytes>, LogError> {
        let range = ByOffset::Index.range(partition.id, offsets);
        let found = self.scan(partition.shard, range, STEP).await?;
        Ok(found.into_iter().map(|(key, _)| key).collect())
    }

    async fn expire_producers(&self, shard: ShardId, before_ms: i64) -> Result<(), LogError> {
        let mut range = keys::producers();
        loop {
            let page = self.scan(shard, range.clone(), STEP).await?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            range.start = [last, &b"\0"[..]].concat().into();
            let mut producers = Vec::new();
            for (key, value) in &page {
                if Producer::decode(value)?.seen_ms < before_ms {
                    producers.extend(keys::producer_parts(key));
                }
            }
            if !producers.is_empty() {
                self.change(shard, Change::Expire { producers, before_ms }).await?;
            }
        }
    }

    /// Hides a deleted stream and removes its keys from the shards that are here; other shards' owners do the same.
    pub(super) fn remove_stream(self: &Arc<Self>, entry: &Entry) {
        self.catalog.hide(entry, &self.shared);
        let here = entry.partitions.iter().filter(|p| self.opening(p.shard).is_some());
        self.remove_in_background(here.map(|p| (p.id, p.shard)).collect());
    }

    /// Removes what shards that are here hold of streams that were deleted while nobody could, or that a stop left.
    pub(super) fn sweep_unclaimed(self: &Arc<Self>) {
        let mut gone = Vec::new();
        for (shard, handle) in (0..).map(ShardId).zip(&self.shards) {
            let mut unclaimed = handle.unclaimed.lock().unwrap_or_else(PoisonError::into_inner);
            // What is of no stream known yet may be of one that is to be learnt.
            gone.extend(
                unclaimed
                    .extract_if(.., |id| self.catalog.is_deleted(id.stream()))
                    .map(|id| (id, shard)),
            );
        }
        self.remove_in_background(gone);
    }

    fn remove_in_background(self: &Arc<Self>, gone: Vec<(PartitionId, ShardId)>) {
        if gone.is_empty() {
            return;
        }
        let (inner, stop) = (Arc::clone(self), self.stop.clone());
        let work = self.background.track_future(async move {
            for (partition, shard) in gone {
                let done = tokio::select! {
                    () = stop.cancelled() => return,
                    done = inner.remove(partition, shard) => done,
                };
                if let Err(error) = done {
                    let id = partition.0;
                    warn!(%error, id, "removal of a deleted partition goes on when its shard is opened next");
                }
            }
        });
        drop(tasks::spawn("removal of a stream", work));
    }

    /// The tail goes last: it says that there is something to remove.
    async fn remove(&self, partition: PartitionId, shard: ShardId) -> Result<(), LogError> {
        // Behind everything that was submitted before the deletion.
        self.change(shard, Change::Clear { partition, keys: Vec::new() }).await?;
        let all = 0..Offset::MAX;
        for range in [
            ByOffset::Records.range(partition, all.clone()),
            ByOffset::Index.range(partition, all),
            keys::producers_of(partition),
        ] {
            loop {
                let found = self.scan(shard, range.clone(), STEP).await?;
                if found.is_empty() {
                    break;
                }
                let keys = found.into_iter().map(|(key, _)| key).collect();
                self.change(shard, Change::Clear { partition, keys }).await?;
            }
        }
        let keys = vec![keys::tail(partition)];
        self.change(shard, Change::Clear { partition, keys }).await.map(drop)
    }
}
