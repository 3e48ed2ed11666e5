//! One reading of the edge's numbers, as `/status` gives it and `tributary-edge status` and the page read it.
//!
//! Counters are since the start; who wants rates takes two readings. Change here: what people are shown. Not here: the
//! numbers (`status`), machines' metrics (`metrics`).

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::{Deserialize, Serialize};
use tributary_shared::recent::{self, Problem};

use super::{
    Shown, age_s, drain_s,
    metrics::{days_left, resident_bytes},
};
use crate::{
    pushed,
    status::{DownStatus, LaneStatus, Number},
};

/// The edge now.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Reading {
    /// Name of the edge.
    pub id: String,
    pub version: String,
    pub uptime_s: u64,
    /// It serves.
    pub ready: bool,
    pub connections: u64,
    pub sessions: u64,
    pub subscriptions: u64,
    pub retained: u64,
    /// PUBLISH packets from clients.
    pub received: u64,
    /// Of these, acknowledged: on disk.
    pub acked: u64,
    /// Messages to clients.
    pub sent: u64,
    pub dropped: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// Messages that wait for clients.
    pub queued: u64,
    pub queued_bytes: u64,
    /// Messages that wait for the cloud, in all lanes.
    pub buffered: u64,
    pub buffered_bytes: u64,
    pub synced: u64,
    pub given_up: u64,
    /// Messages that the cloud refused for good.
    pub quarantined: u64,
    pub quarantined_bytes: u64,
    /// All lanes are connected to the cloud.
    pub connected: bool,
    /// Days that the certificate shown to the cloud is good; `None`: there is none.
    pub certificate_days: Option<u64>,
    pub db_bytes: u64,
    /// On the disk with the data folder.
    pub disk_free_bytes: Option<u64>,
    pub memory_bytes: u64,
    /// By the device with the data folder, in the last 24 hours or since the start.
    pub flash_written_day_bytes: u64,
    /// 0 = not known.
    pub flash_life_days: u64,
    pub commit_window_ms: u64,
    pub commits: u64,
    /// Sum of their times.
    pub commit_us: u64,
    pub lanes: Vec<Lane>,
    /// From the cloud; `None`: it is not listened to.
    pub commands: Option<Commands>,
    /// From the cloud.
    pub settings: pushed::State,
    /// What is not well now.
    pub notes: Vec<String>,
    /// What was warned of, the latest first.
    pub problems: Vec<Problem>,
}

/// A lane now.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Lane {
    pub name: String,
    pub buffered: u64,
    pub batches: u64,
    pub bytes: u64,
    /// Seconds that the oldest message has waited.
    pub oldest_s: u64,
    pub synced: u64,
    pub given_up: u64,
    pub connected: bool,
    /// Publishers are refused.
    pub full: bool,
    /// Messages and bytes that the cloud confirmed in a second, over about 10 s and over a minute.
    pub messages_per_s: u64,
    pub messages_per_s_1m: u64,
    pub bytes_per_s: u64,
    pub bytes_per_s_1m: u64,
    /// Seconds until nothing waits, as things go now.
    pub drain_s: Option<u64>,
    /// Sends what gathered during an outage.
    pub catching_up: bool,
}

impl Reading {
    pub(crate) fn take(shown: &Shown) -> Self {
        let status = &shown.status;
        let lanes: Vec<Lane> = status.lanes().iter().map(|lane| Lane::take(lane)).collect();
        let total = |number: fn(&Lane) -> u64| lanes.iter().map(number).sum();
        let (unfit, notes) = shown.complaints();
        let open = shown.open();
        let wire = |number: fn(&tributary_shared::connection::Counters) -> &AtomicU64| {
            open.as_ref().map_or(0, |(context, _)| number(&context.counters).load(Relaxed))
        };
        Self {
            id: shown.id.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_s: shown.started.elapsed().as_secs(),
            ready: unfit.is_empty(),
            connections: status.connections.get(),
            sessions: status.core.sessions.get(),
            subscriptions: status.core.subscriptions.get(),
            retained: status.core.retained.get(),
            received: status.messages_in.get(),
            acked: status.messages_acked.get(),
            sent: status.messages_out.get(),
            dropped: status.drops().values().sum(),
            bytes_in: wire(|counters| &counters.bytes_in),
            bytes_out: wire(|counters| &counters.bytes_out),
            queued: status.core.queued.get(),
            queued_bytes: status.core.queued_bytes.get(),
            buffered: total(|lane| lane.buffered),
            buffered_bytes: total(|lane| lane.bytes),
            synced: total(|lane| lane.synced),
            given_up: total(|lane| lane.given_up),
            quarantined: status.quarantine_messages.get(),
            quarantined_bytes: status.quarantine_bytes.get(),
            connected: !lanes.is_empty() && lanes.iter().all(|lane| lane.connected),
            certificate_days: Some(status.certificate_until_s.get())
                .filter(|until_s| *until_s > 0)
                .map(days_left),
            db_bytes: status.db_bytes.get(),
            disk_free_bytes: shown.disk_free(),
            memory_bytes: resident_bytes(),
            flash_written_day_bytes: status.flash_written_day.get(),
            flash_life_days: status.flash_life_days.get(),
            commit_window_ms: status.commit_window_ms.get(),
            commits: status.commits.get(),
            commit_us: status.commit_us.get(),
            lanes,
            settings: status.settings(),
            commands: status.down.listening.load(Relaxed).then(|| Commands::take(&status.down)),
            notes: unfit.into_iter().chain(notes).collect(),
            problems: recent::problems(),
        }
    }
}

/// Commands now.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Commands {
    pub connected: bool,
    pub received: u64,
    pub duplicates: u64,
    /// Came when their time was over.
    pub expired: u64,
    /// Not on disk yet.
    pub waiting: u64,
}

impl Commands {
    fn take(down: &DownStatus) -> Self {
        Self {
            connected: down.connected.load(Relaxed),
            received: down.received.get(),
            duplicates: down.duplicates.get(),
            expired: down.expired.get(),
            waiting: down.waiting.get(),
        }
    }
}

impl Lane {
    fn take(lane: &LaneStatus) -> Self {
        let [short, long] =
            [|[short, _]: &[Number; 2]| short.get(), |[_, long]: &[Number; 2]| long.get()];
        Self {
            name: lane.name.clone(),
            buffered: lane.messages.get(),
            batches: lane.batches.get(),
            bytes: lane.bytes.get(),
            oldest_s: age_s(lane),
            synced: lane.synced.get(),
            given_up: lane.given_up.get(),
            connected: lane.connected.load(Relaxed),
            full: lane.full.load(Relaxed),
            messages_per_s: short(&lane.messages_per_s),
            messages_per_s_1m: long(&lane.messages_per_s),
            bytes_per_s: short(&lane.bytes_per_s),
            bytes_per_s_1m: long(&lane.bytes_per_s),
            drain_s: drain_s(lane),
            catching_up: lane.catching_up.load(Relaxed),
        }
    }
}
