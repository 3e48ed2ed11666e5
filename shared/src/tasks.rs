//! Tasks whose end is noticed: no work stops silently because its task panicked.
//!
//! Holds: [`critical`] and [`critical_thread`], whose death stops the process ([`failed`]); [`spawn`], for one of many,
//! whose panic is logged and counted ([`panics`]) and ends only itself. Change here: what a death means.
//! Not here: what tasks do, in which order they stop (each program's `app`).

use std::{
    future::Future,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use tokio::{sync::Notify, task::JoinHandle};
use tokio_util::sync::CancellationToken;

static PANICS: AtomicU64 = AtomicU64::new(0);
static FAILURE: OnceLock<Failure> = OnceLock::new();
static FAILED: Notify = Notify::const_new();

/// A critical task ended although nothing asked it to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("task `{task}` {}", if *panicked { "panicked" } else { "ended" })]
pub struct Failure {
    /// Its name.
    pub task: &'static str,
    /// By a panic, which was logged; else it returned before its stop token was cancelled.
    pub panicked: bool,
}

/// Starts a task that the process cannot do without. If it panics, or returns before `stop` is cancelled, that is
/// logged, `stop` is cancelled, and [`failed`] tells the program to end with an error.
pub fn critical<T: Send + 'static>(
    name: &'static str,
    stop: &CancellationToken,
    task: impl Future<Output = T> + Send + 'static,
) -> JoinHandle<T> {
    let guard = Guard { name, stop: Some(stop.clone()), returned: false };
    tokio::spawn(async move {
        let mut guard = guard;
        let result = task.await;
        guard.returned = true;
        result
    })
}

/// [`critical`] for a thread.
pub fn critical_thread<T: Send + 'static>(
    name: &'static str,
    stop: &CancellationToken,
    work: impl FnOnce() -> T + Send + 'static,
) -> std::io::Result<thread::JoinHandle<T>> {
    let guard = Guard { name, stop: Some(stop.clone()), returned: false };
    thread::Builder::new().name(name.to_owned()).spawn(move || {
        let mut guard = guard;
        let result = work();
        guard.returned = true;
        result
    })
}

/// Starts one of many tasks (a connection, a request): a panic is logged and counted and ends only this one.
pub fn spawn<T: Send + 'static>(
    name: &'static str,
    task: impl Future<Output = T> + Send + 'static,
) -> JoinHandle<T> {
    let guard = Guard { name, stop: None, returned: false };
    tokio::spawn(async move {
        let _guard = guard;
        task.await
    })
}

/// Waits for the first death of a critical task in this process.
pub async fn failed() -> Failure {
    loop {
        let told = FAILED.notified();
        if let Some(failure) = failure() {
            return failure;
        }
        told.await;
    }
}

/// The first death of a critical task in this process, if there was one.
pub fn failure() -> Option<Failure> {
    FAILURE.get().copied()
}

/// Panics of tasks since the start, for metrics.
pub fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

/// Looks at how its task ends.
struct Guard {
    name: &'static str,
    /// Of a critical task.
    stop: Option<CancellationToken>,
    returned: bool,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let panicked = thread::panicking();
        if panicked {
            PANICS.fetch_add(1, Ordering::Relaxed);
            tracing::error!(task = self.name, "task panicked");
        }
        // Neither returned nor panicked: it was aborted, or the runtime is going down.
        let Some(stop) = &self.stop else { return };
        if panicked || (self.returned && !stop.is_cancelled()) {
            let failure = Failure { task: self.name, panicked };
            tracing::error!("{failure}: stopping");
            let _ = FAILURE.set(failure);
            stop.cancel();
            FAILED.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // One test for all of it: a process remembers its first failure.
    #[tokio::test]
    async fn a_death_is_noticed_and_only_a_critical_one_stops_the_process() {
        let stop = CancellationToken::new();
        assert!(spawn("one of many", async { panic!("on purpose") }).await.is_err());
        assert_eq!(panics(), 1);
        assert_eq!(spawn("one of many", async { 7 }).await.unwrap(), 7);
        critical("aborted", &stop, std::future::pending::<()>()).abort();
        assert!(!stop.is_cancelled());

        let stopped = CancellationToken::new();
        stopped.cancel();
        critical("asked to stop", &stopped, async {}).await.unwrap();
        assert_eq!(failure(), None);

        let waiting = tokio::spawn(failed());
        critical_thread("writer", &stop, || {}).unwrap().join().unwrap();
        stop.cancelled().await;
        assert_eq!(waiting.await.unwrap(), Failure { task: "writer", panicked: false });

        let other = CancellationToken::new();
        assert!(critical("owner", &other, async { panic!("on purpose") }).await.is_err());
        assert!(other.is_cancelled());
        assert_eq!(failed().await.to_string(), "task `writer` ended", "the first one is kept");
        assert_eq!(panics(), 2);
    }
}
