//! What this node keeps hearing of: ends of partitions elsewhere (while somebody follows), the list of streams, the deny list.
//!
//! ```text
//! one task a node: Fetch of all partitions it owns, from what was heard last --long poll--> Log::heard, followers wake
//! one loop each: GET /peer/streams, /peer/denied after the version known --long poll--> Log::learn, Enrol::learn
//! ```
//! In: answers of owners. Out: the log's copies. Change here: what is kept, and how soon a change of owners is noticed.
//! Not here: reading on demand (`owners`).

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tributary_shared::backoff::Backoff;

use super::{
    Header, Peers, Protocol,
    owners::{STREAMS, heard, partition, request, topic},
    pages,
    wire::{Wire, WireError},
};
use crate::{
    cluster::{Node, NodeId, View},
    engine::ShardId,
    enrol::Enrol,
    log::{Far, Heard, Log, LogError, Offset, Watermarks},
};

/// A long poll; a partition that is new is asked for at the latest after it.
const POLL: Duration = Duration::from_secs(2);
/// More than [`POLL`] and what an answer may take.
const PATIENCE: Duration = Duration::from_secs(8);
/// Bytes of one answer, all partitions together, and of one of them.
const ANSWER_BYTES: usize = 4 * 1024 * 1024;
const PARTITION_BYTES: usize = 256 * 1024;
/// Partitions of one request; more take turns.
const PARTITIONS: usize = 20_000;
/// How often it is looked whether anybody follows.
const LOOK: Duration = Duration::from_millis(200);
/// After an answer that refused some partitions.
const REFUSED: Duration = Duration::from_millis(100);
/// After a failure.
const AGAIN_SHORTEST: Duration = Duration::from_millis(50);
const AGAIN_LONGEST: Duration = Duration::from_secs(2);

/// Runs all of it until `stop`.
pub async fn run(peers: Peers, log: Log, enrol: Enrol, stop: CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = ends(&peers, &log) => {}
        () = streams(peers.clone(), log.clone()) => {}
        () = denied(peers.clone(), enrol) => {}
    }
}

/// One task a node that lives.
async fn ends(peers: &Peers, log: &Log) {
    let mut tasks = JoinSet::new();
    let mut known: BTreeMap<NodeId, tokio::task::AbortHandle> = BTreeMap::new();
    let mut changes = peers.cluster().changes();
    loop {
        let view = changes.borrow_and_update().clone();
        known.retain(|id, task| {
            let lives = view.nodes.contains_key(id);
            if !lives {
                task.abort();
            }
            lives
        });
        for id in view.nodes.keys().filter(|id| **id != view.me) {
            known.entry(*id).or_insert_with(|| tasks.spawn(of(*id, peers.clone(), log.clone())));
        }
        if changes.changed().await.is_err() {
            return std::future::pending().await;
        }
        while tasks.try_join_next().is_some() {}
    }
}

/// Keeps the ends of all that `node` owns heard.
async fn of(node: NodeId, peers: Peers, log: Log) {
    let mut backoff = Backoff::new(AGAIN_SHORTEST, AGAIN_LONGEST);
    let mut changes = peers.cluster().changes();
    let mut wire: Option<(Arc<Node>, Wire)> = None;
    let mut from = 0;
    loop {
        let view = changes.borrow_and_update().clone();
        let Some(now) = view.nodes.get(&node) else {
            // Whoever began this ends it, unless the node is back before that is seen there.
            if changes.changed().await.is_err() {
                return;
            }
            continue;
        };
        let wanted = wanted(&log, &view, node, &mut from);
        if wanted.is_empty() {
            let _ = timeout(LOOK, changes.changed()).await;
            continue;
        }
        if wire.as_ref().is_none_or(|(known, wire)| known != now || wire.is_lost()) {
            wire = match peers.connect(now, &Header::own(Protocol::Kafka)).await {
                Ok(stream) => Some((Arc::clone(now), Wire::start(stream))),
                Err(error) => {
                    tracing::debug!(%error, "what another node owns is not heard of");
                    sleep(backoff.next_wait()).await;
                    continue;
                }
            };
        }
        let Some((_, fetching)) = &wire else { continue };
        tokio::select! {
            outcome = poll(fetching, &wanted, &log) => match outcome {
                Ok(0) => backoff.reset(),
                // It owns some no more, or not yet: the map will tell soon. Such an answer comes at once.
                Ok(_) => sleep(REFUSED).await,
                Err(error) => {
                    tracing::debug!(node = now.name, %error, "what another node owns is not heard of");
                    wire = None;
                    sleep(backoff.next_wait()).await;
                }
            },
            // Other partitions are to be asked for. The answer that is under way is for nobody.
            () = changed(&mut changes, &log) => wire = None,
        }
    }
}

