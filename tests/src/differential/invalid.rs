//! Packets that are against the standard, or odd: as bytes, since the codec would not write them.
//!
//! Out: frames that keep the framing, so that what follows can still be read if the broker goes on. Not here: what brokers do.

#![allow(clippy::enum_glob_use, reason = "58 names, each of them said three times")]

use tributary_shared::mqtt::Version;

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Invalid {
    // On an open connection.
    SecondConnect,
    TypeZero,
    Auth,
    PublishQos3,
    PublishWildcard,
    PublishNoTopic,
    PublishIdZero,
    PublishNul,
    PublishNotUtf8,
    PublishDupQos0,
    SubscribeNothing,
    SubscribeFlags,
    SubscribeQos3,
    SubscribeReservedBits,
    SubscribeHashInside,
    SubscribePlusInside,
    SubscribeEmptyFilter,
    SubscribeIdZero,
    SubscribeShareNoLocal,
    SubscribeShareNoName,
    SubscribeNumberZero,
    SubscribeHandling3,
    UnsubscribeNothing,
    UnsubscribeFlags,
    UnsubscribeHashInside,
    UnknownPubRel,
    UnknownPubAck,
    UnknownPubRec,
    UnknownPubComp,
    PubRelFlags,
    PubAckIdZero,
    PingFlags,
    DisconnectFlags,
    AliasZero,
    AliasTooHigh,
    SubscriptionIdFromClient,
    PropertyTwice,
    PropertyUnknown,
    ServersConnAck,
    ServersSubAck,
    ServersPingResp,
    LengthOfFiveBytes,
    // The first packet of a new connection.
    FirstIsPublish,
    FirstIsPing,
    ConnectReservedFlag,
    ConnectWillQos3,
    ConnectWillQosWithoutWill,
    ConnectWillRetainWithoutWill,
    ConnectPasswordWithoutUser,
    ConnectOtherName,
    ConnectLevel6,
    ConnectLevel0,
    ConnectShort,
    ConnectLong,
    ConnectWillWildcard,
    ConnectWillNoTopic,
    ConnectIdNotUtf8,
    ConnectFixedFlags,
}

pub(super) const ON_OPEN: [Invalid; 42] = {
    use Invalid::*;
    [
        SecondConnect,
        TypeZero,
        Auth,
        PublishQos3,
        PublishWildcard,
        PublishNoTopic,
        PublishIdZero,
        PublishNul,
        PublishNotUtf8,
        PublishDupQos0,
        SubscribeNothing,
        SubscribeFlags,
        SubscribeQos3,
        SubscribeReservedBits,
        SubscribeHashInside,
        SubscribePlusInside,
        SubscribeEmptyFilter,
        SubscribeIdZero,
        SubscribeShareNoLocal,
        SubscribeShareNoName,
        SubscribeNumberZero,
        SubscribeHandling3,
        UnsubscribeNothing,
        UnsubscribeFlags,
        UnsubscribeHashInside,
        UnknownPubRel,
        UnknownPubAck,
        UnknownPubRec,
        UnknownPubComp,
        PubRelFlags,
        PubAckIdZero,
        PingFlags,
        DisconnectFlags,
        AliasZero,
        AliasTooHigh,
        SubscriptionIdFromClient,
        PropertyTwice,
        PropertyUnknown,
        ServersConnAck,
        ServersSubAck,
        ServersPingResp,
        LengthOfFiveBytes,
    ]
};

pub(super) const AS_FIRST: [Invalid; 16] = {
    use Invalid::*;
    [
        FirstIsPublish,
        FirstIsPing,
        ConnectReservedFlag,
        ConnectWillQos3,
        ConnectWillQosWithoutWill,
        ConnectWillRetainWithoutWill,
        ConnectPasswordWithoutUser,
        ConnectOtherName,
        ConnectLevel6,
        ConnectLevel0,
        ConnectShort,
        ConnectLong,
        ConnectWillWildcard,
        ConnectWillNoTopic,
        ConnectIdNotUtf8,
        ConnectFixedFlags,
    ]
};

impl Invalid {
    /// Exists only in version 5.
    pub(super) fn is_new(self) -> bool {
        use Invalid::*;
        matches!(
            self,
            SubscribeShareNoLocal
                | SubscribeNumberZero
                | SubscribeHandling3
                | AliasZero
                | AliasTooHigh
                | SubscriptionIdFromClient
                | PropertyTwice
                | PropertyUnknown
                | Auth
        )
    }

