//! MQTT 5 properties: identifiers, types, which packet may carry which (table 2-4), reading a block of them.
//!
//! In: a cursor at a property length. Out: each property once, typed. Change here: a property's type or place.
//! Not here: writing (`write::properties`).

use bytes::Bytes;
use bytestring::ByteString;

use super::{
    check,
    packet::{PublishProperties, Reason, UserProperties},
    read::{Cursor, Malformed},
};

#[allow(missing_docs)]
pub(crate) mod id {
    pub(crate) const PAYLOAD_FORMAT: u8 = 0x01;
    pub(crate) const MESSAGE_EXPIRY: u8 = 0x02;
    pub(crate) const CONTENT_TYPE: u8 = 0x03;
    pub(crate) const RESPONSE_TOPIC: u8 = 0x08;
    pub(crate) const CORRELATION_DATA: u8 = 0x09;
    pub(crate) const SUBSCRIPTION_ID: u8 = 0x0B;
    pub(crate) const SESSION_EXPIRY: u8 = 0x11;
    pub(crate) const ASSIGNED_CLIENT_ID: u8 = 0x12;
    pub(crate) const SERVER_KEEP_ALIVE: u8 = 0x13;
    pub(crate) const AUTHENTICATION_METHOD: u8 = 0x15;
    pub(crate) const AUTHENTICATION_DATA: u8 = 0x16;
    pub(crate) const REQUEST_PROBLEM_INFORMATION: u8 = 0x17;
    pub(crate) const WILL_DELAY: u8 = 0x18;
    pub(crate) const REQUEST_RESPONSE_INFORMATION: u8 = 0x19;
    pub(crate) const RESPONSE_INFORMATION: u8 = 0x1A;
    pub(crate) const SERVER_REFERENCE: u8 = 0x1C;
    pub(crate) const REASON_STRING: u8 = 0x1F;
    pub(crate) const RECEIVE_MAXIMUM: u8 = 0x21;
    pub(crate) const TOPIC_ALIAS_MAXIMUM: u8 = 0x22;
    pub(crate) const TOPIC_ALIAS: u8 = 0x23;
    pub(crate) const MAXIMUM_QOS: u8 = 0x24;
    pub(crate) const RETAIN_AVAILABLE: u8 = 0x25;
    pub(crate) const USER_PROPERTY: u8 = 0x26;
    pub(crate) const MAXIMUM_PACKET_SIZE: u8 = 0x27;
    pub(crate) const WILDCARD_AVAILABLE: u8 = 0x28;
    pub(crate) const SUBSCRIPTION_IDS_AVAILABLE: u8 = 0x29;
    pub(crate) const SHARED_AVAILABLE: u8 = 0x2A;
}

/// A set of property identifiers, one bit each: all are below 64.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Set(u64);

impl Set {
    const fn of(ids: &[u8]) -> Self {
        let mut bits = 0;
        let mut rest = ids;
        while let [first, tail @ ..] = rest {
            bits |= 1 << *first;
            rest = tail;
        }
        Self(bits)
    }

    const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    fn has(self, id: u8) -> bool {
        id < 64 && self.0 & (1 << id) != 0
    }
}

