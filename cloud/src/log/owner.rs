//! The task that owns one shard: takes changes in order, writes them in groups, answers when they are durable.
//!
//! ```text
//!  queue -> decide -> engine write --(flights, in order)--> durable -> cache, marks, followers -> answers
//! ```
//! The next group is written while earlier ones wait. If a write or its durability fails, everything not yet answered gets
//! an error and the shard is opened anew: what the engine then holds is the truth. Change here: when things happen.
//! Not here: what a change does (`decide`).

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    Committed, LogError, PartitionId,
    decide::{Change, EdgeKey, Group, ProducerKey, State},
    follow::Followers,
    guard::{Edge, Producer},
    keys, now_ms,
    partition::{Cache, Partition},
    slot::{Place, ReadMark, Slot, reopened},
    stored::Tail,
};
use crate::engine::{CommitId, Engine, EngineError, ScanLimit, Shard, ShardId};

/// Changes taken from the queue at a time.
const TAKE: usize = 512;
/// Bytes of batches in one engine write, about.
const GROUP_BYTES: usize = 8 * 1024 * 1024;
/// Written groups that wait for durability.
const FLIGHTS: usize = 256;
/// Reads of producers and edges at a time.
const LOOKUPS: usize = 32;
/// Between two attempts to open a shard whose store fails.
const REOPEN_AFTER: Duration = Duration::from_secs(1);

/// What owners and readers share.
pub(super) struct Shared {
    pub partitions: RwLock<HashMap<PartitionId, Arc<Partition>>>,
    pub cache: Cache,
    pub followers: Followers,
    /// The first shard that another process took over.
    pub lost: watch::Sender<Option<ShardId>>,
}

/// One queued change.
pub(super) struct Request {
    pub change: Change,
    /// The opening it was made for: what came before it may be lost in another.
    pub opening: ReadMark,
    pub answer: Answer,
    /// Its share of the bytes that may be on the way.
    pub room: Option<OwnedSemaphorePermit>,
}

/// The way back to who submitted; says so if it is dropped without an answer.
pub(super) struct Answer(Option<oneshot::Sender<Result<Committed, LogError>>>);

impl Answer {
    pub(super) fn new(to: oneshot::Sender<Result<Committed, LogError>>) -> Self {
        Self(Some(to))
    }

    fn send(mut self, answer: Result<Committed, LogError>) {
        if let Some(to) = self.0.take() {
            // Nobody waits any more: not our loss.
            drop(to.send(answer));
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(to) = self.0.take() {
            let error = EngineError::Store("the shard failed before this was durable".into());
            drop(to.send(Err(LogError::Engine(error))));
        }
    }
}

/// A written group on its way to durability.
struct Flight {
    /// `None`: nothing was written since the shard was opened.
    commit: Option<CommitId>,
    group: Group,
    answers: Vec<(Answer, Result<Committed, LogError>, Option<OwnedSemaphorePermit>)>,
}

/// Owner of one shard.
pub(super) struct Owner {
    pub id: ShardId,
    pub engine: Arc<dyn Engine>,
    pub shared: Arc<Shared>,
    pub slot: Arc<Slot>,
    pub requests: mpsc::Receiver<Request>,
    pub stop: CancellationToken,
}

impl Owner {
    /// Until the log is closed or the shard is lost.
    pub(super) async fn run(
        mut self,
        mut shard: Arc<dyn Shard>,
        mut state: State,
    ) -> Result<(), LogError> {
        loop {
            let Err(error) = self.serve(&shard, &mut state).await else {
                let closed = shard.close().await;
                self.slot.set(Place::Closed);
                return closed.map_err(LogError::from);
            };
            match self.recover(error).await {
                Some(recovered) => (shard, state) = recovered,
                None => return Err(LogError::NotOwner),
            }
        }
    }

    /// One opening of the shard: `Ok` when the queue is closed and all is durable.
    async fn serve(
        &mut self,
        shard: &Arc<dyn Shard>,
        state: &mut State,
    ) -> Result<(), EngineError> {
        let (flights, landing) = mpsc::channel(FLIGHTS);
        let Self { shared, slot, requests, stop, .. } = self;
        let writing = write(shard, state, slot, requests, stop, flights);
        tokio::try_join!(writing, land(shard, shared, slot, landing)).map(|_| ())
    }

