//! Room on the disk: what is kept free for the moment when there is none, and when publishers are let in again.
//!
//! ```text
//! SQLITE_FULL -> ballast deleted, last pages opened, log copied back -> the commit again -> goes on
//!             `-> publishers are refused (0x97) or not read; acknowledgements, reads, deletes go on in that room
//! ballast can be written again, pages are free -> publishers are let in
//! ```
//! Nothing is dropped to make room: what was acknowledged stays. A commit that finds no room even then waits for it.
//!
//! In: SQLITE_FULL. Out: [`Status::disk_full`](crate::status::Status). Change here: what is kept free.
//! Not here: budgets (`budget`, `queues`), refusing (`broker`).

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use rusqlite::Connection;

use super::Error;
use crate::status::Status;

/// How long after it was full the room is looked at; doubled each time, as each try writes the ballast.
const FIRST_LOOK: Duration = Duration::from_millis(500);
const LAST_LOOK: Duration = Duration::from_secs(30);

/// Bytes in the log before it is copied while the disk is full: it grows into what room there is.
const FULL_LOG_BYTES: u64 = 1_000_000;

/// One in so many pages of the limit is kept for deletes.
const RESERVE: u64 = 32;

/// What is kept free, and whether it is in use.
#[derive(Debug)]
pub(super) struct Room {
    ballast: PathBuf,
    ballast_bytes: u64,
    /// The limit of the file.
    pages: u64,
    /// Of the log before it is copied back.
    log_bytes: u64,
    /// Bytes of one.
    page: u64,
    /// Since when it is full, and when to look again.
    full: Option<Instant>,
    wait: Duration,
}

impl Room {
    pub(super) fn new(
        ballast: PathBuf,
        ballast_bytes: u64,
        max_bytes: u64,
        log_bytes: u64,
        page: u64,
    ) -> Self {
        let page = page.max(1);
        let pages = max_bytes / page;
        let (full, wait) = (None, FIRST_LOOK);
        Self { ballast, ballast_bytes, pages, log_bytes, page, full, wait }
    }

    /// Bytes of a page of the file.
    pub(super) fn page(&self) -> u64 {
        self.page
    }

    /// Writes the ballast and sets the limits of a connection that was just opened.
    pub(super) fn prepare(&self, db: &Connection) -> Result<(), Error> {
        if let Err(error) = make_ballast(&self.ballast, self.ballast_bytes) {
            tracing::warn!(%error, "no ballast file; a full disk may need help from outside");
        }
        self.set(db, self.pages - self.pages / RESERVE, self.log_bytes)
    }

    pub(super) fn is_full(&self) -> bool {
        self.full.is_some()
    }

    /// Gives up what was kept free. Answers whether there was anything.
    pub(super) fn use_reserve(&mut self, db: &Connection, status: &Status) -> Result<bool, Error> {
        let first = self.full.is_none();
        self.full = Some(Instant::now());
        status.disk_full.store(true, Relaxed);
        if first {
            tracing::error!(
                "the disk, or the store's share of it, is full: publishers are refused until there is room"
            );
            status.disk_full_total.add(1);
            // Missing is as good as deleted.
            let _missing = fs::remove_file(&self.ballast);
            self.set(db, self.pages, FULL_LOG_BYTES)?;
        }
        // The log's pages may be room too. It may also be impossible just now.
        let _later = db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        Ok(first)
    }

    /// When to look for room next.
    pub(super) fn look_in(&self) -> Option<Duration> {
        self.full.map(|since| self.wait.saturating_sub(since.elapsed()))
    }

    /// Looks whether what is to be kept free can be kept free again. Says whether it is.
    pub(super) fn look(&mut self, db: &Connection, status: &Status) -> Result<bool, Error> {
        if self.look_in().is_none_or(|wait| !wait.is_zero()) {
            return Ok(false);
        }
        let kept = self.pages - self.pages / RESERVE;
        let found = self.has_room(db).and_then(|has| {
            if has { self.set(db, kept, self.log_bytes).map(|()| true) } else { Ok(false) }
        });
        if !matches!(found, Ok(true)) {
            // Also after an error, or the writer would look again at once, for ever.
            self.wait = (self.wait * 2).min(LAST_LOOK);
            self.full = Some(Instant::now());
            return found;
        }
        self.full = None;
        self.wait = FIRST_LOOK;
        status.disk_full.store(false, Relaxed);
        tracing::warn!("there is room on the disk again: publishers are let in");
        Ok(true)
    }

    fn has_room(&self, db: &Connection) -> Result<bool, Error> {
        let number = |sql| db.query_row(sql, [], |row| row.get::<_, i64>(0));
        let used = number("PRAGMA page_count")? - number("PRAGMA freelist_count")?;
        let free = self.pages.saturating_sub(used.max(0) as u64);
        if free < 2 * (self.pages / RESERVE) {
            return Ok(false);
        }
        // As much again must be free, or it would be full again at once.
        if let Err(error) = make_ballast(&self.ballast, 2 * self.ballast_bytes)
            .and_then(|()| shorten(&self.ballast, self.ballast_bytes))
        {
            tracing::debug!(%error, "the disk is still full");
            let _missing = fs::remove_file(&self.ballast);
            return Ok(false);
        }
        Ok(true)
    }

    fn set(&self, db: &Connection, pages: u64, log_bytes: u64) -> Result<(), Error> {
        let checkpoint = (log_bytes / self.page).max(1);
        db.execute_batch(&format!(
            "PRAGMA max_page_count={pages}; PRAGMA wal_autocheckpoint={checkpoint}"
        ))?;
        Ok(())
    }
}

fn make_ballast(path: &Path, bytes: u64) -> io::Result<()> {
    if fs::metadata(path).is_ok_and(|found| found.len() == bytes) {
        return Ok(());
    }
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    let zeros = vec![0_u8; 64 * 1024];
    let mut left = bytes;
    while left > 0 {
        let now = left.min(zeros.len() as u64);
        file.write_all(zeros.get(..now as usize).unwrap_or(&zeros))?;
        left -= now;
    }
    file.sync_all()
}

fn shorten(path: &Path, bytes: u64) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.set_len(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_that_fails_is_not_repeated_at_once_and_lets_nobody_in() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("broken");
        fs::write(&file, [7; 8192]).unwrap();
        let db = Connection::open(&file).unwrap();
        let status = Status::default();
        status.disk_full.store(true, Relaxed);
        let mut room = Room::new(dir.path().join("ballast"), 0, 1 << 20, 1 << 20, 1024);
        room.full = Instant::now().checked_sub(FIRST_LOOK);
        assert!(room.look(&db, &status).is_err());
        assert!(room.is_full() && status.disk_full.load(Relaxed));
        assert_eq!(room.wait, 2 * FIRST_LOOK);
        assert!(room.look_in().is_some_and(|wait| wait > FIRST_LOOK));
    }
}
