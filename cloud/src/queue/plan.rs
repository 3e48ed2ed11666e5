//! PURE. What must become durable next, as one transaction, and what happens then.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tributary_shared::amqp::{Method, Refusal};

use super::{
    ConnectionId, Event, Message, QueueId,
    line::Ready,
    message::At,
    store::{Change, Entry, entry_key},
};
use crate::log::StateSpace;

/// A message's place in one queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Queue.
    pub queue: QueueId,
    /// Position.
    pub position: u64,
    /// When it leaves the queue, ms since 1970.
    pub expires_ms: Option<i64>,
}

/// A message that has no record yet.
#[derive(Debug)]
pub struct Fresh {
    /// What.
    pub message: Arc<Message>,
    /// Where it goes.
    pub places: Vec<Place>,
}

/// A message that has one: of another protocol, or dead-lettered.
#[derive(Debug)]
pub struct Known {
    /// What.
    pub message: Arc<Message>,
    /// Its record.
    pub at: At,
    /// Exchange, key and properties are not the record's.
    pub altered: bool,
    /// Where it goes.
    pub places: Vec<Place>,
}

impl Known {
    /// Writes its index entries.
    pub fn changes(&self) -> impl Iterator<Item = Change> + '_ {
        self.places.iter().map(|place| change(place, self.at, &self.message, self.altered))
    }
}

/// The index entry of a message in a queue.
pub fn change(place: &Place, at: At, message: &Message, altered: bool) -> Change {
    let overlay = altered.then(|| {
        (message.exchange.clone(), message.routing_key.clone(), message.properties.clone())
    });
    let size = u32::try_from(message.body.len()).unwrap_or(u32::MAX);
    let entry = Entry { at, expires_ms: place.expires_ms, size, overlay };
    Change::put(StateSpace::Queue, entry_key(place.queue, place.position), entry.encode())
}

/// What a place becomes once it is durable.
pub fn ready(place: &Place, at: At, message: &Arc<Message>) -> (QueueId, Ready) {
    let ready = Ready {
        position: place.position,
        at,
        message: message.clone(),
        redelivered: false,
        expires_ms: place.expires_ms,
    };
    (place.queue, ready)
}

/// One message in the order in which queues get them.
#[derive(Debug)]
#[allow(missing_docs)]
pub enum Item {
    Fresh(Fresh),
    Known(Known),
}

/// See the module.
#[derive(Debug, Default)]
pub struct Plan {
    /// Messages, in order.
    pub items: Vec<Item>,
    /// Definitions and the like.
    pub changes: Vec<Change>,
    /// Entries that are settled.
    pub settled: Vec<(QueueId, u64)>,
    /// Queues whose floor may have moved.
    pub floors: BTreeSet<QueueId>,
    /// The router's cursors must be saved with it.
    pub save_cursors: bool,
    /// Bytes of messages without a record.
    pub bytes: usize,
    confirms: BTreeMap<(ConnectionId, u16), u64>,
    after: Vec<(ConnectionId, Event)>,
}

impl Plan {
    /// Nothing to store and nobody to tell.
    pub fn is_empty(&self) -> bool {
        self.has_nothing_to_store() && self.confirms.is_empty() && self.after.is_empty()
    }

    /// Nothing to store.
    pub fn has_nothing_to_store(&self) -> bool {
        self.items.is_empty()
            && self.changes.is_empty()
            && self.settled.is_empty()
            && !self.save_cursors
    }

    /// Nothing but settled entries: nobody waits for it.
    pub fn is_only_settled(&self) -> bool {
        self.items.is_empty()
            && self.changes.is_empty()
            && !self.save_cursors
            && self.confirms.is_empty()
            && self.after.is_empty()
    }

    /// The publish with this sequence number is confirmed when the plan is durable.
    pub fn confirm(&mut self, connection: ConnectionId, channel: u16, tag: u64) {
        let last = self.confirms.entry((connection, channel)).or_default();
        *last = tag.max(*last);
    }

    /// The publish with this sequence number was refused by a queue; told in its turn.
    pub fn deny(&mut self, connection: ConnectionId, channel: u16, tag: u64) {
        let event = Event::Confirm { channel, tag, multiple: false, ok: false };
        self.after.push((connection, event));
    }

    /// Answered when the plan is durable.
    pub fn answer(&mut self, connection: ConnectionId, channel: u16, method: Method) {
        self.after.push((connection, Event::Method { channel, method }));
    }

    /// What to tell whom, if the plan became durable, or why it could not.
    pub fn events(&mut self, outcome: Result<(), &Refusal>) -> Vec<(ConnectionId, Event)> {
        let mut events = std::mem::take(&mut self.after);
        if let Err(refusal) = outcome {
            for (_, event) in &mut events {
                if let Event::Method { channel, .. } = event {
                    *event = Event::Refused { channel: *channel, refusal: refusal.clone() };
                }
            }
        }
        for ((connection, channel), tag) in std::mem::take(&mut self.confirms) {
            let event = Event::Confirm { channel, tag, multiple: true, ok: outcome.is_ok() };
            events.push((connection, event));
        }
        events
    }
}
