//! The QoS 1 and 2 messages on their way to one client, in order.
//!
//! ```text
//!  seq  1 2 3 | 4 5 6 7     | 8 9 .. next_seq
//!       sent  | waiting     | only in the store, from `stored_from` on
//! ```
//! Holds: entries, packet ids, the bounds of memory. A session that outlives its connection has every entry in the store
//! too, so when its client goes all of this is forgotten (`stored_from` = the lowest seq) and comes back by loading.
//! Not here: what is stored and sent when (`deliver`).

use std::{collections::VecDeque, sync::Arc};

use bytestring::ByteString;

use super::{Queued, SessionId, Settings, restored::RestoredQueue};
use crate::{
    message::Message,
    mqtt::packet::{PacketId, Qos},
};

/// One message for one client.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) seq: u64,
    pub(super) qos: Qos,
    pub(super) retain: bool,
    pub(super) subscription_ids: Vec<u32>,
    pub(super) message: Arc<Message>,
    /// Set once sent, on this connection or (then it is a redelivery) an earlier one.
    pub(super) packet_id: Option<PacketId>,
    /// The shared subscription it came by.
    pub(super) group: Option<ByteString>,
}

impl Entry {
    pub(super) fn bytes(&self) -> usize {
        weight(&self.message)
    }

    pub(super) fn queued(&self, session: SessionId, released: bool) -> Queued {
        Queued {
            session,
            seq: self.seq,
            qos: self.qos,
            retain: self.retain,
            subscription_ids: self.subscription_ids.clone(),
            packet_id: self.packet_id,
            released,
        }
    }
}

/// What a message counts for in limits of bytes.
pub(super) fn weight(message: &Message) -> usize {
    message.weight()
}

/// PUBREC came; PUBREL was sent, PUBCOMP is missing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Releasing {
    pub(super) seq: u64,
    pub(super) packet_id: PacketId,
    pub(super) bytes: usize,
}

/// The question to the store that is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Load {
    None,
    /// Asked when `next_seq` was this: an answer that says "complete" says so up to here.
    Asked(u64),
    /// Asked by an earlier connection: its answer is not to be used.
    Stale,
}

/// The queue.
#[derive(Debug)]
pub(super) struct Queue {
    /// Sent on this connection, not acknowledged, in the order sent.
    pub(super) sent: VecDeque<Entry>,
    /// In the order of their PUBREC.
    pub(super) releasing: VecDeque<Releasing>,
    /// Not sent on this connection.
    pub(super) waiting: VecDeque<Entry>,
    sent_bytes: usize,
    waiting_bytes: usize,
    stored_from: Option<u64>,
    load: Load,
    next_seq: u64,
    last_packet_id: u16,
    /// So many ids after the last one are not in use.
    free_packet_ids: u16,
    messages: u64,
    bytes: u64,
}

impl Queue {
    pub(super) fn new() -> Self {
        Self::restored(RestoredQueue::default(), 1)
    }

    /// Of a session that was stored; nothing is in memory.
    pub(super) fn restored(queue: RestoredQueue, next_seq: u64) -> Self {
        Self {
            sent: VecDeque::new(),
            releasing: VecDeque::new(),
            waiting: VecDeque::new(),
            sent_bytes: 0,
            waiting_bytes: 0,
            stored_from: (queue.messages > 0).then_some(queue.first_seq),
            load: Load::None,
            next_seq: next_seq.max(queue.last_seq + 1).max(1),
            last_packet_id: 0,
            free_packet_ids: 0,
            messages: queue.messages,
            bytes: queue.bytes,
        }
    }

    pub(super) fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// All entries, wherever they are.
    pub(super) fn messages(&self) -> u64 {
        self.messages
    }

    /// Bytes of them.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The store has entries that are not in memory.
    pub(super) fn is_behind(&self) -> bool {
        self.stored_from.is_some()
    }

    /// A store of this size has room for one more.
    pub(super) fn fits_store(&self, bytes: usize, limits: &Settings) -> bool {
        self.messages < limits.queue_stored_messages
            && self.bytes.saturating_add(bytes as u64) <= limits.queue_stored_bytes
    }

    /// Memory has room for one more.
    pub(super) fn fits_memory(&self, bytes: usize, limits: &Settings) -> bool {
        self.waiting.len() < limits.queue_messages
            && self.waiting_bytes.saturating_add(bytes) <= limits.queue_bytes
    }

    /// Less than half full: the time to make more (retained messages, turns of a shared subscription).
    pub(super) fn is_roomy(&self, limits: &Settings) -> bool {
        self.stored_from.is_none()
            && self.waiting.len() <= limits.queue_messages / 2
            && self.waiting_bytes <= limits.queue_bytes / 2
    }

    /// The client takes one more of this size.
    pub(super) fn window_open(&self, bytes: usize, window: u16, limits: &Settings) -> bool {
        let inflight = self.sent.len() + self.releasing.len();
        inflight < usize::from(window)
            && (self.sent.is_empty()
                || self.sent_bytes.saturating_add(bytes) <= limits.inflight_bytes)
    }

