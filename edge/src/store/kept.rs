//! The quarantine as people see it: another process's look at the file, whether the edge runs or not.
//!
//! ```text
//! list, export   one short read a batch: a long one would keep the write-ahead log from being reused
//! drop           deletes rows; a running edge counts again
//! retry          marks rows; the edge puts them back into their lanes within seconds, or at its next start
//! ```
//! SQLite's own locks are between this and the edge; who may read the file may do this, nobody else: the admin port shows
//! no payloads. In: a data folder. Out: batches. Change here: what is told of them. Not here: printing (`command`).

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use rusqlite::{Connection, OpenFlags, OptionalExtension};
use tributary_shared::record::{Batch, BatchError, Record};

use super::{Error, migrate, open::FILE, outbound::unsigned, reader::UNPACKED_MAX};

/// For the edge to be done with a commit.
const PATIENCE: Duration = Duration::from_secs(10);

/// A data folder's quarantine.
#[derive(Debug)]
pub struct Kept(Connection);

/// One batch of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Number in the quarantine.
    pub id: u64,
    /// Lane.
    pub lane: String,
    /// Epoch.
    pub epoch: i64,
    /// First sequence.
    pub s: u64,
    /// Messages.
    pub n: u64,
    /// When it came here, ms since 1970; 0 = not known.
    pub at_ms: i64,
    /// Why.
    pub reason: String,
    /// It is to be retried.
    pub wanted: bool,
    /// The record batch.
    pub body: Bytes,
}

impl Entry {
    /// Its messages.
    pub fn records(&self) -> Result<Vec<Record>, BatchError> {
        Batch::parse(self.body.clone())?.records(UNPACKED_MAX)
    }
}

impl Kept {
    /// Opens the store of a data folder; nothing is made or changed.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let path = dir.join(FILE);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        std::fs::metadata(&path)
            .map_err(|cause| Error::Folder { path: path.clone(), cause: Arc::new(cause) })?;
        let db = Connection::open_with_flags(&path, flags)?;
        db.busy_timeout(PATIENCE)?;
        db.execute_batch("PRAGMA synchronous=FULL")?;
        let version = db.query_row("PRAGMA user_version", [], |row| row.get::<_, u32>(0))? as usize;
        let known = migrate::VERSION;
        match version.cmp(&known) {
            std::cmp::Ordering::Less => Err(Error::Older { found: version, known }),
            std::cmp::Ordering::Equal => Ok(Self(db)),
            std::cmp::Ordering::Greater => Err(Error::Newer { found: version, known }),
        }
    }

    /// The first batch after number `after`.
    pub fn next(&self, after: u64) -> Result<Option<Entry>, Error> {
        let found = self
            .0
            .prepare_cached(
                "SELECT quarantine.id, coalesce(lane.name, 'lane-' || lane), epoch, s, n, at_ms, reason, wanted, body
                 FROM quarantine LEFT JOIN lane ON lane.number = quarantine.lane
                 WHERE quarantine.id > ?1 ORDER BY quarantine.id LIMIT 1",
            )?
            .query_row([after as i64], |row| {
                Ok(Entry {
                    id: unsigned(row, 0)?,
                    lane: row.get(1)?,
                    epoch: row.get(2)?,
                    s: unsigned(row, 3)?,
                    n: unsigned(row, 4)?,
                    at_ms: row.get(5)?,
                    reason: row.get(6)?,
                    wanted: row.get::<_, i64>(7)? != 0,
                    body: Bytes::from(row.get::<_, Vec<u8>>(8)?),
                })
            })
            .optional()?;
        Ok(found)
    }

    /// Deletes a batch. Answers whether there was one.
    pub fn drop_one(&self, id: u64) -> Result<bool, Error> {
        Ok(self.0.execute("DELETE FROM quarantine WHERE id = ?1", [id as i64])? > 0)
    }

    /// Has the edge put a batch back into its lane. Answers whether there was one.
    pub fn retry(&self, id: u64) -> Result<bool, Error> {
        Ok(self.0.execute("UPDATE quarantine SET wanted = 1 WHERE id = ?1", [id as i64])? > 0)
    }
}
