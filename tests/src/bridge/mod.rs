//! The whole bridge under faults: devices -> edge -> cloud -> Kafka, AMQP and MQTT readers, and what of the promises was left.
//!
//! Holds: a run ([`Plan`]) and its rounds. A round: devices publish, the edge sends on, a Kafka consumer reads; after a random
//! number of acknowledgements the fault; whoever fell starts again. At the end everything drains and all readers are compared
//! with the devices' books. In: which faults, how many. Out: [`Outcome`]. Change here: what a round is, which faults there are.
//! Parts: `backlog` (a long outage instead of many), `points` (crash points), `message` (what is sent), `load` (devices), `readers`, `books` (the checker).
//! Not here: sessions, queues and retained messages of one edge (`outage`); how many rounds, and what is asked (`tests/`, `bin/`).

mod backlog;
mod bits;
mod books;
mod load;
mod message;
mod outcome;
mod points;
mod readers;

use std::{
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tributary_shared::mqtt::Qos;

pub use self::{
    backlog::{Backlog, Drained},
    books::{Books, Verdict, View},
    load::{Publisher, Station},
    message::Message,
    outcome::Outcome,
    points::Point,
    readers::{Live, Waiting, read_kafka},
};
use crate::{
    Cloud, Edge,
    outage::{
        GATE,
        disk::{Disk, lying_library},
    },
    random::Random,
    say,
};

/// How long a round may take to get its acknowledgements, and records to come out of the log.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long all of it may take to drain at the end.
const DRAIN: Duration = Duration::from_mins(2);
/// Messages of a round that must be read at the other end before the fault: the bridge was at work.
const BRIDGED: u64 = 20;

/// What happens in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL of the edge; sometimes again while it starts.
    KillEdge,
    /// SIGKILL of the cloud; sometimes again while it starts.
    KillCloud,
    /// Both within a few milliseconds.
    KillBoth,
    /// The power of the edge's disk, then SIGKILL.
    CutEdge,
    /// The edge falls at this system call.
    EdgeAt(Point),
    /// The cloud falls at this system call.
    CloudAt(Point),
}

impl Fault {
    /// Without its numbers.
    pub fn name(self) -> &'static str {
        match self {
            Self::KillEdge => "KillEdge",
            Self::KillCloud => "KillCloud",
            Self::KillBoth => "KillBoth",
            Self::CutEdge => "CutEdge",
            Self::EdgeAt(_) => "EdgeAt",
            Self::CloudAt(_) => "CloudAt",
        }
    }
}

/// A run.
#[derive(Debug, Default)]
pub struct Plan {
    /// One a round.
    pub faults: Vec<Fault>,
    /// The edge believes that its log was synced: a control.
    pub lying: bool,
    /// Ends with the first round that lost something.
    pub until_loss: bool,
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
            if self.until_loss && run.has_lost() {
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

/// Everything that runs.
struct Parts {
    cloud: Cloud,
    edge: Edge,
    disk: Option<Disk>,
    station: &'static Station,
    devices: Vec<thread::JoinHandle<()>>,
    marker: Publisher,
    live: Live,
    waiting: Waiting,
    _folder: TempDir,
}

/// Settings of clouds under test: nothing that waits for a reader is dropped, and it is read quickly.
pub const CLOUD: [&str; 6] = [
    "--set",
    "mqtt.session.queue_stored_messages=100000000",
    "--set",
    "mqtt.session.queue_stored_bytes=1000000000000",
    "--set",
    "mqtt.session.inflight_messages=1000",
];

/// Settings of edges under test: they try again soon, publish nothing of their own (it goes to another stream, and would be
/// a hole in the sequences of this one), and write the log into the file often.
pub const EDGE: [&str; 8] = [
    "--set",
    "uplink.backoff_min_ms=20",
    "--set",
    "uplink.backoff_max_ms=200",
    "--set",
    "inventory.interval_s=0",
    "--set",
    "store.checkpoint_pages=200",
];

impl Run {
    fn start(plan: &Plan) -> Result<Self, String> {
        let cuts = plan.faults.contains(&Fault::CutEdge);
        let disk = cuts.then(|| Disk::new(512)).transpose()?;
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let at = disk.as_ref().map_or(folder.path(), Disk::path).join("edge");
        let lying = if plan.lying { vec![lying_library(folder.path())?] } else { Vec::new() };
        let environment: Vec<_> = lying.into_iter().map(|path| ("LD_PRELOAD", path)).collect();
        let data = format!("file://{}", folder.path().join("cloud").display());
        let cloud = Cloud::start_with(&data, &CLOUD);
        let edge = Edge::start_in(&at, "gw1", Some(cloud.mqtt), &EDGE, &environment);
        let (waiting, live) = (Waiting::prepare(&cloud), Live::start(cloud.kafka));
        if let Some(disk) = &disk {
            disk.sync();
        }
        // Lives as long as the process: its threads are not bound to this scope.
        let station: &'static Station = Box::leak(Box::default());
        let devices = [
            ("d0", Qos::AtLeastOnce, 50),
            ("d1", Qos::AtLeastOnce, 10),
            ("d2", Qos::AtLeastOnce, 1),
            ("x0", Qos::ExactlyOnce, 20),
        ];
        let devices = devices.map(|(name, qos, window)| {
            let mut device = Publisher::new("gw1", name, qos, window, 60);
            let mqtt = edge.mqtt;
            thread::spawn(move || device.run(mqtt, station))
        });
        let marker = Publisher::new("gw1", "marker", Qos::AtLeastOnce, 1, 0);
        let devices = devices.into();
        let parts =
            Parts { cloud, edge, disk, station, devices, marker, live, waiting, _folder: folder };
        Ok(Self {
            parts,
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
        let station = self.parts.station;
        station.open(20_000);
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
        let counts = acked >= goal && rate >= GATE && bridged;
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

    /// Something acknowledged before a message that has arrived has not. What devices repeat meanwhile may come behind it.
    fn has_lost(&mut self) -> bool {
        let promised = self.parts.station.state().books.clone();
        self.parts.station.open(0);
        let _last = self.mark();
        promised.verdict(&self.parts.live.view()).lost > 0
    }

    /// Publishes a message behind all others and waits until it is read.
    fn mark(&mut self) -> Message {
        let Parts { marker, edge, station, live, .. } = &mut self.parts;
        let last = marker.publish_one(edge.mqtt, station).expect("a mark");
        assert!(live.wait_for(&last, DRAIN), "what the edge holds does not reach the cloud");
        last
    }

    fn finish(mut self) -> Outcome {
        self.parts.station.open(0);
        self.parts.station.end();
        for device in self.parts.devices.drain(..) {
            device.join().expect("a device");
        }
        let began = Instant::now();
        let last = self.mark();
        let Parts { cloud, station, live, waiting, edge, .. } = self.parts;
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
