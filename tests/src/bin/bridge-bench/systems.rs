//! The two systems: how each is started, read at its far end, and what its gateway costs.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tributary_shared::mqtt::Qos;
use tributary_tests::{
    Cloud, Device, Edge,
    differential::mosquitto::{self, installed},
    http_get,
    kafka::Reader,
    process::free_address,
};

/// Reads at the far end until `count` messages came or none for so long; how many came.
pub(crate) type Read = Box<dyn FnOnce(usize, Duration) -> usize>;

/// A gateway with a bridge, and what it goes to.
pub(crate) trait System {
    const NAME: &'static str;

    fn new(folder: &Path) -> Self;
    /// Where the far end listens, or will.
    fn upstream(&self) -> SocketAddr;
    fn start_upstream(&mut self);
    /// A reader at the far end that is there before any message.
    fn reader(&self) -> Read;
    /// Where devices go.
    fn start_gateway(&mut self, bridge_to: SocketAddr) -> SocketAddr;
    fn kill_gateway(&mut self);
    /// Until the gateway has found its far end again.
    fn wait_connected(&self) -> Duration;
    fn pid(&self) -> u32;

    /// What the gateway has cost so far.
    fn cost(&self, count: usize) -> Value {
        let proc = PathBuf::from(format!("/proc/{}", self.pid()));
        let number = |file: &str, name: &str| -> u64 {
            let text = fs::read_to_string(proc.join(file)).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
        };
        let ns: u64 = fs::read_dir(proc.join("task"))
            .into_iter()
            .flatten()
            .filter_map(|task| fs::read_to_string(task.ok()?.path().join("schedstat")).ok())
            .filter_map(|text| text.split_whitespace().next()?.parse::<u64>().ok())
            .sum();
        json!({
            "rss_mib": number("status", "VmRSS:") as f64 / 1024.0,
            "peak_rss_mib": number("status", "VmHWM:") as f64 / 1024.0,
            "flash_bytes_per_message": number("io", "write_bytes:") / count as u64,
            "cpu_us_per_message": ns as f64 / 1000.0 / count as f64,
        })
    }
}

pub(crate) struct Tributary {
    folder: PathBuf,
    mqtt: SocketAddr,
    cloud: Option<Cloud>,
    edge: Option<Edge>,
}

impl System for Tributary {
    const NAME: &'static str = "tributary";

    fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), mqtt: free_address(), cloud: None, edge: None }
    }

    fn upstream(&self) -> SocketAddr {
        self.mqtt
    }

    fn start_upstream(&mut self) {
        let listen = format!("listen.mqtt={}", self.mqtt);
        let data = format!("file://{}", self.folder.join("cloud").display());
        self.cloud = Some(Cloud::start_with(&data, &["--set", &listen]));
    }

    fn reader(&self) -> Read {
        let cloud = self.cloud.as_ref().expect("started");
        let reader = Reader::new(cloud.kafka, "mqtt.messages");
        Box::new(move |count, quiet| {
            (0..count).take_while(|_| reader.next(quiet).is_some()).count()
        })
    }

    fn start_gateway(&mut self, bridge_to: SocketAddr) -> SocketAddr {
        let more = ["--set", "uplink.backoff_max_ms=1000"];
        let folder = self.folder.join("edge");
        let edge = self.edge.insert(Edge::start_with(&folder, "bench", Some(bridge_to), &more));
        edge.mqtt
    }

    fn kill_gateway(&mut self) {
        self.edge = None;
    }

    fn wait_connected(&self) -> Duration {
        let (started, admin) = (Instant::now(), self.edge.as_ref().expect("started").admin);
        while !http_get(admin, "/metrics").contains("connected{lane=\"normal\"} 1") {
            assert!(started.elapsed() < Duration::from_mins(1), "the edge does not connect");
            std::thread::sleep(Duration::from_millis(5));
        }
        started.elapsed()
    }

    fn pid(&self) -> u32 {
        self.edge.as_ref().expect("started").process.id()
    }
}

pub(crate) struct Mosquitto {
    folder: PathBuf,
    upstream: SocketAddr,
    far: Option<mosquitto::Mosquitto>,
    near: Option<mosquitto::Mosquitto>,
}

impl System for Mosquitto {
    const NAME: &'static str = "mosquitto";

    fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), upstream: free_address(), far: None, near: None }
    }

    fn upstream(&self) -> SocketAddr {
        self.upstream
    }

    fn start_upstream(&mut self) {
        let more = self.persistent("far");
        let binary = installed().expect("mosquitto is installed");
        self.far = Some(mosquitto::Mosquitto::start_at(self.upstream, &binary, &more));
    }

    fn reader(&self) -> Read {
        let mut reader = Device::connect_persistent(self.upstream, "reader").expect("connect");
        reader.subscribe("#", Qos::AtLeastOnce).expect("subscribe");
        Box::new(move |count, quiet| {
            reader.set_timeout(quiet).expect("timeout");
            (0..count).take_while(|_| reader.message().is_ok()).count()
        })
    }

    fn start_gateway(&mut self, bridge_to: SocketAddr) -> SocketAddr {
        let more = format!(
            "{}\nconnection up\naddress {bridge_to}\ntopic # out 1\nbridge_protocol_version mqttv50\n\
             cleansession false\nrestart_timeout 1 1\nremote_clientid bench\nnotifications false",
            self.persistent("near")
        );
        let binary = installed().expect("mosquitto is installed");
        self.near.insert(mosquitto::Mosquitto::start(&binary, &more)).address
    }

    fn kill_gateway(&mut self) {
        self.near = None;
    }

    fn wait_connected(&self) -> Duration {
        // It says nothing that could be waited for: its wait between attempts is counted with the drain.
        Duration::ZERO
    }

    fn pid(&self) -> u32 {
        self.near.as_ref().expect("started").id()
    }
}

impl Mosquitto {
    /// Persistence as Debian sets it, and no limit of its queues.
    fn persistent(&self, name: &str) -> String {
        let folder = self.folder.join(name);
        fs::create_dir_all(&folder).expect("folder");
        format!(
            "persistence true\npersistence_location {}/\nmax_queued_messages 0\nmax_queued_bytes 0",
            folder.display()
        )
    }
}
