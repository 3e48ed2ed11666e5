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
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tributary_shared::{
    amqp::frame::PRE_AUTH_FRAME_MAX,
    net::{self, Admitted, Gate, accept},
};

use crate::{
    log::{Log, LogError},
    queue::{ConnectionId, Numbers, VirtualHost, owner::MESSAGE_MAX},
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
    counters: Counters,
    next: AtomicU64,
    stop: CancellationToken,
}

impl Shared {
    fn next_connection(&self) -> ConnectionId {
        ConnectionId(self.next.fetch_add(1, Ordering::Relaxed))
    }
}

/// Serves until `stop`; then tells the clients, and returns when what they sent is stored.
pub async fn serve(
    listener: TcpListener,
    settings: Settings,
    log: Log,
    routing: Routing,
    status: &Status,
    stop: CancellationToken,
) -> Result<(), LogError> {
    let (vhost, owner) = VirtualHost::open(VIRTUAL_HOST, log, routing, &stop);
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
        counters: Counters::default(),
        next: AtomicU64::new(1),
        stop: stop.clone(),
    });
    publish(status, &shared, &gate, numbers);
    let connections = shared.clone();
    accept(listener, gate, stop, move |stream, peer, admitted| {
        serve_one(connections.clone(), stream, peer, admitted)
    })
    .await;
    // The virtual host ends, once everything is stored, when its last handle goes.
    drop(shared);
    if let Err(error) = owner.await {
        tracing::error!(%error, "virtual host did not end");
    }
    Ok(())
}

async fn serve_one(shared: Arc<Shared>, stream: TcpStream, peer: SocketAddr, admitted: Admitted) {
    let (reader, writer) = stream.into_split();
    let ended = connection::run(&shared, reader, writer, peer, admitted).await;
    if let Err(error) = ended {
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
