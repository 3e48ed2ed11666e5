//! What a gateway's bridge does, live and after an outage: tributary-edge -> tributary-cloud beside mosquitto -> mosquitto.
//!
//! ```text
//! devices --QoS 1--> edge | mosquitto bridge --line, counted--> cloud | mosquitto --> Kafka consumer | MQTT subscriber
//! ```
//! `bridge-bench live|outage|line|lost [COUNT] [--only tributary|mosquitto]`; one JSON line a figure.
//! Method: docs/reference/bench.md. Not here: harnesses that prove something (`outages`).

mod line;
mod systems;

use std::time::{Duration, Instant};

use serde_json::json;
use tributary_tests::{Device, say};

use self::{
    line::{Line, Quality},
    systems::{Mosquitto, System, Tributary},
};

/// Bytes of a payload.
const BYTES: usize = 256;
/// Devices, and what each has unacknowledged.
const DEVICES: usize = 10;
const WINDOW: usize = 100;
/// The consumer gives up when nothing comes for so long.
const QUIET: Duration = Duration::from_mins(1);

fn main() {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let only = arguments.iter().position(|argument| argument == "--only").map(|at| {
        arguments.remove(at);
        arguments.remove(at)
    });
    let part = arguments.first().map_or("", String::as_str);
    let count = arguments.get(1).map(|text| text.parse().expect("a number"));
    let wanted = |name: &str| only.as_deref().is_none_or(|only| only == name);
    if wanted("tributary") {
        run::<Tributary>(part, count);
    }
    if wanted("mosquitto") {
        run::<Mosquitto>(part, count);
    }
}

fn run<S: System>(part: &str, count: Option<usize>) {
    let open = Quality { bits_per_s: 0, delay: Duration::ZERO };
    match part {
        "live" => live::<S>(count.unwrap_or(400_000)),
        "outage" => outage::<S>("outage, loopback", count.unwrap_or(400_000), open),
        "line" => {
            let quality = Quality { bits_per_s: 10_000_000, delay: Duration::from_millis(50) };
            outage::<S>("outage, 10 Mbit/s, 100 ms round trip", count.unwrap_or(200_000), quality);
        }
        "lost" => lost::<S>(count.unwrap_or(3_000)),
        _ => panic!("see the first lines of this program"),
    }
}

/// 256 bytes as a sensor gateway sends them: names that repeat, numbers that wander.
fn telemetry(device: usize, seq: usize) -> String {
    let noise = |salt: u64| {
        let mut x =
            (seq as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (device as u64) << 32 ^ salt;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        (x ^ (x >> 27)) as f64 / u64::MAX as f64
    };
    let text = format!(
        "{{\"device\":\"sensor-{device:04}\",\"seq\":{seq},\"ts\":{},\"temperature\":{:.2},\"humidity\":{:.1},\
         \"pressure\":{:.1},\"battery\":{:.3},\"rssi\":{},\"status\":\"ok\",\"unit\":\"metric\",\"line\":\"hall-3\"}}",
        1_790_000_000_000_u64 + seq as u64 * 1000,
        21.0 + noise(1),
        45.0 + 3.0 * noise(2),
        1013.0 + 2.0 * noise(3),
        3.6 + 0.1 * noise(4),
        -60 - (noise(5) * 10.0) as i32,
    );
    format!("{text:<BYTES$}")
}

/// Publishes `count` messages from all devices; how long until the last acknowledgement.
fn publish(address: std::net::SocketAddr, count: usize) -> Duration {
    let started = Instant::now();
    let devices: Vec<_> = (0..DEVICES)
        .map(|number| {
            std::thread::spawn(move || {
                let mut device =
                    Device::connect(address, &format!("dev-{number}")).expect("connect");
                let topic = format!("plant/hall-3/sensor-{number:04}/telemetry");
                let messages =
                    (0..count / DEVICES).map(|seq| (topic.clone(), telemetry(number, seq).into()));
                device.publish_all(messages, WINDOW, |_| ()).expect("published");
            })
        })
        .collect();
    devices.into_iter().for_each(|device| device.join().expect("device"));
    started.elapsed()
}

fn per_s(count: usize, took: Duration) -> u64 {
    (count as f64 / took.as_secs_f64()) as u64
}

/// Everything is up; acknowledged by the gateway, and read at the far end.
fn live<S: System>(count: usize) {
    let folder = tempfile::tempdir().expect("folder");
    let mut system = S::new(folder.path());
    let line = Line::new(system.upstream(), Quality { bits_per_s: 0, delay: Duration::ZERO });
    system.start_upstream();
    let reader = system.reader();
    line.let_through();
    let gateway = system.start_gateway(line.address);
    let started = Instant::now();
    let sender = std::thread::spawn(move || publish(gateway, count));
    let read = reader(count, QUIET);
    let took = started.elapsed();
    let acked = sender.join().expect("sender");
    say(&json!({
        "bench": "bridge, live", "system": S::NAME, "messages": count, "payload_bytes": BYTES,
        "devices": DEVICES, "window": WINDOW, "acked_per_s": per_s(count, acked), "read": read,
        "read_per_s": per_s(read, took), "gateway": system.cost(count),
        "wire_bytes_per_message": line.upward.load(std::sync::atomic::Ordering::Relaxed) as usize / count,
    })
    .to_string());
}

/// The far end is away while `count` messages are acknowledged; then it comes.
fn outage<S: System>(name: &str, count: usize, quality: Quality) {
    let folder = tempfile::tempdir().expect("folder");
    let mut system = S::new(folder.path());
    let line = Line::new(system.upstream(), quality);
    let gateway = system.start_gateway(line.address);
    let acked = publish(gateway, count);
    let buffered = system.cost(count);
    system.start_upstream();
    let reader = system.reader();
    line.let_through();
    let connected = system.wait_connected();
    let started = Instant::now();
    let read = reader(count, QUIET);
    let took = started.elapsed();
    let wire = line.upward.load(std::sync::atomic::Ordering::Relaxed);
    let busy = (quality.bits_per_s > 0)
        .then(|| wire as f64 * 8.0 / quality.bits_per_s as f64 / took.as_secs_f64());
    say(&json!({
        "bench": format!("bridge, {name}"), "system": S::NAME, "messages": count, "payload_bytes": BYTES,
        "acked_per_s": per_s(count, acked), "buffered": buffered, "connected_after_s": connected.as_secs_f64(),
        "read": read, "lost": count.saturating_sub(read), "drained_per_s": per_s(read, took),
        "drain_s": took.as_secs_f64(), "line_use": busy, "drained": system.cost(count),
        "wire_bytes_per_message": wire as usize / count,
    })
    .to_string());
}

/// Acknowledged while the far end is away, then the gateway is killed and started again.
fn lost<S: System>(count: usize) {
    let folder = tempfile::tempdir().expect("folder");
    let mut system = S::new(folder.path());
    let line = Line::new(system.upstream(), Quality { bits_per_s: 0, delay: Duration::ZERO });
    let gateway = system.start_gateway(line.address);
    publish(gateway, count);
    system.kill_gateway();
    system.start_upstream();
    let reader = system.reader();
    line.let_through();
    system.start_gateway(line.address);
    let read = reader(count, Duration::from_secs(10));
    say(&json!({
        "bench": "bridge, gateway killed while the far end was away", "system": S::NAME,
        "acked": count, "read": read, "lost": count.saturating_sub(read),
    })
    .to_string());
}
