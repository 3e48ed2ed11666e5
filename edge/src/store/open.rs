//! Opening the store: folder, lock, ballast, file, threads. [`prepare`] leaves out the threads. A broken file never keeps the edge from starting.
//!
//! In: settings. Out: [`Opened`] or [`Prepared`]. A file that SQLite calls corrupt is renamed (never deleted), a new one is begun, and
//! what can be read of the old one is saved (`salvage`, `aside`), what is lost at an end is declared (`ends`).
//! Change here: pragmas, files. Not here: tables (`migrate`).

use std::{
    collections::{HashMap, VecDeque},
    fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering::Relaxed},
    thread::JoinHandle,
    time::Duration,
};

use rusqlite::{Connection, OpenFlags};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tributary_shared::session::Restored;

use super::{
    COMMANDS, Error, Journal, LOCAL, LaneHandle, Progress, Settings, Store,
    age::{Boot, Observed},
    aside,
    ends::Ends,
    followed,
    group::State,
    lane_start,
    migrate::migrate,
    outbound,
    quarantine::Held,
    queues::{PACKED, Queues, Trimmings},
    reader::Reader,
    renamed,
    room::Room,
    salvage, sessions,
    wear::{Governor, Meter},
    writer::{LOG_BYTES, Writer},
};
use crate::{lane, status::Status};

pub(super) const FILE: &str = "edge.db";
const LOCK: &str = "lock";
const BALLAST: &str = "ballast";
const ENDS: &str = "ends";
/// Bytes of a page of a new file. A commit writes whole pages, and rows of batches lie across small ones without a gap:
/// `docs/decisions/0071-*`. A file of before keeps its own.
pub(super) const PAGE: u64 = 1024;
/// Bytes of what the settings call a page.
const SETTINGS_PAGE: u64 = 4096;
/// For other processes to be done with the file.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// Statements kept prepared; there are fewer.
const STATEMENTS: usize = 64;
/// Questions that may wait for the reading thread.
const QUERIES: usize = 64;

/// What [`open`] needs to know.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Data folder; made if it is missing.
    pub dir: PathBuf,
    /// Id of this edge, put into every record.
    pub edge_id: String,
    /// Lanes; empty without a cloud.
    pub lanes: Vec<lane::Settings>,
    /// The store's settings.
    pub settings: Settings,
    /// What happened before.
    pub after: After,
}

/// Why a store is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// The process starts.
    Start,
    /// A commit failed. What it left in the log may be seen and not be on the disk: it is written out first.
    Failure,
    /// SQLite called the file damaged: all of it is looked at first.
    Damage,
}

/// An open store.
#[derive(Debug)]
pub struct Opened {
    /// Handle.
    pub store: Store,
    /// The door for changes.
    pub journal: Journal,
    /// What the session core goes on from.
    pub restored: Restored,
    /// The time that its times are of, now: `Clock::observing`.
    pub observed_ms: u64,
    /// Next place of each partition of the cloud's log that commands came from.
    pub followed: HashMap<u64, u64>,
    /// End when the store is stopped and its handles are gone.
    pub threads: Vec<JoinHandle<()>>,
}

/// An open store whose work nobody does yet: commands and questions wait until both halves run, in any two tasks or threads.
#[derive(Debug)]
pub struct Prepared {
    /// Handle.
    pub store: Store,
    /// The door for changes.
    pub journal: Journal,
    /// What the session core goes on from.
    pub restored: Restored,
    /// The time that its times are of, now: `Clock::observing`.
    pub observed_ms: u64,
    /// Next place of each partition of the cloud's log that commands came from.
    pub followed: HashMap<u64, u64>,
    /// Commits.
    pub writing: Writer,
    /// Answers questions.
    pub reading: Reader,
}

/// Opens the store and starts its threads; blocks.
pub fn open(plan: &Plan, status: &Arc<Status>) -> Result<Opened, Error> {
    let Prepared { store, journal, restored, observed_ms, followed, writing, reading } =
        prepare(plan, status)?;
    let thread = |cause| Error::Folder { path: plan.dir.clone(), cause: Arc::new(cause) };
    let runtime =
        || tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(thread);
    let (for_writing, for_reading) = (runtime()?, runtime()?);
    let threads = vec![
        std::thread::Builder::new()
            .name("store-write".to_owned())
            .spawn(move || for_writing.block_on(writing.run()))
            .map_err(thread)?,
        std::thread::Builder::new()
            .name("store-read".to_owned())
            .spawn(move || for_reading.block_on(reading.run()))
            .map_err(thread)?,
    ];
    Ok(Opened { store, journal, restored, observed_ms, followed, threads })
}

