//! Streams, retention, search by time and the heads' own keys, on the memory engine.

use std::sync::Arc;

use tributary_shared::record::{Batch, BatchBuilder, Compression, Record, batch::Producer};

use super::{testing::test_log, *};
use crate::engine::memory::MemoryEngine;

fn batch_with(timestamps: &[i64], size: usize, producer: Option<Producer>) -> Batch {
    let mut builder = BatchBuilder::new();
    for timestamp_ms in timestamps {
        let value = Some(vec![b'x'; size].into());
        builder.push(&Record { value, timestamp_ms: *timestamp_ms, ..Record::default() });
    }
    builder.finish(Compression::None, producer).unwrap()
}

async fn log_on(engine: &MemoryEngine) -> Log {
    let settings = Settings { cache_bytes: 0, ..Settings::default() };
    Log::open(Arc::new(engine.clone()), settings).await.unwrap()
}

async fn stream(log: &Log, config: StreamConfig) -> PartitionId {
    PartitionId::new(log.create_stream("s", Some(1), config).await.unwrap().id, 0)
}

async fn keys_left(engine: &MemoryEngine) -> usize {
    use crate::engine::Engine;
    let shard = engine.open(ShardId(0)).await.unwrap();
    let limit = ScanLimit { entries: usize::MAX, bytes: usize::MAX };
    shard.scan(Bytes::from_static(b"\0")..Bytes::from_static(b"\xff"), limit).await.unwrap().len()
}

#[tokio::test]
async fn streams_are_made_grown_changed_and_deleted_for_good() {
    let engine = MemoryEngine::new(3);
    let log = log_on(&engine).await;
    for bad in ["", ".", "..", "a/b", "ä", &"x".repeat(250)] {
        let refused = log.create_stream(bad, None, StreamConfig::default()).await;
        assert!(matches!(refused, Err(LogError::BadStreamName(_))), "{bad}");
    }
    let first = log.ensure_stream("a").await.unwrap();
    assert_eq!(log.ensure_stream("a").await.unwrap(), first);
    let again = log.create_stream("a", None, StreamConfig::default()).await;
    assert!(matches!(again, Err(LogError::StreamExists(_))));
    let shards: Vec<_> =
        (0..3).map(|n| log.shard_of(PartitionId::new(first.id, n)).unwrap().0).collect();
    assert_eq!(shards.iter().collect::<std::collections::BTreeSet<_>>().len(), 3);

    let grown = log.grow_stream("a", 5).await.unwrap();
    assert_eq!((grown.partitions, grown.id), (5, first.id));
    assert!(matches!(log.grow_stream("a", 4).await, Err(LogError::BadConfig(_))));
    let config = StreamConfig { max_batch_bytes: Some(100), ..StreamConfig::default() };
    log.configure_stream("a", config.clone()).await.unwrap();
    let p = PartitionId::new(first.id, 4);
    let large = log.append(p, batch_with(&[1], 100, None), Guard::None).await;
    assert!(matches!(large, Err(LogError::BatchTooLarge { limit: 100, .. })));
    let never = StreamConfig { delete_retention_ms: Some(-1), ..StreamConfig::default() };
    assert!(matches!(log.configure_stream("a", never).await, Err(LogError::BadConfig(_))));

    log.append(p, batch_with(&[1], 1, None), Guard::None).await.unwrap();
    log.close().await.unwrap();
    let log = log_on(&engine).await;
    assert_eq!(log.stream("a").unwrap().config, config);
    assert_eq!(log.watermarks(p).unwrap().high, 1);

    log.delete_stream("a").await.unwrap();
    assert!(log.stream("a").is_none());
    assert!(matches!(log.read(p, 0, 1).await, Err(LogError::StreamNotFound(_))));
    let second = log.ensure_stream("a").await.unwrap();
    assert_ne!((second.id, second.uuid), (first.id, first.uuid));
}

#[tokio::test]
async fn a_deleted_stream_leaves_no_keys_even_if_the_process_stops_meanwhile() {
    let engine = MemoryEngine::new(1);
    let log = log_on(&engine).await;
    let p = stream(&log, StreamConfig::default()).await;
    for n in 0..1500 {
        let producer = Producer { id: n, epoch: 0, base_sequence: 0 };
        let batch = batch_with(&[1], 10, Some(producer));
        log.append(p, batch, Guard::Producer).await.unwrap();
    }
    let waiting = tokio::spawn({
        let log = log.clone();
        async move { log.wait_above(p, 1500).await }
    });
    tokio::task::yield_now().await;
    log.delete_stream("s").await.unwrap();
    assert!(matches!(waiting.await.unwrap(), Err(LogError::StreamNotFound(_))));
    // Stops the removal wherever it is.
    log.close().await.unwrap();
    let log = log_on(&engine).await;
    assert!(log.streams().is_empty());
    let one = ScanLimit { entries: 1, bytes: 1 };
    while !log.inner.scan(ShardId(0), keys::tails(), one).await.unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    log.close().await.unwrap();
    // The counter of stream ids stays.
    assert_eq!(keys_left(&engine).await, 1);
}

