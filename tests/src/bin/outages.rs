//! Kills or cuts the power of a broker under load, many times, and prints what was lost as one JSON line.
//!
//! `outages kill|cut COUNT [edge|lying-edge|mosquitto [LINE]]`: one broker, its sessions and queues; LINE goes into mosquitto's
//! settings. The edge is run without a cloud there; `tests/tests/power_cut.rs` has one.
//! `outages bridge KILLS CUTS [lying] [SEED]`: devices, edge, cloud and all readers; a line a round. `lying`: the edge's disk only says
//! that it synced.
//! `outages link TROUBLES KILLS [SEED]`: a link that is troubled all the time. `outages link-control D|O ROUNDS`: an edge that may
//! send twice, behind one that loses acknowledgements or swaps.
//! `outages odd ROUNDS`: old images of the disk, cloned cards, wrong clocks. `outages snapshot`: one memory twice.
//! `outages torn DISKS [lying]`: torn and reordered writes, by simulation; `lying`: syncs of SQLite's log count for nothing.
//! `outages points EDGE CLOUD`: so many system calls of each at which it is killed; likewise.
//! `outages outage MESSAGES`: an edge in 64 MiB takes so many while there is no cloud, is killed once, and drains.
//! Exit code 2 where the machine cannot do it, 1 where a promise was not kept.

use std::process::ExitCode;

use tributary_tests::{
    bridge::{Backlog, Odd, Plan, Torn, Trouble},
    outage::{Broker, Fault, Outage},
    say,
};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match arguments.as_slice() {
        ["bridge", kills, cuts, rest @ ..] => {
            let mut plan = Plan::new(number(kills), number(cuts));
            plan.verbose = true;
            let (lying, seed) = match rest {
                ["lying", seed @ ..] => (true, seed),
                seed => (false, seed),
            };
            plan.lying = lying;
            plan.until = lying.then_some(|verdict| verdict.lost);
            plan.seed = seed.first().map_or(plan.seed, |seed| number(seed) as u64);
            plan.run().map(|outcome| (json(&outcome), outcome.is_broken()))
        }
        ["link", troubles, kills, seed @ ..] => {
            let mut plan = Plan::bad_link(number(troubles), number(kills));
            plan.verbose = true;
            plan.seed = seed.first().map_or(plan.seed, |seed| number(seed) as u64);
            plan.run().map(|outcome| (json(&outcome), outcome.is_broken()))
        }
        ["link-control", letter @ ("D" | "O"), rounds] => {
            let rounds = number(rounds);
            let plan = if *letter == "D" {
                Plan::at_least_once(&[Trouble::AckLost], rounds, |verdict| verdict.duplicated)
            } else {
                Plan::at_least_once(&[Trouble::Swapped], rounds, |verdict| verdict.disordered)
            };
            plan.run().map(|outcome| (json(&outcome), outcome.is_broken()))
        }
        ["odd", rounds] => {
            let rounds = number(rounds);
            odd(rounds).map(|all| (json(&all), all.iter().any(|(_, one)| one.is_broken())))
        }
        ["snapshot"] => Odd::snapshot().map(|one| (json(&one), one.is_broken())),
        ["torn", disks, rest @ ..] => {
            let seed = u64::from(std::process::id());
            Torn::run(number(disks), *rest == ["lying"], seed)
                .map(|torn| (json(&torn), torn.is_broken()))
        }
        ["points", edge, cloud] => {
            let mut plan = Plan::new(0, 0).with_points(number(edge), number(cloud));
            plan.verbose = true;
            plan.run().map(|outcome| (json(&outcome), outcome.is_broken()))
        }
        ["outage", messages] => Backlog::new(number(messages) as u64)
            .run()
            .map(|outcome| (json(&outcome), outcome.is_broken())),
        [fault @ ("kill" | "cut"), count, rest @ ..] => broker(fault, number(count), rest)
            .run()
            .map(|outcome| (json(&outcome), outcome.is_broken())),
        _ => panic!("see the first lines of this program"),
    };
    match outcome {
        Ok((line, broken)) => {
            say(&line);
            ExitCode::from(u8::from(broken))
        }
        Err(why) => {
            say(&format!("SKIP {why}"));
            ExitCode::from(2)
        }
    }
}

fn odd(rounds: usize) -> Result<Vec<(&'static str, Odd)>, String> {
    let seed = u64::from(std::process::id());
    Ok(vec![
        ("restored", Odd::restored(rounds, seed)?),
        ("cloned", Odd::cloned(rounds)?),
        ("clock", Odd::wrong_clock(rounds)?),
    ])
}

fn broker(fault: &str, rounds: usize, rest: &[&str]) -> Outage {
    let broker = match rest {
        [] | ["edge"] => Broker::Edge(Vec::new()),
        ["lying-edge"] => Broker::LyingEdge,
        ["mosquitto", lines @ ..] => Broker::Mosquitto(lines.join("\n")),
        other => panic!("{other:?}: edge, lying-edge or mosquitto"),
    };
    let fault = if fault == "kill" { Fault::Kill } else { Fault::PowerCut };
    Outage { broker, fault, rounds, until_loss: false, with_cloud: false }
}

fn number(text: &str) -> usize {
    text.parse().unwrap_or_else(|_| panic!("{text}: a number"))
}

fn json(outcome: &impl serde::Serialize) -> String {
    serde_json::to_string(outcome).expect("json")
}
