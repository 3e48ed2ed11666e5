//! The whole bridge under faults: devices -> edge -> cloud -> Kafka, AMQP and MQTT readers, and what of the promises was left.
//!
//! Holds: a run ([`Plan`]) and its rounds. A round: devices publish, the edge sends on, a Kafka consumer reads; after a random
//! number of acknowledgements the fault; whoever fell starts again. At the end everything drains and all readers are compared
//! with the devices' books. In: which faults, how many. Out: [`Outcome`]. Change here: what a round is, which faults there are.
//! Parts: `parts` (what runs), `fault`, `points` (crash points), `proxy` (a bad link), `message` (what is sent), `load` (devices),
//! `commands` (the way down), `readers`, `books` (the checker); `backlog` (a long outage instead of many rounds), `odd` (old
//! images, cloned cards, wrong clocks), `torn` (torn writes).
//! Not here: sessions, queues and retained messages of one edge (`outage`); how many rounds, and what is asked (`tests/`, `bin/`).

mod backlog;
mod bits;
mod books;
mod commands;
mod fault;
mod load;
mod message;
mod odd;
mod outcome;
mod parts;
mod points;
mod proxy;
mod readers;
mod torn;

use std::{
    thread,
    time::{Duration, Instant},
};

use self::parts::Parts;
pub use self::{
    backlog::{Backlog, Drained},
    books::{Books, Verdict, View},
    fault::Fault,
    load::{Publisher, Station},
    message::Message,
    odd::Odd,
    outcome::Outcome,
    parts::{CLOUD, EDGE},
    points::Point,
    proxy::{Proxy, Trouble},
    readers::{Live, Waiting, read_kafka},
    torn::Torn,
};
use crate::{
    outage::{Disk, GATE},
    random::Random,
    say,
};

/// How long a round may take to get its acknowledgements, and records to come out of the log.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long all of it may take to drain at the end.
const DRAIN: Duration = Duration::from_mins(2);
/// Messages of a round that must be read at the other end before the fault: the bridge was at work.
const BRIDGED: u64 = 20;

/// Commands that may go down in a round, where there are any.
const COMMANDS: u64 = 10;

/// What lies between edge and cloud.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Link {
    /// Nothing.
    #[default]
    Good,
    /// All troubles in turn, all the time, on two lanes and the way down.
    Bad,
    /// These troubles, and an edge that only promises to send everything at least once (`uplink.format = "mqtt"`): a control.
    AtLeastOnce(&'static [Trouble]),
}

impl Link {
    fn troubles(self) -> &'static [Trouble] {
        match self {
            Self::Good => &[],
            Self::Bad => &Trouble::ALL,
            Self::AtLeastOnce(troubles) => troubles,
        }
    }
}

/// A run.
#[derive(Debug, Default)]
pub struct Plan {
    /// One a round.
    pub faults: Vec<Fault>,
    /// What lies between edge and cloud.
    pub link: Link,
    /// The edge believes that its log was synced: a control.
    pub lying: bool,
    /// Ends with the first round after which this count is not 0: what a control is to be caught for.
    pub until: Option<fn(&Verdict) -> u64>,
    /// Of the moments of faults.
    pub seed: u64,
    /// Prints a line of JSON a round.
    pub verbose: bool,
}

impl Plan {
    /// So many kills, of the edge and of the cloud alike, every fifth of both; then so many cuts.
    pub fn new(kills: usize, cuts: usize) -> Self {
        use Fault::{CutEdge, KillBoth, KillCloud, KillEdge};
        let by_turns = [KillEdge, KillCloud, KillEdge, KillCloud, KillBoth];
        let kills = by_turns.into_iter().cycle().take(kills);
        let faults = kills.chain(std::iter::repeat_n(CutEdge, cuts)).collect();
        Self { faults, seed: u64::from(std::process::id()), ..Self::default() }
    }

    /// Crash points besides: so many of the edge and of the cloud.
    #[must_use]
    pub fn with_points(mut self, edge: usize, cloud: usize) -> Self {
        self.faults.extend(Point::of_the_edge(edge).map(Fault::EdgeAt));
        self.faults.extend(Point::of_the_cloud(cloud).map(Fault::CloudAt));
        self
    }

    /// A bad link: so many of its troubles, each in a round of its own, and so many kills besides.
    pub fn bad_link(troubles: usize, kills: usize) -> Self {
        let mut plan = Self { link: Link::Bad, ..Self::new(kills, 0) };
        plan.faults.extend(std::iter::repeat_n(Fault::Link, troubles));
        plan
    }

    /// The control for it: an edge that may repeat and reorder what these troubles meet. Ends when it was caught.
    pub fn at_least_once(
        troubles: &'static [Trouble],
        rounds: usize,
        until: fn(&Verdict) -> u64,
    ) -> Self {
        let link = Link::AtLeastOnce(troubles);
        Self { link, until: Some(until), ..Self::bad_link(rounds, 0) }
    }

