//! One connection against a scripted broker and a scripted client, over an in-memory pipe and with paused time.

mod flow;

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    sync::mpsc,
    task::JoinHandle,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{Context, End, Handle, Incoming, Outbox, Refused, Settings, Until, handshake, run};
use crate::{
    message::Message,
    mqtt::{
        Packet, PacketId, Qos, Reader, Reason, Version,
        packet::{ConnAck, ConnAckProperties, Connect, Disconnect, Publish, PublishProperties},
        write::{Encoded, write},
    },
    session::{Delivery, Outgoing, event::Peer},
};

const PIPE: usize = 64 * 1024;

fn connect(version: Version) -> Connect {
    Connect {
        version,
        client_id: "c".into(),
        clean_start: true,
        keep_alive: 0,
        will: None,
        user_name: None,
        password: None,
        session_expiry: None,
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

fn bytes(packet: &Packet, version: Version) -> BytesMut {
    let mut out = BytesMut::new();
    write(packet, version, &mut out);
    out
}

struct Client {
    stream: DuplexStream,
    reader: Reader,
    buffer: BytesMut,
    version: Version,
}

impl Client {
    async fn send(&mut self, packet: &Packet) {
        self.stream.write_all(&bytes(packet, self.version)).await.unwrap();
    }

    /// The next packet; `None` at the end.
    async fn receive(&mut self) -> Option<Packet> {
        loop {
            if let Some(packet) = self.reader.read(&mut self.buffer).unwrap() {
                return Some(packet);
            }
            if self.stream.read_buf(&mut self.buffer).await.unwrap() == 0 {
                return None;
            }
        }
    }
}

/// A running connection: its client, what the broker hears, its outbox, its end.
struct Running {
    client: Client,
    incoming: mpsc::Receiver<Incoming>,
    outbox: Outbox,
    context: Arc<Context>,
    end: JoinHandle<End>,
}

fn context(settings: Settings) -> (Arc<Context>, mpsc::Receiver<Incoming>) {
    let (incoming, receiver) = mpsc::channel(16);
    let stop = CancellationToken::new();
    (Arc::new(Context::new(Handle { incoming }, settings, 1 << 20, stop)), receiver)
}

async fn start(connect: Connect, settings: Settings) -> Running {
    start_until(connect, settings, None).await
}

async fn start_until(connect: Connect, settings: Settings, until: Option<Instant>) -> Running {
    let version = connect.version;
    let (context, mut incoming) = context(settings);
    let (near, far) = duplex(PIPE);
    let reader = Reader::client(version, 1 << 20);
    let mut client = Client { stream: near, reader, buffer: BytesMut::new(), version };
    client.send(&Packet::Connect(Box::new(connect))).await;
    let mut opened = handshake(far, &context.settings, &context.counters).await.unwrap();
    opened.until = until.map(|at| Until::new(tokio::time::sleep_until(at)));
    let peer = Peer { principal: None, address: None, proof: None };
    let shared = Arc::clone(&context);
    let end = tokio::spawn(async move { run(opened, peer, &shared).await });
    let Some(Incoming::Connect { outbox, .. }) = incoming.recv().await else { panic!() };
    Running { client, incoming, outbox, context, end }
}

async fn accepted(connect: Connect, settings: Settings) -> Running {
    let mut running = start(connect, settings).await;
    running.outbox.send(connack(ConnAckProperties::default())).unwrap();
    assert!(matches!(running.client.receive().await, Some(Packet::ConnAck(_))));
    running
}

fn connack(properties: ConnAckProperties) -> Outgoing {
    let reason = Reason::SUCCESS;
    let connack = ConnAck { session_present: false, reason, properties };
    Outgoing::Packet(Box::new(Packet::ConnAck(Box::new(connack))))
}

fn delivery(payload: usize, packet_id: Option<u16>) -> Outgoing {
    let message = Message {
        topic: "a/b".into(),
        payload: Bytes::from(vec![7; payload]),
        qos: Qos::AtLeastOnce,
        retain: false,
        properties: PublishProperties::default(),
        publisher: None,
        received_ms: 0,
        expires_ms: None,
        encoded: Encoded::default(),
        place: None,
    };
    let packet_id = packet_id.and_then(PacketId::new);
    Outgoing::Publish(Delivery {
        message: Arc::new(message),
        qos: if packet_id.is_some() { Qos::AtLeastOnce } else { Qos::AtMostOnce },
        dup: false,
        retain: false,
        packet_id,
        subscription_ids: Vec::new(),
        expiry_s: None,
    })
}

fn publish(topic: &str) -> Packet {
    Packet::Publish(Publish { topic: topic.into(), payload: "p".into(), ..Publish::default() })
}

async fn refused(sent: &[u8]) -> (Refused, Vec<u8>, Arc<Context>) {
    let (context, _incoming) = context(Settings::default());
    let (mut near, far) = duplex(PIPE);
    near.write_all(sent).await.unwrap();
    let refusing = handshake(far, &context.settings, &context.counters);
    let mut answer = Vec::new();
    let (result, _) = tokio::join!(refusing, async {
        let read = near.read_to_end(&mut answer);
        read.await.unwrap()
    });
    (result.err().unwrap(), answer, context)
}

// [MQTT-3.1.2-2] [MQTT-3.1.2-3] [MQTT-3.1.4-1] [MQTT-3.2.2-7]
// [MQTT311-3.1.2-2] [MQTT311-3.1.4-1] [MQTT311-3.2.2-6]
#[tokio::test(start_paused = true)]
async fn a_malformed_connect_is_answered_in_its_version() {
    let (_, answer, context) = refused(b"\x10\x0d\x00\x04MQTT\x02\x02\x00\x00\x00\x01a").await;
    assert_eq!(answer, [0x20, 2, 0, 1], "3.1.1: unacceptable protocol version");
    assert_eq!(context.counters.malformed.load(std::sync::atomic::Ordering::Relaxed), 1);
    let (_, answer, _) = refused(b"\x10\x0d\x00\x04MQTT\x06\x02\x00\x00\x00\x01a").await;
    assert_eq!(answer, [0x20, 3, 0, 0x84, 0]);
    let (_, answer, _) = refused(b"\x10\x0e\x00\x04MQTT\x05\x03\x00\x00\x00\x00\x01a").await;
    assert_eq!(answer, [0x20, 3, 0, 0x81, 0]);
    let (_, answer, _) = refused(b"\x10\x0d\x00\x04MQTT\x04\x03\x00\x00\x00\x01a").await;
    assert!(answer.is_empty(), "3.1.1 has no code for it");
}

// [MQTT-3.1.0-1]
#[tokio::test(start_paused = true)]
async fn another_protocol_on_the_port_is_named_and_counted() {
    for (sent, name) in [
        (&b"GET / HTTP/1.1\r\n"[..], "HTTP"),
        (b"\x16\x03\x01\x02\x00\x01", "TLS"),
        (b"AMQP\x00\x00\x09\x01", "AMQP"),
        (b"\x00\x00\x00\x20", "unknown protocol"),
    ] {
        let (error, answer, context) = refused(sent).await;
        assert!(matches!(error, Refused::WrongProtocol(found) if found == name), "{error}");
        assert!(answer.is_empty());
        assert_eq!(context.counters.wrong_protocol.load(std::sync::atomic::Ordering::Relaxed), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_connect_that_does_not_come_in_time_is_given_up() {
    let (context, _incoming) = context(Settings::default());
    let (mut near, far) = duplex(PIPE);
    near.write_all(b"\x10\x0d\x00\x04MQ").await.unwrap();
    let started = tokio::time::Instant::now();
    let error = handshake(far, &context.settings, &context.counters).await.err().unwrap();
    assert!(matches!(error, Refused::Timeout));
    assert_eq!(started.elapsed().as_millis() / 10, 500);
}

#[tokio::test(start_paused = true)]
async fn packets_of_one_read_arrive_together_and_in_order() {
    let mut running = accepted(connect(Version::V311), Settings::default()).await;
    let mut sent = BytesMut::new();
    for topic in ["1", "2", "3"] {
        write(&publish(topic), Version::V311, &mut sent);
    }
    let whole = bytes(&publish("4"), Version::V311);
    sent.extend_from_slice(&whole[..3]);
    running.client.stream.write_all(&sent).await.unwrap();
    let Some(Incoming::Packets(_, packets)) = running.incoming.recv().await else { panic!() };
    assert_eq!(packets, [publish("1"), publish("2"), publish("3")]);
    running.client.stream.write_all(&whole[3..]).await.unwrap();
    let Some(Incoming::Packets(_, packets)) = running.incoming.recv().await else { panic!() };
    assert_eq!(packets, [publish("4")]);
    drop(running.client);
    assert!(matches!(running.incoming.recv().await, Some(Incoming::Closed(_, None))));
    assert_eq!(running.end.await.unwrap(), End::Gone);
}

#[tokio::test(start_paused = true)]
async fn a_packet_larger_than_any_buffer_arrives_whole() {
    let mut running = accepted(connect(Version::V5), Settings::default()).await;
    let payload = Bytes::from(vec![9; 700_000]);
    let large = Packet::Publish(Publish { topic: "t".into(), payload, ..Publish::default() });
    let ((), received) = tokio::join!(running.client.send(&large), running.incoming.recv());
    let Some(Incoming::Packets(_, packets)) = received else { panic!() };
    assert_eq!(packets, [large]);
}

#[tokio::test(start_paused = true)]
async fn a_paused_client_is_read_when_it_is_resumed_and_not_before() {
    let mut running = accepted(connect(Version::V311), Settings::default()).await;
    running.outbox.pause();
    running.client.send(&publish("later")).await;
    let early = tokio::time::timeout(Duration::from_mins(1), running.incoming.recv()).await;
    assert!(early.is_err(), "{early:?}");
    running.outbox.resume();
    let Some(Incoming::Packets(_, packets)) = running.incoming.recv().await else { panic!() };
    assert_eq!(packets, [publish("later")]);
    running.outbox.pause();
    running.client.send(&publish("never")).await;
    running.outbox.close();
    while !matches!(running.incoming.recv().await, Some(Incoming::Closed(..))) {}
    assert_eq!(running.end.await.unwrap(), End::Closed);
}

#[tokio::test(start_paused = true)]
async fn nothing_follows_a_disconnect() {
    let mut running = accepted(connect(Version::V5), Settings::default()).await;
    let goodbye = Packet::Disconnect(Disconnect::new(Reason::SUCCESS));
    let mut sent = bytes(&goodbye, Version::V5);
    write(&publish("late"), Version::V5, &mut sent);
    running.client.stream.write_all(&sent).await.unwrap();
    let Some(Incoming::Packets(_, packets)) = running.incoming.recv().await else { panic!() };
    assert_eq!(packets, [goodbye]);
    assert!(matches!(running.incoming.recv().await, Some(Incoming::Closed(_, None))));
}

// MQTT 5, 3.14.2.2.2: a session that was to end with its connection cannot be kept by DISCONNECT; the client is told.
#[tokio::test(start_paused = true)]
async fn a_disconnect_may_be_answered() {
    let mut running = accepted(connect(Version::V5), Settings::default()).await;
    let goodbye = Disconnect { session_expiry: Some(9), ..Disconnect::new(Reason::SUCCESS) };
    running.client.send(&Packet::Disconnect(goodbye)).await;
    assert!(matches!(running.incoming.recv().await, Some(Incoming::Packets(..))));
    let told = Packet::Disconnect(Disconnect::new(Reason::PROTOCOL_ERROR));
    running.outbox.send(Outgoing::Packet(Box::new(told.clone()))).unwrap();
    running.outbox.close();
    assert_eq!(running.client.receive().await, Some(told));
    assert_eq!(running.client.receive().await, None);
    assert!(matches!(running.incoming.recv().await, Some(Incoming::Closed(_, None))));
}

// [MQTT-3.14.4-1] [MQTT-3.14.4-2] [MQTT-4.13.1-1]
#[tokio::test(start_paused = true)]
async fn a_malformed_packet_ends_the_connection_with_its_reason() {
    let mut running = accepted(connect(Version::V5), Settings::default()).await;
    let mut sent = bytes(&publish("before"), Version::V5);
    sent.extend_from_slice(&[0x36, 0]);
    running.client.stream.write_all(&sent).await.unwrap();
    assert!(
        matches!(running.incoming.recv().await, Some(Incoming::Packets(_, packets)) if packets.len() == 1)
    );
    let closed = running.incoming.recv().await;
    assert!(matches!(closed, Some(Incoming::Closed(_, Some(Reason::MALFORMED_PACKET)))));
    let told = Packet::Disconnect(Disconnect::new(Reason::MALFORMED_PACKET));
    assert_eq!(running.client.receive().await, Some(told));
    assert_eq!(running.client.receive().await, None);
}

// [MQTT-3.14.0-1]
#[tokio::test(start_paused = true)]
async fn no_disconnect_is_sent_before_connack() {
    let mut running = start(connect(Version::V5), Settings::default()).await;
    running.client.stream.write_all(&[0x00]).await.unwrap();
    assert_eq!(running.client.receive().await, None);
    assert!(matches!(running.incoming.recv().await, Some(Incoming::Closed(_, Some(_)))));
}

// [MQTT-3.1.2-22] [MQTT-3.2.2-22]
#[tokio::test(start_paused = true)]
async fn a_silent_client_is_disconnected_after_one_and_a_half_keep_alives() {
    let mut asked = connect(Version::V5);
    asked.keep_alive = 20;
    let mut running = accepted(asked, Settings::default()).await;
    tokio::time::sleep(Duration::from_secs(25)).await;
    running.client.send(&Packet::PingReq).await;
    let heard = tokio::time::Instant::now();
    assert!(matches!(running.incoming.recv().await, Some(Incoming::Packets(..))));
    let told = running.client.receive().await;
    assert_eq!(told, Some(Packet::Disconnect(Disconnect::new(Reason::KEEP_ALIVE_TIMEOUT))));
    assert_eq!(heard.elapsed().as_secs(), 30);
    let closed = running.incoming.recv().await;
    assert!(matches!(closed, Some(Incoming::Closed(_, Some(Reason::KEEP_ALIVE_TIMEOUT)))));
}

// [MQTT-3.1.2-21] [MQTT-3.2.2-21]
#[tokio::test(start_paused = true)]
async fn the_servers_keep_alive_counts_instead_of_the_clients() {
    let mut running = start(connect(Version::V5), Settings::default()).await;
    let properties = ConnAckProperties { server_keep_alive: Some(10), ..Default::default() };
    let started = tokio::time::Instant::now();
    running.outbox.send(connack(properties)).unwrap();
    running.client.receive().await;
    let told = running.client.receive().await;
    assert_eq!(told, Some(Packet::Disconnect(Disconnect::new(Reason::KEEP_ALIVE_TIMEOUT))));
    assert_eq!(started.elapsed().as_secs(), 15);
}

#[tokio::test(start_paused = true)]
async fn without_keep_alive_a_silent_client_stays() {
    let mut running = accepted(connect(Version::V311), Settings::default()).await;
    tokio::time::sleep(Duration::from_secs(1_000_000)).await;
    running.client.send(&Packet::PingReq).await;
    assert!(matches!(running.incoming.recv().await, Some(Incoming::Packets(..))));
}

// [MQTT-3.14.4-2]
#[tokio::test(start_paused = true)]
async fn a_stop_tells_version_5_clients() {
    let mut running = accepted(connect(Version::V5), Settings::default()).await;
    running.context.stop.cancel();
    let told = running.client.receive().await;
    assert_eq!(told, Some(Packet::Disconnect(Disconnect::new(Reason::SERVER_SHUTTING_DOWN))));
    assert_eq!(running.client.receive().await, None);
    drop(running.client);
    assert_eq!(running.end.await.unwrap(), End::Stopping);
}

#[tokio::test(start_paused = true)]
async fn a_connection_ends_with_its_clients_proof() {
    let until = Instant::now() + Duration::from_secs(100);
    let mut running = start_until(connect(Version::V5), Settings::default(), Some(until)).await;
    running.outbox.send(connack(ConnAckProperties::default())).unwrap();
    assert!(matches!(running.client.receive().await, Some(Packet::ConnAck(_))));
    let told = running.client.receive().await;
    assert_eq!(told, Some(Packet::Disconnect(Disconnect::new(Reason::NOT_AUTHORIZED))));
    assert!(Instant::now() >= until);
    drop(running.client);
    assert_eq!(running.end.await.unwrap(), End::Expired);
}

#[tokio::test(start_paused = true)]
async fn what_was_queued_is_written_before_the_close() {
    let mut running = accepted(connect(Version::V311), Settings::default()).await;
    for number in 1..=3 {
        running.outbox.send(delivery(10_000, Some(number))).unwrap();
    }
    running.outbox.close();
    running.outbox.send(delivery(1, None)).unwrap();
    for number in 1..=3 {
        let Some(Packet::Publish(publish)) = running.client.receive().await else { panic!() };
        assert_eq!((publish.packet_id, publish.payload.len()), (PacketId::new(number), 10_000));
    }
    assert_eq!(running.client.receive().await, None);
    assert!(matches!(running.incoming.recv().await, Some(Incoming::Closed(_, None))));
}

#[tokio::test(start_paused = true)]
async fn only_qos_0_is_dropped_for_a_slow_reader_which_is_then_disconnected() {
    let settings = Settings { outbox_messages: 10, ..Settings::default() };
    let mut running = accepted(connect(Version::V311), settings).await;
    // More than the pipe takes, so the writer is stuck from here on.
    running.outbox.send(delivery(2 * PIPE, None)).unwrap();
    tokio::task::yield_now().await;
    tokio::task::yield_now().await;
    for _ in 0..10 {
        running.outbox.send(delivery(1, None)).unwrap();
    }
    assert!(running.outbox.send(delivery(1, None)).is_err());
    for number in 1..=20 {
        running.outbox.send(delivery(1, Some(number))).unwrap();
    }
    let started = tokio::time::Instant::now();
    assert!(matches!(running.incoming.recv().await, Some(Incoming::Closed(_, Some(_)))));
    assert_eq!(started.elapsed().as_secs(), 30);
    assert_eq!(running.end.await.unwrap(), End::Stalled);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_its_answers_unread_is_not_read_from() {
    let settings = Settings { outbox_answers: 2, ..Settings::default() };
    let mut running = accepted(connect(Version::V311), settings).await;
    running.outbox.send(delivery(2 * PIPE, Some(1))).unwrap();
    tokio::task::yield_now().await;
    tokio::task::yield_now().await;
    for _ in 0..2 {
        running.outbox.send(Outgoing::Packet(Box::new(Packet::PingResp))).unwrap();
    }
    running.client.send(&Packet::PingReq).await;
    let waited = tokio::time::timeout(Duration::from_secs(1), running.incoming.recv()).await;
    assert!(waited.is_err(), "its request waits");
    assert!(matches!(running.client.receive().await, Some(Packet::Publish(_))));
    assert!(matches!(running.incoming.recv().await, Some(Incoming::Packets(..))));
}

// [MQTT-3.1.2-25]
#[tokio::test(start_paused = true)]
async fn a_message_over_the_clients_packet_size_is_dropped_and_counts_as_delivered() {
    let mut asked = connect(Version::V5);
    asked.maximum_packet_size = Some(100);
    let mut running = accepted(asked, Settings::default()).await;
    running.outbox.send(delivery(200, Some(7))).unwrap();
    running.outbox.send(delivery(20, Some(8))).unwrap();
    let Some(Packet::Publish(publish)) = running.client.receive().await else { panic!() };
    assert_eq!(publish.packet_id, PacketId::new(8));
    let Some(Incoming::Packets(_, packets)) = running.incoming.recv().await else { panic!() };
    let [Packet::PubAck(ack)] = &packets[..] else { panic!() };
    assert_eq!((ack.packet_id.get(), ack.reason), (7, Reason::PACKET_TOO_LARGE));
    assert_eq!(running.context.counters.too_large.load(std::sync::atomic::Ordering::Relaxed), 1);
}

#[tokio::test]
async fn an_idle_connection_stays_small() {
    let (context, _incoming) = context(Settings::default());
    let (mut near, far) = duplex(PIPE);
    near.write_all(&bytes(&Packet::Connect(Box::new(connect(Version::V5))), Version::V5))
        .await
        .unwrap();
    let opening = handshake(far, &context.settings, &context.counters);
    let opening_bytes = size_of_val(&opening);
    let opened = opening.await.unwrap();
    let serving = run(opened, Peer { principal: None, address: None, proof: None }, &context);
    let serving_bytes = size_of_val(&serving);
    assert!(serving_bytes <= 784 && opening_bytes <= 512, "{serving_bytes} {opening_bytes}");
}
