//! The reading thread: its own connection, one short read transaction a question.
//!
//! In: [`Query`]. Out: rows. A long read would keep the write-ahead log from being reused, so each answer is bounded.
//! Change here: what can be asked. Not here: anything that writes (`writer`).

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension};
use tokio::sync::mpsc;
use tributary_shared::{
    message::Message,
    record::{Batch, Record, mqtt},
    session::{SessionId, event::LoadedEntry},
};

use super::{
    Error, Query,
    age::{Observed, expiring},
    entries, outbound,
};

/// Bytes a stored batch may unpack to; far above what `batch_bytes` allows.
pub(super) const UNPACKED_MAX: usize = 32 * 1024 * 1024;

/// The reading half's possessions.
#[derive(Debug)]
pub struct Reader {
    pub(super) db: Connection,
    pub(super) queries: mpsc::Receiver<Query>,
    pub(super) observed: Observed,
}

impl Reader {
    /// Serves questions until nobody can ask any more. Reads block.
    pub async fn run(mut self) {
        let mut last = None;
        while let Some(query) = self.queries.recv().await {
            // Who asked may have gone; then nobody needs the answer.
            match query {
                Query::Lane { lane, after, rows, bytes, reply } => {
                    let _gone = reply.send(outbound::read(&self.db, lane, after, rows, bytes));
                }
                Query::Queue { session, from, max, bytes, reply } => {
                    let found = load_whole(
                        &self.db,
                        &mut last,
                        (session, from),
                        (max, bytes),
                        self.observed.now_ms(),
                    );
                    let _gone = reply.send(found);
                }
            }
        }
    }
}

/// In one read transaction: between two, bodies may move.
fn load_whole(
    db: &Connection,
    last: &mut Last,
    (session, from): (SessionId, u64),
    (max, bytes): (usize, usize),
    now_ms: u64,
) -> Result<(Vec<LoadedEntry>, bool), Error> {
    let transaction = db.unchecked_transaction()?;
    let found = load(db, last, (session, from), (max, bytes), now_ms);
    transaction.finish()?;
    found
}

/// The batch read last, unpacked: neighbours in a queue are often neighbours in a batch.
type Last = Option<(u64, Vec<Record>)>;

fn load(
    db: &Connection,
    last: &mut Last,
    (session, from): (SessionId, u64),
    (max, bytes): (usize, usize),
    now_ms: u64,
) -> Result<(Vec<LoadedEntry>, bool), Error> {
    let mut found = db.prepare_cached(
        "SELECT seq, flags, packet_id, subs, batch, place, expires_ms FROM queue
         WHERE session = ?1 AND seq >= ?2 ORDER BY seq LIMIT ?3",
    )?;
    let rows = found
        .query_map([session.0 as i64, from as i64, max.saturating_add(1) as i64], |row| {
            let at = (outbound::unsigned(row, 4)?, row.get::<_, i64>(5)? as usize);
            Ok((entries::from_row(row, session)?, at, row.get(6)?))
        })?
        .collect::<Result<Vec<_>, _>>()?;
    let complete = rows.len() <= max;
    let mut out = Vec::new();
    let mut size = 0;
    let mut known: HashMap<(u64, usize), Arc<Message>> = HashMap::new();
    let total = rows.len().min(max);
    for (queued, (batch, place), expires_ms) in rows.into_iter().take(max) {
        let message = match known.get(&(batch, place)) {
            Some(message) => Some(message.clone()),
            None => message(db, last, batch, place)?
                .map(|message| Arc::new(expiring(message, expires_ms, now_ms))),
        };
        if let Some(message) = &message {
            size += message.payload.len() + message.topic.len();
            known.insert((batch, place), message.clone());
        }
        if size > bytes && !out.is_empty() {
            break;
        }
        out.push(LoadedEntry { queued, message });
    }
    let complete = complete && out.len() == total;
    Ok((out, complete))
}

/// `None`: the batch is gone or damaged.
fn message(
    db: &Connection,
    last: &mut Last,
    batch: u64,
    place: usize,
) -> Result<Option<Message>, Error> {
    if last.as_ref().is_none_or(|(id, _)| *id != batch) {
        let body: Option<Option<Vec<u8>>> = db
            .prepare_cached("SELECT body FROM batch WHERE id = ?1")?
            .query_row([batch as i64], |row| row.get(0))
            .optional()?;
        let Some(body) = body.flatten() else { return Ok(None) };
        match Batch::parse(Bytes::from(body)).and_then(|batch| batch.records(UNPACKED_MAX)) {
            Ok(records) => *last = Some((batch, records)),
            Err(why) => {
                tracing::error!(batch, %why, "stored batch is damaged; a queued message is lost");
                return Ok(None);
            }
        }
    }
    let record = last.as_ref().and_then(|(_, records)| records.get(place));
    Ok(record.map(|record| mqtt::to_message(record, "")))
}
