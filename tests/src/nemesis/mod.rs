//! The nemesis: real processes over one store, clients on all four doors, faults, and the verdict on what everybody was told.
//!
//! Holds: a run ([`Plan`]): producers and readers at work; rounds of quiet, fault and recovery until its time is over; then everything
//! drains, the log is read once more, and the history is judged. A round whose quiet part had fewer than [`GATE`] acknowledgements a
//! second does not count, and a run without a round that counts is no run. In: how many nodes, how long, a seed. Out: [`Outcome`].
//! Parts: `history` (the checker), `timeline` (rates and gaps), `site` (processes), `wire` (partitions), `fault`; `kafka`, `amqp`, `mqtt`
//! (clients), `run` (what they share), `control` (runs that must be caught).
//! Not here: how many runs (`tests/`, `bin/`).

mod amqp;
mod control;
mod fault;
mod history;
#[cfg(test)]
mod history_tests;
mod kafka;
mod mqtt;
mod run;
mod site;
mod timeline;
mod wire;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde::Serialize;
use tributary_shared::mqtt::Qos;

pub use self::{
    control::Lie,
    fault::Fault,
    history::{History, Verdict},
    timeline::{Timeline, spread},
};
use self::{mqtt::Sender, run::Run, site::Site};
use crate::{outage::GATE, random::Random, say};

/// Quiet before a fault, ms: the rate is that of this time.
const QUIET_MS: u64 = 2_000;
/// After a fault, every lane must be acknowledged something in this time.
const RECOVERY: Duration = Duration::from_mins(1);
/// How long the end may take to drain, and the last reading.
const DRAIN: Duration = Duration::from_mins(1);
/// Kafka producers, and whether they are idempotent.
const KAFKA: [(&str, bool); 3] = [("kafka k0", true), ("kafka k1", true), ("plain k2", false)];
/// Nothing comes any more when nothing came for so long.
const STILL: Duration = Duration::from_secs(2);

/// A run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// One is a single node, more are a cluster.
    pub nodes: usize,
    /// Rounds begin until then.
    pub seconds: u64,
    /// Of faults and their moments.
    pub seed: u64,
    /// Only these; empty: all that the machine allows.
    pub faults: Vec<Fault>,
    /// A control: this is wrong with the store.
    pub lie: Option<Lie>,
    /// Prints a line a round.
    pub verbose: bool,
}

/// What came of it.
#[derive(Debug, Default, Serialize)]
pub struct Outcome {
    /// Of the plan.
    pub seed: u64,
    /// Rounds that counted, by fault.
    pub rounds: BTreeMap<String, u64>,
    /// Rounds that were too slow to count.
    pub unusable: u64,
    /// Acknowledged a second before the fault, in the slowest round that counted.
    pub slowest: u64,
    /// Acknowledged by the cloud and by edges, in all.
    pub acked: u64,
    /// Without an acknowledged write in the slowest lane, ms, by fault.
    pub resumed_ms: BTreeMap<String, Vec<u64>>,
    /// See its letters.
    pub verdict: Verdict,
    /// Some of what was wrong.
    pub examples: Vec<String>,
    /// Everything that was acknowledged had arrived, and was read again, after so long, s.
    pub drained_s: Option<f64>,
    /// All of it, s.
    pub took_s: f64,
    /// What clients and nodes wrote.
    pub log: PathBuf,
}

impl Outcome {
    /// Rounds that counted.
    pub fn counted(&self) -> u64 {
        self.rounds.values().sum()
    }

    /// A promise was not kept.
    pub fn is_broken(&self) -> bool {
        self.verdict.is_broken() || self.drained_s.is_none()
    }
}

impl Plan {
    /// All faults by seed.
    pub fn new(nodes: usize, seconds: u64, seed: u64) -> Self {
        Self { nodes, seconds, seed, faults: Vec::new(), lie: None, verbose: false }
    }

