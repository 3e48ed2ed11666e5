//! The MQTT control packets, one set of types for 3.1, 3.1.1 and 5.0.
//!
//! Holds: plain data, no bytes. A field that a version does not have is empty there (properties of a 3.1.1
//! packet are their defaults) and is left out when written to it.
//! Change here: a field of a packet. Not here: how it looks on the wire (`read`, `write`), what is legal (`check`).

use std::num::NonZeroU16;

use bytes::Bytes;
use bytestring::ByteString;

/// Packet identifier; never 0 (MQTT-2.2.1-3).
pub type PacketId = NonZeroU16;

/// Protocol version of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// `MQIsdp`, level 3.
    V31,
    /// `MQTT`, level 4.
    V311,
    /// `MQTT`, level 5.
    V5,
}

/// Quality of service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(u8)]
pub enum Qos {
    /// No acknowledgement, no promise.
    #[default]
    AtMostOnce = 0,
    /// PUBACK.
    AtLeastOnce = 1,
    /// PUBREC, PUBREL, PUBCOMP.
    ExactlyOnce = 2,
}

/// Reason code of MQTT 5 (section 2.4). 3.1.1 return codes are mapped to and from these in `read` and `write`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reason(pub u8);

#[allow(missing_docs)]
impl Reason {
    pub const SUCCESS: Self = Self(0x00);
    pub const GRANTED_QOS_1: Self = Self(0x01);
    pub const GRANTED_QOS_2: Self = Self(0x02);
    pub const DISCONNECT_WITH_WILL: Self = Self(0x04);
    pub const NO_MATCHING_SUBSCRIBERS: Self = Self(0x10);
    pub const NO_SUBSCRIPTION_EXISTED: Self = Self(0x11);
    pub const CONTINUE_AUTHENTICATION: Self = Self(0x18);
    pub const REAUTHENTICATE: Self = Self(0x19);
    pub const UNSPECIFIED: Self = Self(0x80);
    pub const MALFORMED_PACKET: Self = Self(0x81);
    pub const PROTOCOL_ERROR: Self = Self(0x82);
    pub const IMPLEMENTATION_SPECIFIC: Self = Self(0x83);
    pub const UNSUPPORTED_PROTOCOL_VERSION: Self = Self(0x84);
    pub const CLIENT_ID_NOT_VALID: Self = Self(0x85);
    pub const BAD_USER_NAME_OR_PASSWORD: Self = Self(0x86);
    pub const NOT_AUTHORIZED: Self = Self(0x87);
    pub const SERVER_UNAVAILABLE: Self = Self(0x88);
    pub const SERVER_BUSY: Self = Self(0x89);
    pub const BANNED: Self = Self(0x8A);
    pub const SERVER_SHUTTING_DOWN: Self = Self(0x8B);
    pub const BAD_AUTHENTICATION_METHOD: Self = Self(0x8C);
    pub const KEEP_ALIVE_TIMEOUT: Self = Self(0x8D);
    pub const SESSION_TAKEN_OVER: Self = Self(0x8E);
    pub const TOPIC_FILTER_INVALID: Self = Self(0x8F);
    pub const TOPIC_NAME_INVALID: Self = Self(0x90);
    pub const PACKET_ID_IN_USE: Self = Self(0x91);
    pub const PACKET_ID_NOT_FOUND: Self = Self(0x92);
    pub const RECEIVE_MAXIMUM_EXCEEDED: Self = Self(0x93);
    pub const TOPIC_ALIAS_INVALID: Self = Self(0x94);
    pub const PACKET_TOO_LARGE: Self = Self(0x95);
    pub const MESSAGE_RATE_TOO_HIGH: Self = Self(0x96);
    pub const QUOTA_EXCEEDED: Self = Self(0x97);
    pub const ADMINISTRATIVE_ACTION: Self = Self(0x98);
    pub const PAYLOAD_FORMAT_INVALID: Self = Self(0x99);
    pub const RETAIN_NOT_SUPPORTED: Self = Self(0x9A);
    pub const QOS_NOT_SUPPORTED: Self = Self(0x9B);
    pub const USE_ANOTHER_SERVER: Self = Self(0x9C);
    pub const SERVER_MOVED: Self = Self(0x9D);
    pub const SHARED_SUBSCRIPTIONS_NOT_SUPPORTED: Self = Self(0x9E);
    pub const CONNECTION_RATE_EXCEEDED: Self = Self(0x9F);
    pub const SUBSCRIPTION_IDS_NOT_SUPPORTED: Self = Self(0xA1);
    pub const WILDCARDS_NOT_SUPPORTED: Self = Self(0xA2);

