//! An MQTT message as a record and back (DESIGN 5, "From MQTT" and "To MQTT").
//!
//! Key = full topic. Headers, in this order, each only if it says something: `mqtt.client_id mqtt.qos mqtt.retain
//! mqtt.content_type mqtt.response_topic mqtt.correlation_data mqtt.expiry mqtt.payload_format`, then the user
//! properties as they came. `edge.id edge.lane edge.seq` are added where the edge is known.

use super::Record;
use crate::message::Message;

/// The record that carries `message`.
pub fn to_record(message: &Message) -> Record {
    let _ = message;
    unimplemented!()
}

/// The message that `record` carries: topic = header `mqtt.topic`, else the key if it is a legal topic name, else the
/// stream's name with `.` -> `/`. QoS 1 where no header says otherwise.
pub fn to_message(record: &Record, stream: &str) -> Message {
    let _ = (record, stream);
    unimplemented!()
}
