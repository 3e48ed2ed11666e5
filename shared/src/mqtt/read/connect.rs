//! CONNECT and CONNACK (3.1, 3.2).

use bytestring::ByteString;

use super::{Cursor, Malformed};
use crate::mqtt::{
    check,
    packet::{ConnAck, ConnAckProperties, Connect, PublishProperties, Qos, Reason, Version, Will},
    property::{self, Value, id},
};

const WILL: u8 = 0b0000_0100;
const WILL_QOS: u8 = 0b0001_1000;
const WILL_RETAIN: u8 = 0b0010_0000;
const PASSWORD: u8 = 0b0100_0000;
const USER_NAME: u8 = 0b1000_0000;

/// `answer_as` becomes the version as soon as it is known: a CONNECT that is refused later is answered in it.
pub(super) fn connect(
    cursor: &mut Cursor,
    answer_as: &mut Option<Version>,
) -> Result<Connect, Malformed> {
    let version = protocol(cursor, answer_as)?;
    let flags = cursor.u8()?;
    check_flags(flags, version)?;
    let mut connect = Connect {
        version,
        client_id: ByteString::new(),
        clean_start: flags & 0b10 != 0,
        keep_alive: cursor.u16()?,
        will: None,
        user_name: None,
        password: None,
        session_expiry: None,
        receive_maximum: None,
        maximum_packet_size: None,
        topic_alias_maximum: 0,
        request_response_information: false,
        request_problem_information: true,
        user_properties: Vec::new(),
        authentication_method: None,
        authentication_data: None,
    };
    if version == Version::V5 {
        connect_properties(cursor, &mut connect)?;
    }
    connect.client_id = cursor.text()?;
    if flags & WILL != 0 {
        connect.will = Some(will(cursor, flags, version)?);
    }
    // 3.1: the remaining length takes precedence over these flags, both may be missing (3.1, "User name and password flags").
    let may_lack = version == Version::V31;
    if flags & USER_NAME != 0 && !(may_lack && cursor.is_empty()) {
        connect.user_name = Some(cursor.text()?);
    }
    if flags & PASSWORD != 0 && !(may_lack && cursor.is_empty()) {
        connect.password = Some(cursor.binary()?);
    }
    Ok(connect)
}

/// Protocol name and level (3.1.2.1, 3.1.2.2).
fn protocol(cursor: &mut Cursor, answer_as: &mut Option<Version>) -> Result<Version, Malformed> {
    let name = cursor.binary()?;
    let level = cursor.u8()?;
    let version = match (name.as_ref(), level) {
        (b"MQTT", 5) => Version::V5,
        (b"MQTT", 4) => Version::V311,
        (b"MQIsdp", 3) => Version::V31,
        (b"MQTT" | b"MQIsdp", _) => {
            // A later version reads version 5's answer best; bridges set the highest bit of level 3 and 4.
            let later = name.as_ref() == b"MQTT" && (6..0x80).contains(&level);
            *answer_as = Some(if later { Version::V5 } else { Version::V311 });
            return Err(Malformed::new(
                Reason::UNSUPPORTED_PROTOCOL_VERSION,
                "unknown protocol level (MQTT-3.1.2-2)",
            ));
        }
        _ => return Err(Malformed::protocol("protocol name is not MQTT (MQTT-3.1.2-1)")),
    };
    *answer_as = Some(version);
    Ok(version)
}

fn check_flags(flags: u8, version: Version) -> Result<(), Malformed> {
    if flags & 1 != 0 && version != Version::V31 {
        return Err(Malformed::packet("reserved CONNECT flag (MQTT-3.1.2-3)"));
    }
    // 3.1 does not say that they are 0, only that they mean nothing.
    if version != Version::V31 && flags & WILL == 0 && flags & (WILL_QOS | WILL_RETAIN) != 0 {
        return Err(Malformed::packet("will QoS or retain without a will (MQTT-3.1.2-11)"));
    }
    if flags & WILL_QOS == WILL_QOS {
        return Err(Malformed::packet("will QoS 3 (MQTT-3.1.2-12)"));
    }
    if version != Version::V5 && flags & PASSWORD != 0 && flags & USER_NAME == 0 {
        return Err(Malformed::packet("password without user name (MQTT-3.1.2-22 of 3.1.1)"));
    }
    Ok(())
}

fn connect_properties(cursor: &mut Cursor, connect: &mut Connect) -> Result<(), Malformed> {
    property::read(cursor, property::CONNECT, |id, value| {
        match (id, value) {
            (id::SESSION_EXPIRY, Value::Four(seconds)) => connect.session_expiry = Some(seconds),
            (id::RECEIVE_MAXIMUM, Value::Two(count)) => connect.receive_maximum = Some(count),
            (id::MAXIMUM_PACKET_SIZE, Value::Four(bytes)) => {
                connect.maximum_packet_size = Some(bytes);
            }
            (id::TOPIC_ALIAS_MAXIMUM, Value::Two(count)) => connect.topic_alias_maximum = count,
            (id::REQUEST_RESPONSE_INFORMATION, Value::Byte(flag)) => {
                connect.request_response_information = flag == 1;
            }
            (id::REQUEST_PROBLEM_INFORMATION, Value::Byte(flag)) => {
                connect.request_problem_information = flag == 1;
            }
            (id::USER_PROPERTY, Value::Pair(name, value)) => {
                property::push_user(&mut connect.user_properties, name, value)?;
            }
            (id::AUTHENTICATION_METHOD, Value::Text(text)) => {
                connect.authentication_method = Some(text);
            }
            (id::AUTHENTICATION_DATA, Value::Binary(data)) => {
                connect.authentication_data = Some(data);
            }
            _ => {}
        }
        Ok(())
    })?;
    if connect.authentication_data.is_some() && connect.authentication_method.is_none() {
        return Err(Malformed::protocol(
            "authentication data without method (MQTT 5, 3.1.2.11.10)",
        ));
    }
    Ok(())
}

