//! Log lines: where they go and what they look like.
//!
//! To stderr, since stdout belongs to what a program answers. Panics are logged like everything else.

use serde::{Deserialize, Serialize};
use tracing_subscriber::{EnvFilter, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::recent;

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
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match settings.format {
        Format::Text => lines.with_ansi(false).finish().with(recent::Layer).try_init(),
        Format::Json => lines.json().flatten_event(true).finish().with(recent::Layer).try_init(),
    }
    .map_err(|_| TelemetryError::Twice)?;
    std::panic::set_hook(Box::new(|panic| {
        let message = panic.payload_as_str().unwrap_or("no message");
        let at = panic.location().map(ToString::to_string);
        tracing::error!(at, "panic: {message}");
    }));
    Ok(())
}

fn filter(level: &str) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::builder().parse(level).map_err(|reason| TelemetryError::Level {
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
