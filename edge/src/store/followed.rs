//! How far what the cloud sends down is stored: one row a partition of its log.
//!
//! In: the places that go with what they brought, in one transaction. Out: all of them at the start. Change here: how a
//! place is kept. Not here: what is done with one that came before (`downlink`).

use std::collections::HashMap;

use rusqlite::Connection;

use super::Error;

/// Everything of `source` before `next` is here.
pub(super) fn save(db: &Connection, source: u64, next: u64) -> Result<(), Error> {
    db.prepare_cached("INSERT OR REPLACE INTO followed VALUES(?1, ?2)")?
        .execute((source as i64, next as i64))?;
    Ok(())
}

/// All of them mean nothing any more.
pub(super) fn forget(db: &Connection) -> Result<(), Error> {
    db.execute("DELETE FROM followed", ())?;
    Ok(())
}

/// Next place by source.
pub(super) fn load(db: &Connection) -> Result<HashMap<u64, u64>, Error> {
    let mut rows = db.prepare("SELECT source, next FROM followed")?;
    let read =
        |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64));
    Ok(rows.query_map((), read)?.collect::<Result<_, _>>()?)
}
