//! PURE. Who gets the next message: consumers take turns, as far as prefetch and the connection's credit allow.

use super::{
    ConnectionId, Event, QueueId,
    dead_letter::Reason,
    limits,
    line::Ready,
    plan::Plan,
    state::{Channel, Connection, Load, Queue, State, Unacked},
    store::{self, Change},
};
use crate::log::StateSpace;
use bytestring::ByteString;
use tributary_shared::amqp::Method;

impl State {
    /// Delivers what can be, from every queue that something happened to.
    pub fn deliver(&mut self) {
        while let Some(id) = self.dirty.pop() {
            if let Some(queue) = self.queues.get_mut(&id) {
                queue.dirty = false;
            }
            self.deliver_queue(id);
        }
    }

    pub(super) fn deliver_queue(&mut self, id: QueueId) {
        self.drop_excess(id);
        loop {
            let Some(queue) = self.queues.get_mut(&id) else { return };
            let Some(head) = queue.line.head() else { break };
            if head.expires_ms.is_some_and(|at| at <= self.now_ms) {
                if let Some(ready) = queue.line.take() {
                    self.dead_letter(id, ready, Reason::Expired);
                }
                continue;
            }
            if let Some((connection, channel, no_ack)) = queue.gets.pop_front() {
                get(
                    queue,
                    id,
                    &mut self.connections,
                    &mut self.plan,
                    &mut self.events,
                    (connection, channel, no_ack),
                );
                continue;
            }
            let size = head.message.size();
            let Some(turn) = next_consumer(queue, &mut self.connections, size) else { break };
            let Some(ready) = queue.line.take() else { break };
            let Some(channel) =
                self.connections.get_mut(&turn.0).and_then(|c| c.channels.get_mut(&turn.1))
            else {
                break;
            };
            let to = turn.0;
            let event = hand_over(queue, id, channel, turn, ready, &mut self.plan);
            self.delivered += 1;
            self.events.push((to, event));
        }
        self.after_delivery(id);
    }

    /// Reads more of the backlog if it runs low, and tells those who wait in vain.
    fn after_delivery(&mut self, id: QueueId) {
        let Some(queue) = self.queues.get_mut(&id) else { return };
        if queue.loading.is_none()
            && let Some((from, until)) = queue.line.wanted()
        {
            queue.loads += 1;
            queue.loading = Some(queue.loads);
            self.loads.push(Load {
                queue: id,
                number: queue.loads,
                from,
                until,
                restored: queue.restored,
            });
        }
        if queue.line.ready() + queue.line.in_flight() == 0 {
            for (connection, channel, _) in queue.gets.drain(..) {
                let method = Method::BasicGetEmpty { cluster_id: ByteString::new() };
                self.events.push((connection, Event::Method { channel, method }));
            }
        }
        self.set_deadline(id);
    }

    /// Takes messages from the head while there are more than the queue may hold.
    fn drop_excess(&mut self, id: QueueId) {
        while let Some(queue) = self.queues.get_mut(&id) {
            let arguments = &queue.arguments;
            let over = arguments.max_length.is_some_and(|max| queue.line.ready() > max)
                || arguments.max_length_bytes.is_some_and(|max| queue.line.ready_bytes() > max);
            let Some(ready) = over.then(|| queue.line.take()).flatten() else { return };
            self.dead_letter(id, ready, Reason::MaxLength);
        }
    }

    /// Marks of published batches that may wait to be removed: about 50 kB of memory.
    const PASSED_MAX: usize = 1024;

    /// What must become durable next, with everything that follows from it.
    pub fn seal(&mut self) -> Plan {
        let mut plan = std::mem::take(&mut self.plan);
        for (id, position) in std::mem::take(&mut plan.settled) {
            plan.changes.push(Change::delete(StateSpace::Queue, store::entry_key(id, position)));
            plan.floors.insert(id);
        }
        for id in std::mem::take(&mut plan.floors) {
            if let Some(queue) = self.queues.get(&id) {
                let floor = queue.line.floor().to_be_bytes().to_vec();
                plan.changes.push(Change::put(StateSpace::QueueAck, store::floor_key(id), floor));
            }
        }
        if plan.save_cursors || self.passed.len() > Self::PASSED_MAX {
            plan.save_cursors = true;
            for (partition, offset) in std::mem::take(&mut self.cursors) {
                let value = offset.to_be_bytes().to_vec();
                plan.changes.push(Change::put(
                    StateSpace::QueueAck,
                    store::cursor_key(partition),
                    value,
                ));
            }
            for (partition, offset) in self.passed.drain(..) {
                plan.changes
                    .push(Change::delete(StateSpace::QueueAck, store::skip_key(partition, offset)));
            }
        }
        plan
    }
}

