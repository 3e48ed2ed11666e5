//! What stands behind a `Log` handle: the shards' owners, the streams, and the way of a transaction into its shard.
//!
//! Not here: streams (`catalog`), reading (`read`), what an owner does (`owner`).

use std::sync::{Arc, Mutex, PoisonError};

use futures::future::try_join_all;
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    task::JoinHandle,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tributary_shared::{record::Batch, tasks};

use super::{
    Committed, Lease, LogError, Opening, PartitionId, Pending, Remote, Settings, Transaction,
    catalog::Catalog,
    decide::{self, Change, Prepared, PreparedAppend},
    keys,
    owner::{Lost, Order, Owner, Shared},
    partition::{Cache, Partition},
    read::UNPACKED,
    slot::Slot,
    writing::{Answer, Inbox, Request},
};
use crate::engine::{Engine, Shard, ShardId, Write};

/// Changes that wait for an owner. Their bytes have their own limit: `Settings::in_flight_bytes`.
const QUEUE: usize = 1024;
/// Orders that wait for an owner.
const ORDERS: usize = 16;

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
    pub lease: Lease,
    /// The way to other nodes; `None`: there are none.
    pub remote: Option<Arc<dyn Remote>>,
    /// One pass of compaction by key at a time: two would put back what the other removed.
    pub compacting: tokio::sync::Mutex<()>,
    owners: Mutex<Vec<JoinHandle<Result<(), LogError>>>>,
}

pub(super) struct ShardHandle {
    pub slot: Arc<Slot>,
    /// Partitions that the shard holds and the catalog did not know when it was opened.
    pub unclaimed: Arc<Mutex<Vec<PartitionId>>>,
    pub orders: mpsc::Sender<Order>,
    requests: mpsc::Sender<Request>,
    room: Arc<Semaphore>,
    room_permits: u32,
}

/// See [`super::Log::open`].
pub(super) async fn open(
    engine: Arc<dyn Engine>,
    settings: Settings,
) -> Result<Arc<Inner>, LogError> {
    let inner = start(engine, settings, Lease::forever(), None);
    let ids = (0..inner.engine.shards()).map(ShardId);
    try_join_all(ids.map(|id| inner.take(id))).await?;
    Ok(inner)
}

/// A log that owns nothing yet; see [`super::Log::join`].
pub(super) fn start(
    engine: Arc<dyn Engine>,
    settings: Settings,
    lease: Lease,
    remote: Option<Arc<dyn Remote>>,
) -> Arc<Inner> {
    let shared = Arc::new(Shared {
        partitions: std::sync::RwLock::default(),
        cache: Cache::new(settings.cache_bytes),
        followers: super::follow::Followers::default(),
        lost: Lost::default(),
    });
    let stop = CancellationToken::new();
    let ids = (0..engine.shards()).map(ShardId);
    let owner = |id| start_owner(&engine, &settings, &shared, &stop, (id, remote.is_none()));
    let (shards, owners) = ids.map(owner).unzip();
    let inner = Arc::new(Inner {
        settings,
        engine,
        shared,
        shards,
        catalog: Catalog::default(),
        stop,
        background: TaskTracker::new(),
        lease,
        remote,
        compacting: tokio::sync::Mutex::default(),
        owners: Mutex::new(owners),
    });
    inner.start_background();
    inner.start_compaction();
    inner
}

