//! Crash points: a process is killed by strace as it enters the n-th call of a kind, so before that call does anything.
//!
//! Counted per kind and per thread, from the start of the process: the first ones fall into its recovery. Not here: who falls.

use std::process::Command;

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// System call.
    pub call: &'static str,
    /// From 1.
    pub nth: u32,
}

/// Of four points at the edge.
const EDGE: [&str; 4] = ["pwrite64", "pwrite64", "pwrite64", "fdatasync"];
/// Of four points at the cloud: how a segment is made durable under its name.
const CLOUD: [&str; 4] = ["fsync", "linkat", "fsync", "unlink"];

impl Point {
    /// Every write and every sync from the first on.
    pub fn of_the_edge(count: usize) -> impl Iterator<Item = Self> {
        in_turn(EDGE, count)
    }

    /// The same of the cloud's log.
    pub fn of_the_cloud(count: usize) -> impl Iterator<Item = Self> {
        in_turn(CLOUD, count)
    }

    /// What a command is put behind so that it falls there. The process keeps its id.
    pub fn tracer(self) -> Vec<String> {
        let Self { call, nth } = self;
        // Not `--seccomp-bpf`: strace 6.1 then only ever counts to 1.
        let words = ["strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e"];
        let mut words: Vec<String> = words.map(str::to_owned).into();
        words.push(format!("trace={call}"));
        words.extend(["-e".to_owned(), format!("inject={call}:signal=KILL:when={nth}")]);
        words
    }
}

fn in_turn(calls: [&'static str; 4], count: usize) -> impl Iterator<Item = Point> {
    (0..count).map(move |number| {
        let call = calls[number % 4];
        let of_it = calls.iter().filter(|other| **other == call).count();
        let before = calls.iter().take(number % 4).filter(|other| **other == call).count();
        Point { call, nth: (number / 4 * of_it + before + 1) as u32 }
    })
}

/// Why there can be no crash points here.
pub(super) fn probe() -> Result<(), String> {
    let words = ["-f", "-qq", "-o", "/dev/null", "-e", "trace=openat"];
    let output = Command::new("strace").args(words).arg("true").output();
    let output = output.map_err(|error| format!("strace: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("strace: {}", said.trim())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_of_a_kind_is_a_point_once() {
        let mut seen: Vec<_> =
            Point::of_the_edge(80).map(|point| (point.call, point.nth)).collect();
        seen.sort_unstable();
        let expected = (1..=20).map(|nth| ("fdatasync", nth));
        let expected: Vec<_> = expected.chain((1..=60).map(|nth| ("pwrite64", nth))).collect();
        assert_eq!(seen, expected);
    }
}
