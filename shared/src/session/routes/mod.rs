//! Who gets what: every subscription, found by topic.
//!
//! Holds: the trie of filters with their subscribers and shared groups. In: subscriptions, a topic. Out: the matching
//! subscribers, each group once. Change here: matching. Not here: options' meaning (`fanout`), checks (`subscribe`).

mod children;
mod shared;
mod trie;

pub(super) use shared::{Fit, Group};
pub(super) use trie::{NodeId, Trie};

use super::event::SessionId;
use crate::mqtt::packet::SubscriptionOptions;

/// One subscription of one session at its place in the trie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Subscriber {
    /// Whose.
    pub(super) session: SessionId,
    /// As granted.
    pub(super) options: SubscriptionOptions,
    /// Its id.
    pub(super) id: Option<u32>,
}
