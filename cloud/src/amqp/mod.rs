//! AMQP 0-9-1 head: RabbitMQ's clients over the log.
//!
//! ```text
//!  socket -> handshake -> connection: frames -> commands --> queue::VirtualHost
//!  socket <- frames <---- connection: events <-------------- queue::VirtualHost
//! ```
//! In: accepted streams. Change here: listening, limits, what a client may negotiate. Not here: what methods do (`queue`),
//! bytes (`shared::amqp`).

mod channel;
mod connection;
mod handshake;
mod login;
mod outgoing;
#[cfg(test)]
mod tests;

use std::{
    net::{Ipv6Addr, SocketAddr},
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tributary_shared::{
    amqp::{PROTOCOL_HEADER, frame::PRE_AUTH_FRAME_MAX},
    net::{self, Admitted, Gate, accept},
};

use crate::{
    engine::ShardId,
    log::Log,
    peer::{self, HandedOn, Header, Io, Peers, Protocol},
    queue::{self, ConnectionId, Numbers, VirtualHost, owner::MESSAGE_MAX},
    route::Routing,
    status::Status,
};

tributary_shared::settings! {
    /// AMQP 0-9-1 head: what clients may negotiate and send.
    pub struct Settings {
        /// Channels of a connection; 0 = 65535.
        pub channel_max: u16 = 2047,
        /// Largest frame, bytes; 8192 to 262144.
        pub frame_max: u32 = 131_072,
        /// Heartbeat that is offered, s; 0 = none. The client decides.
        pub heartbeat_s: u16 = 60,
        /// Largest message, bytes; at most 15728640 (15 MiB).
        pub max_message_bytes: u64 = 15_728_640,
        /// Connections at a time; more are closed at once.
        pub max_connections: usize = 4_096,
        /// Connections at a time of one address (IPv6: of one /64 network). Loopback is not limited by this.
        pub max_connections_per_address: usize = 1_000,
        /// Connections at a time that have not logged in yet.
        pub max_handshakes: usize = 256,
    }
}

/// The only virtual host there is.
pub const VIRTUAL_HOST: &str = "/";

/// Largest frame there may be: it bounds the properties of a message, too.
const FRAME_MAX: u32 = 256 * 1024;

/// Numbers of the head.
#[derive(Debug, Default)]
struct Counters {
    opened: AtomicU64,
    faults: AtomicU64,
    logins_refused: AtomicU64,
}

/// What all connections share.
struct Shared {
    settings: Settings,
    vhost: VirtualHost,
    log: Log,
    /// Where the virtual host is.
    home: ShardId,
    peers: Peers,
    counters: Counters,
    next: AtomicU64,
    stop: CancellationToken,
}

impl Shared {
    fn next_connection(&self) -> ConnectionId {
        ConnectionId(self.next.fetch_add(1, Ordering::Relaxed))
    }
}

/// The head, before it serves.
pub struct Head {
    shared: Arc<Shared>,
    owner: JoinHandle<()>,
    gate: Arc<Gate>,
}

/// What serves the clients that other nodes hand on. It does not keep the virtual host.
#[derive(Clone)]
pub struct Handed {
    shared: Weak<Shared>,
}

impl Head {
    /// A head over `log`; clients whose virtual host is elsewhere are handed on by `peers`.
    pub fn open(
        settings: Settings,
        log: Log,
        routing: Routing,
        peers: Peers,
        status: &Status,
        stop: CancellationToken,
    ) -> Self {
        let home = queue::home(&log, VIRTUAL_HOST);
        let (vhost, owner) = VirtualHost::open(VIRTUAL_HOST, log.clone(), routing, &stop);
        let gate = Gate::new(net::Settings {
            connections: settings.max_connections,
            connections_per_address: settings.max_connections_per_address,
            handshakes: settings.max_handshakes,
            connections_per_second: 500,
            allow_insecure: false,
        });
        let numbers = vhost.numbers();
        let settings = Settings {
            frame_max: settings.frame_max.clamp(PRE_AUTH_FRAME_MAX, FRAME_MAX),
            max_message_bytes: settings.max_message_bytes.min(MESSAGE_MAX),
            ..settings
        };
        let shared = Arc::new(Shared {
            settings,
            vhost,
            log,
            home,
            peers,
            counters: Counters::default(),
            next: AtomicU64::new(1),
            stop,
        });
        publish(status, &shared, &gate, numbers);
        Self { shared, owner, gate }
    }

    /// For the listener for other nodes.
    pub fn handed(&self) -> Handed {
        Handed { shared: Arc::downgrade(&self.shared) }
    }

    /// Takes clients until `closing`, and serves them until the stop; then tells them, and returns when what they sent is stored.
    pub async fn serve(self, listener: TcpListener, closing: CancellationToken) {
        let Self { shared, owner, gate } = self;
        let connections = shared.clone();
        accept(listener, gate, closing, move |stream, peer, admitted| {
            serve_one(connections.clone(), stream, peer, admitted)
        })
        .await;
        shared.stop.cancelled().await;
        // The virtual host ends, once everything is stored, when its last handle goes.
        drop(shared);
        if let Err(error) = owner.await {
            tracing::error!(%error, "virtual host did not end");
        }
    }
}

impl Handed {
    /// Serves one client here, or refuses it.
    pub async fn serve(self, stream: peer::Stream, header: Header, admitted: Admitted) {
        let Some(shared) = self.shared.upgrade() else { return };
        let peer = header.address.unwrap_or_else(|| (Ipv6Addr::UNSPECIFIED, 0).into());
        if shared.peers.is_here(&shared.log, shared.home, &shared.stop).await {
            serve_here(&shared, stream, b"", peer, admitted).await;
        }
    }
}

async fn serve_one(
    shared: Arc<Shared>,
    mut stream: TcpStream,
    peer: SocketAddr,
    mut admitted: Admitted,
) {
    if shared.log.is_here(shared.home) {
        return serve_here(&shared, stream, b"", peer, admitted).await;
    }
    let mut first = [0; PROTOCOL_HEADER.len()];
    let read = timeout(handshake::TIME, stream.read_exact(&mut first)).await;
    if !matches!(read, Ok(Ok(_))) {
        return tracing::debug!(%peer, "no AMQP client");
    }
    // It logs in where it is served, and is timed there.
    admitted.handshake_done();
    let header = Header { protocol: Protocol::Amqp, address: Some(peer), certificate: None };
    let (log, home, stop) = (&shared.log, shared.home, &shared.stop);
    match shared.peers.hand_on(log, home, &header, &mut stream, (&first, b""), stop).await {
        HandedOn::Here => serve_here(&shared, stream, &first, peer, admitted).await,
        HandedOn::Served => {}
        HandedOn::Nobody => turn_away(stream, &first, peer).await,
    }
}

/// `first`: what was read of it already.
async fn serve_here(
    shared: &Shared,
    stream: impl Io,
    first: &[u8],
    peer: SocketAddr,
    admitted: Admitted,
) {
    let (reader, writer) = tokio::io::split(stream);
    let ended = connection::run(shared, first.chain(reader), writer, peer, admitted).await;
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "amqp connection ended");
    }
}

