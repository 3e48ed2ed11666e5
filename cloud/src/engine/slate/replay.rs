//! Bounds what the next opening of a shard must replay: what is only in the write-ahead log goes to tables in time.
//!
//! SlateDB does so by size (a full in-memory table) and every 4,096 objects at the earliest; opening reads each object by
//! itself. A quiet shard would so take seconds to take over. Change here: when. Not here: how long a flush gathers (`tuning`).

use std::time::Duration;

use slatedb::{
    Db, DbStatus,
    config::{FlushOptions, FlushType},
};

/// Writes what is durable to tables at most `after` it got there, until the database is closed.
pub(super) async fn bound(db: Db, after: Duration) {
    let mut status = db.subscribe();
    loop {
        let ahead = |s: &DbStatus| s.durable_seq > s.current_manifest.last_l0_seq();
        if !waits(&mut status, ahead).await {
            return;
        }
        // A full table may be written meanwhile; what has come since is little then, and so is the flush.
        if tokio::time::timeout(after, waits(&mut status, |_| false)).await.is_ok() {
            return;
        }
        let tables = FlushOptions { flush_type: FlushType::MemTable };
        if let Err(error) = db.flush_with_options(tables).await {
            // Closed or fenced: whoever writes hears it too.
            tracing::debug!(%error, "tables were not written");
            return;
        }
    }
}

/// Until `reached`; false once the database is closed.
async fn waits(
    status: &mut tokio::sync::watch::Receiver<DbStatus>,
    reached: impl Fn(&DbStatus) -> bool,
) -> bool {
    let seen = status.wait_for(|s| s.close_reason.is_some() || reached(s)).await;
    seen.is_ok_and(|s| s.close_reason.is_none())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use slatedb::object_store::{
        ObjectStore,
        memory::InMemory,
        throttle::{ThrottleConfig, ThrottledStore},
    };
    use tokio::time::Instant;

    use super::*;
    use crate::engine::{Engine, Settings, Shard, ShardId, Write, slate::SlateEngine};

    const REQUEST: Duration = Duration::from_millis(10);

    async fn commit(shard: &dyn Shard, n: u64) {
        let key = Bytes::from([b"T", n.to_be_bytes().as_slice()].concat());
        let commit = shard.write(vec![Write::Put(key, Bytes::from_static(b"x"))]).await.unwrap();
        shard.durable(commit).await.unwrap();
    }

    /// In the time of the store alone: every request takes 10 ms, nothing else takes any.
    #[tokio::test(start_paused = true)]
    async fn a_shard_of_many_small_commits_changes_hands_within_a_second() {
        let config = ThrottleConfig {
            wait_delete_per_call: REQUEST,
            wait_get_per_call: REQUEST,
            wait_list_per_call: REQUEST,
            wait_list_with_delimiter_per_call: REQUEST,
            wait_put_per_call: REQUEST,
            ..ThrottleConfig::default()
        };
        let objects: Arc<dyn ObjectStore> = Arc::new(ThrottledStore::new(InMemory::new(), config));
        let settings = Settings { shards: 1, flush_ms: 10, ..Settings::default() };
        let killed = SlateEngine::objects(Arc::clone(&objects), &settings).await.unwrap();
        let shard = killed.open(ShardId(0)).await.unwrap();
        for n in 0..4_000 {
            commit(shard.as_ref(), n).await;
        }
        let next = SlateEngine::objects(Arc::clone(&objects), &settings).await.unwrap();
        let start = Instant::now();
        let shard = next.open(ShardId(0)).await.unwrap();
        let opened = start.elapsed();
        assert!(opened < Duration::from_millis(500), "opened in {opened:?}");

        commit(shard.as_ref(), 4_000).await;
        let start = Instant::now();
        shard.close().await.unwrap();
        let closed = start.elapsed();
        assert!(closed < Duration::from_millis(100), "closed in {closed:?}");
        let again = SlateEngine::objects(objects, &settings).await.unwrap();
        let shard = again.open(ShardId(0)).await.unwrap();
        for n in [0, 3_999, 4_000_u64] {
            let key = [b"T", n.to_be_bytes().as_slice()].concat();
            assert!(shard.get(&key).await.unwrap().is_some(), "{n} is there");
        }
    }
}
