//! An MQTT message as a record and back (DESIGN 5, "From MQTT" and "To MQTT").
//!
//! Key = full topic. Headers, in this order, each only if it says something: `mqtt.client_id mqtt.qos mqtt.retain
//! mqtt.content_type mqtt.response_topic mqtt.correlation_data mqtt.expiry mqtt.payload_format`, then the user
//! properties as they came. `edge.id edge.lane edge.seq` are added where the edge is known, and `edge.clock` =
//! `unsynced` where its clock was not to be trusted when the message came. Values are text: `mqtt.qos` =
//! `0` or `2` (QoS 1 needs no header), `mqtt.retain` = `true`, `mqtt.expiry` = seconds, `mqtt.payload_format` = `0` or `1`.
//!
//! A user property whose name starts with `mqtt.`, `edge.`, `amqp.` or `user.` is stored with `user.` before it, so that nobody
//! can pass one off as ours and every message comes back as it went in.
//! Change here: what an MQTT message looks like to Kafka and AMQP. Not here: stream and partition (`route`).

use bytes::Bytes;
use bytestring::ByteString;

use super::{Header, Record};
use crate::{
    message::Message,
    mqtt::{
        packet::{PublishProperties, Qos},
        write::Encoded,
    },
    topic,
};

/// The names of our headers.
#[allow(missing_docs)]
pub mod header {
    pub const TOPIC: &str = "mqtt.topic";
    pub const CLIENT_ID: &str = "mqtt.client_id";
    pub const QOS: &str = "mqtt.qos";
    pub const RETAIN: &str = "mqtt.retain";
    pub const CONTENT_TYPE: &str = "mqtt.content_type";
    pub const RESPONSE_TOPIC: &str = "mqtt.response_topic";
    pub const CORRELATION_DATA: &str = "mqtt.correlation_data";
    pub const EXPIRY: &str = "mqtt.expiry";
    pub const PAYLOAD_FORMAT: &str = "mqtt.payload_format";
    pub const EDGE_ID: &str = "edge.id";
    pub const EDGE_LANE: &str = "edge.lane";
    pub const EDGE_SEQ: &str = "edge.seq";
    pub const EDGE_CLOCK: &str = "edge.clock";
}

/// Names that start so are ours; a user's get [`USER`] before them.
const OURS: [&str; 3] = ["mqtt.", "edge.", "amqp."];
const USER: &str = "user.";
/// Longest string and binary value in an MQTT packet (MQTT 5, 1.5.4 and 1.5.6).
const MQTT_VALUE_MAX: usize = 65_535;

/// The record that carries `message`.
pub fn to_record(message: &Message) -> Record {
    let properties = &message.properties;
    let mut headers = Vec::with_capacity(properties.user_properties.len() + 2);
    let mut add = |name: &'static str, value: Bytes| {
        headers.push(Header { name: ByteString::from_static(name), value: Some(value) });
    };
    if let Some(client_id) = &message.publisher {
        add(header::CLIENT_ID, client_id.as_bytes().clone());
    }
    match message.qos {
        Qos::AtMostOnce => add(header::QOS, Bytes::from_static(b"0")),
        Qos::AtLeastOnce => {}
        Qos::ExactlyOnce => add(header::QOS, Bytes::from_static(b"2")),
    }
    if message.retain {
        add(header::RETAIN, Bytes::from_static(b"true"));
    }
    if let Some(content_type) = &properties.content_type {
        add(header::CONTENT_TYPE, content_type.as_bytes().clone());
    }
    if let Some(response_topic) = &properties.response_topic {
        add(header::RESPONSE_TOPIC, response_topic.as_bytes().clone());
    }
    if let Some(correlation_data) = &properties.correlation_data {
        add(header::CORRELATION_DATA, correlation_data.clone());
    }
    if let Some(seconds) = properties.message_expiry {
        add(header::EXPIRY, seconds.to_string().into());
    }
    match properties.payload_format {
        None => {}
        Some(0) => add(header::PAYLOAD_FORMAT, Bytes::from_static(b"0")),
        Some(_) => add(header::PAYLOAD_FORMAT, Bytes::from_static(b"1")),
    }
    headers.extend(properties.user_properties.iter().map(|(name, value)| Header {
        name: escaped(name),
        value: Some(value.as_bytes().clone()),
    }));
    Record {
        key: Some(message.topic.as_bytes().clone()),
        value: Some(message.payload.clone()),
        timestamp_ms: message.received_ms,
        headers,
    }
}