/// Opens the store without its threads; blocks.
pub fn prepare(plan: &Plan, status: &Arc<Status>) -> Result<Prepared, Error> {
    let folder = |cause| Error::Folder { path: plan.dir.clone(), cause: Arc::new(cause) };
    make_folder(&plan.dir).map_err(folder)?;
    let lock = lock(&plan.dir)?;
    let path = plan.dir.join(FILE);
    private(&path).map_err(folder)?;
    let seed = random()?;
    let ends = Ends::open(&plan.dir.join(ENDS));
    let unfinished = aside::unfinished(&path).map_err(folder)?;
    let loaded = match &unfinished {
        Some(_) => Err(Error::Check),
        None => load(plan, &path, status, &ends, seed),
    };
    let (db, state, restored) = match loaded {
        Err(error) if error.is_corrupt() => {
            tracing::error!(%error, "the store is damaged: put aside, begun anew");
            status.salvaged_files.add(1);
            renew(plan, &path, &unfinished.unwrap_or_else(|| format!("{seed:016x}")))?;
            load(plan, &path, status, &ends, seed)?
        }
        other => other?,
    };
    connect_halves(plan, db, state, restored, &path, (ends, lock))
}

/// A new file in the place of a damaged one, with what can be read of that.
fn renew(plan: &Plan, path: &Path, tag: &str) -> Result<(), Error> {
    let folder = |cause| Error::Folder { path: plan.dir.clone(), cause: Arc::new(cause) };
    let aside = aside::put(path, tag).map_err(folder)?;
    tracing::warn!(aside = %aside.display(), "the damaged file is kept");
    let fresh = connect(plan, &aside::fresh(path).map_err(folder)?)?;
    salvage::salvage(&aside, &fresh);
    fresh.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    fresh.close().map_err(|(_, error)| error)?;
    aside::finish(path).map_err(folder)
}

fn connect_halves(
    plan: &Plan,
    db: Connection,
    state: State,
    restored: Restored,
    path: &Path,
    (ends, lock): (Ends, File),
) -> Result<Prepared, Error> {
    let lanes = state
        .lanes
        .iter()
        .map(|lane| {
            Ok(LaneHandle {
                number: lane.info.number,
                settings: lane.info.settings.clone(),
                status: lane.info.status.clone(),
                renamed: renamed::load(&db, lane.info.number)?,
            })
        })
        .collect::<Result<_, Error>>()?;
    let read = connect(plan, path)?;
    read.execute_batch("PRAGMA query_only=ON")?;
    let (commands, inbox) = mpsc::channel(COMMANDS);
    let (queries, questions) = mpsc::channel(QUERIES);
    let (progress, watched) = watch::channel(Progress::default());
    let trimmed = Trimmings::default();
    let shared = trimmed.clone();
    let settings = &plan.settings;
    let page = db.query_row("PRAGMA page_size", [], |row| row.get::<_, u32>(0))?;
    let log_bytes = u64::from(settings.checkpoint_pages) * SETTINGS_PAGE;
    let (ballast, max_bytes) = (plan.dir.join(BALLAST), max_bytes(plan));
    let room = Room::new(ballast, settings.ballast_bytes, max_bytes, log_bytes, page.into());
    room.prepare(&db)?;
    let followed = followed::load(&db)?;
    state.status.disk_full.store(false, Relaxed);
    let pending = VecDeque::new();
    let observed = state.observed.clone();
    let observed_ms = observed.now_ms();
    let outside = db.query_row("PRAGMA data_version", [], |row| row.get(0))?;
    let writing = Writer {
        db,
        state,
        commands: inbox,
        pending,
        progress,
        trimmed: shared,
        room,
        looked: Instant::now(),
        outside,
        ends,
        governor: Governor::new(
            settings.flash_budget_gb_per_day,
            Duration::from_millis(settings.commit_window_ms),
            Duration::from_millis(settings.commit_window_max_ms),
        ),
        meter: Meter::of(&plan.dir),
        began: Instant::now(),
        committed: Instant::now(),
        measured: None,
        wal: wal(path),
        log_bytes_max: LOG_BYTES,
        lock,
    };
    let reading = Reader { db: read, queries: questions, observed };
    let store = Store { commands: commands.clone(), queries, progress: watched, trimmed, lanes };
    let journal = Journal { commands, last: 0 };
    Ok(Prepared { store, journal, restored, observed_ms, followed, writing, reading })
}

