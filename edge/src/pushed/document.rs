//! A document with settings from the cloud. Pure.
//!
//! ```toml
//! version = "7"          # any text or number; told back with the outcome
//! [[lanes]]              # keys of the settings file, those that may be pushed
//! name = "normal"
//! ```
//! Change here: which keys may be pushed. Not here: what they mean (`config`), when they are taken (`pushed`).

use toml::{Table, Value};
use tributary_shared::config::Loader;

use crate::config::Config;

/// Bytes of a document.
const LONGEST: usize = 64 * 1024;
/// Characters of a version.
const VERSION: usize = 64;

/// What may be pushed: a section, and which of its keys; none = all. Never who this edge is, where it keeps its data, whom
/// it lets in, and which cloud it belongs to.
const ALLOWED: [(&str, &[&str]); 7] = [
    ("inventory", &[]),
    ("lanes", &[]),
    ("session", &[]),
    ("store", &[]),
    ("sys", &[]),
    ("downlink", &["filters", "receive_maximum", "packet_bytes"]),
    (
        "uplink",
        &[
            "window_batches",
            "window_bytes",
            "ack_timeout_ms",
            "connect_timeout_ms",
            "backoff_min_ms",
            "backoff_max_ms",
            "bytes_per_s",
            "give_ups_per_hour",
            "keep_alive_s",
        ],
    ),
];

/// The settings of one that may be taken, as far as it alone can tell; else what is wrong, in one sentence that names the key.
pub(super) fn read(text: &str) -> Result<Table, String> {
    if text.len() > LONGEST {
        return Err(format!("longer than {LONGEST} bytes"));
    }
    let mut settings: Table = toml::from_str(text).map_err(|error| one_line(&error.to_string()))?;
    let version = settings.remove("version").ok_or("`version` is missing")?;
    as_version(version)
        .ok_or_else(|| format!("`version` must be a number or 1 to {VERSION} characters"))?;
    // Unknown keys and bad values, as in a settings file.
    let known = Loader::<Config>::new().table("settings", settings.clone());
    known.map_err(|error| one_line(&error.to_string()))?;
    for (section, value) in &settings {
        let allowed = ALLOWED.iter().find(|(name, _)| name == section);
        let Some((_, keys)) = allowed else {
            return Err(format!("`{section}` cannot be set from the cloud"));
        };
        let mut set = value.as_table().into_iter().flat_map(Table::keys);
        if let Some(key) = set.find(|key| !keys.is_empty() && !keys.contains(&key.as_str())) {
            return Err(format!("`{section}.{key}` cannot be set from the cloud"));
        }
    }
    Ok(settings)
}

/// Which one it is, also if it cannot be taken.
pub(super) fn version(text: &str) -> Option<String> {
    let text = Some(text).filter(|text| text.len() <= LONGEST)?;
    as_version(toml::from_str::<Table>(text).ok()?.remove("version")?)
}

fn as_version(value: Value) -> Option<String> {
    match value {
        Value::String(text) if (1..=VERSION).contains(&text.chars().count()) => Some(text),
        Value::Integer(number) => Some(number.to_string()),
        _ => None,
    }
}

fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_and_limits_may_be_pushed_with_a_version() {
        let text = "version = 7\n[uplink]\nwindow_batches = 4\n[session]\nqueue_messages = 5\n[inventory]\ninterval_s = 60\n[[lanes]]\nname = 'a'\n";
        assert_eq!(version(text).as_deref(), Some("7"));
        assert_eq!(read(text).unwrap().len(), 4);
        assert_eq!(version("version = 'v 1.2'\nid = 'gw2'").as_deref(), Some("v 1.2"));
    }

    #[test]
    fn what_may_not_be_pushed_is_named() {
        for (text, why) in [
            ("[uplink]\nwindow_batches = 4", "`version` is missing"),
            ("version = ''", "`version` must be"),
            ("version = 1\nid = 'gw2'", "`id` cannot be set from the cloud"),
            ("version = 1\ndata = '/tmp'", "`data` cannot be set"),
            ("version = 1\n[listen]\nmqtt = ''", "`listen` cannot be set"),
            ("version = 1\n[auth]\npassword_file = 'x'", "`auth` cannot be set"),
            ("version = 1\n[uplink]\ncloud = 'mqtt://x'", "`uplink.cloud` cannot be set"),
            ("version = 1\n[uplink]\nkey = '/etc/passwd'", "`uplink.key` cannot be set"),
            ("version = 1\n[downlink]\nenabled = false", "`downlink.enabled` cannot be set"),
            ("version = 1\n[uplink]\nwindw_batches = 4", "windw_batches"),
            ("version = 1\n[uplink]\nwindow_batches = 0", "`uplink.window_batches` = 0"),
            ("version = 1\n[uplink", "line 2"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(why) && !error.contains('\n'), "{text}: {error}");
        }
        assert!(read(&format!("version = 1\n#{}", "x".repeat(LONGEST))).is_err());
    }
}
