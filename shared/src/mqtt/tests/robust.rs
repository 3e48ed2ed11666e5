//! Wrong bytes: a million mutations of legal packets, none of which may panic, loop, or read past its packet.

use bytes::BytesMut;
use proptest::{strategy::ValueTree, test_runner::TestRunner};

use super::{arbitrary, vectors::connected};
use crate::mqtt::{
    check::{self, Sender},
    packet::{Packet, Version},
    read::Reader,
    write::write,
};

/// SplitMix64: the same mutations in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(3) {
        let at = random.below(bytes.len());
        match random.below(6) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.next() as u8,
            2 => bytes[at] = [0, 0x7f, 0x80, 0xff][random.below(4)],
            3 => bytes.insert(at, random.next() as u8),
            4 if bytes.len() > 2 => {
                bytes.remove(at);
            }
            _ => bytes.truncate(bytes.len().min(at + 2)),
        }
    }
}

fn corpus() -> Vec<(Version, bool, Vec<u8>)> {
    let mut runner = TestRunner::deterministic();
    let mut corpus = Vec::new();
    let mut add = |packet: Packet, client: bool| {
        for version in [Version::V5, Version::V311] {
            let mut out = BytesMut::new();
            write(&packet, version, &mut out);
            if !out.is_empty() {
                corpus.push((version, client, out.to_vec()));
            }
        }
    };
    for _ in 0..100 {
        use proptest::strategy::Strategy;
        add(arbitrary::first().new_tree(&mut runner).unwrap().current(), true);
        add(arbitrary::from_client().new_tree(&mut runner).unwrap().current(), true);
        add(arbitrary::from_server().new_tree(&mut runner).unwrap().current(), false);
    }
    corpus
}

// [MQTT-3.2.2-8] [MQTT-3.14.2-1]
#[test]
fn a_million_mutations_are_answered_without_a_panic() {
    let corpus = corpus();
    let mut random = Random(7);
    let (mut refused, mut read) = (0, 0);
    for round in 0..1_000_000 {
        let (version, client, bytes) = &corpus[round % corpus.len()];
        let mut bytes = bytes.clone();
        mutate(&mut bytes, &mut random);
        let mut buffer = BytesMut::from(&bytes[..]);
        let mut reader = match (client, bytes[0] >> 4) {
            (true, 1) => Reader::server(65_536),
            (true, _) => connected(*version),
            (false, _) => Reader::client(*version, 65_536),
        };
        // Each packet takes at least two bytes.
        for _ in 0..=bytes.len() / 2 {
            match reader.read(&mut buffer) {
                Ok(Some(_)) => read += 1,
                Ok(None) => break,
                Err(malformed) => {
                    refused += 1;
                    let reason = malformed.reason;
                    let legal = match (client, bytes[0] >> 4) {
                        (true, 1) => check::is_connack_reason(reason),
                        (true, _) => check::is_disconnect_reason(reason, Sender::Server),
                        (false, _) => check::is_disconnect_reason(reason, Sender::Client),
                    };
                    assert!(legal, "{malformed}");
                    break;
                }
            }
        }
    }
    assert!(refused > 100_000 && read > 10_000, "mutations of both kinds: {refused} {read}");
}

/// mosquitto CVE-2021-41039: thousands of user properties in one CONNECT kept the broker busy.
#[test]
fn more_user_properties_or_filters_than_a_packet_may_have_are_refused() {
    // Property length, then as many as there are: two empty strings each.
    let with = |head: &[u8], tail: &[u8], pairs: usize| {
        let mut body = head.to_vec();
        let properties = 5 * pairs;
        body.extend([properties as u8 | 0x80, (properties >> 7) as u8]);
        body.extend([0x26, 0, 0, 0, 0].repeat(pairs));
        body.extend(tail);
        body
    };
    let packet = |first: u8, body: &[u8]| {
        let size = body.len();
        let mut length = vec![size as u8 | 0x80, (size >> 7) as u8 & 0x7f];
        if size >> 14 > 0 {
            length[1] |= 0x80;
            length.push((size >> 14) as u8);
        }
        BytesMut::from(&*[&[first], &length[..], body].concat())
    };
    let limit = check::MAX_USER_PROPERTIES;
    for (pairs, legal) in [(limit, true), (limit + 1, false)] {
        let connect = with(b"\0\x04MQTT\x05\x02\0\0", b"\0\x01c", pairs);
        let read = Reader::server(1 << 20).read(&mut packet(0x10, &connect));
        assert_eq!(read.is_ok(), legal, "{pairs}: {read:?}");
        let publish = with(b"\0\x01t", b"payload", pairs);
        let read = connected(Version::V5).read(&mut packet(0x30, &publish));
        assert_eq!(read.is_ok(), legal, "{pairs}: {read:?}");
    }
    for (filters, legal) in [(check::MAX_FILTERS, true), (check::MAX_FILTERS + 1, false)] {
        let subscribe = [&[0, 1, 0][..], &[0, 1, b'a', 0].repeat(filters)].concat();
        let read = connected(Version::V5).read(&mut packet(0x82, &subscribe));
        assert_eq!(read.is_ok(), legal, "{filters}");
    }
}
