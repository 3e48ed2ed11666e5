//! What is produced is fetched: order, durability, long polls, idempotence.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::{Instant, timeout};
use tributary_shared::record::{Batch, BatchBuilder, Compression, Record, batch::Producer};

use super::{Server, Wire, samples::batch};
use crate::{
    engine::{ShardId, memory::MemoryEngine},
    group,
    kafka::{
        frame::{text, wire::*},
        schema::{FETCH, INIT_PRODUCER_ID, LIST_OFFSETS, METADATA, PRODUCE},
    },
    log::{self, Log},
};

/// Version of Produce and Fetch in these tests.
const V: i16 = 9;

fn produce(partition: i32, acks: i16, records: Bytes) -> ProduceRequest {
    use produce_request::*;
    let data = PartitionProduceData::default().with_index(partition).with_records(Some(records));
    let topic =
        TopicProduceData::default().with_name(TopicName(text("t"))).with_partition_data(vec![data]);
    ProduceRequest::default().with_acks(acks).with_topic_data(vec![topic])
}

/// (error code, base offset)
fn outcome(response: &ProduceResponse) -> (i16, i64) {
    let partition = &response.responses[0].partition_responses[0];
    (partition.error_code, partition.base_offset)
}

fn fetch(partitions: &[(i32, i64)], max_wait_ms: i32, max_bytes: i32) -> FetchRequest {
    use fetch_request::*;
    let partitions = partitions.iter().map(|(index, offset)| {
        FetchPartition::default()
            .with_partition(*index)
            .with_fetch_offset(*offset)
            .with_partition_max_bytes(max_bytes)
    });
    let topic = FetchTopic::default()
        .with_topic(TopicName(text("t")))
        .with_partitions(partitions.collect());
    FetchRequest::default()
        .with_max_wait_ms(max_wait_ms)
        .with_min_bytes(1)
        .with_max_bytes(max_bytes)
        .with_topics(vec![topic])
}

fn batches(response: &FetchResponse, partition: usize) -> Vec<Batch> {
    let mut records = response.responses[0].partitions[partition].records.clone().unwrap();
    let mut found = Vec::new();
    while !records.is_empty() {
        found.push(Batch::split_first(&mut records).unwrap());
    }
    found
}

fn values(batch: &Batch) -> Vec<String> {
    let records = batch.records(1 << 20).unwrap();
    records.iter().map(|r| String::from_utf8_lossy(r.value.as_ref().unwrap()).into()).collect()
}

async fn start() -> (Server, Wire) {
    let server = Server::start().await;
    server.topic("t", 2).await;
    let client = server.client().await;
    (server, client)
}

#[tokio::test]
async fn a_fetch_inside_a_batch_returns_the_batch_that_holds_the_offset() {
    let (_server, mut client) = start().await;
    for (values, base) in [(["a", "b", "c"], 0), (["d", "e", "f"], 3)] {
        let answer: ProduceResponse = client.ask(PRODUCE, V, &produce(0, -1, batch(&values))).await;
        assert_eq!(outcome(&answer), (0, base));
    }
    let answer: FetchResponse = client.ask(FETCH, V, &fetch(&[(0, 4)], 0, 10_000)).await;
    let found = batches(&answer, 0);
    assert_eq!(found.len(), 1);
    assert_eq!(
        (found[0].header().base_offset, values(&found[0])),
        (3, vec!["d".to_owned(), "e".into(), "f".into()])
    );
    assert_eq!(answer.responses[0].partitions[0].high_watermark, 6);
}

#[tokio::test]
async fn at_least_one_whole_batch_comes_however_small_the_limit() {
    let (_server, mut client) = start().await;
    for partition in [0, 1] {
        for _ in 0..2 {
            let request = produce(partition, 1, batch(&["0123456789"]));
            let answer: ProduceResponse = client.ask(PRODUCE, V, &request).await;
            assert_eq!(outcome(&answer).0, 0);
        }
    }
    let answer: FetchResponse = client.ask(FETCH, V, &fetch(&[(0, 0), (1, 0)], 0, 1)).await;
    assert_eq!((batches(&answer, 0).len(), batches(&answer, 1).len()), (1, 0));
}

#[tokio::test]
async fn an_offset_that_is_not_there_is_out_of_range() {
    let (_server, mut client) = start().await;
    let answer: FetchResponse = client.ask(FETCH, V, &fetch(&[(0, 5)], 60_000, 1_000)).await;
    assert_eq!(answer.responses[0].partitions[0].error_code, 1);
}

