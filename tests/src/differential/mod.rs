//! Two brokers get the same random operations; what their clients saw is compared packet by packet.
//!
//! ```text
//! seed -> plan (generate) -> played on each broker (play, link) -> what was seen -> judge, with the explained differences (rules)
//! ```
//! Holds: one file a step. In: a seed and two addresses. Out: a [`Verdict`]: equal, explained by named rules, or not explained.
//! No sleeps: a step is over when every client has had the answer to a PINGREQ sent after it.
//! Change here: which operations there are. Not here: who is right (`rules` says why each difference may be).

mod campaign;
mod generate;
mod invalid;
mod judge;
mod link;
pub mod mosquitto;
mod plan;
mod play;
pub mod rules;
mod seen;

pub use campaign::{Outcome, campaign};
pub use judge::{Verdict, judge};
pub use mosquitto::Mosquitto;
pub use plan::Plan;
pub use play::play;
pub use seen::Trace;
