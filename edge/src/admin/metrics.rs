//! The metrics page, Prometheus text format 0.0.4.
//!
//! Change here: names and help of metrics. Not here: the numbers (`status`).

use std::{fmt::Write as _, sync::atomic::Ordering::Relaxed};

use tributary_shared::{net::Gate, tasks};

use super::{Shown, age_s, drain_s};
use crate::status::{COMMIT_BOUNDS_US, LaneStatus, Number, Status};

/// A page that is being written.
struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "# HELP tributary_{name} {help}\n# TYPE tributary_{name} {kind}");
    }

    fn value(&mut self, name: &str, labels: &str, value: u64) {
        let _ = writeln!(self.0, "tributary_{name}{labels} {value}");
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.head(name, "counter", help);
        self.value(name, "", value);
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.head(name, "gauge", help);
        self.value(name, "", value);
    }
}

/// All numbers now.
pub(super) fn render(shown: &Shown) -> String {
    let mut page = Page(String::with_capacity(8 * 1024));
    let status = &shown.status;
    page.gauge("ready", "1 while the broker serves", u64::from(status.serving.load(Relaxed)));
    page.gauge("uptime_seconds", "Seconds since the start", shown.started.elapsed().as_secs());
    page.gauge("resident_bytes", "Resident memory", resident_bytes());
    certificate(&mut page, status);
    page.counter("task_panics_total", "Panics of tasks", tasks::panics());
    messages(&mut page, status);
    commits(&mut page, status);
    core(&mut page, status);
    if let Some(free) = shown.disk_free() {
        page.gauge("disk_free_bytes", "Bytes free on the disk with the data folder", free);
    }
    lanes(&mut page, status);
    commands(&mut page, status);
    connections(&mut page, shown);
    access(&mut page, shown);
    page.0
}

fn commands(page: &mut Page, status: &Status) {
    let down = &status.down;
    let connected = u64::from(down.connected.load(Relaxed));
    page.gauge("down_connected", "1 while the cloud is listened to for commands", connected);
    page.counter("down_connects_total", "Connections made for commands", down.connects.get());
    page.counter("down_received_total", "Messages from the cloud", down.received.get());
    let help = "Messages from the cloud that were on disk already";
    page.counter("down_duplicates_total", help, down.duplicates.get());
    let help = "Commands whose time was over when they came";
    page.counter("down_expired_total", help, down.expired.get());
    let help = "Messages from the cloud under topics that devices cannot get";
    page.counter("down_unusable_total", help, down.unusable.get());
    let help = "Messages from the cloud that are not on disk yet";
    page.gauge("down_waiting", help, down.waiting.get());
}

/// Of the way to the cloud.
fn certificate(page: &mut Page, status: &Status) {
    let until_s = status.certificate_until_s.get();
    if until_s == 0 {
        return;
    }
    page.gauge(
        "uplink_certificate_expires_seconds",
        "When the certificate shown to the cloud ends, seconds since 1970",
        until_s,
    );
    let days = days_left(until_s);
    page.gauge("uplink_certificate_days_left", "Days until then", days);
    page.gauge("uplink_certificate_ending", "1 in the last week", u64::from(days < LAST_DAYS));
    page.counter(
        "uplink_certificate_renewals_total",
        "Times it was renewed",
        status.certificate_renewals.get(),
    );
    page.counter(
        "uplink_certificate_failures_total",
        "Times it could not be renewed",
        status.certificate_failures.get(),
    );
}

/// Whole days until a time, seconds since 1970; none after it.
pub(super) fn days_left(until_s: u64) -> u64 {
    let now_s = u64::try_from(tributary_shared::clock::wall_ms() / 1_000).unwrap_or_default();
    until_s.saturating_sub(now_s) / 86_400
}

/// A certificate that was not renewed by then is a person's matter.
pub(super) const LAST_DAYS: u64 = 7;

fn messages(page: &mut Page, status: &Status) {
    page.counter("messages_in_total", "PUBLISH packets received", status.messages_in.get());
    page.counter(
        "messages_acked_total",
        "PUBLISH packets of QoS 1 and 2 acknowledged: they are durable",
        status.messages_acked.get(),
    );
    page.counter("messages_out_total", "Messages given to clients", status.messages_out.get());
    page.head("messages_dropped_total", "counter", "Messages dropped, by reason");
    for (why, n) in status.drops() {
        page.value("messages_dropped_total", &format!("{{why=\"{why}\"}}"), n);
    }
}

