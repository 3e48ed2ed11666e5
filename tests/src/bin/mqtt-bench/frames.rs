//! Reading what a broker sends as cheaply as possible: a generator that parses like a broker would be the bottleneck.
//!
//! In: bytes of a connection after CONNACK. Out: what a load generator has to react to. It trusts the broker: bytes that
//! are not MQTT are an error, not every rule of the standard is checked. Not here: packets before the load begins
//! (`client`, with the real codec).

use bytes::{Buf, BytesMut};
use tributary_shared::mqtt::{PacketId, Version};

use crate::Failure;

/// One packet, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Frame {
    /// A message: its acknowledgement's first byte and packet id, if it wants one, and the time in its payload.
    Publish { ack: Option<(u8, PacketId)>, stamp_ns: Option<u64> },
    /// To be answered with these first bytes.
    Answer(u8, PacketId),
    /// PUBACK or PUBCOMP.
    Done(PacketId),
}

/// The next whole packet of `buffer`, which it is taken from.
pub(crate) fn next(buffer: &mut BytesMut, version: Version) -> Result<Option<Frame>, Failure> {
    let Some((length, header)) = integer(buffer, 1) else { return Ok(None) };
    let whole = 1 + header + length;
    let Some(packet) = buffer.get(..whole) else { return Ok(None) };
    let body = packet.get(1 + header..).unwrap_or_default();
    let first = packet.first().copied().unwrap_or(0);
    let frame = match first >> 4 {
        3 => publish(first, body, version).ok_or("a PUBLISH is cut short")?,
        kind @ 4..=7 => {
            let refused = version == Version::V5 && body.get(2).is_some_and(|code| *code >= 0x80);
            let id = number(body, 0).and_then(PacketId::new);
            match (kind, id) {
                (4 | 7, Some(id)) if !refused => Frame::Done(id),
                (5, Some(id)) if !refused => Frame::Answer(0x62, id),
                (6, Some(id)) if !refused => Frame::Answer(0x70, id),
                _ => return Err(format!("a message was answered with {packet:02x?}").into()),
            }
        }
        _ => {
            return Err(
                format!("the broker sent {:02x?}", packet.get(..packet.len().min(8))).into()
            );
        }
    };
    buffer.advance(whole);
    Ok(Some(frame))
}

fn publish(first: u8, body: &[u8], version: Version) -> Option<Frame> {
    let mut at = 2 + usize::from(number(body, 0)?);
    let mut ack = None;
    if let qos @ 1..=2 = (first >> 1) & 3 {
        let first = if qos == 1 { 0x40 } else { 0x50 };
        ack = Some((first, PacketId::new(number(body, at)?)?));
        at += 2;
    }
    if version == Version::V5 {
        let (properties, length) = integer(body, at)?;
        at += length + properties;
    }
    let stamp = body.get(at..)?.first_chunk().map(|stamp| u64::from_be_bytes(*stamp));
    Some(Frame::Publish { ack, stamp_ns: stamp })
}

fn number(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|two| u16::from_be_bytes(*two))
}

/// A variable byte integer and its length.
fn integer(bytes: &[u8], at: usize) -> Option<(usize, usize)> {
    let mut value = 0;
    for (index, byte) in bytes.get(at..)?.iter().take(4).enumerate() {
        value |= usize::from(byte & 0x7F) << (7 * index);
        if byte & 0x80 == 0 {
            return Some((value, index + 1));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use tributary_shared::mqtt::{
        Packet, Qos, Reason,
        packet::{Ack, Publish},
        write::write,
    };

    use super::*;

    #[test]
    fn what_the_codec_writes_is_understood_byte_by_byte() {
        let id = PacketId::new(513).unwrap();
        for version in [Version::V311, Version::V5] {
            let mut bytes = BytesMut::new();
            for (qos, packet_id) in [(Qos::AtMostOnce, None), (Qos::AtLeastOnce, Some(id))] {
                let mut payload = 77_u64.to_be_bytes().to_vec();
                payload.resize(300, 0);
                let topic = "a/b".into();
                let publish = Publish {
                    qos,
                    packet_id,
                    topic,
                    payload: payload.into(),
                    ..Publish::default()
                };
                write(&Packet::Publish(publish), version, &mut bytes);
            }
            write(&Packet::PubAck(Ack::new(id, Reason::SUCCESS)), version, &mut bytes);
            write(&Packet::PubRec(Ack::new(id, Reason::SUCCESS)), version, &mut bytes);
            let mut arrived = BytesMut::new();
            let mut found = Vec::new();
            for byte in bytes {
                arrived.extend_from_slice(&[byte]);
                found.extend(next(&mut arrived, version).unwrap());
            }
            let expected = [
                Frame::Publish { ack: None, stamp_ns: Some(77) },
                Frame::Publish { ack: Some((0x40, id)), stamp_ns: Some(77) },
                Frame::Done(id),
                Frame::Answer(0x62, id),
            ];
            assert_eq!(found, expected);
        }
    }
}
