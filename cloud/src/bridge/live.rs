//! Which edges are connected, on which lane, and what they brought since this process started.
//!
//! Holds: one entry an edge. Two live connections of one edge and lane: the newer wins, the older is told 0x8E.
//! Change here: what is known of a live edge. Not here: marks (`log`).

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use serde::Serialize;
use tokio_util::sync::CancellationToken;

/// Edges remembered while not connected; beyond it the disconnected ones are forgotten here (never in the log).
const REMEMBERED_MAX: usize = 10_000;

/// All edges. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Live {
    edges: Arc<Mutex<HashMap<String, Entry>>>,
    next: Arc<AtomicU64>,
    takeovers: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct Entry {
    lanes: BTreeMap<String, Lane>,
    traffic: Arc<Traffic>,
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
    pub records: u64,
    pub batches: u64,
    pub bytes: u64,
    pub duplicates: u64,
    pub gaps: u64,
    pub declared_lost: u64,
    pub refused: u64,
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
    pub(super) fn enter(
        &self,
        edge: &str,
        lane: &str,
        now_ms: i64,
        address: String,
    ) -> Registration {
        let connection = self.next.fetch_add(1, Ordering::Relaxed);
        let taken_over = CancellationToken::new();
        let mut edges = self.lock();
        if edges.len() >= REMEMBERED_MAX && !edges.contains_key(edge) {
            edges.retain(|_, entry| !entry.lanes.is_empty());
        }
        let entry = edges.entry(edge.to_owned()).or_default();
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
    pub fn view(&self) -> Vec<EdgeView> {
        let edges = self.lock();
        let mut views: Vec<_> = edges.iter().map(|(id, entry)| view(id, entry)).collect();
        drop(edges);
        views.sort_by(|a, b| a.id.cmp(&b.id));
        views
    }

    /// Connections that had to go for a newer one of the same edge and lane.
    pub fn takeovers(&self) -> u64 {
        self.takeovers.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        // The map is whole after each line above, whatever panicked.
        self.edges.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn view(id: &str, entry: &Entry) -> EdgeView {
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
        records: read(&entry.traffic.records),
        batches: read(&entry.traffic.batches),
        bytes: read(&entry.traffic.bytes),
        duplicates: read(&entry.traffic.duplicates),
        gaps: read(&entry.traffic.gaps),
        declared_lost: read(&entry.traffic.declared_lost),
        refused: read(&entry.traffic.refused),
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
        let first = live.enter("gw1", "normal", 1, String::new());
        let other = live.enter("gw1", "critical", 1, String::new());
        let second = live.enter("gw1", "normal", 2, String::new());
        assert!(first.taken_over.is_cancelled());
        assert!(!other.taken_over.is_cancelled() && !second.taken_over.is_cancelled());
        assert_eq!(live.takeovers(), 1);
        drop(first);
        assert_eq!(live.view()[0].lanes.len(), 2);
        drop((second, other));
        assert!(!live.view()[0].connected);
    }
}
