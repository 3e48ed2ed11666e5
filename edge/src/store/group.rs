//! One group commit: the changes of many decisions in one transaction.
//!
//! Holds: the batches being built, one a lane; who needs which of them; the retained topics that changed.
//! In: [`Change`]s in order. Out: rows. Change here: what a change does to the tables.
//! Not here: when a group is made and committed (`writer`).

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use bytes::Bytes;
use bytestring::ByteString;
use rusqlite::Connection;
use tributary_shared::{
    message::Message,
    mqtt::Qos,
    record::{
        Batch, BatchBuilder, BatchError, Compression, Header, Record,
        batch::Producer,
        mqtt::{self, header},
    },
    session::{
        SessionId,
        action::{Author, Change, Queued},
    },
};

use super::{
    Error, LOCAL, Settings,
    age::Observed,
    budget, entries, followed, lane_start,
    needed::Needed,
    outbound::{LaneState, ROW_BYTES},
    quarantine::Held,
    queues::{self, Queues, Trimmed},
    sessions,
};
use crate::status::Status;

/// A batch of fewer messages is stored as it is: compressing it gains little.
const COMPRESS_FROM: usize = 10;

/// What header `edge.clock` says of a record's time; where there is none, nothing speaks against it.
const UNSYNCED: &[u8] = b"unsynced";

/// What the writer knows beside the file; copied before each commit.
#[derive(Debug, Clone)]
pub(super) struct State {
    pub(super) edge_id: ByteString,
    pub(super) settings: Arc<Settings>,
    pub(super) status: Arc<Status>,
    pub(super) lanes: Vec<LaneState>,
    pub(super) queues: Queues,
    pub(super) quarantine: Held,
    pub(super) observed: Observed,
    /// The disk is full: QoS 0, which nobody was promised anything for, is not kept.
    pub(super) full: bool,
    /// Next batch counter.
    pub(super) counter: u64,
}

impl State {
    pub(super) fn next_id(&mut self, lane: u16) -> u64 {
        let id = lane_start(lane) | self.counter;
        self.counter += 1;
        id
    }

    /// The lane of that number.
    pub(super) fn lane(&mut self, number: u16) -> Option<&mut LaneState> {
        self.lanes.iter_mut().find(|lane| lane.info.number == number)
    }

    /// The row is a lane's, and the cloud has not confirmed it.
    fn waits(&mut self, batch: u64) -> bool {
        self.lane((batch >> 48) as u16).is_some_and(|lane| batch > lane.acked_id)
    }

    fn lane_of(&mut self, topic: &str) -> Option<&mut LaneState> {
        self.lanes
            .iter_mut()
            .find(|lane| lane.info.settings.as_ref().is_some_and(|s| s.takes(topic)))
    }
}

/// A batch that is being filled.
#[derive(Debug)]
struct Building {
    id: u64,
    lane: u16,
    epoch: i64,
    s: u64,
    made_ms: i64,
    builder: BatchBuilder,
}

/// One transaction.
pub(super) struct Group<'a> {
    pub(super) db: &'a Connection,
    pub(super) state: &'a mut State,
    building: Vec<Building>,
    needed: Needed,
    /// Bytes that were loose before.
    loose: u64,
    retained: HashMap<ByteString, (Option<Arc<Message>>, Author)>,
    /// Lane -> QoS 0 messages that were not kept.
    unkept: HashMap<u16, u64>,
    /// Messages dropped, to be counted once this is durable.
    pub(super) dropped: Vec<(&'static str, u64)>,
    /// Entries dropped to keep queues in their budget.
    pub(super) trimmed: Trimmed,
}

impl<'a> Group<'a> {
    pub(super) fn new(db: &'a Connection, state: &'a mut State) -> Self {
        Self {
            db,
            loose: state.queues.loose,
            state,
            building: Vec::new(),
            needed: Needed::default(),
            retained: HashMap::new(),
            unkept: HashMap::new(),
            dropped: Vec::new(),
            trimmed: Trimmed::new(),
        }
    }

