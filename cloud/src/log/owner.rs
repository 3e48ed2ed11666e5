//! The task that owns one shard of a log: opens it when told to, lets the writing run, gives it up when told to or when it fails.
//!
//! ```text
//!  away --take--> open (fences every other opener, learns the ends of its partitions) --release--> away
//!                   |  failed: opened again (one node), or lost, which is told (cluster)
//! ```
//! After a failure everything not yet answered has got an error: what the engine then holds is the truth. Change here: when a
//! shard is opened and left. Not here: an opening at work (`writing`), who tells (`inner`).

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use tokio::sync::{Notify, oneshot};
use tracing::{info, warn};
use tributary_shared::tasks;

use super::{
    LogError, PartitionId,
    decide::State,
    follow::Followers,
    keys,
    partition::{Cache, Partition},
    slot::{Place, Slot},
    stored::Tail,
    writing::{Ended, Inbox, serve},
};
use crate::engine::{Engine, EngineError, ScanLimit, Shard, ShardId};

/// Between two attempts to open a shard whose store fails.
const REOPEN_AFTER: Duration = Duration::from_secs(1);
/// For what is left of a failed opening to end.
const CLOSE_WITHIN: Duration = Duration::from_secs(10);

/// What owners and readers share.
pub(super) struct Shared {
    pub partitions: RwLock<HashMap<PartitionId, Arc<Partition>>>,
    pub cache: Cache,
    pub followers: Followers,
    pub lost: Lost,
}

/// Shards that were lost and not yet told.
#[derive(Default)]
pub(super) struct Lost {
    shards: Mutex<BTreeSet<ShardId>>,
    wake: Notify,
}

impl Lost {
    fn tell(&self, shard: ShardId) {
        self.shards.lock().unwrap_or_else(PoisonError::into_inner).insert(shard);
        self.wake.notify_one();
    }

    /// Each once.
    pub(super) async fn next(&self) -> ShardId {
        loop {
            let first = self.shards.lock().unwrap_or_else(PoisonError::into_inner).pop_first();
            match first {
                Some(shard) => return shard,
                None => self.wake.notified().await,
            }
        }
    }
}

/// What an owner is told.
pub(super) enum Order {
    /// Opens the shard, fencing whoever had it.
    Take(oneshot::Sender<Result<(), LogError>>),
    /// Makes durable what was submitted, answers it, closes the shard.
    Release(oneshot::Sender<()>),
}

/// Owner of one shard.
pub(super) struct Owner {
    pub id: ShardId,
    pub engine: Arc<dyn Engine>,
    pub shared: Arc<Shared>,
    pub slot: Arc<Slot>,
    pub inbox: Inbox,
    /// Partitions that the shard holds and this log did not know when it was opened.
    pub unclaimed: Arc<Mutex<Vec<PartitionId>>>,
}

type Opened = (Arc<dyn Shard>, State);

impl Owner {
    /// Until the log is closed.
    pub(super) async fn run(mut self) -> Result<(), LogError> {
        while let Some((mut shard, mut state)) = self.away().await {
            loop {
                let Self { shared, slot, inbox, .. } = &mut self;
                match serve(&shard, &mut state, shared, slot, inbox).await {
                    Ok(Ended::Closed) => {
                        let closed = shard.close().await;
                        self.slot.set(Place::Closed);
                        return closed.map_err(LogError::from);
                    }
                    Ok(Ended::Released(done)) => {
                        if let Err(error) = shard.close().await {
                            info!(shard = self.id.0, %error, "a released shard did not close well");
                        }
                        // Nobody waits any more: it is released all the same.
                        let _ = done.send(());
                        break;
                    }
                    Err(error) => match self.recover(&shard, error).await {
                        Some(recovered) => (shard, state) = recovered,
                        None => break,
                    },
                }
            }
        }
        self.slot.set(Place::Closed);
        Ok(())
    }

    /// Waits until it is told to open the shard; `None`: the log closes.
    async fn away(&mut self) -> Option<Opened> {
        loop {
            let Inbox { requests, orders, stop, .. } = &mut self.inbox;
            tokio::select! {
                biased;
                () = stop.cancelled(), if !requests.is_closed() => requests.close(),
                Some(order) = orders.recv() => match order {
                    Order::Release(done) => {
                        let _ = done.send(());
                    }
                    Order::Take(done) => match self.open().await {
                        Ok(opened) => {
                            drop(done.send(Ok(())));
                            return Some(opened);
                        }
                        Err(error) => drop(done.send(Err(error))),
                    },
                },
                request = requests.recv() => match request {
                    Some(request) => request.answer.send(Err(self.slot.refusal())),
                    None => return None,
                },
            }
        }
    }

