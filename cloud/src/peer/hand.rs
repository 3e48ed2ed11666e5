//! Handing a client's connection on to the node that serves its shard, and letting it go when that changes.
//!
//! A node that was handed a client and does not serve its shard closes without a word: then another is looked for, as long as
//! the client has heard nothing. In: a client, its first bytes, a shard. Out: [`HandedOn`]. Change here: how long a client waits
//! for an owner. Not here: what is sent before the client's own bytes (`proxy`).

use std::{sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, copy_bidirectional},
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

/// A client that was given back so often by a node that the map calls the owner is refused.
const GIVEN_BACK_MAX: u32 = 8;
/// Of the owner's first answer.
const ANSWER_BYTES: usize = 4 * 1024;

/// What became of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandedOn {
    /// Nothing yet: its shard is here.
    Here,
    /// It was served by another node, or this one ends; its connection is over.
    Served,
    /// Nobody took it in time: refuse it, so that it comes again.
    Nobody,
}

/// Where a shard is served.
pub(super) enum Reached {
    /// By this node.
    Here,
    /// By another, which has the header already.
    There(Away),
    /// By nobody that answered in time.
    Nobody,
}

/// A connection to an owner, for a client.
pub(super) struct Away {
    stream: Stream,
    changes: watch::Receiver<Arc<View>>,
    shard: ShardId,
    owner: NodeId,
}

impl Peers {
    /// Has a client served by who serves `shard`. An owner gets `first`, which may be said twice, and nothing more until it has
    /// answered that: messages behind a CONNECT must not reach two owners. Then `rest`, which was read already, and the
    /// client's other bytes. If `first` is empty they go as they come, to one owner only.
    pub async fn hand_on<S>(
        &self,
        log: &Log,
        shard: ShardId,
        header: &Header,
        client: &mut S,
        (first, rest): (&[u8], &[u8]),
        stop: &CancellationToken,
    ) -> HandedOn
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let deadline = Instant::now() + OWNER;
        let mut given_back = 0;
        loop {
            let reached = stop.run_until_cancelled(self.reach(log, shard, header, deadline)).await;
            let away = match reached {
                Some(Reached::Here) => return HandedOn::Here,
                Some(Reached::Nobody) => return HandedOn::Nobody,
                Some(Reached::There(away)) => away,
                // This node ends: the client is not told more than that.
                None => return HandedOn::Served,
            };
            let (owner, mut changes) = (away.owner, away.changes.clone());
            if !away.carry(client, (first, rest), stop).await {
                return HandedOn::Served;
            }
            given_back += 1;
            if given_back >= GIVEN_BACK_MAX {
                tracing::debug!(
                    shard = shard.0,
                    owner = owner.0,
                    "a client was given back too often"
                );
                return HandedOn::Nobody;
            }
            let other = |view: &Arc<View>| view.leader(shard).owner != Some(owner);
            let _ = timeout(AGAIN_AFTER, changes.wait_for(other)).await;
        }
    }

    /// Connects to who serves `shard`; waits for somebody to do so.
    pub(super) async fn reach(
        &self,
        log: &Log,
        shard: ShardId,
        header: &Header,
        deadline: Instant,
    ) -> Reached {
        let mut changes = self.cluster.changes();
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

    /// Waits a while until `shard` is served here, for a client that another node has handed on. False: close without a word,
    /// so that it is handed to another. When the map has given the shard to another that is at once; a map that does not give
    /// it to this node yet may be older than the other node's.
    pub async fn is_here(&self, log: &Log, shard: ShardId, stop: &CancellationToken) -> bool {
        let elsewhere = async {
            let mut changes = self.cluster.changes();
            let mine = changes.wait_for(|view| view.is_mine(shard));
            if !matches!(timeout(HEARD, mine).await, Ok(Ok(_))) {
                return;
            }
            if changes.wait_for(|view| !view.is_mine(shard)).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let here = tokio::select! {
            here = timeout(OPENED, log.here(shard)) => matches!(here, Ok(Ok(_))),
            () = elsewhere => false,
            () = stop.cancelled() => false,
        };
        if !here {
            count(&self.counters.given_back);
            tracing::debug!(shard = shard.0, "a client that was handed on is given back");
        }
        here
    }
}

impl Away {
    /// Carries bytes both ways, `first` and once that is answered `rest` before the client's others, until either end is done, the
    /// shard has another owner, or `stop`. Whether the client has heard nothing, so that another may have it.
    async fn carry<S>(
        self,
        client: &mut S,
        (first, rest): (&[u8], &[u8]),
        stop: &CancellationToken,
    ) -> bool
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
        tokio::pin!(moved);
        if !first.is_empty() {
            let mut answer = [0; ANSWER_BYTES];
            let asking = async {
                stream.write_all(first).await?;
                stream.flush().await?;
                stream.read(&mut answer).await
            };
            let read = tokio::select! {
                read = timeout(OWNER, asking) => match read {
                    Ok(Ok(read)) => read,
                    Ok(Err(_)) | Err(_) => 0,
                },
                () = &mut moved => 0,
                () = stop.cancelled() => return false,
            };
            let Some(answer) = answer.get(..read).filter(|answer| !answer.is_empty()) else {
                return true;
            };
            let both = async {
                client.write_all(answer).await?;
                client.flush().await?;
                stream.write_all(rest).await?;
                stream.flush().await
            };
            tokio::select! {
                said = both => if said.is_err() {
                    return false;
                },
                () = &mut moved => return false,
                () = stop.cancelled() => return false,
            }
        }
        tokio::select! {
            ended = copy_bidirectional(client, &mut stream) => if let Err(error) = ended {
                tracing::debug!(shard = shard.0, owner = owner.0, %error, "a connection that was handed on ended");
            },
            () = moved => tracing::debug!(shard = shard.0, owner = owner.0, "a client is let go: its shard has moved"),
            () = stop.cancelled() => {}
        }
        false
    }
}
