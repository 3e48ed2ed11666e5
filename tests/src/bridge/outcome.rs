//! What came of a run, as JSON and as one table with others. Not here: how the counts were made (`books`).

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;

use super::{Fault, Verdict};

/// A run's figures.
#[derive(Debug, Default, Serialize)]
pub struct Outcome {
    /// Of the moments of its faults.
    pub seed: u64,
    /// Rounds that counted, by fault.
    pub rounds: BTreeMap<String, u64>,
    /// Acknowledged before the faults, and a second in the slowest round that counted.
    pub acked: u64,
    /// See `acked`.
    pub slowest: u64,
    /// From the fault to `ready`, ms: median and longest.
    pub back_ms: [u64; 2],
    /// Connections that were troubled, by kind.
    pub troubles: BTreeMap<String, u64>,
    /// Of the crash points: those before the process was ready.
    pub while_starting: u64,
    /// Acknowledged from the first to the last moment.
    pub acked_in_all: u64,
    /// In the log at the end.
    pub messages: u64,
    /// QoS 2 sessions that were gone after a restart. Must be 0.
    pub sessions_lost: u64,
    /// What the readers saw.
    pub verdict: Verdict,
    /// Commands that the cloud acknowledged, and what their device got.
    pub commands: u64,
    /// See `commands`.
    pub down: Verdict,
    /// The last backlog and all reading at the end, and the whole run, seconds.
    pub drain_s: f64,
    /// See `drain_s`.
    pub took_s: f64,
    #[serde(skip)]
    back: Vec<u64>,
}

impl Outcome {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, slowest: u64::MAX, ..Self::default() }
    }

    pub(super) fn round(&mut self, fault: Fault, acked: u64, rate: f64, back: Duration) {
        *self.rounds.entry(fault.name().to_owned()).or_default() += 1;
        self.acked += acked;
        self.slowest = self.slowest.min(rate as u64);
        self.back.push(back.as_millis() as u64);
    }

    pub(super) fn finish(mut self, verdict: Verdict, drain: Duration, took: Duration) -> Self {
        self.back.sort_unstable();
        let median = self.back.get(self.back.len() / 2).copied().unwrap_or(0);
        self.back_ms = [median, self.back.last().copied().unwrap_or(0)];
        (self.verdict, self.drain_s, self.took_s) =
            (verdict, drain.as_secs_f64(), took.as_secs_f64());
        self
    }

    /// Rounds that counted.
    pub fn counted(&self) -> u64 {
        self.rounds.values().sum()
    }

    /// A promise was not kept.
    pub fn is_broken(&self) -> bool {
        self.verdict.is_broken() || self.down.is_broken() || self.sessions_lost > 0
    }
}
