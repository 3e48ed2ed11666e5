//! The one writing thread: group commit.
//!
//! ```text
//! what came while the last commit ran --> one transaction --> COMMIT returned --> Progress.committed, answers
//! idle: at once      busy: up to `commit_window_ms` for as many again      flash budget: up to `commit_window_max_ms` (`wear`)
//! ```
//! When a commit fails for anything but want of room nothing is acknowledged any more, the thread ends, `app` opens the store
//! anew (a failed fsync leaves a page cache that cannot be trusted).
//!
//! Change here: when a commit happens. Not here: doing it (`commit`), what is in it (`group`).

use std::{
    collections::{HashMap, VecDeque},
    fs::{self, File},
    path::PathBuf,
    time::{Duration, Instant},
};

use rusqlite::Connection;
use tokio::{
    sync::{mpsc, watch},
    time,
};

use super::{
    Command, Error, Mark, Progress, budget,
    commit::Stop,
    ends::Ends,
    group::State,
    quarantine::Held,
    queues::{self, Trimmings},
    room::Room,
    wear::{Governor, Meter},
};

/// At most this often a mark makes a commit of its own.
const MARK_EVERY: Duration = Duration::from_secs(1);

/// Bodies of queues are moved when nothing came for so long.
const CHORE_AFTER: Duration = Duration::from_millis(50);

/// How often the quarantine, if there is anything in it, is looked at for what people want.
const OUTSIDE_EVERY: Duration = Duration::from_secs(2);

/// The write-ahead log is cut when it is longer. Most of the time it is not half as long.
pub(super) const LOG_BYTES: u64 = 48 * 1024 * 1024;

/// Where another process kept it from being cut, it is tried again when it has grown by so much.
const LOG_STEP: u64 = 8 * 1024 * 1024;

/// For readers to be done before the log is cut.
const LOG_PATIENCE: Duration = Duration::from_millis(200);

/// The device's counter is read at most this often.
const MEASURE_EVERY: Duration = Duration::from_secs(1);

/// A group of so many changes is worth a commit whatever the governor says.
const HELD_BACK_MAX: usize = 4000;

/// A commit of at least so many changes means that publishers are busy.
const BUSY: usize = 64;

/// The writing half's possessions.
#[derive(Debug)]
pub struct Writer {
    pub(super) db: Connection,
    pub(super) state: State,
    pub(super) commands: mpsc::Receiver<Command>,
    /// Came while a group waited for room.
    pub(super) pending: VecDeque<Command>,
    pub(super) progress: watch::Sender<Progress>,
    pub(super) trimmed: Trimmings,
    pub(super) room: Room,
    /// When and in which version the file was looked at for what other processes wrote.
    pub(super) looked: time::Instant,
    pub(super) outside: i64,
    pub(super) ends: Ends,
    pub(super) wal: PathBuf,
    /// The log is cut when it is longer.
    pub(super) log_bytes_max: u64,
    pub(super) governor: Governor,
    pub(super) meter: Meter,
    pub(super) began: time::Instant,
    /// When the last commit was done, and when the device's counter was read.
    pub(super) committed: time::Instant,
    pub(super) measured: Option<time::Instant>,
    /// Held as long as the file is open.
    pub(super) lock: File,
}

/// What the cloud has confirmed of each lane.
#[derive(Debug, Default)]
pub(super) struct Confirmed {
    pub(super) marks: HashMap<u16, Mark>,
    /// After which row, although not those before; and up to where.
    pub(super) ahead: HashMap<u16, (u64, Mark)>,
}

impl Confirmed {
    /// Takes over what a command says, in place of what was said before. Answers whether it says anything.
    pub(super) fn add(&mut self, command: &Command) -> bool {
        match command {
            Command::Acked { lane, mark } => drop(self.marks.insert(*lane, *mark)),
            Command::Ahead { lane, after, mark } => {
                self.ahead.insert(*lane, (*after, *mark));
            }
            _ => return false,
        }
        true
    }

