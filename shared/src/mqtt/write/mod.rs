//! Packets to bytes.
//!
//! Holds: every packet but the fan-out of messages (`delivery`) and the bytes on their way out (`output`).
//! In: packets with legal contents. Out: bytes as the connection's version writes them; what a version does not have is
//! left out. Change here: what a packet looks like. Not here: when it is sent (`session`), to whom (`connection`).

mod connect;
mod delivery;
mod output;
mod primitive;

use bytes::{BufMut, BytesMut};

use super::{
    packet::{
        Ack, Auth, Disconnect, Packet, Publish, Reason, SubAck, Subscribe, Unsubscribe, Version,
    },
    property::id,
};
pub use delivery::{Alias, Encoded, Head, publish};
pub use output::Output;
use primitive::{Properties, put_frame, put_text};

/// Largest packet of the protocol: five bytes of fixed header and the largest remaining length.
pub const PROTOCOL_MAXIMUM: usize = 5 + 268_435_455;

/// The receiver does not take a packet of this size (MQTT-3.1.2-24), so it must not be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("packet of {size} bytes is over the receiver's limit of {maximum}")]
pub struct TooLarge {
    /// Of the whole packet, bytes.
    pub size: usize,
    /// Allowed, bytes.
    pub maximum: usize,
}

/// Appends `packet` as `version` writes it. Properties are left out before version 5. The caller guarantees legal
/// contents (checked types); lengths over the protocol's limits are cut where the standard allows (reason strings).
/// Nothing is written where the version has no such packet, or for one over [`PROTOCOL_MAXIMUM`].
pub fn write(packet: &Packet, version: Version, out: &mut BytesMut) {
    let first = first_byte(packet);
    match packet {
        Packet::Publish(publish) => {
            // Only a payload of 256 MB fails, and no message is that large.
            let _ = write_publish(publish, version, PROTOCOL_MAXIMUM, out);
        }
        Packet::PubAck(ack) | Packet::PubRec(ack) | Packet::PubRel(ack) | Packet::PubComp(ack) => {
            write_ack(first, ack, version, out);
        }
        Packet::PingReq | Packet::PingResp => out.put_slice(&[first, 0]),
        Packet::Disconnect(disconnect) => write_disconnect(first, disconnect, version, out),
        Packet::Auth(auth) => write_auth(first, auth, version, out),
        Packet::Connect(connect) => put_frame(first, &connect::connect(connect, version), out),
        Packet::ConnAck(connack) => put_frame(first, &connect::connack(connack, version), out),
        Packet::Subscribe(subscribe) => put_frame(first, &subscribe_body(subscribe, version), out),
        Packet::Unsubscribe(unsubscribe) => {
            put_frame(first, &unsubscribe_body(unsubscribe, version), out);
        }
        Packet::SubAck(suback) => {
            let code = |reason: Reason| match version {
                Version::V5 => reason.0,
                _ if reason.is_error() => 0x80,
                _ => reason.0,
            };
            let mut body = answer_body(suback, version);
            body.extend(suback.reasons.iter().map(|reason| code(*reason)));
            put_frame(first, &body, out);
        }
        Packet::UnsubAck(unsuback) => {
            let mut body = answer_body(unsuback, version);
            if version == Version::V5 {
                body.extend(unsuback.reasons.iter().map(|reason| reason.0));
            }
            put_frame(first, &body, out);
        }
    }
}

/// [`write()`] for a receiver that takes at most `maximum` bytes a packet: an answer that is larger loses its reason
/// string, then its user properties (MQTT-3.2.2-19, 3.4.2-2 and their likes). What is still too large is not written.
pub fn write_limited(
    packet: &Packet,
    version: Version,
    maximum: usize,
    out: &mut BytesMut,
) -> Result<(), TooLarge> {
    if let Packet::Publish(publish) = packet {
        return write_publish(publish, version, maximum, out);
    }
    let start = out.len();
    write(packet, version, out);
    let mut size = out.len() - start;
    for user_properties_too in [false, true] {
        if size <= maximum {
            return Ok(());
        }
        out.truncate(start);
        let Some(shorter) = without_diagnostics(packet, user_properties_too) else {
            return Err(TooLarge { size, maximum });
        };
        write(&shorter, version, out);
        size = out.len() - start;
    }
    if size <= maximum {
        return Ok(());
    }
    out.truncate(start);
    Err(TooLarge { size, maximum })
}

