//! What the cloud refused for good: out of the lane's way, kept for people.
//!
//! In: a row and which of its messages are given up. Out: their bodies in the quarantine, a gap in their place.
//! Change here: what is kept of them. Not here: how a row is cut (`parts`), what goes when a lane is full (`budget`).

use std::ops::Range;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension};

use super::{
    Error,
    group::State,
    outbound::{OutboundRow, ROW_BYTES, unsigned},
    parts::{self, Taken},
    queues,
};

/// Gives messages of a row up. Answers how many.
pub(super) fn give_up(
    db: &Connection,
    state: &mut State,
    id: u64,
    range: Range<u64>,
    reason: &str,
) -> Result<u64, Error> {
    let number = (id >> 48) as u16;
    if state.lane(number).is_none() {
        return Ok(0);
    }
    let found = db
        .prepare_cached(
            "SELECT epoch, s, n, body, bytes, made_ms FROM batch WHERE id = ?1 AND reason IS NULL",
        )?
        .query_row([id as i64], |row| {
            let body = row.get::<_, Option<Vec<u8>>>(3)?.map(Bytes::from);
            let (epoch, s, n) = (row.get(0)?, unsigned(row, 1)?, unsigned(row, 2)?);
            let stored = OutboundRow { id, epoch, s, n, reason: None, body };
            Ok((stored, unsigned(row, 4)?, row.get::<_, i64>(5)?))
        })
        .optional()?;
    let Some((row, bytes, made_ms)) = found else { return Ok(0) };
    let range = range.start.max(row.s)..range.end.min(row.end());
    if range.is_empty() {
        return Ok(0);
    }
    queues::rescue(db, state, id)?;
    let before = parts::lost(db, id)?;
    let (taken, left) = parts::cut(db, &row, &range, reason)?;
    for taken in &taken {
        keep(db, number, &row, taken, made_ms)?;
    }
    make_room(db, state.settings.quarantine_bytes)?;
    let lost = parts::lost(db, id)?;
    let bytes_now = settle(db, &row, left)?;
    let n = lost.saturating_sub(before);
    let Some(lane) = state.lane(number) else { return Ok(n) };
    lane.messages = lane.messages.saturating_sub(n);
    lane.bytes = (lane.bytes + bytes_now).saturating_sub(bytes);
    lane.info.status.given_up.add(n);
    lane.save(db)?;
    Ok(n)
}

/// The row has parts now, or is one gap. Answers what it counts for.
fn settle(db: &Connection, row: &OutboundRow, of_parts: u64) -> Result<u64, Error> {
    let whole: Option<String> = db
        .prepare_cached(
            "SELECT reason FROM part WHERE batch = ?1 AND s = ?2 AND n = ?3 AND reason IS NOT NULL",
        )?
        .query_row([row.id as i64, row.s as i64, row.n as i64], |found| found.get(0))
        .optional()?;
    let bytes = if whole.is_some() { ROW_BYTES } else { of_parts + ROW_BYTES };
    if whole.is_some() {
        parts::forget(db, row.id, row.id)?;
    }
    db.prepare_cached("UPDATE batch SET reason = ?2, bytes = ?3, body = NULL WHERE id = ?1")?
        .execute((row.id as i64, whole, bytes as i64))?;
    Ok(bytes)
}

fn keep(
    db: &Connection,
    lane: u16,
    row: &OutboundRow,
    taken: &Taken,
    made_ms: i64,
) -> Result<(), Error> {
    db.prepare_cached(
        "INSERT INTO quarantine(lane, epoch, s, n, reason, made_ms, body, at_ms)
         VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )?
    .execute((
        lane,
        row.epoch,
        taken.s as i64,
        taken.n as i64,
        &taken.reason,
        made_ms,
        &taken.body[..],
        tributary_shared::clock::wall_ms(),
    ))?;
    Ok(())
}

/// The oldest go until what is kept is within its limit.
fn make_room(db: &Connection, cap: u64) -> Result<(), Error> {
    loop {
        let held = db
            .prepare_cached("SELECT coalesce(sum(length(body)), 0) FROM quarantine")?
            .query_row([], |row| unsigned(row, 0))?;
        let oldest = "DELETE FROM quarantine WHERE id = (SELECT min(id) FROM quarantine)";
        if held <= cap || db.prepare_cached(oldest)?.execute([])? == 0 {
            return Ok(());
        }
    }
}
