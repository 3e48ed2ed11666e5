//! A small MQTT client for commands: dial, CONNECT, packets in and out, pings. Our own codec, nothing is resent.
//!
//! Change here: how a command reaches a broker. Not here: what it says there (`sub`, `publish`, `doctor`).

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use bytestring::ByteString;
use clap::{Args, ValueEnum};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
    time::{Instant, sleep_until, timeout},
};
use tokio_rustls::TlsConnector;
use tributary_shared::mqtt::{
    Packet, PacketId, Qos, Reader, Version,
    packet::{ConnAck, Connect, Disconnect, Reason},
    write::write,
};

use super::Failed;

/// To be connected and answered.
const PATIENCE: Duration = Duration::from_secs(10);

/// The longest packet that MQTT has.
const LONGEST: usize = 268_435_460;

/// Where the broker is and who asks; the flags of mosquitto's clients.
#[derive(Debug, Clone, Args)]
pub(super) struct Server {
    /// Host name or address.
    #[arg(short = 'h', long, default_value = "127.0.0.1", value_name = "HOST")]
    pub host: String,
    /// Port [default: 1883, with --cafile 8883].
    #[arg(short = 'p', long, value_name = "PORT")]
    pub port: Option<u16>,
    /// Unix socket, instead of host and port.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["host", "port", "cafile"])]
    pub unix: Option<PathBuf>,
    /// Client id [default: the broker gives one].
    #[arg(
        short = 'i',
        long = "id",
        value_name = "ID",
        default_value = "",
        hide_default_value = true
    )]
    pub id: String,
    /// User name.
    #[arg(short = 'u', long, value_name = "NAME")]
    pub username: Option<String>,
    /// Password. Others on this machine can see it in the list of processes.
    #[arg(short = 'P', long = "pw", value_name = "PASSWORD", requires = "username")]
    pub password: Option<String>,
    /// Version of the protocol; 5 tells why something is refused.
    #[arg(short = 'V', long = "protocol-version", value_enum, default_value_t = Protocol::V5)]
    pub version: Protocol,
    /// Seconds between pings.
    #[arg(short = 'k', long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u16).range(5..))]
    pub keepalive: u16,
    /// Authorities that may have signed the broker's certificate, PEM; with it the connection is TLS.
    #[arg(long, value_name = "FILE")]
    pub cafile: Option<PathBuf>,
    /// Own certificate, PEM.
    #[arg(long, value_name = "FILE", requires_all = ["key", "cafile"])]
    pub cert: Option<PathBuf>,
    /// Its private key, PEM.
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub key: Option<PathBuf>,
}

/// As mosquitto's clients name them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Protocol {
    /// 3.1.
    #[value(name = "mqttv31", alias = "31")]
    V31,
    /// 3.1.1.
    #[value(name = "mqttv311", alias = "311")]
    V311,
    /// 5.0.
    #[value(name = "mqttv5", alias = "5")]
    V5,
}

impl Protocol {
    fn version(self) -> Version {
        match self {
            Self::V31 => Version::V31,
            Self::V311 => Version::V311,
            Self::V5 => Version::V5,
        }
    }
}

/// Reads 0, 1 or 2.
pub(super) fn qos(text: &str) -> Result<Qos, &'static str> {
    match text {
        "0" => Ok(Qos::AtMostOnce),
        "1" => Ok(Qos::AtLeastOnce),
        "2" => Ok(Qos::ExactlyOnce),
        _ => Err("0, 1 or 2"),
    }
}

trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

/// One connection.
pub(super) struct Client {
    wire: Box<dyn Wire>,
    reader: Reader,
    input: BytesMut,
    version: Version,
    last_id: u16,
    keep_alive: Duration,
    /// When a ping is sent, or if one was, when the connection counts as lost.
    ping_at: Instant,
    pinged: bool,
    /// What the broker said.
    pub(super) connack: ConnAck,
}

