//! Following everything: which partitions moved, told by notification.
//!
//! Each follower owns a set of partitions that moved since it last looked: moves coalesce, none is lost, and the set cannot
//! grow beyond the partitions there are.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use tokio::sync::Notify;

use super::PartitionId;

/// All followers of a log.
#[derive(Default)]
pub(super) struct Followers {
    list: Mutex<Vec<Weak<Moved>>>,
}

#[derive(Default)]
struct Moved {
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Default)]
struct State {
    partitions: BTreeSet<PartitionId>,
    closed: bool,
}

/// See [`super::Log::follow`].
pub struct Follower {
    moved: Arc<Moved>,
}

impl Followers {
    /// A follower that is not told of anything yet. Tell it what is there by [`Follower::add`] after this, so that nothing
    /// falls between.
    pub(super) fn join(&self) -> Follower {
        let moved = Arc::new(Moved::default());
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.retain(|follower| follower.strong_count() > 0);
        list.push(Arc::downgrade(&moved));
        Follower { moved }
    }

    /// Whether there are any.
    pub(super) fn has_any(&self) -> bool {
        let list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.iter().any(|follower| follower.strong_count() > 0)
    }

    /// `partitions` moved.
    pub(super) fn tell(&self, partitions: &[PartitionId]) {
        self.each(|moved| moved.add(partitions));
    }

    /// Nothing will move any more.
    pub(super) fn close(&self) {
        self.each(|moved| {
            moved.state.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
            moved.wake.notify_one();
        });
    }

    fn each(&self, f: impl Fn(&Moved)) {
        let list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        for moved in list.iter().filter_map(Weak::upgrade) {
            f(&moved);
        }
    }
}

impl Moved {
    fn add(&self, partitions: &[PartitionId]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.partitions.extend(partitions);
        drop(state);
        self.wake.notify_one();
    }
}

impl Follower {
    /// Waits until at least one partition's high watermark moved since the last call (the first call returns every
    /// partition that has records), and returns which. `None`: the log closed. Cancelling loses nothing.
    pub async fn next(&mut self) -> Option<Vec<PartitionId>> {
        loop {
            {
                let mut state = self.moved.state.lock().unwrap_or_else(PoisonError::into_inner);
                if !state.partitions.is_empty() {
                    return Some(std::mem::take(&mut state.partitions).into_iter().collect());
                }
                if state.closed {
                    return None;
                }
            }
            // One follower waits on one `Notify`, which keeps a permit for a wake-up that comes before the wait.
            self.moved.wake.notified().await;
        }
    }

    pub(super) fn add(&self, partitions: &[PartitionId]) {
        if !partitions.is_empty() {
            self.moved.add(partitions);
        }
    }
}
