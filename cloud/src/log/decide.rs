//! PURE. One shard's state in its owner's hands: what a change does to tails, producers and edges, and the writes it makes.
//!
//! In: changes in submit order. Out: per group of changes the engine writes, the answers, and what readers will see once
//! the group is durable. A refused change leaves no trace. Change here: offsets, what a commit holds.
//! Not here: when it is written or answered (`owner`), the rules of repeats (`guard`).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use bytes::Bytes;
use tributary_shared::record::Batch;

use super::{
    Committed, Guard, Index, LogError, Offset, PartitionId, Stream,
    guard::{self, Edge, Producer, SentBatch, Verdict},
    keys::{self, ByOffset},
    partition::Partition,
    stored::{Cleaned, IndexEntry, Tail},
};
use crate::engine::Write;

/// Bytes of batches between two index entries: a search by time or size reads at most about this much.
const INDEX_EVERY_BYTES: u64 = 1024 * 1024;

/// Producers and edges kept in memory a shard; more are read from the engine again. About 200 bytes each.
const REMEMBERED: usize = 100_000;

/// A change of a shard.
pub(super) enum Change {
    /// A head's transaction.
    Apply(Prepared),
    /// Records below `before` can no longer be read.
    Trim { partition: Arc<Partition>, before: Offset },
    /// Removes the keys of records that can no longer be read: all below `to`, `bytes` of batches.
    Erase { partition: PartitionId, keys: Vec<Bytes>, to: Offset, bytes: u64 },
    /// Puts other batches, with fewer records, in the place of batches.
    Compact { partition: Arc<Partition>, replaced: Vec<Replaced>, cleaned: Cleaned },
    /// Removes keys of a deleted partition.
    Clear { partition: PartitionId, keys: Vec<Bytes> },
    /// Brings the ends of partitions that came to be known after the shard was opened.
    Know { partitions: Vec<Arc<Partition>> },
    /// Forgets producers that were not seen since `before_ms`.
    Expire { producers: Vec<(PartitionId, i64)>, before_ms: i64 },
}

/// A stored batch, and what is left of it.
pub(super) struct Replaced {
    /// Last offset of the batch: its key.
    pub last: Offset,
    pub bytes: u64,
    /// In order, at their offsets, within the old one.
    pub left: Vec<Batch>,
}

/// A transaction whose parts have been looked up and checked.
pub(super) struct Prepared {
    pub appends: Vec<PreparedAppend>,
    pub guard: Guard,
    pub writes: Vec<Write>,
    pub index: Option<Index>,
}

pub(super) struct PreparedAppend {
    pub partition: Arc<Partition>,
    pub stream: Arc<Stream>,
    pub batch: Batch,
}

/// What a group of changes will do; takes effect for readers once its writes are durable.
#[derive(Default)]
pub(super) struct Group {
    pub writes: Vec<Write>,
    /// Appended batches, at their offsets, in order.
    pub batches: Vec<(Arc<Partition>, Batch)>,
    /// Tails after the group.
    pub tails: BTreeMap<PartitionId, (Arc<Partition>, Tail)>,
    /// Partitions whose ends readers learn.
    pub known: Vec<(Arc<Partition>, Tail)>,
    producers: BTreeSet<ProducerKey>,
    edges: BTreeSet<EdgeKey>,
}

pub(super) type ProducerKey = (PartitionId, i64);
pub(super) type EdgeKey = (Arc<str>, i64);

/// The state after everything decided so far, durable or not.
#[derive(Default)]
pub(super) struct State {
    tails: HashMap<PartitionId, OpenTail>,
    /// `None`: known to be unknown.
    producers: HashMap<ProducerKey, Option<Producer>>,
    edges: HashMap<EdgeKey, Edge>,
}

#[derive(Debug, Clone, Copy)]
struct OpenTail {
    tail: Tail,
    /// Bytes since the last index entry; more than any limit at first.
    unindexed: u64,
}

