//! Several logs over one store, as the nodes of a cluster: who owns what, moves, fences, copies, following.

use std::{
    sync::{Arc, RwLock},
    time::Duration,
};

use async_trait::async_trait;
use slatedb::object_store::memory::InMemory;
use tokio::time::Instant;
use tributary_shared::record::{Batch, BatchBuilder, Compression, Record};

use super::{
    partition::Partition,
    tail::{Start, Tail},
    *,
};
use crate::engine::{memory::MemoryEngine, slate::SlateEngine};

const ZERO: ShardId = ShardId(0);
const ONE: ShardId = ShardId(1);

/// The way between logs of one process.
#[derive(Default)]
pub(super) struct Direct(RwLock<Vec<Log>>);

impl Direct {
    fn owner(&self, shard: ShardId) -> Result<Log, LogError> {
        let logs = self.0.read().unwrap();
        logs.iter().find(|log| log.is_here(shard)).cloned().ok_or(LogError::NotOwner)
    }
}

#[async_trait]
impl Remote for Direct {
    async fn read(&self, far: &Far, from: Offset, max_bytes: usize) -> Result<Heard, LogError> {
        let owner = self.owner(far.shard)?;
        let batches = owner.read(far.partition, from, max_bytes).await?;
        Ok(Heard { marks: owner.watermarks(far.partition)?, batches })
    }

    async fn change(&self, change: StreamChange) -> Result<(), LogError> {
        self.owner(ZERO)?.change_here(change).await
    }
}

/// Copies the streams, and what is heard of partitions, from one to the other.
fn link(from: &Log, to: &Log) {
    tokio::spawn({
        let (from, to) = (from.clone(), to.clone());
        async move {
            let mut known = None;
            while let Ok(list) = from.catalog_changed(known).await {
                known = Some(list.version);
                to.learn(list).await;
            }
        }
    });
    tokio::spawn({
        let (from, to) = (from.clone(), to.clone());
        async move {
            let mut follower = from.follow();
            while let Some(moved) = follower.next().await {
                for partition in moved {
                    if let Ok(marks) = from.watermarks(partition) {
                        to.heard(partition, Heard { marks, batches: Vec::new() });
                    }
                }
            }
        }
    });
}

/// Logs of one cluster, each with its lease, that own nothing.
pub(crate) fn nodes(engines: Vec<Arc<dyn Engine>>, settings: &Settings) -> Vec<(Log, Lease)> {
    let direct = Arc::new(Direct::default());
    let nodes: Vec<_> = engines
        .into_iter()
        .map(|engine| {
            let lease = Lease::over();
            lease.extend(Instant::now() + Duration::from_hours(1));
            let log = Log::join(engine, settings.clone(), direct.clone(), lease.clone());
            (log, lease)
        })
        .collect();
    *direct.0.write().unwrap() = nodes.iter().map(|(log, _)| log.clone()).collect();
    for (from, _) in &nodes {
        for (to, _) in &nodes {
            link(from, to);
        }
    }
    nodes
}

pub(crate) fn in_memory(count: usize, shards: u16) -> Vec<Arc<dyn Engine>> {
    let engine = MemoryEngine::new(shards);
    (0..count).map(|_| Arc::new(engine.clone()) as Arc<dyn Engine>).collect()
}

/// Engines of several processes over one object store.
pub(super) async fn on_objects(count: usize, shards: u16) -> Vec<Arc<dyn Engine>> {
    let objects = Arc::new(InMemory::new());
    let settings = crate::engine::Settings { shards, flush_ms: 1, ..Default::default() };
    let mut engines: Vec<Arc<dyn Engine>> = Vec::new();
    for _ in 0..count {
        let engine = SlateEngine::objects(objects.clone(), &settings).await.unwrap();
        engines.push(Arc::new(engine));
    }
    engines
}

fn batch(value: &str) -> Batch {
    let mut builder = BatchBuilder::new();
    let value = Some(Bytes::copy_from_slice(value.as_bytes()));
    builder.push(&Record { value, ..Record::default() });
    builder.finish(Compression::None, None).unwrap()
}

async fn append(log: &Log, partition: PartitionId, value: &str) -> Result<Offset, LogError> {
    Ok(log.append(partition, batch(value), Guard::None).await?.base_offsets[0])
}