impl Client {
    /// Connects. `clean`: what an earlier connection left is forgotten, and nothing is left behind.
    pub(super) async fn connect(server: &Server, clean: bool) -> Result<Self, Failed> {
        let place = server.place();
        let opened = timeout(PATIENCE, async {
            let wire = server.dial().await?;
            Self::greet(wire, server, clean).await
        });
        let late = |_| Failed::cannot(format_args!("{place} does not answer"));
        opened.await.map_err(late)?
    }

    async fn greet(wire: Box<dyn Wire>, server: &Server, clean: bool) -> Result<Self, Failed> {
        let version = server.version.version();
        let keep_alive = Duration::from_secs(server.keepalive.into());
        let none = ConnAck {
            session_present: false,
            reason: Reason::SUCCESS,
            properties: tributary_shared::mqtt::packet::ConnAckProperties::default(),
        };
        let mut client = Self {
            wire,
            reader: Reader::client(version, LONGEST),
            input: BytesMut::new(),
            version,
            last_id: 0,
            keep_alive,
            ping_at: Instant::now() + keep_alive,
            pinged: false,
            connack: none,
        };
        client.send(&Packet::Connect(Box::new(server.hello(version, clean)))).await?;
        match client.next().await? {
            Packet::ConnAck(connack) if connack.reason.is_error() => {
                let more = connack.properties.reason_string.as_deref().unwrap_or("");
                Err(Failed::refused(said("connection refused", connack.reason, more)))
            }
            Packet::ConnAck(connack) => {
                if let Some(seconds) = connack.properties.server_keep_alive.filter(|s| *s > 0) {
                    client.keep_alive = Duration::from_secs(seconds.into());
                    client.ping_at = Instant::now() + client.keep_alive;
                }
                client.connack = *connack;
                Ok(client)
            }
            _ => Err(Failed::cannot("the broker's first answer is no CONNACK")),
        }
    }

    pub(super) fn new_id(&mut self) -> PacketId {
        self.last_id = self.last_id.checked_add(1).unwrap_or(1);
        PacketId::new(self.last_id).unwrap_or(PacketId::MIN)
    }

    pub(super) async fn send(&mut self, packet: &Packet) -> Result<(), Failed> {
        let mut bytes = BytesMut::new();
        write(packet, self.version, &mut bytes);
        let sent = async {
            self.wire.write_all(&bytes).await?;
            self.wire.flush().await
        };
        sent.await.map_err(lost)
    }

    /// The next packet that is not a ping's answer; may be given up at any time. The broker's goodbye is an error.
    pub(super) async fn next(&mut self) -> Result<Packet, Failed> {
        loop {
            let packet = self.reader.read(&mut self.input);
            match packet.map_err(|error| {
                Failed::cannot(format_args!("what answers does not speak MQTT: {error}"))
            })? {
                Some(Packet::PingResp) => {}
                Some(Packet::Disconnect(told)) => {
                    let more = told.reason_string.as_deref().unwrap_or("");
                    return Err(Failed::refused(said("ended by the broker", told.reason, more)));
                }
                Some(packet) => return Ok(packet),
                None => self.more().await?,
            }
        }
    }

    /// Waits for bytes, and pings in time: what the broker sends does not count as heard from us (MQTT-3.1.2-20).
    async fn more(&mut self) -> Result<(), Failed> {
        self.input.reserve(16 * 1024);
        tokio::select! {
            read = self.wire.read_buf(&mut self.input) => {
                if read.map_err(lost)? == 0 {
                    return Err(Failed::cannot("the broker closed the connection"));
                }
                self.pinged = false;
            }
            () = sleep_until(self.ping_at) => {
                if self.pinged {
                    return Err(Failed::cannot("the broker does not answer any more"));
                }
                self.send(&Packet::PingReq).await?;
                self.pinged = true;
                self.ping_at = Instant::now() + self.keep_alive;
            }
        }
        Ok(())
    }

