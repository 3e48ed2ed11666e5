//! The one task that owns a virtual host: takes commands, lets `State` decide, stores the plan, then tells whom it concerns.
//!
//! Plans become log transactions on the home shard, several in flight; their ends come in order. Whatever waits for an
//! answer is answered only then. Change here: what is done when. Not here: decisions (`state`), order in a queue (`line`).

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytestring::ByteString;
use futures::{
    FutureExt, StreamExt,
    future::BoxFuture,
    stream::{FuturesOrdered, FuturesUnordered},
};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tributary_shared::{
    clock::wall_ms,
    record::{Batch, BatchBuilder, Compression, Header, Record},
    tasks,
};

use super::{
    Command, ConnectionId, Event, Message, Numbers, Outbox, QueueId, TOPIC_EXCHANGE,
    exchange::Exchange,
    keeper::{Keeper, home_name},
    limits,
    load::{load, scan_all, sweep, write},
    message::At,
    plan::{self, Item, Place, Plan},
    router::{Router, Skips},
    state::{Count, Load, Loaded, State, Sweep},
    store::{self, Change, Definition, Entry},
};
use crate::{
    engine::ShardId,
    log::{
        Append, Guard, Log, LogError, Offset, Opening, PartitionId, StateSpace, StreamConfig,
        Transaction,
    },
    route::{PartitionRule, Routing, TOPIC_HEADER, Target},
};

/// Stream of what is published to any exchange but `amq.topic`.
pub const MESSAGES: &str = "amqp.messages";
/// Largest batch of it: what the log takes at the most.
const MESSAGES_BATCH_MAX: usize = 16 * 1024 * 1024;
/// Largest body, bytes: with its properties, which are kept twice, it fits into one batch.
pub const MESSAGE_MAX: u64 = 15 * 1024 * 1024;
/// Messages of this size and more go to [`MESSAGES`], whose batches may be larger than other streams'.
const LARGE: usize = 900_000;
/// A batch is closed when it is this large.
const BATCH_BYTES: usize = 512 * 1024;
/// Transactions in flight.
const IN_FLIGHT: usize = 16;
/// Bytes that may wait for a transaction before no more commands are taken.
const WAITING_BYTES: usize = 8 * 1024 * 1024;
/// Settled entries that may wait for company when nobody waits for them.
const SETTLED_WAITING: usize = 4096;
/// Batches of commands taken at once.
const COMMANDS_AT_ONCE: usize = 64;

/// Handle of a virtual host; clones reach the same.
#[derive(Debug, Clone)]
pub struct VirtualHost {
    commands: mpsc::Sender<Vec<Command>>,
    numbers: Arc<Numbers>,
}

impl VirtualHost {
    /// Starts the task that owns it: it brings back what is stored whenever its shard is here. The task ends when all handles are
    /// gone, or at `stop` while there is nothing to end.
    pub fn open(
        name: &str,
        log: Log,
        routing: Routing,
        stop: &CancellationToken,
    ) -> (Self, JoinHandle<()>) {
        let (commands, inbox) = mpsc::channel(limits::COMMANDS);
        let numbers = Arc::new(Numbers::default());
        let keeper = Keeper {
            name: name.to_owned(),
            log,
            routing,
            numbers: numbers.clone(),
            commands: commands.downgrade(),
            stop: stop.clone(),
        };
        let task = tasks::critical("amqp virtual host", stop, keeper.run(inbox));
        (Self { commands, numbers }, task)
    }

    /// Its numbers.
    pub fn numbers(&self) -> Arc<Numbers> {
        self.numbers.clone()
    }

    /// Hands commands over, in order. `false`: the virtual host is gone.
    pub async fn send(&self, commands: Vec<Command>) -> bool {
        self.commands.send(commands).await.is_ok()
    }
}

type Job<T> = BoxFuture<'static, T>;
/// Where the fresh messages of a plan lie.
type Stored = Result<Vec<At>, LogError>;

