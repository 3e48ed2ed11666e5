//! One packet: what is read can be written, and what was written reads as the same packet.
//!
//! An input is: a choice (version, side), the first byte, the body. The length is put in between, so that every input
//! reaches the packet's own reader; wrong lengths are the `stream` target's part.

use bytes::{Buf, BytesMut};
use tributary_shared::{
    message::Message,
    mqtt::{
        Packet, Reader, Version,
        packet::Publish,
        write::{Alias, Encoded, Head, Output, PROTOCOL_MAXIMUM, publish, write, write_limited},
    },
};

use crate::input::Input;

/// Limit of the readers here: more than any input has.
const MAXIMUM: usize = 1 << 20;

/// Which side and version of a connection a packet arrives at.
#[derive(Debug, Clone, Copy)]
pub struct Side {
    /// Of the connection.
    pub version: Version,
    /// The reader is the server's.
    pub server: bool,
}

impl Side {
    /// Of a choice byte: its low two bits are the version, the next the side.
    pub fn choose(choice: u8) -> Self {
        let version =
            [Version::V5, Version::V311, Version::V31, Version::V5][usize::from(choice & 3)];
        Self { version, server: choice & 4 == 0 }
    }

    /// A reader that expects such a packet: the first of a connection for CONNECT, else any later one.
    pub fn reader(self, kind: u8) -> Reader {
        match (self.server, kind) {
            (true, 1) => Reader::server(MAXIMUM),
            (true, _) => connected(self.version),
            (false, _) => Reader::client(self.version, MAXIMUM),
        }
    }
}

/// A server's reader after a CONNECT.
pub fn connected(version: Version) -> Reader {
    let mut reader = Reader::server(MAXIMUM);
    let connect: &[u8] = match version {
        Version::V31 => b"\x10\x0f\x00\x06MQIsdp\x03\x02\x00\x00\x00\x01a",
        Version::V311 => b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x00\x00\x01a",
        Version::V5 => b"\x10\x0e\x00\x04MQTT\x05\x02\x00\x00\x00\x00\x01a",
    };
    let read = reader.read(&mut BytesMut::from(connect));
    assert!(matches!(read, Ok(Some(Packet::Connect(_)))));
    reader
}

/// Bytes of a packet with this first byte and body.
pub fn framed(first: u8, body: &[u8]) -> BytesMut {
    let mut bytes = BytesMut::from(&[first][..]);
    let mut length = body.len();
    loop {
        let more = if length > 127 { 0x80 } else { 0 };
        bytes.extend_from_slice(&[(length & 127) as u8 | more]);
        length >>= 7;
        if length == 0 {
            break;
        }
    }
    bytes.extend_from_slice(body);
    bytes
}

/// One packet of a family of packet types.
pub fn family(data: &[u8], kinds: &[u8]) {
    let mut input = Input(data);
    let choice = input.byte();
    let side = Side::choose(choice);
    let first = input.byte();
    let kind = first >> 4;
    let kind = if kinds.contains(&kind) { kind } else { kinds[usize::from(kind) % kinds.len()] };
    let bytes = framed(kind << 4 | (first & 15), input.0);
    let mut buffer = bytes.clone();
    let mut reader = side.reader(kind);
    match reader.read(&mut buffer) {
        Ok(Some(packet)) => {
            assert!(buffer.is_empty(), "a packet takes its bytes, no more and no less");
            let version = reader.version().expect("known");
            returns(&packet, kind, Side { version, ..side }, usize::from(choice >> 3));
        }
        Ok(None) => panic!("the packet is whole: {bytes:?}"),
        Err(malformed) => {
            assert!(malformed.reason.is_error() && !malformed.detail.is_empty());
        }
    }
}

/// Written, it reads the same; cut to a receiver's size it is legal or not there.
pub fn returns(packet: &Packet, kind: u8, side: Side, limit: usize) {
    let mut written = BytesMut::new();
    write(packet, side.version, &mut written);
    let size = written.len();
    let mut buffer = written.clone();
    let again = side.reader(kind).read(&mut buffer);
    assert_eq!(again.as_ref(), Ok(&Some(packet.clone())), "{side:?} {written:?}");
    assert!(buffer.is_empty());
    for maximum in [limit, size.saturating_sub(limit), size] {
        let mut out = BytesMut::from(&b"before"[..]);
        let outcome = write_limited(packet, side.version, maximum, &mut out);
        let mut out = out.split_off(6);
        match outcome {
            Ok(()) => {
                assert!(out.len() <= maximum);
                let read = side.reader(kind).read(&mut out).expect("legal").expect("whole");
                assert_eq!(std::mem::discriminant(&read), std::mem::discriminant(packet));
            }
            Err(_) => assert!(out.is_empty() && maximum < size),
        }
    }
    if let Packet::Publish(sent) = packet {
        shared(sent, side.version, &written);
    }
}

/// A message encoded for many receivers is the packet that a single one would get.
fn shared(sent: &Publish, version: Version, written: &[u8]) {
    if sent.topic_alias.is_some() {
        return;
    }
    let message = Message {
        topic: sent.topic.clone(),
        payload: sent.payload.clone(),
        qos: sent.qos,
        retain: sent.retain,
        properties: sent.properties.clone(),
        publisher: None,
        received_ms: 0,
        expires_ms: None,
        encoded: Encoded::default(),
        place: None,
    };
    let head = Head {
        dup: sent.dup,
        qos: sent.qos,
        retain: sent.retain,
        packet_id: sent.packet_id,
        subscription_ids: &sent.subscription_ids,
        expiry_s: sent.properties.message_expiry,
        alias: Alias::None,
    };
    let mut output = Output::default();
    publish(&message, &head, version, PROTOCOL_MAXIMUM, &mut output).expect("no limit");
    output.seal();
    let bytes = output.copy_to_bytes(output.remaining());
    assert_eq!(&bytes[..], written, "{version:?}");
}
