//! P1 and P2 under SIGKILL, through the whole bridge: what the edge acknowledged is in the cloud's log exactly once and in order,
//! and all readers agree, whoever is killed and whenever. (A kill says nothing about the disk: `power_cut`.)

use tributary_tests::bridge::Plan;

/// In `scripts/test`; `scripts/prove bridge` does more.
const KILLS: usize = 100;

#[test]
fn a_hundred_kills_of_edge_and_cloud_lose_repeat_and_reorder_nothing() {
    let outcome = Plan::new(KILLS, 0).run().expect("kills need nothing special");
    assert_eq!(outcome.counted(), KILLS as u64);
    assert!(!outcome.is_broken(), "{outcome:?}");
}
