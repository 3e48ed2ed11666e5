//! Random legal packets.

use bytes::Bytes;
use bytestring::ByteString;
use proptest::{collection::vec, option, prelude::*};

use crate::mqtt::{
    check::{self, Sender},
    packet::*,
};

fn text() -> impl Strategy<Value = ByteString> {
    "[a-z\u{e9}\u{feff}\u{1f600}/+#$ ]{0,12}".prop_map(ByteString::from)
}

fn topic() -> impl Strategy<Value = ByteString> {
    "[a-z\u{e9}/$ ]{1,20}".prop_map(ByteString::from)
}

fn data() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..40).prop_map(Bytes::from)
}

fn packet_id() -> impl Strategy<Value = PacketId> {
    (1..=u16::MAX).prop_filter_map("never 0", PacketId::new)
}

fn qos() -> impl Strategy<Value = Qos> {
    prop_oneof![Just(Qos::AtMostOnce), Just(Qos::AtLeastOnce), Just(Qos::ExactlyOnce)]
}

fn user() -> impl Strategy<Value = UserProperties> {
    vec((text(), text()), 0..4)
}

fn reason(legal: impl Fn(Reason) -> bool) -> impl Strategy<Value = Reason> {
    let codes: Vec<Reason> = (0..=255).map(Reason).filter(|reason| legal(*reason)).collect();
    prop::sample::select(codes)
}

fn message_properties() -> impl Strategy<Value = PublishProperties> {
    let fields = (
        option::of(0..=1u8),
        option::of(any::<u32>()),
        option::of(text()),
        option::of(topic()),
        option::of(data()),
        user(),
    );
    fields.prop_map(
        |(payload_format, message_expiry, content_type, response_topic, correlation_data, user)| {
            PublishProperties {
                payload_format,
                message_expiry,
                content_type,
                response_topic,
                correlation_data,
                user_properties: user,
            }
        },
    )
}

fn will() -> impl Strategy<Value = Will> {
    (topic(), data(), qos(), any::<bool>(), any::<u32>(), message_properties()).prop_map(
        |(topic, payload, qos, retain, delay, properties)| Will {
            topic,
            payload,
            qos,
            retain,
            delay,
            properties,
        },
    )
}

fn connect() -> impl Strategy<Value = Connect> {
    let plain = (text(), any::<bool>(), any::<u16>(), option::of(will()));
    let login = (option::of(text()), option::of(data()), option::of((text(), option::of(data()))));
    let limits = (option::of(any::<u32>()), option::of(1..=u16::MAX), option::of(1..=u32::MAX));
    let rest = (any::<u16>(), any::<bool>(), any::<bool>(), user());
    (plain, login, limits, rest).prop_map(|(plain, login, limits, rest)| Connect {
        version: Version::V5,
        client_id: plain.0,
        clean_start: plain.1,
        keep_alive: plain.2,
        will: plain.3,
        user_name: login.0,
        password: login.1,
        session_expiry: limits.0,
        receive_maximum: limits.1,
        maximum_packet_size: limits.2,
        topic_alias_maximum: rest.0,
        request_response_information: rest.1,
        request_problem_information: rest.2,
        user_properties: rest.3,
        authentication_method: login.2.as_ref().map(|(method, _)| method.clone()),
        authentication_data: login.2.and_then(|(_, data)| data),
    })
}

fn connack() -> impl Strategy<Value = ConnAck> {
    let numbers = (
        option::of(any::<u32>()),
        option::of(1..=u16::MAX),
        option::of(0..=1u8),
        option::of(1..=u32::MAX),
        option::of(any::<u16>()),
        option::of(any::<u16>()),
    );
    let flags = (
        option::of(any::<bool>()),
        option::of(any::<bool>()),
        option::of(any::<bool>()),
        option::of(any::<bool>()),
    );
    let texts = (
        option::of(text()),
        option::of(text()),
        option::of(text()),
        option::of(text()),
        option::of(text()),
        option::of(data()),
        user(),
    );
    let result = (any::<bool>(), reason(check::is_connack_reason));
    (result, numbers, flags, texts).prop_map(|((present, reason), numbers, flags, texts)| ConnAck {
        session_present: present && !reason.is_error(),
        reason,
        properties: ConnAckProperties {
            session_expiry: numbers.0,
            receive_maximum: numbers.1,
            maximum_qos: numbers.2,
            maximum_packet_size: numbers.3,
            topic_alias_maximum: numbers.4,
            server_keep_alive: numbers.5,
            retain_available: flags.0,
            wildcard_available: flags.1,
            subscription_ids_available: flags.2,
            shared_available: flags.3,
            assigned_client_id: texts.0,
            reason_string: texts.1,
            response_information: texts.2,
            server_reference: texts.3,
            authentication_method: texts.4,
            authentication_data: texts.5,
            user_properties: texts.6,
        },
    })
}

