//! Saving what can be read of a damaged file.
//!
//! In: the file that was put aside, a new empty store. Out: rows, with their old ids, epochs and sequences, so that what
//! the cloud has already is known to it. Batches whose CRC does not match are left out; what is missing between
//! batches is declared to the cloud by `uplink`, which sees the hole.
//! Where a page on the way to rows is damaged, all pages are looked through (`pages`).
//! Change here: how rows are found in a broken tree.

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use rusqlite::{Connection, OpenFlags, params_from_iter, types::Value};
use tributary_shared::record::{Batch, mqtt::header};

use super::{Error, lane_start, outbound::unsigned, pages, reader::UNPACKED_MAX};

/// Tables copied row by row, with the order that lets both ends be read when the middle is broken.
const TABLES: [(&str, &str); 12] = [
    ("lane", "number"),
    ("session", "id"),
    ("subscription", "session, filter"),
    ("queue", "session, seq"),
    ("received", "session, packet_id"),
    ("retained", "topic"),
    ("delayed", "number"),
    ("quarantine", "id"),
    ("part", "batch, s"),
    ("observed", "one"),
    ("seen", "lane, id"),
    ("renamed", "number"),
];

/// Lane numbers that are looked for even if the table of lanes cannot be read.
const LANES: u16 = 16;

/// Rows a transaction.
const ROWS: u64 = 1000;

/// Copies what it can; what it cannot is logged.
pub(super) fn salvage(from: &Path, to: &Connection) {
    let mut saved = match copy_all(from, to) {
        Ok(saved) => saved,
        Err(error) => {
            tracing::error!(%error, "sqlite cannot read the damaged store");
            Saved { batches: 0, whole: false }
        }
    };
    if !saved.whole {
        match copy_pages(from, to) {
            Ok(batches) => saved.batches += batches,
            Err(error) => tracing::error!(%error, "not all pages of the damaged store were read"),
        }
    }
    match settle(to) {
        Ok(()) => {
            let batches = saved.batches;
            tracing::warn!(batches, "what could be read of the damaged store was saved");
        }
        Err(error) => tracing::error!(%error, "what was saved of the damaged store is in disorder"),
    }
}

/// Batches that were saved, and whether no page on the way to them was damaged.
struct Saved {
    batches: u64,
    whole: bool,
}