/// Whose turn it is: connection, channel, tag, without acknowledgement.
type Turn = (ConnectionId, u16, ByteString, bool);

/// The first in the circle that can take a message; it goes to the end.
fn next_consumer(
    queue: &mut Queue,
    connections: &mut std::collections::HashMap<ConnectionId, Connection>,
    size: usize,
) -> Option<Turn> {
    let turns = if queue.arguments.single_active { 1 } else { queue.consumers.len() };
    for _ in 0..turns.min(queue.consumers.len()) {
        let consumer = queue.consumers.front()?;
        let connection = connections.get_mut(&consumer.connection)?;
        let turn = take_turn(connection, consumer.channel, &consumer.tag, size)
            .map(|no_ack| (consumer.connection, consumer.channel, consumer.tag.clone(), no_ack));
        if !queue.arguments.single_active {
            queue.consumers.rotate_left(1);
        }
        if turn.is_some() {
            return turn;
        }
    }
    None
}

/// Takes the credit for one message; `None`: it has none, and wakes the queue when it has. `Some`: whether acks are off.
fn take_turn(
    connection: &mut Connection,
    channel: u16,
    tag: &ByteString,
    size: usize,
) -> Option<bool> {
    if connection.credit <= 0 {
        connection.stalled = true;
        return None;
    }
    let channel = connection.channels.get_mut(&channel)?;
    let consumer = channel.consumers.get_mut(tag)?;
    if !consumer.no_ack {
        let over = |limit: u16, now: usize| limit != 0 && now >= usize::from(limit);
        if over(consumer.prefetch, consumer.outstanding as usize) {
            return None;
        }
        if over(channel.prefetch_all, channel.unacked)
            || channel.unacked >= limits::UNACKED
            || channel.unacked_bytes >= limits::UNACKED_BYTES
        {
            channel.stalled = true;
            return None;
        }
        consumer.outstanding += 1;
    }
    connection.credit -= size as i64;
    Some(consumer.no_ack)
}

fn hand_over(
    queue: &mut Queue,
    id: QueueId,
    channel: &mut Channel,
    turn: Turn,
    ready: Ready,
    plan: &mut Plan,
) -> Event {
    let (_, number, consumer, no_ack) = turn;
    let (message, redelivered) = (ready.message.clone(), ready.redelivered);
    let by = if no_ack { By::NoAck } else { By::Consumer(consumer.clone()) };
    let tag = lend(queue, id, channel, by, ready, plan);
    Event::Deliver { channel: number, consumer, tag, redelivered, message }
}

/// How a message is taken.
enum By {
    Consumer(ByteString),
    Get,
    /// Without acknowledgement: it is settled at once.
    NoAck,
}

/// Notes a delivery.
fn lend(
    queue: &mut Queue,
    id: QueueId,
    channel: &mut Channel,
    by: By,
    ready: Ready,
    plan: &mut Plan,
) -> u64 {
    let consumer = match by {
        By::Consumer(consumer) => Some(consumer),
        By::Get => None,
        By::NoAck => {
            plan.settled.push((id, ready.position));
            return channel.next_tag(None);
        }
    };
    let (position, size) = (ready.position, ready.message.size());
    queue.line.lend(ready);
    channel.next_tag(Some(Unacked { queue: id, position, size, consumer }))
}

/// Answers one `basic.get`; not bound by prefetch or credit, as each asks for one message.
fn get(
    queue: &mut Queue,
    id: QueueId,
    connections: &mut std::collections::HashMap<ConnectionId, Connection>,
    plan: &mut Plan,
    events: &mut Vec<(ConnectionId, Event)>,
    (connection, number, no_ack): (ConnectionId, u16, bool),
) {
    let Some(channel) = connections.get_mut(&connection).and_then(|c| c.channels.get_mut(&number))
    else {
        return;
    };
    let Some(ready) = queue.line.take() else { return };
    let (message, redelivered) = (ready.message.clone(), ready.redelivered);
    let by = if no_ack { By::NoAck } else { By::Get };
    let tag = lend(queue, id, channel, by, ready, plan);
    let left = u32::try_from(queue.line.ready()).unwrap_or(u32::MAX);
    events.push((connection, Event::Got { channel: number, tag, redelivered, left, message }));
}
