//! The head with clients on streams in memory, over a log on the memory engine.

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    task::JoinSet,
};
use tributary_shared::{
    connection::handshake,
    mqtt::{
        Packet, PacketId, Qos, Reader, Version,
        packet::{
            Ack, ConnAck, Connect, Publish, PublishProperties, Subscribe, SubscribeFilter,
            SubscriptionOptions, Will,
        },
        write::write,
    },
    net,
    record::{BatchBuilder, Compression, Header, Record},
};

mod down;
mod moves;

use super::*;
use crate::{
    engine::memory::MemoryEngine,
    log::{self, Guard, PartitionId, StreamConfig},
    route::{CATCH_ALL, Routes},
};

/// A head over `engine`, with its own process's life.
struct Cloud {
    log: Log,
    clients: Clients,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Cloud {
    async fn start(engine: &MemoryEngine) -> Self {
        Self::on(Log::open(Arc::new(engine.clone()), log::Settings::default()).await.unwrap())
    }

    fn on(log: Log) -> Self {
        let stop = CancellationToken::new();
        let gate = Gate::new(net::Settings::default());
        let routing = Routing::new(Routes::default());
        let status = Status::default();
        let edge_filters = vec!["commands/#".to_owned()];
        let settings = Settings { edge_filters, ..Settings::default() };
        let (clients, broker) = open(log.clone(), routing, settings, &gate, &status, stop.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { broker.await.unwrap() });
        Self { log, clients, stop, tasks }
    }

    /// As a SIGKILL: nothing is told, stored or awaited. What was not durable is gone.
    async fn kill(mut self, engine: &MemoryEngine) {
        self.tasks.shutdown().await;
        engine.crash();
    }

    async fn stop(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
        self.log.close().await.unwrap();
    }

    async fn connect(&mut self, id: &str, clean: bool) -> (Client, ConnAck) {
        self.connect_as(connect(id, clean)).await
    }

    async fn connect_as(&mut self, connect: Connect) -> (Client, ConnAck) {
        let (stream, server) = tokio::io::duplex(1 << 16);
        let clients = self.clients.clone();
        self.tasks.spawn(async move {
            let opened = handshake(server, clients.settings(), clients.counters()).await.unwrap();
            clients.serve(opened, Some("127.0.0.1:1".parse().unwrap())).await;
        });
        let reader = Reader::client(Version::V5, 1 << 20);
        let mut client = Client { stream, reader, buffer: BytesMut::new() };
        client.send(Packet::Connect(Box::new(connect))).await;
        match client.receive().await {
            Packet::ConnAck(connack) => (client, *connack),
            other => panic!("{other:?}"),
        }
    }

    async fn append(&self, stream: &str, record: Record) {
        let stream = self.log.ensure_stream(stream).await.unwrap();
        let mut builder = BatchBuilder::new();
        builder.push(&record);
        let batch = builder.finish(Compression::None, None).unwrap();
        self.log.append(PartitionId::new(stream.id, 0), batch, Guard::None).await.unwrap();
    }
}

fn connect(id: &str, clean: bool) -> Connect {
    Connect {
        version: Version::V5,
        client_id: id.into(),
        clean_start: clean,
        keep_alive: 60,
        will: None,
        user_name: None,
        password: None,
        session_expiry: Some(if clean { 0 } else { 3_600 }),
        receive_maximum: None,
        maximum_packet_size: None,
        topic_alias_maximum: 0,
        request_response_information: false,
        request_problem_information: true,
        user_properties: Vec::new(),
        authentication_method: None,
        authentication_data: None,
    }
}

struct Client {
    stream: DuplexStream,
    reader: Reader,
    buffer: BytesMut,
}

impl Client {
    async fn send(&mut self, packet: Packet) {
        let mut bytes = BytesMut::new();
        write(&packet, Version::V5, &mut bytes);
        self.stream.write_all(&bytes).await.unwrap();
    }

    async fn receive(&mut self) -> Packet {
        loop {
            if let Some(packet) = self.reader.read(&mut self.buffer).unwrap() {
                return packet;
            }
            assert_ne!(self.stream.read_buf(&mut self.buffer).await.unwrap(), 0, "closed");
        }
    }

    async fn subscribe(&mut self, filter: &str, qos: Qos) {
        let options = SubscriptionOptions { qos, ..SubscriptionOptions::default() };
        self.send(Packet::Subscribe(Subscribe {
            packet_id: PacketId::MIN,
            filters: vec![SubscribeFilter { filter: filter.into(), options }],
            subscription_id: None,
            user_properties: Vec::new(),
        }))
        .await;
        match self.receive().await {
            Packet::SubAck(suback) => assert!(!suback.reasons[0].is_error()),
            other => panic!("{other:?}"),
        }
    }