    /// Does one change.
    pub(super) fn change(&mut self, change: &Change) -> Result<(), Error> {
        match change {
            Change::Message { message, queued, stored } => {
                let at = match stored {
                    Some(at) => Some((at.0, at.1)),
                    None => self.keep(message, !queued.is_empty())?,
                };
                at.map_or(Ok(()), |at| self.enqueue(queued, at, message))
            }
            Change::Enqueued { message, queued } => {
                let at = self.append(LOCAL, message)?;
                self.enqueue(queued, at, message)
            }
            Change::Retained { topic, message, author } => {
                self.retained.insert(topic.clone(), (message.clone(), author.clone()));
                Ok(())
            }
            Change::SessionSaved(session) => sessions::save(self.db, session),
            Change::SessionRemoved(session) => {
                for (batch, count) in sessions::remove(self.db, *session)? {
                    self.done(batch, *session, count);
                }
                Ok(())
            }
            Change::Subscribed(subscription) => sessions::subscribe(self.db, subscription),
            Change::Unsubscribed { session, filter } => {
                sessions::unsubscribe(self.db, *session, filter)
            }
            Change::Inflight(entry) => entries::update(self.db, entry),
            Change::Dequeued { session, seq } => {
                if let Some(batch) = entries::remove(self.db, *session, *seq)? {
                    self.done(batch, *session, 1);
                }
                Ok(())
            }
            Change::Delayed(saved) => sessions::delay(self.db, saved),
            Change::DelayedDone(number) => sessions::delay_done(self.db, *number),
            Change::Followed { source, next } => followed::save(self.db, *source, *next),
            Change::FollowsAnew => followed::forget(self.db),
            Change::Received { session, packet_id } => {
                sessions::received(self.db, *session, *packet_id)
            }
            Change::Released { session, packet_id } => {
                sessions::released(self.db, *session, *packet_id)
            }
        }
    }

    /// Writes what is still being built. After it only COMMIT is missing.
    pub(super) fn finish(&mut self) -> Result<(), Error> {
        for building in std::mem::take(&mut self.building) {
            self.write(building)?;
        }
        for (lane, n) in std::mem::take(&mut self.unkept) {
            self.append_gap(lane, n, "qos0 over budget")?;
            self.dropped.push(("lane_qos0", n));
        }
        for (topic, (message, author)) in std::mem::take(&mut self.retained) {
            match message {
                Some(message) => sessions::retain(self.db, &topic, &message, &author)?,
                None => sessions::forget(self.db, &topic)?,
            }
        }
        for batch in std::mem::take(&mut self.needed).save(self.db)? {
            self.unneeded(batch)?;
        }
        for at in 0..self.state.lanes.len() {
            budget::enforce(self, at)?;
            if let Some(lane) = self.state.lanes.get_mut(at) {
                lane.save_sometimes(self.db)?;
            }
        }
        let trimmed = queues::settle(self.db, self.state, self.loose, &mut self.trimmed)?;
        if trimmed > 0 {
            self.dropped.push(("queues_full", trimmed));
        }
        self.state.observed.save_sometimes(self.db)?;
        Ok(())
    }

    fn enqueue(
        &mut self,
        queued: &[Queued],
        (batch, place): (u64, u64),
        message: &Message,
    ) -> Result<(), Error> {
        for entry in queued {
            entries::insert(self.db, entry, batch, place, message)?;
            self.needed.more(batch, entry.session, entry.seq);
        }
        self.state.queues.entries += queued.len() as u64;
        if self.state.waits(batch) {
            self.state.queues.waiting += queued.len() as u64;
        }
        Ok(())
    }

    fn done(&mut self, batch: u64, session: SessionId, n: i64) {
        self.needed.less(batch, session, n);
        self.state.queues.entries = self.state.queues.entries.saturating_sub(n as u64);
        if self.state.waits(batch) {
            self.state.queues.left(n as u64);
        }
    }

