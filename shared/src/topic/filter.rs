//! MQTT topic filters: syntax and matching (MQTT 5 and 3.1.1, 4.7; shared subscriptions, 4.8.2).
//!
//! Not here: matching one topic against very many filters at once (`session`'s trie).

/// Longest filter, bytes: an MQTT string's limit (MQTT-4.7.3-3).
pub const FILTER_LEN_MAX: usize = 65_535;

/// Why a string is not a topic filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum FilterError {
    #[error("a topic filter has at least one character (MQTT-4.7.3-1)")]
    Empty,
    #[error("a topic filter has at most {FILTER_LEN_MAX} bytes (MQTT-4.7.3-3)")]
    TooLong,
    #[error("a topic filter holds no NUL (MQTT-4.7.3-2)")]
    Nul,
    #[error("`#` stands alone in the last level (MQTT-4.7.1-1)")]
    MultiLevel,
    #[error("`+` stands alone in its level (MQTT-4.7.1-2)")]
    SingleLevel,
    #[error(
        "`$share/` is followed by a name without wildcards, `/` and a filter (MQTT-4.8.2-1, -2)"
    )]
    Share,
}

/// What a client subscribes to: a filter, perhaps shared with others under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subscribed<'a> {
    /// `name` of `$share/name/filter`.
    pub share: Option<&'a str>,
    /// The filter alone; legal.
    pub filter: &'a str,
}

impl<'a> Subscribed<'a> {
    /// Checks a filter as it stands in SUBSCRIBE, `$share/name/filter` included.
    pub fn parse(text: &'a str) -> Result<Self, FilterError> {
        check(text)?;
        let Some((_, rest)) = text.split_once('/').filter(|(first, _)| *first == "$share") else {
            return if text == "$share" {
                Err(FilterError::Share)
            } else {
                Ok(Self { share: None, filter: text })
            };
        };
        match rest.split_once('/') {
            Some((name, filter)) if is_share_name(name) && !filter.is_empty() => {
                Ok(Self { share: Some(name), filter })
            }
            _ => Err(FilterError::Share),
        }
    }
}

fn is_share_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['+', '#'])
}

/// A legal filter; a leading `$share` means nothing here.
pub fn is_legal(filter: &str) -> bool {
    check(filter).is_ok()
}

/// Why `filter` is not legal, if it is not.
pub fn check(filter: &str) -> Result<(), FilterError> {
    if filter.is_empty() {
        return Err(FilterError::Empty);
    }
    if filter.len() > FILTER_LEN_MAX {
        return Err(FilterError::TooLong);
    }
    if filter.contains('\0') {
        return Err(FilterError::Nul);
    }
    let mut levels = filter.split('/').peekable();
    while let Some(level) = levels.next() {
        if level.contains('#') && (level != "#" || levels.peek().is_some()) {
            return Err(FilterError::MultiLevel);
        }
        if level.contains('+') && level != "+" {
            return Err(FilterError::SingleLevel);
        }
    }
    Ok(())
}

/// Whether a message with that topic goes to a subscription with that filter, both legal. `+` takes one level, `#` the
/// rest and its parent; a filter that starts with a wildcard takes no topic that starts with `$` (MQTT-4.7.2-1).
pub fn matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let mut levels = topic.split('/');
    for pattern in filter.split('/') {
        if pattern == "#" {
            return true;
        }
        match levels.next() {
            Some(level) if pattern == "+" || pattern == level => {}
            _ => return false,
        }
    }
    levels.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of section 4.7.1 and 4.7.2, and their edges.
    // [MQTT-4.7.2-1]
    #[test]
    fn filters_match_as_the_standard_says() {
        for (filter, topic, expected) in [
            ("sport/tennis/player1/#", "sport/tennis/player1", true),
            ("sport/tennis/player1/#", "sport/tennis/player1/ranking", true),
            ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", true),
            ("sport/#", "sport", true),
            ("sport/#", "sports", false),
            ("#", "a", true),
            ("#", "/", true),
            ("sport/tennis/+", "sport/tennis/player1", true),
            ("sport/tennis/+", "sport/tennis/player1/ranking", false),
            ("sport/+", "sport", false),
            ("sport/+", "sport/", true),
            ("+", "/finance", false),
            ("+/+", "/finance", true),
            ("/+", "/finance", true),
            ("+/tennis/#", "a/tennis", true),
            ("a/+/c", "a/b/c", true),
            ("a/+/c", "a//c", true),
            ("a/+/c", "a/b/d", false),
            ("a/b", "a/b/", false),
            ("a/b/", "a/b", false),
            ("A", "a", false),
            ("#", "$SYS/x", false),
            ("+/x", "$SYS/x", false),
            ("+", "$SYS", false),
            ("$SYS/#", "$SYS/x", true),
            ("$SYS/+", "$SYS/x", true),
            ("$SYS/+", "$SYS", false),
            ("a/#", "a/$b", true),
            ("é/+", "é/ü", true),
        ] {
            assert!(is_legal(filter) && crate::topic::is_legal_name(topic));
            assert_eq!(matches(filter, topic), expected, "{filter} {topic}");
        }
    }

    // [MQTT-4.7.1-1] [MQTT-4.7.1-2] [MQTT-4.7.3-1] [MQTT-4.7.3-2] [MQTT-4.7.3-3]
    // [MQTT311-4.7.1-2] [MQTT311-4.7.1-3] [MQTT311-4.7.3-3]
    #[test]
    fn illegal_filters_are_told_why() {
        for (filter, why) in [
            ("", FilterError::Empty),
            ("a\0", FilterError::Nul),
            ("sport/tennis#", FilterError::MultiLevel),
            ("sport/#/ranking", FilterError::MultiLevel),
            ("#/", FilterError::MultiLevel),
            ("##", FilterError::MultiLevel),
            ("+#", FilterError::MultiLevel),
            ("sport+", FilterError::SingleLevel),
            ("++", FilterError::SingleLevel),
            ("a/+b/c", FilterError::SingleLevel),
        ] {
            assert_eq!(check(filter), Err(why), "{filter:?}");
        }
        assert_eq!(check(&"a".repeat(65_536)), Err(FilterError::TooLong));
        for filter in ["+", "#", "/", "//", "+/+/#", "/+", "$SYS/#", " ", &"a".repeat(65_535)] {
            assert!(is_legal(filter), "{filter:?}");
        }
    }

    // [MQTT-4.8.2-1] [MQTT-4.8.2-2]
    #[test]
    fn shared_subscriptions_have_a_name_and_a_filter() {
        let shared = |share, filter| Ok(Subscribed { share: Some(share), filter });
        assert_eq!(Subscribed::parse("$share/workers/a/+/#"), shared("workers", "a/+/#"));
        assert_eq!(Subscribed::parse("$share/w//finance"), shared("w", "/finance"));
        assert_eq!(Subscribed::parse("$share/w/#"), shared("w", "#"));
        for bad in
            ["$share", "$share/", "$share//a", "$share/w", "$share/w/", "$share/+/a", "$share/#"]
        {
            assert_eq!(Subscribed::parse(bad), Err(FilterError::Share), "{bad}");
        }
        assert_eq!(Subscribed::parse("$share/w#/a"), Err(FilterError::MultiLevel));
        for plain in ["a/b", "$shared/w/a", "x/$share/w/a"] {
            assert_eq!(Subscribed::parse(plain), Ok(Subscribed { share: None, filter: plain }));
        }
    }
}
