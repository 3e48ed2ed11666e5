//! The edges' door: `tributary/{edge}/up/#` on the MQTT listener, exactly once per edge and epoch.
//!
//! ```text
//! CONNECT (v5, user property tributary-edge) -> CONNACK `expect`=<epoch>:<next> ... -> PUBLISH* -> PUBACK*
//! each PUBLISH: upload (checks) -> divide (routes) -> one transaction on the edge's home shard -> answer
//! ```
//! In: a connection whose CONNECT has been read. Out: transactions under `Guard::Edge`, PUBACKs when they are durable.
//! The rule of epochs and sequences itself lives in the log's commit (DESIGN 6, "Cloud rule"); here it is asked and told.
//! Record times are stored as the edge wrote them, but for absurd ones (`clocks`).
//! Not here: who may connect (`listen`), ordinary clients (`mqtt`), commands to edges.

mod admission;
mod answer;
mod clocks;
mod connection;
mod divide;
mod label;
mod live;
#[cfg(test)]
mod tests;
mod twins;
mod upload;

use std::{sync::Arc, time::Duration};

pub use admission::Numbers;
use admission::{Admission, Busy};
use bytes::BytesMut;
pub use divide::GAP_HEADER;
pub use live::{DUPLICATE_EPOCH, DUPLICATE_ID, EdgeView, LaneView, Live};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tributary_shared::{
    clock::wall_ms,
    connection::Opened,
    mqtt::{
        Version,
        packet::{ConnAck, ConnAckProperties, Connect, Disconnect, Packet, Reason},
        write::write,
    },
    telemetry::brief,
};
pub use upload::{CONTENT_TYPE, is_legal_id};

use crate::{
    engine::ScanLimit,
    log::{Log, LogError, StateSpace},
    route::Routing,
};

/// User property of CONNECT that says which edge this is, and so that it is one.
pub const EDGE_PROPERTY: &str = "tributary-edge";
/// User property of CONNECT that says which lane the connection is for.
pub const LANE_PROPERTY: &str = "tributary-lane";
/// User property of CONNECT that says which process of the edge it is: a number made at its start.
pub const INSTANCE_PROPERTY: &str = "tributary-instance";
/// User property of CONNECT that says what waits at the edge in this lane: `records:bytes:seconds of the oldest`.
pub const BACKLOG_PROPERTY: &str = "tributary-backlog";
/// User property of DISCONNECT 0x8E that names an epoch under which another gateway has sent other records.
pub const CLASH_PROPERTY: &str = "clash";
/// Keep-alive, seconds, that the server sets where the edge asks for none.
const KEEP_ALIVE_DEFAULT_S: u16 = 600;
/// Deadline for writing CONNACK.
const CONNACK_TIMEOUT: Duration = Duration::from_secs(10);
/// Edges that a list shows.
const KNOWN_MAX: usize = 10_000;

tributary_shared::settings! {
    /// The bridge: the door for edges on the MQTT listener.
    pub struct Settings {
        /// Uploads that may be unanswered on one connection. What is sent again after a lost one is compared with what came before,
        /// and the log remembers that of so many.
        pub receive_maximum: u16 = 64 => 1..=64,
        /// Payload bytes of them; above it the connection is not read.
        pub window_bytes: usize = 8 * 1024 * 1024 => 65_536..=1_073_741_824,
        /// Largest packet an edge may send, bytes; more than log.max_batch_bytes, or large batches never arrive.
        pub packet_bytes_max: u32 = 1_114_112 => 16_384..=268_435_455,
        /// Bytes that one compressed batch may unpack to.
        pub unpacked_bytes_max: usize = 32 * 1024 * 1024,
        /// Edges with numbers of their own on /metrics, those with the longest backlog first; the sums are of all.
        pub metrics_edges: usize = 100 => 0..=100_000,
        /// Epochs of an edge named in CONNACK, those that brought something last.
        pub expect_max: usize = 64,
        /// New connections of edges a second; more are asked to come back later, each at another time.
        pub connections_per_second: u32 = 200 => 1..=1_000_000,
        /// Bytes a second of one connection that count as live: they are read at once, whatever the other edges send.
        pub live_bytes_per_second: usize = 65_536 => 1024..=1_073_741_824,
        /// Edges that bring more than live data at once; the others wait and take turns with them.
        pub catch_up_edges: usize = 64 => 1..=100_000,
        /// Bytes of a turn; it also ends after 2 seconds.
        pub catch_up_turn_bytes: usize = 524_288 => 4096..=1_073_741_824,
        /// Edges that may wait for a turn; more are asked to come back later. Each may hold a packet's bytes in memory.
        pub catch_up_waiting: usize = 512 => 1..=100_000,
        /// Bytes of such uploads that are not durable yet, all edges together; less than log.in_flight_bytes leaves room for
        /// live ones.
        pub catch_up_bytes: usize = 32 * 1024 * 1024 => 1_048_576..=1_073_741_824,
        /// Bytes a second of such uploads, all edges together; 0 = no limit.
        pub catch_up_bytes_per_second: u64 = 0,
        /// Record times further ahead of the cloud's clock than this, seconds, are taken for a wrong clock: the record gets
        /// the time it came, and its own in header edge.time. So do times before 2020.
        pub clock_ahead_max_s: u32 = 86_400 => 60..=31_536_000,
    }
}

