//! The MQTT broker's decisions, pure: no I/O, no clock, no task.
//!
//! Holds: every session, subscription, in-flight and retained message, and what must happen on each event.
//! In: [`Event`] and [`Now`]. Out: a [`Decision`]: what to store, and what to do once that is durable.
//! The host (edge `broker`, cloud `mqtt`) owns one `State` in one task: event in, decide, store, then act.
//! Change here: MQTT semantics. Not here: bytes (`mqtt`), sockets (`connection`), where things are stored (the host).

pub mod action;
pub mod event;
pub mod restored;
pub mod settings;

pub use action::{Change, Decision, Delivery, Effect, Outgoing, Queued};
pub use event::{ConnectionId, Event, Now, SessionId};
pub use restored::{Restored, RestoredQueue, RestoredSession};
pub use settings::{Fanout, Settings};

/// The broker.
#[derive(Debug)]
pub struct State {
    settings: Settings,
    fanout: Fanout,
}

/// Counts for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Sessions, connected or not.
    pub sessions: usize,
    /// Connected clients.
    pub connections: usize,
    /// Subscriptions.
    pub subscriptions: usize,
    /// Retained messages.
    pub retained: usize,
    /// Bytes of retained messages.
    pub retained_bytes: usize,
}

impl State {
    /// A broker that goes on from what was stored. Sessions without a connection end are taken as disconnected now.
    /// Call [`State::decide`] with [`Event::Tick`] first: it stores that.
    pub fn new(settings: Settings, fanout: Fanout, restored: Restored, now: Now) -> Self {
        let _ = (restored, now);
        Self { settings, fanout }
    }

    /// Decides on one event and appends to `out`, so that a host can store the outcome of many events in one transaction.
    /// `out.wake_ms` is always that of the latest decision.
    pub fn decide(&mut self, event: Event, now: Now, out: &mut Decision) {
        let _ = (event, now, out, self.fanout, &self.settings);
    }

    /// Counts.
    pub fn stats(&self) -> Stats {
        Stats::default()
    }
}
