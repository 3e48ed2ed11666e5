//! What a process used, from /proc.

use std::{fs, time::Duration};

use crate::Failure;

/// Clock ticks a second: fixed on Linux for what /proc shows.
const TICKS: u64 = 100;

/// CPU time since its start, and memory now.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    pub(crate) cpu: Duration,
    pub(crate) rss_kb: u64,
}

impl Usage {
    pub(crate) fn of(pid: u32) -> Result<Self, Failure> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (_, fields) = stat.rsplit_once(')').ok_or("unreadable /proc stat")?;
        // Behind the name: state is field 3 of proc(5), utime 14, stime 15.
        let ticks: u64 =
            fields.split_whitespace().skip(11).take(2).filter_map(|f| f.parse::<u64>().ok()).sum();
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let rss_kb = rss.and_then(|rss| rss.trim().trim_end_matches(" kB").parse().ok());
        let cpu = Duration::from_millis(ticks * 1_000 / TICKS);
        Ok(Self { cpu, rss_kb: rss_kb.ok_or("no VmRSS in /proc status")? })
    }
}
