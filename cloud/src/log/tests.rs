//! The promises of the log, on the memory engine.

use std::{collections::HashMap, sync::Arc};

use tributary_shared::record::{Batch, BatchBuilder, Compression, Record, batch::Producer};

use super::{
    tail::{Start, Tail, TailBatch},
    testing::test_log,
    *,
};
use crate::engine::memory::MemoryEngine;

fn record(key: &str, timestamp_ms: i64) -> Record {
    let key = Some(Bytes::copy_from_slice(key.as_bytes()));
    Record { key, value: Some(Bytes::from_static(b"value")), timestamp_ms, headers: Vec::new() }
}

fn batch_at(timestamps: &[i64], producer: Option<Producer>) -> Batch {
    let mut builder = BatchBuilder::new();
    for (n, timestamp) in timestamps.iter().enumerate() {
        builder.push(&record(&format!("k{n}"), *timestamp));
    }
    builder.finish(Compression::None, producer).unwrap()
}

fn batch(count: usize) -> Batch {
    batch_at(&vec![1000; count], None)
}

fn sent_by(id: i64, epoch: i16, base_sequence: i32, count: usize) -> Batch {
    batch_at(&vec![1000; count], Some(Producer { id, epoch, base_sequence }))
}

async fn stream(log: &Log) -> PartitionId {
    let stream = log.create_stream("s", Some(1), StreamConfig::default()).await.unwrap();
    PartitionId::new(stream.id, 0)
}

async fn manual_log(engine: &MemoryEngine, cache_bytes: usize) -> Log {
    let settings = Settings { cache_bytes, ..Settings::default() };
    Log::open(Arc::new(engine.clone()), settings).await.unwrap()
}

fn offsets(batches: &[Batch]) -> Vec<(Offset, i32)> {
    batches.iter().map(|b| (b.header().base_offset, b.header().count)).collect()
}

/// Makes everything durable as it comes, until dropped.
fn keep_flushing(engine: &MemoryEngine) -> tokio::task::JoinHandle<()> {
    let engine = engine.clone();
    tokio::spawn(async move {
        loop {
            engine.flush();
            tokio::task::yield_now().await;
        }
    })
}

#[tokio::test]
async fn appended_batches_are_read_back_in_order_from_memory_and_from_the_engine() {
    for cache_bytes in [0, 1 << 20] {
        let engine = MemoryEngine::new(2);
        let log = manual_log(&engine, cache_bytes).await;
        let p = stream(&log).await;
        for (count, base) in [(3, 0), (1, 3), (5, 4)] {
            let committed = log.append(p, batch(count), Guard::None).await.unwrap();
            assert_eq!(committed, Committed { base_offsets: vec![base], duplicate: false });
        }
        assert_eq!(log.watermarks(p).unwrap(), Watermarks { start: 0, high: 9 });
        let all = log.read(p, 0, usize::MAX).await.unwrap();
        assert_eq!(offsets(&all), [(0, 3), (3, 1), (4, 5)]);
        // From the middle of a batch; and at least one however small the limit.
        assert_eq!(offsets(&log.read(p, 6, 1).await.unwrap()), [(4, 5)]);
        assert_eq!(offsets(&log.read(p, 2, 1).await.unwrap()), [(0, 3)]);
        assert!(log.read(p, 9, 1).await.unwrap().is_empty());
        for outside in [-1, 10] {
            let refused = log.read(p, outside, 1).await;
            assert!(matches!(refused, Err(LogError::OffsetOutOfRange { start: 0, high: 9, .. })));
        }
    }
}

#[tokio::test]
async fn a_reopened_log_goes_on_where_it_was() {
    let engine = MemoryEngine::new(3);
    let log = manual_log(&engine, 1 << 20).await;
    let p = stream(&log).await;
    let created = log.stream("s").unwrap();
    log.append(p, batch(4), Guard::None).await.unwrap();
    let mark = Guard::Edge {
        edge: "gw1".into(),
        epoch: 7,
        seq: 0,
        count: 4,
        prints: Arc::default(),
        connection: 1,
    };
    log.append(p, batch(4), mark.clone()).await.unwrap();
    log.close().await.unwrap();
    assert!(matches!(log.append(p, batch(1), Guard::None).await, Err(LogError::Closed)));

    let log = manual_log(&engine, 1 << 20).await;
    assert_eq!(log.stream("s").unwrap(), created);
    assert_eq!(log.watermarks(p).unwrap(), Watermarks { start: 0, high: 8 });
    assert!(log.append(p, batch(4), mark).await.unwrap().duplicate);
    assert_eq!(log.append(p, batch(1), Guard::None).await.unwrap().base_offsets, [8]);
    let other = log.create_stream("t", None, StreamConfig::default()).await.unwrap();
    assert_ne!(other.id, created.id);
    assert_eq!(other.partitions, 3);
}

#[tokio::test]
async fn a_transaction_is_answered_and_seen_only_when_durable() {
    let engine = MemoryEngine::manual(1);
    let flushing = keep_flushing(&engine);
    let log = manual_log(&engine, 1 << 20).await;
    let p = stream(&log).await;
    flushing.abort();
    assert!(flushing.await.is_err());

    let mut follower = log.follow();
    let transaction = || Transaction {
        appends: vec![Append { partition: p, batch: sent_by(5, 0, 0, 2) }],
        guard: Guard::Producer,
        ..Transaction::default()
    };
    let mut first = log.submit(ShardId(0), transaction()).await.unwrap();
    let mut repeat = log.submit(ShardId(0), transaction()).await.unwrap();
    while engine.waiting(ShardId(0)) == 0 {
        tokio::task::yield_now().await;
    }
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(first.try_recv().is_err(), "answered before it was durable");
    assert!(repeat.try_recv().is_err(), "the repeat was answered before the original was durable");
    assert_eq!(log.watermarks(p).unwrap().high, 0);
    assert!(log.read(p, 0, 1000).await.unwrap().is_empty());

    engine.flush();
    assert_eq!(first.await.unwrap().unwrap().base_offsets, [0]);
    let repeat = repeat.await.unwrap().unwrap();
    assert_eq!(repeat, Committed { base_offsets: vec![0], duplicate: true });
    assert_eq!(log.wait_above(p, 0).await.unwrap(), 2);
    assert_eq!(follower.next().await, Some(vec![p]));
}

