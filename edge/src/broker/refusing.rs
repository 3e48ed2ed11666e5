//! What is not taken while a lane or the disk is full: refused, or held until there is room.
//!
//! In: a PUBLISH and how full things are. Out: a [`Verdict`]. Change here: what is refused when. Not here: what is held (`held`).

use std::sync::atomic::Ordering::Relaxed;

use tributary_shared::{
    mqtt::{Packet, Version, packet::Publish},
    session::ConnectionId,
};

use super::{Broker, Verdict};
use crate::store::LaneHandle;

impl Broker {
    /// Those whose first message can be taken now go on.
    pub(super) fn release(&mut self) {
        let now = self.clock.now();
        let free = |(connection, first): &(ConnectionId, &Packet)| match first {
            Packet::Publish(publish) => self.why_not(*connection, publish).is_none(),
            _ => true,
        };
        let free: Vec<_> = self.held.firsts().filter(free).map(|(found, _)| found).collect();
        for connection in free {
            let Some(packets) = self.held.forget(connection) else { continue };
            self.packets(connection, packets.into_iter(), now);
            if !self.held.has(connection)
                && let Some(client) = self.clients.get(&connection)
            {
                client.outbox.resume();
            }
        }
    }

    /// A full lane or disk refuses before anything is decided.
    pub(super) fn verdict(&mut self, connection: ConnectionId, publish: &Publish) -> Verdict {
        let Some(why) = self.why_not(connection, publish) else {
            self.status.messages_in.add(1);
            self.status.payload_in.add(publish.payload.len() as u64);
            return Verdict::Take;
        };
        let version = self.clients.get(&connection).map(|client| client.version);
        if version != Some(Version::V5) && publish.packet_id.is_some() {
            return Verdict::Hold;
        }
        self.status.messages_in.add(1);
        self.status.payload_in.add(publish.payload.len() as u64);
        self.status.dropped(why, 1);
        Verdict::Refuse
    }

    fn why_not(&self, connection: ConnectionId, publish: &Publish) -> Option<&'static str> {
        if self.status.disk_full.load(Relaxed) && self.needs_room(connection, publish) {
            return Some("disk_full");
        }
        (!self.refusing.is_empty() && self.is_refused(connection, publish)).then_some("lane_full")
    }

    /// It would be written. Of QoS 0 only what is retained or delayed is, while the disk is full.
    fn needs_room(&self, connection: ConnectionId, publish: &Publish) -> bool {
        publish.packet_id.is_some()
            || publish.retain && !publish.payload.is_empty()
            || self.state.destination(connection, publish).is_some_and(|to| to.delayed)
    }

    fn is_refused(&self, connection: ConnectionId, publish: &Publish) -> bool {
        // QoS 0 has no answer; the store does not keep it in a full lane.
        if publish.packet_id.is_none() {
            return false;
        }
        // A delayed one comes when the lane may have room again, and is then treated as a will is.
        let to = self.state.destination(connection, publish).filter(|to| !to.delayed);
        let Some(to) = to else { return false };
        let takes = |lane: &&LaneHandle| lane.settings.as_ref().is_some_and(|s| s.takes(&to.topic));
        // The first lane that takes a topic has it, so a full one behind another would say no for it.
        let first = self.store.lanes().iter().find(takes);
        first.is_some_and(|lane| lane.status.full.load(Relaxed))
    }
}
