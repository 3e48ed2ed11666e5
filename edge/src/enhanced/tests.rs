//! A client that speaks AUTH, the door, and the session core behind it.

use std::{collections::HashMap, fs, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::BytesMut;
use ring::{digest, hmac, pbkdf2};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;
use tributary_shared::{
    auth::{self, Certificate, password::Stored},
    connection::{Context, Handle, Incoming, Settings},
    mqtt::{
        Packet, Reader, Version,
        packet::{ConnAck, Connect, Disconnect},
        write::write,
    },
    net::{Gate, Stream, listener::Arrived},
    session::{Decision, Effect, Event, Fanout, Restored, State},
};

use super::*;
use crate::listen::Door;

const METHOD: &str = "SCRAM-SHA-256";
const METHODS: [Method; 2] = [Method::Password, Method::Scram];

/// What a client that asks for enhanced authentication meets.
struct Server {
    folder: tempfile::TempDir,
    settings: auth::Settings,
    door: Arc<Door>,
    gate: Arc<Gate>,
}

impl Server {
    /// Knows ann by her password "pencil", and bob by his, "rubber".
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let password_file = folder.path().join("users").to_str().unwrap().to_owned();
        let (ann, bob) = (Stored::for_scram(b"pencil"), Stored::for_scram(b"rubber"));
        fs::write(&password_file, format!("ann:{}\nbob:{}\n", ann.unwrap(), bob.unwrap())).unwrap();
        let settings = auth::Settings { password_file, ..auth::Settings::default() };
        let identities = Identities::open(&settings).unwrap();
        let (incoming, queue) = mpsc::channel(16);
        tokio::spawn(broker(queue));
        let stop = CancellationToken::new();
        let context =
            Arc::new(Context::new(Handle { incoming }, Settings::default(), 1 << 20, stop));
        let door = Arc::new(Door { context, identities, clock: Clock::start() });
        Self { folder, settings, door, gate: Gate::new(tributary_shared::net::Settings::default()) }
    }

    /// A client that has sent this CONNECT to a listener with these methods.
    async fn connect(&self, connect: Connect, methods: &[Method]) -> Client {
        let (near, far) = UnixStream::pair().unwrap();
        let arrived = Box::new(Arrived {
            stream: Stream::Unix(far),
            address: None,
            certificate: Certificate::None,
            held: None,
            deadline: Instant::now() + Duration::from_secs(5),
            admitted: self.gate.admit(None).unwrap(),
        });
        tokio::spawn(Arc::clone(&self.door).client(arrived, methods.into()));
        let reader = Reader::client(Version::V5, 1 << 20);
        let mut client = Client { stream: near, reader, buffer: BytesMut::new() };
        client.send(&Packet::Connect(Box::new(connect))).await;
        client
    }

    /// Asked for a proof.
    async fn asked(&self, user: &str) -> (Client, String) {
        let mut client = self.connect(connect(METHOD, Some(&first(user))), &METHODS).await;
        let question = client.question().await;
        (client, question)
    }

    /// In, as `user`.
    async fn joined(&self, user: &str, password: &str) -> (Client, ConnAck) {
        let (mut client, question) = self.asked(user).await;
        client.auth(0x18, METHOD, &proof(user, password, &question).0).await;
        match client.receive().await {
            Some(Packet::ConnAck(connack)) => (client, *connack),
            other => panic!("{other:?}"),
        }
    }
}

/// Decides as a real one, stores nothing.
async fn broker(mut queue: mpsc::Receiver<Incoming>) {
    let clock = Clock::start();
    let (settings, restored) =
        (tributary_shared::session::Settings::default(), Restored::default());
    let mut state = State::new(settings, Fanout::AtOnce, restored, clock.now());
    let mut outboxes = HashMap::new();
    while let Some(incoming) = queue.recv().await {
        let events = match incoming {
            Incoming::Connect { connection, connect, peer, outbox } => {
                outboxes.insert(connection, outbox);
                vec![Event::Connect { connection, connect, peer }]
            }
            Incoming::Packets(connection, packets) => {
                packets.into_iter().map(|packet| Event::Packet { connection, packet }).collect()
            }
            Incoming::Closed(connection, reason) => vec![Event::Closed { connection, reason }],
        };
        let mut decision = Decision::default();
        for event in events {
            state.decide(event, clock.now(), &mut decision);
        }
        for effect in decision.effects {
            match effect {
                Effect::Send { connection, outgoing } => {
                    outboxes[&connection].send(outgoing).unwrap();
                }
                Effect::Close { connection, .. } => outboxes[&connection].close(),
                _ => {}
            }
        }
    }
}

