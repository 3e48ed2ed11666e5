//! What stands behind a `Log` handle: the shards' owners, the streams, and the way of a transaction into its shard.
//!
//! Not here: streams (`catalog`), reading (`read`), what an owner does (`owner`).

use std::sync::{Arc, Mutex, PoisonError};

use futures::future::try_join_all;
use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    task::JoinHandle,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tributary_shared::{record::Batch, tasks};

use super::{
    Committed, LogError, PartitionId, Pending, Settings, Transaction,
    catalog::Catalog,
    decide::{self, Change, Prepared, PreparedAppend, State},
    keys,
    owner::{self, Answer, Owner, Request, Shared},
    partition::{Cache, Partition},
    slot::Slot,
};
use crate::engine::{Engine, Shard, ShardId, Write};

/// Changes that wait for an owner. Their bytes have their own limit: `Settings::in_flight_bytes`.
const QUEUE: usize = 1024;

/// Bytes that one permit of a shard's room stands for: fewer than 2^32 permits for any setting.
const ROOM_UNIT: usize = 1024;

pub(super) struct Inner {
    pub settings: Settings,
    pub engine: Arc<dyn Engine>,
    pub shared: Arc<Shared>,
    pub shards: Vec<ShardHandle>,
    pub catalog: Catalog,
    pub stop: CancellationToken,
    /// Everything beside the owners: retention, removal of deleted streams.
    pub background: TaskTracker,
    owners: Mutex<Vec<JoinHandle<Result<(), LogError>>>>,
}

pub(super) struct ShardHandle {
    pub slot: Arc<Slot>,
    requests: mpsc::Sender<Request>,
    room: Arc<Semaphore>,
    room_permits: u32,
}

/// See [`super::Log::open`].
pub(super) async fn open(
    engine: Arc<dyn Engine>,
    settings: Settings,
) -> Result<Arc<Inner>, LogError> {
    let ids = (0..engine.shards()).map(ShardId);
    let opened = try_join_all(ids.map(async |id| {
        let shard = engine.open(id).await?;
        let tails = owner::read_tails(shard.as_ref()).await?;
        Ok::<_, LogError>((id, shard, State::new(tails)))
    }))
    .await?;
    let stored = match opened.first() {
        Some((_, first, _)) => Catalog::read(first.as_ref()).await?,
        None => return Err(LogError::NotOwner),
    };
    let catalog = Catalog::default();
    let shared = Arc::new(Shared {
        partitions: std::sync::RwLock::default(),
        cache: Cache::new(settings.cache_bytes),
        followers: super::follow::Followers::default(),
        lost: watch::Sender::new(None),
    });
    let tails = opened.iter().flat_map(|(_, _, state)| state.tails()).collect();
    let deleted = catalog.fill(stored, &tails, &shared);
    let stop = CancellationToken::new();
    let (shards, owners) = opened
        .into_iter()
        .map(|opening| start_owner(&engine, &settings, &shared, &stop, opening))
        .unzip();
    let inner = Arc::new(Inner {
        settings,
        engine,
        shared,
        shards,
        catalog,
        stop,
        background: TaskTracker::new(),
        owners: Mutex::new(owners),
    });
    inner.start_background(deleted);
    Ok(inner)
}

fn start_owner(
    engine: &Arc<dyn Engine>,
    settings: &Settings,
    shared: &Arc<Shared>,
    stop: &CancellationToken,
    (id, shard, state): (ShardId, Arc<dyn Shard>, State),
) -> (ShardHandle, JoinHandle<Result<(), LogError>>) {
    let (sender, requests) = mpsc::channel(QUEUE);
    let slot = Arc::new(Slot::new(Arc::clone(&shard)));
    let owner = Owner {
        id,
        engine: Arc::clone(engine),
        shared: Arc::clone(shared),
        slot: Arc::clone(&slot),
        requests,
        stop: stop.clone(),
    };
    let room_permits =
        u32::try_from(settings.in_flight_bytes / ROOM_UNIT).unwrap_or(1 << 20).max(1);
    let room = Arc::new(Semaphore::new(room_permits as usize));
    let handle = ShardHandle { slot, requests: sender, room, room_permits };
    (handle, tasks::critical("shard owner", stop, owner.run(shard, state)))
}

impl Inner {
    pub(super) async fn close(&self) -> Result<(), LogError> {
        self.stop.cancel();
        self.background.close();
        self.background.wait().await;
        let owners =
            std::mem::take(&mut *self.owners.lock().unwrap_or_else(PoisonError::into_inner));
        let mut outcome = Ok(());
        for owner in owners {
            let ended = owner.await.unwrap_or(Err(LogError::Closed));
            outcome = outcome.and(ended);
        }
        self.shared.followers.close();
        outcome
    }

