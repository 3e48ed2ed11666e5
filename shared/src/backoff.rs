//! How long to wait before the next attempt: decorrelated jitter, so that a thousand gateways that lost the same cloud do
//! not come back together.

use std::time::Duration;

/// The waits of one series of attempts: each random between the shortest and three times the last, up to the longest.
#[derive(Debug, Clone)]
pub struct Backoff {
    shortest: Duration,
    longest: Duration,
    last: Duration,
}

impl Backoff {
    /// A new series.
    pub fn new(shortest: Duration, longest: Duration) -> Self {
        Self { shortest, longest: longest.max(shortest), last: shortest }
    }

    /// The next wait.
    pub fn next_wait(&mut self) -> Duration {
        // Without randomness the wait is still right, only not spread.
        self.next_with(getrandom::u64().unwrap_or(u64::MAX / 2))
    }

    /// An attempt succeeded: the series starts again.
    pub fn reset(&mut self) {
        self.last = self.shortest;
    }

    fn next_with(&mut self, random: u64) -> Duration {
        let span = self.last.saturating_mul(3).saturating_sub(self.shortest);
        let part = random as f64 / u64::MAX as f64;
        self.last = (self.shortest + span.mul_f64(part)).min(self.longest);
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(100);
    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn waits_grow_to_the_longest_and_start_again_after_success() {
        let mut backoff = Backoff::new(SHORT, LONG);
        let waits: Vec<_> = (0..7).map(|_| backoff.next_with(u64::MAX).as_millis()).collect();
        assert_eq!(waits, [300, 900, 2700, 8100, 24300, 30000, 30000]);
        backoff.reset();
        assert_eq!(backoff.next_with(u64::MAX).as_millis(), 300);
        assert_eq!(backoff.next_with(0), SHORT, "never shorter");
    }

    #[test]
    fn waits_stay_within_bounds_and_differ() {
        let mut backoff = Backoff::new(SHORT, LONG);
        let waits: Vec<_> = (0..100).map(|_| backoff.next_wait()).collect();
        assert!(waits.iter().all(|wait| (SHORT..=LONG).contains(wait)));
        assert!(waits.iter().any(|wait| *wait != waits[0]));
    }
}