/// The answer without its reason string (and user properties); `None` for a packet that is no answer.
pub fn without_diagnostics(packet: &Packet, user_properties_too: bool) -> Option<Packet> {
    let mut packet = packet.clone();
    let (reason_string, user_properties) = match &mut packet {
        Packet::ConnAck(connack) => {
            (&mut connack.properties.reason_string, &mut connack.properties.user_properties)
        }
        Packet::PubAck(ack) | Packet::PubRec(ack) | Packet::PubRel(ack) | Packet::PubComp(ack) => {
            (&mut ack.reason_string, &mut ack.user_properties)
        }
        Packet::SubAck(ack) | Packet::UnsubAck(ack) => {
            (&mut ack.reason_string, &mut ack.user_properties)
        }
        Packet::Disconnect(disconnect) => {
            (&mut disconnect.reason_string, &mut disconnect.user_properties)
        }
        Packet::Auth(auth) => (&mut auth.reason_string, &mut auth.user_properties),
        _ => return None,
    };
    *reason_string = None;
    if user_properties_too {
        user_properties.clear();
    }
    Some(packet)
}

fn first_byte(packet: &Packet) -> u8 {
    match packet {
        Packet::Connect(_) => 0x10,
        Packet::ConnAck(_) => 0x20,
        Packet::Publish(publish) => delivery::first_byte(publish.dup, publish.qos, publish.retain),
        Packet::PubAck(_) => 0x40,
        Packet::PubRec(_) => 0x50,
        Packet::PubRel(_) => 0x62,
        Packet::PubComp(_) => 0x70,
        Packet::Subscribe(_) => 0x82,
        Packet::SubAck(_) => 0x90,
        Packet::Unsubscribe(_) => 0xA2,
        Packet::UnsubAck(_) => 0xB0,
        Packet::PingReq => 0xC0,
        Packet::PingResp => 0xD0,
        Packet::Disconnect(_) => 0xE0,
        Packet::Auth(_) => 0xF0,
    }
}

fn write_publish(
    publish: &Publish,
    version: Version,
    maximum: usize,
    out: &mut BytesMut,
) -> Result<(), TooLarge> {
    let mut own = Properties::default();
    if let Some(alias) = publish.topic_alias {
        own.two(id::TOPIC_ALIAS, alias);
    }
    if let Some(seconds) = publish.properties.message_expiry {
        own.four(id::MESSAGE_EXPIRY, seconds);
    }
    for number in &publish.subscription_ids {
        own.integer(id::SUBSCRIPTION_ID, *number);
    }
    let frame = delivery::Frame {
        first: delivery::first_byte(publish.dup, publish.qos, publish.retain),
        topic: &publish.topic,
        alias: Alias::None,
        packet_id: publish.packet_id,
        own: own.as_slice(),
        shared: &delivery::encode_shared(&publish.properties),
        payload: publish.payload.len(),
    };
    frame.put(version, maximum, out)?;
    out.put_slice(&publish.payload);
    Ok(())
}

