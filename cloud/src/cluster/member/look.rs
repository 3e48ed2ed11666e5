//! Finding the newest map, and whether a node of our name runs. PURE.

use super::{Answer, Ask, Beat, Member, Ms, Phase, Refused, STALE};
use crate::cluster::{
    map::{Incarnation, Map, Standing},
    member::{Action, Beats},
};

/// After an answer that did not come.
const AGAIN: Ms = 50;
/// Looks are so many times as frequent while a shard is coming.
const COMING_PART: Ms = 8;
/// Versions whose age is remembered.
const OLD_MAX: usize = 4_096;

impl Member {
    /// Looks for a newer map, if it is time.
    pub(super) fn look(&mut self, now: Ms) {
        if self.looking || now < self.look_at {
            return;
        }
        self.looking = true;
        match &self.map {
            Some(map) if self.is_fresh(now) => {
                let next = map.version + 1;
                self.ask(Ask::ReadMap(next));
            }
            _ => self.ask(Ask::ListMaps),
        }
    }

    /// Between two looks. While a shard is on its way here clients wait for what the next map says.
    fn look_pace(&self) -> Ms {
        let coming = |map: &Map| {
            let me = self.entry().map(|(me, _)| me);
            me.is_some() && map.shards.iter().any(|place| place.next == me)
        };
        let part = if self.map.as_ref().is_some_and(coming) { COMING_PART } else { 1 };
        self.settings.look_ms / part
    }

    /// Whether the next version, had it ever been, would still be there.
    pub(super) fn is_fresh(&self, now: Ms) -> bool {
        self.looked.is_some_and(|looked| now.saturating_sub(looked) < STALE)
    }

    pub(super) fn look_at_once(&mut self, now: Ms) {
        self.look_at = self.look_at.min(now);
    }

    pub(super) fn maps_listed(&mut self, began: Ms, answer: Answer, now: Ms) {
        self.looking = false;
        self.look_at = now + AGAIN;
        let Answer::Maps(versions) = answer else { return };
        let known = self.map.as_ref().map_or(0, |map| map.version);
        let newest = versions.iter().copied().max().unwrap_or(0);
        for version in versions.into_iter().filter(|version| *version < newest) {
            self.is_old(version, now);
        }
        if newest > known {
            self.looking = true;
            return self.ask(Ask::ReadMap(newest));
        }
        if newest == 0 && known == 0 {
            let Member { me, .. } = self;
            self.map = Some(Map::empty(&me.cluster, &me.id, me.shards));
            self.phase = Phase::Going;
        }
        self.looked = Some(began.max(self.looked.unwrap_or(0)));
        self.look_at = now + self.settings.look_ms;
    }

    pub(super) fn map_read(&mut self, began: Ms, version: u64, answer: Answer, now: Ms) {
        self.looking = false;
        self.look_at = now + AGAIN;
        match answer {
            Answer::Map(Some(map)) => {
                self.adopt(*map, began, now);
                // There may be more.
                self.look_at = now;
            }
            // Of the list before: it is gone since, or another was found.
            Answer::Map(None) if self.map.as_ref().is_none_or(|map| map.version + 1 != version) => {
            }
            Answer::Map(None) => {
                // An answer that was long under way says nothing of now.
                if now.saturating_sub(began) < STALE {
                    self.looked = Some(began.max(self.looked.unwrap_or(0)));
                } else {
                    self.looked = None;
                }
                self.look_at = now.max(began + self.look_pace());
            }
            _ => {}
        }
    }

