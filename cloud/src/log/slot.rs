//! A shard as readers see it: open here, being opened anew, elsewhere or closed; and how far its writes are durable.
//!
//! Written by the shard's owner only. Every change has a number, so that what belongs to one opening is known from what belongs
//! to another. Not here: why it changes (`owner`).

use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::watch;

use super::LogError;
use crate::engine::{EngineError, Shard};

/// See the module.
pub(super) struct Slot {
    state: RwLock<State>,
    progress: watch::Sender<Progress>,
    /// Number of the opening while it is open.
    open: watch::Sender<Option<Opening>>,
}

struct State {
    place: Place,
    opening: Opening,
}

/// How far the writes of a shard's current opening are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Progress {
    opening: Opening,
    /// Groups handed to the engine; counted before the engine has them, so that no reader sees what is not counted.
    started: u64,
    /// Groups that are durable.
    landed: u64,
}

/// Which opening of a shard by this log something belongs to; from 1, never the same again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Opening(pub(super) u64);

/// What became of the shard.
#[derive(Clone)]
pub(super) enum Place {
    Open(Arc<dyn Shard>),
    Reopening(EngineError),
    /// Another node's, or nobody's.
    Away,
    Closed,
}

impl Slot {
    /// Of a shard that is not here.
    pub(super) fn away() -> Self {
        Self {
            state: RwLock::new(State { place: Place::Away, opening: Opening(0) }),
            progress: watch::Sender::default(),
            open: watch::Sender::new(None),
        }
    }

    /// The shard, if it is open, and by which opening.
    pub(super) fn open(&self) -> Result<(Arc<dyn Shard>, Opening), LogError> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        match &state.place {
            Place::Open(shard) => Ok((Arc::clone(shard), state.opening)),
            Place::Reopening(error) => Err(LogError::Engine(error.clone())),
            Place::Away => Err(LogError::NotOwner),
            Place::Closed => Err(LogError::Closed),
        }
    }

    /// Why nothing can be submitted.
    pub(super) fn refusal(&self) -> LogError {
        self.open().err().unwrap_or(LogError::Closed)
    }

    /// What a reader's error means: an opening that is over is closed or fenced, by us or by another.
    pub(super) fn explain(&self, error: EngineError) -> LogError {
        match &error {
            EngineError::Fenced(_) | EngineError::Closed => {
                self.open().err().unwrap_or_else(reopened)
            }
            EngineError::Store(_) => LogError::Engine(error),
        }
    }

    /// Changes whenever the shard is opened or is open no more.
    pub(super) fn openings(&self) -> watch::Receiver<Option<Opening>> {
        self.open.subscribe()
    }

    /// The number that the next [`Slot::set`] will have. For the owner.
    pub(super) fn next(&self) -> Opening {
        Opening(self.state.read().unwrap_or_else(PoisonError::into_inner).opening.0 + 1)
    }

    /// Returns when everything that a read in `opening` can have seen is durable.
    pub(super) async fn landed(&self, opening: Opening) -> Result<(), LogError> {
        let mut progress = self.progress.subscribe();
        let started = progress.borrow().started;
        let reached = progress.wait_for(|p| p.opening != opening || p.landed >= started).await;
        match reached {
            Ok(progress) if progress.opening == opening => Ok(()),
            _ => Err(self.open().err().unwrap_or_else(reopened)),
        }
    }

    pub(super) fn start_group(&self) {
        self.progress.send_modify(|progress| progress.started += 1);
    }

    pub(super) fn land_group(&self) {
        self.progress.send_modify(|progress| progress.landed += 1);
    }

    pub(super) fn set(&self, place: Place) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.opening.0 += 1;
        state.place = place;
        let opening = state.opening;
        self.progress.send_replace(Progress { opening, ..Progress::default() });
        self.open.send_replace(matches!(state.place, Place::Open(_)).then_some(opening));
    }
}

pub(super) fn reopened() -> LogError {
    LogError::Engine(EngineError::Store("the shard was opened anew meanwhile".into()))
}
