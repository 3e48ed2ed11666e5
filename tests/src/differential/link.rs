//! One client's connection: bytes out, what it saw in.
//!
//! Out: every packet as [`Seen`], acknowledged as the plan says. Not here: what is done when (`play`).

use std::{
    collections::{HashMap, HashSet},
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    time::Duration,
};

use bytes::BytesMut;
use tributary_shared::mqtt::{
    Packet, PacketId, Qos, Reader, Reason, Version,
    packet::{Ack, Publish, PublishProperties},
    write::write,
};

use super::{
    plan::{Acks, Hello},
    seen::{Message, Seen},
};

/// A broker that says nothing for so long has lost something.
const PATIENCE: Duration = Duration::from_mins(1);

/// A socket with its MQTT state.
#[derive(Debug)]
pub(super) struct Link {
    stream: TcpStream,
    reader: Reader,
    buffer: BytesMut,
    pub(super) version: Version,
    acks: Acks,
    window: usize,
    /// Sent by the broker and not acknowledged to the end.
    unacknowledged: HashSet<PacketId>,
    /// What the ids stand for, of earlier connections too.
    pub(super) payloads: HashMap<PacketId, String>,
    aliases: HashMap<u16, String>,
    /// To be sent.
    due: Vec<Packet>,
    pub(super) seen: Vec<Seen>,
    pub(super) open: bool,
    pongs: usize,
    barriers: usize,
    next_id: u16,
    prefix: String,
}

