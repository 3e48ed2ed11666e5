//! Requests that lie: whatever the bytes, no panic, and no allocation that the bytes do not pay for.

use bytes::{BufMut, Bytes, BytesMut};

use super::samples::sample;
use crate::kafka::{
    frame::{self, Request, wire::*},
    guard,
    schema::{self, TABLE, api},
};

/// A small generator, so that a failure repeats.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

/// Cuts, stretches and overwrites; lengths are what most bytes of a request are.
fn mutate(random: &mut Random, body: &[u8]) -> Vec<u8> {
    let mut body = body.to_vec();
    for _ in 0..=random.below(3) {
        if body.is_empty() {
            return body;
        }
        let at = random.below(body.len());
        match random.below(6) {
            0 => body[at] = random.next() as u8,
            1 => body[at] ^= 1 << random.below(8),
            2 => body.truncate(at),
            3 => {
                for byte in body.iter_mut().skip(at).take(4) {
                    *byte = 0xff;
                }
            }
            4 => {
                let lie = [0x7f, 0xff, 0xff, 0xff];
                for (byte, lie) in body.iter_mut().skip(at).zip(lie) {
                    *byte = lie;
                }
            }
            _ => body.insert(at, random.next() as u8),
        }
    }
    body
}

/// Decodes as `api` would.
fn decode(request: &Request) {
    macro_rules! decode {
        ($($key:ident $request:ty),*) => {
            match request.key {
                $(schema::$key => drop(request.decode::<$request>()),)*
                key => panic!("key {key} is advertised and not tested"),
            }
        };
    }
    if request.key == schema::PRODUCE && request.version < 3 {
        return;
    }
    decode!(
        PRODUCE ProduceRequest, FETCH FetchRequest, LIST_OFFSETS ListOffsetsRequest,
        METADATA MetadataRequest, OFFSET_COMMIT OffsetCommitRequest,
        OFFSET_FETCH OffsetFetchRequest, FIND_COORDINATOR FindCoordinatorRequest,
        JOIN_GROUP JoinGroupRequest, HEARTBEAT HeartbeatRequest, LEAVE_GROUP LeaveGroupRequest,
        SYNC_GROUP SyncGroupRequest, DESCRIBE_GROUPS DescribeGroupsRequest,
        LIST_GROUPS ListGroupsRequest, API_VERSIONS ApiVersionsRequest,
        CREATE_TOPICS CreateTopicsRequest, DELETE_TOPICS DeleteTopicsRequest,
        DELETE_RECORDS DeleteRecordsRequest, INIT_PRODUCER_ID InitProducerIdRequest,
        OFFSET_FOR_LEADER_EPOCH OffsetForLeaderEpochRequest,
        DESCRIBE_CONFIGS DescribeConfigsRequest, ALTER_CONFIGS AlterConfigsRequest,
        CREATE_PARTITIONS CreatePartitionsRequest, DELETE_GROUPS DeleteGroupsRequest,
        INCREMENTAL_ALTER_CONFIGS IncrementalAlterConfigsRequest,
        OFFSET_DELETE OffsetDeleteRequest, DESCRIBE_CLUSTER DescribeClusterRequest
    );
}

/// Address space this process ever had, KiB: grows with every allocation, touched or not.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:")).unwrap();
    line.trim().strip_suffix("kB").unwrap().trim().parse().unwrap()
}

#[test]
fn lying_lengths_neither_panic_nor_allocate() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let before = peak_kib();
    for api in TABLE {
        for version in api.min..=api.max {
            let body = sample(api.key, version);
            for _ in 0..400 {
                let mut frame = BytesMut::new();
                frame.put_i16(api.key);
                frame.put_i16(version);
                frame.put_i32(7);
                let mut rest = vec![0, 1, b'c'];
                if api.is_flexible(version) {
                    rest.push(0);
                }
                rest.extend_from_slice(&body);
                frame.put_slice(&mutate(&mut random, &rest));
                if let Ok(request) = frame::parse(frame.freeze()) {
                    decode(&request);
                }
            }
        }
    }
    // Other tests run beside this one and have stacks and arenas; a lie that is believed costs at least 8 GiB.
    let grown = peak_kib() - before;
    assert!(grown < 4 * 1024 * 1024, "address space grew by {grown} KiB");
}

#[test]
fn four_bytes_that_claim_two_thousand_million_topics_are_refused() {
    let body = Bytes::from_static(&[0x7f, 0xff, 0xff, 0xff]);
    let metadata = api(schema::METADATA).unwrap();
    assert_eq!(guard::check(metadata, 1, &body), Err(guard::BadRequest::Truncated));
    let flexible = Bytes::from_static(&[0xff, 0xff, 0xff, 0xff, 0x0f]);
    assert_eq!(guard::check(metadata, 9, &flexible), Err(guard::BadRequest::Truncated));
    let endless = Bytes::from_static(&[0xff, 0xff, 0xff, 0xff, 0xff, 0x01]);
    assert_eq!(guard::check(metadata, 9, &endless), Err(guard::BadRequest::Varint));
    let negative = Bytes::from_static(&[0xff, 0xff, 0xff, 0xfe]);
    assert_eq!(guard::check(metadata, 1, &negative), Err(guard::BadRequest::Negative(-2)));
}
