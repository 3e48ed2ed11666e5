//! Random sequences on `tributary-edge` and on mosquitto, compared; see `tributary_tests::differential`.
//!
//! `mqtt-differential --first 1 --count 100000 --workers 32 [--mosquitto /path/to/mosquitto]`. Ends with the count of each
//! explained difference; with exit code 1 and the seeds if something is not explained.

use std::{path::PathBuf, process::ExitCode, time::Instant};

use clap::Parser;
use tributary_tests::{
    Edge,
    differential::{Mosquitto, campaign, mosquitto, rules::RULES},
    say,
};

/// Random sequences on tributary-edge and on mosquitto, compared.
#[derive(Debug, Parser)]
struct Arguments {
    /// First seed.
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// Sequences.
    #[arg(long, default_value_t = 1000)]
    count: u64,
    /// Sequences at a time.
    #[arg(long, default_value_t = 32)]
    workers: usize,
    /// Which mosquitto; Debian's unless given.
    #[arg(long)]
    mosquitto: Option<PathBuf>,
    /// Unexplained sequences shown in full.
    #[arg(long, default_value_t = 5)]
    show: usize,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let Some(binary) = arguments.mosquitto.or_else(mosquitto::installed) else {
        say("no mosquitto: `scripts/install test` installs Debian's, --mosquitto names another");
        return ExitCode::FAILURE;
    };
    let folder = tempfile::tempdir().expect("folder");
    // All workers may dial at the same moment.
    let dials = format!("net.handshakes={}", arguments.workers.max(64));
    let edge = Edge::start_with(folder.path(), "differential", None, &["--set", &dials]);
    let theirs = Mosquitto::start(&binary, "");
    let seeds = arguments.first..arguments.first + arguments.count;
    let started = Instant::now();
    let outcome = campaign(seeds, arguments.workers, edge.mqtt, theirs.address);
    say(&format!(
        "{} sequences in {} s: {} equal, {} explained, {} not explained",
        arguments.count,
        started.elapsed().as_secs(),
        outcome.equal,
        outcome.explained,
        outcome.unexplained.len()
    ));
    for rule in RULES {
        let count = outcome.rules.get(rule.name).copied().unwrap_or(0);
        say(&format!("{count:>8} {} ({})", rule.name, rule.section));
    }
    for (seed, text) in outcome.unexplained.iter().take(arguments.show) {
        say(&format!("--- not explained: --first {seed} --count 1\n{text}"));
    }
    u8::from(!outcome.unexplained.is_empty()).into()
}