    /// Says goodbye and waits until the broker has read all of it.
    pub(super) async fn leave(mut self) -> Result<(), Failed> {
        self.send(&Packet::Disconnect(Disconnect::new(Reason::SUCCESS))).await?;
        let closed = async {
            while self.wire.read_buf(&mut self.input).await.is_ok_and(|read| read > 0) {
                self.input.clear();
            }
        };
        // It has our goodbye; how it closes is its own affair.
        let _ = timeout(Duration::from_secs(1), closed).await;
        Ok(())
    }
}

fn lost(error: std::io::Error) -> Failed {
    Failed::cannot(format_args!("connection lost: {error}"))
}

impl Server {
    /// In words, for messages.
    pub(super) fn place(&self) -> String {
        match &self.unix {
            Some(path) => format!("unix:{}", path.display()),
            None => format!("{}:{}", self.host, self.port()),
        }
    }

    fn port(&self) -> u16 {
        self.port.unwrap_or(if self.cafile.is_some() { 8883 } else { 1883 })
    }

    fn hello(&self, version: Version, clean: bool) -> Connect {
        Connect {
            version,
            client_id: self.client_id(version),
            clean_start: clean,
            keep_alive: self.keepalive,
            will: None,
            user_name: self.username.as_deref().map(Into::into),
            password: self.password.as_ref().map(|text| Bytes::copy_from_slice(text.as_bytes())),
            session_expiry: (!clean && version == Version::V5).then_some(u32::MAX),
            receive_maximum: None,
            maximum_packet_size: None,
            topic_alias_maximum: 0,
            request_response_information: false,
            request_problem_information: true,
            user_properties: Vec::new(),
            authentication_method: None,
            authentication_data: None,
        }
    }

    /// 3.1 has no ids given by the broker (MQTT 3.1, 3.1).
    fn client_id(&self, version: Version) -> ByteString {
        match (self.id.as_str(), version) {
            ("", Version::V31) => format!("tributary-{}", std::process::id()).into(),
            (id, _) => id.into(),
        }
    }

    async fn dial(&self) -> Result<Box<dyn Wire>, Failed> {
        let place = self.place();
        let cannot = |error: std::io::Error| {
            Failed::cannot(format_args!("cannot connect to {place}: {error}"))
        };
        if let Some(path) = &self.unix {
            return Ok(Box::new(UnixStream::connect(path).await.map_err(cannot)?));
        }
        let stream = TcpStream::connect((&*self.host, self.port())).await.map_err(cannot)?;
        stream.set_nodelay(true).map_err(cannot)?;
        let Some(authorities) = &self.cafile else { return Ok(Box::new(stream)) };
        let config = self.tls(authorities)?;
        let name = ServerName::try_from(self.host.clone()).map_err(|_| {
            Failed::cannot(format_args!("{} cannot stand in a certificate", self.host))
        })?;
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
        Ok(Box::new(stream.map_err(cannot)?))
    }

    fn tls(&self, authorities: &Path) -> Result<ClientConfig, Failed> {
        let mut roots = RootCertStore::empty();
        for authority in certificates(authorities)? {
            roots.add(authority).map_err(|error| bad(authorities, error))?;
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| bad(authorities, error))?
            .with_root_certificates(roots);
        match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => {
                let chain = certificates(cert)?;
                let key = PrivateKeyDer::from_pem_file(key).map_err(|error| bad(key, error))?;
                builder.with_client_auth_cert(chain, key).map_err(|error| bad(cert, error))
            }
            _ => Ok(builder.with_no_client_auth()),
        }
    }
}

