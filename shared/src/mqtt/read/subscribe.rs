//! SUBSCRIBE, SUBACK, UNSUBSCRIBE, UNSUBACK (3.8 to 3.11).

use super::{Cursor, Malformed};
use crate::mqtt::{
    check,
    packet::{
        Qos, Reason, SubAck, Subscribe, SubscribeFilter, SubscriptionOptions, Unsubscribe, Version,
    },
    property::{self, Value, id},
};

pub(super) fn subscribe(cursor: &mut Cursor, version: Version) -> Result<Subscribe, Malformed> {
    let mut subscribe = Subscribe {
        packet_id: cursor.packet_id()?,
        filters: Vec::new(),
        subscription_id: None,
        user_properties: Vec::new(),
    };
    if version == Version::V5 {
        property::read(cursor, property::SUBSCRIBE, |id, value| match (id, value) {
            (id::SUBSCRIPTION_ID, Value::Integer(number)) => {
                subscribe.subscription_id = Some(number);
                Ok(())
            }
            (_, Value::Pair(name, value)) => {
                property::push_user(&mut subscribe.user_properties, name, value)
            }
            _ => Ok(()),
        })?;
    }
    while !cursor.is_empty() {
        room_for_filter(subscribe.filters.len())?;
        let filter = cursor.text()?;
        let options = options(cursor.u8()?, version)?;
        if options.no_local && filter.starts_with("$share/") {
            return Err(Malformed::protocol("no local on a shared subscription (MQTT-3.8.3-4)"));
        }
        subscribe.filters.push(SubscribeFilter { filter, options });
    }
    if subscribe.filters.is_empty() {
        return Err(Malformed::protocol("SUBSCRIBE without a filter (MQTT-3.8.3-2)"));
    }
    Ok(subscribe)
}

fn room_for_filter(filters: usize) -> Result<(), Malformed> {
    if filters >= check::MAX_FILTERS {
        return Err(Malformed::new(Reason::QUOTA_EXCEEDED, "too many filters in one packet"));
    }
    Ok(())
}

/// Subscription options (3.8.3.1); before version 5 only a QoS.
fn options(byte: u8, version: Version) -> Result<SubscriptionOptions, Malformed> {
    let reserved = if version == Version::V5 { 0b1100_0000 } else { 0b1111_1100 };
    if byte & reserved != 0 {
        return Err(Malformed::packet("reserved bits of the subscription options (MQTT-3.8.3-5)"));
    }
    let qos = match byte & 0b11 {
        0 => Qos::AtMostOnce,
        1 => Qos::AtLeastOnce,
        2 => Qos::ExactlyOnce,
        _ => return Err(Malformed::packet("subscription with QoS 3 (MQTT-3.8.3-4 of 3.1.1)")),
    };
    let retain_handling = (byte >> 4) & 0b11;
    if retain_handling == 3 {
        return Err(Malformed::protocol("retain handling 3 (MQTT 5, 3.8.3.1)"));
    }
    Ok(SubscriptionOptions {
        qos,
        no_local: byte & 0b100 != 0,
        retain_as_published: byte & 0b1000 != 0,
        retain_handling,
    })
}

pub(super) fn unsubscribe(cursor: &mut Cursor, version: Version) -> Result<Unsubscribe, Malformed> {
    let mut unsubscribe = Unsubscribe {
        packet_id: cursor.packet_id()?,
        filters: Vec::new(),
        user_properties: Vec::new(),
    };
    if version == Version::V5 {
        property::read(cursor, property::UNSUBSCRIBE, |_, value| match value {
            Value::Pair(name, value) => {
                property::push_user(&mut unsubscribe.user_properties, name, value)
            }
            _ => Ok(()),
        })?;
    }
    while !cursor.is_empty() {
        room_for_filter(unsubscribe.filters.len())?;
        unsubscribe.filters.push(cursor.text()?);
    }
    if unsubscribe.filters.is_empty() {
        return Err(Malformed::protocol("UNSUBSCRIBE without a filter (MQTT-3.10.3-2)"));
    }
    Ok(unsubscribe)
}

pub(super) fn suback(cursor: &mut Cursor, version: Version) -> Result<SubAck, Malformed> {
    let suback = answer(cursor, version)?;
    let legal = |reason: &Reason| match version {
        Version::V5 => check::is_suback_reason(*reason),
        _ => matches!(reason.0, 0..=2 | 0x80),
    };
    if suback.reasons.is_empty() || !suback.reasons.iter().all(legal) {
        return Err(Malformed::protocol("SUBACK without or with an unknown reason code"));
    }
    Ok(suback)
}

pub(super) fn unsuback(cursor: &mut Cursor, version: Version) -> Result<SubAck, Malformed> {
    let unsuback = answer(cursor, version)?;
    let legal = match version {
        Version::V5 => {
            !unsuback.reasons.is_empty()
                && unsuback.reasons.iter().all(|reason| check::is_unsuback_reason(*reason))
        }
        _ => unsuback.reasons.is_empty(),
    };
    if legal {
        Ok(unsuback)
    } else {
        Err(Malformed::protocol("UNSUBACK with illegal reason codes"))
    }
}

fn answer(cursor: &mut Cursor, version: Version) -> Result<SubAck, Malformed> {
    let mut answer = SubAck {
        packet_id: cursor.packet_id()?,
        reasons: Vec::new(),
        reason_string: None,
        user_properties: Vec::new(),
    };
    if version == Version::V5 {
        property::read(cursor, property::ACK, |id, value| {
            property::set_answer(&mut answer.reason_string, &mut answer.user_properties, id, value)
        })?;
    }
    while !cursor.is_empty() {
        answer.reasons.push(Reason(cursor.u8()?));
    }
    Ok(answer)
}
