//! Byte vectors: what the standard shows or forbids, one line a case.

use bytes::BytesMut;

use crate::mqtt::{
    packet::{
        Ack, ConnAck, ConnAckProperties, Connect, Disconnect, Packet, PacketId, Publish, Qos,
        Reason, SubAck, Version,
    },
    read::{Malformed, Reader},
    write::write,
};

pub(super) fn hex(text: &str) -> BytesMut {
    let digits: Vec<u8> = text
        .chars()
        .filter(|c| !c.is_whitespace())
        .map(|c| c.to_digit(16).unwrap() as u8)
        .collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// A server's reader after a CONNECT of `version`.
pub(super) fn connected(version: Version) -> Reader {
    let mut reader = Reader::server(1 << 20);
    let mut bytes = match version {
        Version::V31 => hex("10 0f 0006 4d5149736470 03 02 0000 0001 61"),
        Version::V311 => hex("10 0d 0004 4d515454 04 02 0000 0001 61"),
        Version::V5 => hex("10 0e 0004 4d515454 05 02 0000 00 0001 61"),
    };
    assert!(matches!(reader.read(&mut bytes), Ok(Some(Packet::Connect(_)))));
    reader
}

pub(super) fn first(text: &str) -> Result<Option<Packet>, Malformed> {
    Reader::server(1 << 20).read(&mut hex(text))
}

pub(super) fn from_client(version: Version, text: &str) -> Result<Packet, Malformed> {
    connected(version).read(&mut hex(text)).map(|packet| packet.expect("a whole packet"))
}

fn from_server(version: Version, text: &str) -> Result<Packet, Malformed> {
    let packet = Reader::client(version, 1 << 20).read(&mut hex(text));
    packet.map(|packet| packet.expect("a whole packet"))
}

fn id(number: u16) -> PacketId {
    PacketId::new(number).unwrap()
}

#[track_caller]
pub(super) fn refused(result: Result<impl std::fmt::Debug, Malformed>, reason: Reason) {
    assert_eq!(result.expect_err("illegal bytes").reason, reason);
}

#[track_caller]
pub(super) fn writes(packet: &Packet, version: Version, expected: &str) {
    let mut out = BytesMut::new();
    write(packet, version, &mut out);
    assert_eq!(out, hex(expected), "{packet:?}");
}

// [MQTT-3.1.3-1]
#[test]
fn connect_of_each_version_is_read() {
    // 3.1.1, figure 3.6: user name, password, will QoS 1, clean session, keep alive 10.
    let bytes = "10 23 0004 4d515454 04 ce 000a 0003 6b6174 0001 77 0003 627965 0004 75736572 0004 70617373";
    let Some(Packet::Connect(connect)) = first(bytes).unwrap() else { panic!() };
    assert_eq!(connect.version, Version::V311);
    assert_eq!((connect.client_id.as_ref(), connect.keep_alive), ("kat", 10));
    let will = connect.will.as_ref().unwrap();
    assert_eq!((will.topic.as_ref(), &will.payload[..]), ("w", &b"bye"[..]));
    assert_eq!((will.qos, will.retain), (Qos::AtLeastOnce, false));
    assert_eq!(connect.user_name.as_deref(), Some("user"));
    assert_eq!(connect.password.as_deref(), Some(&b"pass"[..]));
    // 5.0, figure 3-6 with session expiry 10.
    let bytes = "10 13 0004 4d515454 05 02 000a 05 11 0000000a 0001 61";
    let Some(Packet::Connect(connect)) = first(bytes).unwrap() else { panic!() };
    assert_eq!((connect.version, connect.session_expiry), (Version::V5, Some(10)));
    let bytes = "10 0f 0006 4d5149736470 03 02 0000 0001 61";
    let Some(Packet::Connect(connect)) = first(bytes).unwrap() else { panic!() };
    assert_eq!(connect.version, Version::V31);
}

// [MQTT-1.5.4-1] [MQTT-3.1.0-1] [MQTT-3.1.2-1] [MQTT-3.1.2-11] [MQTT-3.1.2-12] [MQTT-3.1.2-13]
// [MQTT-3.1.3-4] [MQTT-3.1.4-1]
#[test]
fn an_illegal_connect_is_refused() {
    let cases = [
        ("first packet is PINGREQ", "c000", Reason::PROTOCOL_ERROR),
        ("HTTP", "47 45", Reason::PROTOCOL_ERROR),
        ("TLS hello", "16 03", Reason::MALFORMED_PACKET),
        ("packet type 0", "00 00", Reason::PROTOCOL_ERROR),
        ("level 6", "10 0d 0004 4d515454 06 02 0000 0001 61", Reason::UNSUPPORTED_PROTOCOL_VERSION),
        (
            "level 84",
            "10 0d 0004 4d515454 84 02 0000 0001 61",
            Reason::UNSUPPORTED_PROTOCOL_VERSION,
        ),
        ("name MQTX", "10 0d 0004 4d515458 04 02 0000 0001 61", Reason::PROTOCOL_ERROR),
        ("reserved flag", "10 0d 0004 4d515454 04 03 0000 0001 61", Reason::MALFORMED_PACKET),
        (
            "will QoS without will",
            "10 0d 0004 4d515454 04 0a 0000 0001 61",
            Reason::MALFORMED_PACKET,
        ),
        (
            "will retain without will",
            "10 0d 0004 4d515454 04 22 0000 0001 61",
            Reason::MALFORMED_PACKET,
        ),
        (
            "will QoS 3",
            "10 13 0004 4d515454 04 1e 0000 0001 61 0001 77 0001 70",
            Reason::MALFORMED_PACKET,
        ),
        (
            "will topic wildcard",
            "10 13 0004 4d515454 04 06 0000 0001 61 0001 23 0001 70",
            Reason::MALFORMED_PACKET,
        ),
        (
            "password, no user",
            "10 10 0004 4d515454 04 42 0000 0001 61 0001 70",
            Reason::MALFORMED_PACKET,
        ),
        ("bytes behind", "10 0e 0004 4d515454 04 02 0000 0001 61 00", Reason::MALFORMED_PACKET),
        ("ends early", "10 0c 0004 4d515454 04 02 0000 0001", Reason::MALFORMED_PACKET),
        ("NUL in client id", "10 0d 0004 4d515454 04 02 0000 0001 00", Reason::MALFORMED_PACKET),
        (
            "surrogate in client id",
            "10 0f 0004 4d515454 04 02 0000 0003 eda080",
            Reason::MALFORMED_PACKET,
        ),
        (
            "overlong client id",
            "10 0e 0004 4d515454 04 02 0000 0002 c080",
            Reason::MALFORMED_PACKET,
        ),
        (
            "property twice",
            "10 18 0004 4d515454 05 02 000a 0a 11 0000000a 11 0000000a 0001 61",
            Reason::PROTOCOL_ERROR,
        ),
        (
            "property of PUBLISH",
            "10 10 0004 4d515454 05 02 0000 02 01 01 0001 61",
            Reason::MALFORMED_PACKET,
        ),
        (
            "unknown property",
            "10 10 0004 4d515454 05 02 0000 02 7f 01 0001 61",
            Reason::MALFORMED_PACKET,
        ),
        (
            "receive maximum 0",
            "10 11 0004 4d515454 05 02 0000 03 21 0000 0001 61",
            Reason::PROTOCOL_ERROR,
        ),
        (
            "packet size 0",
            "10 13 0004 4d515454 05 02 0000 05 27 00000000 0001 61",
            Reason::PROTOCOL_ERROR,
        ),
        (
            "request problem 2",
            "10 10 0004 4d515454 05 02 0000 02 17 02 0001 61",
            Reason::PROTOCOL_ERROR,
        ),
        (
            "data without method",
            "10 12 0004 4d515454 05 02 0000 04 16 0001 61 0001 61",
            Reason::PROTOCOL_ERROR,
        ),
        (
            "property length too long",
            "10 0e 0004 4d515454 05 02 0000 10 0001 61",
            Reason::MALFORMED_PACKET,
        ),
        (
            "long form length",
            "10 8e00 0004 4d515454 05 02 0000 00 0001 61",
            Reason::MALFORMED_PACKET,
        ),
        ("five byte length", "10 ffffffff", Reason::MALFORMED_PACKET),
        ("over the maximum", "10 ffffff7f", Reason::PACKET_TOO_LARGE),
    ];
    for (what, bytes, reason) in cases {
        let error = first(bytes).expect_err(what);
        assert_eq!(error.reason, reason, "{what}: {error}");
    }
}

#[test]
fn a_refused_connect_says_in_which_version_to_answer() {
    let version_after = |text: &str| {
        let mut reader = Reader::server(1 << 20);
        assert!(reader.read(&mut hex(text)).is_err());
        reader.version()
    };
    let unknown = |level| format!("10 0d 0004 4d515454 {level} 02 0000 0001 61");
    assert_eq!(version_after(&unknown("06")), Some(Version::V5));
    assert_eq!(version_after(&unknown("02")), Some(Version::V311));
    assert_eq!(version_after(&unknown("84")), Some(Version::V311), "a bridge asks this way");
    assert_eq!(version_after("10 10 0004 4d515454 05 02 0000 02 7f 01 0001 61"), Some(Version::V5));
    assert_eq!(version_after("47 45 54"), None);
}

#[test]
fn password_without_user_name_is_legal_in_version_5() {
    let bytes = "10 11 0004 4d515454 05 42 0000 00 0001 61 0001 70";
    let Some(Packet::Connect(connect)) = first(bytes).unwrap() else { panic!() };
    assert_eq!((connect.user_name, connect.password.as_deref()), (None, Some(&b"p"[..])));
}

// MQTT 3.1, section 3.1: what later versions refuse.
#[test]
fn version_3_1_lets_names_be_missing_and_will_bits_mean_nothing_without_a_will() {
    for (flags, rest) in [("c2", ""), ("82", ""), ("c2", "000175"), ("0a", ""), ("22", "")] {
        let length = 15 + rest.len() / 2;
        let bytes = format!("10 {length:02x} 0006 4d5149736470 03 {flags} 0000 0001 61 {rest}");
        let Some(Packet::Connect(connect)) = first(&bytes).unwrap() else { panic!("{bytes}") };
        assert_eq!(connect.user_name.is_some(), !rest.is_empty());
        assert_eq!((connect.password, connect.will), (None, None));
    }
    let later =
        ["10 0d 0004 4d515454 04 c2 0000 0001 61", "10 0e 0004 4d515454 05 82 0000 00 0001 61"];
    for bytes in later {
        refused(first(bytes), Reason::MALFORMED_PACKET);
    }
}

// [MQTT-1.5.4-3]
#[test]
fn a_byte_order_mark_stays() {
    let bytes = "10 10 0004 4d515454 04 02 0000 0004 efbbbf61";
    let Some(Packet::Connect(connect)) = first(bytes).unwrap() else { panic!() };
    assert_eq!(connect.client_id, "\u{feff}a");
}

#[test]
fn publish_is_read() {
    // 3.1.1, figure 3.11: topic a/b, packet id 10.
    let packet = from_client(Version::V311, "3b 09 0003 612f62 000a 6869").unwrap();
    let Packet::Publish(publish) = packet else { panic!() };
    assert_eq!((publish.dup, publish.qos, publish.retain), (true, Qos::AtLeastOnce, true));
    assert_eq!((publish.topic.as_ref(), publish.packet_id), ("a/b", Some(id(10))));
    assert_eq!(&publish.payload[..], b"hi");
    let packet = from_server(
        Version::V5,
        "30 18 0001 61 13 0b 01 26 0001 6b 0001 31 0b ff01 26 0001 6b 0001 32 70",
    );
    let Packet::Publish(publish) = packet.unwrap() else { panic!() };
    assert_eq!(publish.subscription_ids, [1, 255]);
    let pairs = publish.properties.user_properties;
    assert_eq!(pairs, [("k".into(), "1".into()), ("k".into(), "2".into())], "in order, both");
    assert_eq!(&publish.payload[..], b"p");
}

// [MQTT-1.5.4-2] [MQTT-2.2.1-3] [MQTT-3.3.1-2] [MQTT-3.3.1-4] [MQTT-3.3.2-1] [MQTT-3.3.2-2]
// [MQTT-3.3.2-8] [MQTT-3.3.2-14] [MQTT-3.3.4-6] [MQTT-4.7.0-1] [MQTT-4.7.3-1] [MQTT-4.7.3-2]
#[test]
fn an_illegal_publish_is_refused() {
    let cases = [
        ("QoS 3", "36 06 0001 61 0001 68", Reason::MALFORMED_PACKET),
        ("DUP with QoS 0", "38 03 0001 61", Reason::MALFORMED_PACKET),
        ("packet id 0", "32 05 0001 61 0000", Reason::PROTOCOL_ERROR),
        ("no packet id", "32 03 0001 61", Reason::MALFORMED_PACKET),
        ("plus in topic", "30 05 0003 612f2b", Reason::MALFORMED_PACKET),
        ("hash in topic", "30 05 0003 612f23", Reason::MALFORMED_PACKET),
        ("NUL in topic", "30 05 0003 612f00", Reason::MALFORMED_PACKET),
        ("topic is not UTF-8", "30 04 0002 c328", Reason::MALFORMED_PACKET),
        ("topic longer than packet", "30 04 00ff 6161", Reason::MALFORMED_PACKET),
    ];
    for (what, bytes, reason) in cases {
        let error = from_client(Version::V311, bytes).expect_err(what);
        assert_eq!(error.reason, reason, "{what}: {error}");
    }
    refused(from_client(Version::V311, "30 02 0000"), Reason::MALFORMED_PACKET);
    let cases = [
        ("no topic, no alias", "30 03 0000 00", Reason::PROTOCOL_ERROR),
        ("alias 0", "30 06 0000 03 23 0000", Reason::TOPIC_ALIAS_INVALID),
        ("subscription id", "30 06 0001 61 02 0b 01", Reason::PROTOCOL_ERROR),
        ("payload format 2", "30 06 0001 61 02 01 02", Reason::PROTOCOL_ERROR),
        ("format twice", "30 08 0001 61 04 01 01 01 01", Reason::PROTOCOL_ERROR),
        ("wildcard response topic", "30 08 0001 61 04 08 0001 2b", Reason::PROTOCOL_ERROR),
        ("reason string", "30 08 0001 61 04 1f 0001 61", Reason::MALFORMED_PACKET),
        ("will delay", "30 09 0001 61 05 18 00000000", Reason::MALFORMED_PACKET),
    ];
    for (what, bytes, reason) in cases {
        let error = from_client(Version::V5, bytes).expect_err(what);
        assert_eq!(error.reason, reason, "{what}: {error}");
    }
    refused(from_server(Version::V5, "30 06 0001 61 02 0b 00"), Reason::PROTOCOL_ERROR);
}

#[test]
fn a_topic_alias_may_stand_for_the_topic() {
    let packet = from_client(Version::V5, "30 07 0000 03 23 0007 70").unwrap();
    let Packet::Publish(publish) = packet else { panic!() };
    assert_eq!((publish.topic.len(), publish.topic_alias), (0, Some(7)));
}

// [MQTT-2.2.1-3] [MQTT-3.1.0-2] [MQTT-3.8.3-2] [MQTT-3.8.3-4] [MQTT-3.8.3-5] [MQTT-3.10.3-2]
// [MQTT-4.13.1-1]
#[test]
fn an_illegal_later_packet_is_refused() {
    use Version::{V5, V311};
    let cases = [
        ("second CONNECT", V311, "10 0d 0004 4d515454 04 02 0000 0001 61", Reason::PROTOCOL_ERROR),
        ("CONNACK from a client", V311, "20 02 0000", Reason::PROTOCOL_ERROR),
        ("SUBACK from a client", V311, "90 03 0001 00", Reason::PROTOCOL_ERROR),
        ("UNSUBACK from a client", V311, "b0 02 0001", Reason::PROTOCOL_ERROR),
        ("PINGRESP from a client", V311, "d0 00", Reason::PROTOCOL_ERROR),
        ("AUTH in 3.1.1", V311, "f0 00", Reason::PROTOCOL_ERROR),
        ("type 0", V311, "00 00", Reason::MALFORMED_PACKET),
        ("PUBACK id 0", V311, "40 02 0000", Reason::PROTOCOL_ERROR),
        ("PUBACK flags", V311, "41 02 0001", Reason::MALFORMED_PACKET),
        ("PUBACK with a code in 3.1.1", V311, "40 03 0001 00", Reason::MALFORMED_PACKET),
        ("PUBREL flags", V311, "60 02 0001", Reason::MALFORMED_PACKET),
        ("SUBSCRIBE flags", V311, "80 06 0001 0001 61 00", Reason::MALFORMED_PACKET),
        ("SUBSCRIBE id 0", V311, "82 06 0000 0001 61 00", Reason::PROTOCOL_ERROR),
        ("SUBSCRIBE without filter", V311, "82 02 0001", Reason::PROTOCOL_ERROR),
        ("SUBSCRIBE QoS 3", V311, "82 06 0001 0001 61 03", Reason::MALFORMED_PACKET),
        ("SUBSCRIBE reserved bits", V311, "82 06 0001 0001 61 04", Reason::MALFORMED_PACKET),
        ("SUBSCRIBE without options", V311, "82 05 0001 0001 61", Reason::MALFORMED_PACKET),
        ("UNSUBSCRIBE without filter", V311, "a2 02 0001", Reason::PROTOCOL_ERROR),
        ("UNSUBSCRIBE id 0", V311, "a2 05 0000 0001 61", Reason::PROTOCOL_ERROR),
        ("PINGREQ with contents", V311, "c0 01 00", Reason::MALFORMED_PACKET),
        ("DISCONNECT with contents", V311, "e0 01 00", Reason::MALFORMED_PACKET),
        ("reserved option bits", V5, "82 07 0001 00 0001 61 40", Reason::MALFORMED_PACKET),
        ("retain handling 3", V5, "82 07 0001 00 0001 61 30", Reason::PROTOCOL_ERROR),
        ("subscription id 0", V5, "82 09 0001 02 0b00 0001 61 00", Reason::PROTOCOL_ERROR),
        ("subscription id twice", V5, "82 0b 0001 04 0b01 0b02 0001 61 00", Reason::PROTOCOL_ERROR),
        (
            "no local, shared",
            V5,
            "82 0f 0001 00 0009 2473686172652f612f 04",
            Reason::PROTOCOL_ERROR,
        ),
        ("PUBACK code 0x92", V5, "40 03 0001 92", Reason::PROTOCOL_ERROR),
        ("PUBREL code 0x10", V5, "62 03 0001 10", Reason::PROTOCOL_ERROR),
        ("DISCONNECT code 0x8b", V5, "e0 01 8b", Reason::PROTOCOL_ERROR),
        ("server reference", V5, "e0 06 00 04 1c 0001 61", Reason::MALFORMED_PACKET),
        ("AUTH without method", V5, "f0 02 18 00", Reason::PROTOCOL_ERROR),
        ("AUTH success from a client", V5, "f0 00", Reason::PROTOCOL_ERROR),
    ];
    for (what, version, bytes, reason) in cases {
        let error = from_client(version, bytes).expect_err(what);
        assert_eq!(error.reason, reason, "{what}: {error}");
    }
    refused(from_server(V311, "e0 00"), Reason::PROTOCOL_ERROR);
    refused(from_server(V5, "e0 07 00 05 11 00000001"), Reason::MALFORMED_PACKET);
    refused(from_server(V311, "82 06 0001 0001 61 00"), Reason::PROTOCOL_ERROR);
}

// MQTT 3.1, sections 3.8, 3.12 and 3.14: requests may be marked as repeated, other packets do not use the flags.
#[test]
fn version_3_1_may_mark_requests_as_repeated_and_does_not_use_other_flags() {
    for packet in ["8a 06 0001 0001 61 01", "6a 02 0001", "c5 00", "e1 00"] {
        assert!(from_client(Version::V31, packet).is_ok(), "{packet}");
        refused(from_client(Version::V311, packet), Reason::MALFORMED_PACKET);
    }
}

#[test]
fn short_forms_of_version_5_mean_success() {
    let ack = Ack::new(id(1), Reason::SUCCESS);
    assert_eq!(from_client(Version::V5, "40 02 0001"), Ok(Packet::PubAck(ack.clone())));
    assert_eq!(from_client(Version::V5, "40 03 0001 00"), Ok(Packet::PubAck(ack.clone())));
    assert_eq!(from_client(Version::V5, "40 04 0001 00 00"), Ok(Packet::PubAck(ack)));
    let normal = Packet::Disconnect(Disconnect::new(Reason::SUCCESS));
    assert_eq!(from_client(Version::V5, "e0 00"), Ok(normal.clone()));
    assert_eq!(from_client(Version::V5, "e0 01 00"), Ok(normal.clone()));
    assert_eq!(from_client(Version::V5, "e0 02 00 00"), Ok(normal));
}

// [MQTT-2.2.1-2]
#[test]
fn packets_are_written_as_the_standard_shows() {
    let ack = |reason| Ack::new(id(0x1234), reason);
    writes(&Packet::PubAck(ack(Reason::SUCCESS)), Version::V5, "40 02 1234");
    writes(&Packet::PubAck(ack(Reason::NO_MATCHING_SUBSCRIBERS)), Version::V5, "40 03 1234 10");
    writes(&Packet::PubAck(ack(Reason::QUOTA_EXCEEDED)), Version::V311, "40 02 1234");
    writes(&Packet::PubRel(ack(Reason::SUCCESS)), Version::V311, "62 02 1234");
    writes(&Packet::PingResp, Version::V5, "d0 00");
    let ended = Packet::Disconnect(Disconnect::new(Reason::SERVER_SHUTTING_DOWN));
    writes(&ended, Version::V5, "e0 02 8b 00");
    writes(&ended, Version::V311, "");
    let publish = Publish { topic: "a/b".into(), payload: "hi".into(), ..Publish::default() };
    writes(&Packet::Publish(publish.clone()), Version::V311, "30 07 0003 612f62 6869");
    writes(&Packet::Publish(publish), Version::V5, "30 08 0003 612f62 00 6869");
}

// [MQTT311-3.1.3-8] [MQTT311-3.1.3-9]
#[test]
fn reason_codes_become_return_codes_before_version_5() {
    let connack = |reason| {
        Packet::ConnAck(Box::new(ConnAck {
            session_present: false,
            reason,
            properties: ConnAckProperties::default(),
        }))
    };
    let cases = [
        (Reason::SUCCESS, "20 02 0000"),
        (Reason::UNSUPPORTED_PROTOCOL_VERSION, "20 02 0001"),
        (Reason::CLIENT_ID_NOT_VALID, "20 02 0002"),
        (Reason::SERVER_BUSY, "20 02 0003"),
        (Reason::BAD_USER_NAME_OR_PASSWORD, "20 02 0004"),
        (Reason::NOT_AUTHORIZED, "20 02 0005"),
    ];
    for (reason, bytes) in cases {
        writes(&connack(reason), Version::V311, bytes);
    }
    writes(&connack(Reason::SERVER_BUSY), Version::V5, "20 03 00 89 00");
    let suback = SubAck {
        packet_id: id(1),
        reasons: vec![Reason::GRANTED_QOS_1, Reason::NOT_AUTHORIZED],
        reason_string: Some("no".into()),
        user_properties: Vec::new(),
    };
    writes(&Packet::SubAck(suback.clone()), Version::V311, "90 04 0001 01 80");
    writes(&Packet::SubAck(suback.clone()), Version::V5, "90 0a 0001 05 1f 0002 6e6f 01 87");
    writes(&Packet::UnsubAck(suback), Version::V311, "b0 02 0001");
}

#[test]
fn a_connect_that_is_written_is_the_one_of_the_standard() {
    let Some(Packet::Connect(connect)) =
        first("10 13 0004 4d515454 05 02 000a 05 11 0000000a 0001 61").unwrap()
    else {
        panic!()
    };
    let connect: Box<Connect> = connect;
    writes(
        &Packet::Connect(connect),
        Version::V5,
        "10 13 0004 4d515454 05 02 000a 05 11 0000000a 0001 61",
    );
}
