//! Compaction by key at work: reads a partition in pages and has its shard's owner replace batches.
//!
//! Readers first learn durably up to where records may be missing; then batches are replaced, each wholly or not at all; then
//! how far it got is noted. A crash between leaves work for the next run. Not here: what goes (`compact`).

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use tracing::warn;
use tributary_shared::{record::Batch, tasks};

use super::{
    LogError, Offset, Opening,
    catalog::Entry,
    compact::{self, Latest, Pass, Seen},
    decide::{Change, Replaced},
    inner::Inner,
    now_ms,
    partition::Partition,
    read::{UNPACKED, end_of},
    stored::{Cleaned, Tail},
};
use crate::engine::ScanLimit;

/// A page of what is read.
const PAGE: ScanLimit = ScanLimit { entries: 256, bytes: 4 * 1024 * 1024 };
/// Batches of one engine write, about.
const WRITES: usize = 512;

impl Inner {
    pub(super) fn start_compaction(self: &Arc<Self>) {
        let every = Duration::from_millis(self.settings.compaction_interval_ms.max(1));
        let (weak, stop) = (Arc::downgrade(self), self.stop.clone());
        let work = self.background.track_future(async move {
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(every) => {}
                }
                let Some(inner) = Weak::upgrade(&weak) else { return };
                tokio::select! {
                    () = stop.cancelled() => return,
                    done = inner.run_compaction(now_ms()) => if let Err(error) = done {
                        warn!(%error, "compaction by key stopped early; it goes on at the next run");
                    }
                }
            }
        });
        drop(tasks::spawn("compaction by key", work));
    }

    /// At most one pass over each compacted partition that is here, as of `now_ms`.
    pub(super) async fn run_compaction(&self, now_ms: i64) -> Result<(), LogError> {
        let _alone = self.compacting.lock().await;
        for entry in self.catalog.all() {
            for partition in entry.partitions.iter().filter(|_| entry.stream.config.compact) {
                let Ok((_, opening)) = self.opened(partition.shard) else { continue };
                if !partition.is_known(opening) {
                    continue;
                }
                match self.compact(&entry, (partition, opening), now_ms).await {
                    // Deleted meanwhile; or its shard went, and compaction is its new owner's.
                    Err(_) if partition.marks().gone => {}
                    Ok(()) | Err(LogError::NotOwner) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    async fn compact(
        &self,
        entry: &Entry,
        (partition, opening): (&Arc<Partition>, Opening),
        now_ms: i64,
    ) -> Result<(), LogError> {
        let config = &entry.stream.config;
        let lag = config.min_compaction_lag_ms.unwrap_or(self.settings.min_compaction_lag_ms);
        let retention = config.delete_retention_ms.unwrap_or(self.settings.delete_retention_ms);
        // The end first: what is appended from here on is of no concern.
        let high = partition.marks().high;
        let tail = self.tail(partition).await?;
        let due = compact::tombstones_due(&tail.cleaned, now_ms, retention);
        if !due && !compact::is_dirty(&tail, self.settings.compaction_dirty_percent) {
            return Ok(());
        }
        let young = (lag > 0).then(|| now_ms.saturating_sub(lag));
        let (latest, to, bytes) = self.latest(partition, &tail, high, young).await?;
        if to <= tail.cleaned.to && !due {
            return Ok(());
        }
        let mut cleaned = tail.cleaned;
        cleaned.gaps = cleaned.gaps.max(to);
        self.replace(partition, opening, Vec::new(), cleaned).await?;
        let tombstones_to = if due { cleaned.tombstones_to } else { 0 };
        let pass = Pass { latest, last: high - 1, tombstones_to };
        let stay = self.sweep(partition, opening, &pass, to, cleaned).await?;
        cleaned = compact::after(cleaned, to, stay, due, now_ms);
        cleaned.bytes = if to >= tail.next {
            tail.bytes_appended
        } else {
            (cleaned.bytes + bytes).min(tail.bytes_appended)
        };
        self.replace(partition, opening, Vec::new(), cleaned).await
    }

    /// The latest offsets of the keys that came since the last pass, up to where they reach, and the bytes of that.
    async fn latest(
        &self,
        partition: &Partition,
        tail: &Tail,
        high: Offset,
        young: Option<i64>,
    ) -> Result<(Latest, Offset, u64), LogError> {
        let mut latest = Latest::new(self.settings.compaction_keys.max(1));
        let mut at = tail.cleaned.to.max(partition.marks().start);
        let mut bytes = 0;
        while at < high {
            let page = self.stored_batches(partition, at, high, PAGE).await?;
            if page.is_empty() {
                break;
            }
            for batch in page {
                let header = batch.header();
                if young.is_some_and(|young| header.max_timestamp_ms > young)
                    || !latest.has_room(batch.count())
                {
                    return Ok((latest, at, bytes));
                }
                // A batch that cannot be read is left as it is.
                if let Ok(unpacked) = batch.unpack(UNPACKED) {
                    for record in unpacked.iter().map_while(Result::ok) {
                        latest.note(&Seen::of(&record));
                    }
                }
                at = end_of(&batch);
                bytes += batch.bytes().len() as u64;
            }
            tokio::task::yield_now().await;
        }
        Ok((latest, at, bytes))
    }

    /// Removes what the pass removes below `to`; says how many records without a value stay.
    async fn sweep(
        &self,
        partition: &Arc<Partition>,
        opening: Opening,
        pass: &Pass,
        to: Offset,
        cleaned: Cleaned,
    ) -> Result<u64, LogError> {
        let mut at = partition.marks().start;
        let mut stay = 0;
        let mut replaced = Vec::new();
        let (mut writes, mut bytes) = (0, 0);
        while at < to {
            let page = self.stored_batches(partition, at, to, PAGE).await?;
            if page.is_empty() {
                break;
            }
            for batch in page {
                at = end_of(&batch);
                let Some(left) = judge(&batch, pass, &mut stay) else { continue };
                writes += left.len() + 1;
                bytes += left.iter().map(|batch| batch.bytes().len()).sum::<usize>();
                let size = batch.bytes().len() as u64;
                replaced.push(Replaced { last: batch.last_offset(), bytes: size, left });
                if writes >= WRITES || bytes >= PAGE.bytes {
                    let some = std::mem::take(&mut replaced);
                    self.replace(partition, opening, some, cleaned).await?;
                    (writes, bytes) = (0, 0);
                }
            }
            tokio::task::yield_now().await;
        }
        if !replaced.is_empty() {
            self.replace(partition, opening, replaced, cleaned).await?;
        }
        Ok(stay)
    }

    async fn replace(
        &self,
        partition: &Arc<Partition>,
        opening: Opening,
        replaced: Vec<Replaced>,
        cleaned: Cleaned,
    ) -> Result<(), LogError> {
        let bytes = replaced.iter().flat_map(|old| &old.left).map(|left| left.bytes().len()).sum();
        let less = !replaced.is_empty();
        let change = Change::Compact { partition: Arc::clone(partition), replaced, cleaned };
        let pending = self.request(partition.shard, Some(opening), change, bytes).await?;
        pending.await.map_err(|_| LogError::Closed)??;
        if less {
            partition.forget();
        }
        Ok(())
    }
}

/// What is left of a batch if something goes; counts the records without a value that stay and may go another time.
fn judge(batch: &Batch, pass: &Pass, stay: &mut u64) -> Option<Vec<Batch>> {
    let mut tombstones = 0;
    let removes = |seen: &Seen| {
        let removed = pass.removes(seen);
        tombstones += u64::from(seen.tombstone && !removed && seen.offset < pass.last);
        removed
    };
    let unpacked = batch.unpack(UNPACKED);
    let left = unpacked.and_then(|unpacked| compact::left_of(batch, &unpacked, removes));
    *stay += tombstones;
    // One that cannot be read is left as it is.
    left.unwrap_or_default()
}
