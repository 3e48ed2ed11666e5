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
}

/// A shard as readers see it.
pub(super) struct Slot {
    place: RwLock<Place>,
    progress: watch::Sender<Progress>,
}

/// How far the writes of a shard's current opening are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Progress {
    /// Moves when the shard is opened anew.
    opening: u64,
    /// Groups handed to the engine; counted before the engine has them, so that no reader sees what is not counted.
    started: u64,
    /// Groups that are durable.
    landed: u64,
}

/// Which opening a read was made in.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReadMark(u64);

#[derive(Clone)]
enum Place {
    Open(Arc<dyn Shard>),
    Reopening(EngineError),
    Lost,
    Closed,
}

impl Slot {
    pub(super) fn new(shard: Arc<dyn Shard>) -> Self {
        Self { place: RwLock::new(Place::Open(shard)), progress: watch::Sender::default() }
    }

    pub(super) fn shard(&self) -> Result<Arc<dyn Shard>, LogError> {
        match &*self.place.read().unwrap_or_else(PoisonError::into_inner) {
            Place::Open(shard) => Ok(Arc::clone(shard)),
            Place::Reopening(error) => Err(LogError::Engine(error.clone())),
            Place::Lost => Err(LogError::NotOwner),
            Place::Closed => Err(LogError::Closed),
        }
    }

    /// Why nothing can be submitted.
    pub(super) fn refusal(&self) -> LogError {
        self.shard().err().unwrap_or(LogError::Closed)
    }

    /// What a reader's error means: an opening that is over is fenced by the next one, which is ours.
    pub(super) fn explain(&self, error: EngineError) -> LogError {
        match error {
            EngineError::Fenced(_) => self.shard().err().unwrap_or_else(reopened),
            other => LogError::Engine(other),
        }
    }

    /// Taken before a read of what may not be durable yet.
    pub(super) fn read_mark(&self) -> ReadMark {
        ReadMark(self.progress.borrow().opening)
    }

    /// Returns when everything that a read since `mark` can have seen is durable.
    pub(super) async fn landed(&self, mark: ReadMark) -> Result<(), LogError> {
        let mut progress = self.progress.subscribe();
        let started = progress.borrow().started;
        let reached = progress.wait_for(|p| p.opening != mark.0 || p.landed >= started).await;
        match reached {
            Ok(progress) if progress.opening == mark.0 => Ok(()),
            _ => Err(self.shard().err().unwrap_or_else(reopened)),
        }
    }

    fn start_group(&self) {
        self.progress.send_modify(|progress| progress.started += 1);
    }

    fn land_group(&self) {
        self.progress.send_modify(|progress| progress.landed += 1);
    }

    fn set(&self, place: Place) {
        *self.place.write().unwrap_or_else(PoisonError::into_inner) = place;
        self.progress.send_modify(|progress| {
            *progress = Progress { opening: progress.opening + 1, ..Progress::default() };
        });
    }
}

fn reopened() -> LogError {
    LogError::Engine(EngineError::Store("the shard was opened anew during the read".into()))
}

/// One queued change.
pub(super) struct Request {
    pub change: Change,
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
                self.requests.close();
                while let Some(request) = self.requests.recv().await {
                    request.answer.send(Err(LogError::NotOwner));
                }
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
        let Some(Request { change, answer, room }) = rest.next() else { break };
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
