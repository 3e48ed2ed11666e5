//! All settings of the cloud: only composes each part's own `Settings`.
//!
//! Change here: which parts have settings. Not here: any part's settings, reading files and flags (`shared::config`).

use crate::{bridge, log, route::Rule};

tributary_shared::settings! {
    /// Addresses of the listeners. Beyond loopback TLS and authentication are needed.
    pub struct Listen {
        /// MQTT clients and edges. Port 0 picks a free one, here and below.
        pub mqtt: String = "127.0.0.1:1884".into(),
        /// Kafka clients.
        pub kafka: String = "127.0.0.1:9092".into(),
        /// AMQP 0-9-1 clients.
        pub amqp: String = "127.0.0.1:5672".into(),
        /// HTTP: health, metrics, JSON API, console.
        pub admin: String = "127.0.0.1:8080".into(),
    }
}

tributary_shared::settings! {
    /// The cloud.
    pub struct Config {
        /// Where the data is: file:///path for one machine, s3://bucket/prefix for an object store, memory:// for trials.
        pub data: String = "file:///var/lib/tributary".into(),
        /// Addresses.
        pub listen: Listen = Listen::default(),
        /// Log.
        pub log: log::Settings = log::Settings::default(),
        /// Bridge.
        pub bridge: bridge::Settings = bridge::Settings::default(),
        /// Routes, first match wins; what none takes goes to stream mqtt.messages. Each has filter, stream and, if wanted,
        /// key and partition ("edge" or "key").
        pub routes: Vec<Rule> = Vec::new(),
    }
}

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ConfigError {
    #[error("settings file {path} cannot be read: {error}")]
    Read { path: String, error: std::io::Error },
    #[error("settings file {path}: {error}")]
    File { path: String, error: Box<toml::de::Error> },
    #[error("--set {0}: expected key=value, the key with dots, the value as in the file")]
    Set(String),
    #[error("{0}")]
    Value(String),
}

/// Settings from an optional file and `key=value` pairs that override it.
pub fn load(file: Option<&str>, set: &[String]) -> Result<Config, ConfigError> {
    let mut table = toml::Table::new();
    if let Some(path) = file {
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError::Read { path: path.into(), error })?;
        let read = |error| ConfigError::File { path: path.into(), error: Box::new(error) };
        table = text.parse().map_err(read)?;
        // Checked alone, so that an error names its line.
        toml::from_str::<Config>(&text).map_err(read)?;
    }
    for pair in set {
        let (key, value) = pair.split_once('=').ok_or_else(|| ConfigError::Set(pair.clone()))?;
        // A value that is not TOML by itself is a string.
        let value = format!("v = {value}").parse::<toml::Table>().ok().and_then(|mut t| t.remove("v"));
        let value = value.unwrap_or_else(|| pair.split_once('=').map_or("", |(_, v)| v).into());
        insert(&mut table, key, value).ok_or_else(|| ConfigError::Set(pair.clone()))?;
    }
    Config::deserialize_table(table)
}

fn insert(table: &mut toml::Table, key: &str, value: toml::Value) -> Option<()> {
    match key.split_once('.') {
        None => {
            table.insert(key.to_owned(), value);
            Some(())
        }
        Some((section, rest)) => {
            let inner = table.entry(section).or_insert_with(|| toml::Table::new().into());
            insert(inner.as_table_mut()?, rest, value)
        }
    }
}

impl Config {
    fn deserialize_table(table: toml::Table) -> Result<Self, ConfigError> {
        table.try_into().map_err(|error: toml::de::Error| {
            ConfigError::Value(error.to_string().trim_end().replace('\n', ", "))
        })
    }
}