struct Client {
    stream: UnixStream,
    reader: Reader,
    buffer: BytesMut,
}

impl Client {
    async fn send(&mut self, packet: &Packet) {
        let mut bytes = BytesMut::new();
        write(packet, Version::V5, &mut bytes);
        self.stream.write_all(&bytes).await.unwrap();
    }

    async fn auth(&mut self, reason: u8, method: &str, data: &str) {
        let data = Some(data.to_owned().into());
        let auth = connection::auth(Reason(reason), Some(method.into()), data);
        self.send(&Packet::Auth(auth)).await;
    }

    /// `None`: the end.
    async fn receive(&mut self) -> Option<Packet> {
        loop {
            if let Some(packet) = self.reader.read(&mut self.buffer).unwrap() {
                return Some(packet);
            }
            if self.stream.read_buf(&mut self.buffer).await.unwrap() == 0 {
                return None;
            }
        }
    }

    /// The next packet is an AUTH with our method.
    async fn answer(&mut self, reason: u8) -> String {
        let Some(Packet::Auth(auth)) = self.receive().await else { panic!("no AUTH") };
        assert_eq!((auth.reason.0, auth.method.as_deref()), (reason, Some(METHOD)));
        String::from_utf8(auth.data.unwrap_or_default().to_vec()).unwrap()
    }

    async fn question(&mut self) -> String {
        self.answer(0x18).await
    }

    /// It is refused with that code and closed.
    async fn refused(mut self, reason: u8) {
        match self.receive().await {
            Some(Packet::ConnAck(connack)) => assert_eq!(connack.reason.0, reason),
            other => panic!("{other:?}"),
        }
        assert_eq!(self.receive().await, None);
    }

    /// It is disconnected with that code and closed.
    async fn disconnected(mut self, reason: u8) {
        let last = Packet::Disconnect(Disconnect::new(Reason(reason)));
        assert_eq!(self.receive().await, Some(last));
        assert_eq!(self.receive().await, None);
    }

    async fn is_served(&mut self) {
        self.send(&Packet::PingReq).await;
        assert_eq!(self.receive().await, Some(Packet::PingResp));
    }
}

fn connect(method: &str, data: Option<&str>) -> Connect {
    Connect {
        version: Version::V5,
        client_id: "c".into(),
        clean_start: true,
        keep_alive: 0,
        will: None,
        user_name: None,
        password: None,
        session_expiry: Some(600),
        receive_maximum: None,
        maximum_packet_size: None,
        topic_alias_maximum: 0,
        request_response_information: false,
        request_problem_information: true,
        user_properties: Vec::new(),
        authentication_method: (!method.is_empty()).then(|| method.into()),
        authentication_data: data.map(|data| data.to_owned().into()),
    }
}

fn first(user: &str) -> String {
    format!("n,,n={user},r=abc")
}

/// A client's proof, and what the server has to prove.
fn proof(user: &str, password: &str, question: &str) -> (String, String) {
    let sign = |key: &[u8], text: &[u8]| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text);
    let part = |key: &str| question.split(',').find_map(|part| part.strip_prefix(key)).unwrap();
    let (nonce, salt) = (part("r="), STANDARD.decode(part("s=")).unwrap());
    let (mut salted, rounds) = ([0; 32], part("i=").parse().unwrap());
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, &salt, password.as_bytes(), &mut salted);
    let key = sign(&salted, b"Client Key");
    let stored = digest::digest(&digest::SHA256, key.as_ref());
    let last = format!("c=biws,r={nonce}");
    let said = format!("n={user},r=abc,{question},{last}");
    let signature = sign(stored.as_ref(), said.as_bytes());
    let proof: Vec<u8> =
        key.as_ref().iter().zip(signature.as_ref()).map(|(one, other)| one ^ other).collect();
    let theirs = sign(sign(&salted, b"Server Key").as_ref(), said.as_bytes());
    (format!("{last},p={}", STANDARD.encode(proof)), format!("v={}", STANDARD.encode(theirs)))
}

