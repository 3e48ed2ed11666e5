//! An edge with TLS, WebSocket, a unix socket, names and rules: real clients get in as far as they may, others do not.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use ring::hmac;
use tributary_shared::mqtt::{
    Packet, Qos, Reason, Version,
    packet::{Connect, Publish, Subscribe, SubscribeFilter, SubscriptionOptions},
};
use tributary_tests::{
    Device, Edge,
    device::connect_packet,
    http_get,
    process::{binary, until},
};

/// ann's password.
const PASSWORD: &str = "correct horse";

const RULES: &str = r#"
[[rules]]
who = ["gw-*"]
action = "publish"
topics = ["up/%u/#"]

[[rules]]
who = ["gw-*"]
action = "subscribe"
topics = ["down/%u/#"]

[[rules]]
who = ["ann"]
topics = ["up/#", "down/#"]
"#;

/// A folder with certificates, users and settings, and the edge that has them.
struct Secured {
    folder: tempfile::TempDir,
    edge: Edge,
    /// Of gw-1.
    secret: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Secured {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "test authority");
        let key = KeyPair::generate().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write("ca.pem", &params.self_signed(&key).unwrap().pem());
        let issuer = Issuer::new(params, key);
        sign(folder.path(), &issuer, "server", &["localhost", "127.0.0.1"]);
        sign(folder.path(), &issuer, "gw-2", &["gw-2"]);
        passwd(folder.path(), &["ann"], Some(PASSWORD));
        let secret = passwd(folder.path(), &["--device", "gw-1"], None);
        write("edge.toml", &(settings(folder.path()) + RULES));
        let config = path(folder.path(), "edge.toml");
        let data = folder.path().join("data");
        let edge = Edge::start_with(&data, "gw", None, &["--config", &config]);
        Self { folder, edge, secret, issuer }
    }

    fn path(&self, name: &str) -> String {
        path(self.folder.path(), name)
    }

    fn listener(&self, at: usize) -> SocketAddr {
        self.edge.process.address(&format!("listeners[{at}]"))
    }

    fn gateway(&self) -> Connect {
        connect("gw-1", &self.secret, "gw-1")
    }

    /// A number of the metrics page.
    fn metric(&self, name: &str) -> u64 {
        let page = http_get(self.edge.admin, "/metrics");
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name} in {page}"))
    }

    /// SIGHUP, until the metric counts one more.
    fn reload(&self, counted: &str) {
        let before = self.metric(counted);
        let id = self.edge.process.id().to_string();
        assert!(Command::new("kill").args(["-HUP", &id]).status().unwrap().success());
        until(&format!("more than {before} {counted}"), || self.metric(counted) != before);
    }
}

fn path(folder: &Path, name: &str) -> String {
    folder.join(name).to_str().unwrap().to_owned()
}

/// 0: TLS, 1: TLS with client certificate, 2: WebSocket, 3: WebSocket over TLS, 4: unix, 5: IPv6.
fn settings(folder: &Path) -> String {
    let file = |name: &str| path(folder, name);
    let tls = format!("certificate = '{}'\nkey = '{}'\n", file("server.pem"), file("server.key"));
    let listener = |address: &str, transport: &str, more: &str| {
        format!("[[listeners]]\naddress = '{address}'\ntransport = '{transport}'\n{more}\n")
    };
    let ca = format!("{tls}client_ca = '{}'\nmethods = ['certificate']", file("ca.pem"));
    [
        format!("[auth]\npassword_file = '{}'\n\n", file("users")),
        listener("127.0.0.1:0", "tls", &tls),
        listener("127.0.0.1:0", "tls", &ca),
        listener("127.0.0.1:0", "ws", ""),
        listener("127.0.0.1:0", "wss", &tls),
        listener(&format!("unix:{}", file("mqtt.sock")), "tcp", ""),
        listener("[::1]:0", "tcp", ""),
    ]
    .concat()
}

fn sign(folder: &Path, issuer: &Issuer<'static, KeyPair>, file: &str, names: &[&str]) {
    let mut params = CertificateParams::default();
    let name = |name: &&str| match name.parse() {
        Ok(address) => SanType::IpAddress(address),
        Err(_) => SanType::DnsName((*name).try_into().unwrap()),
    };
    params.subject_alt_names = names.iter().map(name).collect();
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, issuer).unwrap().pem();
    fs::write(folder.join(format!("{file}.pem")), certificate).unwrap();
    let file = folder.join(format!("{file}.key"));
    fs::write(&file, key.serialize_pem()).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
}

