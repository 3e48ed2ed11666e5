//! Kills or cuts the power of a broker under load, many times, and prints what was lost as one JSON line.
//!
//! `outages kill|cut COUNT [edge|lying-edge|mosquitto [LINE]]`: LINE goes into mosquitto's settings. Exit code 2 where the
//! machine cannot do it. The edge is always run without a cloud here; `tests/tests/power_cut.rs` has one.

use std::process::ExitCode;

use tributary_tests::{
    outage::{Broker, Fault, Outage},
    say,
};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let [fault, count, rest @ ..] = arguments.as_slice() else {
        panic!("see the first lines of this program")
    };
    let broker = match rest {
        [] | ["edge"] => Broker::Edge(Vec::new()),
        ["lying-edge"] => Broker::LyingEdge,
        ["mosquitto", lines @ ..] => Broker::Mosquitto(lines.join("\n")),
        other => panic!("{other:?}: edge, lying-edge or mosquitto"),
    };
    let fault = match *fault {
        "kill" => Fault::Kill,
        "cut" => Fault::PowerCut,
        other => panic!("{other}: kill or cut"),
    };
    let rounds = count.parse().expect("how many");
    let outage = Outage { broker, fault, rounds, until_loss: false, with_cloud: false };
    match outage.run() {
        Ok(outcome) => {
            say(&serde_json::to_string(&outcome).expect("json"));
            ExitCode::SUCCESS
        }
        Err(why) => {
            say(&format!("SKIP {why}"));
            ExitCode::from(2)
        }
    }
}
