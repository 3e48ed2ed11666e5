//! Simulated seeds, one process each, so that nothing but the seed decides what happens.
//!
//! `simulate FROM COUNT [CONTROL]` prints progress, each failing seed with its last events, and a summary as one JSON line;
//! exit code 1 if a seed failed. `simulate one SEED [CONTROL]` runs one here. CONTROL: simple, high-water, no-gap-check,
//! early-ack. `simulate cluster FROM COUNT [no-lease|overwrite]` and `simulate cluster one SEED` do it with the ownership of
//! shards in clusters. In `one` the system's clock and random numbers are the simulation's.

use std::{
    process::{Command, ExitCode, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use rand::{SeedableRng, rngs::StdRng};
use tributary_tests::{
    ownership, say,
    simulation::{self, Control},
};

/// Processes at a time.
const JOBS: usize = 2;
/// Failing seeds whose events are printed.
const SHOWN: usize = 5;
/// Events that are printed of a failing seed.
const LAST: usize = 200;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["one", seed] => one(number(seed), Control::None),
        ["one", seed, control] => one(number(seed), read_control(control)),
        ["cluster", "one", seed] => cluster_one(number(seed), ownership::Control::None),
        ["cluster", "one", seed, control] => cluster_one(number(seed), cluster_control(control)),
        ["cluster", from, count] => cluster(number(from), number(count), ownership::Control::None),
        ["cluster", from, count, control] => {
            cluster(number(from), number(count), cluster_control(control))
        }
        [from, count] => many(number(from), number(count), None),
        [from, count, control] => {
            let _checked = read_control(control);
            many(number(from), number(count), Some(control))
        }
        _ => panic!("see the first lines of this program"),
    }
}

fn cluster_control(name: &str) -> ownership::Control {
    match name {
        "no-lease" => ownership::Control::NoLease,
        "overwrite" => ownership::Control::Overwrite,
        other => panic!("{other}: no-lease or overwrite"),
    }
}

/// One simulated cluster, with all that happened.
fn cluster_one(seed: u64, control: ownership::Control) -> ExitCode {
    let outcome = ownership::run(seed, control);
    outcome.events.iter().for_each(|line| say(line));
    if outcome.broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Simulated clusters; they are only code, so that one process runs them all.
fn cluster(from: u64, count: u64, control: ownership::Control) -> ExitCode {
    let (totals, bad) = ownership::many(from, count, control);
    bad.iter().for_each(|(seed, first)| say(&format!("seed {seed} failed: {first}")));
    say(&serde_json::json!({
        "seeds": count, "failed": bad.len(), "faults": totals.faults, "moves": totals.moves,
        "versions": totals.versions, "settled_ms_max": totals.settled_ms,
    })
    .to_string());
    if bad.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn number(text: &str) -> u64 {
    text.parse().expect("a number")
}

fn read_control(name: &str) -> Control {
    match name {
        "simple" => Control::Simple,
        "high-water" => Control::HighWater,
        "no-gap-check" => Control::NoGapCheck,
        "early-ack" => Control::EarlyAck,
        other => panic!("{other}: simple, high-water, no-gap-check or early-ack"),
    }
}

fn one(seed: u64, control: Control) -> ExitCode {
    // Read by tempfile before anything is replaced.
    let memory = std::path::Path::new("/dev/shm");
    let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    let folder = folder.expect("a folder");
    mad_turmoil::rand::set_rng(StdRng::seed_from_u64(seed));
    let clocks = mad_turmoil::time::SimClocksGuard::init();
    let path = folder.path().to_owned();
    // A new thread has drawn no random numbers yet.
    let run = std::thread::spawn(move || simulation::run(seed, control, &path));
    let outcome = run.join().expect("the simulation");
    drop(clocks);
    let v = outcome.verdict;
    say(&format!(
        "seed {seed} {} hash {:016x} L {} D {} O {} G {} N {} acked {} records {} declared {} destroyed {} ms {}",
        if outcome.is_good() { "good" } else { "BAD" },
        outcome.hash,
        v.lost,
        v.duplicated,
        v.disordered,
        v.strange,
        v.innocents,
        v.acked,
        v.records,
        v.declared,
        v.destroyed,
        outcome.simulated_ms,
    ));
    let all = std::env::var_os("SIMULATE_EVENTS").is_some();
    if all || !outcome.is_good() {
        let skip = if all { 0 } else { outcome.events.len().saturating_sub(LAST) };
        say(&outcome.plan);
        outcome.events.iter().skip(skip).chain(&outcome.faults).for_each(|line| say(line));
    }
    if outcome.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn many(from: u64, count: u64, control: Option<&str>) -> ExitCode {
    let began = uptime();
    let (next, sums) = (AtomicU64::new(0), Mutex::new(Sums::default()));
    std::thread::scope(|scope| {
        for _ in 0..JOBS {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Relaxed);
                    if at >= count {
                        return;
                    }
                    let said = child(from + at, control);
                    sums.lock().expect("sums").add(from + at, &said);
                    if (at + 1) % 100 == 0 {
                        let bad = sums.lock().expect("sums").bad.len();
                        say(&format!("{} seeds, {bad} failed, {:.0} s", at + 1, uptime() - began));
                    }
                }
            });
        }
    });
    let sums = sums.into_inner().expect("sums");
    let seconds = uptime() - began;
    say(&serde_json::json!({
        "seeds": count, "failed": sums.bad.len(), "first_failed": sums.bad.iter().min(),
        "lost": sums.of[0], "duplicated": sums.of[1], "disordered": sums.of[2], "strange": sums.of[3],
        "innocents": sums.of[4], "acked": sums.of[5], "records": sums.of[6], "declared": sums.of[7],
        "destroyed": sums.of[8], "simulated_s": sums.of[9] / 1000, "seconds": seconds.round(),
        "hash": format!("{:016x}", sums.hash),
    }).to_string());
    if sums.bad.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Clocks are replaced in this program, also here where nothing is simulated.
