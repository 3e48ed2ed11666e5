//! Shards on an object store: one SlateDB database a shard, on a local folder with fsync or in a bucket.
//!
//! SlateDB gives atomic batches, a write-ahead log of one object a flush, and the fence: opening a database takes the next
//! writer epoch, after which an older writer's next flush fails. Change here: what a shard does.
//! Not here: where it lies (`store`), SlateDB's settings (`tuning`).

pub mod compactor;
pub mod migrate;
mod replay;
mod store;
mod ticks;
mod tuning;
mod url;
mod wal;

use std::{
    fs::File,
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use slatedb::{
    CloseReason, Db, DbStatus, Error, ErrorKind, PrefixExtractor, PrefixTarget, SstBlockSize,
    WriteBatch,
    config::{CloseOptions, FlushOptions, FlushType, ScanOptions, WriteOptions},
    db_cache::{DbCache, SplitCache, moka::MokaCache, moka::MokaCacheOptions},
    object_store::{ObjectStore, path::Path},
};
use store::Store;
use ticks::Ticks;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use tributary_shared::tasks;
use wal::Wal;

use super::{
    CommitId, Compactor, Engine, EngineError, Place, ScanLimit, Settings, Shard, ShardId, Sharing,
    Usage, Write, segment_len, usage::Counts,
};

/// Scans of at most this many bytes leave their blocks in the cache: marks and state, not a consumer that catches up.
const CACHED_SCAN: usize = 64 * 1024;
/// Most bytes that a scan reads ahead.
const READ_AHEAD: usize = 1024 * 1024;
/// Of tables, whoever writes them.
const BLOCK: SstBlockSize = SstBlockSize::Block16Kib;

/// All shards at one URL.
pub struct SlateEngine {
    store: Store,
    /// Where the write-ahead logs lie if not with the rest.
    wal: Option<Arc<dyn ObjectStore>>,
    settings: Settings,
    shards: u16,
    cache: Arc<dyn DbCache>,
    lock: Option<Arc<File>>,
    ticks: Arc<Ticks>,
    counts: Vec<Arc<Counts>>,
    since: Instant,
    /// The last opening of each shard, to be stopped before the next.
    open: Mutex<Vec<Option<Db>>>,
}

impl SlateEngine {
    /// `file:///path`, checked and locked.
    pub async fn folder(
        url: &str,
        path: &str,
        settings: &Settings,
        sharing: Sharing,
    ) -> Result<Self, EngineError> {
        Self::start(store::folder(url, path, sharing)?, settings, sharing).await
    }

    /// `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`, checked.
    pub async fn bucket(
        url: &str,
        settings: &Settings,
        sharing: Sharing,
    ) -> Result<Self, EngineError> {
        Self::start(store::bucket(url, settings)?, settings, sharing).await
    }

    /// On any object store that several processes can reach.
    pub async fn objects(
        objects: Arc<dyn ObjectStore>,
        settings: &Settings,
    ) -> Result<Self, EngineError> {
        Self::start(store::objects(objects), settings, Sharing::Cluster).await
    }

    /// Where the objects lie, for what others keep there.
    pub fn place(&self) -> Place {
        let (url, prefix) = (self.store.url.clone(), self.store.prefix.clone());
        Place { objects: Arc::clone(&self.store.objects), prefix, url }
    }

    async fn start(
        mut store: Store,
        settings: &Settings,
        sharing: Sharing,
    ) -> Result<Self, EngineError> {
        let wal = Wal::open(&store, settings, sharing).await?;
        let shards = store.prepare(settings.shards, sharing, wal.as_ref()).await?;
        let wal = wal.map(|wal| wal.objects);
        let bytes = u64::from(settings.block_cache_mib) * 1024 * 1024;
        let moka = |max_capacity| {
            let options = MokaCacheOptions { max_capacity, ..MokaCacheOptions::default() };
            Some(Arc::new(MokaCache::new_with_opts(options)) as Arc<dyn DbCache>)
        };
        // Indexes and filters have their own half, so that a scan cannot push them out.
        let cache = SplitCache::new()
            .with_block_cache(moka(bytes / 2))
            .with_meta_cache(moka(bytes - bytes / 2))
            .build();
        let lock = store.lock.take().map(Arc::new);
        let open = Mutex::new((0..shards).map(|_| None).collect());
        let settings = settings.clone();
        let (cache, ticks) = (Arc::new(cache), Arc::new(Ticks::start()));
        let counts = (0..shards).map(|_| Arc::default()).collect();
        let since = Instant::now();
        Ok(Self { store, wal, settings, shards, cache, lock, ticks, counts, since, open })
    }

    fn counts(&self, shard: ShardId) -> Arc<Counts> {
        self.counts.get(usize::from(shard.0)).map(Arc::clone).unwrap_or_default()
    }

    /// Starts what an open shard needs beside its database; it ends with `stop`, and with the database.
    fn attend(&self, shard: ShardId, path: Path, db: &Db) -> CancellationToken {
        let stop = CancellationToken::new();
        let after = tuning::tables_after(self.store.medium, &self.settings);
        let bound = replay::bound(db.clone(), after);
        let ended = stop.clone();
        tasks::spawn("replay bound", async move {
            ended.run_until_cancelled(bound).await;
            ended.cancel();
        });
        if self.settings.compactor == Compactor::Elsewhere {
            return stop;
        }
        let objects = Arc::clone(&self.store.objects);
        let options = tuning::compactor(self.store.medium, &self.settings);
        let ticks = Arc::clone(&self.ticks);
        tasks::spawn(
            "compaction",
            compactor::run(objects, path, options, ticks, self.counts(shard), stop.clone()),
        );
        stop
    }

    /// Stops our own earlier opening; what it had not made durable is lost, as its callers were told.
    async fn stop_earlier(&self, shard: ShardId) {
        let earlier = {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            open.get_mut(usize::from(shard.0)).and_then(Option::take)
        };
        if let Some(db) = earlier {
            let at_once = CloseOptions::default().with_flush_type(None);
            // It may be closed, fenced or broken already; the next opening fences it in any case.
            if let Err(error) = db.close_with_options(at_once).await {
                tracing::debug!(shard = shard.0, %error, "earlier opening did not close");
            }
        }
    }
}

#[async_trait]
impl Engine for SlateEngine {
    fn shards(&self) -> u16 {
        self.shards
    }

    fn usage(&self) -> Vec<Usage> {
        let since = self.since.elapsed();
        let all = self.counts.iter().zip(0..);
        all.map(|(counts, shard)| counts.usage(ShardId(shard), since, &self.settings)).collect()
    }

    async fn open(&self, shard: ShardId) -> Result<Arc<dyn Shard>, EngineError> {
        if shard.0 >= self.shards {
            let text = format!("{} has no shard {}", self.store.url, shard.0);
            return Err(EngineError::Store(text));
        }
        self.stop_earlier(shard).await;
        let path = self.store.child(&format!("shard-{}", shard.0));
        let mut db = Db::builder(path.clone(), Arc::clone(&self.store.objects))
            .with_settings(tuning::slate(self.store.medium, &self.settings))
            .with_sst_block_size(BLOCK)
            .with_system_clock(Arc::clone(&self.ticks) as _)
            .with_segment_extractor(Arc::new(BySegment))
            .with_metrics_recorder(self.counts(shard))
            .with_db_cache(Arc::clone(&self.cache), u64::from(shard.0));
        if let Some(wal) = &self.wal {
            db = db.with_wal_object_store(Arc::clone(wal));
        }
        let db = db.build().await.map_err(|error| explain(shard, &error))?;
        self.ticks.go_on_from(&db).await.map_err(|error| explain(shard, &error))?;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = open.get_mut(usize::from(shard.0)) {
            *slot = Some(db.clone());
        }
        let status = db.subscribe();
        let gap = tuning::flush_gap(self.store.medium, &self.settings);
        let on_demand = gap.map(|gap| (gap, tokio::sync::Mutex::new(Instant::now())));
        let written = AtomicU64::new(0);
        let (stop, lock) = (self.attend(shard, path, &db), self.lock.clone());
        Ok(Arc::new(SlateShard { id: shard, db, status, on_demand, written, stop, lock }))
    }
}

/// Keys of one segment are compacted by themselves ([`segment_len`]). Fixed when a database is made.
struct BySegment;

impl PrefixExtractor for BySegment {
    fn name(&self) -> &'static str {
        "tributary-1"
    }

    fn prefix_len(&self, target: &PrefixTarget) -> Option<usize> {
        let (PrefixTarget::Point(bytes) | PrefixTarget::Prefix(bytes)) = target;
        let len = segment_len(bytes);
        (bytes.len() >= len).then_some(len)
    }
}

