//! What the Kafka head counts.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use crate::status::Status;

/// Counters since the start.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    /// Open now.
    pub(super) connections: AtomicU64,
    pub(super) connections_total: AtomicU64,
    pub(super) requests_total: AtomicU64,
    /// Connections closed because of what the peer sent.
    pub(super) bad_requests_total: AtomicU64,
    /// Connections closed because there were too many.
    pub(super) refused_total: AtomicU64,
    /// Durably appended.
    pub(super) produced_records_total: AtomicU64,
    pub(super) produced_bytes_total: AtomicU64,
    pub(super) fetched_bytes_total: AtomicU64,
}

impl Numbers {
    pub(super) fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }

    pub(super) fn subtract(counter: &AtomicU64, n: u64) {
        counter.fetch_sub(n, Ordering::Relaxed);
    }
}

/// Shows the numbers on the status page.
pub(super) fn publish(status: &Status, numbers: &Arc<Numbers>) {
    let numbers = Arc::clone(numbers);
    status.add(move |page| {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        page.gauge(
            "tributary_kafka_connections",
            "Kafka connections open now",
            &[],
            get(&numbers.connections),
        );
        let counters = [
            ("tributary_kafka_connections_total", "Kafka connections", &numbers.connections_total),
            ("tributary_kafka_requests_total", "Kafka requests", &numbers.requests_total),
            (
                "tributary_kafka_bad_requests_total",
                "Kafka connections closed because of what came",
                &numbers.bad_requests_total,
            ),
            (
                "tributary_kafka_refused_total",
                "Kafka connections closed because there were too many",
                &numbers.refused_total,
            ),
            (
                "tributary_kafka_produced_records_total",
                "Records appended durably over Kafka",
                &numbers.produced_records_total,
            ),
            (
                "tributary_kafka_produced_bytes_total",
                "Bytes of batches appended durably over Kafka",
                &numbers.produced_bytes_total,
            ),
            (
                "tributary_kafka_fetched_bytes_total",
                "Bytes of batches sent to Kafka clients",
                &numbers.fetched_bytes_total,
            ),
        ];
        for (name, help, counter) in counters {
            page.counter(name, help, &[], get(counter));
        }
    });
}
