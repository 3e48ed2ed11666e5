//! The uplink against a scripted cloud that follows the rule of epochs and sequences, and misbehaves on purpose.
//!
//! Here: the cloud and the edge of the tests. The promises are in the files below.

mod clash;
mod decisions;
mod fresh;
mod full;
mod order;
mod plain;
mod poison;

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tributary_shared::{
    message::Message,
    mqtt::{
        Packet, Qos, Reader, Reason, Version,
        packet::{Ack, ConnAck, ConnAckProperties, Disconnect, Publish, PublishProperties},
        write::{Encoded, write},
    },
    record::Batch,
    session::action::Change,
};

use super::*;
use crate::{
    lane,
    link::{Address, Batches, Caller, Dial},
    status::Status,
    store::{self, After, Error, Opened, Plan},
};

/// What the cloud does with one publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    /// As the rule says.
    Follow,
    /// Durable, but the acknowledgement is lost and the connection cut.
    CutAfter,
    /// Neither durable nor acknowledged, connection cut.
    CutBefore,
    /// Durable, and never answered.
    Silent,
    /// Not durable, answered with this code.
    Say(u8),
    /// As the rule says, after so many ms.
    Late(u64),
    /// Another gateway was here before: its record is durable, and the connection ends.
    Clash,
    /// Not durable; the connection ends, and this edge is to come back in a second.
    Busy,
}

#[derive(Default)]
struct Seen {
    next: HashMap<i64, u64>,
    records: Vec<String>,
    gaps: Vec<(u64, u64, String)>,
    batches: usize,
    duplicates: usize,
    rewinds: usize,
    connects: Vec<(String, Vec<(String, String)>)>,
    /// What came of each epoch.
    epochs: HashMap<i64, Vec<String>>,
    /// What said that it is late.
    late: Vec<String>,
    /// The same in every CONNACK, or one more with each.
    receive_maximum: Option<u16>,
}

struct Cloud {
    address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

impl Drop for Cloud {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Cloud {
    /// `act`: what to do with the n-th publish of all connections. `names_epochs`: CONNACK has `expect`.
    async fn start(
        names_epochs: bool,
        act: impl FnMut(usize, &Publish) -> Act + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Seen { receive_maximum: Some(8), ..Seen::default() }));
        let task = tokio::spawn(serve(listener, seen.clone(), names_epochs, act));
        Self { address, seen, task }
    }
}

async fn serve(
    listener: TcpListener,
    seen: Arc<Mutex<Seen>>,
    names_epochs: bool,
    mut act: impl FnMut(usize, &Publish) -> Act,
) {
    let mut count = 0;
    loop {
        let mut unanswered = 0;
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut reader = Reader::server(1 << 20);
        let (mut input, mut output) = (BytesMut::new(), BytesMut::new());
        'connection: loop {
            while let Some(packet) = reader.read(&mut input).unwrap() {
                match packet {
                    Packet::Connect(connect) => {
                        assert!(connect.clean_start);
                        let mut seen = seen.lock().unwrap();
                        let user = connect.user_properties.iter();
                        let user = user.map(|(k, v)| (k.to_string(), v.to_string())).collect();
                        seen.connects.push((connect.client_id.to_string(), user));
                        write(&connack(&seen, names_epochs), Version::V5, &mut output);
                    }
                    Packet::Publish(publish) => {
                        unanswered += 1;
                        assert!(unanswered <= allowed(&seen.lock().unwrap()), "Receive Maximum");
                        let what = act(count, &publish);
                        count += 1;
                        let answer = match what {
                            Act::CutBefore => break 'connection,
                            Act::Busy => {
                                let disconnect = Packet::Disconnect(Disconnect {
                                    user_properties: vec![("retry-after-s".into(), "1".into())],
                                    ..Disconnect::new(Reason(0x97))
                                });
                                write(&disconnect, Version::V5, &mut output);
                                stream.write_all(&output).await.unwrap();
                                break 'connection;
                            }
                            Act::Clash => {
                                let (epoch, s) = place(&publish);
                                seen.lock().unwrap().next.insert(epoch, s + 1);
                                let clash = ("clash".into(), epoch.to_string().into());
                                let disconnect = Packet::Disconnect(Disconnect {
                                    user_properties: vec![clash],
                                    ..Disconnect::new(Reason::SESSION_TAKEN_OVER)
                                });
                                write(&disconnect, Version::V5, &mut output);
                                stream.write_all(&output).await.unwrap();
                                break 'connection;
                            }
                            Act::Say(code) => Ack::new(publish.packet_id.unwrap(), Reason(code)),
                            _ => follow(&mut seen.lock().unwrap(), &publish),
                        };
                        if what == Act::CutAfter {
                            break 'connection;
                        }
                        if let Act::Late(ms) = what {
                            sleep(Duration::from_millis(ms)).await;
                        }
                        if what != Act::Silent {
                            write(&Packet::PubAck(answer), Version::V5, &mut output);
                        }
                    }
                    Packet::PingReq => write(&Packet::PingResp, Version::V5, &mut output),
                    Packet::Disconnect(_) => break 'connection,
                    other => panic!("{other:?}"),
                }
            }
            if stream.write_all(&output).await.is_err() {
                break;
            }
            output.clear();
            unanswered = 0;
            if !matches!(stream.read_buf(&mut input).await, Ok(1..)) {
                break;
            }
        }
        cut(stream);
    }
}