    /// Runs it. An error: it could not be run, or a process did not start again.
    pub fn run(&self) -> Result<Outcome, String> {
        let log = std::env::temp_dir().join(format!("tributary-nemesis-{}", self.seed));
        let mut site = Site::start(self.nodes, &log)?;
        let mut crowd = Crowd::start(&site)?;
        let mut outcome = Outcome { seed: self.seed, slowest: u64::MAX, log, ..Outcome::default() };
        let began = Instant::now();
        let struck = match self.lie {
            None => self.rounds(&mut site, &crowd, &mut outcome),
            Some(lie) => lie.tell(&mut site, &crowd.run),
        };
        let finished = struck.and_then(|()| crowd.finish(&site, self.lie.is_some()));
        crowd.end();
        let mut history = crowd.run.history();
        outcome.drained_s = finished.clone().unwrap_or_default();
        outcome.verdict = history.judge();
        outcome.acked = history.books().acked_count();
        outcome.examples = history.examples().to_vec();
        outcome.took_s = began.elapsed().as_secs_f64();
        drop(history);
        match finished {
            // Controls may break so much that nodes do not even start: what was seen until then is judged.
            Err(why) if self.lie.is_none() => Err(format!("{why}; {outcome:?}")),
            _ => Ok(outcome),
        }
    }

    fn rounds(&self, site: &mut Site, crowd: &Crowd, outcome: &mut Outcome) -> Result<(), String> {
        let mut random = Random::new(self.seed);
        let possible =
            if self.faults.is_empty() { Fault::possible(site) } else { self.faults.clone() };
        let run = &crowd.run;
        crowd.recovered(0)?;
        let end = run.now_ms() + self.seconds * 1_000;
        let mut turn: Vec<Fault> = Vec::new();
        while run.now_ms() < end {
            if turn.is_empty() {
                turn.clone_from(&possible);
            }
            let fault = turn.swap_remove(random.below(turn.len()));
            let from = run.now_ms();
            run.sleep_until(from + QUIET_MS + random.below(500) as u64);
            let rate = run.timeline().rate(from, run.now_ms());
            let struck = fault.strike(site, run, &mut random)?;
            let healed = run.now_ms();
            let stalled = crowd.recovered(healed).is_err();
            let (gap, lane) = {
                let timeline = run.timeline();
                let (gap, lane) = timeline.gap(struck, run.now_ms());
                (gap, lane.to_owned())
            };
            if self.verbose {
                let line = serde_json::json!({
                    "seed": self.seed, "at_ms": struck, "fault": fault.name(), "rate": rate,
                    "counts": rate >= GATE as u64, "gap_ms": gap, "lane": lane,
                    "recovered_ms": run.now_ms() - healed,
                });
                say(&line.to_string());
            }
            if stalled {
                break;
            }
            if rate < GATE as u64 {
                outcome.unusable += 1;
                continue;
            }
            *outcome.rounds.entry(fault.name()).or_default() += 1;
            outcome.slowest = outcome.slowest.min(rate);
            if fault.is_timed() {
                outcome.resumed_ms.entry(fault.name()).or_default().push(gap);
            }
        }
        Ok(())
    }
}

/// All clients.
#[derive(Debug)]
struct Crowd {
    run: Arc<Run>,
    brokers: String,
    of_stream: i32,
    producers: Vec<JoinHandle<()>>,
    readers: Vec<JoinHandle<()>>,
    devices: Vec<Sender>,
}