    /// Counts a new entry and gives its seq.
    pub(super) fn take_seq(&mut self, bytes: usize) -> u64 {
        let seq = self.next_seq;
        self.next_seq += 1;
        self.messages += 1;
        self.bytes += bytes as u64;
        seq
    }

    /// An entry is done: gone from here and, where it is stored, to be removed there.
    pub(super) fn count_done(&mut self, bytes: usize) {
        self.messages = self.messages.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes as u64);
    }

    /// The entry `seq` and all after it are in the store only.
    pub(super) fn leave_in_store(&mut self, seq: u64) {
        self.stored_from.get_or_insert(seq);
    }

    pub(super) fn push_waiting(&mut self, entry: Entry) {
        self.waiting_bytes += entry.bytes();
        self.waiting.push_back(entry);
    }

    pub(super) fn pop_waiting(&mut self) -> Option<Entry> {
        let entry = self.waiting.pop_front()?;
        self.waiting_bytes -= entry.bytes();
        Some(entry)
    }

    pub(super) fn push_sent(&mut self, entry: Entry) {
        self.sent_bytes += entry.bytes();
        self.sent.push_back(entry);
    }

    /// Takes out a sent entry that `which` accepts; acknowledgements come in order, so this looks at the front first.
    pub(super) fn take_sent(&mut self, which: impl Fn(&Entry) -> bool) -> Option<Entry> {
        let at = self.sent.iter().position(which)?;
        let entry = self.sent.remove(at)?;
        self.sent_bytes -= entry.bytes();
        Some(entry)
    }

    pub(super) fn take_releasing(&mut self, packet_id: PacketId) -> Option<Releasing> {
        let at = self.releasing.iter().position(|one| one.packet_id == packet_id)?;
        self.releasing.remove(at)
    }

    /// Ids go on after one that an earlier connection used.
    pub(super) fn saw_packet_id(&mut self, id: Option<PacketId>) {
        self.last_packet_id = id.map_or(self.last_packet_id, PacketId::get);
        self.free_packet_ids = 0;
    }

    /// A packet id that is not in use. Every entry that has one lies before those that have none, so it is in `sent` or
    /// `releasing`; there are fewer of them than ids (MQTT-2.2.1-3).
    pub(super) fn new_packet_id(&mut self) -> PacketId {
        while self.free_packet_ids == 0 {
            self.free_packet_ids = self.next_used_packet_id() - 1;
            if self.free_packet_ids == 0 {
                self.last_packet_id = after(self.last_packet_id);
            }
        }
        self.free_packet_ids -= 1;
        self.last_packet_id = after(self.last_packet_id);
        PacketId::new(self.last_packet_id).unwrap_or(PacketId::MIN)
    }

    /// How far the next id that is in use is from the last one that was given out; ids go round.
    fn next_used_packet_id(&self) -> u16 {
        let sent = self.sent.iter().filter_map(|entry| entry.packet_id);
        let used = sent.chain(self.releasing.iter().map(|one| one.packet_id));
        let last = self.last_packet_id;
        let distance = |id: PacketId| match id.get() {
            id if id > last => id - last,
            id => u16::MAX - (last - id),
        };
        used.map(distance).min().unwrap_or(u16::MAX)
    }

    /// What to ask the store for now: first seq, entries, bytes.
    pub(super) fn ask(&mut self, limits: &Settings) -> Option<(u64, usize, usize)> {
        let from = self.stored_from?;
        let low = self.waiting.len() <= limits.queue_messages / 4
            && self.waiting_bytes <= limits.queue_bytes / 4;
        if self.load != Load::None || !low {
            return None;
        }
        self.load = Load::Asked(self.next_seq);
        let max = limits.queue_messages.saturating_sub(self.waiting.len()).max(1);
        Some((from, max, limits.queue_bytes.saturating_sub(self.waiting_bytes).max(1)))
    }

    /// An answer came: the `next_seq` of its question; `None` if it is of no use.
    pub(super) fn answered(&mut self) -> Option<u64> {
        match std::mem::replace(&mut self.load, Load::None) {
            Load::Asked(next_seq) => Some(next_seq),
            Load::None | Load::Stale => None,
        }
    }

    /// All before `from` was looked at; what the store still has begins there.
    pub(super) fn loaded_up_to(&mut self, from: u64) {
        self.stored_from = (from < self.next_seq).then_some(from);
        if self.stored_from.is_none() {
            (self.messages, self.bytes) = self.held();
        }
    }

    /// Messages and bytes in memory.
    fn held(&self) -> (u64, u64) {
        let messages = self.sent.len() + self.releasing.len() + self.waiting.len();
        let releasing: usize = self.releasing.iter().map(|one| one.bytes).sum();
        (messages as u64, (self.sent_bytes + self.waiting_bytes + releasing) as u64)
    }

    /// The host dropped entries of this queue from the store. Those of them that are in memory count until they are done.
    pub(super) fn trimmed(&mut self, messages: u64, bytes: u64) {
        let held = self.held();
        self.messages = self.messages.saturating_sub(messages).max(held.0);
        self.bytes = self.bytes.saturating_sub(bytes).max(held.1);
    }

    /// First seq that is in the store only.
    pub(super) fn stored_from(&self) -> Option<u64> {
        self.stored_from
    }

    /// The client is gone and everything is stored: keeps no body.
    pub(super) fn forget(&mut self) {
        let sent = self.sent.iter().chain(&self.waiting).map(|entry| entry.seq);
        let lowest =
            sent.chain(self.releasing.iter().map(|one| one.seq)).chain(self.stored_from).min();
        self.stored_from = lowest;
        self.sent = VecDeque::new();
        self.waiting = VecDeque::new();
        self.releasing = VecDeque::new();
        self.sent_bytes = 0;
        self.waiting_bytes = 0;
        if self.load != Load::None {
            self.load = Load::Stale;
        }
    }

    /// Entries in memory that may go to another member of their shared subscription.
    pub(super) fn movable(&self) -> Vec<Entry> {
        let movable = |entry: &&Entry| {
            entry.group.is_some() && (entry.packet_id.is_none() || entry.qos == Qos::AtLeastOnce)
        };
        self.sent.iter().chain(&self.waiting).filter(movable).cloned().collect()
    }

    /// Takes out entries in memory, given by seq (ascending) and bytes.
    pub(super) fn remove(&mut self, entries: &[(u64, usize)]) {
        let stays =
            |entry: &Entry| entries.binary_search_by_key(&entry.seq, |(seq, _)| *seq).is_err();
        self.sent.retain(stays);
        self.waiting.retain(stays);
        self.sent_bytes = self.sent.iter().map(Entry::bytes).sum();
        self.waiting_bytes = self.waiting.iter().map(Entry::bytes).sum();
    }
}

