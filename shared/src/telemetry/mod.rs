//! Log lines: where they go and what they look like.
//!
//! To stderr, since stdout belongs to what a program answers. Panics are logged like everything else. A line that somebody
//! outside causes has a field `peer`, `address` or `edge`; names that they chose are cut with [`brief`]. How many lines there can
//! be is for `limit`, what cannot stand in one for `line`.

mod limit;
mod line;

use std::{io, sync::LazyLock, thread, time::Duration};

use serde::{Deserialize, Serialize};
use tracing_subscriber::{
    filter::Targets, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

use crate::recent;
pub use limit::{LeftOut, Limit};
use line::Escaped;
pub use line::brief;

/// How often it is told which lines were left out.
const TELL: Duration = Duration::from_mins(1);
/// Of the thread that tells.
const STACK_BYTES: usize = 128 * 1024;

static LIMIT: LazyLock<Limit> = LazyLock::new(Limit::default);

crate::settings! {
    /// Log lines, on stderr.
    pub struct Settings {
        /// What is logged: `error`, `warn`, `info`, `debug` or `trace`, and exceptions by module, as in `info,slatedb=warn`.
        pub level: String = "info".to_owned(),
        /// `text` for people, `json` for machines: one object a line.
        pub format: Format = Format::Text,
    }
}

/// Form of the lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// Why logging was not set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// A level that cannot be read.
    #[error("`telemetry.level` = `{level}`: {reason}; an example is `info,slatedb=warn`")]
    Level {
        /// As set.
        level: String,
        /// Why.
        reason: String,
    },
    /// Called twice.
    #[error("logging was set up before")]
    Twice,
}

/// Starts logging for the whole process. Once, first thing.
pub fn init(settings: &Settings) -> Result<(), TelemetryError> {
    let filter = filter(&settings.level)?;
    let lines = tracing_subscriber::fmt::layer().with_writer(|| Escaped(io::stderr()));
    let log = tracing_subscriber::registry().with(filter);
    let limit = &*LIMIT;
    match settings.format {
        Format::Text => log.with(lines.with_ansi(false)).with(recent::Layer).with(limit).try_init(),
        Format::Json => {
            let lines = lines.json().flatten_event(true);
            log.with(lines).with(recent::Layer).with(limit).try_init()
        }
    }
    .map_err(|_| TelemetryError::Twice)?;
    // Without it lines are limited all the same, only nobody is told.
    let _ = thread::Builder::new().name("log".to_owned()).stack_size(STACK_BYTES).spawn(tell);
    std::panic::set_hook(Box::new(|panic| {
        let message = panic.payload_as_str().unwrap_or("no message");
        let at = panic.location().map(ToString::to_string);
        tracing::error!(at, "panic: {message}");
    }));
    Ok(())
}

/// Says now and then which lines were left out. Not where lines are written: there none can be.
fn tell() {
    loop {
        thread::sleep(TELL);
        for LeftOut { like, lines } in LIMIT.left_out() {
            tracing::warn!(like, lines, "lines were left out: too many of one kind");
        }
    }
}

/// Not an `EnvFilter`: that brings a whole regular expression engine.
fn filter(level: &str) -> Result<Targets, TelemetryError> {
    level.parse::<Targets>().map_err(|reason| TelemetryError::Level {
        level: level.to_owned(),
        reason: reason.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_that_cannot_be_read_is_named() {
        filter("info,slatedb=warn").unwrap();
        let error = filter("loud=very").unwrap_err().to_string();
        assert!(error.contains("`loud=very`"), "{error}");
    }
}