#[tokio::test]
async fn a_long_poll_is_woken_by_an_append_to_any_of_its_partitions() {
    let (server, mut reader) = start().await;
    let mut body = Vec::new();
    crate::kafka::frame::Encodable::encode(&fetch(&[(0, 0), (1, 0)], 60_000, 1_000), &mut body, V)
        .unwrap();
    reader.send(FETCH, V, &body).await;
    let mut writer = server.client().await;
    let answer: ProduceResponse = writer.ask(PRODUCE, V, &produce(1, 1, batch(&["x"]))).await;
    assert_eq!(outcome(&answer), (0, 0));
    let woken = timeout(Duration::from_secs(30), reader.receive_as::<FetchResponse>(V)).await;
    let (_, answer) = woken.expect("woken long before its time is up");
    assert_eq!(batches(&answer, 1).len(), 1);
}

#[tokio::test]
async fn a_long_poll_that_sees_nothing_ends_at_its_time() {
    let (_server, mut client) = start().await;
    let began = Instant::now();
    let answer: FetchResponse = client.ask(FETCH, V, &fetch(&[(0, 0)], 50, 1_000)).await;
    assert!(began.elapsed() >= Duration::from_millis(50));
    assert!(batches(&answer, 0).is_empty());
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let (_server, mut client) = start().await;
    let mut sent = Vec::new();
    for n in 0..100 {
        let mut body = Vec::new();
        let request = produce(n % 2, -1, batch(&["x"]));
        crate::kafka::frame::Encodable::encode(&request, &mut body, V).unwrap();
        sent.push((client.send(PRODUCE, V, &body).await, true));
        if n % 10 == 0 {
            let metadata = super::samples::sample(METADATA, 5);
            sent.push((client.send(METADATA, 5, &metadata).await, false));
        }
    }
    let mut next = [0; 2];
    let mut produced = 0;
    for (correlation, is_produce) in sent {
        if is_produce {
            let (answered, answer) = client.receive_as::<ProduceResponse>(V).await;
            let partition = produced % 2;
            assert_eq!((answered, outcome(&answer)), (correlation, (0, next[partition])));
            next[partition] += 1;
            produced += 1;
        } else {
            let (answered, _) = client.receive_as::<MetadataResponse>(5).await;
            assert_eq!(answered, correlation);
        }
    }
}

/// Clients ask for metadata while they produce.
#[tokio::test]
async fn produces_behind_another_request_become_durable_together() {
    const PRODUCES: usize = 30;
    let engine = Arc::new(MemoryEngine::manual(2));
    let flush = async || {
        while (0..2).all(|shard| engine.waiting(ShardId(shard)) == 0) {
            tokio::task::yield_now().await;
        }
        // Whatever else is on its way gets there.
        for _ in 0..500 {
            tokio::task::yield_now().await;
        }
        engine.flush();
    };
    let opening = Log::open(Arc::clone(&engine) as _, log::Settings::default());
    tokio::pin!(opening);
    let log = loop {
        tokio::select! {
            log = &mut opening => break log.unwrap(),
            () = flush() => {}
        }
    };
    let server = Server::over(log, group::Settings::default()).await;
    let topic = server.topic("t", 1);
    tokio::pin!(topic);
    loop {
        tokio::select! {
            () = &mut topic => break,
            () = flush() => {}
        }
    }
    let mut client = server.client().await;
    let mut body = Vec::new();
    crate::kafka::frame::Encodable::encode(&produce(0, -1, batch(&["x"])), &mut body, V).unwrap();
    client.send(PRODUCE, V, &body).await;
    client.send(METADATA, 5, &super::samples::sample(METADATA, 5)).await;
    for _ in 0..PRODUCES {
        client.send(PRODUCE, V, &body).await;
    }
    let answers = async {
        client.receive_as::<ProduceResponse>(V).await;
        client.receive_as::<MetadataResponse>(5).await;
        for _ in 0..PRODUCES {
            assert_eq!(outcome(&client.receive_as::<ProduceResponse>(V).await.1).0, 0);
        }
    };
    tokio::pin!(answers);
    let mut flushes = 0;
    loop {
        tokio::select! {
            () = &mut answers => break,
            () = flush() => flushes += 1,
        }
    }
    assert!(flushes < PRODUCES / 3, "{flushes}");
}

#[tokio::test]
async fn a_repeated_idempotent_batch_has_its_old_offset_and_a_gap_is_refused() {
    let (_server, mut client) = start().await;
    let request = InitProducerIdRequest::default().with_transactional_id(None);
    let given: InitProducerIdResponse = client.ask(INIT_PRODUCER_ID, 4, &request).await;
    let sequenced = |base_sequence| {
        let mut builder = BatchBuilder::new();
        builder.push(&Record { value: Some(Bytes::from_static(b"x")), ..Record::default() });
        let producer =
            Producer { id: given.producer_id.0, epoch: given.producer_epoch, base_sequence };
        builder.finish(Compression::Zstd, Some(producer)).unwrap().bytes().clone()
    };
    for (sequence, expected) in [(0, (0, 0)), (1, (0, 1)), (0, (0, 0)), (1, (0, 1)), (3, (45, -1))]
    {
        let answer: ProduceResponse =
            client.ask(PRODUCE, V, &produce(0, -1, sequenced(sequence))).await;
        assert_eq!(outcome(&answer), expected, "sequence {sequence}");
    }
}

