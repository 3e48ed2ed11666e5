//! `basic.publish` and records of other protocols: which queues get a message.

use std::sync::Arc;

use bytestring::ByteString;
use tributary_shared::amqp::{Code, Refusal, Table, Value};

use crate::queue::{
    ConnectionId, Event, Message, Publish, QueueId, TOPIC_EXCHANGE,
    arguments::Overflow,
    exchange::route,
    limits,
    message::{self, At as RecordAt},
    plan::{Fresh, Item, Known, Place},
    router::Routed,
    state::{Answer, Mode, State},
};

type At = (ConnectionId, u16);

impl State {
    pub(in crate::queue) fn publish(
        &mut self,
        connection: ConnectionId,
        channel: u16,
        publish: Publish,
    ) -> Answer {
        let at = (connection, channel);
        self.check_publish(connection, &publish)?;
        let Some(state) = self.channel(connection, channel) else { return Ok(()) };
        let tag = match &mut state.mode {
            Mode::Plain => None,
            Mode::Confirm(last) => {
                *last += 1;
                Some(*last)
            }
            Mode::Transaction(transaction) => {
                transaction.bytes += publish.body.len() + publish.raw.len() + 64;
                if transaction.bytes > limits::TRANSACTION_BYTES {
                    return Err(Refusal::new(Code::PreconditionFailed, "transaction is too large"));
                }
                transaction.publishes.push(publish);
                return Ok(());
            }
        };
        self.enqueue(at, publish, tag);
        Ok(())
    }

    fn check_publish(&self, connection: ConnectionId, publish: &Publish) -> Answer {
        if !publish.exchange.is_empty() {
            let exchange = self.exchanges.get(&publish.exchange);
            let exchange = exchange.ok_or_else(|| self.no_exchange(&publish.exchange))?;
            if exchange.declared.internal {
                let detail = format!(
                    "cannot publish to internal exchange '{}' in vhost '{}'",
                    publish.exchange, self.name
                );
                return Err(Refusal::new(Code::AccessRefused, detail));
            }
        }
        if let (Some(id), Some(connection)) =
            (&publish.properties.user_id, self.connections.get(&connection))
            && **id != *connection.user.as_bytes()
        {
            let detail = format!(
                "user_id property set to '{}' but authenticated user was '{}'",
                String::from_utf8_lossy(id),
                connection.user
            );
            return Err(Refusal::new(Code::PreconditionFailed, detail));
        }
        if let Err(text) = message::expires_ms(&publish.properties, self.now_ms) {
            let detail = format!("invalid expiration '{}'", String::from_utf8_lossy(&text));
            return Err(Refusal::new(Code::PreconditionFailed, detail));
        }
        Ok(())
    }

    /// Routes one message; `tag` is to be confirmed when it is durable, or at once in its turn if nothing is stored.
    pub(super) fn enqueue(&mut self, at: At, publish: Publish, tag: Option<u64>) {
        self.published += 1;
        let Publish { exchange, routing_key, mandatory, properties, raw, body } = publish;
        let expires_ms = message::expires_ms(&properties, self.now_ms).unwrap_or_default();
        let copies = carbon_copies(properties.headers.as_ref());
        let message =
            Arc::new(Message { exchange, routing_key, properties: raw, body, expires_ms });
        let queues = self.route(
            &message.exchange,
            &message.routing_key,
            &copies,
            properties.headers.as_ref(),
        );
        if queues.is_empty() && mandatory {
            let event = Event::Return { channel: at.1, message: message.clone() };
            self.events.push((at.0, event));
        }
        let Ok(places) = self.places(&queues, &message) else {
            if let Some(tag) = tag {
                self.plan.deny(at.0, at.1, tag);
            }
            return;
        };
        if !places.is_empty() || message.topic().is_some() {
            self.plan.bytes += message.size();
            self.plan.items.push(Item::Fresh(Fresh { message, places }));
        }
        if let Some(tag) = tag {
            self.plan.confirm(at.0, at.1, tag);
        }
    }

    /// Queues of an exchange and key; the default exchange leads to the queue of that name.
    pub(in crate::queue) fn route(
        &self,
        exchange: &ByteString,
        key: &str,
        copies: &[ByteString],
        headers: Option<&Table>,
    ) -> Vec<QueueId> {
        let keys: Vec<&str> =
            std::iter::once(key).chain(copies.iter().map(|copy| &**copy)).collect();
        if exchange.is_empty() {
            let mut queues: Vec<QueueId> =
                keys.iter().filter_map(|key| self.names.get(*key).copied()).collect();
            queues.sort_unstable();
            queues.dedup();
            return queues;
        }
        route(&self.exchanges, exchange, &keys, headers)
    }

    /// Places in queues; `Err`: one that refuses publishes is full.
    fn places(&mut self, queues: &[QueueId], message: &Message) -> Result<Vec<Place>, ()> {
        let full = |id: &QueueId| {
            self.queues.get(id).is_some_and(|queue| {
                let arguments = &queue.arguments;
                let over = arguments.max_length.is_some_and(|max| queue.line.ready() >= max)
                    || arguments.max_length_bytes.is_some_and(|max| {
                        queue.line.ready_bytes() + message.body.len() as u64 > max
                    });
                over && arguments.overflow != Overflow::DropHead
            })
        };
        if queues.iter().any(full) {
            return Err(());
        }
        Ok(queues.iter().filter_map(|id| self.place(*id, message.expires_ms)).collect())
    }

    /// The next place in a queue.
    pub(in crate::queue) fn place(
        &mut self,
        id: QueueId,
        expires_ms: Option<i64>,
    ) -> Option<Place> {
        let now_ms = self.now_ms;
        let queue = self.queues.get_mut(&id)?;
        let ttl = queue.arguments.message_ttl_ms.map(|ttl| now_ms.saturating_add(ttl));
        let expires_ms = [ttl, expires_ms].into_iter().flatten().min();
        Some(Place { queue: id, position: queue.line.assign(), expires_ms })
    }

    /// Records of other protocols go through `amq.topic`; the cursor moves with them.
    pub(in crate::queue) fn routed(&mut self, routed: Routed) {
        let exchange = ByteString::from_static(TOPIC_EXCHANGE);
        let mut matched = false;
        for record in routed.records {
            let queues = self.route(&exchange, &record.routing_key, &[], None);
            if queues.is_empty() {
                continue;
            }
            matched = true;
            let at = RecordAt { partition: routed.partition, offset: record.offset };
            let message = Arc::new(Message::from_record(&record.record, at, &routed.stream));
            self.plan.bytes += message.size();
            let places: Vec<Place> =
                queues.iter().filter_map(|id| self.place(*id, message.expires_ms)).collect();
            self.plan.items.push(Item::Known(Known { message, at, altered: false, places }));
        }
        self.cursors.insert(routed.partition, routed.next);
        self.passed.extend(routed.passed.into_iter().map(|offset| (routed.partition, offset)));
        self.plan.save_cursors |= matched;
    }
}

/// Further keys of the headers `CC` and `BCC`; at most 32.
fn carbon_copies(headers: Option<&Table>) -> Vec<ByteString> {
    let Some(headers) = headers else { return Vec::new() };
    let list = |name: &str| match headers.get(name) {
        Some(Value::Array(keys)) => keys.clone(),
        _ => Vec::new(),
    };
    let keys = list("CC").into_iter().chain(list("BCC")).take(32);
    keys.filter_map(|key| key.as_text().map(ByteString::from)).collect()
}
