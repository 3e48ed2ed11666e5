//! A topic filter taken apart and checked.

/// Why a filter of SUBSCRIBE is refused is always the same: it is no filter (MQTT-4.7.1-2, 4.7.1-3, 4.7.3-1, 4.8.2-1, 4.8.2-2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Filter<'a> {
    /// `$share/{name}/..`.
    pub(in super::super) share: Option<&'a str>,
    /// What topics are matched with.
    pub(in super::super) pattern: &'a str,
}

impl<'a> Filter<'a> {
    /// Reads a filter; `None` if it is not one.
    pub(in super::super) fn parse(filter: &'a str) -> Option<Self> {
        let parsed = match filter.strip_prefix("$share/") {
            None if filter == "$share" => return None,
            None => Self { share: None, pattern: filter },
            Some(rest) => {
                let (name, pattern) = rest.split_once('/')?;
                if name.is_empty() || name.contains(['+', '#']) {
                    return None;
                }
                Self { share: Some(name), pattern }
            }
        };
        is_pattern(parsed.pattern).then_some(parsed)
    }

    /// Levels of the pattern.
    pub(in super::super) fn levels(&self) -> usize {
        self.pattern.split('/').count()
    }
}

fn is_pattern(pattern: &str) -> bool {
    if pattern.is_empty() || pattern.len() > 65_535 || pattern.contains('\0') {
        return false;
    }
    let mut levels = pattern.split('/').peekable();
    while let Some(level) = levels.next() {
        let legal = match level {
            "+" => true,
            "#" => levels.peek().is_none(),
            _ => !level.contains(['+', '#']),
        };
        if !legal {
            return false;
        }
    }
    true
}

/// Whether `topic` matches `pattern` (4.7.1, 4.7.2); the trie does the same for many patterns at once.
pub(in super::super) fn matches(pattern: &str, topic: &str) -> bool {
    if topic.starts_with('$') && pattern.starts_with(['+', '#']) {
        return false;
    }
    let mut topic_levels = topic.split('/');
    for level in pattern.split('/') {
        if level == "#" {
            return true;
        }
        match topic_levels.next() {
            Some(name) if level == "+" || level == name => {}
            _ => return false,
        }
    }
    topic_levels.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_taken_apart_or_refused() {
        for (text, expected) in [
            ("a/b", Some((None, "a/b"))),
            ("/", Some((None, "/"))),
            ("+", Some((None, "+"))),
            ("#", Some((None, "#"))),
            ("a/+/#", Some((None, "a/+/#"))),
            ("$SYS/#", Some((None, "$SYS/#"))),
            ("$share/g/a/#", Some((Some("g"), "a/#"))),
            ("$share/g//a", Some((Some("g"), "/a"))),
            ("$shared/g", Some((None, "$shared/g"))),
            ("", None),
            ("a#", None),
            ("a/#/b", None),
            ("a+/b", None),
            ("a\0b", None),
            ("$share", None),
            ("$share/", None),
            ("$share/g", None),
            ("$share/g/", None),
            ("$share//a", None),
            ("$share/g+/a", None),
            ("$share/#/a", None),
            ("$share/g/a#", None),
        ] {
            let parsed = Filter::parse(text).map(|filter| (filter.share, filter.pattern));
            assert_eq!(parsed, expected, "{text}");
        }
    }

    #[test]
    fn a_pattern_matches_what_the_standard_says() {
        for (pattern, topic, expected) in [
            ("a/b", "a/b", true),
            ("a/b", "a/b/c", false),
            ("a/b", "A/b", false),
            ("a/#", "a", true),
            ("a/#", "a/", true),
            ("a/#", "a/b/c", true),
            ("a/#", "ab", false),
            ("a/+", "a", false),
            ("a/+", "a/", true),
            ("+", "/a", false),
            ("+/+", "/a", true),
            ("/+", "/a", true),
            ("#", "$SYS/a", false),
            ("+/a", "$SYS/a", false),
            ("$SYS/+", "$SYS/a", true),
            ("a/+/#", "a/b", true),
        ] {
            assert_eq!(matches(pattern, topic), expected, "{pattern} {topic}");
        }
    }
}
