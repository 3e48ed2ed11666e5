//! One client's session: what belongs to it whether it is connected or not.

use std::collections::{BTreeSet, VecDeque};

use bytestring::ByteString;

use super::{
    SessionId,
    action::SavedSession,
    event::ConnectionId,
    ids::{IdMap, IdSet},
    queue::Queue,
    retained::Replay,
};
use crate::mqtt::{
    Version,
    packet::{PacketId, Will},
};

/// A session.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) id: SessionId,
    pub(super) client_id: ByteString,
    pub(super) principal: Option<ByteString>,
    /// Has a place in the store for all it has: it was made to outlive its connection.
    pub(super) stored: bool,
    /// Has a row in the store: as it is `stored`, or so that its will outlives a restart.
    pub(super) saved: bool,
    /// Seconds it lives after the connection.
    pub(super) expiry_s: u32,
    pub(super) online: Option<Online>,
    /// Wall ms of the end of the last connection.
    pub(super) disconnected_ms: Option<i64>,
    /// To be published unless the client says otherwise.
    pub(super) will: Option<Box<Will>>,
    /// Monotonic ms when the will is due; only while disconnected.
    pub(super) will_due: Option<u64>,
    /// Monotonic ms when the session ends; only while disconnected, `None` = never.
    pub(super) ends: Option<u64>,
    /// Filters as subscribed; their options are in the routes.
    pub(super) subscriptions: BTreeSet<ByteString>,
    /// QoS 2 ids of this publisher, received and not released.
    pub(super) received: IdSet<PacketId>,
    pub(super) queue: Queue,
    /// Retained messages still to be sent for new subscriptions.
    pub(super) replays: VecDeque<Replay>,
    /// It stands in the list of sessions with replays to go on with.
    pub(super) replaying: bool,
    /// Round of the fan-out that met it last, and its place there.
    pub(super) met: (u64, usize),
}

/// A session's side of its connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Online {
    pub(super) connection: ConnectionId,
    pub(super) version: Version,
    /// QoS 1 and 2 messages that may be unacknowledged.
    pub(super) window: u16,
    /// Bytes of the longest packet it takes.
    pub(super) packet_bytes: Option<u32>,
}

/// A connection's side of its session.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) session: SessionId,
    pub(super) version: Version,
    /// Longest silence, ms; 0 = any.
    pub(super) silence_ms: u64,
    /// Monotonic ms of the last packet.
    pub(super) heard_ms: u64,
    /// The host does not read from it at the moment.
    pub(super) held: bool,
    /// When the silence is looked at next.
    pub(super) timer: Option<u64>,
    /// What CONNECT said, capped.
    pub(super) expiry_s: u32,
    /// It proved its name by an authentication method, and may do so again (4.12).
    pub(super) enhanced: bool,
    /// Topic aliases of the client (3.3.2.3.4).
    pub(super) aliases: IdMap<u16, ByteString>,
}

impl Session {
    pub(super) fn to_save(&self) -> Box<SavedSession> {
        Box::new(SavedSession {
            session: self.id,
            client_id: self.client_id.clone(),
            principal: self.principal.clone(),
            expiry_s: self.expiry_s,
            disconnected_ms: self.disconnected_ms,
            will: self.will.as_deref().cloned(),
            next_seq: self.queue.next_seq(),
        })
    }

    /// When something is due for it, monotonic ms.
    pub(super) fn due(&self) -> Option<u64> {
        self.will_due.into_iter().chain(self.ends).min()
    }
}
