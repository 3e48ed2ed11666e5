//! What an edge may do wrong at the door: each is refused with a code and in words, stores nothing, and a good edge beside
//! it goes on.

use tributary_shared::mqtt::packet::Disconnect;

use super::*;

/// A batch of `count` records without anything wrong.
fn good(epoch: i64, count: usize) -> Bytes {
    batch("gw1", epoch, 0, &vec![("a", "bad"); count])
}

fn sealed(record: &Record, compression: Compression) -> Bytes {
    let mut builder = BatchBuilder::new();
    builder.push(record);
    let producer = Producer { id: 7, epoch: 0, base_sequence: 0 };
    builder.finish(compression, Some(producer)).unwrap().bytes().clone()
}

/// `batch` with other bytes from `at` on, and a CRC that fits.
fn patched(batch: &Bytes, at: usize, with: &[u8]) -> Bytes {
    let mut bytes = batch.to_vec();
    bytes[at..at + with.len()].copy_from_slice(with);
    let crc = crc32c::crc32c(&bytes[21..]);
    bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    bytes.into()
}

/// `batch`, saying that its records are packed in this way, with these bytes for records.
fn packed(attributes: u8, records: &[u8]) -> Bytes {
    let head = &good(7, 1)[..61];
    let mut bytes = [head, records].concat();
    let length = (bytes.len() - 12) as u32;
    bytes[8..12].copy_from_slice(&length.to_be_bytes());
    patched(&bytes.into(), 22, &[attributes])
}

/// One record in bytes: attributes, time 0, the offset, key `a`, no value, this many headers and what follows.
fn raw_record(offset: u8, headers: &[u8]) -> Vec<u8> {
    let body = [&[0, 0, offset << 1, 2, b'a', 1][..], headers].concat();
    [vec![(body.len() as u8) << 1], body].concat()
}

/// One header: edge.id = gw1.
const OURS: &[u8] = b"\x02\x0eedge.id\x06gw1";

fn bomb(compression: Compression) -> Bytes {
    let value = Some(Bytes::from(vec![0; 40 * 1024 * 1024]));
    sealed(&Record { key: Some("a".into()), value, ..Record::default() }, compression)
}

/// Name, payload, the count that is said, reason code, a word of the reason string.
type Case = (&'static str, Bytes, usize, u8, &'static str);

#[tokio::test]
async fn a_bad_upload_is_refused_in_words_and_the_good_edge_beside_it_goes_on() {
    let labelled = |headers: &[(&'static str, &str)]| {
        let headers = headers.iter().map(|(name, value)| header(name, value)).collect();
        let record =
            Record { key: Some("tributary/gw2/down/x".into()), headers, ..Record::default() };
        sealed(&record, Compression::None)
    };
    let us = ("edge.id", "gw1");
    let topics: Vec<String> = (0..=divide::TOPICS_MAX).map(|n| n.to_string()).collect();
    let topics: Vec<_> = topics.iter().map(|topic| (&**topic, "bad")).collect();
    let scattered = batch("gw1", 7, 0, &topics);
    let crowded = Record {
        key: Some("a".into()),
        headers: vec![Header { name: "h".into(), value: None }; 1100],
        ..Record::default()
    };
    let mut flipped = good(7, 1).to_vec();
    *flipped.last_mut().unwrap() ^= 1;
    // A zstd frame that asks for a window of 2 GiB.
    let window = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 0x09, 0, 0, b'x'];
    let snappy = [0xff, 0xff, 0xff, 0xff, 0x0f, 0x00, b'x'];
    let cases: Vec<Case> = vec![
        ("bad crc", flipped.into(), 1, 0x99, "crc"),
        ("no batch", Bytes::from_static(b"{\"json\":true}"), 1, 0x99, "cut short"),
        ("empty", Bytes::new(), 1, 0x99, "cut short"),
        ("wrong count", good(7, 3), 2, 0x99, "n = 2 but the batch holds 3"),
        ("count in the header", patched(&good(7, 2), 57, &[0, 0, 0, 9]), 2, 0x99, "last offset"),
        ("other epoch", good(8, 1), 1, 0x99, "producer id"),
        ("transactional", patched(&good(7, 1), 21, &[0, 0x14]), 1, 0x99, "not an edge's to set"),
        ("unknown compression", packed(7, b"x"), 1, 0x99, "compression type 7"),
        ("gzip that is none", packed(1, b"xxxx"), 1, 0x99, "do not decompress"),
        ("zstd window", packed(4, &window), 1, 0x99, "do not decompress"),
        ("snappy length", packed(2, &snappy), 1, 0x99, "do not decompress"),
        ("gzip bomb", bomb(Compression::Gzip), 1, 0x99, "unpack to more than"),
        ("lz4 bomb", bomb(Compression::Lz4), 1, 0x99, "unpack to more than"),
        ("zstd bomb", bomb(Compression::Zstd), 1, 0x99, "unpack to more than"),
        ("offset that lies", packed(0, &raw_record(1, &[0])), 1, 0x99, "offset"),
        ("length that lies", packed(0, &[0xfe, 0xff, 0xff, 0xff, 0x0f, 0]), 1, 0x99, "length"),
        ("headers that lie", packed(0, &raw_record(0, &[0xfe, 0x7f])), 1, 0x99, "headers"),
        ("header without end", packed(0, &raw_record(0, &[2, 0x7e, b'x'])), 1, 0x99, "header"),
        ("headers negative", packed(0, &raw_record(0, &[1])), 1, 0x99, "headers"),
        ("too many headers", sealed(&crowded, Compression::Zstd), 1, 0x99, "more than"),
        ("bytes behind", packed(0, &[&raw_record(0, OURS)[..], b"xx"].concat()), 1, 0x99, ""),
        ("scattered", scattered, topics.len(), 0x99, "different topics"),
        ("nobody's", labelled(&[("edge.lane", "normal")]), 1, 0x87, "no header edge.id"),
        ("another's", labelled(&[("edge.id", "gw2")]), 1, 0x87, "header edge.id of record 0"),
        ("of two", labelled(&[us, ("edge.id", "gw2")]), 1, 0x87, "header edge.id of record 0"),
        ("other lane", labelled(&[us, ("edge.lane", "x")]), 1, 0x87, "header edge.lane"),
        ("other place", labelled(&[us, ("edge.seq", "1")]), 1, 0x87, "header edge.seq"),
        ("topic", batch("gw1", 7, 0, &[("a/#", "bad")]), 1, 0x99, "no legal topic"),
    ];
    let door = Door::open(Vec::new()).await;
    let (mut neighbour, _) = Edge::connect(&door, "good").await;
    let (mut edge, _) = Edge::connect(&door, "gw1").await;
    for (seq, (name, payload, count, code, words)) in (0..).zip(&cases) {
        edge.publish("gw1", 7, 0, *count, payload.clone(), None).await;
        neighbour.upload("good", 1, seq, &[("a", "good")]).await;
        assert_eq!(neighbour.ack().await.reason, Reason::SUCCESS, "beside {name}");
        let ack = edge.ack().await;
        assert_eq!(ack.reason.0, *code, "{name}: {ack:?}");
        let said = ack.reason_string.unwrap();
        assert!(said.contains(words), "{name}: {said}");
    }
    // The same sequences with nothing wrong: they are still free.
    edge.upload("gw1", 7, 0, &[("a", "good")]).await;
    assert_eq!(edge.ack().await.reason, Reason::SUCCESS);
    assert_eq!(door.values(CATCH_ALL).await, vec!["good"; cases.len() + 1]);
}

