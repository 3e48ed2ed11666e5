//! The outbound lanes: rows, totals, the acked mark, trimming.
//!
//! In: what `group` appended, marks from `uplink`. Out: [`OutboundRow`]s in the order of their ids.
//! Change here: the rows of a lane. Not here: which rows are given up (`budget`), making one of many (`merge`).

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use bytestring::ByteString;
use rusqlite::{Connection, OptionalExtension, Row};

use super::{Error, age, lane_start, parts};
use crate::{lane, status::LaneStatus};

/// What a row counts for beside its body.
pub(super) const ROW_BYTES: u64 = 64;

/// A lane's totals are saved after this many rows, so that a start reads no more than these.
const SAVE_EVERY: u32 = 1000;

/// One row of a lane as `uplink` sees it, or one part of a row of which some messages were given up: the parts of a row
/// have its id, follow each other, and together have its sequences.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboundRow {
    /// Row.
    pub id: u64,
    /// Epoch.
    pub epoch: i64,
    /// First sequence.
    pub s: u64,
    /// Sequences.
    pub n: u64,
    /// Set: these sequences were given up; nothing but a gap is to be sent.
    pub reason: Option<String>,
    /// The record batch.
    pub body: Option<Bytes>,
}

impl OutboundRow {
    /// One after its last sequence.
    pub fn end(&self) -> u64 {
        self.s + self.n
    }
}

/// How far the cloud has confirmed a lane: all rows before `id`, and of row `id` all sequences before `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Row.
    pub id: u64,
    /// Sequence.
    pub end: u64,
}

/// What of a lane never changes while the store is open.
#[derive(Debug)]
pub(super) struct LaneInfo {
    pub(super) number: u16,
    pub(super) name: ByteString,
    pub(super) settings: Option<lane::Settings>,
    pub(super) status: Arc<LaneStatus>,
}

/// A lane as the writer keeps it; copied before each commit, so that a failed one can be undone.
#[derive(Debug, Clone)]
pub(super) struct LaneState {
    pub(super) info: Arc<LaneInfo>,
    /// Made with the first append.
    pub(super) epoch: Option<i64>,
    pub(super) next_seq: u64,
    pub(super) acked_id: u64,
    pub(super) upto: u64,
    pub(super) batches: u64,
    pub(super) messages: u64,
    pub(super) bytes: u64,
    /// Rows before it were already given up.
    pub(super) given_up_to: u64,
    /// Rows appended since the totals were saved.
    pub(super) unsaved: u32,
    /// Since when rows wait; empty where the lane has no limit of age.
    pub(super) seen: age::Marks,
}

/// Totals of a range of rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) batches: u64,
    pub(super) messages: u64,
    pub(super) bytes: u64,
}

impl LaneState {
    /// One after the lane's last possible id.
    pub(super) fn end(&self) -> u64 {
        lane_start(self.info.number + 1)
    }

    /// How long its messages may wait, if that has a limit.
    pub(super) fn age(&self) -> Option<Duration> {
        let age = self.info.settings.as_ref().map_or(0, |settings| settings.budget_age_s);
        (age > 0).then(|| Duration::from_secs(age))
    }

    /// A row was appended.
    pub(super) fn appended(&mut self, id: u64, messages: u64, bytes: u64) {
        self.upto = id;
        self.batches += 1;
        self.messages += messages;
        self.bytes += bytes;
        self.unsaved += 1;
    }

    /// Applies the cloud's mark and deletes what nobody needs any more. Answers how many messages it confirmed, and the
    /// bytes of rows that stay because queues need them.
    pub(super) fn apply_mark(&mut self, db: &Connection, mark: Mark) -> Result<(u64, u64), Error> {
        let row_end: Option<i64> = db
            .prepare_cached("SELECT s + n FROM batch WHERE id = ?1")?
            .query_row([mark.id as i64], |row| row.get(0))
            .optional()?;
        let whole = row_end.is_none_or(|end| end as u64 <= mark.end);
        let upto = if whole { mark.id } else { mark.id.saturating_sub(1) };
        if upto <= self.acked_id {
            return Ok((0, 0));
        }
        let gone = totals(db, self.acked_id, upto)?;
        db.prepare_cached(
            "DELETE FROM batch WHERE id > ?1 AND id <= ?2
             AND id NOT IN (SELECT batch FROM needed WHERE batch > ?1 AND batch <= ?2)",
        )?
        .execute([self.acked_id as i64, upto as i64])?;
        parts::forget(db, self.acked_id + 1, upto)?;
        let kept = totals(db, self.acked_id, upto)?.bytes;
        self.acked_id = upto;
        self.batches = self.batches.saturating_sub(gone.batches);
        self.messages = self.messages.saturating_sub(gone.messages);
        self.bytes = self.bytes.saturating_sub(gone.bytes);
        if upto >= self.upto {
            // Nothing waits: whatever the totals drifted by is gone too.
            (self.batches, self.messages, self.bytes) = (0, 0, 0);
        }
        self.save(db)?;
        Ok((gone.messages, kept))
    }

