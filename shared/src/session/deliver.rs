//! A session's side of delivery: into its queue, out to its client, back from the store.
//!
//! Order of a queue is its seq; nothing overtakes. That a stored session's message is sent, and its packet id, is durable
//! before it is sent (`wait`), or a restart could send it again as if for the first time: without DUP, under another id.
//! Not here: who gets a message (`fanout`), acknowledgements (`acknowledge`).

use std::{cell::OnceCell, sync::Arc};

use bytestring::ByteString;

use super::{
    Change, Decision, Delivery, Effect, Now, Outgoing, Queued, Settings,
    client::{Online, Session},
    event::LoadedEntry,
    queue::{Entry, Releasing, weight},
    size::publish_bytes,
};
use crate::{
    auth::Permissions,
    message::Message,
    mqtt::{
        Version,
        packet::{Ack, Packet, PacketId, Qos, Reason},
    },
};

/// A message for a session.
#[derive(Debug)]
pub(super) struct Offer<'a> {
    pub(super) message: &'a Arc<Message>,
    /// What all sessions that keep it share: [`Message::unshared`], made when the first needs it.
    pub(super) kept: &'a OnceCell<Arc<Message>>,
    /// QoS it goes out with.
    pub(super) qos: Qos,
    /// Retain flag it goes out with.
    pub(super) retain: bool,
    pub(super) subscription_ids: Vec<u32>,
    /// The shared subscription it comes by.
    pub(super) group: Option<ByteString>,
}

impl Session {
    /// Takes a message: sends it, keeps it, or drops and counts it. The queue entry is to be stored by the caller, with the
    /// message, before anything later of this session.
    pub(super) fn offer(
        &mut self,
        offer: Offer<'_>,
        limits: &Settings,
        now: Now,
        out: &mut Decision,
    ) -> Option<Queued> {
        let message = offer.message;
        if message.expires_ms.is_some_and(|at| at <= now.lasting_ms) {
            self.dropped("expired", out);
            return None;
        }
        if offer.qos == Qos::AtMostOnce {
            if let Some(online) = self.online {
                let delivery = Delivery {
                    message: message.clone(),
                    qos: offer.qos,
                    dup: false,
                    retain: offer.retain,
                    packet_id: None,
                    subscription_ids: offer.subscription_ids,
                    expiry_s: expiry_s(message, now),
                };
                if !transmit(online, delivery, out) {
                    self.dropped("packet_too_large", out);
                }
            }
            return None;
        }
        self.enqueue(offer, limits, now, out)
    }

    fn enqueue(
        &mut self,
        offer: Offer<'_>,
        limits: &Settings,
        now: Now,
        out: &mut Decision,
    ) -> Option<Queued> {
        let bytes = weight(offer.message);
        let behind = self.queue.is_behind() || self.online.is_none();
        let direct = self.online.filter(|online| {
            !behind
                && self.queue.waiting.is_empty()
                && self.queue.window_open(bytes, online.window, limits)
        });
        let keep = !behind && self.queue.fits_memory(bytes, limits);
        let fits = if self.stored {
            self.queue.fits_store(bytes, limits)
        } else {
            keep || direct.is_some()
        };
        if !fits {
            self.dropped("queue_full", out);
            return None;
        }
        let mut entry = Entry {
            seq: self.queue.take_seq(bytes),
            qos: offer.qos,
            retain: offer.retain,
            subscription_ids: offer.subscription_ids,
            message: offer.message.clone(),
            packet_id: None,
            group: offer.group,
        };
        if let Some(online) = direct {
            entry.packet_id = Some(self.queue.new_packet_id());
            if !transmit(online, delivery(&entry, false, now), out) {
                self.queue.count_done(bytes);
                self.dropped("packet_too_large", out);
                return None;
            }
            out.wait |= self.stored;
            let queued = self.stored.then(|| entry.queued(self.id, false));
            self.queue.push_sent(entry);
            return queued;
        }
        let queued = self.stored.then(|| entry.queued(self.id, false));
        if keep {
            entry.message = offer.kept.get_or_init(|| Arc::new(offer.message.unshared())).clone();
            self.queue.push_waiting(entry);
        } else {
            self.queue.leave_in_store(entry.seq);
        }
        queued
    }

    /// Sends what the window allows and asks the store for more where memory runs low.
    pub(super) fn pump(&mut self, limits: &Settings, now: Now, out: &mut Decision) {
        let Some(online) = self.online else { return };
        while let Some(front) = self.queue.waiting.front() {
            let again = front.packet_id.is_some();
            let bytes = front.bytes();
            if !again && front.message.expires_ms.is_some_and(|at| at <= now.lasting_ms) {
                self.drop_waiting("expired", out);
                continue;
            }
            if !self.queue.window_open(bytes, online.window, limits) {
                break;
            }
            let Some(mut entry) = self.queue.pop_waiting() else { break };
            if !again {
                entry.packet_id = Some(self.queue.new_packet_id());
            }
            if !transmit(online, delivery(&entry, again, now), out) {
                self.done(entry.seq, bytes, out);
                self.dropped("packet_too_large", out);
                continue;
            }
            if self.stored && !again {
                out.wait = true;
                out.changes.push(Change::Inflight(entry.queued(self.id, false)));
            }
            self.queue.push_sent(entry);
        }
        if let Some((from, max, bytes)) = self.queue.ask(limits) {
            out.wait = true;
            out.effects.push(Effect::Load { session: self.id, from, max, bytes });
        }
    }