/// Two bytes of id; code and properties only where they say something (3.4.2.1).
fn write_ack(first: u8, ack: &Ack, version: Version, out: &mut BytesMut) {
    let [high, low] = ack.packet_id.get().to_be_bytes();
    let plain = ack.reason_string.is_none() && ack.user_properties.is_empty();
    if version != Version::V5 || (plain && ack.reason == Reason::SUCCESS) {
        out.put_slice(&[first, 2, high, low]);
    } else if plain {
        out.put_slice(&[first, 3, high, low, ack.reason.0]);
    } else {
        let mut body = BytesMut::new();
        body.put_slice(&[high, low, ack.reason.0]);
        let mut properties = Properties::default();
        properties.answer(ack.reason_string.as_ref(), &ack.user_properties);
        properties.put(&mut body);
        put_frame(first, &body, out);
    }
}

/// Before version 5 only a client sends it, without contents; a server just closes.
fn write_disconnect(first: u8, disconnect: &Disconnect, version: Version, out: &mut BytesMut) {
    let mut properties = Properties::default();
    if let Some(seconds) = disconnect.session_expiry {
        properties.four(id::SESSION_EXPIRY, seconds);
    }
    if let Some(reference) = &disconnect.server_reference {
        properties.text(id::SERVER_REFERENCE, reference);
    }
    properties.answer(disconnect.reason_string.as_ref(), &disconnect.user_properties);
    if version != Version::V5 {
        if disconnect.reason == Reason::SUCCESS {
            out.put_slice(&[first, 0]);
        }
    } else if disconnect.reason == Reason::SUCCESS && properties.as_slice().is_empty() {
        out.put_slice(&[first, 0]);
    } else {
        // The property length may be left out, but not every client knows.
        let mut body = BytesMut::new();
        body.put_u8(disconnect.reason.0);
        properties.put(&mut body);
        put_frame(first, &body, out);
    }
}

fn write_auth(first: u8, auth: &Auth, version: Version, out: &mut BytesMut) {
    if version != Version::V5 {
        return;
    }
    let mut properties = Properties::default();
    if let Some(method) = &auth.method {
        properties.text(id::AUTHENTICATION_METHOD, method);
    }
    if let Some(data) = &auth.data {
        properties.binary(id::AUTHENTICATION_DATA, data);
    }
    properties.answer(auth.reason_string.as_ref(), &auth.user_properties);
    if auth.reason == Reason::SUCCESS && properties.as_slice().is_empty() {
        out.put_slice(&[first, 0]);
        return;
    }
    let mut body = BytesMut::new();
    body.put_u8(auth.reason.0);
    properties.put(&mut body);
    put_frame(first, &body, out);
}

fn subscribe_body(subscribe: &Subscribe, version: Version) -> BytesMut {
    let mut body = BytesMut::new();
    body.put_u16(subscribe.packet_id.get());
    if version == Version::V5 {
        let mut properties = Properties::default();
        if let Some(number) = subscribe.subscription_id {
            properties.integer(id::SUBSCRIPTION_ID, number);
        }
        properties.user(&subscribe.user_properties);
        properties.put(&mut body);
    }
    for filter in &subscribe.filters {
        put_text(&filter.filter, &mut body);
        let options = filter.options;
        let mut byte = options.qos as u8;
        if version == Version::V5 {
            byte |= u8::from(options.no_local) << 2
                | u8::from(options.retain_as_published) << 3
                | (options.retain_handling & 0b11) << 4;
        }
        body.put_u8(byte);
    }
    body
}

fn unsubscribe_body(unsubscribe: &Unsubscribe, version: Version) -> BytesMut {
    let mut body = BytesMut::new();
    body.put_u16(unsubscribe.packet_id.get());
    if version == Version::V5 {
        let mut properties = Properties::default();
        properties.user(&unsubscribe.user_properties);
        properties.put(&mut body);
    }
    for filter in &unsubscribe.filters {
        put_text(filter, &mut body);
    }
    body
}

fn answer_body(answer: &SubAck, version: Version) -> BytesMut {
    let mut body = BytesMut::new();
    body.put_u16(answer.packet_id.get());
    if version == Version::V5 {
        let mut properties = Properties::default();
        properties.answer(answer.reason_string.as_ref(), &answer.user_properties);
        properties.put(&mut body);
    }
    body
}
