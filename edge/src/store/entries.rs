//! Queue entries: references from sessions to stored messages.
//!
//! In: the core's [`Queued`]. Out: rows, and which batch an entry that is done referred to.
//! Change here: what an entry remembers. Not here: the count of references (`group`), reading messages (`reader`).

use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension, Row};
use tributary_shared::{
    message::Message,
    mqtt::{PacketId, Qos},
    session::{RestoredQueue, SessionId, action::Queued},
};

use super::{Error, outbound::unsigned};

/// Adds an entry that refers to message `place` of `batch`.
pub(super) fn insert(
    db: &Connection,
    entry: &Queued,
    batch: u64,
    place: u64,
    message: &Message,
) -> Result<(), Error> {
    db.prepare_cached("INSERT OR REPLACE INTO queue VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9)")?.execute(
        (
            entry.session.0 as i64,
            entry.seq as i64,
            batch as i64,
            place as i64,
            flags(entry),
            entry.packet_id.map(PacketId::get),
            subs(entry),
            message.weight() as i64,
            message.expires_ms,
        ),
    )?;
    Ok(())
}

/// Its state moved.
pub(super) fn update(db: &Connection, entry: &Queued) -> Result<(), Error> {
    db.prepare_cached(
        "UPDATE queue SET flags = ?3, packet_id = ?4 WHERE session = ?1 AND seq = ?2",
    )?
    .execute((
        entry.session.0 as i64,
        entry.seq as i64,
        flags(entry),
        entry.packet_id.map(PacketId::get),
    ))?;
    Ok(())
}

/// It is done; answers the batch it referred to.
pub(super) fn remove(db: &Connection, session: SessionId, seq: u64) -> Result<Option<u64>, Error> {
    let batch = db
        .prepare_cached("DELETE FROM queue WHERE session = ?1 AND seq = ?2 RETURNING batch")?
        .query_row([session.0 as i64, seq as i64], |row| unsigned(row, 0))
        .optional()?;
    Ok(batch)
}

/// All of a session's entries are done; answers the batches and how many referred to each.
pub(super) fn remove_all(db: &Connection, session: SessionId) -> Result<Vec<(u64, i64)>, Error> {
    let mut found =
        db.prepare_cached("SELECT batch, count(*) FROM queue WHERE session = ?1 GROUP BY batch")?;
    let batches = found
        .query_map([session.0 as i64], |row| Ok((unsigned(row, 0)?, row.get(1)?)))?
        .collect::<Result<Vec<_>, _>>()?;
    db.prepare_cached("DELETE FROM queue WHERE session = ?1")?.execute([session.0 as i64])?;
    Ok(batches)
}

/// What each session has queued.
pub(super) fn spans(db: &Connection) -> Result<HashMap<SessionId, RestoredQueue>, Error> {
    let mut found = db.prepare(
        "SELECT session, min(seq), max(seq), count(*), sum(bytes) FROM queue GROUP BY session",
    )?;
    let spans = found.query_map([], |row| {
        let queue = RestoredQueue {
            messages: unsigned(row, 3)?,
            bytes: unsigned(row, 4)?,
            first_seq: unsigned(row, 1)?,
            last_seq: unsigned(row, 2)?,
        };
        Ok((SessionId(unsigned(row, 0)?), queue))
    })?;
    Ok(spans.collect::<Result<_, _>>()?)
}

/// The entry of a row `seq, flags, packet_id, subs`, columns from 0 on.
pub(super) fn from_row(row: &Row<'_>, session: SessionId) -> rusqlite::Result<Queued> {
    let flags: u8 = row.get(1)?;
    let subs: Option<Vec<u8>> = row.get(3)?;
    Ok(Queued {
        session,
        seq: unsigned(row, 0)?,
        qos: qos(flags),
        retain: flags & 4 != 0,
        subscription_ids: subs
            .unwrap_or_default()
            .as_chunks::<4>()
            .0
            .iter()
            .map(|id| u32::from_le_bytes(*id))
            .collect(),
        packet_id: row.get::<_, Option<u16>>(2)?.and_then(PacketId::new),
        released: flags & 8 != 0,
    })
}

/// QoS in bits 0 and 1.
pub(super) fn qos(flags: u8) -> Qos {
    match flags & 3 {
        0 => Qos::AtMostOnce,
        1 => Qos::AtLeastOnce,
        _ => Qos::ExactlyOnce,
    }
}

fn flags(entry: &Queued) -> u8 {
    entry.qos as u8 | u8::from(entry.retain) << 2 | u8::from(entry.released) << 3
}

fn subs(entry: &Queued) -> Option<Vec<u8>> {
    (!entry.subscription_ids.is_empty())
        .then(|| entry.subscription_ids.iter().flat_map(|id| id.to_le_bytes()).collect())
}
