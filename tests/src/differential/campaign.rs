//! Many plans, several at a time, on the same two brokers.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    ops::Range,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tributary_shared::mqtt::Qos;

use super::{Plan, Verdict, judge, play};
use crate::Device;

/// What came of them.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The same in every packet.
    pub equal: u64,
    /// Different as rules explain.
    pub explained: u64,
    /// By rule: in how many plans it was needed.
    pub rules: BTreeMap<&'static str, u64>,
    /// Seed and story of each plan that nothing explains.
    pub unexplained: Vec<(u64, String)>,
}

/// Plays the plans of all seeds on both, `workers` at a time. Each has its own topics and clients, so they do not meet.
pub fn campaign(
    seeds: Range<u64>,
    workers: usize,
    ours: SocketAddr,
    theirs: SocketAddr,
) -> Outcome {
    for broker in [ours, theirs] {
        plant_roots(broker);
    }
    let next = AtomicU64::new(seeds.start);
    let outcome = Mutex::new(Outcome::default());
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let verdict = one(seed, ours, theirs);
                    outcome.lock().expect("lock").count(seed, verdict);
                }
            });
        }
    });
    outcome.into_inner().expect("lock")
}

/// mosquitto answers an UNSUBSCRIBE with 0x00 instead of 0x11 as long as nobody has ever subscribed below the first level of a
/// filter that begins with `$`: then it would depend on the other plans.
fn plant_roots(broker: SocketAddr) {
    let mut client = Device::connect(broker, "roots").expect("connected");
    client.subscribe("$x/nobody", Qos::AtMostOnce).expect("granted");
}

fn one(seed: u64, ours: SocketAddr, theirs: SocketAddr) -> Verdict {
    let plan = Plan::new(seed);
    let prefix = format!("k{seed:x}");
    match (play(&plan, ours, &prefix), play(&plan, theirs, &prefix)) {
        (Ok(a), Ok(b)) => judge(&plan, &a, &b),
        (Err(error), _) => Verdict::Unexplained(format!("seed {seed}: ours: {error}")),
        (_, Err(error)) => Verdict::Unexplained(format!("seed {seed}: theirs: {error}")),
    }
}

impl Outcome {
    fn count(&mut self, seed: u64, verdict: Verdict) {
        match verdict {
            Verdict::Equal => self.equal += 1,
            Verdict::Explained(rules) => {
                self.explained += 1;
                for rule in rules {
                    *self.rules.entry(rule.name).or_default() += 1;
                }
            }
            Verdict::Unexplained(text) => self.unexplained.push((seed, text)),
        }
    }
}
