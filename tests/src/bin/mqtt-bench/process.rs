//! What a process used, from /proc.

use std::{collections::HashMap, fs, path::Path, time::Duration};

use crate::Failure;

/// Clock ticks a second: fixed on Linux for what /proc shows.
const TICKS: u64 = 100;

/// CPU time since its start, and memory now.
#[derive(Debug, Clone)]
pub(crate) struct Usage {
    pub(crate) cpu: Duration,
    pub(crate) rss_kb: u64,
    /// Handed to the file system to be written.
    pub(crate) written_bytes: u64,
    /// Nanoseconds of each thread.
    threads: HashMap<String, u64>,
}

impl Usage {
    pub(crate) fn of(pid: u32) -> Result<Self, Failure> {
        Self::read(format!("/proc/{pid}").as_ref())
    }

    /// Of this process.
    pub(crate) fn own() -> Result<Self, Failure> {
        Self::read("/proc/self".as_ref())
    }

    fn read(process: &Path) -> Result<Self, Failure> {
        let threads = threads(process);
        let cpu = if threads.is_empty() {
            ticks(process)?
        } else {
            Duration::from_nanos(threads.values().sum())
        };
        let status = fs::read_to_string(process.join("status"))?;
        let rss_kb = field(&status, "VmRSS:").ok_or("no VmRSS in /proc status")?;
        // Not shown to everybody.
        let io = fs::read_to_string(process.join("io")).unwrap_or_default();
        let written_bytes = field(&io, "write_bytes:").unwrap_or(0);
        Ok(Self { cpu, rss_kb, written_bytes, threads })
    }

    /// CPU time since `before`.
    pub(crate) fn cpu_since(&self, before: &Self) -> Duration {
        self.cpu.saturating_sub(before.cpu)
    }

    /// CPU time since `before` of the thread that used most.
    pub(crate) fn busiest_since(&self, before: &Self) -> Duration {
        let grown = self.threads.iter().map(|(thread, ns)| {
            ns.saturating_sub(before.threads.get(thread).copied().unwrap_or(0))
        });
        Duration::from_nanos(grown.max().unwrap_or(0))
    }
}

/// The scheduler's own count: exact, where the kernel has it.
fn threads(process: &Path) -> HashMap<String, u64> {
    let Ok(tasks) = fs::read_dir(process.join("task")) else { return HashMap::new() };
    let nanoseconds = |task: fs::DirEntry| {
        let stat = fs::read_to_string(task.path().join("schedstat")).ok()?;
        let ns = stat.split_whitespace().next()?.parse().ok()?;
        Some((task.file_name().to_string_lossy().into_owned(), ns))
    };
    tasks.flatten().filter_map(nanoseconds).collect()
}

fn ticks(process: &Path) -> Result<Duration, Failure> {
    let stat = fs::read_to_string(process.join("stat"))?;
    let (_, fields) = stat.rsplit_once(')').ok_or("unreadable /proc stat")?;
    // Behind the name: state is field 3 of proc(5), utime 14, stime 15.
    let ticks: u64 =
        fields.split_whitespace().skip(11).take(2).filter_map(|f| f.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(ticks * 1_000 / TICKS))
}

fn field(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    value.split_whitespace().next()?.parse().ok()
}
