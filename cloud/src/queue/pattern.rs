//! Topic patterns of AMQP (`*` = one word, `#` = none or more) in a trie that is walked once a key, without backtracking.
//!
//! In: patterns with a value each. Out: all values whose pattern matches a key, in time linear in words x nodes reached.
//! A node's number is stable, so a set of active nodes is a small vector. Not here: what the values mean (`exchange`).

use std::collections::HashMap;

use bytestring::ByteString;

/// Patterns and their values.
#[derive(Debug)]
pub struct Patterns<T> {
    nodes: Vec<Node<T>>,
    free: Vec<usize>,
}

#[derive(Debug)]
struct Node<T> {
    words: HashMap<ByteString, usize>,
    star: Option<usize>,
    hash: Option<usize>,
    /// This node was reached by `#`: it stays active for every further word.
    sticky: bool,
    values: Vec<T>,
}

impl<T> Node<T> {
    fn new(sticky: bool) -> Self {
        Self { words: HashMap::new(), star: None, hash: None, sticky, values: Vec::new() }
    }

    fn child(&self, word: &str) -> Option<usize> {
        match word {
            "*" => self.star,
            "#" => self.hash,
            _ => self.words.get(word).copied(),
        }
    }

    fn is_empty(&self) -> bool {
        self.words.is_empty()
            && self.star.is_none()
            && self.hash.is_none()
            && self.values.is_empty()
    }
}

impl<T> Default for Patterns<T> {
    fn default() -> Self {
        Self { nodes: vec![Node::new(false)], free: Vec::new() }
    }
}

impl<T: PartialEq> Patterns<T> {
    /// Adds a value under a pattern; the caller keeps them unique.
    pub fn insert(&mut self, pattern: &str, value: T) {
        let mut at = 0;
        for word in words(pattern) {
            let next = self.nodes.get(at).and_then(|node| node.child(word));
            at = match next {
                Some(next) => next,
                None => self.grow(at, word),
            };
        }
        if let Some(node) = self.nodes.get_mut(at) {
            node.values.push(value);
        }
    }

    fn grow(&mut self, parent: usize, word: &str) -> usize {
        let node = Node::new(word == "#");
        let new = self.free.pop().unwrap_or(self.nodes.len());
        match self.nodes.get_mut(new) {
            Some(slot) => *slot = node,
            None => self.nodes.push(node),
        }
        if let Some(parent) = self.nodes.get_mut(parent) {
            match word {
                "*" => parent.star = Some(new),
                "#" => parent.hash = Some(new),
                _ => drop(parent.words.insert(word.into(), new)),
            }
        }
        new
    }

    /// Removes a value and the nodes that nothing needs any more.
    pub fn remove(&mut self, pattern: &str, value: &T) {
        let mut path = vec![0];
        let mut at = 0;
        for word in words(pattern) {
            let Some(next) = self.nodes.get(at).and_then(|node| node.child(word)) else { return };
            path.push(next);
            at = next;
        }
        if let Some(node) = self.nodes.get_mut(at) {
            node.values.retain(|v| v != value);
        }
        let steps: Vec<&str> = words(pattern).collect();
        for (depth, word) in steps.iter().enumerate().rev() {
            let (Some(&parent), Some(&child)) = (path.get(depth), path.get(depth + 1)) else {
                return;
            };
            if !self.nodes.get(child).is_some_and(Node::is_empty) {
                return;
            }
            self.free.push(child);
            if let Some(parent) = self.nodes.get_mut(parent) {
                match *word {
                    "*" => parent.star = None,
                    "#" => parent.hash = None,
                    word => drop(parent.words.remove(word)),
                }
            }
        }
    }

    /// Calls `found` for each value whose pattern matches `key`.
    pub fn matches<'a>(&'a self, key: &str, mut found: impl FnMut(&'a T)) {
        let mut active = Vec::with_capacity(8);
        self.activate(0, &mut active);
        for word in words(key) {
            let mut next = Vec::with_capacity(active.len());
            for &at in &active {
                let Some(node) = self.nodes.get(at) else { continue };
                if node.sticky {
                    self.activate(at, &mut next);
                }
                if let Some(&child) = node.words.get(word) {
                    self.activate(child, &mut next);
                }
                if let Some(star) = node.star {
                    self.activate(star, &mut next);
                }
            }
            active = next;
            if active.is_empty() {
                return;
            }
        }
        for at in active {
            if let Some(node) = self.nodes.get(at) {
                node.values.iter().for_each(&mut found);
            }
        }
    }

    /// Adds a node once, and every `#` below it, since that matches no word too.
    fn activate(&self, at: usize, active: &mut Vec<usize>) {
        let mut next = Some(at);
        while let Some(at) = next {
            if active.contains(&at) {
                return;
            }
            active.push(at);
            next = self.nodes.get(at).and_then(|node| node.hash);
        }
    }
}

/// Words between dots; the empty text has none.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split('.').take(if text.is_empty() { 0 } else { usize::MAX })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pattern: &str, key: &str) -> bool {
        let mut patterns = Patterns::default();
        patterns.insert(pattern, ());
        let mut found = 0;
        patterns.matches(key, |()| found += 1);
        assert!(found <= 1, "{pattern} {key}: a value is found once");
        patterns.remove(pattern, &());
        assert_eq!(patterns.free.len() + 1, patterns.nodes.len(), "nothing is left behind");
        found == 1
    }

    #[test]
    fn words_match_as_the_standard_says() {
        for (pattern, key, expected) in [
            ("a.b", "a.b", true),
            ("a.b", "a.c", false),
            ("a.*", "a.b", true),
            ("a.*", "a", false),
            ("a.*", "a.b.c", false),
            ("*", "", false),
            ("#", "", true),
            ("", "", true),
            ("", "a", false),
            ("#", "a.b.c", true),
            ("a.#", "a", true),
            ("a.#", "a.b.c", true),
            ("#.c", "a.b.c", true),
            ("#.c", "c", true),
            ("#.c", "c.d", false),
            ("a.#.z", "a.z", true),
            ("a.#.z", "a.b.c.z", true),
            ("a.#.z", "a.b.c", false),
            ("*.#.*", "a", false),
            ("*.#.*", "a.b", true),
            ("#.#", "", true),
            ("#.*.#", "", false),
            ("a..b", "a..b", true),
            ("a.*.b", "a..b", true),
            (".lead", ".lead", true),
            ("*.lead", ".lead", true),
            ("trail.*", "trail.", true),
        ] {
            assert_eq!(check(pattern, key), expected, "{pattern} {key}");
        }
    }

    #[test]
    fn many_hashes_cost_no_more_than_their_number() {
        let mut patterns = Patterns::default();
        patterns.insert(&["#"; 120].join(".a."), 1);
        patterns.insert(&["#"; 120].join("."), 2);
        let key = ["a"; 127].join(".");
        let mut found = Vec::new();
        patterns.matches(&key, |v| found.push(*v));
        found.sort_unstable();
        assert_eq!(found, [1, 2]);
    }

    #[test]
    fn removing_one_pattern_leaves_the_others() {
        let mut patterns = Patterns::default();
        for (i, p) in ["a.#", "a.#", "a.*.c", "a.b.c"].iter().enumerate() {
            patterns.insert(p, i);
        }
        patterns.remove("a.#", &0);
        patterns.remove("a.b.c", &3);
        patterns.remove("never.was", &9);
        let mut found = Vec::new();
        patterns.matches("a.b.c", |v| found.push(*v));
        found.sort_unstable();
        assert_eq!(found, [1, 2]);
    }
}
