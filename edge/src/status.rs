//! Numbers that each part publishes; anyone may read them, only the owner of a number writes it.
//!
//! Holds: counters and gauges, no history. Change here: a new number. Not here: how they are shown (`admin`).

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tributary_shared::session::{Denied, Stats};

use crate::{pushed, store::LaneHandle};

/// A number that only grows, or a gauge.
#[derive(Debug, Default)]
pub struct Number(AtomicU64);

impl Number {
    /// Adds.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }
    /// Sets (gauges).
    pub fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }
    /// Reads.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Upper bounds of the commit latency histogram, microseconds.
pub const COMMIT_BOUNDS_US: [u64; 10] =
    [250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 1_000_000];

/// All of the process's numbers.
#[derive(Debug, Default)]
pub struct Status {
    /// PUBLISH packets received, any QoS.
    pub messages_in: Number,
    /// PUBLISH packets of QoS 1 and 2 acknowledged.
    pub messages_acked: Number,
    /// Messages put on outboxes.
    pub messages_out: Number,
    /// Bytes of payloads received.
    pub payload_in: Number,
    /// Bytes of payloads put on outboxes.
    pub payload_out: Number,
    /// Connected MQTT clients.
    pub connections: Number,
    /// CONNECT packets whose client has proved who it is.
    pub connects: Number,
    /// What the broker core holds.
    pub core: Core,
    /// What clients were not allowed.
    pub rights: Rights,
    /// Durable commits.
    pub commits: Number,
    /// Sum of commit times.
    pub commit_us: Number,
    /// Commits up to each bound of [`COMMIT_BOUNDS_US`], not cumulative; the last one is above all bounds.
    pub commit_histogram: [Number; COMMIT_BOUNDS_US.len() + 1],
    /// Bytes of the database file.
    pub db_bytes: Number,
    /// The disk, or the store's share of it, is full: QoS 1 and 2 messages are not taken.
    pub disk_full: AtomicBool,
    /// Times that happened.
    pub disk_full_total: Number,
    /// Connections that are not read from until their messages can be taken.
    pub held: Number,
    /// Bytes that queues of sessions hold on disk where no lane holds them.
    pub queue_bytes: Number,
    /// Queue entries on disk.
    pub queue_entries: Number,
    /// Bytes that the device with the data folder wrote in the last 24 hours, or since the start.
    pub flash_written_day: Number,
    /// Days until as much is written as it is good for; 0 = not known.
    pub flash_life_days: Number,
    /// How long a commit waits for others now.
    pub commit_window_ms: Number,
    /// Messages in the quarantine.
    pub quarantine_messages: Number,
    /// Bytes of them.
    pub quarantine_bytes: Number,
    /// The clock cannot be right, or has not been set yet: records say so.
    pub clock_unsure: AtomicBool,
    /// Times the store was reopened after a failure.
    pub store_reopened: Number,
    /// The store takes changes.
    pub store_ready: AtomicBool,
    /// Damaged files put aside at start.
    pub salvaged_files: Number,
    /// When the certificate that this edge shows its cloud ends, seconds since 1970; 0 = there is none.
    pub certificate_until_s: Number,
    /// Times it was renewed.
    pub certificate_renewals: Number,
    /// Times that failed.
    pub certificate_failures: Number,
    /// Listener is open and the broker runs.
    pub serving: AtomicBool,
    /// Commands from the cloud.
    pub down: DownStatus,
    /// Times that broker, uplinks and store were built.
    pub lives: Number,
    settings: Mutex<pushed::State>,
    drops: Mutex<BTreeMap<&'static str, u64>>,
    lanes: Mutex<Vec<Arc<LaneStatus>>>,
}

impl Status {
    /// One commit took `time`.
    pub fn committed(&self, time: Duration) {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.commits.add(1);
        self.commit_us.add(us);
        let at = COMMIT_BOUNDS_US.iter().position(|bound| us <= *bound);
        if let Some(slot) = self.commit_histogram.get(at.unwrap_or(COMMIT_BOUNDS_US.len())) {
            slot.add(1);
        }
    }

    /// Messages were dropped; `why` is a metric label.
    pub fn dropped(&self, why: &'static str, n: u64) {
        if n > 0 {
            let mut drops = self.drops.lock().unwrap_or_else(PoisonError::into_inner);
            *drops.entry(why).or_default() += n;
        }
    }

