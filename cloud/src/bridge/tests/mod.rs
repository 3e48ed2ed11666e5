//! The door over a real socket, on a log in memory.

mod bad_input;
mod fleet;

use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::CancellationToken;
use tributary_shared::{
    connection::{self, Counters, handshake},
    mqtt::{
        Reader, Version,
        packet::{Ack, ConnAck, Packet, PacketId, Publish, PublishProperties, Qos, Reason},
        write::write,
    },
    record::{BatchBuilder, Compression, Header, Record, batch::Producer},
};

use super::*;
use crate::{
    log::{PartitionId, StreamConfig, testing::test_log},
    route::{CATCH_ALL, PartitionRule, Routes, Rule},
};

/// A bridge that listens; what it serves ends with it.
struct Door {
    bridge: Bridge,
    log: Log,
    address: SocketAddr,
    stop: CancellationToken,
}

impl Door {
    async fn open(rules: Vec<Rule>) -> Self {
        Self::open_on(test_log(1).await.unwrap(), rules).await
    }

    async fn open_on(log: Log, rules: Vec<Rule>) -> Self {
        let routing = Routing::new(Routes::new(rules).unwrap());
        let bridge = Bridge::new(log.clone(), routing, Settings::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let (serving, stopping) = (bridge.clone(), stop.clone());
        tributary_shared::tasks::spawn("door", async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (bridge, stop) = (serving.clone(), stopping.clone());
                tributary_shared::tasks::spawn("edge", async move {
                    let counters = Counters::default();
                    let settings = connection::Settings::default();
                    let opened = handshake(stream, &settings, &counters).await.unwrap();
                    bridge.serve(opened, String::new(), stop).await;
                });
            }
        });
        Self { bridge, log, address, stop }
    }

    async fn values(&self, stream: &str) -> Vec<String> {
        let stream = self.log.stream(stream).unwrap();
        let partition = PartitionId::new(stream.id, 0);
        let mut values = Vec::new();
        for batch in self.log.read(partition, 0, usize::MAX).await.unwrap() {
            for record in batch.records(1 << 20).unwrap() {
                values.push(String::from_utf8(record.value.unwrap().to_vec()).unwrap());
            }
        }
        values
    }
}

/// An edge's end of the wire.
struct Edge<S = TcpStream> {
    stream: S,
    reader: Reader,
    buffer: BytesMut,
    next_id: u16,
}

impl Edge {
    async fn connect(door: &Door, id: &str) -> (Self, ConnAck) {
        Self::connect_as(door, id, "1").await
    }