/// Runs `passwd`; what it says.
fn passwd(folder: &Path, arguments: &[&str], input: Option<&str>) -> String {
    let mut command = Command::new(binary("tributary-edge"));
    command.args(["passwd", "--file", &path(folder, "users")]).args(arguments);
    let output = run(command, input.unwrap_or_default());
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

fn run(mut command: Command, input: &str) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut stdin = child.stdin.take().unwrap();
    // One that fails early does not read it.
    let _ = writeln!(stdin, "{input}");
    drop(stdin);
    child.wait_with_output().unwrap()
}

/// mosquitto's client, with arguments in one string.
fn mosquitto_pub(arguments: &str) -> Output {
    let mut command = Command::new("mosquitto_pub");
    command.args(arguments.split(' '));
    run(command, "")
}

fn python() -> PathBuf {
    let venv = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/venv/bin/python3");
    if venv.exists() { venv } else { "python3".into() }
}

/// paho over WebSocket: publishes one message at QoS 1, retained.
const PAHO: &str = r#"
import sys
import paho.mqtt.client as mqtt
host, port, ca, user, password, topic, payload = sys.argv[1:]
client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, user, transport="websockets", protocol=mqtt.MQTTv5)
client.username_pw_set(user, password)
if ca:
    client.tls_set(ca)
client.connect(host, int(port))
client.loop_start()
message = client.publish(topic, payload, qos=1, retain=True)
message.wait_for_publish(20)
sys.exit(0 if message.is_published() else 1)
"#;

// [MQTT-4.2-1]
// [MQTT311-7.1.1-1]
#[test]
fn real_clients_meet_whatever_carries_them() {
    let secured = Secured::start();
    let secret = &secured.secret;
    let ca = secured.path("ca.pem");
    let port = |at| secured.listener(at).port();
    let as_1 = format!("-u gw-1 -P {secret} -i gw-1 -q 1 -r -V 5");
    let as_2 = format!(
        "--cert {} --key {} -i gw-2 -q 1 -r",
        secured.path("gw-2.pem"),
        secured.path("gw-2.key")
    );
    for arguments in [
        format!("-h 127.0.0.1 -p {} --cafile {ca} {as_1} -t up/gw-1/tls -m 1", port(0)),
        format!("-h 127.0.0.1 -p {} --cafile {ca} {as_2} -t up/gw-2/certificate -m 2", port(1)),
        format!("--unix {} {as_1} -t up/gw-1/unix -m 3", secured.path("mqtt.sock")),
        format!("-h ::1 -p {} {as_1} -t up/gw-1/ipv6 -m 4", port(5)),
    ] {
        let output = mosquitto_pub(&arguments);
        assert!(output.status.success(), "{arguments}: {output:?}");
    }
    for (at, host, ca, topic, payload) in
        [(2, "127.0.0.1", "", "up/gw-1/ws", "5"), (3, "localhost", &*ca, "up/gw-1/wss", "6")]
    {
        let mut command = Command::new(python());
        let port = port(at).to_string();
        command.args(["-c", PAHO, host, &port, ca, "gw-1", secret, topic, payload]);
        let output = run(command, "");
        assert!(output.status.success(), "{topic}: {output:?}");
    }
    let mut command = Command::new("mosquitto_sub");
    command.args(["-h", "127.0.0.1", "-p", &port(0).to_string(), "--cafile", &ca]);
    command
        .args(["-u", "ann", "-P", PASSWORD, "-t", "up/#", "-C", "6", "-v", "-q", "1", "-W", "20"]);
    let output = run(command, "");
    let mut lines: Vec<&str> = std::str::from_utf8(&output.stdout).unwrap().lines().collect();
    lines.sort_unstable_by_key(|line| line.split(' ').nth(1));
    assert_eq!(
        lines,
        [
            "up/gw-1/tls 1",
            "up/gw-2/certificate 2",
            "up/gw-1/unix 3",
            "up/gw-1/ipv6 4",
            "up/gw-1/ws 5",
            "up/gw-1/wss 6",
        ],
        "{output:?}"
    );
}

