//! A broker under load whose process is killed or whose power is cut, again and again, and what of its promises was left.
//!
//! Holds: the run ([`Outage`]); `disk` (power), `preload` (beliefs), `load` (devices, subscribers), `ledger` (who was promised what). A round:
//! devices publish at QoS 1 and 2, one of them retained; the books are closed; the fault; a restart; a subscriber that was away
//! takes its queue, another was there all the time; what a retained topic holds is looked at. In: a broker and a fault.
//! Out: [`Outcome`]. Change here: what a round is. Not here: how many rounds, and what is asked of them (`tests/`, `bin/`).

pub mod disk;
mod ledger;
mod load;
pub mod preload;

use std::{
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use rdkafka::Message as _;
use rusqlite::Connection;
use serde::Serialize;
use tributary_shared::mqtt::{Qos, packet::Publish};

pub use self::disk::Disk;
use self::{
    ledger::{Ledger, Place},
    load::{Publisher, Subscriber},
};
use crate::{
    Cloud, Device, Edge, checker, http_get,
    kafka::Reader,
    process::{free_address, until},
};

/// Acknowledgements a second before the fault, below which a round proves nothing.
pub const GATE: f64 = 200.0;
/// How long devices may take to get a round's acknowledgements.
const PATIENCE: Duration = Duration::from_secs(30);

/// Who is tested.
#[derive(Debug, Clone)]
pub enum Broker {
    /// The edge, with more arguments.
    Edge(Vec<String>),
    /// The edge, believing that its log was synced.
    LyingEdge,
    /// Debian's mosquitto with persistence, and more lines for its settings file.
    Mosquitto(String),
}

/// What happens to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL.
    Kill,
    /// The power of its disk, then SIGKILL.
    PowerCut,
}

/// A run.
#[derive(Debug)]
pub struct Outage {
    /// Who.
    pub broker: Broker,
    /// What.
    pub fault: Fault,
    /// Rounds that count.
    pub rounds: usize,
    /// Ends with the first round that lost something.
    pub until_loss: bool,
    /// A cloud takes what the edge sends upstream, and its log is read at the end.
    pub with_cloud: bool,
}

/// What came of it. All but the first three must be 0.
#[derive(Debug, Default, Serialize, PartialEq)]
pub struct Outcome {
    /// That counted.
    pub rounds: usize,
    /// Messages acknowledged before the faults.
    pub acked: u64,
    /// Acknowledged a second, in the slowest round that counted.
    pub slowest: u64,
    /// Acknowledged, and not in a queue, not at a subscriber, or not in the cloud's log.
    pub lost: u64,
    /// QoS 2 messages read twice, or any in the cloud's log.
    pub duplicated: u64,
    /// First readings out of order.
    pub disordered: u64,
    /// Damaged, or never sent.
    pub strange: u64,
    /// Restarts after which a session was gone.
    pub sessions_lost: u64,
    /// Restarts after which a retained message was older than the last one acknowledged.
    pub retained_lost: u64,
    /// Files that SQLite did not call whole, or that the edge put aside.
    pub damaged: u64,
}

impl Outcome {
    /// Something that was promised was not kept.
    pub fn is_broken(&self) -> bool {
        let Self { rounds, acked, slowest, .. } = *self;
        *self != Self { rounds, acked, slowest, ..Self::default() }
    }
}

impl Outage {
    /// Runs; or says why that is not possible here.
    pub fn run(&self) -> Result<Outcome, String> {
        let disk = (self.fault == Fault::PowerCut).then(|| Disk::new(512)).transpose()?;
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let data = disk
            .as_ref()
            .map_or_else(|| folder.path().join("edge"), |disk| disk.path().join("edge"));
        let cloud = self.with_cloud.then(|| Cloud::start(&folder.path().join("cloud")));
        let upstream = cloud.as_ref().map(|cloud| cloud.mqtt);
        let host = Host::start(&self.broker, folder.path(), &data, upstream)?;
        let mut run = Run::new(host, disk, data, self.with_cloud);
        run.prepare();
        let mut too_slow = 0;
        while run.outcome.rounds < self.rounds {
            if !run.round() {
                too_slow += 1;
                assert!(
                    too_slow <= 3 + self.rounds / 4,
                    "this machine is too slow to prove anything"
                );
            }
            let judged = run.judged(&[Place::Away]);
            if self.until_loss && judged.is_broken() {
                return Ok(judged);
            }
        }
        run.finish(cloud.as_ref());
        Ok(run.judged(&[Place::Away, Place::There, Place::Cloud]))
    }
}

struct Run {
    host: Host,
    disk: Option<Disk>,
    data: PathBuf,
    ledger: Ledger,
    devices: Vec<Publisher>,
    away: Subscriber,
    there: Subscriber,
    outcome: Outcome,
    random: u64,
    marks: u64,
}

