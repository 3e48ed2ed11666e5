//! From an accepted stream to a checked CONNECT, within a deadline and a size.

use std::{fmt, future::Future, io, pin::Pin, sync::atomic::Ordering, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::{Instant, timeout, timeout_at},
};

use super::{Counters, Settings, count};
use crate::mqtt::{
    Malformed, Packet, Reader, Reason, Version, check,
    packet::{Auth, ConnAck, ConnAckProperties, Connect},
    write::{PROTOCOL_MAXIMUM, write, write_limited},
};

/// How long a peer that is told why it is closed may take to read that.
const GOODBYE: Duration = Duration::from_secs(1);
/// Most CONNECTs are far shorter.
const FIRST_READ: usize = 512;

/// A client that sent a legal CONNECT and has no answer yet.
#[derive(Debug)]
pub struct Opened<S> {
    /// The socket.
    pub stream: S,
    /// Knows the version now.
    pub reader: Reader,
    /// What came after the CONNECT.
    pub buffer: BytesMut,
    /// What the client wants.
    pub connect: Box<Connect>,
    /// Ends when its proof of who it is does, and the connection with it; the host says so.
    pub until: Option<Until>,
    /// Answers a client that proves its name again by the authentication method of its CONNECT; the host says how. Without
    /// it AUTH is left to the broker.
    pub again: Option<Again>,
}

/// Why a connection came to nothing. The peer was told where the standard has a way to, and the socket is closed.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The peer went.
    #[error("closed before CONNECT")]
    Closed,
    /// The socket failed.
    #[error("socket failed before CONNECT: {0}")]
    Io(#[from] io::Error),
    /// No CONNECT in time.
    #[error("no CONNECT in time")]
    Timeout,
    /// The first bytes are not MQTT.
    #[error("{0} on an MQTT port")]
    WrongProtocol(&'static str),
    /// MQTT, but not a legal CONNECT.
    #[error("CONNECT refused: {0}")]
    Malformed(Malformed),
}

/// The end of a client's right to be connected.
pub struct Until(pub Pin<Box<dyn Future<Output = ()> + Send>>);

impl Until {
    /// When this is over.
    pub fn new(until: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(Box::pin(until))
    }
}

impl fmt::Debug for Until {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Until(..)")
    }
}

/// Takes each AUTH of an open connection (4.12.1); gives the answer, or why the connection ends.
pub struct Again(Box<dyn FnMut(Auth) -> Result<Auth, Reason> + Send>);

impl Again {
    /// By this.
    pub fn new(answer: impl FnMut(Auth) -> Result<Auth, Reason> + Send + 'static) -> Self {
        Self(Box::new(answer))
    }

    pub(super) fn answer(&mut self, auth: Auth) -> Result<Auth, Reason> {
        (self.0)(auth)
    }
}