    /// Deletes the rows from `after` to the mark that no queue needs: the cloud has them, although not yet those before.
    /// Answers how many messages it confirmed.
    pub(super) fn apply_ahead(
        &mut self,
        db: &Connection,
        after: u64,
        mark: Mark,
    ) -> Result<u64, Error> {
        let row_end: Option<i64> = db
            .prepare_cached("SELECT s + n FROM batch WHERE id = ?1")?
            .query_row([mark.id as i64], |row| row.get(0))
            .optional()?;
        let whole = row_end.is_none_or(|end| end as u64 <= mark.end);
        let upto = if whole { mark.id } else { mark.id.saturating_sub(1) };
        // The lane's last row stays: it shows the next start that nothing is lost after it (`ends`).
        let upto = upto.min(self.upto.saturating_sub(1));
        let after = after.max(self.acked_id);
        if upto <= after {
            return Ok(0);
        }
        let before = totals(db, after, upto)?;
        parts::forget(db, after + 1, upto)?;
        db.prepare_cached(
            "DELETE FROM batch WHERE id > ?1 AND id <= ?2
             AND id NOT IN (SELECT batch FROM needed WHERE batch > ?1 AND batch <= ?2)",
        )?
        .execute([after as i64, upto as i64])?;
        let kept = totals(db, after, upto)?;
        let gone = before.messages.saturating_sub(kept.messages);
        self.batches = (self.batches + kept.batches).saturating_sub(before.batches);
        self.messages = self.messages.saturating_sub(gone);
        self.bytes = (self.bytes + kept.bytes).saturating_sub(before.bytes);
        self.save(db)?;
        Ok(gone)
    }

    /// The next message begins an epoch. Answers the last row before.
    pub(super) fn end_epoch(&mut self) -> u64 {
        self.epoch = None;
        self.upto
    }

    /// Saves the totals if it is time to.
    pub(super) fn save_sometimes(&mut self, db: &Connection) -> Result<(), Error> {
        if self.unsaved >= SAVE_EVERY { self.save(db) } else { Ok(()) }
    }

    /// Saves mark and totals.
    pub(super) fn save(&mut self, db: &Connection) -> Result<(), Error> {
        db.prepare_cached(
            "UPDATE lane SET acked_id = ?2, upto = ?3, batches = ?4, messages = ?5, bytes = ?6
             WHERE number = ?1",
        )?
        .execute([
            i64::from(self.info.number),
            self.acked_id as i64,
            self.upto as i64,
            self.batches as i64,
            self.messages as i64,
            self.bytes as i64,
        ])?;
        self.unsaved = 0;
        Ok(())
    }

    /// Shows the totals.
    pub(super) fn publish(&self, db: &Connection) -> Result<(), Error> {
        let status = &self.info.status;
        status.batches.set(self.batches);
        status.messages.set(self.messages);
        status.bytes.set(self.bytes);
        let moved = status.acked_id.get() != self.acked_id;
        status.acked_id.set(self.acked_id);
        if self.batches == 0 {
            status.oldest_ms.store(0, Relaxed);
        } else if moved || status.oldest_ms.load(Relaxed) == 0 {
            let oldest: Option<i64> = db
                .prepare_cached("SELECT made_ms FROM batch WHERE id > ?1 AND id < ?2 LIMIT 1")?
                .query_row([self.acked_id as i64, self.end() as i64], |row| row.get(0))
                .optional()?;
            status.oldest_ms.store(oldest.unwrap_or(0), Relaxed);
        }
        Ok(())
    }
}

