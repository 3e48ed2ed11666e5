//! P1, P2 and P7 over a long outage: an edge in a memory limit of 64 MiB takes 300,000 messages while there is no cloud, is killed
//! amid them, and all of them reach the cloud's log once and in order. Needs a memory cgroup; else it says SKIP and why.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

use std::io::Write as _;

use tributary_tests::bridge::Backlog;

/// `scripts/prove outage` has more.
const MESSAGES: u64 = 300_000;
/// Resident memory of the edge, KiB, built for tests: what it grows by has nothing to do with the backlog.
const RSS_KIB: u64 = 48 * 1024;

#[test]
fn a_backlog_of_an_outage_needs_no_memory_and_drains_without_loss() {
    // Not captured: figures and what was left out must be seen.
    match Backlog::new(MESSAGES).run() {
        Ok(drained) => {
            let _ = writeln!(std::io::stderr(), "{drained:?}");
            assert!(!drained.is_broken() && drained.acked >= MESSAGES, "{drained:?}");
            assert!(drained.rss_kib.iter().all(|rss| *rss < RSS_KIB), "{drained:?}");
        }
        Err(why) => {
            let _ = writeln!(std::io::stderr(), "SKIP long outage: {why}");
        }
    }
}
