//! Batches against another implementation's bytes, against random records, and against bytes that lie.

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::{
    indexmap::IndexMap,
    protocol::StrBytes,
    records::{
        Compression as TheirCompression, Record as TheirRecord, RecordBatchDecoder,
        RecordBatchEncoder, RecordEncodeOptions, TimestampType,
    },
};
use proptest::prelude::*;

use super::*;

const LIMIT: usize = 1 << 24;

const CODECS: [(Compression, TheirCompression); 5] = [
    (Compression::None, TheirCompression::None),
    (Compression::Gzip, TheirCompression::Gzip),
    (Compression::Snappy, TheirCompression::Snappy),
    (Compression::Lz4, TheirCompression::Lz4),
    (Compression::Zstd, TheirCompression::Zstd),
];

fn record(key: &str, value: &str, timestamp_ms: i64) -> Record {
    Record {
        key: Some(Bytes::copy_from_slice(key.as_bytes())),
        value: Some(Bytes::copy_from_slice(value.as_bytes())),
        timestamp_ms,
        headers: Vec::new(),
    }
}

fn build(records: &[Record], compression: Compression) -> Batch {
    let mut builder = BatchBuilder::new();
    for record in records {
        builder.push(record);
    }
    builder.finish(compression, None).unwrap()
}

fn theirs(index: i64, record: &Record) -> TheirRecord {
    let headers: IndexMap<StrBytes, Option<Bytes>> = record
        .headers
        .iter()
        .map(|header| (StrBytes::from_string(header.name.to_string()), header.value.clone()))
        .collect();
    TheirRecord {
        transactional: false,
        control: false,
        delete_horizon: false,
        partition_leader_epoch: -1,
        producer_id: -1,
        producer_epoch: -1,
        timestamp_type: TimestampType::Creation,
        offset: index,
        sequence: (index as i32) - 1,
        timestamp: record.timestamp_ms,
        key: record.key.clone(),
        value: record.value.clone(),
        headers,
    }
}

fn samples() -> Vec<Record> {
    let mut records: Vec<_> = (0..200)
        .map(|i| record(&format!("plant/{}/temp", i % 7), &format!("{i}.5"), 1_700_000_000_000 + i))
        .collect();
    records[3].key = None;
    records[4].value = None;
    records[5].headers = vec![
        Header { name: "a".into(), value: Some(Bytes::from_static(b"1")) },
        Header { name: "null".into(), value: None },
        Header { name: "empty".into(), value: Some(Bytes::new()) },
    ];
    records
}

/// Written out by hand from the protocol's description.
#[test]
fn a_batch_has_the_bytes_that_the_protocol_says() {
    let mut record = record("k", "v", 1000);
    record.headers.push(Header { name: "h".into(), value: None });
    record.headers.push(Header { name: "h".into(), value: Some(Bytes::from_static(b"x")) });
    let batch = build(&[record.clone()], Compression::None);

    let body: &[u8] = &[
        0x20, 0x00, 0x00, 0x00, 0x02, b'k', 0x02, b'v', 0x04, // two headers
        0x02, b'h', 0x01, 0x02, b'h', 0x02, b'x',
    ];
    let mut body = body.to_vec();
    body[0] = ((body.len() - 1) * 2) as u8;
    let mut expected = BytesMut::new();
    expected.put_i16(0); // attributes
    expected.put_i32(0); // last offset delta
    expected.put_i64(1000);
    expected.put_i64(1000);
    expected.put_i64(-1);
    expected.put_i16(-1);
    expected.put_i32(-1);
    expected.put_i32(1);
    expected.put_slice(&body);
    let crc = crc32c::crc32c(&expected);
    let mut whole = BytesMut::new();
    whole.put_i64(0);
    whole.put_i32(expected.len() as i32 + 9);
    whole.put_i32(-1);
    whole.put_i8(2);
    whole.put_u32(crc);
    whole.put_slice(&expected);
    assert_eq!(batch.bytes(), &whole.freeze());
    assert_eq!(batch.records(LIMIT).unwrap(), [record], "duplicate and null headers are kept");
}

#[test]
fn batches_of_another_implementation_are_read_with_every_codec() {
    let records = samples();
    let encoded: Vec<_> = (0..).zip(&records).map(|(i, record)| theirs(i, record)).collect();
    for (ours, compression) in CODECS {
        let mut bytes = BytesMut::new();
        let options = RecordEncodeOptions { version: 2, compression };
        RecordBatchEncoder::encode(&mut bytes, &encoded, &options).unwrap();
        let batch = Batch::parse(bytes.freeze()).unwrap();
        assert_eq!(batch.compression(), Ok(ours));
        assert_eq!(batch.records(LIMIT).unwrap(), records, "{ours:?}");
        batch.check_records(LIMIT).unwrap();
    }
}