impl fmt::Debug for Again {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Again(..)")
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Opened<S> {
    /// Sends `question` by AUTH and gives the data of the answer, which has to be there at `deadline`. A client that sends
    /// anything else than AUTH with its method (MQTT-3.1.2-30, MQTT-4.12.0-5) is told so and closed.
    pub async fn ask(
        &mut self,
        question: Bytes,
        deadline: Instant,
        counters: &Counters,
    ) -> Result<Bytes, Refused> {
        let method = self.connect.authentication_method.clone();
        let auth = auth(Reason::CONTINUE_AUTHENTICATION, method, Some(question));
        let maximum = self.connect.maximum_packet_size.map_or(PROTOCOL_MAXIMUM, |max| max as usize);
        let mut bytes = BytesMut::new();
        let asked = write_limited(&Packet::Auth(auth), self.connect.version, maximum, &mut bytes);
        let answer = async {
            if asked.is_err() {
                let why = "the client takes no packet as large as AUTH";
                return Err(Refused::Malformed(Malformed::new(Reason::PACKET_TOO_LARGE, why)));
            }
            self.stream.write_all(&bytes).await?;
            self.stream.flush().await?;
            self.answer(counters).await
        };
        match timeout_at(deadline, answer).await {
            Ok(Err(Refused::Malformed(malformed))) => {
                count(&counters.malformed);
                let none = ConnAckProperties::default();
                let answer = refusal(malformed.reason, self.connect.version, none);
                Box::pin(say_goodbye(&mut self.stream, &answer)).await;
                Err(Refused::Malformed(malformed))
            }
            Ok(outcome) => outcome,
            Err(_) => {
                count(&counters.handshake_timeouts);
                Err(Refused::Timeout)
            }
        }
    }

    async fn answer(&mut self, counters: &Counters) -> Result<Bytes, Refused> {
        loop {
            match self.reader.read(&mut self.buffer).map_err(Refused::Malformed)? {
                Some(Packet::Auth(auth)) => {
                    count(&counters.packets_in);
                    let same = auth.method == self.connect.authentication_method;
                    if !same || auth.reason != Reason::CONTINUE_AUTHENTICATION {
                        let why = "AUTH of another method or step (MQTT-4.12.0-5)";
                        return Err(Refused::Malformed(Malformed::protocol(why)));
                    }
                    return Ok(auth.data.unwrap_or_default());
                }
                Some(Packet::Disconnect(_)) => return Err(Refused::Closed),
                Some(_) => {
                    let why = "packet before authentication is complete (MQTT-3.1.2-30)";
                    return Err(Refused::Malformed(Malformed::protocol(why)));
                }
                None => {}
            }
            let bytes = self.stream.read_buf(&mut self.buffer).await?;
            if bytes == 0 {
                return Err(Refused::Closed);
            }
            counters.bytes_in.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }

    /// Answers with a CONNACK that says why not, and closes.
    pub async fn refuse(self, reason: Reason) {
        self.refuse_with(reason, ConnAckProperties::default()).await;
    }

    /// [`Opened::refuse`], with more to say; version 3.1.1 cannot carry it.
    pub async fn refuse_with(mut self, reason: Reason, properties: ConnAckProperties) {
        let answer = refusal(reason, self.connect.version, properties);
        Box::pin(say_goodbye(&mut self.stream, &answer)).await;
    }
}

/// Reads the CONNECT. A malformed one is answered as the standard says: CONNACK with the reason code in version 5
/// (MQTT-4.13.1-1 names it), return code 1 for an unknown level of 3.1.1, else silence (MQTT-3.1.4-1 of 3.1.1).
pub async fn handshake<S>(
    mut stream: S,
    settings: &Settings,
    counters: &Counters,
) -> Result<Opened<S>, Refused>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut reader = Reader::server(settings.connect_bytes);
    let mut buffer = BytesMut::new();
    let reading = read_connect(&mut stream, &mut reader, &mut buffer, counters);
    match timeout(Duration::from_millis(settings.handshake_ms), reading).await {
        Ok(Ok(connect)) => {
            count(&counters.packets_in);
            Ok(Opened { stream, reader, buffer, connect, until: None, again: None })
        }
        Ok(Err(refused)) => {
            match &refused {
                Refused::Malformed(malformed) => {
                    count(&counters.malformed);
                    let answer = answer(malformed, reader.version());
                    Box::pin(say_goodbye(&mut stream, &answer)).await;
                }
                Refused::WrongProtocol(_) => count(&counters.wrong_protocol),
                _ => {}
            }
            Err(refused)
        }
        Err(_) => {
            count(&counters.handshake_timeouts);
            Err(Refused::Timeout)
        }
    }
}

async fn read_connect<S>(
    stream: &mut S,
    reader: &mut Reader,
    buffer: &mut BytesMut,
    counters: &Counters,
) -> Result<Box<Connect>, Refused>
where
    S: AsyncRead + Unpin,
{
    loop {
        buffer.reserve(FIRST_READ.max(buffer.len()));
        let bytes = stream.read_buf(buffer).await?;
        if bytes == 0 {
            return Err(Refused::Closed);
        }
        counters.bytes_in.fetch_add(bytes as u64, Ordering::Relaxed);
        match reader.read(buffer) {
            Ok(Some(Packet::Connect(connect))) => return Ok(connect),
            Ok(None) => {}
            Ok(Some(_)) => {
                return Err(Refused::Malformed(Malformed::protocol("first packet is not CONNECT")));
            }
            Err(malformed) => {
                return Err(match other_protocol(buffer, reader) {
                    Some(name) => Refused::WrongProtocol(name),
                    None => Refused::Malformed(malformed),
                });
            }
        }
    }
}

/// What else the bytes are, if they are not a CONNECT at all. A refused packet has left the buffer; other protocols are
/// refused at their first byte, so theirs are still there.
fn other_protocol(buffer: &[u8], reader: &Reader) -> Option<&'static str> {
    match buffer {
        [0x16, 0x03, ..] => Some("TLS"),
        [b'G' | b'P' | b'H' | b'O' | b'D', b'A'..=b'Z', ..] => Some("HTTP"),
        [b'A', b'M', b'Q', b'P', ..] => Some("AMQP"),
        [first, ..] if reader.version().is_none() && first >> 4 != 1 => Some("unknown protocol"),
        _ => None,
    }
}

fn answer(malformed: &Malformed, version: Option<Version>) -> BytesMut {
    let none = ConnAckProperties::default();
    match version {
        Some(Version::V5) => refusal(malformed.reason, Version::V5, none),
        Some(version) if malformed.reason == Reason::UNSUPPORTED_PROTOCOL_VERSION => {
            refusal(malformed.reason, version, none)
        }
        _ => BytesMut::new(),
    }
}

fn refusal(reason: Reason, version: Version, properties: ConnAckProperties) -> BytesMut {
    let legal = reason.is_error() && check::is_connack_reason(reason);
    let connack = ConnAck {
        session_present: false,
        reason: if legal { reason } else { Reason::UNSPECIFIED },
        properties,
    };
    let mut out = BytesMut::new();
    write(&Packet::ConnAck(Box::new(connack)), version, &mut out);
    out
}

/// An AUTH with nothing but these.
pub fn auth(reason: Reason, method: Option<bytestring::ByteString>, data: Option<Bytes>) -> Auth {
    Auth { reason, method, data, reason_string: None, user_properties: Vec::new() }
}

/// Writes `last` and closes, so that the peer can read it: what it still sends is read and thrown away for a moment,
/// because closing with unread bytes resets the connection and takes `last` with it.
pub(super) async fn say_goodbye<S>(stream: &mut S, last: &[u8])
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let goodbye = async {
        if stream.write_all(last).await.is_ok() && stream.shutdown().await.is_ok() {
            let mut rest = [0; 256];
            while matches!(stream.read(&mut rest).await, Ok(1..)) {}
        }
    };
    // Late or not, the stream is dropped next.
    let _ = timeout(GOODBYE, goodbye).await;
}