// [MQTT-3.1.4-2]
#[test]
fn a_client_gets_in_with_its_own_proof_only_and_is_told_why_not() {
    let secured = Secured::start();
    let ca = secured.path("ca.pem");
    let plain = secured.edge.mqtt;
    let refused = |connect: Connect| {
        let error = Device::connect_with(plain, connect).unwrap_err().to_string();
        let code = error.split("Reason(").nth(1).and_then(|rest| rest.split(')').next());
        code.and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("{error}"))
    };
    let secret = &secured.secret;
    for (connect, reason) in [
        (connect("ann", "wrong", "c"), Reason::BAD_USER_NAME_OR_PASSWORD),
        (connect("nobody", PASSWORD, "c"), Reason::BAD_USER_NAME_OR_PASSWORD),
        (connect("gw-1", PASSWORD, "gw-1"), Reason::BAD_USER_NAME_OR_PASSWORD),
        (connect("gw-1", secret, "gw-2"), Reason::CLIENT_ID_NOT_VALID),
        (connect("gw-1", secret, ""), Reason::CLIENT_ID_NOT_VALID),
        (connect_packet("c", Version::V5), Reason::NOT_AUTHORIZED),
    ] {
        assert_eq!(Reason(refused(connect.clone())), reason, "{connect:?}");
    }
    assert_eq!(secured.metric("tributary_auth_refused_total{why=\"wrong\"}"), 3);
    assert_eq!(secured.metric("tributary_auth_refused_total{why=\"client_id\"}"), 2);
    assert_eq!(secured.metric("tributary_auth_refused_total{why=\"missing\"}"), 1);
    // mosquitto's client ends with the 3.1.1 return code.
    let port = secured.listener(0).port();
    let as_ann = format!("-h 127.0.0.1 -p {port} --cafile {ca} -u ann -t up/x -m x -V 311");
    assert_eq!(mosquitto_pub(&format!("{as_ann} -P wrong")).status.code(), Some(4));
    // Without a certificate the other TLS listener does not even listen.
    let port = secured.listener(1).port();
    let as_ann = format!("-h 127.0.0.1 -p {port} --cafile {ca} -u ann -P x -t up/x -m x");
    assert!(!mosquitto_pub(&as_ann).status.success());
    // A page of somebody else does not get a WebSocket.
    let mut stream = TcpStream::connect(secured.listener(2)).unwrap();
    write!(
        stream,
        "GET / HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
}

fn subscribe(device: &mut Device, filters: &[&str]) -> Vec<u8> {
    let options = SubscriptionOptions { qos: Qos::AtLeastOnce, ..SubscriptionOptions::default() };
    let filters = filters.iter().map(|&filter| SubscribeFilter { filter: filter.into(), options });
    let subscribe = Subscribe {
        packet_id: 900.try_into().unwrap(),
        filters: filters.collect(),
        subscription_id: None,
        user_properties: Vec::new(),
    };
    device.send(&Packet::Subscribe(subscribe)).unwrap();
    loop {
        if let Packet::SubAck(answer) = device.receive().unwrap() {
            return answer.reasons.iter().map(|reason| reason.0).collect();
        }
    }
}

fn publish(device: &mut Device, topic: &str, payload: &str) -> u8 {
    let publish = Publish {
        qos: Qos::AtLeastOnce,
        topic: topic.into(),
        payload: payload.to_owned().into(),
        ..Publish::default()
    };
    device.publish(publish).unwrap().unwrap().reason.0
}

/// A CONNECT with a name and password.
fn connect(user: &str, password: &str, client_id: &str) -> Connect {
    Connect {
        user_name: Some(user.into()),
        password: Some(password.to_owned().into()),
        ..connect_packet(client_id, Version::V5)
    }
}

/// Why the edge ended the connection.
fn told(device: &mut Device) -> Reason {
    loop {
        if let Packet::Disconnect(disconnect) = device.receive().unwrap() {
            return disconnect.reason;
        }
    }
}

#[test]
fn rules_hold_for_every_packet_and_change_while_the_edge_runs() {
    let secured = Secured::start();
    let plain = secured.edge.mqtt;
    let mut gateway = Device::connect_with(plain, secured.gateway()).unwrap();
    assert_eq!(publish(&mut gateway, "up/gw-1/t", "1"), 0);
    assert_eq!(publish(&mut gateway, "up/gw-2/t", "1"), 0x87);
    assert_eq!(publish(&mut gateway, "down/gw-1/t", "1"), 0x87);
    let filters = ["down/gw-1/#", "down/+/x", "#", "$share/g/down/gw-1/x", "up/gw-1/t"];
    assert_eq!(subscribe(&mut gateway, &filters), [1, 0x87, 0x87, 1, 0x87]);
    let mut ann = Device::connect_with(plain, connect("ann", PASSWORD, "desk")).unwrap();
    assert_eq!(subscribe(&mut ann, &["up/#"]), [1]);
    assert_eq!(publish(&mut ann, "down/gw-1/x", "2"), 0);

    let config = secured.path("edge.toml");
    let other = RULES.replace("\"up/#\", \"down/#\"", "\"down/#\"");
    fs::write(&config, settings(secured.folder.path()) + &other).unwrap();
    secured.reload("tributary_access_reloads_total");
    // ann may not have up/# any more, and learns of it; the gateway is left alone.
    assert_eq!(told(&mut ann), Reason::NOT_AUTHORIZED);
    assert_eq!(publish(&mut gateway, "up/gw-1/t", "3"), 0);
    assert_eq!(secured.metric("tributary_denied_total{what=\"revoked\"}"), 1);
    assert_eq!(secured.metric("tributary_denied_total{what=\"publish\"}"), 2);

    fs::write(
        &config,
        settings(secured.folder.path()) + "[[rules]]\nwho = ['ann']\ntopics = ['#/x']\n",
    )
    .unwrap();
    secured.reload("tributary_access_reload_failures_total");
    assert_eq!(publish(&mut gateway, "up/gw-1/t", "4"), 0, "the old rules stay");
    assert!(http_get(secured.edge.admin, "/health").contains("access could not be read again"));
}