#[test]
fn another_implementation_reads_our_batches_with_every_codec() {
    let records = samples();
    for (ours, _) in CODECS {
        let batch = build(&records, ours).at_offset(0, 0);
        let set = RecordBatchDecoder::decode(&mut batch.bytes().clone()).unwrap();
        let read: Vec<_> = set
            .records
            .into_iter()
            .map(|record| Record {
                key: record.key,
                value: record.value,
                timestamp_ms: record.timestamp,
                headers: record
                    .headers
                    .into_iter()
                    .map(|(name, value)| Header { name: name.to_string().into(), value })
                    .collect(),
            })
            .collect();
        assert_eq!(read, records, "{ours:?}");
    }
}

#[test]
fn an_offset_is_assigned_without_touching_what_the_crc_covers() {
    let batch = build(&samples(), Compression::Zstd);
    let moved = batch.at_offset(1 << 40, 7);
    assert_eq!((moved.base_offset(), moved.header().leader_epoch), (1 << 40, 7));
    assert_eq!(moved.last_offset(), (1 << 40) + 199);
    assert_eq!(moved.bytes()[16..], batch.bytes()[16..]);
    let moved = Batch::parse(moved.bytes().clone()).unwrap();
    let unpacked = moved.unpack(LIMIT).unwrap();
    let offsets: Vec<_> = unpacked.iter().map(|raw| raw.unwrap().offset).collect();
    assert_eq!(offsets, (1 << 40..(1 << 40) + 200).collect::<Vec<_>>());
}

#[test]
fn append_time_replaces_every_timestamp() {
    let batch = build(&samples(), Compression::None).with_append_time(42);
    let batch = Batch::parse(batch.bytes().clone()).unwrap();
    assert!(batch.header().is_log_append_time());
    assert_eq!(batch.max_timestamp_ms(), 42);
    assert!(batch.records(LIMIT).unwrap().iter().all(|record| record.timestamp_ms == 42));
}

#[test]
fn the_producer_is_in_the_header() {
    let mut builder = BatchBuilder::new();
    builder.push(&record("k", "v", 5));
    builder.push(&record("k", "v", 3));
    let producer = Producer { id: i64::MAX, epoch: 3, base_sequence: i32::MAX };
    let header = builder.finish(Compression::None, Some(producer)).unwrap().header();
    assert_eq!((header.producer_id, header.producer_epoch), (i64::MAX, 3));
    assert_eq!((header.base_sequence, header.count), (i32::MAX, 2));
    assert_eq!((header.base_timestamp_ms, header.max_timestamp_ms), (5, 5));
}

#[test]
fn records_share_the_buffer_they_came_in() {
    let batch = build(&samples(), Compression::None);
    let whole = batch.bytes().as_ptr_range();
    let value = batch.records(LIMIT).unwrap()[0].value.clone().unwrap();
    assert!(whole.contains(&value.as_ptr()));
}

#[test]
fn several_batches_are_split_one_by_one() {
    let batch = build(&samples(), Compression::Zstd);
    let mut bytes = Bytes::from([batch.bytes().as_ref(), batch.bytes().as_ref()].concat());
    assert_eq!(Batch::parse(bytes.clone()), Err(BatchError::Trailing(batch.bytes().len())));
    assert_eq!(Batch::split_first(&mut bytes).unwrap(), batch);
    let mut damaged = BytesMut::from(bytes.as_ref());
    damaged[30] ^= 1;
    let mut damaged = damaged.freeze();
    assert!(matches!(Batch::split_first(&mut damaged), Err(BatchError::Crc { .. })));
    assert_eq!(damaged.len(), batch.bytes().len(), "an error takes nothing");
    assert_eq!(Batch::split_first(&mut bytes).unwrap(), batch);
    assert!(bytes.is_empty());
}

/// A batch with one uncompressed body of our choice and a right CRC.
fn forged(count: i32, last_offset_delta: i32, attributes: i16, body: &[u8]) -> Bytes {
    let mut bytes = BytesMut::new();
    let header = BatchHeader {
        base_offset: 0,
        leader_epoch: 0,
        attributes,
        last_offset_delta,
        base_timestamp_ms: 0,
        max_timestamp_ms: 0,
        producer_id: -1,
        producer_epoch: -1,
        base_sequence: -1,
        count,
    };
    header.write(body.len(), &mut bytes).unwrap();
    bytes.put_slice(body);
    batch::seal(bytes).bytes().clone()
}

