//! Which sessions' queue entries need which batch: one row a batch and session, with the range of their seqs.
//!
//! A row a pair, not a row an entry: a group of a thousand messages for one session writes one row, and the entries are
//! still found without an index on the queue (docs/decisions/0011).
//!
//! In: entries that were made or are done, in one transaction. Out: rows; the batches nobody needs any more.
//! Change here: how need is counted. Not here: what happens to a batch that nobody needs (`group`), or that must not
//! stay where it is (`queues`).

use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension, params};
use tributary_shared::session::SessionId;

use super::{Error, outbound::unsigned};

/// What one transaction changes, until [`Needed::save`].
#[derive(Debug, Default)]
pub(super) struct Needed(HashMap<u64, HashMap<SessionId, Change>>);

#[derive(Debug, Clone, Copy)]
struct Change {
    n: i64,
    first: u64,
    last: u64,
}

impl Needed {
    /// An entry was made that needs `batch`.
    pub(super) fn more(&mut self, batch: u64, session: SessionId, seq: u64) {
        let sessions = self.0.entry(batch).or_default();
        let change = sessions.entry(session).or_insert(Change { n: 0, first: seq, last: seq });
        change.n += 1;
        change.first = change.first.min(seq);
        change.last = change.last.max(seq);
    }

    /// So many of a session's entries that needed `batch` are done.
    pub(super) fn less(&mut self, batch: u64, session: SessionId, n: i64) {
        let sessions = self.0.entry(batch).or_default();
        sessions.entry(session).or_insert(Change { n: 0, first: u64::MAX, last: 0 }).n -= n;
    }

    /// A batch that is not written yet: whether it has to be. If not, it is forgotten.
    pub(super) fn wants(&mut self, batch: u64) -> bool {
        let wanted = self.0.get(&batch).is_some_and(|sessions| sessions.values().any(|c| c.n > 0));
        if !wanted {
            self.0.remove(&batch);
        }
        wanted
    }

    /// Writes the rows. Answers the batches that were needed and are not any more.
    pub(super) fn save(self, db: &Connection) -> Result<Vec<u64>, Error> {
        let mut free = Vec::new();
        for (batch, sessions) in self.0 {
            let mut gave = false;
            for (session, change) in sessions {
                gave |= change.n <= 0;
                if change.n > 0 {
                    add(db, batch, session, change.n, change.first, change.last)?;
                } else if change.n < 0 {
                    subtract(db, batch, session, -change.n)?;
                }
            }
            if gave && !is_needed(db, batch)? {
                free.push(batch);
            }
        }
        Ok(free)
    }
}

/// `n` more entries of a session, within these seqs.
pub(super) fn add(
    db: &Connection,
    batch: u64,
    session: SessionId,
    n: i64,
    first: u64,
    last: u64,
) -> Result<(), Error> {
    db.prepare_cached(
        "INSERT INTO needed VALUES(?1, ?2, ?3, ?4, ?5) ON CONFLICT(batch, session) DO UPDATE
         SET n = n + excluded.n, first = min(first, excluded.first), last = max(last, excluded.last)",
    )?
    .execute([batch as i64, session.0 as i64, n, first as i64, last as i64])?;
    Ok(())
}

fn subtract(db: &Connection, batch: u64, session: SessionId, n: i64) -> Result<(), Error> {
    let key = (batch as i64, session.0 as i64);
    let left: Option<i64> = db
        .prepare_cached(
            "UPDATE needed SET n = n - ?3 WHERE batch = ?1 AND session = ?2 RETURNING n",
        )?
        .query_row((key.0, key.1, n), |row| row.get(0))
        .optional()?;
    if left.is_some_and(|left| left <= 0) {
        db.prepare_cached("DELETE FROM needed WHERE batch = ?1 AND session = ?2")?.execute(key)?;
    }
    Ok(())
}

/// Some queue entry needs the batch.
pub(super) fn is_needed(db: &Connection, batch: u64) -> Result<bool, Error> {
    Ok(db.prepare_cached("SELECT 1 FROM needed WHERE batch = ?1")?.exists([batch as i64])?)
}

/// Queue entries that need batches of these ids.
pub(super) fn count(db: &Connection, from: u64, upto: u64) -> Result<u64, Error> {
    let found = db
        .prepare_cached("SELECT coalesce(sum(n), 0) FROM needed WHERE batch >= ?1 AND batch <= ?2")?
        .query_row([from as i64, upto as i64], |row| unsigned(row, 0))?;
    Ok(found)
}

/// A session that needs a batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader {
    pub(super) session: SessionId,
    pub(super) first: u64,
    pub(super) last: u64,
}

/// Everybody who needs a batch; bounded by the number of sessions.
pub(super) fn readers(db: &Connection, batch: u64) -> Result<Vec<Reader>, Error> {
    let mut found =
        db.prepare_cached("SELECT session, first, last FROM needed WHERE batch = ?1")?;
    let rows = found.query_map([batch as i64], |row| {
        Ok(Reader {
            session: SessionId(unsigned(row, 0)?),
            first: unsigned(row, 1)?,
            last: unsigned(row, 2)?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The batch is no more, or its entries are not in it any more.
pub(super) fn forget(db: &Connection, batch: u64) -> Result<(), Error> {
    db.prepare_cached("DELETE FROM needed WHERE batch = ?1")?.execute(params![batch as i64])?;
    Ok(())
}
