//! Changing the map: all that is true now and the map does not say yet, as one next version. PURE.
//!
//! What a proposal stands on stays true however late it takes effect: a line that is ended, a shard that is not served.

use super::{Answer, Ask, Member, Ms, STALE};
use crate::cluster::{
    map::{Map, Standing},
    placement,
};

/// A proposal that failed is made again after a moment, of which a part is random.
const AGAIN: Ms = 20;
const AGAIN_RANDOM: Ms = 60;
/// Who leaves stays in the map so long after its last shard went: clients are still told there where to go, and none hears of the new
/// owner and of the old one's end at once (librdkafka then looks again only after a second).
const FAREWELL: Ms = 400;

impl Member {
    pub(super) fn propose(&mut self, now: Ms) {
        // Who is not sure that it lives changes nothing; who has not looked for long knows nothing.
        if self.writing || now < self.write_at || !self.is_sure(now) || !self.is_fresh(now) {
            return;
        }
        if self.bare.is_none() && self.draining && self.is_bare() {
            self.bare = Some(now);
        }
        if let Some(map) = self.proposal(now) {
            self.writing = true;
            self.ask(Ask::CreateMap(Box::new(map)));
        }
    }

    fn proposal(&self, now: Ms) -> Option<Map> {
        let map = self.map.as_ref()?;
        let mut next = map.clone();
        match self.entry() {
            None if self.draining || !self.may_join() => return None,
            None => {
                next.join(&self.newcomer());
                placement::place(&mut next);
            }
            Some((me, entry)) => {
                for (shard, _) in map.places().filter(|(shard, _)| self.is_away(*shard)) {
                    next.hand_over(shard, me);
                }
                for (id, entry) in map.living() {
                    if id != me && self.ended.contains(&entry.incarnation) {
                        next.remove(id);
                    }
                }
                if self.draining {
                    let told = self.bare.is_some_and(|since| now >= since + FAREWELL);
                    let last = map.up().all(|id| id == me);
                    if entry.standing == Standing::Leaving && self.is_empty() && (told || last) {
                        next.remove(me);
                    }
                    next.leave(me);
                }
                if self.draining || self.leads() || next != *map {
                    placement::place(&mut next);
                }
                if self.leads() && now >= self.came.saturating_add(self.settings.settle_ms) {
                    placement::balance(&mut next);
                }
            }
        }
        if next == *map {
            return None;
        }
        next.version = map.version + 1;
        Some(next)
    }

    /// The map gives nothing to this node any more.
    fn is_bare(&self) -> bool {
        let Some(((me, _), map)) = self.entry().zip(self.map.as_ref()) else { return false };
        self.is_empty() && map.places().all(|(_, place)| place.owner != Some(me))
    }

    pub(super) fn map_created(&mut self, began: Ms, map: Map, answer: &Answer, now: Ms) {
        self.writing = false;
        let late = now.saturating_sub(began) >= STALE;
        if *answer == Answer::Done && !late {
            return self.adopt(map, began, now);
        }
        if late {
            // It may stand where an older one was removed: only a list tells.
            self.looked = None;
        }
        // Ours may be there all the same: whoever looks finds what counts.
        self.write_at = now + AGAIN + self.draw(AGAIN_RANDOM);
        self.look_at_once(now);
    }
}
