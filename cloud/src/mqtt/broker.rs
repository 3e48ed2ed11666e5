//! The one task that owns the MQTT state: event in, decide, store, then act.
//!
//! ```text
//! connections --Incoming--\                     /-- appends (client's messages) --\
//! log tail ----records----- State::decide --> group                                one commit --> effects, in order
//! loads, timers ----------/                     \-- state + tail cursors ---------/
//! ```
//! A client's message goes to the log and nowhere else; it reaches subscribers when the tail brings it back. Whenever
//! state is stored, the cursors of the tail are stored with it: after a crash the tail goes on exactly where the stored
//! state stands, so a stored session misses nothing and gets nothing twice from the log.
//! If a commit fails, what is in memory is no longer what is stored: the task ends and is started again from the store.
//! Not here: what packets mean (`session`), byte forms (`stored`), waiting (`pipeline`).

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tributary_shared::{
    clock::Clock,
    connection::{Incoming, Outbox, outbox::Full},
    message::MessageRef,
    mqtt::{Packet, Reason, packet::Publish},
    record::mqtt::{header, to_message},
    session::{ConnectionId, Decision, Effect, Event, Fanout, Outgoing, SessionId, State},
    telemetry::brief,
};

use super::{
    Head, append, door, down,
    load::Load,
    numbers::count,
    pipeline::{Group, Pipeline},
    restore::{self, Past},
    store::Stored,
    stored::{kind, session_key},
};
use crate::log::{
    LogError, Offset, Opening, PartitionId, Pending, Transaction,
    tail::{Start, Tail, TailBatch},
};

/// Items of the connections' channel taken before a decision is stored.
const INCOMING_AT_ONCE: usize = 64;
/// Changes stored in one commit, about: records that match very many sessions are spread over several.
const CHANGES_AT_ONCE: usize = 1_000;
/// Cursors are stored without any change after so many records,
const RECORDS_UNSAVED: u64 = 10_000;
/// or so long.
const CURSORS_EVERY: Duration = Duration::from_secs(5);
/// What waits for edges is counted so often: it means a look at every session.
const WAITING_EVERY: Duration = Duration::from_secs(5);
/// Loads that read at the same time.
const LOADS_AT_ONCE: usize = 8;

/// What the task knows of a connection.
struct Link {
    outbox: Outbox,
    /// It is this edge's, for commands.
    edge: Option<Box<str>>,
}

/// Why what is in memory is no longer what is stored.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error(transparent)]
    Log(#[from] LogError),
    /// The queue it was to load would wait for ever.
    #[error("a load died: {0}")]
    Load(#[from] tokio::task::JoinError),
}

/// What ran beside the task.
enum Done {
    Loaded(Box<Event>),
    Removed,
}

enum Next {
    Stop,
    Act(Result<Group, LogError>),
    Incoming(Option<Incoming>),
    Tail(Option<TailBatch>),
    Done(Result<Result<Done, LogError>, tokio::task::JoinError>),
    Tick,
    SaveCursors,
    Look,
}

/// The task's data.
pub(super) struct Broker<'a> {
    head: &'a Head,
    opening: Opening,
    clock: Clock,
    state: State,
    tail: Tail,
    links: HashMap<ConnectionId, Link>,
    pipeline: Pipeline,
    work: JoinSet<Result<Done, LogError>>,
    loads: Arc<Semaphore>,
    /// Decided and not yet in the pipeline.
    out: Decision,
    /// Moved since they were last stored.
    cursors: HashMap<PartitionId, Offset>,
    records_unsaved: u64,
    wake_ms: Option<u64>,
    next_session: u64,
    cursors_saved: bool,
}

