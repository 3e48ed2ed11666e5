//! A device: an MQTT 3.1.1 or 5 client on a blocking socket that knows exactly which publishes were acknowledged.
//!
//! Holds: connect, publish a series with a window, subscribe, receive. Own code over the shared codec, because the
//! client libraries resend and hide what a test must count. Not here: the real client libraries (each has its test).

use std::{
    collections::HashMap,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tributary_shared::mqtt::{
    Packet, PacketId, Qos, Reader, Reason, Version,
    packet::{
        Ack, ConnAck, ConnAckProperties, Connect, Publish, Subscribe, SubscribeFilter,
        SubscriptionOptions,
    },
    write::write,
};

/// How long a device waits for an answer, unless it is told otherwise.
pub const TIMEOUT: Duration = Duration::from_secs(20);

/// One connected client.
#[derive(Debug)]
pub struct Device {
    stream: TcpStream,
    reader: Reader,
    buffer: BytesMut,
    version: Version,
    next_id: u16,
    /// What CONNACK said.
    pub connack: ConnAck,
}

/// A CONNECT with the usual values.
pub fn connect_packet(client_id: &str, version: Version) -> Connect {
    Connect {
        version,
        client_id: client_id.into(),
        clean_start: true,
        keep_alive: 60,
        will: None,
        user_name: None,
        password: None,
        session_expiry: None,
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

impl Device {
    /// Connects with a clean 3.1.1 session.
    pub fn connect(address: SocketAddr, client_id: &str) -> io::Result<Self> {
        Self::connect_with(address, connect_packet(client_id, Version::V311))
    }

    /// Connects to a persistent session that never expires (version 5).
    pub fn connect_persistent(address: SocketAddr, client_id: &str) -> io::Result<Self> {
        Self::connect_persistent_within(address, client_id, TIMEOUT)
    }

    /// The same, and nothing is waited for longer than that.
    pub fn connect_persistent_within(
        address: SocketAddr,
        client_id: &str,
        patience: Duration,
    ) -> io::Result<Self> {
        let mut connect = connect_packet(client_id, Version::V5);
        connect.clean_start = false;
        connect.session_expiry = Some(u32::MAX);
        Self::connect_within(address, connect, patience)
    }

    /// Connects with any CONNECT. A refusal is an error that names the code.
    pub fn connect_with(address: SocketAddr, connect: Connect) -> io::Result<Self> {
        Self::connect_within(address, connect, TIMEOUT)
    }

    /// The same, and nothing is waited for longer than that.
    pub fn connect_within(
        address: SocketAddr,
        connect: Connect,
        patience: Duration,
    ) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        let version = connect.version;
        let mut device = Self {
            stream,
            reader: Reader::client(version, 1 << 20),
            buffer: BytesMut::new(),
            version,
            next_id: 0,
            connack: ConnAck {
                session_present: false,
                reason: Reason::SUCCESS,
                properties: ConnAckProperties::default(),
            },
        };
        device.send(&Packet::Connect(Box::new(connect)))?;
        match device.receive()? {
            Packet::ConnAck(connack) if !connack.reason.is_error() => device.connack = *connack,
            other => return Err(io::Error::other(format!("refused: {other:?}"))),
        }
        Ok(device)
    }

    /// Writes a packet.
    pub fn send(&mut self, packet: &Packet) -> io::Result<()> {
        let mut bytes = BytesMut::new();
        write(packet, self.version, &mut bytes);
        self.stream.write_all(&bytes)
    }

    /// The next packet; an error at the end of the stream or after 20 s.
    pub fn receive(&mut self) -> io::Result<Packet> {
        loop {
            if let Some(packet) = self.reader.read(&mut self.buffer).map_err(io::Error::other)? {
                return Ok(packet);
            }
            let mut chunk = [0; 16 * 1024];
            let read = self.stream.read(&mut chunk)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.buffer.extend_from_slice(&chunk[..read]);
        }
    }

    /// How long [`Device::receive`] waits.
    pub fn set_timeout(&mut self, timeout: Duration) -> io::Result<()> {
        self.stream.set_read_timeout(Some(timeout))
    }

    fn id(&mut self) -> PacketId {
        self.next_id = self.next_id.checked_add(1).unwrap_or(1);
        PacketId::new(self.next_id).expect("not 0")
    }

    /// Publishes (topic, payload) pairs at QoS 1 with at most `window` unacknowledged; `acked` is called with the index
    /// of each as its PUBACK comes. Ends with an error when the connection does; what was not acked is not known.
    pub fn publish_all(
        &mut self,
        messages: impl IntoIterator<Item = (String, Bytes)>,
        window: usize,
        mut acked: impl FnMut(usize),
    ) -> io::Result<()> {
        let mut flight: HashMap<PacketId, usize> = HashMap::new();
        let mut messages = messages.into_iter().enumerate();
        loop {
            let mut bytes = BytesMut::new();
            while flight.len() < window {
                let Some((index, (topic, payload))) = messages.next() else { break };
                let packet_id = self.id();
                flight.insert(packet_id, index);
                let publish = Publish {
                    qos: Qos::AtLeastOnce,
                    topic: topic.into(),
                    packet_id: Some(packet_id),
                    payload,
                    ..Publish::default()
                };
                write(&Packet::Publish(publish), self.version, &mut bytes);
            }
            self.stream.write_all(&bytes)?;
            if flight.is_empty() {
                return Ok(());
            }
            if let Packet::PubAck(ack) = self.receive()?
                && let Some(index) = flight.remove(&ack.packet_id)
                && !ack.reason.is_error()
            {
                acked(index);
            }
        }
    }

    /// Publishes one packet as given (a packet id is added for QoS 1) and waits for its PUBACK.
    pub fn publish(&mut self, mut publish: Publish) -> io::Result<Option<Ack>> {
        if publish.qos == Qos::AtMostOnce {
            self.send(&Packet::Publish(publish))?;
            return Ok(None);
        }
        publish.packet_id = Some(self.id());
        self.send(&Packet::Publish(publish))?;
        loop {
            if let Packet::PubAck(ack) = self.receive()? {
                return Ok(Some(ack));
            }
        }
    }

    /// Subscribes and waits for SUBACK.
    pub fn subscribe(&mut self, filter: &str, qos: Qos) -> io::Result<()> {
        let packet_id = self.id();
        let options = SubscriptionOptions { qos, ..SubscriptionOptions::default() };
        self.send(&Packet::Subscribe(Subscribe {
            packet_id,
            filters: vec![SubscribeFilter { filter: filter.into(), options }],
            subscription_id: None,
            user_properties: Vec::new(),
        }))?;
        match self.receive()? {
            Packet::SubAck(ack) if ack.reasons.iter().all(|reason| !reason.is_error()) => Ok(()),
            other => Err(io::Error::other(format!("no SUBACK but {other:?}"))),
        }
    }

    /// The next message; acknowledged if QoS 1.
    pub fn message(&mut self) -> io::Result<Publish> {
        loop {
            if let Packet::Publish(publish) = self.receive()? {
                if let Some(packet_id) = publish.packet_id {
                    self.send(&Packet::PubAck(Ack::new(packet_id, Reason::SUCCESS)))?;
                }
                return Ok(publish);
            }
        }
    }
}
