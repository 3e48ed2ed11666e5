//! Slows down guessing: each failure is answered later than the one before, ten of one user from one address block that
//! pair for a minute, and so do a hundred of any users from one address.
//!
//! Pure: told of failures and times. Change here: how guessing is slowed. Not here: waiting (`identify`'s caller).

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use super::password::NAME_BYTES;

/// Failures of a user from an address before both are blocked.
const OF_A_USER: u32 = 10;
/// Failures from an address before it is blocked.
const OF_AN_ADDRESS: u32 = 100;
/// How long a block lasts, and how long a failure counts after the last one.
const BLOCK_MS: u64 = 60_000;
/// The first failure is answered after this; each further one twice as late, up to `LATEST`.
const FIRST: Duration = Duration::from_millis(100);
const LATEST: Duration = Duration::from_secs(5);
/// Pairs and addresses remembered.
const ENTRIES: usize = 8_192;

/// Whose failures are counted together; `None` as user: of all users.
type Key = (Option<IpAddr>, Option<String>);

/// What went wrong lately.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    failures: HashMap<Key, Failures>,
}

#[derive(Debug, Default)]
struct Failures {
    count: u32,
    last_ms: u64,
}

impl Throttle {
    /// No attempt is looked at now.
    pub(super) fn is_blocked(&self, address: Option<IpAddr>, user: &str, mono_ms: u64) -> bool {
        let (address, user) = (address.map(network), known(user));
        let over = |key: &Key, limit| {
            self.failures.get(key).is_some_and(|failures| {
                failures.count >= limit && mono_ms < failures.last_ms + BLOCK_MS
            })
        };
        over(&(address, Some(user.to_owned())), OF_A_USER)
            || (is_counted(address) && over(&(address, None), OF_AN_ADDRESS))
    }

    /// An attempt failed; how long to wait with the answer.
    pub(super) fn failed(&mut self, address: Option<IpAddr>, user: &str, mono_ms: u64) -> Duration {
        let (address, user) = (address.map(network), known(user));
        self.make_room(mono_ms);
        if is_counted(address) {
            self.count((address, None), mono_ms);
        }
        let count = self.count((address, Some(user.to_owned())), mono_ms);
        FIRST.saturating_mul(1 << count.saturating_sub(1).min(10)).min(LATEST)
    }

    /// The user is who it says: its failures are forgotten, those of its address are not.
    pub(super) fn succeeded(&mut self, address: Option<IpAddr>, user: &str) {
        if !self.failures.is_empty() {
            self.failures.remove(&(address.map(network), Some(known(user).to_owned())));
        }
    }

    fn count(&mut self, key: Key, mono_ms: u64) -> u32 {
        let failures = self.failures.entry(key).or_default();
        if mono_ms >= failures.last_ms + BLOCK_MS {
            failures.count = 0;
        }
        failures.count += 1;
        failures.last_ms = mono_ms;
        failures.count
    }

    /// For two more.
    fn make_room(&mut self, mono_ms: u64) {
        if self.failures.len() + 2 <= ENTRIES {
            return;
        }
        self.failures.retain(|_, failures| mono_ms < failures.last_ms + BLOCK_MS);
        if self.failures.len() + 2 > ENTRIES {
            // The least guilty half goes: those that guess most stay blocked.
            let mut counts: Vec<u32> = self.failures.values().map(|one| one.count).collect();
            counts.sort_unstable();
            let middle = counts.get(counts.len() / 2).copied().unwrap_or(0);
            self.failures.retain(|_, failures| failures.count > middle);
        }
    }
}

/// As much of a name as is remembered: nobody here has a longer one, and whoever fails chooses what it is called.
fn known(user: &str) -> &str {
    user.get(..user.floor_char_boundary(NAME_BYTES)).unwrap_or_default()
}

/// Programs on this machine share its address.
fn is_counted(address: Option<IpAddr>) -> bool {
    address.is_some_and(|address| !address.is_loopback())
}

/// An IPv4 address, an IPv6 network of 64 bits.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) if !address.is_loopback() => {
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)))
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Option<IpAddr> {
        text.parse().ok()
    }

    #[test]
    fn guessing_becomes_slow_and_then_impossible_for_a_minute() {
        let mut throttle = Throttle::default();
        let here = at("198.51.100.7");
        let waits: Vec<u128> =
            (0..10).map(|n| throttle.failed(here, "ann", n).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000, 5_000, 5_000]);
        assert!(throttle.is_blocked(here, "ann", 10));
        assert!(!throttle.is_blocked(here, "bob", 10));
        assert!(!throttle.is_blocked(at("198.51.100.8"), "ann", 10));
        assert!(!throttle.is_blocked(None, "ann", 10));
        assert!(throttle.is_blocked(here, "ann", 9 + BLOCK_MS - 1));
        assert!(!throttle.is_blocked(here, "ann", 9 + BLOCK_MS));
        assert_eq!(throttle.failed(here, "ann", 9 + BLOCK_MS), FIRST);
    }

    #[test]
    fn success_forgets_the_users_failures_but_not_the_addresss() {
        let mut throttle = Throttle::default();
        let here = at("2001:db8::1");
        for n in 0..9 {
            throttle.failed(here, "ann", n);
        }
        throttle.succeeded(here, "ann");
        assert_eq!(throttle.failed(here, "ann", 10), FIRST);
        for n in 0..90 {
            throttle.failed(at("2001:db8::2"), &format!("user {n}"), 20);
        }
        assert!(throttle.is_blocked(at("2001:db8::3"), "nobody yet", 21), "one network");
        assert!(!throttle.is_blocked(at("2001:db8:0:1::3"), "nobody yet", 21));
        for n in 0..200 {
            throttle.failed(at("127.0.0.1"), &format!("user {n}"), 30);
        }
        assert!(!throttle.is_blocked(at("127.0.0.1"), "other", 31));
    }

    #[test]
    fn what_is_remembered_is_bounded_and_the_blocked_stay_blocked() {
        let mut throttle = Throttle::default();
        for n in 0..10 {
            throttle.failed(at("10.0.0.1"), "ann", n);
        }
        for n in 0..20_000_u32 {
            let address = Some(IpAddr::V4(n.into()));
            throttle.failed(address, &n.to_string(), 100);
            assert!(throttle.failures.len() <= ENTRIES);
        }
        assert!(throttle.is_blocked(at("10.0.0.1"), "ann", 101));
        throttle.make_room(BLOCK_MS + 101);
    }

    #[test]
    fn a_long_name_is_remembered_cut() {
        let mut throttle = Throttle::default();
        let here = at("198.51.100.7");
        let long = "é".repeat(8_000);
        for n in 0..10 {
            throttle.failed(here, &format!("x{long}{n}"), n);
        }
        let remembered = |(_, user): &Key| user.as_ref().map_or(0, String::capacity);
        assert!(throttle.failures.keys().map(remembered).all(|bytes| bytes <= NAME_BYTES));
        assert!(throttle.is_blocked(here, &format!("x{long}"), 10));
        throttle.succeeded(here, &format!("x{long}"));
        assert!(!throttle.is_blocked(here, &format!("x{long}"), 10));
    }
}