impl<'a> Broker<'a> {
    /// Goes on from what is stored. At the very first start the log's past is not delivered: cursors start at its end and
    /// are stored at once.
    ///
    /// All of it belongs to `opening` of the head's shard: nothing is stored under another.
    pub(super) async fn restore(head: &'a Head, opening: Opening) -> Result<Self, Broken> {
        let clock = Clock::start();
        let seed = getrandom::u64().unwrap_or_else(|_| clock.now().wall_ms.unsigned_abs());
        let Past { restored, cursors } = restore::read(&head.log, head.home, seed).await?;
        let first_start = cursors.is_none();
        let unknown = if first_start { Start::End } else { Start::Beginning };
        let tail = Tail::new(head.log.clone(), cursors.unwrap_or_default(), unknown).await?;
        let next_session = restored.next_session;
        let settings = head.settings.session.clone();
        let mut broker = Self {
            head,
            opening,
            clock,
            state: State::new(settings, Fanout::FromLog, restored, clock.now()),
            cursors: if first_start { tail.cursors().clone() } else { HashMap::new() },
            tail,
            links: HashMap::new(),
            pipeline: Pipeline::default(),
            work: JoinSet::new(),
            loads: Arc::new(Semaphore::new(LOADS_AT_ONCE)),
            out: Decision::default(),
            records_unsaved: 0,
            wake_ms: None,
            next_session,
            cursors_saved: !first_start,
        };
        broker.decide(Event::Tick);
        broker.flush(first_start).await?;
        Ok(broker)
    }

    /// Runs until `stop`, or until the log fails.
    pub(super) async fn run(
        &mut self,
        incoming: &mut mpsc::Receiver<Incoming>,
        stop: &CancellationToken,
    ) -> Result<(), Broken> {
        let mut save = tokio::time::interval(CURSORS_EVERY);
        let mut look = tokio::time::interval(WAITING_EVERY);
        loop {
            let room = self.pipeline.has_room();
            let wake = self.wake();
            let next = tokio::select! {
                () = stop.cancelled() => Next::Stop,
                acted = self.pipeline.next() => Next::Act(acted),
                item = incoming.recv(), if room => Next::Incoming(item),
                batch = self.tail.next(), if room => Next::Tail(batch),
                Some(done) = self.work.join_next(), if room => Next::Done(done),
                () = sleep_until(wake), if room && self.wake_ms.is_some() => Next::Tick,
                _ = save.tick(), if room && self.records_unsaved > 0 => Next::SaveCursors,
                _ = look.tick() => Next::Look,
            };
            match next {
                Next::Stop | Next::Incoming(None) => return self.stop().await,
                Next::Act(group) => self.finish(group?),
                Next::Incoming(Some(item)) => {
                    self.take(item).await?;
                    for _ in 1..INCOMING_AT_ONCE {
                        let Ok(item) = incoming.try_recv() else { break };
                        self.take(item).await?;
                    }
                    self.flush(false).await?;
                }
                Next::Tail(None) => return Err(LogError::Closed.into()),
                Next::Tail(Some(batch)) => self.follow(batch).await?,
                Next::Done(Ok(Ok(Done::Loaded(event)))) => {
                    self.decide(*event);
                    self.flush(false).await?;
                }
                Next::Done(Ok(Ok(Done::Removed))) => {}
                Next::Done(Ok(Err(error))) => return Err(error.into()),
                Next::Done(Err(error)) => return Err(error.into()),
                Next::Tick => {
                    self.decide(Event::Tick);
                    self.flush(false).await?;
                }
                Next::SaveCursors => self.flush(true).await?,
                Next::Look => {
                    let edge = |id: &str| down::edge_of(id).map(str::to_owned);
                    self.head.numbers.set_waiting(self.state.waiting_for(edge));
                }
            }
            self.head.numbers.set_stats(self.state.stats());
        }
    }

    /// Closes all connections, without a word: what they were not told has not happened.
    pub(super) fn close_all(&mut self) {
        for link in self.links.values() {
            link.outbox.close();
        }
    }

    fn wake(&self) -> Instant {
        self.wake_ms.map_or_else(Instant::now, |at| self.clock.instant(at))
    }

    fn decide(&mut self, event: Event) {
        self.state.decide(event, self.clock.now(), &mut self.out);
        self.wake_ms = self.out.wake_ms;
    }

    /// What is on its way becomes durable and is told; the cursors are stored.
    async fn stop(&mut self) -> Result<(), Broken> {
        self.flush(true).await?;
        while !self.pipeline.is_empty() {
            let group = self.pipeline.next().await?;
            self.finish(group);
        }
        Ok(())
    }

