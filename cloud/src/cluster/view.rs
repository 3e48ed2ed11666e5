//! What a node knows of its cluster at a moment: its nodes, and who owns which shard.
//!
//! In: a map, from the member task. Out: answers to the heads. A single node is a cluster of one that owns everything.
//! Not here: how the map comes about (`map`).

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::engine::ShardId;

/// Number of a node in its cluster, given once and never again. Kafka clients know it as the broker's id; from 1.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
pub struct NodeId(pub i32);

/// Where a node is found, each `host:port`; empty: not there.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Addresses {
    /// Kafka clients.
    pub kafka: String,
    /// MQTT clients and edges.
    pub mqtt: String,
    /// AMQP 0-9-1 clients.
    pub amqp: String,
    /// HTTP.
    pub admin: String,
    /// Enrolment of edges.
    pub est: String,
    /// The other nodes of the cluster.
    pub peer: String,
}

impl Addresses {
    pub(super) fn all_mut(&mut self) -> [&mut String; 6] {
        let Self { kafka, mqtt, amqp, admin, est, peer } = self;
        [kafka, mqtt, amqp, admin, est, peer]
    }
}

/// A node that lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its number.
    pub id: NodeId,
    /// Its name, as `--node` says.
    pub name: String,
    /// What clients and nodes are told.
    pub addresses: Addresses,
}

/// Who leads a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Leader {
    /// `None`: nobody at the moment.
    pub owner: Option<NodeId>,
    /// Rises with every change of the owner; Kafka clients know it as the leader epoch.
    pub epoch: i32,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// Version of the map it is from; 0: a single node.
    pub version: u64,
    /// The cluster's id; empty: a single node, whose id is kept with its data.
    pub cluster: String,
    /// This node.
    pub me: NodeId,
    /// Nodes that live, this one included.
    pub nodes: BTreeMap<NodeId, Arc<Node>>,
    /// By number of the shard.
    pub shards: Vec<Leader>,
}

impl View {
    /// The node that owns `shard`, if one does.
    pub fn owner(&self, shard: ShardId) -> Option<&Arc<Node>> {
        self.nodes.get(&self.leader(shard).owner?)
    }

    /// Owner and epoch of `shard`.
    pub fn leader(&self, shard: ShardId) -> Leader {
        self.shards.get(usize::from(shard.0)).copied().unwrap_or_default()
    }

    /// Whether the map gives `shard` to this node. Whether it serves it already is the log's to say.
    pub fn is_mine(&self, shard: ShardId) -> bool {
        self.leader(shard).owner == Some(self.me)
    }
}

/// The current view. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Cluster {
    view: watch::Receiver<Arc<View>>,
}

impl Cluster {
    /// What `view` says, now and later.
    pub fn new(view: watch::Receiver<Arc<View>>) -> Self {
        Self { view }
    }

    /// A single node that owns all `shards`.
    pub fn alone(addresses: Addresses, shards: u16) -> Self {
        let id = NodeId(1);
        let node = Arc::new(Node { id, name: "single".into(), addresses });
        let leader = Leader { owner: Some(id), epoch: 0 };
        let shards = vec![leader; usize::from(shards)];
        let view = View {
            version: 0,
            cluster: String::new(),
            me: id,
            nodes: BTreeMap::from([(id, node)]),
            shards,
        };
        // Nobody changes it: a receiver without its sender keeps the last value.
        Self { view: watch::channel(Arc::new(view)).1 }
    }

    /// As of now.
    pub fn view(&self) -> Arc<View> {
        self.view.borrow().clone()
    }

    /// Tells of changes.
    pub fn changes(&self) -> watch::Receiver<Arc<View>> {
        self.view.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_node_owns_everything() {
        let view = Cluster::alone(Addresses::default(), 3).view();
        assert!((0..3).all(|shard| view.is_mine(ShardId(shard))));
        assert!(!view.is_mine(ShardId(3)));
        assert_eq!(view.owner(ShardId(2)).map(|node| node.id), Some(NodeId(1)));
    }
}