struct SlateShard {
    id: ShardId,
    db: Db,
    status: watch::Receiver<DbStatus>,
    /// Flushes on demand, this far apart: when the next one may start.
    on_demand: Option<(Duration, tokio::sync::Mutex<Instant>)>,
    /// The last commit that was taken.
    written: AtomicU64,
    /// Stops what runs beside the database.
    stop: CancellationToken,
    /// The folder stays locked as long as anything of it is open.
    lock: Option<Arc<File>>,
}

impl Drop for SlateShard {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl SlateShard {
    /// Somebody waits for `commit`: flushes now instead of at the next interval, together with all that was written since.
    async fn demand(&self, commit: CommitId) -> Result<(), EngineError> {
        let Some((gap, next)) = &self.on_demand else { return Ok(()) };
        let durable = || {
            let status = self.status.borrow();
            status.durable_seq >= commit.0 || status.close_reason.is_some()
        };
        if durable() {
            return Ok(());
        }
        let mut next = next.lock().await;
        tokio::time::sleep_until(*next).await;
        if durable() {
            return Ok(());
        }
        *next = Instant::now() + *gap;
        let wal = FlushOptions { flush_type: FlushType::Wal };
        self.db.flush_with_options(wal).await.map_err(|error| explain(self.id, &error))
    }
}

#[async_trait]
impl Shard for SlateShard {
    async fn write(&self, writes: Vec<Write>) -> Result<CommitId, EngineError> {
        let mut batch = WriteBatch::new();
        for write in writes {
            match write {
                Write::Put(key, value) => batch.put_bytes(key, value),
                Write::Delete(key) => batch.delete(key),
            }
        }
        if batch.is_empty() {
            return Ok(CommitId(0));
        }
        let written = self.db.write_with_options(batch, &WriteOptions::default()).await;
        let commit = written.map_err(|error| explain(self.id, &error))?.seqnum();
        self.written.fetch_max(commit, Ordering::Relaxed);
        Ok(CommitId(commit))
    }

