//! What version 5 says of bytes, beyond the vectors that all versions share: presence, text, flags, minimal integers.

use bytes::BytesMut;

use super::vectors::{first, from_client, hex, refused, writes};
use crate::mqtt::{
    packet::{ConnAck, ConnAckProperties, Disconnect, Packet, Publish, PublishProperties},
    packet::{PacketId, Qos, Reason, SubAck, Version},
    read::Reader,
    write::write,
};

/// CONNECT of version 5 with these flags, no properties, and this payload.
fn connect(flags: &str, payload: &str) -> String {
    let payload = payload.replace(' ', "");
    let rest = 11 + payload.len() / 2;
    format!("10 {rest:02x} 0004 4d515454 05 {flags} 0000 00 {payload}")
}

// [MQTT-3.1.2-3] [MQTT-3.1.2-9] [MQTT-3.1.2-11] [MQTT-3.1.2-12] [MQTT-3.1.2-13] [MQTT-3.1.2-16]
// [MQTT-3.1.2-17] [MQTT-3.1.2-18] [MQTT-3.1.2-19] [MQTT-3.1.3-1] [MQTT-3.1.3-3] [MQTT-3.1.3-4]
// [MQTT-3.1.3-11] [MQTT-3.1.3-12]
#[test]
fn a_connect_has_what_its_flags_announce_in_order_and_nothing_else() {
    let whole = connect("ee", "0001 61 00 0001 77 0001 70 0004 75736572 0002 7077");
    let Some(Packet::Connect(read)) = first(&whole).unwrap() else { panic!() };
    let will = read.will.as_ref().unwrap();
    assert_eq!((read.client_id.as_ref(), will.topic.as_ref()), ("a", "w"));
    assert_eq!((&will.payload[..], will.qos, will.retain), (&b"p"[..], Qos::AtLeastOnce, true));
    assert_eq!(read.user_name.as_deref(), Some("user"));
    assert_eq!(read.password.as_deref(), Some(&b"pw"[..]));
    for (what, flags, payload) in [
        ("no client id", "02", ""),
        ("will announced, none there", "06", "0001 61"),
        ("will without payload", "06", "0001 61 00 0001 77"),
        ("will without properties", "06", "0001 61 0001 77 0001 70"),
        ("user name announced, none there", "82", "0001 61"),
        ("user name not announced", "02", "0001 61 0001 75"),
        ("password announced, none there", "42", "0001 61"),
        ("password not announced", "82", "0001 61 0001 75 0001 70"),
        ("will QoS without will", "0a", "0001 61"),
        ("will retain without will", "22", "0001 61"),
        ("will QoS 3", "1e", "0001 61 00 0001 77 0001 70"),
        ("reserved flag", "03", "0001 61"),
        ("client id is not UTF-8", "02", "0001 ff"),
        ("will topic is not UTF-8", "06", "0001 61 00 0001 ff 0001 70"),
        ("wildcard in will topic", "06", "0001 61 00 0001 2b 0001 70"),
        ("user name is not UTF-8", "82", "0001 61 0003 eda080"),
        ("NUL in user name", "82", "0001 61 0001 00"),
    ] {
        let error = first(&connect(flags, payload)).expect_err(what);
        assert_eq!(error.reason, Reason::MALFORMED_PACKET, "{what}: {error}");
    }
    for (qos, flags) in [(Qos::AtMostOnce, "06"), (Qos::ExactlyOnce, "16")] {
        let bytes = connect(flags, "0001 61 00 0001 77 0001 70");
        let Some(Packet::Connect(read)) = first(&bytes).unwrap() else { panic!() };
        assert_eq!(read.will.unwrap().qos, qos);
    }
}

// [MQTT-1.5.4-1] [MQTT-1.5.4-2] [MQTT-1.5.7-1] [MQTT-3.3.2-1] [MQTT-3.3.2-13] [MQTT-3.3.2-19]
// [MQTT-3.8.3-1] [MQTT-3.10.3-1]
#[test]
fn text_anywhere_in_a_packet_is_utf_8_without_nul() {
    for bad in ["ff", "00", "eda080", "c080", "f4908080"] {
        let length = bad.len() / 2;
        let text = format!("{length:04x} {bad}");
        let publish = |id: &str, value: &str| {
            let properties = hex(id).len() + hex(value).len();
            let rest = 4 + properties;
            format!("30 {rest:02x} 0001 61 {properties:02x} {id} {value}")
        };
        for bytes in [
            format!("30 {:02x} {text} 00", 3 + length),
            publish("26", &format!("{text} 0001 61")),
            publish("26", &format!("0001 61 {text}")),
            publish("03", &text),
            publish("08", &text),
            format!("82 {:02x} 0001 00 {text} 00", 6 + length),
            format!("a2 {:02x} 0001 00 {text}", 5 + length),
        ] {
            refused(from_client(Version::V5, &bytes), Reason::MALFORMED_PACKET);
        }
    }
}