async fn last_words(edge: &mut Edge) -> Disconnect {
    loop {
        match edge.receive().await {
            Some(Packet::Disconnect(disconnect)) => return disconnect,
            Some(_) => {}
            None => panic!("closed without a word"),
        }
    }
}

#[tokio::test]
async fn a_connection_that_breaks_the_rules_is_told_why_and_keeps_what_was_acked() {
    let publish = |qos, topic: &str, payload: Bytes| {
        Packet::Publish(Publish {
            qos,
            topic: topic.into(),
            packet_id: (qos != Qos::AtMostOnce).then_some(PacketId::MAX),
            payload,
            ..Publish::default()
        })
    };
    let topic = "tributary/gw1/up/normal";
    let cases = [
        ("QoS 0", publish(Qos::AtMostOnce, topic, Bytes::new()), 0x9B, "QoS 1"),
        ("QoS 2", publish(Qos::ExactlyOnce, topic, Bytes::new()), 0x9B, "QoS 1"),
        ("oversized", publish(Qos::AtLeastOnce, topic, vec![0; 1 << 21].into()), 0x95, ""),
        ("wildcard", publish(Qos::AtLeastOnce, "a/#", Bytes::new()), 0x81, "wildcard"),
        ("a server's packet", Packet::PingResp, 0x82, ""),
    ];
    let door = Door::open(Vec::new()).await;
    let (mut neighbour, _) = Edge::connect(&door, "good").await;
    for (seq, (name, packet, code, words)) in (0..).zip(cases) {
        let (mut edge, _) = Edge::connect(&door, "gw1").await;
        edge.upload("gw1", 7, seq, &[("a", "kept")]).await;
        assert_eq!(edge.ack().await.reason, Reason::SUCCESS);
        edge.send(&packet).await;
        let disconnect = last_words(&mut edge).await;
        assert_eq!(disconnect.reason.0, code, "{name}: {disconnect:?}");
        let said = disconnect.reason_string.unwrap();
        assert!(!said.is_empty() && said.contains(words), "{name}: {said}");
        neighbour.upload("good", 1, seq, &[("a", "kept")]).await;
        assert_eq!(neighbour.ack().await.reason, Reason::SUCCESS, "beside {name}");
    }
    assert_eq!(door.values(CATCH_ALL).await, vec!["kept"; 10]);
}

