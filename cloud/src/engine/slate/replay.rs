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