pub(super) struct Owner {
    state: State,
    log: Log,
    /// All of this belongs to one opening of the home shard.
    opening: Opening,
    routing: Routing,
    home: ShardId,
    /// For the home shard and the partitions that live there.
    home_name: String,
    outboxes: HashMap<ConnectionId, Outbox>,
    numbers: Arc<Numbers>,
    skips: Skips,
    bindings: Arc<AtomicUsize>,
    in_flight: FuturesOrdered<Job<(Plan, Stored)>>,
    loads: FuturesUnordered<Job<(Load, Result<Loaded, LogError>)>>,
    sweeps: FuturesUnordered<Job<Result<(), LogError>>>,
}

impl Owner {
    pub(super) async fn open(keeper: &Keeper, opening: Opening) -> Result<Self, LogError> {
        let Keeper { name, log, routing, numbers, .. } = keeper;
        let (log, routing, numbers) = (log.clone(), routing.clone(), numbers.clone());
        let home = keeper.home();
        let home_name = home_name(name);
        let config =
            StreamConfig { max_batch_bytes: Some(MESSAGES_BATCH_MAX), ..StreamConfig::default() };
        if log.stream(MESSAGES).is_none() {
            match log.create_stream(MESSAGES, None, config).await {
                Ok(_) | Err(LogError::StreamExists(_)) => {}
                Err(error) => return Err(error),
            }
        }
        let mut random = [0; 8];
        getrandom::fill(&mut random)
            .map_err(|error| LogError::BadConfig(format!("no random numbers: {error}")))?;
        let mut owner = Self {
            state: State::new(name, u64::from_le_bytes(random)),
            log,
            opening,
            routing,
            home,
            home_name,
            outboxes: HashMap::new(),
            numbers,
            skips: Skips::default(),
            bindings: Arc::default(),
            in_flight: FuturesOrdered::new(),
            loads: FuturesUnordered::new(),
            sweeps: FuturesUnordered::new(),
        };
        owner.restore(name).await?;
        // Before the router looks at the first record.
        owner.count_bindings();
        Ok(owner)
    }

    pub(super) fn router(&self) -> impl Future<Output = Result<Router, LogError>> + use<> {
        let (skips, bindings) = (self.skips.clone(), self.bindings.clone());
        Router::open(self.log.clone(), self.home, skips, bindings)
    }

    pub(super) fn close_all(&self) {
        self.outboxes.values().for_each(Outbox::close);
    }

    fn count_bindings(&self) {
        let topic = self.state.exchanges.get(TOPIC_EXCHANGE);
        self.bindings.store(topic.map_or(0, Exchange::len), Ordering::Release);
    }

