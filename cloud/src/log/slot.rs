//! A shard as readers see it: open, being opened anew, lost or closed; and how far its writes are durable.
//!
//! Written by the shard's owner only. Not here: why it changes (`owner`).

use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::watch;

use super::LogError;
use crate::engine::{EngineError, Shard};

/// See the module.
pub(super) struct Slot {
    place: RwLock<Place>,
    progress: watch::Sender<Progress>,
}

/// How far the writes of a shard's current opening are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Progress {
    /// Moves when the shard is opened anew.
    opening: u64,
    /// Groups handed to the engine; counted before the engine has them, so that no reader sees what is not counted.
    started: u64,
    /// Groups that are durable.
    landed: u64,
}

/// Which opening a read or a request was made in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ReadMark(u64);

/// What became of the shard.
#[derive(Clone)]
pub(super) enum Place {
    Open(Arc<dyn Shard>),
    Reopening(EngineError),
    Lost,
    Closed,
}

impl Slot {
    pub(super) fn new(shard: Arc<dyn Shard>) -> Self {
        Self { place: RwLock::new(Place::Open(shard)), progress: watch::Sender::default() }
    }

    pub(super) fn shard(&self) -> Result<Arc<dyn Shard>, LogError> {
        match &*self.place.read().unwrap_or_else(PoisonError::into_inner) {
            Place::Open(shard) => Ok(Arc::clone(shard)),
            Place::Reopening(error) => Err(LogError::Engine(error.clone())),
            Place::Lost => Err(LogError::NotOwner),
            Place::Closed => Err(LogError::Closed),
        }
    }

    /// Why nothing can be submitted.
    pub(super) fn refusal(&self) -> LogError {
        self.shard().err().unwrap_or(LogError::Closed)
    }

    /// What a reader's error means: an opening that is over is fenced by the next one, which is ours.
    pub(super) fn explain(&self, error: EngineError) -> LogError {
        match error {
            EngineError::Fenced(_) => self.shard().err().unwrap_or_else(reopened),
            other => LogError::Engine(other),
        }
    }

    /// Taken before a read of what may not be durable yet, and before a request waits for room.
    pub(super) fn read_mark(&self) -> ReadMark {
        ReadMark(self.progress.borrow().opening)
    }

    /// Returns when everything that a read since `mark` can have seen is durable.
    pub(super) async fn landed(&self, mark: ReadMark) -> Result<(), LogError> {
        let mut progress = self.progress.subscribe();
        let started = progress.borrow().started;
        let reached = progress.wait_for(|p| p.opening != mark.0 || p.landed >= started).await;
        match reached {
            Ok(progress) if progress.opening == mark.0 => Ok(()),
            _ => Err(self.shard().err().unwrap_or_else(reopened)),
        }
    }

    pub(super) fn start_group(&self) {
        self.progress.send_modify(|progress| progress.started += 1);
    }

    pub(super) fn land_group(&self) {
        self.progress.send_modify(|progress| progress.landed += 1);
    }

    pub(super) fn set(&self, place: Place) {
        *self.place.write().unwrap_or_else(PoisonError::into_inner) = place;
        self.progress.send_modify(|progress| {
            *progress = Progress { opening: progress.opening + 1, ..Progress::default() };
        });
    }
}

pub(super) fn reopened() -> LogError {
    LogError::Engine(EngineError::Store("the shard was opened anew meanwhile".into()))
}