    /// The same with what was confirmed later.
    pub(super) fn extend(&mut self, later: Self) {
        self.marks.extend(later.marks);
        self.ahead.extend(later.ahead);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.marks.is_empty() && self.ahead.is_empty()
    }
}

/// Marks that wait for a commit to ride on.
#[derive(Default)]
pub(super) struct Marks {
    pub(super) waiting: Confirmed,
    applied: Option<Instant>,
}

impl Marks {
    pub(super) fn due(&self) -> bool {
        !self.waiting.is_empty() && self.applied.is_none_or(|at| at.elapsed() >= MARK_EVERY)
    }

    pub(super) fn take_if_due(&mut self) -> Confirmed {
        if !self.due() {
            return Confirmed::default();
        }
        self.applied = Some(Instant::now());
        std::mem::take(&mut self.waiting)
    }
}

impl Writer {
    /// Runs until it is told to stop, until nobody can send any more, or until the file fails. Commits block.
    pub async fn run(mut self) {
        let mut marks = Marks::default();
        let mut last = 0;
        loop {
            let mut group = Vec::new();
            let stop = self.collect(&mut group, &marks, last).await;
            group.retain(|command| !marks.waiting.add(command));
            if stop.is_some() {
                marks.applied = None;
            }
            last = changes(&group);
            self.look_outside();
            if !group.is_empty() || marks.due() || self.has_chores() {
                match self.commit(group, &mut marks).await {
                    Ok(None) => {}
                    Ok(Some(unheard)) => {
                        tracing::warn!(
                            "closed while the disk is full: what waited for room was never acknowledged"
                        );
                        return self.end([stop.flatten(), unheard]);
                    }
                    Err(error) => {
                        tracing::error!(%error, "the store cannot commit; nothing is acknowledged any more");
                        self.progress.send_modify(|progress| progress.failed = Some(error));
                        return;
                    }
                }
            }
            if let Err(error) = self.look_for_room() {
                tracing::warn!(%error, "no look for room on the disk");
            }
            if let Some(reply) = stop {
                return self.end([reply, None]);
            }
        }
    }

    /// Closes the file, and says so to those who wait for it.
    fn end(self, told: [Stop; 2]) {
        self.close();
        for reply in told.into_iter().flatten() {
            let _gone = reply.send(());
        }
    }

    /// There is work that need not wait for a commit.
    fn has_chores(&self) -> bool {
        queues::is_due(&self.state)
            || (self.state.quarantine.wanted > 0 && !self.state.full)
            || budget::age_due_in(&self.state).is_some_and(|wait| wait.is_zero())
    }

    /// Another process may have written what it wants of the quarantine.
    fn look_outside(&mut self) {
        if self.state.quarantine.messages == 0 || self.looked.elapsed() < OUTSIDE_EVERY {
            return;
        }
        self.looked = time::Instant::now();
        let seen = self
            .db
            .query_row("PRAGMA data_version", [], |row| row.get(0))
            .map_err(Error::from)
            .and_then(|version: i64| {
                if version != self.outside {
                    self.state.quarantine = Held::load(&self.db)?;
                    self.state.quarantine.publish(&self.state.status);
                }
                Ok(version)
            });
        match seen {
            Ok(version) => self.outside = version,
            Err(error) => tracing::warn!(%error, "cannot see what is wanted of the quarantine"),
        }
    }

