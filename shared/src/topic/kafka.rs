//! MQTT topic <-> Kafka topic name.
//!
//! `/` and `.` change places; a byte that a Kafka name may not hold, and what would read as an escape, becomes `_x` and
//! two hex digits. So each topic has its own name, `plant/1/temp` is `plant.1.temp`, and the map goes both ways.

use std::fmt::Write;

/// Longest Kafka topic name, bytes.
pub const NAME_LEN_MAX: usize = 249;

/// 1 to 249 of `a-zA-Z0-9._-`, and not `.` or `..`.
pub fn is_legal_name(name: &str) -> bool {
    (1..=NAME_LEN_MAX).contains(&name.len())
        && !matches!(name, "." | "..")
        && name.bytes().all(is_legal_byte)
}

/// The Kafka name of an MQTT topic; `None`: it would be too long.
pub fn from_topic(topic: &str) -> Option<String> {
    let mut name = String::with_capacity(topic.len());
    let bytes = topic.as_bytes();
    let lonely = matches!(topic, "/" | "//");
    for (index, &byte) in bytes.iter().enumerate() {
        let next = bytes.get(index + 1);
        match byte {
            b'/' if !lonely => name.push('.'),
            b'_' if next != Some(&b'x') => name.push('_'),
            b'_' | b'.' | b'/' => escape(byte, &mut name),
            byte if is_legal_byte(byte) => name.push(char::from(byte)),
            byte => escape(byte, &mut name),
        }
        if name.len() > NAME_LEN_MAX {
            return None;
        }
    }
    is_legal_name(&name).then_some(name)
}

/// The MQTT topic of a legal Kafka name: `.` -> `/`, escapes undone. A name whose escapes make no legal topic, since no
/// topic made it, keeps them. Never empty.
pub fn to_topic(name: &str) -> String {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match (byte, unescape(after)) {
            (b'_', Some((escaped, after))) => {
                bytes.push(escaped);
                rest = after;
            }
            (b'.', _) => bytes.push(b'/'),
            _ => bytes.push(byte),
        }
    }
    String::from_utf8(bytes)
        .ok()
        .filter(|topic| super::is_legal_name(topic))
        .unwrap_or_else(|| name.replace('.', "/"))
}

fn is_legal_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')
}

fn escape(byte: u8, name: &mut String) {
    // Writing to a String cannot fail.
    let _ = write!(name, "_x{byte:02x}");
}

/// `xHH` at the front, and what follows it.
fn unescape(bytes: &[u8]) -> Option<(u8, &[u8])> {
    let ([b'x', high, low], rest) = bytes.split_first_chunk()? else { return None };
    let digit = |byte: u8| char::from(byte).to_digit(16).filter(|_| !byte.is_ascii_uppercase());
    Some(((digit(*high)? << 4 | digit(*low)?) as u8, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_legal_as_kafka_says() {
        for name in ["a", "A.b_c-9", "...", &"x".repeat(249)] {
            assert!(is_legal_name(name), "{name}");
        }
        for name in ["", ".", "..", "a/b", "a b", "é", "a\0", &"x".repeat(250)] {
            assert!(!is_legal_name(name), "{name}");
        }
    }

    #[test]
    fn topics_have_readable_names() {
        for (topic, name) in [
            ("plant/1/temp", "plant.1.temp"),
            ("/lead//trail/", ".lead..trail."),
            ("a.b/c", "a_x2eb.c"),
            ("snake_case", "snake_case"),
            ("a_x2e", "a_x5fx2e"),
            ("$SYS/é", "_x24SYS._xc3_xa9"),
            ("/", "_x2f"),
            ("//", "_x2f_x2f"),
        ] {
            assert_eq!(from_topic(topic).as_deref(), Some(name));
            assert_eq!(to_topic(name), topic);
        }
        assert_eq!(from_topic(&"é".repeat(50)), None);
    }

    #[test]
    fn a_name_that_no_topic_made_keeps_what_it_says() {
        assert_eq!(to_topic("orders.v1"), "orders/v1");
        assert_eq!(to_topic("odd_xff.a"), "odd_xff/a", "not UTF-8");
        assert_eq!(to_topic("odd_x2b.a"), "odd_x2b/a", "a wildcard");
        assert_eq!(to_topic("odd_x2"), "odd_x2");
    }

    proptest! {
        #[test]
        fn every_topic_comes_back(topic in "[^+#\0]{1,40}|[/._xA2f]{1,20}") {
            if let Some(name) = from_topic(&topic) {
                prop_assert!(is_legal_name(&name));
                prop_assert_eq!(to_topic(&name), topic);
            }
        }
    }
}
