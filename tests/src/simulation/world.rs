//! What is known outside the simulated machines: every message and where it must arrive, what was promised, what happened.
//!
//! Holds: messages, the lives of gateways (from one start to the next), promises of the cloud, the last events and the hash
//! of all of them. Survives every crash. Change here: what is checked while a run goes on.
//! Not here: the verdict at its end (`verdict`).

use std::{
    collections::{BTreeMap, VecDeque},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
};

use tributary_edge::status::Status;

use super::plan::Plan;

/// Events that are kept for whoever looks for the cause.
const KEPT: usize = 20_000;

/// (Edge, epoch) -> sequences below it were acknowledged by the cloud, or seen as its durable mark.
pub(super) type Promised = BTreeMap<(String, i64), u64>;

/// Shared by all simulated machines and by what happens to them.
#[derive(Clone)]
pub(super) struct World(Arc<Mutex<Inner>>);

/// Behind the lock.
pub(super) struct Inner {
    pub(super) plan: Plan,
    pub(super) hosts: Vec<Host>,
    pub(super) lives: Vec<Life>,
    /// By the number in their payload.
    pub(super) messages: Vec<Message>,
    /// Whose epoch it is: life and lane.
    pub(super) epochs: BTreeMap<i64, (usize, String)>,
    pub(super) promised: Promised,
    /// What must never happen, and did.
    pub(super) faults: Vec<String>,
    pub(super) now_ms: u64,
    last: VecDeque<String>,
    hash: u64,
}

/// One gateway.
pub(super) struct Host {
    pub(super) name: String,
    pub(super) edge_id: String,
    pub(super) folder: PathBuf,
    /// It has a disk; a clone that was not made yet has none.
    pub(super) has_disk: bool,
    pub(super) life: Option<usize>,
    pub(super) lives: usize,
    pub(super) status: Arc<Status>,
    /// Lane -> acked mark seen last.
    pub(super) marks: BTreeMap<String, u64>,
}

/// From one start of a gateway to the next.
pub(super) struct Life {
    pub(super) host: usize,
    pub(super) lanes: BTreeMap<String, LaneLife>,
}

/// What one life put into one lane.
#[derive(Default)]
pub(super) struct LaneLife {
    /// Messages in the order of their sequences, from 0.
    pub(super) messages: Vec<u64>,
    /// So many of them were acknowledged to their devices.
    pub(super) acked: usize,
    pub(super) epoch: Option<i64>,
    /// From here on an older disk came back: what the cloud had not got by then is gone with the newer one.
    pub(super) destroyed_from: Option<usize>,
}

/// One message of a device.
pub(super) struct Message {
    pub(super) life: usize,
    pub(super) lane: String,
    pub(super) place: usize,
    pub(super) poison: bool,
}

impl World {
    pub(super) fn new(plan: Plan, hosts: Vec<Host>) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            plan,
            hosts,
            lives: Vec::new(),
            messages: Vec::new(),
            epochs: BTreeMap::new(),
            promised: BTreeMap::new(),
            faults: Vec::new(),
            now_ms: 0,
            last: VecDeque::new(),
            hash: 0xcbf2_9ce4_8422_2325,
        })))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("the world")
    }

    pub(super) fn event(&self, what: impl AsRef<str>) {
        self.lock().event(what.as_ref());
    }

    pub(super) fn fault(&self, what: impl AsRef<str>) {
        self.lock().fault(what.as_ref());
    }
}

impl Inner {
    /// Something happened.
    pub(super) fn event(&mut self, what: &str) {
        let line = format!("{:>8} ms  {what}", self.now_ms);
        for byte in line.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if self.last.len() == KEPT {
            self.last.pop_front();
        }
        self.last.push_back(line);
    }

    /// Something happened that must not.
    pub(super) fn fault(&mut self, what: &str) {
        self.event(&format!("FAULT {what}"));
        self.faults.push(what.to_owned());
    }

    /// Of all events.
    pub(super) fn hash(&self) -> u64 {
        self.hash
    }

    pub(super) fn last_events(&self) -> Vec<String> {
        self.last.iter().cloned().collect()
    }

