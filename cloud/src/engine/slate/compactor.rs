//! Compaction of one shard's tables, apart from the database itself: in the owner's process, or in another.
//!
//! Apart, because a database that opens together with its compactor is ready only ten requests later. Two compactors of one
//! shard do no harm: the later one fences the earlier by an epoch of its own. Not here: what is compacted when (`tuning`).

use std::{sync::Arc, time::Duration};

use slatedb::{
    CompactorBuilder,
    config::CompactorOptions,
    object_store::{ObjectStore, path::Path},
};
use tokio_util::sync::CancellationToken;

use super::{BLOCK, ticks::Ticks};

/// Before compaction is taken up again after an error, or after another compactor has taken it.
const AGAIN_AFTER: Duration = Duration::from_secs(30);

/// Compacts until `stop`. The database must exist.
pub(super) async fn run(
    objects: Arc<dyn ObjectStore>,
    path: Path,
    options: CompactorOptions,
    ticks: Arc<Ticks>,
    stop: CancellationToken,
) {
    while !stop.is_cancelled() {
        let compactor = CompactorBuilder::new(path.clone(), Arc::clone(&objects))
            .with_options(options.clone())
            .with_sst_block_size(BLOCK)
            .with_system_clock(Arc::clone(&ticks) as _)
            .build();
        let ended = tokio::select! {
            ended = compactor.run() => ended,
            () = stop.cancelled() => compactor.stop().await,
        };
        if stop.is_cancelled() {
            return;
        }
        let error = ended.err().map(|error| error.to_string()).unwrap_or_default();
        let wait = AGAIN_AFTER.as_secs();
        tracing::warn!(shard = %path, error, "compaction stopped; it is taken up again in {wait} s");
        tokio::select! {
            () = tokio::time::sleep(AGAIN_AFTER) => {}
            () = stop.cancelled() => {}
        }
    }
}
