//! The parts of a row of which some messages were given up: batches and gaps in the order of their sequences.
//!
//! Ids of rows are neighbours, so nothing fits between two of them: the parts of a row share its id, and a mark (id, end)
//! orders them. Queues need no row that has parts (`queues::rescue` ran first); it is not merged either.
//!
//! In: a row and the sequences to be given up. Out: parts, and the batches for the quarantine.
//! Change here: how a row is cut. Not here: what is kept of what was given up (`quarantine`).

use std::ops::Range;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension};
use tributary_shared::record::{Batch, BatchBuilder, BatchError, Record};

use super::{
    Error,
    group::seal,
    outbound::{OutboundRow, ROW_BYTES, unsigned},
    reader::UNPACKED_MAX,
};

/// A batch that was given up.
pub(super) struct Taken {
    pub(super) s: u64,
    pub(super) n: u64,
    pub(super) reason: String,
    pub(super) body: Bytes,
}

/// The parts of a row; the row itself if it has none.
pub(super) fn read(db: &Connection, row: OutboundRow) -> Result<Vec<OutboundRow>, Error> {
    let parts = select(db, &row, &(0..i64::MAX as u64))?;
    Ok(if parts.is_empty() { vec![row] } else { parts })
}

/// The parts of rows `from..=upto` go with them.
pub(super) fn forget(db: &Connection, from: u64, upto: u64) -> Result<(), Error> {
    db.prepare_cached("DELETE FROM part WHERE batch >= ?1 AND batch <= ?2")?
        .execute([from as i64, upto as i64])?;
    Ok(())
}

/// Messages of a row that are given up already.
pub(super) fn lost(db: &Connection, batch: u64) -> Result<u64, Error> {
    let n = db
        .prepare_cached(
            "SELECT coalesce(sum(n), 0) FROM part WHERE batch = ?1 AND reason IS NOT NULL",
        )?
        .query_row([batch as i64], |row| unsigned(row, 0))?;
    Ok(n)
}

/// Gives `range` of a row up. Answers what was taken out, and what the row counts for from now on.
pub(super) fn cut(
    db: &Connection,
    row: &OutboundRow,
    range: &Range<u64>,
    reason: &str,
) -> Result<(Vec<Taken>, u64), Error> {
    let stored = if row.body.is_some() { vec![row.clone()] } else { select(db, row, range)? };
    if stored.is_empty() {
        // Nothing of it was ever there to be sent.
        insert_gap(db, &OutboundRow { reason: Some(reason.to_owned()), ..row.clone() })?;
    }
    let mut taken = Vec::new();
    for part in stored {
        // What was given up before stays so.
        let Some(body) = &part.body else { continue };
        remove(db, &part)?;
        for piece in pieces(&part, body, range, reason) {
            let Some(reason) = piece.reason.clone() else {
                insert(db, &piece)?;
                continue;
            };
            insert_gap(db, &piece)?;
            let (s, n) = (piece.s, piece.n);
            taken.extend(piece.body.map(|body| Taken { s, n, reason, body }));
        }
    }
    let bytes = db
        .prepare_cached(
            "SELECT coalesce(sum(coalesce(length(body), 0) + ?2), 0) FROM part WHERE batch = ?1",
        )?
        .query_row([row.id as i64, ROW_BYTES as i64], |found| unsigned(found, 0))?;
    Ok((taken, bytes))
}

/// A batch in up to three pieces; that with a reason is the middle one, with its body. What cannot be read is one piece.
fn pieces(part: &OutboundRow, body: &Bytes, range: &Range<u64>, reason: &str) -> Vec<OutboundRow> {
    let (from, to) = (range.start.max(part.s), range.end.min(part.end()));
    let whole = |reason: String| vec![OutboundRow { reason: Some(reason), ..part.clone() }];
    if (from, to) == (part.s, part.end()) {
        return whole(reason.to_owned());
    }
    try_pieces(part, body, from, to, reason)
        .unwrap_or_else(|error| whole(format!("damaged on disk: {error}")))
}

fn try_pieces(
    part: &OutboundRow,
    body: &Bytes,
    from: u64,
    to: u64,
    reason: &str,
) -> Result<Vec<OutboundRow>, BatchError> {
    let records = Batch::parse(body.clone())?.records(UNPACKED_MAX)?;
    let mut out = Vec::new();
    for (range, reason) in [(part.s..from, None), (from..to, Some(reason)), (to..part.end(), None)]
    {
        let (first, last) = ((range.start - part.s) as usize, (range.end - part.s) as usize);
        let Some(records) = records.get(first..last) else { return Err(BatchError::Empty) };
        if records.is_empty() {
            continue;
        }
        out.push(OutboundRow {
            id: part.id,
            epoch: part.epoch,
            s: range.start,
            n: records.len() as u64,
            reason: reason.map(str::to_owned),
            body: Some(batch(records, (part.epoch, range.start))?),
        });
    }
    Ok(out)
}

fn batch(records: &[Record], at: (i64, u64)) -> Result<Bytes, BatchError> {
    let mut builder = BatchBuilder::new();
    for record in records {
        builder.push(record);
    }
    seal(builder, Some(at))
}

fn select(
    db: &Connection,
    row: &OutboundRow,
    range: &Range<u64>,
) -> Result<Vec<OutboundRow>, Error> {
    let end = range.end.min(i64::MAX as u64);
    let mut found = db.prepare_cached(
        "SELECT s, n, reason, body FROM part WHERE batch = ?1 AND s < ?3 AND s + n > ?2 ORDER BY s",
    )?;
    let parts = found.query_map([row.id as i64, range.start as i64, end as i64], |part| {
        Ok(OutboundRow {
            id: row.id,
            epoch: row.epoch,
            s: unsigned(part, 0)?,
            n: unsigned(part, 1)?,
            reason: part.get(2)?,
            body: part.get::<_, Option<Vec<u8>>>(3)?.map(Bytes::from),
        })
    })?;
    Ok(parts.collect::<Result<_, _>>()?)
}

fn remove(db: &Connection, part: &OutboundRow) -> Result<(), Error> {
    db.prepare_cached("DELETE FROM part WHERE batch = ?1 AND s = ?2")?
        .execute([part.id as i64, part.s as i64])?;
    Ok(())
}

fn insert(db: &Connection, part: &OutboundRow) -> Result<(), Error> {
    db.prepare_cached("INSERT INTO part(batch, s, n, body) VALUES(?1, ?2, ?3, ?4)")?.execute((
        part.id as i64,
        part.s as i64,
        part.n as i64,
        part.body.as_deref(),
    ))?;
    Ok(())
}

/// Gaps that touch and have one reason are one gap.
fn insert_gap(db: &Connection, part: &OutboundRow) -> Result<(), Error> {
    let after: Option<u64> = db
        .prepare_cached("DELETE FROM part WHERE batch = ?1 AND s = ?2 AND reason = ?3 RETURNING n")?
        .query_row((part.id as i64, part.end() as i64, &part.reason), |row| unsigned(row, 0))
        .optional()?;
    let n = part.n + after.unwrap_or(0);
    let grown = db
        .prepare_cached(
            "UPDATE part SET n = n + ?3 WHERE batch = ?1 AND s + n = ?2 AND reason = ?4",
        )?
        .execute((part.id as i64, part.s as i64, n as i64, &part.reason))?;
    if grown == 0 {
        db.prepare_cached("INSERT INTO part(batch, s, n, reason) VALUES(?1, ?2, ?3, ?4)")?
            .execute((part.id as i64, part.s as i64, n as i64, &part.reason))?;
    }
    Ok(())
}