// [MQTT-3.15.2-1] [MQTT-4.12.0-2] [MQTT-4.12.0-3] [MQTT-4.12.0-5]
#[tokio::test]
async fn both_sides_prove_that_they_know_the_password() {
    let server = Server::start();
    let (mut client, question) = server.asked("ann").await;
    let (last, ours) = proof("ann", "pencil", &question);
    client.auth(0x18, METHOD, &last).await;
    let Some(Packet::ConnAck(connack)) = client.receive().await else { panic!("no CONNACK") };
    assert_eq!((connack.reason, connack.session_present), (Reason::SUCCESS, false));
    assert_eq!(connack.properties.authentication_method.as_deref(), Some(METHOD));
    assert_eq!(connack.properties.authentication_data.as_deref(), Some(ours.as_bytes()));
    client.is_served().await;
    // A client may keep its first message until it is asked for it.
    let mut late = server.connect(connect(METHOD, None), &METHODS).await;
    assert_eq!(late.question().await, "");
    late.auth(0x18, METHOD, &first("ann")).await;
    let question = late.question().await;
    late.auth(0x18, METHOD, &proof("ann", "pencil", &question).0).await;
    assert!(matches!(late.receive().await, Some(Packet::ConnAck(_))));
}

// [MQTT-4.12.0-1]
#[tokio::test]
async fn a_method_that_is_not_there_refused() {
    let server = Server::start();
    for (method, methods) in [
        ("SCRAM-SHA-1", &METHODS[..]),
        ("SCRAM-SHA-256-PLUS", &METHODS),
        ("scram-sha-256", &METHODS),
        (METHOD, &[Method::Password, Method::Anonymous]),
        (METHOD, &[]),
    ] {
        server.connect(connect(method, Some(&first("ann"))), methods).await.refused(0x8C).await;
    }
    let none = Stored::for_new_device().unwrap().1;
    fs::write(&server.settings.password_file, format!("gw:{none}\n")).unwrap();
    server.door.identities.reload(&server.settings).unwrap();
    let client = server.connect(connect(METHOD, Some(&first("gw"))), &METHODS).await;
    client.refused(0x8C).await;
}

/// Nothing is known of a stranger's session, and nothing of it is touched.
// [MQTT-4.12.0-4]
#[tokio::test]
async fn a_wrong_proof_is_refused_and_leaves_the_session_alone() {
    let server = Server::start();
    let (mut ann, _) = server.joined("ann", "pencil").await;
    for (user, password) in [("ann", "rubber"), ("nobody", "pencil"), ("bob", "pencil")] {
        let (mut client, question) = server.asked(user).await;
        client.auth(0x18, METHOD, &proof(user, password, &question).0).await;
        client.refused(0x86).await;
    }
    for nonsense in ["", "n,,n=ann", "p=tls-exporter,,n=ann,r=abc"] {
        let client = server.connect(connect(METHOD, Some(nonsense)), &METHODS).await;
        client.refused(0x86).await;
    }
    // bob proves to be bob: it is ann's session all the same.
    let (mut client, question) = server.asked("bob").await;
    client.auth(0x18, METHOD, &proof("bob", "rubber", &question).0).await;
    client.refused(0x87).await;
    ann.is_served().await;
}

/// Kafka CVE-2024-56128: the proof of another exchange.
#[tokio::test]
async fn a_proof_that_was_heard_before_is_none() {
    let server = Server::start();
    let (mut first_time, question) = server.asked("ann").await;
    let last = proof("ann", "pencil", &question).0;
    first_time.auth(0x18, METHOD, &last).await;
    assert!(matches!(first_time.receive().await, Some(Packet::ConnAck(_))));
    let (mut again, other) = server.asked("ann").await;
    assert_ne!(question, other);
    again.auth(0x18, METHOD, &last).await;
    again.refused(0x86).await;
}