    async fn open(&self) -> Result<Opened, LogError> {
        let shard = self.engine.open(self.id).await?;
        let tails = read_tails(shard.as_ref()).await?;
        self.learn(&tails);
        self.slot.set(Place::Open(Arc::clone(&shard)));
        // Again: a partition that was made known to this log meanwhile was neither there nor asked about.
        let unclaimed = self.learn(&tails);
        *self.unclaimed.lock().unwrap_or_else(PoisonError::into_inner) = unclaimed;
        Ok((shard, State::new(tails)))
    }

    /// Brings the ends of the shard's partitions to readers: the engine's, for an earlier opening, here or elsewhere, may have
    /// written more than was known here. Returns those that this log does not know.
    fn learn(&self, tails: &[(PartitionId, Tail)]) -> Vec<PartitionId> {
        let opening = self.slot.open().map_or_else(|_| self.slot.next(), |(_, opening)| opening);
        let by_id: HashMap<PartitionId, Tail> = tails.iter().copied().collect();
        let partitions = self.shared.partitions.read().unwrap_or_else(PoisonError::into_inner);
        for partition in partitions.values().filter(|partition| partition.shard == self.id) {
            let tail = by_id.get(&partition.id).copied().unwrap_or_default();
            partition.advance(&tail);
            partition.know(opening);
        }
        let (moved, unclaimed): (Vec<_>, Vec<_>) =
            by_id.into_keys().partition(|id| partitions.contains_key(id));
        drop(partitions);
        self.shared.followers.tell(&moved);
        unclaimed
    }

    /// Opens the shard again; `None`: it is not ours any more, or the log closes.
    async fn recover(&mut self, shard: &Arc<dyn Shard>, error: EngineError) -> Option<Opened> {
        let mut error = error;
        loop {
            if matches!(error, EngineError::Fenced(_)) || !self.inbox.alone {
                warn!(shard = self.id.0, %error, "the shard is lost to this node");
                self.slot.set(Place::Away);
                self.shared.lost.tell(self.id);
                self.let_go(shard);
                return None;
            }
            // Nobody else would: it is opened again without being told to.
            warn!(shard = self.id.0, %error, "shard failed; opening it again");
            self.slot.set(Place::Reopening(error.clone()));
            let Inbox { requests, stop, .. } = &mut self.inbox;
            while let Ok(request) = requests.try_recv() {
                request.answer.send(Err(LogError::Engine(error.clone())));
            }
            if stop.is_cancelled() {
                return None;
            }
            match self.open().await {
                Ok(opened) => {
                    info!(shard = self.id.0, "shard is open again");
                    return Some(opened);
                }
                Err(LogError::Engine(again)) => error = again,
                Err(other) => error = EngineError::Store(other.to_string()),
            }
            tokio::select! {
                () = tokio::time::sleep(REOPEN_AFTER) => {}
                () = self.inbox.stop.cancelled() => {}
            }
        }
    }

    /// What is left of an opening that failed ends by itself, and is not waited for.
    fn let_go(&self, shard: &Arc<dyn Shard>) {
        let (id, shard) = (self.id, Arc::clone(shard));
        tasks::spawn("close of a lost shard", async move {
            match tokio::time::timeout(CLOSE_WITHIN, shard.close()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => info!(shard = id.0, %error, "a lost shard is closed"),
                Err(_) => warn!(shard = id.0, "a lost shard does not close"),
            }
        });
    }
}

/// Every partition's tail in a shard.
pub(super) async fn read_tails(shard: &dyn Shard) -> Result<Vec<(PartitionId, Tail)>, LogError> {
    let mut range = keys::tails();
    let mut tails = Vec::new();
    loop {
        let limit = ScanLimit { entries: 1000, bytes: 1024 * 1024 };
        let page = shard.scan(range.clone(), limit).await?;
        let Some((last, _)) = page.last() else { return Ok(tails) };
        range.start = [last, &b"\0"[..]].concat().into();
        for (key, value) in &page {
            if let Some(partition) = keys::tail_partition(key) {
                tails.push((partition, Tail::decode(value)?));
            }
        }
    }
}
