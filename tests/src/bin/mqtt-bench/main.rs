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
mod frames;
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
#[expect(clippy::struct_excessive_bools, reason = "flags of a command line")]
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
    /// Publish for so many seconds at most. 0: no limit. Not with --rate.
    #[arg(long, default_value_t = 0.0)]
    seconds: f64,
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
    /// The subscribers' sessions outlive their connections.
    #[arg(long)]
    kept: bool,
    /// The subscribers subscribe and leave before the load begins.
    #[arg(long, requires = "kept")]
    away: bool,
    /// The subscribers come back for what was kept for them; nothing is published.
    #[arg(long, requires = "kept", requires = "name")]
    back: bool,
    /// Part of all client ids and topics, so that a later run meets the sessions of this one.
    #[arg(long)]
    name: Option<String>,
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
        match self.subscribers {
            _ if self.away => 0,
            all if self.all => all as u64,
            some => u64::from(some > 0),
        }
    }
}

/// What all connections of a run share.
#[derive(Debug)]
struct Run {
    load: Load,
    /// Names of this run, so that runs do not meet.
    name: String,
    start: Instant,
    /// When publishing ends, with `--seconds`.
    until_ns: AtomicU64,
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

    /// Time to stop publishing.
    fn is_over(&self) -> bool {
        self.load.seconds > 0.0 && self.now_ns() >= self.until_ns.load(Ordering::Relaxed)
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
        name: load.name.clone().unwrap_or_else(|| std::process::id().to_string()),
        start: Instant::now(),
        until_ns: AtomicU64::new(u64::MAX),
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
        if let Some(subscriber) = subscriber::connect(Arc::clone(&run), number).await? {
            subscribers.spawn(subscriber.receive(stop.clone()));
        }
    }
    let before = load.pid.map(Usage::of).transpose()?;
    let own_before = Usage::own()?;
    let began_ns = run.now_ns();
    run.until_ns.store(began_ns + (load.seconds * 1e9) as u64, Ordering::Relaxed);
    let mut publishers = JoinSet::new();
    for number in 0..if load.back { 0 } else { load.publishers } {
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
    let own = Usage::own()?;
    let wall = Duration::from_nanos(run.now_ns() - began_ns);
    let mut latency = Histogram::default();
    while let Some(joined) = subscribers.join_next().await {
        match joined? {
            Ok(histogram) => latency.add(&histogram),
            Err(error) => errors.push(error.to_string()),
        }
    }
    // QoS 0 may be lost; that is counted as lost, not as an error.
    if !finished && !run.load.back && (run.load.qos > 0 || !publishers.is_empty()) {
        errors.push("no progress".to_owned());
        publishers.abort_all();
    }
    let mut line = report(&run, began_ns, &latency, &acks, &errors);
    let messages = run.delivered().max(1) as f64;
    let mut used = |who: &str, before: &Usage, after: &Usage| {
        let us = |time: Duration| time.as_secs_f64() * 1e6;
        let cpu = us(after.cpu_since(before)) / messages;
        set(&mut line, &format!("{who}_cpu_us_per_message"), round(cpu));
        let busiest = us(after.busiest_since(before)) / us(wall);
        set(&mut line, &format!("{who}_busiest_thread"), round(busiest));
    };
    used("generator", &own_before, &own);
    if let (Some(before), Some(after)) = (before, after) {
        used("broker", &before, &after);
        let written = after.written_bytes.saturating_sub(before.written_bytes);
        set(&mut line, "broker_written_bytes_per_message", round(written as f64 / messages));
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
        // All is sent once no publisher is left.
        let sent = if run.load.back { u64::MAX } else { run.sent.load(Ordering::Relaxed) };
        let expected = sent.saturating_mul(run.load.receivers());
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
