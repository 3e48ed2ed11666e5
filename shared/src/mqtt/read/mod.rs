//! Bytes to packets.
//!
//! Holds: framing (this file), one file a group of packets. A packet is taken whole from the read buffer; its strings
//! and payload are slices of it. What a broker may keep for long (filters, retained and QoS 1 and 2 messages) is first
//! copied in one piece if it is small: a kept slice keeps the whole buffer. In: the bytes that came. Out: packets in order.
//! Change here: lengths, flags, directions. Not here: meaning, topic aliases, quotas (`session`).

mod connect;
mod cursor;
mod other;
mod publish;
mod subscribe;

use bytes::{Buf, Bytes, BytesMut};

use super::{
    check::Sender,
    packet::{Packet, Reason, Version},
};
pub(crate) use cursor::Cursor;

/// Why bytes are not a legal packet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail} (reason code {:#04x})", reason.0)]
pub struct Malformed {
    /// What to tell the peer in CONNACK or DISCONNECT.
    pub reason: Reason,
    /// For the log, with the section of the standard.
    pub detail: &'static str,
}

impl Malformed {
    pub(crate) const fn new(reason: Reason, detail: &'static str) -> Self {
        Self { reason, detail }
    }

    /// The bytes do not follow the standard.
    pub(crate) const fn packet(detail: &'static str) -> Self {
        Self::new(Reason::MALFORMED_PACKET, detail)
    }

    /// The bytes are well formed but not legal here.
    pub(crate) const fn protocol(detail: &'static str) -> Self {
        Self::new(Reason::PROTOCOL_ERROR, detail)
    }
}

/// Incremental reader of one connection. Starts in "expects CONNECT" and takes the version from it; nothing is
/// allocated from a length before it has been checked against `maximum`.
#[derive(Debug)]
pub struct Reader {
    from: Sender,
    version: Option<Version>,
    connected: bool,
    maximum: usize,
}

/// The fixed header (2.1).
#[derive(Debug, Clone, Copy)]
struct Header {
    first: u8,
    /// Of the fixed header itself.
    length: usize,
    /// Of what follows.
    remaining: usize,
    /// The length is in its shortest form.
    minimal: bool,
}

/// Packets from this size on are not copied: the part of a read buffer (32 KiB) that is kept with them is in proportion.
const SHARED_FROM: usize = 4_096;

/// The control packet types (table 2-1).
mod kind {
    pub(super) const CONNECT: u8 = 1;
    pub(super) const CONNACK: u8 = 2;
    pub(super) const PUBLISH: u8 = 3;
    pub(super) const PUBACK: u8 = 4;
    pub(super) const PUBREC: u8 = 5;
    pub(super) const PUBREL: u8 = 6;
    pub(super) const PUBCOMP: u8 = 7;
    pub(super) const SUBSCRIBE: u8 = 8;
    pub(super) const SUBACK: u8 = 9;
    pub(super) const UNSUBSCRIBE: u8 = 10;
    pub(super) const UNSUBACK: u8 = 11;
    pub(super) const PINGREQ: u8 = 12;
    pub(super) const PINGRESP: u8 = 13;
    pub(super) const DISCONNECT: u8 = 14;
    pub(super) const AUTH: u8 = 15;
}

impl Reader {
    /// For a server: the first packet must be CONNECT. `maximum`: bytes of one whole packet.
    pub fn server(maximum: usize) -> Self {
        Self { from: Sender::Client, version: None, connected: false, maximum }
    }

    /// For a client of the given version (tests, tools).
    pub fn client(version: Version, maximum: usize) -> Self {
        Self { from: Sender::Server, version: Some(version), connected: true, maximum }
    }

    /// Raises or lowers the packet limit (a larger one after login).
    pub fn set_maximum(&mut self, maximum: usize) {
        self.maximum = maximum;
    }

    /// Version once known; after a refused CONNECT the one in which to answer it, if any.
    pub fn version(&self) -> Option<Version> {
        self.version
    }

    /// The next whole packet in `buffer`, which it is taken from; `None`: more bytes are needed. After an error the
    /// stream has no more packets: what follows cannot be told apart.
    pub fn read(&mut self, buffer: &mut BytesMut) -> Result<Option<Packet>, Malformed> {
        let Some(&first) = buffer.first() else { return Ok(None) };
        self.expects(first)?;
        let Some(header) = Header::peek(first, buffer)? else { return Ok(None) };
        let whole = header.length + header.remaining;
        if whole > self.maximum {
            return Err(Malformed::new(
                Reason::PACKET_TOO_LARGE,
                "packet is over the maximum size",
            ));
        }
        if buffer.len() < whole {
            return Ok(None);
        }
        let mut frame = if whole < SHARED_FROM && may_be_kept(first) {
            let own = Bytes::copy_from_slice(buffer.get(..whole).unwrap_or_default());
            buffer.advance(whole);
            own
        } else {
            buffer.split_to(whole).freeze()
        };
        frame.advance(header.length);
        self.packet(header, Cursor::new(frame)).map(Some)
    }