fn load(
    plan: &Plan,
    path: &Path,
    status: &Arc<Status>,
    ends: &Ends,
    seed: u64,
) -> Result<(Connection, State, Restored), Error> {
    let db = connect(plan, path)?;
    if plan.after == After::Failure {
        db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    }
    if plan.after == After::Damage {
        let verdict: String = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if verdict != "ok" {
            tracing::error!(verdict, "the store is damaged");
            return Err(Error::Check);
        }
    }
    let mut lanes = outbound::load_lanes(&db, &plan.lanes, status)?;
    if ends.declare(&db, &lanes)? {
        lanes = outbound::load_lanes(&db, &plan.lanes, status)?;
    }
    let mut counter = 0;
    let of_lanes = lanes.iter().map(|lane| (lane_start(lane.info.number), lane.end()));
    let local = [(lane_start(LOCAL), PACKED), (PACKED, lane_start(LOCAL + 1))];
    for (start, end) in of_lanes.chain(local) {
        let last: Option<i64> = db.query_row(
            "SELECT max(id) FROM batch WHERE id >= ?1 AND id < ?2",
            [start as i64, end as i64],
            |row| row.get(0),
        )?;
        counter = counter.max(last.map_or(0, |id| id as u64 - start));
    }
    // Rows that are gone had ids too, also those that went before older ones.
    let acked =
        lanes.iter().map(|lane| lane.acked_id.max(lane.upto) - lane_start(lane.info.number)).max();
    let observed = Observed::load(&db, Boot::now())?;
    // Of this boot from now on. On a full disk time goes on from before.
    if let Err(error) = observed.save(&db) {
        tracing::warn!(%error, "the observed time is not saved");
    }
    let restored = sessions::load(&db, seed, observed.now_ms())?;
    let marks = lanes.iter().map(|lane| (lane_start(lane.info.number), lane.acked_id));
    let mut queues = Queues::load(&db, marks)?;
    queues.entries = restored.sessions.iter().map(|session| session.queue.messages).sum();
    status.queue_bytes.set(queues.bytes());
    status.queue_entries.set(queues.entries);
    let state = State {
        edge_id: plan.edge_id.clone().into(),
        settings: Arc::new(plan.settings.clone()),
        status: status.clone(),
        counter: counter.max(acked.unwrap_or(0)) + 1,
        lanes,
        queues,
        quarantine: Held::load(&db)?,
        observed,
        full: false,
    };
    state.quarantine.publish(status);
    Ok((db, state, restored))
}

/// A connection with our pragmas and the newest schema.
fn connect(plan: &Plan, path: &Path) -> Result<Connection, Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags)?;
    db.busy_timeout(PATIENCE)?;
    db.set_prepared_statement_cache_capacity(STATEMENTS);
    db.execute_batch(&format!(
        "PRAGMA page_size={PAGE}; PRAGMA auto_vacuum=NONE; PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;
         PRAGMA wal_autocheckpoint={}; PRAGMA cache_size=-2048;
         PRAGMA temp_store=MEMORY; PRAGMA mmap_size=0; PRAGMA foreign_keys=OFF;",
        u64::from(plan.settings.checkpoint_pages) * SETTINGS_PAGE / PAGE
    ))?;
    migrate(&db)?;
    Ok(db)
}

fn max_bytes(plan: &Plan) -> u64 {
    match plan.settings.max_bytes {
        0 => {
            let lanes: u64 = plan.lanes.iter().map(|lane| lane.budget_bytes).sum();
            (lanes + plan.settings.queue_bytes) / 4 * 5 + (128 << 20)
        }
        bytes => bytes,
    }
}

fn make_folder(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        // Files in it hold what devices said; a folder of another owner is left as it is.
        return fs::set_permissions(dir, Permissions::from_mode(0o700)).or_else(|error| {
            if error.kind() == io::ErrorKind::PermissionDenied { Ok(()) } else { Err(error) }
        });
    }
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

fn lock(dir: &Path) -> Result<File, Error> {
    let folder = |cause| Error::Folder { path: dir.to_owned(), cause: Arc::new(cause) };
    let path = dir.join(LOCK);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(folder)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::InUse(dir.to_owned())),
        Err(TryLockError::Error(cause)) => Err(folder(cause)),
    }
}

/// Makes an empty file that only we can read; SQLite gives its companions the same rights.
fn private(path: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path).map(drop)
}

fn wal(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("-wal");
    name.into()
}

fn random() -> Result<u64, Error> {
    let mut bytes = [0_u8; 8];
    getrandom::fill(&mut bytes).map_err(|_| Error::Entropy)?;
    Ok(u64::from_le_bytes(bytes))
}