    /// Opens the shard again; `None`: somebody else owns it, or the log closes.
    async fn recover(&mut self, error: EngineError) -> Option<(Arc<dyn Shard>, State)> {
        let mut error = error;
        loop {
            if let EngineError::Fenced(_) = error {
                warn!(shard = self.id.0, "another process took the shard over");
                self.slot.set(Place::Lost);
                self.shared.lost.send_replace(Some(self.id));
                self.refuse_all().await;
                return None;
            }
            warn!(shard = self.id.0, %error, "shard failed; opening it again");
            self.slot.set(Place::Reopening(error.clone()));
            while let Ok(request) = self.requests.try_recv() {
                request.answer.send(Err(LogError::Engine(error.clone())));
            }
            if self.stop.is_cancelled() {
                self.requests.close();
                self.slot.set(Place::Closed);
                return None;
            }
            match reopen(self.engine.as_ref(), self.id).await {
                Ok((shard, state)) => {
                    self.slot.set(Place::Open(Arc::clone(&shard)));
                    self.catch_up(&state);
                    info!(shard = self.id.0, "shard is open again");
                    return Some((shard, state));
                }
                Err(again) => error = again,
            }
            tokio::select! {
                () = tokio::time::sleep(REOPEN_AFTER) => {}
                () = self.stop.cancelled() => {}
            }
        }
    }

    /// After the loss, until the log closes.
    async fn refuse_all(&mut self) {
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled(), if !self.requests.is_closed() => self.requests.close(),
                request = self.requests.recv() => match request {
                    Some(request) => request.answer.send(Err(LogError::NotOwner)),
                    None => return,
                }
            }
        }
    }

    /// What was written but not answered may be there: readers see it now.
    fn catch_up(&self, state: &State) {
        let partitions = self.shared.partitions.read().unwrap_or_else(PoisonError::into_inner);
        let mut moved = Vec::new();
        for (id, tail) in state.tails() {
            if let Some(partition) = partitions.get(&id) {
                partition.advance(&tail);
                moved.push(id);
            }
        }
        drop(partitions);
        self.shared.followers.tell(&moved);
    }
}

async fn reopen(engine: &dyn Engine, id: ShardId) -> Result<(Arc<dyn Shard>, State), EngineError> {
    let shard = engine.open(id).await?;
    let tails = read_tails(shard.as_ref()).await.map_err(|error| match error {
        LogError::Engine(error) => error,
        other => EngineError::Store(other.to_string()),
    })?;
    Ok((shard, State::new(tails)))
}

/// Every partition's tail in a shard.
pub(super) async fn read_tails(shard: &dyn Shard) -> Result<Vec<(PartitionId, Tail)>, LogError> {
    let mut range = keys::tails();
    let mut tails = Vec::new();
    loop {
        let limit = ScanLimit { entries: 1000, bytes: 1024 * 1024 };
        let page = shard.scan(range.clone(), limit).await?;
        let Some((last, _)) = page.last() else { return Ok(tails) };
        range.start = [last, &b"\0"[..]].concat().into();
        for (key, value) in &page {
            if let Some(partition) = keys::tail_partition(key) {
                tails.push((partition, Tail::decode(value)?));
            }
        }
    }
}

/// Queue -> decide -> write.
async fn write(
    shard: &Arc<dyn Shard>,
    state: &mut State,
    slot: &Slot,
    requests: &mut mpsc::Receiver<Request>,
    stop: &CancellationToken,
    flights: mpsc::Sender<Flight>,
) -> Result<(), EngineError> {
    let mut taken = Vec::with_capacity(TAKE);
    let mut last = None;
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled(), if !requests.is_closed() => {
                requests.close();
                continue;
            }
            count = requests.recv_many(&mut taken, TAKE) => if count == 0 {
                return Ok(());
            }
        }
        refuse_stale(slot, &mut taken);
        let unknown = unknown(state, &taken);
        learn(shard.as_ref(), state, unknown).await?;
        let mut rest = taken.drain(..).peekable();
        while rest.peek().is_some() {
            let mut flight = compose(state, &mut rest);
            let writes = std::mem::take(&mut flight.group.writes);
            slot.start_group();
            if !writes.is_empty() {
                last = Some(shard.write(writes).await?);
            }
            flight.commit = last;
            if flights.send(flight).await.is_err() {
                return Err(EngineError::Closed);
            }
        }
        drop(rest);
        state.shrink();
    }
}

