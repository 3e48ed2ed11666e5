//! PURE. A virtual host: what each command changes, what must become durable, and who is told what.
//!
//! Holds: exchanges, queues, and for every connection its channels with their consumers and unacknowledged messages.
//! In: [`Command`]s, plans that became durable, backlogs that were read, and the time. Out: events, a [`Plan`], reads wanted.
//! What each method does stands in `method/`; delivering in `deliver.rs`. Not here: I/O (`owner`).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use bytestring::ByteString;
use tributary_shared::amqp::{Code, Method, Refusal};

pub use super::parts::{
    Channel, ChannelConsumer, Connection, Consumer, Count, Load, Loaded, Mode, Queue,
    QueueDeclared, Settle, Settled, Sweep, Transaction, Unacked,
};
use super::{
    Command, ConnectionId, Event, QueueId,
    arguments::Arguments,
    exchange::{Binding, Destination, Exchange, predeclared},
    line::Line,
    plan::{Item, Plan, ready},
    store::{self, Change, Definition, StoredQueue},
};
use crate::log::{Offset, PartitionId, StateSpace};

/// A backlog that could not be read is asked for again after so long.
const LOAD_AGAIN_MS: i64 = 500;

/// See the module.
pub struct State {
    pub(super) name: Arc<str>,
    pub(super) exchanges: HashMap<ByteString, Exchange>,
    pub(super) queues: HashMap<QueueId, Queue>,
    pub(super) names: HashMap<ByteString, QueueId>,
    pub(super) connections: HashMap<ConnectionId, Connection>,
    pub(super) next_queue: u64,
    pub(super) dirty: Vec<QueueId>,
    pub(super) deadlines: BTreeSet<(i64, QueueId)>,
    pub(super) now_ms: i64,
    /// Names for queues and consumers that want one; random so that no restart repeats them.
    pub(super) seed: u64,
    pub(super) generated: u64,
    /// What must become durable next.
    pub plan: Plan,
    /// What is told at once, in order for each connection.
    pub events: Vec<(ConnectionId, Event)>,
    /// Backlogs to read.
    pub loads: Vec<Load>,
    /// Stored entries to remove in the background.
    pub sweeps: Vec<Sweep>,
    /// How far the router has seen each partition, not stored yet.
    pub(super) cursors: BTreeMap<PartitionId, Offset>,
    /// Batches the router passed that were indexed when published: their marks go when the cursors are stored.
    pub(super) passed: Vec<(PartitionId, Offset)>,
    /// Messages that were in a queue but whose record is gone from the log.
    pub lost: u64,
    /// Messages that clients published.
    pub published: u64,
    /// Messages that clients were sent.
    pub delivered: u64,
}

pub(super) type Answer = Result<(), Refusal>;

impl State {
    /// With the predeclared exchanges only.
    pub fn new(name: &str, seed: u64) -> Self {
        Self {
            name: name.into(),
            exchanges: predeclared().collect(),
            queues: HashMap::new(),
            names: HashMap::new(),
            connections: HashMap::new(),
            next_queue: 1,
            dirty: Vec::new(),
            deadlines: BTreeSet::new(),
            now_ms: 0,
            seed,
            generated: 0,
            plan: Plan::default(),
            events: Vec::new(),
            loads: Vec::new(),
            sweeps: Vec::new(),
            cursors: BTreeMap::new(),
            passed: Vec::new(),
            lost: 0,
            published: 0,
            delivered: 0,
        }
    }

    /// Brings back what was stored; `count` tells what a queue's index holds. Returns the ids of the queues there are.
    pub fn restore(
        &mut self,
        definitions: Vec<Definition>,
        count: impl Fn(QueueId) -> Count,
        now_ms: i64,
    ) -> HashSet<QueueId> {
        self.now_ms = now_ms;
        let mut bindings = Vec::new();
        for definition in definitions {
            match definition {
                Definition::Exchange(name, declared) => {
                    self.exchanges.insert(name, Exchange::new(declared));
                }
                Definition::Queue(name, stored) => self.restore_queue(name, stored, &count),
                Definition::Binding(source, binding) => bindings.push((source, binding)),
                Definition::Ids(next) => self.next_queue = self.next_queue.max(next),
            }
        }
        for (source, binding) in bindings {
            let there = match &binding.destination {
                Destination::Queue(id) => self.queues.contains_key(id),
                Destination::Exchange(name) => self.exchanges.contains_key(name),
            };
            match self.exchanges.get_mut(&source) {
                Some(exchange) if there => {
                    if let Destination::Queue(id) = &binding.destination
                        && let Some(queue) = self.queues.get_mut(id)
                    {
                        queue.bound.insert(source.clone());
                    }
                    exchange.bind(binding);
                }
                _ => self.plan.changes.push(Change::delete(
                    StateSpace::Amqp,
                    store::binding_key(&self.name, &source, &binding),
                )),
            }
        }
        self.queues.keys().copied().collect()
    }

