//! Power cuts under load: what the edge acknowledged is in the cloud's log exactly once, in its queues, and its sessions, retained
//! messages and QoS 2 states are as they were; and an edge whose log is not synced is caught by the same tests.
//!
//! `scripts/prove` cuts more often. Needs root, loop devices and ext4; else it says SKIP and why.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

use std::io::Write as _;

use tributary_tests::{
    bridge::Plan,
    outage::{Broker, Fault, Outage, Outcome},
};

/// Through the bridge, in `scripts/test`.
const CUTS: usize = 60;
/// Of one edge, its sessions and queues.
const EDGE_CUTS: usize = 10;
/// An edge that loses must be caught within so many.
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
fn what_was_acknowledged_before_a_power_cut_reaches_every_reader_once() {
    match Plan::new(0, CUTS).run() {
        Ok(outcome) => {
            note(&format!("bridge: {outcome:?}"));
            assert!(!outcome.is_broken() && outcome.counted() == CUTS as u64, "{outcome:?}");
        }
        Err(why) => note(&format!("SKIP power cuts: {why}")),
    }
}

#[test]
fn the_bridge_of_an_edge_whose_log_is_not_synced_is_caught() {
    let plan = Plan { lying: true, until: Some(|verdict| verdict.lost), ..Plan::new(0, CONTROL) };
    match plan.run() {
        Ok(outcome) => {
            note(&format!("bridge, control: {outcome:?}"));
            assert!(outcome.verdict.lost > 0, "{outcome:?}");
        }
        Err(why) => note(&format!("SKIP power cuts: {why}")),
    }
}

#[test]
fn sessions_queues_and_retained_messages_survive_power_cuts() {
    let (broker, fault) = (Broker::Edge(Vec::new()), Fault::PowerCut);
    let outage = Outage { broker, fault, rounds: EDGE_CUTS, until_loss: false, with_cloud: true };
    if let Some(outcome) = run(&outage) {
        assert!(!outcome.is_broken(), "{outcome:?}");
    }
}

#[test]
fn the_queues_of_an_edge_whose_log_is_not_synced_are_caught() {
    let (broker, fault) = (Broker::LyingEdge, Fault::PowerCut);
    let outage = Outage { broker, fault, rounds: CONTROL, until_loss: true, with_cloud: false };
    if let Some(outcome) = run(&outage) {
        assert!(outcome.lost > 0 && outcome.rounds <= CONTROL, "{outcome:?}");
    }
}
