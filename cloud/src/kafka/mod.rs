//! Kafka head: the listener, what it shares between connections, its settings and numbers.
//!
//! Every node of a cluster has one; it serves the partitions and groups whose shards are here, and tells clients who has the others.
//! In: connections of clients, and of other nodes (`peer`). Out: appends, reads, groups.
//! Path of a request: `connection` reads -> `frame` and `guard` check -> `place` says if it is here -> `api` answers, in order.
//! Change here: what all connections share. Not here: which requests and versions are served (`schema`), answers (`api`).

mod api;
mod connection;
mod error;
mod frame;
mod guard;
mod identity;
mod numbers;
mod place;
mod schema;
#[cfg(test)]
mod tests;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use self::{
    identity::{ProducerIds, TopicIds},
    numbers::Numbers,
};
use crate::{
    cluster::Cluster,
    group::Groups,
    log::{Log, LogError},
    status::Status,
};

/// How long answers that are under way may take when the server stops.
const DRAIN: Duration = Duration::from_secs(2);

tributary_shared::settings! {
    /// Kafka head: what clients are told, and limits.
    pub struct Settings {
        /// Host that clients are told to connect to; empty: the address they came to.
        pub advertised_host: String = String::new(),
        /// Port that clients are told to connect to; 0: the port they came to.
        pub advertised_port: u16 = 0,
        /// Make a topic when a client asks for one that is not there (and allows it).
        pub auto_create_topics: bool = true,
        /// Largest Produce request, bytes. Other requests: 8 MiB.
        pub max_request_bytes: usize = 104_857_600,
        /// Bytes of requests of one connection that may wait for their answers.
        pub in_flight_bytes: usize = 67_108_864,
        /// Requests of one connection that may wait for their answers.
        pub in_flight_requests: usize = 256,
        /// Connections at a time; more are closed at once.
        pub max_connections: usize = 4_096,
        /// A connection that asks nothing for so long is closed, s.
        pub idle_s: u64 = 600,
        /// Longest long poll of a Fetch, ms.
        pub max_wait_ms: u64 = 300_000,
        /// Most bytes in the answer to one Fetch.
        pub max_fetch_bytes: usize = 57_671_680,
    }
}

/// What all connections share.
pub struct Head {
    log: Log,
    groups: Groups,
    cluster: Cluster,
    settings: Settings,
    numbers: Arc<Numbers>,
    /// Of a single node; a cluster's is in its map.
    own_id: String,
    producer_ids: ProducerIds,
    topic_ids: TopicIds,
    stop: CancellationToken,
}

/// One client, as the answers need it.
struct Client {
    head: Arc<Head>,
    /// Where it found this node, if nothing else says where that is.
    came_to: Option<SocketAddr>,
    /// Where this client is.
    peer: String,
}

impl Head {
    /// A head that serves until `stop` is cancelled.
    ///
    /// # Errors
    /// The log cannot be read or written.
    pub async fn open(
        settings: Settings,
        log: Log,
        groups: Groups,
        cluster: Cluster,
        status: &Status,
        stop: CancellationToken,
    ) -> Result<Arc<Self>, LogError> {
        let numbers = Arc::new(Numbers::default());
        numbers::publish(status, &numbers);
        let own_id = match cluster.view().cluster.as_str() {
            "" => identity::cluster_id(&log).await?,
            _ => String::new(),
        };
        let producer_ids = ProducerIds::new(log.clone());
        let topic_ids = TopicIds::default();
        let head =
            Self { log, groups, cluster, settings, numbers, own_id, producer_ids, topic_ids, stop };
        Ok(Arc::new(head))
    }

    /// Serves clients that come to `listener`; when the head stops, answers what is under way and returns.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        let places = Arc::new(Semaphore::new(self.settings.max_connections));
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = self.stop.cancelled() => break,
                Some(ended) = connections.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "kafka connection task died");
                    }
                    continue;
                }
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((socket, peer)) => {
                    let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                        Numbers::add(&self.numbers.refused_total, 1);
                        tracing::warn!(%peer, "too many Kafka connections: closed");
                        continue;
                    };
                    let head = Arc::clone(&self);
                    connections.spawn(async move {
                        head.serve_socket(socket, peer).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    // Out of file descriptors, or the peer was gone already: others still want service.
                    tracing::warn!(%error, "accept failed");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
        drop(listener);
        while connections.join_next().await.is_some() {}
    }

    /// Serves one connection that something else accepted and counts, `peer` being who is there; returns when it has ended.
    pub async fn serve_stream<S>(self: Arc<Self>, stream: S, peer: String)
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (from, to) = tokio::io::split(stream);
        let client = Client { head: self, came_to: None, peer };
        client.serve(from, to).await;
    }

    async fn serve_socket(self: Arc<Self>, socket: TcpStream, peer: SocketAddr) {
        if let Err(error) = socket.set_nodelay(true) {
            tracing::debug!(%peer, %error, "kafka connection lost");
            return;
        }
        let came_to = socket.local_addr().ok();
        let (from, to) = socket.into_split();
        Client { head: self, came_to, peer: peer.ip().to_string() }.serve(from, to).await;
    }
}

impl Client {
    async fn serve(self, from: impl AsyncRead + Unpin, to: impl AsyncWrite + Unpin) {
        let (numbers, peer) = (&self.head.numbers, &self.peer);
        Numbers::add(&numbers.connections, 1);
        Numbers::add(&numbers.connections_total, 1);
        match connection::run(&self, from, to).await {
            Ok(()) | Err(frame::Close::Eof | frame::Close::Stop | frame::Close::Idle(_)) => {}
            Err(error @ (frame::Close::Io(_) | frame::Close::EofInside)) => {
                tracing::debug!(%peer, %error, "kafka connection lost");
            }
            Err(error) => {
                Numbers::add(&numbers.bad_requests_total, 1);
                tracing::warn!(%peer, %error, "kafka connection closed");
            }
        }
        Numbers::subtract(&numbers.connections, 1);
    }
}