    fn restore_queue(
        &mut self,
        name: ByteString,
        stored: StoredQueue,
        count: &impl Fn(QueueId) -> Count,
    ) {
        let whose = format!("queue '{name}' in vhost '{}'", self.name);
        let Ok(arguments) = Arguments::parse(&stored.arguments, &whose) else {
            tracing::error!(queue = %name, "stored arguments are not legal: the queue is left alone");
            return;
        };
        let Count { floor, next, messages, bytes } = count(stored.id);
        let declared = QueueDeclared {
            durable: true,
            exclusive: false,
            auto_delete: stored.auto_delete,
            arguments: stored.arguments,
        };
        let mut queue = Queue::new(name.clone(), declared, arguments, None, self.now_ms);
        queue.line = Line::restored(floor, next, messages, bytes);
        queue.restored = next;
        self.next_queue = self.next_queue.max(stored.id.0 + 1);
        self.names.insert(name, stored.id);
        self.queues.insert(stored.id, queue);
        self.touch(stored.id);
    }

    /// Takes one command. Events and plan grow.
    pub fn handle(&mut self, command: Command, now_ms: i64) {
        self.now_ms = now_ms;
        match command {
            Command::Attach { connection, user, .. } => {
                self.connections.insert(connection, Connection::new(user));
            }
            Command::Detach(connection) => self.detach(connection),
            Command::Abandon(connection, channel) => self.close_channel(connection, channel),
            Command::Written(connection, bytes) => self.written(connection, bytes),
            Command::Method { connection, channel, method } => {
                let culprit = method.id();
                // A close may cross a refusal of ours: it is answered all the same.
                let always =
                    matches!(method, Method::ChannelOpen { .. } | Method::ChannelClose { .. });
                if always || self.has_channel(connection, channel) {
                    let answer = self.method(connection, channel, method);
                    self.refuse(connection, channel, answer, culprit);
                }
            }
            Command::Publish { connection, channel, publish } => {
                if self.has_channel(connection, channel) {
                    let answer = self.publish(connection, channel, *publish);
                    self.refuse(connection, channel, answer, (60, 40));
                }
            }
            Command::Routed(routed) => self.routed(*routed),
        }
    }

    fn has_channel(&self, connection: ConnectionId, channel: u16) -> bool {
        self.connections.get(&connection).is_some_and(|c| c.channels.contains_key(&channel))
    }

    /// Closes the channel, or the connection, if the answer is a refusal; what it sent meanwhile is ignored.
    fn refuse(
        &mut self,
        connection: ConnectionId,
        channel: u16,
        answer: Answer,
        culprit: (u16, u16),
    ) {
        let Err(refusal) = answer else { return };
        let refusal = refusal.by(culprit);
        if refusal.code.closes_connection() {
            self.detach(connection);
        } else {
            self.close_channel(connection, channel);
        }
        self.events.push((connection, Event::Refused { channel, refusal }));
    }

    fn written(&mut self, connection: ConnectionId, bytes: i64) {
        let Some(state) = self.connections.get_mut(&connection) else { return };
        state.credit += bytes;
        if state.credit > 0 && std::mem::take(&mut state.stalled) {
            let queues: Vec<QueueId> = state
                .channels
                .values()
                .flat_map(|c| c.consumers.values().map(|c| c.queue))
                .collect();
            self.touch_all(queues);
        }
    }

    /// A plan is durable; `at` gives each message's record, in order of the plan's fresh ones.
    pub fn committed(
        &mut self,
        plan: &mut Plan,
        mut at: impl Iterator<Item = super::message::At>,
        now_ms: i64,
    ) {
        self.now_ms = now_ms;
        for item in std::mem::take(&mut plan.items) {
            let (message, at, places) = match item {
                Item::Fresh(fresh) => match at.next() {
                    Some(at) => (fresh.message, at, fresh.places),
                    None => continue,
                },
                Item::Known(known) => (known.message, known.at, known.places),
            };
            for place in places {
                let (id, ready) = ready(&place, at, &message);
                match self.queues.get_mut(&id) {
                    Some(queue) => {
                        if !queue.line.arrive(ready) {
                            self.plan.settled.push((id, place.position));
                        }
                        self.touch(id);
                    }
                    // Deleted meanwhile: its sweep may have passed already.
                    None => self.plan.settled.push((id, place.position)),
                }
            }
        }
        let events = plan.events(Ok(()));
        self.events.extend(events);
    }

    /// A plan could not be stored; whoever waits for it is told.
    pub fn failed(&mut self, plan: &mut Plan, why: &str) {
        let refusal = Refusal::new(Code::InternalError, why);
        self.events.extend(plan.events(Err(&refusal)));
    }

