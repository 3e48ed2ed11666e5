//! The one task that owns the MQTT state: event in, decide, store, then act.
//!
//! ```text
//! Incoming --> State::decide --changes--> Journal (group commit) --> Progress
//!                   \---------effects that wait, with their ticket--------/ --> Outbox
//! ```
//! Pipelined: the next events are decided while the commit runs; what is under way is bounded in bytes and groups, and
//! at the bound nothing is read from connections. An acknowledgement is an effect that waits; effects of one connection
//! keep their order, so one that need not wait does if others of its connection do.
//!
//! In: [`Incoming`] of all connections. Out: effects on their outboxes. Change here: order and limits of what is under
//! way. Not here: what an event means (`shared::session`), when a commit happens (`store`).

mod effects;
mod refusing;
#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use bytes::Bytes;
use bytestring::ByteString;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time,
};
use tributary_shared::{
    auth::Permissions,
    clock::Clock,
    connection::{Incoming, Outbox},
    mqtt::{Packet, Version, packet::Reason},
    session::{
        Change, ConnectionId, Decision, Effect, Event, IdMap, Now, SessionId, State,
        event::LoadedEntry,
    },
};

use crate::{
    held::Held,
    lane::Policy,
    own::{Inbox, Item},
    status::Status,
    store::{Error, Journal, LaneHandle, Progress, Store},
};

/// Items taken from connections before their changes are handed to the store.
const TAKE: usize = 16;

/// Groups that may be under way; the store's queue is longer, so that handing over never waits.
const GROUPS: usize = 32;

/// Bytes of changes that may be under way.
const BYTES: usize = 8 * 1024 * 1024;

/// Effects that may wait for commits.
const EFFECTS: usize = 100_000;

/// What a change costs in memory beside its payload.
const CHANGE_BYTES: usize = 256;

/// Answers of the store that may wait to be taken; the askers wait beyond that.
const LOADS: usize = 16;

/// What queues hold is counted at most so often: it means a look at every session.
const COUNT_MS: u64 = 2_000;

/// What clients are told of the edge: topics below `$SYS/broker/`, all of them each time.
pub type Told = Vec<(ByteString, Bytes)>;

/// A queue that was read.
type Loaded = (SessionId, Result<(Vec<LoadedEntry>, bool), Error>);

/// A connection as the broker knows it.
struct Client {
    outbox: Outbox,
    /// Its effects that wait, in order, with their tickets: never falling.
    waiting: VecDeque<(u64, Effect)>,
    version: Version,
}

/// Whether a PUBLISH is taken now.
enum Verdict {
    Take,
    /// Version 5 is told so.
    Refuse,
    /// Its connection waits.
    Hold,
}

/// What is to be done when a ticket is durable.
enum Due {
    /// Look at what waits for this connection.
    Client(ConnectionId),
    /// An effect that concerns no connection.
    Effect(Effect),
    /// Tell a part of the edge.
    Answer(oneshot::Sender<()>),
}

/// The task's possessions.
pub struct Broker {
    state: State,
    store: Store,
    journal: Journal,
    progress: watch::Receiver<Progress>,
    status: Arc<Status>,
    clock: Clock,
    clients: IdMap<ConnectionId, Client>,
    /// Collects changes until they are handed over.
    out: Decision,
    /// Bytes handed over, by ticket.
    under_way: VecDeque<(u64, usize)>,
    bytes: usize,
    /// In order of tickets.
    due: VecDeque<(u64, Due)>,
    /// Effects that wait, of all connections.
    waiting: usize,
    committed: u64,
    loads: (mpsc::Sender<Loaded>, mpsc::Receiver<Loaded>),
    /// Lanes that may refuse.
    refusing: Vec<LaneHandle>,
    permissions: watch::Receiver<Arc<Permissions>>,
    /// When queues are counted next, if something has happened since.
    count_ms: Option<u64>,
    held: Held,
}