const MESSAGE: Set = Set::of(&[
    id::PAYLOAD_FORMAT,
    id::MESSAGE_EXPIRY,
    id::CONTENT_TYPE,
    id::RESPONSE_TOPIC,
    id::CORRELATION_DATA,
    id::USER_PROPERTY,
]);
pub(crate) const WILL: Set = MESSAGE.with(Set::of(&[id::WILL_DELAY]));
pub(crate) const PUBLISH: Set = MESSAGE.with(Set::of(&[id::TOPIC_ALIAS, id::SUBSCRIPTION_ID]));
pub(crate) const CONNECT: Set = Set::of(&[
    id::SESSION_EXPIRY,
    id::AUTHENTICATION_METHOD,
    id::AUTHENTICATION_DATA,
    id::REQUEST_PROBLEM_INFORMATION,
    id::REQUEST_RESPONSE_INFORMATION,
    id::RECEIVE_MAXIMUM,
    id::TOPIC_ALIAS_MAXIMUM,
    id::USER_PROPERTY,
    id::MAXIMUM_PACKET_SIZE,
]);
pub(crate) const CONNACK: Set = Set::of(&[
    id::SESSION_EXPIRY,
    id::ASSIGNED_CLIENT_ID,
    id::SERVER_KEEP_ALIVE,
    id::AUTHENTICATION_METHOD,
    id::AUTHENTICATION_DATA,
    id::RESPONSE_INFORMATION,
    id::SERVER_REFERENCE,
    id::REASON_STRING,
    id::RECEIVE_MAXIMUM,
    id::TOPIC_ALIAS_MAXIMUM,
    id::MAXIMUM_QOS,
    id::RETAIN_AVAILABLE,
    id::USER_PROPERTY,
    id::MAXIMUM_PACKET_SIZE,
    id::WILDCARD_AVAILABLE,
    id::SUBSCRIPTION_IDS_AVAILABLE,
    id::SHARED_AVAILABLE,
]);
pub(crate) const ACK: Set = Set::of(&[id::REASON_STRING, id::USER_PROPERTY]);
pub(crate) const SUBSCRIBE: Set = Set::of(&[id::SUBSCRIPTION_ID, id::USER_PROPERTY]);
pub(crate) const UNSUBSCRIBE: Set = Set::of(&[id::USER_PROPERTY]);
pub(crate) const CLIENT_DISCONNECT: Set =
    Set::of(&[id::SESSION_EXPIRY, id::REASON_STRING, id::USER_PROPERTY]);
pub(crate) const SERVER_DISCONNECT: Set =
    Set::of(&[id::SERVER_REFERENCE, id::REASON_STRING, id::USER_PROPERTY]);
pub(crate) const AUTH: Set = Set::of(&[
    id::AUTHENTICATION_METHOD,
    id::AUTHENTICATION_DATA,
    id::REASON_STRING,
    id::USER_PROPERTY,
]);

/// A property's value, by type (2.2.2.2).
#[derive(Debug)]
pub(crate) enum Value {
    Byte(u8),
    Two(u16),
    Four(u32),
    /// Variable byte integer.
    Integer(u32),
    Text(ByteString),
    Binary(Bytes),
    Pair(ByteString, ByteString),
}

/// Reads a property length and the properties in it. Each must be in `allowed`, and at most once except user
/// properties and the subscription identifiers of a PUBLISH. `each` stores a value, and refuses a bad one.
pub(crate) fn read(
    cursor: &mut Cursor,
    allowed: Set,
    mut each: impl FnMut(u8, Value) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    let length = cursor.integer()? as usize;
    if length == 0 {
        return Ok(());
    }
    let mut block = Cursor::new(cursor.take(length)?);
    let repeats = if allowed.has(id::TOPIC_ALIAS) {
        Set::of(&[id::USER_PROPERTY, id::SUBSCRIPTION_ID])
    } else {
        Set::of(&[id::USER_PROPERTY])
    };
    let mut seen = Set(0);
    while !block.is_empty() {
        let id = block.u8()?;
        if !allowed.has(id) {
            return Err(Malformed::packet(
                "property is not legal in this packet (MQTT 5, 2.2.2.2)",
            ));
        }
        if seen.has(id) && !repeats.has(id) {
            return Err(Malformed::protocol("property stands twice (MQTT 5, 2.2.2.2)"));
        }
        seen.0 |= 1 << id;
        each(id, value(id, &mut block)?)?;
    }
    Ok(())
}

