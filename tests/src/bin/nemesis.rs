//! Long runs of the nemesis, with a line of JSON a round and a run, and a summary in words at the end.
//!
//! `nemesis runs NODES RUNS SECONDS [SEED]`: seeds from SEED on. `nemesis one NODES SECONDS SEED FAULT...`: only these faults, by name.
//! `nemesis control dropped|no-fence NODES`: a store that lies; what is seen of it.
//! Exit code 1 where a promise was not kept or no round was busy enough to count.

use std::process::ExitCode;

use tributary_tests::{
    nemesis::{Fault, Lie, Outcome, Plan, spread},
    say,
};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let good = match arguments.as_slice() {
        ["runs", nodes, runs, seconds, rest @ ..] => {
            let first = rest.first().map_or(u64::from(std::process::id()), |seed| number(seed));
            let seeds = first..first + number(runs);
            runs_of(seeds, |seed| Plan::new(number(nodes) as usize, number(seconds), seed))
        }
        ["one", nodes, seconds, seed, faults @ ..] => {
            let mut plan = Plan::new(number(nodes) as usize, number(seconds), number(seed));
            plan.faults = faults.iter().map(|name| fault(name)).collect();
            runs_of(plan.seed..plan.seed + 1, |_| plan.clone())
        }
        ["control", lie, nodes] => {
            let mut plan = Plan::new(number(nodes) as usize, 0, u64::from(std::process::id()));
            plan.lie = Some(match *lie {
                "dropped" => Lie::Dropped,
                "no-fence" => Lie::NoFence,
                other => panic!("{other}: dropped or no-fence"),
            });
            let outcome = plan.run();
            say(&outcome.as_ref().map_or_else(ToString::to_string, json));
            outcome.is_ok_and(|outcome| !outcome.verdict.is_broken())
        }
        _ => panic!("see the first lines of this program"),
    };
    ExitCode::from(u8::from(!good))
}

/// Runs them all. Whether everything was kept.
fn runs_of(seeds: std::ops::Range<u64>, plan: impl Fn(u64) -> Plan) -> bool {
    let mut outcomes: Vec<Outcome> = Vec::new();
    let mut failed = 0;
    for seed in seeds {
        match (Plan { verbose: true, ..plan(seed) }).run() {
            Ok(outcome) => {
                say(&json(&outcome));
                outcomes.push(outcome);
            }
            Err(why) => {
                say(&format!("seed {seed}: {why}"));
                failed += 1;
            }
        }
    }
    summary(&outcomes, failed);
    failed == 0 && outcomes.iter().all(|outcome| !outcome.is_broken() && outcome.counted() > 0)
}

fn summary(outcomes: &[Outcome], failed: u64) {
    let count = |of: fn(&Outcome) -> bool| outcomes.iter().filter(|outcome| of(outcome)).count();
    let sum = |of: fn(&Outcome) -> u64| outcomes.iter().map(of).sum::<u64>();
    say(&format!(
        "{} runs: {} with an anomaly, {} that did not drain, {failed} that could not go on, {} unusable (too slow)",
        outcomes.len() as u64 + failed,
        count(|outcome| outcome.verdict.is_broken()),
        count(|outcome| outcome.drained_s.is_none()),
        count(|outcome| outcome.counted() == 0),
    ));
    say(&format!(
        "{} faults that counted, {} too slow; {} messages acknowledged",
        sum(Outcome::counted),
        sum(|outcome| outcome.unusable),
        sum(|outcome| outcome.acked),
    ));
    for fault in ["kill", "drain"] {
        let times = outcomes.iter().filter_map(|outcome| outcome.resumed_ms.get(fault));
        let times: Vec<u64> = times.flatten().copied().collect();
        let (count, [middle, high, most]) = (times.len(), spread(times));
        say(&format!(
            "no acknowledged write after a {fault}, slowest lane: p50 {middle} ms, p99 {high} ms, max {most} ms ({count})"
        ));
    }
}

fn fault(name: &str) -> Fault {
    Fault::ALL
        .into_iter()
        .find(|fault| fault.name() == name)
        .unwrap_or_else(|| panic!("{name}: {}", Fault::ALL.map(Fault::name).join(", ")))
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or_else(|_| panic!("{text}: a number"))
}

fn json(outcome: &Outcome) -> String {
    serde_json::to_string(outcome).expect("json")
}
