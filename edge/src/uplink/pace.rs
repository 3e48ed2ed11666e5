//! How much may be under way: what the line carries is measured from the answers. Pure.
//!
//! ```text
//! rate   = the best of 10 s of: bytes confirmed between sending an upload and its answer / that time
//! window = 2 x rate x shortest time to an answer, at least 64 KiB, at most the setting
//! ```
//! More than that does not make a line faster, it only makes an alarm on another connection wait. While there is little to
//! send, the line is not measured: a slow source is not a slow line. The shortest time is measured again every 10 s with
//! little under way, because it may have grown.
//! Not here: a limit that was set (`share`).

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Bytes that may always be under way.
const FLOOR: usize = 64 * 1024;

/// What is measured is believed for so long.
const BELIEVED: Duration = Duration::from_secs(10);

/// One upload takes at most so much of the line's time.
const UPLOAD: Duration = Duration::from_millis(250);

/// Bytes of an upload on a line of which nothing is known, and at least on any.
const UNKNOWN: usize = 16 * 1024;
const SHORTEST: usize = 4 * 1024;

/// Measurements that are kept; of more, the lowest goes.
const SAMPLES: usize = 64;

/// When and on what state of the line an upload was sent.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Stamp {
    delivered: u64,
    at: Option<Instant>,
    /// There was little to send.
    idle: bool,
    /// There was little under way.
    calm: bool,
}

/// The line to the cloud.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// Bytes confirmed.
    delivered: u64,
    delivered_at: Option<Instant>,
    /// Of what was sent up to this total, there was little.
    idle_until: u64,
    /// Falling rates, in the order of their times.
    rates: VecDeque<(Instant, f64)>,
    round: Option<(Instant, Duration)>,
}

impl Line {
    /// An upload is sent while `under_way` bytes are.
    pub(super) fn sent(&mut self, under_way: usize, now: Instant) -> Stamp {
        let at = if under_way == 0 { now } else { self.delivered_at.unwrap_or(now) };
        Stamp {
            delivered: self.delivered,
            at: Some(at),
            idle: self.delivered < self.idle_until,
            calm: under_way <= FLOOR,
        }
    }

    /// There is nothing to send, and so many bytes are under way.
    pub(super) fn idle(&mut self, under_way: usize) {
        self.idle_until = self.delivered + under_way.max(1) as u64;
    }

    /// An upload that was `sent` is answered.
    pub(super) fn answered(&mut self, stamp: Stamp, sent: Instant, bytes: usize, now: Instant) {
        self.delivered += bytes as u64;
        self.delivered_at = Some(now);
        let round = now.saturating_duration_since(sent);
        let old = |at: Instant| now.saturating_duration_since(at) > BELIEVED;
        if self.round.is_none_or(|(at, least)| round <= least || (old(at) && stamp.calm)) {
            self.round = Some((now, round));
        }
        let Some(since) = stamp.at else { return };
        let time = now.saturating_duration_since(since).as_secs_f64().max(1e-6);
        let rate = (self.delivered - stamp.delivered) as f64 / time;
        if stamp.idle && self.rate().is_none_or(|best| rate < best) {
            return;
        }
        while self.rates.back().is_some_and(|(_, lower)| *lower <= rate)
            || self.rates.len() >= SAMPLES
        {
            self.rates.pop_back();
        }
        self.rates.push_back((now, rate));
        while self.rates.len() > 1 && self.rates.front().is_some_and(|(at, _)| old(*at)) {
            self.rates.pop_front();
        }
    }

    /// Bytes a second that the line carries, if that is known.
    pub(super) fn rate(&self) -> Option<f64> {
        self.rates.front().map(|(_, rate)| *rate)
    }

    /// Bytes that may be under way, at most `most`.
    pub(super) fn window(&self, most: usize, now: Instant) -> usize {
        let (Some(rate), Some((at, round))) = (self.rate(), self.round) else {
            return FLOOR.min(most);
        };
        if now.saturating_duration_since(at) > BELIEVED {
            return FLOOR.min(most);
        }
        ((2.0 * rate * round.as_secs_f64()) as usize).max(FLOOR).min(most)
    }

