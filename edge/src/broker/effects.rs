//! What is done at once, what waits for the store, and what is done when that is durable.
//!
//! In: effects with their tickets, [`Progress`](crate::store::Progress). Out: packets on outboxes, answers to parts of the edge.
//! Change here: how an effect waits, and is done. Not here: which wait (`shared::session`).

use tributary_shared::{
    mqtt::Packet,
    session::{Change, ConnectionId, Effect, Event, Outgoing},
    tasks,
};

use super::{Broker, CHANGE_BYTES, Due};
use crate::store::Error;

impl Broker {
    /// Does an effect, or puts it in the line of those that wait. What need not wait stays behind what its connection
    /// waits for already.
    pub(super) fn place(&mut self, effect: Effect, wait: bool, ticket: u64) {
        let wait = wait && ticket > self.committed;
        let Some(connection) = connection_of(&effect) else {
            return if wait {
                self.due.push_back((ticket, Due::Effect(effect)));
            } else {
                self.act(effect);
            };
        };
        let Some(client) = self.clients.get_mut(&connection) else { return };
        let last = client.waiting.back().map(|(ticket, _)| *ticket);
        let behind = if wait { Some(ticket) } else { last };
        let Some(ticket) = behind else { return self.act(effect) };
        if last != Some(ticket) {
            self.due.push_back((ticket, Due::Client(connection)));
        }
        client.waiting.push_back((ticket, effect));
        self.waiting += 1;
    }

    fn act(&mut self, effect: Effect) {
        match effect {
            Effect::Send { connection, outgoing } => {
                let Some(client) = self.clients.get(&connection) else { return };
                match &outgoing {
                    Outgoing::Publish(delivery) => {
                        self.status.messages_out.add(1);
                        self.status.payload_out.add(delivery.message.payload.len() as u64);
                    }
                    Outgoing::Packet(packet) => {
                        if is_promise(packet) {
                            self.status.messages_acked.add(1);
                        }
                    }
                }
                if client.outbox.send(outgoing).is_err() {
                    self.status.dropped("slow_client", 1);
                }
            }
            Effect::Close { connection, reason } => {
                tracing::debug!(connection = connection.0, reason = reason.0, "closing");
                if let Some(client) = self.clients.get(&connection) {
                    client.outbox.close();
                }
            }
            Effect::Load { session, from, max, bytes } => {
                let (store, loaded) = (self.store.clone(), self.loads.0.clone());
                tasks::spawn("load", async move {
                    let found = store.load(session, from, max, bytes).await;
                    // A broker that is gone needs no answer.
                    let _gone = loaded.send((session, found)).await;
                });
            }
            Effect::Dropped { why, .. } => self.status.dropped(why, 1),
        }
    }

    /// Gives the collected changes to the store, as one group.
    pub(super) async fn hand_over(&mut self) -> Result<(), Error> {
        if self.out.changes.is_empty() {
            return Ok(());
        }
        let changes = std::mem::take(&mut self.out.changes);
        let bytes = changes.iter().map(weight).sum();
        let ticket = self.journal.apply(changes).await?;
        self.under_way.push_back((ticket, bytes));
        self.bytes += bytes;
        Ok(())
    }

    /// What became durable may be told.
    pub(super) fn committed(&mut self) -> Result<(), Error> {
        {
            let progress = self.progress.borrow_and_update();
            if let Some(error) = &progress.failed {
                return Err(error.clone());
            }
            self.committed = progress.committed;
        }
        while let Some((_, bytes)) = self.under_way.pop_front_if(|(t, _)| *t <= self.committed) {
            self.bytes -= bytes;
        }
        self.settle();
        for (session, (messages, bytes)) in self.store.take_trimmed() {
            self.decide(Event::Trimmed { session, messages, bytes }, self.clock.now());
        }
        self.release();
        Ok(())
    }

    /// Does what no longer has to wait.
    pub(super) fn settle(&mut self) {
        while let Some((_, due)) = self.due.pop_front_if(|(t, _)| *t <= self.committed) {
            match due {
                Due::Effect(effect) => self.act(effect),
                Due::Client(connection) => self.catch_up(connection),
                Due::Answer(done) => drop(done.send(())),
            }
        }
    }

    /// Does what a connection no longer has to wait for.
    fn catch_up(&mut self, connection: ConnectionId) {
        let Some(client) = self.clients.get_mut(&connection) else { return };
        let mut waiting = std::mem::take(&mut client.waiting);
        while let Some((_, effect)) = waiting.pop_front_if(|(t, _)| *t <= self.committed) {
            self.waiting -= 1;
            self.act(effect);
        }
        if let Some(client) = self.clients.get_mut(&connection) {
            client.waiting = waiting;
        }
    }
}

/// PUBACK and PUBREC that say yes.
fn is_promise(packet: &Packet) -> bool {
    match packet {
        Packet::PubAck(ack) | Packet::PubRec(ack) => !ack.reason.is_error(),
        _ => false,
    }
}

fn connection_of(effect: &Effect) -> Option<ConnectionId> {
    match effect {
        Effect::Send { connection, .. } | Effect::Close { connection, .. } => Some(*connection),
        Effect::Load { .. } | Effect::Dropped { .. } => None,
    }
}

fn weight(change: &Change) -> usize {
    let message = match change {
        Change::Message { message, .. } | Change::Enqueued { message, .. } => Some(message),
        Change::Retained { message, .. } => message.as_ref(),
        Change::Delayed(saved) => Some(&saved.message),
        _ => None,
    };
    CHANGE_BYTES + message.map_or(0, |message| message.payload.len() + message.topic.len())
}