/// One transaction's effects before they are accepted.
#[derive(Default)]
struct Draft {
    tails: BTreeMap<PartitionId, OpenTail>,
    producers: BTreeMap<ProducerKey, Producer>,
    edge: Option<(EdgeKey, Edge)>,
    base_offsets: Vec<Offset>,
    batches: Vec<(Arc<Partition>, Batch)>,
    writes: Vec<Write>,
    repeats: usize,
}

impl State {
    pub(super) fn new(tails: impl IntoIterator<Item = (PartitionId, Tail)>) -> Self {
        let open = |(id, tail)| (id, OpenTail { tail, unindexed: u64::MAX });
        Self { tails: tails.into_iter().map(open).collect(), ..Self::default() }
    }

    /// What must be taught by [`State::learn_producer`] and [`State::learn_edge`] before `change` is decided.
    pub(super) fn unknown(&self, change: &Change) -> (Vec<ProducerKey>, Option<EdgeKey>) {
        let mut producers: Vec<ProducerKey> = Vec::new();
        let mut edge = None;
        match change {
            Change::Apply(Prepared { guard: Guard::Producer, appends, .. }) => {
                let ids = appends.iter().map(|a| (a.partition.id, a.batch.header().producer_id));
                producers.extend(ids.filter(|(_, id)| *id >= 0));
            }
            Change::Apply(Prepared { guard: Guard::Edge { edge: name, epoch, .. }, .. }) => {
                edge = Some((Arc::clone(name), *epoch)).filter(|key| !self.edges.contains_key(key));
            }
            Change::Expire { producers: all, .. } => producers.clone_from(all),
            _ => {}
        }
        producers.retain(|key| !self.producers.contains_key(key));
        (producers, edge)
    }

    pub(super) fn learn_producer(&mut self, key: ProducerKey, stored: Option<Producer>) {
        self.producers.entry(key).or_insert(stored);
    }

    pub(super) fn learn_edge(&mut self, key: EdgeKey, stored: Option<Edge>) {
        self.edges.entry(key).or_insert(stored.unwrap_or_default());
    }

    /// Lets go of what the engine knows, if it is much. Only between a written group and the next.
    pub(super) fn shrink(&mut self) {
        if self.producers.len() > REMEMBERED {
            self.producers.clear();
        }
        if self.edges.len() > REMEMBERED {
            self.edges.clear();
        }
    }

    /// Decides one change and adds it to `group`.
    pub(super) fn decide(
        &mut self,
        change: Change,
        now_ms: i64,
        group: &mut Group,
    ) -> Result<Committed, LogError> {
        match change {
            Change::Apply(prepared) => return self.apply(prepared, now_ms, group),
            Change::Trim { partition, before } => self.trim(&partition, before, group),
            Change::Erase { partition, keys, to, bytes } => {
                group.writes.extend(keys.into_iter().map(Write::Delete));
                if let Some(open) = self.tails.get_mut(&partition) {
                    open.tail.erased = open.tail.erased.max(to);
                    open.tail.bytes_erased += bytes;
                    group.writes.push(Write::Put(keys::tail(partition), open.tail.encode()));
                    // An append of the same group puts its copy of the tail behind this one.
                    if let Some((_, tail)) = group.tails.get_mut(&partition) {
                        *tail = open.tail;
                    }
                }
            }
            Change::Know { partitions } => {
                let known = partitions.into_iter().map(|partition| {
                    let tail = self.open_tail(partition.id).tail;
                    (partition, tail)
                });
                group.known.extend(known);
            }
            Change::Compact { partition, replaced, cleaned } => {
                self.compact(&partition, replaced, cleaned, group);
            }
            Change::Clear { partition, keys } => {
                self.tails.remove(&partition);
                self.producers.retain(|(of, _), _| *of != partition);
                group.writes.extend(keys.into_iter().map(Write::Delete));
            }
            Change::Expire { producers, before_ms } => self.expire(producers, before_ms, group),
        }
        Ok(Committed { base_offsets: Vec::new(), duplicate: false })
    }