fn commits(page: &mut Page, status: &Status) {
    page.gauge("db_bytes", "Bytes of the database file", status.db_bytes.get());
    let full = u64::from(status.disk_full.load(Relaxed));
    page.gauge("disk_full", "1 while QoS 1 and 2 are refused for want of room", full);
    let unsure = u64::from(status.clock_unsure.load(Relaxed));
    page.gauge("clock_unsynced", "1 while the clock is not to be trusted: records say so", unsure);
    page.counter("disk_full_total", "Times the disk was full", status.disk_full_total.get());
    page.gauge("connections_held", "Publishers that are not read from", status.held.get());
    page.gauge(
        "queue_stored_bytes",
        "Bytes on disk that only queues of sessions need",
        status.queue_bytes.get(),
    );
    page.gauge("queue_stored_messages", "Queue entries on disk", status.queue_entries.get());
    page.gauge(
        "flash_written_day_bytes",
        "Bytes the device with the data folder wrote in the last 24 hours or since the start",
        status.flash_written_day.get(),
    );
    page.gauge(
        "flash_life_days",
        "Days until flash_life_gb are written, 0 = not known",
        status.flash_life_days.get(),
    );
    page.gauge(
        "commit_window_milliseconds",
        "How long a commit waits for others",
        status.commit_window_ms.get(),
    );
    let (messages, bytes) = (&status.quarantine_messages, &status.quarantine_bytes);
    page.gauge("quarantine_messages", "Messages that the cloud refused for good", messages.get());
    page.gauge("quarantine_bytes", "Bytes of them as they are kept", bytes.get());
    page.counter(
        "store_reopened_total",
        "Times the store failed and was opened again",
        status.store_reopened.get(),
    );
    page.counter("store_salvaged_total", "Damaged files put aside", status.salvaged_files.get());
    page.head("commit_seconds", "histogram", "Time of a durable commit");
    let mut sum = 0;
    for (bound, slot) in COMMIT_BOUNDS_US.iter().zip(&status.commit_histogram) {
        sum += slot.get();
        let seconds = *bound as f64 / 1e6;
        page.value("commit_seconds_bucket", &format!("{{le=\"{seconds}\"}}"), sum);
    }
    let commits = status.commits.get();
    page.value("commit_seconds_bucket", "{le=\"+Inf\"}", commits);
    let _ =
        writeln!(page.0, "tributary_commit_seconds_sum {}", status.commit_us.get() as f64 / 1e6);
    page.value("commit_seconds_count", "", commits);
}

fn core(page: &mut Page, status: &Status) {
    let core = &status.core;
    page.gauge("sessions", "Sessions, connected or not", core.sessions.get());
    page.counter("sessions_expired_total", "Sessions whose time was over", core.expired.get());
    page.gauge("subscriptions", "Subscriptions", core.subscriptions.get());
    page.gauge("retained_messages", "Retained messages", core.retained.get());
    page.gauge("retained_bytes", "Bytes of them", core.retained_bytes.get());
    page.gauge(
        "queued_messages",
        "Messages that wait for clients or are in flight",
        core.queued.get(),
    );
    page.gauge("queued_bytes", "Bytes of them", core.queued_bytes.get());
}

type Read = fn(&LaneStatus) -> u64;

/// Name, kind, help, number.
const LANE: [(&str, &str, &str, Read); 16] = [
    ("lane_batches", "gauge", "Batches that wait to be confirmed upstream", |l| l.batches.get()),
    ("lane_messages", "gauge", "Messages in them", |l| l.messages.get()),
    ("lane_bytes", "gauge", "Bytes on disk they count for", |l| l.bytes.get()),
    ("lane_oldest_seconds", "gauge", "Age of the oldest of them", |l| age_s(l)),
    ("lane_acked_mark", "gauge", "Row confirmed upstream", |l| l.acked_id.get() & ((1 << 48) - 1)),
    ("lane_full", "gauge", "1 while publishers are refused", |l| u64::from(l.full.load(Relaxed))),
    ("lane_synced_total", "counter", "Messages confirmed upstream", |l| l.synced.get()),
    ("lane_given_up_total", "counter", "Messages given up and declared upstream", |l| {
        l.given_up.get()
    }),
    ("lane_drain_messages_per_second", "gauge", "Messages confirmed upstream, over 10 s", |l| {
        l.messages_per_s.first().map_or(0, Number::get)
    }),
    ("lane_drain_bytes_per_second", "gauge", "Bytes confirmed upstream, over 10 s", |l| {
        l.bytes_per_s.first().map_or(0, Number::get)
    }),
    ("lane_catching_up", "gauge", "1 while what gathered during an outage is sent", |l| {
        u64::from(l.catching_up.load(Relaxed))
    }),
    ("uplink_connected", "gauge", "1 while connected to the cloud", |l| {
        u64::from(l.connected.load(Relaxed))
    }),
    ("uplink_connects_total", "counter", "Connections made to the cloud", |l| l.connects.get()),
    ("uplink_reconnects_total", "counter", "Connections after the first", |l| {
        l.connects.get().saturating_sub(1)
    }),
    ("uplink_sent_bytes_total", "counter", "Bytes of batches sent, resends included", |l| {
        l.sent_bytes.get()
    }),
    ("uplink_rewinds_total", "counter", "Times sending went back to the confirmed mark", |l| {
        l.rewinds.get()
    }),
];

