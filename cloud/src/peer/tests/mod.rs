//! Two nodes' parts over loopback.

mod reading;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, duplex},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{hand::Reached, *};
use crate::{
    cluster::{Addresses, Leader, NodeId, View},
    engine::{ShardId, memory::MemoryEngine},
    log::{self, Lease, Log},
};

const SHARD: ShardId = ShardId(0);

fn node(id: i32, peer: &str) -> Arc<Node> {
    let addresses = Addresses { peer: peer.to_owned(), ..Addresses::default() };
    Arc::new(Node { id: NodeId(id), name: format!("n{id}"), addresses })
}

/// As node 1 sees it: node 2 at `peer`, and who owns the one shard.
fn view(peer: &str, owner: Option<i32>) -> Arc<View> {
    let nodes = [node(1, "127.0.0.1:1"), node(2, peer)];
    let owner = owner.map(NodeId);
    // What the map may say of itself besides is nothing to this module.
    let mut view = View::clone(&Cluster::alone(Addresses::default(), 1).view());
    view.nodes = nodes.into_iter().map(|node| (node.id, node)).collect::<BTreeMap<_, _>>();
    view.shards = vec![Leader { owner, epoch: 1 }];
    Arc::new(view)
}

fn cluster(view: Arc<View>) -> (Cluster, watch::Sender<Arc<View>>) {
    let (sender, receiver) = watch::channel(view);
    (Cluster::new(receiver), sender)
}

/// Of a node that owns nothing.
async fn log() -> Log {
    let (cluster, _) = cluster(view("", None));
    let owners = Owners::new(Peers::open(&Settings::default(), cluster).unwrap());
    let engine = Arc::new(MemoryEngine::new(1));
    Log::join(engine, log::Settings::default(), Arc::new(owners), Lease::forever())
}

fn secret(text: &str) -> (tempfile::NamedTempFile, Settings) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let secret = file.path().to_str().unwrap().to_owned();
    (file, Settings { secret, ..Settings::default() })
}

fn handing(
    peers: Peers,
    log: Log,
    mut inside: tokio::io::DuplexStream,
    said: (&'static [u8], &'static [u8]),
    stop: CancellationToken,
) -> JoinHandle<HandedOn> {
    tokio::spawn(
        async move { peers.hand_on(&log, SHARD, &client(), &mut inside, said, &stop).await },
    )
}

/// A node that answers MQTT with what it got, and notes the headers.
struct Far {
    address: SocketAddr,
    headers: Arc<Mutex<Vec<Header>>>,
    counters: Arc<Counters>,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

impl Far {
    async fn start(settings: &Settings) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let peers = Peers::open(settings, cluster(view("", None)).0).unwrap();
        let (headers, counters) = (Arc::<Mutex<Vec<Header>>>::default(), peers.counters.clone());
        let noted = headers.clone();
        let heads = Heads::default().with(Protocol::Mqtt, move |mut stream, header, admitted| {
            noted.lock().unwrap().push(header);
            async move {
                let mut bytes = [0; 64];
                while let Ok(read @ 1..) = stream.read(&mut bytes).await {
                    if stream.write_all(&bytes[..read]).await.is_err() {
                        break;
                    }
                    stream.flush().await.unwrap();
                }
                drop(admitted);
            }
        });
        let stop = CancellationToken::new();
        let serving = tokio::spawn(serve(listener, peers, heads, 64, stop.clone()));
        Self { address, headers, counters, stop, serving }
    }

    async fn end(self) {
        self.stop.cancel();
        self.serving.await.unwrap();
    }

    fn refused(&self) -> u64 {
        self.counters.refused.load(Ordering::Relaxed)
    }
}

fn client() -> Header {
    Header {
        protocol: Protocol::Mqtt,
        address: Some("192.0.2.7:4711".parse().unwrap()),
        certificate: Some(vec![0x30; 900]),
    }
}

async fn echo(stream: &mut (impl Io + ?Sized), word: &[u8]) -> io::Result<()> {
    stream.write_all(word).await?;
    stream.flush().await?;
    let mut answer = vec![0; word.len()];
    stream.read_exact(&mut answer).await?;
    assert_eq!(answer, word);
    Ok(())
}

#[tokio::test]
async fn nodes_that_share_a_secret_hand_clients_on_with_who_they_are() {
    let (_file, settings) = secret("0123456789abcdef0123456789abcdef\n");
    let far = Far::start(&settings).await;
    let (cluster, _map) = cluster(view(&far.address.to_string(), Some(2)));
    let peers = Peers::open(&settings, cluster).unwrap();
    let (mut outside, inside) = duplex(64);
    let stop = CancellationToken::new();
    let until = stop.clone();
    let log = log().await;
    let splicing = handing(peers, log, inside, (b"first ", b""), until);
    let mut first = [0; 6];
    outside.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"first ");
    echo(&mut outside, b"then").await.unwrap();
    assert_eq!(*far.headers.lock().unwrap(), [client()]);
    stop.cancel();
    assert_eq!(splicing.await.unwrap(), HandedOn::Served);
    assert_eq!(outside.read(&mut first).await.unwrap(), 0);
    far.end().await;
}