/// Other owners, or other streams.
async fn changed(changes: &mut watch::Receiver<Arc<View>>, log: &Log) {
    let known = log.catalog().map(|list| list.version);
    tokio::select! {
        view = changes.changed() => if view.is_err() {
            std::future::pending::<()>().await;
        },
        list = log.catalog_changed(known) => if list.is_err() {
            std::future::pending::<()>().await;
        },
    }
}

/// Partitions of `node` that somebody here follows, each with where to go on.
fn wanted(log: &Log, view: &View, node: NodeId, from: &mut usize) -> Vec<(Far, Offset)> {
    if !log.is_followed() {
        return Vec::new();
    }
    let mut all = log.elsewhere();
    all.retain(|(far, _)| view.leader(far.shard).owner == Some(node));
    all.sort_by_key(|(far, _)| far.partition);
    if all.len() > PARTITIONS {
        *from = (*from + PARTITIONS) % all.len();
        all.rotate_left(*from);
        all.truncate(PARTITIONS);
    }
    all.into_iter().map(|(far, high)| (far, high.unwrap_or(0))).collect()
}

/// One long poll; says how many partitions the node does not serve.
async fn poll(wire: &Wire, wanted: &[(Far, Offset)], log: &Log) -> Result<usize, WireError> {
    let mut topics: BTreeMap<&str, Vec<_>> = BTreeMap::new();
    let mut asked = BTreeMap::new();
    for (far, from) in wanted {
        let name = &*far.stream.name;
        topics.entry(name).or_default().push(partition(far, *from, PARTITION_BYTES));
        asked.insert((name, far.partition.index() as i32), (far, *from));
    }
    let topics = topics.into_iter().map(|(name, all)| topic(name, all)).collect();
    let response = wire.fetch(&request(topics, ANSWER_BYTES, POLL), PATIENCE).await?;
    let mut refused = 0;
    for topic in response.responses {
        for data in topic.partitions {
            let Some((far, from)) = asked.get(&(topic.topic.as_str(), data.partition_index)) else {
                continue;
            };
            match heard(*from, data) {
                Ok(heard) => log.heard(far.partition, heard),
                // The first look at a partition: its ends are in the answer.
                Err(LogError::OffsetOutOfRange { start, high, .. }) => {
                    let marks = Watermarks { start, high };
                    log.heard(far.partition, Heard { marks, batches: Vec::new() });
                }
                Err(_) => refused += 1,
            }
        }
    }
    Ok(refused)
}

/// The list of streams, from the owner of shard 0.
async fn streams(peers: Peers, log: Log) {
    let to = peers.clone();
    let ask = move |node: Arc<Node>| {
        let (peers, log) = (to.clone(), log.clone());
        async move {
            let known = log.catalog().map(|list| list.version);
            if let Some(list) = pages::streams(&peers, &node, known).await? {
                log.learn(list).await;
            }
            Ok(())
        }
    };
    from_owner(peers, STREAMS, ask).await;
}

/// What is denied, from the node that has the book of enrolment.
async fn denied(peers: Peers, enrol: Enrol) {
    let (to, home) = (peers.clone(), enrol.home());
    let ask = move |node: Arc<Node>| {
        let (peers, enrol) = (to.clone(), enrol.clone());
        async move {
            let known = enrol.deny_list().map(|list| list.version);
            if let Some(list) = pages::denied(&peers, &node, known).await? {
                enrol.learn(list).await;
            }
            Ok(())
        }
    };
    from_owner(peers, home, ask).await;
}

/// Asks the owner of `shard` again and again, while that is another node.
async fn from_owner<T>(peers: Peers, shard: ShardId, ask: impl Fn(Arc<Node>) -> T)
where
    T: Future<Output = Result<(), String>>,
{
    let mut backoff = Backoff::new(AGAIN_SHORTEST, AGAIN_LONGEST);
    let mut changes = peers.cluster().changes();
    loop {
        let view = changes.borrow_and_update().clone();
        let owner = view.owner(shard).filter(|node| node.id != view.me).cloned();
        let asking = async {
            let Some(node) = owner else { return std::future::pending().await };
            match ask(node).await {
                Ok(()) => backoff.reset(),
                Err(error) => {
                    tracing::debug!(shard = shard.0, error, "an owner is not heard of");
                    sleep(backoff.next_wait()).await;
                }
            }
        };
        tokio::select! {
            () = asking => {}
            changed = changes.changed() => if changed.is_err() {
                return std::future::pending().await;
            },
        }
    }
}
