//! `doctor`: looks at everything an edge needs, and says what to do about what is not as it should be. Changes nothing.
//!
//! Each line is OK, WARN or FAIL. Exit code 1 if anything is FAIL. Change here: which checks there are. Not here: one check
//! (the files below).

mod clock;
mod disk;
mod ports;
mod uplink;

use std::{
    fmt::Display,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{Failed, http, say, serve::Serve};
use crate::{access::Access, app, config::Config};

/// A certificate that ends sooner is to be renewed.
const SOON: Duration = Duration::from_hours(30 * 24);

/// How it stands with one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Ok,
    Warn,
    Fail,
}

/// What was found out, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    level: Level,
    text: String,
    todo: String,
}

impl Finding {
    fn ok(text: impl Display) -> Self {
        Self { level: Level::Ok, text: text.to_string(), todo: String::new() }
    }

    fn warn(text: impl Display, todo: impl Display) -> Self {
        Self { level: Level::Warn, text: text.to_string(), todo: todo.to_string() }
    }

    fn fail(text: impl Display, todo: impl Display) -> Self {
        Self { level: Level::Fail, text: text.to_string(), todo: todo.to_string() }
    }

    /// A line, and what to do below it.
    fn lines(&self) -> String {
        let level = match self.level {
            Level::Ok => "OK  ",
            Level::Warn => "WARN",
            Level::Fail => "FAIL",
        };
        match &*self.todo {
            "" => format!("{level}  {}\n", self.text),
            todo => format!("{level}  {}\n      -> {todo}\n", self.text),
        }
    }
}

/// All checks, one after the other, each said as it is done.
pub async fn run(serve: &Serve) -> Result<(), Failed> {
    let mut worst = Level::Ok;
    let mut tell = |findings: Vec<Finding>| {
        for finding in findings {
            worst = worst.max(finding.level);
            say(finding.lines().as_bytes())?;
        }
        Ok::<_, Failed>(())
    };
    let config = match serve.config() {
        Ok(config) => config,
        Err(error) => {
            tell(vec![Finding::fail(format_args!("settings: {error}"), MEND)])?;
            return Err(found());
        }
    };
    let access = settings(&config).await;
    let (findings, access) = match access {
        Ok(access) => (vec![Finding::ok("settings: good")], Some(access)),
        Err(finding) => (vec![finding], None),
    };
    tell(findings)?;
    tell(clock::check())?;
    tell(disk::check(&config))?;
    if let Some(access) = &access {
        tell(certificates(access))?;
    }
    let running = http::get(&config.listen.admin, "/status").await.ok();
    let running = running.and_then(|text| serde_json::from_str(&text).ok());
    tell(ports::check(&config, access.as_deref(), running.as_ref()).await)?;
    tell(uplink::check(&config).await)?;
    tell(running.map_or_else(Vec::new, |reading| now(&reading)))?;
    if worst == Level::Fail { Err(found()) } else { Ok(()) }
}

const MEND: &str = "mend the settings; `tributary-edge check` says what they mean";

fn found() -> Failed {
    Failed::cannot("something is not as it has to be, see FAIL above")
}

async fn settings(config: &Config) -> Result<std::sync::Arc<Access>, Finding> {
    let bad = |error: &dyn Display| Finding::fail(format_args!("settings: {error}"), MEND);
    config.check().map_err(|error| bad(&error))?;
    app::address(config, "listen.admin", &config.listen.admin).await.map_err(|e| bad(&e))?;
    Access::prepare(config).await.map_err(|error| bad(&error))
}

fn certificates(access: &Access) -> Vec<Finding> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let all = access.listeners.iter().filter_map(|one| Some((&one.setting, one.tls.as_ref()?)));
    all.map(|(setting, tls)| certificate(setting, tls.expires(), now)).collect()
}

fn certificate(setting: &str, expires: Option<Duration>, now: Duration) -> Finding {
    let what = format!("certificate of {setting}");
    let days = |left: Duration| left.as_secs() / 86_400;
    match expires.map(|at| at.checked_sub(now)) {
        None => Finding::fail(format_args!("{what}: cannot be read"), "see `tributary-edge check`"),
        Some(None) => Finding::fail(
            format_args!("{what}: expired, clients refuse it"),
            "put a new one in its place; a running edge takes it within ten seconds",
        ),
        Some(Some(left)) if left < SOON => Finding::warn(
            format_args!("{what}: ends in {} days", days(left)),
            "put a new one in its place soon",
        ),
        Some(Some(left)) => Finding::ok(format_args!("{what}: good for {} days", days(left))),
    }
}

/// What the running edge says of itself.
fn now(reading: &crate::admin::Reading) -> Vec<Finding> {
    let todo = "see `tributary-edge status` and the log";
    let mut all: Vec<_> = reading
        .notes
        .iter()
        .map(|note| Finding::warn(format_args!("running edge: {note}"), todo))
        .collect();
    if all.is_empty() {
        all.push(Finding::ok("running edge: well"));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_warned_of_a_month_before_its_end_and_fails_after_it() {
        let now = Duration::from_hours(24 * 1000);
        for (left_days, level) in [(-1_i64, Level::Fail), (29, Level::Warn), (31, Level::Ok)] {
            let at = Duration::from_hours((24 * (1000 + left_days)) as u64);
            let found = certificate("listeners[0]", Some(at), now);
            assert_eq!(found.level, level, "{found:?}");
        }
        assert_eq!(certificate("x", None, now).level, Level::Fail);
    }

    #[test]
    fn what_to_do_stands_below_what_was_found() {
        let finding = Finding::warn("clock: wrong", "set it");
        assert_eq!(finding.lines(), "WARN  clock: wrong\n      -> set it\n");
        assert_eq!(Finding::ok("clock: right").lines(), "OK    clock: right\n");
    }
}
