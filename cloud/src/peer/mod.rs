//! The way to the other nodes of the cluster, and their way in: one listener, existing protocols, mutual TLS.
//!
//! ```text
//! client -> a head's listener -> reach(shard) -> here: serve | there: PROXY v2 header + what the client sends -> owner's listen.peer
//! listen.peer: TLS -> header (`proxy`) -> by ALPN: the MQTT, AMQP, EST, Kafka or HTTP code, as if the client had come there
//! ```
//! A connection that came over `listen.peer` is served or refused, never handed on: so there are no loops, however the maps of
//! two nodes differ. Whoever is let in at `listen.peer` is believed what its header says.
//! In: the view of the cluster. Out: streams to owners, streams for heads. Change here: how nodes find and trust each other.
//! Not here: who owns what (`cluster`), what heads do with a stream.

mod accept;
mod ask;
pub mod follow;
mod hand;
mod owners;
pub mod pages;
mod proxy;
mod secure;
#[cfg(test)]
mod tests;
mod wire;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

pub use accept::{Heads, serve};
pub use hand::HandedOn;
pub use owners::Owners;
pub use proxy::{Bad, Header, Protocol};
use secure::Secure;

use crate::{
    cluster::{Cluster, Node},
    status::Status,
};

/// For a connection to another node, from SYN to the end of the TLS handshake.
const CONNECT: Duration = Duration::from_secs(2);

tributary_shared::settings! {
    /// Nodes among themselves: how they prove who they are, on `listen.peer`. Without a secret or certificates the nodes of a
    /// cluster reach each other on loopback only.
    pub struct Settings {
        /// File with a secret that all nodes of the cluster share, at least 32 bytes (`openssl rand -hex 32`). Keys for TLS are
        /// derived from it.
        pub secret: String = String::new(),
        /// PEM file: this node's certificate, for both ends of TLS, instead of `secret`. It must be good for the host that the other
        /// nodes are told.
        pub certificate: String = String::new(),
        /// PEM file: its private key.
        pub key: String = String::new(),
        /// PEM file: the authority that has signed all nodes' certificates, and nobody else's.
        pub ca: String = String::new(),
        /// Connections of other nodes at once; each client that is handed on is one.
        pub connections: usize = 20_000 => 16..,
    }
}

impl Settings {
    /// Whether peers have to prove who they are. If not, `listen.peer` may be on loopback only, whatever else is allowed, because
    /// whoever gets in can say to be any client.
    pub fn is_proved(&self) -> bool {
        !self.secret.is_empty() || !self.certificate.is_empty()
    }
}

/// Settings or files with which no peer can be trusted. One sentence each.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum PeerError {
    #[error("{file}: {why}")]
    File { file: String, why: String },
    #[error("`peer.secret` and `peer.certificate` are both set: use one way")]
    Both,
    #[error("`peer.certificate`, `peer.key` and `peer.ca` are needed together")]
    Some,
}

/// Why a node cannot be spoken to now.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Unreachable {
    #[error("node {0} has told no address for other nodes")]
    NoAddress(String),
    #[error("node {0} at {1} does not answer within 2 s")]
    Late(String, String),
    #[error("node {0} at {1} cannot be reached: {2}")]
    Io(String, String, io::Error),
    #[error(transparent)]
    Header(#[from] Bad),
}

/// Bytes both ways, whatever carries them.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A stream to or from another node.
pub type Stream = Box<dyn Io>;

/// The other nodes. Cheap to clone.
#[derive(Clone)]
pub struct Peers {
    cluster: Cluster,
    secure: Secure,
    counters: Arc<Counters>,
}

/// Since the start.
#[derive(Debug, Default)]
struct Counters {
    handed_on: AtomicU64,
    nobody: AtomicU64,
    given_back: AtomicU64,
    unreachable: AtomicU64,
    taken: AtomicU64,
    refused: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Peers {
    /// The nodes of `cluster`, trusted as the settings say.
    pub fn open(settings: &Settings, cluster: Cluster) -> Result<Self, PeerError> {
        let secure = Secure::open(settings)?;
        Ok(Self { cluster, secure, counters: Arc::default() })
    }

    /// Who there is.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// A connection to `node`; the header is sent, what it announces is to follow.
    pub async fn connect(&self, node: &Node, header: &Header) -> Result<Stream, Unreachable> {
        let bytes = header.encode()?;
        let address = &node.addresses.peer;
        let Some((host, _)) = address.rsplit_once(':') else {
            return Err(Unreachable::NoAddress(node.name.clone()));
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let opening = async {
            let stream = TcpStream::connect(address.as_str()).await?;
            stream.set_nodelay(true)?;
            let mut stream = self.secure.connect(stream, host).await?;
            stream.write_all(&bytes).await?;
            stream.flush().await?;
            Ok(stream)
        };
        let outcome = match timeout(CONNECT, opening).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => Unreachable::Io(node.name.clone(), address.clone(), error),
            Err(_) => Unreachable::Late(node.name.clone(), address.clone()),
        };
        count(&self.counters.unreachable);
        Err(outcome)
    }

    /// Puts the numbers on the metrics page.
    pub fn publish(&self, status: &Status) {
        let counters = self.counters.clone();
        status.add(move |page| {
            let Counters { handed_on, nobody, given_back, unreachable, taken, refused } = &*counters;
            for (name, help, counter) in [
                (
                    "tributary_peer_handed_on_total",
                    "Connections of clients handed on to another node",
                    handed_on,
                ),
                (
                    "tributary_peer_nobody_total",
                    "Connections of clients refused because no node served their shard in time",
                    nobody,
                ),
                (
                    "tributary_peer_given_back_total",
                    "Connections taken from other nodes and given back, since their shard was not here",
                    given_back,
                ),
                (
                    "tributary_peer_unreachable_total",
                    "Attempts to connect to another node that failed",
                    unreachable,
                ),
                ("tributary_peer_taken_total", "Connections taken from other nodes", taken),
                (
                    "tributary_peer_refused_total",
                    "Connections to the listener for other nodes that were refused",
                    refused,
                ),
            ] {
                page.counter(name, help, &[], counter.load(Ordering::Relaxed));
            }
        });
    }
}
