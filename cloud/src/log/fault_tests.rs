//! What the log does when its shard is opened anew, and when removal meets pages that are cut by their bytes.

use std::sync::Arc;

use bytes::Bytes;
use tributary_shared::record::{Batch, BatchBuilder, Compression, Record};

use super::{
    decide::{Change, Group, Prepared, PreparedAppend, State},
    keys::{self, ByOffset},
    stored::Tail,
    testing::test_log,
    *,
};
use crate::engine::{ScanLimit, ShardId, memory::MemoryEngine};

const SHARD: ShardId = ShardId(0);

fn batch(bytes: usize) -> Batch {
    let mut builder = BatchBuilder::new();
    builder.push(&Record { value: Some(vec![7; bytes].into()), ..Record::default() });
    builder.finish(Compression::None, None).unwrap()
}

async fn stream(log: &Log) -> PartitionId {
    let stream = log.create_stream("s", Some(1), StreamConfig::default()).await.unwrap();
    PartitionId::new(stream.id, 0)
}

/// What the engine holds of a partition: its tail, and how many batches and bytes of them.
async fn stored(log: &Log, partition: PartitionId) -> (Tail, usize, u64) {
    let shard = log.inner.shards[0].slot.open().unwrap().0;
    let tail = shard.get(&keys::tail(partition)).await.unwrap().unwrap();
    let limit = ScanLimit { entries: usize::MAX, bytes: usize::MAX };
    let range = ByOffset::Records.range(partition, 0..Offset::MAX);
    let found: Vec<(Bytes, Bytes)> = shard.scan(range, limit).await.unwrap();
    let bytes = found.iter().map(|(_, value)| value.len() as u64).sum();
    (Tail::decode(&tail).unwrap(), found.len(), bytes)
}

/// The first transaction is lost with its opening of the shard; the second was made before that and waited for room.
#[tokio::test]
async fn a_request_that_waited_through_a_reopening_has_no_effect() {
    let engine = MemoryEngine::manual(1);
    let settings = Settings { in_flight_bytes: 2048, ..Settings::default() };
    let flushing = {
        let engine = engine.clone();
        tokio::spawn(async move {
            loop {
                engine.flush();
                tokio::task::yield_now().await;
            }
        })
    };
    let log = Log::open(Arc::new(engine.clone()), settings).await.unwrap();
    let p = stream(&log).await;
    flushing.abort();
    assert!(flushing.await.is_err());

    let append =
        |log: Log| tokio::spawn(async move { log.append(p, batch(2000), Guard::None).await });
    let lost = append(log.clone());
    while engine.waiting(SHARD) == 0 {
        tokio::task::yield_now().await;
    }
    let waits = append(log.clone());
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert_eq!(engine.waiting(SHARD), 1, "there is no room for the second");
    engine.fail_durability(SHARD);
    assert!(lost.await.unwrap().is_err());
    while !waits.is_finished() {
        engine.flush();
        tokio::task::yield_now().await;
    }
    assert!(waits.await.unwrap().is_err(), "it may build on the one that was lost");

    // Who comes now is served.
    let again = append(log.clone());
    while !again.is_finished() {
        engine.flush();
        tokio::task::yield_now().await;
    }
    assert_eq!(again.await.unwrap().unwrap().base_offsets, [0]);
    assert_eq!(log.watermarks(p).unwrap(), Watermarks { start: 0, high: 1 });
}

/// A page of what is to go ends at its bytes long before it is full: before a batch that does not fit.
#[tokio::test]
async fn a_trim_removes_every_record_however_large_they_are() {
    let log = test_log(1).await.unwrap();
    let config = StreamConfig { max_batch_bytes: Some(8 << 20), ..StreamConfig::default() };
    let stream = log.create_stream("s", Some(1), config).await.unwrap();
    let p = PartitionId::new(stream.id, 0);
    for bytes in [1_000_000, 3_500_000, 10, 3_500_000, 900_000, 900_000] {
        log.append(p, batch(bytes), Guard::None).await.unwrap();
    }
    let kept = log.append(p, batch(10), Guard::None).await.unwrap().base_offsets[0];
    assert_eq!(log.trim(p, kept).await.unwrap(), Watermarks { start: kept, high: kept + 1 });
    let (tail, batches, bytes) = stored(&log, p).await;
    assert_eq!((tail.erased, batches), (kept, 1));
    assert_eq!(tail.bytes_appended - tail.bytes_erased, bytes);
}

/// Both change the tail; written as one group, the append's copy must not undo what was erased: a crash behind it would
/// bring the bytes back.
#[tokio::test]
async fn what_was_erased_stays_counted_beside_an_append_of_the_same_group() {
    let log = test_log(1).await.unwrap();
    let p = stream(&log).await;
    log.append(p, batch(100), Guard::None).await.unwrap();
    let (tail, _, bytes) = stored(&log, p).await;
    let entry = log.inner.catalog.by_id(p.stream()).unwrap();
    let append = PreparedAppend {
        partition: Arc::clone(&entry.partitions[0]),
        stream: Arc::clone(&entry.stream),
        batch: batch(50),
    };
    let apply =
        Prepared { appends: vec![append], guard: Guard::None, writes: Vec::new(), index: None };
    let erase = Change::Erase { partition: p, keys: Vec::new(), to: 1, bytes };

    let (mut state, mut group) = (State::new([(p, tail)]), Group::default());
    for change in [Change::Apply(apply), erase] {
        state.decide(change, 1, &mut group).unwrap();
    }
    state.finish(&mut group);
    let key = keys::tail(p);
    let last = group.writes.iter().rev().find_map(|write| match write {
        Write::Put(of, value) if *of == key => Some(Tail::decode(value).unwrap()),
        _ => None,
    });
    let last = last.unwrap();
    assert_eq!((last.erased, last.bytes_erased), (1, bytes));
    assert!(last.bytes_appended > tail.bytes_appended);
}