pub(super) fn publish() -> impl Strategy<Value = Publish> {
    let own = (any::<bool>(), qos(), any::<bool>(), packet_id());
    let alias = (option::of(1..=u16::MAX), any::<bool>(), vec(1..=268_435_455u32, 0..3));
    (own, alias, topic(), data(), message_properties()).prop_map(
        |((dup, qos, retain, id), (alias, alone, ids), topic, payload, properties)| Publish {
            dup: dup && qos != Qos::AtMostOnce,
            qos,
            retain,
            topic: if alone && alias.is_some() { ByteString::new() } else { topic },
            packet_id: (qos != Qos::AtMostOnce).then_some(id),
            payload,
            properties,
            topic_alias: alias,
            subscription_ids: ids,
        },
    )
}

fn ack(legal: impl Fn(Reason) -> bool) -> impl Strategy<Value = Ack> {
    (packet_id(), reason(legal), option::of(text()), user()).prop_map(
        |(packet_id, reason, reason_string, user_properties)| Ack {
            packet_id,
            reason,
            reason_string,
            user_properties,
        },
    )
}

fn options() -> impl Strategy<Value = SubscriptionOptions> {
    (qos(), any::<bool>(), 0..=2u8).prop_map(|(qos, keep, retain_handling)| SubscriptionOptions {
        qos,
        no_local: keep,
        retain_as_published: keep,
        retain_handling,
    })
}

fn subscribe() -> impl Strategy<Value = Subscribe> {
    let filter = (text(), options());
    let filter = filter.prop_map(|(filter, options)| SubscribeFilter { filter, options });
    (packet_id(), vec(filter, 1..4), option::of(1..=268_435_455u32), user()).prop_map(
        |(packet_id, filters, subscription_id, user_properties)| Subscribe {
            packet_id,
            filters,
            subscription_id,
            user_properties,
        },
    )
}

fn unsubscribe() -> impl Strategy<Value = Unsubscribe> {
    (packet_id(), vec(text(), 1..4), user()).prop_map(|(packet_id, filters, user_properties)| {
        Unsubscribe { packet_id, filters, user_properties }
    })
}

fn suback(legal: impl Fn(Reason) -> bool) -> impl Strategy<Value = SubAck> {
    (packet_id(), vec(reason(legal), 1..4), option::of(text()), user()).prop_map(
        |(packet_id, reasons, reason_string, user_properties)| SubAck {
            packet_id,
            reasons,
            reason_string,
            user_properties,
        },
    )
}

fn disconnect(sender: Sender) -> impl Strategy<Value = Disconnect> {
    let own = (option::of(any::<u32>()), option::of(text()));
    let reason = reason(move |reason| check::is_disconnect_reason(reason, sender));
    (reason, own, option::of(text()), user()).prop_map(
        move |(reason, (expiry, reference), reason_string, user_properties)| Disconnect {
            reason,
            session_expiry: expiry.filter(|_| sender == Sender::Client),
            reason_string,
            user_properties,
            server_reference: reference.filter(|_| sender == Sender::Server),
        },
    )
}

fn auth(sender: Sender) -> impl Strategy<Value = Auth> {
    let reason = reason(move |reason| check::is_auth_reason(reason, sender));
    (reason, text(), option::of(data()), option::of(text()), user()).prop_map(
        |(reason, method, data, reason_string, user_properties)| Auth {
            reason,
            method: Some(method),
            data,
            reason_string,
            user_properties,
        },
    )
}

/// A packet a client may send after CONNECT, in version 5.
pub(crate) fn from_client() -> impl Strategy<Value = Packet> {
    let publish = publish().prop_map(|publish| Publish { subscription_ids: Vec::new(), ..publish });
    prop_oneof![
        publish.prop_map(Packet::Publish),
        acks(),
        subscribe().prop_map(Packet::Subscribe),
        unsubscribe().prop_map(Packet::Unsubscribe),
        Just(Packet::PingReq),
        disconnect(Sender::Client).prop_map(Packet::Disconnect),
        auth(Sender::Client).prop_map(Packet::Auth),
    ]
}

