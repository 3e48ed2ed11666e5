//! P1 and P2 at the worst moments: a process is killed as it enters its n-th write, sync or rename, from the first one of its start
//! on. What was acknowledged is in the cloud's log once and in order. Needs strace; else it says SKIP and why.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

use std::io::Write as _;

use tributary_tests::bridge::Plan;

/// Of the edge, and of the cloud. `scripts/prove points` has more.
const POINTS: [usize; 2] = [60, 20];

#[test]
fn a_death_at_any_write_or_sync_loses_repeats_and_reorders_nothing() {
    let [edge, cloud] = POINTS;
    match Plan::new(0, 0).with_points(edge, cloud).run() {
        Ok(outcome) => {
            assert_eq!(outcome.counted(), (edge + cloud) as u64);
            assert!(!outcome.is_broken(), "{outcome:?}");
        }
        // Not captured: what was left out must be seen.
        Err(why) => {
            let _ = writeln!(std::io::stderr(), "SKIP crash points: {why}");
        }
    }
}