/// Closed so that what was written is not sure to arrive.
fn cut(stream: TcpStream) {
    drop(stream);
}

/// Publishes that may be unanswered.
fn allowed(seen: &Seen) -> u16 {
    seen.receive_maximum.unwrap_or(seen.connects.len() as u16 % 5 + 1)
}

fn connack(seen: &Seen, names_epochs: bool) -> Packet {
    let expect = seen.next.iter().filter(|_| names_epochs);
    let user_properties =
        expect.map(|(e, n)| ("expect".into(), format!("{e}:{n}").into())).collect();
    let properties = ConnAckProperties {
        receive_maximum: Some(allowed(seen)),
        maximum_packet_size: Some(600_000),
        user_properties,
        ..ConnAckProperties::default()
    };
    Packet::ConnAck(Box::new(ConnAck {
        session_present: false,
        reason: Reason::SUCCESS,
        properties,
    }))
}

/// Epoch and first sequence.
fn place(publish: &Publish) -> (i64, u64) {
    let number = |name: &str| {
        let found = publish.properties.user_properties.iter().find(|(key, _)| key == name);
        found.unwrap().1.parse::<u64>().unwrap()
    };
    (number("ep") as i64, number("s"))
}

/// The cloud's rule (DESIGN 6).
fn follow(seen: &mut Seen, publish: &Publish) -> Ack {
    assert_eq!((publish.qos, &*publish.topic), (Qos::AtLeastOnce, "tributary/gw1/up/normal"));
    let content = publish.properties.content_type.as_deref();
    assert_eq!(content, Some("application/vnd.kafka.recordbatch.v2"));
    let property = |name: &str| {
        let found = publish.properties.user_properties.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.to_string())
    };
    let number = |name: &str| property(name).unwrap().parse::<u64>().unwrap();
    let (epoch, s, n) = (number("ep") as i64, number("s"), number("n"));
    let mut ack = Ack::new(publish.packet_id.unwrap(), Reason::SUCCESS);
    let next = seen.next.get(&epoch).copied().unwrap_or(0);
    if s + n <= next {
        seen.duplicates += 1;
    } else if s != next {
        seen.rewinds += 1;
        ack.reason = Reason::IMPLEMENTATION_SPECIFIC;
        ack.user_properties = vec![("expected".into(), next.to_string().into())];
    } else {
        let batch = Batch::parse(publish.payload.clone()).unwrap();
        assert_eq!(batch.header().producer_id, epoch);
        let records = batch.records(1 << 20).unwrap();
        if let Some(reason) = property("gap") {
            let said: serde_json::Value =
                serde_json::from_slice(records[0].value.as_ref().unwrap()).unwrap();
            assert_eq!((said["from"].as_u64(), said["to"].as_u64()), (Some(s), Some(s + n)));
            seen.gaps.push((s, n, reason));
        } else {
            assert_eq!(records.len() as u64, n);
            for (seq, record) in (s..).zip(&records) {
                let label = record.header("edge.seq").unwrap();
                assert_eq!(label, seq.to_string().as_bytes(), "as the cloud is told");
                // What follows a space makes it long.
                let text = String::from_utf8_lossy(record.value.as_ref().unwrap()).into_owned();
                let text = text.split(' ').next().unwrap().to_owned();
                if record.header("historical").is_some() {
                    seen.late.push(text.clone());
                }
                seen.epochs.entry(epoch).or_default().push(text.clone());
                seen.records.push(text);
            }
            seen.batches += 1;
        }
        seen.next.insert(epoch, s + n);
    }
    ack
}

struct Edge {
    opened: Opened,
    status: Arc<Status>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), Error>>,
}

impl Edge {
    fn start(dir: &Path, cloud: SocketAddr) -> Self {
        let settings = Settings { window_batches: 4, ..Settings::default() };
        Self::start_with(dir, cloud, settings, lane::Settings::default())
    }

