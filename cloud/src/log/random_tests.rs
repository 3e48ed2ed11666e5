//! Random takes, releases, fences and leases under concurrent writers: nothing acknowledged is lost, repeated or moved.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;
use tributary_shared::record::{BatchBuilder, Compression, Record, batch::Producer};

use super::{nodes_tests::nodes, *};
use crate::engine::memory::MemoryEngine;

const NODES: usize = 3;
const SHARDS: u16 = 2;
const WRITERS: u32 = 6;
const BATCHES: u32 = 30;
const MOVES: usize = 40;

/// xorshift64*: the same seed, the same choices.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n
    }
}

/// What all must agree on.
#[derive(Default)]
struct Seen {
    /// What was acknowledged at a place, and what any reader ever saw there: one value for ever.
    places: HashMap<(PartitionId, Offset), String>,
    acknowledged: HashMap<String, (PartitionId, Offset)>,
    /// Highest end that each node ever told of a partition.
    marks: HashMap<(usize, PartitionId), Watermarks>,
}

impl Seen {
    fn at(&mut self, place: (PartitionId, Offset), value: &str) {
        let known = self.places.entry(place).or_insert_with(|| value.to_owned());
        assert_eq!(known, value, "two values at {place:?}");
    }

    fn marks(&mut self, node: usize, partition: PartitionId, marks: Watermarks) {
        let before = self.marks.insert((node, partition), marks);
        let fell = before.is_some_and(|b| marks.high < b.high || marks.start < b.start);
        assert!(!fell, "marks fell at node {node}: {before:?} then {marks:?}");
    }
}

fn batch(writer: u32, n: u32) -> (Batch, String) {
    let value = format!("{writer} {n}");
    let mut builder = BatchBuilder::new();
    let bytes = Some(Bytes::from(value.clone()));
    builder.push(&Record { value: bytes, ..Record::default() });
    let producer = Producer { id: i64::from(writer), epoch: 0, base_sequence: n as i32 };
    (builder.finish(Compression::None, Some(producer)).unwrap(), value)
}

/// Sends its batches in order, each until it is acknowledged, to whoever takes it. Half of them as edges do.
async fn write(logs: Vec<Log>, partition: PartitionId, writer: u32, seen: Arc<Mutex<Seen>>) {
    let mut random = Random(u64::from(writer) + 1);
    for n in 0..BATCHES {
        let (batch, value) = batch(writer, n);
        let guard = match writer % 2 {
            0 => Guard::Producer,
            _ => Guard::Edge {
                edge: format!("edge{writer}").into(),
                epoch: 1,
                seq: u64::from(n),
                count: 1,
                prints: [n].into(),
                connection: u64::from(writer),
            },
        };
        let committed = loop {
            let log = &logs[random.below(NODES)];
            match log.append(partition, batch.clone(), guard.clone()).await {
                Ok(committed) => break committed,
                Err(LogError::NotOwner | LogError::Engine(_)) => tokio::task::yield_now().await,
                Err(error) => panic!("{value}: {error}"),
            }
        };
        let mut seen = seen.lock().unwrap();
        if let Some(offset) = committed.base_offsets.first() {
            seen.at((partition, *offset), &value);
            seen.acknowledged.insert(value, (partition, *offset));
        } else {
            seen.acknowledged.insert(value, (partition, -1));
        }
    }
}

/// Looks at a partition at one node again and again.
async fn look(
    (node, log): (usize, Log),
    partition: PartitionId,
    seen: Arc<Mutex<Seen>>,
    over: Arc<AtomicBool>,
) {
    let mut random = Random(node as u64 + 77);
    while !over.load(Ordering::Relaxed) {
        if let Ok(marks) = log.watermarks(partition) {
            seen.lock().unwrap().marks(node, partition, marks);
            let from = random.below(marks.high.max(1) as usize) as Offset;
            if let Ok(batches) = log.read(partition, from, 200).await {
                for batch in batches {
                    note(&seen, partition, &batch);
                }
            }
        }
        tokio::task::yield_now().await;
    }
}

fn note(seen: &Mutex<Seen>, partition: PartitionId, batch: &Batch) -> Vec<String> {
    let records = batch.records(1 << 20).unwrap();
    let values: Vec<_> = records
        .into_iter()
        .map(|record| String::from_utf8(record.value.unwrap().to_vec()).unwrap())
        .collect();
    for (offset, value) in (batch.header().base_offset..).zip(&values) {
        seen.lock().unwrap().at((partition, offset), value);
    }
    values
}