fn uptime() -> f64 {
    let text = std::fs::read_to_string("/proc/uptime").expect("/proc/uptime");
    text.split(' ').next().and_then(|text| text.parse().ok()).expect("seconds")
}

/// All seeds together.
#[derive(Default)]
struct Sums {
    bad: Vec<u64>,
    of: [u64; 10],
    hash: u64,
}

impl Sums {
    fn add(&mut self, seed: u64, said: &str) {
        let first = said.lines().find(|line| line.starts_with("seed ")).unwrap_or_default();
        let words: Vec<&str> = first.split(' ').collect();
        let value = |name: &str| {
            let at = words.iter().position(|word| *word == name)?;
            words.get(at + 1)?.parse::<u64>().ok()
        };
        let names = ["L", "D", "O", "G", "N", "acked", "records", "declared", "destroyed", "ms"];
        for (sum, name) in self.of.iter_mut().zip(names) {
            *sum += value(name).unwrap_or(0);
        }
        let hash = words.iter().position(|word| *word == "hash");
        let hash = hash.and_then(|at| u64::from_str_radix(words.get(at + 1)?, 16).ok());
        self.hash ^= hash.unwrap_or(seed);
        if words.get(2) != Some(&"good") {
            self.bad.push(seed);
            let shown = if self.bad.len() <= SHOWN { said } else { first };
            say(&format!("seed {seed} failed\n{shown}"));
        }
    }
}

fn child(seed: u64, control: Option<&str>) -> String {
    let program = std::env::current_exe().expect("this program");
    let ran = Command::new(program)
        .args(["one", &seed.to_string()])
        .args(control)
        .stdin(Stdio::null())
        .output()
        .expect("a process of this program");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if ran.status.code().is_some_and(|code| code < 2) {
        return text(&ran.stdout);
    }
    let errors = text(&ran.stderr);
    format!(
        "{}{}",
        text(&ran.stdout),
        errors.get(errors.len().saturating_sub(4000)..).unwrap_or_default()
    )
}