    /// All drops by reason.
    pub fn drops(&self) -> BTreeMap<&'static str, u64> {
        self.drops.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How it stands with settings from the cloud.
    pub fn settings(&self) -> pushed::State {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on.
    pub fn set_settings(&self, state: pushed::State) {
        *self.settings.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    /// A store was opened with these lanes: others are no more, and none is connected yet.
    pub fn begin(&self, lanes: &[LaneHandle]) {
        let mut all = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|lane| lanes.iter().any(|kept| kept.status.name == lane.name));
        all.iter().for_each(|lane| lane.connected.store(false, Relaxed));
        self.down.connected.store(false, Relaxed);
        self.lives.add(1);
    }

    /// The lanes, once the store is open.
    pub fn lanes(&self) -> Vec<Arc<LaneStatus>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The status of a lane; made when it is new, kept when the store is opened again.
    pub fn lane(&self, name: &str) -> Arc<LaneStatus> {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lane) = lanes.iter().find(|lane| lane.name == name) {
            return lane.clone();
        }
        let lane = Arc::new(LaneStatus { name: name.to_owned(), ..LaneStatus::default() });
        lanes.push(lane.clone());
        lane
    }
}

/// What the broker core holds.
#[derive(Debug, Default)]
pub struct Core {
    /// Sessions, connected or not.
    pub sessions: Number,
    /// The most there were.
    pub sessions_maximum: Number,
    /// Sessions that ended because their time was over.
    pub expired: Number,
    /// Subscriptions.
    pub subscriptions: Number,
    /// Retained messages.
    pub retained: Number,
    /// Bytes of them.
    pub retained_bytes: Number,
    /// Messages of QoS 1 and 2 that wait for clients or are in flight to them.
    pub queued: Number,
    /// Bytes of them.
    pub queued_bytes: Number,
}

impl Core {
    /// Takes the core's counts, all but those of queues.
    pub fn set(&self, stats: &Stats) {
        let sessions = stats.sessions as u64;
        self.sessions.set(sessions);
        self.sessions_maximum.set(self.sessions_maximum.get().max(sessions));
        self.expired.set(stats.expired);
        self.subscriptions.set(stats.subscriptions as u64);
        self.retained.set(stats.retained as u64);
        self.retained_bytes.set(stats.retained_bytes as u64);
    }
}

/// What clients were not allowed, since the start.
#[derive(Debug, Default)]
pub struct Rights([Number; 7]);

impl Rights {
    /// Takes the broker's counts.
    pub fn set(&self, denied: &Denied) {
        let Denied { connects, publishes, subscriptions, revoked, deliveries, wills, delayed } =
            *denied;
        let counts = [connects, publishes, subscriptions, revoked, deliveries, wills, delayed];
        self.0.iter().zip(counts).for_each(|(number, count)| number.set(count));
    }

    /// With their metric labels.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let labels = ["connect", "publish", "subscribe", "revoked", "delivery", "will", "delayed"];
        labels.into_iter().zip(self.0.iter().map(Number::get))
    }
}

/// Numbers of commands from the cloud, since the process started.
#[derive(Debug, Default)]
pub struct DownStatus {
    /// The edge listens for them.
    pub listening: AtomicBool,
    /// The connection is up.
    pub connected: AtomicBool,
    /// Connections made.
    pub connects: Number,
    /// Messages received, settings and repeats included.
    pub received: Number,
    /// Repeats of what was on disk.
    pub duplicates: Number,
    /// Came when their time was over.
    pub expired: Number,
    /// Came under a topic that devices cannot get.
    pub unusable: Number,
    /// Not on disk yet, and so not acknowledged.
    pub waiting: Number,
}

/// One lane's numbers.
#[derive(Debug, Default)]
pub struct LaneStatus {
    /// Name.
    pub name: String,
    /// Batches that wait to be confirmed upstream.
    pub batches: Number,
    /// Messages in them.
    pub messages: Number,
    /// Bytes they count for.
    pub bytes: Number,
    /// When the oldest was made, wall ms; 0 = none.
    pub oldest_ms: AtomicI64,
    /// The acked mark: batch id.
    pub acked_id: Number,
    /// Messages confirmed upstream since the process started.
    pub synced: Number,
    /// Payload bytes sent upstream, resends included.
    pub sent_bytes: Number,
    /// Messages given up (budget, damage, refused upstream).
    pub given_up: Number,
    /// The budget is used up and the policy is to refuse.
    pub full: AtomicBool,
    /// The connection upstream is up.
    pub connected: AtomicBool,
    /// Connections made upstream.
    pub connects: Number,
    /// Batches that the cloud asked for again or that timed out.
    pub rewinds: Number,
    /// Messages confirmed upstream in a second, over about 10 s and over a minute.
    pub messages_per_s: [Number; 2],
    /// Bytes of batches confirmed upstream in a second, the same.
    pub bytes_per_s: [Number; 2],
    /// Seconds until nothing waits; negative = it does not become less.
    pub drain_s: AtomicI64,
    /// Sends what gathered during an outage.
    pub catching_up: AtomicBool,
}