/// The message that `record` carries: topic = header `mqtt.topic`, else the key if it is a legal topic name, else the
/// stream's name with `.` -> `/`. QoS 1 where no header says otherwise.
///
/// What MQTT cannot carry is changed as little as possible: a null header value becomes empty, bytes that are not UTF-8
/// and NULs are replaced, a header over 65,535 bytes is left out, a tombstone has an empty payload.
pub fn to_message(record: &Record, stream: &str) -> Message {
    let mut qos = Qos::AtLeastOnce;
    let mut retain = false;
    let mut publisher = None;
    let mut named_topic = None;
    let mut properties = PublishProperties::default();
    for Header { name, value } in &record.headers {
        let value = value.clone().unwrap_or_default();
        match &**name {
            header::TOPIC => named_topic = named_topic.or_else(|| legal_topic(&value)),
            header::CLIENT_ID => publisher = ByteString::try_from(value).ok(),
            header::QOS => match value.as_ref() {
                b"0" => qos = Qos::AtMostOnce,
                b"2" => qos = Qos::ExactlyOnce,
                _ => qos = Qos::AtLeastOnce,
            },
            header::RETAIN => retain = value == "true" || value == "1",
            header::CONTENT_TYPE => properties.content_type = text(value),
            header::RESPONSE_TOPIC => properties.response_topic = legal_topic(&value),
            header::CORRELATION_DATA if value.len() <= MQTT_VALUE_MAX => {
                properties.correlation_data = Some(value);
            }
            header::EXPIRY => properties.message_expiry = number(&value),
            header::PAYLOAD_FORMAT => {
                properties.payload_format = number(&value).filter(|format| *format <= 1);
            }
            name if OURS.iter().any(|ours| name.starts_with(ours)) => {}
            _ => {
                let plain = unescaped(name);
                if let (Some(name), Some(value)) = (text(plain.into_bytes()), text(value)) {
                    properties.user_properties.push((name, value));
                }
            }
        }
    }
    let topic = named_topic
        .or_else(|| record.key.as_ref().and_then(legal_topic))
        .unwrap_or_else(|| topic::kafka::to_topic(stream).into());
    let expires_ms = properties
        .message_expiry
        .map(|seconds| record.timestamp_ms.saturating_add(i64::from(seconds) * 1000));
    Message {
        topic,
        payload: record.value.clone().unwrap_or_default(),
        qos,
        retain,
        properties,
        publisher,
        received_ms: record.timestamp_ms,
        expires_ms,
        encoded: Encoded::default(),
        place: None,
    }
}

fn escaped(name: &ByteString) -> ByteString {
    if name.starts_with(USER) || OURS.iter().any(|ours| name.starts_with(ours)) {
        format!("{USER}{name}").into()
    } else {
        name.clone()
    }
}

fn unescaped(name: &ByteString) -> ByteString {
    match name.strip_prefix(USER) {
        Some(rest) if rest.starts_with(USER) || OURS.iter().any(|ours| rest.starts_with(ours)) => {
            name.slice_ref(rest)
        }
        _ => name.clone(),
    }
}

fn legal_topic(bytes: &Bytes) -> Option<ByteString> {
    ByteString::try_from(bytes.clone()).ok().filter(|topic| topic::is_legal_name(topic))
}