fn lanes(page: &mut Page, status: &Status) {
    let lanes = status.lanes();
    for (name, kind, help, read) in LANE {
        page.head(name, kind, help);
        for lane in &lanes {
            page.value(name, &format!("{{lane=\"{}\"}}", lane.name), read(lane));
        }
    }
    let name = "lane_drain_seconds";
    page.head(name, "gauge", "Until nothing waits; missing while it does not become less");
    for lane in &lanes {
        if let Some(seconds) = drain_s(lane) {
            page.value(name, &format!("{{lane=\"{}\"}}", lane.name), seconds);
        }
    }
}

fn connections(page: &mut Page, shown: &Shown) {
    page.gauge("connections", "Connected MQTT clients", shown.status.connections.get());
    let Some((context, limits)) = shown.open() else { return };
    gate(page, &limits);
    let counters = &context.counters;
    for (name, help, value) in [
        ("mqtt_bytes_in_total", "Bytes read from clients", &counters.bytes_in),
        ("mqtt_bytes_out_total", "Bytes written to clients", &counters.bytes_out),
        (
            "mqtt_malformed_total",
            "Connections closed for a packet against the standard",
            &counters.malformed,
        ),
        (
            "mqtt_wrong_protocol_total",
            "Connections that did not speak MQTT",
            &counters.wrong_protocol,
        ),
        (
            "mqtt_handshake_timeouts_total",
            "Connections without a CONNECT in time",
            &counters.handshake_timeouts,
        ),
        (
            "mqtt_keep_alive_timeouts_total",
            "Connections silent for too long",
            &counters.keep_alive_timeouts,
        ),
        ("mqtt_stalled_total", "Connections whose client did not read", &counters.stalled),
    ] {
        page.counter(name, help, value.load(Relaxed));
    }
}

fn gate(page: &mut Page, gate: &Gate) {
    page.counter("accepted_total", "Connections accepted", gate.accepted.load(Relaxed));
    page.head("connections_refused_total", "counter", "Connections closed at once, by limit");
    for (limit, count) in [
        ("connections", &gate.refused_total),
        ("connections_per_address", &gate.refused_address),
        ("handshakes", &gate.refused_handshakes),
        ("connections_per_second", &gate.refused_rate),
    ] {
        let label = format!("{{limit=\"{limit}\"}}");
        page.value("connections_refused_total", &label, count.load(Relaxed));
    }
}

fn access(page: &mut Page, shown: &Shown) {
    let counters = &shown.access.identities.counters;
    page.counter("auth_accepted_total", "Clients let in", counters.accepted.load(Relaxed));
    let slow = counters.slow_checks.load(Relaxed);
    page.counter("auth_slow_checks_total", "Password checks that cost a person's work", slow);
    page.head("auth_refused_total", "counter", "Clients refused, by reason");
    for (why, count) in [
        ("wrong", &counters.wrong),
        ("missing", &counters.missing),
        ("client_id", &counters.client_id),
        ("blocked", &counters.blocked),
        ("busy", &counters.busy),
    ] {
        page.value("auth_refused_total", &format!("{{why=\"{why}\"}}"), count.load(Relaxed));
    }
    page.head("denied_total", "counter", "What clients were not allowed, by what it was");
    for (what, count) in shown.status.rights.counts() {
        page.value("denied_total", &format!("{{what=\"{what}\"}}"), count);
    }
    page.counter("access_reloads_total", "Changes of access taken", shown.access.reloads.get());
    let failed = shown.access.failed_reloads.get();
    page.counter("access_reload_failures_total", "Changes of access not taken", failed);
    tls(page, shown);
}

fn tls(page: &mut Page, shown: &Shown) {
    let listeners = &shown.access.listeners;
    let all = || listeners.iter().filter_map(|one| Some((&one.setting, one.tls.as_ref()?)));
    let name = "tls_handshakes_failed_total";
    page.head(name, "counter", "TLS handshakes that came to nothing, by listener");
    for (listener, tls) in all() {
        let failed = tls.failed.load(Relaxed);
        page.value(name, &format!("{{listener=\"{listener}\"}}"), failed);
    }
    let name = "tls_certificate_expires_seconds";
    page.head(name, "gauge", "When the listener's certificate ends, seconds since 1970");
    for (listener, tls) in all() {
        let expires = tls.expires().map_or(0, |at| at.as_secs());
        page.value(name, &format!("{{listener=\"{listener}\"}}"), expires);
    }
}

/// 0 where the system does not tell.
pub(crate) fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