    fn cuts_power(&self) -> bool {
        self.faults.contains(&Fault::CutEdge)
    }

    /// Runs; or says why that is not possible here.
    pub fn run(&self) -> Result<Outcome, String> {
        if self.faults.iter().any(|fault| matches!(fault, Fault::EdgeAt(_) | Fault::CloudAt(_))) {
            points::probe()?;
        }
        let mut run = Run::start(self)?;
        let mut slow = 0;
        let mut faults = self.faults.iter().peekable();
        while let Some(&&fault) = faults.peek() {
            if run.round(fault) {
                faults.next();
            } else {
                slow += 1;
                let bound = 3 + self.faults.len() / 4;
                assert!(slow <= bound, "this machine is too slow to prove anything");
            }
            if self.until.is_some_and(|count| count(&run.verdict()) > 0) {
                break;
            }
        }
        Ok(run.finish())
    }
}

struct Run {
    parts: Parts,
    random: Random,
    outcome: Outcome,
    began: Instant,
    verbose: bool,
    lying: bool,
}

impl Run {
    fn start(plan: &Plan) -> Result<Self, String> {
        Ok(Self {
            parts: Parts::start(plan)?,
            random: Random::new(plan.seed),
            outcome: Outcome::new(plan.seed),
            began: Instant::now(),
            verbose: plan.verbose,
            lying: plan.lying,
        })
    }

    /// One round; false: it was too slow to count.
    fn round(&mut self, fault: Fault) -> bool {
        if let Fault::EdgeAt(point) | Fault::CloudAt(point) = fault {
            return self.fall_at(fault, point);
        }
        let fuse = self.parts.disk.as_ref().filter(|_| fault == Fault::CutEdge).map(Disk::fuse);
        let before = self.parts.live.view().total();
        let troubles = self.parts.proxy.as_ref().map_or(0, Proxy::total);
        let station = self.parts.station;
        station.open(20_000);
        if let Some(commands) = &self.parts.commands {
            commands.more(COMMANDS);
        }
        let bridged = self.parts.live.wait_total(before + BRIDGED, PATIENCE);
        // In every second round in which the edge falls the cloud is frozen then: what is acknowledged is on the edge's disk only.
        // In all of a control: it must be caught.
        let percent = if self.lying { 100 } else { 50 };
        let edge_falls = matches!(fault, Fault::KillEdge | Fault::CutEdge);
        let frozen = edge_falls && self.random.percent(percent);
        if frozen {
            self.parts.cloud.process.signal("STOP");
        }
        let goal = station.wait(1, PATIENCE).0 + self.random.below(300) as u64;
        let (acked, took) = station.wait(goal, PATIENCE);
        thread::sleep(Duration::from_micros(self.random.below(4_000) as u64));
        // Devices are at it when the fault comes; while somebody is down they need not be for long.
        station.allow(300);
        let rate = acked as f64 / took.as_secs_f64().max(0.001);
        let troubled = fault != Fault::Link || self.trouble(troubles + 1);
        let counts = acked >= goal && rate >= GATE && bridged && troubled;
        let fallen = Instant::now();
        match fault {
            Fault::KillEdge => self.kill_edge(),
            Fault::KillCloud => self.kill_cloud(),
            Fault::KillBoth => {
                self.parts.edge.process.kill();
                self.parts.station.down();
                thread::sleep(Duration::from_micros(self.random.below(8_000) as u64));
                self.kill_cloud();
                self.parts.edge.start_again().expect("the edge starts");
            }
            Fault::CutEdge => {
                self.parts.station.close();
                fuse.expect("a disk").cut();
                self.parts.edge.process.kill();
                self.parts.disk.as_ref().expect("a disk").restore();
                self.parts.edge.start_again().expect("the edge starts");
            }
            Fault::Link => {}
            Fault::EdgeAt(_) | Fault::CloudAt(_) => unreachable!("has a round of its own"),
        }
        if frozen {
            self.parts.cloud.process.signal("CONT");
        }
        if counts {
            self.outcome.round(fault, acked, rate, fallen.elapsed());
        }
        self.tell(&serde_json::json!({
            "fault": fault.name(), "acked": acked, "rate": rate as u64, "counts": counts, "frozen": frozen,
            "bridged": bridged, "back_ms": fallen.elapsed().as_millis() as u64,
        }));
        counts
    }