    /// The frame, topics with the prefix in place.
    pub(super) fn bytes(self, version: Version, prefix: &str) -> Vec<u8> {
        use Invalid::*;
        let five = version == Version::V5;
        let topic = format!("a/{prefix}/x{prefix}");
        let publish = |first: u8, topic: &[u8], id: Option<u16>, properties: &[u8]| {
            let mut body = binary(topic);
            body.extend(id.into_iter().flat_map(u16::to_be_bytes));
            if five {
                body.push(properties.len() as u8);
                body.extend(properties);
            }
            body.extend(b"bad");
            frame(first, &body)
        };
        let subscribe = |first: u8, id: u16, properties: &[u8], filter: Option<(&str, u8)>| {
            let mut body = id.to_be_bytes().to_vec();
            if five {
                body.push(properties.len() as u8);
                body.extend(properties);
            }
            if let Some((filter, options)) = filter {
                body.extend(binary(filter.as_bytes()));
                body.extend((first >> 4 == 8).then_some(options));
            }
            frame(first, &body)
        };
        let inside = format!("a/{prefix}/#/x");
        match self {
            SecondConnect => connect(version, prefix, 0b10, 0, &[]),
            TypeZero => vec![0, 0],
            Auth => vec![0xF0, 0],
            PublishQos3 => publish(0x36, topic.as_bytes(), Some(900), &[]),
            PublishWildcard => publish(0x30, format!("a/{prefix}/+").as_bytes(), None, &[]),
            PublishNoTopic => publish(0x30, b"", None, &[]),
            PublishIdZero => publish(0x32, topic.as_bytes(), Some(0), &[]),
            PublishNul => publish(0x30, format!("a/{prefix}/\0").as_bytes(), None, &[]),
            PublishNotUtf8 => publish(0x30, b"a/\xC0\xAF", None, &[]),
            PublishDupQos0 => publish(0x38, topic.as_bytes(), None, &[]),
            SubscribeNothing => subscribe(0x82, 900, &[], None),
            SubscribeFlags => subscribe(0x80, 900, &[], Some((&topic, 0))),
            SubscribeQos3 => subscribe(0x82, 900, &[], Some((&topic, 3))),
            SubscribeReservedBits => {
                subscribe(0x82, 900, &[], Some((&topic, if five { 0x40 } else { 0x04 })))
            }
            SubscribeHashInside => subscribe(0x82, 900, &[], Some((&inside, 0))),
            SubscribePlusInside => subscribe(0x82, 900, &[], Some((&format!("a+/{prefix}"), 0))),
            SubscribeEmptyFilter => subscribe(0x82, 900, &[], Some(("", 0))),
            SubscribeIdZero => subscribe(0x82, 0, &[], Some((&topic, 0))),
            SubscribeShareNoLocal => {
                subscribe(0x82, 900, &[], Some((&format!("$share/g/a/{prefix}s"), 4)))
            }
            SubscribeShareNoName => {
                subscribe(0x82, 900, &[], Some((&format!("$share//{prefix}"), 0)))
            }
            SubscribeNumberZero => subscribe(0x82, 900, &[0x0B, 0], Some((&topic, 0))),
            SubscribeHandling3 => subscribe(0x82, 900, &[], Some((&topic, 0x30))),
            UnsubscribeNothing => subscribe(0xA2, 900, &[], None),
            UnsubscribeFlags => subscribe(0xA0, 900, &[], Some((&topic, 0))),
            UnsubscribeHashInside => subscribe(0xA2, 900, &[], Some((&inside, 0))),
            UnknownPubRel => frame(0x62, &900_u16.to_be_bytes()),
            UnknownPubAck => frame(0x40, &900_u16.to_be_bytes()),
            UnknownPubRec => frame(0x50, &900_u16.to_be_bytes()),
            UnknownPubComp => frame(0x70, &900_u16.to_be_bytes()),
            PubRelFlags => frame(0x60, &900_u16.to_be_bytes()),
            PubAckIdZero => frame(0x40, &[0, 0]),
            PingFlags => vec![0xC1, 0],
            DisconnectFlags => vec![0xE1, 0],
            AliasZero => publish(0x30, topic.as_bytes(), None, &[0x23, 0, 0]),
            AliasTooHigh => publish(0x30, topic.as_bytes(), None, &[0x23, 0xFF, 0xFF]),
            SubscriptionIdFromClient => publish(0x30, topic.as_bytes(), None, &[0x0B, 1]),
            PropertyTwice => publish(0x30, topic.as_bytes(), None, &[0x01, 1, 0x01, 1]),
            PropertyUnknown => publish(0x30, topic.as_bytes(), None, &[0x7F, 1]),
            ServersConnAck => {
                if five {
                    frame(0x20, &[0, 0, 0])
                } else {
                    frame(0x20, &[0, 0])
                }
            }
            ServersSubAck => {
                if five {
                    frame(0x90, &[0, 1, 0, 0])
                } else {
                    frame(0x90, &[0, 1, 0])
                }
            }
            ServersPingResp => vec![0xD0, 0],
            LengthOfFiveBytes => vec![0x30, 0xFF, 0xFF, 0xFF, 0xFF, 0x01],
            FirstIsPublish => publish(0x30, topic.as_bytes(), None, &[]),
            FirstIsPing => vec![0xC0, 0],
            ConnectReservedFlag => connect(version, prefix, 0b11, 0, &[]),
            ConnectWillQos3 => connect(version, prefix, 0b1_1110, 0, &will(five, topic.as_bytes())),
            ConnectWillQosWithoutWill => connect(version, prefix, 0b1010, 0, &[]),
            ConnectWillRetainWithoutWill => connect(version, prefix, 0b10_0010, 0, &[]),
            ConnectPasswordWithoutUser => {
                connect(version, prefix, 0b100_0010, 0, &binary(b"secret"))
            }
            ConnectOtherName => {
                let mut bytes = connect(version, prefix, 0b10, 0, &[]);
                bytes[4] = b'X';
                bytes
            }
            ConnectLevel6 => with_level(connect(version, prefix, 0b10, 0, &[]), version, 6),
            ConnectLevel0 => with_level(connect(version, prefix, 0b10, 0, &[]), version, 0),
            ConnectShort => {
                let whole = connect(version, prefix, 0b1000_0010, 0, &[]);
                frame(0x10, &whole[2..])
            }
            ConnectLong => {
                let whole = connect(version, prefix, 0b10, 0, &[]);
                frame(0x10, &[&whole[2..], b"more"].concat())
            }
            ConnectWillWildcard => connect(version, prefix, 0b110, 0, &will(five, b"a/#")),
            ConnectWillNoTopic => connect(version, prefix, 0b110, 0, &will(five, b"")),
            ConnectIdNotUtf8 => connect_as(version, b"\xC0\xAF", 0b10, 0, &[]),
            ConnectFixedFlags => {
                let mut bytes = connect(version, prefix, 0b10, 0, &[]);
                bytes[0] = 0x11;
                bytes
            }
        }
    }
}

