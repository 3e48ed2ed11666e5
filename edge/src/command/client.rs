//! A small MQTT client for commands: dial, CONNECT, packets in and out, pings. Our own codec, nothing is resent.
//!
//! Change here: how a command reaches a broker. Not here: what it says there (`sub`, `publish`, `doctor`).

mod server;

use std::time::Duration;

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::{Instant, sleep_until, timeout},
};
use tributary_shared::mqtt::{
    Packet, PacketId, Reader, Version,
    packet::{ConnAck, Disconnect, Reason},
    write::write,
};

pub(super) use self::server::{Protocol, Server, qos};
use super::Failed;

/// To be connected and answered.
const PATIENCE: Duration = Duration::from_secs(10);

/// The longest packet that MQTT has.
const LONGEST: usize = 268_435_460;

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