/// Reads the lanes' rows; a configured lane that has none yet gets one.
pub(super) fn load_lanes(
    db: &Connection,
    settings: &[lane::Settings],
    status: &crate::status::Status,
) -> Result<Vec<LaneState>, Error> {
    for lane in settings {
        db.execute(
            "INSERT INTO lane SELECT (SELECT coalesce(max(number), 0) + 1 FROM lane), ?1, 0, 0, 0, 0, 0
             WHERE NOT EXISTS (SELECT 1 FROM lane WHERE name = ?1)",
            [&lane.name],
        )?;
    }
    let mut found = db.prepare(
        "SELECT number, name, acked_id, upto, batches, messages, bytes FROM lane ORDER BY number",
    )?;
    let rows = found.query_map([], |row| {
        let name: String = row.get(1)?;
        let info = LaneInfo {
            number: row.get(0)?,
            settings: settings.iter().find(|lane| lane.name == name).cloned(),
            status: status.lane(&name),
            name: name.into(),
        };
        let start = lane_start(info.number);
        Ok(LaneState {
            info: Arc::new(info),
            epoch: None,
            next_seq: 0,
            acked_id: unsigned(row, 2)?.max(start),
            upto: unsigned(row, 3)?.max(start),
            batches: unsigned(row, 4)?,
            messages: unsigned(row, 5)?,
            bytes: unsigned(row, 6)?,
            given_up_to: 0,
            unsaved: 0,
            seen: age::Marks::default(),
        })
    })?;
    let mut lanes = rows.collect::<Result<Vec<_>, _>>()?;
    for lane in &mut lanes {
        lane.seen = age::Marks::load(db, lane.info.number)?;
        let last: Option<i64> = db.query_row(
            "SELECT max(id) FROM batch WHERE id > ?1 AND id < ?2",
            [lane.upto as i64, lane.end() as i64],
            |row| row.get(0),
        )?;
        if let Some(last) = last.map(|id| id as u64) {
            let new = totals(db, lane.upto, last)?;
            lane.upto = last;
            lane.batches += new.batches;
            lane.messages += new.messages;
            lane.bytes += new.bytes;
            lane.save(db)?;
        }
        lane.publish(db)?;
    }
    Ok(lanes)
}

/// Rows `after < id <= upto` counted.
pub(super) fn totals(db: &Connection, after: u64, upto: u64) -> Result<Totals, Error> {
    let found = db
        .prepare_cached(
            "SELECT count(*), coalesce(sum(CASE WHEN reason IS NULL THEN n ELSE 0 END), 0)
                      - (SELECT coalesce(sum(n), 0) FROM part
                         WHERE batch > ?1 AND batch <= ?2 AND reason IS NOT NULL),
                    coalesce(sum(bytes), 0)
             FROM batch WHERE id > ?1 AND id <= ?2",
        )?
        .query_row([after as i64, upto as i64], |row| {
            Ok(Totals {
                batches: unsigned(row, 0)?,
                messages: unsigned(row, 1)?,
                bytes: unsigned(row, 2)?,
            })
        })?;
    Ok(found)
}

/// Reads rows of a lane in order, all parts of each; stops before `bytes` would be exceeded, but gives at least one.
pub(super) fn read(
    db: &Connection,
    lane: u16,
    after: u64,
    rows: usize,
    bytes: usize,
) -> Result<Vec<OutboundRow>, Error> {
    read_with(db, lane, after, rows, bytes, |row| {
        if row.reason.is_some() || row.body.is_some() {
            Ok(vec![row])
        } else {
            parts::read(db, row)
        }
    })
}

/// The same, but a row in parts is one row without reason and body.
pub(super) fn read_whole(
    db: &Connection,
    lane: u16,
    after: u64,
    rows: usize,
    bytes: usize,
) -> Result<Vec<OutboundRow>, Error> {
    read_with(db, lane, after, rows, bytes, |row| Ok(vec![row]))
}

fn read_with(
    db: &Connection,
    lane: u16,
    after: u64,
    rows: usize,
    bytes: usize,
    of_row: impl Fn(OutboundRow) -> Result<Vec<OutboundRow>, Error>,
) -> Result<Vec<OutboundRow>, Error> {
    let mut found = db.prepare_cached(
        "SELECT id, epoch, s, n, reason, CASE WHEN reason IS NULL THEN body END FROM batch
         WHERE id > ?1 AND id < ?2 ORDER BY id LIMIT ?3",
    )?;
    let after = after.max(lane_start(lane));
    let mut cursor = found.query([after as i64, lane_start(lane + 1) as i64, rows as i64])?;
    let mut out = Vec::new();
    let mut size = 0;
    while let Some(row) = cursor.next()? {
        let found = of_row(OutboundRow {
            id: unsigned(row, 0)?,
            epoch: row.get(1)?,
            s: unsigned(row, 2)?,
            n: unsigned(row, 3)?,
            reason: row.get(4)?,
            body: row.get::<_, Option<Vec<u8>>>(5)?.map(Bytes::from),
        })?;
        size += found.iter().filter_map(|row| row.body.as_ref()).map(Bytes::len).sum::<usize>();
        if size > bytes && !out.is_empty() {
            break;
        }
        out.extend(found);
    }
    Ok(out)
}

/// An integer column that is never negative.
pub(super) fn unsigned(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    Ok(row.get::<_, i64>(column)?.max(0) as u64)
}
