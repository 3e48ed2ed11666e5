//! P2 for gateways in odd states: an old image of the disk put back, a cloned card, a clock ten years off.
//! What was acknowledged arrives once and in order, and the cloud says in words what is wrong with the gateway.

use tributary_tests::bridge::Odd;

/// `scripts/prove odd` does more.
const ROUNDS: usize = 3;

fn kept(odd: Result<Odd, String>) {
    let odd = odd.expect("needs a C compiler at most");
    assert!(!odd.is_broken() && odd.acked > 0, "{odd:?}");
}

#[test]
fn an_old_image_of_the_disk_brings_nothing_twice_and_hides_nothing_new() {
    kept(Odd::restored(ROUNDS, u64::from(std::process::id())));
}

#[test]
fn two_gateways_with_one_card_are_told_and_the_messages_of_both_arrive_once() {
    kept(Odd::cloned(ROUNDS));
}

#[test]
fn a_clock_ten_years_off_makes_no_message_too_old_and_repeats_none() {
    kept(Odd::wrong_clock(ROUNDS));
}