fn number<T: std::str::FromStr>(value: &Bytes) -> Option<T> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// As a string that MQTT may carry (MQTT-1.5.4-1, 1.5.4-2); `None`: too long.
fn text(bytes: Bytes) -> Option<ByteString> {
    let text = match ByteString::try_from(bytes.clone()) {
        Ok(text) if !text.contains('\0') => text,
        _ => String::from_utf8_lossy(&bytes).replace('\0', "\u{fffd}").into(),
    };
    (text.len() <= MQTT_VALUE_MAX).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> Message {
        Message {
            topic: "plant/1/temp".into(),
            payload: Bytes::from_static(b"21.5"),
            qos: Qos::AtLeastOnce,
            retain: false,
            properties: PublishProperties::default(),
            publisher: None,
            received_ms: 1_700_000_000_123,
            expires_ms: None,
            encoded: Encoded::default(),
            place: None,
        }
    }

    fn names(record: &Record) -> Vec<&str> {
        record.headers.iter().map(|header| &*header.name).collect()
    }

    #[test]
    fn a_plain_message_needs_no_header() {
        let record = to_record(&message());
        assert_eq!(record.key.as_deref(), Some(&b"plant/1/temp"[..]));
        assert_eq!(record.value.as_deref(), Some(&b"21.5"[..]));
        assert!(record.headers.is_empty());
        assert_eq!(to_message(&record, "s"), message());
    }

    #[test]
    fn every_property_comes_back_in_order_with_duplicates() {
        let full = Message {
            qos: Qos::ExactlyOnce,
            retain: true,
            properties: PublishProperties {
                payload_format: Some(1),
                message_expiry: Some(60),
                content_type: Some("text/plain".into()),
                response_topic: Some("re/ply".into()),
                correlation_data: Some(Bytes::from_static(&[0, 255])),
                user_properties: vec![
                    ("a".into(), "1".into()),
                    ("mqtt.qos".into(), "0".into()),
                    ("a".into(), "2".into()),
                    ("user.mqtt.qos".into(), "x".into()),
                    ("user.plain".into(), String::new().into()),
                ],
            },
            publisher: Some("dev-1".into()),
            expires_ms: Some(1_700_000_060_123),
            ..message()
        };
        let record = to_record(&full);
        assert_eq!(
            names(&record),
            [
                "mqtt.client_id",
                "mqtt.qos",
                "mqtt.retain",
                "mqtt.content_type",
                "mqtt.response_topic",
                "mqtt.correlation_data",
                "mqtt.expiry",
                "mqtt.payload_format",
                "a",
                "user.mqtt.qos",
                "a",
                "user.user.mqtt.qos",
                "user.user.plain",
            ]
        );
        assert_eq!(to_message(&record, "s"), full);
    }

    #[test]
    fn the_topic_is_the_header_then_the_key_then_the_stream() {
        let header = |value: &'static str| Header {
            name: "mqtt.topic".into(),
            value: Some(Bytes::from_static(value.as_bytes())),
        };
        let key =
            |key: &'static [u8]| Record { key: Some(Bytes::from_static(key)), ..Record::default() };
        let mut record = key(b"k/1");
        record.headers.push(header("h/1"));
        assert_eq!(to_message(&record, "s.t").topic, "h/1");
        record.headers = vec![header("no/+/wildcards")];
        assert_eq!(to_message(&record, "s.t").topic, "k/1");
        assert_eq!(to_message(&key(b"\xff"), "s.t").topic, "s/t");
        assert_eq!(to_message(&key(b""), "s.t").topic, "s/t");
        assert_eq!(to_message(&Record::default(), "s.t").topic, "s/t");
    }

    #[test]
    fn what_mqtt_cannot_carry_does_not_break_the_message() {
        let header = |name: &'static str, value: Option<Vec<u8>>| Header {
            name: name.into(),
            value: value.map(Bytes::from),
        };
        let record = Record {
            headers: vec![
                header("null", None),
                header("bytes", Some(vec![0xff, b'a', 0])),
                header("long", Some(vec![b'x'; 65_536])),
                header("edge.id", Some(b"gw1".to_vec())),
                header("mqtt.expiry", Some(b"soon".to_vec())),
                header("mqtt.payload_format", Some(b"9".to_vec())),
            ],
            ..Record::default()
        };
        let message = to_message(&record, "s");
        assert_eq!(
            message.properties,
            PublishProperties {
                user_properties: vec![
                    ("null".into(), String::new().into()),
                    ("bytes".into(), "\u{fffd}a\u{fffd}".into()),
                ],
                ..PublishProperties::default()
            }
        );
        assert!(message.payload.is_empty());
    }
}
