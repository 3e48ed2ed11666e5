//! The map: who owns which shard, as all nodes read it. PURE.
//!
//! In: the map before and what became true. Out: the next version. Every change is a whole new map, created under the next
//! number, so that of two who change the same map one fails and looks again.
//! Promises: a shard has at most one owner; its epoch rises whenever the owner, or the owner's incarnation, changes; a node's
//! number is never given to another name. Change here: what a map says. Not here: who gets a shard (`placement`).

use std::{collections::BTreeMap, fmt, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{Addresses, Leader, Node, NodeId, View};
use crate::engine::ShardId;

/// Of the form below.
pub const FORMAT: u32 = 1;
/// Nodes that are gone and whose numbers are kept for when they come back; of more, the lowest are forgotten.
const GONE_KEPT: usize = 500;

/// One life of a node: random, made at its start and again when others gave it up. What a node holds ends with it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Incarnation(pub String);

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How a node stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// It may own shards.
    Up,
    /// It hands its shards over and gets none.
    Leaving,
    /// It left, or was given up.
    Gone,
}

/// A node in the map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// As `--node` says.
    pub name: String,
    /// Its present life, or its last.
    pub incarnation: Incarnation,
    /// How it stands.
    pub standing: Standing,
    /// Where it is found.
    pub addresses: Addresses,
}

/// A shard in the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Place {
    /// Who may serve it.
    pub owner: Option<NodeId>,
    /// Rises with each owner.
    pub epoch: i32,
    /// To whom the owner hands it over: it stops serving, then makes that one the owner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<NodeId>,
}

impl Place {
    /// Who owns it when all moves are done.
    pub fn target(&self) -> Option<NodeId> {
        self.next.or(self.owner)
    }

    pub(super) fn give(&mut self, owner: Option<NodeId>) {
        *self = Self { owner, epoch: self.epoch.saturating_add(1), next: None };
    }
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Map {
    /// [`FORMAT`]
    pub format: u32,
    /// From 1; each is created once.
    pub version: u64,
    /// The cluster's name.
    pub cluster: String,
    /// The cluster's id, made with it.
    pub id: String,
    /// Number of the next new node.
    pub next_node: i32,
    /// All that have a number.
    pub nodes: BTreeMap<NodeId, Member>,
    /// By number.
    pub shards: Vec<Place>,
}

/// Who joins.
#[derive(Debug, Clone)]
pub struct Newcomer {
    /// As `--node` says.
    pub name: String,
    /// This life.
    pub incarnation: Incarnation,
    /// Where it is found.
    pub addresses: Addresses,
}

impl Map {
    /// Before the first version: nobody owns anything.
    pub fn empty(cluster: &str, id: &str, shards: u16) -> Self {
        Self {
            format: FORMAT,
            version: 0,
            cluster: cluster.to_owned(),
            id: id.to_owned(),
            next_node: 1,
            nodes: BTreeMap::new(),
            shards: vec![Place::default(); usize::from(shards)],
        }
    }

    /// As stored under `version`.
    pub fn read(version: u64, bytes: &[u8]) -> Result<Self, String> {
        let map: Self = serde_json::from_slice(bytes).map_err(|error| {
            format!("version {version} of the cluster's map is broken: {error}")
        })?;
        if map.format != FORMAT {
            return Err(format!(
                "the cluster's map has form {}, this program reads {FORMAT}: run the same release on all nodes",
                map.format
            ));
        }
        if map.version != version {
            return Err(format!("the cluster's map {version} says it is {}", map.version));
        }
        Ok(map)
    }

    /// For [`Map::read`].
    pub fn bytes(&self) -> Vec<u8> {
        // A struct of strings and numbers cannot fail.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Number and entry of a name.
    pub fn named(&self, name: &str) -> Option<(NodeId, &Member)> {
        let named = |(_, member): &(&NodeId, &Member)| member.name == name;
        self.nodes.iter().find(named).map(|(id, member)| (*id, member))
    }

    /// Nodes that may own shards, in order.
    pub fn up(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.nodes.iter().filter(|(_, m)| m.standing == Standing::Up).map(|(id, _)| *id)
    }

    /// Nodes that are not gone.
    pub fn living(&self) -> impl Iterator<Item = (NodeId, &Member)> + '_ {
        self.nodes.iter().filter(|(_, m)| m.standing != Standing::Gone).map(|(id, m)| (*id, m))
    }

    /// Entry of shard `shard`.
    pub fn place(&self, shard: ShardId) -> Place {
        self.shards.get(usize::from(shard.0)).copied().unwrap_or_default()
    }

    /// All shards with their numbers.
    pub fn places(&self) -> impl Iterator<Item = (ShardId, Place)> + '_ {
        (0..).map(ShardId).zip(self.shards.iter().copied())
    }

    /// Adds a newcomer, or a new life of a node known by that name: what the old life owned is the new one's, in a new epoch.
    pub fn join(&mut self, newcomer: &Newcomer) -> NodeId {
        let known = self.named(&newcomer.name).map(|(id, _)| id);
        let id = known.unwrap_or(NodeId(self.next_node));
        if known.is_none() {
            self.next_node = self.next_node.saturating_add(1);
        }
        for place in self.shards.iter_mut().filter(|place| place.owner == Some(id)) {
            place.give(Some(id));
        }
        let Newcomer { name, incarnation, addresses } = newcomer.clone();
        let member = Member { name, incarnation, standing: Standing::Up, addresses };
        self.nodes.insert(id, member);
        id
    }

