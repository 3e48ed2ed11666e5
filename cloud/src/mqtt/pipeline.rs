//! Effects that wait for what they promise: first in, first out.
//!
//! Many commits are on their way to the store at once; their effects come out in the order of the decisions, each after
//! its own commit and all before it are durable. Bounded: when it is full the head takes no more events.

use std::collections::VecDeque;

use tributary_shared::session::{Effect, SessionId};

use crate::log::{LogError, Pending};

/// Decisions on their way. More would only wait longer.
const GROUPS_MAX: usize = 64;

/// One decision's outcome.
#[derive(Debug)]
pub(super) struct Group {
    /// What must be durable.
    pub(super) commits: VecDeque<Pending>,
    /// What is done then.
    pub(super) effects: Vec<Effect>,
    /// Sessions whose leftovers are removed then.
    pub(super) ended: Vec<SessionId>,
}

impl Group {
    /// There is nothing to wait for and nothing to do.
    pub(super) fn is_empty(&self) -> bool {
        self.commits.is_empty() && self.effects.is_empty() && self.ended.is_empty()
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Pipeline {
    groups: VecDeque<Group>,
    with_effects: usize,
}

impl Pipeline {
    pub(super) fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    pub(super) fn has_room(&self) -> bool {
        self.groups.len() < GROUPS_MAX
    }

    /// Puts a decision's outcome in line, and gives back its effects if nothing holds them up: no effects before them
    /// and, where they `wait`, no commit that is not durable. One without commits of its own waits, too: a load must see
    /// what was decided before it.
    pub(super) fn push(&mut self, mut group: Group, wait: bool) -> Vec<Effect> {
        let under_way = !group.commits.is_empty() || !self.groups.is_empty();
        let in_line = self.with_effects > 0 || wait && under_way;
        let at_once = if in_line { Vec::new() } else { std::mem::take(&mut group.effects) };
        if !group.is_empty() {
            self.with_effects += usize::from(!group.effects.is_empty());
            self.groups.push_back(group);
        }
        at_once
    }

    /// The next group whose commits are durable. Cancelling loses nothing. Never returns while empty.
    pub(super) async fn next(&mut self) -> Result<Group, LogError> {
        let Some(front) = self.groups.front_mut() else { return std::future::pending().await };
        while let Some(commit) = front.commits.front_mut() {
            commit.await.unwrap_or(Err(LogError::Closed))?;
            front.commits.pop_front();
        }
        match self.groups.pop_front() {
            Some(group) => {
                self.with_effects -= usize::from(!group.effects.is_empty());
                Ok(group)
            }
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;
    use crate::log::Committed;

    fn group(commits: impl Into<VecDeque<Pending>>, effects: Vec<Effect>) -> Group {
        Group { commits: commits.into(), effects, ended: Vec::new() }
    }

    #[tokio::test]
    async fn a_load_sees_the_commits_before_it_though_its_decision_stored_nothing() {
        let load =
            || group([], vec![Effect::Load { session: SessionId(1), from: 1, max: 1, bytes: 1 }]);
        let other = || group([], vec![Effect::Dropped { session: None, why: "expired", count: 1 }]);
        let mut pipeline = Pipeline::default();
        assert_eq!(pipeline.push(load(), true).len(), 1, "nothing to wait for");
        let (durable, commit) = oneshot::channel();
        assert!(pipeline.push(group([commit], Vec::new()), false).is_empty());
        assert_eq!(pipeline.push(other(), false).len(), 1, "need not wait");
        assert!(pipeline.push(load(), true).is_empty(), "not before the commit");
        assert!(pipeline.push(other(), false).is_empty(), "in order");
        durable.send(Ok(Committed { base_offsets: Vec::new(), duplicate: false })).unwrap();
        assert!(pipeline.next().await.unwrap().effects.is_empty());
        let effects = pipeline.next().await.unwrap().effects;
        assert!(matches!(effects.as_slice(), [Effect::Load { .. }]));
        let effects = pipeline.next().await.unwrap().effects;
        assert!(matches!(effects.as_slice(), [Effect::Dropped { .. }]));
        assert_eq!(pipeline.push(load(), true).len(), 1, "all is durable");
    }
}
