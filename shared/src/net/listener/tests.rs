//! What may be opened, and that every transport brings the same bytes and the right name.

use std::sync::Mutex;

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
};

use super::{super::tls::tests::Authority, *};
use crate::{auth, net};

fn identities() -> Arc<Identities> {
    Identities::open(&auth::Settings::default()).unwrap()
}

async fn prepare(settings: &Settings, rules: bool, allow: bool) -> Result<Listener, String> {
    let identities = identities();
    let common = Common { identities: &identities, rules, allow_insecure: allow };
    let listener = Listener::prepare(settings, "listeners[1]", common).await;
    listener.map_err(|error| error.to_string())
}

fn at(address: &str) -> Settings {
    Settings { address: address.to_owned(), ..Settings::default() }
}

fn tls(authority: &Authority, address: &str, transport: Transport, client_ca: bool) -> Settings {
    let files = authority.server(1);
    let client_ca =
        if client_ca { authority.write("ca.pem", &authority.pem) } else { String::new() };
    Settings { transport, certificate: files.certificate, key: files.key, client_ca, ..at(address) }
}

#[tokio::test]
async fn beyond_loopback_tls_a_proof_and_rules_are_needed() {
    let authority = Authority::new();
    let open = "0.0.0.0:0";
    let safe = tls(&authority, open, Transport::Tls, true);
    let nobody_known = tls(&authority, "[::]:0", Transport::Wss, false);
    assert_eq!(prepare(&safe, true, false).await.unwrap().methods[..], [Method::Certificate]);
    for (settings, rules, missing) in [
        (&safe, false, "rules"),
        (&nobody_known, true, "authentication"),
        (&at(open), true, "TLS and authentication"),
        (&Settings { transport: Transport::Ws, ..at("[::]:0") }, true, "TLS and authentication"),
    ] {
        let error = prepare(settings, rules, false).await.unwrap_err();
        assert!(error.contains("listeners[1]") && error.contains(missing), "{error}");
        assert!(prepare(settings, rules, true).await.is_ok(), "allowed by setting");
    }
    for local in ["127.0.0.1:0", "[::1]:0", "unix:/tmp/x", "localhost:0"] {
        let listener = prepare(&at(local), false, false).await.unwrap();
        assert_eq!(listener.methods[..], [Method::Anonymous], "{local}");
    }
}

#[tokio::test]
async fn settings_without_effect_and_missing_ones_are_named() {
    let authority = Authority::new();
    let secure = tls(&authority, "127.0.0.1:0", Transport::Tls, true);
    let text = "x".to_owned();
    for (settings, part) in [
        (at("nonsense"), "address`: `nonsense`"),
        (at("unix:relative"), "unix:/path"),
        (Settings { transport: Transport::Tls, ..at("127.0.0.1:0") }, "certificate"),
        (Settings { key: String::new(), ..secure.clone() }, "key`: TLS needs one"),
        (Settings { transport: Transport::Tls, ..at("unix:/tmp/x") }, "a unix socket"),
        (Settings { client_ca: text.clone(), ..at("127.0.0.1:0") }, "client_ca"),
        (
            Settings { client_crl: text.clone(), client_ca: String::new(), ..secure.clone() },
            "client_crl",
        ),
        (Settings { origins: vec![text.clone()], ..at("127.0.0.1:0") }, "origins"),
        (Settings { mode: "999".to_owned(), ..at("127.0.0.1:0") }, "mode"),
        (Settings { methods: vec![Method::Password], ..at("127.0.0.1:0") }, "auth.password_file"),
        (Settings { methods: vec![Method::Token], ..at("127.0.0.1:0") }, "auth.token_key_files"),
        (Settings { methods: vec![Method::Certificate], ..at("127.0.0.1:0") }, "client_ca"),
        (Settings { methods: vec![Method::Anonymous], ..secure.clone() }, "client_ca"),
        (Settings { certificate: "/no/such".to_owned(), ..secure }, "/no/such"),
    ] {
        let error = prepare(&settings, true, false).await.unwrap_err();
        assert!(error.contains("listeners[1]") && error.contains(part), "{part}: {error}");
    }
}

/// Says "hello NAME" to everyone.
async fn greet(mut listener: Listener) -> (Address, CancellationToken, mpsc::Receiver<Arrival>) {
    let bound = listener.bind().unwrap();
    let (address, stop) = (listener.address.clone(), CancellationToken::new());
    let (told, arrivals) = mpsc::channel(10);
    let gate = Gate::new(net::Settings::default());
    let serve = move |mut arrived: Box<Arrived>| {
        let told = told.clone();
        async move {
            arrived.admitted.handshake_done();
            let name = match &arrived.certificate {
                auth::Certificate::Named(name) => Some(name.to_string()),
                _ => None,
            };
            let mut got = [0; 5];
            arrived.stream.read_exact(&mut got).await.unwrap();
            let text = format!("hello {}", name.as_deref().unwrap_or("?"));
            arrived.stream.write_all(text.as_bytes()).await.unwrap();
            arrived.stream.flush().await.unwrap();
            told.send(Arrival { address: arrived.address, name, got }).await.unwrap();
        }
    };
    let patience = Duration::from_secs(5);
    tokio::spawn(listener.serve(bound, gate, patience, stop.clone(), serve));
    (address, stop, arrivals)
}