/// The door. Cheap to clone.
#[derive(Clone)]
pub struct Bridge {
    log: Log,
    routing: Routing,
    settings: Arc<Settings>,
    live: Live,
    admission: Arc<Admission>,
}

/// The edge that a CONNECT says it is of. Only version 5 can say so.
pub fn edge(connect: &Connect) -> Option<&str> {
    property(connect, EDGE_PROPERTY).filter(|_| connect.version == Version::V5)
}

impl Bridge {
    /// Over `log`, routed by `routing`.
    pub fn new(log: Log, routing: Routing, settings: Settings) -> Self {
        let admission = Admission::new(&settings);
        Self { log, routing, settings: Arc::new(settings), live: Live::default(), admission }
    }

    /// The edges connected since the start.
    pub fn live(&self) -> &Live {
        &self.live
    }

    /// Edges with numbers of their own among the metrics.
    pub fn metrics_edges(&self) -> usize {
        self.settings.metrics_edges
    }

    /// How busy the door is.
    pub fn busy(&self) -> Numbers {
        self.admission.numbers()
    }

    /// Ids of all edges whose home is here that ever brought something, with the wall ms of their last first upload of a connection.
    pub async fn known(&self) -> Result<Vec<(String, i64)>, LogError> {
        let mut known = Vec::new();
        let limit = ScanLimit { entries: KNOWN_MAX, bytes: 4 * 1024 * 1024 };
        for shard in 0..self.log.shards() {
            let shard = crate::engine::ShardId(shard);
            let prefix = known_key("");
            let found = self.log.state_scan(shard, StateSpace::Meta, &prefix, None, limit).await;
            let found = match found {
                Err(LogError::NotOwner) => continue,
                found => found?,
            };
            for (key, value) in found {
                let id = String::from_utf8_lossy(key.get(prefix.len()..).unwrap_or_default());
                let since = value.first_chunk().map_or(0, |bytes| i64::from_be_bytes(*bytes));
                known.push((id.into_owned(), since));
            }
        }
        known.sort();
        Ok(known)
    }

