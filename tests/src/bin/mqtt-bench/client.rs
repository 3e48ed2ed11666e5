//! Connecting, and the packets that all clients send.

use bytes::{BufMut, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tributary_shared::mqtt::{
    Packet, PacketId, Reader, Version,
    packet::{Connect, Publish, Subscribe, SubscribeFilter, SubscriptionOptions},
    write::write,
};

use crate::{
    Failure, Load, Run,
    frames::{self, Frame},
};

/// Bytes of the largest packet taken.
pub(crate) const MAXIMUM: usize = 16 * 1024 * 1024;
/// Bytes of a read.
pub(crate) const READ: usize = 64 * 1024;

/// A connected client.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    reader: Reader,
    pub(crate) buffer: BytesMut,
    pub(crate) version: Version,
}

impl Client {
    /// `kept`: its session outlives the connection.
    pub(crate) async fn connect(
        load: &Load,
        client_id: String,
        keep_alive: u16,
        kept: bool,
    ) -> Result<Self, Failure> {
        let stream = TcpStream::connect(load.addr).await?;
        stream.set_nodelay(true)?;
        let version = load.version();
        let reader = Reader::client(version, MAXIMUM);
        let mut client = Self { stream, reader, buffer: BytesMut::new(), version };
        let connect = Connect {
            version,
            client_id: client_id.into(),
            clean_start: !kept,
            keep_alive,
            will: None,
            user_name: load.username.clone().map(Into::into),
            password: load.password.clone().map(Into::into),
            session_expiry: (kept && version == Version::V5).then_some(u32::MAX),
            receive_maximum: None,
            maximum_packet_size: None,
            topic_alias_maximum: 0,
            request_response_information: false,
            request_problem_information: true,
            user_properties: Vec::new(),
            authentication_method: None,
            authentication_data: None,
        };
        client.send(&Packet::Connect(Box::new(connect)), version).await?;
        match client.receive().await? {
            Packet::ConnAck(connack) if !connack.reason.is_error() => Ok(client),
            other => Err(format!("CONNECT was answered with {other:?}").into()),
        }
    }

    pub(crate) async fn subscribe(
        &mut self,
        run: &Run,
        filters: Vec<String>,
    ) -> Result<(), Failure> {
        let options = SubscriptionOptions { qos: run.load.qos(), ..Default::default() };
        let filters =
            filters.into_iter().map(|filter| SubscribeFilter { filter: filter.into(), options });
        let subscribe = Subscribe {
            packet_id: PacketId::MIN,
            filters: filters.collect(),
            subscription_id: None,
            user_properties: Vec::new(),
        };
        self.send(&Packet::Subscribe(subscribe), run.load.version()).await?;
        match self.receive().await? {
            Packet::SubAck(suback) if !suback.reasons.iter().any(|reason| reason.is_error()) => {
                Ok(())
            }
            other => Err(format!("SUBSCRIBE was answered with {other:?}").into()),
        }
    }

    /// Says goodbye; the broker has forgotten the connection when this returns.
    pub(crate) async fn leave(mut self) -> Result<(), Failure> {
        self.stream.write_all(&[0xE0, 0]).await?;
        self.stream.shutdown().await?;
        while self.stream.read_buf(&mut self.buffer).await? > 0 {}
        Ok(())
    }

    /// The next packet of the load that was read already.
    pub(crate) fn next(&mut self) -> Result<Option<Frame>, Failure> {
        frames::next(&mut self.buffer, self.version)
    }

    async fn send(&mut self, packet: &Packet, version: Version) -> Result<(), Failure> {
        let mut out = BytesMut::new();
        write(packet, version, &mut out);
        Ok(self.stream.write_all(&out).await?)
    }

    async fn receive(&mut self) -> Result<Packet, Failure> {
        loop {
            if let Some(packet) = self.reader.read(&mut self.buffer)? {
                return Ok(packet);
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err("closed by the broker".into());
            }
        }
    }
}

/// The PUBLISH of one publisher, encoded once; packet id and time are patched in.
#[derive(Debug)]
pub(crate) struct Template {
    bytes: BytesMut,
    packet_id: Option<usize>,
    stamp: usize,
}

impl Template {
    pub(crate) fn new(run: &Run, publisher: usize) -> Self {
        let load = &run.load;
        let topic = run.topic(publisher);
        let packet_id = (load.qos > 0).then_some(PacketId::MIN);
        let publish = Publish {
            qos: load.qos(),
            topic: topic.clone().into(),
            packet_id,
            payload: vec![b'x'; load.payload].into(),
            ..Publish::default()
        };
        let mut bytes = BytesMut::new();
        write(&Packet::Publish(publish), load.version(), &mut bytes);
        let stamp = bytes.len() - load.payload;
        let properties = usize::from(load.version == 5);
        Self { packet_id: packet_id.map(|_| stamp - properties - 2), stamp, bytes }
    }

    pub(crate) fn put(&self, packet_id: u16, stamp_ns: u64, out: &mut BytesMut) {
        let start = out.len();
        out.put_slice(&self.bytes);
        let packet = out.get_mut(start..).unwrap_or_default();
        if let Some(place) = self.packet_id.and_then(|at| packet.get_mut(at..at + 2)) {
            place.copy_from_slice(&packet_id.to_be_bytes());
        }
        if let Some(place) = packet.get_mut(self.stamp..self.stamp + 8) {
            place.copy_from_slice(&stamp_ns.to_be_bytes());
        }
    }
}

/// An acknowledgement without a code.
pub(crate) fn put_ack(first: u8, packet_id: PacketId, out: &mut BytesMut) {
    let [high, low] = packet_id.get().to_be_bytes();
    out.put_slice(&[first, 2, high, low]);
}
