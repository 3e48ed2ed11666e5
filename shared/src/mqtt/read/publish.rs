//! PUBLISH (3.3) and its acknowledgements (3.4 to 3.7).

use super::{Cursor, Malformed};
use crate::mqtt::{
    check::{self, Sender},
    packet::{Ack, Publish, Qos, Reason, Version},
    property::{self, Value, id},
};

/// The hot path: three slices of the read buffer, no copy, no property block unless there is one.
pub(super) fn publish(
    first: u8,
    mut cursor: Cursor,
    version: Version,
    from: Sender,
) -> Result<Publish, Malformed> {
    let dup = first & 0b1000 != 0;
    let qos = match (first >> 1) & 0b11 {
        0 if dup => return Err(Malformed::packet("DUP with QoS 0 (MQTT-3.3.1-2)")),
        0 => Qos::AtMostOnce,
        1 => Qos::AtLeastOnce,
        2 => Qos::ExactlyOnce,
        _ => return Err(Malformed::packet("QoS 3 (MQTT-3.3.1-4)")),
    };
    let topic = cursor.topic(version == Version::V5)?;
    let packet_id = if qos == Qos::AtMostOnce { None } else { Some(cursor.packet_id()?) };
    let mut publish =
        Publish { dup, qos, retain: first & 1 != 0, topic, packet_id, ..Publish::default() };
    if version == Version::V5 {
        properties(&mut cursor, &mut publish, from)?;
        if publish.topic.is_empty() && publish.topic_alias.is_none() {
            return Err(Malformed::protocol("neither topic nor topic alias (MQTT 5, 3.3.2.1)"));
        }
    }
    publish.payload = cursor.rest();
    Ok(publish)
}

fn properties(cursor: &mut Cursor, publish: &mut Publish, from: Sender) -> Result<(), Malformed> {
    property::read(cursor, property::PUBLISH, |id, value| match (id, value) {
        (id::TOPIC_ALIAS, Value::Two(0)) => {
            Err(Malformed::new(Reason::TOPIC_ALIAS_INVALID, "topic alias is 0 (MQTT-3.3.2-8)"))
        }
        (id::TOPIC_ALIAS, Value::Two(alias)) => {
            publish.topic_alias = Some(alias);
            Ok(())
        }
        (id::SUBSCRIPTION_ID, Value::Integer(number)) => {
            if from == Sender::Client {
                return Err(Malformed::protocol(
                    "subscription identifier from a client (MQTT-3.3.4-6)",
                ));
            }
            if publish.subscription_ids.len() >= check::MAX_SUBSCRIPTION_IDS {
                return Err(Malformed::new(Reason::QUOTA_EXCEEDED, "too many subscription ids"));
            }
            publish.subscription_ids.push(number);
            Ok(())
        }
        (id, value) => property::set_message(&mut publish.properties, id, value),
    })
}

/// `receive`: PUBACK or PUBREC, else PUBREL or PUBCOMP.
pub(super) fn ack(cursor: &mut Cursor, version: Version, receive: bool) -> Result<Ack, Malformed> {
    let mut ack = Ack::new(cursor.packet_id()?, Reason::SUCCESS);
    if version != Version::V5 || cursor.is_empty() {
        return Ok(ack);
    }
    ack.reason = Reason(cursor.u8()?);
    let legal = if receive {
        check::is_receive_reason(ack.reason)
    } else {
        check::is_release_reason(ack.reason)
    };
    if !legal {
        return Err(Malformed::protocol("reason code is not legal in this acknowledgement"));
    }
    if !cursor.is_empty() {
        property::read(cursor, property::ACK, |id, value| {
            property::set_answer(&mut ack.reason_string, &mut ack.user_properties, id, value)
        })?;
    }
    Ok(ack)
}