#[tokio::test]
async fn an_illegal_id_is_refused_in_words() {
    let door = Door::open(Vec::new()).await;
    for id in ["a/b", "+", ""] {
        let (_, connack) = Edge::connect(&door, id).await;
        assert_eq!(connack.reason, Reason::CLIENT_ID_NOT_VALID, "{id:?}");
        assert!(connack.properties.reason_string.unwrap().contains("edge id"), "{id:?}");
    }
}

#[tokio::test]
async fn two_gateways_with_one_id_both_keep_their_data_and_raise_an_alarm() {
    let door = Door::open(Vec::new()).await;
    let mut older: Option<Edge> = None;
    for turn in 0..6_u64 {
        let instance = ["a", "b"][turn as usize % 2];
        let (mut edge, _) = Edge::connect_as(&door, "gw1", instance).await;
        if let Some(mut older) = older.take() {
            assert_eq!(last_words(&mut older).await.reason, Reason::SESSION_TAKEN_OVER);
        }
        // Each process has its own epoch.
        edge.upload("gw1", 1 + (turn % 2) as i64, turn / 2, &[("a", "kept")]).await;
        assert_eq!(edge.ack().await.reason, Reason::SUCCESS);
        older = Some(edge);
    }
    assert_eq!(door.values(CATCH_ALL).await, vec!["kept"; 6]);
    assert_eq!(door.bridge.live().duplicate_ids(), 1);
    assert_eq!(door.bridge.live().view(wall_ms())[0].alarms, [DUPLICATE_ID]);
}

#[tokio::test]
async fn an_epoch_used_twice_is_refused_by_its_content_also_after_a_failover() {
    use crate::engine::memory::MemoryEngine;
    let engine = Arc::new(MemoryEngine::new(1));
    let open = || Log::open(engine.clone(), crate::log::Settings::default());
    let log = open().await.unwrap();
    let door = Door::open_on(log.clone(), Vec::new()).await;
    let (mut edge, _) = Edge::connect(&door, "gw1").await;
    edge.upload("gw1", 7, 0, &[("a", "0"), ("a", "1")]).await;
    assert_eq!(edge.ack().await.reason, Reason::SUCCESS);
    log.close().await.unwrap();

    let door = Door::open_on(open().await.unwrap(), Vec::new()).await;
    for twin in [&[("a", "x"), ("a", "y")][..], &[("a", "x"), ("a", "y"), ("a", "z")]] {
        let (mut edge, _) = Edge::connect(&door, "gw1").await;
        // The same bytes again are a repeat, other bytes are another's.
        edge.upload("gw1", 7, 0, &[("a", "0"), ("a", "1")]).await;
        edge.upload("gw1", 7, 0, twin).await;
        assert_eq!(edge.ack().await.reason, Reason::SUCCESS);
        let disconnect = last_words(&mut edge).await;
        assert_eq!(disconnect.reason, Reason::SESSION_TAKEN_OVER);
        assert_eq!(disconnect.reason_string.unwrap(), "epoch 7 is used twice");
        assert_eq!(disconnect.user_properties, [(CLASH_PROPERTY.into(), "7".into())]);
        // What it holds goes on under an epoch of its own.
        let (mut edge, _) = Edge::connect(&door, "gw1").await;
        edge.upload("gw1", 100 + twin.len() as i64, 0, twin).await;
        assert_eq!(edge.ack().await.reason, Reason::SUCCESS);
    }
    assert_eq!(door.values(CATCH_ALL).await, ["0", "1", "x", "y", "x", "y", "z"]);
    assert_eq!(door.bridge.live().duplicate_epochs(), 2);
    assert_eq!(door.bridge.live().view(wall_ms())[0].alarms, [DUPLICATE_EPOCH]);
}

#[tokio::test]
async fn what_was_sent_behind_a_clash_is_not_taken_even_if_it_is_next() {
    let door = Door::open(Vec::new()).await;
    let (mut twin, _) = Edge::connect(&door, "gw1").await;
    twin.upload("gw1", 7, 0, &[("a", "twin")]).await;
    assert_eq!(twin.ack().await.reason, Reason::SUCCESS);
    let (mut edge, _) = Edge::connect(&door, "gw1").await;
    // Both in one write, so that they are under way before the first answer; the second would be next.
    let mut bytes = BytesMut::new();
    for (seq, value) in [(0, "0"), (1, "1")] {
        let payload = batch("gw1", 7, seq, &[("a", value)]);
        let packet = edge.packet("gw1", 7, seq, 1, payload, None);
        write(&packet, Version::V5, &mut bytes);
    }
    edge.stream.write_all(&bytes).await.unwrap();
    assert_eq!(last_words(&mut edge).await.user_properties, [(CLASH_PROPERTY.into(), "7".into())]);
    let (mut edge, _) = Edge::connect(&door, "gw1").await;
    for (seq, value) in [(0, "0"), (1, "1")] {
        edge.upload("gw1", 8, seq, &[("a", value)]).await;
        assert_eq!(edge.ack().await.reason, Reason::SUCCESS);
    }
    assert_eq!(door.values(CATCH_ALL).await, ["twin", "0", "1"]);
}
