//! Nothing that was acknowledged is lost, doubled, reordered or seen in two ways, whatever happens to nodes and store; and the checker
//! that says so sees it when it does happen.

use tributary_tests::{
    nemesis::{Lie, Plan},
    say,
};

/// Of each run, without start and end.
const SECONDS: u64 = 20;

/// One run; each seed has another mix of faults.
#[track_caller]
fn clean(nodes: usize, seed: u64) {
    let outcome = Plan::new(nodes, SECONDS, seed).run().expect("a run");
    if outcome.counted() == 0 && !outcome.is_broken() {
        say(&format!(
            "SKIP nemesis, seed {seed}: this machine is too slow for 200 messages a second"
        ));
        return;
    }
    assert!(!outcome.is_broken(), "{outcome:#?}");
}

#[test]
fn three_nodes_keep_every_promise_through_faults() {
    // One after the other: a run wants the machine for itself.
    (1..=5).for_each(|seed| clean(3, seed));
}

#[test]
fn a_store_that_drops_what_it_acknowledged_is_caught() {
    let mut plan = Plan::new(3, 0, 99);
    plan.lie = Some(Lie::Dropped);
    let verdict = plan.run().expect("a run").verdict;
    assert!(verdict.lost > 0, "{verdict:?}");
}