    /// Fills `group` with what is to be committed next. Answers when this is the last one.
    async fn collect(
        &mut self,
        group: &mut Vec<Command>,
        marks: &Marks,
        last: usize,
    ) -> Option<Stop> {
        let mark = (!marks.waiting.is_empty()).then(|| {
            marks.applied.map_or(Duration::ZERO, |at| MARK_EVERY.saturating_sub(at.elapsed()))
        });
        let chore = self.has_chores().then_some(CHORE_AFTER);
        let outside = (self.state.quarantine.messages > 0).then_some(OUTSIDE_EVERY);
        let age = budget::age_due_in(&self.state).map(|wait| wait.max(CHORE_AFTER));
        let waits = [mark, chore, outside, age, self.room.look_in()];
        let first = match waits.into_iter().flatten().min() {
            None => self.next().await,
            Some(wait) => match time::timeout(wait, self.next()).await {
                Ok(first) => first,
                Err(_) => return None,
            },
        };
        let mut next = match first {
            None => return Some(None),
            Some(Command::Stop { reply }) => return Some(Some(reply)),
            Some(first) => Some(first),
        };
        let window = self.governor.window();
        let held_back = self.governor.holds_back();
        // Held back: as if every commit were under way for a whole window. Else only those who are busy wait.
        let since = if held_back { self.committed } else { time::Instant::now() };
        let until = since + window;
        let mut size = 0;
        while let Some(command) = next.take() {
            if let Command::Apply { changes, .. } = &command {
                size += changes.len();
            }
            group.push(command);
            next = match self.waiting() {
                Some(command) => Some(command),
                // Publishers whose acknowledgements went out with the last commit are about to send as many again.
                None if (last >= BUSY && size < last / 2 && size > 0)
                    || (held_back && size < HELD_BACK_MAX) =>
                {
                    time::timeout_at(until, self.next()).await.ok().flatten()
                }
                None => None,
            };
            if let Some(Command::Stop { reply }) = next {
                return Some(Some(reply));
            }
        }
        None
    }

    async fn next(&mut self) -> Option<Command> {
        match self.pending.pop_front() {
            Some(command) => Some(command),
            None => self.commands.recv().await,
        }
    }

    fn waiting(&mut self) -> Option<Command> {
        self.pending.pop_front().or_else(|| self.commands.try_recv().ok())
    }

    /// What the device has written tells how long the next commits wait.
    pub(super) fn measure(&mut self) {
        let now = time::Instant::now();
        if self.measured.is_some_and(|at| now - at < MEASURE_EVERY) {
            return;
        }
        self.measured = Some(now);
        let Some(total) = self.meter.read() else { return };
        self.governor.wrote(now - self.began, total);
        let status = &self.state.status;
        status.flash_written_day.set(self.governor.written_day());
        let life = self.governor.life_days(self.state.settings.flash_life_gb);
        status.flash_life_days.set(life.unwrap_or(0));
        status.commit_window_ms.set(self.governor.window().as_millis() as u64);
    }

    /// A log that is never quite read to its end is never begun anew by SQLite itself: then readers wait a moment.
    pub(super) fn keep_log_short(&mut self) {
        let long = fs::metadata(&self.wal).map_or(0, |log| log.len());
        if long <= self.log_bytes_max {
            return;
        }
        let cut = self.db.busy_timeout(LOG_PATIENCE).and_then(|()| {
            self.db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0))
        });
        self.log_bytes_max = LOG_BYTES;
        if !matches!(cut, Ok(0)) {
            tracing::warn!(?cut, long, "somebody reads the store for long: its log grows");
            self.log_bytes_max = long + LOG_STEP;
        }
        if let Err(error) = self.db.busy_timeout(super::open::PATIENCE) {
            tracing::warn!(%error, "no patience with other processes");
        }
    }

    /// A full disk may have room again.
    fn look_for_room(&mut self) -> Result<(), Error> {
        if self.room.is_full() && self.room.look(&self.db, &self.state.status)? {
            self.state.full = false;
            // Those who wait for it look again.
            self.progress.send_modify(|_| {});
        }
        Ok(())
    }

    fn close(mut self) {
        let saved = self.state.lanes.iter_mut().try_for_each(|lane| lane.save(&self.db));
        let saved = saved.and_then(|()| self.state.observed.save(&self.db));
        if let Err(error) = saved {
            tracing::warn!(%error, "totals of the lanes, or the time, were not saved; the next start counts again");
        }
        let Self { db, lock, .. } = self;
        if let Err((_, error)) = db.close() {
            tracing::warn!(%error, "the store did not close cleanly");
        }
        drop(lock);
    }
}

fn changes(group: &[Command]) -> usize {
    group
        .iter()
        .map(|command| match command {
            Command::Apply { changes, .. } => changes.len(),
            _ => 0,
        })
        .sum()
}