fn values(batches: &[Batch]) -> Vec<String> {
    let records = batches.iter().flat_map(|batch| batch.records(1 << 20).unwrap());
    records.map(|record| String::from_utf8(record.value.unwrap().to_vec()).unwrap()).collect()
}

fn is_elsewhere<T: std::fmt::Debug>(result: Result<T, LogError>) -> bool {
    matches!(result, Err(LogError::NotOwner))
}

/// A stream with a partition in each of two shards, known to all, and the partition in shard 1.
async fn stream(at: &Log, all: &[(Log, Lease)]) -> PartitionId {
    let stream = at.create_stream("s", Some(2), StreamConfig::default()).await.unwrap();
    for (log, _) in all {
        let mut known = None;
        while log.stream("s").is_none() {
            known = Some(log.catalog_changed(known).await.unwrap().version);
        }
    }
    let ids = (0..2).map(|index| PartitionId::new(stream.id, index));
    ids.into_iter().find(|id| at.shard_of(*id).unwrap() == ONE).unwrap()
}

#[tokio::test]
async fn a_shard_that_is_given_up_takes_everything_with_it() {
    for engines in [in_memory(2, 2), on_objects(2, 2).await] {
        let nodes = nodes(engines, &Settings::default());
        let [(a, _), (b, _)] = &nodes[..] else { panic!("two") };
        assert!(
            !a.is_here(ZERO)
                && is_elsewhere(a.change_here(StreamChange::Delete { name: "s".into() }).await)
        );
        a.take(ZERO).await.unwrap();
        a.take(ONE).await.unwrap();
        let p = stream(a, &nodes).await;
        let first = a.opening(ONE).unwrap();
        assert_eq!(append(a, p, "1").await.unwrap(), 0);
        let key = Log::state_key(StateSpace::Meta, b"k");
        let writes = vec![Write::Put(key, Bytes::from_static(b"v"))];
        a.commit(ONE, Transaction { writes, ..Transaction::default() }).await.unwrap();
        // Submitted before: durable and answered, though nobody has waited for it.
        let transaction = Transaction {
            appends: vec![Append { partition: p, batch: batch("2") }],
            ..Transaction::default()
        };
        let pending = a.submit(ONE, transaction).await.unwrap();
        a.release(ONE).await.unwrap();
        assert_eq!(pending.await.unwrap().unwrap().base_offsets, [1]);
        assert!(is_elsewhere(append(a, p, "x").await) && is_elsewhere(a.read(p, 0, 1).await));
        assert!(is_elsewhere(a.watermarks(p)) && is_elsewhere(a.wait_above(p, 9).await));
        assert!(is_elsewhere(a.state_get(ONE, StateSpace::Meta, b"k").await));
        assert!(is_elsewhere(a.offset_at_time(p, 0).await) && is_elsewhere(a.trim(p, 1).await));

        b.take(ONE).await.unwrap();
        b.here(ONE).await.unwrap();
        assert_eq!(b.watermarks(p).unwrap(), Watermarks { start: 0, high: 2 });
        assert_eq!(append(b, p, "3").await.unwrap(), 2);
        let value = b.state_get(ONE, StateSpace::Meta, b"k").await.unwrap();
        assert_eq!(value.as_deref(), Some(&b"v"[..]));
        let mut follower = a.follow();
        while a.watermarks_anywhere(p).unwrap().high < 3 {
            follower.next().await.unwrap();
        }
        // What is in memory, and what its owner says.
        assert_eq!(values(&a.read_anywhere(p, 0, 1000).await.unwrap()), ["1", "2"]);
        assert_eq!(values(&a.read_anywhere(p, 2, 1000).await.unwrap()), ["3"]);

        // Back again: what belonged to the first opening has no effect.
        b.release(ONE).await.unwrap();
        a.take(ONE).await.unwrap();
        let stale = Transaction {
            appends: vec![Append { partition: p, batch: batch("stale") }],
            opening: Some(first),
            ..Transaction::default()
        };
        assert!(is_elsewhere(a.commit(ONE, stale).await));
        assert_eq!(append(a, p, "4").await.unwrap(), 3);
        assert_eq!(values(&a.read(p, 0, 1000).await.unwrap()), ["1", "2", "3", "4"]);
        for (log, _) in &nodes {
            log.close().await.unwrap();
        }
    }
}

