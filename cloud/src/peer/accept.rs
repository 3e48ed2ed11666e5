//! `listen.peer`: TLS, the header, and the code that its protocol asks for. Nothing that comes in here is handed on.
//!
//! In: sockets. Out: streams and what their headers say, for [`Heads`]. Change here: what a stranger can cost.
//! Not here: the header's bytes (`proxy`), trust (`secure`).

use std::{collections::BTreeMap, io, net::SocketAddr, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tributary_shared::net::{self, Admitted, Gate, accept};

use super::{Bad, Header, Peers, Protocol, Stream, count, proxy::FIXED};

/// For TLS and the header.
const HEADER: Duration = Duration::from_secs(5);
/// Connections that have not sent their header yet.
const HANDSHAKES: usize = 1_024;
/// New connections a second: all clients of a node that died come at once.
const PER_SECOND: usize = 5_000;

type Head = Box<dyn Fn(Stream, Header, Admitted) -> BoxFuture<'static, ()> + Send + Sync>;

/// Who serves what comes from other nodes.
#[derive(Default)]
pub struct Heads {
    all: BTreeMap<Protocol, Head>,
}

impl Heads {
    /// `head` serves `protocol`. It keeps the [`Admitted`] to the end, and says when the client has identified itself.
    #[must_use]
    pub fn with<T>(
        mut self,
        protocol: Protocol,
        head: impl Fn(Stream, Header, Admitted) -> T + Send + Sync + 'static,
    ) -> Self
    where
        T: Future<Output = ()> + Send + 'static,
    {
        let head: Head =
            Box::new(move |stream, header, admitted| Box::pin(head(stream, header, admitted)));
        self.all.insert(protocol, head);
        self
    }
}

/// Why a peer was sent away.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("no header in time")]
    Late,
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Bad(#[from] Bad),
    #[error("this node does not serve {0}")]
    NotServed(&'static str),
}

/// Serves other nodes until `stop`, and until their connections have ended.
pub async fn serve(
    listener: TcpListener,
    peers: Peers,
    heads: Heads,
    connections: usize,
    stop: CancellationToken,
) {
    let limits = net::Settings {
        connections,
        // They all come from a few nodes.
        connections_per_address: connections,
        handshakes: HANDSHAKES,
        connections_per_second: PER_SECOND,
        allow_insecure: false,
    };
    let heads = Arc::new(heads);
    let one = move |stream: TcpStream, address: SocketAddr, admitted: Admitted| {
        let (peers, heads) = (peers.clone(), Arc::clone(&heads));
        async move {
            let opened = match timeout(HEADER, open(stream, &peers)).await {
                Ok(opened) => opened,
                Err(_) => Err(Refused::Late),
            };
            let found = opened.and_then(|(stream, header)| {
                let head = heads.all.get(&header.protocol);
                let head = head.ok_or(Refused::NotServed(header.protocol.name()))?;
                Ok(head(stream, header, admitted))
            });
            match found {
                Ok(serving) => {
                    count(&peers.counters.taken);
                    serving.await;
                }
                // A node that gave up, as each does when the map changes.
                Err(Refused::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    count(&peers.counters.refused);
                    tracing::debug!(%address, "another node gave up before it was let in");
                }
                Err(refused) => {
                    count(&peers.counters.refused);
                    tracing::warn!(%address, %refused, "refused on listen.peer: not let in as another node");
                }
            }
        }
    };
    accept(listener, Gate::new(limits), stop, one).await;
}

async fn open(stream: TcpStream, peers: &Peers) -> Result<(Stream, Header), Refused> {
    let mut stream = peers.secure.accept(stream).await?;
    let mut fixed = [0; FIXED];
    stream.read_exact(&mut fixed).await?;
    let mut rest = vec![0; Header::rest(&fixed)?];
    stream.read_exact(&mut rest).await?;
    let header = Header::decode(&fixed, &rest)?;
    Ok((stream, header))
}