// [MQTT-1.5.5-1]
#[test]
fn integers_are_as_short_as_can_be_both_ways() {
    for bytes in [
        "30 8400 0001 61 00",
        "30 05 0001 61 8000",
        "82 08 0001 8000 0001 61 00",
        "82 0b 0001 04 0b 818000 0001 61 00",
        "30 ffffffff 01",
    ] {
        refused(from_client(Version::V5, bytes), Reason::MALFORMED_PACKET);
    }
    for (payload, length) in [(0, "04"), (123, "7f"), (124, "8001"), (16_379, "ff7f")] {
        let payload = vec![0; payload].into();
        let publish = Publish { topic: "a".into(), payload, ..Publish::default() };
        let mut out = BytesMut::new();
        write(&Packet::Publish(publish), Version::V5, &mut out);
        assert!(out.starts_with(&hex(&format!("30 {length} 0001 61 00"))));
    }
}

// [MQTT-2.1.3-1] [MQTT-3.6.1-1] [MQTT-3.8.1-1] [MQTT-3.10.1-1] [MQTT-3.14.1-1] [MQTT-3.15.1-1]
#[test]
fn reserved_flags_of_every_packet_are_checked() {
    for (kind, body) in [
        ("4", "02 0001"),
        ("5", "02 0001"),
        ("6", "02 0001"),
        ("7", "02 0001"),
        ("8", "07 0001 00 0001 61 00"),
        ("a", "06 0001 00 0001 61"),
        ("c", "00"),
        ("e", "00"),
        ("f", "06 18 04 15 0001 61"),
    ] {
        let legal = if matches!(kind, "6" | "8" | "a") { 2 } else { 0 };
        for flags in 0..16 {
            let result = from_client(Version::V5, &format!("{kind}{flags:x} {body}"));
            if flags == legal {
                assert!(result.is_ok(), "{kind} {result:?}");
            } else {
                refused(result, Reason::MALFORMED_PACKET);
            }
        }
    }
}

// [MQTT-2.2.2-1] [MQTT-3.2.2-1]
#[test]
fn a_packet_without_properties_says_so_with_a_length_of_zero() {
    let connack = ConnAck {
        session_present: true,
        reason: Reason::SUCCESS,
        properties: ConnAckProperties::default(),
    };
    writes(&Packet::ConnAck(Box::new(connack)), Version::V5, "20 03 01 00 00");
    let suback = SubAck {
        packet_id: PacketId::new(7).unwrap(),
        reasons: vec![Reason::GRANTED_QOS_2],
        reason_string: None,
        user_properties: Vec::new(),
    };
    writes(&Packet::SubAck(suback.clone()), Version::V5, "90 04 0007 00 02");
    writes(&Packet::UnsubAck(suback), Version::V5, "b0 04 0007 00 02");
    let ended = Packet::Disconnect(Disconnect::new(Reason::QUOTA_EXCEEDED));
    writes(&ended, Version::V5, "e0 02 97 00");
    for (what, bytes) in
        [("PUBLISH", "30 03 0001 61"), ("SUBSCRIBE", "82 02 0001"), ("UNSUBSCRIBE", "a2 02 0001")]
    {
        let result = from_client(Version::V5, bytes);
        assert_eq!(result.expect_err(what).reason, Reason::MALFORMED_PACKET, "{what}");
    }
}

#[test]
fn no_alias_and_no_subscription_identifier_that_is_zero_is_written_or_read() {
    refused(from_client(Version::V5, "30 07 0001 61 03 23 0000"), Reason::TOPIC_ALIAS_INVALID);
    refused(from_client(Version::V5, "30 06 0001 61 02 0b 05"), Reason::PROTOCOL_ERROR);
    let publish = Publish {
        topic: "a".into(),
        properties: PublishProperties::default(),
        ..Publish::default()
    };
    writes(&Packet::Publish(publish), Version::V5, "30 04 0001 61 00");
}

// [MQTT-3.2.2-15]
#[test]
fn a_packet_over_the_maximum_is_refused_at_its_length() {
    let mut reader = Reader::server(100);
    let Ok(Some(_)) = reader.read(&mut hex(&connect("02", "0001 61"))) else { panic!() };
    refused(reader.read(&mut hex("30 64")), Reason::PACKET_TOO_LARGE);
    assert_eq!(reader.read(&mut hex("30 62")), Ok(None), "it may still come");
}
