//! MQTT topic <-> Kafka topic name.
//!
//! `.` and `/` change places; every other character that a Kafka name does not allow, `_` included, becomes `_` and the
//! two hex digits of each of its bytes. So the map is reversible, and `plant/1/temp` reads `plant.1.temp`.

/// Longest Kafka topic name, bytes.
pub const NAME_LEN_MAX: usize = 249;

/// 1 to 249 of `a-zA-Z0-9._-`, and not `.` or `..`.
pub fn is_legal_name(name: &str) -> bool {
    (1..=NAME_LEN_MAX).contains(&name.len())
        && !matches!(name, "." | "..")
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

/// The topic of records in stream `name` that say nothing else: `.` -> `/`. Never fails, never empty for a legal name.
pub fn to_topic(name: &str) -> String {
    name.replace('.', "/")
}