    async fn durable(&self, commit: CommitId) -> Result<(), EngineError> {
        self.demand(commit).await?;
        let mut status = self.status.clone();
        let reached = status
            .wait_for(|s| s.durable_seq >= commit.0 || s.close_reason.is_some())
            .await
            .map_err(|_| EngineError::Closed)?;
        match &reached.close_reason {
            _ if reached.durable_seq >= commit.0 => Ok(()),
            Some(reason) => Err(closed(self.id, *reason)),
            None => Ok(()),
        }
    }

    async fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.db.get(key).await.map_err(|error| explain(self.id, &error))
    }

    async fn scan(
        &self,
        range: Range<Bytes>,
        limit: ScanLimit,
    ) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
        let mut found = Vec::new();
        if range.start >= range.end {
            return Ok(found);
        }
        let options = ScanOptions {
            read_ahead_bytes: limit.bytes.clamp(1, READ_AHEAD),
            cache_blocks: limit.bytes <= CACHED_SCAN,
            ..ScanOptions::default()
        };
        let failed = |error: Error| explain(self.id, &error);
        let mut entries = self.db.scan_with_options(range, &options).await.map_err(failed)?;
        let mut bytes = 0;
        while found.is_empty() || (found.len() < limit.entries && bytes < limit.bytes) {
            let Some(entry) = entries.next().await.map_err(failed)? else { break };
            bytes += entry.key.len() + entry.value.len();
            if !found.is_empty() && bytes > limit.bytes {
                break;
            }
            found.push((entry.key, entry.value));
        }
        Ok(found)
    }

    async fn close(&self) -> Result<(), EngineError> {
        let written = self.written.load(Ordering::Relaxed);
        let mut status = self.status.clone();
        self.stop.cancel();
        let mut closing = tasks::spawn("shard close", close(self.db.clone(), self.id));
        // Another owner waits: once all is durable, the database may end behind our back. Not in a folder, which is unlocked.
        let quick = self.lock.is_none();
        let durable = status.wait_for(|s| s.close_reason.is_some() && s.durable_seq >= written);
        tokio::select! {
            closed = &mut closing => closed.unwrap_or(Err(EngineError::Closed)),
            Ok(_) = durable, if quick => Ok(()),
        }
    }
}

async fn close(db: Db, shard: ShardId) -> Result<(), EngineError> {
    let quick = CloseOptions::default().with_flush_type(Some(FlushType::Wal));
    db.close_with_options(quick).await.map_err(|error| explain(shard, &error))
}

fn explain(shard: ShardId, error: &Error) -> EngineError {
    match error.kind() {
        ErrorKind::Closed(CloseReason::Panic) => EngineError::Store(error.to_string()),
        ErrorKind::Closed(reason) => closed(shard, reason),
        _ => EngineError::Store(error.to_string()),
    }
}

fn closed(shard: ShardId, reason: CloseReason) -> EngineError {
    match reason {
        CloseReason::Clean => EngineError::Closed,
        CloseReason::Fenced => EngineError::Fenced(shard),
        other => EngineError::Store(format!("shard {} stopped: {other:?}", shard.0)),
    }
}
