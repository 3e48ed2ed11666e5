//! The promises of the log, on the memory engine.

use std::sync::Arc;

use tributary_shared::record::{Batch, BatchBuilder, Compression, Record, batch::Producer};

use super::{testing::test_log, *};
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
    let mark = Guard::Edge { edge: "gw1".into(), epoch: 7, seq: 0, count: 4 };
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
    let mark = |seq, count| Guard::Edge { edge: "gw1".into(), epoch: 9, seq, count };
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
