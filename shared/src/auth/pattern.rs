//! What a rule says of topics: a topic filter whose levels may hold `%c` (client id) and `%u` (principal).
//!
//! Compared level by level with what is asked for, which is a topic name or a filter; values are never put into a filter
//! and parsed again, and a value that could act as more than one literal level matches nothing.
//! Change here: what a pattern may say. Not here: order and outcome of rules (`rules`).

use crate::topic::filter::{self, FilterError};

/// A placeholder's value, or why it has none.
#[derive(Debug, Clone, Copy)]
pub(super) struct Names<'a> {
    pub(super) client_id: &'a str,
    pub(super) principal: Option<&'a str>,
}

/// Why a string is no pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// It is no topic filter.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// A percent sign without meaning.
    #[error("`%` is followed by c (client id), u (user) or % (a percent sign)")]
    Placeholder,
}

/// A compiled pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern {
    levels: Vec<Level>,
    pub(super) client_id: bool,
    pub(super) principal: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Level {
    /// `+`
    One,
    /// `#`
    Rest,
    Text(Vec<Part>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(Box<str>),
    ClientId,
    Principal,
}

/// May stand in a topic as one literal level.
pub(crate) fn is_plain(value: &str) -> bool {
    !value.is_empty()
        && !value.contains(|c: char| matches!(c, '+' | '#' | '/' | '$') || c.is_control())
}

impl Pattern {
    pub(super) fn parse(text: &str) -> Result<Self, PatternError> {
        filter::check(text)?;
        let levels = text.split('/').map(level).collect::<Result<Vec<_>, _>>()?;
        let parts = || {
            levels.iter().flat_map(|level| match level {
                Level::Text(parts) => parts.as_slice(),
                Level::One | Level::Rest => &[],
            })
        };
        let client_id = parts().any(|part| *part == Part::ClientId);
        let principal = parts().any(|part| *part == Part::Principal);
        Ok(Self { levels, client_id, principal })
    }

    /// Every topic that `asked` (a name or a filter) stands for matches this. A filter that is wider in a way this cannot
    /// tell is not covered.
    pub(super) fn covers(&self, asked: &str, names: Names<'_>) -> bool {
        if self.splits_on_dollar(asked) {
            return false;
        }
        let mut asked = asked.split('/');
        for level in &self.levels {
            let covered = match (level, asked.next()) {
                (Level::Rest, _) => return true,
                (Level::One, Some(asked)) => asked != "#",
                (Level::Text(parts), Some(asked)) => is(parts, asked, names),
                (_, None) => false,
            };
            if !covered {
                return false;
            }
        }
        asked.next().is_none()
    }

    /// Some topic that `asked` stands for matches this.
    pub(super) fn overlaps(&self, asked: &str, names: Names<'_>) -> bool {
        if self.splits_on_dollar(asked) {
            return false;
        }
        let mut asked = asked.split('/');
        for level in &self.levels {
            let overlaps = match (level, asked.next()) {
                (Level::Rest, _) | (_, Some("#")) => return true,
                (Level::One, Some(_)) => true,
                (Level::Text(parts), Some("+")) => has_values(parts, names),
                (Level::Text(parts), Some(asked)) => is(parts, asked, names),
                (_, None) => false,
            };
            if !overlaps {
                return false;
            }
        }
        matches!(asked.next(), None | Some("#"))
    }

    /// One begins with a wildcard, the other with `$`: they have nothing in common (MQTT-4.7.2-1).
    fn splits_on_dollar(&self, asked: &str) -> bool {
        match self.levels.first() {
            Some(Level::One | Level::Rest) => asked.starts_with('$'),
            Some(Level::Text(parts)) => {
                asked.starts_with(['+', '#'])
                    && matches!(parts.first(), Some(Part::Text(text)) if text.starts_with('$'))
            }
            None => true,
        }
    }
}

fn level(text: &str) -> Result<Level, PatternError> {
    match text {
        "+" => return Ok(Level::One),
        "#" => return Ok(Level::Rest),
        _ => {}
    }
    let mut parts = Vec::new();
    let mut literal = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('%') {
        literal.push_str(before);
        let part = match after.as_bytes().first() {
            Some(b'c') => Some(Part::ClientId),
            Some(b'u') => Some(Part::Principal),
            Some(b'%') => None,
            _ => return Err(PatternError::Placeholder),
        };
        rest = after.get(1..).unwrap_or("");
        let Some(part) = part else {
            literal.push('%');
            continue;
        };
        if !literal.is_empty() {
            parts.push(Part::Text(std::mem::take(&mut literal).into()));
        }
        parts.push(part);
    }
    literal.push_str(rest);
    if !literal.is_empty() {
        parts.push(Part::Text(literal.into()));
    }
    Ok(Level::Text(parts))
}

/// The level says exactly `text`, which is no wildcard.
fn is(parts: &[Part], text: &str, names: Names<'_>) -> bool {
    let mut rest = text;
    for part in parts {
        match value(part, names).and_then(|value| rest.strip_prefix(value)) {
            Some(after) => rest = after,
            None => return false,
        }
    }
    rest.is_empty()
}

fn has_values(parts: &[Part], names: Names<'_>) -> bool {
    parts.iter().all(|part| value(part, names).is_some())
}

fn value<'a>(part: &'a Part, names: Names<'a>) -> Option<&'a str> {
    match part {
        Part::Text(text) => Some(text),
        Part::ClientId => Some(names.client_id).filter(|name| is_plain(name)),
        Part::Principal => names.principal.filter(|name| is_plain(name)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NAMES: Names<'_> = Names { client_id: "c1", principal: Some("ann") };

    fn pattern(text: &str) -> Pattern {
        Pattern::parse(text).unwrap()
    }

    #[test]
    fn a_pattern_covers_what_is_not_wider() {
        for (text, asked, covers, overlaps) in [
            ("a/b", "a/b", true, true),
            ("a/b", "a", false, false),
            ("a", "a/b", false, false),
            ("a/+", "a/b", true, true),
            ("a/+", "a/+", true, true),
            ("a/+", "a/#", false, true),
            ("a/+", "a", false, false),
            ("a/#", "a", true, true),
            ("a/#", "a/#", true, true),
            ("a/#", "a/b/+", true, true),
            ("a/#", "+/b", false, true),
            ("a/#", "#", false, true),
            ("#", "#", true, true),
            ("#", "+/a", true, true),
            ("+", "#", false, true),
            ("a/b", "+/b", false, true),
            ("a/b", "+/c", false, false),
            ("a", "a/#", false, true),
            ("a/b/c", "a/#", false, true),
            ("#", "$SYS/#", false, false),
            ("+/#", "$SYS", false, false),
            ("$SYS/#", "$SYS/x", true, true),
            ("$SYS/#", "#", false, false),
            ("$SYS/#", "+/x", false, false),
            ("devices/%c/#", "devices/c1/x", true, true),
            ("devices/%c/#", "devices/c2/x", false, false),
            ("devices/%c/#", "devices/c1x/y", false, false),
            ("devices/%c/#", "devices/+/x", false, true),
            ("%u-%c/x", "ann-c1/x", true, true),
            ("%u-%c/x", "ann-c/x", false, false),
            ("100%%", "100%", true, true),
        ] {
            assert_eq!(pattern(text).covers(asked, NAMES), covers, "{text} covers {asked}");
            assert_eq!(pattern(text).overlaps(asked, NAMES), overlaps, "{text} overlaps {asked}");
        }
    }

    /// mosquitto CVE-2017-7650, RabbitMQ CVE-2026-44838, nanomq#2344.
    #[test]
    fn names_that_look_like_filters_match_nothing() {
        for evil in ["+", "#", "a/b", "$SYS", "", "c\n", "a/#", "c1/../c2", "%c"] {
            let names = Names { client_id: evil, principal: Some(evil) };
            for text in ["devices/%c/up", "devices/%u/up", "%c/#", "%u"] {
                for asked in ["devices/c1/up", "devices/+/up", "devices/a/b/up", "#", "+", "$SYS"] {
                    assert!(!pattern(text).covers(asked, names), "{text} {evil} {asked}");
                }
            }
            // Taken literally, never as a placeholder again.
            assert_eq!(pattern("x/%c").covers("x/%c", names), evil == "%c");
        }
        let nobody = Names { client_id: "c", principal: None };
        assert!(!pattern("x/%u").covers("x/", nobody));
        assert!(!pattern("x/%u").overlaps("x/+", nobody));
    }

    #[test]
    fn bad_patterns_are_refused() {
        assert_eq!(Pattern::parse("a/%x"), Err(PatternError::Placeholder));
        assert_eq!(Pattern::parse("a/%"), Err(PatternError::Placeholder));
        assert_eq!(Pattern::parse(""), Err(FilterError::Empty.into()));
        assert_eq!(Pattern::parse("a/#/b"), Err(FilterError::MultiLevel.into()));
        assert_eq!(Pattern::parse("a/%c+"), Err(FilterError::SingleLevel.into()));
    }

    fn some_filter() -> impl Strategy<Value = String> {
        let level = prop_oneof![Just("a"), Just("b"), Just("+"), Just("$s"), Just("")];
        let levels = prop::collection::vec(level, 1..4);
        (levels, any::<bool>()).prop_map(|(levels, rest)| {
            let text = levels.join("/");
            let text = if rest { format!("{text}/#") } else { text };
            if text.is_empty() { "#".to_owned() } else { text }
        })
    }

    fn some_topic() -> impl Strategy<Value = String> {
        let level = prop_oneof![Just("a"), Just("b"), Just("c"), Just("$s"), Just("")];
        prop::collection::vec(level, 1..5)
            .prop_map(|levels| levels.join("/"))
            .prop_filter("empty", |topic| !topic.is_empty())
    }

    proptest! {
        /// What `covers` and `overlaps` say of filters holds for every topic.
        #[test]
        fn verdicts_on_filters_hold_for_their_topics(
            rule in some_filter(), asked in some_filter(), topic in some_topic()
        ) {
            let in_rule = filter::matches(&rule, &topic);
            let in_asked = filter::matches(&asked, &topic);
            let rule = pattern(&rule);
            if in_asked && !in_rule {
                prop_assert!(!rule.covers(&asked, NAMES));
            }
            if in_asked && in_rule {
                prop_assert!(rule.overlaps(&asked, NAMES));
            }
            prop_assert_eq!(rule.covers(&topic, NAMES), in_rule);
            prop_assert_eq!(rule.overlaps(&topic, NAMES), in_rule);
        }
    }
}
