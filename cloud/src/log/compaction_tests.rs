//! Promises of compaction by key, on the memory engine.

use std::sync::Arc;

use tributary_shared::record::{Batch, BatchBuilder, Compression, Record};

use super::*;
use crate::engine::memory::MemoryEngine;

type Found = Vec<(Offset, String, Option<String>)>;

async fn open(engine: &MemoryEngine, settings: Settings) -> Log {
    Log::open(Arc::new(engine.clone()), settings).await.unwrap()
}

fn small() -> Settings {
    Settings { compaction_keys: 4, compaction_dirty_percent: 0, ..Settings::default() }
}

fn batch(records: &[(&str, Option<&str>)], compression: Compression) -> Batch {
    let mut builder = BatchBuilder::new();
    for (key, value) in records {
        builder.push(&Record {
            key: Some(Bytes::copy_from_slice(key.as_bytes())),
            value: value.map(|value| Bytes::copy_from_slice(value.as_bytes())),
            timestamp_ms: 1000,
            headers: Vec::new(),
        });
    }
    builder.finish(compression, None).unwrap()
}

async fn compacted(log: &Log) -> PartitionId {
    let config =
        StreamConfig { compact: true, delete_retention_ms: Some(100), ..StreamConfig::default() };
    PartitionId::new(log.create_stream("c", Some(1), config).await.unwrap().id, 0)
}

/// Everything, read as a reader does, each batch checked as if it came from a peer.
async fn everything(log: &Log, p: PartitionId) -> Found {
    let Watermarks { start, high } = log.watermarks(p).unwrap();
    let (mut from, mut found) = (start, Vec::new());
    while from < high {
        let batches = log.read(p, from, 1).await.unwrap();
        let batch = Batch::parse(batches.first().unwrap().bytes().clone()).unwrap();
        batch.check_records(1 << 20).unwrap();
        let text = |bytes: Bytes| String::from_utf8(bytes.to_vec()).unwrap();
        for (offset, record) in (batch.base_offset()..).zip(batch.records(1 << 20).unwrap()) {
            if offset >= from {
                found.push((offset, text(record.key.unwrap()), record.value.map(text)));
            }
        }
        from = batch.last_offset() + 1;
    }
    found
}

async fn fill(log: &Log, p: PartitionId) -> Found {
    let mut latest = std::collections::BTreeMap::new();
    for round in 0..20 {
        let value = format!("v{round}");
        let keys: Vec<_> = (0..5).map(|n| format!("k{}", (n * 3 + round) % 10)).collect();
        let records: Vec<_> = keys.iter().map(|key| (key.as_str(), Some(value.as_str()))).collect();
        let compression = [Compression::None, Compression::Zstd, Compression::Gzip][round % 3];
        let done = log.append(p, batch(&records, compression), Guard::None).await.unwrap();
        for (offset, key) in (done.base_offsets[0]..).zip(keys) {
            latest.insert(key, (offset, value.clone()));
        }
    }
    let mut found: Found =
        latest.into_iter().map(|(key, (offset, value))| (offset, key, Some(value))).collect();
    found.sort();
    found
}

/// As many passes as there are keys and more.
async fn settle(log: &Log, now_ms: i64) {
    for _ in 0..60 {
        log.run_compaction(now_ms).await.unwrap();
    }
}

#[tokio::test]
async fn a_compacted_stream_keeps_the_latest_of_each_key_at_its_offset_through_reopenings() {
    let engine = MemoryEngine::new(1);
    let log = open(&engine, small()).await;
    let p = compacted(&log).await;
    let expected = fill(&log, p).await;
    let marks = log.watermarks(p).unwrap();
    let mut before = everything(&log, p).await;
    assert_eq!(before.len(), 100);
    // One pass an opening: each goes on where the one before was.
    let mut log = log;
    for _ in 0..60 {
        log.run_compaction(5000).await.unwrap();
        let now = everything(&log, p).await;
        assert!(now.len() <= before.len() && expected.iter().all(|one| now.contains(one)));
        before = now;
        drop(log);
        log = open(&engine, small()).await;
    }
    assert_eq!(everything(&log, p).await, expected);
    assert_eq!(log.watermarks(p).unwrap(), marks);
    let more = log.append(p, batch(&[("k1", Some("new"))], Compression::None), Guard::None).await;
    assert_eq!(more.unwrap().base_offsets, [100]);
    settle(&log, 5000).await;
    let after = everything(&log, p).await;
    assert_eq!(after.last().unwrap(), &(100, "k1".into(), Some("new".into())));
    assert_eq!(after.len(), expected.len());
}

#[tokio::test]
async fn a_record_without_a_value_outlives_what_it_replaced_and_then_goes() {
    let engine = MemoryEngine::new(1);
    let log = open(&engine, small()).await;
    let p = compacted(&log).await;
    let records = [("a", Some("1")), ("b", Some("1")), ("a", None), ("b", Some("2"))];
    log.append(p, batch(&records, Compression::None), Guard::None).await.unwrap();
    settle(&log, 5000).await;
    let a_gone = (2, "a".to_owned(), None);
    let b = (3, "b".to_owned(), Some("2".to_owned()));
    assert_eq!(everything(&log, p).await, [a_gone.clone(), b.clone()]);
    settle(&log, 5099).await;
    assert_eq!(everything(&log, p).await, [a_gone, b.clone()]);
    settle(&log, 5100).await;
    assert_eq!(everything(&log, p).await, [b]);
    assert_eq!(log.watermarks(p).unwrap(), Watermarks { start: 0, high: 4 });
}

#[tokio::test]
async fn young_records_and_keyless_ones_and_trimmed_ones_are_left_to_their_rules() {
    let engine = MemoryEngine::new(1);
    let log = open(&engine, small()).await;
    let p = compacted(&log).await;
    let mut builder = BatchBuilder::new();
    builder.push(&Record { value: Some(Bytes::new()), ..Record::default() });
    let keyless = builder.finish(Compression::None, None).unwrap();
    let refused = log.append(p, keyless, Guard::None).await;
    assert!(matches!(refused, Err(LogError::KeylessRecord)));

    let lag = |ms| StreamConfig {
        compact: true,
        min_compaction_lag_ms: Some(ms),
        ..StreamConfig::default()
    };
    log.configure_stream("c", lag(500)).await.unwrap();
    let expected = fill(&log, p).await;
    settle(&log, 1499).await;
    assert_eq!(everything(&log, p).await.len(), 100);
    log.trim(p, 92).await.unwrap();
    settle(&log, 1500).await;
    let stays: Found = expected.into_iter().filter(|one| one.0 >= 92).collect();
    assert_eq!(everything(&log, p).await, stays);
    assert_eq!(log.watermarks(p).unwrap(), Watermarks { start: 92, high: 100 });
    // By age goes only what is also to be deleted.
    log.run_retention(i64::MAX / 2).await.unwrap();
    assert_eq!(everything(&log, p).await, stays);
    log.configure_stream("c", StreamConfig { compact_and_delete: true, ..lag(0) }).await.unwrap();
    log.run_retention(i64::MAX / 2).await.unwrap();
    assert_eq!(log.watermarks(p).unwrap(), Watermarks { start: 100, high: 100 });
}
