//! Gateways and a cloud under simulated crashes, cuts, partitions, old disks and cloned cards: what a device was promised is
//! in the cloud once and in order, and everything arrives once the faults stop. Wrong clouds and gateways are caught.
//!
//! Seeds run in `simulate`, a process each; `scripts/simulate FROM COUNT` runs more of them.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

use std::process::Command;

use serde_json::Value;

/// In `scripts/test`.
const SEEDS: u64 = 300;
/// Seeds within which each control must be caught.
const CONTROL_SEEDS: u64 = 12;
fn simulate(arguments: &[&str]) -> (bool, String) {
    let ran = Command::new(env!("CARGO_BIN_EXE_simulate")).args(arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&ran.stderr);
    (ran.status.success(), format!("{}{errors}", String::from_utf8_lossy(&ran.stdout)))
}

/// The last line of many seeds.
fn many(from: u64, count: u64, control: &[&str]) -> (Value, String) {
    let (from, count) = (from.to_string(), count.to_string());
    let (_, said) = simulate(&[&[from.as_str(), count.as_str()], control].concat());
    let summary = said.lines().rev().find_map(|line| serde_json::from_str(line).ok());
    (summary.unwrap_or_else(|| panic!("no summary: {said}")), said)
}

#[test]
fn what_a_device_was_promised_is_in_the_cloud_once_and_in_order() {
    let (summary, said) = many(1, SEEDS, &[]);
    assert_eq!(summary["failed"], 0, "{said}");
    // A run without messages or gaps would prove little.
    for some in ["acked", "declared"] {
        assert!(summary[some].as_u64() > Some(0), "no {some}: {summary}");
    }
}

#[test]
fn the_same_seed_does_the_same_again() {
    for seed in ["3", "4", "5"] {
        assert_eq!(simulate(&["one", seed]), simulate(&["one", seed]));
    }
}

#[test]
fn wrong_clouds_and_gateways_are_caught() {
    let (simple, said) = many(1, CONTROL_SEEDS, &["simple"]);
    assert_eq!(simple["failed"], 0, "the rule itself, in a simple cloud: {said}");
    for control in ["high-water", "no-gap-check", "early-ack"] {
        let (summary, _) = many(1, CONTROL_SEEDS, &[control]);
        let wrong = summary["lost"].as_u64().unwrap() + summary["duplicated"].as_u64().unwrap();
        assert!(wrong > 0, "{control} went unnoticed: {summary}");
    }
}
