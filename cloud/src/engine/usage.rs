//! Requests to the store by shard and kind, and what they will come to in a month.
//!
//! In: SlateDB's counters. Out: [`Usage`], for metrics and pages. Not here: what a store charges (settings).

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde::Serialize;
use slatedb::instrumented_object_store_stats::REQUEST_COUNT;
use slatedb_common::metrics::{
    CounterFn, GaugeFn, HistogramFn, MetricsRecorder, NoopMetricsRecorder, UpDownCounterFn,
};

use super::{Settings, ShardId};

/// Of which a price is told.
const MONTH: Duration = Duration::from_hours(30 * 24);
/// A rate over less says nothing.
const LEAST: Duration = Duration::from_mins(1);

/// What one shard asked of the store since this process opened the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Which.
    pub shard: ShardId,
    /// Objects and parts of objects written.
    pub puts: u64,
    /// Objects read, in whole or in part, or looked for.
    pub gets: u64,
    /// Lists.
    pub lists: u64,
    /// Objects deleted.
    pub deletes: u64,
    /// What a month of requests at this rate comes to, cents.
    pub cents_a_month: u64,
}

/// Counts one shard's requests, over all its openings.
#[derive(Debug, Default)]
pub(super) struct Counts {
    puts: Arc<Count>,
    gets: Arc<Count>,
    lists: Arc<Count>,
    deletes: Arc<Count>,
}

#[derive(Debug, Default)]
struct Count(AtomicU64);

impl Count {
    fn so_far(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl CounterFn for Count {
    fn increment(&self, value: u64) {
        self.0.fetch_add(value, Ordering::Relaxed);
    }
}

impl Counts {
    pub(super) fn usage(&self, shard: ShardId, since: Duration, prices: &Settings) -> Usage {
        let (puts, gets) = (self.puts.so_far(), self.gets.so_far());
        let (lists, deletes) = (self.lists.so_far(), self.deletes.so_far());
        let cents_a_month = cents(puts + lists, gets, since, prices);
        Usage { shard, puts, gets, lists, deletes, cents_a_month }
    }
}

/// Lists are charged as writes, deleting is free.
fn cents(writes: u64, reads: u64, since: Duration, prices: &Settings) -> u64 {
    let per_million = u128::from(writes) * u128::from(prices.put_cents_per_million)
        + u128::from(reads) * u128::from(prices.get_cents_per_million);
    let month = per_million * MONTH.as_millis() / since.max(LEAST).as_millis();
    u64::try_from(month / 1_000_000).unwrap_or(u64::MAX)
}

impl MetricsRecorder for Counts {
    fn register_counter(
        &self,
        name: &str,
        description: &str,
        labels: &[(&str, &str)],
    ) -> Arc<dyn CounterFn> {
        let api = labels.iter().find(|(label, _)| *label == "api").map(|(_, api)| *api);
        match api.filter(|_| name == REQUEST_COUNT) {
            Some(api) if api.starts_with("list") => Arc::clone(&self.lists) as _,
            Some(api) if api.starts_with("get") || api == "head" => Arc::clone(&self.gets) as _,
            Some("delete") => Arc::clone(&self.deletes) as _,
            // `put`, and the parts of multipart uploads.
            Some(_) => Arc::clone(&self.puts) as _,
            None => NoopMetricsRecorder::new().register_counter(name, description, labels),
        }
    }

    fn register_gauge(
        &self,
        name: &str,
        description: &str,
        labels: &[(&str, &str)],
    ) -> Arc<dyn GaugeFn> {
        NoopMetricsRecorder::new().register_gauge(name, description, labels)
    }

    fn register_up_down_counter(
        &self,
        name: &str,
        description: &str,
        labels: &[(&str, &str)],
    ) -> Arc<dyn UpDownCounterFn> {
        NoopMetricsRecorder::new().register_up_down_counter(name, description, labels)
    }

    fn register_histogram(
        &self,
        name: &str,
        description: &str,
        labels: &[(&str, &str)],
        boundaries: &[f64],
    ) -> Arc<dyn HistogramFn> {
        NoopMetricsRecorder::new().register_histogram(name, description, labels, boundaries)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use slatedb::object_store::memory::InMemory;

    use super::*;
    use crate::engine::{Engine, Write, slate::SlateEngine};

    #[test]
    fn five_puts_a_second_come_to_sixty_five_dollars_a_month() {
        let hour = Duration::from_hours(1);
        assert_eq!(cents(5 * 3_600, 0, hour, &Settings::default()), 6_480);
        assert_eq!(cents(0, 5 * 3_600, hour, &Settings::default()), 518);
    }

    #[tokio::test]
    async fn each_flush_is_a_counted_put_of_its_shard() {
        let settings = Settings { shards: 2, flush_ms: 5, ..Settings::default() };
        let engine = SlateEngine::objects(Arc::new(InMemory::new()), &settings).await.unwrap();
        let shard = engine.open(ShardId(1)).await.unwrap();
        let of_shard = || engine.usage().into_iter().find(|of| of.shard == ShardId(1)).unwrap();
        let opened = of_shard();
        for n in 0..20_u8 {
            let write = Write::Put(Bytes::from(vec![b'T', n]), Bytes::from_static(b"x"));
            let commit = shard.write(vec![write]).await.unwrap();
            shard.durable(commit).await.unwrap();
        }
        assert!(of_shard().puts >= opened.puts + 20, "{:?} after {opened:?}", of_shard());
        assert!(opened.gets > 0);
        let other = engine.usage().into_iter().find(|of| of.shard == ShardId(0)).unwrap();
        assert_eq!((other.puts, other.gets, other.lists), (0, 0, 0));
    }
}
