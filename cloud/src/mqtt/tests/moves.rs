//! Clients through moves of the head's shard from one node to another.

use super::*;
use crate::{
    engine::ShardId,
    log::nodes_tests::{in_memory, nodes},
};

impl Client {
    /// The server has closed without another word.
    async fn closed(mut self) {
        while self.stream.read_buf(&mut self.buffer).await.unwrap() > 0 {}
        assert!(self.buffer.is_empty());
    }
}

#[tokio::test]
async fn sessions_move_with_their_shard_and_hear_what_is_written_on_any_node() {
    let nodes = nodes(in_memory(2, 2), &log::Settings::default());
    let [(a, _), (b, _)] = &nodes[..] else { panic!("two") };
    let home = a.home_shard(HOME);
    let other = ShardId(1 - home.0);
    a.take(home).await.unwrap();
    b.take(other).await.unwrap();
    let (mut at_a, mut at_b) = (Cloud::on(a.clone()), Cloud::on(b.clone()));
    let (mut reader, _) = at_a.connect("reader", false).await;
    reader.subscribe("a/#", Qos::AtLeastOnce).await;
    let (mut writer, _) = at_a.connect("writer", true).await;
    writer.send_publish("a/kept", "kept", Qos::AtMostOnce, 0, true).await;
    assert_eq!(writer.publish("a", "1").await, Reason::SUCCESS);
    let mut got = [reader.payload().await, reader.payload().await];
    got.sort();
    assert_eq!(got, ["1", "kept"]);
    reader.ping().await;
    // Of another node's partition.
    let stream = b.create_stream("s", Some(2), StreamConfig::default()).await.unwrap();
    let mut known = None;
    while a.stream("s").is_none() {
        known = Some(a.catalog_changed(known).await.unwrap().version);
    }
    let ids = (0..2).map(|index| PartitionId::new(stream.id, index));
    let far = ids.into_iter().find(|id| b.shard_of(*id).unwrap() == other).unwrap();
    let append = async |topic: &'static str| {
        let mut builder = BatchBuilder::new();
        let text = Some(Bytes::from_static(topic.as_bytes()));
        builder.push(&Record { key: text.clone(), value: text, ..Record::default() });
        let batch = builder.finish(Compression::None, None).unwrap();
        let owner = if b.is_here(other) { b } else { a };
        owner.append(far, batch, Guard::None).await.unwrap();
    };
    append("a/far").await;
    assert_eq!(reader.payload().await, "a/far");
    reader.ping().await;

    a.release(home).await.unwrap();
    reader.closed().await;
    append("a/while nobody serves").await;
    // Who comes to a node that has it no more is closed, and comes again.
    let (stream, server) = tokio::io::duplex(1 << 16);
    let clients = at_a.clients.clone();
    at_a.tasks.spawn(async move {
        let opened = handshake(server, clients.settings(), clients.counters()).await.unwrap();
        clients.serve(opened, None).await;
    });
    let reading = Reader::client(Version::V5, 1 << 20);
    let mut late = Client { stream, reader: reading, buffer: BytesMut::new() };
    late.send(Packet::Connect(Box::new(connect("late", true)))).await;
    late.closed().await;

    b.take(home).await.unwrap();
    let (mut reader, connack) = at_b.connect("reader", false).await;
    assert!(connack.session_present);
    assert_eq!(reader.payload().await, "a/while nobody serves", "and nothing twice");
    let (mut writer, _) = at_b.connect("writer", true).await;
    assert_eq!(writer.publish("a", "2").await, Reason::SUCCESS);
    assert_eq!(reader.payload().await, "2");
    let (mut new, _) = at_b.connect("new", true).await;
    new.subscribe("a/kept", Qos::AtMostOnce).await;
    assert_eq!(new.payload().await, "kept");
    reader.ping().await;

    // And back: what the first node had in memory is of no use.
    b.release(home).await.unwrap();
    a.take(home).await.unwrap();
    drop((writer, new));
    let (mut reader, connack) = at_a.connect("reader", false).await;
    assert!(connack.session_present);
    let (mut writer, _) = at_a.connect("writer", true).await;
    assert_eq!(writer.publish("a", "3").await, Reason::SUCCESS);
    assert_eq!(reader.payload().await, "3");
    at_a.tasks.shutdown().await;
    at_b.tasks.shutdown().await;
}
