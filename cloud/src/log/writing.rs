//! One opening of a shard at work: changes are taken in order, decided, written in groups, answered when they are durable.
//!
//! ```text
//!  queue -> decide -> engine write --(flights, in order)--> durable -> cache, marks, followers -> answers
//! ```
//! The next group is written while earlier ones wait. Change here: how requests become groups, what follows durability.
//! Not here: what a change does (`decide`), when a shard is opened or left (`owner`).

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{
    Committed, LogError,
    decide::{Change, EdgeKey, Group, ProducerKey, State},
    guard::{Edge, Producer},
    keys, now_ms,
    owner::{Order, Shared},
    slot::{Opening, Place, Slot, reopened},
};
use crate::engine::{CommitId, EngineError, Shard, Write};

/// Changes taken from the queue at a time.
const TAKE: usize = 512;
/// Bytes of batches in one engine write, about.
const GROUP_BYTES: usize = 8 * 1024 * 1024;
/// Written groups that wait for durability.
const FLIGHTS: usize = 256;
/// Reads of producers and edges at a time.
const LOOKUPS: usize = 32;

/// One queued change.
pub(super) struct Request {
    pub change: Change,
    /// The opening it was made for: what came before it may be lost in another.
    pub opening: Opening,
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

    pub(super) fn send(mut self, answer: Result<Committed, LogError>) {
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

/// How an opening ended, everything that was taken being durable and answered.
pub(super) enum Ended {
    /// The log closes.
    Closed,
    /// The shard was given up.
    Released(oneshot::Sender<()>),
}

/// What an owner works with.
pub(super) struct Inbox {
    pub requests: mpsc::Receiver<Request>,
    pub orders: mpsc::Receiver<Order>,
    pub stop: CancellationToken,
    /// No other node can take the shard over.
    pub alone: bool,
}

/// One opening of the shard.
pub(super) async fn serve(
    shard: &Arc<dyn Shard>,
    state: &mut State,
    shared: &Shared,
    slot: &Slot,
    inbox: &mut Inbox,
) -> Result<Ended, EngineError> {
    let (flights, landing) = mpsc::channel(FLIGHTS);
    let Ok((_, opening)) = slot.open() else { return Err(EngineError::Closed) };
    let writing = write((shard, opening), state, slot, inbox, flights);
    let landing = land((shard, opening), shared, slot, landing);
    tokio::try_join!(writing, landing).map(|(ended, ())| ended)
}

/// Queue -> decide -> write.
async fn write(
    (shard, opening): (&Arc<dyn Shard>, Opening),
    state: &mut State,
    slot: &Slot,
    inbox: &mut Inbox,
    flights: mpsc::Sender<Flight>,
) -> Result<Ended, EngineError> {
    let mut taken = Vec::with_capacity(TAKE);
    let mut last = None;
    let mut released = None;
    loop {
        if let Some(ended) = take(slot, inbox, &mut released, &mut taken).await {
            return Ok(ended);
        }
        refuse_stale(opening, &mut taken);
        let unknown = unknown(state, &taken);
        learn(shard.as_ref(), state, unknown).await?;
        let mut rest = taken.drain(..).peekable();
        while rest.peek().is_some() {
            let mut flight = compose(state, &mut rest, inbox.alone);
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

/// The next requests; or how it ends, when nothing is left of what was submitted before.
async fn take(
    slot: &Slot,
    inbox: &mut Inbox,
    released: &mut Option<oneshot::Sender<()>>,
    taken: &mut Vec<Request>,
) -> Option<Ended> {
    let Inbox { requests, orders, stop, .. } = inbox;
    while released.is_none() {
        tokio::select! {
            biased;
            () = stop.cancelled(), if !requests.is_closed() => requests.close(),
            Some(order) = orders.recv() => match order {
                Order::Take(done) => drop(done.send(Ok(()))),
                Order::Release(done) => {
                    // From here on nobody reads or submits; those that did before are in the queue, or come too late.
                    slot.set(Place::Away);
                    *released = Some(done);
                }
            },
            count = requests.recv_many(taken, TAKE) => {
                return (count == 0).then_some(Ended::Closed);
            }
        }
    }
    while taken.len() < TAKE
        && let Ok(request) = requests.try_recv()
    {
        taken.push(request);
    }
    if taken.is_empty() { released.take().map(Ended::Released) } else { None }
}

/// A request that waited while the shard was opened anew may build on one that was lost with the old opening: it must not
/// take effect without it.
fn refuse_stale(opening: Opening, taken: &mut Vec<Request>) {
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
///
/// What is refused for what came before is refused by the owner only: an owner that was replaced and does not know it yet would
/// call a record that it has not seen a gap. So such an answer, too, waits for a write.
fn compose(state: &mut State, rest: &mut impl Iterator<Item = Request>, alone: bool) -> Flight {
    let mut flight = Flight { commit: None, group: Group::default(), answers: Vec::new() };
    let mut bytes = 0;
    let now = now_ms();
    let mut refused = false;
    while bytes < GROUP_BYTES {
        let Some(Request { change, answer, room, .. }) = rest.next() else { break };
        if let Change::Apply(prepared) = &change {
            bytes += prepared.appends.iter().map(|a| a.batch.bytes().len()).sum::<usize>();
        }
        let decided = state.decide(change, now, &mut flight.group);
        refused |= decided.as_ref().is_err_and(rests_on_the_past);
        flight.answers.push((answer, decided, room));
    }
    state.finish(&mut flight.group);
    if refused && !alone && flight.group.writes.is_empty() {
        flight.group.writes.push(Write::Put(keys::touch(), Bytes::new()));
    }
    flight
}

fn rests_on_the_past(error: &LogError) -> bool {
    matches!(
        error,
        LogError::EdgeGap { .. }
            | LogError::EdgeClash
            | LogError::OutOfOrderSequence { .. }
            | LogError::StaleProducerEpoch { .. }
    )
}

/// Durable -> readers -> answers, in the order of the writes.
async fn land(
    (shard, opening): (&Arc<dyn Shard>, Opening),
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
        for (partition, tail) in group.known {
            partition.advance(&tail);
            partition.know(opening);
            moved.push(partition.id);
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