    /// Puts the marks of a whole group, each once, behind its records.
    pub(super) fn finish(&self, group: &mut Group) {
        let tails = group.tails.iter().map(|(id, (_, tail))| (keys::tail(*id), tail.encode()));
        group.writes.extend(tails.map(|(key, value)| Write::Put(key, value)));
        for key in std::mem::take(&mut group.producers) {
            if let Some(Some(producer)) = self.producers.get(&key) {
                group.writes.push(Write::Put(keys::producer(key.0, key.1), producer.encode()));
            }
        }
        for key in std::mem::take(&mut group.edges) {
            if let Some(edge) = self.edges.get(&key) {
                group.writes.push(Write::Put(keys::edge(&key.0, key.1), edge.encode()));
            }
        }
    }

    fn apply(
        &mut self,
        prepared: Prepared,
        now_ms: i64,
        group: &mut Group,
    ) -> Result<Committed, LogError> {
        let mut draft = Draft::default();
        if let Guard::Edge { edge, epoch, seq, count, prints, connection } = &prepared.guard {
            let key = (Arc::clone(edge), *epoch);
            let mut known = self.edges.get(&key).cloned().unwrap_or_default();
            let verdict = guard::check_edge(&known, *seq, *count, prints, *connection);
            if let (Err(LogError::EdgeClash), Some(known)) = (&verdict, self.edges.get_mut(&key)) {
                known.refuse(*connection);
            }
            if let Verdict::Repeat(()) = verdict? {
                return Ok(Committed { base_offsets: Vec::new(), duplicate: true });
            }
            known.appended(*count, prints, now_ms);
            draft.edge = Some((key, known));
        }
        let appends = prepared.appends.len();
        for append in prepared.appends {
            self.append(append, &prepared.guard, now_ms, &mut draft)?;
        }
        if appends > 0 && draft.repeats == appends {
            return Ok(Committed { base_offsets: draft.base_offsets, duplicate: true });
        }
        draft.writes.extend(prepared.writes);
        if let Some(index) = prepared.index {
            let writes = index(&draft.base_offsets);
            check_keys(&writes)?;
            draft.writes.extend(writes);
        }
        let base_offsets = self.accept(draft, group);
        Ok(Committed { base_offsets, duplicate: false })
    }

    fn append(
        &self,
        append: PreparedAppend,
        guard: &Guard,
        now_ms: i64,
        draft: &mut Draft,
    ) -> Result<(), LogError> {
        let PreparedAppend { partition, stream, mut batch } = append;
        let id = partition.id;
        if partition.marks().gone {
            return Err(LogError::PartitionNotFound(stream.name.clone(), id.index()));
        }
        if stream.config.log_append_time {
            batch = batch.with_append_time(now_ms);
        }
        let header = batch.header();
        let mut open = draft.tails.get(&id).copied().unwrap_or_else(|| self.open_tail(id));
        let base = open.tail.next;
        if *guard == Guard::Producer && header.producer_id >= 0 {
            let key = (id, header.producer_id);
            let known = draft.producers.get(&key).or_else(|| self.producers.get(&key)?.as_ref());
            let (epoch, first) = (header.producer_epoch, header.base_sequence);
            match guard::check_producer(known, key.1, epoch, first, header.count)? {
                Verdict::Repeat(offset) => {
                    draft.base_offsets.push(offset);
                    draft.repeats += 1;
                    return Ok(());
                }
                Verdict::Append => {
                    let last = guard::advance(first, header.count - 1);
                    let mut producer = known.cloned().unwrap_or(Producer::new(epoch, now_ms));
                    producer.appended(epoch, SentBatch { first, last, offset: base }, now_ms);
                    draft.producers.insert(key, producer);
                }
            }
        }
        if open.unindexed >= INDEX_EVERY_BYTES {
            let entry = IndexEntry {
                max_timestamp_ms: open.tail.max_timestamp_ms,
                bytes: open.tail.bytes_appended,
            };
            draft.writes.push(Write::Put(ByOffset::Index.key(id, base), entry.encode()));
            open.unindexed = 0;
        }
        let size = batch.bytes().len() as u64;
        let last = base + i64::from(header.last_offset_delta);
        open.tail.next = last + 1;
        open.tail.max_timestamp_ms = open.tail.max_timestamp_ms.max(header.max_timestamp_ms);
        open.tail.bytes_appended += size;
        open.unindexed += size;
        draft.tails.insert(id, open);
        let batch = batch.at_offset(base, 0);
        draft.writes.push(Write::Put(ByOffset::Records.key(id, last), batch.bytes().clone()));
        draft.base_offsets.push(base);
        draft.batches.push((partition, batch));
        Ok(())
    }