    /// `id` wants no shards any more, and hands over what it has.
    pub fn leave(&mut self, id: NodeId) {
        if let Some(member) = self.nodes.get_mut(&id)
            && member.standing == Standing::Up
        {
            member.standing = Standing::Leaving;
        }
    }

    /// `id` left, or its heartbeats were ended by others: nobody owns what it owned.
    pub fn remove(&mut self, id: NodeId) {
        if let Some(member) = self.nodes.get_mut(&id) {
            member.standing = Standing::Gone;
        }
        for place in &mut self.shards {
            if place.owner == Some(id) {
                // A move that was under way ends where it was to.
                place.give(place.next.filter(|next| *next != id));
            }
        }
        let gone = |m: &Member| m.standing == Standing::Gone;
        while self.nodes.values().filter(|m| gone(m)).count() > GONE_KEPT {
            let Some(id) = self.nodes.iter().find(|(_, m)| gone(m)).map(|(id, _)| *id) else {
                break;
            };
            self.nodes.remove(&id);
        }
    }

    /// `from` has stopped serving `shard`: whom it was to go to owns it now.
    pub fn hand_over(&mut self, shard: ShardId, from: NodeId) {
        if let Some(place) = self.shards.get_mut(usize::from(shard.0))
            && place.owner == Some(from)
            && let Some(next) = place.next
        {
            place.give(Some(next));
        }
    }

    /// What `me` tells heads and clients of it.
    pub fn view(&self, me: NodeId) -> View {
        let node = |(id, member): (NodeId, &Member)| {
            let (name, addresses) = (member.name.clone(), member.addresses.clone());
            (id, Arc::new(Node { id, name, addresses }))
        };
        View {
            version: self.version,
            cluster: self.id.clone(),
            me,
            nodes: self.living().map(node).collect(),
            shards: self.shards.iter().map(|p| Leader { owner: p.owner, epoch: p.epoch }).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn newcomer(name: &str, life: &str) -> Newcomer {
        Newcomer {
            name: name.into(),
            incarnation: Incarnation(life.into()),
            addresses: Addresses::default(),
        }
    }

    fn two() -> Map {
        let mut map = Map::empty("c", "id", 3);
        let (a, b) = (map.join(&newcomer("a", "1")), map.join(&newcomer("b", "1")));
        map.shards[0].give(Some(a));
        map.shards[1].give(Some(b));
        map
    }

    #[test]
    fn a_map_is_read_as_it_was_written_and_only_under_its_own_number() {
        let mut map = two();
        map.version = 7;
        map.shards[0].next = Some(NodeId(2));
        assert_eq!(Map::read(7, &map.bytes()), Ok(map.clone()));
        assert!(Map::read(8, &map.bytes()).is_err());
        assert!(Map::read(7, b"{}").unwrap_err().contains("version 7"));
        let newer = Map { format: 2, ..map };
        assert!(Map::read(7, &newer.bytes()).unwrap_err().contains("same release"));
    }

    #[test]
    fn a_name_keeps_its_number_and_a_new_life_has_a_new_epoch() {
        let mut map = two();
        let before = map.place(ShardId(0));
        assert_eq!(map.join(&newcomer("a", "2")), NodeId(1));
        let after = map.place(ShardId(0));
        assert_eq!((after.owner, after.epoch), (before.owner, before.epoch + 1));
        assert_eq!(map.place(ShardId(1)).epoch, 1, "another's shard is as it was");
        map.remove(NodeId(1));
        assert_eq!(map.join(&newcomer("c", "1")), NodeId(3), "numbers are not given again");
        assert_eq!(map.join(&newcomer("a", "3")), NodeId(1));
    }

    #[test]
    fn a_handed_over_shard_goes_where_it_was_to_and_only_from_its_owner() {
        let mut map = two();
        map.shards[0].next = Some(NodeId(2));
        map.hand_over(ShardId(0), NodeId(2));
        assert_eq!(map.place(ShardId(0)).owner, Some(NodeId(1)));
        map.hand_over(ShardId(0), NodeId(1));
        assert_eq!(map.place(ShardId(0)), Place { owner: Some(NodeId(2)), epoch: 2, next: None });
        map.hand_over(ShardId(1), NodeId(2));
        assert_eq!(map.place(ShardId(1)).owner, Some(NodeId(2)), "nobody is to have it");
    }

    #[test]
    fn who_is_given_up_owns_nothing_and_its_moves_end() {
        let mut map = two();
        map.shards[0].next = Some(NodeId(2));
        map.remove(NodeId(1));
        assert_eq!(map.place(ShardId(0)).owner, Some(NodeId(2)));
        map.remove(NodeId(2));
        assert!(map.places().all(|(_, place)| place.owner.is_none()));
        assert_eq!(map.view(NodeId(1)).nodes.len(), 0);
    }

    #[test]
    fn nodes_that_are_long_gone_are_forgotten() {
        let mut map = Map::empty("c", "id", 1);
        for node in 0..GONE_KEPT + 9 {
            let id = map.join(&newcomer(&format!("n{node}"), "1"));
            map.remove(id);
        }
        assert_eq!(map.nodes.len(), GONE_KEPT);
        assert_eq!(map.join(&newcomer("n0", "2")), NodeId(GONE_KEPT as i32 + 10));
    }
}