    pub(super) async fn lost(&self) -> ShardId {
        let mut lost = self.shared.lost.subscribe();
        let known = lost.wait_for(Option::is_some).await.map(|shard| *shard);
        match known {
            Ok(Some(shard)) => shard,
            // The sender lives as long as `self`.
            _ => std::future::pending().await,
        }
    }

    pub(super) fn handle(&self, shard: ShardId) -> Result<&ShardHandle, LogError> {
        self.shards.get(usize::from(shard.0)).ok_or(LogError::NotOwner)
    }

    /// A partition that exists.
    pub(super) fn partition(&self, id: PartitionId) -> Result<Arc<Partition>, LogError> {
        let partitions = self.shared.partitions.read().unwrap_or_else(PoisonError::into_inner);
        partitions.get(&id).cloned().ok_or_else(|| self.no_partition(id))
    }

    fn no_partition(&self, id: PartitionId) -> LogError {
        match self.catalog.by_id(id.stream()) {
            Some(entry) => LogError::PartitionNotFound(entry.stream.name.clone(), id.index()),
            None => LogError::StreamNotFound(format!("#{}", id.stream().0)),
        }
    }

    /// FNV-1a of the name; which edge has which home is stored with the data it wrote, so this never changes.
    pub(super) fn home_shard(&self, name: &str) -> ShardId {
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        ShardId((hash % u64::from(self.engine.shards().max(1))) as u16)
    }

    pub(super) async fn submit(
        &self,
        shard: ShardId,
        transaction: Transaction,
    ) -> Result<Pending, LogError> {
        let Transaction { appends, guard, writes, index } = transaction;
        decide::check_keys(&writes)?;
        if let super::Guard::Edge { edge, .. } = &guard
            && !keys::edge_fits(edge)
        {
            return Err(LogError::BadConfig("an edge id has at most 65535 bytes".into()));
        }
        let mut bytes: usize = writes.iter().map(size).sum();
        let mut prepared = Vec::with_capacity(appends.len());
        for super::Append { partition, batch } in appends {
            bytes += batch.bytes().len();
            prepared.push(self.prepare(shard, partition, batch)?);
        }
        let change = Change::Apply(Prepared { appends: prepared, guard, writes, index });
        self.request(shard, change, bytes).await
    }

    fn prepare(
        &self,
        shard: ShardId,
        id: PartitionId,
        batch: Batch,
    ) -> Result<PreparedAppend, LogError> {
        let entry = self.catalog.by_id(id.stream()).ok_or_else(|| self.no_partition(id))?;
        let partition = entry
            .partitions
            .get(id.index() as usize)
            .filter(|partition| partition.shard == shard)
            .ok_or_else(|| self.no_partition(id))?;
        let limit = entry.stream.config.max_batch_bytes.unwrap_or(self.settings.max_batch_bytes);
        let size = batch.bytes().len();
        if size > limit {
            return Err(LogError::BatchTooLarge { size, limit });
        }
        let (partition, stream) = (Arc::clone(partition), Arc::clone(&entry.stream));
        Ok(PreparedAppend { partition, stream, batch })
    }

    /// Queues a change; waits for room for its `bytes`, in call order.
    pub(super) async fn request(
        &self,
        shard: ShardId,
        change: Change,
        bytes: usize,
    ) -> Result<Pending, LogError> {
        let handle = self.handle(shard)?;
        let opening = handle.slot.read_mark();
        let permits = u32::try_from(bytes.div_ceil(ROOM_UNIT)).unwrap_or(u32::MAX);
        let room = match permits.min(handle.room_permits) {
            0 => None,
            permits => {
                let room = Arc::clone(&handle.room).acquire_many_owned(permits).await;
                Some(room.map_err(|_| LogError::Closed)?)
            }
        };
        let (to, pending) = oneshot::channel();
        let request = Request { change, opening, answer: Answer::new(to), room };
        match handle.requests.send(request).await {
            Ok(()) => Ok(pending),
            Err(_) => Err(handle.slot.refusal()),
        }
    }

    /// [`Inner::request`] of a change of the log's own, and its answer.
    pub(super) async fn change(
        &self,
        shard: ShardId,
        change: Change,
    ) -> Result<Committed, LogError> {
        self.request(shard, change, 0).await?.await.map_err(|_| LogError::Closed)?
    }

    /// Writes keys of the log itself.
    pub(super) async fn write(&self, shard: ShardId, writes: Vec<Write>) -> Result<(), LogError> {
        let appends = Vec::new();
        let prepared = Prepared { appends, guard: super::Guard::None, writes, index: None };
        self.change(shard, Change::Apply(prepared)).await.map(drop)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The last handle is gone: the owners end on purpose.
        self.stop.cancel();
    }
}

fn size(write: &Write) -> usize {
    match write {
        Write::Put(key, value) => key.len() + value.len(),
        Write::Delete(key) => key.len(),
    }
}