impl Link {
    pub(super) fn open(address: SocketAddr, hello: &Hello, prefix: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self {
            stream,
            reader: Reader::client(hello.version, 1 << 20),
            buffer: BytesMut::new(),
            version: hello.version,
            acks: hello.acks,
            window: usize::from(hello.receive_maximum.unwrap_or(u16::MAX)),
            unacknowledged: HashSet::new(),
            payloads: HashMap::new(),
            aliases: HashMap::new(),
            due: Vec::new(),
            seen: Vec::new(),
            open: true,
            pongs: 0,
            barriers: 0,
            next_id: 0,
            prefix: prefix.to_owned(),
        })
    }

    pub(super) fn id(&mut self) -> PacketId {
        self.next_id = self.next_id.checked_add(1).unwrap_or(1);
        PacketId::new(self.next_id).expect("not 0")
    }

    /// Writes bytes and a PINGREQ behind them. A broker that has closed already is found when reading.
    pub(super) fn send(&mut self, bytes: &[u8]) {
        let mut out = BytesMut::from(bytes);
        write(&Packet::PingReq, self.version, &mut out);
        self.write(&out);
    }

    pub(super) fn send_packet(&mut self, packet: &Packet) {
        let mut out = BytesMut::new();
        write(packet, self.version, &mut out);
        self.send(&out);
    }

    pub(super) fn write(&mut self, bytes: &[u8]) {
        if self.stream.write_all(bytes).is_err() {
            // What came before the end is still to be read.
        }
    }

    /// Reads until the PINGREQ is answered, or the end.
    pub(super) fn pong(&mut self) -> io::Result<()> {
        self.read_until(|link| link.pongs > 0)?;
        self.pongs = 0;
        Ok(())
    }

    /// Reads until a packet that is neither a PINGRESP nor a message, or the end.
    pub(super) fn answer(&mut self) -> io::Result<()> {
        let had = self.answers();
        self.read_until(|link| link.answers() > had)
    }

    fn answers(&self) -> usize {
        self.seen.iter().filter(|one| !matches!(one, Seen::Message(_) | Seen::Release(_))).count()
    }

    /// Reads until a message to itself came, acknowledging what comes before it.
    pub(super) fn barrier(&mut self) -> io::Result<()> {
        while self.open && self.barriers == 0 {
            self.flush();
            self.step()?;
        }
        self.barriers = 0;
        Ok(())
    }

    /// Reads to the end of the stream; ours is closed.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        let _ = self.stream.shutdown(Shutdown::Write);
        self.read_until(|_| false)
    }

    /// Reads to the end of the stream, which the broker has to bring.
    pub(super) fn expect_end(&mut self) -> io::Result<()> {
        self.read_until(|_| false)
    }

    /// Acknowledgements that are due go out. Says whether there were any.
    pub(super) fn flush(&mut self) -> bool {
        let due = std::mem::take(&mut self.due);
        let mut out = BytesMut::new();
        for packet in &due {
            write(packet, self.version, &mut out);
        }
        if !out.is_empty() {
            self.write(&out);
        }
        !due.is_empty()
    }

    pub(super) fn has_due(&self) -> bool {
        self.open && !self.due.is_empty()
    }

    fn read_until(&mut self, done: impl Fn(&Self) -> bool) -> io::Result<()> {
        while self.open && !done(self) {
            self.step()?;
        }
        Ok(())
    }

    /// Takes one packet, or the end.
    fn step(&mut self) -> io::Result<()> {
        match self.reader.read(&mut self.buffer) {
            Ok(Some(packet)) => self.take(packet),
            Ok(None) => {
                let mut chunk = [0; 4096];
                match self.stream.read(&mut chunk) {
                    Ok(0) => self.end(),
                    Ok(read) => self.buffer.extend_from_slice(&chunk[..read]),
                    Err(error) if error.kind() == io::ErrorKind::ConnectionReset => self.end(),
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.end(),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            Err(malformed) => {
                self.seen.push(Seen::Fault(malformed.to_string()));
                let _ = self.stream.shutdown(Shutdown::Write);
                let mut rest = [0; 4096];
                while matches!(self.stream.read(&mut rest), Ok(1..)) {}
                self.end();
            }
        }
        Ok(())
    }

    fn end(&mut self) {
        self.open = false;
        self.seen.push(Seen::Closed);
    }

    fn take(&mut self, packet: Packet) {
        let seen = match packet {
            Packet::ConnAck(one) => Seen::ConnAck {
                present: one.session_present,
                code: one.reason.0,
                assigned: one.properties.assigned_client_id.is_some(),
            },
            Packet::Publish(publish) => return self.message(publish),
            Packet::PubRel(ack) => return self.release(&ack),
            Packet::PubAck(ack) => Seen::Ack("PUBACK", ack.reason.0),
            Packet::PubRec(ack) => Seen::Ack("PUBREC", ack.reason.0),
            Packet::PubComp(ack) => Seen::Ack("PUBCOMP", ack.reason.0),
            Packet::SubAck(ack) => Seen::SubAck(ack.reasons.iter().map(|one| one.0).collect()),
            Packet::UnsubAck(ack) => Seen::UnsubAck(ack.reasons.iter().map(|one| one.0).collect()),
            Packet::Disconnect(one) => Seen::Disconnect(one.reason.0),
            Packet::PingResp => {
                self.pongs += 1;
                return;
            }
            other => Seen::Fault(format!("a server sent {other:?}")),
        };
        self.seen.push(seen);
    }

    fn message(&mut self, publish: Publish) {
        let topic = match publish.topic_alias {
            None => publish.topic.to_string(),
            Some(alias) if publish.topic.is_empty() => {
                self.aliases.get(&alias).cloned().unwrap_or_default()
            }
            Some(alias) => {
                self.aliases.insert(alias, publish.topic.to_string());
                publish.topic.to_string()
            }
        };
        let payload = String::from_utf8_lossy(&publish.payload).into_owned();
        let is_barrier = topic.starts_with("z/");
        if let Some(id) = publish.packet_id {
            self.payloads.insert(id, payload.clone());
            let new = self.unacknowledged.insert(id);
            if new && self.unacknowledged.len() > self.window {
                self.seen.push(Seen::Fault("more in flight than Receive Maximum".to_owned()));
            }
            let half = matches!(self.acks, Acks::All | Acks::Half) || is_barrier;
            match publish.qos {
                Qos::AtLeastOnce if half => {
                    self.unacknowledged.remove(&id);
                    self.due.push(Packet::PubAck(Ack::new(id, Reason::SUCCESS)));
                }
                Qos::ExactlyOnce if half => {
                    self.due.push(Packet::PubRec(Ack::new(id, Reason::SUCCESS)));
                }
                _ => {}
            }
        }
        if is_barrier {
            self.barriers += 1;
            return;
        }
        let mut ids = publish.subscription_ids;
        ids.sort_unstable();
        let message = Message {
            topic: topic.replace(&self.prefix, "P"),
            qos: publish.qos as u8,
            payload,
            dup: publish.dup,
            retain: publish.retain,
            ids,
            properties: properties(&publish.properties),
        };
        self.seen.push(Seen::Message(message));
    }

    fn release(&mut self, ack: &Ack) {
        let id = ack.packet_id;
        if self.acks == Acks::All {
            self.due.push(Packet::PubComp(Ack::new(id, Reason::SUCCESS)));
        }
        if self.acks == Acks::All {
            self.unacknowledged.remove(&id);
        }
        let payload = self.payloads.get(&id).cloned();
        self.seen.push(Seen::Release(payload.unwrap_or_default()));
    }
}

fn properties(properties: &PublishProperties) -> String {
    let mut text = String::new();
    let mut add = |name: &str, value: &str| text += &[" ", name, "=", value].concat();
    if let Some(format) = properties.payload_format {
        add("format", &format.to_string());
    }
    if let Some(seconds) = properties.message_expiry {
        add("expiry", if (3500..=3600).contains(&seconds) { "hour" } else { "other" });
    }
    if let Some(value) = &properties.content_type {
        add("type", value);
    }
    if let Some(value) = &properties.response_topic {
        add("answer", value);
    }
    if let Some(value) = &properties.correlation_data {
        add("about", &String::from_utf8_lossy(value));
    }
    for (name, value) in &properties.user_properties {
        add(name, value);
    }
    text
}
