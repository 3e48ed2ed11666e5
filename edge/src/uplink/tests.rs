//! The uplink against a scripted cloud that follows the rule of epochs and sequences, and misbehaves on purpose.

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
        packet::{Ack, ConnAck, ConnAckProperties, Publish, PublishProperties},
        write::{Encoded, write},
    },
    record::Batch,
    session::action::Change,
};

use super::*;
use crate::{
    lane,
    link::{Address, Batches, Caller},
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
        let seen = Arc::new(Mutex::new(Seen::default()));
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
                        let what = act(count, &publish);
                        count += 1;
                        let answer = match what {
                            Act::CutBefore => break 'connection,
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

fn connack(seen: &Seen, names_epochs: bool) -> Packet {
    let expect = seen.next.iter().filter(|_| names_epochs);
    let user_properties =
        expect.map(|(e, n)| ("expect".into(), format!("{e}:{n}").into())).collect();
    let properties = ConnAckProperties {
        receive_maximum: Some(8),
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
            let text = |r: &tributary_shared::record::Record| {
                String::from_utf8_lossy(r.value.as_ref().unwrap()).into_owned()
            };
            seen.records.extend(records.iter().map(text));
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
        Self::start_with(dir, cloud, Settings::default(), lane::Settings::default())
    }

    fn start_with(dir: &Path, cloud: SocketAddr, settings: Settings, lane: lane::Settings) -> Self {
        let status = Arc::new(Status::default());
        let plan = Plan {
            dir: dir.to_owned(),
            edge_id: "gw1".to_owned(),
            lanes: vec![lane],
            settings: store::Settings { ballast_bytes: 0, ..store::Settings::default() },
            after: After::Start,
        };
        let opened = store::open(&plan, &status).unwrap();
        let settings = Settings {
            ack_timeout_ms: 300,
            backoff_min_ms: 1,
            backoff_max_ms: 20,
            window_batches: 4,
            ..settings
        };
        let stop = CancellationToken::new();
        let part = Part {
            store: opened.store.clone(),
            lane: opened.store.lanes()[0].clone(),
            share: Share::new(settings.bytes_per_s).lane(),
        };
        let uplink = Uplink::new(
            part,
            Batches(Caller {
                address: Address::parse(&format!("mqtt://{cloud}")).unwrap(),
                identity: crate::enrol::Identity::new(&crate::config::Config::default()),
                edge_id: "gw1".to_owned(),
                lane: "normal".to_owned(),
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
        let change = |i: usize| Change::Message {
            message: Arc::new(Message {
                topic: "a/b".into(),
                payload: Bytes::from(i.to_string()),
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
        };
        let changes = (from..from + count).map(change).collect();
        let ticket = self.opened.journal.apply(changes).await.unwrap();
        let mut progress = self.opened.store.progress();
        progress.wait_for(|progress| progress.committed >= ticket).await.unwrap();
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
        let drained = timeout(Duration::from_secs(5), drained).await;
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

fn numbers(count: usize) -> Vec<String> {
    (0..count).map(|i| i.to_string()).collect()
}

async fn setup(act: impl FnMut(usize, &Publish) -> Act + Send + 'static) -> (TempDir, Cloud, Edge) {
    let dir = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(true, act).await;
    let edge = Edge::start(dir.path(), cloud.address);
    (dir, cloud, edge)
}

#[tokio::test]
async fn every_record_arrives_once_and_in_order_through_cuts_on_both_sides_of_the_commit() {
    for seed in 0..6_usize {
        let (_dir, cloud, mut edge) = setup(move |n, _| match (n * 7 + seed * 13) % 11 {
            0 => Act::CutAfter,
            4 => Act::CutBefore,
            _ => Act::Follow,
        })
        .await;
        for commit in 0..60 {
            edge.publish(commit * 3, 3).await;
        }
        edge.drained().await;
        edge.stop().await;
        let seen = cloud.seen.lock().unwrap();
        assert_eq!(seen.records, numbers(180), "seed {seed}");
        // The first of the first seed is cut; what others have depends on how rows were merged.
        assert!(seen.gaps.is_empty() && (seed > 0 || seen.connects.len() > 1));
        let (id, user) = &seen.connects[0];
        assert_eq!(id, "gw1.up.normal");
        let user: Vec<_> = user.iter().map(|(k, v)| (&**k, &**v)).collect();
        assert_eq!(user, [("tributary-edge", "gw1"), ("tributary-lane", "normal")]);
    }
}

#[tokio::test]
async fn a_cloud_that_names_no_epochs_gets_duplicates_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let act = |n: usize, _: &Publish| if n % 5 == 3 { Act::CutAfter } else { Act::Follow };
    let cloud = Cloud::start(false, act).await;
    let mut edge = Edge::start(dir.path(), cloud.address);
    for i in 0..30 {
        edge.publish(i, 1).await;
    }
    edge.drained().await;
    edge.stop().await;
    let seen = cloud.seen.lock().unwrap();
    assert_eq!(seen.records, numbers(30));
    assert!(seen.duplicates > 0);
}

#[tokio::test]
async fn an_edge_that_lost_its_mark_resumes_where_the_cloud_expects() {
    let dir = tempfile::tempdir().unwrap();
    let copy = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(true, |_, _| Act::Follow).await;
    let nobody = "127.0.0.1:1".parse().unwrap();
    let mut edge = Edge::start(dir.path(), nobody);
    for i in 0..10 {
        edge.publish(i, 1).await;
    }
    edge.stop().await;
    std::fs::copy(dir.path().join("edge.db"), copy.path().join("edge.db")).unwrap();
    let edge = Edge::start(dir.path(), cloud.address);
    edge.drained().await;
    edge.stop().await;
    // The same card, as it was before any of it was confirmed.
    let mut edge = Edge::start(copy.path(), cloud.address);
    edge.drained().await;
    edge.publish(10, 1).await;
    edge.drained().await;
    edge.stop().await;
    let seen = cloud.seen.lock().unwrap();
    assert_eq!(seen.records, numbers(11));
    assert_eq!((seen.duplicates, seen.next.len()), (0, 2), "nothing was sent twice, two epochs");
}

#[tokio::test]
async fn a_cloud_that_lacks_a_batch_gets_it_again_before_anything_else() {
    // The third publish is acknowledged as not understood; what follows it is a gap to the cloud.
    let (_dir, cloud, mut edge) =
        setup(|n, _| if n == 2 { Act::Say(0x80) } else { Act::Follow }).await;
    for i in 0..12 {
        edge.publish(i, 1).await;
    }
    edge.drained().await;
    edge.stop().await;
    let seen = cloud.seen.lock().unwrap();
    assert_eq!(seen.records, numbers(12));
    assert!(seen.gaps.is_empty());
}

#[tokio::test]
async fn an_answer_that_never_comes_ends_the_connection_not_the_lane() {
    let (_dir, cloud, mut edge) =
        setup(|n, _| if n == 1 { Act::Silent } else { Act::Follow }).await;
    for i in 0..6 {
        edge.publish(i, 1).await;
    }
    edge.drained().await;
    edge.stop().await;
    let seen = cloud.seen.lock().unwrap();
    assert_eq!(seen.records, numbers(6));
    assert_eq!(seen.connects.len(), 2);
}

#[tokio::test]
async fn a_large_batch_on_a_slow_line_has_the_time_it_takes() {
    // Three times what an answer may take; at 1 KiB a second the batch alone takes longer.
    let late = |_: usize, publish: &Publish| {
        assert!(publish.payload.len() > 2 * 1024, "{}", publish.payload.len());
        Act::Late(1_000)
    };
    let (_dir, cloud, mut edge) = setup(late).await;
    edge.publish(0, 2000).await;
    edge.drained().await;
    edge.stop().await;
    let seen = cloud.seen.lock().unwrap();
    assert_eq!(seen.records, numbers(2000));
    assert_eq!((seen.connects.len(), seen.batches, seen.duplicates), (1, 1, 0));
}

/// Refuses every batch that holds one of these payloads.
fn refuse(code: u8, poison: &'static [&'static str]) -> impl FnMut(usize, &Publish) -> Act {
    move |_, publish| {
        let user = &publish.properties.user_properties;
        let batch = Batch::parse(publish.payload.clone()).unwrap();
        let holds = |r: &tributary_shared::record::Record| {
            poison.iter().any(|p| r.value.as_deref() == Some(p.as_bytes()))
        };
        let bad = !user.iter().any(|(k, _)| k == "gap")
            && batch.records(1 << 20).unwrap().iter().any(holds);
        if bad { Act::Say(code) } else { Act::Follow }
    }
}

#[tokio::test]
async fn a_message_refused_for_good_is_given_up_alone_and_all_others_arrive_once_and_in_order() {
    // rumqttc cannot read 0x95, 0x9B and 0xF7 in a PUBACK: the connection breaks, and still it is understood.
    for code in [0x99, 0x95, 0x9B, 0xF7] {
        let (dir, cloud, mut edge) = setup(refuse(code, &["40", "41", "99", "302"])).await;
        edge.publish(0, 2).await;
        edge.publish(2, 300).await;
        edge.publish(302, 1).await;
        edge.publish(303, 50).await;
        edge.drained().await;
        edge.publish(353, 1).await;
        edge.drained().await;
        let given_up = edge.status.lane("normal").given_up.get();
        edge.stop().await;
        let seen = cloud.seen.lock().unwrap();
        let mut good = numbers(354);
        good.retain(|text| !["40", "41", "99", "302"].contains(&&**text));
        assert_eq!(seen.records, good, "{code:#x}");
        let reason = format!("refused by the cloud: {code:#04x}");
        let gaps = [40, 41, 99, 302].map(|s| (s, 1, reason.clone()));
        assert_eq!((&seen.gaps[..], given_up), (&gaps[..], 4), "{code:#x}");
        let db = rusqlite::Connection::open(dir.path().join("edge.db")).unwrap();
        let kept: i64 =
            db.query_row("SELECT count(*) FROM quarantine", [], |row| row.get(0)).unwrap();
        assert_eq!(kept, 4);
        assert_eq!(seen.connects.len() == 1, code == 0x99, "{code:#x}");
    }
}

#[tokio::test]
async fn an_edge_that_is_refused_whole_gives_nothing_up() {
    // 0x90: our own topic, the same for every batch.
    for code in [0x80, 0x83, 0x87, 0x97, 0x90] {
        let allowed = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (asked, mut ask) = tokio::sync::mpsc::channel(1000);
        let open = allowed.clone();
        let (_dir, cloud, mut edge) = setup(move |_, _| {
            asked.try_send(()).unwrap();
            if open.load(Relaxed) { Act::Follow } else { Act::Say(code) }
        })
        .await;
        edge.publish(0, 20).await;
        for _ in 0..6 {
            ask.recv().await.unwrap();
        }
        let lane = edge.status.lane("normal");
        assert_eq!((lane.messages.get(), lane.given_up.get()), (20, 0), "{code:#x}");
        allowed.store(true, Relaxed);
        edge.drained().await;
        edge.stop().await;
        let seen = cloud.seen.lock().unwrap();
        assert_eq!((seen.records.clone(), seen.gaps.len()), (numbers(20), 0), "{code:#x}");
    }
}

#[tokio::test]
async fn a_topic_refused_after_the_lane_was_taken_is_about_the_batch() {
    let (_dir, cloud, mut edge) = setup(refuse(0x90, &["5"])).await;
    edge.publish(0, 3).await;
    edge.drained().await;
    edge.publish(3, 7).await;
    edge.drained().await;
    edge.stop().await;
    let seen = cloud.seen.lock().unwrap();
    assert_eq!(seen.records.len(), 9);
    assert_eq!(seen.gaps, [(5, 1, "refused by the cloud: 0x90".to_owned())]);
}

#[tokio::test]
async fn a_cloud_that_refuses_everything_does_not_empty_an_edge() {
    let dir = tempfile::tempdir().unwrap();
    let (asked, mut ask) = tokio::sync::mpsc::channel(1000);
    let cloud = Cloud::start(true, move |_, publish| {
        asked.try_send(()).unwrap();
        let gap = publish.properties.user_properties.iter().any(|(k, _)| k == "gap");
        if gap { Act::Follow } else { Act::Say(0x99) }
    })
    .await;
    let settings = Settings { give_ups_per_hour: 5, ..Settings::default() };
    let lane = lane::Settings::default();
    let mut edge = Edge::start_with(dir.path(), cloud.address, settings, lane);
    edge.publish(0, 64).await;
    // Searching: 5 gaps, and the sixth single message that is refused is the last thing that is sent.
    while cloud.seen.lock().unwrap().gaps.len() < 5 {
        ask.recv().await.unwrap();
    }
    ask.recv().await.unwrap();
    let lane = edge.status.lane("normal");
    assert_eq!((lane.given_up.get(), lane.messages.get()), (5, 59));
    edge.stop().await;
}

#[tokio::test]
async fn a_hole_that_nobody_can_fill_is_declared() {
    let dir = tempfile::tempdir().unwrap();
    let mut edge = Edge::start(dir.path(), "127.0.0.1:1".parse().unwrap());
    for i in 0..5 {
        edge.publish(i * 2, 2).await;
    }
    edge.stop().await;
    let db = rusqlite::Connection::open(dir.path().join("edge.db")).unwrap();
    db.execute("DELETE FROM batch WHERE s IN (0, 4)", []).unwrap();
    drop(db);
    let cloud = Cloud::start(true, |_, _| Act::Follow).await;
    let edge = Edge::start(dir.path(), cloud.address);
    edge.drained().await;
    edge.stop().await;
    let seen = cloud.seen.lock().unwrap();
    assert_eq!(seen.records, ["2", "3", "6", "7", "8", "9"]);
    let gaps: Vec<_> = seen.gaps.iter().map(|(s, n, why)| (*s, *n, &**why)).collect();
    assert_eq!(gaps, [(0, 2, "missing"), (4, 2, "missing")]);
}

#[tokio::test]
async fn a_backlog_of_single_messages_travels_in_few_batches() {
    let dir = tempfile::tempdir().unwrap();
    let mut edge = Edge::start(dir.path(), "127.0.0.1:1".parse().unwrap());
    for i in 0..300 {
        edge.publish(i, 1).await;
    }
    edge.stop().await;
    let cloud = Cloud::start(true, |n, _| if n == 6 { Act::CutAfter } else { Act::Follow }).await;
    let edge = Edge::start(dir.path(), cloud.address);
    edge.drained().await;
    edge.stop().await;
    let seen = cloud.seen.lock().unwrap();
    assert_eq!(seen.records, numbers(300));
    assert!(seen.batches < 60, "{}", seen.batches);
}
