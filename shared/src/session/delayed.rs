//! Delayed messages: what clients publish to `$delayed/{seconds}/{topic}` reaches `topic` so much later.
//!
//! Not of the standard; the form is EMQX's. The message waits with its due time in the store and counts as published to
//! `topic` when that comes, upstream too; until then nobody sees anything of it. Its client must be allowed to publish to
//! `topic` when it asks for it and when it is due. Time spent here counts for the message expiry (MQTT-3.3.2-5).
//! Change here: the form, the bounds, what waits. Not here: when a tick comes (`timers`), wills' own delay (`disconnect`).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytestring::ByteString;

use super::{
    Change, Decision, Effect, Now, Settings, State,
    action::{Author, SavedDelayed},
    deliver::expiry_s,
    own::may_publish,
    queue::weight,
};
use crate::{auth::Who, message::Message, mqtt::packet::Reason};

const PREFIX: &str = "$delayed";

/// What one costs in memory beside its message.
const OVERHEAD: usize = 256;

/// Messages handed on in one tick.
const A_TICK: usize = 256;

/// Where a topic leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Target<'a> {
    /// Without what says when.
    pub(super) topic: &'a str,
    /// Seconds from now.
    pub(super) delay_s: Option<u32>,
}

/// It starts with `$delayed`, and is not followed by seconds and a topic that has none again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BadForm;

/// Splits a topic name.
pub(super) fn target(topic: &str) -> Result<Target<'_>, BadForm> {
    let Some(rest) = after_prefix(topic) else { return Ok(Target { topic, delay_s: None }) };
    let (seconds, topic) = rest.strip_prefix('/').and_then(|r| r.split_once('/')).ok_or(BadForm)?;
    let digits = !seconds.is_empty() && seconds.bytes().all(|byte| byte.is_ascii_digit());
    if !digits || topic.is_empty() || after_prefix(topic).is_some() {
        return Err(BadForm);
    }
    // More seconds than there are numbers are too many for any bound.
    Ok(Target { topic, delay_s: Some(seconds.parse().unwrap_or(u32::MAX)) })
}

/// A topic that [`target`] splits so.
pub(super) fn topic(delay_s: u32, topic: &str) -> ByteString {
    format!("{PREFIX}/{delay_s}/{topic}").into()
}

