//! Topic aliases toward one client: the topics it gets most are sent as a number (3.3.2.3.4).
//!
//! In: the topics of its messages, in the order they are written. Out: which alias stands for which, from when on.
//! A small table of fixed size for the life of the connection (MQTT-3.3.2-7); a client that takes no alias has none, and
//! nothing here touches the encoding that receivers share.
//! Change here: which topics are worth an alias. Not here: aliases that clients use toward us (`session`).

use std::num::NonZeroU16;

use crate::mqtt::write::Alias;

/// Topics of up to this many bytes cost no more than their alias.
const SHORT: usize = 3;
/// Longer topics would make the table large.
const LONG: usize = 512;
/// How many misses an entry that is used often survives.
const LIVES: u8 = 3;

/// What stands for what on this connection.
#[derive(Debug)]
pub(super) struct Aliases {
    /// At its place minus one: the topic of an alias.
    entries: Vec<Entry>,
    most: u16,
    /// The entry looked at last: the first to be looked at, as messages of one topic often come together.
    last: usize,
    /// The next entry that may have to go.
    hand: usize,
}

#[derive(Debug)]
struct Entry {
    topic: Box<str>,
    lives: u8,
}

impl Aliases {
    /// For a client that takes aliases up to `theirs` (0: none, MQTT-3.1.2-27), of which no more than `ours` are used.
    pub(super) fn new(theirs: u16, ours: u16) -> Option<Box<Self>> {
        let most = theirs.min(ours);
        (most > 0).then(|| Box::new(Self { entries: Vec::new(), most, last: 0, hand: 0 }))
    }

    /// How a message of `topic` is to be written. An alias that is new counts only after [`Aliases::introduced`].
    pub(super) fn find(&mut self, topic: &str) -> Alias {
        if topic.len() <= SHORT || topic.len() > LONG {
            return Alias::None;
        }
        let is = |entry: &Entry| *entry.topic == *topic;
        let found = if self.entries.get(self.last).is_some_and(is) {
            Some(self.last)
        } else {
            self.entries.iter().position(is)
        };
        if let Some(at) = found {
            self.last = at;
            if let Some(entry) = self.entries.get_mut(at) {
                entry.lives = LIVES.min(entry.lives + 1);
            }
            return number(at).map_or(Alias::None, Alias::Known);
        }
        self.place().and_then(number).map_or(Alias::None, Alias::New)
    }

    /// The client has been told what `alias` stands for.
    pub(super) fn introduced(&mut self, alias: NonZeroU16, topic: &str) {
        let (at, entry) = (usize::from(alias.get()) - 1, Entry { topic: topic.into(), lives: 1 });
        match self.entries.get_mut(at) {
            Some(old) => *old = entry,
            None => self.entries.push(entry),
        }
    }

    /// A free place, or that of an entry that was not used for long: each miss takes one of an entry's lives, so topics
    /// that come once do not push out those that come always.
    fn place(&mut self) -> Option<usize> {
        if self.entries.len() < usize::from(self.most) {
            return Some(self.entries.len());
        }
        let at = self.hand;
        self.hand = (at + 1) % self.entries.len();
        let entry = self.entries.get_mut(at)?;
        if entry.lives == 0 {
            return Some(at);
        }
        entry.lives -= 1;
        None
    }
}

fn number(at: usize) -> Option<NonZeroU16> {
    NonZeroU16::new(u16::try_from(at + 1).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(aliases: &mut Aliases, topic: &str) -> Alias {
        let alias = aliases.find(topic);
        if let Alias::New(number) = alias {
            aliases.introduced(number, topic);
        }
        alias
    }

    fn alias(number: u16) -> NonZeroU16 {
        NonZeroU16::new(number).unwrap()
    }

    // MQTT-3.1.2-26, MQTT-3.3.2-8, MQTT-3.3.2-9
    #[test]
    fn no_alias_is_zero_or_over_what_client_and_settings_allow() {
        assert!(Aliases::new(0, 16).is_none() && Aliases::new(16, 0).is_none());
        for (theirs, ours) in [(1, 16), (3, 16), (16, 2)] {
            let mut aliases = Aliases::new(theirs, ours).unwrap();
            for round in 0..500 {
                let most = theirs.min(ours);
                match write(&mut aliases, &format!("topic/{}", round % 7)) {
                    Alias::None => {}
                    Alias::Known(number) | Alias::New(number) => assert!(number.get() <= most),
                }
            }
            assert!(aliases.entries.len() <= usize::from(theirs.min(ours)));
        }
    }

    #[test]
    fn a_topic_that_comes_often_keeps_its_alias_and_one_that_no_longer_comes_loses_it() {
        let mut aliases = Aliases::new(2, 2).unwrap();
        assert_eq!(write(&mut aliases, "often"), Alias::New(alias(1)));
        assert_eq!(write(&mut aliases, "early"), Alias::New(alias(2)));
        for round in 0..100 {
            assert_eq!(write(&mut aliases, "often"), Alias::Known(alias(1)), "{round}");
            write(&mut aliases, &format!("once/{round}"));
        }
        assert_ne!(aliases.find("early"), Alias::Known(alias(2)));
    }

    #[test]
    fn topics_that_an_alias_would_not_shorten_or_that_are_very_long_get_none() {
        let mut aliases = Aliases::new(2, 2).unwrap();
        for topic in ["a", "abc", &"x".repeat(LONG + 1)] {
            assert_eq!(write(&mut aliases, topic), Alias::None);
        }
        assert!(aliases.entries.is_empty());
    }
}