    async fn restore(&mut self, name: &str) -> Result<(), LogError> {
        let prefix = store::definitions(name);
        let mut definitions = Vec::new();
        scan_all(&self.log, self.home, (StateSpace::Amqp, &prefix), |key, value| {
            let own = key.get(prefix.len()..);
            if let Some(definition) = own.and_then(|key| Definition::decode(key, &value)) {
                definitions.push(definition);
            } else {
                tracing::error!(?key, "stored definition is not readable");
            }
        })
        .await?;
        let mut purged: Vec<Sweep> = Vec::new();
        scan_all(&self.log, self.home, (StateSpace::QueueAck, b"p"), |key, value| {
            let number = |range: std::ops::Range<usize>| key.get(range).and_then(store::number);
            if let (Some(queue), Some(from), Some(until)) =
                (number(1..9), number(9..17), store::number(&value))
            {
                purged.push(Sweep { queue: QueueId(queue), from, until });
            }
        })
        .await?;
        let mut counts: HashMap<QueueId, Count> = HashMap::new();
        scan_all(&self.log, self.home, (StateSpace::QueueAck, b"f"), |key, value| {
            if let (Some(queue), Some(floor)) =
                (key.get(1..).and_then(store::number), store::number(&value))
            {
                counts.insert(QueueId(queue), Count { floor, next: floor, ..Count::default() });
            }
        })
        .await?;
        scan_all(&self.log, self.home, (StateSpace::Queue, b""), |key, value| {
            let Some((queue, position)) = store::read_entry_key(&key) else { return };
            let count = counts.entry(queue).or_default();
            count.next = count.next.max(position + 1);
            let is_purged = |sweep: &Sweep| {
                sweep.queue == queue && (sweep.from..sweep.until).contains(&position)
            };
            if !purged.iter().any(is_purged) {
                count.messages += 1;
                count.bytes += Entry::decode(value).map_or(0, |entry| u64::from(entry.size));
            }
        })
        .await?;
        let count = |id| counts.get(&id).copied().unwrap_or_default();
        let known: HashSet<QueueId> = self.state.restore(definitions, count, wall_ms());
        // A read must not find what is purged.
        for sweep in purged {
            self::sweep(&self.log, self.home, sweep).await?;
        }
        // Queues that were not durable, or were deleted while their entries were still being removed.
        for queue in counts.into_keys().filter(|id| !known.contains(id)) {
            self.state.sweeps.push(Sweep { queue, from: 0, until: u64::MAX });
            let floor = Change::delete(StateSpace::QueueAck, store::floor_key(queue));
            self.state.plan.changes.push(floor);
        }
        Ok(())
    }

    /// Until all handles are gone, then until everything is stored.
    pub(super) async fn run(
        &mut self,
        inbox: &mut mpsc::Receiver<Vec<Command>>,
    ) -> Result<(), LogError> {
        let mut batches = Vec::with_capacity(COMMANDS_AT_ONCE);
        let mut open = true;
        loop {
            self.act().await?;
            if !open && self.in_flight.is_empty() && self.state.plan.has_nothing_to_store() {
                return Ok(());
            }
            let deadline = self.state.next_deadline();
            tokio::select! {
                biased;
                Some((plan, result)) = self.in_flight.next() => self.stored(plan, result)?,
                Some((load, result)) = self.loads.next() => self.loaded(load, result),
                Some(result) = self.sweeps.next() => result?,
                received = inbox.recv_many(&mut batches, COMMANDS_AT_ONCE),
                    if open && self.state.plan.bytes < WAITING_BYTES => open = received > 0,
                () = sleep_until(deadline), if deadline.is_some() => self.state.tick(wall_ms()),
            }
            let now_ms = wall_ms();
            for command in batches.drain(..).flatten() {
                match &command {
                    Command::Attach { connection, outbox, .. } => {
                        self.outboxes.insert(*connection, outbox.clone());
                    }
                    Command::Detach(connection) => drop(self.outboxes.remove(connection)),
                    _ => {}
                }
                self.state.handle(command, now_ms);
            }
        }
    }

    /// Delivers, stores, and sends what there is.
    async fn act(&mut self) -> Result<(), LogError> {
        self.state.deliver();
        self.count_bindings();
        for load_request in std::mem::take(&mut self.state.loads) {
            let (log, home) = (self.log.clone(), self.home);
            self.loads
                .push(async move { (load_request, load(&log, home, load_request).await) }.boxed());
        }
        self.submit().await?;
        for sweep_request in std::mem::take(&mut self.state.sweeps) {
            let (log, home) = (self.log.clone(), self.home);
            self.sweeps.push(async move { sweep(&log, home, sweep_request).await }.boxed());
        }
        self.send();
        Ok(())
    }

