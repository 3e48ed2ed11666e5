//! The bodies that queues need, in rows of their own, within a budget of their own.
//!
//! ```text
//! lane row --acked upstream, still needed--> loose --oldest first, above `queue_loose_bytes`--> packed --> gone
//! local row, as small as its group ---------> loose
//! ```
//! A lane's row is the only copy of a body until the cloud has it. Most entries are done by then or soon after; what is
//! left is copied, only the messages that are needed, into large compressed rows, so that a session which is away does
//! not keep what others sent. Over the budget the oldest entries of sessions go, never what waits for the cloud.
//!
//! In: the writer's state. Out: rows moved or deleted, entries that point at their new place.
//! Change here: when bodies move, and what goes first. Not here: what a session may queue (`shared::session`).

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension};
use tributary_shared::{
    record::{Batch, BatchBuilder, Record},
    session::SessionId,
};

use super::{
    Error, LOCAL,
    group::{State, seal},
    lane_start, needed,
    outbound::{ROW_BYTES, unsigned},
    reader::UNPACKED_MAX,
};

/// First id of packed rows; local rows as groups made them lie below.
pub(super) const PACKED: u64 = 1 << 40;

/// What an entry counts for beside its body: its row, and its share of `needed`.
const ENTRY_BYTES: u64 = 48;

/// A commit moves at most so many bytes, or twice what it brought: nobody waits long, and nothing piles up.
const STEP: u64 = 4 * 1024 * 1024;

/// A packed row of which less than one in so many messages is needed is packed again before anything is dropped.
const SPARSE: u64 = 4;

/// What queues hold on disk; copied before each commit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Queues {
    /// Bytes of rows that are not packed: local ones, and those of lanes that the cloud has.
    pub(super) loose: u64,
    /// Bytes of packed rows.
    pub(super) packed: u64,
    /// Queue entries.
    pub(super) entries: u64,
    /// Those of them whose body waits for the cloud in its lane's row: dropping them would free nothing.
    pub(super) waiting: u64,
}

impl Queues {
    /// What counts against the budget.
    pub(super) fn bytes(&self) -> u64 {
        self.bodies() + self.entries.saturating_sub(self.waiting) * ENTRY_BYTES
    }

    fn bodies(&self) -> u64 {
        self.loose + self.packed
    }

    /// Entries of rows wait for the cloud no more, or are in other rows now.
    pub(super) fn left(&mut self, entries: u64) {
        self.waiting = self.waiting.saturating_sub(entries);
    }

    /// A row that only queues needed was deleted.
    pub(super) fn freed(&mut self, id: u64, bytes: u64) {
        let part =
            if (PACKED..lane_start(1)).contains(&id) { &mut self.packed } else { &mut self.loose };
        *part = part.saturating_sub(bytes);
    }

    /// Reads them; the lanes' marks say which of their rows count.
    pub(super) fn load(
        db: &Connection,
        marks: impl Iterator<Item = (u64, u64)>,
    ) -> Result<Self, Error> {
        let sum = |from: u64, upto: u64| {
            db.prepare_cached(
                "SELECT coalesce(sum(bytes), 0) FROM batch WHERE id >= ?1 AND id <= ?2",
            )?
            .query_row([from as i64, upto as i64], |row| unsigned(row, 0))
        };
        let mut queues = Self { packed: sum(PACKED, lane_start(1) - 1)?, ..Self::default() };
        queues.loose = sum(0, PACKED - 1)?;
        for (start, acked) in marks {
            queues.loose += sum(start, acked)?;
            queues.waiting += needed::count(db, acked + 1, start | (lane_start(1) - 1))?;
        }
        Ok(queues)
    }
}

/// Entries that were dropped here, messages and bytes a session.
pub(crate) type Trimmed = HashMap<SessionId, (u64, u64)>;

/// The same, until the broker takes it: the session core is to know. No more than sessions.
#[derive(Debug, Clone, Default)]
pub(super) struct Trimmings(Arc<Mutex<Trimmed>>);

impl Trimmings {
    pub(super) fn add(&self, trimmed: Trimmed) {
        if trimmed.is_empty() {
            return;
        }
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (session, (messages, bytes)) in trimmed {
            let one = all.entry(session).or_default();
            *one = (one.0 + messages, one.1 + bytes);
        }
    }