fn after_prefix(topic: &str) -> Option<&str> {
    topic.strip_prefix(PREFIX).filter(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// All that wait.
#[derive(Debug, Default)]
pub(super) struct Delayed {
    /// By number, which is in the order they came.
    held: BTreeMap<u64, Held>,
    /// Monotonic ms and number.
    due: BTreeSet<(u64, u64)>,
    bytes: usize,
    next: u64,
}

#[derive(Debug)]
struct Held {
    message: Arc<Message>,
    author: Author,
}

impl Delayed {
    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    pub(super) fn next_due(&self) -> Option<u64> {
        self.due.first().map(|(at, _)| *at)
    }

    fn fits(&self, bytes: usize, limits: &Settings) -> bool {
        self.held.len() < limits.delayed_messages
            && self.bytes.saturating_add(bytes + OVERHEAD) <= limits.delayed_bytes
    }

    fn insert(&mut self, number: u64, due_ms: u64, message: Arc<Message>, author: Author) {
        self.next = self.next.max(number + 1);
        self.bytes += weight(&message) + OVERHEAD;
        self.due.insert((due_ms, number));
        self.held.insert(number, Held { message, author });
    }

    fn pop(&mut self, mono_ms: u64) -> Option<(u64, Held)> {
        let (_, number) = self.due.first().copied().filter(|(at, _)| *at <= mono_ms)?;
        self.due.pop_first();
        let held = self.held.remove(&number)?;
        self.bytes -= weight(&held.message) + OVERHEAD;
        Some((number, held))
    }
}

impl State {
    /// Why a message cannot be delayed so.
    pub(super) fn refuses_delay(&self, delay_s: u32, bytes: usize) -> Option<Reason> {
        let over = delay_s > self.settings.delayed_s || !self.delayed.fits(bytes, &self.settings);
        over.then_some(Reason::QUOTA_EXCEEDED)
    }

    /// Publishes a message to its topic, now or later.
    pub(super) fn submit(
        &mut self,
        message: Message,
        delay_s: Option<u32>,
        author: Author,
        now: Now,
        out: &mut Decision,
    ) {
        let Some(delay_s) = delay_s.filter(|seconds| *seconds > 0) else {
            return self.accept(Arc::new(message), author, now, out);
        };
        let (message, number) = (Arc::new(message.unshared()), self.delayed.next);
        let delay_ms = u64::from(delay_s) * 1000;
        let due_ms = now.lasting_ms.saturating_add(delay_ms as i64);
        out.changes.push(Change::Delayed(SavedDelayed {
            number,
            due_ms,
            message: message.clone(),
            author: author.clone(),
        }));
        self.delayed.insert(number, now.mono_ms + delay_ms, message, author);
    }

    /// Takes up what was stored. Time that went back makes nobody wait for longer than the longest delay.
    pub(super) fn restore_delayed(&mut self, saved: SavedDelayed, now: Now) {
        let left = u64::try_from(saved.due_ms.saturating_sub(now.lasting_ms)).unwrap_or(0);
        let left = left.min(u64::from(self.settings.delayed_s) * 1000);
        self.delayed.insert(saved.number, now.mono_ms + left, saved.message, saved.author);
    }

    /// Publishes a bounded share of what is due.
    pub(super) fn publish_due(&mut self, now: Now, out: &mut Decision) {
        for _ in 0..A_TICK {
            let Some((number, held)) = self.delayed.pop(now.mono_ms) else { return };
            out.changes.push(Change::DelayedDone(number));
            let Held { message, author } = held;
            if !self.may_still(&message, &author) {
                self.denied.delayed += 1;
                out.effects.push(Effect::Dropped {
                    session: None,
                    why: "not_authorized",
                    count: 1,
                });
            } else if message.expires_ms.is_some_and(|at| at <= now.lasting_ms) {
                out.effects.push(Effect::Dropped { session: None, why: "expired", count: 1 });
            } else {
                // As old as its publication, for whoever goes by age; what counts from there is what is left.
                let mut message = Message::clone(&message);
                message.received_ms = now.wall_ms;
                message.properties.message_expiry = expiry_s(&message, now);
                self.accept(Arc::new(message), author, now, out);
            }
        }
    }

    fn may_still(&self, message: &Message, author: &Author) -> bool {
        let principal = match author {
            Author::Host => return true,
            Author::Anonymous => None,
            Author::Principal(name) => Some(&**name),
        };
        let who = Who { principal, client_id: message.publisher.as_deref().unwrap_or("") };
        may_publish(&self.permissions, who, &message.topic)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delayed_topic_is_seconds_and_a_topic() {
        let later = |topic, seconds| Ok(Target { topic, delay_s: Some(seconds) });
        let at_once = |topic| Ok(Target { topic, delay_s: None });
        for (topic, expected) in [
            ("$delayed/5/a/b", later("a/b", 5)),
            ("$delayed/0/a", later("a", 0)),
            ("$delayed/007//", later("/", 7)),
            ("$delayed/99999999999/a", later("a", u32::MAX)),
            ("$delayed/5/$SYS/x", later("$SYS/x", 5)),
            ("a/b", at_once("a/b")),
            ("$delayedly/5/a", at_once("$delayedly/5/a")),
            ("a/$delayed/5/b", at_once("a/$delayed/5/b")),
            ("$delayed", Err(BadForm)),
            ("$delayed/", Err(BadForm)),
            ("$delayed/5", Err(BadForm)),
            ("$delayed/5/", Err(BadForm)),
            ("$delayed//a", Err(BadForm)),
            ("$delayed/+5/a", Err(BadForm)),
            ("$delayed/-5/a", Err(BadForm)),
            ("$delayed/5s/a", Err(BadForm)),
            ("$delayed/1.5/a", Err(BadForm)),
            ("$delayed/5/$delayed/5/a", Err(BadForm)),
            ("$delayed/5/$delayed", Err(BadForm)),
        ] {
            assert_eq!(target(topic), expected, "{topic}");
        }
    }
}
