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

    /// Something is waiting that later effects must not overtake.
    pub(super) fn has_effects(&self) -> bool {
        self.with_effects > 0
    }

    pub(super) fn push(&mut self, group: Group) {
        self.with_effects += usize::from(!group.effects.is_empty());
        self.groups.push_back(group);
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