fn start_owner(
    engine: &Arc<dyn Engine>,
    settings: &Settings,
    shared: &Arc<Shared>,
    stop: &CancellationToken,
    (id, alone): (ShardId, bool),
) -> (ShardHandle, JoinHandle<Result<(), LogError>>) {
    let (sender, requests) = mpsc::channel(QUEUE);
    let (orders, told) = mpsc::channel(ORDERS);
    let slot = Arc::new(Slot::away());
    let unclaimed = Arc::new(Mutex::default());
    let owner = Owner {
        id,
        engine: Arc::clone(engine),
        shared: Arc::clone(shared),
        slot: Arc::clone(&slot),
        inbox: Inbox { requests, orders: told, stop: stop.clone(), alone },
        unclaimed: Arc::clone(&unclaimed),
    };
    let room_permits =
        u32::try_from(settings.in_flight_bytes / ROOM_UNIT).unwrap_or(1 << 20).max(1);
    let room = Arc::new(Semaphore::new(room_permits as usize));
    let handle = ShardHandle { slot, unclaimed, orders, requests: sender, room, room_permits };
    (handle, tasks::critical("shard owner", stop, owner.run()))
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

    pub(super) fn handle(&self, shard: ShardId) -> Result<&ShardHandle, LogError> {
        self.shards.get(usize::from(shard.0)).ok_or(LogError::NotOwner)
    }

    /// The shard, if this node may serve it now, and by which opening.
    pub(super) fn opened(&self, shard: ShardId) -> Result<(Arc<dyn Shard>, Opening), LogError> {
        let opened = self.handle(shard)?.slot.open()?;
        if self.lease.is_valid() { Ok(opened) } else { Err(LogError::NotOwner) }
    }

    /// A partition that this node may serve now.
    pub(super) fn served(&self, id: PartitionId) -> Result<Arc<Partition>, LogError> {
        let partition = self.partition(id)?;
        let (_, opening) = self.opened(partition.shard)?;
        // It came to be known after its shard was opened, and its ends are not here yet.
        if partition.is_known(opening) { Ok(partition) } else { Err(LogError::NotOwner) }
    }

    /// A partition that exists.
    pub(super) fn partition(&self, id: PartitionId) -> Result<Arc<Partition>, LogError> {
        let partitions = self.shared.partitions.read().unwrap_or_else(PoisonError::into_inner);
        partitions.get(&id).cloned().ok_or_else(|| self.no_partition(id))
    }

    pub(super) fn no_partition(&self, id: PartitionId) -> LogError {
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
        let Transaction { appends, guard, writes, index, opening } = transaction;
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
        self.request(shard, opening, change, bytes).await
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
        self.served(id)?;
        let limit = entry.stream.config.max_batch_bytes.unwrap_or(self.settings.max_batch_bytes);
        let size = batch.bytes().len();
        if size > limit {
            return Err(LogError::BatchTooLarge { size, limit });
        }
        if entry.stream.config.compact {
            for record in &batch.unpack(UNPACKED)? {
                record?.key.ok_or(LogError::KeylessRecord)?;
            }
        }
        let (partition, stream) = (Arc::clone(partition), Arc::clone(&entry.stream));
        Ok(PreparedAppend { partition, stream, batch })
    }

    /// Queues a change, for `only_in` if given; waits for room for its `bytes`, in call order.
    pub(super) async fn request(
        &self,
        shard: ShardId,
        only_in: Option<Opening>,
        change: Change,
        bytes: usize,
    ) -> Result<Pending, LogError> {
        let handle = self.handle(shard)?;
        let (_, opening) = self.opened(shard)?;
        if only_in.is_some_and(|only| only != opening) {
            return Err(LogError::NotOwner);
        }
        self.queue(handle, opening, change, bytes).await
    }

    /// Brings the ends of partitions to readers. Not a matter of the lease: they belong to the opening.
    pub(super) async fn know(
        &self,
        shard: ShardId,
        partitions: Vec<Arc<Partition>>,
    ) -> Result<(), LogError> {
        let handle = self.handle(shard)?;
        let (_, opening) = handle.slot.open()?;
        let pending = self.queue(handle, opening, Change::Know { partitions }, 0).await?;
        pending.await.map_err(|_| LogError::Closed)?.map(drop)
    }

    async fn queue(
        &self,
        handle: &ShardHandle,
        opening: Opening,
        change: Change,
        bytes: usize,
    ) -> Result<Pending, LogError> {
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
        self.request(shard, None, change, 0).await?.await.map_err(|_| LogError::Closed)?
    }

    /// Writes keys of the log itself, in that opening of the shard.
    pub(super) async fn write(
        &self,
        shard: ShardId,
        opening: Opening,
        writes: Vec<Write>,
    ) -> Result<(), LogError> {
        let appends = Vec::new();
        let prepared = Prepared { appends, guard: super::Guard::None, writes, index: None };
        let pending = self.request(shard, Some(opening), Change::Apply(prepared), 0).await?;
        pending.await.map_err(|_| LogError::Closed)?.map(drop)
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