fn bad(file: &Path, error: impl std::fmt::Display) -> Failed {
    Failed::cannot(format_args!("{}: {error}", file.display()))
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, Failed> {
    let all = CertificateDer::pem_file_iter(file).map_err(|error| bad(file, error))?;
    let all: Vec<_> = all.collect::<Result<_, _>>().map_err(|error| bad(file, error))?;
    if all.is_empty() { Err(bad(file, "holds no certificate as PEM")) } else { Ok(all) }
}

/// `what: why (code)`, and what the broker added.
pub(super) fn said(what: &str, reason: Reason, more: &str) -> String {
    let words = words(reason);
    let code = reason.0;
    match more {
        "" => format!("{what}: {words} (0x{code:02X})"),
        more => format!("{what}: {words} (0x{code:02X}): {more}"),
    }
}

/// A reason code in words.
fn words(reason: Reason) -> &'static str {
    match reason {
        Reason::MALFORMED_PACKET => "malformed packet",
        Reason::PROTOCOL_ERROR => "protocol error",
        Reason::UNSUPPORTED_PROTOCOL_VERSION => "it does not speak this version",
        Reason::CLIENT_ID_NOT_VALID => "it does not take this client id",
        Reason::BAD_USER_NAME_OR_PASSWORD => "wrong user name or password",
        Reason::NOT_AUTHORIZED => "not authorized",
        Reason::SERVER_UNAVAILABLE => "not available now",
        Reason::SERVER_BUSY => "busy",
        Reason::BANNED => "banned",
        Reason::SERVER_SHUTTING_DOWN => "shutting down",
        Reason::BAD_AUTHENTICATION_METHOD => "it does not take this way to authenticate",
        Reason::KEEP_ALIVE_TIMEOUT => "silent for too long",
        Reason::SESSION_TAKEN_OVER => "another client took the same client id",
        Reason::TOPIC_FILTER_INVALID => "not a topic filter it takes",
        Reason::TOPIC_NAME_INVALID => "not a topic it takes",
        Reason::PACKET_TOO_LARGE => "too large",
        Reason::QUOTA_EXCEEDED => "a limit is reached",
        Reason::CONNECTION_RATE_EXCEEDED => "too many connections",
        Reason::UNSPECIFIED => "no reason given",
        _ => "no",
    }
}

#[cfg(test)]
mod tests {
    use tokio::{io::duplex, time::sleep};

    use super::*;

    const CONNACK: [u8; 5] = [0x20, 3, 0, 0, 0];
    const PUBLISH: [u8; 6] = [0x30, 4, 0, 1, b'a', 0];
    const PINGREQ: [u8; 2] = [0xC0, 0];

    fn server(keepalive: u16) -> Server {
        Server {
            host: String::new(),
            port: None,
            unix: None,
            id: "one".to_owned(),
            username: None,
            password: None,
            version: Protocol::V5,
            keepalive,
            cafile: None,
            cert: None,
            key: None,
        }
    }

    // MQTT-3.1.2-20
    #[tokio::test(start_paused = true)]
    async fn messages_that_arrive_do_not_put_off_the_ping() {
        let (ours, mut broker) = duplex(1_024);
        let server = server(10);
        let began = Instant::now();
        let serve = async {
            let mut heard = [0; 256];
            assert!(broker.read(&mut heard).await.unwrap() > 0, "CONNECT");
            broker.write_all(&CONNACK).await.unwrap();
            for _ in 0..10 {
                tokio::select! {
                    read = broker.read(&mut heard) => {
                        assert_eq!(heard.get(..read.unwrap()), Some(&PINGREQ[..]));
                        return Some(began.elapsed().as_secs());
                    }
                    () = sleep(Duration::from_secs(4)) => broker.write_all(&PUBLISH).await.unwrap(),
                }
            }
            None
        };
        let listen = async {
            let mut client = Client::greet(Box::new(ours), &server, true).await.ok().unwrap();
            while client.next().await.is_ok() {}
        };
        tokio::select! {
            pinged = serve => assert_eq!(pinged, Some(10)),
            () = listen => panic!("the connection is lost"),
        }
    }
}
