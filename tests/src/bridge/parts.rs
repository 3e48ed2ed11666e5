//! Everything that runs in a run over the bridge: processes, devices, readers. Change here: what takes part, and with which settings.
//! Not here: what happens to them (`mod`).

use std::{
    path::Path,
    thread::{self, JoinHandle},
};

use tempfile::TempDir;
use tributary_shared::mqtt::Qos;

use super::{Link, Live, Plan, Proxy, Publisher, Station, Waiting, commands::Commands};
use crate::{
    Cloud, Edge,
    outage::{disk::Disk, preload::lying_library},
};

/// See above.
pub(super) struct Parts {
    pub(super) cloud: Cloud,
    pub(super) edge: Edge,
    pub(super) proxy: Option<Proxy>,
    pub(super) commands: Option<Commands>,
    pub(super) disk: Option<Disk>,
    pub(super) station: &'static Station,
    pub(super) devices: Vec<JoinHandle<()>>,
    /// One in each lane; the last one's is the lane of most.
    pub(super) markers: Vec<Publisher>,
    pub(super) live: Live,
    pub(super) waiting: Waiting,
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

/// Of an edge on a bad link: it gives up soon what does not answer.
const IMPATIENT: [&str; 4] =
    ["--set", "uplink.ack_timeout_ms=400", "--set", "uplink.connect_timeout_ms=1000"];
/// Of an edge that only promises to send everything at least once: a control.
const AT_LEAST_ONCE: [&str; 2] = ["--set", "uplink.format=mqtt"];
/// Two lanes, each with a connection of its own; `urgent` devices have the first.
const LANES: &str = "[[lanes]]\nname = \"critical\"\nfilters = [\"load/+/urgent\", \"load/+/urgent-marker\"]\n\
                     [[lanes]]\nname = \"normal\"\n";

impl Parts {
    pub(super) fn start(plan: &Plan) -> Result<Self, String> {
        let disk = plan.cuts_power().then(|| Disk::new(512)).transpose()?;
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let at = disk.as_ref().map_or(folder.path(), Disk::path).join("edge");
        let lying = if plan.lying { vec![lying_library(folder.path())?] } else { Vec::new() };
        let environment: Vec<_> = lying.into_iter().map(|path| ("LD_PRELOAD", path)).collect();
        let data = format!("file://{}", folder.path().join("cloud").display());
        let cloud = Cloud::start_with(&data, &CLOUD);
        let (waiting, live) = (Waiting::prepare(&cloud), Live::start(cloud.kafka));
        let troubles = plan.link.troubles();
        let proxy = (!troubles.is_empty()).then(|| Proxy::start(cloud.mqtt, plan.seed, troubles));
        let settings = settings(plan, folder.path());
        let settings: Vec<_> = settings.iter().map(String::as_str).collect();
        let upstream = proxy.as_ref().map_or(cloud.mqtt, |proxy| proxy.address);
        let edge = Edge::start_in(&at, "gw1", Some(upstream), &settings, &environment);
        let commands = (plan.link == Link::Bad).then(|| Commands::start(&cloud, &edge));
        if let Some(disk) = &disk {
            disk.sync();
        }
        // Lives as long as the process: its threads are not bound to this scope.
        let station: &'static Station = Box::leak(Box::default());
        let mut devices = vec![
            ("d0", Qos::AtLeastOnce, 50),
            ("d1", Qos::AtLeastOnce, 10),
            ("d2", Qos::AtLeastOnce, 1),
            ("x0", Qos::ExactlyOnce, 20),
        ];
        let mut markers = vec!["marker"];
        if plan.link != Link::Good {
            devices.push(("urgent", Qos::AtLeastOnce, 5));
            markers.insert(0, "urgent-marker");
        }
        let devices = devices.into_iter().map(|(name, qos, window)| {
            let mut device = Publisher::new("gw1", name, qos, window, 60);
            let mqtt = edge.mqtt;
            thread::spawn(move || device.run(mqtt, station))
        });
        let devices = devices.collect();
        let marker = |name| Publisher::new("gw1", name, Qos::AtLeastOnce, 1, 0);
        let markers = markers.into_iter().map(marker).collect();
        Ok(Self {
            cloud,
            edge,
            proxy,
            commands,
            disk,
            station,
            devices,
            markers,
            live,
            waiting,
            _folder: folder,
        })
    }
}

fn settings(plan: &Plan, folder: &Path) -> Vec<String> {
    let mut settings = EDGE.to_vec();
    let file = folder.join("edge.toml");
    let named = file.to_str().expect("a path");
    if plan.link != Link::Good {
        std::fs::write(&file, LANES).expect("settings");
        settings.extend(IMPATIENT);
        settings.extend(["--config", named]);
    }
    if matches!(plan.link, Link::AtLeastOnce(_)) {
        settings.extend(AT_LEAST_ONCE);
    }
    settings.into_iter().map(str::to_owned).collect()
}
