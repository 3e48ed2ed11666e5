//! The MQTT head: the shared session core over the log.
//!
//! ```text
//! client --connection--> broker (one task) --append--> log --tail--> broker --outbox--> subscribers
//!                          \--state + cursors in one commit--> the head's shard
//! ```
//! In: connections whose CONNECT has been read ([`Clients::serve`]). Out: records in the log; packets to clients.
//! Promises: PUBACK and PUBREC after the record is durable; a stored session's queue, ids and subscriptions survive a kill
//! together with the place in the log they belong to. All of the head's state is in one shard; where that is not, nobody is
//! served.
//! Not here: what packets mean (`shared::session`), where a topic goes (`route`), edges (`bridge`).

mod append;
mod broker;
mod door;
mod down;
mod load;
mod numbers;
mod pipeline;
mod restore;
mod store;
mod stored;
#[cfg(test)]
mod tests;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;
use tributary_shared::{
    connection::{self, Context, Handle, Incoming, Opened, run},
    mqtt::Reason,
    net::Gate,
    session::{self, event::Peer},
    topic::filter,
};

pub use self::down::edge as listening_edge;
use self::{
    broker::{Broken, Broker},
    numbers::{Numbers, count},
};
use crate::{
    engine::ShardId,
    log::{Log, LogError, Opening},
    route::Routing,
    status::Status,
};

/// Reads of connections that wait for the broker. An item may hold 32 KiB of packets.
const INCOMING: usize = 64;
/// Between a failure of the log and the next try.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Name whose home shard holds the head's state.
const HOME: &str = "mqtt";
/// Commands wait in sessions of gateways that may be away for weeks.
const SESSION_EXPIRY_S: u32 = 30 * 86_400;
/// The longest packet there is.
const PACKET_MAX: usize = 268_435_460;

tributary_shared::settings! {
    /// MQTT clients at the cloud.
    pub struct Settings {
        /// Limits of MQTT sessions.
        pub session: session::Settings = session::Settings { session_expiry_s: SESSION_EXPIRY_S, ..Default::default() },
        /// Topic filters that gateways may listen to (`downlink.filters` there) besides their own commands and settings. A filter
        /// of a gateway is taken if one of these covers it. What is taken off here ends with the gateway's session.
        pub edge_filters: Vec<String> = Vec::new(),
        /// MQTT connections: what a peer may cost before and after its CONNECT.
        pub connection: connection::Settings = connection::Settings::default(),
    }
}

impl Settings {
    /// What single values cannot say of themselves. One sentence that names the key.
    pub fn check_all(&self) -> Result<(), String> {
        self.session.check_all("mqtt.session")?;
        let bad = |filter: &&String| !filter::is_legal(filter) || filter.starts_with('$');
        if let Some(bad) = self.edge_filters.iter().find(bad) {
            return Err(format!(
                "`mqtt.edge_filters`: `{bad}` is no topic filter, or begins with $, as no topic of a gateway's does"
            ));
        }
        let wide =
            |filter: &&String| matches!(filter.split('/').next(), Some("#" | "+" | "tributary"));
        self.edge_filters.iter().find(wide).map_or(Ok(()), |wide| {
            Err(format!(
                "`mqtt.edge_filters`: `{wide}` would let a gateway read other gateways' commands and settings: begin it with a \
                 level of your topics"
            ))
        })
    }
}

/// What the broker works with.
struct Head {
    log: Log,
    routing: Routing,
    settings: Settings,
    numbers: Arc<Numbers>,
    home: ShardId,
}

/// The head's door for connections. Cheap to clone.
#[derive(Clone)]
pub struct Clients {
    context: Arc<Context>,
}

impl Clients {
    /// Limits of connections.
    pub fn settings(&self) -> &connection::Settings {
        &self.context.settings
    }

    /// Counts of connections.
    pub fn counters(&self) -> &connection::Counters {
        &self.context.counters
    }

