//! Which edges are connected, on which lane, and what they brought since this process started.
//!
//! Holds: one entry an edge. Two live connections of one edge and lane: the newer wins, the older is told 0x8E. Two gateways
//! with one id do that to each other for ever: that raises an alarm, once until it is over.
//! Change here: what is known of a live edge. Not here: marks (`log`), who counts as two (`twins`).

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::twins::Twins;

/// Edges remembered while not connected; beyond it the disconnected ones are forgotten here (never in the log).
const REMEMBERED_MAX: usize = 10_000;

/// How long a clash of epochs is shown.
const CLASH_SHOWN_MS: i64 = 86_400_000;
/// Alarm: two live gateways with one id.
pub const DUPLICATE_ID: &str = "duplicate edge id";
/// Alarm: two gateways go on from one memory.
pub const DUPLICATE_EPOCH: &str = "epoch used twice";
/// Alarm: since the cloud's start records with absurd times came.
const WRONG_CLOCK: &str = "wrong clock";

/// All edges. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Live {
    edges: Arc<Mutex<HashMap<String, Entry>>>,
    next: Arc<AtomicU64>,
    takeovers: Arc<AtomicU64>,
    duplicate_ids: Arc<AtomicU64>,
    duplicate_epochs: Arc<AtomicU64>,
}

/// A connection, as its CONNECT says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Caller<'a> {
    pub(super) edge: &'a str,
    pub(super) lane: &'a str,
    /// Which process it is.
    pub(super) instance: Option<&'a str>,
}

#[derive(Debug, Default)]
struct Entry {
    lanes: BTreeMap<String, Lane>,
    traffic: Arc<Traffic>,
    twins: Twins,
    /// The alarm was told and is not over.
    twins_told: bool,
    /// Wall ms of the last clash of an epoch.
    clash_ms: Option<i64>,
}

#[derive(Debug)]
struct Lane {
    connection: u64,
    taken_over: CancellationToken,
    since_ms: i64,
    address: String,
}

/// What an edge brought. Counters only grow.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    /// Records made durable.
    pub(super) records: AtomicU64,
    /// Batches made durable.
    pub(super) batches: AtomicU64,
    /// Payload bytes of them.
    pub(super) bytes: AtomicU64,
    /// Batches that had come before.
    pub(super) duplicates: AtomicU64,
    /// Gaps answered with `expected`.
    pub(super) gaps: AtomicU64,
    /// Records declared lost by the edge.
    pub(super) declared_lost: AtomicU64,
    /// Batches refused or failed.
    pub(super) refused: AtomicU64,
    /// Records whose time was absurd.
    pub(super) clamped: AtomicU64,
    /// Wall ms of the last upload.
    pub(super) last_ms: AtomicU64,
}

impl Traffic {
    /// Adds to a counter.
    pub(super) fn add(counter: &AtomicU64, number: u64) {
        counter.fetch_add(number, Ordering::Relaxed);
    }
}

/// One edge, for people.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)]
pub struct EdgeView {
    pub id: String,
    pub connected: bool,
    pub lanes: Vec<LaneView>,
    /// What somebody has to look at, in words.
    pub alarms: Vec<&'static str>,
    pub records: u64,
    pub batches: u64,
    pub bytes: u64,
    pub duplicates: u64,
    pub gaps: u64,
    pub declared_lost: u64,
    pub refused: u64,
    pub clamped: u64,
    pub last_ms: u64,
}

/// One connected lane, for people.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)]
pub struct LaneView {
    pub lane: String,
    pub since_ms: i64,
    pub address: String,
}

/// A connection's place in [`Live`]; gives it up when dropped, unless a newer one has it.
#[derive(Debug)]
pub(super) struct Registration {
    live: Live,
    edge: String,
    lane: String,
    connection: u64,
    /// Ends when a newer connection of the same edge and lane came.
    pub(super) taken_over: CancellationToken,
    pub(super) traffic: Arc<Traffic>,
}

impl Live {
    /// Enters a connection, and ends an older one of the same edge and lane.
    pub(super) fn enter(&self, caller: Caller<'_>, now_ms: i64, address: String) -> Registration {
        let Caller { edge, lane, instance } = caller;
        let connection = self.next.fetch_add(1, Ordering::Relaxed);
        let taken_over = CancellationToken::new();
        let mut edges = self.lock();
        if edges.len() >= REMEMBERED_MAX && !edges.contains_key(edge) {
            edges.retain(|_, entry| !entry.lanes.is_empty());
        }
        let entry = edges.entry(edge.to_owned()).or_default();
        entry.twins.called(instance, now_ms);
        let twins = entry.twins.seen(now_ms);
        let told = std::mem::replace(&mut entry.twins_told, twins);
        if twins && !told {
            self.duplicate_ids.fetch_add(1, Ordering::Relaxed);
            tracing::error!(
                edge,
                address,
                "duplicate edge id: two gateways call themselves by it and end each other's connections; give one \
                 of them another id"
            );
        }
        let place = Lane { connection, taken_over: taken_over.clone(), since_ms: now_ms, address };
        if let Some(older) = entry.lanes.insert(lane.to_owned(), place) {
            older.taken_over.cancel();
            self.takeovers.fetch_add(1, Ordering::Relaxed);
        }
        let traffic = entry.traffic.clone();
        drop(edges);
        let (edge, lane) = (edge.to_owned(), lane.to_owned());
        Registration { live: self.clone(), edge, lane, connection, taken_over, traffic }
    }

