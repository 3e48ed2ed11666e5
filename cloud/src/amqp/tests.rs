//! The head over a log in memory, spoken to frame by frame.

use std::{net::SocketAddr, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tributary_shared::{
    amqp::{
        ContentHeader, Decoder, FrameKind, Method, PROTOCOL_HEADER, Properties, Table, Value,
        frame::{write_content, write_method},
    },
    record::{BatchBuilder, Compression, Header, Record},
};

mod moves;

use super::{Head, Settings};
use crate::{
    cluster::{Addresses, Cluster},
    log::{Guard, Log, PartitionId, testing::test_log},
    peer::{self, Peers},
    route::{Routes, Routing},
    status::Status,
};

const WAIT: Duration = Duration::from_secs(10);

struct Server {
    address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Server {
    async fn start(log: &Log) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let (log, until) = (log.clone(), stop.clone());
        let task = tokio::spawn(async move {
            let routing = Routing::new(Routes::default());
            let settings = Settings::default();
            let cluster = Cluster::alone(Addresses::default(), log.shards());
            let peers = Peers::open(&peer::Settings::default(), cluster).unwrap();
            let status = Status::default();
            let head = Head::open(settings, log, routing, peers, &status, until.clone());
            head.serve(listener, until).await;
        });
        Self { address, stop, task }
    }

    async fn stop(self) {
        self.stop.cancel();
        timeout(WAIT, self.task).await.unwrap().unwrap();
    }
}

struct Client {
    socket: TcpStream,
    buffer: BytesMut,
    out: Vec<u8>,
}

/// A message as received.
#[derive(Debug, PartialEq)]
struct Got {
    method: Method,
    properties: Properties,
    body: Bytes,
}

impl Client {
    async fn raw(server: &Server) -> Self {
        let mut socket = TcpStream::connect(server.address).await.unwrap();
        socket.write_all(&PROTOCOL_HEADER).await.unwrap();
        let mut client = Self { socket, buffer: BytesMut::new(), out: Vec::new() };
        assert!(matches!(client.method().await, (0, Method::ConnectionStart { .. })));
        client
    }

    async fn logged_in(server: &Server, vhost: &str, frame_max: u32, heartbeat: u16) -> Self {
        let mut client = Self::raw(server).await;
        let capabilities = Table::default()
            .with("consumer_cancel_notify", Value::Bool(true))
            .with("authentication_failure_close", Value::Bool(true));
        client
            .send(
                0,
                Method::ConnectionStartOk {
                    client_properties: Table::default()
                        .with("capabilities", Value::Table(capabilities)),
                    mechanism: "PLAIN".into(),
                    response: Bytes::from_static(b"\0guest\0guest"),
                    locale: "en_US".into(),
                },
            )
            .await;
        let (_, tune) = client.method().await;
        let expected =
            Method::ConnectionTune { channel_max: 2047, frame_max: 131_072, heartbeat: 60 };
        assert_eq!(tune, expected);
        client.put(0, &Method::ConnectionTuneOk { channel_max: 0, frame_max, heartbeat });
        let open = Method::ConnectionOpen {
            virtual_host: vhost.into(),
            capabilities: "".into(),
            insist: false,
        };
        client.send(0, open).await;
        client
    }

    /// With channel 1 open.
    async fn open(server: &Server) -> Self {
        let mut client = Self::logged_in(server, "/", 0, 0).await;
        assert!(matches!(client.method().await, (0, Method::ConnectionOpenOk { .. })));
        client.channel(1).await;
        client
    }

    async fn channel(&mut self, channel: u16) {
        self.send(channel, Method::ChannelOpen { out_of_band: "".into() }).await;
        assert!(matches!(self.method().await.1, Method::ChannelOpenOk { .. }));
    }

    fn put(&mut self, channel: u16, method: &Method) {
        write_method(&mut self.out, channel, method);
    }

    async fn flush(&mut self) {
        self.socket.write_all(&std::mem::take(&mut self.out)).await.unwrap();
    }

    async fn send(&mut self, channel: u16, method: Method) {
        self.put(channel, &method);
        self.flush().await;
    }

    /// Sends on channel 1 and takes the answer.
    async fn call(&mut self, method: Method) -> Method {
        self.send(1, method).await;
        self.method().await.1
    }

    async fn frame(&mut self) -> Option<(FrameKind, u16, Bytes)> {
        loop {
            if let Some(frame) = (Decoder { frame_max: 131_072 }).next(&mut self.buffer).unwrap() {
                return Some((frame.kind, frame.channel, frame.payload));
            }
            let read = timeout(WAIT, self.socket.read_buf(&mut self.buffer)).await.unwrap();
            if read.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    async fn method(&mut self) -> (u16, Method) {
        loop {
            let (kind, channel, payload) = self.frame().await.expect("open");
            if kind != FrameKind::Heartbeat {
                assert_eq!(kind, FrameKind::Method);
                return (channel, Method::decode(payload).unwrap());
            }
        }
    }

    async fn message(&mut self) -> Got {
        let (_, method) = self.method().await;
        let (kind, _, payload) = self.frame().await.unwrap();
        assert_eq!(kind, FrameKind::Header, "{method:?}");
        let header = ContentHeader::decode(payload).unwrap();
        let mut body = BytesMut::new();
        while (body.len() as u64) < header.body_size {
            let (kind, _, payload) = self.frame().await.unwrap();
            assert_eq!(kind, FrameKind::Body);
            body.extend_from_slice(&payload);
        }
        let properties = Properties::decode(header.properties).unwrap();
        Got { method, properties, body: body.freeze() }
    }

    async fn delivery(&mut self) -> (u64, bool, Bytes) {
        let got = self.message().await;
        let Method::BasicDeliver { delivery_tag, redelivered, .. } = got.method else {
            panic!("{got:?}")
        };
        (delivery_tag, redelivered, got.body)
    }

    fn put_publish(&mut self, exchange: &str, key: &str, mandatory: bool, body: &[u8]) {
        let method = Method::BasicPublish {
            ticket: 0,
            exchange: exchange.into(),
            routing_key: key.into(),
            mandatory,
            immediate: false,
        };
        self.put(1, &method);
        let mut raw = Vec::new();
        Properties { delivery_mode: Some(2), ..Properties::default() }.encode(&mut raw);
        write_content(&mut self.out, 1, &raw, body, 4096);
    }

    /// Confirms every message before it returns.
    async fn publish_all(&mut self, exchange: &str, key: &str, bodies: &[&[u8]]) {
        self.call(Method::ConfirmSelect { nowait: false }).await;
        for body in bodies {
            self.put_publish(exchange, key, false, body);
        }
        self.flush().await;
        let mut confirmed = 0;
        while confirmed < bodies.len() as u64 {
            match self.method().await.1 {
                Method::BasicAck { delivery_tag, .. } => confirmed = delivery_tag,
                other => panic!("{other:?}"),
            }
        }
    }

    async fn declare(&mut self, queue: &str, arguments: Table) -> (String, u32, u32) {
        match self.call(declare(queue, arguments)).await {
            Method::QueueDeclareOk { queue, message_count, consumer_count } => {
                (queue.to_string(), message_count, consumer_count)
            }
            other => panic!("{other:?}"),
        }
    }

    async fn consume(&mut self, queue: &str, tag: &str) {
        let answer = self.call(consume(queue, tag)).await;
        assert!(matches!(answer, Method::BasicConsumeOk { .. }), "{answer:?}");
    }

    async fn qos(&mut self, prefetch_count: u16, global: bool) {
        let qos = Method::BasicQos { prefetch_size: 0, prefetch_count, global };
        assert_eq!(self.call(qos).await, Method::BasicQosOk {});
    }

    async fn ready(&mut self, queue: &str) -> u32 {
        self.declare(queue, Table::default()).await.1
    }
}

fn declare(queue: &str, arguments: Table) -> Method {
    Method::QueueDeclare {
        ticket: 0,
        queue: queue.into(),
        passive: false,
        durable: true,
        exclusive: false,
        auto_delete: false,
        nowait: false,
        arguments,
    }
}

fn consume(queue: &str, tag: &str) -> Method {
    Method::BasicConsume {
        ticket: 0,
        queue: queue.into(),
        consumer_tag: tag.into(),
        no_local: false,
        no_ack: false,
        exclusive: false,
        nowait: false,
        arguments: Table::default(),
    }
}

fn bind(queue: &str, exchange: &str, key: &str) -> Method {
    Method::QueueBind {
        ticket: 0,
        queue: queue.into(),
        exchange: exchange.into(),
        routing_key: key.into(),
        nowait: false,
        arguments: Table::default(),
    }
}

fn get(queue: &str) -> Method {
    Method::BasicGet { ticket: 0, queue: queue.into(), no_ack: true }
}

fn ack(delivery_tag: u64, multiple: bool) -> Method {
    Method::BasicAck { delivery_tag, multiple }
}

async fn from_mqtt(log: &Log, topic: &'static str, body: &'static [u8]) -> i64 {
    let stream = log.ensure_stream("plant").await.unwrap();
    let mut batch = BatchBuilder::new();
    batch.push(&Record {
        key: Some(Bytes::from_static(topic.as_bytes())),
        value: Some(Bytes::from_static(body)),
        timestamp_ms: 1_700_000_000_000,
        headers: vec![Header { name: "u".into(), value: Some(Bytes::from_static(b"1")) }],
    });
    let batch = batch.finish(Compression::None, None).unwrap();
    let committed = log.append(PartitionId::new(stream.id, 0), batch, Guard::None).await.unwrap();
    committed.base_offsets[0]
}

#[tokio::test]
async fn a_wrong_protocol_header_is_answered_with_ours() {
    let server = Server::start(&test_log(1).await.unwrap()).await;
    for wrong in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"AMQP\0\x01\0\0", b"AMQP\x03\x01\0\0"] {
        let mut socket = TcpStream::connect(server.address).await.unwrap();
        socket.write_all(wrong).await.unwrap();
        let mut answer = Vec::new();
        timeout(WAIT, socket.read_to_end(&mut answer)).await.unwrap().unwrap();
        assert_eq!(answer, PROTOCOL_HEADER);
    }
    server.stop().await;
}

#[tokio::test]
async fn what_the_handshake_refuses_is_told_with_its_code() {
    let server = Server::start(&test_log(1).await.unwrap()).await;
    let mut client = Client::logged_in(&server, "other", 0, 0).await;
    let (_, close) = client.method().await;
    let Method::ConnectionClose { reply_code, reply_text, class_id, method_id } = close else {
        panic!("{close:?}")
    };
    assert_eq!((reply_code, class_id, method_id), (530, 10, 40));
    assert_eq!(reply_text, "NOT_ALLOWED - vhost other not found");

    for (frame_max, code) in [(100, 530), (200_000, 530)] {
        let mut client = Client::logged_in(&server, "/", frame_max, 0).await;
        let (_, close) = client.method().await;
        assert!(matches!(close, Method::ConnectionClose { reply_code, .. } if reply_code == code));
    }

    let mut client = Client::raw(&server).await;
    let capabilities = Table::default().with("authentication_failure_close", Value::Bool(true));
    let start_ok = Method::ConnectionStartOk {
        client_properties: Table::default().with("capabilities", Value::Table(capabilities)),
        mechanism: "PLAIN".into(),
        response: Bytes::from_static(b"\0guest\0wrong"),
        locale: "en_US".into(),
    };
    client.send(0, start_ok).await;
    let (_, close) = client.method().await;
    let Method::ConnectionClose { reply_code, reply_text, .. } = close else { panic!("{close:?}") };
    assert_eq!(reply_code, 403);
    assert!(reply_text.starts_with("ACCESS_REFUSED - Login was refused using"), "{reply_text}");
    drop(client);
    server.stop().await;
}

#[tokio::test]
async fn published_messages_are_confirmed_delivered_and_acked_once() {
    let server = Server::start(&test_log(2).await.unwrap()).await;
    let mut client = Client::open(&server).await;
    client.declare("q", Table::default()).await;
    let large = vec![5; 300_000];
    client.publish_all("", "q", &[b"", b"one", &large]).await;
    assert_eq!(client.ready("q").await, 3);
    client.consume("q", "c").await;
    for (tag, body) in [(1, &b""[..]), (2, b"one"), (3, &large)] {
        assert_eq!(client.delivery().await, (tag, false, Bytes::copy_from_slice(body)));
    }
    client.send(1, ack(3, true)).await;
    client.call(Method::BasicCancel { consumer_tag: "c".into(), nowait: false }).await;
    assert!(matches!(client.call(get("q")).await, Method::BasicGetEmpty { .. }));
    drop(client);
    server.stop().await;
}

#[tokio::test]
async fn a_mandatory_message_without_a_queue_is_returned_before_it_is_confirmed() {
    let server = Server::start(&test_log(1).await.unwrap()).await;
    let mut client = Client::open(&server).await;
    client.call(Method::ConfirmSelect { nowait: false }).await;
    client.put_publish("", "nowhere", true, b"x");
    client.flush().await;
    let returned = client.message().await;
    let Method::BasicReturn { reply_code, reply_text, .. } = &returned.method else {
        panic!("{returned:?}")
    };
    assert_eq!((*reply_code, &**reply_text), (312, "NO_ROUTE"));
    assert_eq!(client.method().await.1, ack(1, false));
    drop(client);
    server.stop().await;
}

#[tokio::test]
async fn a_lost_connection_gives_its_messages_back_in_order_and_marked() {
    let server = Server::start(&test_log(1).await.unwrap()).await;
    let mut client = Client::open(&server).await;
    client.declare("q", Table::default()).await;
    client.publish_all("", "q", &[b"0", b"1", b"2", b"3"]).await;
    client.qos(3, false).await;
    client.consume("q", "c").await;
    for tag in 1..=3 {
        assert_eq!(client.delivery().await.0, tag);
    }
    client.send(1, ack(2, false)).await;
    assert_eq!(client.delivery().await.0, 4, "an ack makes room for one");
    drop(client);
    let mut other = Client::open(&server).await;
    other.consume("q", "c").await;
    let mut got = Vec::new();
    for _ in 0..3 {
        let (_, redelivered, body) = other.delivery().await;
        got.push((body, redelivered));
    }
    let expected: Vec<(Bytes, bool)> =
        [&b"0"[..], b"2", b"3"].map(|b| (Bytes::copy_from_slice(b), true)).to_vec();
    assert_eq!(got, expected);
    drop(other);
    server.stop().await;
}

#[tokio::test]
async fn prefetch_holds_and_changes_live() {
    let server = Server::start(&test_log(1).await.unwrap()).await;
    let mut client = Client::open(&server).await;
    client.declare("q", Table::default()).await;
    client.publish_all("", "q", &[b"0", b"1", b"2", b"3", b"4"]).await;
    client.qos(1, true).await;
    client.consume("q", "a").await;
    client.delivery().await;
    // The answer to this is the next thing that comes: nothing more was delivered.
    client.qos(3, true).await;
    assert_eq!((client.delivery().await.0, client.delivery().await.0), (2, 3));
    client.send(1, Method::BasicNack { delivery_tag: 0, multiple: true, requeue: true }).await;
    let again: Vec<_> =
        [client.delivery().await, client.delivery().await, client.delivery().await].to_vec();
    assert!(again.iter().all(|(_, redelivered, _)| *redelivered));
    assert_eq!(again.iter().map(|(_, _, body)| &body[..]).collect::<Vec<_>>(), [b"0", b"1", b"2"]);
    drop(client);
    server.stop().await;
}

#[tokio::test]
async fn refusals_have_the_codes_and_words_of_rabbitmq() {
    let server = Server::start(&test_log(1).await.unwrap()).await;
    let mut first = Client::open(&server).await;
    first.declare("q", Table::default()).await;
    let exclusive = Method::QueueDeclare {
        ticket: 0,
        queue: "mine".into(),
        passive: false,
        durable: false,
        exclusive: true,
        auto_delete: false,
        nowait: false,
        arguments: Table::default(),
    };
    first.call(exclusive.clone()).await;
    let ttl = Table::default().with("x-message-ttl", Value::I32(5));
    let exchange = |name: &str, kind: &str| Method::ExchangeDeclare {
        ticket: 0,
        exchange: name.into(),
        kind: kind.into(),
        passive: false,
        durable: false,
        auto_delete: false,
        internal: false,
        nowait: false,
        arguments: Table::default(),
    };
    let cases = [
        (get("none"), 404, "NOT_FOUND - no queue 'none' in vhost '/'"),
        (bind("q", "none", "k"), 404, "NOT_FOUND - no exchange 'none' in vhost '/'"),
        (
            bind("q", "", "k"),
            403,
            "ACCESS_REFUSED - operation not permitted on the default exchange",
        ),
        (
            declare("amq.mine", Table::default()),
            403,
            "ACCESS_REFUSED - queue name 'amq.mine' contains reserved prefix 'amq.*'",
        ),
        (
            exchange("amq.mine", "direct"),
            403,
            "ACCESS_REFUSED - exchange name 'amq.mine' contains reserved prefix 'amq.*'",
        ),
        (
            declare("q", ttl),
            406,
            "PRECONDITION_FAILED - inequivalent arg 'x-message-ttl' for queue 'q' in vhost '/': \
             received the value '5' of type 'signedint' but current is none",
        ),
        (
            exchange("amq.topic", "fanout"),
            406,
            "PRECONDITION_FAILED - inequivalent arg 'type' for exchange 'amq.topic' in vhost '/': \
             received 'fanout' but current is 'topic'",
        ),
        (ack(99, false), 406, "PRECONDITION_FAILED - unknown delivery tag 99"),
        (Method::TxCommit {}, 406, "PRECONDITION_FAILED - channel is not transactional"),
        (
            get("mine"),
            405,
            "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue 'mine'",
        ),
    ];
    let mut client = Client::open(&server).await;
    for (method, code, text) in cases {
        let culprit = method.id();
        let answer = client.call(method).await;
        let Method::ChannelClose { reply_code, reply_text, class_id, method_id } = answer else {
            panic!("{text}: {answer:?}")
        };
        assert_eq!((reply_code, (class_id, method_id)), (code, culprit), "{reply_text}");
        assert!(reply_text.starts_with(text), "{reply_text}");
        // Ignored until the close is answered; then the channel can be opened again.
        client.put(1, &Method::ChannelFlow { active: true });
        client.put(1, &Method::ChannelCloseOk {});
        client.flush().await;
        client.channel(1).await;
    }
    for (method, code, text) in [
        (exchange("x", "odd"), 503, "COMMAND_INVALID - unknown exchange type 'odd'"),
        (
            Method::BasicQos { prefetch_size: 1, prefetch_count: 0, global: false },
            540,
            "NOT_IMPLEMENTED - prefetch_size!=0 (1)",
        ),
        (Method::BasicRecover { requeue: false }, 540, "NOT_IMPLEMENTED - requeue=false"),
    ] {
        let mut client = Client::open(&server).await;
        client.send(1, method).await;
        let (channel, answer) = client.method().await;
        let Method::ConnectionClose { reply_code, reply_text, .. } = answer else {
            panic!("{answer:?}")
        };
        assert_eq!((channel, reply_code, &*reply_text), (0, code, text));
        client.send(0, Method::ConnectionCloseOk {}).await;
        assert_eq!(client.frame().await, None);
    }
    drop(first);
    let mut client = Client::open(&server).await;
    // The queue goes with its connection; until that is noticed it is locked.
    while matches!(client.call(exclusive.clone()).await, Method::ChannelClose { .. }) {
        client.send(1, Method::ChannelCloseOk {}).await;
        client.channel(1).await;
    }
    drop(client);
    server.stop().await;
}

#[tokio::test]
async fn device_messages_reach_bound_queues_and_amqp_ones_are_not_routed_twice() {
    let log = test_log(2).await.unwrap();
    from_mqtt(&log, "site/a/temp", b"before").await;
    let server = Server::start(&log).await;
    let mut client = Client::open(&server).await;
    client.declare("q", Table::default()).await;
    assert_eq!(client.call(bind("q", "amq.topic", "site.*.temp")).await, Method::QueueBindOk {});
    client.consume("q", "c").await;
    let offset = from_mqtt(&log, "site/a/temp", b"21").await;
    from_mqtt(&log, "site/a/hum", b"no").await;
    let got = client.message().await;
    assert_eq!(got.body, "21");
    let headers = got.properties.headers.unwrap();
    assert_eq!(headers.get("x-mqtt-topic"), Some(&Value::text("site/a/temp")));
    assert_eq!(headers.get("x-stream-offset"), Some(&Value::I64(offset)));
    assert_eq!(headers.get("u"), Some(&Value::text("1")));

    client.put_publish("amq.topic", "site.b.temp", false, b"mine");
    client.flush().await;
    assert_eq!(client.message().await.body, "mine");
    from_mqtt(&log, "site/a/temp", b"last").await;
    assert_eq!(client.message().await.body, "last");
    let stream = log.stream("mqtt.messages").unwrap();
    let mut keys = Vec::new();
    for index in 0..stream.partitions {
        for batch in log.read(PartitionId::new(stream.id, index), 0, 1 << 20).await.unwrap() {
            keys.extend(batch.records(1 << 20).unwrap().into_iter().filter_map(|r| r.key));
        }
    }
    assert_eq!(keys, ["site/b/temp"], "it is one record with the MQTT form of its key");
    drop(client);
    server.stop().await;
}

#[tokio::test]
async fn a_restart_keeps_what_was_confirmed_and_not_acked() {
    let log = test_log(1).await.unwrap();
    let server = Server::start(&log).await;
    let mut client = Client::open(&server).await;
    client.declare("q", Table::default()).await;
    client.call(bind("q", "amq.topic", "a.#")).await;
    client.publish_all("amq.topic", "a.b", &[b"0", b"1", b"2", b"3"]).await;
    client.consume("q", "c").await;
    for _ in 0..4 {
        client.delivery().await;
    }
    client.send(1, ack(1, false)).await;
    client.send(1, ack(3, false)).await;
    // Answered after the acks were taken.
    client.qos(0, false).await;
    drop(client);
    server.stop().await;
    from_mqtt(&log, "a/c", b"while away").await;

    let server = Server::start(&log).await;
    let mut client = Client::open(&server).await;
    client.consume("q", "c").await;
    for (body, redelivered) in [(&b"1"[..], true), (b"3", true), (b"while away", false)] {
        let got = client.delivery().await;
        assert_eq!((got.1, &got.2[..]), (redelivered, body));
    }
    drop(client);
    server.stop().await;
}

#[tokio::test]
async fn a_transaction_takes_effect_at_its_commit_or_not_at_all() {
    let server = Server::start(&test_log(1).await.unwrap()).await;
    let mut client = Client::open(&server).await;
    client.declare("q", Table::default()).await;
    assert_eq!(client.call(Method::TxSelect {}).await, Method::TxSelectOk {});
    client.put_publish("", "q", false, b"dropped");
    assert_eq!(client.call(Method::TxRollback {}).await, Method::TxRollbackOk {});
    client.put_publish("", "q", false, b"a");
    client.put_publish("", "q", false, b"b");
    client.flush().await;
    assert_eq!(client.ready("q").await, 0);
    assert_eq!(client.call(Method::TxCommit {}).await, Method::TxCommitOk {});
    assert_eq!(client.ready("q").await, 2);
    client.consume("q", "c").await;
    assert_eq!(client.delivery().await.2, "a");
    drop(client);
    server.stop().await;
}

#[tokio::test]
async fn a_backlog_larger_than_memory_comes_in_order() {
    let server = Server::start(&test_log(1).await.unwrap()).await;
    let mut client = Client::open(&server).await;
    client.declare("q", Table::default()).await;
    let bodies: Vec<Vec<u8>> = (0..6_000u32).map(|i| i.to_be_bytes().to_vec()).collect();
    let slices: Vec<&[u8]> = bodies.iter().map(Vec::as_slice).collect();
    client.publish_all("", "q", &slices).await;
    client.qos(100, false).await;
    client.consume("q", "c").await;
    for (i, body) in bodies.iter().enumerate() {
        let (tag, _, got) = client.delivery().await;
        assert_eq!((tag, &got[..]), (i as u64 + 1, &body[..]));
        client.send(1, ack(tag, false)).await;
    }
    drop(client);
    server.stop().await;
}

#[tokio::test]
async fn expired_rejected_and_excess_messages_go_to_the_dead_letter_exchange() {
    let server = Server::start(&test_log(1).await.unwrap()).await;
    let mut client = Client::open(&server).await;
    client.declare("dead", Table::default()).await;
    let to_dead = |arguments: Table| {
        arguments
            .with("x-dead-letter-exchange", Value::text(""))
            .with("x-dead-letter-routing-key", Value::text("dead"))
    };
    let short = Table::default().with("x-message-ttl", Value::I32(1));
    let one = Table::default().with("x-max-length", Value::I32(1));
    client.declare("short", to_dead(short)).await;
    client.declare("one", to_dead(one)).await;
    client.declare("plain", to_dead(Table::default())).await;
    client.consume("dead", "c").await;
    for (queue, bodies, reason) in [
        ("short", &[&b"s"[..]][..], "expired"),
        ("one", &[b"o", b"p"], "maxlen"),
        ("plain", &[b"r"], "rejected"),
    ] {
        for body in bodies {
            client.put_publish("", queue, false, body);
        }
        client.flush().await;
        if reason == "rejected" {
            client.consume("plain", "p").await;
            let (tag, ..) = client.delivery().await;
            client.send(1, Method::BasicReject { delivery_tag: tag, requeue: false }).await;
        }
        let got = client.message().await;
        assert_eq!(got.body, bodies[0]);
        let headers = got.properties.headers.unwrap();
        let Some(Value::Array(deaths)) = headers.get("x-death") else { panic!("{headers:?}") };
        let Some(Value::Table(death)) = deaths.first() else { panic!("{deaths:?}") };
        assert_eq!(death.get("reason"), Some(&Value::text(reason)));
        assert_eq!(death.get("queue"), Some(&Value::text(queue)));
        assert_eq!(death.get("count"), Some(&Value::I64(1)));
    }
    drop(client);
    server.stop().await;
}

#[tokio::test]
async fn deleting_a_queue_tells_its_consumers() {
    let server = Server::start(&test_log(1).await.unwrap()).await;
    let mut client = Client::open(&server).await;
    client.declare("q", Table::default()).await;
    client.publish_all("", "q", &[b"0", b"1"]).await;
    client.consume("q", "c").await;
    client.delivery().await;
    client.delivery().await;
    let delete = Method::QueueDelete {
        ticket: 0,
        queue: "q".into(),
        if_unused: false,
        if_empty: false,
        nowait: false,
    };
    client.send(1, delete.clone()).await;
    let cancelled = Method::BasicCancel { consumer_tag: "c".into(), nowait: true };
    assert_eq!(client.method().await.1, Method::QueueDeleteOk { message_count: 0 });
    assert_eq!(client.method().await.1, cancelled);
    assert_eq!(client.call(delete).await, Method::QueueDeleteOk { message_count: 0 });
    client.send(1, ack(2, true)).await;
    client.qos(1, false).await;
    drop(client);
    server.stop().await;
}

#[tokio::test]
async fn a_close_that_crosses_a_refusal_is_answered() {
    let server = Server::start(&test_log(1).await.unwrap()).await;
    let mut client = Client::open(&server).await;
    client.put_publish("none", "k", false, b"x");
    let close =
        Method::ChannelClose { reply_code: 200, reply_text: "".into(), class_id: 0, method_id: 0 };
    client.put(1, &close);
    client.flush().await;
    assert_eq!(client.method().await, (1, Method::ChannelCloseOk {}));
    client.channel(1).await;
    drop(client);
    server.stop().await;
}

#[tokio::test]
async fn heartbeats_go_both_ways() {
    let server = Server::start(&test_log(1).await.unwrap()).await;
    let mut client = Client::logged_in(&server, "/", 0, 1).await;
    assert!(matches!(client.method().await, (0, Method::ConnectionOpenOk { .. })));
    let (kind, channel, payload) = client.frame().await.unwrap();
    assert_eq!((kind, channel, payload.len()), (FrameKind::Heartbeat, 0, 0));
    // A silent client is cut after two.
    while client.frame().await.is_some() {}
    drop(client);
    server.stop().await;
}

#[tokio::test]
async fn a_stop_is_told_to_the_clients() {
    let server = Server::start(&test_log(1).await.unwrap()).await;
    let mut client = Client::open(&server).await;
    server.stop.cancel();
    let (_, close) = client.method().await;
    assert!(matches!(close, Method::ConnectionClose { reply_code: 320, .. }), "{close:?}");
    client.send(0, Method::ConnectionCloseOk {}).await;
    server.stop().await;
}