impl Crowd {
    fn start(site: &Site) -> Result<Self, String> {
        let (run, brokers) = (Arc::new(Run::new()), site.brokers());
        let of_stream = kafka::prepare(&brokers)?;
        block_on(amqp::prepare(&site.amqp()))?;
        mqtt::prepare(site.front)?;
        let mut crowd = Self {
            run: run.clone(),
            brokers,
            of_stream,
            producers: Vec::new(),
            readers: Vec::new(),
            devices: Vec::new(),
        };
        crowd.start_readers(site);
        let of_kafka = KAFKA.into_iter().flat_map(|(name, _)| kafka::lanes(name));
        let others = [amqp::SOURCE, "mqtt q1", "mqtt q2"].map(str::to_owned);
        of_kafka.chain(others).for_each(|lane| run.timeline().expect(lane));
        for (name, exact) in KAFKA {
            let (run, brokers) = (run.clone(), crowd.brokers.clone());
            crowd
                .producers
                .push(thread::spawn(move || kafka::produce(&run, &brokers, name, exact)));
        }
        let (of_amqp, nodes) = (run.clone(), site.amqp());
        crowd.producers.push(thread::spawn(move || block_on(amqp::publish(&of_amqp, &nodes))));
        for (name, qos) in [("q1", Qos::AtLeastOnce), ("q2", Qos::ExactlyOnce)] {
            crowd.devices.push(Sender::start(&run, "mqtt", name, qos, site.front, false));
            for (gateway, edge) in ["gw1", "gw2"].into_iter().zip(&site.edges) {
                crowd.devices.push(Sender::start(&run, gateway, name, qos, edge.mqtt, true));
            }
        }
        Ok(crowd)
    }

    fn start_readers(&mut self, site: &Site) {
        let of_stream = self.of_stream;
        let kafka = |act: fn(&Run, &str, i32)| {
            let (run, brokers) = (self.run.clone(), self.brokers.clone());
            thread::spawn(move || act(&run, &brokers, of_stream))
        };
        let mut readers = vec![
            kafka(kafka::read),
            kafka(kafka::watch),
            kafka(|run, brokers, _| kafka::commit(run, brokers)),
        ];
        let (run, nodes) = (self.run.clone(), site.amqp());
        readers.push(thread::spawn(move || block_on(amqp::consume(&run, &nodes))));
        let (run, front) = (self.run.clone(), site.front);
        readers.push(thread::spawn(move || mqtt::receive(&run, front)));
        self.readers = readers;
    }

    /// Waits until every lane was acknowledged something since then. Those that are not in time are stalled.
    fn recovered(&self, since_ms: u64) -> Result<(), String> {
        let deadline = Instant::now() + RECOVERY;
        loop {
            let silent = self.run.timeline().silent_since(since_ms.max(1));
            if silent.is_empty() && self.run.now_ms() > since_ms + 300 {
                return Ok(());
            }
            if Instant::now() > deadline {
                silent.iter().for_each(|lane| self.run.history().stalled(lane));
                return Err(format!("no acknowledgements: {silent:?}"));
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Producers end; waits until all has arrived and reads the log once more. How long that took, s; `None`: it did not all arrive.
    fn finish(&mut self, site: &Site, hasty: bool) -> Result<Option<f64>, String> {
        let began = Instant::now();
        site.heal();
        self.run.quiet();
        for producer in self.producers.drain(..).filter(|_| !hasty) {
            producer.join().map_err(|_| "a producer panicked".to_owned())?;
        }
        // Devices take the answers to what they have sent before their books are closed.
        thread::sleep(STILL);
        self.devices.iter().for_each(|device| device.end(&self.run));
        let patience = if hasty { DRAIN / 4 } else { DRAIN };
        let arrived = self.arrived(patience);
        let read = kafka::read_again(&self.run, &self.brokers, self.of_stream, patience);
        Ok((arrived && read).then(|| began.elapsed().as_secs_f64()))
    }

    fn arrived(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let (mut last, mut since) = ((0, 0), Instant::now());
        while Instant::now() < deadline {
            thread::sleep(Duration::from_millis(200));
            let now = self.run.history().on_the_way();
            if now != last {
                (last, since) = (now, Instant::now());
            }
            if now.0 == 0 && since.elapsed() > STILL && self.run.history().judge().lost == 0 {
                return true;
            }
        }
        false
    }

    fn end(&mut self) {
        self.run.quiet();
        self.run.end();
        for thread in self.producers.drain(..).chain(self.readers.drain(..)) {
            let _ = thread.join();
        }
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(future)
}
