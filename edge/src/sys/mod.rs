//! What the edge tells clients about itself: topics below `$SYS/broker/`, in mosquitto's names where it has one, our own
//! below `$SYS/broker/tributary/`.
//!
//! In: the numbers that the metrics page shows. Out: all values, every few seconds, to the broker, which delivers what
//! changed and keeps the last of each in memory (`shared::session::own`).
//! Change here: which topics there are. Not here: the numbers (`status`), who may read them (rules).

mod load;

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{sync::watch, time::interval};
use tokio_util::sync::CancellationToken;

use self::load::Load;
use crate::{
    admin::{Shown, age_s, metrics::resident_bytes},
    broker::Told,
    status::LaneStatus,
};

tributary_shared::settings! {
    /// What the edge tells clients about itself, below `$SYS/broker/`.
    pub struct Settings {
        /// Seconds between two looks at the numbers; what has changed is told. 0: nothing is told.
        pub interval_s: u64 = 10 => 0..=3600,
    }
}

/// Counters with averages, by their topic.
const LOADS: [&str; 9] = [
    "messages/received",
    "messages/sent",
    "publish/received",
    "publish/sent",
    "publish/dropped",
    "bytes/received",
    "bytes/sent",
    "sockets",
    "connections",
];

/// Tells until `stop`.
pub async fn run(
    shown: Shown,
    settings: Settings,
    tell: watch::Sender<Told>,
    stop: CancellationToken,
) {
    if settings.interval_s == 0 {
        return stop.cancelled().await;
    }
    let mut every = interval(Duration::from_secs(settings.interval_s));
    let mut loads = [Load::default(); LOADS.len()];
    let mut last = Instant::now();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = every.tick() => {}
        }
        let seconds = last.elapsed().as_secs_f64();
        last = Instant::now();
        let _broker_is_gone = tell.send(values(&shown, &mut loads, seconds));
    }
}

/// Values that are being collected.
struct Tree(Told);

impl Tree {
    fn add(&mut self, topic: &str, value: impl ToString) {
        let topic = format!("$SYS/broker/{topic}");
        self.0.push((topic.into(), Bytes::from(value.to_string())));
    }
}

/// Counts of connections, which are there while listeners are open.
#[derive(Default)]
struct Wire {
    packets_in: u64,
    packets_out: u64,
    bytes_in: u64,
    bytes_out: u64,
    sockets: u64,
}

impl Wire {
    fn of(shown: &Shown) -> Self {
        let Some((context, gate)) = shown.open() else { return Self::default() };
        let counters = &context.counters;
        let get = |number: &AtomicU64| number.load(Relaxed);
        Self {
            packets_in: get(&counters.packets_in),
            packets_out: get(&counters.packets_out),
            bytes_in: get(&counters.bytes_in),
            bytes_out: get(&counters.bytes_out),
            sockets: get(&gate.accepted),
        }
    }
}

/// All values now, `seconds` after the last time.
fn values(shown: &Shown, loads: &mut [Load; LOADS.len()], seconds: f64) -> Told {
    let mut tree = Tree(Vec::with_capacity(96));
    let status = &shown.status;
    let wire = Wire::of(shown);
    let dropped: u64 = status.drops().values().sum();
    tree.add("version", concat!("tributary-edge version ", env!("CARGO_PKG_VERSION")));
    tree.add("uptime", format_args!("{} seconds", shown.started.elapsed().as_secs()));
    clients(&mut tree, shown);
    let core = &status.core;
    let stored = core.queued.get() + core.retained.get();
    for (topic, value) in [
        ("messages/received", wire.packets_in),
        ("messages/sent", wire.packets_out),
        ("messages/stored", stored),
        ("store/messages/count", stored),
        ("store/messages/bytes", core.queued_bytes.get() + core.retained_bytes.get()),
        ("subscriptions/count", core.subscriptions.get()),
        ("retained messages/count", core.retained.get()),
        ("bytes/received", wire.bytes_in),
        ("bytes/sent", wire.bytes_out),
        ("publish/messages/received", status.messages_in.get()),
        ("publish/messages/sent", status.messages_out.get()),
        ("publish/messages/dropped", dropped),
        ("publish/bytes/received", status.payload_in.get()),
        ("publish/bytes/sent", status.payload_out.get()),
        ("connections/socket/count", wire.sockets),
    ] {
        tree.add(topic, value);
    }
    let counters = [
        wire.packets_in,
        wire.packets_out,
        status.messages_in.get(),
        status.messages_out.get(),
        dropped,
        wire.bytes_in,
        wire.bytes_out,
        wire.sockets,
        status.connects.get(),
    ];
    for ((name, load), count) in LOADS.iter().zip(loads).zip(counters) {
        load.sample(count, seconds);
        for (span, average) in load.averages() {
            tree.add(&format!("load/{name}/{span}"), format_args!("{average:.2}"));
        }
    }
    ours(&mut tree, shown);
    tree.0
}

fn clients(tree: &mut Tree, shown: &Shown) {
    let core = &shown.status.core;
    let (total, connected) = (core.sessions.get(), shown.status.connections.get());
    let away = total.saturating_sub(connected);
    for (topic, value) in [
        ("total", total),
        ("connected", connected),
        ("disconnected", away),
        ("maximum", core.sessions_maximum.get()),
        ("expired", core.expired.get()),
        // Older names of two of them, which many a dashboard still has.
        ("active", connected),
        ("inactive", away),
    ] {
        tree.add(&format!("clients/{topic}"), value);
    }
}

fn ours(tree: &mut Tree, shown: &Shown) {
    let status = &shown.status;
    tree.add("tributary/id", &shown.id);
    tree.add("tributary/memory/bytes", resident_bytes());
    tree.add("tributary/store/bytes", status.db_bytes.get());
    tree.add("tributary/store/commits", status.commits.get());
    if let Some(free) = shown.disk_free() {
        tree.add("tributary/disk/free", free);
    }
    let lanes = status.lanes();
    if shown.has_cloud {
        let connected = lanes.iter().all(|lane| lane.connected.load(Relaxed));
        tree.add("tributary/uplink/connected", u8::from(connected));
    }
    for lane in lanes {
        for (name, value) in lane_values(&lane) {
            tree.add(&format!("tributary/lanes/{}/{name}", lane.name), value);
        }
        let drain = lane.drain_s.load(Relaxed);
        tree.add(&format!("tributary/lanes/{}/drain_s", lane.name), drain);
    }
}

fn lane_values(lane: &LaneStatus) -> [(&'static str, u64); 12] {
    let [messages, messages_1m] = &lane.messages_per_s;
    let [bytes, bytes_1m] = &lane.bytes_per_s;
    [
        ("connected", u64::from(lane.connected.load(Relaxed))),
        ("full", u64::from(lane.full.load(Relaxed))),
        ("messages", lane.messages.get()),
        ("bytes", lane.bytes.get()),
        ("oldest_s", age_s(lane)),
        ("synced", lane.synced.get()),
        ("given_up", lane.given_up.get()),
        ("messages_per_s", messages.get()),
        ("messages_per_s_1m", messages_1m.get()),
        ("bytes_per_s", bytes.get()),
        ("bytes_per_s_1m", bytes_1m.get()),
        ("catching_up", u64::from(lane.catching_up.load(Relaxed))),
    ]
}