#[tokio::test]
async fn edges_are_appended_once_and_gaps_are_named() {
    let log = test_log(2).await.unwrap();
    let p = stream(&log).await;
    let prints: Arc<[u32]> = Arc::default();
    let mark = |seq, count| Guard::Edge {
        edge: "gw1".into(),
        epoch: 9,
        seq,
        count,
        prints: prints.clone(),
        connection: 1,
    };
    let send = async |seq, count: u32| log.append(p, batch(count as usize), mark(seq, count)).await;
    assert_eq!(send(0, 3).await.unwrap().base_offsets, [0]);
    assert!(send(0, 3).await.unwrap().duplicate);
    assert!(matches!(send(4, 1).await, Err(LogError::EdgeGap { expected: 3 })));
    assert!(matches!(send(2, 2).await, Err(LogError::EdgeGap { expected: 3 })));
    assert_eq!(send(3, 2).await.unwrap().base_offsets, [3]);
    // A gap that the edge declared: nothing to append, the mark moves.
    let shard = log.home_shard("gw1");
    let gap = Transaction { guard: mark(5, 10), ..Transaction::default() };
    if log.shard_of(p).unwrap() == shard {
        log.commit(shard, gap).await.unwrap();
        assert_eq!(log.edge_marks("gw1").await.unwrap(), [(9, 15)]);
    }
    assert!(log.edge_marks("gw").await.unwrap().is_empty());
}

fn values(batch: &TailBatch) -> Vec<Offset> {
    batch.records.iter().map(|(offset, _)| *offset).collect()
}

#[tokio::test]
async fn a_tail_sees_every_record_once_from_its_cursors() {
    let log = test_log(2).await.unwrap();
    let stream = log.create_stream("s", Some(2), StreamConfig::default()).await.unwrap();
    let (p, q) = (PartitionId::new(stream.id, 0), PartitionId::new(stream.id, 1));
    for _ in 0..2 {
        log.append(p, batch(3), Guard::None).await.unwrap();
        log.append(q, batch(3), Guard::None).await.unwrap();
    }
    // p goes on in the middle of a batch; q has no cursor and starts at its end.
    let mut tail = Tail::new(log.clone(), [(p, 4)].into(), Start::End).await.unwrap();
    let first = tail.next().await.unwrap();
    assert_eq!((first.partition, values(&first), first.next), (p, vec![4, 5], 6));

    // A stream that appears later is seen from its beginning.
    let late = log.create_stream("late", Some(1), StreamConfig::default()).await.unwrap();
    let r = PartitionId::new(late.id, 0);
    let waiting = tokio::spawn(async move {
        let second = tail.next().await.unwrap();
        (second.partition, values(&second), second.stream.name.clone(), tail)
    });
    log.append(r, batch(2), Guard::None).await.unwrap();
    let (partition, offsets, name, mut tail) = waiting.await.unwrap();
    assert_eq!((partition, offsets, name.as_str()), (r, vec![0, 1], "late"));

    log.delete_stream("late").await.unwrap();
    log.append(q, batch(1), Guard::None).await.unwrap();
    let third = tail.next().await.unwrap();
    assert_eq!((third.partition, values(&third)), (q, vec![6]));
    log.close().await.unwrap();
    assert!(tail.next().await.is_none());
}

#[tokio::test]
async fn a_tail_serves_partitions_in_turn_and_skips_what_cannot_be_unpacked() {
    let log = test_log(1).await.unwrap();
    let stream = log.create_stream("s", Some(2), StreamConfig::default()).await.unwrap();
    let (p, q) = (PartitionId::new(stream.id, 0), PartitionId::new(stream.id, 1));
    let big = |size: usize| {
        let mut builder = BatchBuilder::new();
        builder.push(&Record { value: Some(vec![0; size].into()), ..Record::default() });
        builder.finish(Compression::None, None).unwrap()
    };
    for _ in 0..4 {
        log.append(p, big(200 * 1024), Guard::None).await.unwrap();
    }
    log.append(q, batch(1), Guard::None).await.unwrap();
    // Says gzip and is not.
    let mut broken = batch(1).bytes().to_vec();
    broken[22] = 1;
    let crc = crc32c::crc32c(&broken[21..]);
    broken[17..21].copy_from_slice(&crc.to_be_bytes());
    log.append(q, Batch::parse(broken.into()).unwrap(), Guard::None).await.unwrap();
    log.append(q, batch(1), Guard::None).await.unwrap();

    let mut tail = Tail::new(log.clone(), HashMap::new(), Start::Beginning).await.unwrap();
    let mut turns = Vec::new();
    while turns.iter().map(|(_, n): &(PartitionId, usize)| n).sum::<usize>() < 6 {
        let batch = tail.next().await.unwrap();
        turns.push((batch.partition, batch.records.len()));
    }
    assert_eq!(turns, [(p, 1), (q, 2), (p, 1), (p, 1), (p, 1)]);
    assert_eq!(tail.skipped(), 1);
}
