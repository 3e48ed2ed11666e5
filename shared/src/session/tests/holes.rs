//! What went wrong in other brokers when connections of one client crossed each other, or when a session ended.

use std::collections::BTreeSet;

use super::world::*;
use crate::{
    mqtt::packet::{Ack, Connect, Packet, Reason},
    session::Fanout,
};

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

const FILTERS: [&str; 4] = ["t/#", "t/a", "$share/g/t/+", "+/b"];

/// Nothing of any session is left, in memory or in the store.
#[track_caller]
fn is_empty(w: &World) {
    let stats = w.state.stats();
    assert_eq!((stats.sessions, stats.connections, stats.subscriptions), (0, 0, 0));
    let store = &w.store;
    assert!(store.sessions.is_empty() && store.subscriptions.is_empty());
    assert!(store.queue.is_empty() && store.received.is_empty());
}

/// NanoMQ CVE-2026-22040, CVE-2025-59946: a takeover met a publish or an unsubscribe of the connection that it ended.
#[test]
fn takeovers_amid_publishes_and_subscriptions_leave_nothing_behind() {
    for (seed, fanout) in (0..40).map(|n| (n, [Fanout::AtOnce, Fanout::FromLog][n as usize % 2])) {
        let mut random = Random(seed);
        let mut w = World::new(crate::session::Settings::default(), fanout);
        // Also those that were taken over or are gone: their packets may still be on the way.
        let mut all: Vec<Client> = Vec::new();
        let mut closed = BTreeSet::new();
        for _ in 0..400 {
            let any = all.len().saturating_sub(6) + random.below(6);
            let client = all.get(any).copied();
            match (random.below(12), client) {
                (0 | 1, _) | (_, None) => {
                    let name = random.of(&["c1", "c2", "c3"]);
                    let connect = match random.below(4) {
                        0 => v5(name),
                        1 => v311(name, random.below(2) == 0),
                        2 => Connect { clean_start: true, ..v5_kept(name) },
                        _ => v5_kept(name),
                    };
                    let will = (random.below(3) == 0).then(|| will("t/will", 5));
                    all.push(w.connect(Connect { will, ..connect }));
                }
                (2 | 3, Some(client)) => {
                    w.subscribe(client, random.of(&FILTERS), random.of(&[Q0, Q1, Q2]));
                }
                (4, Some(client)) => w.unsubscribe(client, &[random.of(&FILTERS)]),
                (5..=7, Some(client)) => {
                    let (qos, packet) = (random.of(&[Q0, Q1, Q2]), 1 + random.below(5) as u16);
                    w.publish(client, publish(random.of(&["t/a", "t/b"]), "m", qos, packet));
                }
                (8, Some(client)) => {
                    let ack =
                        random
                            .of(&[Packet::PubAck, Packet::PubRec, Packet::PubComp, Packet::PubRel]
                                as &[fn(Ack) -> Packet]);
                    w.ack(client, ack, 1 + random.below(5) as u16);
                }
                (9, Some(client)) => w.disconnect(client, Reason::SUCCESS, None),
                (10, Some(client)) => w.cut(client),
                (_, Some(_)) => w.pass(random.below(10) as u64),
            }
            assert!(w.state.stats().connections <= 3 && w.state.stats().sessions <= 3);
            for client in &all {
                let got = w.take(*client);
                assert!(got.is_empty() || !closed.contains(client), "after its end: {got:?}");
                if got.iter().any(|line| line.starts_with("closed")) {
                    assert!(got.last().is_some_and(|line| line.starts_with("closed")), "{got:?}");
                    closed.insert(*client);
                }
            }
        }
        for client in all {
            w.cut(client);
        }
        w.pass(100_000);
        is_empty(&w);
    }
}

/// FlashMQ CVE-2025-62723: what waited for a session stayed in memory and on disk when the session was over.
#[test]
fn nothing_of_an_expired_session_is_left() {
    for restart in [false, true] {
        let mut w = world();
        let kept = Connect { session_expiry: Some(60), ..v5_kept("kept") };
        let kept = w.join_subscribed(kept, "t/#", Q2);
        w.subscribe(kept, "$share/g/s/#", Q1);
        w.publish(kept, publish("other", "m", Q2, 7));
        w.cut(kept);
        let publisher = w.join(v5("p"));
        for n in 1..=500 {
            w.publish(publisher, publish("t/a", &"x".repeat(1_000), Q1, n));
            w.publish(publisher, publish("s/a", "m", Q1, n));
        }
        assert_eq!((w.store.queue.len(), w.store.received.len()), (1_000, 1));
        w.disconnect(publisher, Reason::SUCCESS, None);
        if restart {
            w.restart();
        }
        w.pass(59);
        assert_eq!(w.store.queue.len(), 1_000, "not before its time");
        w.pass(2);
        is_empty(&w);
    }
}