    async fn send_publish(&mut self, topic: &str, payload: &str, qos: Qos, id: u16, retain: bool) {
        self.send(Packet::Publish(Publish {
            qos,
            retain,
            topic: topic.into(),
            packet_id: PacketId::new(id),
            payload: Bytes::copy_from_slice(payload.as_bytes()),
            ..Publish::default()
        }))
        .await;
    }

    /// Publishes at QoS 1 and returns the code of the PUBACK.
    async fn publish(&mut self, topic: &str, payload: &str) -> Reason {
        self.send_publish(topic, payload, Qos::AtLeastOnce, 1, false).await;
        match self.receive().await {
            Packet::PubAck(ack) => ack.reason,
            other => panic!("{other:?}"),
        }
    }

    /// The next message, not acknowledged.
    async fn message(&mut self) -> Publish {
        match self.receive().await {
            Packet::Publish(publish) => publish,
            other => panic!("{other:?}"),
        }
    }

    /// The next message's payload; acknowledged if it is QoS 1.
    async fn payload(&mut self) -> String {
        let publish = self.message().await;
        if publish.qos == Qos::AtLeastOnce {
            let ack = Ack::new(publish.packet_id.unwrap(), Reason::SUCCESS);
            self.send(Packet::PubAck(ack)).await;
        }
        String::from_utf8(publish.payload.to_vec()).unwrap()
    }