#[derive(Debug)]
struct Arrival {
    address: Option<SocketAddr>,
    name: Option<String>,
    got: [u8; 5],
}

async fn talk<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) -> String {
    stream.write_all(b"12345").await.unwrap();
    stream.flush().await.unwrap();
    let mut answer = [0; 64];
    let bytes = stream.read(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer[..bytes]).into_owned()
}

async fn talk_frames<S: AsyncRead + AsyncWrite + Unpin>(stream: S) -> String {
    use futures::{SinkExt as _, StreamExt as _};
    use tokio_tungstenite::tungstenite::{
        Message, client::IntoClientRequest as _, http::HeaderValue,
    };
    let mut request = "ws://localhost/mqtt".into_client_request().unwrap();
    let protocol = HeaderValue::from_static("mqtt");
    request.headers_mut().insert("Sec-WebSocket-Protocol", protocol);
    let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await.unwrap();
    socket.send(Message::binary(&b"12345"[..])).await.unwrap();
    String::from_utf8_lossy(&socket.next().await.unwrap().unwrap().into_data()).into_owned()
}

async fn dial(address: &Address) -> TcpStream {
    let Address::Tcp(address) = address else { panic!("{address}") };
    TcpStream::connect(address).await.unwrap()
}

#[tokio::test]
async fn every_transport_brings_the_same_bytes_over_both_families() {
    let authority = Authority::new();
    let pair = authority.sign("gw-1", 7);
    let name = || rustls::pki_types::ServerName::try_from("localhost").unwrap();
    for local in ["127.0.0.1:0", "[::1]:0"] {
        for transport in [Transport::Tcp, Transport::Ws, Transport::Tls, Transport::Wss] {
            let settings = if transport.is_tls() {
                tls(&authority, local, transport, true)
            } else {
                Settings { transport, ..at(local) }
            };
            let listener = prepare(&settings, false, false).await.unwrap();
            let (address, stop, mut arrivals) = greet(listener).await;
            let plain = dial(&address).await;
            let secure = || authority.connector(Some(&pair), false);
            let answer = match transport {
                Transport::Tcp => talk(plain).await,
                Transport::Ws => talk_frames(plain).await,
                Transport::Tls => talk(secure().connect(name(), plain).await.unwrap()).await,
                Transport::Wss => talk_frames(secure().connect(name(), plain).await.unwrap()).await,
            };
            let known = if transport.is_tls() { "gw-1" } else { "?" };
            assert_eq!(answer, format!("hello {known}"), "{transport:?}");
            let arrival = arrivals.recv().await.unwrap();
            assert_eq!(&arrival.got, b"12345");
            assert_eq!(arrival.name.is_some(), transport.is_tls());
            assert!(arrival.address.unwrap().ip().is_loopback());
            stop.cancel();
        }
    }
}

#[tokio::test]
async fn a_unix_socket_replaces_a_dead_one_and_leaves_a_living_one_and_other_files() {
    use std::os::unix::fs::PermissionsExt as _;
    let authority = Authority::new();
    let path = authority.write("mqtt.sock", "");
    let settings = Settings { mode: "600".to_owned(), ..at(&format!("unix:{path}")) };
    let mut listener = prepare(&settings, false, false).await.unwrap();
    assert!(listener.bind().is_err(), "a file of somebody else");
    std::fs::remove_file(&path).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let mut again = listener.clone();
    let (address, stop, mut arrivals) = greet(listener).await;
    assert_eq!(address.to_string(), format!("unix:{path}"));
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let error = again.bind().unwrap_err().to_string();
    assert!(error.contains(&path) && error.contains("listeners[1]"), "{error}");
    assert_eq!(talk(UnixStream::connect(&path).await.unwrap()).await, "hello ?");
    assert_eq!(arrivals.recv().await.unwrap().address, None);
    stop.cancel();
    assert!(arrivals.recv().await.is_none(), "stopped");
    assert!(!std::path::Path::new(&path).exists());
}

#[tokio::test]
async fn who_does_not_finish_the_handshake_in_time_is_cut() {
    let authority = Authority::new();
    for transport in [Transport::Tls, Transport::Ws] {
        let settings = match transport {
            Transport::Tls => tls(&authority, "127.0.0.1:0", transport, false),
            _ => Settings { transport, ..at("127.0.0.1:0") },
        };
        let mut listener = prepare(&settings, false, false).await.unwrap();
        let bound = listener.bind().unwrap();
        let (address, stop) = (listener.address.clone(), CancellationToken::new());
        let gate = Gate::new(net::Settings::default());
        let served = Arc::new(Mutex::new(0));
        let count = Arc::clone(&served);
        let serve = move |_: Box<Arrived>| {
            *count.lock().unwrap() += 1;
            async {}
        };
        let patience = Duration::from_millis(50);
        tokio::spawn(listener.serve(bound, Arc::clone(&gate), patience, stop.clone(), serve));
        let mut slow = dial(&address).await;
        slow.write_all(b"\x16").await.unwrap();
        let mut rest = Vec::new();
        // Closed or reset: both are an end.
        let _ = slow.read_to_end(&mut rest).await;
        assert_eq!(*served.lock().unwrap(), 0);
        stop.cancel();
    }
}