impl Broker {
    /// Over an open store.
    pub fn new(
        state: State,
        store: Store,
        journal: Journal,
        status: Arc<Status>,
        clock: Clock,
        permissions: watch::Receiver<Arc<Permissions>>,
    ) -> Self {
        let refuses =
            |lane: &&LaneHandle| lane.settings.as_ref().is_some_and(|s| s.policy == Policy::Refuse);
        Self {
            progress: store.progress(),
            refusing: store.lanes().iter().filter(refuses).cloned().collect(),
            state,
            store,
            journal,
            status,
            clock,
            clients: IdMap::default(),
            out: Decision::default(),
            under_way: VecDeque::new(),
            bytes: 0,
            due: VecDeque::new(),
            waiting: 0,
            committed: 0,
            loads: mpsc::channel(LOADS),
            permissions,
            count_ms: None,
            held: Held::default(),
        }
    }

    /// Runs until all connections and their handles are gone and everything is durable, or the store fails.
    /// `told`: what clients are to be told of the edge, whenever that changes. `own`: what its parts publish and bring.
    pub async fn run(
        mut self,
        mut incoming: mpsc::Receiver<Incoming>,
        mut told: watch::Receiver<Told>,
        mut own: Inbox,
    ) -> Result<(), Error> {
        let mut taken = Vec::with_capacity(TAKE);
        self.permit();
        self.decide(Event::Tick, self.clock.now());
        let mut open = true;
        while open || !self.is_flushed() {
            self.hand_over().await?;
            let room =
                self.under_way.len() < GROUPS && self.bytes < BYTES && self.waiting < EFFECTS;
            let wake = self.out.wake_ms.map(|ms| self.clock.instant(ms));
            let count = self.count_ms.map(|ms| self.clock.instant(ms));
            // It waits where it is, and comes again from where it came from.
            let writable = !self.status.disk_full.load(Relaxed);
            tokio::select! {
                biased;
                changed = self.progress.changed() => {
                    changed.map_err(|_| Error::Closed)?;
                    self.committed()?;
                }
                // Each is a group of its own to commit: the writer hears of the cloud only while it has few (`store::commit`).
                Some((session, found)) = self.loads.1.recv(), if room => {
                    let (entries, complete) = found?;
                    self.decide(Event::Loaded { session, entries, complete }, self.clock.now());
                }
                Ok(()) = self.permissions.changed(), if open && room => self.permit(),
                count = incoming.recv_many(&mut taken, TAKE), if open && room => {
                    open = count > 0;
                    let now = self.clock.now();
                    for incoming in taken.drain(..) {
                        self.take(incoming, now);
                    }
                }
                Ok(()) = told.changed(), if open && room => {
                    let told = told.borrow_and_update().clone();
                    self.decide(Event::Own(told), self.clock.now());
                }
                item = own.next(), if open && room && writable => self.own(item),
                () = at(count), if count.is_some() && open => {
                    self.count();
                    continue;
                }
                () = at(wake), if wake.is_some() && open && room => {
                    self.decide(Event::Tick, self.clock.now());
                }
            }
            self.publish_numbers();
        }
        Ok(())
    }

    fn publish_numbers(&mut self) {
        let stats = self.state.stats();
        self.status.connections.set(self.clients.len() as u64);
        self.status.held.set(self.held.len() as u64);
        self.status.rights.set(&stats.denied);
        self.status.core.set(&stats);
        self.count_ms.get_or_insert(self.clock.now().mono_ms + COUNT_MS);
    }

    fn count(&mut self) {
        let (messages, bytes) = self.state.queued();
        self.status.core.queued.set(messages);
        self.status.core.queued_bytes.set(bytes);
        self.count_ms = None;
    }

    /// What clients may do from now on.
    fn permit(&mut self) {
        let permissions = self.permissions.borrow_and_update().clone();
        self.decide(Event::Permissions(permissions), self.clock.now());
    }

    fn is_flushed(&self) -> bool {
        self.out.changes.is_empty() && self.committed >= self.journal.last()
    }

