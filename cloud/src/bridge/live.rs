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

use bytes::Bytes;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::twins::Twins;

/// Edges remembered while not connected; beyond it the disconnected ones are forgotten here (never in the log).
const REMEMBERED_MAX: usize = 10_000;

/// Longest inventory that is kept for pages; each edge has one.
const INVENTORY_BYTES: usize = 16 * 1024;
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
    /// What waited there when it connected.
    pub(super) backlog: Backlog,
}

/// What waits at an edge, as it says itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Backlog {
    pub(super) records: u64,
    pub(super) bytes: u64,
    /// Seconds that the oldest had waited.
    pub(super) oldest_s: u64,
}

impl Backlog {
    /// Reads `records:bytes:seconds`; anything else says nothing.
    pub(super) fn read(text: Option<&str>) -> Self {
        let mut numbers = text.unwrap_or_default().splitn(3, ':').map(str::parse);
        let mut next = || numbers.next().and_then(Result::ok).unwrap_or_default();
        Self { records: next(), bytes: next(), oldest_s: next() }
    }
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
    /// What it said of itself last, JSON as it came.
    inventory: Bytes,
}

#[derive(Debug)]
struct Lane {
    connection: u64,
    taken_over: CancellationToken,
    since_ms: i64,
    address: String,
    backlog: Backlog,
    brought: Arc<AtomicU64>,
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
    /// What it said of itself last; null: nothing yet, since the cloud's start.
    pub inventory: serde_json::Value,
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
    /// Records that wait at the edge: those it had when it connected, less those that came since.
    pub backlog: u64,
    /// Seconds that the oldest had waited when it connected; 0: nothing waits.
    pub oldest_s: u64,
    /// Records a second since it connected.
    pub rate: u64,
    /// Seconds until what waits is here at this rate; null: not known, or nothing waits.
    pub drained_in_s: Option<u64>,
}

/// A connection's place in [`Live`]; gives it up when dropped, unless a newer one has it.
#[derive(Debug)]
pub(super) struct Registration {
    live: Live,
    edge: String,
    lane: String,
    /// Its number; no other of this process has it.
    pub(super) connection: u64,
    /// Ends when a newer connection of the same edge and lane came.
    pub(super) taken_over: CancellationToken,
    pub(super) traffic: Arc<Traffic>,
    /// Records that this connection made durable.
    pub(super) brought: Arc<AtomicU64>,
}

impl Live {
    /// Enters a connection, and ends an older one of the same edge and lane.
    pub(super) fn enter(&self, caller: Caller<'_>, now_ms: i64, address: String) -> Registration {
        let Caller { edge, lane, instance, backlog } = caller;
        let brought = Arc::new(AtomicU64::new(0));
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
                 of them another id once its messages are here"
            );
        }
        let place = Lane {
            connection,
            taken_over: taken_over.clone(),
            since_ms: now_ms,
            address,
            backlog,
            brought: brought.clone(),
        };
        if let Some(older) = entry.lanes.insert(lane.to_owned(), place) {
            older.taken_over.cancel();
            self.takeovers.fetch_add(1, Ordering::Relaxed);
        }
        let traffic = entry.traffic.clone();
        drop(edges);
        let (edge, lane) = (edge.to_owned(), lane.to_owned());
        Registration { live: self.clone(), edge, lane, connection, taken_over, traffic, brought }
    }

    /// Notes what an edge says of itself.
    pub(super) fn said(&self, edge: &str, inventory: Bytes) {
        if inventory.len() <= INVENTORY_BYTES
            && let Some(entry) = self.lock().get_mut(edge)
        {
            entry.inventory = inventory;
        }
    }

    /// All edges seen since the start, by id.
    pub fn view(&self, now_ms: i64) -> Vec<EdgeView> {
        let look =
            |(id, entry): (&String, &Entry)| (view(id, entry, now_ms), entry.inventory.clone());
        let mut views: Vec<_> = self.lock().iter().map(look).collect();
        // What edges say is long, and connections wait for the lock.
        for (view, inventory) in &mut views {
            view.inventory = serde_json::from_slice(inventory).unwrap_or_default();
        }
        let mut views: Vec<_> = views.into_iter().map(|(view, _)| view).collect();
        views.sort_by(|a, b| a.id.cmp(&b.id));
        views
    }

    /// The same in no order, without what edges say of themselves.
    pub fn numbers(&self, now_ms: i64) -> Vec<EdgeView> {
        self.lock().iter().map(|(id, entry)| view(id, entry, now_ms)).collect()
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
    let lane = |(name, lane): (&String, &Lane)| lane_view(name, lane, now_ms);
    EdgeView {
        id: id.to_owned(),
        connected: !entry.lanes.is_empty(),
        lanes: entry.lanes.iter().map(lane).collect(),
        inventory: serde_json::Value::Null,
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

fn lane_view(name: &str, lane: &Lane, now_ms: i64) -> LaneView {
    let brought = lane.brought.load(Ordering::Relaxed);
    let seconds = now_ms.saturating_sub(lane.since_ms).max(1000).unsigned_abs() / 1000;
    let backlog = lane.backlog.records.saturating_sub(brought);
    let rate = brought / seconds;
    LaneView {
        lane: name.to_owned(),
        since_ms: lane.since_ms,
        address: lane.address.clone(),
        backlog,
        oldest_s: if backlog > 0 { lane.backlog.oldest_s } else { 0 },
        rate,
        drained_in_s: if backlog > 0 { backlog.checked_div(rate) } else { None },
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
            let caller = Caller { edge: "gw1", lane, instance: None, backlog: Backlog::default() };
            live.enter(caller, now_ms, String::new())
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
    fn what_waits_at_an_edge_goes_down_with_what_it_brings() {
        let live = Live::default();
        let backlog = Backlog::read(Some("1000:50000:86400"));
        let caller = Caller { edge: "gw1", lane: "normal", instance: None, backlog };
        let registration = live.enter(caller, 0, String::new());
        live.said("gw1", Bytes::from_static(b"{\"version\":\"1\"}"));
        Traffic::add(&registration.brought, 400);
        let view = live.view(4000).remove(0);
        assert!(live.numbers(4000)[0].inventory.is_null(), "not read for numbers");
        let lane = &view.lanes[0];
        assert_eq!((lane.backlog, lane.rate, lane.drained_in_s), (600, 100, Some(6)));
        assert_eq!((lane.oldest_s, &view.inventory["version"]), (86_400, &"1".into()));
        Traffic::add(&registration.brought, 700);
        let lane = live.view(4000).remove(0).lanes.remove(0);
        assert_eq!((lane.backlog, lane.oldest_s, lane.drained_in_s), (0, 0, None));
        for nonsense in [None, Some(""), Some("x:y"), Some("-1:2:3:4")] {
            assert_eq!(Backlog::read(nonsense).records, 0);
        }
    }

    #[test]
    fn two_gateways_with_one_id_raise_one_alarm() {
        let live = Live::default();
        let call = |instance, at| {
            let backlog = Backlog::default();
            let caller = Caller { edge: "gw1", lane: "normal", instance: Some(instance), backlog };
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
