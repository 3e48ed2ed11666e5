//! The MQTT broker's decisions, pure: no I/O, no clock, no task.
//!
//! Holds: every session, subscription, in-flight and retained message, and what must happen on each event.
//! In: [`Event`] and [`Now`]. Out: a [`Decision`]: what to store, and what to do once that is durable.
//! Files: connect publish subscribe acknowledge disconnect (packets), fanout deliver queue (a message's way), replay retained,
//! timers, delayed, rewrite (what settings make of topics), rights (who may), own (`$SYS`), routes (the trie), client (what a session is), settings restored.
//! The host (edge `broker`, cloud `mqtt`) owns one `State` in one task: event in, decide, store, then act.
//! Change here: MQTT semantics. Not here: bytes (`mqtt`), sockets (`connection`), where things are stored (the host).

mod acknowledge;
pub mod action;
mod client;
mod connect;
mod delayed;
mod deliver;
mod disconnect;
pub mod event;
mod fanout;
mod ids;
mod own;
mod publish;
mod queue;
mod replay;
pub mod restored;
mod retained;
mod rewrite;
mod rights;
mod routes;
pub mod settings;
mod size;
mod subscribe;
mod timers;

#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use bytestring::ByteString;

pub use action::{Change, Decision, Delivery, Effect, Outgoing, Queued};
pub use event::{ConnectionId, Event, Now, SessionId};
pub use ids::IdMap;
pub use publish::Destination;
pub use restored::{Restored, RestoredQueue, RestoredSession};
pub use rewrite::{AutoSubscribe, Rewrite};
pub use rights::Denied;
pub use settings::{Fanout, RefusedPublish, Settings};

use self::{
    client::{Connection, Session},
    delayed::Delayed,
    fanout::Scratch,
    retained::Retained,
    rewrite::Templates,
    routes::Trie,
    timers::Timers,
};
use crate::{
    auth::Permissions,
    mqtt::packet::{Packet, Reason},
};

/// The broker.
#[derive(Debug)]
pub struct State {
    settings: Settings,
    fanout: Fanout,
    connections: IdMap<ConnectionId, Connection>,
    sessions: IdMap<SessionId, Box<Session>>,
    clients: HashMap<ByteString, SessionId>,
    routes: Trie,
    subscriptions: usize,
    retained: Retained,
    delayed: Delayed,
    timers: Timers,
    templates: Templates,
    /// Sessions with retained messages to go on with.
    replaying: VecDeque<SessionId>,
    /// Sessions whose end of connection by a restart is not stored yet.
    unsaved: VecDeque<SessionId>,
    next_session: u64,
    seed: u64,
    scratch: Scratch,
    permissions: Arc<Permissions>,
    denied: Denied,
    expired: u64,
}

/// Counts for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Sessions, connected or not.
    pub sessions: usize,
    /// Connected clients.
    pub connections: usize,
    /// Sessions that ended because their time was over, since the start.
    pub expired: u64,
    /// Subscriptions.
    pub subscriptions: usize,
    /// Retained messages, without the broker's own.
    pub retained: usize,
    /// Bytes of retained messages.
    pub retained_bytes: usize,
    /// Delayed messages that are not due yet.
    pub delayed: usize,
    /// What clients were not allowed.
    pub denied: Denied,
}

impl State {
    /// A broker that goes on from what was stored. Sessions without a connection end are taken as disconnected now.
    /// Call [`State::decide`] with [`Event::Permissions`] first, if not everybody may do everything, and then with
    /// [`Event::Tick`]: it stores that and says when to wake.
    pub fn new(mut settings: Settings, fanout: Fanout, restored: Restored, now: Now) -> Self {
        // 0 would be illegal in CONNACK, or a broker that delivers nothing.
        settings.receive_maximum = settings.receive_maximum.max(1);
        settings.inflight_messages = settings.inflight_messages.max(1);
        let templates = Templates::new(&settings);
        let mut state = Self {
            settings,
            fanout,
            connections: IdMap::default(),
            sessions: IdMap::default(),
            clients: HashMap::new(),
            routes: Trie::default(),
            subscriptions: 0,
            retained: Retained::default(),
            delayed: Delayed::default(),
            timers: Timers::default(),
            templates,
            replaying: VecDeque::new(),
            unsaved: VecDeque::new(),
            next_session: restored.next_session.max(1),
            seed: restored.seed,
            scratch: Scratch::default(),
            permissions: Arc::default(),
            denied: Denied::default(),
            expired: 0,
        };
        state.restore(restored, now);
        state
    }