    /// A newer map is the map.
    pub(super) fn adopt(&mut self, map: Map, began: Ms, now: Ms) {
        let known = self.map.as_ref().map_or(0, |map| map.version);
        if map.version <= known {
            return;
        }
        if map.cluster != self.me.cluster {
            let (found, mine) = (map.cluster, self.me.cluster.clone());
            return self.end(Err(Refused::OtherCluster { found, mine }));
        }
        if map.shards.len() != self.holds.len() {
            let (found, mine) = (map.shards.len(), self.holds.len());
            return self.end(Err(Refused::OtherShards { found, mine }));
        }
        self.phase = Phase::Going;
        if known > 0 {
            self.is_old(known, now);
        }
        let lives: Vec<_> = map.living().map(|(_, entry)| &entry.incarnation).collect();
        let known_lives =
            self.map.iter().flat_map(Map::living).map(|(_, entry)| &entry.incarnation);
        if !known_lives.eq(lives.iter().copied()) {
            self.came = now;
        }
        self.ended.retain(|life| lives.contains(&life));
        self.looked = Some(began.max(self.looked.unwrap_or(0)));
        self.map = Some(map);
        self.actions.push(Action::Show);
    }

    fn is_old(&mut self, version: u64, now: Ms) {
        if !self.old.iter().any(|(known, _)| *known == version) {
            self.old.push_back((version, now));
        }
        if self.old.len() > OLD_MAX {
            self.old.pop_front();
        }
    }

    /// Whether this life may join: no other process of this name is known to run.
    pub(super) fn may_join(&self) -> bool {
        let other = self.map.as_ref().and_then(|map| map.named(&self.me.name));
        other.is_none_or(|(_, entry)| {
            entry.standing == Standing::Gone || self.ended.contains(&entry.incarnation)
        })
    }

    /// Before joining: heartbeats of the life in the map under our name. If they go on, it runs; if they stand still longer
    /// than its lease lasts, its line is ended.
    pub(super) fn watch_name(&mut self, beats: &Beats) {
        if self.entry().is_some() || self.may_join() {
            self.watched = None;
            return;
        }
        let named = self.map.as_ref().and_then(|map| map.named(&self.me.name));
        let Some(life) = named.map(|(_, entry)| entry.incarnation.clone()) else { return };
        let last = beats.get(&life).and_then(|all| all.last().copied()).unwrap_or(0);
        match &self.watched {
            Some((watched, first)) if *watched == life => {
                // One may have been under way when its process died; not two.
                if last > *first + 1 {
                    return self.ask(Ask::ReadBeat(life, last));
                }
                let (still, last) = self.judge.silence(&life).unwrap_or((0, last));
                // A tenth more, for clocks that do not agree how long a second is.
                if still.saturating_mul(10) >= self.settings.lease_ms.saturating_mul(11) {
                    self.end_line(&life, last + 1);
                }
            }
            _ => self.watched = Some((life, last)),
        }
    }

    pub(super) fn end_line(&mut self, life: &Incarnation, number: u64) {
        let beat = Beat { ended_by: Some(self.own.life.clone()) };
        self.ask(Ask::CreateBeat(life.clone(), number, beat));
    }

    pub(super) fn beat_created(
        &mut self,
        life: &Incarnation,
        number: u64,
        beat: &Beat,
        answer: &Answer,
        now: Ms,
    ) {
        if *life == self.own.life {
            return self.own_created(number, answer, now);
        }
        if beat.ended_by.is_none() {
            return;
        }
        match answer {
            Answer::Done => {
                self.ended.insert(life.clone());
            }
            Answer::Exists => self.ask(Ask::ReadBeat(life.clone(), number)),
            // The next list tells whether it still stands still.
            _ => {}
        }
    }

    pub(super) fn beat_read(&mut self, life: &Incarnation, number: u64, answer: &Answer, now: Ms) {
        if *life == self.own.life {
            return self.own_read(number, answer, now);
        }
        match answer {
            Answer::Beat(Some(Beat { ended_by: Some(_) })) => {
                self.ended.insert(life.clone());
            }
            Answer::Beat(Some(Beat { ended_by: None })) => {
                let ours = self.watched.as_ref().is_some_and(|(watched, _)| watched == life);
                if ours && self.entry().is_none() && !self.may_join() {
                    let name = self.me.name.clone();
                    self.end(Err(Refused::Running(name)));
                }
            }
            _ => {}
        }
    }
}
