//! A message as AMQP consumers see it, the record it is stored as, and how records of other origin look (AMQP.md,
//! "MQTT <-> AMQP mapping").
//!
//! A message published over AMQP comes back byte for byte: its property bytes are kept in the header [`PROPERTIES`].
//! Everything else (devices, MQTT clients, Kafka producers) appears as published to `amq.topic` with its topic as key.
//! Pure. Change here: what crosses between the protocols. Not here: where records go (`owner`), who gets them (`state`).

use std::sync::Arc;

use bytes::Bytes;
use bytestring::ByteString;
use tributary_shared::{
    amqp::{Properties, Table, Value},
    mqtt::packet::Qos,
    record::{Header, Record, mqtt},
    topic,
};

use crate::log::{Offset, PartitionId};

/// The exchange that stands for the log: every record of another protocol comes through it.
pub const TOPIC_EXCHANGE: &str = "amq.topic";
/// Headers of a record that was published over AMQP.
pub const EXCHANGE: &str = "amqp.exchange";
/// See [`EXCHANGE`].
pub const ROUTING_KEY: &str = "amqp.routing_key";
/// See [`EXCHANGE`]: flags and property list as they were on the wire.
pub const PROPERTIES: &str = "amqp.props";

/// Where a message's record lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct At {
    /// Partition.
    pub partition: PartitionId,
    /// Offset.
    pub offset: Offset,
}

/// One message; shared by all queues that hold it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Exchange it was published to.
    pub exchange: ByteString,
    /// Key it was published with.
    pub routing_key: ByteString,
    /// Flags and property list.
    pub properties: Bytes,
    /// Untouched.
    pub body: Bytes,
    /// When it expires by its own property, ms since 1970.
    pub expires_ms: Option<i64>,
}

impl Message {
    /// What it costs to keep or send it, about.
    pub fn size(&self) -> usize {
        self.body.len() + self.properties.len() + 64
    }

    /// The headers property.
    pub fn headers(&self) -> Option<Table> {
        Properties::decode(self.properties.clone()).ok()?.headers
    }

    /// The MQTT topic it has by its routing key, if it was published to `amq.topic` and the topic is legal.
    pub fn topic(&self) -> Option<String> {
        (self.exchange == TOPIC_EXCHANGE)
            .then(|| topic::amqp::to_topic(&self.routing_key))
            .flatten()
    }

    /// The record that keeps it; the key is the caller's to set.
    pub fn to_record(&self, now_ms: i64) -> Record {
        let mut headers = vec![
            header(EXCHANGE, self.exchange.as_bytes().clone()),
            header(ROUTING_KEY, self.routing_key.as_bytes().clone()),
            header(PROPERTIES, self.properties.clone()),
        ];
        if let Ok(properties) = Properties::decode(self.properties.clone()) {
            if let Some(content_type) = properties.content_type {
                headers.push(header(mqtt::header::CONTENT_TYPE, content_type));
            }
            if let Some(id) = properties.correlation_id {
                headers.push(header(mqtt::header::CORRELATION_DATA, id));
            }
            if let Some(expires_ms) = self.expires_ms {
                let seconds = (expires_ms - now_ms).max(0).div_euclid(1000) + 1;
                headers.push(header(mqtt::header::EXPIRY, seconds.to_string().into()));
            }
            for (name, value) in properties.headers.unwrap_or_default().0 {
                if let Some(text) = plain(&value) {
                    headers.push(Header { name: escaped(name), value: Some(text) });
                }
            }
        }
        Record { key: None, value: Some(self.body.clone()), timestamp_ms: now_ms, headers }
    }

    /// The message that the record at `at` of `stream` carries.
    pub fn from_record(record: &Record, at: At, stream: &str) -> Self {
        Self::published(record).unwrap_or_else(|| Self::of_another_protocol(record, at, stream))
    }

    /// As it was published over AMQP; `None` if it was not, or its headers are not what we would have written.
    fn published(record: &Record) -> Option<Self> {
        let short = |name: &str| {
            let value = record.header(name)?;
            (value.len() <= 255).then(|| ByteString::try_from(value.clone()).ok())?
        };
        let properties = record.header(PROPERTIES)?.clone();
        let decoded = Properties::decode(properties.clone()).ok()?;
        Some(Self {
            exchange: short(EXCHANGE)?,
            routing_key: short(ROUTING_KEY)?,
            properties,
            body: record.value.clone().unwrap_or_default(),
            expires_ms: expires_ms(&decoded, record.timestamp_ms).ok()?,
        })
    }

