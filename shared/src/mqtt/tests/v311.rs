//! What MQTT 3.1.1 demands of whoever reads bytes: the wrong ones, each with the id it breaks, and what must be left as it is.

use bytes::BytesMut;

use super::vectors::{connected, hex};
use crate::mqtt::{
    Packet, Version,
    read::{Malformed, Reader},
};

/// A CONNECT: flags, and the payload behind the client id `a`.
fn connect(flags: &str, rest: &str) -> Result<Option<Packet>, Malformed> {
    let mut body = hex("0004 4d515454 04");
    body.extend_from_slice(&hex(&format!("{flags} 0000 0001 61 {rest}")));
    let mut bytes = BytesMut::from(&[0x10, body.len() as u8][..]);
    bytes.extend_from_slice(&body);
    Reader::server(1 << 20).read(&mut bytes)
}

fn later(text: &str) -> Result<Option<Packet>, Malformed> {
    connected(Version::V311).read(&mut hex(text))
}

// [MQTT311-3.1.2-3] [MQTT311-3.1.2-9] [MQTT311-3.1.2-11] [MQTT311-3.1.2-13] [MQTT311-3.1.2-14] [MQTT311-3.1.2-15]
// [MQTT311-3.1.2-18] [MQTT311-3.1.2-19] [MQTT311-3.1.2-20] [MQTT311-3.1.2-21] [MQTT311-3.1.2-22] [MQTT311-3.1.3-1]
// [MQTT311-3.1.3-3] [MQTT311-3.1.3-10] [MQTT311-3.1.3-11]
#[test]
fn the_flags_of_connect_and_its_payload_agree() {
    let (will, user, password) = ("0001 77 0001 6d", "0001 75", "0001 70");
    for (flags, rest) in [
        ("02", String::new()),
        ("06", will.to_owned()),
        ("2e", will.to_owned()),
        ("36", will.to_owned()),
        ("82", user.to_owned()),
        ("c2", format!("{user} {password}")),
        ("c6", format!("{will} {user} {password}")),
    ] {
        assert!(matches!(connect(flags, &rest), Ok(Some(Packet::Connect(_)))), "{flags} {rest}");
    }
    for (flags, rest, what) in [
        ("03", "", "reserved flag"),
        ("06", "", "no will"),
        ("06", "0001 77", "no will message"),
        ("02", will, "a will that the flags do not tell of"),
        ("0a", "", "will QoS without will"),
        ("22", "", "will retain without will"),
        ("1e", will, "will QoS 3"),
        ("06", "0002 c328 0001 6d", "will topic is not UTF-8"),
        ("82", "", "no user name"),
        ("02", user, "a user name that the flags do not tell of"),
        ("82", "0002 c328", "user name is not UTF-8"),
        ("c2", user, "no password"),
        ("82", "0001 75 0001 70", "a password that the flags do not tell of"),
        ("42", password, "password without user name"),
    ] {
        assert!(connect(flags, rest).is_err(), "{what}");
    }
    let no_client_id = "10 0a 0004 4d515454 04 02 0000";
    assert!(Reader::server(1 << 20).read(&mut hex(no_client_id)).is_err());
}

// [MQTT311-3.1.0-1] [MQTT311-3.1.0-2] [MQTT311-3.1.2-1]
#[test]
fn connect_comes_first_once_and_in_the_name_of_mqtt() {
    for first in ["30 03 0001 61", "c0 00", "82 06 0001 0001 61 00", "e0 00"] {
        assert!(Reader::server(1 << 20).read(&mut hex(first)).is_err(), "{first}");
    }
    let whole = "10 0d 0004 4d515454 04 02 0000 0001 61";
    assert!(later(whole).is_err());
    assert!(Reader::server(1 << 20).read(&mut hex(&whole.replace("54 04", "55 04"))).is_err());
}

