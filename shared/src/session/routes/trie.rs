//! The trie of filters: one node a level, so that finding a topic's subscribers costs its levels, not the subscriptions.

use bytestring::ByteString;

use super::{Group, Subscriber, children::Children};
use crate::{
    session::{event::SessionId, ids::IdMap},
    topic::filter::Subscribed,
};

/// A node's number; the root is 0 and nobody's child, so 0 also says "none".
pub(in super::super) type NodeId = u32;
const ROOT: NodeId = 0;

/// From this many subscribers of one filter on, they are found by a map.
const INDEXED: usize = 16;

/// All filters.
#[derive(Debug)]
pub(in super::super) struct Trie {
    nodes: Vec<Node>,
    free: Vec<NodeId>,
}

#[derive(Debug, Default)]
struct Node {
    parent: NodeId,
    /// Its name in the parent.
    level: Box<str>,
    children: Children,
    plus: NodeId,
    hash: NodeId,
    leaf: Leaf,
}

/// What ends at a node.
#[derive(Debug, Default)]
pub(in super::super) struct Leaf {
    subscribers: Vec<Subscriber>,
    index: IdMap<SessionId, usize>,
    groups: Vec<Group>,
}

impl Default for Trie {
    fn default() -> Self {
        Self { nodes: vec![Node::default()], free: Vec::new() }
    }
}

impl Trie {
    /// Adds or replaces a session's subscription. `full` is the filter as subscribed, `filter` the same taken apart.
    pub(in super::super) fn insert(
        &mut self,
        full: &ByteString,
        filter: Subscribed<'_>,
        subscriber: Subscriber,
    ) {
        let mut at = ROOT;
        for level in filter.filter.split('/') {
            at = self.child_or_new(at, level);
        }
        let Some(node) = self.nodes.get_mut(at as usize) else { return };
        if filter.share.is_none() {
            return node.leaf.insert(subscriber);
        }
        let groups = &mut node.leaf.groups;
        if let Some(group) = groups.iter_mut().find(|group| group.filter == *full) {
            return group.insert(subscriber);
        }
        let mut group = Group::new(full.clone());
        group.insert(subscriber);
        groups.push(group);
    }

    /// Removes a session's subscription and what becomes empty by that.
    pub(in super::super) fn remove(
        &mut self,
        full: &str,
        filter: Subscribed<'_>,
        session: SessionId,
    ) {
        let Some(at) = self.find(filter.filter) else { return };
        let Some(node) = self.nodes.get_mut(at as usize) else { return };
        if filter.share.is_none() {
            node.leaf.remove(session);
        } else if let Some(group) = node.leaf.groups.iter().position(|group| group.filter == full)
            && node.leaf.groups.get_mut(group).is_some_and(|group| group.remove(session))
        {
            node.leaf.groups.swap_remove(group);
        }
        self.prune(at);
    }

    /// Calls `visit` with every node whose filter matches `topic`.
    pub(in super::super) fn walk(&self, topic: &str, visit: &mut impl FnMut(NodeId, &Leaf)) {
        let wildcards = !topic.starts_with('$'); // MQTT-4.7.2-1
        self.descend(ROOT, Some(topic), wildcards, visit);
    }

    /// The shared group of a filter.
    pub(in super::super) fn group(&mut self, full: &str) -> Option<&mut Group> {
        let at = self.find(Subscribed::parse(full).ok()?.filter)?;
        let leaf = &mut self.nodes.get_mut(at as usize)?.leaf;
        leaf.groups.iter_mut().find(|group| group.filter == full)
    }

    /// A shared group found by [`Trie::walk`].
    pub(in super::super) fn group_at(&mut self, node: NodeId, index: usize) -> Option<&mut Group> {
        self.nodes.get_mut(node as usize)?.leaf.groups.get_mut(index)
    }

    fn descend(
        &self,
        at: NodeId,
        rest: Option<&str>,
        wildcards: bool,
        visit: &mut impl FnMut(NodeId, &Leaf),
    ) {
        let Some(node) = self.nodes.get(at as usize) else { return };
        if node.hash != 0
            && wildcards
            && let Some(below) = self.nodes.get(node.hash as usize)
        {
            visit(node.hash, &below.leaf);
        }
        let Some(rest) = rest else { return visit(at, &node.leaf) };
        // Levels are short: quicker than a search that is made for long texts.
        let end = rest.bytes().position(|byte| byte == b'/').unwrap_or(rest.len());
        let level = rest.get(..end).unwrap_or_default();
        let rest = rest.get(end + 1..);
        if node.plus != 0 && wildcards {
            self.descend(node.plus, rest, true, visit);
        }
        if let Some(child) = node.children.get(level) {
            self.descend(child, rest, true, visit);
        }
    }

    fn child(&self, at: NodeId, level: &str) -> Option<NodeId> {
        let node = self.nodes.get(at as usize)?;
        match level {
            "+" => (node.plus != 0).then_some(node.plus),
            "#" => (node.hash != 0).then_some(node.hash),
            _ => node.children.get(level),
        }
    }

    fn find(&self, pattern: &str) -> Option<NodeId> {
        pattern.split('/').try_fold(ROOT, |at, level| self.child(at, level))
    }

