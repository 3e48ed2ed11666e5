//! Kafka head: the listener, what it shares between connections, its settings and numbers.
//!
//! One node that leads every partition: node id 1, leader epoch 0. In: connections. Out: appends, reads, groups.
//! Path of a request: `connection` reads -> `frame` and `guard` check -> `api` answers, in order.
//! Change here: what all connections share. Not here: which requests and versions are served (`schema`), answers (`api`).

mod api;
mod connection;
mod error;
mod frame;
mod guard;
mod identity;
mod numbers;
mod schema;
#[cfg(test)]
mod tests;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
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
    group::Groups,
    log::{Log, LogError},
    status::Status,
};

/// The one node's id.
const NODE: i32 = 1;

/// Epoch of its leadership of every partition.
const LEADER_EPOCH: i32 = 0;

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
struct Head {
    log: Log,
    groups: Groups,
    settings: Settings,
    numbers: Arc<Numbers>,
    cluster_id: String,
    producer_ids: ProducerIds,
    topic_ids: TopicIds,
    stop: CancellationToken,
}

/// One client, as the answers need it.
struct Client {
    head: Arc<Head>,
    /// Where clients of this listener find the node.
    host: String,
    port: u16,
    /// Where this client is.
    peer: String,
}

/// Serves Kafka clients on `listener` until `stop` is cancelled; then answers what is under way and returns.
///
/// # Errors
/// The log cannot be read or written at the start.
pub async fn serve(
    listener: TcpListener,
    settings: Settings,
    log: Log,
    groups: Groups,
    status: &Status,
    stop: CancellationToken,
) -> Result<(), LogError> {
    let numbers = Arc::new(Numbers::default());
    numbers::publish(status, &numbers);
    let cluster_id = identity::cluster_id(&log).await?;
    let producer_ids = ProducerIds::new(log.clone());
    let places = Arc::new(Semaphore::new(settings.max_connections));
    let head = Arc::new(Head {
        log,
        groups,
        settings,
        numbers,
        cluster_id,
        producer_ids,
        topic_ids: TopicIds::default(),
        stop: stop.clone(),
    });
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
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
                    Numbers::add(&head.numbers.refused_total, 1);
                    tracing::warn!(%peer, "too many Kafka connections: closed");
                    continue;
                };
                let head = Arc::clone(&head);
                connections.spawn(async move {
                    one_connection(head, socket, peer).await;
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
    Ok(())
}

async fn one_connection(head: Arc<Head>, socket: TcpStream, peer: SocketAddr) {
    let numbers = Arc::clone(&head.numbers);
    Numbers::add(&numbers.connections, 1);
    Numbers::add(&numbers.connections_total, 1);
    match connection::run(head, socket, peer).await {
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