// [MQTT311-1.5.3-1] [MQTT311-1.5.3-2] [MQTT311-3.1.3-4] [MQTT311-3.3.2-1] [MQTT311-3.8.3-1] [MQTT311-3.10.3-1]
// [MQTT311-4.7.3-2]
#[test]
fn strings_are_utf_8_without_nul() {
    for text in ["eda080", "c080", "c32861", "ff6161", "610061", "f4908080"] {
        let length = text.len() / 2;
        for (what, head, tail) in [
            ("client id", "0004 4d515454 04 02 0000", ""),
            ("PUBLISH", "", ""),
            ("SUBSCRIBE", "0001", "00"),
            ("UNSUBSCRIBE", "0001", ""),
        ] {
            let body = hex(&format!("{head} {length:04x} {text} {tail}"));
            let first = match what {
                "client id" => 0x10,
                "PUBLISH" => 0x30,
                "SUBSCRIBE" => 0x82,
                _ => 0xA2,
            };
            let mut bytes = BytesMut::from(&[first, body.len() as u8][..]);
            bytes.extend_from_slice(&body);
            let mut reader =
                if first == 0x10 { Reader::server(1 << 20) } else { connected(Version::V311) };
            assert!(reader.read(&mut bytes).is_err(), "{what} {text}");
        }
    }
}

// [MQTT311-1.5.3-3]
#[test]
fn a_byte_order_mark_is_a_character_of_its_topic() {
    let Ok(Some(Packet::Publish(publish))) = later("30 06 0004 efbbbf61") else { panic!() };
    assert_eq!(&*publish.topic, "\u{feff}a");
}

// [MQTT311-2.2.2-1] [MQTT311-2.2.2-2] [MQTT311-3.3.1-2] [MQTT311-3.3.1-4] [MQTT311-3.6.1-1] [MQTT311-3.8.1-1]
// [MQTT311-3.10.1-1] [MQTT311-3.14.1-1]
#[test]
fn every_flag_of_the_fixed_header_is_checked() {
    for (packet, only) in [
        ("40 02 0001", 0),
        ("50 02 0001", 0),
        ("60 02 0001", 0b0010),
        ("70 02 0001", 0),
        ("80 06 0001 0001 61 00", 0b0010),
        ("a0 05 0001 0001 61", 0b0010),
        ("c0 00", 0),
        ("e0 00", 0),
    ] {
        for flags in 0..16 {
            let mut bytes = hex(packet);
            bytes[0] |= flags;
            let read = connected(Version::V311).read(&mut bytes);
            assert_eq!(read.is_ok(), flags == only, "{packet} with flags {flags:04b}");
        }
    }
    for flags in 0..16 {
        let mut bytes = hex("30 05 0001 61 0001");
        bytes[0] |= flags;
        let (dup, qos) = (flags & 0b1000 != 0, flags >> 1 & 0b11);
        let legal = qos < 3 && !(dup && qos == 0);
        assert_eq!(connected(Version::V311).read(&mut bytes).is_ok(), legal, "{flags:04b}");
    }
}

// [MQTT311-2.3.1-1]
#[test]
fn a_packet_id_is_not_0() {
    for packet in
        ["32 05 0001 61 0000", "34 05 0001 61 0000", "82 06 0000 0001 61 00", "a2 05 0000 0001 61"]
    {
        assert!(later(packet).is_err(), "{packet}");
        assert!(later(&packet.replacen("0000", "0001", 1)).is_ok());
    }
}

// [MQTT311-3.3.2-2] [MQTT311-4.7.1-1] [MQTT311-4.7.3-3]
#[test]
fn a_topic_name_has_no_wildcards_and_any_length_that_fits() {
    for packet in
        ["30 03 0001 2b", "30 03 0001 23", "30 05 0003 612f23", "30 05 0003 612b62", "30 02 0000"]
    {
        assert!(later(packet).is_err(), "{packet}");
    }
    let mut longest = hex("30 818004 ffff");
    longest.extend_from_slice(&vec![b'a'; 65_535]);
    let Ok(Some(Packet::Publish(publish))) = connected(Version::V311).read(&mut longest) else {
        panic!()
    };
    assert_eq!(publish.topic.len(), 65_535);
}

// [MQTT311-3.8.3-3] [MQTT311-3.8.3-4] [MQTT311-3.10.3-2]
#[test]
fn requests_about_filters_have_one_and_a_qos() {
    for packet in ["82 02 0001", "a2 02 0001", "82 05 0001 0001 61"] {
        assert!(later(packet).is_err(), "{packet}");
    }
    for options in 0..=255_u8 {
        let packet = format!("82 06 0001 0001 61 {options:02x}");
        assert_eq!(later(&packet).is_ok(), options < 3, "{packet}");
    }
}
