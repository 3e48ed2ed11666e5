//! A node's children by name.
//!
//! Names are chosen by peers, so a map of them needs a hash that resists them, which costs more than comparing with the
//! few children that most nodes have. Not here: wildcards, which have places of their own (`trie`).

use std::collections::HashMap;

use super::NodeId;

/// Up to so many are compared one by one.
const FEW: usize = 8;

/// The children.
#[derive(Debug)]
pub(super) enum Children {
    Few(Vec<(Box<str>, NodeId)>),
    Many(HashMap<Box<str>, NodeId>),
}

impl Default for Children {
    fn default() -> Self {
        Self::Few(Vec::new())
    }
}

impl Children {
    pub(super) fn get(&self, name: &str) -> Option<NodeId> {
        match self {
            Self::Few(few) => few.iter().find(|(of, _)| **of == *name).map(|(_, child)| *child),
            Self::Many(many) => many.get(name).copied(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::Few(few) => few.is_empty(),
            Self::Many(many) => many.is_empty(),
        }
    }

    /// Adds one that is not there.
    pub(super) fn insert(&mut self, name: Box<str>, child: NodeId) {
        match self {
            Self::Few(few) if few.len() < FEW => few.push((name, child)),
            Self::Few(few) => {
                let mut many: HashMap<_, _> = few.drain(..).collect();
                many.insert(name, child);
                *self = Self::Many(many);
            }
            Self::Many(many) => drop(many.insert(name, child)),
        }
    }

    /// Nothing is kept for children that are gone.
    pub(super) fn remove(&mut self, name: &str) {
        match self {
            Self::Few(few) => few.retain(|(of, _)| **of != *name),
            Self::Many(many) => drop(many.remove(name)),
        }
        if self.is_empty() {
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_are_found_until_they_are_removed_however_many_there_are() {
        for count in [1, FEW as NodeId, FEW as NodeId + 1, 100] {
            let mut children = Children::default();
            for child in 1..=count {
                children.insert(child.to_string().into(), child);
            }
            for child in 1..=count {
                let name = child.to_string();
                assert_eq!(children.get(&name), Some(child));
                children.remove(&name);
                assert_eq!(children.get(&name), None);
                assert_eq!(children.is_empty(), child == count);
            }
            assert!(matches!(children, Children::Few(few) if few.capacity() == 0));
        }
    }
}
