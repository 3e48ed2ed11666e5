//! A client as the standard sees it: what it has been sent and has not answered.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU16,
};

use bytes::BytesMut;
use tributary_shared::mqtt::{
    Packet, PacketId, Qos, Reader, Version,
    packet::{Ack, Connect, Publish, Reason},
    write::PROTOCOL_MAXIMUM,
};

use super::ConnectionId;

/// The clients.
pub(super) const NAMES: [&str; 3] = ["a", "b", "c"];

/// A CONNECT with the usual values.
pub(super) fn connect(client: &str, version: Version) -> Connect {
    Connect {
        version,
        client_id: client.into(),
        clean_start: false,
        keep_alive: 0,
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

/// One of a few ids, so that they meet.
pub(super) fn id(choice: u8) -> PacketId {
    NonZeroU16::MIN.saturating_add(u16::from(choice % 5))
}

/// What the server waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Open {
    Ack,
    Received,
    Complete,
}

/// A client's side of one connection.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) connection: ConnectionId,
    pub(super) version: Version,
    /// Bytes it takes.
    pub(super) maximum: usize,
    window: usize,
    pub(super) joined: bool,
    open: BTreeMap<PacketId, Open>,
    /// Ids of PUBRECs that nobody asked for: before version 5 their answer looks like any other.
    nonsense: BTreeSet<PacketId>,
    /// Topic aliases the server may make, and those it made.
    alias_maximum: u16,
    aliases: BTreeMap<u16, String>,
    /// Messages in order, for whoever compares.
    pub(super) got: Vec<String>,
}

impl Link {
    pub(super) fn new(connection: ConnectionId, connect: &Connect) -> Self {
        Self {
            connection,
            version: connect.version,
            maximum: connect.maximum_packet_size.map_or(PROTOCOL_MAXIMUM, |bytes| bytes as usize),
            window: usize::from(connect.receive_maximum.unwrap_or(u16::MAX)),
            joined: false,
            open: BTreeMap::new(),
            nonsense: BTreeSet::new(),
            alias_maximum: connect.topic_alias_maximum,
            aliases: BTreeMap::new(),
            got: Vec::new(),
        }
    }

    /// Looks at the bytes of one packet.
    pub(super) fn receive(&mut self, bytes: &[u8]) -> Packet {
        assert!(bytes.len() <= self.maximum, "within the client's maximum");
        let mut reader = Reader::client(self.version, self.maximum);
        let mut buffer = BytesMut::from(bytes);
        let packet = reader.read(&mut buffer).expect("a legal packet").expect("a whole packet");
        assert!(buffer.is_empty());
        let first = matches!(packet, Packet::ConnAck(_));
        assert!(first != self.joined, "CONNACK comes first and once: {packet:?}");
        self.joined = true;
        match &packet {
            Packet::Publish(publish) => self.message(publish),
            Packet::PubRel(ack)
                if !self.nonsense.remove(&ack.packet_id) && ack.reason == Reason::SUCCESS =>
            {
                let before = self.open.insert(ack.packet_id, Open::Complete);
                assert!(before != Some(Open::Ack) && before != Some(Open::Received));
            }
            _ => {}
        }
        packet
    }

    fn message(&mut self, publish: &Publish) {
        let topic = match publish.topic_alias {
            Some(alias) => {
                assert!((1..=self.alias_maximum).contains(&alias), "an alias the client takes");
                if !publish.topic.is_empty() {
                    self.aliases.insert(alias, publish.topic.to_string());
                }
                self.aliases.get(&alias).expect("an alias that was made").clone()
            }
            None => publish.topic.to_string(),
        };
        assert!(!topic.is_empty() && !topic.contains(['+', '#']));
        let qos = publish.qos as u8;
        let payload = String::from_utf8_lossy(&publish.payload);
        if qos > 0 {
            self.got.push(format!("{topic} {payload} {qos} {}", publish.retain));
        }
        let Some(packet_id) = publish.packet_id else { return };
        let waits = if publish.qos == Qos::ExactlyOnce { Open::Received } else { Open::Ack };
        let before = self.open.insert(packet_id, waits);
        assert_eq!(before, None, "a packet id is in flight once");
        let unanswered = self.open.values().filter(|open| **open != Open::Complete).count();
        assert!(unanswered <= self.window, "the receive maximum is kept");
    }

    /// Notes what the client is about to send.
    pub(super) fn sends(&mut self, packet: &Packet) {
        let (ack, open) = match packet {
            Packet::PubAck(ack) => (ack, Open::Ack),
            Packet::PubRec(ack) => (ack, Open::Received),
            Packet::PubComp(ack) => (ack, Open::Complete),
            _ => return,
        };
        let before = self.open.get(&ack.packet_id);
        if before == Some(&open) {
            self.open.remove(&ack.packet_id);
        } else if open == Open::Received && before != Some(&Open::Complete) {
            self.nonsense.insert(ack.packet_id);
        }
    }

    /// The right answer to one of the open packets.
    pub(super) fn answer(&self, which: usize) -> Option<Packet> {
        let (&packet_id, open) = self.open.iter().nth(which % self.open.len().max(1))?;
        let ack = Ack::new(packet_id, Reason::SUCCESS);
        Some(match open {
            Open::Ack => Packet::PubAck(ack),
            Open::Received => Packet::PubRec(ack),
            Open::Complete => Packet::PubComp(ack),
        })
    }
}
