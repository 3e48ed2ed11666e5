//! The time, read in one place and handed to whoever decides: decisions themselves never look at a clock.

use std::time::{SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use crate::session::Now;

/// Reads both clocks. Cheap to copy; all copies count from the same start.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    started: Instant,
    /// Lasting time at the start; `None`: the wall clock is the lasting time.
    observed_ms: Option<i64>,
}

impl Clock {
    /// Starts counting.
    pub fn start() -> Self {
        Self { started: Instant::now(), observed_ms: None }
    }

    /// The same, with a lasting time that is `observed_ms` now and never jumps.
    #[must_use]
    pub fn observing(self, observed_ms: u64) -> Self {
        let elapsed = self.started.elapsed().as_millis() as i64;
        let now = i64::try_from(observed_ms).unwrap_or(i64::MAX);
        Self { observed_ms: Some(now.saturating_sub(elapsed)), ..self }
    }

    /// All at once. The monotonic one can be paused in tests (`tokio::time::pause`).
    pub fn now(&self) -> Now {
        let (mono_ms, wall_ms) = (self.started.elapsed().as_millis() as u64, wall_ms());
        let observed = |at: i64| at.saturating_add(mono_ms as i64);
        Now { mono_ms, wall_ms, lasting_ms: self.observed_ms.map_or(wall_ms, observed) }
    }

    /// When a monotonic time comes, for `tokio::time::sleep_until`.
    pub fn instant(&self, mono_ms: u64) -> Instant {
        self.started + std::time::Duration::from_millis(mono_ms)
    }
}

/// Wall clock, ms since 1970; negative before. May jump: never measure with it.
pub fn wall_ms() -> i64 {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(after) => after.as_millis() as i64,
        Err(before) => -(before.duration().as_millis() as i64),
    }
}

/// Waits for a wall clock time. A gateway's clock may jump by decades when it hears of the time, so it looks every hour.
pub async fn reach(wall: i64) {
    loop {
        let left = wall.saturating_sub(wall_ms());
        let Ok(left @ 1..) = u64::try_from(left) else { return };
        let left = std::time::Duration::from_millis(left);
        tokio::time::sleep(left.min(std::time::Duration::from_hours(1))).await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_wall_clock_time_is_waited_for() {
        reach(i64::MIN).await;
        reach(wall_ms() - 1).await;
        let soon = wall_ms() + 50;
        reach(soon).await;
        assert!(wall_ms() >= soon);
    }

    #[tokio::test(start_paused = true)]
    async fn monotonic_time_counts_from_the_start() {
        let clock = Clock::start();
        assert_eq!(clock.now().mono_ms, 0);
        tokio::time::advance(Duration::from_millis(1500)).await;
        assert_eq!(clock.now().mono_ms, 1500);
        tokio::time::sleep_until(clock.instant(2000)).await;
        assert_eq!(clock.now().mono_ms, 2000);
        let now = clock.now();
        assert!(now.wall_ms > 1_700_000_000_000);
        assert_eq!(now.lasting_ms, now.wall_ms);
        let clock = clock.observing(50);
        assert_eq!(clock.now().lasting_ms, 50);
        tokio::time::advance(Duration::from_millis(7)).await;
        assert_eq!(clock.now().lasting_ms, 57);
    }
}