/// Shards change hands, asked or not; leases end and come back.
///
/// At last every shard is taken once more; returns by whom. Others may not have noticed yet.
async fn disturb(nodes: &[(Log, Lease)], random: &mut Random, progress: &AtomicUsize) -> Vec<Log> {
    for _ in 0..MOVES {
        let shard = ShardId(random.below(usize::from(SHARDS)) as u16);
        let (log, lease) = &nodes[random.below(NODES)];
        match random.below(5) {
            0 | 1 => drop(log.take(shard).await),
            2 => {
                if let Some((owner, _)) = nodes.iter().find(|(log, _)| log.is_here(shard)) {
                    owner.release(shard).await.unwrap();
                    // Its lease may be over: then it has it when it is not.
                    drop(log.take(shard).await);
                }
            }
            3 => lease.extend(Instant::now()),
            _ => lease.extend(Instant::now() + Duration::from_hours(1)),
        }
        // Some work between two moves, as far as there is an owner.
        let from = progress.load(Ordering::Relaxed);
        for _ in 0..2_000 {
            if progress.load(Ordering::Relaxed) > from + random.below(4) {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    for (_, lease) in nodes {
        lease.extend(Instant::now() + Duration::from_hours(1));
    }
    let mut owners = Vec::new();
    for shard in (0..SHARDS).map(ShardId) {
        let owner = nodes[random.below(NODES)].0.clone();
        owner.take(shard).await.unwrap();
        owners.push(owner);
    }
    owners
}

async fn run(seed: u64, engines: Vec<Arc<dyn Engine>>) {
    let mut random = Random(seed * 2 + 1);
    let nodes = nodes(engines, &Settings { cache_bytes: 600, ..Settings::default() });
    let logs: Vec<Log> = nodes.iter().map(|(log, _)| log.clone()).collect();
    for shard in (0..SHARDS).map(ShardId) {
        logs[0].take(shard).await.unwrap();
    }
    let stream = logs[0].create_stream("s", Some(4), StreamConfig::default()).await.unwrap();
    // A node that has not heard of a stream says that it is not there, which no writer here expects.
    for log in &logs {
        let mut known = None;
        while log.stream("s").is_none() {
            known = Some(log.catalog_changed(known).await.unwrap().version);
        }
    }
    let partitions: Vec<_> = (0..4).map(|index| PartitionId::new(stream.id, index)).collect();
    let (seen, over) = (Arc::new(Mutex::new(Seen::default())), Arc::new(AtomicBool::new(false)));
    let progress = Arc::new(AtomicUsize::new(0));
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let partition = partitions[writer as usize % partitions.len()];
            tokio::spawn(write(logs.clone(), partition, writer, seen.clone()))
        })
        .collect();
    let mut readers = Vec::new();
    for (node, log) in logs.iter().enumerate() {
        for partition in &partitions {
            readers.push(tokio::spawn(look(
                (node, log.clone()),
                *partition,
                seen.clone(),
                over.clone(),
            )));
        }
    }
    let counting = tokio::spawn({
        let (seen, progress, over) = (seen.clone(), progress.clone(), over.clone());
        async move {
            while !over.load(Ordering::Relaxed) {
                progress.store(seen.lock().unwrap().acknowledged.len(), Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        }
    });
    let owners = disturb(&nodes, &mut random, &progress).await;
    for writer in writers {
        writer.await.unwrap();
    }
    over.store(true, Ordering::Relaxed);
    counting.await.unwrap();
    for reader in readers {
        reader.await.unwrap();
    }

    // What is there is everything, once, in each writer's order, without a hole.
    let mut found: HashMap<u32, u32> = HashMap::new();
    for partition in partitions {
        let shard = logs[0].shard_of(partition).unwrap();
        let owner = &owners[usize::from(shard.0)];
        let high = owner.watermarks(partition).unwrap().high;
        let mut at = 0;
        while at < high {
            for batch in owner.read(partition, at, 1 << 20).await.unwrap() {
                assert_eq!(batch.header().base_offset, at, "offsets are contiguous");
                for value in note(&seen, partition, &batch) {
                    let (writer, n) = value.split_once(' ').unwrap();
                    let next = found.entry(writer.parse().unwrap()).or_default();
                    assert_eq!(n.parse::<u32>().unwrap(), *next, "seed {seed}, writer {writer}");
                    *next += 1;
                }
                at = batch.header().last_offset() + 1;
            }
        }
    }
    assert_eq!(found.len(), WRITERS as usize);
    assert!(found.values().all(|count| *count == BATCHES), "seed {seed}: {found:?}");
    assert_eq!(seen.lock().unwrap().acknowledged.len(), (WRITERS * BATCHES) as usize);
    for log in logs {
        // One of them may just be losing a shard.
        drop(log.close().await);
    }
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_doubled_or_moved_while_shards_change_hands() {
    for seed in 0..10 {
        let engine = MemoryEngine::new(SHARDS);
        run(seed, (0..NODES).map(|_| Arc::new(engine.clone()) as Arc<dyn Engine>).collect()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_holds_with_the_fence_of_an_object_store() {
    for seed in 100..103 {
        run(seed, super::nodes_tests::on_objects(NODES, SHARDS).await).await;
    }
}