#[tokio::test]
async fn another_secret_and_no_secret_are_refused() {
    let (_file, settings) = secret("0123456789abcdef0123456789abcdef");
    let (_other, others) = secret("0123456789abcdef0123456789abcdeX");
    let far = Far::start(&settings).await;
    let (cluster, _map) = cluster(view(&far.address.to_string(), Some(2)));
    let target = node(2, &far.address.to_string());
    let stranger = Peers::open(&others, cluster.clone()).unwrap();
    let error = stranger.connect(&target, &client()).await.err().unwrap().to_string();
    assert!(error.contains("n2") && error.contains("certificate"), "{error}");
    // A header that lies, without TLS, on a listener that asks for it.
    let plain = Peers::open(&Settings::default(), cluster).unwrap();
    let mut stream = plain.connect(&target, &client()).await.unwrap();
    assert!(echo(&mut stream, b"let me in").await.is_err());
    assert!(far.headers.lock().unwrap().is_empty());
    assert_eq!(far.refused(), 2);
    far.end().await;
}

#[tokio::test]
async fn certificates_of_a_common_authority_are_as_good_as_a_secret() {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let folder = tempfile::tempdir().unwrap();
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let root = authority.self_signed(&key).unwrap();
    let issuer = Issuer::new(authority, key);
    let own_key = KeyPair::generate().unwrap();
    let own = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let own = own.signed_by(&own_key, &issuer).unwrap();
    let file = |name: &str, text: String| {
        std::fs::write(folder.path().join(name), text).unwrap();
        folder.path().join(name).to_str().unwrap().to_owned()
    };
    let settings = Settings {
        certificate: file("n.pem", own.pem()),
        key: file("n.key", own_key.serialize_pem()),
        ca: file("ca.pem", root.pem()),
        ..Settings::default()
    };
    let far = Far::start(&settings).await;
    let peers = Peers::open(&settings, cluster(view("", None)).0).unwrap();
    let target = node(2, &far.address.to_string());
    let mut stream = peers.connect(&target, &client()).await.unwrap();
    echo(&mut stream, b"hello").await.unwrap();
    let half = Settings { key: String::new(), ..settings };
    assert!(Peers::open(&half, cluster(view("", None)).0).is_err());
    far.end().await;
}

#[tokio::test]
async fn a_secret_that_can_be_guessed_is_refused() {
    let (_file, short) = secret("short");
    let error = Peers::open(&short, cluster(view("", None)).0).err().unwrap().to_string();
    assert!(error.contains("openssl rand"), "{error}");
}

#[tokio::test]
async fn hostile_input_costs_a_refusal_and_others_are_served() {
    let far = Far::start(&Settings::default()).await;
    let good = client().encode().unwrap();
    let mut bad: Vec<Vec<u8>> = vec![
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        vec![0xFF; 4096],
        Header::own(Protocol::Kafka).encode().unwrap(),
        [&good[..14], &[0xFF, 0xFF]].concat(),
    ];
    // Cut short, and then closed.
    bad.extend([1, 15, 16, good.len() - 1].map(|end| good[..end].to_vec()));
    let count = bad.len() as u64;
    for bytes in bad {
        let mut stream = TcpStream::connect(far.address).await.unwrap();
        let _ = stream.write_all(&bytes).await;
        let _ = stream.shutdown().await;
        assert!(!matches!(stream.read(&mut [0]).await, Ok(1..)), "{bytes:?}");
    }
    assert_eq!(far.refused(), count);
    let peers = Peers::open(&Settings::default(), cluster(view("", None)).0).unwrap();
    let target = node(2, &far.address.to_string());
    let mut stream = peers.connect(&target, &client()).await.unwrap();
    echo(&mut stream, b"still there").await.unwrap();
    drop(stream);
    far.end().await;
}

#[tokio::test]
async fn a_client_is_let_go_when_its_shard_moves() {
    let far = Far::start(&Settings::default()).await;
    let at = far.address.to_string();
    let (cluster, map) = cluster(view(&at, Some(2)));
    let peers = Peers::open(&Settings::default(), cluster).unwrap();
    let (mut outside, inside) = duplex(64);
    let splicing =
        handing(peers.clone(), log().await, inside, (b"", b""), CancellationToken::new());
    echo(&mut outside, b"served").await.unwrap();
    map.send_replace(view(&at, Some(1)));
    assert_eq!(splicing.await.unwrap(), HandedOn::Served);
    assert_eq!(outside.read(&mut [0]).await.unwrap(), 0);
    let here = log().await;
    here.take(SHARD).await.unwrap();
    assert!(matches!(peers.reach(&here, SHARD, &client(), Instant::now()).await, Reached::Here));
    far.end().await;
}

