//! Epochs that another gateway uses, too (a machine's snapshot resumed twice): under which name their rest goes upstream.
//!
//! Rows stay as they are; the uplink gives them the other epoch as it sends them. That has to be known to every later start, or
//! what the cloud has of them would come to it again under a third name.
//! In: an epoch and its first sequence that the cloud does not have. Out: the new epoch. Change here: how a name is kept.
//! Not here: who finds out (`link`, `uplink::sending`), what is sent (`uplink::renamed`).

use rusqlite::Connection;

use super::Error;

/// Names kept a lane, the newest: what was renamed so many times ago has long been sent.
const KEPT: i64 = 64;

/// An epoch under another name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Renamed {
    /// As in the rows.
    pub epoch: i64,
    /// From this sequence on, which becomes sequence 0.
    pub from: u64,
    /// As the cloud is told.
    pub to: i64,
}

/// Gives the rest of an epoch a name that nobody else has.
pub(super) fn rename(db: &Connection, lane: u16, epoch: i64, from: u64) -> Result<i64, Error> {
    let mut random = [0_u8; 8];
    getrandom::fill(&mut random).map_err(|_| Error::Entropy)?;
    let to = (u64::from_le_bytes(random) >> 1) as i64;
    db.execute(
        "INSERT INTO renamed(lane, epoch, s, name) VALUES(?1, ?2, ?3, ?4)
         ON CONFLICT(lane, epoch) DO UPDATE SET s = excluded.s, name = excluded.name",
        (lane, epoch, from as i64, to),
    )?;
    db.execute(
        "DELETE FROM renamed WHERE lane = ?1
         AND number NOT IN (SELECT number FROM renamed WHERE lane = ?1 ORDER BY number DESC LIMIT ?2)",
        (lane, KEPT),
    )?;
    Ok(to)
}

/// A lane's.
pub(super) fn load(db: &Connection, lane: u16) -> Result<Vec<Renamed>, Error> {
    let mut rows = db.prepare("SELECT epoch, s, name FROM renamed WHERE lane = ?1")?;
    let read = |row: &rusqlite::Row<'_>| {
        Ok(Renamed { epoch: row.get(0)?, from: row.get::<_, i64>(1)? as u64, to: row.get(2)? })
    };
    Ok(rows.query_map([lane], read)?.collect::<Result<_, _>>()?)
}
