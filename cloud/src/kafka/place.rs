//! What is served here and what elsewhere: partitions and groups by the shards they live in, and where the other nodes are.
//!
//! In: the cluster's view, what the log has open. Out: a leader's epoch, or the code that sends a client on.
//! A shard that the map gives to this node but that is still opening is waited for, so that a move is a pause for clients and
//! no error. Change here: who is asked to go elsewhere. Not here: who owns a shard (`cluster`), whether it is open (`log`).

use std::sync::Arc;

use tokio::time::{Duration, Instant, sleep_until};

use super::{Client, Head, error::Code};
use crate::{
    cluster::{Leader, Node, NodeId, View},
    engine::ShardId,
    group::GroupError,
    log::{LogError, PartitionId},
};

/// How long a request waits for a shard that is being opened here: longer than that takes, shorter than clients wait for an
/// answer.
const OPENING_WAIT: Duration = Duration::from_secs(2);

/// Until when one request waits for shards, all of them together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience(Instant);

impl Patience {
    pub(super) fn begin() -> Self {
        Self(Instant::now() + OPENING_WAIT)
    }
}

/// Why a shard is not served here.
enum Elsewhere {
    /// The map gives it to another node, or to none.
    NotMine,
    /// It is not open yet.
    Opening,
}

/// Of a node, as clients are told.
pub(super) struct Endpoint {
    pub(super) id: i32,
    pub(super) host: String,
    pub(super) port: i32,
}

/// Leaders that an answer names, and where they are: who is refused need not ask (KIP-951).
#[derive(Default)]
pub(super) struct Named {
    /// Each once.
    pub(super) nodes: Vec<Endpoint>,
}

impl Named {
    /// Notes the leader down. Its id and epoch as the answer has them; `None`: nobody can be sent there.
    pub(super) fn leader(
        &mut self,
        client: &Client,
        view: &View,
        leader: Leader,
    ) -> Option<(i32, i32)> {
        let node = view.nodes.get(&leader.owner?)?;
        if self.nodes.iter().all(|known| known.id != node.id.0) {
            self.nodes.push(client.endpoint(view, node)?);
        }
        Some((node.id.0, leader.epoch))
    }
}

/// A node's id as Kafka has it; -1: nobody.
pub(super) fn number(node: Option<NodeId>) -> i32 {
    node.map_or(-1, |node| node.0)
}

/// A client may name the leader epoch it knows; -1: it does not.
pub(super) fn check_epoch(said: i32, epoch: i32) -> Result<(), Code> {
    match said {
        ..0 => Ok(()),
        // Its metadata are old.
        said if said < epoch => Err(Code::FencedLeaderEpoch),
        said if said > epoch => Err(Code::UnknownLeaderEpoch),
        _ => Ok(()),
    }
}

impl Head {
    /// The cluster's id as Kafka clients know it.
    pub(super) fn cluster_id(&self, view: &View) -> String {
        if view.cluster.is_empty() { self.own_id.clone() } else { view.cluster.clone() }
    }

    /// Who leads a partition.
    pub(super) fn leader(&self, view: &View, partition: PartitionId) -> Leader {
        self.log.shard_of(partition).map(|shard| view.leader(shard)).unwrap_or_default()
    }

    /// The epoch in which this node leads the partition.
    pub(super) async fn leads(
        &self,
        partition: PartitionId,
        patience: Patience,
    ) -> Result<i32, Code> {
        let shard = self.log.shard_of(partition).map_err(|error| Code::from(&error))?;
        self.serves(shard, patience).await.map_err(|_| Code::NotLeaderOrFollower)
    }

    /// Who leads a partition that is not served here. Waits while that is being settled. `None`: nobody else does.
    pub(super) async fn gone_to(
        &self,
        partition: PartitionId,
        Patience(until): Patience,
    ) -> Option<(Arc<View>, Leader)> {
        let shard = self.log.shard_of(partition).ok()?;
        let mut changes = self.cluster.changes();
        loop {
            let view = Arc::clone(&changes.borrow_and_update());
            let leader = view.leader(shard);
            if leader.owner.is_some_and(|owner| owner != view.me) {
                return Some((view, leader));
            }
            // Led here again, or by nobody for longer than anybody waits.
            if leader.owner.is_none() || self.log.is_here(shard) {
                return None;
            }
            tokio::select! {
                changed = changes.changed() => changed.ok()?,
                () = sleep_until(until) => return None,
                () = self.stop.cancelled() => return None,
            }
        }
    }

    /// Whether this node coordinates the group.
    pub(super) async fn coordinates(&self, group: &str, patience: Patience) -> Result<(), Code> {
        match self.serves(self.log.home_shard(group), patience).await {
            Ok(_) => Ok(()),
            Err(Elsewhere::NotMine) => Err(Code::NotCoordinator),
            Err(Elsewhere::Opening) => Err(Code::CoordinatorLoadInProgress),
        }
    }

    /// What a group's refusal is to a client: where the group has left meanwhile, to look for it anew.
    pub(super) fn group_code(&self, group: &str, error: &GroupError) -> Code {
        let left = || !self.cluster.view().is_mine(self.log.home_shard(group));
        match error {
            GroupError::Restarting | GroupError::Log(LogError::NotOwner) if left() => {
                Code::NotCoordinator
            }
            // Ours, and closed at the moment: it opens again, or goes.
            GroupError::Log(LogError::NotOwner) => Code::CoordinatorLoadInProgress,
            error => error.into(),
        }
    }

    /// Waits until the shard is served here, as long as it is to be; returns its epoch.
    async fn serves(&self, shard: ShardId, Patience(until): Patience) -> Result<i32, Elsewhere> {
        let here = |view: &View| view.is_mine(shard) && self.log.is_here(shard);
        let view = self.cluster.view();
        if here(&view) {
            return Ok(view.leader(shard).epoch);
        }
        let mut changes = self.cluster.changes();
        loop {
            let view = Arc::clone(&changes.borrow_and_update());
            if !view.is_mine(shard) {
                return Err(Elsewhere::NotMine);
            }
            if here(&view) {
                return Ok(view.leader(shard).epoch);
            }
            let changed = async {
                if changes.changed().await.is_err() {
                    // A single node: nothing will.
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = changed => {}
                opened = self.log.here(shard) => if opened.is_err() {
                    return Err(Elsewhere::Opening);
                },
                () = sleep_until(until) => return Err(Elsewhere::Opening),
                () = self.stop.cancelled() => return Err(Elsewhere::Opening),
            }
        }
    }
}

impl Client {
    /// Where clients find a node.
    pub(super) fn endpoint(&self, view: &View, node: &Node) -> Option<Endpoint> {
        let id = node.id.0;
        if let Some((host, port)) = node.addresses.kafka.rsplit_once(':') {
            let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
            return port.parse().ok().map(|port: u16| Endpoint { id, host, port: port.into() });
        }
        if node.id != view.me {
            return None;
        }
        let settings = &self.head.settings;
        let host = match settings.advertised_host.as_str() {
            "" => self.came_to?.ip().to_string(),
            host => host.to_owned(),
        };
        let port = match settings.advertised_port {
            0 => self.came_to?.port(),
            port => port,
        };
        Some(Endpoint { id, host, port: port.into() })
    }

    /// All nodes that Kafka clients can go to.
    pub(super) fn endpoints(&self, view: &View) -> Vec<Endpoint> {
        view.nodes.values().filter_map(|node| self.endpoint(view, node)).collect()
    }
}
