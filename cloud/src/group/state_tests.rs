//! The rules of a group as tables: time is a number, answers are actions.

use bytes::Bytes;

use super::{
    exchange::{GroupError, Join, MemberRef, Sync},
    state::{Action, Limits, State, Ticket},
};

const LIMITS: Limits = Limits {
    members: 3,
    metadata_bytes: 100,
    session_timeout_min_ms: 10,
    session_timeout_max_ms: 10_000,
    initial_rebalance_delay_ms: 0,
};

fn member(id: &str) -> MemberRef {
    MemberRef { member_id: id.into(), instance_id: None }
}

fn fixed(id: &str, instance: &str) -> MemberRef {
    MemberRef { member_id: id.into(), instance_id: Some(instance.into()) }
}

fn join(member: MemberRef) -> Join {
    Join {
        member,
        session_timeout_ms: 100,
        rebalance_timeout_ms: 500,
        protocol_type: "consumer".into(),
        protocols: vec![("range".into(), Bytes::from_static(b"m"))],
        ..Join::default()
    }
}

/// A group under test; every ticket's answer is kept as one word.
struct Group {
    state: State,
    tickets: u64,
}

fn word(error: &GroupError) -> String {
    let text = format!("{error:?}");
    text.split([' ', '{', '(']).next().unwrap_or_default().to_owned()
}

/// `(ticket, "generation leader" or the error)`
fn told(actions: Vec<Action>) -> Vec<(u64, String)> {
    let told = actions.into_iter().filter_map(|action| match action {
        Action::Store => None,
        Action::Joined(Ticket(n), Ok(joined)) => {
            Some((n, format!("{} {}", joined.generation, joined.leader)))
        }
        Action::Synced(Ticket(n), Ok(synced)) => {
            Some((n, String::from_utf8_lossy(&synced.assignment).into_owned()))
        }
        Action::Joined(Ticket(n), Err(error)) | Action::Synced(Ticket(n), Err(error)) => {
            Some((n, word(&error)))
        }
    });
    told.collect()
}

impl Group {
    fn new(limits: Limits) -> Self {
        Self { state: State::new(limits), tickets: 0 }
    }

    fn ticket(&mut self) -> Ticket {
        self.tickets += 1;
        Ticket(self.tickets)
    }

    fn join(&mut self, now: u64, join: &Join, fresh: &str) -> Vec<(u64, String)> {
        let ticket = self.ticket();
        told(self.state.join(now, join, fresh.into(), ticket))
    }

