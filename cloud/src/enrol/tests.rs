//! Enrolment as a gateway meets it: EST over real TLS, tokens in a log.

use std::{io::Write as _, path::Path, process::Command};

use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tributary_shared::{
    auth::certificate::EDGE,
    enrol::{from_body, from_pkcs7, to_body},
    net, tasks,
};

use super::*;
use crate::{
    cluster::{Addresses, Cluster},
    log::testing::test_log,
    peer::{self, Peers},
};

struct Case {
    folder: TempDir,
    enrol: Enrol,
    at: String,
    log: Log,
    stop: CancellationToken,
}

impl Drop for Case {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn settings(folder: &Path) -> Settings {
    let file = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    Settings {
        ca: file("ca.pem"),
        ca_key: file("ca.key"),
        certificate: file("server.pem"),
        key: file("server.key"),
        reached_at: "localhost:8443".to_owned(),
        ..Settings::default()
    }
}

impl Case {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let now_s = (wall_ms() / 1_000) as u64;
        authority::init(folder.path(), "fleet", now_s).unwrap();
        authority::server(folder.path(), &["localhost".to_owned()], now_s).unwrap();
        let settings = settings(folder.path());
        let log = test_log(1).await.unwrap();
        let enrol = Enrol::open(log.clone(), settings.clone()).await.unwrap();
        let listener = net::bind("127.0.0.1:0".parse().unwrap(), "test").unwrap();
        let at = format!("localhost:{}", listener.local_addr().unwrap().port());
        let stop = CancellationToken::new();
        let cluster = Cluster::alone(Addresses::default(), 1);
        let peers = Peers::open(&peer::Settings::default(), cluster).unwrap();
        let tls = est::tls(&settings).unwrap();
        let (enrolling, log_of, until) = (enrol.clone(), log.clone(), stop.clone());
        let door = est::Door { tls, enrol: enrolling, log: log_of, peers, stop: until };
        let serving = est::serve(listener, door, stop.clone());
        tasks::spawn("est", serving);
        Self { folder, enrol, at, log, stop }
    }

    async fn token(&self, id: &str, ttl_s: u64) -> Token {
        Token::parse(&self.enrol.token(id, ttl_s).await.unwrap()).unwrap()
    }

    /// curl, with the fleet's authority; code and body.
    async fn curl(&self, path: &str, more: &[&str]) -> (u16, String) {
        let ca = self.folder.path().join("ca.pem");
        let url = format!("https://{}/.well-known/est{path}", self.at);
        let mut curl = Command::new("curl");
        curl.args(["-s", "--max-time", "20", "-w", "\n%{http_code}", "--cacert"]).arg(ca);
        curl.args(more).arg(url);
        let output = tokio::task::spawn_blocking(move || curl.output()).await.unwrap().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let (body, code) = text.rsplit_once('\n').unwrap();
        (code.parse().unwrap(), body.to_owned())
    }

    async fn post(&self, id: &str, secret: &str, request: &str) -> (u16, String) {
        let user = format!("{id}:{secret}");
        self.curl("/simpleenroll", &["-u", &user, "--data-binary", request]).await
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

fn has_curl() -> bool {
    let there = Command::new("curl").arg("--version").output().is_ok();
    if !there {
        writeln!(std::io::stderr(), "SKIP no curl on this machine").unwrap();
    }
    there
}

fn request(id: &str, key: &KeyPair) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(format!("{EDGE}{id}").try_into().unwrap())];
    to_body(params.serialize_request(key).unwrap().der())
}

fn certificate(body: &str) -> Vec<u8> {
    from_pkcs7(&from_body(body.as_bytes()).unwrap()).unwrap().remove(0)
}

fn pem(der: &[u8]) -> String {
    format!("-----BEGIN CERTIFICATE-----\n{}-----END CERTIFICATE-----\n", to_body(der))
}

