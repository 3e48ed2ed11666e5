//! MQTT load generator: works against any broker, prints one JSON line.
//!
//! In: a broker's address and a load. Out: messages a second, latency percentiles, losses, and the broker's CPU and memory
//! if its process id is given. Latency is measured from the time a message was *scheduled* to be sent, so a broker that
//! stalls is not flattered by a generator that waits for it. Flat out (`--rate 0`) a message is scheduled when there is
//! room in the window. Change here: loads. Not here: other protocols.
//!
//! ```text
//! mqtt-bench --addr 127.0.0.1:1883 --qos 1 --window 100 --messages 500000          # one pair, flat out
//! mqtt-bench --addr 127.0.0.1:1883 --qos 0 --ahead 5000 --messages 3000000         # at most 5000 under way
//! mqtt-bench --addr 127.0.0.1:1883 --qos 1 --rate 1000 --messages 10000            # paced
//! mqtt-bench --addr 127.0.0.1:1883 --qos 1 --subscribers 0 --window 1              # only acknowledgements
//! mqtt-bench --addr 127.0.0.1:1883 --idle 1000 --pid "$BROKER"                     # memory of idle connections
//! ```

mod client;
mod histogram;
mod idle;
mod paced;
mod process;
mod publisher;
mod subscriber;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use clap::Parser;
use tokio::{task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;
use tributary_shared::mqtt::{Qos, Version};

use histogram::Histogram;
use process::Usage;

pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The load.
#[derive(Debug, Clone, Parser)]
#[command(name = "mqtt-bench", about = "MQTT load generator; prints one JSON line")]
struct Load {
    /// The broker.
    #[arg(long, default_value = "127.0.0.1:1883")]
    addr: SocketAddr,
    /// Protocol version: 4 is 3.1.1.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(4..=5))]
    version: u8,
    /// Connections that publish, each to a topic of its own.
    #[arg(long, default_value_t = 1)]
    publishers: usize,
    /// Connections that subscribe. 0: only acknowledgements are measured.
    #[arg(long, default_value_t = 1)]
    subscribers: usize,
    /// Every subscriber takes every topic, instead of its share of them.
    #[arg(long)]
    all: bool,
    /// Quality of service, of publications and subscriptions.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=2))]
    qos: u8,
    /// Messages of each publisher.
    #[arg(long, default_value_t = 100_000)]
    messages: u64,
    /// Bytes of a payload, at least 8.
    #[arg(long, default_value_t = 64)]
    payload: usize,
    /// Unacknowledged messages of each publisher (QoS 1 and 2).
    #[arg(long, default_value_t = 100)]
    window: u16,
    /// Messages published and not yet received by all, all connections together (QoS 0). 0: no limit.
    #[arg(long, default_value_t = 0)]
    ahead: u64,
    /// Messages a second, all publishers together. 0: flat out.
    #[arg(long, default_value_t = 0.0)]
    rate: f64,
    /// Only open so many connections, hold them, and measure.
    #[arg(long, default_value_t = 0)]
    idle: usize,
    /// Seconds to hold idle connections.
    #[arg(long, default_value_t = 3)]
    hold: u64,
    /// Process id of the broker, for CPU and memory.
    #[arg(long)]
    pid: Option<u32>,
    /// Give up after so many seconds without progress.
    #[arg(long, default_value_t = 5)]
    patience: u64,
    /// User name.
    #[arg(long)]
    username: Option<String>,
    /// Password.
    #[arg(long)]
    password: Option<String>,
}

impl Load {
    fn version(&self) -> Version {
        if self.version == 5 { Version::V5 } else { Version::V311 }
    }

    fn qos(&self) -> Qos {
        match self.qos {
            0 => Qos::AtMostOnce,
            1 => Qos::AtLeastOnce,
            _ => Qos::ExactlyOnce,
        }
    }

    fn receivers(&self) -> u64 {
        if self.all { self.subscribers as u64 } else { u64::from(self.subscribers > 0) }
    }
}

/// What all connections of a run share.
#[derive(Debug)]
struct Run {
    load: Load,
    /// Names of this run, so that runs do not meet.
    name: String,
    start: Instant,
    sent: AtomicU64,
    acked: AtomicU64,
    received: AtomicU64,
    /// When the last was received or acknowledged, ns after `start`.
    last_ns: AtomicU64,
}

impl Run {
    fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    fn topic(&self, publisher: usize) -> String {
        format!("bench/{}/{publisher}", self.name)
    }

    /// Messages that every receiver has, or will not get.
    fn delivered(&self) -> u64 {
        let receivers = self.load.receivers();
        match (receivers, self.load.qos) {
            (0, 0) => self.sent.load(Ordering::Relaxed),
            (0, _) => self.acked.load(Ordering::Relaxed),
            _ => self.received.load(Ordering::Relaxed) / receivers,
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut load = Load::parse();
    load.payload = load.payload.max(8);
    load.window = load.window.max(1);
    let line = if load.idle > 0 { idle::measure(&load).await? } else { measure(load).await? };
    #[expect(clippy::print_stdout, reason = "the result")]
    {
        println!("{line}");
    }
    Ok(())
}

async fn measure(load: Load) -> Result<serde_json::Value, Failure> {
    let run = Arc::new(Run {
        name: std::process::id().to_string(),
        start: Instant::now(),
        sent: AtomicU64::new(0),
        acked: AtomicU64::new(0),
        received: AtomicU64::new(0),
        last_ns: AtomicU64::new(0),
        load,
    });
    let load = &run.load;
    let stop = CancellationToken::new();
    let mut subscribers = JoinSet::new();
    for number in 0..load.subscribers {
        let subscriber = subscriber::connect(Arc::clone(&run), number).await?;
        subscribers.spawn(subscriber.receive(stop.clone()));
    }
    let before = load.pid.map(Usage::of).transpose()?;
    let began_ns = run.now_ns();
    let mut publishers = JoinSet::new();
    for number in 0..load.publishers {
        if load.rate > 0.0 {
            let run = Arc::clone(&run);
            publishers.spawn_blocking(move || paced::publish(&run, number));
        } else {
            publishers.spawn(publisher::publish(Arc::clone(&run), number));
        }
    }
    let mut errors = Vec::new();
    let mut acks = Histogram::default();
    let finished = finish(&run, &mut publishers, &mut acks, &mut errors).await;
    stop.cancel();
    let after = load.pid.map(Usage::of).transpose()?;
    let mut latency = Histogram::default();
    while let Some(joined) = subscribers.join_next().await {
        match joined? {
            Ok(histogram) => latency.add(&histogram),
            Err(error) => errors.push(error.to_string()),
        }
    }
    // QoS 0 may be lost; that is counted as lost, not as an error.
    if !finished && (run.load.qos > 0 || !publishers.is_empty()) {
        errors.push("no progress".to_owned());
        publishers.abort_all();
    }
    let mut line = report(&run, began_ns, &latency, &acks, &errors);
    if let (Some(before), Some(after)) = (before, after) {
        let delivered = run.delivered().max(1);
        let cpu_us = after.cpu.saturating_sub(before.cpu).as_secs_f64() * 1e6;
        set(&mut line, "broker_cpu_us_per_message", round(cpu_us / delivered as f64));
        set(&mut line, "broker_rss_kb", after.rss_kb);
    }
    Ok(line)
}

/// Until everything is sent, acknowledged and received, or nothing moves any more.
async fn finish(
    run: &Run,
    publishers: &mut JoinSet<Result<Histogram, Failure>>,
    acks: &mut Histogram,
    errors: &mut Vec<String>,
) -> bool {
    let expected = run.load.messages * run.load.publishers as u64 * run.load.receivers();
    let patience = Duration::from_secs(run.load.patience);
    let mut progress = (0, Instant::now());
    loop {
        while let Some(joined) = publishers.try_join_next() {
            match joined {
                Ok(Ok(histogram)) => acks.add(&histogram),
                Ok(Err(error)) => errors.push(error.to_string()),
                Err(error) => errors.push(error.to_string()),
            }
        }
        let received = run.received.load(Ordering::Relaxed);
        if publishers.is_empty() && (received >= expected || !errors.is_empty()) {
            return true;
        }
        let moved = received + run.acked.load(Ordering::Relaxed) + run.sent.load(Ordering::Relaxed);
        if moved != progress.0 {
            progress = (moved, Instant::now());
        } else if progress.1.elapsed() > patience {
            return false;
        }
        sleep(Duration::from_millis(2)).await;
    }
}

fn report(
    run: &Run,
    began_ns: u64,
    latency: &Histogram,
    acks: &Histogram,
    errors: &[String],
) -> serde_json::Value {
    let load = &run.load;
    let sent = run.sent.load(Ordering::Relaxed);
    let acked = run.acked.load(Ordering::Relaxed);
    let received = run.received.load(Ordering::Relaxed);
    let last_ns = run.last_ns.load(Ordering::Relaxed).max(began_ns + 1);
    let seconds = (last_ns - began_ns) as f64 / 1e9;
    serde_json::json!({
        "addr": load.addr.to_string(),
        "version": load.version,
        "qos": load.qos,
        "publishers": load.publishers,
        "subscribers": load.subscribers,
        "payload": load.payload,
        "window": load.window,
        "ahead": load.ahead,
        "rate": load.rate,
        "sent": sent,
        "acked": acked,
        "received": received,
        "lost": (sent * load.receivers()).saturating_sub(received),
        "seconds": round(seconds),
        "msg_per_s": (run.delivered() as f64 / seconds).round(),
        "acked_per_s": (acked as f64 / seconds).round(),
        "received_per_s": (received as f64 / seconds).round(),
        "latency_ms": latency.summary(),
        "ack_ms": acks.summary(),
        "errors": errors,
    })
}

/// Adds a field to the result.
fn set(line: &mut serde_json::Value, key: &str, value: impl Into<serde_json::Value>) {
    if let Some(fields) = line.as_object_mut() {
        fields.insert(key.to_owned(), value.into());
    }
}

/// Three decimals are enough to read.
fn round(value: f64) -> serde_json::Value {
    ((value * 1_000.0).round() / 1_000.0).into()
}