    /// Bytes of one upload; 0 in `limit`: no limit was set to the bytes a second.
    pub(super) fn upload_bytes(&self, limit: u64) -> usize {
        let part = |rate: f64| ((rate * UPLOAD.as_secs_f64()) as usize).max(SHORTEST);
        let measured = self.rate().map_or(UNKNOWN, part);
        if limit == 0 { measured } else { measured.min(part(limit as f64)) }
    }

    /// How long so many bytes take, with patience.
    pub(super) fn time(&self, bytes: usize, slowest: u64) -> Duration {
        let rate = self.rate().map_or(0.0, |rate| rate / 4.0).max(slowest as f64);
        Duration::from_secs_f64(bytes as f64 / rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Sends `bytes` an upload over a line of `rate` bytes a second and `round` there and back, as much as it allows, for
    /// `seconds`; gives the bytes that came there in the second half, and the window at the end.
    fn run(
        line: &mut Line,
        rate: f64,
        round: Duration,
        bytes: usize,
        seconds: u64,
    ) -> (u64, usize) {
        let start = Instant::now();
        let end = start + Duration::from_secs(seconds);
        let (mut now, mut free, mut came) = (start, start, 0);
        let mut under_way: VecDeque<(Instant, Instant, Stamp)> = VecDeque::new();
        while now < end {
            let mut waiting = under_way.len() * bytes;
            while waiting == 0 || waiting + bytes <= line.window(1 << 23, now) {
                let stamp = line.sent(waiting, now);
                free = free.max(now) + Duration::from_secs_f64(bytes as f64 / rate);
                under_way.push_back((now, free + round, stamp));
                waiting += bytes;
            }
            let (sent, at, stamp) = under_way.pop_front().unwrap();
            now = at;
            line.answered(stamp, sent, bytes, now);
            came += if now > start + (end - start) / 2 { bytes as u64 } else { 0 };
        }
        (came, line.window(1 << 23, now))
    }

    #[test]
    fn a_long_line_is_filled_and_not_more_than_twice() {
        for (rate, round) in [(12.5e6, 100 * MS), (1.25e6, 600 * MS), (12.5e6, MS)] {
            let (came, window) = run(&mut Line::default(), rate, round, 4096, 30);
            assert!(came as f64 > 0.85 * rate * 15.0, "{rate} {round:?}: {came}");
            let fits = rate * round.as_secs_f64();
            assert!((window as f64) < (fits * 2.6).max(200e3), "{rate} {round:?}: {window}");
        }
    }

    #[test]
    fn a_slow_line_has_little_under_way_and_short_uploads() {
        let mut line = Line::default();
        let (came, window) = run(&mut line, 16e3, 50 * MS, 4096, 60);
        assert!(came as f64 > 0.85 * 16e3 * 30.0, "{came}");
        assert!(window <= 256 * 1024, "{window}");
        assert!(line.upload_bytes(0) <= 5000, "{}", line.upload_bytes(0));
    }

    #[test]
    fn a_line_that_became_longer_is_measured_again() {
        let mut line = Line::default();
        run(&mut line, 12.5e6, 20 * MS, 16384, 30);
        let (came, _) = run(&mut line, 12.5e6, 200 * MS, 16384, 60);
        assert!(came as f64 > 0.7 * 12.5e6 * 30.0, "{came}");
    }

    #[test]
    fn a_slow_source_is_not_a_slow_line() {
        let mut line = Line::default();
        run(&mut line, 12.5e6, 20 * MS, 16384, 5);
        let now = Instant::now() + Duration::from_secs(5);
        for second in 0..60 {
            let now = now + Duration::from_secs(second);
            line.idle(0);
            let stamp = line.sent(0, now);
            line.answered(stamp, now, 100, now + 20 * MS);
        }
        assert!(line.rate().unwrap() > 6e6, "{:?}", line.rate());
        assert!(line.upload_bytes(0) > 1 << 20 && line.upload_bytes(40_000) == 10_000);
    }
}
