//! Who lives: what this node saw of the others' heartbeats, by its own monotonic clock. PURE.
//!
//! In: lists of heartbeats, each with the time at which it was asked for. Out: for how long a node's heartbeats have stood
//! still. Only time between two looks that succeeded counts, and of a long one only a part: a judge that slept, or whose store
//! did not answer, has seen nothing. Change here: what counts as silence. Not here: what follows from it (`member`).

use std::collections::BTreeMap;

use super::map::Incarnation;

/// See the module. Times are ms of one monotonic clock.
#[derive(Debug, Clone, Default)]
pub struct Judge {
    /// When the last look began.
    looked: Option<u64>,
    seen: BTreeMap<Incarnation, Seen>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    /// Number of the last heartbeat.
    last: u64,
    /// How long no other was seen.
    still: u64,
}

impl Judge {
    /// A look that began at `began` found these last heartbeats of `lives`; of those without any, none. Of the time since the
    /// look before counts `gap_max`.
    pub fn look(
        &mut self,
        began: u64,
        gap_max: u64,
        lives: impl IntoIterator<Item = Incarnation>,
        found: &BTreeMap<Incarnation, u64>,
    ) {
        let gap = self.looked.map_or(0, |looked| began.saturating_sub(looked)).min(gap_max);
        self.looked = Some(self.looked.map_or(began, |looked| looked.max(began)));
        let mut seen = BTreeMap::new();
        for life in lives {
            let last = found.get(&life).copied().unwrap_or(0);
            let now = match self.seen.get(&life) {
                // A list may be older than the one before: a lower number is no news.
                Some(before) if last <= before.last => {
                    Seen { last: before.last, still: before.still.saturating_add(gap) }
                }
                _ => Seen { last, still: 0 },
            };
            seen.insert(life, now);
        }
        self.seen = seen;
    }

    /// Forgets how long anybody was silent: this node could not say itself that it lives.
    pub fn doubt(&mut self) {
        self.looked = None;
        self.seen.clear();
    }

    /// For how long no heartbeat of `life` was seen, at the least, and the number of the last one.
    pub fn silence(&self, life: &Incarnation) -> Option<(u64, u64)> {
        self.seen.get(life).map(|seen| (seen.still, seen.last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn life(name: &str) -> Incarnation {
        Incarnation(name.into())
    }

    fn look(judge: &mut Judge, at: u64, beats: &[(&str, u64)]) {
        let found = beats.iter().map(|(name, last)| (life(name), *last)).collect();
        judge.look(at, 1000, beats.iter().map(|(name, _)| life(name)), &found);
    }

    #[test]
    fn silence_is_the_time_between_looks_that_saw_the_same() {
        let mut judge = Judge::default();
        assert_eq!(judge.silence(&life("a")), None);
        look(&mut judge, 0, &[("a", 1), ("b", 1)]);
        look(&mut judge, 500, &[("a", 2), ("b", 1)]);
        look(&mut judge, 1100, &[("a", 2), ("b", 1)]);
        assert_eq!(judge.silence(&life("a")), Some((600, 2)));
        assert_eq!(judge.silence(&life("b")), Some((1100, 1)));
        look(&mut judge, 1500, &[("a", 3), ("b", 2)]);
        assert_eq!(judge.silence(&life("b")), Some((0, 2)));
    }

    #[test]
    fn a_judge_that_slept_or_doubts_has_seen_no_silence() {
        let mut judge = Judge::default();
        look(&mut judge, 0, &[("a", 1)]);
        look(&mut judge, 60_000, &[("a", 1)]);
        assert_eq!(judge.silence(&life("a")), Some((1000, 1)));
        judge.doubt();
        assert_eq!(judge.silence(&life("a")), None);
        look(&mut judge, 60_500, &[("a", 1)]);
        assert_eq!(judge.silence(&life("a")), Some((0, 1)));
    }

    #[test]
    fn an_old_list_is_no_news_and_who_never_beat_is_silent_from_the_first_look() {
        let mut judge = Judge::default();
        judge.look(0, 1000, [life("a"), life("b")], &BTreeMap::from([(life("a"), 5)]));
        judge.look(500, 1000, [life("a"), life("b")], &BTreeMap::from([(life("a"), 4)]));
        assert_eq!(judge.silence(&life("a")), Some((500, 5)));
        assert_eq!(judge.silence(&life("b")), Some((500, 0)));
        // A look that began earlier and was answered later adds nothing.
        judge.look(400, 1000, [life("a"), life("b")], &BTreeMap::from([(life("a"), 5)]));
        judge.look(600, 1000, [life("a")], &BTreeMap::from([(life("a"), 5)]));
        assert_eq!(judge.silence(&life("a")), Some((600, 5)));
        assert_eq!(judge.silence(&life("b")), None, "nobody asks for it any more");
    }
}
