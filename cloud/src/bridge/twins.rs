//! Whether two gateways call themselves by one edge's id (a cloned card). Pure.
//!
//! A process names itself in CONNECT by a number of its own (`tributary-instance`). When an edge restarts, a new one comes
//! and the old one is never heard of again. One that comes back after another came is alive together with it: both are
//! told apart by nothing else, least of all by addresses, which a mobile network changes and a NAT shares.
//! Once may be a connection that waited long in a queue; so it takes [`RETURNS`].
//! Not here: who is served (`live`: the newer), the same epoch twice (the log's guard).

use std::collections::VecDeque;

/// Comes back of an instance, within [`REMEMBERED_MS`], that raise the alarm.
const RETURNS: usize = 2;
/// How long a return counts.
const REMEMBERED_MS: i64 = 3_600_000;
/// Instances remembered of one edge: as many clones take turns and are still seen.
const INSTANCES: usize = 8;
/// Longest instance that is kept, bytes.
const INSTANCE_BYTES: usize = 32;

/// Who called as one edge lately.
#[derive(Debug, Default)]
pub(super) struct Twins {
    /// Oldest call first.
    instances: VecDeque<String>,
    returns: VecDeque<i64>,
}

impl Twins {
    /// Notes a call. `None`: it did not say which process it is.
    pub(super) fn called(&mut self, instance: Option<&str>, now_ms: i64) {
        let Some(instance) = instance.filter(|name| name.len() <= INSTANCE_BYTES) else { return };
        match self.instances.iter().position(|known| known == instance) {
            Some(place) if place + 1 == self.instances.len() => return,
            Some(place) => {
                self.instances.remove(place);
                self.returns.push_back(now_ms);
                if self.returns.len() > RETURNS {
                    self.returns.pop_front();
                }
            }
            None if self.instances.len() >= INSTANCES => drop(self.instances.pop_front()),
            None => {}
        }
        self.instances.push_back(instance.to_owned());
    }

    /// Two live gateways have this id, as of `now_ms`.
    pub(super) fn seen(&self, now_ms: i64) -> bool {
        let recent = |at: &&i64| now_ms.saturating_sub(**at) < REMEMBERED_MS;
        self.returns.iter().filter(recent).count() >= RETURNS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(calls: &[&str]) -> Twins {
        let mut twins = Twins::default();
        (0..).zip(calls).for_each(|(at, call)| twins.called(Some(call), at));
        twins
    }

    #[test]
    fn restarts_and_lost_connections_are_not_twins_and_taking_turns_is() {
        for (calls, twins) in [
            (&["a", "a", "a", "b", "b", "c", "d", "e", "f", "g", "h", "i"][..], false),
            (&["a", "b", "a"], false),
            (&["a", "b", "a", "b"], true),
            (&["a", "b", "c", "a", "b"], true),
        ] {
            assert_eq!(after(calls).seen(20), twins, "{calls:?}");
        }
        assert!(!after(&["a", "b", "a", "b"]).seen(REMEMBERED_MS + 10), "over");
        let mut silent = Twins::default();
        (0..9).for_each(|at| silent.called(None, at));
        assert!(!silent.seen(9));
    }
}