fn connect(version: Version, prefix: &str, flags: u8, keep_alive: u16, rest: &[u8]) -> Vec<u8> {
    connect_as(version, format!("{prefix}-c9").as_bytes(), flags, keep_alive, rest)
}

fn connect_as(version: Version, id: &[u8], flags: u8, keep_alive: u16, rest: &[u8]) -> Vec<u8> {
    let (name, level): (&[u8], u8) = match version {
        Version::V31 => (b"MQIsdp", 3),
        Version::V311 => (b"MQTT", 4),
        Version::V5 => (b"MQTT", 5),
    };
    let mut body = binary(name);
    body.extend([level, flags]);
    body.extend(keep_alive.to_be_bytes());
    body.extend((version == Version::V5).then_some(0));
    body.extend(binary(id));
    body.extend(rest);
    frame(0x10, &body)
}

fn with_level(mut connect: Vec<u8>, version: Version, level: u8) -> Vec<u8> {
    let at = if version == Version::V31 { 10 } else { 8 };
    connect[at] = level;
    connect
}

fn will(five: bool, topic: &[u8]) -> Vec<u8> {
    let mut bytes: Vec<u8> = five.then_some(0).into_iter().collect();
    bytes.extend(binary(topic));
    bytes.extend(binary(b"bad"));
    bytes
}

fn frame(first: u8, body: &[u8]) -> Vec<u8> {
    assert!(body.len() < 128, "one byte of length");
    [&[first, body.len() as u8], body].concat()
}

fn binary(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes(), bytes].concat()
}