impl Run {
    fn new(host: Host, disk: Option<Disk>, data: PathBuf, with_cloud: bool) -> Self {
        let mut all = vec![Place::Away, Place::There];
        let mut upstream = Vec::new();
        if with_cloud {
            all.push(Place::Cloud);
            upstream.push(Place::Cloud);
        }
        let mut devices = vec![
            Publisher::new("once-1", Qos::AtLeastOnce, 50, &all),
            Publisher::new("once-2", Qos::AtLeastOnce, 10, &all),
            Publisher::new("exact-1", Qos::ExactlyOnce, 40, &all),
            Publisher::new("exact-2", Qos::ExactlyOnce, 5, &all),
        ];
        let mut retained = Publisher::new("retained", Qos::AtLeastOnce, 2, &upstream);
        (retained.retain, retained.topic) = (true, "state".to_owned());
        devices.push(retained);
        Self {
            host,
            disk,
            data,
            ledger: Ledger::new(&all),
            devices,
            away: Subscriber::new("away", Place::Away),
            there: Subscriber::new("there", Place::There),
            outcome: Outcome::default(),
            random: u64::from(std::process::id()),
            marks: 0,
        }
    }

    fn prepare(&mut self) {
        for subscriber in [&self.away, &self.there] {
            subscriber.subscribe(self.host.mqtt).expect("subscribed");
        }
        if let Some(disk) = &self.disk {
            disk.sync();
        }
    }

    /// One round; false: it was too slow to count.
    fn round(&mut self) -> bool {
        // Cuts fall between 100 and 700 acknowledgements into the load.
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let goal = 100 + (self.random >> 33) % 600;
        let fuse = self.disk.as_ref().map(Disk::fuse);
        self.ledger.thaw();
        let (ledger, mqtt) = (&self.ledger, self.host.mqtt);
        let (devices, there, host) = (&mut self.devices, &mut self.there, &mut self.host);
        let (acked, took) = thread::scope(|scope| {
            for device in devices {
                scope.spawn(move || device.run(mqtt, ledger));
            }
            scope.spawn(move || there.run(mqtt, ledger, None));
            let counted = ledger.freeze(goal, PATIENCE);
            if let Some(fuse) = fuse {
                fuse.cut();
            }
            host.kill();
            counted
        });
        if let Some(disk) = &self.disk {
            disk.restore();
        }
        if host_keeps_sqlite(&self.host.broker) {
            self.outcome.damaged += u64::from(!is_whole(&self.data));
        }
        self.host.restart();
        self.look();
        let rate = acked as f64 / took.as_secs_f64().max(0.001);
        let counts = rate >= GATE && acked >= goal;
        if counts {
            let slowest = if self.outcome.rounds == 0 { u64::MAX } else { self.outcome.slowest };
            self.outcome.slowest = slowest.min(rate as u64);
            self.outcome.rounds += 1;
            self.outcome.acked += acked;
        }
        counts
    }

    /// What is left after a restart.
    fn look(&mut self) {
        let present = drain(&mut self.away, &self.host, &self.ledger, &mut self.marks);
        self.outcome.sessions_lost += u64::from(!present);
        let newest = retained(self.host.mqtt);
        let acked = self.ledger.all().retained;
        self.outcome.retained_lost += u64::from(newest < acked);
        self.outcome.damaged += self.host.salvaged();
    }

    fn finish(&mut self, cloud: Option<&Cloud>) {
        let present = drain(&mut self.there, &self.host, &self.ledger, &mut self.marks);
        self.outcome.sessions_lost += u64::from(!present);
        let Some(cloud) = cloud else { return };
        let reader = Reader::new(cloud.kafka, "mqtt.messages");
        let take = |wait| {
            let message = reader.next(Duration::from_secs(wait))?;
            let payload = message.payload().unwrap_or_default();
            let qos =
                if payload.starts_with(b"exact") { Qos::ExactlyOnce } else { Qos::AtLeastOnce };
            if checker::is_payload(payload) {
                self.ledger.all().read(Place::Cloud, qos, payload);
            }
            Some(())
        };
        while !self.ledger.all().complete(Place::Cloud) && take(30).is_some() {}
        // Whatever is still on its way would be a duplicate, or was never acknowledged.
        while take(2).is_some() {}
    }

    /// By what arrived at these places; the others may not be complete before the end.
    fn judged(&self, at: &[Place]) -> Outcome {
        let verdict = self.ledger.all().verdict(at);
        let Outcome { rounds, acked, slowest, sessions_lost, retained_lost, damaged, .. } =
            self.outcome;
        Outcome {
            rounds,
            acked,
            slowest,
            lost: verdict.lost,
            duplicated: verdict.duplicated,
            disordered: verdict.disordered,
            strange: verdict.strange,
            sessions_lost,
            retained_lost,
            damaged,
        }
    }
}

