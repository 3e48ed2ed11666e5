//! Simulated clusters: the real deciding code of members over a store and clocks that a seed decides about.
//!
//! ```text
//! plan (`faults`) -> world: processes (`process`), one object store (`store`), events in true time -> verdict
//! ```
//! Nodes are killed, paused, cut off, restarted, started twice, drained and added; the store answers late, never, twice, or says
//! the wrong thing happened; clocks run at different speeds. What must hold: a map version has one content; owners and epochs only
//! rise together; no two processes serve a shard at one true moment; when the faults end every shard is served again within
//! `SETTLED_MS`, evenly, and nothing moves any more. Change here: what happens. Not here: what members do (`cluster::member`).

mod faults;
mod process;
mod store;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
};

use process::Process;
use store::{Op, Store};
use tributary_cloud::{
    cluster::{
        NodeId,
        map::Standing,
        member::{Action, Event, Refused},
    },
    engine::ShardId,
};

use crate::random::Random;

/// Faults come until then.
const FAULTS_MS: u64 = 60_000;
/// After the last fault all shards are served again within this time.
const SETTLED_MS: u64 = 20_000;
/// The run ends so long after the last fault.
const QUIET_MS: u64 = 40_000;
/// Members hear that time passes this often.
const TICK_MS: u64 = 50;
/// The member's task waits this long for an answer.
const ANSWER_MS: u64 = 1_500;

/// What is wrong on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// Nothing.
    None,
    /// A node serves what it has open, whatever its lease says.
    NoLease,
    /// The store overwrites instead of creating.
    Overwrite,
}

/// What a run showed.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What did not hold, in order; the first few.
    pub broken: Vec<String>,
    /// Faults that were made.
    pub faults: usize,
    /// Versions of the map.
    pub versions: usize,
    /// Changes of an owner.
    pub moves: usize,
    /// When every shard was served for good, ms after the last fault.
    pub settled_ms: u64,
    /// What happened.
    pub events: Vec<String>,
}

/// What happens at a true moment.
#[derive(Debug)]
enum Happening {
    Tick(usize),
    Effect(usize),
    Deliver(usize, Event),
    Open(usize, ShardId),
    Wake(usize),
    Start(usize),
    Fault,
    Mended,
}

struct World {
    now: u64,
    order: u64,
    /// By time, then by order.
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    happenings: BTreeMap<u64, Happening>,
    random: Random,
    control: Control,
    shards: u16,
    store: Store,
    ops: Vec<Option<Op>>,
    processes: Vec<Process>,
    /// The process that opened each shard last, and which opening that was.
    writers: Vec<(usize, u64)>,
    openings: u64,
    slots: usize,
    faulty: bool,
    /// Nobody reaches the store until then.
    outage_until: u64,
    last_unserved: u64,
    last_change: u64,
    outcome: Outcome,
}

/// Runs one seed.
pub fn run(seed: u64, control: Control) -> Outcome {
    let mut random = Random::new(seed);
    let (shards, slots) = (1 + random.below(12) as u16, 1 + random.below(5));
    let mut world = World {
        now: 0,
        order: 0,
        queue: BinaryHeap::new(),
        happenings: BTreeMap::new(),
        random,
        control,
        shards,
        store: Store::new(control == Control::Overwrite),
        ops: Vec::new(),
        processes: Vec::new(),
        writers: vec![(usize::MAX, 0); usize::from(shards)],
        openings: 0,
        slots: 0,
        faulty: true,
        outage_until: 0,
        last_unserved: 0,
        last_change: 0,
        outcome: Outcome::default(),
    };
    world.say(format!("{shards} shards, {slots} nodes"));
    for slot in 0..slots {
        let at = world.random.below(3_000) as u64;
        world.slots += 1;
        world.at(at, Happening::Start(slot));
    }
    world.at(5_000, Happening::Fault);
    world.at(FAULTS_MS, Happening::Mended);
    world.run();
    world.judge_end();
    world.outcome
}

impl World {
    fn at(&mut self, when: u64, what: Happening) {
        self.order += 1;
        self.queue.push(Reverse((when.max(self.now), self.order)));
        self.happenings.insert(self.order, what);
    }

    fn say(&mut self, text: String) {
        self.outcome.events.push(format!("{:6} {text}", self.now));
    }

    fn broken(&mut self, text: String) {
        self.say(format!("BROKEN {text}"));
        if self.outcome.broken.len() < 5 {
            self.outcome.broken.push(format!("at {} ms: {text}", self.now));
        }
    }

