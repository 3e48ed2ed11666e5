//! What is done in one sequence: plain data, the same for both brokers.
//!
//! Topics and filters are written with `P` for the prefix that keeps concurrent sequences apart. Not here: which plans there
//! are (`generate`), doing it (`play`).

use tributary_shared::mqtt::{Qos, Version, packet::SubscriptionOptions};

use super::invalid::Invalid;

/// A sequence.
#[derive(Debug, Clone)]
pub struct Plan {
    /// It is made again from this.
    pub seed: u64,
    pub(super) steps: Vec<Step>,
}

/// Clients of a plan; one more looks at what is left.
pub(super) const CLIENTS: usize = 3;

/// Who does what.
#[derive(Debug, Clone)]
pub(super) struct Step {
    pub(super) who: usize,
    pub(super) what: What,
}

#[derive(Debug, Clone)]
pub(super) enum What {
    /// On a new socket; an open connection of the client is taken over.
    Connect(Hello),
    Subscribe {
        filters: Vec<(String, SubscriptionOptions)>,
        id: Option<u32>,
    },
    Unsubscribe(Vec<String>),
    Publish(Text),
    /// QoS 2: PUBLISH, again with DUP, PUBREL, PUBREL again.
    Repeated(Text),
    /// QoS 2: PUBLISH, the socket is cut, a new connection with the same CONNECT, then PUBLISH again if asked for, PUBREL.
    Interrupted {
        text: Text,
        again: bool,
    },
    /// DISCONNECT; with will and with another expiry only in version 5.
    Leave {
        with_will: bool,
        expiry: Option<u32>,
    },
    /// The end of the stream without DISCONNECT.
    Cut,
    Invalid(Invalid),
    /// The first packet of a connection of its own.
    Stranger(Invalid, Version),
}

/// A CONNECT.
#[derive(Debug, Clone)]
pub(super) struct Hello {
    pub(super) version: Version,
    pub(super) clean: bool,
    pub(super) expiry: Option<u32>,
    pub(super) will: Option<WillText>,
    pub(super) receive_maximum: Option<u16>,
    pub(super) packet_maximum: Option<u32>,
    pub(super) aliases: u16,
    pub(super) acks: Acks,
}

/// A message to publish.
#[derive(Debug, Clone)]
pub(super) struct Text {
    pub(super) topic: String,
    pub(super) payload: String,
    pub(super) qos: Qos,
    pub(super) retain: bool,
    /// Version 5: the alias, and whether the topic is sent beside it.
    pub(super) alias: Option<(u16, bool)>,
    pub(super) extras: Extras,
}

#[derive(Debug, Clone)]
pub(super) struct WillText {
    pub(super) text: Text,
    pub(super) delay: u32,
}

/// Properties of a message (version 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extras {
    None,
    /// Content type, user properties.
    About,
    /// Response topic, correlation data.
    Request,
    /// Payload format, expiry in an hour.
    Format,
}

/// What a client does with messages of QoS 1 and 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Acks {
    All,
    /// PUBACK and PUBREC, but never PUBCOMP.
    Half,
    None,
}
