//! CONNECT and CONNACK (3.1, 3.2).

use bytes::{BufMut, BytesMut};

use super::{
    delivery::encode_shared,
    primitive::{Properties, put_binary, put_integer, put_text},
};
use crate::mqtt::{
    packet::{ConnAck, ConnAckProperties, Connect, Qos, Reason, Version, Will},
    property::id,
};

pub(super) fn connect(connect: &Connect, version: Version) -> BytesMut {
    let mut body = BytesMut::new();
    let (name, level) = match version {
        Version::V31 => ("MQIsdp", 3),
        Version::V311 => ("MQTT", 4),
        Version::V5 => ("MQTT", 5),
    };
    put_text(name, &mut body);
    body.put_u8(level);
    body.put_u8(flags(connect));
    body.put_u16(connect.keep_alive);
    if version == Version::V5 {
        connect_properties(connect).put(&mut body);
    }
    put_text(&connect.client_id, &mut body);
    if let Some(will) = &connect.will {
        if version == Version::V5 {
            will_properties(will, &mut body);
        }
        put_text(&will.topic, &mut body);
        put_binary(&will.payload, &mut body);
    }
    if let Some(user_name) = &connect.user_name {
        put_text(user_name, &mut body);
    }
    if let Some(password) = &connect.password {
        put_binary(password, &mut body);
    }
    body
}

fn flags(connect: &Connect) -> u8 {
    let mut flags = u8::from(connect.clean_start) << 1;
    if let Some(will) = &connect.will {
        let qos = match will.qos {
            Qos::AtMostOnce => 0,
            Qos::AtLeastOnce => 1,
            Qos::ExactlyOnce => 2,
        };
        flags |= 0b100 | qos << 3 | u8::from(will.retain) << 5;
    }
    flags | u8::from(connect.password.is_some()) << 6 | u8::from(connect.user_name.is_some()) << 7
}

fn connect_properties(connect: &Connect) -> Properties {
    let mut out = Properties::default();
    if let Some(seconds) = connect.session_expiry {
        out.four(id::SESSION_EXPIRY, seconds);
    }
    if let Some(count) = connect.receive_maximum {
        out.two(id::RECEIVE_MAXIMUM, count);
    }
    if let Some(size) = connect.maximum_packet_size {
        out.four(id::MAXIMUM_PACKET_SIZE, size);
    }
    if connect.topic_alias_maximum > 0 {
        out.two(id::TOPIC_ALIAS_MAXIMUM, connect.topic_alias_maximum);
    }
    if connect.request_response_information {
        out.byte(id::REQUEST_RESPONSE_INFORMATION, 1);
    }
    if !connect.request_problem_information {
        out.byte(id::REQUEST_PROBLEM_INFORMATION, 0);
    }
    out.user(&connect.user_properties);
    if let Some(method) = &connect.authentication_method {
        out.text(id::AUTHENTICATION_METHOD, method);
    }
    if let Some(data) = &connect.authentication_data {
        out.binary(id::AUTHENTICATION_DATA, data);
    }
    out
}

fn will_properties(will: &Will, body: &mut BytesMut) {
    let mut own = Properties::default();
    if will.delay > 0 {
        own.four(id::WILL_DELAY, will.delay);
    }
    if let Some(seconds) = will.properties.message_expiry {
        own.four(id::MESSAGE_EXPIRY, seconds);
    }
    let rest = encode_shared(&will.properties);
    put_integer(own.as_slice().len() + rest.len(), body);
    body.put_slice(own.as_slice());
    body.put_slice(&rest);
}

pub(super) fn connack(connack: &ConnAck, version: Version) -> BytesMut {
    let mut body = BytesMut::new();
    body.put_u8(u8::from(connack.session_present && version != Version::V31));
    if version == Version::V5 {
        body.put_u8(connack.reason.0);
        connack_properties(&connack.properties).put(&mut body);
    } else {
        body.put_u8(return_code(connack.reason));
    }
    body
}

/// The return code of 3.1 and 3.1.1 nearest to a reason code (table 3.1 of 3.1.1).
fn return_code(reason: Reason) -> u8 {
    match reason {
        Reason::SUCCESS => 0,
        Reason::UNSUPPORTED_PROTOCOL_VERSION => 1,
        Reason::CLIENT_ID_NOT_VALID => 2,
        Reason::BAD_USER_NAME_OR_PASSWORD | Reason::BAD_AUTHENTICATION_METHOD => 4,
        Reason::NOT_AUTHORIZED | Reason::BANNED => 5,
        _ => 3,
    }
}

fn connack_properties(properties: &ConnAckProperties) -> Properties {
    let mut out = Properties::default();
    let mut four = |id, value: Option<u32>| {
        if let Some(value) = value {
            out.four(id, value);
        }
    };
    four(id::SESSION_EXPIRY, properties.session_expiry);
    four(id::MAXIMUM_PACKET_SIZE, properties.maximum_packet_size);
    let mut two = |id, value: Option<u16>| {
        if let Some(value) = value {
            out.two(id, value);
        }
    };
    two(id::RECEIVE_MAXIMUM, properties.receive_maximum);
    two(id::TOPIC_ALIAS_MAXIMUM, properties.topic_alias_maximum);
    two(id::SERVER_KEEP_ALIVE, properties.server_keep_alive);
    let mut byte = |id, value: Option<u8>| {
        if let Some(value) = value {
            out.byte(id, value);
        }
    };
    byte(id::MAXIMUM_QOS, properties.maximum_qos);
    byte(id::RETAIN_AVAILABLE, properties.retain_available.map(u8::from));
    byte(id::WILDCARD_AVAILABLE, properties.wildcard_available.map(u8::from));
    byte(id::SUBSCRIPTION_IDS_AVAILABLE, properties.subscription_ids_available.map(u8::from));
    byte(id::SHARED_AVAILABLE, properties.shared_available.map(u8::from));
    let mut text = |id, value: Option<&bytestring::ByteString>| {
        if let Some(value) = value {
            out.text(id, value);
        }
    };
    text(id::ASSIGNED_CLIENT_ID, properties.assigned_client_id.as_ref());
    text(id::RESPONSE_INFORMATION, properties.response_information.as_ref());
    text(id::SERVER_REFERENCE, properties.server_reference.as_ref());
    text(id::AUTHENTICATION_METHOD, properties.authentication_method.as_ref());
    if let Some(data) = &properties.authentication_data {
        out.binary(id::AUTHENTICATION_DATA, data);
    }
    out.answer(properties.reason_string.as_ref(), &properties.user_properties);
    out
}
