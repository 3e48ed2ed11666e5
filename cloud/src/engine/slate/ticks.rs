//! The clock that SlateDB is given: it never falls behind what is already written, whichever machine wrote it.
//!
//! SlateDB marks every write with the time and fails for good if that goes back, so that a machine whose clock is some seconds
//! behind the last owner's could not serve a shard. Here such a clock goes on from the last mark. Nothing of ours reads the marks.

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::{Duration, SystemTime},
};

use chrono::{DateTime, TimeDelta, Utc};
use futures::{StreamExt as _, stream::FuturesUnordered};
use slatedb::{Db, DbStatus, Error};
use slatedb_common::clock::{SystemClock, SystemClockTicker};
use tokio::time::Instant;

/// Being behind by more is worth a word.
const WARN_BEHIND: i64 = 5_000;

/// Counts from the start of the engine: steps of the machine's clock do not matter meanwhile.
#[derive(Debug)]
pub(super) struct Ticks {
    began: DateTime<Utc>,
    at: Instant,
    /// Put on top, ms; it only grows.
    ahead: AtomicI64,
}

impl Ticks {
    pub(super) fn start() -> Self {
        Self { began: SystemTime::now().into(), at: Instant::now(), ahead: AtomicI64::new(0) }
    }

    /// Goes on from what `db` holds.
    pub(super) async fn go_on_from(&self, db: &Db) -> Result<(), Error> {
        let ahead = last_mark(db).await?.saturating_sub(self.unmoved().timestamp_millis());
        let behind = ahead.saturating_sub(self.ahead.fetch_max(ahead, Ordering::Relaxed));
        if behind > WARN_BEHIND {
            let seconds = behind / 1_000;
            tracing::warn!(
                seconds,
                "this machine's clock is behind that of the data's last writer; check its time service"
            );
        }
        Ok(())
    }

    fn unmoved(&self) -> DateTime<Utc> {
        self.began + self.at.elapsed()
    }
}

impl SystemClock for Ticks {
    fn now(&self) -> DateTime<Utc> {
        self.unmoved() + TimeDelta::milliseconds(self.ahead.load(Ordering::Relaxed))
    }

    fn sleep<'a>(
        &'a self,
        duration: Duration,
    ) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        Box::pin(tokio::time::sleep(duration))
    }

    fn ticker(&self, duration: Duration) -> SystemClockTicker<'_> {
        SystemClockTicker::new(self, duration)
    }
}

/// The time of the last write, ms: that of the tables, or that of the newest entry that is only in the write-ahead log, which is
/// in memory after an opening.
async fn last_mark(db: &Db) -> Result<i64, Error> {
    let status = db.status();
    let tables = status.current_manifest.last_l0_clock_tick();
    if status.durable_seq <= status.current_manifest.last_l0_seq() {
        return Ok(tables);
    }
    let segments = status.list_segments();
    let mut marks: FuturesUnordered<_> =
        segments.iter().map(|segment| mark_of(db, &segment.prefix, &status)).collect();
    while let Some(found) = marks.next().await {
        if let Some(mark) = found? {
            return Ok(mark.max(tables));
        }
    }
    Ok(tables)
}

/// That of the newest commit, if a part of it is in this segment. Memory comes first, so that tables are not read for it.
async fn mark_of(db: &Db, segment: &[u8], status: &DbStatus) -> Result<Option<i64>, Error> {
    let mut newest = db.scan_prefix_by_recency(segment).await?;
    while let Some(entry) = newest.next_entry().await? {
        if entry.seq >= status.durable_seq {
            return Ok(entry.create_ts);
        }
        if entry.seq <= status.current_manifest.last_l0_seq() {
            break;
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use slatedb::object_store::memory::InMemory;
    use std::sync::Arc;

    use crate::engine::{Engine, Settings, Shard, ShardId, Write, slate::SlateEngine};

    use super::*;

    async fn commit(shard: &dyn Shard) {
        let write = Write::Put(Bytes::from_static(b"T"), Bytes::from_static(b"x"));
        let commit = shard.write(vec![write]).await.unwrap();
        shard.durable(commit).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_machine_whose_clock_is_an_hour_behind_can_serve_the_shard() {
        let objects = Arc::new(InMemory::new());
        let settings = Settings { shards: 1, flush_ms: 10, ..Settings::default() };
        let ahead = SlateEngine::objects(Arc::clone(&objects) as _, &settings).await.unwrap();
        tokio::time::sleep(Duration::from_hours(1)).await;
        let shard = ahead.open(ShardId(0)).await.unwrap();
        for _ in 0..10 {
            commit(shard.as_ref()).await;
        }
        // An hour has gone by for the first engine only: this one begins with the machine's time.
        let behind = SlateEngine::objects(objects, &settings).await.unwrap();
        let start = Instant::now();
        let shard = behind.open(ShardId(0)).await.unwrap();
        commit(shard.as_ref()).await;
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    }
}
