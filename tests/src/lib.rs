//! The whole system under test: starts edges, clouds and clients on free ports in temporary folders.
//!
//! Holds: process handles that kill what they started, by id. Change here: how a part is started.
//! Not here: what is promised (`tests/`, one file a promise).

use std::io::Write as _;

pub mod bridge;
pub mod browser;
pub mod checker;
pub mod device;
pub mod differential;
pub mod kafka;
pub mod kafka_clients;
pub mod nemesis;
pub mod outage;
pub mod ownership;
pub mod process;
mod random;
pub mod s3;
pub mod simulation;

pub use checker::Checker;
pub use device::Device;
pub use process::{Cloud, Edge, http_get};
pub use random::Random;

/// Prints one line to stdout at once, past the test runner, which keeps what passing tests print to itself: what was skipped
/// is to be seen.
pub fn say(line: &str) {
    // A reader that has gone away misses it.
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}