    /// Takes an answer of the store; says how many of its messages the client may no longer have.
    pub(super) fn loaded(
        &mut self,
        entries: Vec<LoadedEntry>,
        complete: bool,
        permissions: &Permissions,
        limits: &Settings,
        now: Now,
        out: &mut Decision,
    ) -> u64 {
        let mut forbidden = 0;
        if let (Some(asked), Some(mut from)) = (self.queue.answered(), self.queue.stored_from()) {
            let complete = complete || entries.is_empty();
            for loaded in entries {
                if loaded.queued.seq < from {
                    continue;
                }
                from = loaded.queued.seq + 1;
                forbidden += u64::from(!self.take_loaded(loaded, permissions, out));
            }
            if complete {
                from = from.max(asked);
            }
            self.queue.loaded_up_to(from);
        }
        self.pump(limits, now, out);
        forbidden
    }

    /// Says whether the client may have it.
    fn take_loaded(
        &mut self,
        loaded: LoadedEntry,
        permissions: &Permissions,
        out: &mut Decision,
    ) -> bool {
        let LoadedEntry { queued, message } = loaded;
        self.queue.saw_packet_id(queued.packet_id);
        if let (true, Some(packet_id), Some(online)) =
            (queued.released, queued.packet_id, self.online)
        {
            // MQTT-4.4.0-1: PUBREL is sent again with its id.
            let bytes = message.as_deref().map_or(0, weight);
            self.queue.releasing.push_back(Releasing { seq: queued.seq, packet_id, bytes });
            send(out, online, Packet::PubRel(Ack::new(packet_id, Reason::SUCCESS)));
            return true;
        }
        let Some(message) = message else {
            self.done(queued.seq, 0, out);
            self.dropped("body_lost", out);
            return true;
        };
        if !self.may_have(&message.topic, permissions) {
            self.done(queued.seq, weight(&message), out);
            self.dropped("not_authorized", out);
            return false;
        }
        self.queue.push_waiting(Entry {
            seq: queued.seq,
            qos: queued.qos,
            retain: queued.retain,
            subscription_ids: queued.subscription_ids,
            message: Arc::new(message.unshared()),
            packet_id: queued.packet_id,
            group: None,
        });
        true
    }

    /// An entry needs nothing more.
    pub(super) fn done(&mut self, seq: u64, bytes: usize, out: &mut Decision) {
        self.queue.count_done(bytes);
        if self.stored {
            out.changes.push(Change::Dequeued { session: self.id, seq });
        }
    }

    pub(super) fn dropped(&self, why: &'static str, out: &mut Decision) {
        out.effects.push(Effect::Dropped { session: Some(self.id), why, count: 1 });
    }

    /// PUBREL for an id, as an answer to its PUBREC.
    pub(super) fn send_release(&self, packet_id: PacketId, reason: Reason, out: &mut Decision) {
        if let Some(online) = self.online {
            send(out, online, Packet::PubRel(Ack::new(packet_id, reason)));
        }
    }

    fn drop_waiting(&mut self, why: &'static str, out: &mut Decision) {
        if let Some(entry) = self.queue.pop_waiting() {
            self.done(entry.seq, entry.bytes(), out);
            self.dropped(why, out);
        }
    }
}

/// Puts a packet on a connection's outbox.
pub(super) fn send(out: &mut Decision, online: Online, packet: Packet) {
    let outgoing = Outgoing::Packet(Box::new(packet));
    out.effects.push(Effect::Send { connection: online.connection, outgoing });
}

/// Sends a message unless the client does not take packets of that size (MQTT-3.1.2-25).
fn transmit(online: Online, delivery: Delivery, out: &mut Decision) -> bool {
    if let (Some(limit), Version::V5) = (online.packet_bytes, online.version)
        && publish_bytes(&delivery) > limit as usize
    {
        return false;
    }
    let outgoing = Outgoing::Publish(delivery);
    out.effects.push(Effect::Send { connection: online.connection, outgoing });
    true
}

fn delivery(entry: &Entry, dup: bool, now: Now) -> Delivery {
    Delivery {
        message: entry.message.clone(),
        qos: entry.qos,
        dup,
        retain: entry.retain,
        packet_id: entry.packet_id,
        subscription_ids: entry.subscription_ids.clone(),
        expiry_s: expiry_s(&entry.message, now),
    }
}

/// What is left of the expiry, rounded up (MQTT-3.3.2-6).
pub(super) fn expiry_s(message: &Message, now: Now) -> Option<u32> {
    let left_ms = message.expires_ms?.saturating_sub(now.lasting_ms).max(0);
    Some(u32::try_from((left_ms.saturating_add(999)) / 1000).unwrap_or(u32::MAX))
}