#[tokio::test]
async fn retention_by_time_drops_whole_batches_that_are_older() {
    let engine = MemoryEngine::new(1);
    let log = log_on(&engine).await;
    let config = StreamConfig { retention_ms: Some(1000), ..StreamConfig::default() };
    let p = stream(&log, config).await;
    for at in [[100, 200], [300, 900], [150, 160], [950, 990]] {
        log.append(p, batch_with(&at, 10, None), Guard::None).await.unwrap();
    }
    for (now, start) in
        [(1100, 0), (1200, 0), (1201, 2), (1900, 2), (1901, 6), (1990, 6), (1991, 8)]
    {
        log.run_retention(now).await.unwrap();
        assert_eq!(log.watermarks(p).unwrap(), Watermarks { start, high: 8 }, "now {now}");
    }
    log.close().await.unwrap();
    let log = log_on(&engine).await;
    assert_eq!(log.watermarks(p).unwrap(), Watermarks { start: 8, high: 8 });
    assert!(log.read(p, 8, 1).await.unwrap().is_empty());
    assert_eq!(
        log.append(p, batch_with(&[1], 1, None), Guard::None).await.unwrap().base_offsets,
        [8]
    );
    log.close().await.unwrap();
    // Stream, counter, tail, one batch, and the index entry of its beginning.
    assert_eq!(keys_left(&engine).await, 5);
}

#[tokio::test]
async fn retention_by_size_keeps_at_least_that_many_bytes() {
    let engine = MemoryEngine::new(1);
    let log = log_on(&engine).await;
    let keep = 3_000_000;
    let config = StreamConfig { retention_bytes: Some(keep), ..StreamConfig::default() };
    let p = stream(&log, config).await;
    let batch = batch_with(&[i64::MAX / 2], 300_000, None);
    let size = batch.bytes().len() as i64;
    for round in 1..=30 {
        log.append(p, batch.clone(), Guard::None).await.unwrap();
        log.run_retention(0).await.unwrap();
        let Watermarks { start, high } = log.watermarks(p).unwrap();
        assert_eq!(high, round);
        let left = (high - start) * size;
        assert!(left <= keep + size, "{left} bytes left in round {round}");
        assert!(start == 0 || left >= keep, "{left} bytes left in round {round}");
        assert_eq!(log.read(p, start, 1).await.unwrap().len(), 1);
    }
}

#[tokio::test]
async fn trimmed_records_are_out_of_range_and_the_rest_stays() {
    let log = log_on(&MemoryEngine::new(1)).await;
    let p = stream(&log, StreamConfig::default()).await;
    for _ in 0..3 {
        log.append(p, batch_with(&[1; 10], 10, None), Guard::None).await.unwrap();
    }
    assert_eq!(log.trim(p, 15).await.unwrap(), Watermarks { start: 15, high: 30 });
    assert!(matches!(log.read(p, 14, 1).await, Err(LogError::OffsetOutOfRange { start: 15, .. })));
    assert_eq!(log.read(p, 15, 1).await.unwrap()[0].header().base_offset, 10);
    assert_eq!(log.trim(p, 3).await.unwrap().start, 15, "a start never falls");
    assert!(log.trim(p, 31).await.is_err());
    assert_eq!(log.trim(p, 30).await.unwrap(), Watermarks { start: 30, high: 30 });
}

#[tokio::test]
async fn offsets_are_found_by_time_across_index_entries() {
    let log = log_on(&MemoryEngine::new(1)).await;
    let p = stream(&log, StreamConfig::default()).await;
    // 4 MiB in batches of two records, so several index entries; one batch is older than those around it.
    for n in 0..40_i64 {
        let n = if n == 20 { 5 } else { n };
        log.append(p, batch_with(&[n * 10, n * 10 + 5], 50_000, None), Guard::None).await.unwrap();
    }
    let cases = [
        (-5, Some((0, 0))),
        (0, Some((0, 0))),
        (1, Some((1, 5))),
        (10, Some((2, 10))),
        (196, Some((42, 210))),
        (200, Some((42, 210))),
        (391, Some((79, 395))),
        (395, Some((79, 395))),
        (396, None),
    ];
    for (timestamp, expected) in cases {
        assert_eq!(log.offset_at_time(p, timestamp).await.unwrap(), expected, "{timestamp}");
    }
    log.trim(p, 43).await.unwrap();
    assert_eq!(log.offset_at_time(p, 0).await.unwrap(), Some((43, 215)));
}

