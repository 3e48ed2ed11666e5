//! Reading a queue's backlog: index entries from the store, then their records from the log, whole batches at a time.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use tributary_shared::record::{Batch, Record};

use super::{
    Message,
    line::{Ready, WINDOW_BYTES},
    message::At,
    state::{Load, Loaded, Sweep},
    store::{self, Change, Entry},
};
use crate::{
    engine::{ScanLimit, ShardId, Write},
    log::{Log, LogError, PartitionId, StateSpace, Transaction},
};

/// Entries of one read.
const ENTRIES: usize = 1024;
/// Bytes of one read of the log.
const READ_BYTES: usize = 512 * 1024;
/// A batch unpacks to this at the most.
pub(super) const UNPACKED_BYTES: usize = 64 * 1024 * 1024;

/// Reads as many messages as a window takes.
pub(super) async fn load(log: &Log, home: ShardId, load: Load) -> Result<Loaded, LogError> {
    let after = load.from.checked_sub(1).map(|before| store::entry_key(load.queue, before));
    let limit = ScanLimit { entries: ENTRIES, bytes: 1024 * 1024 };
    let prefix = load.queue.0.to_be_bytes();
    let found = log.state_scan(home, StateSpace::Queue, &prefix, after.as_deref(), limit).await?;
    let mut loaded = Loaded { load, messages: Vec::new(), lost: Vec::new(), until: load.from };
    if found.is_empty() {
        // Only an empty page says that nothing follows: a page also ends at its bytes.
        loaded.until = load.until;
    }
    let mut records = Records { log, batches: HashMap::new() };
    let mut size = 0;
    for (key, value) in found {
        let Some((_, position)) = store::read_entry_key(&key) else { continue };
        if position >= load.until {
            loaded.until = load.until;
            return Ok(loaded);
        }
        if size >= WINDOW_BYTES {
            return Ok(loaded);
        }
        let message = match Entry::decode(value) {
            Some(entry) => message(&mut records, &entry).await?.map(|message| (entry, message)),
            None => None,
        };
        match message {
            Some((entry, message)) => {
                size += message.size();
                loaded.messages.push(Ready {
                    position,
                    at: entry.at,
                    message: Arc::new(message),
                    // It may have been out when this process, or the one before it, lost its memory of that.
                    redelivered: position < load.restored,
                    expires_ms: entry.expires_ms,
                });
            }
            None => loaded.lost.push(position),
        }
        loaded.until = position + 1;
    }
    Ok(loaded)
}

async fn message(records: &mut Records<'_>, entry: &Entry) -> Result<Option<Message>, LogError> {
    let Some((stream, record)) = records.get(entry.at).await? else { return Ok(None) };
    let mut message = Message::from_record(&record, entry.at, &stream);
    if let Some((exchange, routing_key, properties)) = &entry.overlay {
        message.exchange = exchange.clone();
        message.routing_key = routing_key.clone();
        message.properties = properties.clone();
        message.expires_ms = None;
    }
    Ok(Some(message))
}

/// Records by place; keeps what was read of each partition, as neighbours are asked for next.
struct Records<'a> {
    log: &'a Log,
    batches: HashMap<PartitionId, Read>,
}

struct Read {
    stream: Arc<str>,
    batches: Vec<Batch>,
    open: Option<(i64, Vec<Record>)>,
}

impl Records<'_> {
    async fn get(&mut self, at: At) -> Result<Option<(Arc<str>, Record)>, LogError> {
        let known = self.batches.get(&at.partition).is_some_and(|read| read.batch(at).is_some());
        if !known {
            let read = self.log.read_known(at.partition, at.offset, READ_BYTES).await?;
            let (Some(batches), Some(stream)) =
                (read, self.log.stream_by_id(at.partition.stream()))
            else {
                return Ok(None);
            };
            let read = Read { stream: stream.name.as_str().into(), batches, open: None };
            self.batches.insert(at.partition, read);
        }
        let Some(read) = self.batches.get_mut(&at.partition) else { return Ok(None) };
        Ok(read.record(at)?.map(|record| (read.stream.clone(), record)))
    }
}

impl Read {
    fn batch(&self, at: At) -> Option<&Batch> {
        let next = self.batches.partition_point(|batch| batch.base_offset() <= at.offset);
        self.batches.get(next.checked_sub(1)?).filter(|batch| at.offset <= batch.last_offset())
    }

    fn record(&mut self, at: At) -> Result<Option<Record>, LogError> {
        let Some(batch) = self.batch(at) else { return Ok(None) };
        let base = batch.base_offset();
        if self.open.as_ref().is_none_or(|(open, _)| *open != base) {
            self.open = Some((base, batch.records(UNPACKED_BYTES)?));
        }
        let Some((_, records)) = &self.open else { return Ok(None) };
        Ok(usize::try_from(at.offset - base).ok().and_then(|index| records.get(index)).cloned())
    }
}

/// Removes stored entries of a range, in chunks, then the mark that they are purged.
pub(super) async fn sweep(log: &Log, home: ShardId, sweep: Sweep) -> Result<(), LogError> {
    let mut after = sweep.from.checked_sub(1).map(|before| store::entry_key(sweep.queue, before));
    loop {
        let limit = ScanLimit { entries: ENTRIES, bytes: 1024 * 1024 };
        let prefix = sweep.queue.0.to_be_bytes();
        let found =
            log.state_scan(home, StateSpace::Queue, &prefix, after.as_deref(), limit).await?;
        let keys: Vec<Bytes> = found
            .into_iter()
            .map(|(key, _)| key)
            .filter(|key| store::read_entry_key(key).is_some_and(|(_, p)| p < sweep.until))
            .collect();
        let Some(last) = keys.last() else { break };
        after = Some(last.to_vec());
        let writes =
            keys.iter().map(|key| Write::Delete(Log::state_key(StateSpace::Queue, key))).collect();
        log.commit(home, Transaction { writes, ..Transaction::default() }).await?;
    }
    let change = Change::delete(StateSpace::QueueAck, store::purged_key(sweep.queue, sweep.from));
    log.commit(home, Transaction { writes: vec![write(change)], ..Transaction::default() }).await?;
    Ok(())
}

/// A change as the log takes it.
pub(super) fn write(change: Change) -> Write {
    let key = Log::state_key(change.space, &change.key);
    match change.value {
        Some(value) => Write::Put(key, value.into()),
        None => Write::Delete(key),
    }
}

/// Everything of a space that starts with `prefix`, in chunks.
pub(super) async fn scan_all(
    log: &Log,
    home: ShardId,
    (space, prefix): (StateSpace, &[u8]),
    mut found: impl FnMut(Bytes, Bytes),
) -> Result<(), LogError> {
    let mut after: Option<Bytes> = None;
    loop {
        let limit = ScanLimit { entries: 4096, bytes: 1024 * 1024 };
        let chunk = log.state_scan(home, space, prefix, after.as_deref(), limit).await?;
        let Some((last, _)) = chunk.last() else { return Ok(()) };
        after = Some(last.clone());
        for (key, value) in chunk {
            found(key, value);
        }
    }
}