#[test]
fn a_header_that_lies_is_refused() {
    let good = build(&samples(), Compression::None).bytes().clone();
    let with = |at: usize, value: &[u8]| {
        let mut bytes = BytesMut::from(good.as_ref());
        bytes[at..at + value.len()].copy_from_slice(value);
        Batch::parse(bytes.freeze())
    };
    assert!(matches!(with(8, &i32::MAX.to_be_bytes()), Err(BatchError::Truncated { .. })));
    assert_eq!(with(8, &(-1_i32).to_be_bytes()), Err(BatchError::Length(-1)));
    assert_eq!(with(8, &48_i32.to_be_bytes()), Err(BatchError::Length(48)));
    assert_eq!(with(16, &[1]), Err(BatchError::Magic(1)));
    assert!(matches!(with(17, &[0; 4]), Err(BatchError::Crc { .. })));
    for cut in [0, 5, 12, 17, 60, good.len() - 1] {
        assert!(matches!(Batch::parse(good.slice(..cut)), Err(BatchError::Truncated { .. })));
    }
    assert_eq!(Batch::parse(forged(0, -1, 0, &[])), Err(BatchError::Empty));
    for (count, last_offset_delta) in [(2, 5), (-1, -2), (i32::MIN, i32::MAX)] {
        let error = BatchError::Count { count, last_offset_delta };
        assert_eq!(Batch::parse(forged(count, last_offset_delta, 0, &[])), Err(error));
    }
    assert_eq!(Batch::parse(forged(1, 0, 5, &[])), Err(BatchError::UnknownCompression(5)));
}

#[test]
fn records_that_lie_are_refused_without_allocating_for_them() {
    let good: &[u8] = &[0x0e, 0, 0, 0, 0x01, 0x02, b'v', 0];
    Batch::parse(forged(1, 0, 0, good)).unwrap().check_records(LIMIT).unwrap();
    for (count, body, why) in [
        (i32::MAX, good, "more records than bytes"),
        (1, &[][..], "no records"),
        (1, &[0x0e, 0, 0, 0, 0x01, 0x02, b'v', 0, 0], "bytes after the last record"),
        (1, &[0xfe, 0xff, 0xff, 0xff, 0x0f, 0], "record length"),
        (1, &[0x01, 0, 0, 0, 0x01, 0x01, 0], "record length -1"),
        (1, &[0x0e, 0, 0, 2, 0x01, 0x02, b'v', 0], "offset outside the batch"),
        (1, &[0x0e, 0, 0, 0, 0xfe, 0x7f, b'v', 0], "key length"),
        (1, &[0x0e, 0, 0, 0, 0x01, 0x03, b'v', 0], "value length -2"),
        (1, &[0x14, 0, 0, 0, 0x01, 0x01, 0xfe, 0xff, 0xff, 0xff, 0x0f], "header count"),
        (1, &[0x10, 0, 0, 0, 0x01, 0x01, 0x02, 0x01, 0x01], "null header name"),
        (1, &[0x12, 0, 0, 0, 0x01, 0x01, 0x02, 0x00, 0x01, 0x00], "bytes after the headers"),
    ] {
        let batch = Batch::parse(forged(count, count - 1, 0, body)).unwrap();
        assert!(matches!(batch.records(LIMIT), Err(BatchError::Record { .. })), "{why}");
        assert!(batch.check_records(LIMIT).is_err(), "{why}");
    }
    let twice = [good, good].concat();
    let repeated = Batch::parse(forged(2, 1, 0, &twice)).unwrap();
    assert!(repeated.check_records(LIMIT).is_err(), "both records have offset 0");
}

#[test]
fn a_batch_that_unpacks_to_too_much_is_refused() {
    let zeros = record("k", &"\0".repeat(4 << 20), 0);
    for (compression, _) in CODECS {
        let batch = build(std::slice::from_ref(&zeros), compression);
        assert_eq!(batch.records(100_000), Err(BatchError::TooLarge(100_000)), "{compression:?}");
        assert_eq!(batch.records(LIMIT).unwrap(), std::slice::from_ref(&zeros));
    }
}

fn any_record() -> impl Strategy<Value = Record> {
    let bytes = || proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40));
    let header = ("[a-z.]{0,8}", bytes())
        .prop_map(|(name, value)| Header { name: name.into(), value: value.map(Bytes::from) });
    (bytes(), bytes(), any::<i64>(), proptest::collection::vec(header, 0..4)).prop_map(
        |(key, value, timestamp_ms, headers)| Record {
            key: key.map(Bytes::from),
            value: value.map(Bytes::from),
            timestamp_ms,
            headers,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_record_comes_back(
        records in proptest::collection::vec(any_record(), 1..50),
        codec in 0..CODECS.len(),
        base in 0..i64::from(u32::MAX),
    ) {
        let batch = build(&records, CODECS[codec].0).at_offset(base, 1);
        let batch = Batch::parse(batch.bytes().clone()).unwrap();
        prop_assert_eq!(batch.count(), records.len());
        prop_assert!(batch.check_records(LIMIT).is_ok());
        prop_assert_eq!(batch.records(LIMIT).unwrap(), records);
    }

    #[test]
    fn random_bodies_never_panic(
        body in proptest::collection::vec(any::<u8>(), 0..200),
        count in 1..1000_i32,
        codec in 0..5_i16,
    ) {
        let batch = Batch::parse(forged(count, count - 1, codec, &body)).unwrap();
        drop(batch.records(LIMIT));
        drop(batch.check_records(LIMIT));
    }

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        drop(Batch::parse(bytes.clone().into()));
        drop(Batch::trusted(bytes.into()));
    }
}
