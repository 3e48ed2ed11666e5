//! The MQTT broker's decisions, pure: no I/O, no clock, no task.
//!
//! Holds: every session, subscription, in-flight and retained message, and what must happen on each event.
//! In: [`Event`] and [`Now`]. Out: a [`Decision`]: what to store, and what to do once that is durable.
//! The host (edge `broker`, cloud `mqtt`) owns one `State` in one task: event in, decide, store, then act.
//! Change here: MQTT semantics. Not here: bytes (`mqtt`), sockets (`connection`), where things are stored (the host).

pub mod action;
pub mod event;

pub use action::{Change, Decision, Delivery, Effect, Outgoing, Queued};
pub use event::{ConnectionId, Event, Now, SessionId};