#[tokio::test]
async fn a_client_that_an_owner_gives_back_is_served_by_the_next_and_hears_nothing_of_it() {
    // It accepts, and closes without a word: the shard is not there any more.
    let old = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let far = Far::start(&Settings::default()).await;
    let (cluster, map) = cluster(view(&old.local_addr().unwrap().to_string(), Some(2)));
    let peers = Peers::open(&Settings::default(), cluster).unwrap();
    let (mut outside, inside) = duplex(64);
    let handing =
        handing(peers, log().await, inside, (b"first ", b"rest "), CancellationToken::new());
    let (mut given, _) = old.accept().await.unwrap();
    let mut bytes = vec![0; 64];
    while !bytes.ends_with(b"first ") {
        let read = given.read_buf(&mut bytes).await.unwrap();
        assert!(read > 0);
    }
    // What must be said once is not said to who has not answered.
    let more = timeout(Duration::from_millis(50), given.read_buf(&mut bytes)).await;
    assert!(more.is_err(), "{bytes:?}");
    drop(given);
    map.send_replace(view(&far.address.to_string(), Some(3)));
    let other = node(3, &far.address.to_string());
    map.send_modify(|view| {
        let mut next = View::clone(view);
        next.nodes.insert(NodeId(3), other);
        *view = Arc::new(next);
    });
    let mut echoed = [0; 11];
    outside.read_exact(&mut echoed).await.unwrap();
    assert_eq!(&echoed, b"first rest ");
    echo(&mut outside, b"then").await.unwrap();
    drop(outside);
    assert_eq!(handing.await.unwrap(), HandedOn::Served);
    far.end().await;
}

#[tokio::test]
async fn a_client_waits_for_an_owner_to_appear() {
    let far = Far::start(&Settings::default()).await;
    let (cluster, map) = cluster(view(&far.address.to_string(), None));
    let peers = Peers::open(&Settings::default(), cluster).unwrap();
    let (log, header) = (log().await, client());
    let reaching = peers.reach(&log, SHARD, &header, Instant::now() + Duration::from_secs(8));
    tokio::pin!(reaching);
    tokio::select! {
        biased;
        _ = &mut reaching => panic!("nobody is there"),
        () = tokio::task::yield_now() => {}
    }
    map.send_replace(view(&far.address.to_string(), Some(2)));
    assert!(matches!(reaching.await, Reached::There(_)));
    far.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_shard_nobody_serves_is_refused_in_bounded_time() {
    let (cluster, map) = cluster(view("", None));
    let peers = Peers::open(&Settings::default(), cluster).unwrap();
    let began = Instant::now();
    let handing = || async {
        let (_outside, mut inside) = duplex(64);
        let (log, stop) = (log().await, CancellationToken::new());
        peers.hand_on(&log, SHARD, &client(), &mut inside, (b"first", b""), &stop).await
    };
    assert_eq!(handing().await, HandedOn::Nobody);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    drop(map);
    assert_eq!(handing().await, HandedOn::Nobody);
}

#[tokio::test(start_paused = true)]
async fn a_client_handed_to_a_node_that_no_longer_owns_its_shard_is_sent_back_soon() {
    let (cluster, map) = cluster(view("", Some(1)));
    let peers = Peers::open(&Settings::default(), cluster).unwrap();
    let (log, stop, began) = (log().await, CancellationToken::new(), Instant::now());
    let asking = peers.is_here(&log, SHARD, &stop);
    tokio::pin!(asking);
    // It is this node's, and opening: worth waiting for.
    assert!(tokio::time::timeout(Duration::from_secs(2), &mut asking).await.is_err());
    map.send_replace(view("", Some(2)));
    assert!(!asking.await);
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    // A map that is a little behind the other node's.
    let began = Instant::now();
    let asking = peers.is_here(&log, SHARD, &stop);
    let moving = async {
        map.send_replace(view("", Some(1)));
        log.take(SHARD).await.unwrap();
    };
    assert!(tokio::join!(asking, moving).0);
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_node_that_says_nothing_is_given_up_by_its_name() {
    let (_file, settings) = secret("0123456789abcdef0123456789abcdef");
    // The system accepts for it; nobody ever answers.
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peers = Peers::open(&settings, cluster(view("", None)).0).unwrap();
    let target = node(2, &mute.local_addr().unwrap().to_string());
    let error = peers.connect(&target, &client()).await.err().unwrap();
    assert!(matches!(error, Unreachable::Late(..)), "{error}");
    assert!(error.to_string().contains("n2"), "{error}");
}