/// Takes all that waits for a subscriber. Whether its session was there.
fn drain(subscriber: &mut Subscriber, host: &Host, ledger: &Ledger, marks: &mut u64) -> bool {
    *marks += 1;
    let last = format!("end {marks}");
    let mut device = Device::connect(host.mqtt, "marker").expect("connects");
    let publish = Publish {
        qos: Qos::AtLeastOnce,
        topic: "load/end".into(),
        payload: last.clone().into(),
        ..Publish::default()
    };
    device.publish(publish).expect("a mark behind everything");
    subscriber.run(host.mqtt, ledger, Some(&last)).expect("the mark behind everything")
}

/// What the retained topic holds.
fn retained(broker: SocketAddr) -> Option<u64> {
    let mut device = Device::connect(broker, "looker").expect("connects");
    device.set_timeout(Duration::from_secs(5)).expect("a timeout");
    device.subscribe("state", Qos::AtMostOnce).expect("subscribed");
    let publish = device.message().ok()?;
    std::str::from_utf8(&publish.payload).ok()?.split(' ').nth(1)?.parse().ok()
}

fn host_keeps_sqlite(broker: &Broker) -> bool {
    !matches!(broker, Broker::Mosquitto(_))
}

/// SQLite calls a copy of the file whole; the edge gets it as it is.
fn is_whole(data: &Path) -> bool {
    let copy = tempfile::tempdir().expect("folder");
    for name in ["edge.db", "edge.db-wal"] {
        if data.join(name).exists() {
            std::fs::copy(data.join(name), copy.path().join(name)).expect("a copy");
        }
    }
    let check =
        |db: Connection| db.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0));
    Connection::open(copy.path().join("edge.db")).and_then(check).is_ok_and(|said| said == "ok")
}

/// A broker's process.
struct Host {
    broker: Broker,
    mqtt: SocketAddr,
    edge: Option<Edge>,
    mosquitto: Option<Child>,
    folder: PathBuf,
}

impl Host {
    fn start(
        broker: &Broker,
        folder: &Path,
        data: &Path,
        cloud: Option<SocketAddr>,
    ) -> Result<Self, String> {
        let mut host = Self {
            broker: broker.clone(),
            mqtt: ([127, 0, 0, 1], 0).into(),
            edge: None,
            mosquitto: None,
            folder: folder.to_owned(),
        };
        // The queues of a round are taken between the rounds: quicker so.
        let mut arguments = vec!["--set", "session.inflight_messages=500"];
        arguments.extend([
            "--set",
            "uplink.backoff_min_ms=50",
            "--set",
            "uplink.backoff_max_ms=500",
        ]);
        match broker {
            Broker::Edge(more) => {
                arguments.extend(more.iter().map(String::as_str));
                host.edge = Some(Edge::start_with(data, "gw1", cloud, &arguments));
            }
            Broker::LyingEdge => {
                let library = preload::lying_library(folder)?;
                let environment = [("LD_PRELOAD", library)];
                host.edge = Some(Edge::start_in(data, "gw1", cloud, &arguments, &environment));
            }
            Broker::Mosquitto(lines) => host.configure_mosquitto(data, lines),
        }
        if let Some(edge) = &host.edge {
            host.mqtt = edge.mqtt;
        } else {
            host.restart();
        }
        Ok(host)
    }

    fn configure_mosquitto(&mut self, data: &Path, lines: &str) {
        std::fs::create_dir_all(data).expect("a folder");
        self.mqtt = free_address();
        let settings = format!(
            "listener {} 127.0.0.1\nallow_anonymous true\nuser root\npersistence true\npersistence_location {}/\n\
             max_inflight_messages 500\nmax_queued_messages 0\n{lines}\n",
            self.mqtt.port(),
            data.display()
        );
        std::fs::write(self.folder.join("mosquitto.conf"), settings).expect("settings");
    }

    fn kill(&mut self) {
        if let Some(edge) = &mut self.edge {
            edge.process.kill();
        }
        if let Some(mut child) = self.mosquitto.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn restart(&mut self) {
        if let Some(edge) = self.edge.take() {
            self.edge = Some(edge.restart());
            return;
        }
        let child = Command::new("/usr/sbin/mosquitto")
            .arg("-c")
            .arg(self.folder.join("mosquitto.conf"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("mosquitto");
        self.mosquitto = Some(child);
        until("mosquitto listens", || TcpStream::connect(self.mqtt).is_ok());
    }

    /// Files put aside by this start of the edge.
    fn salvaged(&self) -> u64 {
        let Some(edge) = &self.edge else { return 0 };
        let page = http_get(edge.admin, "/metrics");
        let line = page
            .lines()
            .find(|line| line.contains("store_salvaged_total") && !line.starts_with('#'));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.kill();
    }
}