    fn take(&mut self, incoming: Incoming, now: Now) {
        match incoming {
            Incoming::Connect { connection, connect, peer, outbox } => {
                let (waiting, version) = (VecDeque::new(), connect.version);
                let client = Client { outbox, waiting, version };
                self.clients.insert(connection, client);
                self.status.connects.add(1);
                self.decide(Event::Connect { connection, connect, peer }, now);
            }
            Incoming::Packets(connection, packets) => {
                if let Err(packets) = self.held.add(connection, packets) {
                    self.packets(connection, packets.into_iter(), now);
                }
            }
            Incoming::Closed(connection, reason) => {
                // A goodbye behind what waits is heard all the same: no will then (MQTT-3.14.4-3).
                let last = self.held.forget(connection).and_then(|mut held| held.pop_back());
                if let Some(packet @ Packet::Disconnect(_)) = last {
                    self.decide(Event::Packet { connection, packet }, now);
                }
                self.decide(Event::Closed { connection, reason }, now);
                if let Some(client) = self.clients.remove(&connection) {
                    self.waiting -= client.waiting.len();
                }
            }
        }
    }

    fn packets(
        &mut self,
        connection: ConnectionId,
        mut packets: impl Iterator<Item = Packet>,
        now: Now,
    ) {
        while let Some(packet) = packets.next() {
            let Packet::Publish(publish) = packet else {
                self.decide(Event::Packet { connection, packet }, now);
                continue;
            };
            let event = match self.verdict(connection, &publish) {
                Verdict::Take => Event::Packet { connection, packet: Packet::Publish(publish) },
                Verdict::Refuse => {
                    let (publish, reason) = (Box::new(publish), Reason::QUOTA_EXCEEDED);
                    Event::Refused { connection, publish, reason }
                }
                Verdict::Hold => {
                    if let Some(client) = self.clients.get(&connection) {
                        let rest = std::iter::once(Packet::Publish(publish)).chain(packets);
                        self.held.hold(connection, &client.outbox, rest);
                    }
                    self.decide(Event::Held { connection }, now);
                    return;
                }
            };
            self.decide(event, now);
        }
    }

    /// What a part of the edge asks for; it is answered when that is durable.
    fn own(&mut self, item: Item) {
        let now = self.clock.now();
        let (event, change, done) = item.into_parts(now);
        // First: whatever is done because of the event waits for the commit that has both.
        self.out.changes.extend(change);
        self.out.wait = true;
        if let Some(event) = event {
            self.decide(event, now);
        }
        self.out.wait = false;
        let ticket = self.journal.last() + u64::from(!self.out.changes.is_empty());
        self.due.push_back((ticket, Due::Answer(done)));
        if ticket <= self.committed {
            self.settle();
        }
    }

    fn decide(&mut self, event: Event, now: Now) {
        let before = self.out.changes.len();
        self.state.decide(event, now, &mut self.out);
        self.leave_out_unneeded(before);
        let wait = std::mem::take(&mut self.out.wait);
        let ticket = self.journal.last() + u64::from(!self.out.changes.is_empty());
        let mut effects = std::mem::take(&mut self.out.effects);
        for effect in effects.drain(..) {
            self.place(effect, wait, ticket);
        }
        self.out.effects = effects;
    }

    /// A message that no queue holds and no lane takes is not stored, so nothing has to wait for the store.
    fn leave_out_unneeded(&mut self, from: usize) {
        let lanes = self.store.lanes();
        let takes = |topic: &str| {
            lanes.iter().any(|lane| lane.settings.as_ref().is_some_and(|s| s.takes(topic)))
        };
        let mut at = from;
        while let Some(change) = self.out.changes.get(at) {
            match change {
                Change::Message { message, queued, stored: None }
                    if queued.is_empty() && !takes(&message.topic) =>
                {
                    self.out.changes.remove(at);
                }
                _ => at += 1,
            }
        }
    }
}

async fn at(wake: Option<time::Instant>) {
    if let Some(wake) = wake {
        time::sleep_until(wake).await;
    }
}
