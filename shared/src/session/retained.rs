//! The last retained message of each topic, and where a new subscription's replay of them stands (3.3.1.3).
//!
//! Not here: sending them (`replay`).

use std::{collections::BTreeMap, ops::Bound, sync::Arc};

use bytestring::ByteString;

use super::{
    Settings,
    action::{Author, SavedReplay},
    client::Session,
    own::{is_own, may_publish},
    queue::weight,
};
use crate::{
    auth::{Permissions, Who},
    message::Message,
    mqtt::packet::SubscriptionOptions,
    topic::filter,
};

/// All retained messages, by topic.
#[derive(Debug, Default)]
pub(super) struct Retained {
    topics: BTreeMap<ByteString, Kept>,
    bytes: usize,
    /// How many topics are the broker's own.
    own: usize,
    expiring: usize,
    version: u64,
}

#[derive(Debug)]
struct Kept {
    message: Arc<Message>,
    author: Author,
    version: u64,
}

impl Author {
    pub(super) fn of(session: &Session) -> Self {
        session.principal.clone().map_or(Self::Anonymous, Self::Principal)
    }
}

impl Kept {
    /// mosquitto CVE-2018-12546: a retained message outlived its publisher's right to publish it. It is held back, not
    /// deleted: rules are mended sooner than messages are sent again.
    fn may_be_seen(&self, permissions: &Permissions) -> bool {
        let principal = match &self.author {
            Author::Host => return true,
            Author::Anonymous => None,
            Author::Principal(name) => Some(&**name),
        };
        let client_id = self.message.publisher.as_deref().unwrap_or("");
        may_publish(permissions, Who { principal, client_id }, &self.message.topic)
    }
}

/// Retained messages that one new subscription still gets.
#[derive(Debug)]
pub(super) struct Replay {
    /// Without `$share`.
    pub(super) pattern: ByteString,
    pub(super) options: SubscriptionOptions,
    pub(super) id: Option<u32>,
    /// Last topic looked at.
    pub(super) after: Option<ByteString>,
    /// Later ones came by the subscription itself.
    pub(super) version: u64,
    /// Options and id of the subscription as the store has it: one packet can replace its own.
    pub(super) subscribed: (SubscriptionOptions, Option<u32>),
    /// Wall ms of the subscription.
    pub(super) since_ms: i64,
    /// It was made before a restart, since when versions say nothing of what was before.
    pub(super) restored: bool,
    /// What the store knows of it.
    pub(super) stored: Option<SavedReplay>,
}

impl Replay {
    pub(super) fn to_save(&self) -> SavedReplay {
        SavedReplay { after: self.after.clone(), since_ms: self.since_ms }
    }

    fn wants(&self, kept: &Kept) -> bool {
        kept.version <= self.version && !(self.restored && kept.message.received_ms > self.since_ms)
    }
}

/// Some of the retained messages.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) messages: Vec<Arc<Message>>,
    /// Last topic looked at; `None`: that was all.
    pub(super) after: Option<ByteString>,
    /// Held back: their authors may not publish them any more.
    pub(super) denied: u64,
}

impl Page {
    fn take(&mut self, kept: &Kept, permissions: &Permissions) {
        if kept.may_be_seen(permissions) {
            self.messages.push(kept.message.clone());
        } else {
            self.denied += 1;
        }
    }
}

impl Retained {
    /// Those that count: the broker's own do not.
    pub(super) fn len(&self) -> usize {
        self.topics.len() - self.own
    }

    pub(super) fn is_empty(&self) -> bool {
        self.topics.is_empty()
    }

    /// What the topic's message says already.
    pub(super) fn is_value(&self, topic: &str, payload: &[u8]) -> bool {
        self.topics.get(topic).is_some_and(|kept| kept.message.payload == payload)
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// Some can expire.
    pub(super) fn can_expire(&self) -> bool {
        self.expiring > 0
    }

    /// There is room for this one in the place of the one it replaces.
    pub(super) fn fits(&self, topic: &str, bytes: usize, limits: &Settings) -> bool {
        let old = self.topics.get(topic).map(|kept| weight(&kept.message));
        let messages = self.len() + usize::from(old.is_none());
        messages <= limits.retained_messages
            && self.bytes - old.unwrap_or(0) + bytes <= limits.retained_bytes
    }

    pub(super) fn insert(&mut self, message: Arc<Message>, author: Author) {
        self.remove(&message.topic);
        self.version += 1;
        if is_own(&message.topic) {
            self.own += 1;
        } else {
            self.bytes += weight(&message);
        }
        self.expiring += usize::from(message.expires_ms.is_some());
        self.topics.insert(message.topic.clone(), Kept { message, author, version: self.version });
    }

    /// Says whether there was one.
    pub(super) fn remove(&mut self, topic: &str) -> bool {
        let Some(kept) = self.topics.remove(topic) else { return false };
        if is_own(topic) {
            self.own -= 1;
        } else {
            self.bytes -= weight(&kept.message);
        }
        self.expiring -= usize::from(kept.message.expires_ms.is_some());
        true
    }

    /// The next messages of a replay: looks at no more than `scan` topics, finds no more than `max`.
    pub(super) fn page(
        &self,
        replay: &Replay,
        permissions: &Permissions,
        max: usize,
        scan: usize,
    ) -> Page {
        let mut page = Page { messages: Vec::new(), after: None, denied: 0 };
        let pattern: &str = &replay.pattern;
        let Some(wildcard) = pattern.find(['+', '#']) else {
            let kept = self.topics.get(pattern).filter(|kept| replay.wants(kept));
            if let Some(kept) = kept {
                page.take(kept, permissions);
            }
            return page;
        };
        let prefix = pattern.get(..wildcard).unwrap_or("").trim_end_matches('/');
        let from = match &replay.after {
            Some(after) => Bound::Excluded(&**after),
            None => Bound::Included(prefix),
        };
        for (looked, (topic, kept)) in
            self.topics.range::<str, _>((from, Bound::Unbounded)).enumerate()
        {
            if !topic.starts_with(prefix) {
                page.after = None;
                break;
            }
            if looked == scan || page.messages.len() == max {
                return page;
            }
            page.after = Some(topic.clone());
            if replay.wants(kept) && filter::matches(pattern, topic) {
                page.take(kept, permissions);
            }
        }
        page.after = None;
        page
    }

    /// Topics after `after` whose message has expired, of the next `scan`; and where to go on.
    pub(super) fn expired(
        &self,
        after: Option<&ByteString>,
        scan: usize,
        lasting_ms: i64,
    ) -> (Vec<ByteString>, Option<ByteString>) {
        let from = after.map_or(Bound::Unbounded, |after| Bound::Excluded(&**after));
        let mut found = Vec::new();
        let mut last = None;
        let mut looked = 0;
        for (topic, kept) in self.topics.range::<str, _>((from, Bound::Unbounded)).take(scan) {
            looked += 1;
            if kept.message.expires_ms.is_some_and(|at| at <= lasting_ms) {
                found.push(topic.clone());
            }
            last = Some(topic);
        }
        (found, if looked == scan { last.cloned() } else { None })
    }
}
