//! What the cloud refused for good: out of the lane's way, kept for people.
//!
//! In: a row and which of its messages are given up; what people want retried. Out: their bodies in the quarantine, a gap
//! in their place; new messages at the end of their lane.
//! Change here: what is kept of them. Not here: how a row is cut (`parts`), what goes when a lane is full (`budget`),
//! what people see of it (`kept`).

use std::ops::Range;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension};

use tributary_shared::record::{Batch, BatchError, Record, mqtt::header};

use super::{
    Error,
    group::{Group, State},
    outbound::{OutboundRow, ROW_BYTES, unsigned},
    parts::{self, Taken},
    queues,
    reader::UNPACKED_MAX,
};
use crate::status::Status;

/// Batches a commit puts back into their lanes.
const RETRIES: u64 = 16;

/// What it holds; copied before each commit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) messages: u64,
    pub(super) bytes: u64,
    /// Batches that somebody wants retried.
    pub(super) wanted: u64,
}

impl Held {
    /// Counts it.
    pub(super) fn load(db: &Connection) -> Result<Self, Error> {
        let held = db
            .prepare_cached(
                "SELECT coalesce(sum(n), 0), coalesce(sum(length(body)), 0), coalesce(sum(wanted), 0)
                 FROM quarantine",
            )?
            .query_row([], |row| {
                let (messages, bytes) = (unsigned(row, 0)?, unsigned(row, 1)?);
                Ok(Self { messages, bytes, wanted: unsigned(row, 2)? })
            })?;
        Ok(held)
    }

    /// Shows it.
    pub(super) fn publish(&self, status: &Status) {
        status.quarantine_messages.set(self.messages);
        status.quarantine_bytes.set(self.bytes);
    }

    fn remove(&mut self, messages: u64, bytes: u64) {
        self.messages = self.messages.saturating_sub(messages);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// What giving up came to.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct GivenUp {
    /// Messages of the row.
    pub(super) messages: u64,
    /// Messages that the quarantine had no room for any more.
    pub(super) forgotten: u64,
}

/// Gives messages of a row up.
pub(super) fn give_up(
    db: &Connection,
    state: &mut State,
    id: u64,
    range: Range<u64>,
    reason: &str,
) -> Result<GivenUp, Error> {
    let number = (id >> 48) as u16;
    if state.lane(number).is_none() {
        return Ok(GivenUp::default());
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
    let Some((row, bytes, made_ms)) = found else { return Ok(GivenUp::default()) };
    let range = range.start.max(row.s)..range.end.min(row.end());
    if range.is_empty() {
        return Ok(GivenUp::default());
    }
    queues::rescue(db, state, id)?;
    // First, so that what is kept of it has this room where there is no other.
    db.prepare_cached("UPDATE batch SET body = NULL WHERE id = ?1")?.execute([id as i64])?;
    let before = parts::lost(db, id)?;
    let (taken, left) = parts::cut(db, &row, &range, reason)?;
    for taken in &taken {
        keep(db, number, &row, taken, made_ms)?;
        state.quarantine.messages += taken.n;
        state.quarantine.bytes += taken.body.len() as u64;
    }
    let forgotten = make_room(db, state)?;
    let lost = parts::lost(db, id)?;
    let bytes_now = settle(db, &row, left)?;
    let n = lost.saturating_sub(before);
    let Some(lane) = state.lane(number) else { return Ok(GivenUp::default()) };
    lane.messages = lane.messages.saturating_sub(n);
    lane.bytes = (lane.bytes + bytes_now).saturating_sub(bytes);
    lane.info.status.given_up.add(n);
    lane.save(db)?;
    Ok(GivenUp { messages: n, forgotten })
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

/// The oldest go until what is kept is within its limit. Answers how many messages went.
fn make_room(db: &Connection, state: &mut State) -> Result<u64, Error> {
    let mut forgotten = 0;
    while state.quarantine.bytes > state.settings.quarantine_bytes {
        let Some((n, bytes)) = db
            .prepare_cached(
                "DELETE FROM quarantine WHERE id = (SELECT min(id) FROM quarantine)
                 RETURNING n, length(body)",
            )?
            .query_row([], |row| Ok((unsigned(row, 0)?, unsigned(row, 1)?)))
            .optional()?
        else {
            state.quarantine = Held::default();
            break;
        };
        state.quarantine.remove(n, bytes);
        forgotten += n;
    }
    Ok(forgotten)
}

/// Puts what is wanted back at the end of its lane, as new messages of the time they were first received.
pub(super) fn retry(group: &mut Group<'_>) -> Result<(), Error> {
    let mut found = group.db.prepare_cached(
        "SELECT id, lane, body FROM quarantine WHERE wanted = 1 ORDER BY id LIMIT ?1",
    )?;
    let wanted = found
        .query_map([RETRIES as i64], |row| {
            Ok((unsigned(row, 0)?, row.get::<_, u16>(1)?, row.get::<_, Vec<u8>>(2)?))
        })?
        .collect::<Result<Vec<_>, _>>()?;
    for (id, lane, body) in wanted {
        let bytes = body.len() as u64;
        match records(body) {
            Ok(records) if group.state.lane(lane).is_some() => {
                for record in &records {
                    group.append_again(lane, record)?;
                }
                group.state.quarantine.remove(records.len() as u64, bytes);
                let delete = "DELETE FROM quarantine WHERE id = ?1";
                group.db.prepare_cached(delete)?.execute([id as i64])?;
                tracing::warn!(id, messages = records.len(), "put back from the quarantine");
            }
            unfit => {
                let why = unfit.err().map_or_else(|| "no such lane".to_owned(), |e| e.to_string());
                tracing::error!(id, why, "cannot be put back from the quarantine");
                let leave = "UPDATE quarantine SET wanted = 0 WHERE id = ?1";
                group.db.prepare_cached(leave)?.execute([id as i64])?;
            }
        }
        group.state.quarantine.wanted = group.state.quarantine.wanted.saturating_sub(1);
    }
    Ok(())
}

/// Without what said where they were in their lane.
fn records(body: Vec<u8>) -> Result<Vec<Record>, BatchError> {
    let mut records = Batch::parse(Bytes::from(body))?.records(UNPACKED_MAX)?;
    let place = [header::EDGE_ID, header::EDGE_LANE, header::EDGE_SEQ];
    for record in &mut records {
        record.headers.retain(|header| !place.contains(&&*header.name));
    }
    Ok(records)
}
