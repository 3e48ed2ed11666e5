//! The head's counters, written by its one task, read for `/metrics`.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tributary_shared::{connection::Counters, net::Gate, session::Stats};

use crate::status::Page;

/// Edges whose waiting commands are shown one by one.
const EDGES: usize = 10_000;

/// Counts since the start, and how things are now.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    /// Messages taken from clients.
    pub(super) received: AtomicU64,
    /// Messages put on clients' outboxes.
    pub(super) sent: AtomicU64,
    /// Records of the log looked at.
    pub(super) followed: AtomicU64,
    /// Times the head read its state back after the log failed.
    pub(super) restored: AtomicU64,
    stats: Mutex<Stats>,
    dropped: Mutex<BTreeMap<&'static str, u64>>,
    /// Edge -> messages; those with none are not in it.
    waiting: Mutex<BTreeMap<String, u64>>,
}

/// Adds one.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Numbers {
    /// A message was not delivered or not kept.
    pub(super) fn dropped(&self, why: &'static str) {
        *self.dropped.lock().unwrap_or_else(PoisonError::into_inner).entry(why).or_insert(0) += 1;
    }

    pub(super) fn set_stats(&self, stats: Stats) {
        *self.stats.lock().unwrap_or_else(PoisonError::into_inner) = stats;
    }

    /// What waits for edges now.
    pub(super) fn set_waiting(&self, waiting: impl Iterator<Item = (String, u64)>) {
        let waiting = waiting.filter(|(_, messages)| *messages > 0).take(EDGES).collect();
        *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = waiting;
    }

    /// Writes all of them.
    pub(super) fn write(&self, page: &mut Page) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        page.counter(
            "tributary_mqtt_received_total",
            "Messages taken from MQTT clients",
            &[],
            read(&self.received),
        );
        page.counter(
            "tributary_mqtt_sent_total",
            "Messages for MQTT clients",
            &[],
            read(&self.sent),
        );
        page.counter(
            "tributary_mqtt_followed_total",
            "Records of the log matched against subscriptions",
            &[],
            read(&self.followed),
        );
        page.counter(
            "tributary_mqtt_restored_total",
            "Times the MQTT head read its state back after the log failed",
            &[],
            read(&self.restored),
        );
        let stats = *self.stats.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, help, value) in [
            ("tributary_mqtt_sessions", "MQTT sessions, connected or not", stats.sessions),
            ("tributary_mqtt_connections", "MQTT clients connected", stats.connections),
            ("tributary_mqtt_subscriptions", "MQTT subscriptions", stats.subscriptions),
            ("tributary_mqtt_retained", "Retained messages", stats.retained),
            ("tributary_mqtt_retained_bytes", "Bytes of retained messages", stats.retained_bytes),
        ] {
            page.gauge(name, help, &[], value as u64);
        }
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        for (edge, messages) in waiting.iter() {
            page.gauge(
                "tributary_down_waiting",
                "Commands that wait for an edge or are in flight to it",
                &[("edge", edge)],
                *messages,
            );
        }
        let dropped = self.dropped.lock().unwrap_or_else(PoisonError::into_inner);
        for (why, number) in dropped.iter() {
            page.counter(
                "tributary_mqtt_dropped_total",
                "Messages not delivered or not kept",
                &[("why", why)],
                *number,
            );
        }
    }
}

/// Writes what the listener and its connections count, edges included.
pub(super) fn write_connections(counters: &Counters, gate: &Gate, page: &mut Page) {
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    for (direction, bytes, packets) in [
        ("in", &counters.bytes_in, &counters.packets_in),
        ("out", &counters.bytes_out, &counters.packets_out),
    ] {
        let labels = &[("direction", direction)];
        page.counter("tributary_mqtt_bytes_total", "Bytes of MQTT clients", labels, read(bytes));
        let help = "Packets of MQTT clients";
        page.counter("tributary_mqtt_packets_total", help, labels, read(packets));
    }
    for (why, counter) in [
        ("wrong_protocol", &counters.wrong_protocol),
        ("handshake_timeout", &counters.handshake_timeouts),
        ("malformed", &counters.malformed),
        ("keep_alive", &counters.keep_alive_timeouts),
        ("stalled", &counters.stalled),
        ("limit", &gate.refused_total),
        ("limit_per_address", &gate.refused_address),
        ("limit_handshakes", &gate.refused_handshakes),
    ] {
        page.counter(
            "tributary_mqtt_closed_total",
            "Connections of the MQTT listener that we closed",
            &[("why", why)],
            read(counter),
        );
    }
    page.counter(
        "tributary_mqtt_too_large_total",
        "Packets not sent because the client takes none of that size",
        &[],
        read(&counters.too_large),
    );
}