    fn run(&mut self) {
        while let Some(Reverse((when, order))) = self.queue.pop() {
            if when > FAULTS_MS + QUIET_MS || self.outcome.broken.len() >= 5 {
                return;
            }
            self.now = when;
            if let Some(what) = self.happenings.remove(&order) {
                self.happen(what);
                self.look();
            }
        }
    }

    fn happen(&mut self, what: Happening) {
        match what {
            Happening::Tick(process) => {
                if self.processes[process].alive {
                    self.at(self.now + TICK_MS, Happening::Tick(process));
                    if !self.processes[process].is_paused(self.now) {
                        self.hear(process, Event::Tick);
                    }
                }
            }
            Happening::Effect(op) => self.effect(op),
            Happening::Deliver(process, event) => self.deliver(process, event),
            Happening::Open(process, shard) => self.open(process, shard),
            Happening::Wake(process) => {
                // First what a reader could be told in this moment.
                self.look();
                for event in std::mem::take(&mut self.processes[process].inbox) {
                    self.deliver(process, event);
                }
            }
            Happening::Start(slot) => self.start(slot),
            Happening::Fault => self.fault(),
            Happening::Mended => self.mend(),
        }
    }

    fn start(&mut self, slot: usize) {
        let id = self.processes.len();
        let (random, rate) = (self.random.next(), 95 + self.random.below(11) as u64);
        let process = Process::new(slot, self.now, random, rate, self.shards);
        self.say(format!("p{id} starts as n{slot}, clock {rate} %"));
        self.processes.push(process);
        self.at(self.now, Happening::Tick(id));
    }

    fn deliver(&mut self, id: usize, event: Event) {
        let process = &mut self.processes[id];
        if !process.alive {
            return;
        }
        if process.is_paused(self.now) {
            process.inbox.push(event);
            return;
        }
        if let Event::Lost(shard) = event {
            process.serving[usize::from(shard.0)] = false;
        }
        self.hear(id, event);
    }

    fn hear(&mut self, id: usize, event: Event) {
        let now = self.now;
        let process = &mut self.processes[id];
        let local = process.local(now);
        for action in process.member.decide(event, local) {
            match action {
                Action::Ask(ask) => self.ask(id, local, ask),
                Action::Take(shard) => {
                    let takes = 5 + self.random.below(300) as u64;
                    self.at(now + takes, Happening::Open(id, shard));
                }
                Action::Release(shard) => {
                    self.processes[id].serving[usize::from(shard.0)] = false;
                    let takes = 5 + self.random.below(50) as u64;
                    self.at(now + takes, Happening::Deliver(id, Event::Released(shard)));
                }
                Action::Lease(until) => self.processes[id].lease = until,
                Action::Show => {}
                Action::End(end) => self.end(id, end),
            }
        }
    }

    fn end(&mut self, id: usize, end: Result<(), Refused>) {
        let process = &mut self.processes[id];
        process.kill();
        let (slot, end) = (process.slot, format!("{end:?}"));
        self.say(format!("p{id} (n{slot}) ends: {end}"));
        self.start_again(slot);
    }

    /// The engine's fence: whoever opens a shard later has it.
    fn open(&mut self, id: usize, shard: ShardId) {
        let process = &self.processes[id];
        if !process.alive {
            return;
        }
        if process.is_paused(self.now) {
            // It was about to open it when it fell asleep, and is not done with that when it wakes.
            let wakes = process.paused_until + self.random.below(500) as u64;
            return self.at(wakes, Happening::Open(id, shard));
        }
        if self.faulty && self.random.percent(5) {
            return self.at(self.now, Happening::Deliver(id, Event::NotTaken(shard)));
        }
        self.openings += 1;
        let at = usize::from(shard.0);
        let (before, _) = std::mem::replace(&mut self.writers[at], (id, self.openings));
        if before != id && self.processes.get(before).is_some_and(|process| process.serving[at]) {
            // It hears of it with its next write.
            let hears = self.now + self.random.below(2_000) as u64;
            self.say(format!("p{id} fences p{before} at shard {at}"));
            self.at(hears, Happening::Deliver(before, Event::Lost(shard)));
        }
        self.processes[id].serving[at] = true;
        let told = self.now + self.random.below(50) as u64;
        self.at(told, Happening::Deliver(id, Event::Taken(shard)));
    }

    fn serves(&self, process: &Process, shard: usize) -> bool {
        let lease = self.control == Control::NoLease || process.local(self.now) < process.lease;
        process.alive && !process.is_paused(self.now) && process.serving[shard] && lease
    }