    /// Puts a message into its lane's batch, or into the local one when only queues need it.
    fn keep(&mut self, message: &Arc<Message>, queued: bool) -> Result<Option<(u64, u64)>, Error> {
        let full = self.state.full;
        let lane = match self.state.lane_of(&message.topic) {
            Some(lane) if message.qos == Qos::AtMostOnce && (full || budget::only_acked(lane)) => {
                *self.unkept.entry(lane.info.number).or_default() += 1;
                None
            }
            Some(lane) => Some(lane.info.number),
            None => None,
        };
        match lane {
            Some(lane) => self.append(lane, message).map(Some),
            None if queued => self.append(LOCAL, message).map(Some),
            None => Ok(None),
        }
    }

    fn append(&mut self, lane: u16, message: &Message) -> Result<(u64, u64), Error> {
        let mut record = mqtt::to_record(message);
        if lane != LOCAL && self.state.status.clock_unsure.load(Relaxed) {
            let value = Some(Bytes::from_static(UNSYNCED));
            record.headers.push(Header { name: header::EDGE_CLOCK.into(), value });
        }
        self.append_record(lane, record)
    }

    /// Appends what was in a lane before.
    pub(super) fn append_again(&mut self, lane: u16, record: &Record) -> Result<(), Error> {
        self.append_record(lane, record.clone()).map(drop)
    }

    fn append_record(&mut self, lane: u16, mut record: Record) -> Result<(u64, u64), Error> {
        let at = self.building.iter().position(|b| b.lane == lane);
        let full = at.and_then(|at| self.building.get(at)).is_some_and(|b| {
            b.builder.count() >= self.state.settings.batch_messages
                || b.builder.size() >= self.state.settings.batch_bytes
        });
        let at = match at {
            Some(at) if full => {
                let done = self.building.swap_remove(at);
                self.write(done)?;
                None
            }
            at => at,
        };
        let at = if let Some(at) = at {
            at
        } else {
            let building = self.start(lane, record.timestamp_ms)?;
            self.building.push(building);
            self.building.len() - 1
        };
        if lane != LOCAL
            && let Some(lane) = self.state.lane(lane)
        {
            let (name, seq) = (lane.info.name.clone(), lane.next_seq);
            lane.next_seq += 1;
            label(&mut record, &self.state.edge_id, &name, seq);
        }
        let Some(building) = self.building.get_mut(at) else {
            return Err(Error::Closed);
        };
        let place = building.builder.count() as u64;
        building.builder.push(&record);
        Ok((building.id, place))
    }

    fn start(&mut self, lane: u16, made_ms: i64) -> Result<Building, Error> {
        let id = self.state.next_id(lane);
        let (epoch, s) = match self.state.lane(lane) {
            Some(lane) => (epoch_of(lane)?, lane.next_seq),
            None => (0, 0),
        };
        Ok(Building { id, lane, epoch, s, made_ms, builder: BatchBuilder::new() })
    }

    fn write(&mut self, building: Building) -> Result<(), Error> {
        let Building { id, lane, epoch, s, made_ms, builder } = building;
        if lane == LOCAL && !self.needed.wants(id) {
            return Ok(());
        }
        let n = builder.count() as u64;
        let body = seal(builder, (lane != LOCAL).then_some((epoch, s)))?;
        let bytes = body.len() as u64 + ROW_BYTES;
        self.db
            .prepare_cached(
                "INSERT INTO batch(id, epoch, s, n, bytes, made_ms, body) VALUES(?1,?2,?3,?4,?5,?6,?7)",
            )?
            .execute((id as i64, epoch, s as i64, n as i64, bytes as i64, made_ms, &body[..]))?;
        match self.state.lane(lane) {
            Some(lane) => lane.appended(id, n, bytes),
            None => self.state.queues.loose += bytes,
        }
        Ok(())
    }

