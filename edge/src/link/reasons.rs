//! Reason codes of the cloud: what they mean to the uplink, and in words. Pure.
//!
//! Three kinds: about the connection (nothing is given up, it is tried again), about our topic, about the batch.
//! Change here: the kind of a code, its words. Not here: what is done about it (`uplink`).

use rumqttc::v5::{ConnectionError, mqttbytes::v5::ConnectReturnCode};

/// The cloud will say the same again to the same bytes, whatever else it takes.
///
/// 0x87 is not among them: an edge that is not authorized is refused whole, its messages are as good as before.
pub(super) fn is_about_batch(code: u8) -> bool {
    !matches!(code, 0x00..=0x7F | 0x80..=0x8E | 0x91..=0x94 | 0x96..=0x98 | 0x9A | 0x9C..=0xA2)
}

/// All batches of a lane have one topic. So a lane whose topic is refused is refused whole, unless it was taken before
/// on the same connection: then it is about a topic inside the batch.
pub(super) fn is_about_topic(code: u8) -> bool {
    code == 0x90
}

/// A reason code of CONNACK, PUBACK or DISCONNECT for people.
pub fn words(code: u8) -> &'static str {
    match code {
        0x00 => "success",
        0x10 => "nobody subscribes to it",
        0x80 => "unspecified error",
        0x81 => "malformed packet",
        0x82 => "protocol error",
        0x83 => "implementation specific error",
        0x84 => "the cloud does not speak MQTT 5",
        0x85 => "this client id is not allowed",
        0x86 => "wrong user name or password",
        0x87 => "not authorized: the cloud does not know this edge, or it may not send",
        0x88 => "the server is not available",
        0x89 => "the server is busy",
        0x8A => "this edge is banned",
        0x8B => "the server shuts down",
        0x8C => "bad authentication method",
        0x8D => "keep-alive timeout",
        0x8E => "another connection has this edge's name: two gateways with one id?",
        0x90 => {
            "the topic is not allowed: does the cloud take this lane's name and this edge's id?"
        }
        0x91 => "packet id in use",
        0x93 => "more unanswered publishes than it takes",
        0x95 => "the packet is too large",
        0x96 => "too many messages",
        0x97 => "quota exceeded",
        0x98 => "administrative action",
        0x99 => "the payload is not what it says",
        0x9A => "retain is not supported",
        0x9B => "the QoS is not supported",
        0x9C => "use another server, for now",
        0x9D => "the server has moved: change `uplink.cloud`",
        0x9F => "too many connections at once",
        0xA0 => "maximum connect time",
        _ => "a code of no standard",
    }
}

/// What kept a connection from being made, or ended it.
pub(super) fn in_words(error: &ConnectionError) -> String {
    match error {
        ConnectionError::ConnectionRefused(code) => {
            let code = number(*code);
            format!("the cloud refuses the connection: {} ({code:#04x})", words(code))
        }
        other => other.to_string(),
    }
}

fn number(code: ConnectReturnCode) -> u8 {
    match code {
        ConnectReturnCode::Success => 0x00,
        ConnectReturnCode::UnspecifiedError => 0x80,
        ConnectReturnCode::MalformedPacket => 0x81,
        ConnectReturnCode::ProtocolError => 0x82,
        ConnectReturnCode::ImplementationSpecificError => 0x83,
        ConnectReturnCode::RefusedProtocolVersion
        | ConnectReturnCode::UnsupportedProtocolVersion => 0x84,
        ConnectReturnCode::BadClientId | ConnectReturnCode::ClientIdentifierNotValid => 0x85,
        ConnectReturnCode::BadUserNamePassword => 0x86,
        ConnectReturnCode::NotAuthorized => 0x87,
        ConnectReturnCode::ServiceUnavailable | ConnectReturnCode::ServerUnavailable => 0x88,
        ConnectReturnCode::ServerBusy => 0x89,
        ConnectReturnCode::Banned => 0x8A,
        ConnectReturnCode::BadAuthenticationMethod => 0x8C,
        ConnectReturnCode::TopicNameInvalid => 0x90,
        ConnectReturnCode::PacketTooLarge => 0x95,
        ConnectReturnCode::QuotaExceeded => 0x97,
        ConnectReturnCode::PayloadFormatInvalid => 0x99,
        ConnectReturnCode::RetainNotSupported => 0x9A,
        ConnectReturnCode::QoSNotSupported => 0x9B,
        ConnectReturnCode::UseAnotherServer => 0x9C,
        ConnectReturnCode::ServerMoved => 0x9D,
        ConnectReturnCode::ConnectionRateExceeded => 0x9F,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_concerns_the_connection_never_gives_a_message_up() {
        for code in [0x80, 0x83, 0x87, 0x88, 0x89, 0x8E, 0x97, 0x9C, 0x9D, 0x9F] {
            assert!(!is_about_batch(code), "{code:#x}");
        }
        for code in [0x90, 0x95, 0x99, 0x9B, 0xF7] {
            assert!(is_about_batch(code), "{code:#x}");
        }
    }
    #[test]
    fn a_connection_that_is_refused_says_why() {
        let refused = ConnectionError::ConnectionRefused(ConnectReturnCode::ConnectionRateExceeded);
        let said = in_words(&refused);
        assert!(said.contains("too many connections at once (0x9f)"), "{said}");
        let moved = ConnectionError::ConnectionRefused(ConnectReturnCode::ServerMoved);
        assert!(in_words(&moved).contains("change `uplink.cloud`"));
    }
}