    /// Codes of 0x80 and above say that the operation failed.
    pub const fn is_error(self) -> bool {
        self.0 >= 0x80
    }
}

/// User properties in the order they came; names may repeat (MQTT 5, 2.2.2.2).
pub type UserProperties = Vec<(ByteString, ByteString)>;

/// Any control packet.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Packet {
    Connect(Box<Connect>),
    ConnAck(Box<ConnAck>),
    Publish(Publish),
    PubAck(Ack),
    PubRec(Ack),
    PubRel(Ack),
    PubComp(Ack),
    Subscribe(Subscribe),
    SubAck(SubAck),
    Unsubscribe(Unsubscribe),
    UnsubAck(SubAck),
    PingReq,
    PingResp,
    Disconnect(Disconnect),
    Auth(Auth),
}

/// CONNECT (3.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connect {
    /// Version the client asks for.
    pub version: Version,
    /// Empty: the server assigns one, where the version allows it.
    pub client_id: ByteString,
    /// Clean session (3.1.1) or clean start (5).
    pub clean_start: bool,
    /// Seconds; 0 = off.
    pub keep_alive: u16,
    /// Will message.
    pub will: Option<Will>,
    /// User name.
    pub user_name: Option<ByteString>,
    /// Password.
    pub password: Option<Bytes>,
    /// Seconds; `None` = absent, which means 0. `u32::MAX` = never expires.
    pub session_expiry: Option<u32>,
    /// Absent means 65,535. Never 0.
    pub receive_maximum: Option<u16>,
    /// Bytes of a whole packet. Absent: no limit. Never 0.
    pub maximum_packet_size: Option<u32>,
    /// Highest topic alias the client takes; 0 = none.
    pub topic_alias_maximum: u16,
    /// The client asks for response information.
    pub request_response_information: bool,
    /// The client takes reason strings on any packet (default true).
    pub request_problem_information: bool,
    /// User properties.
    pub user_properties: UserProperties,
    /// Enhanced authentication.
    pub authentication_method: Option<ByteString>,
    /// Enhanced authentication.
    pub authentication_data: Option<Bytes>,
}

/// The will in CONNECT (3.1.2.5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Will {
    /// Topic name.
    pub topic: ByteString,
    /// Payload.
    pub payload: Bytes,
    /// QoS it is published with.
    pub qos: Qos,
    /// Retain flag it is published with.
    pub retain: bool,
    /// Seconds between the end of the connection and the will; 0 = at once.
    pub delay: u32,
    /// Properties the message carries.
    pub properties: PublishProperties,
}

/// CONNACK (3.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnAck {
    /// A session was there and goes on.
    pub session_present: bool,
    /// Result.
    pub reason: Reason,
    /// Server's properties; empty before version 5.
    pub properties: ConnAckProperties,
}

/// Properties of CONNACK (3.2.2.3). `None` = left out, the standard's default applies.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct ConnAckProperties {
    pub session_expiry: Option<u32>,
    pub receive_maximum: Option<u16>,
    pub maximum_qos: Option<u8>,
    pub retain_available: Option<bool>,
    pub maximum_packet_size: Option<u32>,
    pub assigned_client_id: Option<ByteString>,
    pub topic_alias_maximum: Option<u16>,
    pub reason_string: Option<ByteString>,
    pub user_properties: UserProperties,
    pub wildcard_available: Option<bool>,
    pub subscription_ids_available: Option<bool>,
    pub shared_available: Option<bool>,
    pub server_keep_alive: Option<u16>,
    pub response_information: Option<ByteString>,
    pub server_reference: Option<ByteString>,
    pub authentication_method: Option<ByteString>,
    pub authentication_data: Option<Bytes>,
}