    fn send(&mut self) {
        let count = |number: &AtomicU64, n: u64| number.store(n, Ordering::Relaxed);
        count(&self.numbers.queues, self.state.queue_count());
        count(&self.numbers.published, self.state.published);
        count(&self.numbers.delivered, self.state.delivered);
        count(&self.numbers.lost, self.state.lost);
        let mut run: Vec<Event> = Vec::new();
        let mut to = None;
        for (connection, event) in self.state.events.drain(..) {
            if to != Some(connection) {
                flush(&self.outboxes, to, &mut run);
                to = Some(connection);
            }
            run.push(event);
        }
        flush(&self.outboxes, to, &mut run);
    }

    /// Hands the plan to the log, unless so much is in flight that it had better grow.
    async fn submit(&mut self) -> Result<(), LogError> {
        let waits_for_company = self.state.plan.is_only_settled()
            && !self.in_flight.is_empty()
            && self.state.plan.settled.len() < SETTLED_WAITING;
        if self.state.plan.is_empty() || self.in_flight.len() >= IN_FLIGHT || waits_for_company {
            return Ok(());
        }
        let mut plan = self.state.seal();
        if plan.has_nothing_to_store() {
            // It keeps its turn behind what is in flight.
            self.in_flight.push_back(async move { (plan, Ok(Vec::new())) }.boxed());
            return Ok(());
        }
        let (transaction, layout) = self.transaction(&mut plan).await?;
        let pending = self.log.submit(self.home, transaction).await?;
        self.in_flight.push_back(
            async move {
                let result = pending.await.unwrap_or(Err(LogError::Closed));
                let at = result.map(|committed| places(&layout, &committed.base_offsets));
                (plan, at)
            }
            .boxed(),
        );
        Ok(())
    }

    /// One transaction: records of fresh messages, index entries of all, changes.
    async fn transaction(&mut self, plan: &mut Plan) -> Result<(Transaction, Layout), LogError> {
        let now_ms = wall_ms();
        let mut batches = Batches::default();
        let mut fresh = Vec::new();
        let mut writes: Vec<_> = std::mem::take(&mut plan.changes).into_iter().map(write).collect();
        for item in &plan.items {
            match item {
                Item::Known(known) => writes.extend(known.changes().map(write)),
                Item::Fresh(message) => {
                    let (partition, record) =
                        record(&self.log, &self.routing, &self.home_name, &message.message, now_ms)
                            .await?;
                    batches.push(partition, &record);
                    fresh.push((message.message.clone(), message.places.clone()));
                }
            }
        }
        let (appends, layout) = batches.finish()?;
        let opening = Some(self.opening);
        let partitions: Vec<PartitionId> = appends.iter().map(|append| append.partition).collect();
        let skips = self.skips.clone();
        let of_index = layout.clone();
        let index = move |bases: &[Offset]| index(&skips, &partitions, bases, &of_index, &fresh);
        let index = (!layout.is_empty()).then(|| Box::new(index) as crate::log::Index);
        Ok((Transaction { appends, writes, index, opening, guard: Guard::None }, layout))
    }

    fn stored(&mut self, mut plan: Plan, result: Stored) -> Result<(), LogError> {
        match result {
            Ok(at) => {
                self.state.committed(&mut plan, at.into_iter(), wall_ms());
                Ok(())
            }
            Err(error) => {
                self.state.failed(&mut plan, &error.to_string());
                self.send();
                // What it settled or declared is not stored: going on would break promises.
                Err(error)
            }
        }
    }

    fn loaded(&mut self, load: Load, result: Result<Loaded, LogError>) {
        match result {
            Ok(loaded) => self.state.loaded(loaded, wall_ms()),
            Err(error) => {
                tracing::error!(%error, "backlog not read");
                self.state.load_failed(load, wall_ms());
            }
        }
    }
}

