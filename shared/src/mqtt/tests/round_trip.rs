//! What is written is read back, in every version, whole and byte by byte.

use std::num::NonZeroU16;

use bytes::{Buf, Bytes, BytesMut};
use proptest::prelude::*;

use super::{arbitrary, vectors::connected};
use crate::{
    message::Message,
    mqtt::{
        check::Sender,
        packet::{Packet, PacketId, Publish, PublishProperties, Qos, Reason, Version},
        read::Reader,
        write::{
            Alias, Encoded, Head, Output, PROTOCOL_MAXIMUM, TooLarge, publish, write, write_limited,
        },
    },
};

fn reader(from: Sender, version: Version, first: bool) -> Reader {
    match from {
        Sender::Server => Reader::client(version, 1 << 20),
        Sender::Client if first => Reader::server(1 << 20),
        Sender::Client => connected(version),
    }
}

/// Written, then read whole; and in two pieces, cut at every byte: only the last byte completes the packet.
fn check(packet: &Packet, from: Sender) {
    let first = matches!(packet, Packet::Connect(_));
    for version in [Version::V31, Version::V311, Version::V5] {
        let Some(packet) = arbitrary::in_version(packet, version, from) else { continue };
        let mut bytes = BytesMut::new();
        write(&packet, version, &mut bytes);
        let mut whole = bytes.clone();
        let read = reader(from, version, first).read(&mut whole);
        assert_eq!(read, Ok(Some(packet.clone())), "{version:?} {bytes:?}");
        assert!(whole.is_empty());
        let mut reader = reader(from, version, first);
        let mut part = BytesMut::new();
        for cut in 0..bytes.len() {
            assert_eq!(reader.read(&mut part), Ok(None), "cut at {cut} of {bytes:?}");
            part.extend_from_slice(&bytes[cut..=cut]);
        }
        assert_eq!(reader.read(&mut part), Ok(Some(packet)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_first_packet_comes_back(packet in arbitrary::first()) {
        check(&packet, Sender::Client);
    }

    #[test]
    fn a_clients_packet_comes_back(packet in arbitrary::from_client()) {
        check(&packet, Sender::Client);
    }

    #[test]
    fn a_servers_packet_comes_back(packet in arbitrary::from_server()) {
        check(&packet, Sender::Server);
    }

    // [MQTT-3.3.2-4] [MQTT-3.3.2-15] [MQTT-3.3.2-16] [MQTT-3.3.2-17] [MQTT-3.3.2-20]
    #[test]
    fn a_shared_message_is_the_packet_a_single_one_would_be(
        sent in arbitrary::publish(),
        long in any::<bool>(),
        alias in prop_oneof![Just(0), 1..=u16::MAX],
        known in any::<bool>(),
    ) {
        let payload = if long { Bytes::from(vec![7; 5_000]) } else { sent.payload.clone() };
        let number = NonZeroU16::new(alias);
        let sent = Publish { payload, topic: "t/1".into(), topic_alias: number.map(u16::from), ..sent };
        let message = message_of(&sent);
        let alias = match (number, known) {
            (None, _) => Alias::None,
            (Some(number), false) => Alias::New(number),
            (Some(number), true) => Alias::Known(number),
        };
        let head = Head {
            dup: sent.dup,
            qos: sent.qos,
            retain: sent.retain,
            packet_id: sent.packet_id,
            subscription_ids: &sent.subscription_ids,
            expiry_s: sent.properties.message_expiry,
            alias,
        };
        for version in [Version::V311, Version::V5, Version::V5] {
            let mut expected = BytesMut::new();
            let mut packet = sent.clone();
            if version == Version::V5 && matches!(alias, Alias::Known(_)) {
                packet.topic = "".into();
            }
            write(&Packet::Publish(packet), version, &mut expected);
            let mut output = Output::default();
            publish(&message, &head, version, PROTOCOL_MAXIMUM, &mut output).unwrap();
            output.seal();
            prop_assert_eq!(output.remaining(), expected.len());
            prop_assert_eq!(output.copy_to_bytes(expected.len()), &expected);
            let size = expected.len();
            prop_assert!(publish(&message, &head, version, size, &mut output).is_ok());
            let too_large = Err(TooLarge { size, maximum: size - 1 });
            prop_assert_eq!(publish(&message, &head, version, size - 1, &mut output), too_large);
        }
    }

    // [MQTT-3.1.2-24] [MQTT-3.2.2-19] [MQTT-3.2.2-20] [MQTT-3.4.2-2] [MQTT-3.4.2-3] [MQTT-3.5.2-2]
    // [MQTT-3.5.2-3] [MQTT-3.6.2-2] [MQTT-3.6.2-3] [MQTT-3.7.2-2] [MQTT-3.7.2-3] [MQTT-3.9.2-1]
    // [MQTT-3.9.2-2] [MQTT-3.11.2-1] [MQTT-3.11.2-2] [MQTT-3.14.2-3] [MQTT-3.14.2-4]
    // [MQTT-3.15.2-2] [MQTT-3.15.2-3]
    #[test]
    fn an_answer_is_cut_to_the_receivers_size_or_not_sent(
        packet in arbitrary::from_server(),
        maximum in 1..60usize,
    ) {
        let mut out = BytesMut::from(&b"before"[..]);
        let written = write_limited(&packet, Version::V5, maximum, &mut out);
        let mut bytes = out.split_off(6);
        if written.is_ok() {
            prop_assert!(bytes.len() <= maximum);
            prop_assert!(Reader::client(Version::V5, maximum).read(&mut bytes).unwrap().is_some());
        } else {
            prop_assert!(bytes.is_empty());
        }
    }
}

fn message_of(sent: &Publish) -> Message {
    Message {
        topic: sent.topic.clone(),
        payload: sent.payload.clone(),
        qos: sent.qos,
        retain: sent.retain,
        properties: sent.properties.clone(),
        publisher: None,
        received_ms: 0,
        expires_ms: None,
        encoded: Encoded::default(),
        place: None,
    }
}

#[test]
fn what_mqtt_cannot_say_is_left_out_of_a_message_from_elsewhere() {
    let long = "x".repeat(70_000);
    let sent = Publish {
        topic: "t".into(),
        properties: PublishProperties {
            response_topic: Some("a/#".into()),
            content_type: Some(long.clone().into()),
            user_properties: vec![
                ("k".into(), long.into()),
                ("z\0".into(), "".into()),
                ("a".into(), "b".into()),
            ],
            ..PublishProperties::default()
        },
        ..Publish::default()
    };
    let mut bytes = BytesMut::new();
    write(&Packet::Publish(sent), Version::V5, &mut bytes);
    let read = Reader::client(Version::V5, 1 << 20).read(&mut bytes);
    let Ok(Some(Packet::Publish(publish))) = read else { panic!() };
    let user_properties = vec![("a".into(), "b".into())];
    assert_eq!(publish.properties, PublishProperties { user_properties, ..Default::default() });
}

#[test]
fn a_length_that_lies_allocates_nothing() {
    let mut reader = Reader::client(Version::V5, 300_000_000);
    let mut bytes = BytesMut::with_capacity(64);
    bytes.extend_from_slice(&[0x30, 0xff, 0xff, 0xff, 0x7f, 0, 1, b'a', 0]);
    assert_eq!(reader.read(&mut bytes), Ok(None));
    assert_eq!(bytes.capacity(), 64);
    let mut small = Reader::client(Version::V5, 100_000);
    assert_eq!(small.read(&mut bytes).unwrap_err().reason, Reason::PACKET_TOO_LARGE);
}

#[test]
fn what_may_be_kept_does_not_keep_the_read_buffer() {
    let mut bytes = BytesMut::with_capacity(32 * 1024);
    for (qos, shares) in [(Qos::AtMostOnce, true), (Qos::AtLeastOnce, false)] {
        let packet_id = PacketId::new(1).filter(|_| qos != Qos::AtMostOnce);
        let sent = Publish { qos, packet_id, topic: "t".into(), ..Publish::default() };
        write(&Packet::Publish(sent), Version::V311, &mut bytes);
        let chunk = bytes.as_ptr_range();
        let read = Reader::client(Version::V311, 1_000).read(&mut bytes);
        let Ok(Some(Packet::Publish(publish))) = read else { panic!() };
        assert_eq!(chunk.contains(&publish.topic.as_ptr()), shares);
    }
}
