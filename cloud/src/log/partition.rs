//! A partition as readers see it: how far it can be read, and its recent batches in memory.
//!
//! In: what became durable, from its shard's owner here or elsewhere. Out: marks, waiting, cached batches. All partitions share one budget of
//! cached bytes; the oldest batch of all goes first. Not here: what is not durable yet (`decide`), the engine (`read`).

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use tokio::sync::watch;
use tributary_shared::record::Batch;

use super::{Offset, PartitionId, Watermarks, slot::Opening, stored::Tail};
use crate::engine::ShardId;

/// What readers may know of a partition; durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Marks {
    pub start: Offset,
    pub high: Offset,
    pub max_timestamp_ms: i64,
    /// Below it records may be missing: compacted by key.
    pub gaps: Offset,
    /// Deleted: nothing will come any more.
    pub gone: bool,
}

/// One partition.
pub(super) struct Partition {
    pub id: PartitionId,
    pub shard: ShardId,
    marks: watch::Sender<Marks>,
    recent: Mutex<VecDeque<Recent>>,
    retained: Mutex<Retained>,
    /// Number of the opening of its shard that brought its ends; 0 = none yet.
    known: AtomicU64,
    /// Its ends were heard of, from its shard here or from its owner elsewhere.
    heard: AtomicBool,
}

/// What the last run of retention found, so that the next one need not read.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Retained {
    /// The first batch there is, and its greatest timestamp.
    pub first: Option<(Offset, i64)>,
    /// Below it nothing is stored.
    pub erased: Offset,
}

struct Recent {
    base: Offset,
    last: Offset,
    batch: Batch,
}

impl Partition {
    /// Nothing is known of its ends yet.
    pub(super) fn new(id: PartitionId, shard: ShardId) -> Arc<Self> {
        let marks = Marks { start: 0, high: 0, max_timestamp_ms: i64::MIN, gaps: 0, gone: false };
        Arc::new(Self {
            id,
            shard,
            marks: watch::Sender::new(marks),
            recent: Mutex::default(),
            retained: Mutex::default(),
            known: AtomicU64::new(0),
            heard: AtomicBool::new(false),
        })
    }

    /// Its marks are those of this opening of its shard.
    pub(super) fn know(&self, opening: Opening) {
        self.heard.store(true, Ordering::Release);
        self.known.store(opening.0, Ordering::Release);
    }

    pub(super) fn is_known(&self, opening: Opening) -> bool {
        self.known.load(Ordering::Acquire) == opening.0
    }

    /// Its owner elsewhere said so; durable there.
    pub(super) fn hear(&self, said: Watermarks) {
        self.marks.send_if_modified(|marks| {
            let before = *marks;
            marks.start = marks.start.max(said.start);
            marks.high = marks.high.max(said.high);
            before != *marks
        });
        self.heard.store(true, Ordering::Release);
    }

    /// Whether anything is known of its ends.
    pub(super) fn is_heard(&self) -> bool {
        self.heard.load(Ordering::Acquire)
    }

    pub(super) fn marks(&self) -> Marks {
        *self.marks.borrow()
    }

    pub(super) fn watermarks(&self) -> Watermarks {
        let Marks { start, high, .. } = self.marks();
        Watermarks { start, high }
    }

    pub(super) fn watch(&self) -> watch::Receiver<Marks> {
        self.marks.subscribe()
    }

    /// Everything in `tail` is durable now. Neither mark ever falls.
    pub(super) fn advance(&self, tail: &Tail) {
        self.marks.send_if_modified(|marks| {
            let before = *marks;
            marks.start = marks.start.max(tail.start);
            marks.high = marks.high.max(tail.next);
            marks.max_timestamp_ms = marks.max_timestamp_ms.max(tail.max_timestamp_ms);
            marks.gaps = marks.gaps.max(tail.cleaned.gaps);
            before != *marks
        });
    }

    /// Its stream was deleted.
    pub(super) fn bury(&self) {
        self.marks.send_modify(|marks| marks.gone = true);
        self.recent().clear();
    }

    /// Forgets the batches in memory: what is stored of them is less now.
    pub(super) fn forget(&self) {
        self.recent().clear();
    }

    /// Whole batches from the one that contains `from`, below `high`, about `max_bytes`; `None` if memory does not reach
    /// back to `from`.
    pub(super) fn cached(
        &self,
        from: Offset,
        high: Offset,
        max_bytes: usize,
    ) -> Option<Vec<Batch>> {
        let recent = self.recent();
        if recent.front()?.base > from {
            return None;
        }
        let first = recent.partition_point(|entry| entry.last < from);
        let mut bytes = 0;
        let mut found = Vec::new();
        for entry in recent.range(first..) {
            bytes += entry.batch.bytes().len();
            if entry.last >= high || (!found.is_empty() && bytes > max_bytes) {
                break;
            }
            found.push(entry.batch.clone());
        }
        (!found.is_empty()).then_some(found)
    }

    pub(super) fn retained(&self) -> MutexGuard<'_, Retained> {
        self.retained.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn recent(&self) -> MutexGuard<'_, VecDeque<Recent>> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The budget of cached bytes of all partitions.
pub(super) struct Cache {
    limit: usize,
    order: Mutex<Order>,
}

#[derive(Default)]
struct Order {
    bytes: usize,
    /// One entry a cached batch, oldest first; within a partition in its own order.
    entries: VecDeque<(Weak<Partition>, usize)>,
}

impl Cache {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, order: Mutex::default() }
    }

    /// Remembers a batch that follows everything cached of its partition, and forgets the oldest batches over the limit.
    pub(super) fn push(&self, partition: &Arc<Partition>, base: Offset, batch: Batch) {
        let size = batch.bytes().len();
        let last = base + i64::from(batch.header().last_offset_delta);
        let mut order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut recent = partition.recent();
            // Memory must not have holes: a reader takes it for everything from its first batch on.
            if recent.back().is_some_and(|entry| entry.last + 1 != base) {
                recent.clear();
            }
            recent.push_back(Recent { base, last, batch });
        }
        order.bytes += size;
        order.entries.push_back((Arc::downgrade(partition), size));
        while order.bytes > self.limit {
            let Some((oldest, size)) = order.entries.pop_front() else { break };
            order.bytes -= size;
            if let Some(partition) = oldest.upgrade() {
                partition.recent().pop_front();
            }
        }
    }
}