    /// All edges seen since the start, by id.
    pub fn view(&self, now_ms: i64) -> Vec<EdgeView> {
        let edges = self.lock();
        let mut views: Vec<_> = edges.iter().map(|(id, entry)| view(id, entry, now_ms)).collect();
        drop(edges);
        views.sort_by(|a, b| a.id.cmp(&b.id));
        views
    }

    /// Connections that had to go for a newer one of the same edge and lane.
    pub fn takeovers(&self) -> u64 {
        self.takeovers.load(Ordering::Relaxed)
    }

    /// Times that two live gateways with one id were noticed.
    pub fn duplicate_ids(&self) -> u64 {
        self.duplicate_ids.load(Ordering::Relaxed)
    }

    /// Batches refused because other records came before under the same epoch and sequences.
    pub fn duplicate_epochs(&self) -> u64 {
        self.duplicate_epochs.load(Ordering::Relaxed)
    }

    /// Notes such a batch.
    pub(super) fn clashed(&self, edge: &str, epoch: i64, now_ms: i64) {
        self.duplicate_epochs.fetch_add(1, Ordering::Relaxed);
        tracing::error!(
            edge,
            epoch,
            "an epoch is used twice: two gateways go on from one memory (a snapshot resumed twice?); the second is told to \
             begin a new epoch"
        );
        if let Some(entry) = self.lock().get_mut(edge) {
            entry.clash_ms = Some(now_ms);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        // The map is whole after each line above, whatever panicked.
        self.edges.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn view(id: &str, entry: &Entry, now_ms: i64) -> EdgeView {
    let clash = entry.clash_ms.is_some_and(|at| now_ms.saturating_sub(at) < CLASH_SHOWN_MS);
    let clock = entry.traffic.clamped.load(Ordering::Relaxed) > 0;
    let alarms =
        [(entry.twins.seen(now_ms), DUPLICATE_ID), (clash, DUPLICATE_EPOCH), (clock, WRONG_CLOCK)];
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let lane = |(name, lane): (&String, &Lane)| LaneView {
        lane: name.clone(),
        since_ms: lane.since_ms,
        address: lane.address.clone(),
    };
    EdgeView {
        id: id.to_owned(),
        connected: !entry.lanes.is_empty(),
        lanes: entry.lanes.iter().map(lane).collect(),
        alarms: alarms.iter().filter(|(on, _)| *on).map(|(_, words)| *words).collect(),
        records: read(&entry.traffic.records),
        batches: read(&entry.traffic.batches),
        bytes: read(&entry.traffic.bytes),
        duplicates: read(&entry.traffic.duplicates),
        gaps: read(&entry.traffic.gaps),
        declared_lost: read(&entry.traffic.declared_lost),
        refused: read(&entry.traffic.refused),
        clamped: read(&entry.traffic.clamped),
        last_ms: read(&entry.traffic.last_ms),
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut edges = self.live.lock();
        if let Some(entry) = edges.get_mut(&self.edge)
            && entry.lanes.get(&self.lane).is_some_and(|lane| lane.connection == self.connection)
        {
            entry.lanes.remove(&self.lane);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newer_connection_of_an_edge_and_lane_wins() {
        let live = Live::default();
        let enter = |lane, now_ms| {
            live.enter(Caller { edge: "gw1", lane, instance: None }, now_ms, String::new())
        };
        let first = enter("normal", 1);
        let other = enter("critical", 1);
        let second = enter("normal", 2);
        assert!(first.taken_over.is_cancelled());
        assert!(!other.taken_over.is_cancelled() && !second.taken_over.is_cancelled());
        assert_eq!(live.takeovers(), 1);
        drop(first);
        assert_eq!(live.view(0)[0].lanes.len(), 2);
        drop((second, other));
        assert!(!live.view(0)[0].connected);
    }

    #[test]
    fn two_gateways_with_one_id_raise_one_alarm() {
        let live = Live::default();
        let call = |instance, at| {
            let caller = Caller { edge: "gw1", lane: "normal", instance: Some(instance) };
            live.enter(caller, at, String::new())
        };
        let calls: Vec<_> = (0..10).map(|at| call(["a", "b"][at as usize % 2], at)).collect();
        assert_eq!(live.duplicate_ids(), 1);
        assert_eq!(live.view(10)[0].alarms, [DUPLICATE_ID]);
        live.clashed("gw1", 7, 10);
        assert_eq!(live.view(10)[0].alarms, [DUPLICATE_ID, DUPLICATE_EPOCH]);
        drop(calls);
    }
}
