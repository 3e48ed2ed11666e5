//! PURE. Compaction by key: which records of a partition go, when a pass is worth it, and what is left of a batch.
//!
//! A pass notes the latest offset of each key in the part that came since the last pass, as many keys as memory may hold; then
//! every earlier record of those keys goes, from the start on. In: records, the time, what was done before. Out: verdicts.
//! Not here: reading and writing (`compaction`).

use std::collections::HashMap;

use tributary_shared::record::{Batch, BatchBuilder, BatchError, Producer, RawRecord, Unpacked};

use super::{
    Offset,
    stored::{Cleaned, Tail},
};

/// 128 bits of a key's SHA-256: two keys never meet, whoever chose them.
pub(super) type KeyHash = [u8; 16];

/// What is judged of a record.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    pub offset: Offset,
    /// `None`: it came before the stream was compacted, and stays.
    pub key: Option<KeyHash>,
    /// It has no value: the key is deleted.
    pub tombstone: bool,
}

impl Seen {
    pub(super) fn of(record: &RawRecord<'_>) -> Self {
        let (offset, tombstone) = (record.offset, record.value.is_none());
        Self { offset, key: record.key.and_then(hash), tombstone }
    }
}

fn hash(key: &[u8]) -> Option<KeyHash> {
    let digest = ring::digest::digest(&ring::digest::SHA256, key);
    digest.as_ref().first_chunk().copied()
}

/// The latest offsets of some keys.
pub(super) struct Latest {
    offsets: HashMap<KeyHash, Offset>,
    limit: usize,
}

impl Latest {
    pub(super) fn new(limit: usize) -> Self {
        Self { offsets: HashMap::new(), limit }
    }

    /// Whether that many more keys fit; into an empty one always, so that a pass gets on.
    pub(super) fn has_room(&self, more: usize) -> bool {
        self.offsets.is_empty() || self.offsets.len() + more <= self.limit
    }

    /// Records come in order.
    pub(super) fn note(&mut self, seen: &Seen) {
        if let Some(key) = seen.key {
            self.offsets.insert(key, seen.offset);
        }
    }
}

/// What a pass removes.
pub(super) struct Pass {
    pub latest: Latest,
    /// The partition's last record: it stays, so that the end of the partition has a batch.
    pub last: Offset,
    /// Records without a value go below this.
    pub tombstones_to: Offset,
}

impl Pass {
    pub(super) fn removes(&self, seen: &Seen) -> bool {
        let Some(key) = seen.key else { return false };
        let replaced = self.latest.offsets.get(&key).is_some_and(|latest| *latest > seen.offset);
        let forgotten = seen.tombstone && seen.offset < self.tombstones_to;
        seen.offset < self.last && (replaced || forgotten)
    }
}

/// Whether records without a value that wait may go at `now_ms`.
pub(super) fn tombstones_due(cleaned: &Cleaned, now_ms: i64, retention_ms: i64) -> bool {
    cleaned.tombstones > 0 && now_ms >= cleaned.tombstones_ms.saturating_add(retention_ms)
}

/// Whether enough came since the last pass.
pub(super) fn is_dirty(tail: &Tail, percent: u64) -> bool {
    let came = tail.bytes_appended.saturating_sub(tail.cleaned.bytes);
    let there = tail.bytes_appended.saturating_sub(tail.bytes_erased);
    tail.next > tail.cleaned.to && came.saturating_mul(100) >= there.saturating_mul(percent)
}

/// What is remembered after a pass up to `to`, in which `tombstones` stayed; `due` = those that waited went.
pub(super) fn after(
    cleaned: Cleaned,
    to: Offset,
    tombstones: u64,
    due: bool,
    now_ms: i64,
) -> Cleaned {
    let mut after = Cleaned { to, gaps: cleaned.gaps.max(to), tombstones, ..cleaned };
    // Those that came in this pass wait from now on; behind some that wait already, from when those go.
    if due || cleaned.tombstones == 0 {
        after.tombstones_to = to;
        after.tombstones_ms = now_ms;
    }
    after
}