    fn accept(&mut self, draft: Draft, group: &mut Group) -> Vec<Offset> {
        for (partition, _) in &draft.batches {
            if let Some(open) = draft.tails.get(&partition.id) {
                self.tails.insert(partition.id, *open);
                group.tails.insert(partition.id, (Arc::clone(partition), open.tail));
            }
        }
        for (key, producer) in draft.producers {
            self.producers.insert(key, Some(producer));
            group.producers.insert(key);
        }
        if let Some((key, edge)) = draft.edge {
            self.edges.insert(key.clone(), edge);
            group.edges.insert(key);
        }
        group.batches.extend(draft.batches);
        group.writes.extend(draft.writes);
        draft.base_offsets
    }

    fn trim(&mut self, partition: &Arc<Partition>, before: Offset, group: &mut Group) {
        let mut open = self.open_tail(partition.id);
        // Not beyond what is durable: a reader may be waiting there.
        let start = before.min(partition.marks().high);
        if start > open.tail.start {
            open.tail.start = start;
            self.tails.insert(partition.id, open);
            group.tails.insert(partition.id, (Arc::clone(partition), open.tail));
        }
    }

    fn compact(
        &mut self,
        partition: &Arc<Partition>,
        replaced: Vec<Replaced>,
        cleaned: Cleaned,
        group: &mut Group,
    ) {
        // Deleted meanwhile.
        let Some(open) = self.tails.get_mut(&partition.id) else { return };
        let key = |offset| ByOffset::Records.key(partition.id, offset);
        // What lies below the start is erased meanwhile, and must not come back.
        for Replaced { last, bytes, left } in
            replaced.into_iter().filter(|old| old.last >= open.tail.start)
        {
            if left.last().is_none_or(|batch| batch.last_offset() != last) {
                group.writes.push(Write::Delete(key(last)));
            }
            let mut stay = 0;
            for batch in left.iter().filter(|batch| batch.last_offset() >= open.tail.start) {
                stay += batch.bytes().len() as u64;
                let write = Write::Put(key(batch.last_offset()), batch.bytes().clone());
                group.writes.push(write);
            }
            open.tail.bytes_erased += bytes.saturating_sub(stay);
            // Many small batches may be larger than one.
            open.tail.bytes_appended += stay.saturating_sub(bytes);
        }
        open.tail.cleaned = cleaned;
        group.tails.insert(partition.id, (Arc::clone(partition), open.tail));
    }

    fn expire(&mut self, producers: Vec<ProducerKey>, before_ms: i64, group: &mut Group) {
        for key in producers {
            let seen_ms = self.producers.get(&key).and_then(|p| p.as_ref()).map(|p| p.seen_ms);
            if seen_ms.is_some_and(|seen_ms| seen_ms < before_ms) {
                self.producers.insert(key, None);
                group.producers.remove(&key);
                group.writes.push(Write::Delete(keys::producer(key.0, key.1)));
            }
        }
    }

    fn open_tail(&self, id: PartitionId) -> OpenTail {
        let new = OpenTail { tail: Tail::default(), unindexed: u64::MAX };
        self.tails.get(&id).copied().unwrap_or(new)
    }
}

/// A head writes its own keys only.
pub(super) fn check_keys(writes: &[Write]) -> Result<(), LogError> {
    let foreign = writes.iter().any(|write| match write {
        Write::Put(key, _) | Write::Delete(key) => !keys::is_state(key),
    });
    if foreign {
        return Err(LogError::BadConfig("a write outside of the heads' key spaces".into()));
    }
    Ok(())
}
