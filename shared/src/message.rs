//! An application message on its way through a broker: what a PUBLISH said, without the packet around it.
//!
//! Holds: the message and its encodings, made once per protocol version and shared by all its readers.
//! Not here: what is delivered to whom (`session`), the record it becomes in the log (`record::mqtt`).

use bytes::Bytes;
use bytestring::ByteString;

use crate::mqtt::{
    packet::{PublishProperties, Qos},
    write::Encoded,
};

/// Bytes from which a message is kept as it came: half of what a connection reads at once.
const LARGE: usize = 16 * 1024;

/// One message; shared as `Arc<Message>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Full topic name, never empty, never an alias.
    pub topic: ByteString,
    /// Untouched.
    pub payload: Bytes,
    /// QoS it was published with.
    pub qos: Qos,
    /// Retain flag it was published with.
    pub retain: bool,
    /// Properties to forward. `message_expiry` counts from `received_ms`; what remains is computed from `expires_ms`.
    pub properties: PublishProperties,
    /// Client id of the publisher; `None`: the broker itself or another protocol.
    pub publisher: Option<ByteString>,
    /// When the broker got it, ms since 1970.
    pub received_ms: i64,
    /// When it expires, in `session::Now::lasting_ms`; as the log has it, ms since 1970.
    pub expires_ms: Option<i64>,
    /// What all receivers' packets share, made by the codec when the first is written. `Encoded::default()`.
    pub encoded: Encoded,
    /// Where the host has it, if it is handed on just as it lies there: for hosts that tell a receiver so.
    pub place: Option<MessageRef>,
}

impl Message {
    /// What it counts for in limits of bytes: all that its publisher chose the length of.
    pub fn weight(&self) -> usize {
        let properties = &self.properties;
        let user: usize =
            properties.user_properties.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.topic.len()
            + self.payload.len()
            + user
            + properties.content_type.as_ref().map_or(0, |text| text.len())
            + properties.response_topic.as_ref().map_or(0, |text| text.len())
            + properties.correlation_data.as_ref().map_or(0, Bytes::len)
    }

    /// The message in memory of its own, for whoever keeps it: as it came it may be a small part of a read, or of an unpacked
    /// batch, and would keep all of that. A large one stays as it is: it is most of what it is a part of.
    #[must_use]
    pub fn unshared(&self) -> Self {
        let mut message = self.clone();
        if self.weight() >= LARGE {
            return message;
        }
        let text = |text: &ByteString| ByteString::from(&**text);
        let data = |data: &Bytes| Bytes::copy_from_slice(data);
        message.topic = text(&message.topic);
        message.payload = data(&message.payload);
        let properties = &mut message.properties;
        properties.content_type = properties.content_type.as_ref().map(text);
        properties.response_topic = properties.response_topic.as_ref().map(text);
        properties.correlation_data = properties.correlation_data.as_ref().map(data);
        for (name, value) in &mut properties.user_properties {
            (*name, *value) = (text(name), text(value));
        }
        message
    }
}

/// Where a message lies in the host's store. The session core does not look inside.
/// Edge: (batch id, index in the batch). Cloud: (partition id, offset).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageRef(pub u64, pub u64);
