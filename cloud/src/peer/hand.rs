//! Handing a client's connection on to the node that serves its shard, and letting it go when that changes.
//!
//! In: a shard, and for whom. Out: [`Reached`]. Change here: how long a client waits for an owner.
//! Not here: what is sent before the client's own bytes (`proxy`).

use std::{sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, copy_bidirectional},
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{Header, Peers, Stream, Unreachable, count};
use crate::{
    cluster::{NodeId, View},
    engine::ShardId,
    log::Log,
};

/// A client waits so long for a shard to have an owner that answers: a take-over is done by then, and clients still wait.
const OWNER: Duration = Duration::from_secs(8);
/// One that was handed on waits less: the map of the node that it came to may have been wrong.
const OPENED: Duration = Duration::from_secs(4);
/// In this time a map is known to all nodes that look at it.
const HEARD: Duration = Duration::from_secs(1);
/// Between attempts, unless the map changes.
const AGAIN_AFTER: Duration = Duration::from_millis(250);

/// Where a shard is served.
pub enum Reached {
    /// By this node.
    Here,
    /// By another, which has the header already.
    There(Away),
    /// By nobody that answered in time: refuse, so that the client comes again.
    Nobody,
}

/// A connection to an owner, for a client.
pub struct Away {
    stream: Stream,
    changes: watch::Receiver<Arc<View>>,
    shard: ShardId,
    owner: NodeId,
}

impl Peers {
    /// Connects a client to who serves `shard`; waits a while for somebody to do so.
    pub async fn reach(&self, log: &Log, shard: ShardId, header: &Header) -> Reached {
        let mut changes = self.cluster.changes();
        let deadline = Instant::now() + OWNER;
        let mut last: Option<Unreachable> = None;
        loop {
            let view = changes.borrow_and_update().clone();
            if log.is_here(shard) {
                return Reached::Here;
            }
            if view.is_mine(shard) {
                last = None;
            } else if let Some(node) = view.owner(shard) {
                match self.connect(node, header).await {
                    Ok(stream) => {
                        count(&self.counters.handed_on);
                        return Reached::There(Away { stream, changes, shard, owner: node.id });
                    }
                    Err(error) => last = Some(error),
                }
            }
            if Instant::now() >= deadline || matches!(last, Some(Unreachable::Header(_))) {
                let why = last.map(|error| error.to_string());
                let why = why.unwrap_or_else(|| "no node owns it at the moment".to_owned());
                count(&self.counters.nobody);
                tracing::warn!(
                    shard = shard.0,
                    why,
                    "a client is refused: its shard is served nowhere"
                );
                return Reached::Nobody;
            }
            tokio::select! {
                Ok(()) = changes.changed() => {}
                Ok(_) = log.here(shard) => {}
                () = sleep(AGAIN_AFTER) => {}
            }
        }
    }

    /// Waits a while until `shard` is served here, for a client that another node has handed on. False: refuse it. When the map
    /// gives the shard to another that is soon: the node that handed it on hears of that, too.
    pub async fn is_here(&self, log: &Log, shard: ShardId) -> bool {
        let elsewhere = async {
            let mut changes = self.cluster.changes();
            loop {
                let mine = changes.wait_for(|view| view.is_mine(shard));
                if !matches!(timeout(HEARD, mine).await, Ok(Ok(_))) {
                    return;
                }
                if changes.wait_for(|view| !view.is_mine(shard)).await.is_err() {
                    return std::future::pending().await;
                }
            }
        };
        let here = tokio::select! {
            here = timeout(OPENED, log.here(shard)) => matches!(here, Ok(Ok(_))),
            () = elsewhere => false,
        };
        if !here {
            count(&self.counters.nobody);
            tracing::warn!(
                shard = shard.0,
                "a client that was handed on is refused: its shard is not here"
            );
        }
        here
    }
}

impl Away {
    /// Carries bytes both ways, `first` before the client's others, until either end is done, the shard has another owner, or
    /// `stop`.
    pub async fn splice<S>(self, mut client: S, first: &[u8], stop: &CancellationToken)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let Self { mut stream, mut changes, shard, owner } = self;
        let moved = async {
            let other = |view: &Arc<View>| view.leader(shard).owner != Some(owner);
            if changes.wait_for(other).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let carrying = async {
            stream.write_all(first).await?;
            stream.flush().await?;
            copy_bidirectional(&mut client, &mut stream).await
        };
        tokio::select! {
            ended = carrying => if let Err(error) = ended {
                tracing::debug!(shard = shard.0, owner = owner.0, %error, "a connection that was handed on ended");
            },
            () = moved => tracing::debug!(shard = shard.0, owner = owner.0, "a client is let go: its shard has moved"),
            () = stop.cancelled() => {}
        }
    }
}