    /// Decides on one event and appends to `out`, so that a host can store the outcome of many events in one transaction.
    /// `out.wake_ms` is always that of the latest decision.
    pub fn decide(&mut self, event: Event, now: Now, out: &mut Decision) {
        match event {
            Event::Connect { connection, connect, peer } => {
                self.connect(connection, *connect, peer, now, out);
            }
            Event::Packet { connection, packet } => self.packet(connection, packet, now, out),
            Event::Refused { connection, publish, reason } => {
                self.heard(connection, now);
                self.publish(connection, *publish, Some(reason), now, out);
            }
            Event::Held { connection } => {
                if let Some(link) = self.connections.get_mut(&connection) {
                    link.held = true;
                }
            }
            Event::RefusedFilters { connection, subscribe, refused } => {
                self.heard(connection, now);
                self.subscribe(connection, *subscribe, &refused, now, out);
            }
            Event::Closed { connection, reason: Some(reason) } => {
                self.fault(connection, reason, now, out);
            }
            Event::Closed { connection, reason: None } => self.disconnected(connection, now, out),
            Event::Publish(message) => self.publish_own(message, now, out),
            Event::Message { message, stored } => self.bring(message, stored, now, out),
            Event::Loaded { session, entries, complete } => {
                if let Some(found) = self.sessions.get_mut(&session) {
                    let permissions = &self.permissions;
                    let forbidden =
                        found.loaded(entries, complete, permissions, &self.settings, now, out);
                    self.denied.deliveries += forbidden;
                    self.schedule_replay(session);
                }
            }
            Event::Own(values) => self.tell(values, now, out),
            Event::Trimmed { session, messages, bytes } => {
                if let Some(session) = self.sessions.get_mut(&session) {
                    session.queue.trimmed(messages, bytes);
                }
            }
            Event::Permissions(permissions) => self.permit(permissions, now, out),
            Event::Tick => self.tick(now, out),
        }
        out.wake_ms = self.wake_ms(now);
    }

    /// Counts.
    pub fn stats(&self) -> Stats {
        Stats {
            sessions: self.sessions.len(),
            connections: self.connections.len(),
            expired: self.expired,
            subscriptions: self.subscriptions,
            retained: self.retained.len(),
            retained_bytes: self.retained.bytes(),
            delayed: self.delayed.len(),
            denied: self.denied,
        }
    }

    /// Messages of QoS 1 and 2 that sessions wait for or have in flight, and their bytes; looks at every session.
    pub fn queued(&self) -> (u64, u64) {
        self.sessions.values().fold((0, 0), |(messages, bytes), session| {
            (messages + session.queue.messages(), bytes + session.queue.bytes())
        })
    }

    /// Messages of QoS 1 and 2 that some sessions wait for or have in flight: those whose client id `name` gives a name.
    pub fn waiting_for(
        &self,
        name: impl Fn(&str) -> Option<String>,
    ) -> impl Iterator<Item = (String, u64)> {
        let sessions = self.sessions.values();
        sessions.filter_map(move |one| Some((name(&one.client_id)?, one.queue.messages())))
    }

    /// Any packet but the first. One of a connection that is closed already is passed over.
    fn packet(&mut self, connection: ConnectionId, packet: Packet, now: Now, out: &mut Decision) {
        self.heard(connection, now);
        match packet {
            Packet::Publish(publish) => self.publish(connection, publish, None, now, out),
            Packet::PubAck(ack) => self.acknowledged(connection, ack.packet_id, now, out),
            Packet::PubRec(ack) => self.received(connection, &ack, now, out),
            Packet::PubRel(ack) => self.release(connection, ack.packet_id, out),
            Packet::PubComp(ack) => self.completed(connection, ack.packet_id, now, out),
            Packet::Subscribe(subscribe) => self.subscribe(connection, subscribe, &[], now, out),
            Packet::Unsubscribe(unsubscribe) => self.unsubscribe(connection, unsubscribe, now, out),
            Packet::PingReq => {
                if self.connections.contains_key(&connection) {
                    publish::send(out, connection, Packet::PingResp);
                }
            }
            Packet::Disconnect(disconnect) => self.leave(connection, &disconnect, now, out),
            // The connection has answered it; here it is a sign of life.
            Packet::Auth(_)
                if self.connections.get(&connection).is_some_and(|link| link.enhanced) => {}
            // MQTT-3.1.0-2: a second CONNECT. MQTT-4.12.0-7: AUTH without a method. The rest is the server's to send.
            Packet::Connect(_)
            | Packet::Auth(_)
            | Packet::ConnAck(_)
            | Packet::SubAck(_)
            | Packet::UnsubAck(_)
            | Packet::PingResp => self.fault(connection, Reason::PROTOCOL_ERROR, now, out),
        }
    }

    fn heard(&mut self, connection: ConnectionId, now: Now) {
        if let Some(link) = self.connections.get_mut(&connection) {
            link.heard_ms = now.mono_ms;
            link.held = false;
        }
    }
}