/// What is left of a batch; `None`: all of it. Each run of records that follow each other is a batch of its own: a reader may
/// count a record's offset from its batch's.
pub(super) fn left_of(
    batch: &Batch,
    unpacked: &Unpacked,
    mut removes: impl FnMut(&Seen) -> bool,
) -> Result<Option<Vec<Batch>>, BatchError> {
    let mut runs: Vec<(Offset, BatchBuilder)> = Vec::new();
    let mut next = None;
    let mut removed = false;
    for raw in unpacked {
        let raw = raw?;
        if removes(&Seen::of(&raw)) {
            removed = true;
            continue;
        }
        if next != Some(raw.offset) {
            runs.push((raw.offset, BatchBuilder::new()));
        }
        next = Some(raw.offset + 1);
        if let Some((_, run)) = runs.last_mut() {
            run.push(&unpacked.record(&raw)?);
        }
    }
    if !removed {
        return Ok(None);
    }
    let header = batch.header();
    let finish = |(base, run): (Offset, BatchBuilder)| {
        let delta = i32::try_from(base - header.base_offset).unwrap_or_default();
        let producer = (header.producer_id >= 0).then_some(Producer {
            id: header.producer_id,
            epoch: header.producer_epoch,
            base_sequence: header.base_sequence.wrapping_add(delta) & i32::MAX,
        });
        let run = run.finish(batch.compression()?, producer)?;
        let run = if header.is_log_append_time() {
            run.with_append_time(header.max_timestamp_ms)
        } else {
            run
        };
        Ok(run.at_offset(base, header.leader_epoch))
    };
    runs.into_iter().map(finish).collect::<Result<_, _>>().map(Some)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// (offset, key, tombstone), compacted up to a frontier by passes of at most `limit` keys.
    fn compact(log: &mut Vec<(Offset, u8, bool)>, frontier: Offset, limit: usize, last: Offset) {
        let mut from = 0;
        let seen = |(offset, key, tombstone): &(Offset, u8, bool)| Seen {
            offset: *offset,
            key: Some([*key; 16]),
            tombstone: *tombstone,
        };
        while from < frontier {
            let mut latest = Latest::new(limit);
            let dirty = log.iter().filter(|r| r.0 >= from && r.0 < frontier);
            let mut to = frontier;
            for record in dirty {
                if !latest.has_room(1) {
                    to = record.0;
                    break;
                }
                latest.note(&seen(record));
            }
            let pass = Pass { latest, last, tombstones_to: 0 };
            log.retain(|record| record.0 >= to || !pass.removes(&seen(record)));
            from = to;
        }
    }

    #[test]
    fn after_compaction_each_key_has_its_latest_record_and_a_second_time_removes_nothing() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut below = |n: u64| {
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n
        };
        for _ in 0..500 {
            let count = 1 + below(200) as Offset;
            let keys = 1 + below(30);
            let before: Vec<_> =
                (0..count).map(|n| (n, below(keys) as u8, below(5) == 0)).collect();
            let frontier = below(count as u64 + 1) as Offset;
            let limit = 1 + below(20) as usize;
            let mut log = before.clone();
            compact(&mut log, frontier, limit, count - 1);

            let of_key: BTreeMap<u8, Offset> =
                before.iter().filter(|r| r.0 < frontier).map(|r| (r.1, r.0)).collect();
            let expected: Vec<_> = before
                .iter()
                .filter(|r| r.0 >= frontier || of_key.get(&r.1) == Some(&r.0))
                .copied()
                .collect();
            assert_eq!(log, expected, "frontier {frontier} of {count}, {limit} keys a pass");
            compact(&mut log, frontier, limit, count - 1);
            assert_eq!(log, expected);
        }
    }

    #[test]
    fn a_record_without_a_value_goes_only_when_it_has_waited_and_is_not_the_last() {
        let seen = |offset, tombstone| Seen { offset, key: Some([1; 16]), tombstone };
        let pass = Pass { latest: Latest::new(1), last: 5, tombstones_to: 6 };
        assert!(pass.removes(&seen(4, true)) && !pass.removes(&seen(4, false)));
        assert!(!pass.removes(&seen(5, true)) && !pass.removes(&seen(6, true)));
        let first = after(Cleaned::default(), 10, 2, false, 1000);
        assert_eq!((first.tombstones_to, first.tombstones_ms), (10, 1000));
        assert!(!tombstones_due(&first, 1049, 50) && tombstones_due(&first, 1050, 50));
        let second = after(first, 20, 3, false, 1040);
        assert_eq!((second.tombstones_to, second.tombstones_ms), (10, 1000));
        let third = after(second, 20, 1, true, 1050);
        assert_eq!((third.tombstones_to, third.tombstones_ms), (20, 1050));
    }
}
