//! Many small batches into one, before they were ever sent.
//!
//! In: an id after which nothing was sent, and how far that is so. Out: one new immutable batch in place of a run of rows, same sequences.
//! Change here: what is worth merging. Not here: when (`uplink`).

use bytes::Bytes;
use rusqlite::Connection;
use tributary_shared::record::{Batch, BatchBuilder};

use super::{
    Error,
    group::{State, seal},
    needed,
    outbound::{self, OutboundRow, ROW_BYTES},
    reader::UNPACKED_MAX,
};

/// Rows looked at in one go.
const ROWS: usize = 256;

/// Stored bytes looked at in one go.
const BYTES: usize = 128 * 1024;

/// Fewer rows than this are not worth a write.
const RUN_MIN: usize = 4;

/// Merges the first run of small rows of a lane after `after`, up to `upto`. Answers how many became one.
pub(super) fn merge(
    db: &Connection,
    state: &mut State,
    lane: u16,
    after: u64,
    upto: u64,
) -> Result<usize, Error> {
    let (most, size) = (state.settings.batch_messages, state.settings.batch_bytes);
    let Some(lane) = state.lane(lane) else { return Ok(0) };
    let after = after.max(lane.acked_id);
    let mut rows = outbound::read_whole(db, lane.info.number, after, ROWS, BYTES)?;
    // Behind it rows may be on their way.
    rows.retain(|row| row.id <= upto);
    let Some((run, builder)) = longest_run(db, rows, most, size)? else { return Ok(0) };
    let (Some(first), Some(last)) = (run.first(), run.last()) else { return Ok(0) };
    let made_ms: i64 =
        db.query_row("SELECT made_ms FROM batch WHERE id = ?1", [first.id as i64], |row| {
            row.get(0)
        })?;
    let n = builder.count() as u64;
    let body = seal(builder, Some((first.epoch, first.s)))?;
    let gone = outbound::totals(db, first.id - 1, last.id)?;
    db.prepare_cached("DELETE FROM batch WHERE id >= ?1 AND id <= ?2")?
        .execute([first.id as i64, last.id as i64])?;
    let bytes = body.len() as u64 + ROW_BYTES;
    db.prepare_cached(
        "INSERT INTO batch(id, epoch, s, n, bytes, made_ms, body) VALUES(?1,?2,?3,?4,?5,?6,?7)",
    )?
    .execute((
        last.id as i64,
        first.epoch,
        first.s as i64,
        n as i64,
        bytes as i64,
        made_ms,
        &body[..],
    ))?;
    lane.batches = (lane.batches + 1).saturating_sub(gone.batches);
    lane.bytes = (lane.bytes + bytes).saturating_sub(gone.bytes);
    lane.save(db)?;
    Ok(run.len())
}

/// The first run worth merging: same epoch, no hole, no gap, needed by no queue, within one batch's limits.
fn longest_run(
    db: &Connection,
    rows: Vec<OutboundRow>,
    most: usize,
    size: usize,
) -> Result<Option<(Vec<OutboundRow>, BatchBuilder)>, Error> {
    let mut run: Vec<OutboundRow> = Vec::new();
    let mut builder = BatchBuilder::new();
    for row in rows {
        let follows = run.last().is_none_or(|last| last.epoch == row.epoch && last.end() == row.s);
        let fits = builder.count() + row.n as usize <= most && builder.size() < size;
        let records = match &row.body {
            Some(body) if row.reason.is_none() && !needed::is_needed(db, row.id)? => records(body),
            _ => None,
        };
        let Some(records) = records.filter(|_| follows && fits) else {
            if run.len() >= RUN_MIN {
                break;
            }
            // Not with what came before; perhaps with what follows.
            run.clear();
            builder = BatchBuilder::new();
            continue;
        };
        for record in &records {
            builder.push(record);
        }
        run.push(row);
    }
    Ok((run.len() >= RUN_MIN).then_some((run, builder)))
}

fn records(body: &Bytes) -> Option<Vec<tributary_shared::record::Record>> {
    Batch::parse(body.clone()).and_then(|batch| batch.records(UNPACKED_MAX)).ok()
}