    /// A round in which a process falls by itself, at a system call. False: it did not, or too slowly.
    fn fall_at(&mut self, fault: Fault, point: Point) -> bool {
        let Parts { edge, cloud, station, .. } = &mut self.parts;
        let of_edge = matches!(fault, Fault::EdgeAt(_));
        let (process, ready) = if of_edge {
            station.down();
            edge.under = point.tracer();
            let ready = edge.start_again().is_ok();
            edge.under.clear();
            (&mut edge.process, ready)
        } else {
            cloud.under = point.tracer();
            let ready = cloud.start_again().is_ok();
            cloud.under.clear();
            (&mut cloud.process, ready)
        };
        let (mut acked, mut took) = (0, Duration::ZERO);
        if ready {
            station.open(10);
            let deadline = Instant::now() + PATIENCE;
            while !process.has_ended() && Instant::now() < deadline {
                // About 5,000 a second, as long as it takes.
                station.allow(10);
                (acked, took) = station.wait(u64::MAX, Duration::from_millis(2));
            }
        }
        let fell = process.has_ended();
        let fallen = Instant::now();
        if of_edge {
            station.down();
            edge.start_again().expect("the edge starts");
            station.open(100);
        } else {
            cloud.start_again().expect("the cloud starts");
        }
        let rate = acked as f64 / took.as_secs_f64().max(0.001);
        // So early that nothing was acknowledged yet is a point like any other.
        let counts = fell && (acked < 50 || rate >= GATE);
        if counts {
            let rate = if acked < 50 { f64::MAX } else { rate };
            self.outcome.round(fault, acked, rate, fallen.elapsed());
            self.outcome.while_starting += u64::from(!ready);
        }
        self.tell(&serde_json::json!({
            "fault": fault.name(), "call": point.call, "nth": point.nth, "fell": fell, "started": ready,
            "acked": acked, "counts": counts, "back_ms": fallen.elapsed().as_millis() as u64,
        }));
        counts
    }

    /// Devices are at it until the link had so many troubles.
    fn trouble(&self, total: u64) -> bool {
        let Some(proxy) = &self.parts.proxy else { return false };
        let deadline = Instant::now() + PATIENCE;
        while !proxy.wait(total, Duration::from_millis(20)) {
            if Instant::now() > deadline {
                return false;
            }
            self.parts.station.allow(100);
        }
        true
    }

    fn tell(&self, round: &serde_json::Value) {
        if self.verbose {
            say(&round.to_string());
        }
    }

    fn kill_edge(&mut self) {
        let parts = &mut self.parts;
        parts.edge.process.kill();
        parts.station.down();
        if self.random.percent(20) {
            parts.edge.stumble(Duration::from_micros(self.random.below(60_000) as u64));
        }
        parts.edge.start_again().expect("the edge starts");
    }

    fn kill_cloud(&mut self) {
        let parts = &mut self.parts;
        parts.cloud.process.kill();
        if self.random.percent(20) {
            parts.cloud.stumble(Duration::from_micros(self.random.below(200_000) as u64));
        }
        parts.cloud.start_again().expect("the cloud starts");
    }

    /// What was promised before a message that has arrived, and what became of it. What devices repeat meanwhile may come
    /// behind that message.
    fn verdict(&mut self) -> Verdict {
        let promised = self.parts.station.state().books.clone();
        self.parts.station.open(0);
        // One message a PUBLISH would take too long to drain over a link that cuts every few of them.
        self.parts.proxy.iter().for_each(|proxy| proxy.calm(true));
        let _last = self.mark();
        self.parts.proxy.iter().for_each(|proxy| proxy.calm(false));
        promised.verdict(&self.parts.live.view())
    }

    /// Publishes a message behind all others, in each lane, and waits until it is read. The last of them.
    fn mark(&mut self) -> Message {
        let Parts { markers, edge, station, live, .. } = &mut self.parts;
        let marks = markers.iter_mut().map(|marker| {
            let mark = marker.publish_one(edge.mqtt, station).expect("a mark");
            assert!(live.wait_for(&mark, DRAIN), "what the edge holds does not reach the cloud");
            mark
        });
        marks.last().expect("a lane")
    }

    fn finish(mut self) -> Outcome {
        if let Some(proxy) = &self.parts.proxy {
            proxy.calm(true);
            self.outcome.troubles = proxy.met();
        }
        self.parts.station.open(0);
        self.parts.station.end();
        for device in self.parts.devices.drain(..) {
            device.join().expect("a device");
        }
        let began = Instant::now();
        let last = self.mark();
        let Parts { cloud, station, live, waiting, edge, commands, .. } = self.parts;
        if let Some(commands) = commands {
            let (verdict, promised) = commands.finish(&cloud, &edge);
            (self.outcome.down, self.outcome.commands) = (verdict, promised);
        }
        let live = live.finish();
        let log = read_kafka(cloud.kafka, &last);
        let (amqp, mqtt) = (waiting.read_amqp(&cloud, &last), waiting.read_mqtt(&cloud, &last));
        let state = station.state();
        let mut verdict = state.books.verdict(&log);
        verdict.different = live.different(&log);
        verdict.back += state.books.verdict(&live).back;
        verdict.unequal = log.unequal_offsets(&amqp) + log.unequal_series(&mqtt);
        let missing = state.books.missing(&log);
        if !missing.is_empty() {
            say(&format!("missing: {missing:?}"));
        }
        drop(edge);
        self.outcome.sessions_lost = state.sessions_lost;
        self.outcome.messages = log.total();
        self.outcome.acked_in_all = state.books.acked_count();
        self.outcome.finish(verdict, began.elapsed(), self.began.elapsed())
    }
}