    fn of_another_protocol(record: &Record, at: At, stream: &str) -> Self {
        let message = mqtt::to_message(record, stream);
        let mut headers = Table::default()
            .with("x-mqtt-topic", Value::Text(message.topic.as_bytes().clone()))
            .with("x-stream", Value::text(stream))
            .with("x-partition", Value::I64(at.partition.index().into()))
            .with("x-stream-offset", Value::I64(at.offset))
            .with("timestamp_in_ms", Value::I64(record.timestamp_ms));
        for (from, to) in [
            (mqtt::header::EDGE_ID, "x-edge-id"),
            (mqtt::header::EDGE_SEQ, "x-edge-seq"),
            (mqtt::header::EDGE_CLOCK, "x-edge-clock"),
        ] {
            if let Some(value) = record.header(from) {
                headers.push(to, Value::Text(value.clone()));
            }
        }
        if let Some(reply) = &message.properties.response_topic {
            headers.push("x-reply-to-topic", Value::Text(reply.as_bytes().clone()));
        }
        let mut correlation_id = message.properties.correlation_data.clone();
        if let Some(data) =
            correlation_id.take_if(|d| d.len() > 255 || std::str::from_utf8(d).is_err())
        {
            headers.push("x-correlation-id", Value::Binary(data));
        }
        for (name, value) in &message.properties.user_properties {
            if name.len() <= 255 && headers.get(name).is_none() {
                headers.push(name.clone(), Value::Text(value.as_bytes().clone()));
            }
        }
        let content_type = message.properties.content_type.as_ref();
        let properties = Properties {
            content_type: content_type
                .filter(|t| t.len() <= 255 && t.is_ascii())
                .map(|t| t.as_bytes().clone()),
            headers: Some(headers),
            delivery_mode: Some(if message.qos == Qos::AtMostOnce { 1 } else { 2 }),
            correlation_id,
            expiration: message
                .properties
                .message_expiry
                .map(|s| (u64::from(s) * 1000).to_string().into()),
            timestamp: u64::try_from(record.timestamp_ms / 1000).ok(),
            ..Properties::default()
        };
        let mut raw = Vec::with_capacity(256);
        properties.encode(&mut raw);
        Self {
            exchange: ByteString::from_static(TOPIC_EXCHANGE),
            routing_key: topic::amqp::routing_key(&message.topic).into(),
            properties: raw.into(),
            body: message.payload,
            expires_ms: message.expires_ms,
        }
    }
}

/// The routing key by which a record of another protocol goes through `amq.topic`.
pub fn routing_key(record: &Record, stream: &str) -> String {
    topic::amqp::routing_key(&mqtt::to_message(record, stream).topic)
}

/// When a message published at `now_ms` expires; `Err`: the property is not a number of milliseconds.
pub fn expires_ms(properties: &Properties, now_ms: i64) -> Result<Option<i64>, Bytes> {
    let Some(text) = &properties.expiration else { return Ok(None) };
    let number = std::str::from_utf8(text).ok().filter(|t| t.bytes().all(|b| b.is_ascii_digit()));
    match number.and_then(|t| t.parse::<u32>().ok()) {
        Some(ms) => Ok(Some(now_ms.saturating_add(ms.into()))),
        None => Err(text.clone()),
    }
}

/// A message and where its record is, or will be.
pub type Shared = Arc<Message>;

fn header(name: &'static str, value: Bytes) -> Header {
    Header { name: ByteString::from_static(name), value: Some(value) }
}

/// A user's header may not pass for one of ours.
fn escaped(name: ByteString) -> ByteString {
    if ["mqtt.", "edge.", "amqp.", "user."].iter().any(|ours| name.starts_with(ours)) {
        format!("user.{name}").into()
    } else {
        name
    }
}

/// Scalars as text, for readers of other protocols; nested values stay in the property bytes only.
fn plain(value: &Value) -> Option<Bytes> {
    Some(match value {
        Value::Text(bytes) | Value::Binary(bytes) => bytes.clone(),
        Value::Bool(v) => Bytes::from_static(if *v { b"true" } else { b"false" }),
        Value::F32(v) => v.to_string().into(),
        Value::F64(v) => v.to_string().into(),
        Value::Timestamp(v) => v.to_string().into(),
        other => other.as_integer()?.to_string().into(),
    })
}

#[cfg(test)]
mod tests {
    use tributary_shared::{message, mqtt::packet::PublishProperties};

    use super::*;

    const AT: At = At { partition: PartitionId(0x1_0000_0002), offset: 77 };