fn will(cursor: &mut Cursor, flags: u8, version: Version) -> Result<Will, Malformed> {
    let mut delay = 0;
    let mut properties = PublishProperties::default();
    if version == Version::V5 {
        property::read(cursor, property::WILL, |id, value| match (id, value) {
            (id::WILL_DELAY, Value::Four(seconds)) => {
                delay = seconds;
                Ok(())
            }
            (id, value) => property::set_message(&mut properties, id, value),
        })?;
    }
    Ok(Will {
        topic: cursor.topic(false)?,
        payload: cursor.binary()?,
        qos: match (flags & WILL_QOS) >> 3 {
            0 => Qos::AtMostOnce,
            1 => Qos::AtLeastOnce,
            _ => Qos::ExactlyOnce,
        },
        retain: flags & WILL_RETAIN != 0,
        delay,
        properties,
    })
}

pub(super) fn connack(cursor: &mut Cursor, version: Version) -> Result<ConnAck, Malformed> {
    let flags = cursor.u8()?;
    let code = cursor.u8()?;
    if version != Version::V31 && flags & !1 != 0 {
        return Err(Malformed::packet("reserved CONNACK flags (MQTT-3.2.2-1)"));
    }
    let mut connack = ConnAck {
        session_present: version != Version::V31 && flags & 1 != 0,
        reason: Reason(code),
        properties: ConnAckProperties::default(),
    };
    if version == Version::V5 {
        if !check::is_connack_reason(connack.reason) {
            return Err(Malformed::protocol("reason code is not legal in CONNACK (table 3-1)"));
        }
        connack_properties(cursor, &mut connack.properties)?;
    } else {
        connack.reason = match code {
            0 => Reason::SUCCESS,
            1 => Reason::UNSUPPORTED_PROTOCOL_VERSION,
            2 => Reason::CLIENT_ID_NOT_VALID,
            3 => Reason::SERVER_UNAVAILABLE,
            4 => Reason::BAD_USER_NAME_OR_PASSWORD,
            5 => Reason::NOT_AUTHORIZED,
            _ => {
                return Err(Malformed::protocol("return code is not legal in CONNACK (table 3.1)"));
            }
        };
    }
    if connack.session_present && connack.reason.is_error() {
        return Err(Malformed::protocol("session present in a refusal (MQTT-3.2.2-6)"));
    }
    Ok(connack)
}

fn connack_properties(
    cursor: &mut Cursor,
    properties: &mut ConnAckProperties,
) -> Result<(), Malformed> {
    property::read(cursor, property::CONNACK, |id, value| {
        match (id, value) {
            (id::SESSION_EXPIRY, Value::Four(v)) => properties.session_expiry = Some(v),
            (id::RECEIVE_MAXIMUM, Value::Two(v)) => properties.receive_maximum = Some(v),
            (id::MAXIMUM_QOS, Value::Byte(v)) => properties.maximum_qos = Some(v),
            (id::RETAIN_AVAILABLE, Value::Byte(v)) => properties.retain_available = Some(v == 1),
            (id::MAXIMUM_PACKET_SIZE, Value::Four(v)) => properties.maximum_packet_size = Some(v),
            (id::ASSIGNED_CLIENT_ID, Value::Text(v)) => properties.assigned_client_id = Some(v),
            (id::TOPIC_ALIAS_MAXIMUM, Value::Two(v)) => properties.topic_alias_maximum = Some(v),
            (id::WILDCARD_AVAILABLE, Value::Byte(v)) => {
                properties.wildcard_available = Some(v == 1);
            }
            (id::SUBSCRIPTION_IDS_AVAILABLE, Value::Byte(v)) => {
                properties.subscription_ids_available = Some(v == 1);
            }
            (id::SHARED_AVAILABLE, Value::Byte(v)) => properties.shared_available = Some(v == 1),
            (id::SERVER_KEEP_ALIVE, Value::Two(v)) => properties.server_keep_alive = Some(v),
            (id::RESPONSE_INFORMATION, Value::Text(v)) => {
                properties.response_information = Some(v);
            }
            (id::SERVER_REFERENCE, Value::Text(v)) => properties.server_reference = Some(v),
            (id::AUTHENTICATION_METHOD, Value::Text(v)) => {
                properties.authentication_method = Some(v);
            }
            (id::AUTHENTICATION_DATA, Value::Binary(v)) => {
                properties.authentication_data = Some(v);
            }
            (id, value) => property::set_answer(
                &mut properties.reason_string,
                &mut properties.user_properties,
                id,
                value,
            )?,
        }
        Ok(())
    })
}