/// 0 is no packet id.
fn after(id: u16) -> u16 {
    id.checked_add(1).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::mqtt::{packet::PublishProperties, write::Encoded};

    fn releasing(id: u16) -> Releasing {
        Releasing { seq: 1, packet_id: PacketId::new(id).unwrap(), bytes: 0 }
    }

    fn entry(seq: u64, payload: &'static [u8]) -> Entry {
        let message = Message {
            topic: "t".into(),
            payload: Bytes::from_static(payload),
            qos: Qos::AtLeastOnce,
            retain: false,
            properties: PublishProperties::default(),
            publisher: None,
            received_ms: 0,
            expires_ms: None,
            encoded: Encoded::default(),
            place: None,
        };
        Entry {
            seq,
            qos: Qos::AtLeastOnce,
            retain: false,
            subscription_ids: Vec::new(),
            message: Arc::new(message),
            packet_id: None,
            group: None,
        }
    }

    #[test]
    fn what_was_trimmed_in_the_store_counts_once_while_it_is_in_memory() {
        let mut queue = Queue::new();
        let stored_only = queue.take_seq(100);
        queue.leave_in_store(stored_only);
        let (sent, waiting) = (queue.take_seq(5), queue.take_seq(5));
        queue.push_sent(entry(sent, b"four"));
        queue.push_waiting(entry(waiting, b"four"));
        queue.releasing.push_back(Releasing { bytes: 5, ..releasing(7) });
        queue.take_seq(5);
        queue.trimmed(3, 110);
        assert_eq!((queue.messages(), queue.bytes()), (3, 15));
        for left in [10, 5, 0] {
            queue.count_done(5);
            assert_eq!(queue.bytes(), left);
        }
    }

    #[test]
    fn packet_ids_go_round_and_pass_over_those_in_use() {
        for last in [0, 1, 2, 99, 100, 101, 65_533, 65_534, 65_535] {
            let mut queue = Queue::new();
            queue.last_packet_id = last;
            queue.releasing = [1, 100, 101, 65_534, 65_535].map(releasing).into();
            let given: Vec<u16> = (0..70_000).map(|_| queue.new_packet_id().get()).collect();
            let mut id = last;
            for given in given {
                id = after(id);
                while [1, 100, 101, 65_534, 65_535].contains(&id) {
                    id = after(id);
                }
                assert_eq!(given, id, "after {last}");
            }
        }
    }

    #[test]
    fn ids_that_an_earlier_connection_used_are_passed_over() {
        let mut queue = Queue::new();
        assert_eq!(queue.new_packet_id().get(), 1);
        queue.releasing.push_back(releasing(3));
        queue.saw_packet_id(PacketId::new(3));
        queue.saw_packet_id(None);
        queue.last_packet_id = 1;
        assert_eq!((queue.new_packet_id().get(), queue.new_packet_id().get()), (2, 4));
    }
}