/// Where a message's record goes, always on the home shard, and the record.
async fn record(
    log: &Log,
    routing: &Routing,
    home_name: &str,
    message: &Message,
    now_ms: i64,
) -> Result<(PartitionId, Record), LogError> {
    let mut record = message.to_record(now_ms);
    let topic = message.topic();
    let target = match &topic {
        Some(topic) if message.size() < LARGE => {
            let target = routing.current().target(topic);
            target.set_key(&mut record, topic);
            target
        }
        _ => Target { stream: MESSAGES.into(), key: None, rule: PartitionRule::Edge },
    };
    if let Some(topic) = topic.filter(|_| record.key.is_none()) {
        let name = ByteString::from_static(TOPIC_HEADER);
        record.headers.push(Header { name, value: Some(topic.into_bytes().into()) });
    }
    let key = record.key.clone().unwrap_or_default();
    let place = routing.place_from_edge(log, home_name, &target, &key).await?;
    Ok((place.partition, record))
}

fn flush(outboxes: &HashMap<ConnectionId, Outbox>, to: Option<ConnectionId>, run: &mut Vec<Event>) {
    match to.and_then(|connection| outboxes.get(&connection)) {
        Some(outbox) if !run.is_empty() => outbox.send(run),
        _ => run.clear(),
    }
}

async fn sleep_until(deadline: Option<i64>) {
    let wait_ms = deadline.map_or(0, |at| (at - wall_ms()).max(0));
    // A wall clock that is set back must not make it wait for ever.
    tokio::time::sleep(Duration::from_millis((wait_ms as u64).min(60_000))).await;
}

/// For each fresh message: its partition, which append, and which record in it.
type Layout = Arc<Vec<(PartitionId, usize, Offset)>>;

/// Where each fresh message lies, by the base offsets of the appends.
fn places(layout: &Layout, bases: &[Offset]) -> Vec<At> {
    let at = |(partition, append, record): &(PartitionId, usize, Offset)| {
        let base = bases.get(*append).copied().unwrap_or_default();
        At { partition: *partition, offset: base + record }
    };
    layout.iter().map(at).collect()
}

/// Index entries of the fresh messages, and a mark for each batch.
fn index(
    skips: &Skips,
    partitions: &[PartitionId],
    bases: &[Offset],
    layout: &Layout,
    fresh: &[(Arc<Message>, Vec<Place>)],
) -> Vec<crate::engine::Write> {
    let mut writes = Vec::new();
    for (partition, base) in partitions.iter().zip(bases) {
        skips.mark(*partition, *base);
        let key = store::skip_key(*partition, *base);
        writes.push(write(Change::put(StateSpace::QueueAck, key, vec![1])));
    }
    for (at, (message, places)) in places(layout, bases).into_iter().zip(fresh) {
        writes.extend(places.iter().map(|place| write(plan::change(place, at, message, false))));
    }
    writes
}

/// Records gathered into batches by partition.
#[derive(Default)]
struct Batches {
    appends: Vec<(PartitionId, BatchBuilder)>,
    open: HashMap<PartitionId, usize>,
    layout: Vec<(PartitionId, usize, Offset)>,
}

impl Batches {
    fn push(&mut self, partition: PartitionId, record: &Record) {
        let fits =
            |append: &usize| self.appends.get(*append).is_some_and(|(_, b)| b.size() < BATCH_BYTES);
        let open = self.open.get(&partition).copied().filter(fits);
        let append = open.unwrap_or_else(|| {
            self.appends.push((partition, BatchBuilder::new()));
            self.open.insert(partition, self.appends.len() - 1);
            self.appends.len() - 1
        });
        let Some((_, builder)) = self.appends.get_mut(append) else { return };
        self.layout.push((partition, append, builder.count() as Offset));
        builder.push(record);
    }

    fn finish(self) -> Result<(Vec<Append>, Layout), LogError> {
        let batch =
            |(partition, builder): (PartitionId, BatchBuilder)| -> Result<Append, LogError> {
                let batch: Batch = builder.finish(Compression::None, None)?;
                Ok(Append { partition, batch })
            };
        let appends = self.appends.into_iter().map(batch).collect::<Result<_, _>>()?;
        Ok((appends, Arc::new(self.layout)))
    }
}
