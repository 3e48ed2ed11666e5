//! `status`: what a running edge does, live in the terminal.
//!
//! In: `/status` of the edge's admin port, twice for rates. Change here: what is shown and how. Not here: what there is to
//! show (`admin::reading`).

use std::{
    fmt::Write as _,
    io::IsTerminal as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::Args;
use tokio::time::sleep;

use super::{Failed, http, say, serve::Serve};
use crate::admin::{Commands, Lane, Reading};

/// Lines of recent problems.
const PROBLEMS: usize = 6;

/// Arguments.
#[derive(Debug, Clone, Args)]
pub struct Status {
    /// Settings file of the edge, for its admin address.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The edge's admin address [default: 127.0.0.1:8081].
    #[arg(long, value_name = "HOST:PORT")]
    admin: Option<String>,
    /// Show it once, with the rates of one second, and end. So it is where stdout is no terminal.
    #[arg(long)]
    once: bool,
    /// One reading as a JSON object, for scripts; counters are since the start.
    #[arg(long, conflicts_with_all = ["once", "every"])]
    json: bool,
    /// Seconds between two looks.
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3600))]
    every: u64,
}

impl Status {
    /// Until Ctrl-C, or once.
    pub async fn run(&self) -> Result<(), Failed> {
        let settings =
            Serve { config: self.config.clone(), admin: self.admin.clone(), ..Serve::default() };
        let address = settings.config().map_err(Failed::cannot)?.listen.admin;
        if self.json {
            let text = http::get(&address, "/status").await?;
            return say(format!("{}\n", text.trim_end()).as_bytes()).map(drop);
        }
        let once = self.once || !std::io::stdout().is_terminal();
        let every = if once { 1 } else { self.every };
        let mut before = read(&address).await?;
        if !once {
            show(&screen(&before, &before, 0.0))?;
        }
        loop {
            let began = Instant::now();
            sleep(Duration::from_secs(every)).await;
            let now = match read(&address).await {
                Ok(now) => now,
                Err(error) if once => return Err(error),
                Err(error) => {
                    show(&format!("{error}\n"))?;
                    continue;
                }
            };
            let text = screen(&before, &now, began.elapsed().as_secs_f64());
            if once {
                return say(text.as_bytes()).map(drop);
            }
            if !show(&text)? {
                return Ok(());
            }
            before = now;
        }
    }
}

async fn read(address: &str) -> Result<Reading, Failed> {
    let text = http::get(address, "/status").await?;
    let wrong = |error| Failed::cannot(format_args!("{address} is no edge's admin port: {error}"));
    serde_json::from_str(&text).map_err(wrong)
}

/// In the place of what was shown before.
fn show(text: &str) -> Result<bool, Failed> {
    // Home; each line's rest cleared; everything below cleared.
    let text = text.replace('\n', "\x1b[K\n");
    say(format!("\x1b[H{text}\x1b[J").as_bytes())
}

/// Everything on one screen; `seconds` between the readings, 0 where there is only one.
fn screen(before: &Reading, now: &Reading, seconds: f64) -> String {
    let mut out = String::new();
    let rate = |number: fn(&Reading) -> u64| {
        rate(number(before), number(now), seconds, before.uptime_s <= now.uptime_s)
    };
    let state = match (now.ready, now.notes.is_empty()) {
        (true, true) => "well",
        (true, false) => "serves, with notes",
        (false, _) => "DOES NOT SERVE",
    };
    // Writing to a string does not fail.
    let _ = writeln!(
        out,
        "{}  tributary-edge {}  up {}  {state}\n",
        now.id,
        now.version,
        span(now.uptime_s)
    );
    let free = now.disk_free_bytes.map_or_else(|| "?".to_owned(), bytes);
    let commits = now.commits.saturating_sub(before.commits);
    let commit_us = now.commit_us.saturating_sub(before.commit_us).checked_div(commits);
    let commit =
        commit_us.map_or_else(|| "-".to_owned(), |us| format!("{:.1} ms", us as f64 / 1e3));
    for (name, text) in [
        ("clients", format!("{} connected, {} sessions", now.connections, now.sessions)),
        ("", format!("{} subscriptions, {} retained messages", now.subscriptions, now.retained)),
        (
            "messages/s",
            format!(
                "{} in, {} out, {} acknowledged, {} dropped",
                rate(|one| one.received),
                rate(|one| one.sent),
                rate(|one| one.acked),
                rate(|one| one.dropped)
            ),
        ),
        ("since start", format!("{} in, {} out, {} dropped", now.received, now.sent, now.dropped)),
        ("queues", format!("{} messages, {}", now.queued, bytes(now.queued_bytes))),
        ("disk", format!("{} used, {free} free, {commit} a commit", bytes(now.db_bytes))),
        ("flash", flash(now)),
        ("quarantine", format!("{} messages, {}", now.quarantined, bytes(now.quarantined_bytes))),
        ("memory", bytes(now.memory_bytes)),
    ] {
        let _ = writeln!(out, "{name:<12} {text}");
    }
    if let Some(commands) = &now.commands {
        let Commands { received, duplicates, expired, waiting, .. } = commands;
        let state = if commands.connected { "connected" } else { "NOT CONNECTED" };
        let _ = writeln!(
            out,
            "{:<12} {state}, {received} received, {duplicates} twice, {expired} too late, {waiting} not on disk yet",
            "commands"
        );
    }
    lanes(&mut out, before, now, seconds);
    notes(&mut out, now);
    out
}