    async fn connect_as(door: &Door, id: &str, instance: &str) -> (Self, ConnAck) {
        Self::over(TcpStream::connect(door.address).await.unwrap(), id, instance).await
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Edge<S> {
    async fn over(stream: S, id: &str, instance: &str) -> (Self, ConnAck) {
        let mut edge = Self {
            stream,
            reader: Reader::client(Version::V5, 1 << 20),
            buffer: BytesMut::new(),
            next_id: 1,
        };
        edge.send(&Packet::Connect(Box::new(Connect {
            version: Version::V5,
            client_id: id.into(),
            clean_start: true,
            keep_alive: 30,
            will: None,
            user_name: None,
            password: None,
            session_expiry: None,
            receive_maximum: None,
            maximum_packet_size: None,
            topic_alias_maximum: 0,
            request_response_information: false,
            request_problem_information: true,
            user_properties: vec![
                (EDGE_PROPERTY.into(), id.into()),
                (LANE_PROPERTY.into(), "normal".into()),
                (INSTANCE_PROPERTY.into(), instance.into()),
            ],
            authentication_method: None,
            authentication_data: None,
        })))
        .await;
        match edge.receive().await {
            Some(Packet::ConnAck(connack)) => (edge, *connack),
            other => panic!("{other:?}"),
        }
    }

    async fn send(&mut self, packet: &Packet) {
        let mut bytes = BytesMut::new();
        write(packet, Version::V5, &mut bytes);
        self.stream.write_all(&bytes).await.unwrap();
    }

    async fn receive(&mut self) -> Option<Packet> {
        loop {
            if let Some(packet) = self.reader.read(&mut self.buffer).unwrap() {
                return Some(packet);
            }
            if self.stream.read_buf(&mut self.buffer).await.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    /// Sends a batch of `epoch` that starts at `seq`; records are (topic, value).
    async fn upload(&mut self, edge: &str, epoch: i64, seq: u64, records: &[(&str, &str)]) {
        self.publish(edge, epoch, seq, records.len(), batch(edge, epoch, seq, records), None).await;
    }

    async fn publish(
        &mut self,
        edge: &str,
        epoch: i64,
        seq: u64,
        count: usize,
        payload: Bytes,
        gap: Option<&str>,
    ) {
        let packet = self.packet(edge, epoch, seq, count, payload, gap);
        self.send(&packet).await;
    }

    fn packet(
        &mut self,
        edge: &str,
        epoch: i64,
        seq: u64,
        count: usize,
        payload: Bytes,
        gap: Option<&str>,
    ) -> Packet {
        let mut user_properties = vec![
            ("ep".into(), epoch.to_string().into()),
            ("s".into(), seq.to_string().into()),
            ("n".into(), count.to_string().into()),
        ];
        user_properties.extend(gap.map(|reason| ("gap".into(), reason.into())));
        let packet_id = PacketId::new(self.next_id);
        self.next_id += 1;
        Packet::Publish(Publish {
            qos: Qos::AtLeastOnce,
            topic: format!("tributary/{edge}/up/normal").into(),
            packet_id,
            payload,
            properties: PublishProperties {
                content_type: Some(CONTENT_TYPE.into()),
                user_properties,
                ..PublishProperties::default()
            },
            ..Publish::default()
        })
    }

    async fn ack(&mut self) -> Ack {
        match self.receive().await {
            Some(Packet::PubAck(ack)) => ack,
            other => panic!("{other:?}"),
        }
    }
}

fn header(name: &'static str, value: &str) -> Header {
    Header { name: name.into(), value: Some(Bytes::copy_from_slice(value.as_bytes())) }
}

fn batch(edge: &str, epoch: i64, seq: u64, records: &[(&str, &str)]) -> Bytes {
    let mut builder = BatchBuilder::new();
    for (topic, value) in records {
        builder.push(&Record {
            key: Some(Bytes::copy_from_slice(topic.as_bytes())),
            value: Some(Bytes::copy_from_slice(value.as_bytes())),
            timestamp_ms: 1_700_000_000_000,
            headers: vec![header("edge.id", edge)],
        });
    }
    let producer = Producer { id: epoch, epoch: 0, base_sequence: (seq & 0x7fff_ffff) as i32 };
    builder.finish(Compression::Zstd, Some(producer)).unwrap().bytes().clone()
}

fn expected(ack: &Ack) -> (u8, Option<&str>) {
    let property = ack.user_properties.iter().find(|(name, _)| name == "expected");
    (ack.reason.0, property.map(|(_, value)| &**value))
}

#[tokio::test]
async fn a_batch_is_stored_once_however_often_and_out_of_order_it_comes() {
    let door = Door::open(Vec::new()).await;
    let (mut edge, connack) = Edge::connect(&door, "gw1").await;
    assert!(connack.properties.user_properties.is_empty());
    edge.upload("gw1", 7, 0, &[("a", "0"), ("a", "1")]).await;
    assert_eq!(expected(&edge.ack().await), (0, None));
    // Again, then one too far ahead twice, then the rewind; all sent before any answer is read.
    edge.upload("gw1", 7, 0, &[("a", "0"), ("a", "1")]).await;
    edge.upload("gw1", 7, 5, &[("a", "5")]).await;
    edge.upload("gw1", 7, 6, &[("a", "6")]).await;
    edge.upload("gw1", 7, 2, &[("b", "2"), ("a", "3"), ("a", "4")]).await;
    edge.upload("gw1", 7, 5, &[("a", "5")]).await;
    for answer in [(0, None), (0x83, Some("2")), (0x83, Some("2")), (0, None), (0, None)] {
        assert_eq!(expected(&edge.ack().await), answer);
    }
    assert_eq!(door.values(CATCH_ALL).await, ["0", "1", "2", "3", "4", "5"]);
    let (_, connack) = Edge::connect(&door, "gw1").await;
    assert_eq!(connack.properties.user_properties, [("expect".into(), "7:6".into())]);
}

#[test]
fn no_edge_may_have_more_under_way_than_is_compared_when_it_comes_again() {
    use tributary_shared::config::Documented as _;
    let most = crate::log::EDGE_BATCHES;
    assert!(Settings::default().receive_maximum <= most);
    let more = Settings { receive_maximum: most + 1, ..Settings::default() };
    assert!(more.check().is_err());
}

#[tokio::test]
async fn an_edge_with_many_epochs_is_told_those_that_brought_something_last() {
    let door = Door::open(Vec::new()).await;
    let shown = Settings::default().expect_max as i64;
    let (mut edge, _) = Edge::connect(&door, "gw1").await;
    // Ids are random: here the newest are the lowest.
    for epoch in (1..=shown + 10).rev() {
        edge.upload("gw1", epoch, 0, &[("a", "x")]).await;
        assert_eq!(edge.ack().await.reason, Reason::SUCCESS);
        // The next one comes in a later millisecond.
        tributary_shared::clock::reach(wall_ms() + 1).await;
    }
    let (_, connack) = Edge::connect(&door, "gw1").await;
    let told = connack.properties.user_properties.iter().map(|(_, value)| value.to_string());
    let newest = (1..=shown).map(|epoch| format!("{epoch}:1"));
    assert_eq!(told.collect::<Vec<_>>(), newest.collect::<Vec<_>>());
}

#[tokio::test]
async fn a_refused_batch_stores_nothing_and_the_connection_goes_on() {
    let door = Door::open(Vec::new()).await;
    let (mut edge, _) = Edge::connect(&door, "gw1").await;
    let mut broken = batch("gw1", 7, 0, &[("a", "0")]).to_vec();
    *broken.last_mut().unwrap() ^= 1;
    edge.publish("gw1", 7, 0, 1, broken.into(), None).await;
    edge.publish("gw1", 7, 0, 2, batch("gw1", 7, 0, &[("a", "0")]), None).await;
    edge.upload("gw2", 7, 0, &[("a", "0")]).await;
    edge.upload("gw1", 7, 0, &[("a/+", "0")]).await;
    edge.upload("gw1", 7, 0, &[("a", "good")]).await;
    for code in [0x99, 0x99, 0x87, 0x99, 0x00] {
        assert_eq!(edge.ack().await.reason.0, code);
    }
    assert_eq!(door.values(CATCH_ALL).await, ["good"]);
    assert_eq!(door.bridge.live().view(0)[0].refused, 4);
}

#[tokio::test]
async fn a_declared_gap_is_a_record_and_the_sequence_goes_on_behind_it() {
    let door = Door::open(Vec::new()).await;
    let (mut edge, _) = Edge::connect(&door, "gw1").await;
    edge.publish("gw1", 7, 0, 10, Bytes::new(), Some("disk budget")).await;
    edge.upload("gw1", 7, 10, &[("a", "10")]).await;
    edge.publish("gw1", 7, 0, 10, Bytes::new(), Some("disk budget")).await;
    for _ in 0..3 {
        assert_eq!(edge.ack().await.reason, Reason::SUCCESS);
    }
    let values = door.values(CATCH_ALL).await;
    let gap: serde_json::Value = serde_json::from_str(&values[0]).unwrap();
    assert_eq!(
        (&gap["from"], &gap["to"], &gap["reason"]),
        (&0.into(), &10.into(), &"disk budget".into())
    );
    assert_eq!(values[1..], ["10"]);
    assert_eq!(door.bridge.live().view(0)[0].declared_lost, 10);
}

#[tokio::test]
async fn a_batch_for_several_streams_is_split_in_order_and_still_counts_once() {
    let rule = |filter: &str, stream: &str, partition| Rule {
        filter: filter.into(),
        stream: stream.into(),
        key: None,
        partition,
    };
    let rules = vec![
        rule("alarm/#", "alarms", PartitionRule::Edge),
        rule("by/key/#", "keyed", PartitionRule::Key),
    ];
    let door = Door::open(rules).await;
    let (mut edge, _) = Edge::connect(&door, "gw1").await;
    let records = [("t", "0"), ("alarm/x", "1"), ("t", "2"), ("by/key/1", "3"), ("alarm/y", "4")];
    edge.upload("gw1", 7, 0, &records).await;
    edge.upload("gw1", 7, 0, &records).await;
    assert_eq!(edge.ack().await.reason, Reason::SUCCESS);
    assert_eq!(edge.ack().await.reason, Reason::SUCCESS);
    assert_eq!(door.values(CATCH_ALL).await, ["0", "2"]);
    assert_eq!(door.values("alarms").await, ["1", "4"]);
    assert_eq!(door.values("keyed").await, ["3"]);
}

#[tokio::test]
async fn the_newer_connection_of_an_edge_wins_and_the_older_is_told() {
    let door = Door::open(Vec::new()).await;
    let (mut older, _) = Edge::connect(&door, "gw1").await;
    let (mut newer, _) = Edge::connect(&door, "gw1").await;
    match older.receive().await {
        Some(Packet::Disconnect(disconnect)) => {
            assert_eq!(disconnect.reason, Reason::SESSION_TAKEN_OVER);
        }
        other => panic!("{other:?}"),
    }
    newer.upload("gw1", 7, 0, &[("a", "0")]).await;
    assert_eq!(newer.ack().await.reason, Reason::SUCCESS);
    assert_eq!(door.bridge.live().takeovers(), 1);
    assert_eq!(door.bridge.known().await.unwrap()[0].0, "gw1");
}

#[tokio::test]
async fn more_than_the_window_or_a_wrong_packet_ends_the_connection_with_its_code() {
    let door = Door::open(Vec::new()).await;
    let (mut edge, _) = Edge::connect(&door, "gw1").await;
    edge.send(&Packet::PingReq).await;
    assert_eq!(edge.receive().await, Some(Packet::PingResp));
    edge.send(&Packet::Auth(tributary_shared::mqtt::packet::Auth {
        reason: Reason::REAUTHENTICATE,
        method: Some("x".into()),
        data: None,
        reason_string: None,
        user_properties: Vec::new(),
    }))
    .await;
    match edge.receive().await {
        Some(Packet::Disconnect(disconnect)) => {
            assert_eq!(disconnect.reason, Reason::PROTOCOL_ERROR);
        }
        other => panic!("{other:?}"),
    }
    let (mut edge, _) = Edge::connect(&door, "gw1").await;
    door.stop.cancel();
    match edge.receive().await {
        Some(Packet::Disconnect(disconnect)) => {
            assert_eq!(disconnect.reason, Reason::SERVER_SHUTTING_DOWN);
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_edge_writes_to_its_home_shard_whatever_the_stream() {
    let log = test_log(4).await.unwrap();
    // Has no partition on most shards: it grows where an edge needs it.
    log.create_stream("alarms", Some(1), StreamConfig::default()).await.unwrap();
    let rule = Rule {
        filter: "alarm/#".into(),
        stream: "alarms".into(),
        key: None,
        partition: PartitionRule::Edge,
    };
    let keyed = Rule { partition: PartitionRule::Key, ..rule.clone() };
    let routing = Routing::new(Routes::default());
    assert!(routing.set(Routes::new(vec![keyed]).unwrap(), &log).is_err(), "one shard only");
    let door = Door::open_on(log, vec![rule]).await;
    for id in ["gw1", "gw2", "gw3", "gw4", "gw5"] {
        let (mut edge, _) = Edge::connect(&door, id).await;
        edge.upload(id, 7, 0, &[("alarm/x", "1"), ("t", "2")]).await;
        assert_eq!(edge.ack().await.reason, Reason::SUCCESS);
        assert_eq!(door.log.edge_marks(id).await.unwrap(), [(7, 2)]);
    }
    let ids: Vec<_> = door.bridge.known().await.unwrap().into_iter().map(|(id, _)| id).collect();
    assert_eq!(ids, ["gw1", "gw2", "gw3", "gw4", "gw5"]);
}

#[tokio::test]
async fn an_absurd_time_neither_pins_nor_deletes_what_others_sent() {
    let door = Door::open(Vec::new()).await;
    let (mut edge, _) = Edge::connect(&door, "gw1").await;
    let true_ms = wall_ms() - 3_600_000;
    let times = [0, true_ms, 2_082_758_400_000];
    let mut builder = BatchBuilder::new();
    for (time, value) in times.iter().zip(["1970", "true", "2036"]) {
        let (key, value) = (Some("t".into()), Some(value.into()));
        let headers = vec![header("edge.id", "gw1")];
        builder.push(&Record { key, value, timestamp_ms: *time, headers });
    }
    let producer = Producer { id: 7, epoch: 0, base_sequence: 0 };
    let wrong = builder.finish(Compression::Zstd, Some(producer)).unwrap().bytes().clone();
    // Twice: the repeat is known although what is stored is not what was sent.
    for _ in 0..2 {
        edge.publish("gw1", 7, 0, 3, wrong.clone(), None).await;
        assert_eq!(edge.ack().await.reason, Reason::SUCCESS);
    }
    let stream = door.log.stream(CATCH_ALL).unwrap();
    let partition = PartitionId::new(stream.id, 0);
    let stored = door.log.read(partition, 0, usize::MAX).await.unwrap();
    assert_eq!(stored.len(), 1);
    let day = 86_400_000;
    assert!((stored[0].max_timestamp_ms() - wall_ms()).abs() < day);
    let records = stored[0].records(1 << 20).unwrap();
    let kept = records.iter().map(|r| r.header("edge.time").map(|value| value.to_vec()));
    assert_eq!(
        kept.collect::<Vec<_>>(),
        [Some(b"0".to_vec()), None, Some(b"2082758400000".to_vec())]
    );
    assert_eq!(records[1].timestamp_ms, true_ms);
    assert_eq!(door.bridge.live().view(0)[0].clamped, 4);

    door.log.run_retention(wall_ms()).await.unwrap();
    assert_eq!(door.values(CATCH_ALL).await.len(), 3, "1970 deletes nothing");
    door.log.run_retention(wall_ms() + 9 * day).await.unwrap();
    assert!(door.log.watermarks(partition).unwrap().start == 3, "2036 keeps nothing");
}

#[tokio::test]
async fn what_an_edge_says_of_itself_has_a_stream_and_is_shown() {
    let door = Door::open(Vec::new()).await;
    let (mut edge, _) = Edge::connect(&door, "gw1").await;
    let said = "{\"version\":\"9\"}";
    // Of another edge it is a message like any.
    let records =
        [("t", "data"), ("tributary/gw1/inventory", said), ("tributary/gw2/inventory", "x")];
    edge.upload("gw1", 7, 0, &records).await;
    assert_eq!(edge.ack().await.reason, Reason::SUCCESS);
    assert_eq!(door.values("tributary.edges").await, [said, "x"]);
    assert_eq!(door.values(CATCH_ALL).await, ["data"]);
    assert_eq!(door.bridge.live().view(0)[0].inventory["version"], "9");
}
