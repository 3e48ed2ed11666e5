//! All settings of the cloud: only composes each part's own `Settings`.
//!
//! Change here: which parts have settings. Not here: any part's settings, reading files and flags (`shared::config`).

use tributary_shared::{net, telemetry};

use crate::{amqp, bridge, cluster, engine, enrol, group, kafka, log, mqtt, peer, route::Rule};

tributary_shared::settings! {
    /// Addresses of the listeners. Port 0 picks a free one. Beyond loopback TLS and authentication are needed.
    pub struct Listen {
        /// MQTT clients and edges, without TLS; `listeners` below are for edges elsewhere.
        pub mqtt: String = "127.0.0.1:1884".into(),
        /// Kafka clients.
        pub kafka: String = "127.0.0.1:9092".into(),
        /// AMQP 0-9-1 clients.
        pub amqp: String = "127.0.0.1:5672".into(),
        /// Enrolment of edges (EST), with TLS. Empty: none.
        pub est: String = String::new(),
        /// The other nodes of the cluster; only a member of a cluster opens it.
        pub peer: String = "127.0.0.1:0".into(),
        /// HTTP: health, metrics, JSON API, console.
        pub admin: String = "127.0.0.1:8080".into(),
        /// MQTT connections at once, edges and clients together.
        pub connections: usize = 10_000,
        /// MQTT connections at once of one address (IPv6: of one /64 network). Loopback is not limited by this.
        pub connections_per_address: usize = 100,
        /// MQTT connections at once that have not identified themselves yet.
        pub handshakes: usize = 512,
        /// New MQTT connections a second, all addresses together. Loopback is not limited by this.
        pub connections_per_second: usize = 500 => 1..,
        /// Open listeners beyond loopback also without TLS and authentication. Anybody who reaches them can read and
        /// write everything.
        pub allow_insecure: bool = false,
    }
}

impl Listen {
    /// Limits of the MQTT listener.
    pub fn mqtt_limits(&self) -> net::Settings {
        net::Settings {
            connections: self.connections,
            connections_per_address: self.connections_per_address,
            handshakes: self.handshakes,
            connections_per_second: self.connections_per_second,
            allow_insecure: self.allow_insecure,
        }
    }
}

tributary_shared::settings! {
    /// Tributary's cloud: one durable log that Kafka, AMQP and MQTT clients share.
    pub struct Config {
        /// Where the data is: file:///path on this machine, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix on an
        /// object store, memory:// for trials.
        pub data: String = "file:///var/lib/tributary".into(),
        /// Addresses of the listeners. Port 0 picks a free one. Beyond loopback TLS and authentication are needed.
        pub listen: Listen = Listen::default(),
        /// MQTT listeners with TLS, for edges: each shows a certificate that `client_ca` has signed, and is who that says.
        pub listeners: Vec<net::listener::Settings> = Vec::new(),
        /// The cluster: many nodes over one bucket (or one shared folder, for trials).
        pub cluster: cluster::Settings = cluster::Settings::default(),
        /// Nodes among themselves: how they prove who they are, on `listen.peer`.
        pub peer: peer::Settings = peer::Settings::default(),
        /// Storage: where the shards lie and how they are written.
        pub engine: engine::Settings = engine::Settings::default(),
        /// The log: limits and defaults of streams.
        pub log: log::Settings = log::Settings::default(),
        /// The bridge: the door for edges on the MQTT listener.
        pub bridge: bridge::Settings = bridge::Settings::default(),
        /// Enrolment of edges (EST, RFC 7030): the fleet's authority, made by `tributary-cloud ca init`.
        pub enrol: enrol::Settings = enrol::Settings::default(),
        /// MQTT clients at the cloud.
        pub mqtt: mqtt::Settings = mqtt::Settings::default(),
        /// Kafka: what clients are told, and limits.
        pub kafka: kafka::Settings = kafka::Settings::default(),
        /// AMQP 0-9-1 head: what clients may negotiate and send.
        pub amqp: amqp::Settings = amqp::Settings::default(),
        /// Consumer groups: time-outs, limits, how long offsets are kept.
        pub groups: group::Settings = group::Settings::default(),
        /// Which stream a topic's messages go to. The first match wins; what none takes goes to stream mqtt.messages.
        pub routes: Vec<Rule> = Vec::new(),
        /// Log lines, on stderr.
        pub telemetry: telemetry::Settings = telemetry::Settings::default(),
    }
}

impl Config {
    /// What single values cannot say of themselves. One sentence that names the key.
    pub fn check(&self) -> Result<(), String> {
        self.mqtt.check_all()?;
        self.cluster.check_all()
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