fn flash(now: &Reading) -> String {
    let life = match now.flash_life_days {
        0 => String::new(),
        days => format!(", enough for {days} days"),
    };
    let written = bytes(now.flash_written_day_bytes);
    format!("{written} written in 24 h{life}, commits wait {} ms", now.commit_window_ms)
}

fn lanes(out: &mut String, before: &Reading, now: &Reading, seconds: f64) {
    if now.lanes.is_empty() {
        let _ = writeln!(out, "\nno cloud: nothing waits to be sent");
        return;
    }
    let _ = writeln!(
        out,
        "\n{:<16} {:>10} {:>10} {:>10} {:>8} {:>10} {:>10}  state",
        "lane", "waiting", "bytes", "oldest", "sent/s", "bytes/s", "done in"
    );
    for lane in &now.lanes {
        let was = before.lanes.iter().find(|was| was.name == lane.name).unwrap_or(lane);
        let state = match (lane.connected, lane.full) {
            (true, false) => "connected",
            (true, true) => "connected, FULL",
            (false, false) => "NOT CONNECTED",
            (false, true) => "NOT CONNECTED, FULL",
        };
        let _ = writeln!(
            out,
            "{:<16} {:>10} {:>10} {:>10} {:>8} {:>10} {:>10}  {state}{}",
            lane.name,
            lane.buffered,
            bytes(lane.bytes),
            if lane.buffered > 0 { span(lane.oldest_s) } else { "-".to_owned() },
            rate(was.synced, lane.synced, seconds, true),
            bytes(lane.bytes_per_s),
            drain(was, lane, seconds),
            if lane.catching_up { ", catching up" } else { "" },
        );
    }
}

/// Time until nothing waits, if it goes on as between the two readings.
fn drain(was: &Lane, now: &Lane, seconds: f64) -> String {
    if now.buffered == 0 {
        return "-".to_owned();
    }
    let less = was.buffered.saturating_sub(now.buffered);
    if less == 0 || seconds <= 0.0 {
        return now.drain_s.map_or_else(|| "?".to_owned(), span);
    }
    span((now.buffered as f64 * seconds / less as f64).ceil() as u64)
}

fn notes(out: &mut String, now: &Reading) {
    if !now.notes.is_empty() {
        let _ = writeln!(out, "\nnot well");
    }
    for note in &now.notes {
        let _ = writeln!(out, "  {}", plain(note));
    }
    if !now.problems.is_empty() {
        let _ = writeln!(out, "\nlogged");
    }
    let wall_ms = tributary_shared::clock::wall_ms();
    for one in now.problems.iter().take(PROBLEMS) {
        let ago = u64::try_from(wall_ms.saturating_sub(one.at_ms)).unwrap_or(0) / 1000;
        let times = if one.times > 1 { format!(" ({} times)", one.times) } else { String::new() };
        let (level, text) = (&one.level, plain(&one.text));
        let _ = writeln!(out, "  {:>9} ago  {level:<5} {text}{times}", span(ago));
    }
}

/// Names from clients stand in some lines: nothing of them steers the terminal.
fn plain(text: &str) -> String {
    text.chars().map(|one| if one.is_control() { ' ' } else { one }).take(160).collect()
}

fn rate(was: u64, now: u64, seconds: f64, same: bool) -> String {
    if seconds <= 0.0 || !same {
        return "-".to_owned();
    }
    let rate = now.saturating_sub(was) as f64 / seconds;
    if rate > 0.0 && rate < 10.0 { format!("{rate:.1}") } else { format!("{rate:.0}") }
}

/// Bytes for people.
fn bytes(count: u64) -> String {
    let mut left = count as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if left < 1000.0 {
            let places = usize::from(unit != "B" && left < 10.0);
            return format!("{left:.places$} {unit}");
        }
        left /= 1024.0;
    }
    format!("{left:.1} TiB")
}

/// Seconds for people.
pub(super) fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(buffered: u64, synced: u64) -> Lane {
        Lane {
            name: "normal".into(),
            buffered,
            synced,
            oldest_s: 200,
            connected: true,
            ..Lane::default()
        }
    }

    #[test]
    fn rates_and_the_time_to_drain_come_from_two_readings() {
        let before = Reading {
            id: "gw1".into(),
            ready: true,
            received: 100,
            lanes: vec![lane(1_000, 0)],
            ..Reading::default()
        };
        let mut now = Reading { received: 300, lanes: vec![lane(900, 150)], ..before.clone() };
        let text = screen(&before, &now, 2.0);
        assert!(text.contains("messages/s   100 in, 0 out,"), "{text}");
        let row = text.lines().find(|line| line.starts_with("normal")).unwrap();
        let words: Vec<&str> = row.split_whitespace().collect();
        // 900 wait; 50 a second fewer.
        assert_eq!(
            words[1..],
            ["900", "0", "B", "3", "min", "75", "0", "B", "18", "s", "connected"]
        );
        now.lanes = vec![lane(1_100, 150)];
        assert!(screen(&before, &now, 2.0).contains(" ?  connected"), "it grows");
    }

    #[test]
    fn what_clients_named_does_not_steer_the_terminal() {
        let problem = tributary_shared::recent::Problem {
            at_ms: 0,
            level: "warn".into(),
            text: "client \x1b[2J".into(),
            times: 2,
        };
        let now = Reading { problems: vec![problem], ..Reading::default() };
        let text = screen(&now, &now, 0.0);
        assert!(text.contains("client  [2J (2 times)") && !text.contains('\x1b'), "{text}");
    }
}
