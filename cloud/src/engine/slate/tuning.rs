//! SlateDB's settings: what differs from its defaults, and why.
//!
//! Measured on two cores, file with fsync, 64 KiB values, 64 in flight: as shipped 44 MB/s with stalls of 7 s (L0 fills up
//! while the compactor looks every 5 s); with these 177-236 MB/s, p99 40 ms.

use std::time::Duration;

use slatedb::{
    Settings as Slate,
    config::{
        CompactionWorkerOptions, CompactorOptions, GarbageCollectorDirectoryOptions,
        GarbageCollectorOptions,
    },
};

use crate::engine::{Profile, Settings};

const MIB: usize = 1024 * 1024;

/// Where the objects lie decides what a request costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Medium {
    /// Requests are cheap, a flush is an fsync.
    File,
    /// Requests cost money and tens of milliseconds.
    Bucket,
}

impl Medium {
    /// Shards of new data if no setting says how many.
    pub(super) fn default_shards(self) -> u16 {
        match self {
            Self::File => 1,
            Self::Bucket => 8,
        }
    }

    fn pick<T>(self, file: T, bucket: T) -> T {
        match self {
            Self::File => file,
            Self::Bucket => bucket,
        }
    }
}

/// The least time between two flushes that were asked for, on a medium where a flush is cheap: so many objects a second are
/// made and removed again.
pub(super) fn flush_gap(medium: Medium, settings: &Settings) -> Option<Duration> {
    let default = medium.pick(Some(Duration::from_millis(1)), None);
    if settings.flush_ms == 0 { default } else { None }
}

/// How long writes may lie in the write-ahead log alone: about 256 of its objects in a bucket, which an opening reads at
/// once (128 at a time); in a folder one is made every few milliseconds, and reading it costs little.
pub(super) fn tables_after(medium: Medium, settings: &Settings) -> Duration {
    medium.pick(Duration::from_secs(2), flush_interval(medium, settings) * 256)
}

fn flush_interval(medium: Medium, settings: &Settings) -> Duration {
    Duration::from_millis(match settings.flush_ms {
        0 => medium.pick(5, bucket_flush(settings.profile)),
        some => some,
    })
}

/// Each flush is a PUT a shard while it is written to: at 200 ms some 65 dollars a month and shard on S3, at 1 s some 13.
fn bucket_flush(profile: Profile) -> u64 {
    match profile {
        Profile::Latency => 50,
        Profile::Balanced => 200,
        Profile::Cost => 1_000,
    }
}

pub(super) fn slate(medium: Medium, settings: &Settings) -> Slate {
    let l0 = (settings.l0_mib as usize).max(1) * MIB;
    Slate {
        flush_interval: Some(flush_interval(medium, settings)),
        // Also how soon compacted tables replace the many small ones in reads.
        manifest_poll_interval: medium.pick(Duration::from_millis(100), Duration::from_secs(5)),
        l0_sst_size_bytes: l0,
        max_unflushed_bytes: l0 * 8,
        // Writers stall at these; the compactor needs room to catch up. Each kind of key makes its own tables.
        l0_max_ssts: 512,
        l0_max_ssts_per_key: 64,
        // It runs apart (`compactor`).
        compactor_options: None,
        garbage_collector_options: Some(garbage(medium)),
        ..Slate::default()
    }
}

pub(super) fn compactor(medium: Medium, settings: &Settings) -> CompactorOptions {
    // Looking is a request too.
    let bucket = if settings.profile == Profile::Cost { 10 } else { 1 };
    let look = medium.pick(Duration::from_millis(100), Duration::from_secs(bucket));
    CompactorOptions {
        poll_interval: look,
        commit_compacted_interval: look,
        // Tables of one partition follow each other: they need not be rewritten.
        enable_trivial_move: true,
        // Wider steps than 4 to 8 rewrite each byte less often: 3.0 bytes written a byte instead of 4.1 (measured).
        scheduler_options: [("min_compaction_sources", "8"), ("max_compaction_sources", "32")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        max_concurrent_compactions: 2,
        // What compaction replaced stays this long; our scans are pages of some MiB.
        checkpoint_lifetime: Duration::from_mins(2),
        worker: Some(CompactionWorkerOptions {
            max_concurrent_compactions: 2,
            compactions_poll_interval: look,
            max_sst_size: 64 * MIB,
            max_subcompactions: 1,
            ..CompactionWorkerOptions::default()
        }),
        ..CompactorOptions::default()
    }
}

fn garbage(medium: Medium) -> GarbageCollectorOptions {
    let directory = |seconds, min_age| {
        Some(GarbageCollectorDirectoryOptions {
            interval: Some(Duration::from_secs(seconds)),
            min_age: Duration::from_secs(min_age),
            dry_run: false,
        })
    };
    GarbageCollectorOptions {
        manifest_options: directory(60, 300),
        // One object a flush: 200 a second on file.
        wal_options: medium.pick(directory(10, 10), directory(60, 60)),
        // Never: a fence that is gone lets a writer that slept through its replacement believe that it wrote.
        wal_fence_options: None,
        compacted_options: directory(60, 300),
        compactions_options: directory(60, 300),
        detach_options: None,
        metric_level: None,
        // A local folder has no conditional overwrite; there the lock file keeps other writers out.
        boundary_files_enabled: medium == Medium::Bucket,
        object_store_max_retries: None,
    }
}