#[tokio::test]
async fn the_logs_time_replaces_the_producers_where_a_stream_says_so() {
    let log = test_log(1).await.unwrap();
    let config = StreamConfig { log_append_time: true, ..StreamConfig::default() };
    let p = stream(&log, config).await;
    let before = now_ms();
    log.append(p, batch_with(&[5, 6], 10, None), Guard::None).await.unwrap();
    let stored = log.read(p, 0, 1).await.unwrap().remove(0);
    let header = Batch::parse(stored.bytes().clone()).unwrap().header();
    assert!(header.is_log_append_time() && header.max_timestamp_ms >= before);
    let found = log.offset_at_time(p, before).await.unwrap();
    assert_eq!(found, Some((0, header.max_timestamp_ms)));
}

#[tokio::test]
async fn a_heads_keys_live_in_the_same_commit_and_nowhere_else() {
    let log = test_log(2).await.unwrap();
    let shard = ShardId(1);
    let key = |k: &str| Log::state_key(StateSpace::Queue, k.as_bytes());
    let put = |k: &str| Write::Put(key(k), Bytes::copy_from_slice(k.as_bytes()));
    let writes = vec![put("q/1"), put("q/2"), put("q/3"), put("r/1")];
    log.commit(shard, Transaction { writes, ..Transaction::default() }).await.unwrap();
    let limit = ScanLimit { entries: 2, bytes: 1000 };
    let scan = async |after: Option<&[u8]>| {
        let found = log.state_scan(shard, StateSpace::Queue, b"q/", after, limit).await.unwrap();
        found.into_iter().map(|(k, _)| String::from_utf8(k.to_vec()).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(scan(None).await, ["q/1", "q/2"]);
    assert_eq!(scan(Some(b"q/2")).await, ["q/3"]);
    assert!(log.state_get(ShardId(0), StateSpace::Queue, b"q/1").await.unwrap().is_none());
    assert!(log.state_get(shard, StateSpace::Group, b"q/1").await.unwrap().is_none());
    let foreign = vec![Write::Delete(Bytes::from_static(b"T12345678"))];
    let refused =
        log.commit(shard, Transaction { writes: foreign, ..Transaction::default() }).await;
    assert!(matches!(refused, Err(LogError::BadConfig(_))));
}

#[tokio::test]
async fn a_refused_transaction_leaves_no_trace() {
    let log = test_log(1).await.unwrap();
    let p = stream(&log, StreamConfig::default()).await;
    let sent = |sequence| {
        let producer = Producer { id: 1, epoch: 0, base_sequence: sequence };
        Append { partition: p, batch: batch_with(&[1], 1, Some(producer)) }
    };
    let commit = async |appends| {
        let key = Log::state_key(StateSpace::Meta, b"k");
        let writes = vec![Write::Put(key, Bytes::new())];
        let guard = Guard::Producer;
        log.commit(ShardId(0), Transaction { appends, guard, writes, ..Transaction::default() })
            .await
    };
    // The second batch has a gap: the first is refused with it.
    let refused = commit(vec![sent(0), sent(2)]).await;
    assert!(matches!(refused, Err(LogError::OutOfOrderSequence { got: 2, expected: 1, .. })));
    assert_eq!(log.watermarks(p).unwrap().high, 0);
    assert!(log.state_get(ShardId(0), StateSpace::Meta, b"k").await.unwrap().is_none());
    let both = commit(vec![sent(0), sent(1)]).await.unwrap();
    assert_eq!(both, Committed { base_offsets: vec![0, 1], duplicate: false });
    // A repeat and a new one together: the repeat keeps its offset.
    let mixed = commit(vec![sent(1), sent(2)]).await.unwrap();
    assert_eq!(mixed, Committed { base_offsets: vec![1, 2], duplicate: false });
}

#[tokio::test]
async fn producers_not_seen_for_a_day_are_forgotten() {
    let engine = MemoryEngine::new(1);
    let log = log_on(&engine).await;
    let p = stream(&log, StreamConfig::default()).await;
    let sent = |sequence| {
        batch_with(&[now_ms()], 1, Some(Producer { id: 1, epoch: 0, base_sequence: sequence }))
    };
    log.append(p, sent(0), Guard::Producer).await.unwrap();
    log.run_retention(now_ms()).await.unwrap();
    assert!(log.append(p, sent(7), Guard::Producer).await.is_err());
    log.run_retention(now_ms() + 86_400_000 + 60_000).await.unwrap();
    assert_eq!(log.append(p, sent(7), Guard::Producer).await.unwrap().base_offsets, [1]);
}