    /// Everything sent so far has been handled.
    async fn ping(&mut self) {
        self.send(Packet::PingReq).await;
        assert_eq!(self.receive().await, Packet::PingResp);
    }
}

#[tokio::test]
async fn a_message_goes_through_the_log_to_its_subscribers() {
    let engine = MemoryEngine::new(1);
    let mut cloud = Cloud::start(&engine).await;
    let (mut reader, _) = cloud.connect("reader", true).await;
    reader.subscribe("a/+", Qos::AtLeastOnce).await;
    let (mut writer, _) = cloud.connect("writer", true).await;
    assert_eq!(writer.publish("a/b", "one").await, Reason::SUCCESS);
    let stream = cloud.log.stream(CATCH_ALL).unwrap();
    let mut offsets = 0;
    for index in 0..stream.partitions {
        offsets += cloud.log.watermarks(PartitionId::new(stream.id, index)).unwrap().high;
    }
    assert_eq!(offsets, 1, "acknowledged, so in the log");
    assert_eq!(reader.payload().await, "one");
    // What Kafka and AMQP clients append reaches MQTT too, with its topic and properties.
    cloud.log.create_stream("orders.new", Some(1), StreamConfig::default()).await.unwrap();
    reader.subscribe("orders/new", Qos::AtLeastOnce).await;
    let headers = vec![Header { name: "k".into(), value: Some("v".into()) }];
    let record = Record { value: Some("two".into()), headers, ..Record::default() };
    cloud.append("orders.new", record).await;
    let message = reader.message().await;
    assert_eq!((&*message.topic, &message.payload[..]), ("orders/new", &b"two"[..]));
    assert_eq!(message.properties.user_properties, [("k".into(), "v".into())]);
    cloud.stop().await;
}

#[tokio::test]
async fn a_stored_session_misses_nothing_and_gets_nothing_twice_over_a_kill() {
    let engine = MemoryEngine::new(1);
    let mut cloud = Cloud::start(&engine).await;
    let (mut writer, _) = cloud.connect("writer", true).await;
    assert_eq!(writer.publish("a", "before the subscription").await, Reason::SUCCESS);
    let (mut reader, _) = cloud.connect("reader", false).await;
    reader.subscribe("a", Qos::AtLeastOnce).await;
    for payload in ["1", "2"] {
        assert_eq!(writer.publish("a", payload).await, Reason::SUCCESS);
        assert_eq!(reader.payload().await, payload);
    }
    reader.ping().await;
    drop(reader);
    assert_eq!(writer.publish("a", "3").await, Reason::SUCCESS);
    cloud.kill(&engine).await;

    let mut cloud = Cloud::start(&engine).await;
    let (mut writer, _) = cloud.connect("writer", true).await;
    assert_eq!(writer.publish("a", "4").await, Reason::SUCCESS);
    let (mut reader, connack) = cloud.connect("reader", false).await;
    assert!(connack.session_present);
    for payload in ["3", "4"] {
        assert_eq!(reader.payload().await, payload);
    }
    reader.ping().await;
    cloud.stop().await;

    let mut cloud = Cloud::start(&engine).await;
    let (mut reader, connack) = cloud.connect("reader", false).await;
    assert!(connack.session_present);
    let (mut writer, _) = cloud.connect("writer", true).await;
    assert_eq!(writer.publish("a", "5").await, Reason::SUCCESS);
    assert_eq!(reader.payload().await, "5", "all before it were acknowledged");
    cloud.stop().await;
}

#[tokio::test]
async fn an_unacknowledged_message_is_sent_again_with_its_id_after_a_kill() {
    let engine = MemoryEngine::new(1);
    let mut cloud = Cloud::start(&engine).await;
    let (mut reader, _) = cloud.connect("reader", false).await;
    reader.subscribe("a", Qos::ExactlyOnce).await;
    let (mut writer, _) = cloud.connect("writer", true).await;
    writer.send_publish("a", "x", Qos::ExactlyOnce, 1, false).await;
    let Packet::PubRec(_) = writer.receive().await else { panic!("no PUBREC") };
    let first = reader.message().await;
    assert!(!first.dup);
    cloud.kill(&engine).await;
    let mut cloud = Cloud::start(&engine).await;
    let (mut reader, _) = cloud.connect("reader", false).await;
    let again = reader.message().await;
    assert!(again.dup);
    assert_eq!((again.packet_id, again.payload), (first.packet_id, first.payload));
    cloud.stop().await;
}

#[tokio::test]
async fn a_qos_2_publish_that_is_repeated_over_a_kill_is_one_record() {
    let engine = MemoryEngine::new(1);
    let mut cloud = Cloud::start(&engine).await;
    let (mut writer, _) = cloud.connect("writer", false).await;
    writer.send_publish("a", "x", Qos::ExactlyOnce, 7, false).await;
    let Packet::PubRec(_) = writer.receive().await else { panic!("no PUBREC") };
    cloud.kill(&engine).await;
    let mut cloud = Cloud::start(&engine).await;
    let (mut writer, connack) = cloud.connect("writer", false).await;
    assert!(connack.session_present);
    writer.send_publish("a", "x", Qos::ExactlyOnce, 7, false).await;
    let Packet::PubRec(ack) = writer.receive().await else { panic!("no PUBREC") };
    assert_eq!(ack.reason, Reason::SUCCESS);
    writer.send(Packet::PubRel(Ack::new(ack.packet_id, Reason::SUCCESS))).await;
    let Packet::PubComp(_) = writer.receive().await else { panic!("no PUBCOMP") };
    let stream = cloud.log.stream(CATCH_ALL).unwrap();
    let marks = cloud.log.watermarks(PartitionId::new(stream.id, 0)).unwrap();
    assert_eq!(marks.high, 1);
    cloud.stop().await;
}

#[tokio::test]
async fn retained_messages_from_anywhere_survive_a_kill() {
    let engine = MemoryEngine::new(1);
    let mut cloud = Cloud::start(&engine).await;
    let (mut watcher, _) = cloud.connect("watcher", true).await;
    watcher.subscribe("#", Qos::AtMostOnce).await;
    let (mut writer, _) = cloud.connect("writer", true).await;
    writer.send_publish("state/a", "on", Qos::AtLeastOnce, 1, true).await;
    let Packet::PubAck(_) = writer.receive().await else { panic!("no PUBACK") };
    let retain = Header { name: "mqtt.retain".into(), value: Some("true".into()) };
    cloud
        .append(
            "elsewhere",
            Record {
                key: Some("state/b".into()),
                value: Some("off".into()),
                headers: vec![retain],
                ..Record::default()
            },
        )
        .await;
    let mut seen = [watcher.payload().await, watcher.payload().await];
    seen.sort();
    assert_eq!(seen, ["off", "on"]);
    // A stored change of another session is behind these in the same order.
    cloud.connect("barrier", false).await;
    cloud.kill(&engine).await;
    let mut cloud = Cloud::start(&engine).await;
    let (mut reader, _) = cloud.connect("reader", true).await;
    reader.subscribe("state/+", Qos::AtLeastOnce).await;
    assert_eq!([reader.payload().await, reader.payload().await], ["on", "off"]);
    cloud.stop().await;
}

#[tokio::test]
async fn clients_cannot_pass_for_edges_not_even_by_alias_or_will() {
    let engine = MemoryEngine::new(1);
    let mut cloud = Cloud::start(&engine).await;
    let (mut client, _) = cloud.connect("client", true).await;
    assert_eq!(client.publish("tributary/gw1/up/normal", "x").await, Reason::NOT_AUTHORIZED);
    for topic in ["tributary/gw1/up/normal", ""] {
        client
            .send(Packet::Publish(Publish {
                qos: Qos::AtLeastOnce,
                topic: topic.into(),
                packet_id: PacketId::new(1),
                topic_alias: Some(3),
                ..Publish::default()
            }))
            .await;
        let Packet::PubAck(ack) = client.receive().await else { panic!("no PUBACK") };
        assert_eq!(ack.reason, Reason::NOT_AUTHORIZED);
    }
    let will = Will {
        topic: "tributary/gw1/up/normal".into(),
        payload: Bytes::new(),
        qos: Qos::AtLeastOnce,
        retain: false,
        delay: 0,
        properties: PublishProperties::default(),
    };
    let refused = Connect { will: Some(will), ..connect("other", true) };
    let (_, connack) = cloud.connect_as(refused).await;
    assert_eq!(connack.reason, Reason::NOT_AUTHORIZED);
    assert!(cloud.log.stream(CATCH_ALL).is_none(), "nothing was written");
    cloud.stop().await;
}

#[tokio::test]
async fn a_failing_log_acknowledges_nothing_and_the_head_comes_back() {
    let engine = MemoryEngine::new(1);
    let mut cloud = Cloud::start(&engine).await;
    let (mut writer, _) = cloud.connect("writer", true).await;
    assert_eq!(writer.publish("a", "1").await, Reason::SUCCESS);
    engine.fail_writes(crate::engine::ShardId(0), 1);
    writer.send_publish("a", "2", Qos::AtLeastOnce, 1, false).await;
    let mut rest = Vec::new();
    writer.stream.read_to_end(&mut rest).await.unwrap();
    assert!(rest.is_empty(), "closed without an acknowledgement");
    let (mut writer, _) = cloud.connect("writer", true).await;
    assert_eq!(writer.publish("a", "2").await, Reason::SUCCESS);
    cloud.stop().await;
}

#[tokio::test]
async fn messages_in_other_shards_are_delivered_and_survive_a_kill_too() {
    let engine = MemoryEngine::new(4);
    let mut cloud = Cloud::start(&engine).await;
    let (mut reader, _) = cloud.connect("reader", false).await;
    reader.subscribe("t/#", Qos::AtLeastOnce).await;
    let stream = cloud.log.create_stream("t", None, StreamConfig::default()).await.unwrap();
    assert_eq!(stream.partitions, 4, "one a shard");
    for number in 0..16_u32 {
        let mut builder = BatchBuilder::new();
        let topic = Bytes::from(format!("t/{number}"));
        builder.push(&Record { key: Some(topic.clone()), value: Some(topic), ..Record::default() });
        let batch = builder.finish(Compression::None, None).unwrap();
        let partition = PartitionId::new(stream.id, number % 4);
        cloud.log.append(partition, batch, Guard::None).await.unwrap();
    }
    cloud.kill(&engine).await;
    let mut cloud = Cloud::start(&engine).await;
    let (mut reader, _) = cloud.connect("reader", false).await;
    let mut got = std::collections::BTreeSet::new();
    for _ in 1..=16 {
        got.insert(reader.payload().await);
    }
    assert_eq!(got.len(), 16);
    cloud.stop().await;
}

#[tokio::test]
async fn what_an_ended_session_left_behind_is_removed() {
    let engine = MemoryEngine::new(1);
    let mut cloud = Cloud::start(&engine).await;
    let (mut reader, _) = cloud.connect("reader", false).await;
    reader.subscribe("a", Qos::AtLeastOnce).await;
    drop(reader);
    let (mut writer, _) = cloud.connect("writer", true).await;
    for _ in 0..3 {
        assert_eq!(writer.publish("a", "x").await, Reason::SUCCESS);
    }
    // A clean start ends the session; the next start of the head removes what is still there.
    let (_, connack) = cloud.connect("reader", true).await;
    assert!(!connack.session_present);
    cloud.kill(&engine).await;
    let mut cloud = Cloud::start(&engine).await;
    cloud.connect("barrier", true).await;
    let home = cloud.log.home_shard(HOME);
    let limit = crate::engine::ScanLimit { entries: 100, bytes: 1 << 20 };
    for kind in [b"s", b"u", b"q", b"i", b"r"] {
        let left =
            cloud.log.state_scan(home, log::StateSpace::Session, kind, None, limit).await.unwrap();
        assert!(left.is_empty(), "{left:?}");
    }
    cloud.stop().await;
}