    fn start_with(dir: &Path, cloud: SocketAddr, settings: Settings, lane: lane::Settings) -> Self {
        let settings = Settings { ack_timeout_ms: 300, ..settings };
        Self::start_dialling(dir, cloud, settings, lane, Batches)
    }

    fn start_dialling<D: Dial + Sync>(
        dir: &Path,
        cloud: SocketAddr,
        settings: Settings,
        lane: lane::Settings,
        dial: impl FnOnce(Caller) -> D,
    ) -> Self {
        let store = store::Settings { ballast_bytes: 0, ..store::Settings::default() };
        Self::start_on(dir, cloud, (settings, lane), store, dial)
    }

    fn start_on<D: Dial + Sync>(
        dir: &Path,
        cloud: SocketAddr,
        (settings, lane): (Settings, lane::Settings),
        store: store::Settings,
        dial: impl FnOnce(Caller) -> D,
    ) -> Self {
        let status = Arc::new(Status::default());
        let plan = Plan {
            dir: dir.to_owned(),
            edge_id: "gw1".to_owned(),
            lanes: vec![lane],
            settings: store,
            after: After::Start,
        };
        let opened = store::open(&plan, &status).unwrap();
        let settings = Settings { backoff_min_ms: 1, backoff_max_ms: 20, ..settings };
        let stop = CancellationToken::new();
        let part = Part {
            store: opened.store.clone(),
            lane: opened.store.lanes()[0].clone(),
            share: Share::new(settings.bytes_per_s).lane(),
        };
        let uplink = Uplink::new(
            part,
            dial(Caller {
                address: Address::parse(&format!("mqtt://{cloud}")).unwrap(),
                identity: crate::enrol::Identity::new(&crate::config::Config::default()),
                edge_id: "gw1".to_owned(),
                lane: "normal".to_owned(),
                status: Arc::default(),
                connect_timeout: Duration::from_secs(10),
                keep_alive: Duration::from_secs(30),
                login: None,
            }),
            settings,
            stop.clone(),
        );
        let task = tokio::spawn(uplink.run());
        Self { opened, status, stop, task }
    }

    /// One commit of `count` messages; their payloads are numbers from `from` on.
    async fn publish(&mut self, from: usize, count: usize) {
        self.publish_long(from, count, 0).await;
    }

    /// The same, each so many bytes longer, which do not compress.
    async fn publish_long(&mut self, from: usize, count: usize, bytes: usize) {
        let changes = (from..from + count).map(|i| Self::change(i, bytes)).collect();
        let ticket = self.opened.journal.apply(changes).await.unwrap();
        let mut progress = self.opened.store.progress();
        progress.wait_for(|progress| progress.committed >= ticket).await.unwrap();
    }

    fn change(i: usize, bytes: usize) -> Change {
        Change::Message {
            message: Arc::new(Message {
                topic: "a/b".into(),
                payload: Bytes::from(i.to_string() + &noise(i, bytes)),
                qos: Qos::AtLeastOnce,
                retain: false,
                properties: PublishProperties::default(),
                publisher: None,
                received_ms: 1_700_000_000_000,
                expires_ms: None,
                encoded: Encoded::default(),
                place: None,
            }),
            queued: Vec::new(),
            stored: None,
        }
    }

    /// Until the cloud has confirmed everything.
    async fn drained(&self) {
        let mut progress = self.opened.store.progress();
        let lane = self.status.lane("normal");
        let drained = async {
            while lane.batches.get() > 0 {
                progress.changed().await.unwrap();
            }
        };
        let drained = timeout(Duration::from_mins(1), drained).await;
        assert!(drained.is_ok(), "not everything is confirmed: {lane:?}");
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
        self.opened.store.stop().await;
        drop((self.opened.store, self.opened.journal));
        for thread in self.opened.threads {
            thread.join().unwrap();
        }
    }
}

/// So many bytes of text that does not compress, after a space; or nothing.
fn noise(seed: usize, bytes: usize) -> String {
    let mut state = seed as u64;
    let letter = |_| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b'!' + (state >> 56) as u8 % 90)
    };
    if bytes == 0 {
        String::new()
    } else {
        format!(" {}", (0..bytes).map(letter).collect::<String>())
    }
}

fn numbers(count: usize) -> Vec<String> {
    (0..count).map(|i| i.to_string()).collect()
}

async fn setup(act: impl FnMut(usize, &Publish) -> Act + Send + 'static) -> (TempDir, Cloud, Edge) {
    let dir = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(true, act).await;
    let edge = Edge::start(dir.path(), cloud.address);
    (dir, cloud, edge)
}
