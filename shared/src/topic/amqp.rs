//! MQTT topic <-> AMQP routing key, MQTT filter <-> AMQP binding pattern, as RabbitMQ maps them.
//!
//! `/` <-> `.`, `+` <-> `*`, `#` stays. Lossy by nature: a `.` in a topic becomes a level, and a routing key has 255 bytes;
//! so a message always carries its exact topic in the header `x-mqtt-topic` too (AMQP head).

use super::{filter, is_legal_name};

/// Longest AMQP short string, bytes.
pub const ROUTING_KEY_LEN_MAX: usize = 255;

/// The routing key of a topic: at most 255 bytes, cut at a character.
pub fn routing_key(topic: &str) -> String {
    cut(topic, ROUTING_KEY_LEN_MAX).replace('/', ".")
}

/// The topic that a message published with `routing_key` has; `None`: it is no legal topic name (empty, NUL, `+`, `#`).
pub fn to_topic(routing_key: &str) -> Option<String> {
    is_legal_name(routing_key).then(|| routing_key.replace('.', "/"))
}

/// The binding pattern that takes the routing keys of the topics a legal filter takes (but for MQTT's rule on `$`);
/// `None`: over 255 bytes.
pub fn binding_pattern(filter: &str) -> Option<String> {
    if filter.len() > ROUTING_KEY_LEN_MAX {
        return None;
    }
    Some(map_words(filter, '/', ".", "+", "*"))
}

/// The filter for a binding pattern; `None` where MQTT has none: a `#` before the end, `+` in a word, empty.
pub fn to_filter(pattern: &str) -> Option<String> {
    if pattern.contains('+') {
        return None;
    }
    Some(map_words(pattern, '.', "/", "*", "+")).filter(|filter| filter::is_legal(filter))
}

/// Words that are `from` become `to`; separators change.
fn map_words(text: &str, split: char, join: &str, from: &str, to: &str) -> String {
    let mut mapped = String::with_capacity(text.len());
    for (index, word) in text.split(split).enumerate() {
        if index > 0 {
            mapped.push_str(join);
        }
        mapped.push_str(if word == from { to } else { word });
    }
    mapped
}

/// The longest prefix of at most `limit` bytes that ends at a character.
fn cut(text: &str, limit: usize) -> &str {
    text.get(..text.floor_char_boundary(limit)).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_and_routing_keys_map_as_rabbitmq_maps_them() {
        for (topic, key) in [
            ("cities/london", "cities.london"),
            ("/lead", ".lead"),
            ("trail/", "trail."),
            ("a//b", "a..b"),
            ("a/*", "a.*"),
        ] {
            assert_eq!(routing_key(topic), key);
            assert_eq!(to_topic(key).as_deref(), Some(topic));
        }
        assert_eq!(routing_key("a/b.c/d"), "a.b.c.d", "lossy, as there");
        for no_topic in ["", "a.#", "a+b", "a\0"] {
            assert_eq!(to_topic(no_topic), None, "{no_topic:?}");
        }
    }

    #[test]
    fn a_long_topic_is_cut_at_a_character() {
        assert_eq!(routing_key(&"a/".repeat(200)).len(), 255);
        let two_bytes = format!("x{}", "é".repeat(200));
        assert_eq!(routing_key(&two_bytes).len(), 255);
        assert_eq!(routing_key(&two_bytes[..1]).len(), 1);
        let odd = "é".repeat(200);
        assert_eq!(routing_key(&odd), "é".repeat(127));
    }

    #[test]
    fn filters_and_patterns_map_both_ways() {
        for (filter, pattern) in
            [("a/+/c", "a.*.c"), ("#", "#"), ("a/#", "a.#"), ("+", "*"), ("/+", ".*"), ("a", "a")]
        {
            assert_eq!(binding_pattern(filter).as_deref(), Some(pattern));
            assert_eq!(to_filter(pattern).as_deref(), Some(filter));
        }
        assert_eq!(to_filter("a*.b").as_deref(), Some("a*/b"), "only a whole word is a wildcard");
        for no_filter in ["", "#.a", "a.#.b", "a.+"] {
            assert_eq!(to_filter(no_filter), None, "{no_filter:?}");
        }
        assert_eq!(binding_pattern(&"a".repeat(256)), None);
    }
}
