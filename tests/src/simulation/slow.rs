//! A disk that takes its time: what runs on it goes on only now and then. A crash in between finds work that is not done.
//!
//! In: one half of a store. Change here: how slow a disk is.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep};

use crate::random::Random;

/// A future that rests after each step.
pub(super) struct Slow {
    work: Pin<Box<dyn Future<Output = ()>>>,
    rest: Pin<Box<Sleep>>,
    longest_ms: usize,
    random: Random,
}

impl Slow {
    /// `work`, resting up to `longest_ms` each time.
    pub(super) fn new(
        work: impl Future<Output = ()> + 'static,
        longest_ms: usize,
        random: Random,
    ) -> Self {
        let rest = Box::pin(sleep(Duration::ZERO));
        Self { work: Box::pin(work), rest, longest_ms, random }
    }
}

impl Future for Slow {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if this.rest.as_mut().poll(context).is_pending() {
            return Poll::Pending;
        }
        if this.work.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        let rest = Duration::from_millis(1 + this.random.below(this.longest_ms) as u64);
        this.rest.as_mut().reset(Instant::now() + rest);
        // Registers the wake-up: what comes meanwhile waits for it.
        let _later = this.rest.as_mut().poll(context);
        Poll::Pending
    }
}