fn value(id: u8, block: &mut Cursor) -> Result<Value, Malformed> {
    Ok(match id {
        id::PAYLOAD_FORMAT
        | id::REQUEST_PROBLEM_INFORMATION
        | id::REQUEST_RESPONSE_INFORMATION
        | id::MAXIMUM_QOS
        | id::RETAIN_AVAILABLE
        | id::WILDCARD_AVAILABLE
        | id::SUBSCRIPTION_IDS_AVAILABLE
        | id::SHARED_AVAILABLE => match block.u8()? {
            // Every byte property of the standard is 0 or 1.
            byte @ 0..=1 => Value::Byte(byte),
            _ => return Err(Malformed::protocol("property value is neither 0 nor 1")),
        },
        id::SERVER_KEEP_ALIVE | id::TOPIC_ALIAS_MAXIMUM | id::TOPIC_ALIAS => {
            Value::Two(block.u16()?)
        }
        id::RECEIVE_MAXIMUM => match block.u16()? {
            0 => return Err(Malformed::protocol("receive maximum is 0 (MQTT 5, 3.1.2.11.3)")),
            maximum => Value::Two(maximum),
        },
        id::MESSAGE_EXPIRY | id::SESSION_EXPIRY | id::WILL_DELAY => Value::Four(block.u32()?),
        id::MAXIMUM_PACKET_SIZE => match block.u32()? {
            0 => return Err(Malformed::protocol("maximum packet size is 0 (MQTT 5, 3.1.2.11.4)")),
            maximum => Value::Four(maximum),
        },
        id::SUBSCRIPTION_ID => match block.integer()? {
            0 => {
                return Err(Malformed::protocol(
                    "subscription identifier is 0 (MQTT 5, 3.8.2.1.2)",
                ));
            }
            number => Value::Integer(number),
        },
        id::CORRELATION_DATA | id::AUTHENTICATION_DATA => Value::Binary(block.binary()?),
        id::USER_PROPERTY => Value::Pair(block.text()?, block.text()?),
        _ => Value::Text(block.text()?),
    })
}

/// Adds a user property, up to the limit.
pub(crate) fn push_user(
    properties: &mut UserProperties,
    name: ByteString,
    value: ByteString,
) -> Result<(), Malformed> {
    if properties.len() >= check::MAX_USER_PROPERTIES {
        return Err(Malformed::new(Reason::QUOTA_EXCEEDED, "too many user properties"));
    }
    properties.push((name, value));
    Ok(())
}

/// Stores a property of an application message: of a PUBLISH or a will.
pub(crate) fn set_message(
    properties: &mut PublishProperties,
    id: u8,
    value: Value,
) -> Result<(), Malformed> {
    match (id, value) {
        (id::PAYLOAD_FORMAT, Value::Byte(format)) => properties.payload_format = Some(format),
        (id::MESSAGE_EXPIRY, Value::Four(seconds)) => properties.message_expiry = Some(seconds),
        (id::CONTENT_TYPE, Value::Text(text)) => properties.content_type = Some(text),
        (id::RESPONSE_TOPIC, Value::Text(topic)) => {
            if !check::is_legal_topic_name(&topic) {
                return Err(Malformed::protocol("response topic is no topic name (MQTT-3.3.2-14)"));
            }
            properties.response_topic = Some(topic);
        }
        (id::CORRELATION_DATA, Value::Binary(data)) => properties.correlation_data = Some(data),
        (id::USER_PROPERTY, Value::Pair(name, value)) => {
            push_user(&mut properties.user_properties, name, value)?;
        }
        _ => {}
    }
    Ok(())
}

/// Stores a reason string or a user property: all that most answers carry.
pub(crate) fn set_answer(
    reason_string: &mut Option<ByteString>,
    user_properties: &mut UserProperties,
    id: u8,
    value: Value,
) -> Result<(), Malformed> {
    match (id, value) {
        (id::REASON_STRING, Value::Text(text)) => *reason_string = Some(text),
        (id::USER_PROPERTY, Value::Pair(name, value)) => push_user(user_properties, name, value)?,
        _ => {}
    }
    Ok(())
}