    /// Serves one edge from after its CONNECT to the end of the connection.
    pub async fn serve<S>(&self, mut opened: Opened<S>, address: String, stop: CancellationToken)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let connect = opened.connect.clone();
        let edge = property(&connect, EDGE_PROPERTY).unwrap_or_default();
        let lane = property(&connect, LANE_PROPERTY).unwrap_or("normal");
        if !is_legal_id(edge) || !is_legal_id(lane) {
            let (edge, lane) = (brief(edge), brief(lane));
            tracing::warn!(peer = address, edge, lane, "edge id or lane is not legal");
            let why = "an edge id or lane is 1 to 128 bytes without / + # and control characters";
            return refuse(opened, Reason::CLIENT_ID_NOT_VALID, why).await;
        }
        if let Err(busy) = self.admission.connect() {
            return turn_away(opened.stream, busy).await;
        }
        let instance = property(&connect, INSTANCE_PROPERTY);
        let backlog = live::Backlog::read(property(&connect, BACKLOG_PROPERTY));
        let caller = live::Caller { edge, lane, instance, backlog };
        // From here on an older connection is told to go, so that marks are read after its last upload was submitted
        // or else its uploads meet ours in the log's order: both ways each is applied once.
        let registration = self.live.enter(caller, wall_ms(), address);
        let home = self.log.home_shard(edge);
        let Some(opening) = self.log.opening(home) else {
            let why = "the shard of this edge is not here: connect again";
            return refuse(opened, Reason::SERVER_UNAVAILABLE, why).await;
        };
        let marks = match self.log.edge_marks(edge).await {
            Ok(marks) => marks,
            Err(error) => {
                tracing::error!(edge, %error, "marks of an edge cannot be read");
                return refuse(opened, Reason::SERVER_UNAVAILABLE, &error.to_string()).await;
            }
        };
        tracing::info!(edge, lane, epochs = marks.len(), "edge connected");
        let connack = self.connack(&connect, &marks);
        if !send(&mut opened.stream, &Packet::ConnAck(Box::new(connack))).await {
            return;
        }
        opened.reader.set_maximum(self.settings.packet_bytes_max as usize);
        let keep_alive = keep_alive_s(&connect);
        let connection = connection::Connection {
            bridge: self.clone(),
            edge: edge.into(),
            home,
            idle: Duration::from_secs(u64::from(keep_alive)) * 3 / 2,
            registration,
            stop,
            first_seen_saved: false,
            visitor: self.admission.visitor(),
        };
        tokio::select! {
            () = connection.run(opened.stream, opened.reader, opened.buffer) => {}
            // What is not answered comes again, to the shard's new owner.
            () = self.log.gone(home, opening) => tracing::info!(edge, lane, "the edge's shard is elsewhere now"),
        }
        tracing::info!(edge, lane, "edge disconnected");
    }

    fn connack(&self, connect: &Connect, marks: &[(i64, u64)]) -> ConnAck {
        // About 50 bytes each; a client that takes only small packets gets fewer and falls back on its own mark.
        let room = connect.maximum_packet_size.map_or(usize::MAX, |bytes| bytes as usize / 64);
        let shown = self.settings.expect_max.min(room.saturating_sub(4));
        let user_properties = marks
            .iter()
            .rev()
            .take(shown)
            .map(|(epoch, next)| ("expect".into(), format!("{epoch}:{next}").into()))
            .collect();
        let properties = ConnAckProperties {
            receive_maximum: Some(self.settings.receive_maximum),
            maximum_qos: Some(1),
            retain_available: Some(false),
            maximum_packet_size: Some(self.settings.packet_bytes_max),
            wildcard_available: Some(false),
            shared_available: Some(false),
            subscription_ids_available: Some(false),
            server_keep_alive: (connect.keep_alive == 0).then_some(KEEP_ALIVE_DEFAULT_S),
            // No session is kept: everything an edge needs to go on is in `expect`.
            session_expiry: connect.session_expiry.filter(|expiry| *expiry > 0).map(|_| 0),
            user_properties,
            ..ConnAckProperties::default()
        };
        ConnAck { session_present: false, reason: Reason::SUCCESS, properties }
    }
}

/// Tells an edge when to come back. Not in a CONNACK that refuses: rumqttc, and so our own edges, shows nothing of that but
/// the code. So it is let in and sent off in one breath; what it sends meanwhile is one upload at most, and not read.
async fn turn_away<S>(stream: S, busy: Busy)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let properties =
        ConnAckProperties { receive_maximum: Some(1), maximum_qos: Some(1), ..Default::default() };
    let connack = ConnAck { session_present: false, reason: Reason::SUCCESS, properties };
    let mut goodbye = Disconnect::new(Reason::CONNECTION_RATE_EXCEEDED);
    goodbye.reason_string = Some("too many edges connect at once".into());
    goodbye.user_properties = busy.properties();
    let mut bytes = BytesMut::new();
    write(&Packet::ConnAck(Box::new(connack)), Version::V5, &mut bytes);
    write(&Packet::Disconnect(goodbye), Version::V5, &mut bytes);
    let (mut input, mut output) = tokio::io::split(stream);
    let said = async {
        output.write_all(&bytes).await?;
        output.shutdown().await
    };
    if let Ok(Ok(())) = timeout(CONNACK_TIMEOUT, said).await {
        connection::linger(&mut input).await;
    }
}

async fn refuse<S>(opened: Opened<S>, reason: Reason, why: &str)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let reason_string = Some(answer::words(why));
    opened.refuse_with(reason, ConnAckProperties { reason_string, ..Default::default() }).await;
}

fn keep_alive_s(connect: &Connect) -> u16 {
    if connect.keep_alive == 0 { KEEP_ALIVE_DEFAULT_S } else { connect.keep_alive }
}

fn property<'a>(connect: &'a Connect, name: &str) -> Option<&'a str> {
    let found = connect.user_properties.iter().find(|(key, _)| key == name);
    found.map(|(_, value)| &**value)
}

fn known_key(edge: &str) -> Vec<u8> {
    [b"edge/", edge.as_bytes()].concat()
}

async fn send<S: AsyncWrite + Unpin>(stream: &mut S, packet: &Packet) -> bool {
    let mut bytes = BytesMut::new();
    write(packet, Version::V5, &mut bytes);
    matches!(timeout(CONNACK_TIMEOUT, stream.write_all(&bytes)).await, Ok(Ok(())))
}