    /// Serves one client from after its CONNECT to the end of the connection.
    pub async fn serve<S>(&self, opened: Opened<S>, address: Option<SocketAddr>)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        // A will is published without being asked about again.
        let closed = |topic| door::is_closed(topic) || down::edge(&opened.connect).is_some();
        if opened.connect.will.as_ref().is_some_and(|will| closed(&will.topic)) {
            return opened.refuse(Reason::NOT_AUTHORIZED).await;
        }
        let peer = Peer { principal: None, address, proof: None };
        run(opened, peer, &self.context).await;
    }
}

/// The shard that holds the head's state.
pub fn home(log: &Log) -> ShardId {
    log.home_shard(HOME)
}

/// The door, and the future that must run for it to work: it ends at `stop`, or when the log is closed or cannot be read.
pub fn open(
    log: Log,
    routing: Routing,
    settings: Settings,
    gate: &Arc<Gate>,
    status: &Status,
    stop: CancellationToken,
) -> (Clients, impl Future<Output = Result<(), LogError>> + use<>) {
    let (sender, incoming) = mpsc::channel(INCOMING);
    let packet_bytes = match settings.session.packet_bytes {
        0 => PACKET_MAX,
        bytes => bytes as usize,
    };
    let handle = Handle { incoming: sender };
    let context = Context::new(handle, settings.connection.clone(), packet_bytes, stop.clone());
    let context = Arc::new(context);
    let numbers = Arc::new(Numbers::default());
    let (shown, counted, gate) = (numbers.clone(), context.clone(), gate.clone());
    status.add(move |page| {
        shown.write(page);
        numbers::write_connections(&counted.counters, &gate, page);
    });
    let home = home(&log);
    let head = Head { log, routing, settings, numbers, home };
    (Clients { context }, serve(head, incoming, stop))
}

/// Runs the broker while the head's shard is here; starts it again from the store when the log failed under it, or when the
/// shard comes back.
async fn serve(
    head: Head,
    mut incoming: mpsc::Receiver<Incoming>,
    stop: CancellationToken,
) -> Result<(), LogError> {
    loop {
        let opening = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            opening = head.log.here(head.home) => opening?,
            () = turn_away(&mut incoming) => return Ok(()),
        };
        match serve_here(&head, opening, &mut incoming, &stop).await {
            Ok(()) => return Ok(()),
            Err(Broken::Log(LogError::Closed)) if stop.is_cancelled() => return Ok(()),
            Err(Broken::Log(LogError::Closed)) => return Err(LogError::Closed),
            Err(Broken::Log(LogError::NotOwner)) => {
                tracing::info!("MQTT clients are closed: their state is not here any more");
            }
            Err(error) => tracing::error!(%error, "MQTT state is read back from the store"),
        }
        count(&head.numbers.restored);
        if head.log.opening(head.home) != Some(opening) {
            continue;
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(AGAIN_AFTER) => {}
        }
    }
}

/// Until `stop`, a failure, or the end of this opening of the head's shard.
async fn serve_here(
    head: &Head,
    opening: Opening,
    incoming: &mut mpsc::Receiver<Incoming>,
    stop: &CancellationToken,
) -> Result<(), Broken> {
    let gone = head.log.gone(head.home, opening);
    tokio::pin!(gone);
    let mut broker = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        restored = Broker::restore(head, opening) => restored?,
        () = &mut gone => return Err(LogError::NotOwner.into()),
    };
    let ended = tokio::select! {
        ended = broker.run(incoming, stop) => ended,
        // Whatever it was about to do belongs to an opening that is over.
        () = &mut gone => Err(LogError::NotOwner.into()),
    };
    if ended.is_err() {
        broker.close_all();
    }
    ended
}

/// While the head's shard is elsewhere nobody is served: who comes all the same is closed, and comes again. Returns when nobody
/// can come any more.
async fn turn_away(incoming: &mut mpsc::Receiver<Incoming>) {
    while let Some(item) = incoming.recv().await {
        if let Incoming::Connect { outbox, .. } = item {
            outbox.close();
        }
    }
}
