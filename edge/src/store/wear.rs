//! The wear governor: flash lasts for so many bytes written, so commits wait longer when a day's share is being used up.
//!
//! ```text
//! bytes the device wrote --> allowance: fills with the day's share, holds an hour of it
//! more than half full: `commit_window_ms`   below: longer, up to `commit_window_max_ms` when it is empty
//! ```
//! A commit costs the device some 10 KB however little is in it: the only thing to save is commits. Beyond the ceiling
//! nothing is done: acknowledgements do not wait for ever, and the metrics say so.
//!
//! In: what the device has written by now, the time. Out: the window. Pure but for [`Meter`].
//! Change here: how the window follows. Not here: waiting (`writer`).

use std::{
    collections::VecDeque,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

/// Of the day's share, what may be written at once.
const BURST: Duration = Duration::from_hours(1);

const DAY: Duration = Duration::from_hours(24);

/// What was written is kept by the hour for a day.
const HOURS: usize = 24;

/// Before so much was seen nothing is projected.
const SEEN_MIN: Duration = Duration::from_mins(10);

/// `/sys/block/*/stat` counts in these, whatever the device's own are.
const SECTOR: u64 = 512;

const GB: u64 = 1_000_000_000;

/// Decides how long a commit waits for others.
#[derive(Debug, Clone)]
pub(super) struct Governor {
    /// Bytes; 0 = off.
    per_day: u64,
    floor: Duration,
    ceiling: Duration,
    /// Bytes that may be written now.
    allowance: f64,
    last: Option<(Duration, u64)>,
    /// Bytes of each hour, the latest last.
    hours: VecDeque<u64>,
    hour: u64,
    seen: Duration,
}

impl Governor {
    pub(super) fn new(budget_gb_per_day: u64, floor: Duration, ceiling: Duration) -> Self {
        let per_day = budget_gb_per_day * GB;
        let ceiling = ceiling.max(floor);
        let mut governor = Self {
            per_day,
            floor,
            ceiling,
            allowance: 0.0,
            last: None,
            hours: VecDeque::from([0]),
            hour: 0,
            seen: Duration::ZERO,
        };
        governor.allowance = governor.most();
        governor
    }

    fn most(&self) -> f64 {
        self.per_day as f64 * BURST.as_secs_f64() / DAY.as_secs_f64()
    }

    /// At `now` since the start the device has written `total` bytes in its life.
    pub(super) fn wrote(&mut self, now: Duration, total: u64) {
        let (before, was) = self.last.unwrap_or((now, total));
        // A counter that went back belongs to another device, or to a new boot.
        let bytes = total.saturating_sub(was);
        let passed = now.saturating_sub(before);
        self.last = Some((now, total));
        self.seen += passed;
        let hour = now.as_secs() / 3600;
        for _ in 0..hour.saturating_sub(self.hour).min(HOURS as u64) {
            self.hours.push_back(0);
        }
        self.hour = hour;
        while self.hours.len() > HOURS {
            self.hours.pop_front();
        }
        if let Some(last) = self.hours.back_mut() {
            *last += bytes;
        }
        let share = self.per_day as f64 * passed.as_secs_f64() / DAY.as_secs_f64();
        // No deeper than it is high: an hour after a flood all is as before.
        let (low, high) = (-self.most(), self.most());
        self.allowance = (self.allowance + share - bytes as f64).clamp(low, high);
    }

    /// How long a commit waits for others.
    pub(super) fn window(&self) -> Duration {
        if self.per_day == 0 {
            return self.floor;
        }
        let half = self.most() / 2.0;
        let short = ((half - self.allowance) / half).clamp(0.0, 1.0);
        self.floor + self.ceiling.saturating_sub(self.floor).mul_f64(short)
    }

    /// Commits wait although nobody else is about to write.
    pub(super) fn holds_back(&self) -> bool {
        self.window() > self.floor
    }

    /// Bytes in the last 24 hours, or since the start.
    pub(super) fn written_day(&self) -> u64 {
        self.hours.iter().sum()
    }

    /// Days until `life_gb` more are written, if it goes on so; `None`: not known.
    pub(super) fn life_days(&self, life_gb: u64) -> Option<u64> {
        let written = self.written_day();
        if life_gb == 0 || written == 0 || self.seen < SEEN_MIN {
            return None;
        }
        let days = self.seen.min(DAY).as_secs_f64() / DAY.as_secs_f64();
        Some((life_gb as f64 * GB as f64 / (written as f64 / days)) as u64)
    }
}

/// Where the bytes that a device has written are read.
#[derive(Debug, Clone)]
pub(super) enum Meter {
    /// The partition of the data folder.
    Device(PathBuf),
    /// Where that has none of its own (overlay, network): what this process gave to be written.
    Process,
}

impl Meter {
    pub(super) fn of(folder: &Path) -> Self {
        let device = fs::metadata(folder).map_or(0, |about| about.dev());
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let path = PathBuf::from(format!("/sys/dev/block/{major}:{minor}/stat"));
        if path.exists() { Self::Device(path) } else { Self::Process }
    }

    /// Bytes so far; `None` where the system does not tell.
    pub(super) fn read(&self) -> Option<u64> {
        match self {
            Self::Device(path) => sectors(&fs::read_to_string(path).ok()?).map(|n| n * SECTOR),
            Self::Process => {
                let text = fs::read_to_string("/proc/self/io").ok()?;
                text.lines().find_map(|line| line.strip_prefix("write_bytes: ")?.parse().ok())
            }
        }
    }
}

/// Sectors written: the seventh number.
fn sectors(stat: &str) -> Option<u64> {
    stat.split_whitespace().nth(6)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn governor(gb: u64) -> Governor {
        Governor::new(gb, MS(5), MS(1000))
    }

    /// A trickle that commits as often as it may, 10 KB a commit, for `hours`; answers the bytes of the last hour.
    fn trickle(governor: &mut Governor, from: Duration, hours: u64, rate: u64) -> u64 {
        let (mut now, mut total) = (from, governor.last.map_or(0, |(_, total)| total));
        let end = from + Duration::from_hours(hours);
        let mut before = 0;
        while now < end {
            let second = now + Duration::from_secs(1);
            let window = governor.window().max(MS(1000 / rate));
            total += (1000 / window.as_millis().max(1) as u64).max(1) * 10_000;
            now = second;
            governor.wrote(now, total);
            if now + Duration::from_hours(1) <= end {
                before = total;
            }
        }
        total - before
    }

    #[test]
    fn a_trickle_is_brought_into_its_budget_and_stays_in_it() {
        let mut governor = governor(5);
        // 200 commits a second would be 173 GB a day.
        let hour = trickle(&mut governor, Duration::ZERO, 12, 200);
        let budget = 5 * GB / 24;
        assert!(hour <= budget * 11 / 10 && hour >= budget * 8 / 10, "{hour} of {budget}");
        assert!(governor.holds_back() && governor.window() < MS(1000));
    }

    #[test]
    fn what_the_ceiling_cannot_save_is_written_all_the_same() {
        let mut governor = Governor::new(1, MS(5), MS(100));
        trickle(&mut governor, Duration::ZERO, 3, 200);
        assert_eq!(governor.window(), MS(100));
    }

    #[test]
    fn the_window_relaxes_again_within_an_hour_and_a_half_of_quiet() {
        let mut governor = governor(2);
        trickle(&mut governor, Duration::ZERO, 1, 200);
        // A flood by somebody else on the same device.
        let total = governor.last.unwrap().1 + 50 * GB;
        governor.wrote(Duration::from_mins(61), total);
        assert_eq!(governor.window(), MS(1000));
        governor.wrote(Duration::from_mins(61 + 91), total);
        assert_eq!(governor.window(), MS(5));
        assert!(!governor.holds_back());
    }

    #[test]
    fn without_a_budget_the_window_is_as_set_and_a_few_commits_never_wait() {
        let mut off = governor(0);
        trickle(&mut off, Duration::ZERO, 1, 200);
        assert!(!off.holds_back());
        let mut few = governor(2);
        trickle(&mut few, Duration::ZERO, 24, 1);
        assert!(!few.holds_back(), "0.86 GB a day is within 2");
    }

    #[test]
    fn a_day_is_24_hours_and_life_is_projected_from_it() {
        let mut governor = governor(0);
        assert_eq!(governor.life_days(1000), None);
        for hour in 0..48_u64 {
            governor.wrote(Duration::from_hours(hour), hour * GB);
        }
        assert_eq!(governor.written_day(), 24 * GB);
        assert_eq!(governor.life_days(2400), Some(100));
        assert_eq!(governor.life_days(0), None);
        // The counter began anew.
        governor.wrote(Duration::from_hours(48), 5);
        assert_eq!(governor.written_day(), 23 * GB);
    }

    #[test]
    fn sectors_written_are_read_as_the_kernel_writes_them() {
        let stat = " 7321989   166563 272807002 11231947  4205433  2051114 864765992  4969565  0";
        assert_eq!(sectors(stat), Some(864_765_992));
        assert_eq!(sectors("1 2"), None);
    }
}