#[tokio::test]
async fn a_token_gives_one_key_a_certificate_and_nobody_else() {
    if !has_curl() {
        return;
    }
    let case = Case::new().await;
    let token = case.token("gw1", 60).await;
    let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    for (id, secret, body, code) in [
        ("gw1", "wrong", request("gw1", &key), 401),
        ("gw2", &*token.secret, request("gw2", &key), 401),
        ("gw1", &token.secret, request("gw2", &key), 400),
        ("gw1", &token.secret, "no base64".to_owned(), 400),
        ("gw1", &token.secret, to_body(b"no request"), 400),
        ("gw1", &token.secret, "A".repeat(20_000), 413),
        ("gw1", &token.secret, request("gw1", &key), 200),
        ("gw1", &token.secret, request("gw1", &key), 200),
        ("gw1", &token.secret, request("gw1", &other), 401),
    ] {
        let (said, text) = case.post(id, secret, &body).await;
        assert_eq!(said, code, "{id}: {text}");
    }
    let old = case.token("gw1", 1).await;
    tributary_shared::clock::reach(wall_ms() + 1_100).await;
    let (code, text) = case.post("gw1", &old.secret, &request("gw1", &other)).await;
    assert_eq!((code, &*text), (401, "this token has expired\n"));
    // Another node, or this one after a restart, knows what was used.
    let again = Enrol::open(case.log.clone(), settings(case.folder.path())).await.unwrap();
    let der = from_body(request("gw1", &other).as_bytes()).unwrap();
    assert!(again.enrol("gw1", &token.secret, &der).await.is_err());
    assert_eq!(again.list().await.unwrap().0[0].0, "gw1");
}

#[tokio::test]
async fn openssl_reads_what_est_answers_and_a_certificate_renews_itself() {
    if !has_curl() {
        return;
    }
    let case = Case::new().await;
    let token = case.token("gw1", 60).await;
    let (code, body) = case.curl("/cacerts", &[]).await;
    assert_eq!((code, pin(&certificate(&body))), (200, token.pin));
    if Command::new("openssl").arg("version").output().is_ok() {
        let text = format!("-----BEGIN PKCS7-----\n{body}-----END PKCS7-----\n");
        let file = case.write("ca.p7", &text);
        let read = Command::new("openssl").args(["pkcs7", "-print_certs", "-in", &file]).output();
        let read = String::from_utf8(read.unwrap().stdout).unwrap();
        assert!(read.contains("CN = fleet") && read.contains("BEGIN CERTIFICATE"), "{read}");
    }
    let (key, next) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let (_, body) = case.post("gw1", &token.secret, &request("gw1", &key)).await;
    let first = certificate(&body);
    let cert = case.write("gw1.pem", &pem(&first));
    let key = case.write("gw1.key", &key.serialize_pem());
    let renew = async |body: &str| {
        let more = ["--cert", &cert, "--key", &key, "--data-binary", body];
        case.curl("/simplereenroll", &more).await
    };
    assert_eq!(renew(&request("gw2", &next)).await.0, 400, "for another id");
    let (code, body) = renew(&request("gw1", &next)).await;
    assert_eq!(code, 200, "{body}");
    assert_ne!(facts(&first).unwrap().serial, facts(&certificate(&body)).unwrap().serial);
    let body = request("gw1", &next);
    assert_eq!(case.curl("/simplereenroll", &["--data-binary", &body]).await.0, 401);
    // Denied by serial number, as openssl prints it; and allowed again.
    let serial = facts(&first).unwrap().serial.to_uppercase();
    assert!(!case.enrol.deny("gw9").await.unwrap().known);
    let newest = case.enrol.list().await.unwrap().0[0].1.serial.clone();
    let pairs: Vec<_> = newest.as_bytes().chunks(2).map(String::from_utf8_lossy).collect();
    let newest = pairs.join(":").to_uppercase();
    assert!(case.enrol.deny(&newest).await.unwrap().known);
    assert!(case.enrol.allow(&newest.replace(':', "")).await.unwrap());
    case.enrol.deny(&serial).await.unwrap();
    assert_eq!(renew(&body).await.0, 403);
    let again = Enrol::open(case.log.clone(), settings(case.folder.path())).await.unwrap();
    assert!(again.is_denied("gw1", &serial.to_lowercase()), "after a restart");
    assert!(case.enrol.allow(&serial).await.unwrap());
    assert_eq!(renew(&body).await.0, 200);
}
