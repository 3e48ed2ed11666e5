//! Latencies in buckets of 1.6 % width: constant memory, exact enough for percentiles.

use serde_json::{Value, json};

const STEPS: usize = 64;
const BUCKETS: usize = STEPS * 40;

/// Nanoseconds.
#[derive(Debug)]
pub(crate) struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: vec![0; BUCKETS], count: 0, max: 0 }
    }
}

fn bucket(ns: u64) -> usize {
    let exponent = (ns | 63).ilog2() as usize - 5;
    let step = (ns >> exponent) as usize;
    (exponent * STEPS + step).min(BUCKETS - 1)
}

fn upper(bucket: usize) -> u64 {
    ((bucket % STEPS) as u64 + 1) << (bucket / STEPS)
}

impl Histogram {
    pub(crate) fn record(&mut self, ns: u64) {
        if let Some(count) = self.buckets.get_mut(bucket(ns)) {
            *count += 1;
        }
        self.count += 1;
        self.max = self.max.max(ns);
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
        self.count += other.count;
        self.max = self.max.max(other.max);
    }

    fn percentile(&self, share: f64) -> u64 {
        let wanted = (self.count as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return upper(index).min(self.max);
            }
        }
        self.max
    }

    /// Milliseconds; null when nothing was measured.
    pub(crate) fn summary(&self) -> Value {
        if self.count == 0 {
            return Value::Null;
        }
        let ms = |ns: u64| (ns as f64 / 1e3).round() / 1e3;
        json!({
            "p50": ms(self.percentile(0.5)),
            "p99": ms(self.percentile(0.99)),
            "p999": ms(self.percentile(0.999)),
            "max": ms(self.max),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_within_two_percent() {
        let mut histogram = Histogram::default();
        for ns in 1..=1_000_000u64 {
            histogram.record(ns);
        }
        for share in [0.5, 0.99, 0.999] {
            let exact = share * 1e6;
            let found = histogram.percentile(share) as f64;
            assert!((found - exact).abs() / exact < 0.02, "{share}: {found}");
        }
        assert_eq!(histogram.percentile(1.0), 1_000_000);
    }
}