    pub(super) fn take(&self) -> Trimmed {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// There is work that need not wait for a commit.
pub(super) fn is_due(state: &State) -> bool {
    !state.full && state.queues.loose > loose_max(state) || is_over(state, 0)
}

/// Over the budget, and there is something that can go.
fn is_over(state: &State, pending: u64) -> bool {
    let queues = &state.queues;
    queues.bodies() + pending > 0 && queues.bytes() + pending > state.settings.queue_bytes
}

fn loose_max(state: &State) -> u64 {
    state.settings.queue_loose_bytes.min(state.settings.queue_bytes / 4)
}

/// Brings loose rows and all of it back within their limits, as far as one commit may take. `before`: loose bytes before
/// this commit. Answers how many entries were dropped.
pub(super) fn settle(
    db: &Connection,
    state: &mut State,
    before: u64,
    trimmed: &mut Trimmed,
) -> Result<u64, Error> {
    let step = STEP.max(state.queues.loose.saturating_sub(before).saturating_mul(2));
    let excess = state.queues.loose.saturating_sub(loose_max(state));
    let mut packer = Packer::default();
    // Packing takes room before it gives some back.
    while !state.full && packer.work < excess.min(step) {
        let Some(id) = oldest_loose(db, state)? else {
            state.queues.loose = 0;
            break;
        };
        packer.take(db, state, id)?;
    }
    let mut dropped = 0;
    while is_over(state, packer.pending()) {
        let Some(id) = oldest_packed(db, state)? else {
            (state.queues.loose, state.queues.packed) = (0, 0);
            break;
        };
        if !state.full && packer.work < 2 * step && is_sparse(db, id)? {
            packer.take(db, state, id)?;
        } else {
            dropped += drop_row(db, state, id, trimmed)?;
        }
    }
    packer.finish(db, state)?;
    Ok(dropped)
}

/// Copies what queues need of a row of a lane that is about to lose its body.
pub(super) fn rescue(db: &Connection, state: &mut State, id: u64) -> Result<(), Error> {
    if !needed::is_needed(db, id)? {
        return Ok(());
    }
    state.queues.left(needed::count(db, id, id)?);
    let mut packer = Packer { loose: true, ..Packer::default() };
    packer.copy(db, state, id)?;
    packer.finish(db, state)
}

/// The oldest row of all that are loose: counters are shared by all lanes.
fn oldest_loose(db: &Connection, state: &State) -> Result<Option<u64>, Error> {
    let mut first =
        db.prepare_cached("SELECT id FROM batch WHERE id >= ?1 AND id <= ?2 ORDER BY id LIMIT 1")?;
    let lanes = state.lanes.iter().map(|lane| (lane_start(lane.info.number), lane.acked_id));
    let mut oldest: Option<u64> = None;
    for (from, upto) in lanes.chain([(lane_start(LOCAL), PACKED - 1)]) {
        let id = first.query_row([from as i64, upto as i64], |row| unsigned(row, 0)).optional()?;
        let counter = |id: u64| id & (lane_start(1) - 1);
        if let Some(id) = id
            && oldest.is_none_or(|other| counter(id) < counter(other))
        {
            oldest = Some(id);
        }
    }
    Ok(oldest)
}

/// The oldest packed row; where there is none, the oldest of all.
fn oldest_packed(db: &Connection, state: &State) -> Result<Option<u64>, Error> {
    let found = db
        .prepare_cached("SELECT id FROM batch WHERE id >= ?1 AND id < ?2 ORDER BY id LIMIT 1")?
        .query_row([PACKED as i64, lane_start(1) as i64], |row| unsigned(row, 0))
        .optional()?;
    if found.is_some() { Ok(found) } else { oldest_loose(db, state) }
}

fn is_sparse(db: &Connection, id: u64) -> Result<bool, Error> {
    let n = db
        .prepare_cached("SELECT n FROM batch WHERE id = ?1")?
        .query_row([id as i64], |row| unsigned(row, 0))?;
    let live = db
        .prepare_cached("SELECT coalesce(sum(n), 0) FROM needed WHERE batch = ?1")?
        .query_row([id as i64], |row| unsigned(row, 0))?;
    Ok(live * SPARSE < n)
}

/// The entries that need a row go, and the row.
fn drop_row(
    db: &Connection,
    state: &mut State,
    id: u64,
    trimmed: &mut Trimmed,
) -> Result<u64, Error> {
    let mut dropped = 0;
    for reader in needed::readers(db, id)? {
        let mut delete = db.prepare_cached(
            "DELETE FROM queue WHERE session = ?1 AND seq >= ?2 AND seq <= ?3 AND batch = ?4
             RETURNING bytes",
        )?;
        let range = [reader.session.0 as i64, reader.first as i64, reader.last as i64, id as i64];
        let mut rows = delete.query(range)?;
        let (messages, bytes) = trimmed.entry(reader.session).or_default();
        while let Some(row) = rows.next()? {
            *messages += 1;
            *bytes += unsigned(row, 0)?;
            dropped += 1;
        }
    }
    state.queues.entries = state.queues.entries.saturating_sub(dropped);
    needed::forget(db, id)?;
    delete_row(db, state, id)?;
    Ok(dropped)
}

/// Deletes a row that only queues needed.
pub(super) fn delete_row(db: &Connection, state: &mut State, id: u64) -> Result<(), Error> {
    let bytes = db
        .prepare_cached("DELETE FROM batch WHERE id = ?1 RETURNING bytes")?
        .query_row([id as i64], |row| unsigned(row, 0))
        .optional()?;
    state.queues.freed(id, bytes.unwrap_or(0));
    Ok(())
}

/// Makes large rows of small or sparse ones.
#[derive(Default)]
struct Packer {
    builder: BatchBuilder,
    /// Of the row being filled.
    id: u64,
    made_ms: i64,
    /// Its rows are to be packed later, with others.
    loose: bool,
    /// Bytes and entries moved so far, for the limit of a step.
    work: u64,
}

impl Packer {
    /// Bytes that are in no row at the moment, at most.
    fn pending(&self) -> u64 {
        if self.builder.count() == 0 { 0 } else { self.builder.size() as u64 + 2 * ROW_BYTES }
    }

    /// Moves what is needed of a row, and deletes it.
    fn take(&mut self, db: &Connection, state: &mut State, id: u64) -> Result<(), Error> {
        self.copy(db, state, id)?;
        delete_row(db, state, id)
    }

    fn copy(&mut self, db: &Connection, state: &mut State, id: u64) -> Result<(), Error> {
        let (made_ms, body): (i64, Option<Vec<u8>>) = db
            .prepare_cached("SELECT made_ms, body FROM batch WHERE id = ?1")?
            .query_row([id as i64], |row| Ok((row.get(0)?, row.get(1)?)))?;
        self.work += ROW_BYTES + body.as_ref().map_or(0, Vec::len) as u64;
        let records = records(id, body);
        let readers = needed::readers(db, id)?;
        let mut places: BTreeMap<u64, u64> = BTreeMap::new();
        for reader in &readers {
            of_reader(db, id, reader, |_, place| {
                places.insert(place, 0);
            })?;
        }
        self.start(db, state, places.len(), made_ms)?;
        places.retain(|place, to| {
            // A body that is lost stays lost; the reader of its entry says so.
            let Some(record) = records.get(*place as usize) else { return false };
            *to = self.builder.count() as u64;
            self.builder.push(record);
            true
        });
        for reader in &readers {
            self.point(db, id, reader, &places)?;
        }
        needed::forget(db, id)
    }

    /// Makes a reader's entries point at the new row.
    fn point(
        &mut self,
        db: &Connection,
        id: u64,
        reader: &needed::Reader,
        places: &BTreeMap<u64, u64>,
    ) -> Result<(), Error> {
        let mut entries = Vec::new();
        of_reader(db, id, reader, |seq, place| {
            entries.extend(places.get(&place).map(|to| (seq, *to)));
        })?;
        let mut update = db.prepare_cached(
            "UPDATE queue SET batch = ?3, place = ?4 WHERE session = ?1 AND seq = ?2",
        )?;
        for (seq, to) in &entries {
            update.execute([reader.session.0 as i64, *seq as i64, self.id as i64, *to as i64])?;
        }
        self.work += entries.len() as u64 * ENTRY_BYTES;
        let (Some((first, _)), Some((last, _))) = (entries.first(), entries.last()) else {
            return Ok(());
        };
        needed::add(db, self.id, reader.session, entries.len() as i64, *first, *last)
    }

    /// Room for so many messages, in this row or in a new one.
    fn start(
        &mut self,
        db: &Connection,
        state: &mut State,
        messages: usize,
        made_ms: i64,
    ) -> Result<(), Error> {
        let settings = &state.settings;
        if self.builder.count() + messages > settings.batch_messages
            || self.builder.size() >= settings.batch_bytes
        {
            self.finish(db, state)?;
        }
        if self.builder.count() == 0 {
            self.id = state.next_id(LOCAL) | if self.loose { 0 } else { PACKED };
            self.made_ms = made_ms;
        }
        Ok(())
    }

    /// Writes the row that is being filled.
    fn finish(&mut self, db: &Connection, state: &mut State) -> Result<(), Error> {
        let builder = std::mem::take(&mut self.builder);
        let n = builder.count();
        if n == 0 {
            return Ok(());
        }
        let body = seal(builder, None)?;
        let bytes = body.len() as u64 + ROW_BYTES;
        db.prepare_cached(
            "INSERT INTO batch(id, epoch, s, n, bytes, made_ms, body) VALUES(?1,0,0,?2,?3,?4,?5)",
        )?
        .execute((self.id as i64, n as i64, bytes as i64, self.made_ms, &body[..]))?;
        *(if self.loose { &mut state.queues.loose } else { &mut state.queues.packed }) += bytes;
        Ok(())
    }
}

/// Empty if the row has no sound body.
fn records(id: u64, body: Option<Vec<u8>>) -> Vec<Record> {
    let Some(body) = body else { return Vec::new() };
    Batch::parse(Bytes::from(body))
        .and_then(|batch| batch.records(UNPACKED_MAX))
        .inspect_err(
            |why| tracing::error!(id, %why, "stored batch is damaged; queues lose messages"),
        )
        .unwrap_or_default()
}

/// Seq and place of a reader's entries that need a batch, in order of seq.
fn of_reader(
    db: &Connection,
    id: u64,
    reader: &needed::Reader,
    mut each: impl FnMut(u64, u64),
) -> Result<(), Error> {
    let mut found = db.prepare_cached(
        "SELECT seq, place FROM queue WHERE session = ?1 AND seq >= ?2 AND seq <= ?3 AND batch = ?4
         ORDER BY seq",
    )?;
    let of = [reader.session.0, reader.first, reader.last, id];
    let mut rows = found.query(of.map(|number| number as i64))?;
    while let Some(row) = rows.next()? {
        each(unsigned(row, 0)?, unsigned(row, 1)?);
    }
    Ok(())
}