#[tokio::test]
async fn an_owner_that_was_fenced_acknowledges_nothing_more_and_says_so() {
    for engines in [in_memory(2, 2), on_objects(2, 2).await] {
        let nodes = nodes(engines, &Settings::default());
        let [(a, _), (b, _)] = &nodes[..] else { panic!("two") };
        a.take(ZERO).await.unwrap();
        a.take(ONE).await.unwrap();
        let p = stream(a, &nodes).await;
        let opening = a.opening(ONE).unwrap();
        assert_eq!(append(a, p, "a").await.unwrap(), 0);
        let waits = tokio::spawn({
            let a = a.clone();
            async move { a.wait_above(p, 1).await }
        });
        b.take(ONE).await.unwrap();
        assert_eq!(append(b, p, "b").await.unwrap(), 1);
        assert!(append(a, p, "never").await.is_err());
        assert_eq!(a.lost().await, ONE);
        a.gone(ONE, opening).await;
        assert!(!a.is_here(ONE) && is_elsewhere(waits.await.unwrap()));
        assert!(is_elsewhere(append(a, p, "never").await));

        a.take(ONE).await.unwrap();
        assert_eq!(a.watermarks(p).unwrap(), Watermarks { start: 0, high: 2 });
        assert_eq!(append(a, p, "c").await.unwrap(), 2);
        assert_eq!(values(&a.read(p, 0, 1000).await.unwrap()), ["a", "b", "c"]);
    }
}

#[tokio::test]
async fn what_waits_for_room_when_its_shard_leaves_is_answered() {
    let settings = Settings { in_flight_bytes: 1024, ..Settings::default() };
    let nodes = nodes(in_memory(2, 2), &settings);
    let [(a, _), (b, _)] = &nodes[..] else { panic!("two") };
    a.take(ZERO).await.unwrap();
    a.take(ONE).await.unwrap();
    let p = stream(a, &nodes).await;
    let writers: Vec<_> = (0..50)
        .map(|n| {
            let (a, value) = (a.clone(), format!("{n} {}", "x".repeat(800)));
            tokio::spawn(async move { append(&a, p, &value).await })
        })
        .collect();
    // Some are under way, most wait.
    assert!(a.wait_above(p, 0).await.unwrap() < 50);
    a.release(ONE).await.unwrap();
    b.take(ONE).await.unwrap();
    let mut acknowledged = Vec::new();
    for writer in writers {
        match writer.await.unwrap() {
            Ok(offset) => acknowledged.push(offset),
            Err(error) => assert!(matches!(error, LogError::NotOwner), "{error}"),
        }
    }
    acknowledged.sort_unstable();
    let high = b.watermarks(p).unwrap().high;
    assert_eq!(acknowledged, (0..high).collect::<Vec<_>>(), "each is answered as it is");
    assert_eq!(append(b, p, "next").await.unwrap(), high);
}

#[tokio::test(start_paused = true)]
async fn a_node_whose_lease_is_over_serves_nothing_until_it_moves() {
    let nodes = nodes(in_memory(1, 2), &Settings::default());
    let [(a, lease)] = &nodes[..] else { panic!("one") };
    a.take(ZERO).await.unwrap();
    a.take(ONE).await.unwrap();
    let p = stream(a, &nodes).await;
    append(a, p, "1").await.unwrap();
    let opening = a.opening(ONE).unwrap();
    lease.extend(Instant::now() + Duration::from_secs(3));
    let waits = tokio::spawn({
        let a = a.clone();
        async move { a.wait_above(p, 1).await }
    });
    // The clock alone says so.
    a.gone(ONE, opening).await;
    assert!(is_elsewhere(waits.await.unwrap()));
    assert!(!a.is_here(ONE) && is_elsewhere(a.read(p, 0, 1).await));
    assert!(is_elsewhere(append(a, p, "x").await) && is_elsewhere(a.edge_marks("gw").await));
    assert!(is_elsewhere(a.state_get(ONE, StateSpace::Meta, b"k").await));
    let waits = tokio::spawn({
        let a = a.clone();
        async move { a.here(ONE).await }
    });
    tokio::task::yield_now().await;
    lease.extend(Instant::now() + Duration::from_secs(3));
    assert_eq!(waits.await.unwrap().unwrap(), opening, "nobody else has had it");
    // What is learnt while it is over is served afterwards.
    let list = a.catalog().unwrap();
    let direct = Arc::new(Direct::default());
    let late = Lease::over();
    late.extend(Instant::now() + Duration::from_secs(1));
    let b = Log::join(Arc::new(MemoryEngine::new(2)), Settings::default(), direct, late.clone());
    b.take(ONE).await.unwrap();
    late.extend(Instant::now());
    b.learn(list).await;
    late.extend(Instant::now() + Duration::from_secs(3));
    assert_eq!(b.watermarks(p).unwrap().high, 0);
    assert_eq!(append(a, p, "2").await.unwrap(), 1);
}

