//! Judging the others: looking at all heartbeats, ending the lines of the silent, removing old objects. PURE.
//!
//! All look, the first few in the map often. The first that is not silent acts; two who both think that they are it do no harm.

use std::collections::BTreeMap;

use super::{Answer, Ask, Beats, Member, Ms};
use crate::cluster::{NodeId, map::Incarnation};

/// So many nodes look at every heartbeat; the others seldom.
const WATCHERS: usize = 3;
/// Seldom is every so many heartbeats.
const SELDOM: u64 = 10;
/// Maps that are always kept.
const MAPS_KEPT: u64 = 64;
/// Older maps go after this long: nobody who has not seen newer ones by then believes what it knows.
const MAPS_KEPT_MS: Ms = 600_000;
/// Heartbeats of lives that are not in the map go after this long. A node that was away for a third of it begins a new
/// life.
const STRANGER_KEPT_MS: Ms = 900_000;
/// Objects removed at once.
const REMOVED_MAX: usize = 64;

impl Member {
    /// Looks at the heartbeats, if it is time.
    pub(super) fn list(&mut self, now: Ms) {
        if self.listing || now < self.list_at || self.map.is_none() {
            return;
        }
        self.listing = true;
        self.ask(Ask::ListBeats);
    }

    /// Time between two looks at the heartbeats.
    fn pace(&self) -> Ms {
        let rank = self
            .entry()
            .zip(self.map.as_ref())
            .map_or(0, |((me, _), map)| map.up().position(|id| id == me).unwrap_or(0));
        let often = self.settings.heartbeat_ms;
        if rank < WATCHERS { often } else { often.saturating_mul(SELDOM) }
    }

    pub(super) fn beats_listed(&mut self, began: Ms, answer: Answer, now: Ms) {
        self.listing = false;
        self.list_at = now.max(began + self.pace());
        let Answer::Beats(beats) = answer else { return };
        if !self.is_sure(now) {
            // The store did not take our own heartbeats: the silence of others says nothing.
            return self.judge.doubt();
        }
        let Some(map) = &self.map else { return };
        let living = map.living().map(|(_, entry)| entry.incarnation.clone());
        let lives = living.chain(beats.keys().cloned());
        let last: BTreeMap<_, _> =
            beats.iter().filter_map(|(life, all)| Some((life.clone(), *all.last()?))).collect();
        let lives: std::collections::BTreeSet<Incarnation> = lives.collect();
        self.judge.look(began, self.pace().saturating_mul(2), lives, &last);
        self.watch_name(&beats);
        if self.leads() {
            self.end_the_silent();
            self.tidy(&beats, now);
        }
    }

    fn is_silent(&self, life: &Incarnation) -> bool {
        let silence = self.judge.silence(life);
        silence.is_some_and(|(still, _)| still >= self.settings.dead_after_ms)
    }

    /// Whether this node acts for all: it is the first that is not silent.
    pub(super) fn leads(&self) -> bool {
        let (Some((me, _)), Some(map)) = (self.entry(), &self.map) else { return false };
        let lives = |id: &NodeId| {
            let life = map.nodes.get(id).map(|entry| &entry.incarnation);
            *id == me
                || life.is_some_and(|life| !self.ended.contains(life) && !self.is_silent(life))
        };
        map.up().find(lives) == Some(me)
    }

    fn end_the_silent(&mut self) {
        let (Some((me, _)), Some(map)) = (self.entry(), &self.map) else { return };
        let silent: Vec<_> = map
            .living()
            .filter(|(id, entry)| *id != me && !self.ended.contains(&entry.incarnation))
            .filter(|(_, entry)| self.is_silent(&entry.incarnation))
            .filter_map(|(_, entry)| {
                let (_, last) = self.judge.silence(&entry.incarnation)?;
                Some((entry.incarnation.clone(), last + 1))
            })
            .collect();
        for (life, number) in silent {
            self.end_line(&life, number);
        }
    }

    /// Removes what nobody needs.
    fn tidy(&mut self, beats: &Beats, now: Ms) {
        let Some(map) = self.map.as_ref().filter(|_| !self.removing) else { return };
        let kept = map.version.saturating_sub(MAPS_KEPT);
        let mut maps = Vec::new();
        self.old.retain(|(version, since)| {
            let goes = *version < kept
                && now.saturating_sub(*since) > MAPS_KEPT_MS
                && maps.len() < REMOVED_MAX;
            if goes {
                maps.push(*version);
            }
            !goes
        });
        let in_map = |life: &Incarnation| map.living().any(|(_, entry)| entry.incarnation == *life);
        let long = |life: &Incarnation| {
            self.judge.silence(life).is_some_and(|(still, _)| still > STRANGER_KEPT_MS)
        };
        let gone = beats.iter().filter(|(life, _)| !in_map(life) && long(life));
        let beats: Vec<_> = gone
            .flat_map(|(life, all)| all.iter().map(|number| (life.clone(), *number)))
            .take(REMOVED_MAX)
            .collect();
        if !maps.is_empty() || !beats.is_empty() {
            self.removing = true;
            self.ask(Ask::Remove { maps, beats });
        }
    }
}
