//! Stream name and key templates: literals and topic levels.
//!
//! Holds: parsing, rendering, and the rule that makes any topic level legal in a Kafka topic name: `a-zA-Z0-9._-` stay,
//! every other byte becomes `_xHH`. A level that holds such an escape itself can meet another's name; then both share a
//! stream, and their keys still tell them apart. A name longer than 249 bytes is cut and ends in a hash of the whole.
//! Not here: what a rule may say (`route`).

use std::{fmt::Write as _, sync::Arc};

use bytes::Bytes;

/// Longest Kafka topic name.
const NAME_MAX: usize = 249;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(String),
    /// Counted from 1.
    Level(usize),
    Topic,
}

/// Literals and placeholders in order.
#[derive(Debug, Clone)]
pub(super) struct Template {
    parts: Vec<Part>,
    /// A name without placeholders is rendered once.
    fixed: Option<Arc<str>>,
}

impl Template {
    /// Parses `text`; a placeholder that is not one is the error. `{topic}` is for keys only.
    pub(super) fn parse(text: &str, topic_allowed: bool) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((literal, after)) = rest.split_once('{') {
            if !literal.is_empty() {
                parts.push(Part::Literal(literal.to_owned()));
            }
            let (name, tail) = after.split_once('}').ok_or_else(|| after.to_owned())?;
            parts.push(match name {
                "topic" if topic_allowed => Part::Topic,
                _ => match name.parse() {
                    Ok(level) if level > 0 => Part::Level(level),
                    _ => return Err(name.to_owned()),
                },
            });
            rest = tail;
        }
        if !rest.is_empty() {
            parts.push(Part::Literal(rest.to_owned()));
        }
        let fixed = parts.iter().all(|part| matches!(part, Part::Literal(_))).then(|| text.into());
        Ok(Self { parts, fixed })
    }

    /// The highest level number asked for; 0 = none.
    pub(super) fn highest_level(&self) -> usize {
        let level = |part: &Part| if let Part::Level(level) = part { *level } else { 0 };
        self.parts.iter().map(level).max().unwrap_or(0)
    }

    /// Whether every topic renders a legal Kafka topic name.
    pub(super) fn renders_legal_names(&self) -> bool {
        if let Some(fixed) = &self.fixed {
            return !fixed.is_empty()
                && fixed.len() <= NAME_MAX
                && &**fixed != "."
                && &**fixed != ".."
                && fixed.bytes().all(is_legal);
        }
        self.parts.iter().all(|part| match part {
            Part::Literal(text) => text.bytes().all(is_legal),
            Part::Level(_) => true,
            Part::Topic => false,
        })
    }

    /// The stream name for `topic`, always legal.
    pub(super) fn render_name(&self, topic: &str) -> Arc<str> {
        if let Some(fixed) = &self.fixed {
            return fixed.clone();
        }
        let mut name = String::new();
        for part in &self.parts {
            match part {
                Part::Literal(text) => name.push_str(text),
                Part::Level(level) => legal_level(level_of(topic, *level), &mut name),
                Part::Topic => legal_level(topic, &mut name),
            }
        }
        if name.len() > NAME_MAX {
            let hash = fnv64(name.as_bytes());
            name.truncate(NAME_MAX - 17);
            // Writing to a String cannot fail.
            let _ = write!(name, "-{hash:016x}");
        }
        match name.as_str() {
            "" => "_".into(),
            "." => "_x2e".into(),
            ".." => "_x2e_x2e".into(),
            _ => name.into(),
        }
    }

    /// The key for `topic`; its bytes are free.
    pub(super) fn render_key(&self, topic: &str) -> Bytes {
        let mut key = String::new();
        for part in &self.parts {
            key.push_str(match part {
                Part::Literal(text) => text,
                Part::Level(level) => level_of(topic, *level),
                Part::Topic => topic,
            });
        }
        key.into()
    }
}

fn level_of(topic: &str, level: usize) -> &str {
    topic.split('/').nth(level.saturating_sub(1)).unwrap_or_default()
}

fn is_legal(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')
}

/// Appends `level` to `name`, with `_xHH` for every byte that Kafka names may not hold.
pub fn legal_level(level: &str, name: &mut String) {
    for byte in level.bytes() {
        if is_legal(byte) {
            name.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(name, "_x{byte:02x}");
        }
    }
}

fn fnv64(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_level_renders_a_legal_name() {
        let template = Template::parse("{1}", false).unwrap();
        for (topic, name) in [
            ("a.b_c-D9", "a.b_c-D9"),
            ("über x", "_xc3_xbcber_x20x"),
            ("", "_"),
            (".", "_x2e"),
            ("..", "_x2e_x2e"),
        ] {
            assert_eq!(&*template.render_name(topic), name);
        }
        let long = template.render_name(&"x".repeat(400));
        let other = template.render_name(&"x".repeat(401));
        assert_eq!(long.len(), NAME_MAX);
        assert_ne!(long, other);
    }
}