async fn turn_away(stream: impl Io, first: &[u8], peer: SocketAddr) {
    let (reader, writer) = tokio::io::split(stream);
    if let Err(error) = connection::turn_away(first.chain(reader), writer).await {
        tracing::debug!(%peer, %error, "amqp connection ended");
    }
}

/// The numbers on the metrics page. Holds no handle of the virtual host.
fn publish(status: &Status, shared: &Arc<Shared>, gate: &Arc<Gate>, numbers: Arc<Numbers>) {
    let (shared, gate) = (Arc::downgrade(shared), gate.clone());
    status.add(move |page| {
        let get = |number: &AtomicU64| number.load(Ordering::Relaxed);
        let now = gate.connections() as u64;
        page.gauge("tributary_amqp_connections", "AMQP connections open now", &[], now);
        page.gauge("tributary_amqp_queues", "AMQP queues", &[], get(&numbers.queues));
        for (name, help, number) in [
            ("tributary_amqp_published_total", "Messages published over AMQP", &numbers.published),
            ("tributary_amqp_delivered_total", "Messages delivered over AMQP", &numbers.delivered),
            (
                "tributary_amqp_lost_total",
                "Queued messages whose record the log no longer had",
                &numbers.lost,
            ),
        ] {
            page.counter(name, help, &[], get(number));
        }
        let Some(shared) = shared.upgrade() else { return };
        for (name, help, number) in [
            (
                "tributary_amqp_connections_total",
                "AMQP connections that were opened",
                &shared.counters.opened,
            ),
            (
                "tributary_amqp_faults_total",
                "AMQP connections closed because of what came",
                &shared.counters.faults,
            ),
            (
                "tributary_amqp_logins_refused_total",
                "AMQP logins that were refused",
                &shared.counters.logins_refused,
            ),
        ] {
            page.counter(name, help, &[], get(number));
        }
    });
}
