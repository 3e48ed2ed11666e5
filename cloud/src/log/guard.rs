//! PURE. What makes an append apply once: the rules for Kafka's idempotent producer and for edges.
//!
//! In: what is remembered, what was sent. Out: append, or a repeat, or the refusal. Change here: the rules.
//! Not here: where it is remembered (`stored`, `keys`), when it is asked (`decide`).

use super::{LogError, Offset};

/// Kafka remembers this many batches of a producer: its clients have at most 5 requests in flight.
const REMEMBERED: usize = 5;

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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Edge {
    /// The next sequence.
    pub next: u64,
}

/// The cloud rule (DESIGN 6) for `[seq, seq + count)`; an unknown epoch starts at 0.
///
/// A range of which only the beginning is known is refused as a gap at `next`: an edge resends its batches byte for byte, so
/// such a range never comes from one, and cutting it would append bytes that no one sent. The sender goes on from `next`.
pub(super) fn check_edge(known: Edge, seq: u64, count: u32) -> Result<Verdict<()>, LogError> {
    let Some(end) = seq.checked_add(u64::from(count)) else {
        return Err(LogError::EdgeGap { expected: known.next });
    };
    if seq == known.next {
        Ok(Verdict::Append)
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
        let known = Edge { next: 100 };
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
                format!("{:?}", check_edge(known, *seq, *count)),
                *expected,
                "{seq} {count}"
            );
        }
        assert_eq!(check_edge(Edge::default(), 0, 3).unwrap(), Verdict::Append);
        assert!(check_edge(Edge::default(), 1, 3).is_err());
    }
}
