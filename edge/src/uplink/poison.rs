//! A batch that is refused for good: which of its messages is it? Pure.
//!
//! ```text
//! refused [s, e)    -> a cut in the middle, each part travels alone -> ... -> refused [q, q+1) -> given up alone
//! ```
//! Everything else of the batch arrives once and in order, because each part waits for the answer to the part before. A
//! cloud that refuses everything is wrongly set up, not fed with poison: after `give_ups_per_hour` single messages the rest
//! waits, so that a gateway is not emptied into its quarantine.
//!
//! In: what was refused. Out: where to cut, what to give up. Not here: what a code means (`link::reasons`).

use std::{
    collections::BTreeMap,
    ops::Range,
    time::{Duration, Instant},
};

/// Epochs that are searched at once: one a stream of the lane.
const SEARCHES: usize = 4;

/// A range that holds a message that is refused.
#[derive(Debug)]
struct Search {
    range: Range<u64>,
    /// Rising; inside the range.
    cuts: Vec<u64>,
}

/// What to do about a refusal.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Its parts are to be sent.
    Search,
    /// It is one message: it is given up.
    GiveUp,
    /// Too many were given up: not before then.
    Wait(Instant),
}

/// All that is known of poison in a lane.
#[derive(Debug)]
pub(super) struct Poison {
    searches: BTreeMap<i64, Search>,
    /// Time that one give-up costs, and how much may be owed.
    each: Duration,
    most: Duration,
    /// All that was given up is paid for then.
    paid: Option<Instant>,
}

impl Poison {
    pub(super) fn new(give_ups_per_hour: u32) -> Self {
        let each = Duration::from_hours(1) / give_ups_per_hour.max(1);
        let most = each * (give_ups_per_hour.max(1) - 1);
        Self { searches: BTreeMap::new(), each, most, paid: None }
    }

    /// `range` was refused for good. `sure`: it was this upload and no other.
    pub(super) fn refused(
        &mut self,
        epoch: i64,
        range: Range<u64>,
        sure: bool,
        now: Instant,
    ) -> Verdict {
        if range.end - range.start == 1 && sure {
            let owed = self.paid.map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
            if owed > self.most {
                return Verdict::Wait(now + owed.saturating_sub(self.most));
            }
            self.paid = Some(now + owed + self.each);
            return Verdict::GiveUp;
        }
        if self.searches.len() >= SEARCHES && !self.searches.contains_key(&epoch) {
            // Only the epochs at the front of a stream are searched; what is found of others is found again.
            self.searches.pop_first();
        }
        let middle = range.start + (range.end - range.start) / 2;
        let search = self
            .searches
            .entry(epoch)
            .or_insert_with(|| Search { range: range.clone(), cuts: Vec::new() });
        search.range = search.range.start.min(range.start)..search.range.end.max(range.end);
        for cut in [range.start, middle, range.end] {
            if let Err(place) = search.cuts.binary_search(&cut) {
                search.cuts.insert(place, cut);
            }
        }
        Verdict::Search
    }

    /// The cloud has all of `epoch` before `next`.
    pub(super) fn confirmed(&mut self, epoch: i64, next: u64) {
        let Some(search) = self.searches.get_mut(&epoch) else { return };
        if next >= search.range.end {
            self.searches.remove(&epoch);
        } else {
            search.cuts.retain(|cut| *cut >= next);
        }
    }

    /// Where batches of the epoch begin.
    pub(super) fn cuts(&self, epoch: i64) -> &[u64] {
        self.searches.get(&epoch).map_or(&[], |search| &search.cuts)
    }

    /// What begins at `s` is to travel alone.
    pub(super) fn alone(&self, epoch: i64, s: u64) -> bool {
        self.searches.get(&epoch).is_some_and(|search| s < search.range.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends [0, n) of which `bad` are refused, as the cuts say; gives what was given up and how many uploads it took.
    fn search(n: u64, bad: &[u64]) -> (Vec<u64>, usize) {
        let mut poison = Poison::new(1000);
        let now = Instant::now();
        let (mut next, mut given_up, mut uploads) = (0, Vec::new(), 0);
        while next < n {
            let end = poison.cuts(7).iter().copied().find(|cut| *cut > next).unwrap_or(n);
            uploads += 1;
            if bad.iter().any(|b| (next..end).contains(b) && !given_up.contains(b)) {
                assert!(uploads == 1 || poison.alone(7, next));
                match poison.refused(7, next..end, true, now) {
                    Verdict::Search => continue,
                    Verdict::GiveUp => given_up.push(next),
                    Verdict::Wait(_) => panic!("waits"),
                }
            }
            next = end;
            poison.confirmed(7, next);
        }
        assert!(!poison.alone(7, n - 1) && poison.cuts(7).is_empty());
        (given_up, uploads)
    }

    #[test]
    fn one_of_many_is_found_in_few_steps() {
        for bad in [0, 1, 777, 1998, 1999] {
            let (given_up, uploads) = search(2000, &[bad]);
            assert_eq!(given_up, [bad]);
            assert!(uploads <= 24, "{uploads}");
        }
        assert_eq!(search(1, &[0]).0, [0]);
        assert_eq!(search(100, &[3, 4, 99]).0, [3, 4, 99]);
        assert_eq!(search(5, &[0, 1, 2, 3, 4]).0, [0, 1, 2, 3, 4]);
    }

    #[test]
    fn a_cloud_that_refuses_everything_gets_a_few_and_then_one_by_one() {
        let mut poison = Poison::new(60);
        let start = Instant::now();
        let give = |poison: &mut Poison, now| poison.refused(7, 5..6, true, now);
        for _ in 0..60 {
            assert_eq!(give(&mut poison, start), Verdict::GiveUp);
        }
        let Verdict::Wait(until) = give(&mut poison, start) else { panic!("goes on") };
        assert_eq!(until, start + Duration::from_mins(1));
        assert_eq!(give(&mut poison, until), Verdict::GiveUp);
        assert!(matches!(give(&mut poison, until), Verdict::Wait(_)));
    }

    #[test]
    fn what_was_perhaps_another_upload_is_sent_alone_before_it_is_given_up() {
        let mut poison = Poison::new(60);
        let now = Instant::now();
        assert_eq!(poison.refused(7, 5..6, false, now), Verdict::Search);
        assert!(poison.alone(7, 5) && !poison.alone(7, 6) && !poison.alone(8, 5));
        assert_eq!(poison.refused(7, 5..6, true, now), Verdict::GiveUp);
    }
}
