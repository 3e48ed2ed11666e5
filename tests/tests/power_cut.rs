//! Power cuts under load: what the edge acknowledged is in its queues and in the cloud, sessions, retained messages and QoS 2
//! states are as they were, and a broker whose log is not synced is caught by the same test.
//!
//! `POWER_CUTS` says how many cuts (`scripts/power-cuts`). Needs root, loop devices and ext4; else it says SKIP and why.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

use std::io::Write as _;

use tributary_tests::outage::{Broker, Fault, Outage, Outcome};

/// In `scripts/test`.
const CUTS: usize = 20;
/// A broker that loses must be caught within so many.
const CONTROL: usize = 40;

/// Not captured: what was left out must be seen.
fn note(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn run(outage: &Outage) -> Option<Outcome> {
    match outage.run() {
        Ok(outcome) => {
            note(&format!("{:?}: {outcome:?}", outage.broker));
            Some(outcome)
        }
        Err(why) => {
            note(&format!("SKIP power cuts: {why}"));
            None
        }
    }
}

#[test]
fn nothing_acknowledged_is_lost_or_doubled_by_power_cuts() {
    #[expect(clippy::disallowed_methods, reason = "tests have no settings")]
    let rounds = std::env::var("POWER_CUTS").map_or(CUTS, |count| count.parse().expect("a number"));
    let broker = Broker::Edge(Vec::new());
    let fault = Fault::PowerCut;
    let outage = Outage { broker, fault, rounds, until_loss: false, with_cloud: true };
    if let Some(outcome) = run(&outage) {
        assert!(!outcome.is_broken(), "{outcome:?}");
    }
}

#[test]
fn a_log_that_is_not_synced_is_caught() {
    let broker = Broker::LyingEdge;
    let fault = Fault::PowerCut;
    let outage = Outage { broker, fault, rounds: CONTROL, until_loss: true, with_cloud: false };
    if let Some(outcome) = run(&outage) {
        assert!(outcome.lost > 0 && outcome.rounds <= CONTROL, "{outcome:?}");
    }
}
