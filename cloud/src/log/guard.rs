//! PURE. What makes an append apply once: the rules for Kafka's idempotent producer and for edges.
//!
//! In: what is remembered, what was sent. Out: append, or a repeat, or the refusal. Change here: the rules.
//! Not here: where it is remembered (`stored`, `keys`), when it is asked (`decide`).

use std::collections::VecDeque;

use super::{LogError, Offset};

/// Kafka remembers this many batches of a producer: its clients have at most 5 requests in flight.
const REMEMBERED: usize = 5;

/// Batches of an edge's epoch whose content is remembered, so that what is sent again after a lost connection is known to be
/// the same: no edge may have more under way. 8 bytes each, in the same commit as the mark.
pub(crate) const EDGE_BATCHES: u16 = 64;

/// Connections of an edge's epoch of which nothing more is taken. Each is ended; an edge has one at a time.
const REFUSED: usize = 8;

/// Sequences run from 0 to this, then from 0 again.
const LAST_SEQUENCE: i32 = i32::MAX;

/// What to do with a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict<T> {
    /// It is the next one.
    Append,
    /// It was applied before.
    Repeat(T),
}

/// One batch of a producer, as appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SentBatch {
    pub first: i32,
    pub last: i32,
    pub offset: Offset,
}

/// What is known of one producer in one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Producer {
    pub epoch: i16,
    /// When its last batch came, ms since 1970: forgotten a while after.
    pub seen_ms: i64,
    sent: Vec<SentBatch>,
}

impl Producer {
    pub(super) fn new(epoch: i16, seen_ms: i64) -> Self {
        Self { epoch, seen_ms, sent: Vec::with_capacity(REMEMBERED) }
    }

    /// Oldest first.
    pub(super) fn sent(&self) -> &[SentBatch] {
        &self.sent
    }

    /// Remembers a batch, and forgets the oldest if there are too many.
    pub(super) fn push(&mut self, batch: SentBatch) {
        if self.sent.len() >= REMEMBERED {
            self.sent.remove(0);
        }
        self.sent.push(batch);
    }

    /// After an append that [`check_producer`] allowed.
    pub(super) fn appended(&mut self, epoch: i16, batch: SentBatch, now_ms: i64) {
        if epoch != self.epoch {
            self.sent.clear();
        }
        self.epoch = epoch;
        self.seen_ms = now_ms;
        self.push(batch);
    }
}

/// The sequence `by` after `sequence`.
pub(super) fn advance(sequence: i32, by: i32) -> i32 {
    let sum = i64::from(sequence) + i64::from(by);
    (sum % (i64::from(LAST_SEQUENCE) + 1)) as i32
}

/// Whether producer `id` may append `[first, first + count)` in `epoch`. An unknown producer may start anywhere: its
/// memory may have expired here.
pub(super) fn check_producer(
    known: Option<&Producer>,
    id: i64,
    epoch: i16,
    first: i32,
    count: i32,
) -> Result<Verdict<Offset>, LogError> {
    let Some(known) = known else { return Ok(Verdict::Append) };
    if epoch < known.epoch {
        let current = known.epoch;
        return Err(LogError::StaleProducerEpoch { producer: id, got: epoch, current });
    }
    if epoch > known.epoch {
        return match first {
            0 => Ok(Verdict::Append),
            got => Err(LogError::OutOfOrderSequence { producer: id, got, expected: 0 }),
        };
    }
    let last = advance(first, count - 1);
    if let Some(batch) = known.sent.iter().find(|b| b.first == first && b.last == last) {
        return Ok(Verdict::Repeat(batch.offset));
    }
    match known.sent.last().map(|batch| advance(batch.last, 1)) {
        Some(expected) if expected != first => {
            Err(LogError::OutOfOrderSequence { producer: id, got: first, expected })
        }
        Some(_) | None => Ok(Verdict::Append),
    }
}

/// What is known of one epoch of an edge.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Edge {
    /// The next sequence.
    pub next: u64,
    /// When its last range came, ms since 1970. For people and for naming the newest first; nothing is decided by it.
    pub seen_ms: i64,
    /// The last connections that brought other records under known sequences. They sent more before they could be told, and
    /// of those some may happen to be next: they are refused too, or the sender, who begins anew before them, would bring them
    /// twice. Only in memory: connections end with their node.
    pub refused: VecDeque<u64>,
    /// What came last, oldest first; the last one ends at `next`.
    recent: VecDeque<Seen>,
}

/// A range of sequences that was appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    pub count: u32,
    /// [`print`] of its records; 0: not known.
    pub print: u32,
}

