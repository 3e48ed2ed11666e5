//! What all producers and readers of a run share: the history, the clock of the run, and the word that it is over.
//!
//! Change here: what they share. Not here: what they do.

use std::{
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::{History, Timeline};

/// See the module.
#[derive(Debug)]
pub(super) struct Run {
    history: Mutex<History>,
    timeline: Mutex<Timeline>,
    began: Instant,
    /// Producers send nothing new.
    quiet: AtomicBool,
    /// Everybody ends.
    over: AtomicBool,
}

impl Run {
    pub(super) fn new() -> Self {
        Self {
            history: Mutex::default(),
            timeline: Mutex::default(),
            began: Instant::now(),
            quiet: AtomicBool::new(false),
            over: AtomicBool::new(false),
        }
    }

    pub(super) fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().expect("history")
    }

    pub(super) fn timeline(&self) -> MutexGuard<'_, Timeline> {
        self.timeline.lock().expect("timeline")
    }

    /// Since the run began.
    pub(super) fn now_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    /// Waits for a moment of the run.
    pub(super) fn sleep_until(&self, ms: u64) {
        std::thread::sleep(Duration::from_millis(ms.saturating_sub(self.now_ms())));
    }

    pub(super) fn begin(&self, source: &str) -> u32 {
        self.history().books().begin(source)
    }

    pub(super) fn sent(&self, source: &str, incarnation: u32, seq: u64) {
        self.history().books().sent(source, incarnation, seq);
    }

    pub(super) fn acked(&self, source: &str, incarnation: u32, seq: u64) {
        self.history().books().acked(source, incarnation, seq);
        self.timeline().acked(source, self.now_ms());
    }

    pub(super) fn quiet(&self) {
        self.quiet.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.quiet.load(Ordering::Relaxed)
    }

    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }
}