    /// A backlog was read.
    pub fn loaded(&mut self, loaded: Loaded, now_ms: i64) {
        self.now_ms = now_ms;
        let id = loaded.load.queue;
        let Some(queue) = self.queues.get_mut(&id) else { return };
        if queue.loading != Some(loaded.load.number) {
            return;
        }
        queue.loading = None;
        if !loaded.lost.is_empty() {
            self.lost += loaded.lost.len() as u64;
            tracing::warn!(queue = %queue.name, messages = loaded.lost.len(), "records of queued messages are gone");
        }
        queue.line.fill(loaded.messages, loaded.lost.len() as u64, loaded.until);
        for position in loaded.lost {
            self.plan.settled.push((id, position));
        }
        self.touch(id);
    }

    /// A backlog could not be read: it is asked for again a moment later.
    pub fn load_failed(&mut self, load: Load, now_ms: i64) {
        if let Some(queue) = self.queues.get_mut(&load.queue)
            && queue.loading == Some(load.number)
        {
            queue.loading = None;
            self.deadlines.insert((now_ms.saturating_add(LOAD_AGAIN_MS), load.queue));
        }
    }

    /// Queues there are.
    pub fn queue_count(&self) -> u64 {
        self.queues.len() as u64
    }

    /// When something happens by itself next, ms since 1970.
    pub fn next_deadline(&self) -> Option<i64> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// What is due by now.
    pub fn tick(&mut self, now_ms: i64) {
        self.now_ms = now_ms;
        while let Some((at, id)) = self.deadlines.first().copied()
            && at <= now_ms
        {
            self.deadlines.pop_first();
            let Some(queue) = self.queues.get_mut(&id) else { continue };
            queue.deadline = None;
            if queue.unused_until().is_some_and(|until| until <= now_ms) {
                self.delete_queue(id);
            } else {
                self.touch(id);
            }
        }
    }

    /// The queue may have something to deliver.
    pub(super) fn touch(&mut self, id: QueueId) {
        if let Some(queue) = self.queues.get_mut(&id)
            && !std::mem::replace(&mut queue.dirty, true)
        {
            self.dirty.push(id);
        }
    }

    pub(super) fn touch_all(&mut self, queues: Vec<QueueId>) {
        for queue in queues {
            self.touch(queue);
        }
    }

    /// Wakes when the next of its deadlines comes.
    pub(super) fn set_deadline(&mut self, id: QueueId) {
        let Some(queue) = self.queues.get_mut(&id) else { return };
        let expiry = queue.line.head().and_then(|head| head.expires_ms);
        let next = [expiry, queue.unused_until()].into_iter().flatten().min();
        if queue.deadline != next {
            if let Some(old) = queue.deadline {
                self.deadlines.remove(&(old, id));
            }
            if let Some(next) = next {
                self.deadlines.insert((next, id));
            }
            queue.deadline = next;
        }
    }

    pub(super) fn reply(&mut self, connection: ConnectionId, channel: u16, method: Method) {
        self.events.push((connection, Event::Method { channel, method }));
    }

    /// Answers at once, or when the plan is durable.
    pub(super) fn reply_when(&mut self, durable: bool, to: (ConnectionId, u16), method: Method) {
        if durable {
            self.plan.answer(to.0, to.1, method);
        } else {
            self.reply(to.0, to.1, method);
        }
    }

    pub(super) fn channel(
        &mut self,
        connection: ConnectionId,
        channel: u16,
    ) -> Option<&mut Channel> {
        self.connections.get_mut(&connection)?.channels.get_mut(&channel)
    }

    /// A name that was never given before.
    pub(super) fn generate(&mut self, prefix: &str) -> ByteString {
        self.generated += 1;
        let mixed = (self.seed ^ self.generated).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        format!("{prefix}{:016x}{:06x}", mixed ^ self.seed.rotate_left(32), self.generated).into()
    }

    pub(super) fn no_exchange(&self, name: &str) -> Refusal {
        Refusal::new(Code::NotFound, format!("no exchange '{name}' in vhost '{}'", self.name))
    }

    pub(super) fn no_queue(&self, name: &str) -> Refusal {
        Refusal::new(Code::NotFound, format!("no queue '{name}' in vhost '{}'", self.name))
    }

    /// A durable binding between durable ends is stored.
    pub(super) fn is_stored(&self, source: &str, binding: &Binding) -> bool {
        let durable = |name: &str| self.exchanges.get(name).is_some_and(|e| e.declared.durable);
        durable(source)
            && match &binding.destination {
                Destination::Queue(id) => self.queues.get(id).is_some_and(Queue::is_stored),
                Destination::Exchange(name) => durable(name),
            }
    }
}
