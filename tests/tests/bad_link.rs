//! P2 over a bad link: connections cut in every state, answers lost or late, uploads delivered twice and out of order, a line that
//! lets single bytes through, one that swallows everything; on two lanes and on the way down. What was acknowledged arrives once
//! and in order. An edge that only promises "at least once" is caught on the same link by the same checker.

use tributary_tests::bridge::{Plan, Trouble};

/// Troubles that must have been met, and kills amid them. `scripts/prove link` does more.
const TROUBLES: usize = 36;
const KILLS: usize = 5;
/// An edge that repeats or reorders must be caught within so many rounds.
const CONTROL: usize = 40;

#[test]
fn a_link_that_cuts_swallows_doubles_and_delays_costs_and_repeats_no_message() {
    let outcome = Plan::bad_link(TROUBLES, KILLS).run().expect("a proxy needs nothing special");
    assert!(!outcome.is_broken(), "{outcome:?}");
    assert_eq!(outcome.counted(), (TROUBLES + KILLS) as u64, "{outcome:?}");
    // Chance may leave one out of so few.
    assert!(outcome.troubles.len() + 1 >= Trouble::ALL.len(), "{outcome:?}");
    assert!(outcome.commands > 0, "{outcome:?}");
}

#[test]
fn an_edge_that_sends_again_what_may_have_arrived_is_caught_as_doubling() {
    let plan = Plan::at_least_once(&[Trouble::AckLost], CONTROL, |verdict| verdict.duplicated);
    let outcome = plan.run().expect("a proxy needs nothing special");
    assert!(outcome.verdict.duplicated > 0, "{outcome:?}");
}

#[test]
fn an_edge_whose_messages_overtake_each_other_is_caught_as_reordering() {
    let plan = Plan::at_least_once(&[Trouble::Swapped], CONTROL, |verdict| verdict.disordered);
    let outcome = plan.run().expect("a proxy needs nothing special");
    assert!(outcome.verdict.disordered > 0, "{outcome:?}");
}
