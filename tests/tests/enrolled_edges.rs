//! An edge gets its certificate with a one-time token, brings its messages over TLS that proves both sides, renews its
//! certificate by itself, also after the cloud was away, and is shut out when the operator says so.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, SystemTime},
};

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use tributary_tests::{
    Cloud, Device, Edge, http_get,
    process::{binary, free_address, until},
};

/// Seconds of an old certificate: it is renewed after 400 to 440, tried again every 10 to 30, and so many are over.
const LIFE_S: u64 = 600;
const OVER_S: u64 = 450;

/// A fleet: the authority's files, and a cloud that uses them.
struct Fleet {
    folder: tempfile::TempDir,
    cloud: Cloud,
    /// Where edges connect, `localhost:port`.
    edges: String,
}

fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(binary(program)).args(arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

impl Fleet {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ca = folder.path().join("ca");
        let ca_text = ca.to_str().unwrap();
        let made = run("tributary-cloud", &["ca", "init", "--dir", ca_text, "--host", "localhost"]);
        assert!(made.status.success(), "{}", said(&made));
        // The cloud must find the same ports again after it was away.
        let (mqtt, est) = (free_address().port(), free_address().port());
        let settings = format!(
            "[listen]\nest = '127.0.0.1:{est}'\n\n[[listeners]]\naddress = '127.0.0.1:{mqtt}'\ntransport = 'tls'\n\
             certificate = '{ca_text}/server.pem'\nkey = '{ca_text}/server.key'\nclient_ca = '{ca_text}/ca.pem'\n\n\
             [enrol]\nca = '{ca_text}/ca.pem'\nca_key = '{ca_text}/ca.key'\ncertificate = '{ca_text}/server.pem'\n\
             key = '{ca_text}/server.key'\nreached_at = 'localhost:{est}'\n"
        );
        let file = folder.path().join("cloud.toml");
        std::fs::write(&file, settings).unwrap();
        let data = format!("file://{}", folder.path().join("log").display());
        let cloud = Cloud::start_with(&data, &["--config", file.to_str().unwrap()]);
        Self { folder, cloud, edges: format!("localhost:{mqtt}") }
    }

    fn enroll(&self, arguments: &[&str]) -> String {
        let admin = self.cloud.admin.to_string();
        let output = run("tributary-cloud", &[&["enroll", "--admin", &admin], arguments].concat());
        assert!(output.status.success(), "{}", said(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    fn token(&self, id: &str) -> String {
        self.enroll(&["token", "--edge", id, "--ttl", "5m"]).trim().to_owned()
    }

    fn data(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Gives an edge a certificate for the same key that is to be renewed.
    fn make_old(&self, id: &str, data: &Path) {
        let read = |path: PathBuf| std::fs::read_to_string(path).unwrap();
        let (file, ca) = (data.join("identity/edge.pem"), self.folder.path().join("ca"));
        let authority = KeyPair::from_pem(&read(ca.join("ca.key"))).unwrap();
        let authority = Issuer::from_ca_cert_pem(&read(ca.join("ca.pem")), authority).unwrap();
        let mut params = CertificateParams::default();
        let name = format!("urn:tributary:edge:{id}");
        params.subject_alt_names = vec![SanType::URI(name.try_into().unwrap())];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let from = SystemTime::now() - Duration::from_secs(OVER_S);
        params.not_before = from.into();
        params.not_after = (from + Duration::from_secs(LIFE_S)).into();
        let key = KeyPair::from_pem(&read(file.clone())).unwrap();
        let certificate = params.signed_by(&key, &authority).unwrap();
        std::fs::write(file, key.serialize_pem() + &certificate.pem()).unwrap();
    }

    fn edge(&self, id: &str, data: &Path) -> Edge {
        let cloud = format!("mqtts://{}", self.edges);
        let quick = "uplink.backoff_max_ms=500";
        Edge::start_with(
            data,
            id,
            None,
            &["--cloud", &cloud, "--set", quick, "--set", "inventory.interval_s=0"],
        )
    }

    /// Records of all edges that the cloud has taken since it started.
    fn records(&self, id: &str) -> u64 {
        let page: serde_json::Value =
            serde_json::from_str(&http_get(self.cloud.admin, "/api/edges")).unwrap();
        let edges = page["edges"].as_array().unwrap();
        let edge = edges.iter().find(|edge| edge["id"] == id);
        edge.and_then(|edge| edge["total"].as_u64()).unwrap_or(0)
    }

    fn is_connected(&self, id: &str) -> bool {
        let page: serde_json::Value =
            serde_json::from_str(&http_get(self.cloud.admin, "/api/edges")).unwrap();
        let edges = page["edges"].as_array().unwrap();
        edges.iter().any(|edge| edge["id"] == id && edge["connected"] == true)
    }
}

fn enrol(data: &Path, token: &str) -> Output {
    run("tributary-edge", &["enrol", "--data", data.to_str().unwrap(), token])
}

/// Publishes so many messages, each acknowledged.
fn publish(edge: &Edge, count: usize) {
    let mut device = Device::connect(edge.mqtt, "device").unwrap();
    let messages = (0..count).map(|at| ("plant/a".to_owned(), format!("message {at}").into()));
    let mut acked = 0;
    device.publish_all(messages, 10, |_| acked += 1).unwrap();
    assert_eq!(acked, count);
}

/// Times that the certificate was renewed, or could not be (`failures`).
fn counted(edge: &Edge, what: &str) -> u64 {
    let page = http_get(edge.admin, "/metrics");
    let name = format!("tributary_uplink_certificate_{what}_total ");
    let value = page.lines().find_map(|line| line.strip_prefix(&name));
    value.and_then(|value| value.parse().ok()).unwrap_or(0)
}

#[test]
fn a_token_enrols_one_gateway_whose_certificate_renews_itself_until_it_is_denied() {
    let mut fleet = Fleet::start();
    let (token, data) = (fleet.token("gw1"), fleet.data("gw1"));
    let output = enrol(&data, &token);
    assert!(output.status.success(), "{}", said(&output));
    let again = enrol(&fleet.data("thief"), &token);
    assert!(said(&again).contains("this token has been used"), "{}", said(&again));

    let edge = fleet.edge("gw1", &data);
    publish(&edge, 10);
    until("the first messages arrive", || fleet.records("gw1") == 10);
    assert_eq!(counted(&edge, "renewals"), 0);
    drop(edge);
    // The cloud is away when the certificate is to be renewed, and back before it ends.
    fleet.cloud.process.kill();
    fleet.make_old("gw1", &data);
    let edge = fleet.edge("gw1", &data);
    publish(&edge, 10);
    until("a renewal fails", || counted(&edge, "failures") > 0);
    assert_eq!(counted(&edge, "renewals"), 0);
    fleet.cloud = fleet.cloud.restart();
    until("the rest arrives", || fleet.records("gw1") == 20);
    until("the certificate is renewed", || counted(&edge, "renewals") > 0);

    fleet.enroll(&["deny", "gw1"]);
    until("its connections are cut", || !fleet.is_connected("gw1"));
    publish(&edge, 5);
    until("the edge says why", || http_get(edge.admin, "/status").contains("deny list"));
    assert_eq!(fleet.records("gw1"), 20);
    assert!(fleet.enroll(&["list"]).contains("denied gw1"));
    fleet.enroll(&["allow", "gw1"]);
    until("what waited arrives", || fleet.records("gw1") == 25);
}

#[test]
fn a_certificate_of_another_edge_or_another_fleet_opens_nothing() {
    let (fleet, other) = (Fleet::start(), Fleet::start());
    let (data, theirs) = (fleet.data("gw1"), fleet.data("theirs"));
    for (from, data) in [(&fleet, &data), (&other, &theirs)] {
        let output = enrol(data, &from.token("gw1"));
        assert!(output.status.success(), "{}", said(&output));
    }
    // Its own fleet's certificate, and trust in this one.
    let ca = "identity/ca.pem";
    std::fs::copy(data.join(ca), theirs.join(ca)).unwrap();
    for (id, data, words) in [("gw2", &data, "another id"), ("gw1", &theirs, "another fleet")] {
        let edge = fleet.edge(id, data);
        publish(&edge, 1);
        until(words, || http_get(edge.admin, "/status").contains(words));
        assert_eq!(fleet.records(id), 0);
    }
}