    fn from_mqtt(topic: &str, qos: Qos, properties: PublishProperties) -> Message {
        let record = mqtt::to_record(&message::Message {
            topic: topic.into(),
            payload: Bytes::from_static(b"21.5"),
            qos,
            retain: false,
            properties,
            publisher: None,
            received_ms: 1_700_000_000_123,
            expires_ms: None,
            encoded: tributary_shared::mqtt::write::Encoded::default(),
            place: None,
        });
        Message::from_record(&record, AT, "plant.1")
    }

    #[test]
    fn a_message_published_over_amqp_comes_back_byte_for_byte() {
        let mut raw = Vec::new();
        Properties {
            headers: Some(
                Table::default()
                    .with("b", Value::I32(1))
                    .with("a", Value::Array(vec![Value::Void]))
                    .with("amqp.exchange", Value::text("forged"))
                    .with("b", Value::text("twice")),
            ),
            delivery_mode: Some(2),
            expiration: Some(Bytes::from_static(b"60000")),
            ..Properties::default()
        }
        .encode(&mut raw);
        let message = Message {
            exchange: "orders".into(),
            routing_key: "a.b".into(),
            properties: raw.into(),
            body: Bytes::from_static(b"\0\xff"),
            expires_ms: Some(61_000),
        };
        let record = message.to_record(1000);
        assert_eq!(Message::from_record(&record, AT, "amqp.messages"), message);
        assert_eq!(record.header("b").map(|v| &v[..]), Some(&b"1"[..]));
        assert_eq!(record.header("user.amqp.exchange").map(|v| &v[..]), Some(&b"forged"[..]));
    }

    #[test]
    fn a_device_message_carries_what_rabbitmq_users_expect() {
        let message = from_mqtt(
            "a/b.c/d",
            Qos::AtLeastOnce,
            PublishProperties {
                content_type: Some("text/plain".into()),
                correlation_data: Some(Bytes::from_static(b"id-1")),
                response_topic: Some("re/ply".into()),
                message_expiry: Some(5),
                user_properties: vec![("k".into(), "1".into()), ("k".into(), "2".into())],
                ..PublishProperties::default()
            },
        );
        assert_eq!((&*message.exchange, &*message.routing_key), ("amq.topic", "a.b.c.d"));
        let p = Properties::decode(message.properties.clone()).unwrap();
        assert_eq!(p.content_type.as_deref(), Some(&b"text/plain"[..]));
        assert_eq!(p.correlation_id.as_deref(), Some(&b"id-1"[..]));
        assert_eq!(p.expiration.as_deref(), Some(&b"5000"[..]));
        assert_eq!((p.delivery_mode, p.timestamp), (Some(2), Some(1_700_000_000)));
        let h = p.headers.unwrap();
        for (name, value) in [
            ("x-mqtt-topic", Value::text("a/b.c/d")),
            ("x-stream", Value::text("plant.1")),
            ("x-partition", Value::I64(2)),
            ("x-stream-offset", Value::I64(77)),
            ("timestamp_in_ms", Value::I64(1_700_000_000_123)),
            ("x-reply-to-topic", Value::text("re/ply")),
            ("k", Value::text("1")),
        ] {
            assert_eq!(h.get(name), Some(&value), "{name}");
        }
    }

    #[test]
    fn a_topic_of_any_length_is_never_an_error() {
        let topic = "é/".repeat(300);
        let message = from_mqtt(&topic, Qos::AtMostOnce, PublishProperties::default());
        assert!(message.routing_key.len() <= 255);
        let p = Properties::decode(message.properties).unwrap();
        assert_eq!(p.delivery_mode, Some(1));
        assert_eq!(p.headers.unwrap().get("x-mqtt-topic"), Some(&Value::text(&topic)));
    }

    #[test]
    fn binary_correlation_data_becomes_a_header() {
        let data = Bytes::from_static(&[0xff, 0]);
        let properties =
            PublishProperties { correlation_data: Some(data.clone()), ..Default::default() };
        let p =
            Properties::decode(from_mqtt("t", Qos::AtLeastOnce, properties).properties).unwrap();
        assert_eq!(p.correlation_id, None);
        assert_eq!(p.headers.unwrap().get("x-correlation-id"), Some(&Value::Binary(data)));
    }

    #[test]
    fn an_expiration_must_be_a_number() {
        let of = |text: &'static [u8]| Properties {
            expiration: Some(Bytes::from_static(text)),
            ..Properties::default()
        };
        assert_eq!(expires_ms(&of(b"10"), 5), Ok(Some(15)));
        for bad in [&b"-1"[..], b"", b"a", b"99999999999", b"+5"] {
            assert!(expires_ms(&of(bad), 5).is_err(), "{bad:?}");
        }
    }
}
