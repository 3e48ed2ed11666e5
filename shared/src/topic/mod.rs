//! Topic names and filters of the three protocols, and the maps between them.

pub mod amqp;
pub mod filter;
pub mod kafka;

/// A legal MQTT topic name: 1 to 65,535 bytes, no NUL, no wildcard (MQTT-4.7.1-1, 4.7.3-1, 4.7.3-2).
pub fn is_legal_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 65_535 && !name.contains(['\0', '+', '#'])
}