    fn child_or_new(&mut self, at: NodeId, level: &str) -> NodeId {
        if let Some(child) = self.child(at, level) {
            return child;
        }
        let node = Node { parent: at, level: level.into(), ..Node::default() };
        let child = if let Some(child) = self.free.pop() {
            if let Some(slot) = self.nodes.get_mut(child as usize) {
                *slot = node;
            }
            child
        } else {
            self.nodes.push(node);
            (self.nodes.len() - 1) as NodeId
        };
        if let Some(parent) = self.nodes.get_mut(at as usize) {
            match level {
                "+" => parent.plus = child,
                "#" => parent.hash = child,
                _ => parent.children.insert(level.into(), child),
            }
        }
        child
    }

    fn prune(&mut self, mut at: NodeId) {
        while at != ROOT {
            let Some(node) = self.nodes.get_mut(at as usize) else { return };
            if !node.is_empty() {
                return;
            }
            let node = std::mem::take(node);
            self.free.push(at);
            let Some(parent) = self.nodes.get_mut(node.parent as usize) else { return };
            match &*node.level {
                "+" => parent.plus = 0,
                "#" => parent.hash = 0,
                level => parent.children.remove(level),
            }
            at = node.parent;
        }
    }
}

impl Node {
    fn is_empty(&self) -> bool {
        self.children.is_empty()
            && self.plus == 0
            && self.hash == 0
            && self.leaf.subscribers.is_empty()
            && self.leaf.groups.is_empty()
    }
}

impl Leaf {
    /// Subscribers of exactly this filter.
    pub(in super::super) fn subscribers(&self) -> &[Subscriber] {
        &self.subscribers
    }

    /// How many shared groups there are; they are reached by [`Trie::group_at`].
    pub(in super::super) fn groups(&self) -> usize {
        self.groups.len()
    }

    fn position(&self, session: SessionId) -> Option<usize> {
        if self.index.is_empty() {
            self.subscribers.iter().position(|other| other.session == session)
        } else {
            self.index.get(&session).copied()
        }
    }

    fn insert(&mut self, subscriber: Subscriber) {
        if let Some(at) = self.position(subscriber.session) {
            if let Some(place) = self.subscribers.get_mut(at) {
                *place = subscriber;
            }
            return;
        }
        self.subscribers.push(subscriber);
        if !self.index.is_empty() {
            self.index.insert(subscriber.session, self.subscribers.len() - 1);
        } else if self.subscribers.len() > INDEXED {
            self.index =
                self.subscribers.iter().enumerate().map(|(at, one)| (one.session, at)).collect();
        }
    }

    fn remove(&mut self, session: SessionId) {
        let Some(at) = self.position(session) else { return };
        self.subscribers.swap_remove(at);
        if self.index.is_empty() {
            return;
        }
        self.index.remove(&session);
        if let Some(moved) = self.subscribers.get(at) {
            self.index.insert(moved.session, at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{mqtt::packet::SubscriptionOptions, topic::filter::matches};

    fn found(trie: &Trie, topic: &str) -> Vec<u64> {
        let mut found = Vec::new();
        trie.walk(topic, &mut |_, leaf| {
            found.extend(leaf.subscribers().iter().map(|one| one.session.0));
        });
        found.sort_unstable();
        found
    }

    fn subscriber(number: u64) -> Subscriber {
        Subscriber { session: SessionId(number), options: SubscriptionOptions::default(), id: None }
    }

    // [MQTT-3.3.2-3]
    #[test]
    fn the_trie_finds_what_matching_each_filter_finds_while_filters_come_and_go() {
        let levels = ["", "a", "b", "+", "$SYS", "#"];
        let mut patterns = Vec::new();
        for one in levels {
            patterns.push(one.to_owned());
            for two in levels {
                patterns.push(format!("{one}/{two}"));
                patterns.extend(levels.map(|three| format!("{one}/{two}/{three}")));
            }
        }
        patterns.retain(|pattern| Subscribed::parse(pattern).is_ok());
        let topics: Vec<&String> =
            patterns.iter().filter(|one| !one.contains(['+', '#'])).collect();
        let mut trie = Trie::default();
        let mut there = vec![false; patterns.len()];
        let mut random = 7_u64;
        for round in 0..600 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let at = (random >> 33) as usize % patterns.len();
            let (pattern, number) = (&patterns[at], at as u64);
            let filter = Subscribed::parse(pattern).unwrap();
            if there[at] {
                trie.remove(pattern, filter, SessionId(number));
            } else {
                trie.insert(&pattern.as_str().into(), filter, subscriber(number));
            }
            there[at] = !there[at];
            let topic = topics[round % topics.len()];
            let expected: Vec<u64> = (0..patterns.len())
                .filter(|&at| there[at] && matches(&patterns[at], topic))
                .map(|at| at as u64)
                .collect();
            assert_eq!(found(&trie, topic), expected, "{topic}");
        }
        for (at, pattern) in patterns.iter().enumerate() {
            trie.remove(pattern, Subscribed::parse(pattern).unwrap(), SessionId(at as u64));
        }
        assert_eq!(trie.nodes.len(), trie.free.len() + 1, "only the root is left");
    }

    #[test]
    fn many_subscribers_of_one_filter_are_each_there_once_until_they_leave() {
        let mut trie = Trie::default();
        let (full, filter) = (ByteString::from("a/b"), Subscribed::parse("a/b").unwrap());
        for number in (0..100).chain(0..100) {
            trie.insert(&full, filter, subscriber(number));
        }
        assert_eq!(found(&trie, "a/b"), (0..100).collect::<Vec<_>>());
        for number in (0..100).step_by(2) {
            trie.remove(&full, filter, SessionId(number));
        }
        assert_eq!(found(&trie, "a/b"), (1..100).step_by(2).collect::<Vec<_>>());
    }
}