#[tokio::test]
async fn streams_are_changed_by_one_and_known_to_all() {
    let nodes = nodes(in_memory(2, 2), &Settings::default());
    let [(a, _), (b, _)] = &nodes[..] else { panic!("two") };
    a.take(ZERO).await.unwrap();
    b.take(ONE).await.unwrap();
    let p = stream(b, &nodes).await;
    let again = b.create_stream("s", None, StreamConfig::default()).await;
    assert!(matches!(again, Err(LogError::StreamExists(_))), "{again:?}");
    assert_eq!(append(b, p, "1").await.unwrap(), 0, "its ends were known before it was shown");
    let config = StreamConfig { retention_ms: Some(5), ..StreamConfig::default() };
    assert_eq!(b.configure_stream("s", config.clone()).await.unwrap().config, config);
    assert_eq!(b.grow_stream("s", 4).await.unwrap().partitions, 4);
    let old = a.catalog().unwrap();

    b.delete_stream("s").await.unwrap();
    assert!(a.stream("s").is_none() && b.stream("s").is_none());
    b.learn(old).await;
    assert!(b.stream("s").is_none(), "what is older is not learnt");
    // The records go where they are.
    let tails = || b.inner.scan(ONE, keys::tails(), ScanLimit { entries: 1, bytes: 1 });
    while !tails().await.unwrap().is_empty() {
        tokio::task::yield_now().await;
    }

    // The next one who makes streams goes on from there.
    let version = a.catalog().unwrap().version;
    let deleted = p.stream();
    a.release(ZERO).await.unwrap();
    assert!(is_elsewhere(b.create_stream("t", None, StreamConfig::default()).await));
    b.take(ZERO).await.unwrap();
    let made = b.create_stream("t", None, StreamConfig::default()).await.unwrap();
    assert!(b.catalog().unwrap().version > version && made.id > deleted);
    assert_eq!(a.ensure_stream("t").await.unwrap(), made);
}