    /// What must hold at every moment.
    fn look(&mut self) {
        for shard in 0..usize::from(self.shards) {
            let serving: Vec<_> = (0..self.processes.len())
                .filter(|id| self.serves(&self.processes[*id], shard))
                .collect();
            match serving.as_slice() {
                [] => self.last_unserved = self.now,
                [_] => {}
                [some, other, ..] => {
                    let text = format!("p{some} and p{other} both serve shard {shard}");
                    self.broken(text);
                }
            }
        }
    }

    /// What must hold when the faults are over for long.
    fn judge_end(&mut self) {
        self.outcome.versions = self.store.history.len();
        self.outcome.settled_ms = self.last_unserved.saturating_sub(FAULTS_MS);
        if self.outcome.settled_ms > SETTLED_MS {
            self.broken(format!("a shard was not served {} ms on", self.outcome.settled_ms));
        }
        if self.last_change > FAULTS_MS + SETTLED_MS {
            self.broken("the map still changes".to_owned());
        }
        let Some(map) = self.store.history.values().next_back().cloned() else { return };
        let up: Vec<_> = map.up().collect();
        let most = map.shards.len().div_ceil(up.len().max(1));
        for id in up {
            let load = map.shards.iter().filter(|place| place.owner == Some(id)).count();
            if load > most {
                self.broken(format!("{id:?} has {load} shards of {}", map.shards.len()));
            }
        }
        let names: std::collections::BTreeSet<_> =
            map.living().map(|(_, member)| member.name.clone()).collect();
        if names.len() != map.living().count() || names.len() != self.slots {
            self.broken(format!("{} nodes run, the map has {names:?}", self.slots));
        }
        if map.nodes.values().any(|member| member.standing == Standing::Leaving) {
            self.broken("a node never left".to_owned());
        }
        // Each fault gives away what one node had, and makes at most as many come back.
        let allowed = usize::from(self.shards) * (2 * self.outcome.faults + 4);
        if self.outcome.moves > allowed {
            self.broken(format!("{} moves, {} faults", self.outcome.moves, self.outcome.faults));
        }
    }

    /// A map took effect.
    fn changed(&mut self, version: u64) {
        self.last_change = self.now;
        let Some(map) = self.store.history.get(&version).cloned() else { return };
        let Some(before) = self.store.history.get(&(version - 1)).cloned() else {
            if version > 1 {
                self.broken(format!("map {version} follows none"));
            }
            return;
        };
        for ((shard, new), (_, old)) in map.places().zip(before.places()) {
            let moved = new.owner != old.owner;
            self.outcome.moves += usize::from(moved && new.owner.is_some());
            if new.epoch < old.epoch || (moved && new.epoch == old.epoch) {
                self.broken(format!("map {version}: shard {} has epoch {}", shard.0, new.epoch));
            }
        }
        let numbers = |map: &tributary_cloud::cluster::map::Map| -> BTreeMap<String, NodeId> {
            map.nodes.iter().map(|(id, member)| (member.name.clone(), *id)).collect()
        };
        let (old, new) = (numbers(&before), numbers(&map));
        if new.len() != map.nodes.len() || old.iter().any(|(name, id)| new.get(name) != Some(id)) {
            self.broken(format!("map {version} gives numbers anew: {new:?}"));
        }
        let owners: Vec<_> =
            map.shards.iter().map(|p| (p.owner.map(|o| o.0), p.next.map(|n| n.0))).collect();
        self.say(format!("map {version}: {owners:?}"));
    }
}

/// All seeds of a range: how many, and those that broke, with the first thing that did.
pub fn many(from: u64, count: u64, control: Control) -> (Totals, Vec<(u64, String)>) {
    let mut totals = Totals::default();
    let mut bad = Vec::new();
    for seed in from..from + count {
        let outcome = run(seed, control);
        totals.faults += outcome.faults;
        totals.moves += outcome.moves;
        totals.versions += outcome.versions;
        totals.settled_ms = totals.settled_ms.max(outcome.settled_ms);
        if let Some(first) = outcome.broken.into_iter().next() {
            bad.push((seed, first));
        }
    }
    (totals, bad)
}

/// Of many seeds.
#[derive(Debug, Default)]
pub struct Totals {
    /// Faults.
    pub faults: usize,
    /// Changes of an owner.
    pub moves: usize,
    /// Versions of maps.
    pub versions: usize,
    /// The longest time until all was served after the last fault, ms.
    pub settled_ms: u64,
}