fn copy_all(from: &Path, to: &Connection) -> Result<Saved, Error> {
    // Writable: its write-ahead log may have to be replayed.
    let old = Connection::open_with_flags(from, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    for (table, order) in TABLES {
        let direction = |way: &str| {
            let order = order.replace(',', &format!(" {way},"));
            copy_table(&old, to, table, &format!("{order} {way}"))
        };
        if let Err(error) = direction("ASC") {
            tracing::error!(table, %error, "damaged table, trying from its other end");
            if let Err(error) = direction("DESC") {
                tracing::error!(table, %error, "rows were lost");
            }
        }
    }
    let mut lanes: Vec<u16> = to
        .prepare("SELECT number FROM lane")?
        .query_map([], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    lanes.extend(0..=LANES);
    lanes.sort_unstable();
    lanes.dedup();
    let mut saved = Saved { batches: 0, whole: true };
    for lane in lanes {
        let of_lane = copy_batches(&old, to, lane)?;
        saved.batches += of_lane.batches;
        saved.whole &= of_lane.whole;
    }
    Ok(saved)
}

/// What the tree does not lead to any more.
fn copy_pages(from: &Path, to: &Connection) -> Result<u64, Error> {
    let folder = |cause| Error::Folder { path: from.to_owned(), cause: Arc::new(cause) };
    let (mut batches, mut failed) = (0, Ok(()));
    to.execute_batch("BEGIN IMMEDIATE")?;
    let scanned = pages::scan(from, |found| {
        if failed.is_ok() {
            failed = copy_found(to, &found).map(|new| batches += new);
        }
    });
    to.execute_batch("COMMIT")?;
    scanned.map_err(folder)?;
    failed.map(|()| batches)
}

/// Answers how many rows are new.
fn copy_found(to: &Connection, found: &pages::Found) -> Result<u64, Error> {
    let acked = "SELECT 1 FROM lane WHERE number = ?1 AND acked_id >= ?2";
    let lane = (found.id >> 48) as u16;
    if to.prepare_cached(acked)?.exists([i64::from(lane), found.id as i64])? {
        return Ok(0);
    }
    name_lane(to, lane, found.body.as_deref())?;
    let new = to
        .prepare_cached(
            "INSERT OR IGNORE INTO batch(id, epoch, s, n, bytes, made_ms, reason, body)
             VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?
        .execute((
            found.id as i64,
            found.epoch,
            found.s as i64,
            found.n as i64,
            found.bytes,
            found.made_ms,
            &found.reason,
            found.body.as_deref(),
        ))?;
    Ok(new as u64)
}

/// Leaves out what belongs to nothing; everything is counted again.
fn settle(to: &Connection) -> Result<(), Error> {
    to.execute_batch(
        "BEGIN IMMEDIATE;
         DELETE FROM queue WHERE session NOT IN (SELECT id FROM session);
         DELETE FROM received WHERE session NOT IN (SELECT id FROM session);
         DELETE FROM subscription WHERE session NOT IN (SELECT id FROM session);
         INSERT OR REPLACE INTO needed SELECT batch, session, count(*), min(seq), max(seq) FROM queue
           WHERE batch IN (SELECT id FROM batch) GROUP BY batch, session;
         DELETE FROM batch WHERE id < (1 << 48) AND id NOT IN (SELECT batch FROM needed);
         UPDATE lane SET upto = acked_id, batches = 0, messages = 0, bytes = 0;
         COMMIT",
    )?;
    Ok(())
}

fn copy_table(old: &Connection, to: &Connection, table: &str, order: &str) -> Result<(), Error> {
    let mut select = old.prepare(&format!("SELECT * FROM {table} ORDER BY {order}"))?;
    // By name: the file may be of an earlier release, with fewer columns.
    let (names, columns) =
        (select.column_names().collect::<Vec<_>>().join(","), select.column_count());
    let places = vec!["?"; columns].join(",");
    let mut insert =
        to.prepare(&format!("INSERT OR IGNORE INTO {table}({names}) VALUES({places})"))?;
    let mut rows = select.query([])?;
    to.execute_batch("BEGIN IMMEDIATE")?;
    let mut copy = || -> Result<(), Error> {
        while let Some(row) = rows.next()? {
            let values =
                (0..columns).map(|at| row.get::<_, Value>(at)).collect::<Result<Vec<_>, _>>()?;
            insert.execute(params_from_iter(values))?;
        }
        Ok(())
    };
    let copied = copy();
    to.execute_batch("COMMIT")?;
    copied
}

struct Row {
    id: u64,
    values: Vec<Value>,
}

fn copy_batches(old: &Connection, to: &Connection, lane: u16) -> Result<Saved, Error> {
    let mut select =
        old.prepare("SELECT * FROM batch WHERE id > ?1 AND id < ?2 ORDER BY id LIMIT 1")?;
    let mut insert = to.prepare("INSERT OR IGNORE INTO batch VALUES(?,?,?,?,?,?,?,?)")?;
    let end = lane_start(lane + 1);
    let mut next = |after: u64| -> Result<Option<Row>, Error> {
        let mut rows = select.query([after as i64, end as i64])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        let values = (0..8).map(|at| row.get::<_, Value>(at)).collect::<Result<Vec<_>, _>>()?;
        Ok(Some(Row { id: unsigned(row, 0)?, values }))
    };
    let (mut after, mut copied, mut step) = (lane_start(lane), 0_u64, 1_u64);
    let mut whole = true;
    to.execute_batch("BEGIN IMMEDIATE")?;
    while after < end {
        match next(after) {
            // Broken here: jump further each time, then walk back to the first row that can be read.
            Err(_) => {
                whole = false;
                after = after.saturating_add(step);
                step = step.saturating_mul(2);
            }
            Ok(_) if step > 1 => {
                after = first_readable(&mut next, after.saturating_sub(step / 2), after);
                step = 1;
            }
            Ok(None) => break,
            Ok(Some(row)) => {
                after = row.id;
                if is_sound(&row) {
                    let body = match row.values.last() {
                        Some(Value::Blob(body)) => Some(&body[..]),
                        _ => None,
                    };
                    name_lane(to, lane, body)?;
                    insert.execute(params_from_iter(row.values))?;
                    copied += 1;
                    if copied.is_multiple_of(ROWS) {
                        to.execute_batch("COMMIT; BEGIN IMMEDIATE")?;
                    }
                }
            }
        }
    }
    to.execute_batch("COMMIT")?;
    Ok(Saved { batches: copied, whole })
}

/// Between a start that cannot be read and one that can: the lowest that can.
fn first_readable(
    next: &mut impl FnMut(u64) -> Result<Option<Row>, Error>,
    mut bad: u64,
    mut good: u64,
) -> u64 {
    while good - bad > 1 {
        let middle = bad + (good - bad) / 2;
        if next(middle).is_ok() { good = middle } else { bad = middle }
    }
    good
}

/// The body is a whole record batch, or there is none to have.
fn is_sound(row: &Row) -> bool {
    match row.values.last() {
        Some(Value::Blob(body)) => Batch::parse(Bytes::copy_from_slice(body)).is_ok(),
        Some(Value::Null) => true,
        _ => false,
    }
}

/// A lane whose row was lost gets it back from what its records say.
fn name_lane(to: &Connection, lane: u16, body: Option<&[u8]>) -> Result<(), Error> {
    if lane == super::LOCAL
        || to.prepare_cached("SELECT 1 FROM lane WHERE number = ?1")?.exists([lane])?
    {
        return Ok(());
    }
    let said = match body {
        Some(body) => Batch::parse(Bytes::copy_from_slice(body))
            .and_then(|batch| batch.records(UNPACKED_MAX))
            .ok()
            .and_then(|records| {
                let name = records.first()?.header(header::EDGE_LANE)?.clone();
                String::from_utf8(name.to_vec()).ok()
            }),
        None => None,
    };
    let name = said.unwrap_or_else(|| format!("lane-{lane}"));
    to.execute("INSERT OR IGNORE INTO lane VALUES(?1, ?2, 0, 0, 0, 0, 0)", (lane, name))?;
    Ok(())
}