    /// Declares `n` sequences of a lane as given up, after all that was appended. A gap that is the lane's last row
    /// grows instead, under the new id, since it may be under way: a full lane is not to fill with gaps.
    fn append_gap(&mut self, lane: u16, n: u64, reason: &str) -> Result<(), Error> {
        let id = self.state.next_id(lane);
        let Some(lane) = self.state.lane(lane) else { return Ok(()) };
        let (epoch, s) = (epoch_of(lane)?, lane.next_seq);
        lane.next_seq += n;
        lane.info.status.given_up.add(n);
        let grown = self
            .db
            .prepare_cached(
                "UPDATE batch SET id = ?6, n = n + ?4
                 WHERE id = ?1 AND epoch = ?2 AND s + n = ?3 AND reason = ?5",
            )?
            .execute((lane.upto as i64, epoch, s as i64, n as i64, reason, id as i64))?;
        if grown == 1 {
            lane.upto = id;
            return Ok(());
        }
        lane.appended(id, 0, ROW_BYTES);
        self.db
            .prepare_cached(
                "INSERT INTO batch(id, epoch, s, n, bytes, made_ms, reason) VALUES(?1,?2,?3,?4,?5,?6,?7)",
            )?
            .execute((
                id as i64,
                epoch,
                s as i64,
                n as i64,
                ROW_BYTES as i64,
                tributary_shared::clock::wall_ms(),
                reason,
            ))?;
        Ok(())
    }

    /// No queue needs the batch any more: it goes, unless it waits to be sent.
    fn unneeded(&mut self, batch: u64) -> Result<(), Error> {
        if self.state.waits(batch) {
            // Releases before the second version of the schema kept the body of a gap here.
            self.db
                .prepare_cached(
                    "UPDATE batch SET body = NULL
                     WHERE id = ?1 AND reason IS NOT NULL AND body IS NOT NULL",
                )?
                .execute([batch as i64])?;
            return Ok(());
        }
        queues::delete_row(self.db, self.state, batch)
    }
}

/// The lane's epoch of this process; random, made when first needed.
fn epoch_of(lane: &mut LaneState) -> Result<i64, Error> {
    if let Some(epoch) = lane.epoch {
        return Ok(epoch);
    }
    let mut random = [0_u8; 8];
    getrandom::fill(&mut random).map_err(|_| Error::Entropy)?;
    let epoch = (u64::from_le_bytes(random) >> 1) as i64;
    lane.epoch = Some(epoch);
    lane.next_seq = 0;
    Ok(epoch)
}

/// Says where a record comes from.
fn label(record: &mut Record, edge_id: &ByteString, lane: &ByteString, seq: u64) {
    let header = |name: &'static str, value: Bytes| Header {
        name: ByteString::from_static(name),
        value: Some(value),
    };
    record.headers.push(header("edge.id", edge_id.as_bytes().clone()));
    record.headers.push(header("edge.lane", lane.as_bytes().clone()));
    record.headers.push(header("edge.seq", Bytes::from(seq.to_string())));
}

/// The batch, compressed if that is worth it; with epoch and sequence if it goes upstream.
pub(super) fn seal(builder: BatchBuilder, at: Option<(i64, u64)>) -> Result<Bytes, BatchError> {
    let compression =
        if builder.count() >= COMPRESS_FROM { Compression::Zstd } else { Compression::None };
    let producer = at.map(|(epoch, s)| Producer {
        id: epoch,
        epoch: 0,
        base_sequence: (s & 0x7FFF_FFFF) as i32,
    });
    Ok(builder.finish(compression, producer)?.bytes().clone())
}

/// A message as a batch of its own.
pub(super) fn alone(message: &Message) -> Result<Bytes, BatchError> {
    let mut builder = BatchBuilder::new();
    builder.push(&mqtt::to_record(message));
    seal(builder, None)
}

/// The message of a batch that [`alone`] made.
pub(super) fn read_alone(body: Vec<u8>) -> Result<Message, BatchError> {
    let records = Batch::parse(Bytes::from(body))?.records(super::reader::UNPACKED_MAX)?;
    records.first().map(|record| mqtt::to_message(record, "")).ok_or(BatchError::Empty)
}
