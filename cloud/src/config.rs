//! All settings of the cloud: only composes each part's own `Settings`.
//!
//! Change here: which parts have settings. Not here: any part's settings, reading files and flags (`shared::config`).

use tributary_shared::telemetry;

use crate::{bridge, log, route::Rule};

tributary_shared::settings! {
    /// Addresses of the listeners. Port 0 picks a free one. Beyond loopback TLS and authentication are needed.
    pub struct Listen {
        /// MQTT clients and edges.
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
    /// Tributary's cloud: one durable log that Kafka, AMQP and MQTT clients share.
    pub struct Config {
        /// Where the data is: file:///path on this machine, s3://bucket/prefix on an object store, memory:// for trials.
        pub data: String = "file:///var/lib/tributary".into(),
        /// Addresses of the listeners. Port 0 picks a free one. Beyond loopback TLS and authentication are needed.
        pub listen: Listen = Listen::default(),
        /// The log: limits and defaults of streams.
        pub log: log::Settings = log::Settings::default(),
        /// The bridge: the door for edges on the MQTT listener.
        pub bridge: bridge::Settings = bridge::Settings::default(),
        /// Which stream a topic's messages go to. The first match wins; what none takes goes to stream mqtt.messages.
        pub routes: Vec<Rule> = Vec::new(),
        /// Log lines, on stderr.
        pub telemetry: telemetry::Settings = telemetry::Settings::default(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tributary_shared::config::{Loader, is_current, reference};

    use super::*;

    #[test]
    fn the_reference_file_names_every_setting() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/cloud.toml");
        is_current(&path, &reference::<Config>("tributary-cloud")).unwrap();
    }

    #[test]
    fn routes_are_read_from_a_file_and_an_unknown_key_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cloud.toml");
        let text = "[[routes]]\nfilter = \"a/#\"\nstream = \"a\"\npartition = \"key\"\n";
        std::fs::write(&path, text).unwrap();
        let config = Loader::<Config>::new().file(&path).unwrap().load().unwrap();
        assert_eq!(config.routes.len(), 1);
        std::fs::write(&path, "[bridge]\nrecieve_maximum = 3\n").unwrap();
        let error = Loader::<Config>::new().file(&path).unwrap_err().to_string();
        assert!(error.contains("recieve_maximum"), "{error}");
    }
}