    async fn take(&mut self, item: Incoming) -> Result<(), Broken> {
        match item {
            Incoming::Connect { connection, mut connect, peer, outbox } => {
                let edge: Option<Box<str>> = down::edge(&connect).map(Into::into);
                if edge.is_some() {
                    down::reserve(&mut connect);
                }
                self.links.insert(connection, Link { outbox, edge });
                self.decide(Event::Connect { connection, connect, peer });
            }
            Incoming::Packets(connection, packets) => {
                for packet in packets {
                    self.packet(connection, packet).await?;
                    if self.out.changes.len() >= CHANGES_AT_ONCE {
                        self.flush(false).await?;
                    }
                }
            }
            Incoming::Closed(connection, reason) => {
                self.decide(Event::Closed { connection, reason });
                self.links.remove(&connection);
            }
        }
        Ok(())
    }

    async fn packet(&mut self, connection: ConnectionId, packet: Packet) -> Result<(), Broken> {
        if let Packet::Publish(publish) = packet {
            count(&self.head.numbers.received);
            let event = match self.refusal(connection, &publish).await? {
                None => Event::Packet { connection, packet: Packet::Publish(publish) },
                Some(reason) => Event::Refused { connection, publish: Box::new(publish), reason },
            };
            self.decide(event);
            return Ok(());
        }
        let edge = self.links.get(&connection).and_then(|link| link.edge.as_deref());
        let event = match (packet, edge) {
            (Packet::Subscribe(subscribe), Some(edge)) => {
                let refused = down::refused(edge, &self.head.settings.edge_filters, &subscribe);
                Event::RefusedFilters { connection, subscribe: Box::new(subscribe), refused }
            }
            (packet, _) => Event::Packet { connection, packet },
        };
        self.decide(event);
        Ok(())
    }

    /// Why a message cannot go to the log, asked before the core takes it.
    async fn refusal(
        &mut self,
        connection: ConnectionId,
        publish: &Publish,
    ) -> Result<Option<Reason>, Broken> {
        let Some(to) = self.state.destination(connection, publish) else { return Ok(None) };
        let topic = to.topic;
        let edge = self.links.get(&connection).is_some_and(|link| link.edge.is_some());
        if edge || door::is_closed(&topic) {
            return Ok(Some(Reason::NOT_AUTHORIZED));
        }
        let Head { log, home, routing, .. } = self.head;
        match routing.place(log, *home, &topic).await {
            Ok(place) if append::weight(publish) > append::limit(log, &place.stream) => {
                Ok(Some(Reason::QUOTA_EXCEEDED))
            }
            Ok(_) => Ok(None),
            // A stream is to be made, and who makes streams is not there. Nobody else has to suffer for it.
            Err(LogError::NotOwner) if log.opening(*home) == Some(self.opening) => {
                Ok(Some(Reason::IMPLEMENTATION_SPECIFIC))
            }
            Err(error @ (LogError::Closed | LogError::NotOwner | LogError::Engine(_))) => {
                Err(error.into())
            }
            Err(error) => {
                let topic = brief(&topic);
                tracing::warn!(%error, topic, "a message has no stream to go to");
                Ok(Some(Reason::IMPLEMENTATION_SPECIFIC))
            }
        }
    }

    /// Records of the log reach the subscribers.
    async fn follow(&mut self, batch: TailBatch) -> Result<(), Broken> {
        let TailBatch { partition, stream, records, next } = batch;
        self.head.numbers.followed.fetch_add(records.len() as u64, Ordering::Relaxed);
        self.records_unsaved += records.len() as u64;
        for (offset, record) in records {
            self.cursors.insert(partition, offset + 1);
            // Nobody listens: only what is retained concerns us.
            if self.state.stats().subscriptions == 0 && record.header(header::RETAIN).is_none() {
                continue;
            }
            let mut message = to_message(&record, &stream.name);
            let place = MessageRef(partition.0, offset.unsigned_abs());
            if !down::mark(&record, place, &mut message) {
                self.head.numbers.dropped("not_authorized");
                continue;
            }
            if message.retain {
                // It stays in memory for long and must not keep its whole batch there.
                message.payload = Bytes::copy_from_slice(&message.payload);
            }
            self.decide(Event::Message { message: Arc::new(message), stored: Some(place) });
            if self.out.changes.len() >= CHANGES_AT_ONCE {
                self.flush(false).await?;
            }
        }
        self.cursors.insert(partition, next);
        self.flush(self.records_unsaved >= RECORDS_UNSAVED).await
    }