    /// A gateway starts.
    pub(super) fn begin_life(&mut self, host: usize, status: Arc<Status>) -> usize {
        let life = self.lives.len();
        self.lives.push(Life { host, lanes: BTreeMap::new() });
        let host = &mut self.hosts[host];
        host.life = Some(life);
        host.lives += 1;
        host.status = status;
        let line = format!("{} starts, life {life}", host.name);
        self.event(&line);
        life
    }

    /// A device hands a message to its gateway. Answers its number.
    pub(super) fn publish(&mut self, life: usize, lane: &str, poison: bool) -> u64 {
        let number = self.messages.len() as u64;
        let of_lane = self.lives[life].lanes.entry(lane.to_owned()).or_default();
        let place = of_lane.messages.len();
        of_lane.messages.push(number);
        self.messages.push(Message { life, lane: lane.to_owned(), place, poison });
        number
    }

    /// The gateway acknowledged it.
    pub(super) fn acked(&mut self, number: u64) {
        let Message { life, lane, place, .. } = &self.messages[number as usize];
        let (life, lane, place) = (*life, lane.clone(), *place);
        if let Some(of_lane) = self.lives[life].lanes.get_mut(&lane) {
            of_lane.acked = of_lane.acked.max(place + 1);
        }
        self.event(&format!("acked {number}: life {life} {lane} {place}"));
    }

    /// The cloud acknowledged everything below `next`.
    pub(super) fn promise(&mut self, edge: &str, epoch: i64, next: u64) {
        let known = self.promised.entry((edge.to_owned(), epoch)).or_default();
        *known = (*known).max(next);
    }

    /// The cloud says what it has, durably: never less than what was `promised` when it was asked.
    pub(super) fn mark_seen(&mut self, promised: &Promised, edge: &str, epoch: i64, next: u64) {
        let promised = promised.get(&(edge.to_owned(), epoch)).copied().unwrap_or(0);
        if next < promised {
            let line = format!("mark of {edge} epoch {epoch} went back from {promised} to {next}");
            self.fault(&line);
        }
        self.promise(edge, epoch, next);
    }

    /// Reads what gateways show: their own marks never go back.
    pub(super) fn look_at_marks(&mut self) {
        let mut wrong = Vec::new();
        for host in self.hosts.iter_mut().filter(|host| host.life.is_some()) {
            for lane in host.status.lanes() {
                let now = lane.acked_id.get();
                let last = host.marks.entry(lane.name.clone()).or_default();
                if now < *last {
                    wrong.push(format!("{} {}: mark {last} -> {now}", host.name, lane.name));
                }
                *last = now;
            }
        }
        for line in wrong {
            self.fault(&line);
        }
    }

    /// Nothing waits on any gateway's disk, and all run.
    pub(super) fn is_drained(&self) -> bool {
        self.hosts.iter().filter(|host| host.has_disk).all(|host| {
            host.life.is_some() && host.status.lanes().iter().all(|lane| lane.batches.get() == 0)
        })
    }

    /// The disk of a host is about to be replaced by an older one, taken when `acked` were promised per life and lane.
    pub(super) fn destroy(&mut self, host: usize, acked: &BTreeMap<(usize, String), usize>) {
        for (number, life) in self.lives.iter_mut().enumerate().filter(|(_, l)| l.host == host) {
            for (name, lane) in &mut life.lanes {
                let kept = acked.get(&(number, name.clone())).copied().unwrap_or(0);
                let from = lane.destroyed_from.map_or(kept, |before| before.min(kept));
                lane.destroyed_from = Some(from);
            }
        }
        self.hosts[host].marks.clear();
    }

    /// What the lives of a host have promised so far.
    pub(super) fn promises_of(&self, host: usize) -> BTreeMap<(usize, String), usize> {
        let lives = self.lives.iter().enumerate().filter(|(_, life)| life.host == host);
        lives
            .flat_map(|(number, life)| {
                life.lanes.iter().map(move |(name, lane)| ((number, name.clone()), lane.acked))
            })
            .collect()
    }
}
