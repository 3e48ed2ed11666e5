//! What the owner sends to one connection: never waits, and is bounded by both ends.
//!
//! Deliveries are bounded by the connection's credit ([`super::limits::CREDIT_BYTES`]); everything else answers something the
//! connection sent, and it stops reading its socket while [`Outbox::bytes`] is large.

use std::{
    mem,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::sync::Notify;

use super::Event;

/// See the module. Clones are the same outbox.
#[derive(Debug, Clone, Default)]
pub struct Outbox {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    events: Mutex<Vec<Event>>,
    bytes: AtomicUsize,
    wake: Notify,
    closed: std::sync::atomic::AtomicBool,
}

impl Outbox {
    /// Adds events in order and wakes the connection.
    pub fn send(&self, events: &mut Vec<Event>) {
        let size = events.iter().map(Event::size).sum();
        self.inner.bytes.fetch_add(size, Ordering::Relaxed);
        let mut waiting = self.inner.events.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.append(events);
        drop(waiting);
        self.inner.wake.notify_one();
    }

    /// All that waits.
    pub fn take(&self) -> Vec<Event> {
        let events =
            mem::take(&mut *self.inner.events.lock().unwrap_or_else(PoisonError::into_inner));
        let size = events.iter().map(Event::size).sum();
        self.inner.bytes.fetch_sub(size, Ordering::Relaxed);
        events
    }

    /// About how much waits.
    pub fn bytes(&self) -> usize {
        self.inner.bytes.load(Ordering::Relaxed)
    }

    /// Returns when something was sent since the last time.
    pub async fn wait(&self) {
        self.inner.wake.notified().await;
    }

    /// The virtual host is gone; nothing will be sent any more.
    pub fn close(&self) {
        self.inner.closed.store(true, Ordering::Release);
        self.inner.wake.notify_one();
    }

    /// See [`Outbox::close`].
    pub fn is_closed(&self) -> bool {
        self.inner.closed.load(Ordering::Acquire)
    }
}
