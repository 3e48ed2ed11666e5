//! A second opinion: `mqttbytes` on packets where it follows the standard.
//!
//! Not compared, because it is wrong there: what it accepts (packet id 0, NUL, reserved bits, trailing bytes, duplicate
//! properties), properties behind a subscription id, UNSUBSCRIBE and the two-byte DISCONNECT of version 5, AUTH, empty user
//! names and passwords.

use bytes::BytesMut;
use mqttbytes::{v4, v5};
use proptest::prelude::*;

use super::arbitrary;
use crate::mqtt::{
    check::Sender,
    packet::{Connect, Disconnect, Packet, Publish, Reason, Version},
    write::write,
};

fn bytes(packet: &Packet, version: Version) -> BytesMut {
    let mut out = BytesMut::new();
    write(packet, version, &mut out);
    out
}

/// Its reading of our bytes, and our bytes against its writing of what it read.
fn agree_v4(packet: &Packet, from: Sender) {
    let Some(packet) = arbitrary::in_version(packet, Version::V311, from) else { return };
    let ours = bytes(&packet, Version::V311);
    let theirs = v4::read(&mut ours.clone(), 1 << 20);
    let mut again = BytesMut::new();
    match theirs.unwrap_or_else(|error| panic!("{error}: {packet:?}")) {
        v4::Packet::Connect(p) => p.write(&mut again),
        v4::Packet::ConnAck(p) => p.write(&mut again),
        v4::Packet::Publish(p) => p.write(&mut again),
        v4::Packet::PubAck(p) => p.write(&mut again),
        v4::Packet::PubRec(p) => p.write(&mut again),
        v4::Packet::PubRel(p) => p.write(&mut again),
        v4::Packet::PubComp(p) => p.write(&mut again),
        v4::Packet::Subscribe(p) => p.write(&mut again),
        v4::Packet::SubAck(p) => p.write(&mut again),
        v4::Packet::Unsubscribe(p) => p.write(&mut again),
        v4::Packet::UnsubAck(p) => p.write(&mut again),
        v4::Packet::PingReq => v4::PingReq.write(&mut again),
        v4::Packet::PingResp => v4::PingResp.write(&mut again),
        v4::Packet::Disconnect => v4::Disconnect.write(&mut again),
    }
    .unwrap();
    assert_eq!(again, ours, "{packet:?}");
}

fn without_empty_login(connect: &mut Connect) {
    connect.user_name = connect.user_name.take().filter(|name| !name.is_empty());
    let text = |password: &bytes::Bytes| !password.is_empty() && password.is_ascii();
    connect.password = connect.password.take().filter(text).filter(|_| connect.user_name.is_some());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn version_3_1_1_agrees(
        first in arbitrary::first(),
        client in arbitrary::from_client(),
        server in arbitrary::from_server(),
    ) {
        let Packet::Connect(mut connect) = first else { unreachable!() };
        without_empty_login(&mut connect);
        agree_v4(&Packet::Connect(connect), Sender::Client);
        agree_v4(&client, Sender::Client);
        agree_v4(&server, Sender::Server);
    }

    #[test]
    fn a_publish_of_version_5_agrees(sent in arbitrary::publish()) {
        let sent = Publish { subscription_ids: Vec::new(), ..sent };
        let ours = bytes(&Packet::Publish(sent.clone()), Version::V5);
        let Ok(v5::Packet::Publish(theirs)) = v5::read(&mut ours.clone(), 1 << 20) else {
            panic!("{sent:?}")
        };
        prop_assert_eq!(&*theirs.topic, &*sent.topic);
        prop_assert_eq!(theirs.pkid, sent.packet_id.map_or(0, std::num::NonZero::get));
        prop_assert_eq!(theirs.qos as u8, sent.qos as u8);
        prop_assert_eq!((theirs.dup, theirs.retain), (sent.dup, sent.retain));
        prop_assert_eq!(&theirs.payload, &sent.payload);
        let properties = theirs.properties;
        let alias = properties.as_ref().and_then(|properties| properties.topic_alias);
        prop_assert_eq!(alias, sent.topic_alias);
        let user: Vec<(String, String)> =
            properties.map(|properties| properties.user_properties).unwrap_or_default();
        let expected: Vec<(String, String)> = sent.properties.user_properties.iter()
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect();
        prop_assert_eq!(user, expected);
    }

    #[test]
    fn other_packets_of_version_5_are_taken(packet in arbitrary::from_server()) {
        // It does not know AUTH, refuses the shortest DISCONNECT, and misplaces what follows a subscription id.
        let disagrees = match &packet {
            Packet::Auth(_) | Packet::Publish(_) => true,
            Packet::Disconnect(disconnect) => *disconnect == Disconnect::new(Reason::SUCCESS),
            _ => false,
        };
        if !disagrees {
            let ours = bytes(&packet, Version::V5);
            let read = v5::read(&mut ours.clone(), 1 << 20);
            prop_assert!(read.is_ok(), "{:?}: {:?} {:?}", read, packet, ours);
        }
    }
}
