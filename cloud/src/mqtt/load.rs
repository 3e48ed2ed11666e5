//! Queue entries brought back to memory: [`Effect::Load`](tributary_shared::session::Effect::Load) and its answer.
//!
//! In: a session's queue and how much of it. Out: the entries with their messages, read from the log. Records lie close
//! together there, so a batch that was read serves the entries that follow. A record that retention removed is an entry
//! without a message, which the core drops and counts. Not here: when this is done (`broker`).

use std::{collections::HashMap, sync::Arc};

use tributary_shared::{
    message::{Message, MessageRef},
    record::{Batch, Record, mqtt::to_message},
    session::{Event, Queued, SessionId, event::LoadedEntry},
};

use super::{
    AGAIN_AFTER,
    stored::{Body, entry_key, kind, read_flight, read_queued, read_session_key, session_key},
};
use crate::{
    engine::{ScanLimit, ShardId},
    log::{Log, LogError, Offset, PartitionId, StateSpace},
};

/// Bytes of queue entries (not of messages) read at once.
const PAGE_BYTES: usize = 1024 * 1024;
/// Entries of a session that can have been sent and not be done: more packet ids there are not.
const FLIGHTS_MAX: usize = 65_535;
/// A batch unpacks to no more; larger ones the tail leaves out too.
const UNPACKED_MAX: usize = 64 * 1024 * 1024;

/// What is to be loaded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    pub(super) session: SessionId,
    pub(super) from: u64,
    pub(super) max: usize,
    pub(super) bytes: usize,
}

impl Load {
    /// Reads; the event is the answer.
    pub(super) async fn run(self, log: &Log, home: ShardId) -> Result<Event, LogError> {
        let session = self.session;
        let flights = self.flights(log, home).await?;
        let prefix = session_key(kind::QUEUED, session, &[]);
        let mut after = entry_key(kind::QUEUED, session, self.from.saturating_sub(1));
        let mut bodies = Bodies { log, batches: HashMap::new() };
        let mut entries: Vec<LoadedEntry> = Vec::new();
        let mut bytes = 0;
        loop {
            let limit = ScanLimit { entries: self.max.max(1), bytes: PAGE_BYTES };
            let space = StateSpace::Session;
            let page = log.state_scan(home, space, &prefix, Some(&after), limit).await?;
            let Some((last, _)) = page.last() else {
                return Ok(Event::Loaded { session, entries, complete: true });
            };
            after = last.to_vec();
            for (key, value) in page {
                let (mut queued, body) = match read_queued(&key, value) {
                    Ok(read) => read,
                    Err(error) => {
                        tracing::error!(?session, %error, "a queue entry cannot be read");
                        let Some(queued) = unread(&key) else { continue };
                        entries.push(LoadedEntry { queued, message: None });
                        continue;
                    }
                };
                if let Some(flight) = flights.get(&queued.seq)
                    && let Err(error) = read_flight(flight.clone(), &mut queued)
                {
                    tracing::error!(?session, %error, "a packet id cannot be read");
                }
                let message = bodies.get(body).await?;
                let weight = message.as_ref().map_or(0, |m| m.topic.len() + m.payload.len());
                if entries.len() >= self.max || (bytes + weight > self.bytes && !entries.is_empty())
                {
                    return Ok(Event::Loaded { session, entries, complete: false });
                }
                bytes += weight;
                entries.push(LoadedEntry { queued, message });
            }
        }
    }

    /// Packet ids given since the entries were queued, by seq.
    async fn flights(
        &self,
        log: &Log,
        home: ShardId,
    ) -> Result<HashMap<u64, bytes::Bytes>, LogError> {
        let prefix = session_key(kind::INFLIGHT, self.session, &[]);
        // What is before was done and is deleted: to pass over it again with each load would take longer and longer.
        let after = entry_key(kind::INFLIGHT, self.session, self.from.saturating_sub(1));
        let limit = ScanLimit { entries: FLIGHTS_MAX, bytes: usize::MAX };
        let space = StateSpace::Session;
        let found = log.state_scan(home, space, &prefix, Some(&after), limit).await?;
        let seq =
            |key: &[u8]| Some(u64::from_be_bytes(*read_session_key(key).ok()?.1.first_chunk()?));
        Ok(found.into_iter().filter_map(|(key, value)| Some((seq(&key)?, value))).collect())
    }
}

/// An entry of which only the key could be read: the core drops and removes it.
fn unread(key: &[u8]) -> Option<Queued> {
    let (session, rest) = read_session_key(key).ok()?;
    Some(Queued {
        session,
        seq: u64::from_be_bytes(*rest.first_chunk()?),
        qos: tributary_shared::mqtt::Qos::AtLeastOnce,
        retain: false,
        subscription_ids: Vec::new(),
        packet_id: None,
        released: false,
    })
}

/// Messages by reference; keeps the batch last read of each partition.
struct Bodies<'a> {
    log: &'a Log,
    batches: HashMap<PartitionId, (Offset, Vec<Record>)>,
}

impl Bodies<'_> {
    async fn get(&mut self, body: Body) -> Result<Option<Arc<Message>>, LogError> {
        let (partition, offset) = match body {
            Body::Own(message) => return Ok(Some(Arc::from(message))),
            Body::Ref(MessageRef(partition, offset)) => (PartitionId(partition), offset as Offset),
        };
        if self.kept(partition, offset).is_none() {
            let Some(batches) = self.read(partition, offset).await? else { return Ok(None) };
            let Some(batch) = batches.first() else { return Ok(None) };
            let Ok(records) = batch.records(UNPACKED_MAX) else { return Ok(None) };
            self.batches.insert(partition, (batch.header().base_offset, records));
        }
        let Some(stream) = self.log.stream_by_id(partition.stream()) else { return Ok(None) };
        let record = self.kept(partition, offset);
        Ok(record.map(|record| {
            let place = Some(MessageRef(partition.0, offset.unsigned_abs()));
            Arc::new(Message { place, ..to_message(record, &stream.name) })
        }))
    }

    /// A record elsewhere is waited for: its owner may change just now. If the head's own shard goes, all of this is dropped.
    async fn read(
        &self,
        partition: PartitionId,
        offset: Offset,
    ) -> Result<Option<Vec<Batch>>, LogError> {
        loop {
            match self.log.read_known(partition, offset, 1).await {
                Err(LogError::NotOwner) => tokio::time::sleep(AGAIN_AFTER).await,
                read => return read,
            }
        }
    }

    fn kept(&self, partition: PartitionId, offset: Offset) -> Option<&Record> {
        let (base, records) = self.batches.get(&partition)?;
        records.get(usize::try_from(offset.checked_sub(*base)?).ok()?)
    }
}