    fn sync(
        &mut self,
        now: u64,
        member: MemberRef,
        generation: i32,
        shares: &[(&str, &'static str)],
    ) -> Vec<(u64, String)> {
        let assignments =
            shares.iter().map(|(id, share)| ((*id).into(), Bytes::from_static(share.as_bytes())));
        let sync =
            Sync { member, generation, assignments: assignments.collect(), ..Sync::default() };
        let ticket = self.ticket();
        told(self.state.sync(now, sync, ticket))
    }

    fn tick(&mut self, now: u64) -> Vec<(u64, String)> {
        told(self.state.tick(now))
    }

    fn beat(&mut self, now: u64, member: &MemberRef, generation: i32) -> String {
        let beat = self.state.heartbeat(now, member, generation);
        beat.map_or_else(|error| word(&error), |()| "Ok".into())
    }

    /// `a` (leader) and `b` in generation 2, stable, at time 0. Tickets 1 to 5 are used.
    fn of_two() -> Self {
        let mut group = Self::new(LIMITS);
        assert_eq!(group.join(0, &join(member("")), "a"), [(1, "1 a".into())]);
        assert_eq!(group.join(0, &join(member("")), "b"), []);
        let both = group.join(0, &join(member("a")), "");
        assert_eq!(both, [(3, "2 a".into()), (2, "2 a".into())]);
        assert_eq!(group.sync(0, member("b"), 2, &[]), []);
        let shares = group.sync(0, member("a"), 2, &[("a", "A"), ("b", "B")]);
        assert_eq!(shares, [(5, "A".into()), (4, "B".into())]);
        group
    }
}

#[test]
fn a_rebalance_ends_when_all_have_rejoined_and_the_leader_shares_out() {
    let mut group = Group::of_two();
    assert_eq!(group.beat(1, &member("b"), 2), "Ok");
    assert_eq!(group.state.describe().state, "Stable");
}

#[test]
fn a_silent_member_is_out_after_its_session_and_the_rest_rebalance() {
    let mut group = Group::of_two();
    assert_eq!(group.beat(90, &member("a"), 2), "Ok");
    assert_eq!(group.state.next_deadline(), Some(100));
    assert_eq!(group.tick(100), []);
    assert_eq!(group.beat(101, &member("a"), 2), "RebalanceInProgress");
    assert_eq!(group.beat(101, &member("b"), 2), "UnknownMember");
    assert_eq!(group.join(102, &join(member("a")), ""), [(6, "3 a".into())]);
}

#[test]
fn who_does_not_rejoin_in_time_is_out() {
    let mut group = Group::of_two();
    assert_eq!(group.join(10, &join(member("a")), ""), []);
    // b lives, but does not come.
    for now in (20..=500).step_by(10) {
        assert_eq!(group.beat(now, &member("b"), 2), "RebalanceInProgress");
        assert_eq!(group.tick(now), []);
    }
    assert_eq!(group.tick(510), [(6, "3 a".into())]);
    assert_eq!(group.beat(511, &member("b"), 3), "UnknownMember");
}

#[test]
fn a_leader_that_never_shares_out_is_replaced() {
    let mut group = Group::new(LIMITS);
    group.join(0, &join(member("")), "a");
    group.join(0, &join(member("")), "b");
    group.join(0, &join(member("a")), "");
    group.sync(0, member("b"), 2, &[]);
    // The session of the silent leader ends before the time for shares does.
    assert_eq!(group.tick(100), [(4, "RebalanceInProgress".into())]);
    assert_eq!(group.join(101, &join(member("b")), ""), [(5, "3 b".into())]);
}

#[test]
fn a_new_member_is_told_its_id_and_the_promise_ends() {
    let mut group = Group::new(LIMITS);
    let asks = Join { id_required: true, ..join(member("")) };
    assert_eq!(group.join(0, &asks, "a"), [(1, "MemberIdRequired".into())]);
    assert_eq!(group.join(1, &join(member("a")), ""), [(2, "1 a".into())]);
    assert_eq!(group.join(2, &asks, "b"), [(3, "MemberIdRequired".into())]);
    assert_eq!(group.tick(102), []);
    assert_eq!(group.join(103, &join(member("b")), ""), [(4, "UnknownMember".into())]);
}

#[test]
fn the_first_members_wait_for_company() {
    let mut group = Group::new(Limits { initial_rebalance_delay_ms: 50, ..LIMITS });
    assert_eq!(group.join(0, &join(member("")), "a"), []);
    assert_eq!(group.join(40, &join(member("")), "b"), []);
    // Somebody came: the wait is repeated.
    assert_eq!(group.tick(50), []);
    assert_eq!(group.state.next_deadline(), Some(100));
    assert_eq!(group.tick(100), [(1, "1 a".into()), (2, "1 a".into())]);
}

#[test]
fn a_static_member_comes_back_without_a_rebalance_and_fences_its_old_self() {
    let mut group = Group::new(LIMITS);
    assert_eq!(group.join(0, &join(fixed("", "i")), "a"), [(1, "1 a".into())]);
    assert_eq!(group.sync(0, fixed("a", "i"), 1, &[("a", "A")]), [(2, "A".into())]);
    // Version 9 may be told that it leads and keeps the assignment; an older client is told that another leads.
    let again = Join { can_skip_assignment: true, ..join(fixed("", "i")) };
    assert_eq!(group.join(10, &again, "a2"), [(3, "1 a2".into())]);
    assert_eq!(group.sync(10, fixed("a2", "i"), 1, &[]), [(4, "A".into())]);
    assert_eq!(group.beat(11, &fixed("a", "i"), 1), "FencedInstance");
    assert_eq!(group.join(12, &join(fixed("", "i")), "a3"), [(5, "1 a2".into())]);
    assert_eq!(group.beat(13, &fixed("a3", "i"), 1), "Ok");
    // It leaves by its name.
    let (left, _) = group.state.leave(14, &fixed("", "i"));
    assert!(left.is_ok());
    assert!(group.state.is_empty());
    assert_eq!(group.state.describe().state, "Empty");
}

#[test]
fn a_group_that_was_stored_goes_on_and_gives_everyone_a_session() {
    let mut group = Group::of_two();
    let stored = group.state.to_stored(None);
    group.state = State::from_stored(LIMITS, 1_000, stored.clone());
    assert_eq!(group.state.to_stored(None), stored);
    assert_eq!(group.state.next_deadline(), Some(1_100));
    assert_eq!(group.beat(1_001, &member("b"), 2), "Ok");
    assert_eq!(group.beat(1_001, &member("b"), 1), "IllegalGeneration");
    assert_eq!(group.sync(1_001, member("b"), 2, &[]), [(6, "B".into())]);
    // A member that does not come back ends as ever.
    assert_eq!(group.tick(1_100), []);
    assert_eq!(group.join(1_100, &join(member("b")), ""), [(7, "3 b".into())]);
    // Between generations nobody's membership is sure.
    let stored = group.state.to_stored(None);
    let state = State::from_stored(LIMITS, 0, stored);
    assert_eq!((state.generation, state.members.len()), (3, 0));
    assert_eq!(state.describe().state, "Empty");
}

#[test]
fn answers_that_a_restart_must_know_come_after_the_store() {
    let stores = |actions: Vec<Action>| matches!(actions[..], [Action::Store, _]);
    let mut state = State::new(LIMITS);
    state.join(0, &join(fixed("", "i")), "a".into(), Ticket(1));
    let sync = Sync { member: fixed("a", "i"), generation: 1, ..Sync::default() };
    assert!(stores(state.sync(0, sync, Ticket(2))));
    assert!(stores(state.join(1, &join(fixed("", "i")), "a2".into(), Ticket(3))));
    // The owner of the new id is not fenced after it.
    let mut state = State::from_stored(LIMITS, 0, state.to_stored(None));
    assert!(state.heartbeat(1, &fixed("a2", "i"), 1).is_ok());
    assert!(matches!(state.heartbeat(1, &fixed("a", "i"), 1), Err(GroupError::FencedInstance)));
}

#[test]
fn what_does_not_fit_is_refused() {
    let cases: [(Join, &str); 5] = [
        (Join { session_timeout_ms: 9, ..join(member("")) }, "BadSessionTimeout"),
        (Join { protocol_type: "connect".into(), ..join(member("")) }, "InconsistentProtocol"),
        (
            Join { protocols: vec![("sticky".into(), Bytes::new())], ..join(member("")) },
            "InconsistentProtocol",
        ),
        (
            Join { protocols: vec![("range".into(), vec![0; 200].into())], ..join(member("")) },
            "MetadataTooLarge",
        ),
        (join(member("nobody")), "UnknownMember"),
    ];
    for (join, expected) in cases {
        let mut group = Group::of_two();
        assert_eq!(group.join(1, &join, "c"), [(6, expected.to_owned())]);
    }
    let mut group = Group::of_two();
    assert_eq!(group.join(1, &join(member("")), "c"), []);
    assert_eq!(group.join(1, &join(member("")), "d"), [(7, "Full".into())]);
}

#[test]
fn the_protocol_that_most_prefer_and_all_can_do_is_chosen() {
    let mut group = Group::new(Limits { initial_rebalance_delay_ms: 50, ..LIMITS });
    for (id, protocols) in [
        ("a", ["x", "range", "sticky"]),
        ("b", ["sticky", "range", "y"]),
        ("c", ["sticky", "range", "z"]),
    ] {
        let protocols = protocols.map(|name| (name.to_owned(), Bytes::new())).to_vec();
        group.join(0, &Join { protocols, ..join(member("")) }, id);
    }
    group.tick(50);
    group.tick(100);
    assert_eq!(group.state.protocol, "sticky");
}