impl Edge {
    pub(super) fn new(next: u64) -> Self {
        Self { next, ..Self::default() }
    }

    /// Nothing more is taken from this connection.
    pub(super) fn refuse(&mut self, connection: u64) {
        if self.refused.len() >= REFUSED {
            self.refused.pop_front();
        }
        self.refused.push_back(connection);
    }

    /// Oldest first.
    pub(super) fn recent(&self) -> impl Iterator<Item = &Seen> {
        self.recent.iter()
    }

    /// Remembers a range that ends at `next`.
    pub(super) fn push(&mut self, seen: Seen) {
        if self.recent.len() >= usize::from(EDGE_BATCHES) {
            self.recent.pop_front();
        }
        self.recent.push_back(seen);
    }

    /// After an append of `[next, next + count)`.
    pub(super) fn appended(&mut self, count: u32, prints: &[u32], now_ms: i64) {
        self.push(Seen { count, print: print(self.next, prints) });
        self.next += u64::from(count);
        self.seen_ms = now_ms;
    }

    /// Whether one of the remembered ranges that lie in `[seq, ..)` of `prints` held other records.
    fn differs(&self, seq: u64, prints: &[u32]) -> bool {
        let mut start = self.next;
        self.recent.iter().rev().any(|seen| {
            start = start.saturating_sub(u64::from(seen.count));
            let from = start.checked_sub(seq).and_then(|from| usize::try_from(from).ok());
            let range = from.map(|from| from..from.saturating_add(seen.count as usize));
            let sent = range.and_then(|range| prints.get(range));
            seen.print != 0 && sent.is_some_and(|sent| print(start, sent) != seen.print)
        })
    }
}

/// One number for the records from `seq` on. A sum, so that ranges cut in another way can still be compared; each record
/// is turned by its place, so that order counts.
fn print(seq: u64, prints: &[u32]) -> u32 {
    let turned = (seq..).zip(prints).map(|(seq, print)| print.rotate_left((seq % 32) as u32));
    turned.fold(0, u32::wrapping_add)
}