#[tokio::test]
async fn records_of_a_stream_that_was_deleted_meanwhile_go_when_their_shard_is_opened() {
    let engine = MemoryEngine::new(2);
    let direct = Arc::new(Direct::default());
    let join = || {
        let engine = Arc::new(engine.clone());
        Log::join(engine, Settings::default(), direct.clone(), Lease::forever())
    };
    let a = join();
    *direct.0.write().unwrap() = vec![a.clone()];
    a.take(ZERO).await.unwrap();
    a.take(ONE).await.unwrap();
    let p = stream(&a, &[]).await;
    append(&a, p, "1").await.unwrap();
    a.release(ONE).await.unwrap();
    a.delete_stream("s").await.unwrap();

    // It knows nothing of streams yet: nothing of what it finds is known to be deleted.
    let b = join();
    b.take(ONE).await.unwrap();
    let one = ScanLimit { entries: 1, bytes: 1 };
    assert_eq!(b.inner.scan(ONE, keys::tails(), one).await.unwrap().len(), 1);
    b.learn(a.catalog().unwrap()).await;
    while !b.inner.scan(ONE, keys::tails(), one).await.unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_tail_follows_partitions_wherever_they_are_and_go() {
    let nodes = nodes(in_memory(2, 2), &Settings::default());
    let [(a, _), (b, _)] = &nodes[..] else { panic!("two") };
    a.take(ZERO).await.unwrap();
    b.take(ONE).await.unwrap();
    let far = stream(a, &nodes).await;
    let near = PartitionId::new(far.stream(), 1 - far.index());
    append(b, far, "before").await.unwrap();
    let mut tail = Tail::new(a.clone(), [].into(), Start::End).await.unwrap();
    assert_eq!(tail.cursors()[&far], 1, "its owner was asked");
    let mut seen = async |partition: PartitionId| {
        let found = tail.next().await.unwrap();
        assert_eq!(found.partition, partition);
        let values = found.records.into_iter().map(|(_, record)| record.value.unwrap());
        values.map(|value| String::from_utf8(value.to_vec()).unwrap()).collect::<Vec<_>>()
    };
    append(b, far, "1").await.unwrap();
    assert_eq!(seen(far).await, ["1"]);
    append(a, near, "2").await.unwrap();
    assert_eq!(seen(near).await, ["2"]);
    b.release(ONE).await.unwrap();
    // Nobody has it: the others go on.
    append(a, near, "3").await.unwrap();
    assert_eq!(seen(near).await, ["3"]);
    a.take(ONE).await.unwrap();
    append(a, far, "4").await.unwrap();
    assert_eq!(seen(far).await, ["4"]);
}

#[tokio::test(start_paused = true)]
async fn records_of_a_stream_that_is_not_seen_yet_are_waited_for() {
    let direct = Arc::new(Direct::default());
    let join = |engine| Log::join(engine, Settings::default(), direct.clone(), Lease::forever());
    let logs: Vec<Log> = in_memory(2, 2).into_iter().map(join).collect();
    direct.0.write().unwrap().clone_from(&logs);
    let [old, new] = &logs[..] else { panic!("two") };
    old.take(ZERO).await.unwrap();
    old.take(ONE).await.unwrap();
    let stream = old.create_stream("s", Some(2), StreamConfig::default()).await.unwrap();
    let all = [0, 1].map(|index| PartitionId::new(stream.id, index));
    let there = all.into_iter().find(|id| old.shard_of(*id).unwrap() == ONE).unwrap();
    append(old, there, "a").await.unwrap();
    old.release(ONE).await.unwrap();
    // A node that has just begun, in the midst of taking over the list of streams: the partition can be read, the stream is not
    // shown yet.
    new.take(ONE).await.unwrap();
    let partition = Partition::new(there, ONE);
    new.inner.shared.partitions.write().unwrap().insert(there, Arc::clone(&partition));
    new.inner.know(ONE, vec![partition]).await.unwrap();
    let mut tail = Tail::new(new.clone(), [(there, 0)].into(), Start::Beginning).await.unwrap();
    let soon = Duration::from_secs(5);
    assert!(tokio::time::timeout(soon, tail.next()).await.is_err());
    assert!(is_elsewhere(new.read_known(there, 0, 1).await));
    new.learn(old.catalog().unwrap()).await;
    let found = tokio::time::timeout(soon, tail.next()).await.unwrap().unwrap();
    assert_eq!((found.partition, found.records.len(), found.next), (there, 1, 1));
    assert!(new.read_known(there, 0, 1).await.unwrap().is_some());
}

#[tokio::test]
async fn a_committed_record_is_gone_only_when_its_owner_says_so() {
    let direct = Arc::new(Direct::default());
    let join = |engine| Log::join(engine, Settings::default(), direct.clone(), Lease::forever());
    let logs: Vec<Log> = in_memory(2, 1).into_iter().map(join).collect();
    direct.0.write().unwrap().clone_from(&logs);
    let [owner, other] = &logs[..] else { panic!("two") };
    owner.take(ZERO).await.unwrap();
    let stream = owner.create_stream("s", Some(1), StreamConfig::default()).await.unwrap();
    let partition = PartitionId::new(stream.id, 0);
    append(owner, partition, "a").await.unwrap();
    // A copy of the streams that lags behind is no proof.
    assert!(is_elsewhere(other.read_known(partition, 0, 1).await));
    assert!(!other.is_deleted(stream.id));
    other.learn(owner.catalog().unwrap()).await;
    let marks = owner.watermarks(partition).unwrap();
    other.heard(partition, Heard { marks, batches: Vec::new() });
    append(owner, partition, "b").await.unwrap();
    // Neither is an end that was heard of before.
    assert!(other.read_anywhere(partition, 1, 1).await.unwrap().is_empty());
    let found = other.read_known(partition, 1, 1).await.unwrap();
    assert_eq!(values(&found.unwrap()), ["b"]);
    owner.trim(partition, 1).await.unwrap();
    assert!(other.read_known(partition, 0, 1).await.unwrap().is_none());
    owner.delete_stream("s").await.unwrap();
    other.learn(owner.catalog().unwrap()).await;
    assert!(other.is_deleted(stream.id));
    assert!(other.read_known(partition, 1, 1).await.unwrap().is_none());
}