#[test]
fn a_token_is_a_proof_until_it_expires() {
    let secured = Secured::start();
    let secret = "0123456789abcdef0123456789abcdef";
    fs::write(secured.path("token"), secret).unwrap();
    let (users, token) = (secured.path("users"), secured.path("token"));
    let auth = format!("[auth]\npassword_file = '{users}'\ntoken_secret_files = ['{token}']\n");
    let config = secured.path("tokens.toml");
    fs::write(&config, auth + RULES).unwrap();
    let data = secured.folder.path().join("tokens");
    let edge = Edge::start_with(&data, "gw", None, &["--config", &config]);
    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs());
    let token = |expires: i64| {
        let encode = |part: &[u8]| URL_SAFE_NO_PAD.encode(part);
        let claims = format!(r#"{{"sub":"gw-3","exp":{expires}}}"#);
        let signed = format!("{}.{}", encode(br#"{"alg":"HS256"}"#), encode(claims.as_bytes()));
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        format!("{signed}.{}", encode(hmac::sign(&key, signed.as_bytes()).as_ref()))
    };
    // Clocks may differ by a minute.
    let now = now.unwrap() - 60;
    let by_token = |expires| connect("", &token(expires), "gw-3");
    assert!(Device::connect_with(edge.mqtt, by_token(now - 1)).is_err());
    let mut device = Device::connect_with(edge.mqtt, by_token(now + 3)).unwrap();
    assert_eq!(publish(&mut device, "up/gw-3/t", "1"), 0);
    assert_eq!(publish(&mut device, "up/gw-1/t", "1"), 0x87);
    assert_eq!(told(&mut device), Reason::NOT_AUTHORIZED);
    assert!(Device::connect_with(edge.mqtt, secured.gateway()).is_ok(), "passwords too");
}

#[test]
fn names_and_certificates_change_while_the_edge_runs() {
    let secured = Secured::start();
    let plain = secured.edge.mqtt;
    let mut before = Device::connect_with(plain, secured.gateway()).unwrap();
    let new = passwd(secured.folder.path(), &["--device", "gw-1"], None);
    secured.reload("tributary_access_reloads_total");
    assert!(Device::connect_with(plain, secured.gateway()).is_err(), "the old secret");
    assert_eq!(told(&mut before), Reason::NOT_AUTHORIZED, "and it is out");
    let fresh = connect("gw-1", &new, "gw-1");
    Device::connect_with(plain, fresh.clone()).unwrap();
    passwd(secured.folder.path(), &["--delete", "gw-1"], None);
    secured.reload("tributary_access_reloads_total");
    assert!(Device::connect_with(plain, fresh).is_err());

    let expires = "tributary_tls_certificate_expires_seconds{listener=\"listeners[0]\"}";
    let ends = secured.metric(expires);
    fs::write(secured.path("server.pem"), "nonsense").unwrap();
    secured.reload("tributary_access_reload_failures_total");
    let ca = secured.path("ca.pem");
    let port = secured.listener(0).port();
    let arguments = format!("-h 127.0.0.1 -p {port} --cafile {ca} -u ann -t up/x -m x -q 1 -i a");
    let by_ann = |more: &str| {
        let mut command = Command::new("mosquitto_pub");
        command.args(arguments.split(' ')).args(["-P", PASSWORD]).args(more.split(' '));
        run(command, "")
    };
    assert!(by_ann("-V 5").status.success(), "the old certificate is served");
    // Of an authority that clients do not know.
    let stranger = Issuer::new(CertificateParams::default(), KeyPair::generate().unwrap());
    sign(secured.folder.path(), &stranger, "server", &["127.0.0.1"]);
    secured.reload("tributary_access_reloads_total");
    assert!(!by_ann("-V 5").status.success(), "the new one is");
    sign(secured.folder.path(), &secured.issuer, "server", &["127.0.0.1"]);
    secured.reload("tributary_access_reloads_total");
    assert!(by_ann("-V 5").status.success());
    assert!(secured.metric(expires) >= ends);
}

/// mosquitto#3553, emqx#3340, nanomq#2333.
#[test]
fn a_session_stays_its_owners_through_a_restart() {
    let mut secured = Secured::start();
    passwd(secured.folder.path(), &["bob"], Some("another password"));
    secured.reload("tributary_access_reloads_total");
    let kept = |connect| Connect { clean_start: false, session_expiry: Some(3600), ..connect };
    let ann = kept(connect("ann", PASSWORD, "desk"));
    let mut device = Device::connect_with(secured.edge.mqtt, ann.clone()).unwrap();
    assert_eq!(subscribe(&mut device, &["up/#"]), [1]);
    drop(device);
    let mut gateway = Device::connect_with(secured.edge.mqtt, secured.gateway()).unwrap();
    assert_eq!(publish(&mut gateway, "up/gw-1/t", "for ann"), 0);
    drop(gateway);
    secured.edge = secured.edge.restart();
    for clean_start in [true, false] {
        let bob = connect("bob", "another password", "desk");
        let bob = Connect { clean_start, ..bob };
        let error = Device::connect_with(secured.edge.mqtt, bob).unwrap_err().to_string();
        assert!(error.contains("Reason(135)"), "{error}");
    }
    let mut device = Device::connect_with(secured.edge.mqtt, ann).unwrap();
    assert!(device.connack.session_present);
    assert_eq!(&device.message().unwrap().payload[..], b"for ann");
}

/// mosquitto CVE-2023-0809, CVE-2017-7651; NanoMQ CVE-2026-21888, CVE-2026-25627.
#[test]
fn lengths_are_not_believed_before_a_client_is_known() {
    let secured = Secured::start();
    let before = secured.edge.process.rss_kib();
    let upgrade = "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n";
    let mut open = Vec::new();
    for _ in 0..30 {
        // A WebSocket frame of nearly all bytes there are, and in it a CONNECT of 256 MB.
        let mut stream = TcpStream::connect(secured.listener(2)).unwrap();
        stream.write_all(upgrade.as_bytes()).unwrap();
        let mut head = [0; 12];
        stream.read_exact(&mut head).unwrap();
        assert_eq!(&head, b"HTTP/1.1 101");
        let mut frame =
            vec![0x82, 0xFF, 0x7F, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0];
        frame.extend(b"\x10\xFF\xFF\xFF\x7F\x00\x04MQTT");
        stream.write_all(&frame).unwrap();
        open.push(stream);
    }
    for mut stream in open {
        let mut rest = Vec::new();
        // Closed or reset, at once and not when 256 MB have come.
        let _ = stream.read_to_end(&mut rest);
    }
    let grown = secured.edge.process.rss_kib().saturating_sub(before);
    assert!(grown < 16 * 1024, "{grown} KiB");
    assert!(Device::connect_with(secured.edge.mqtt, secured.gateway()).is_ok(), "and it serves");
}

#[test]
fn check_says_what_would_be_open_to_whom() {
    let secured = Secured::start();
    let check = |more: &[&str]| {
        let mut command = Command::new(binary("tributary-edge"));
        command.args(["check", "--id", "gw", "--config", &secured.path("edge.toml")]).args(more);
        let output = run(command, "");
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    };
    let (good, text) = check(&[]);
    assert!(good, "{text}");
    for part in [
        "(listeners[0]): TLS, for this machine only.\n  Clients show a name and password, or a name and proof of a password (SCRAM-SHA-256).\n  Its certificate ends in",
        "(listeners[1]): TLS, for this machine only.\n  Clients show a client certificate.",
        "(listeners[3]): WebSocket over TLS,",
        "2 names with passwords",
        "  2. gw-* may subscribe to down/%u/#.\n  3. ann may publish and subscribe to up/#, down/#.\n  Nobody may do anything else.",
    ] {
        assert!(text.contains(part), "{part}\nis not in\n{text}");
    }
    let (good, text) = check(&["--mqtt", "0.0.0.0:1883"]);
    assert!(!good && text.contains("listen.mqtt") && text.contains("TLS"), "{text}");
    let (good, text) = check(&["--set", "auth.password_file=/no/such"]);
    assert!(!good && text.contains("auth.password_file") && text.contains("/no/such"), "{text}");
}
