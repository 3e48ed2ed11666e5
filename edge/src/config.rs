//! All settings of the edge: only composes each part's own `Settings`.
//!
//! Change here: which parts have settings. Not here: any part's settings, reading files and flags (`shared::config`).

use tributary_shared::{auth, connection, net, session, telemetry};

use crate::{downlink, inventory, lane, store, sys, uplink};

tributary_shared::settings! {
    /// Addresses without TLS. Port 0 picks a free one.
    pub struct Listen {
        /// MQTT clients, on loopback; `listeners` below are for others. Empty: none.
        pub mqtt: String = "127.0.0.1:1883".into(),
        /// HTTP: health, metrics, status.
        pub admin: String = "127.0.0.1:8081".into(),
    }
}

tributary_shared::settings! {
    /// Tributary's edge: an MQTT broker that keeps every message on disk and syncs it upstream.
    pub struct Config {
        /// Folder with everything the edge keeps; made if it is missing. One process at a time.
        pub data: String = "/var/lib/tributary-edge".into(),
        /// Name of this edge, unique at its cloud: 1 to 128 bytes without `/ + #`. Must be set.
        pub id: String = String::new(),
        /// Addresses without TLS. Port 0 picks a free one.
        pub listen: Listen = Listen::default(),
        /// More MQTT listeners, each with its own transport and means to prove a name. Beyond loopback they have TLS and a proof,
        /// and there are access rules.
        pub listeners: Vec<net::listener::Settings> = Vec::new(),
        /// How clients prove who they are. Files are read again when they change.
        pub auth: auth::Settings = auth::Settings::default(),
        /// Access rules. The first that speaks of a client, its action and the topic decides; where none does the answer is no.
        /// Without any rule everybody may do everything, and nothing is opened beyond loopback. Read again at SIGHUP.
        pub rules: Vec<auth::Rule> = Vec::new(),
        /// Limits of listeners.
        pub net: net::Settings = net::Settings::default(),
        /// MQTT connections: what a peer may cost before and after its CONNECT.
        pub connection: connection::Settings = connection::Settings::default(),
        /// Limits of MQTT sessions.
        pub session: session::Settings = session::Settings::default(),
        /// The store: one SQLite file in the data folder.
        pub store: store::Settings = store::Settings::default(),
        /// Lanes: what goes upstream, in classes that do not delay each other. The first that matches a topic takes it. None
        /// here and a cloud set: one lane `normal` takes everything.
        pub lanes: Vec<lane::Settings> = Vec::new(),
        /// The way to the cloud.
        pub uplink: uplink::Settings = uplink::Settings::default(),
        /// Commands from the cloud to devices.
        pub downlink: downlink::Settings = downlink::Settings::default(),
        /// What the edge tells clients about itself, below `$SYS/broker/`.
        pub sys: sys::Settings = sys::Settings::default(),
        /// What the edge tells its cloud about itself, as messages on topic `tributary/{edge}/inventory`.
        pub inventory: inventory::Settings = inventory::Settings::default(),
        /// Log lines, on stderr.
        pub telemetry: telemetry::Settings = telemetry::Settings::default(),
    }
}

impl Config {
    /// The lanes that take messages: none without a cloud.
    pub fn active_lanes(&self) -> Vec<lane::Settings> {
        let mut lanes = match (self.uplink.cloud.is_empty(), self.lanes.is_empty()) {
            (true, _) => Vec::new(),
            (false, true) => vec![lane::Settings::default()],
            (false, false) => self.lanes.clone(),
        };
        // What the edge says of itself waits for as little as possible.
        if let Some(first) = lanes.first_mut() {
            first.filters.push(inventory::topic(&self.id));
        }
        lanes
    }

    /// What single values cannot say of themselves. One sentence that names the key.
    pub fn check(&self) -> Result<(), String> {
        if self.id.is_empty() {
            return Err("this edge has no name: set `id`, or --id".to_owned());
        }
        let illegal = |c: char| matches!(c, '/' | '+' | '#') || c.is_control();
        if self.id.len() > 128 || self.id.contains(illegal) {
            return Err(format!("`id` = {:?} must be 1 to 128 bytes without / + #", self.id));
        }
        self.session.check_all("session")?;
        for (at, lane) in self.lanes.iter().enumerate() {
            lane.check_all()?;
            if self.lanes.iter().take(at).any(|other| other.name == lane.name) {
                return Err(format!("two lanes are named `{}`", lane.name));
            }
        }
        self.downlink.check_all()?;
        self.uplink.check_all()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tributary_shared::config::{Loader, is_current, reference};

    use super::*;

    #[test]
    fn the_reference_file_names_every_setting() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/edge.toml");
        is_current(&path, &reference::<Config>("tributary-edge")).unwrap();
    }

    #[test]
    fn the_examples_are_legal() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/examples");
        let config = Loader::<Config>::new().file(&folder.join("secured-gateway.toml")).unwrap();
        let config = config.load().unwrap();
        config.check().unwrap();
        assert_eq!((config.listeners.len(), config.rules.len()), (3, 5));
        auth::Permissions::new(&config.rules).unwrap();
    }

    #[test]
    fn lanes_come_from_a_file_and_without_a_cloud_there_are_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("edge.toml");
        let text = "id = \"gw1\"\n[[lanes]]\nname = \"critical\"\nfilters = [\"alarm/#\"]\npolicy = \"refuse\"\n";
        std::fs::write(&path, text).unwrap();
        let mut config = Loader::<Config>::new().file(&path).unwrap().load().unwrap();
        config.check().unwrap();
        assert!(config.active_lanes().is_empty());
        config.uplink.cloud = "mqtt://127.0.0.1:1884".to_owned();
        assert_eq!(config.active_lanes()[0].name, "critical");
        config.lanes.push(config.lanes[0].clone());
        assert!(config.check().unwrap_err().contains("critical"));
        std::fs::write(&path, "[store]\ncommit_windw_ms = 3\n").unwrap();
        let error = Loader::<Config>::new().file(&path).unwrap_err().to_string();
        assert!(error.contains("commit_windw_ms"), "{error}");
    }

    #[test]
    fn a_name_that_cannot_be_a_topic_level_is_refused() {
        for id in ["", "a/b", "a+", "#", "a\n"] {
            let config = Config { id: id.to_owned(), ..Config::default() };
            assert!(config.check().is_err(), "{id:?}");
        }
    }
}