/// A request that waited while the shard was opened anew may build on one that was lost with the old opening: it must not
/// take effect without it.
fn refuse_stale(slot: &Slot, taken: &mut Vec<Request>) {
    let opening = slot.read_mark();
    for request in taken.extract_if(.., |request| request.opening != opening) {
        request.answer.send(Err(reopened()));
    }
}

/// The producers and edges in `requests` that the owner must know and does not.
fn unknown(state: &State, requests: &[Request]) -> (Vec<ProducerKey>, Vec<EdgeKey>) {
    let (mut producers, mut edges) = (Vec::new(), Vec::new());
    for request in requests {
        let (p, e) = state.unknown(&request.change);
        producers.extend(p);
        edges.extend(e);
    }
    producers.sort_unstable();
    producers.dedup();
    edges.sort_unstable();
    edges.dedup();
    (producers, edges)
}

/// Reads what the engine knows of them.
async fn learn(
    shard: &dyn Shard,
    state: &mut State,
    (producers, edges): (Vec<ProducerKey>, Vec<EdgeKey>),
) -> Result<(), EngineError> {
    let unreadable = |error: LogError| EngineError::Store(error.to_string());
    for some in producers.chunks(LOOKUPS) {
        let reads = some
            .iter()
            .map(async |&(partition, id)| shard.get(&keys::producer(partition, id)).await);
        for (key, stored) in some.iter().zip(futures::future::try_join_all(reads).await?) {
            let stored = stored.map(|bytes| Producer::decode(&bytes)).transpose();
            state.learn_producer(*key, stored.map_err(unreadable)?);
        }
    }
    for some in edges.chunks(LOOKUPS) {
        let reads =
            some.iter().map(async |(edge, epoch)| shard.get(&keys::edge(edge, *epoch)).await);
        for (key, stored) in some.iter().zip(futures::future::try_join_all(reads).await?) {
            let stored = stored.map(|bytes| Edge::decode(&bytes)).transpose();
            state.learn_edge(key.clone(), stored.map_err(unreadable)?);
        }
    }
    Ok(())
}

/// One group from the first of `rest`.
fn compose(state: &mut State, rest: &mut impl Iterator<Item = Request>) -> Flight {
    let mut flight = Flight { commit: None, group: Group::default(), answers: Vec::new() };
    let mut bytes = 0;
    let now = now_ms();
    while bytes < GROUP_BYTES {
        let Some(Request { change, answer, room, .. }) = rest.next() else { break };
        if let Change::Apply(prepared) = &change {
            bytes += prepared.appends.iter().map(|a| a.batch.bytes().len()).sum::<usize>();
        }
        let decided = state.decide(change, now, &mut flight.group);
        flight.answers.push((answer, decided, room));
    }
    state.finish(&mut flight.group);
    flight
}

/// Durable -> readers -> answers, in the order of the writes.
async fn land(
    shard: &Arc<dyn Shard>,
    shared: &Shared,
    slot: &Slot,
    mut landing: mpsc::Receiver<Flight>,
) -> Result<(), EngineError> {
    while let Some(Flight { commit, group, answers }) = landing.recv().await {
        if let Some(commit) = commit {
            shard.durable(commit).await?;
        }
        for (partition, batch) in group.batches {
            let base = batch.header().base_offset;
            shared.cache.push(&partition, base, batch);
        }
        let mut moved = Vec::with_capacity(group.tails.len());
        for (id, (partition, tail)) in group.tails {
            partition.advance(&tail);
            moved.push(id);
        }
        if !moved.is_empty() {
            shared.followers.tell(&moved);
        }
        slot.land_group();
        for (answer, decided, room) in answers {
            answer.send(decided);
            drop(room);
        }
    }
    Ok(())
}
