//! How fast a lane drains, and since when it catches up. Pure.
//!
//! In: once a second what is confirmed and what waits. Out: rates, the time until nothing waits, lines for the log: one when
//! catching up begins, one every 10 s, later every minute, while it lasts, one at the end.
//! Change here: when a lane catches up. Not here: showing it (`admin`, `sys`, `command::status`).

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::sending::{BACKLOG, BACKLOG_S, Done, Waiting};

/// Between two looks.
pub(super) const EVERY: Duration = Duration::from_secs(1);

/// Looks that are remembered: a minute.
const LOOKS: usize = 61;

/// Looks back for the short average.
const SHORT: usize = 10;

/// A lane whose oldest message waits no longer than this has caught up.
const CAUGHT_UP_S: u64 = 2;

/// Between two lines of the log, at first and at last.
const LINE_FIRST: Duration = Duration::from_secs(10);
const LINE_LAST: Duration = Duration::from_mins(1);

/// What is confirmed in a second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Rate {
    pub(super) messages: u64,
    pub(super) bytes: u64,
}

/// A lane's progress now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Rates {
    /// Over about 10 s.
    pub(super) short: Rate,
    /// Over about a minute.
    pub(super) long: Rate,
    /// Seconds until nothing waits; `None`: it does not become less.
    pub(super) drain_s: Option<u64>,
    pub(super) catching_up: bool,
}

/// A line for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Line {
    Begins,
    Goes { done: Done, took: Duration },
    Ends { done: Done, took: Duration },
}

type Look = (Instant, Done, Waiting);

#[derive(Debug)]
struct CatchUp {
    since: Instant,
    from: Done,
    line: Instant,
    every: Duration,
}

/// What is remembered.
#[derive(Debug, Default)]
pub(super) struct Progress {
    looks: VecDeque<Look>,
    catch_up: Option<CatchUp>,
}

impl Progress {
    /// One look.
    pub(super) fn look(
        &mut self,
        now: Instant,
        done: Done,
        waiting: Waiting,
    ) -> (Rates, Option<Line>) {
        if self.looks.len() >= LOOKS {
            self.looks.pop_front();
        }
        self.looks.push_back((now, done, waiting));
        let line = self.catching_up(now, done, waiting);
        let rates = Rates {
            short: self.rate(SHORT),
            long: self.rate(LOOKS),
            drain_s: if waiting.messages == 0 { Some(0) } else { self.drain() },
            catching_up: self.catch_up.is_some(),
        };
        (rates, line)
    }

    /// There is no connection.
    pub(super) fn stop(&mut self) -> Rates {
        self.looks.clear();
        Rates { catching_up: self.catch_up.is_some(), ..Rates::default() }
    }

    /// Nothing is confirmed and nothing waits.
    pub(super) fn is_quiet(&self) -> bool {
        let first = self.looks.front().map(|(_, done, _)| *done);
        let quiet = |(_, done, waiting): &Look| waiting.messages == 0 && Some(*done) == first;
        self.looks.back().is_some_and(quiet)
    }

    fn back(&self, looks: usize) -> Option<(&Look, &Look)> {
        let last = self.looks.back()?;
        let first = self.looks.get(self.looks.len().saturating_sub(looks + 1))?;
        (last.0 > first.0).then_some((first, last))
    }

    fn rate(&self, looks: usize) -> Rate {
        let Some((first, last)) = self.back(looks) else { return Rate::default() };
        let seconds = (last.0 - first.0).as_secs_f64();
        let a_second = |was: u64, is: u64| (is.saturating_sub(was) as f64 / seconds).round() as u64;
        Rate {
            messages: a_second(first.1.messages, last.1.messages),
            bytes: a_second(first.1.bytes, last.1.bytes),
        }
    }

    fn drain(&self) -> Option<u64> {
        let (first, last) = self.back(SHORT)?;
        let less = first.2.messages.checked_sub(last.2.messages).filter(|less| *less > 0)?;
        let seconds = (last.0 - first.0).as_secs_f64();
        Some((last.2.messages as f64 * seconds / less as f64).ceil() as u64)
    }

    fn catching_up(&mut self, now: Instant, done: Done, waiting: Waiting) -> Option<Line> {
        let Some(catch_up) = &mut self.catch_up else {
            let begins = waiting.bytes >= BACKLOG && waiting.oldest_s >= BACKLOG_S;
            let line = now + LINE_FIRST;
            let new = CatchUp { since: now, from: done, line, every: LINE_FIRST };
            self.catch_up = begins.then_some(new);
            return begins.then_some(Line::Begins);
        };
        let took = now - catch_up.since;
        let from = catch_up.from;
        let done = Done {
            uploads: done.uploads - from.uploads,
            messages: done.messages - from.messages,
            bytes: done.bytes - from.bytes,
        };
        if waiting.messages == 0 || waiting.oldest_s <= CAUGHT_UP_S {
            self.catch_up = None;
            return Some(Line::Ends { done, took });
        }
        if now < catch_up.line {
            return None;
        }
        catch_up.every = (catch_up.every * 2).min(LINE_LAST);
        catch_up.line = now + catch_up.every;
        Some(Line::Goes { done, took })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backlog_is_announced_followed_and_reported() {
        let mut progress = Progress::default();
        let start = Instant::now();
        let mut lines = Vec::new();
        for second in 0..=100 {
            let left = 100 - second;
            let done = Done { uploads: second, messages: second * 1000, bytes: second * 50_000 };
            let waiting =
                Waiting { messages: left * 1000, bytes: left * 50_000, oldest_s: left * 10 };
            let (rates, line) = progress.look(start + EVERY * second as u32, done, waiting);
            lines.extend(line.map(|line| (second, line)));
            if second == 30 {
                let rate = Rate { messages: 1000, bytes: 50_000 };
                let all = Rates { short: rate, long: rate, drain_s: Some(70), catching_up: true };
                assert_eq!(rates, all);
            }
        }
        let seconds: Vec<_> = lines.iter().map(|(second, _)| *second).collect();
        assert_eq!(seconds, [0, 10, 30, 70, 100], "{lines:?}");
        let done = Done { uploads: 100, messages: 100_000, bytes: 5_000_000 };
        let took = Duration::from_secs(100);
        assert_eq!(lines.last(), Some(&(100, Line::Ends { done, took })));
        assert!(lines[0].1 == Line::Begins && !progress.is_quiet());
    }

    #[test]
    fn what_grows_has_no_time_to_drain_and_a_quiet_lane_is_let_alone() {
        let mut progress = Progress::default();
        let start = Instant::now();
        for second in 0..5 {
            let waiting = Waiting { messages: 10 + second, bytes: 500, oldest_s: 100 };
            let (rates, line) =
                progress.look(start + EVERY * second as u32, Done::default(), waiting);
            assert_eq!((rates.drain_s, line), (None, None));
        }
        assert!(!progress.is_quiet());
        for second in 5..70 {
            progress.look(start + EVERY * second, Done::default(), Waiting::default());
        }
        assert!(progress.is_quiet());
    }
}
