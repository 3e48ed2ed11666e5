//! The connection that listens to the cloud: MQTT 5, a session that stays, acknowledgements by hand.
//!
//! Our own codec: rumqttc acknowledges on its own or keeps count in a state that a reconnect breaks. All bytes that go out are
//! first put in line, so that [`Down::next`] may be given up at any time. Pings keep it alive both ways.
//!
//! In: who calls. Out: packets, as they come. Change here: what CONNECT and SUBSCRIBE say. Not here: what a message means and
//! when it is acknowledged (`downlink`).

use std::io;

use bytes::BytesMut;
use bytestring::ByteString;
use rustls::pki_types::ServerName;
use tokio::{
    io::{
        AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf, split,
    },
    net::TcpStream,
    time::{Duration, Instant, sleep_until, timeout},
};
use tokio_rustls::TlsConnector;
use tributary_shared::mqtt::{
    Packet, PacketId, Qos, Reader, Version,
    packet::{Ack, Connect, Disconnect, Reason, Subscribe, SubscribeFilter, SubscriptionOptions},
    write::write,
};

use super::{Caller, GOODBYE, tls};

/// User property of CONNECT that tells our cloud which edge listens.
const DOWN_PROPERTY: &str = "tributary-down";

/// Room for what the cloud adds to a packet of the size it was told.
const SLACK: usize = 1024;

trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

/// A filter, and how its retained messages come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// MQTT topic filter.
    pub filter: String,
    /// Retained messages come with every connection, not only with the first.
    pub retained_again: bool,
}

/// What the connection is to be like.
#[derive(Debug, Clone)]
pub struct Listening {
    /// What to listen to.
    pub filters: Vec<Filter>,
    /// Messages that may be unacknowledged.
    pub receive_maximum: u16,
    /// Bytes of the longest packet.
    pub packet_bytes: u32,
}

/// An open connection. Dropped: closed at once.
pub struct Down {
    from: ReadHalf<Box<dyn Wire>>,
    to: WriteHalf<Box<dyn Wire>>,
    reader: Reader,
    input: BytesMut,
    output: BytesMut,
    keep_alive: Duration,
    /// When a ping is sent, or if one was, when the connection counts as lost.
    ping_at: Instant,
    pinged: bool,
    host: String,
    /// The cloud knew this edge: what was not acknowledged comes again, and nothing was missed.
    pub session_present: bool,
}

impl std::fmt::Debug for Down {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Down").finish_non_exhaustive()
    }
}

impl Down {
    /// Connects and asks for the filters; their answer comes among the packets. Says why not in a sentence.
    pub async fn dial(caller: &Caller, listening: &Listening) -> Result<Self, String> {
        let late = |_| "no CONNACK in time".to_owned();
        timeout(caller.connect_timeout, Self::greet(caller, listening)).await.map_err(late)?
    }

    async fn greet(caller: &Caller, listening: &Listening) -> Result<Self, String> {
        let (from, to) = split(wire(caller).await?);
        let mut down = Self {
            from,
            to,
            reader: Reader::client(Version::V5, listening.packet_bytes as usize + SLACK),
            input: BytesMut::new(),
            output: BytesMut::new(),
            keep_alive: caller.keep_alive,
            ping_at: Instant::now() + caller.keep_alive,
            pinged: false,
            host: caller.address.host.clone(),
            session_present: false,
        };
        down.put(&Packet::Connect(Box::new(hello(caller, listening))));
        match down.next().await? {
            Packet::ConnAck(connack) if connack.reason.is_error() => {
                let said = connack.properties.reason_string.unwrap_or_default();
                return Err(format!("connection refused ({:#04x}) {said}", connack.reason.0));
            }
            Packet::ConnAck(connack) => {
                down.session_present = connack.session_present;
                if let Some(seconds) = connack.properties.server_keep_alive.filter(|s| *s > 0) {
                    down.keep_alive = Duration::from_secs(seconds.into());
                }
            }
            _ => return Err("the first answer is no CONNACK".to_owned()),
        }
        let filters = listening.filters.iter().map(|filter| SubscribeFilter {
            filter: filter.filter.as_str().into(),
            options: SubscriptionOptions {
                qos: Qos::AtLeastOnce,
                // What this edge sent up does not come back to it.
                no_local: true,
                retain_as_published: true,
                retain_handling: u8::from(!filter.retained_again),
            },
        });
        let subscribe = Subscribe {
            packet_id: PacketId::MIN,
            filters: filters.collect(),
            subscription_id: None,
            user_properties: Vec::new(),
        };
        down.put(&Packet::Subscribe(subscribe));
        Ok(down)
    }

