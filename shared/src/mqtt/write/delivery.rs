//! One message to many receivers: what they share is encoded once, and large payloads are never copied.
//!
//! A PUBLISH is: fixed header | topic | packet id | property length | this receiver's properties | shared properties |
//! payload. Topic and payload are bytes of the message already; the shared properties are encoded by the first receiver
//! of version 5 and kept in the message. Before version 5 there is nothing to encode. In: a [`Message`] and what is
//! particular to one delivery. Out: bytes in an [`Output`].

use std::{num::NonZeroU16, sync::OnceLock};

use bytes::{BufMut, Bytes, BytesMut};

use super::{
    Output, TooLarge,
    output::SHARED_FROM,
    primitive::{MAX_DATA, Properties, integer_length, put_integer, put_text},
};
use crate::{
    message::Message,
    mqtt::{
        check,
        packet::{PacketId, PublishProperties, Qos, Version},
        property::id,
    },
};

/// Made by the codec on first use and shared by every receiver of a message; `Encoded::default()` when a message is made.
/// Says nothing about the message: all are equal.
#[derive(Debug, Clone, Default)]
pub struct Encoded(OnceLock<Bytes>);

impl PartialEq for Encoded {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Encoded {}

/// How a topic is written (3.3.2.3.4).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Alias {
    /// As it is.
    #[default]
    None,
    /// As it is, with the number that may stand for it from now on.
    New(NonZeroU16),
    /// As the number alone.
    Known(NonZeroU16),
}

/// What one delivery of a message has of its own.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// Redelivery.
    pub dup: bool,
    /// QoS of this delivery; 0 is written where there is no packet id.
    pub qos: Qos,
    /// Retain flag.
    pub retain: bool,
    /// For QoS 1 and 2.
    pub packet_id: Option<PacketId>,
    /// Ids of the subscriptions that matched.
    pub subscription_ids: &'a [u32],
    /// Seconds left of the message's life, if it ends.
    pub expiry_s: Option<u32>,
    /// How the topic is written; none before version 5.
    pub alias: Alias,
}

/// Appends a PUBLISH of `message`, unless it is over `maximum` bytes.
pub fn publish(
    message: &Message,
    head: &Head<'_>,
    version: Version,
    maximum: usize,
    out: &mut Output,
) -> Result<(), TooLarge> {
    let mut own = Properties::default();
    let mut shared: &[u8] = &[];
    if version == Version::V5 {
        if let Some(seconds) = head.expiry_s {
            own.four(id::MESSAGE_EXPIRY, seconds);
        }
        for number in head.subscription_ids {
            own.integer(id::SUBSCRIPTION_ID, *number);
        }
        shared = message.encoded.0.get_or_init(|| encode_shared(&message.properties));
    }
    let qos = if head.packet_id.is_some() { head.qos } else { Qos::AtMostOnce };
    let frame = Frame {
        first: first_byte(head.dup, qos, head.retain),
        topic: &message.topic,
        alias: if version == Version::V5 { head.alias } else { Alias::None },
        packet_id: head.packet_id,
        own: own.as_slice(),
        shared,
        payload: message.payload.len(),
    };
    frame.put(version, maximum, out.tail())?;
    out.share(&message.payload);
    Ok(())
}

/// First byte of a PUBLISH (3.3.1).
pub(super) fn first_byte(dup: bool, qos: Qos, retain: bool) -> u8 {
    0x30 | u8::from(dup && qos != Qos::AtMostOnce) << 3 | (qos as u8) << 1 | u8::from(retain)
}

/// A PUBLISH up to its payload.
pub(super) struct Frame<'a> {
    pub(super) first: u8,
    pub(super) topic: &'a str,
    pub(super) alias: Alias,
    pub(super) packet_id: Option<PacketId>,
    pub(super) own: &'a [u8],
    pub(super) shared: &'a [u8],
    /// Bytes that follow.
    pub(super) payload: usize,
}

impl Frame<'_> {
    pub(super) fn put(
        &self,
        version: Version,
        maximum: usize,
        out: &mut BytesMut,
    ) -> Result<(), TooLarge> {
        let (topic, alias) = match self.alias {
            Alias::None => (self.topic, None),
            Alias::New(alias) => (self.topic, Some(alias)),
            Alias::Known(alias) => ("", Some(alias)),
        };
        let properties = alias.map_or(0, |_| 3) + self.own.len() + self.shared.len();
        let mut remaining = 2 + topic.len() + self.payload;
        if self.packet_id.is_some() {
            remaining += 2;
        }
        if version == Version::V5 {
            remaining += integer_length(properties) + properties;
        }
        let size = 1 + integer_length(remaining) + remaining;
        let maximum = maximum.min(super::PROTOCOL_MAXIMUM);
        if size > maximum || self.topic.len() > MAX_DATA {
            return Err(TooLarge { size, maximum });
        }
        out.reserve(size - self.payload + self.payload.min(SHARED_FROM));
        out.put_u8(self.first);
        put_integer(remaining, out);
        put_text(topic, out);
        if let Some(packet_id) = self.packet_id {
            out.put_u16(packet_id.get());
        }
        if version == Version::V5 {
            put_integer(properties, out);
            if let Some(alias) = alias {
                out.put_u8(id::TOPIC_ALIAS);
                out.put_u16(alias.get());
            }
            out.put_slice(self.own);
            out.put_slice(self.shared);
        }
        Ok(())
    }
}

/// The properties that are the same for all receivers: all but the expiry. A message that came by another protocol may
/// hold a text or a datum that MQTT cannot say (over 65,535 bytes, or with NUL): that property is left out.
pub(super) fn encode_shared(properties: &PublishProperties) -> Bytes {
    let legal = |text: &str| text.len() <= MAX_DATA && check::is_legal_string(text);
    let mut out = Properties::default();
    if let Some(format) = properties.payload_format {
        out.byte(id::PAYLOAD_FORMAT, format);
    }
    if let Some(text) = properties.content_type.as_ref().filter(|text| legal(text)) {
        out.text(id::CONTENT_TYPE, text);
    }
    let topic = properties.response_topic.as_ref();
    if let Some(topic) = topic.filter(|topic| legal(topic) && check::is_legal_topic_name(topic)) {
        out.text(id::RESPONSE_TOPIC, topic);
    }
    if let Some(data) = properties.correlation_data.as_ref().filter(|data| data.len() <= MAX_DATA) {
        out.binary(id::CORRELATION_DATA, data);
    }
    for (name, value) in &properties.user_properties {
        if legal(name) && legal(value) {
            out.pair(name, value);
        }
    }
    out.into_bytes()
}