    /// Type and flags, judged before the rest has come: another protocol on the port is refused at its first byte.
    fn expects(&self, first: u8) -> Result<(), Malformed> {
        let kind = first >> 4;
        if !self.connected && kind != kind::CONNECT {
            return Err(Malformed::protocol("first packet is not CONNECT (MQTT-3.1.0-1)"));
        }
        if self.connected && kind == kind::CONNECT {
            return Err(Malformed::protocol("CONNECT on a connected connection (MQTT-3.1.0-2)"));
        }
        let direction = match kind {
            kind::CONNECT | kind::SUBSCRIBE | kind::UNSUBSCRIBE | kind::PINGREQ => {
                self.from == Sender::Client
            }
            kind::CONNACK | kind::SUBACK | kind::UNSUBACK | kind::PINGRESP => {
                self.from == Sender::Server
            }
            kind::PUBLISH..=kind::PUBCOMP => true,
            kind::DISCONNECT => self.from == Sender::Client || self.version == Some(Version::V5),
            kind::AUTH => self.version == Some(Version::V5),
            _ => return Err(Malformed::packet("packet type 0 (MQTT, 2.1.2)")),
        };
        if !direction {
            return Err(Malformed::protocol("packet type is not legal from this side (table 2-1)"));
        }
        let flags = match (kind, self.version) {
            // 3.1 marks requests as repeated, and calls the flags of all other packets "not used".
            (kind::PUBLISH, _) | (_, Some(Version::V31)) => return Ok(()),
            (kind::PUBREL | kind::SUBSCRIBE | kind::UNSUBSCRIBE, _) => first & 0b1111 == 0b0010,
            _ => first.trailing_zeros() >= 4,
        };
        if flags { Ok(()) } else { Err(Malformed::packet("reserved flag bits (MQTT-2.1.3-1)")) }
    }

    fn packet(&mut self, header: Header, mut cursor: Cursor) -> Result<Packet, Malformed> {
        let kind = header.first >> 4;
        if kind == kind::CONNECT {
            let connect = connect::connect(&mut cursor, &mut self.version)?;
            cursor.end()?;
            header.check_minimal(connect.version)?;
            self.connected = true;
            return Ok(Packet::Connect(Box::new(connect)));
        }
        let Some(version) = self.version else {
            return Err(Malformed::protocol("first packet is not CONNECT (MQTT-3.1.0-1)"));
        };
        header.check_minimal(version)?;
        if kind == kind::PUBLISH {
            return publish::publish(header.first, cursor, version, self.from).map(Packet::Publish);
        }
        let packet = match kind {
            kind::CONNACK => Packet::ConnAck(Box::new(connect::connack(&mut cursor, version)?)),
            kind::PUBACK => Packet::PubAck(publish::ack(&mut cursor, version, true)?),
            kind::PUBREC => Packet::PubRec(publish::ack(&mut cursor, version, true)?),
            kind::PUBREL => Packet::PubRel(publish::ack(&mut cursor, version, false)?),
            kind::PUBCOMP => Packet::PubComp(publish::ack(&mut cursor, version, false)?),
            kind::SUBSCRIBE => Packet::Subscribe(subscribe::subscribe(&mut cursor, version)?),
            kind::SUBACK => Packet::SubAck(subscribe::suback(&mut cursor, version)?),
            kind::UNSUBSCRIBE => Packet::Unsubscribe(subscribe::unsubscribe(&mut cursor, version)?),
            kind::UNSUBACK => Packet::UnsubAck(subscribe::unsuback(&mut cursor, version)?),
            kind::PINGREQ => Packet::PingReq,
            kind::PINGRESP => Packet::PingResp,
            kind::DISCONNECT => {
                Packet::Disconnect(other::disconnect(&mut cursor, version, self.from)?)
            }
            kind::AUTH => Packet::Auth(other::auth(&mut cursor, self.from)?),
            _ => return Err(Malformed::packet("packet type 0 (MQTT, 2.1.2)")),
        };
        cursor.end()?;
        Ok(packet)
    }
}

/// Whether parts of the packet may outlive its handling by much; all but acknowledgements, pings, and QoS 0 messages.
fn may_be_kept(first: u8) -> bool {
    match first >> 4 {
        kind::PUBLISH => first & 0b0111 != 0,
        kind::PUBACK..=kind::PUBCOMP | kind::PINGREQ | kind::PINGRESP => false,
        _ => true,
    }
}

impl Header {
    fn peek(first: u8, buffer: &[u8]) -> Result<Option<Self>, Malformed> {
        let mut remaining = 0;
        for (index, byte) in buffer.iter().skip(1).take(4).enumerate() {
            remaining |= usize::from(byte & 0x7F) << (7 * index);
            if byte & 0x80 == 0 {
                let minimal = *byte != 0 || index == 0;
                return Ok(Some(Self { first, length: index + 2, remaining, minimal }));
            }
        }
        if buffer.len() > 4 {
            return Err(Malformed::packet(
                "remaining length is longer than four bytes (MQTT, 2.1.4)",
            ));
        }
        Ok(None)
    }

    /// Only version 5 demands the shortest form.
    fn check_minimal(self, version: Version) -> Result<(), Malformed> {
        if version == Version::V5 && !self.minimal {
            return Err(Malformed::packet("remaining length is longer than needed (MQTT-1.5.5-1)"));
        }
        Ok(())
    }
}