    /// The next packet; may be given up at any time. An error ends the connection.
    pub async fn next(&mut self) -> Result<Packet, String> {
        loop {
            let packet = self.reader.read(&mut self.input);
            match packet.map_err(|error| format!("what answers does not speak MQTT 5: {error}"))? {
                Some(Packet::PingResp) => {}
                Some(Packet::Disconnect(told)) => {
                    let said = told.reason_string.unwrap_or_default();
                    return Err(format!("ended by the cloud ({:#04x}) {said}", told.reason.0));
                }
                Some(packet) => return Ok(packet),
                None => self.exchange().await?,
            }
        }
    }

    /// Reads or writes some bytes, or pings in time: what the cloud sends does not count as heard from us (MQTT-3.1.2-20).
    async fn exchange(&mut self) -> Result<(), String> {
        self.input.reserve(16 * 1024);
        let lost = |error: io::Error| lost(&error, &self.host);
        tokio::select! {
            read = self.from.read_buf(&mut self.input) => {
                if read.map_err(lost)? == 0 {
                    return Err("the cloud closed the connection".to_owned());
                }
                self.pinged = false;
            }
            written = self.to.write_buf(&mut self.output), if !self.output.is_empty() => {
                written.map_err(lost)?;
                if self.output.is_empty() {
                    self.to.flush().await.map_err(lost)?;
                }
            }
            () = sleep_until(self.ping_at) => {
                if self.pinged {
                    return Err("the cloud does not answer any more".to_owned());
                }
                self.put(&Packet::PingReq);
                self.pinged = true;
                self.ping_at = Instant::now() + self.keep_alive;
            }
        }
        Ok(())
    }

    /// Puts the acknowledgement of a message in line: it is this edge's from here on.
    pub fn acknowledge(&mut self, id: PacketId) {
        self.put(&Packet::PubAck(Ack::new(id, Reason::SUCCESS)));
    }

    fn put(&mut self, packet: &Packet) {
        write(packet, Version::V5, &mut self.output);
    }

    /// Says goodbye; the session stays.
    pub async fn close(mut self) {
        self.put(&Packet::Disconnect(Disconnect::new(Reason::SUCCESS)));
        let said = async {
            while !self.output.is_empty() && self.to.write_buf(&mut self.output).await.is_ok() {}
            self.to.flush().await
        };
        // Late or not, it is closed next.
        let _late = timeout(GOODBYE, said).await;
    }
}

async fn wire(caller: &Caller) -> Result<Box<dyn Wire>, String> {
    let address = &caller.address;
    let opened = TcpStream::connect((address.host.trim_matches(['[', ']']), address.port)).await;
    let stream = opened.map_err(|error| format!("cannot connect: {error}"))?;
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    if !address.tls {
        return Ok(Box::new(stream));
    }
    let config = caller.identity.client().map_err(|error| error.to_string())?;
    let name = ServerName::try_from(address.host.clone())
        .map_err(|_| format!("{} cannot stand in a certificate", address.host))?;
    let opened = TlsConnector::from(config).connect(name, stream).await;
    Ok(Box::new(opened.map_err(|error| lost(&error, &address.host))?))
}

/// In words; what TLS 1.3 has against our certificate comes with the first read.
fn lost(error: &io::Error, host: &str) -> String {
    tls::in_io(error)
        .map_or_else(|| format!("connection lost: {error}"), |error| tls::words(error, host))
}

fn hello(caller: &Caller, listening: &Listening) -> Connect {
    let (user_name, password) = caller.login.clone().unzip();
    let edge = ByteString::from(caller.edge_id.as_str());
    Connect {
        version: Version::V5,
        client_id: format!("{edge}.down").into(),
        clean_start: false,
        keep_alive: u16::try_from(caller.keep_alive.as_secs()).unwrap_or(u16::MAX),
        will: None,
        user_name: user_name.map(Into::into),
        password: password.map(|text| text.into_bytes().into()),
        session_expiry: Some(u32::MAX),
        receive_maximum: Some(listening.receive_maximum),
        maximum_packet_size: Some(listening.packet_bytes),
        topic_alias_maximum: 0,
        request_response_information: false,
        request_problem_information: true,
        user_properties: vec![(DOWN_PROPERTY.into(), edge)],
        authentication_method: None,
        authentication_data: None,
    }
}
