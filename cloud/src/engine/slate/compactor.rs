//! Compaction of one shard's tables, apart from the database itself: in the owner's process, or in another.
//!
//! Apart, because a database that opens together with its compactor is ready only ten requests later. Two compactors of one
//! shard do no harm: the later one fences the earlier by an epoch of its own. Not here: what is compacted when (`tuning`).

use std::{sync::Arc, time::Duration};

use futures::future::join_all;
use slatedb::{
    CompactorBuilder,
    config::CompactorOptions,
    object_store::{ObjectStore, path::Path},
};
use tokio_util::sync::CancellationToken;

use super::{BLOCK, store, ticks::Ticks, tuning};
use crate::engine::{EngineError, Settings, Sharing, usage::Counts};

/// Before compaction is taken up again after an error, or after another compactor has taken it.
const AGAIN_AFTER: Duration = Duration::from_secs(30);

/// Compacts all shards of the data at `url`, in a process of its own, until `stop`. `began` hears how many they are.
pub async fn alone(
    url: &str,
    settings: &Settings,
    stop: CancellationToken,
    began: impl FnOnce(u16),
) -> Result<(), EngineError> {
    let store = match url.strip_prefix("file://") {
        Some(path) => store::folder(url, path, Sharing::Cluster)?,
        None => store::bucket(url, settings)?,
    };
    let shards = store.look().await?.shards;
    let ticks = Arc::new(Ticks::start());
    began(shards);
    let all = (0..shards).map(|shard| {
        let path = store.child(&format!("shard-{shard}"));
        let options = tuning::compactor(store.medium, settings);
        let (ticks, counts) = (Arc::clone(&ticks), Arc::default());
        run(Arc::clone(&store.objects), path, options, ticks, counts, stop.clone())
    });
    join_all(all).await;
    Ok(())
}

/// Compacts until `stop`. The database must exist.
pub(super) async fn run(
    objects: Arc<dyn ObjectStore>,
    path: Path,
    options: CompactorOptions,
    ticks: Arc<Ticks>,
    counts: Arc<Counts>,
    stop: CancellationToken,
) {
    while !stop.is_cancelled() {
        let compactor = CompactorBuilder::new(path.clone(), Arc::clone(&objects))
            .with_options(options.clone())
            .with_sst_block_size(BLOCK)
            .with_system_clock(Arc::clone(&ticks) as _)
            .with_metrics_recorder(Arc::clone(&counts) as _)
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