/// The cloud rule (DESIGN 6) for `[seq, seq + count)`; an unknown epoch starts at 0.
///
/// A range of which only the beginning is known is refused as a gap at `next`: an edge resends its batches byte for byte, so
/// such a range never comes from one, and cutting it would append bytes that no one sent. The sender goes on from `next`.
///
/// Known sequences with other records mean that two processes go on from one memory (a machine's snapshot resumed
/// twice): calling that a repeat would lose the records of one of them. Ranges longer ago than is remembered, and ranges
/// that lie inside a remembered one, are not compared. What such a process sent behind them is a clash whatever it is.
pub(super) fn check_edge(
    known: &Edge,
    seq: u64,
    count: u32,
    prints: &[u32],
    connection: u64,
) -> Result<Verdict<()>, LogError> {
    if known.refused.contains(&connection) {
        return Err(LogError::EdgeClash);
    }
    let Some(end) = seq.checked_add(u64::from(count)) else {
        return Err(LogError::EdgeGap { expected: known.next });
    };
    if seq == known.next {
        Ok(Verdict::Append)
    } else if known.differs(seq, prints) {
        Err(LogError::EdgeClash)
    } else if end <= known.next {
        Ok(Verdict::Repeat(()))
    } else {
        Err(LogError::EdgeGap { expected: known.next })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(batches: &[(i32, i32, Offset)]) -> Producer {
        let mut producer = Producer::new(2, 0);
        for &(first, last, offset) in batches {
            producer.push(SentBatch { first, last, offset });
        }
        producer
    }

    #[test]
    fn producers_repeat_append_or_are_refused() {
        let known = sent(&[(0, 9, 100), (10, 19, 110), (20, 20, 120)]);
        let order = |got, expected| LogError::OutOfOrderSequence { producer: 7, got, expected };
        let cases = [
            (2, 21, 5, Ok(Verdict::Append)),
            (2, 0, 10, Ok(Verdict::Repeat(100))),
            (2, 20, 1, Ok(Verdict::Repeat(120))),
            (2, 22, 1, Err(order(22, 21))),
            (2, 0, 9, Err(order(0, 21))),
            (2, 15, 10, Err(order(15, 21))),
            (3, 0, 1, Ok(Verdict::Append)),
            (3, 21, 1, Err(order(21, 0))),
            (1, 21, 1, Err(LogError::StaleProducerEpoch { producer: 7, got: 1, current: 2 })),
        ];
        for (epoch, first, count, expected) in cases {
            let answer = check_producer(Some(&known), 7, epoch, first, count);
            assert_eq!(format!("{answer:?}"), format!("{expected:?}"), "{epoch} {first} {count}");
        }
        assert_eq!(check_producer(None, 7, 9, 55, 1).unwrap(), Verdict::Append);
    }

    #[test]
    fn the_sixth_batch_pushes_the_first_out() {
        let mut known = sent(&[(0, 0, 0), (1, 1, 1), (2, 2, 2), (3, 3, 3), (4, 4, 4)]);
        known.appended(2, SentBatch { first: 5, last: 5, offset: 5 }, 1);
        assert!(check_producer(Some(&known), 7, 2, 0, 1).is_err());
        assert_eq!(check_producer(Some(&known), 7, 2, 1, 1).unwrap(), Verdict::Repeat(1));
    }

    #[test]
    fn a_new_epoch_forgets_the_old_ones_batches() {
        let mut known = sent(&[(0, 9, 100)]);
        known.appended(3, SentBatch { first: 0, last: 0, offset: 110 }, 1);
        assert_eq!(known.sent().len(), 1);
        assert!(check_producer(Some(&known), 7, 3, 0, 10).is_err());
    }

    #[test]
    fn sequences_wrap_at_two_to_the_31() {
        assert_eq!(advance(i32::MAX, 1), 0);
        assert_eq!(advance(i32::MAX - 1, 5), 3);
        let known = sent(&[(i32::MAX - 1, 3, 40)]);
        assert_eq!(check_producer(Some(&known), 7, 2, 4, 1).unwrap(), Verdict::Append);
        let repeat = check_producer(Some(&known), 7, 2, i32::MAX - 1, 6).unwrap();
        assert_eq!(repeat, Verdict::Repeat(40));
    }

    #[test]
    fn edges_append_at_next_only() {
        let known = Edge::new(100);
        let cases: &[(u64, u32, &str)] = &[
            (100, 1, "Ok(Append)"),
            (100, 0, "Ok(Append)"),
            (0, 100, "Ok(Repeat(()))"),
            (99, 1, "Ok(Repeat(()))"),
            (99, 2, "Err(EdgeGap { expected: 100 })"),
            (101, 1, "Err(EdgeGap { expected: 100 })"),
            (u64::MAX, 1, "Err(EdgeGap { expected: 100 })"),
        ];
        for (seq, count, expected) in cases {
            assert_eq!(
                format!("{:?}", check_edge(&known, *seq, *count, &[], 1)),
                *expected,
                "{seq} {count}"
            );
        }
        assert_eq!(check_edge(&Edge::default(), 0, 3, &[], 1).unwrap(), Verdict::Append);
        assert!(check_edge(&Edge::default(), 1, 3, &[], 1).is_err());
    }

    #[test]
    fn a_repeat_with_other_records_is_a_clash_however_the_range_is_cut() {
        let mut known = Edge::default();
        known.appended(2, &[10, 11], 0);
        known.appended(1, &[12], 0);
        known.appended(2, &[], 0);
        let cases: &[(u64, &[u32], &str)] = &[
            (0, &[10, 11], "Ok(Repeat(()))"),
            (0, &[11, 10], "Err(EdgeClash)"),
            (0, &[10, 99], "Err(EdgeClash)"),
            (0, &[10, 11, 12], "Ok(Repeat(()))"),
            (0, &[10, 11, 99], "Err(EdgeClash)"),
            (1, &[99, 12], "Ok(Repeat(()))"),
            (1, &[11, 99], "Err(EdgeClash)"),
            (2, &[99, 0, 0, 0], "Err(EdgeClash)"),
            (2, &[12, 0, 0, 0], "Err(EdgeGap { expected: 5 })"),
            // A declared gap is like anything, and so is what lies inside of a remembered range.
            (3, &[99, 99], "Ok(Repeat(()))"),
            (0, &[99], "Ok(Repeat(()))"),
        ];
        for (seq, prints, expected) in cases {
            let answer = check_edge(&known, *seq, prints.len() as u32, prints, 1);
            assert_eq!(format!("{answer:?}"), *expected, "{seq} {prints:?}");
        }
        for _ in 0..EDGE_BATCHES {
            known.appended(1, &[7], 0);
        }
        let again = check_edge(&known, 0, 2, &[99, 99], 1);
        assert_eq!(again.unwrap(), Verdict::Repeat(()), "forgotten");
        known.refuse(1);
        known.refuse(3);
        assert!(check_edge(&known, known.next, 1, &[1], 1).is_err(), "sent behind a clash");
        assert_eq!(check_edge(&known, known.next, 1, &[1], 2).unwrap(), Verdict::Append);
    }
}