    /// Hands over what was decided: commits it, and does its effects or puts them in line.
    async fn flush(&mut self, save_cursors: bool) -> Result<(), Broken> {
        let Decision { changes, effects, wait, .. } = std::mem::take(&mut self.out);
        let mut stored = Stored::default();
        for change in changes {
            if let Err(error) = stored.add(change) {
                // Our own values: only a bug makes them unwritable. The rest must not suffer for it.
                tracing::error!(%error, "a change cannot be stored");
                self.head.numbers.dropped("unwritable");
            }
        }
        let commits = self.commit(&mut stored, save_cursors).await?;
        let group = Group { commits, effects, ended: stored.ended };
        let at_once = self.pipeline.push(group, wait);
        self.act(at_once);
        Ok(())
    }

    /// Submits messages and state, as one commit of the head's shard.
    async fn commit(
        &mut self,
        stored: &mut Stored,
        save_cursors: bool,
    ) -> Result<VecDeque<Pending>, Broken> {
        let Head { log, home, .. } = self.head;
        let appends = append::batches(self.head, &stored.messages).await?;
        if stored.highest_session >= self.next_session {
            self.next_session = stored.highest_session + 1;
            let next = self.next_session.to_be_bytes().to_vec();
            stored.put(vec![kind::NEXT_SESSION], next.into());
        }
        if save_cursors || !stored.writes.is_empty() {
            self.add_cursors(stored);
        }
        let transaction = Transaction {
            appends,
            writes: std::mem::take(&mut stored.writes),
            opening: Some(self.opening),
            ..Transaction::default()
        };
        let mut commits = VecDeque::new();
        if !transaction.writes.is_empty() || !transaction.appends.is_empty() {
            commits.push_back(log.submit(*home, transaction).await?);
        }
        Ok(commits)
    }

    fn add_cursors(&mut self, stored: &mut Stored) {
        if !self.cursors_saved {
            self.cursors_saved = true;
            stored.put(vec![kind::CURSORS_SAVED], Bytes::new());
        }
        for (partition, next) in self.cursors.drain() {
            let key = session_key(kind::CURSOR, SessionId(partition.0), &[]);
            stored.put(key, next.to_be_bytes().to_vec().into());
        }
        self.records_unsaved = 0;
    }

    /// A group is durable.
    fn finish(&mut self, group: Group) {
        self.act(group.effects);
        for session in group.ended {
            let (log, home) = (self.head.log.clone(), self.head.home);
            self.work.spawn(async move {
                restore::remove_session(&log, home, session).await.map(|()| Done::Removed)
            });
        }
    }

    fn act(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Send { connection, outgoing } => self.send(connection, outgoing),
                Effect::Close { connection, reason } => {
                    tracing::debug!(connection = connection.0, reason = reason.0, "closing");
                    if let Some(link) = self.links.get(&connection) {
                        link.outbox.close();
                    }
                }
                Effect::Load { session, from, max, bytes } => {
                    let load = Load { session, from, max, bytes };
                    let (log, home) = (self.head.log.clone(), self.head.home);
                    let turns = self.loads.clone();
                    self.work.spawn(async move {
                        // Never closed.
                        let _turn = turns.acquire_owned().await;
                        load.run(&log, home).await.map(|event| Done::Loaded(Box::new(event)))
                    });
                }
                Effect::Dropped { why, .. } => self.head.numbers.dropped(why),
            }
        }
    }

    fn send(&mut self, connection: ConnectionId, outgoing: Outgoing) {
        let Some(link) = self.links.get(&connection) else { return };
        let message = matches!(outgoing, Outgoing::Publish(_));
        let outgoing = match outgoing {
            Outgoing::Publish(delivery) if link.edge.is_some() => {
                Outgoing::Publish(down::with_place(delivery))
            }
            other => other,
        };
        match link.outbox.send(outgoing) {
            Ok(()) if message => count(&self.head.numbers.sent),
            Ok(()) => {}
            Err(Full) => self.head.numbers.dropped("slow_reader"),
        }
    }
}
