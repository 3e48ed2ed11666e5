//! A node that owns nothing beside one that owns everything: streams, reads and followers.

use bytes::Bytes;
use tributary_shared::record::{Batch, BatchBuilder, Compression, Record};

use super::*;
use crate::{
    engine::memory::MemoryEngine,
    enrol::{self, Enrol},
    group::{self, Groups},
    kafka,
    log::{Guard, Lease, Log, LogError, PartitionId, Remote as _, StreamConfig, testing::test_log},
    peer::{follow, pages},
    status::Status,
};

const SHARDS: u16 = 2;

/// The owner, and the other node's log.
struct Two {
    far: Log,
    near: Log,
    far_enrol: Enrol,
    near_enrol: Enrol,
    owners: Owners,
    map: watch::Sender<Arc<View>>,
    stop: CancellationToken,
}

impl Drop for Two {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn owned_by(owner: i32, peer: &str) -> Arc<View> {
    let mut view = View::clone(&view("", None));
    view.me = NodeId(2);
    view.nodes.insert(NodeId(1), node(1, peer));
    view.shards = vec![Leader { owner: Some(NodeId(owner)), epoch: 1 }; usize::from(SHARDS)];
    Arc::new(view)
}

impl Two {
    async fn start() -> Self {
        let stop = CancellationToken::new();
        let far = test_log(SHARDS).await.unwrap();
        let alone = Cluster::alone(Addresses::default(), SHARDS);
        let groups = Groups::open(far.clone(), group::Settings::default(), stop.clone());
        let status = Status::default();
        let kafka = kafka::Head::open(
            kafka::Settings::default(),
            far.clone(),
            groups,
            alone.clone(),
            &status,
            stop.clone(),
        );
        let kafka = kafka.await.unwrap();
        let heads = Heads::default().with(Protocol::Kafka, move |stream, _, admitted| {
            let kafka = kafka.clone();
            async move {
                kafka.serve_stream(stream, "peer".to_owned()).await;
                drop(admitted);
            }
        });
        let far_enrol = Enrol::open(far.clone(), enrol::Settings::default()).await.unwrap();
        let (heads, pages) = pages::open(heads, far.clone(), far_enrol.clone(), stop.clone());
        tokio::spawn(pages);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let peers = Peers::open(&Settings::default(), alone).unwrap();
        tokio::spawn(serve(listener, peers, heads, 64, stop.clone()));

        let (cluster, map) = cluster(owned_by(1, &address));
        let peers = Peers::open(&Settings::default(), cluster).unwrap();
        let owners = Owners::new(peers.clone());
        let engine = Arc::new(MemoryEngine::new(SHARDS));
        let settings = crate::log::Settings::default();
        let near = Log::join(engine, settings, Arc::new(owners.clone()), Lease::forever());
        let near_enrol = Enrol::open(near.clone(), enrol::Settings::default()).await.unwrap();
        tokio::spawn(follow::run(peers, near.clone(), near_enrol.clone(), stop.clone()));
        Self { far, near, far_enrol, near_enrol, owners, map, stop }
    }
}

fn batch(values: &[&str]) -> Batch {
    let mut builder = BatchBuilder::new();
    for value in values {
        let value = Some(Bytes::copy_from_slice(value.as_bytes()));
        builder.push(&Record { key: None, value, timestamp_ms: 1_000, headers: Vec::new() });
    }
    builder.finish(Compression::None, None).unwrap()
}

fn values(batches: &[Batch]) -> Vec<String> {
    let records = batches.iter().flat_map(|batch| batch.records(1 << 20).unwrap());
    records.map(|record| String::from_utf8(record.value.unwrap().to_vec()).unwrap()).collect()
}

#[tokio::test]
async fn streams_made_on_any_node_are_made_by_the_owner_and_known_to_all() {
    let two = Two::start().await;
    let made = two.near.create_stream("s", Some(2), StreamConfig::default()).await.unwrap();
    assert_eq!(two.far.stream("s").unwrap().id, made.id);
    let again = two.near.create_stream("s", Some(2), StreamConfig::default()).await;
    assert!(matches!(again, Err(LogError::StreamExists(name)) if name == "s"));
    two.near.grow_stream("s", 3).await.unwrap();
    assert_eq!(two.far.stream("s").unwrap().partitions, 3);
    let bad = two.near.create_stream("no name", None, StreamConfig::default()).await;
    assert!(matches!(bad, Err(LogError::BadStreamName(_))));
    two.near.delete_stream("s").await.unwrap();
    assert!(two.far.stream("s").is_none());
    let missing = two.near.delete_stream("s").await;
    assert!(matches!(missing, Err(LogError::StreamNotFound(_))));
}

#[tokio::test]
async fn an_edge_that_is_denied_is_denied_at_every_node() {
    let two = Two::start().await;
    two.far_enrol.deny("gw1").await.unwrap();
    two.near_enrol.denial("gw1", "").await;
    two.far_enrol.allow("gw1").await.unwrap();
    two.far_enrol.deny("gw2").await.unwrap();
    two.near_enrol.denial("gw2", "").await;
    assert!(!two.near_enrol.is_denied("gw1", ""));
}

#[tokio::test]
async fn a_follower_hears_of_records_elsewhere_and_reads_them() {
    let two = Two::start().await;
    let stream = two.near.create_stream("s", Some(2), StreamConfig::default()).await.unwrap();
    let partition = PartitionId::new(stream.id, 1);
    let mut follower = two.near.follow();
    for round in 0..3 {
        let value = format!("v{round}");
        two.far.append(partition, batch(&[&value, "x"]), Guard::None).await.unwrap();
        loop {
            let moved = follower.next().await.unwrap();
            let high = two.near.watermarks_anywhere(partition).map_or(0, |marks| marks.high);
            if moved.contains(&partition) && high == 2 * (round + 1) {
                break;
            }
        }
        let read = two.near.read_anywhere(partition, 2 * round, 1 << 20).await.unwrap();
        assert_eq!(values(&read), [value.as_str(), "x"]);
    }
    // What came before anybody followed is read from the owner.
    let all = two.near.read_anywhere(partition, 0, 1 << 20).await.unwrap();
    assert_eq!(values(&all).len(), 6);
}

#[tokio::test]
async fn what_an_owner_refuses_is_told_as_it_is() {
    let two = Two::start().await;
    let stream = two.near.create_stream("s", Some(1), StreamConfig::default()).await.unwrap();
    let partition = PartitionId::new(stream.id, 0);
    two.far.append(partition, batch(&["a", "b"]), Guard::None).await.unwrap();
    two.far.trim(partition, 1).await.unwrap();
    let (far, _) = two.near.elsewhere().pop().unwrap();
    for asked in [0, 7] {
        let error = two.owners.read(&far, asked, 1 << 20).await.unwrap_err();
        assert!(matches!(error, LogError::OffsetOutOfRange { start: 1, high: 2, .. }), "{error}");
    }
    let heard = two.owners.read(&far, 2, 1 << 20).await.unwrap();
    assert!(heard.batches.is_empty() && heard.marks.high == 2);
    // The map names this node: there is nobody else to ask.
    two.map.send_replace(owned_by(2, ""));
    assert!(matches!(two.owners.read(&far, 0, 1).await, Err(LogError::NotOwner)));
}

#[tokio::test]
async fn many_reads_at_once_share_one_connection_and_each_gets_its_own_answer() {
    let two = Two::start().await;
    let stream = two.near.create_stream("s", Some(1), StreamConfig::default()).await.unwrap();
    let partition = PartitionId::new(stream.id, 0);
    for n in 0..50 {
        two.far.append(partition, batch(&[&n.to_string()]), Guard::None).await.unwrap();
    }
    let (far, _) = two.near.elsewhere().pop().unwrap();
    let reads = (0..50_i64).map(|n| two.owners.read(&far, n, 1));
    for (n, heard) in futures::future::join_all(reads).await.into_iter().enumerate() {
        assert_eq!(values(&heard.unwrap().batches), [n.to_string()]);
    }
}

#[tokio::test]
async fn an_owner_that_is_gone_fails_a_read_at_once_and_is_not_asked_again_and_again() {
    let two = Two::start().await;
    two.near.create_stream("s", Some(1), StreamConfig::default()).await.unwrap();
    let (far, _) = two.near.elsewhere().pop().unwrap();
    two.owners.read(&far, 0, 1).await.unwrap();
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    two.map.send_replace(owned_by(1, &nobody.to_string()));
    for _ in 0..100 {
        assert!(matches!(two.owners.read(&far, 0, 1).await, Err(LogError::NotOwner)));
    }
    let failed = two.owners.peers.counters.unreachable.load(Ordering::Relaxed);
    assert!(failed < 20, "{failed} attempts");
}

#[tokio::test]
async fn an_owner_that_accepts_and_is_mute_fails_a_read_in_bounded_time() {
    let two = Two::start().await;
    two.near.create_stream("s", Some(1), StreamConfig::default()).await.unwrap();
    let (far, _) = two.near.elsewhere().pop().unwrap();
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    two.map.send_replace(owned_by(1, &mute.local_addr().unwrap().to_string()));
    let began = Instant::now();
    assert!(matches!(two.owners.read(&far, 0, 1).await, Err(LogError::NotOwner)));
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}
