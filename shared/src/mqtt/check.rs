//! What is legal in a packet beyond its shape: topic names, reason codes per packet and direction, counts.
//!
//! In: a value that was read. Out: whether the standard allows it there. Change here: a rule about values.
//! Not here: property sets (`property`), topic filters (`topic::filter`, answered filter by filter by `session`).

use super::packet::Reason;

/// Most filters of one SUBSCRIBE or UNSUBSCRIBE: bounds what a packet of three-byte filters grows to in memory.
pub const MAX_FILTERS: usize = 8_192;
/// Most user properties of one packet: five bytes each on the wire, sixty-four in memory.
pub const MAX_USER_PROPERTIES: usize = 1_024;
/// Most subscription identifiers of one PUBLISH.
pub const MAX_SUBSCRIPTION_IDS: usize = 1_024;

/// A string of the protocol: no NUL (MQTT-1.5.4-2). Surrogates and overlong forms are refused where bytes become text.
pub fn is_legal_string(text: &str) -> bool {
    !text.as_bytes().contains(&0)
}

/// A topic name: at least one character, no wildcards, no NUL (MQTT-3.3.2-2, 4.7.1-1, 4.7.3-1, 4.7.3-2).
pub fn is_legal_topic_name(name: &str) -> bool {
    !name.is_empty() && !name.bytes().any(|byte| matches!(byte, 0 | b'+' | b'#'))
}

/// Who sent a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// A client; read by a server.
    Client,
    /// A server; read by a client.
    Server,
}

/// CONNACK (table 3-1).
pub fn is_connack_reason(reason: Reason) -> bool {
    matches!(reason.0, 0x00 | 0x80..=0x8A | 0x8C | 0x90 | 0x95 | 0x97 | 0x99..=0x9D | 0x9F)
}

/// PUBACK and PUBREC (tables 3-4, 3-5).
pub fn is_receive_reason(reason: Reason) -> bool {
    matches!(reason.0, 0x00 | 0x10 | 0x80 | 0x83 | 0x87 | 0x90 | 0x91 | 0x97 | 0x99)
}

/// PUBREL and PUBCOMP (tables 3-6, 3-7).
pub fn is_release_reason(reason: Reason) -> bool {
    matches!(reason.0, 0x00 | 0x92)
}

/// SUBACK (table 3-8).
pub fn is_suback_reason(reason: Reason) -> bool {
    matches!(reason.0, 0x00..=0x02 | 0x80 | 0x83 | 0x87 | 0x8F | 0x91 | 0x97 | 0x9E | 0xA1 | 0xA2)
}

/// UNSUBACK (table 3-9).
pub fn is_unsuback_reason(reason: Reason) -> bool {
    matches!(reason.0, 0x00 | 0x11 | 0x80 | 0x83 | 0x87 | 0x8F | 0x91)
}

/// DISCONNECT (table 3-10), by who sends it.
pub fn is_disconnect_reason(reason: Reason, sender: Sender) -> bool {
    let either = matches!(reason.0, 0x00 | 0x80..=0x83 | 0x90 | 0x93..=0x99);
    let own = match sender {
        Sender::Client => reason.0 == 0x04,
        Sender::Server => {
            matches!(reason.0, 0x87 | 0x89 | 0x8B | 0x8D..=0x8F | 0x9A..=0x9F | 0xA0..=0xA2)
        }
    };
    either || own
}

/// AUTH (table 3-11), by who sends it.
pub fn is_auth_reason(reason: Reason, sender: Sender) -> bool {
    match sender {
        Sender::Client => matches!(reason.0, 0x18 | 0x19),
        Sender::Server => matches!(reason.0, 0x00 | 0x18),
    }
}
