//! Which shards are here: taking one, giving it up, waiting for it, knowing that it is gone.
//!
//! In: orders of who knows the cluster. Out: openings, whose numbers say what state in memory belongs to what.
//! Not here: what an owner does (`owner`), who owns what (`cluster`).

use std::sync::Arc;

use tokio::sync::oneshot;

use super::{Lease, LogError, Opening, catalog::METADATA, inner::Inner, owner::Order};
use crate::engine::ShardId;

impl Inner {
    pub(super) async fn take(self: &Arc<Self>, shard: ShardId) -> Result<(), LogError> {
        let (to, done) = oneshot::channel();
        let orders = &self.handle(shard)?.orders;
        orders.send(Order::Take(to)).await.map_err(|_| LogError::Closed)?;
        done.await.map_err(|_| LogError::Closed)??;
        if shard == METADATA {
            self.reload().await?;
        }
        self.sweep_unclaimed();
        Ok(())
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