// [MQTT-3.1.2-30] [MQTT-3.15.1-1] [MQTT-4.12.0-3] [MQTT-4.12.0-5]
#[tokio::test]
async fn before_connack_only_auth_of_the_same_method_and_disconnect_are_legal() {
    let server = Server::start();
    let (mut client, _) = server.asked("ann").await;
    client.send(&Packet::PingReq).await;
    client.refused(0x82).await;
    for (reason, method) in [(0x18, "SCRAM-SHA-1"), (0x19, METHOD)] {
        let (mut client, question) = server.asked("ann").await;
        client.auth(reason, method, &proof("ann", "pencil", &question).0).await;
        client.refused(0x82).await;
    }
    let (mut client, _) = server.asked("ann").await;
    client.stream.write_all(&[0xF1, 0]).await.unwrap();
    client.refused(0x81).await;
    let (mut client, _) = server.asked("ann").await;
    client.send(&Packet::Disconnect(Disconnect::new(Reason::SUCCESS))).await;
    assert_eq!(client.receive().await, None);
}

#[tokio::test(start_paused = true)]
async fn who_does_not_prove_it_in_time_is_cut() {
    let server = Server::start();
    let started = Instant::now();
    let (mut client, _) = server.asked("ann").await;
    assert_eq!(client.receive().await, None);
    assert_eq!(started.elapsed().as_secs(), 5);
    let timeouts = &server.door.context.counters.handshake_timeouts;
    assert_eq!(timeouts.load(std::sync::atomic::Ordering::Relaxed), 1);
}

// [MQTT-3.15.2-2] [MQTT-3.1.2-24]
#[tokio::test]
async fn a_client_that_takes_no_packet_as_large_as_the_question_refused() {
    let server = Server::start();
    let small = Connect { maximum_packet_size: Some(50), ..connect(METHOD, Some(&first("ann"))) };
    server.connect(small, &METHODS).await.refused(0x95).await;
}

// [MQTT-4.12.0-6] [MQTT-4.12.0-7]
#[tokio::test]
async fn without_a_method_there_is_no_auth() {
    let server = Server::start();
    let mut client = server.connect(connect("", None), &[Method::Anonymous]).await;
    let Some(Packet::ConnAck(connack)) = client.receive().await else { panic!("no CONNACK") };
    assert_eq!(connack.properties.authentication_method, None);
    client.auth(0x19, METHOD, &first("ann")).await;
    client.disconnected(0x82).await;
}

// [MQTT-4.12.1-1]
#[tokio::test]
async fn a_name_is_proved_again_while_connected() {
    let server = Server::start();
    let (mut client, _) = server.joined("ann", "pencil").await;
    for _ in 0..2 {
        client.auth(0x19, METHOD, &first("ann")).await;
        let question = client.question().await;
        client.is_served().await;
        let (last, ours) = proof("ann", "pencil", &question);
        client.auth(0x18, METHOD, &last).await;
        assert_eq!(client.answer(0x00).await, ours);
        client.is_served().await;
    }
}

// [MQTT-4.12.1-1] [MQTT-4.12.1-2]
#[tokio::test]
async fn who_cannot_prove_the_same_name_again_disconnected() {
    let server = Server::start();
    for (method, user, password, reason) in [
        (METHOD, "ann", "rubber", 0x87),
        (METHOD, "bob", "rubber", 0x87),
        ("SCRAM-SHA-1", "ann", "pencil", 0x82),
    ] {
        let (mut client, _) = server.joined("ann", "pencil").await;
        client.auth(0x19, method, &first(user)).await;
        if (method, user) == (METHOD, "ann") {
            let question = client.question().await;
            client.auth(0x18, METHOD, &proof(user, password, &question).0).await;
        }
        client.disconnected(reason).await;
    }
    for reasons in [&[0x18][..], &[0x19, 0x19]] {
        let (mut client, _) = server.joined("ann", "pencil").await;
        for reason in reasons {
            client.auth(*reason, METHOD, &first("ann")).await;
        }
        if reasons.len() == 2 {
            client.question().await;
        }
        client.disconnected(0x82).await;
    }
}

#[tokio::test]
async fn a_changed_verifier_ends_the_connection() {
    let server = Server::start();
    let (client, _) = server.joined("ann", "pencil").await;
    let other = Stored::for_scram(b"crayon").unwrap();
    fs::write(server.folder.path().join("users"), format!("ann:{other}\n")).unwrap();
    server.door.identities.reload(&server.settings).unwrap();
    client.disconnected(0x87).await;
}