/// A packet a server may send, in version 5.
pub(super) fn from_server() -> impl Strategy<Value = Packet> {
    prop_oneof![
        connack().prop_map(|connack| Packet::ConnAck(Box::new(connack))),
        publish().prop_map(Packet::Publish),
        acks(),
        suback(check::is_suback_reason).prop_map(Packet::SubAck),
        suback(check::is_unsuback_reason).prop_map(Packet::UnsubAck),
        Just(Packet::PingResp),
        disconnect(Sender::Server).prop_map(Packet::Disconnect),
        auth(Sender::Server).prop_map(Packet::Auth),
    ]
}

/// CONNECT of version 5.
pub(crate) fn first() -> impl Strategy<Value = Packet> {
    connect().prop_map(|connect| Packet::Connect(Box::new(connect)))
}

fn acks() -> impl Strategy<Value = Packet> {
    prop_oneof![
        ack(check::is_receive_reason).prop_map(Packet::PubAck),
        ack(check::is_receive_reason).prop_map(Packet::PubRec),
        ack(check::is_release_reason).prop_map(Packet::PubRel),
        ack(check::is_release_reason).prop_map(Packet::PubComp),
    ]
}

/// What is left of a packet when an older version writes it; `None`: that version does not have it.
pub(crate) fn in_version(packet: &Packet, version: Version, from: Sender) -> Option<Packet> {
    if version == Version::V5 {
        return Some(packet.clone());
    }
    let plain_ack = |ack: &Ack| Ack::new(ack.packet_id, Reason::SUCCESS);
    let code = |reason: &Reason| if reason.is_error() { Reason(0x80) } else { *reason };
    Some(match packet.clone() {
        Packet::Connect(mut connect) => {
            connect.version = version;
            if let Some(will) = &mut connect.will {
                will.delay = 0;
                will.properties = PublishProperties::default();
            }
            let password = connect.password.filter(|_| connect.user_name.is_some());
            Packet::Connect(Box::new(Connect {
                password,
                session_expiry: None,
                receive_maximum: None,
                maximum_packet_size: None,
                topic_alias_maximum: 0,
                request_response_information: false,
                request_problem_information: true,
                user_properties: Vec::new(),
                authentication_method: None,
                authentication_data: None,
                ..*connect
            }))
        }
        Packet::ConnAck(mut connack) => {
            connack.properties = ConnAckProperties::default();
            if connack.reason.is_error() {
                connack.reason = Reason::SERVER_UNAVAILABLE;
            }
            connack.session_present &= version == Version::V311;
            Packet::ConnAck(connack)
        }
        Packet::Publish(publish) if publish.topic.is_empty() => return None,
        Packet::Publish(publish) => Packet::Publish(Publish {
            properties: PublishProperties::default(),
            topic_alias: None,
            subscription_ids: Vec::new(),
            ..publish
        }),
        Packet::PubAck(ack) => Packet::PubAck(plain_ack(&ack)),
        Packet::PubRec(ack) => Packet::PubRec(plain_ack(&ack)),
        Packet::PubRel(ack) => Packet::PubRel(plain_ack(&ack)),
        Packet::PubComp(ack) => Packet::PubComp(plain_ack(&ack)),
        Packet::Subscribe(mut subscribe) => {
            subscribe.subscription_id = None;
            subscribe.user_properties.clear();
            for filter in &mut subscribe.filters {
                filter.options =
                    SubscriptionOptions { qos: filter.options.qos, ..Default::default() };
            }
            Packet::Subscribe(subscribe)
        }
        Packet::Unsubscribe(mut unsubscribe) => {
            unsubscribe.user_properties.clear();
            Packet::Unsubscribe(unsubscribe)
        }
        Packet::SubAck(suback) => Packet::SubAck(SubAck {
            packet_id: suback.packet_id,
            reasons: suback.reasons.iter().map(code).collect(),
            reason_string: None,
            user_properties: Vec::new(),
        }),
        Packet::UnsubAck(unsuback) => Packet::UnsubAck(SubAck {
            packet_id: unsuback.packet_id,
            reasons: Vec::new(),
            reason_string: None,
            user_properties: Vec::new(),
        }),
        Packet::Disconnect(_) if from == Sender::Client => {
            Packet::Disconnect(Disconnect::new(Reason::SUCCESS))
        }
        Packet::Disconnect(_) | Packet::Auth(_) => return None,
        packet @ (Packet::PingReq | Packet::PingResp) => packet,
    })
}