/// PUBLISH (3.3).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Publish {
    /// Redelivery.
    pub dup: bool,
    /// QoS.
    pub qos: Qos,
    /// Retain.
    pub retain: bool,
    /// Empty only when a topic alias stands for it.
    pub topic: ByteString,
    /// Present exactly when QoS > 0.
    pub packet_id: Option<PacketId>,
    /// Untouched.
    pub payload: Bytes,
    /// Properties a server forwards.
    pub properties: PublishProperties,
    /// Topic alias: of this connection only, never forwarded.
    pub topic_alias: Option<u16>,
    /// Ids of the subscriptions that matched; only server to client.
    pub subscription_ids: Vec<u32>,
}

/// The properties of an application message, forwarded unaltered (3.3.2.3).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PublishProperties {
    /// 0 bytes, 1 UTF-8.
    pub payload_format: Option<u8>,
    /// Seconds from when the server received it.
    pub message_expiry: Option<u32>,
    /// MIME type.
    pub content_type: Option<ByteString>,
    /// Topic for the answer.
    pub response_topic: Option<ByteString>,
    /// What the answer is about.
    pub correlation_data: Option<Bytes>,
    /// In order, duplicates kept.
    pub user_properties: UserProperties,
}

impl PublishProperties {
    /// No property is set.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// PUBACK, PUBREC, PUBREL, PUBCOMP (3.4 to 3.7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack {
    /// Which PUBLISH.
    pub packet_id: PacketId,
    /// Success where the version has no code.
    pub reason: Reason,
    /// Reason string.
    pub reason_string: Option<ByteString>,
    /// User properties.
    pub user_properties: UserProperties,
}

impl Ack {
    /// An acknowledgement with only a code.
    pub fn new(packet_id: PacketId, reason: Reason) -> Self {
        Self { packet_id, reason, reason_string: None, user_properties: Vec::new() }
    }
}

/// SUBSCRIBE (3.8).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscribe {
    /// Packet id.
    pub packet_id: PacketId,
    /// At least one.
    pub filters: Vec<SubscribeFilter>,
    /// 1 to 268,435,455.
    pub subscription_id: Option<u32>,
    /// User properties.
    pub user_properties: UserProperties,
}

/// One filter of a SUBSCRIBE with its options (3.8.3.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscribeFilter {
    /// Topic filter, `$share/..` included. Not yet checked: a bad one is answered, filter by filter.
    pub filter: ByteString,
    /// Options.
    pub options: SubscriptionOptions,
}

/// Subscription options.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SubscriptionOptions {
    /// Maximum QoS.
    pub qos: Qos,
    /// Not back to the publisher.
    pub no_local: bool,
    /// Keep the retain flag as published.
    pub retain_as_published: bool,
    /// 0 send retained, 1 only if new, 2 never.
    pub retain_handling: u8,
}

/// SUBACK and UNSUBACK (3.9, 3.11).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubAck {
    /// Packet id.
    pub packet_id: PacketId,
    /// One a filter, in order. Empty in a 3.1.1 UNSUBACK.
    pub reasons: Vec<Reason>,
    /// Reason string.
    pub reason_string: Option<ByteString>,
    /// User properties.
    pub user_properties: UserProperties,
}

/// UNSUBSCRIBE (3.10).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsubscribe {
    /// Packet id.
    pub packet_id: PacketId,
    /// At least one.
    pub filters: Vec<ByteString>,
    /// User properties.
    pub user_properties: UserProperties,
}

/// DISCONNECT (3.14).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disconnect {
    /// Success = normal.
    pub reason: Reason,
    /// Seconds; changes what CONNECT said.
    pub session_expiry: Option<u32>,
    /// Reason string.
    pub reason_string: Option<ByteString>,
    /// User properties.
    pub user_properties: UserProperties,
    /// Where to go instead.
    pub server_reference: Option<ByteString>,
}

impl Disconnect {
    /// With only a code.
    pub fn new(reason: Reason) -> Self {
        Self {
            reason,
            session_expiry: None,
            reason_string: None,
            user_properties: Vec::new(),
            server_reference: None,
        }
    }
}

/// AUTH (3.15).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Auth {
    /// 0x00, 0x18 or 0x19.
    pub reason: Reason,
    /// Method.
    pub method: Option<ByteString>,
    /// Data.
    pub data: Option<Bytes>,
    /// Reason string.
    pub reason_string: Option<ByteString>,
    /// User properties.
    pub user_properties: UserProperties,
}