#[tokio::test]
async fn producer_ids_are_never_given_twice() {
    let server = Server::start().await;
    let again = Server::over(server.log.clone(), crate::group::Settings::default()).await;
    let mut given = std::collections::HashSet::new();
    for server in [&server, &again] {
        let mut client = server.client().await;
        for _ in 0..1_100 {
            let request = InitProducerIdRequest::default().with_transactional_id(None);
            let answer: InitProducerIdResponse = client.ask(INIT_PRODUCER_ID, 4, &request).await;
            assert!(given.insert(answer.producer_id.0));
        }
    }
}

#[tokio::test]
async fn what_is_no_batch_is_refused_with_its_code() {
    let (_server, mut client) = start().await;
    let good = batch(&["a"]);
    let mut crc = good.to_vec();
    crc[65] ^= 1;
    let mut magic = good.to_vec();
    magic[16] = 1;
    let twice = [good.as_ref(), good.as_ref()].concat();
    let cases: [(Vec<u8>, i16); 5] =
        [(crc, 2), (magic, 43), (twice, 87), (Vec::new(), 87), (good[..30].to_vec(), 2)];
    for (records, code) in cases {
        let answer: ProduceResponse = client.ask(PRODUCE, V, &produce(0, -1, records.into())).await;
        assert_eq!(outcome(&answer).0, code);
    }
    let answer: ProduceResponse = client.ask(PRODUCE, V, &produce(7, -1, good.clone())).await;
    assert_eq!(outcome(&answer).0, 3);
    let answer: ProduceResponse = client.ask(PRODUCE, V, &produce(0, 2, good.clone())).await;
    assert_eq!(outcome(&answer).0, 21);
    let transactional =
        produce(0, -1, good).with_transactional_id(Some(TransactionalId(text("tx"))));
    let answer: ProduceResponse = client.ask(PRODUCE, V, &transactional).await;
    assert_eq!(outcome(&answer).0, 53);
}

#[tokio::test]
async fn acks_0_is_not_answered_and_its_records_are_there() {
    let (_server, mut client) = start().await;
    let mut body = Vec::new();
    crate::kafka::frame::Encodable::encode(&produce(0, 0, batch(&["x"])), &mut body, V).unwrap();
    client.send(PRODUCE, V, &body).await;
    let answer: FetchResponse = client.ask(FETCH, V, &fetch(&[(0, 0)], 60_000, 1_000)).await;
    assert_eq!(values(&batches(&answer, 0)[0]), ["x"]);
}

#[tokio::test]
async fn a_producer_is_told_the_time_that_the_log_gave() {
    let server = Server::start().await;
    let config =
        crate::log::StreamConfig { log_append_time: true, ..crate::log::StreamConfig::default() };
    server.log.create_stream("t", Some(1), config).await.unwrap();
    let mut client = server.client().await;
    let answer: ProduceResponse = client.ask(PRODUCE, V, &produce(0, -1, batch(&["x"]))).await;
    let told = answer.responses[0].partition_responses[0].log_append_time_ms;
    let answer: FetchResponse = client.ask(FETCH, V, &fetch(&[(0, 0)], 0, 1_000)).await;
    let stored = batches(&answer, 0)[0].header().max_timestamp_ms;
    assert!(told > 1_700_000_000_000, "{told}");
    assert_eq!(told, stored);
}

#[tokio::test]
async fn offsets_are_found_by_name_and_by_time() {
    use list_offsets_request::*;
    let (_server, mut client) = start().await;
    for timestamps in [[10, 20], [90, 30], [40, 50]] {
        let mut builder = BatchBuilder::new();
        for timestamp_ms in timestamps {
            builder.push(&Record { timestamp_ms, ..Record::default() });
        }
        let records = builder.finish(Compression::Lz4, None).unwrap().bytes().clone();
        let _: ProduceResponse = client.ask(PRODUCE, V, &produce(0, -1, records)).await;
    }
    let cases =
        [(-1, (6, -1)), (-2, (0, -1)), (-3, (2, 90)), (-4, (0, -1)), (15, (1, 20)), (91, (-1, -1))];
    for (at, expected) in cases {
        let partition = ListOffsetsPartition::default().with_timestamp(at);
        let topic = ListOffsetsTopic::default()
            .with_name(TopicName(text("t")))
            .with_partitions(vec![partition]);
        let request = ListOffsetsRequest::default().with_topics(vec![topic]);
        let answer: ListOffsetsResponse = client.ask(LIST_OFFSETS, 8, &request).await;
        let found = &answer.topics[0].partitions[0];
        assert_eq!((found.offset, found.timestamp), expected, "at {at}");
    }
}
