//! Who owns which shard, in simulated clusters under faults: one owner at a time, never two who serve, all served again once the
//! faults end. Members without a lease, and a store that overwrites, are caught.
//!
//! `scripts/simulate cluster FROM COUNT` runs more seeds.

use tributary_tests::ownership::{Control, many};

/// In `scripts/test`.
const SEEDS: u64 = 300;
/// Seeds within which each control must be caught.
const CONTROL_SEEDS: u64 = 20;

#[test]
fn no_two_nodes_serve_a_shard_and_all_are_served_again() {
    let (totals, bad) = many(1, SEEDS, Control::None);
    assert!(bad.is_empty(), "{bad:#?}");
    // A run without faults or moves would prove little.
    assert!(totals.faults > 3_000 && totals.moves > 3_000, "{totals:?}");
}

#[test]
fn members_without_a_lease_and_a_store_that_overwrites_are_caught() {
    for control in [Control::NoLease, Control::Overwrite] {
        let (_, bad) = many(1, CONTROL_SEEDS, control);
        assert!(!bad.is_empty(), "{control:?} went unnoticed");
    }
}
