//! Shards taken and released as the map says. PURE.

use super::{Action, Member, Ms};
use crate::{cluster::map::Standing, engine::ShardId};

/// Shards that are being opened at once.
const TAKES_MAX: usize = 16;
/// Before a shard is taken again that was lost or could not be opened; of which a part is random.
const AGAIN: Ms = 200;
const AGAIN_RANDOM: Ms = 300;

/// What is here of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hold {
    Away,
    Taking,
    Here,
    Releasing,
    /// Lost, or it could not be opened: not before `at`, and only by a map that was looked for after `since`.
    Later {
        since: Ms,
        at: Ms,
    },
}

impl Hold {
    pub(super) fn is_away(&self) -> bool {
        matches!(self, Self::Away | Self::Later { .. })
    }
}

impl Member {
    /// Takes what is ours, releases what is not.
    pub(super) fn hold(&mut self, now: Ms) {
        let mut taking = self.holds.iter().filter(|hold| **hold == Hold::Taking).count();
        for at in 0..self.holds.len() {
            let shard = ShardId(at as u16);
            let mine = self.is_mine(shard) && !self.unsettled;
            let sure = self.is_sure(now);
            let looked = self.looked;
            let Some(hold) = self.holds.get_mut(at) else { continue };
            let due = match *hold {
                Hold::Away => true,
                Hold::Later { since, at } => {
                    now >= at && looked.is_some_and(|looked| looked > since)
                }
                _ => false,
            };
            if mine && due && sure && taking < TAKES_MAX {
                taking += 1;
                *hold = Hold::Taking;
                self.actions.push(Action::Take(shard));
            } else if !mine && *hold == Hold::Here {
                *hold = Hold::Releasing;
                self.actions.push(Action::Release(shard));
            }
        }
    }

    /// Whether the map wants this life to serve a shard.
    fn is_mine(&self, shard: ShardId) -> bool {
        let (Some((me, entry)), Some(map)) = (self.entry(), &self.map) else { return false };
        let place = map.place(shard);
        entry.standing == Standing::Up && place.owner == Some(me) && place.next.is_none()
    }

    pub(super) fn is_away(&self, shard: ShardId) -> bool {
        self.holds.get(usize::from(shard.0)).is_some_and(Hold::is_away)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.holds.iter().all(Hold::is_away)
    }

    /// Whether a shard is here. Readable only while the lease lasts.
    pub fn has(&self, shard: ShardId) -> bool {
        self.holds.get(usize::from(shard.0)) == Some(&Hold::Here)
    }

    fn set(&mut self, shard: ShardId, from: &[Hold], to: Hold) {
        if let Some(hold) = self.holds.get_mut(usize::from(shard.0))
            && from.contains(hold)
        {
            *hold = to;
        }
    }

    pub(super) fn taken(&mut self, shard: ShardId) {
        self.set(shard, &[Hold::Taking], Hold::Here);
    }

    pub(super) fn released(&mut self, shard: ShardId) {
        self.set(shard, &[Hold::Releasing], Hold::Away);
    }

    pub(super) fn not_taken(&mut self, shard: ShardId, now: Ms) {
        let later = Hold::Later { since: now, at: now + AGAIN + self.draw(AGAIN_RANDOM) };
        self.set(shard, &[Hold::Taking], later);
        self.look_at_once(now);
    }

    /// Somebody else opened it: by a map that we do not know yet, or because it was asleep for long.
    pub(super) fn lost(&mut self, shard: ShardId, now: Ms) {
        let later = Hold::Later { since: now, at: now + AGAIN + self.draw(AGAIN_RANDOM) };
        self.set(shard, &[Hold::Here], later);
        self.look_at_once(now);
    }
}
