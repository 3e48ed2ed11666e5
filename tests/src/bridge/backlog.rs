//! One long outage: an edge in a small memory limit takes many messages while there is no cloud, is killed once, and drains.
//!
//! The limit is a memory cgroup (version 1 or 2) around the edge alone; the page cache of its files counts, and can be taken back.
//! All devices have QoS 1. At the end a Kafka consumer reads all of the log. Not here: who else reads (`mod`).

use std::{
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use serde::Serialize;
use tributary_shared::mqtt::Qos;

use super::{CLOUD, EDGE, Publisher, Station, Verdict, read_kafka};
use crate::{Cloud, Edge, http_get, outage::GATE};

/// Where memory cgroups are, by version.
const FIRST: &str = "/sys/fs/cgroup/memory";
const SECOND: &str = "/sys/fs/cgroup";
/// What the edge and the kernel's pages for it may take.
const LIMIT: u64 = 64 << 20;
const DEVICES: usize = 5;
const WINDOW: usize = 200;
const BYTES: usize = 256;
/// The settings of its one lane: room for everything.
const LANE: &str = "[[lanes]]\nname = \"normal\"\nbudget_bytes = 17179869184\n";

/// A run.
#[derive(Debug)]
pub struct Backlog {
    messages: u64,
}

/// What came of it.
#[derive(Debug, Serialize)]
pub struct Drained {
    /// Acknowledged while there was no cloud.
    pub acked: u64,
    /// Acknowledged a second, meanwhile.
    pub filled_per_s: u64,
    /// Largest resident memory of the edge, KiB: while it took messages (before and after the kill), and draining.
    pub rss_kib: [u64; 2],
    /// Most that the group held, page cache and all, KiB.
    pub group_kib: u64,
    /// Times that the limit was hit and memory taken back.
    pub limit_hits: u64,
    /// The store's files, bytes a message.
    pub disk_bytes_per_message: f64,
    /// From the kill to `ready` with half of the backlog there, ms.
    pub restart_ms: u64,
    /// From the cloud's start to an empty backlog.
    pub drain_s: f64,
    /// Messages a second over it.
    pub drained_per_s: u64,
    /// What the consumer saw.
    pub verdict: Verdict,
}

impl Drained {
    /// A promise was not kept.
    pub fn is_broken(&self) -> bool {
        self.verdict.is_broken() || self.filled_per_s < GATE as u64
    }
}

impl Backlog {
    /// So many messages.
    pub fn new(messages: u64) -> Self {
        Self { messages }
    }

    /// Runs; or says why that is not possible here.
    pub fn run(&self) -> Result<Drained, String> {
        let group = Group::new()?;
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let (data, settings) = (folder.path().join("edge"), folder.path().join("edge.toml"));
        std::fs::write(&settings, LANE).map_err(|error| error.to_string())?;
        let at = format!("file://{}", folder.path().join("cloud").display());
        let mut cloud = Cloud::start_with(&at, &CLOUD);
        cloud.process.kill();
        let settings = settings.to_str().expect("a path");
        let arguments = [&EDGE[..6], &["--config", settings]].concat();
        let mut edge = Edge::start_with(&data, "gw1", Some(cloud.mqtt), &arguments);
        edge.under = group.entrance();
        edge.start_again()?;

        let station: &'static Station = Box::leak(Box::default());
        let devices: Vec<_> = (0..DEVICES)
            .map(|number| {
                let name = format!("d{number}");
                let mut device = Publisher::new("gw1", &name, Qos::AtLeastOnce, WINDOW, BYTES);
                let mqtt = edge.mqtt;
                thread::spawn(move || device.run(mqtt, station))
            })
            .collect();
        let (half, began) = (self.messages / 2, Instant::now());
        fill(&edge, station, half);
        let mut filling = began.elapsed();
        let mut taking = edge.process.rss_peak_kib();
        edge.process.kill();
        station.down();
        let killed = Instant::now();
        edge.start_again()?;
        let restart = killed.elapsed();
        let began = Instant::now();
        fill(&edge, station, self.messages - half);
        station.open(0);
        station.end();
        devices.into_iter().for_each(|device| device.join().expect("a device"));
        filling += began.elapsed();
        taking = taking.max(edge.process.rss_peak_kib());
        let acked = station.state().books.acked_count();
        let disk = bytes_in(&data) as f64 / acked as f64;

        let began = Instant::now();
        cloud.start_again()?;
        let mut waiting = u64::MAX;
        // At a tenth of what it does on the slowest machine so far.
        let patience = Duration::from_mins(1) + Duration::from_millis(self.messages);
        while waiting > 0 {
            assert!(began.elapsed() < patience, "{waiting} messages still wait after {patience:?}");
            assert!(!edge.process.has_ended(), "the edge has ended: did it need more memory?");
            thread::sleep(Duration::from_millis(20));
            waiting = backlog(&edge).unwrap_or(waiting);
        }
        let drain = began.elapsed();
        let draining = edge.process.rss_peak_kib();
        let mut marker = Publisher::new("gw1", "marker", Qos::AtLeastOnce, 1, 0);
        let last = marker.publish_one(edge.mqtt, station).expect("a mark");
        let log = read_kafka(cloud.kafka, &last);
        let verdict = station.state().books.verdict(&log);
        Ok(Drained {
            acked,
            filled_per_s: (acked as f64 / filling.as_secs_f64()) as u64,
            rss_kib: [taking, draining],
            group_kib: group.most() / 1024,
            limit_hits: group.hits(),
            disk_bytes_per_message: disk,
            restart_ms: restart.as_millis() as u64,
            drain_s: drain.as_secs_f64(),
            drained_per_s: (acked as f64 / drain.as_secs_f64()) as u64,
            verdict,
        })
    }
}

/// Waits until so many more are acknowledged. A minute without any is a failure.
fn fill(edge: &Edge, station: &Station, messages: u64) {
    station.open(messages + (DEVICES * WINDOW) as u64);
    let mut acked = 0;
    while acked < messages {
        let goal = messages.min(acked + 10_000);
        let (now, _) = station.wait(goal, Duration::from_mins(1));
        assert!(
            now >= goal,
            "{now} acknowledged of {messages}: {}",
            http_get(edge.admin, "/metrics")
        );
        acked = now;
    }
}

/// Messages that wait for the cloud.
fn backlog(edge: &Edge) -> Option<u64> {
    let page = http_get(edge.admin, "/metrics");
    let line = page.lines().find(|line| line.starts_with("tributary_lane_messages{"))?;
    line.rsplit(' ').next()?.parse().ok()
}

fn bytes_in(folder: &Path) -> u64 {
    let files = std::fs::read_dir(folder).expect("the data folder").map_while(Result::ok);
    let stored = files.filter(|file| file.file_name().to_string_lossy().starts_with("edge.db"));
    stored.filter_map(|file| file.metadata().ok()).map(|metadata| metadata.len()).sum()
}

/// A memory cgroup of its own.
struct Group {
    folder: PathBuf,
    version: u8,
}

impl Group {
    fn new() -> Result<Self, String> {
        Self::first().or_else(|first| Self::second().map_err(|second| format!("{first}; {second}")))
    }

    fn first() -> Result<Self, String> {
        let why = |error: std::io::Error| format!("no memory cgroup of version 1: {error}");
        let group = Self { folder: Path::new(FIRST).join(name()), version: 1 };
        std::fs::create_dir(&group.folder).map_err(why)?;
        std::fs::write(group.folder.join("memory.limit_in_bytes"), LIMIT.to_string())
            .map_err(why)?;
        Ok(group)
    }

    /// Below the root of the only tree: its memory controller is on for its children wherever systemd runs.
    fn second() -> Result<Self, String> {
        let why = |error: std::io::Error| format!("none of version 2: {error}");
        let folder = Path::new(SECOND).join(name());
        let group = Self { folder, version: 2 };
        std::fs::create_dir(&group.folder).map_err(why)?;
        let set = |file, value: &str| std::fs::write(group.folder.join(file), value);
        set("memory.max", &LIMIT.to_string()).map_err(why)?;
        // A limit on memory only would let the kernel put the rest into swap.
        let _ = set("memory.swap.max", "0");
        Ok(group)
    }

    /// What puts a command into it.
    fn entrance(&self) -> Vec<String> {
        let enter = "echo $$ > \"$0/cgroup.procs\" && exec \"$@\"".to_owned();
        vec!["sh".to_owned(), "-c".to_owned(), enter, self.folder.display().to_string()]
    }

    /// The most it held, bytes.
    fn most(&self) -> u64 {
        let file = if self.version == 1 { "memory.max_usage_in_bytes" } else { "memory.peak" };
        self.read(file).trim().parse().unwrap_or(0)
    }

    /// How often the limit was hit.
    fn hits(&self) -> u64 {
        if self.version == 1 {
            return self.read("memory.failcnt").trim().parse().unwrap_or(0);
        }
        let events = self.read("memory.events");
        let hits = events.lines().find_map(|line| line.strip_prefix("max "));
        hits.and_then(|hits| hits.parse().ok()).unwrap_or(0)
    }

    fn read(&self, file: &str) -> String {
        std::fs::read_to_string(self.folder.join(file)).unwrap_or_default()
    }
}

fn name() -> String {
    format!("tributary-{}", std::process::id())
}

impl Drop for Group {
    fn drop(&mut self) {
        // Whoever was in it was dropped before.
        let _ = std::fs::remove_dir(&self.folder);
    }
}
