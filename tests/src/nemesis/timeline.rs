//! PURE. When acknowledgements came: whether a run was busy enough to count, and how long nothing was written after a fault.
//!
//! In: times in ms since the run began. Out: rates and gaps. Not here: what was acknowledged (`history`).

use std::collections::BTreeMap;

/// A lane counts after a fault if it was acknowledged something so shortly before, ms.
const BEFORE_MS: u64 = 2_000;

/// Acknowledgements by lane: a partition of one producer, a connection. Edges acknowledge by themselves and are none.
#[derive(Debug, Default)]
pub struct Timeline {
    lanes: BTreeMap<String, Vec<u64>>,
}

impl Timeline {
    /// There is such a lane; until its first acknowledgement it is silent.
    pub fn expect(&mut self, lane: String) {
        self.lanes.entry(lane).or_default();
    }

    /// An acknowledgement came; not earlier than any before it in its lane.
    pub fn acked(&mut self, lane: &str, at_ms: u64) {
        match self.lanes.get_mut(lane) {
            Some(acks) => acks.push(at_ms),
            None => drop(self.lanes.insert(lane.to_owned(), vec![at_ms])),
        }
    }

    /// Acknowledged between the two, a second.
    pub fn rate(&self, from_ms: u64, to_ms: u64) -> u64 {
        let within =
            |acks: &Vec<u64>| acks.iter().filter(|at| (from_ms..to_ms).contains(at)).count();
        let acks: usize = self.lanes.values().map(within).sum();
        acks as u64 * 1_000 / to_ms.saturating_sub(from_ms).max(1)
    }

    /// The longest time without an acknowledgement between the two, in the lane where it was longest.
    pub fn gap(&self, from_ms: u64, to_ms: u64) -> (u64, &str) {
        let mut longest = (0, "");
        for (lane, acks) in &self.lanes {
            let recent = from_ms.saturating_sub(BEFORE_MS)..from_ms;
            if !acks.iter().any(|at| recent.contains(at)) {
                continue;
            }
            let mut last = from_ms;
            let within = acks.iter().copied().filter(|at| (from_ms..to_ms).contains(at));
            for at in within.chain([to_ms]) {
                longest = longest.max((at - last, lane));
                last = at;
            }
        }
        longest
    }

    /// Lanes without an acknowledgement since then.
    pub fn silent_since(&self, ms: u64) -> Vec<String> {
        let silent = |acks: &Vec<u64>| acks.last().is_none_or(|last| *last < ms);
        self.lanes.iter().filter(|(_, acks)| silent(acks)).map(|(lane, _)| lane.clone()).collect()
    }
}

/// Median, 99th of a hundred, and largest.
pub fn spread(mut times: Vec<u64>) -> [u64; 3] {
    times.sort_unstable();
    let at = |percent: usize| times.get((times.len() * percent / 100).min(times.len().max(1) - 1));
    [at(50), at(99), at(100)].map(|time| time.copied().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_lane_says_how_long_nothing_was_written() {
        let mut timeline = Timeline::default();
        timeline.expect("never".to_owned());
        (0..100).for_each(|at| timeline.acked("quick", at * 100));
        for at in [2_900, 7_000, 9_900] {
            timeline.acked("slow", at);
        }
        timeline.acked("gone before", 1);
        assert_eq!(timeline.gap(3_000, 8_000), (4_000, "slow"));
        assert_eq!(timeline.gap(5_000, 8_000), (100, "quick"));
        assert_eq!(timeline.rate(0, 1_000), 11);
        assert_eq!(timeline.silent_since(5_000), ["gone before", "never"]);
        assert_eq!(spread((1..=200).collect()), [101, 199, 200]);
        assert_eq!(spread(Vec::new()), [0, 0, 0]);
    }
}
