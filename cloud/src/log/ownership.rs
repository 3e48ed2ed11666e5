//! Which shards are here: taking one, giving it up, waiting for it, knowing that it is gone.
//!
//! In: orders of who knows the cluster. Out: openings, whose numbers say what state in memory belongs to what.
//! Not here: what an owner does (`owner`), who owns what (`cluster`).

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::{
    Lease, Log, LogError, Opening, Remote, Settings,
    catalog::METADATA,
    inner::{self, Inner},
    keys,
    owner::Order,
};
use crate::engine::{Engine, ShardId, Write};

/// Which shards are here.
impl Log {
    /// A log of one of several nodes; it owns nothing yet. What is elsewhere it asks of `remote`. When `lease` is over, nothing is
    /// read or taken here.
    pub fn join(
        engine: Arc<dyn Engine>,
        settings: Settings,
        remote: Arc<dyn Remote>,
        lease: Lease,
    ) -> Self {
        Self { inner: inner::start(engine, settings, lease, Some(remote)) }
    }

    /// Opens a shard, fencing whoever had it, and serves it from now on. Nothing if it is open.
    pub async fn take(&self, shard: ShardId) -> Result<(), LogError> {
        self.inner.take(shard).await
    }

    /// Gives a shard up: nothing new is taken, what was submitted is made durable and answered. Then another may open it.
    pub async fn release(&self, shard: ShardId) -> Result<(), LogError> {
        self.inner.release(shard).await
    }

    /// Waits for the next shard that was lost: another process took it over, or its store failed. Each is told once; calls for
    /// it answer [`LogError::NotOwner`]. A single node should end; in a cluster [`Log::take`] brings it back if it is still
    /// this node's.
    pub async fn lost(&self) -> ShardId {
        self.inner.shared.lost.next().await
    }

    /// Whether a shard is served here now: open, and the lease not over.
    pub fn is_here(&self, shard: ShardId) -> bool {
        self.opening(shard).is_some()
    }

    /// [`Log::is_here`], and which opening it is: state kept in memory is of one opening.
    pub fn opening(&self, shard: ShardId) -> Option<Opening> {
        self.inner.opening(shard)
    }

    /// Waits until a shard is served here.
    pub async fn here(&self, shard: ShardId) -> Result<Opening, LogError> {
        self.inner.here(shard).await
    }

    /// Returns when a shard is not served here by `opening` any more.
    pub async fn gone(&self, shard: ShardId, opening: Opening) {
        self.inner.gone(shard, opening).await;
    }
}

impl Inner {
    pub(super) async fn take(self: &Arc<Self>, shard: ShardId) -> Result<(), LogError> {
        let before = self.opening(shard);
        self.order_take(shard).await?;
        // It was open: it may have been taken over, and nobody has noticed.
        if let Some(opening) = before
            && let Err(error) = self.touch(shard, opening).await
        {
            tracing::info!(shard = shard.0, %error, "an open shard is not ours any more: it is opened anew");
            self.gone(shard, opening).await;
            self.order_take(shard).await?;
        }
        if shard == METADATA {
            self.reload().await?;
        }
        self.sweep_unclaimed();
        Ok(())
    }

    async fn order_take(&self, shard: ShardId) -> Result<(), LogError> {
        let (to, done) = oneshot::channel();
        let orders = &self.handle(shard)?.orders;
        orders.send(Order::Take(to)).await.map_err(|_| LogError::Closed)?;
        done.await.map_err(|_| LogError::Closed)?
    }

    /// A write that nobody reads.
    async fn touch(&self, shard: ShardId, opening: Opening) -> Result<(), LogError> {
        if self.remote.is_none() {
            return Ok(());
        }
        self.write(shard, opening, vec![Write::Put(keys::touch(), Bytes::new())]).await
    }

    pub(super) async fn release(&self, shard: ShardId) -> Result<(), LogError> {
        let (to, done) = oneshot::channel();
        let orders = &self.handle(shard)?.orders;
        orders.send(Order::Release(to)).await.map_err(|_| LogError::Closed)?;
        // No answer: it failed on its last way, and is not here any more either.
        drop(done.await);
        Ok(())
    }

    pub(super) fn opening(&self, shard: ShardId) -> Option<Opening> {
        self.opened(shard).ok().map(|(_, opening)| opening)
    }

    pub(super) async fn here(&self, shard: ShardId) -> Result<Opening, LogError> {
        let mut openings = self.handle(shard)?.slot.openings();
        let mut lease = self.lease.moves();
        loop {
            openings.borrow_and_update();
            if let Some(opening) = self.opening(shard) {
                return Ok(opening);
            }
            tokio::select! {
                _ = openings.changed() => {}
                () = Lease::changed(&mut lease) => {}
                () = self.stop.cancelled() => return Err(LogError::Closed),
            }
        }
    }

    pub(super) async fn gone(&self, shard: ShardId, opening: Opening) {
        let Ok(handle) = self.handle(shard) else { return };
        let mut openings = handle.slot.openings();
        let mut lease = self.lease.moves();
        loop {
            openings.borrow_and_update();
            if self.opening(shard) != Some(opening) {
                return;
            }
            tokio::select! {
                _ = openings.changed() => {}
                () = Lease::changed(&mut lease) => {}
            }
        }
    }
}
