//! PURE. Messages that leave a queue unread: dropped, or sent to its dead-letter exchange in the same transaction that takes
//! them out, so that none is lost or doubled in between.
//!
//! The record stays where it is; the new index entries carry what differs (exchange, key, and properties with `x-death`).

use std::sync::Arc;

use bytestring::ByteString;
use tributary_shared::amqp::{Properties, Table, Value};

use super::{
    Message, QueueId, limits,
    line::Ready,
    plan::{Item, Known, Place},
    state::State,
};

/// Why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Reason {
    Rejected,
    Expired,
    MaxLength,
}

impl Reason {
    /// As `x-death` has it.
    const fn name(self) -> &'static str {
        match self {
            Self::Rejected => "rejected",
            Self::Expired => "expired",
            Self::MaxLength => "maxlen",
        }
    }
}

impl State {
    /// Takes `ready`, which is out of its line already, out of its queue for good.
    pub(super) fn dead_letter(&mut self, id: QueueId, ready: Ready, reason: Reason) {
        self.plan.settled.push((id, ready.position));
        let Some(queue) = self.queues.get(&id) else { return };
        let Some(exchange) = queue.arguments.dead_letter_exchange.clone() else { return };
        let name = queue.name.clone();
        let key = queue.arguments.dead_letter_key.clone();
        let key = key.unwrap_or_else(|| ready.message.routing_key.clone());
        let mut properties =
            Properties::decode(ready.message.properties.clone()).unwrap_or_default();
        let mut headers = properties.headers.take().unwrap_or_default();
        let mut queues = self.route(&exchange, &key, &[], Some(&headers));
        // A message that goes round without anyone rejecting it would go round for ever.
        queues.retain(|to| reason == Reason::Rejected || !self.has_died_in(*to, &headers));
        if queues.is_empty() {
            return;
        }
        let expiration = properties.expiration.take();
        note_death(&mut headers, &ready.message, &name, reason, expiration, self.now_ms);
        properties.headers = Some(headers);
        let mut raw = Vec::new();
        properties.encode(&mut raw);
        let message = Arc::new(Message {
            exchange,
            routing_key: key,
            properties: raw.into(),
            body: ready.message.body.clone(),
            expires_ms: None,
        });
        let places: Vec<Place> = queues.into_iter().filter_map(|to| self.place(to, None)).collect();
        self.plan.bytes += message.size();
        self.plan.items.push(Item::Known(Known { message, at: ready.at, altered: true, places }));
    }

    /// It was dead-lettered from this queue before, and nobody rejected it since it was published.
    fn has_died_in(&self, id: QueueId, headers: &Table) -> bool {
        let Some(queue) = self.queues.get(&id) else { return false };
        let deaths = deaths(headers);
        let text = |death: &Table, name: &str| {
            death.get(name).and_then(Value::as_text).unwrap_or_default().to_owned()
        };
        deaths.iter().any(|death| text(death, "queue") == *queue.name)
            && !deaths.iter().any(|death| text(death, "reason") == "rejected")
    }
}

fn deaths(headers: &Table) -> Vec<Table> {
    let Some(Value::Array(deaths)) = headers.get("x-death") else { return Vec::new() };
    let tables = deaths.iter().filter_map(|death| match death {
        Value::Table(table) => Some(table.clone()),
        _ => None,
    });
    tables.take(limits::DEATHS).collect()
}

/// `x-death`: newest first, one table for each queue and reason, with a count.
fn note_death(
    headers: &mut Table,
    message: &Message,
    queue: &ByteString,
    reason: Reason,
    expiration: Option<bytes::Bytes>,
    now_ms: i64,
) {
    let mut deaths = deaths(headers);
    let is_same = |death: &Table| {
        death.get("queue").and_then(Value::as_text) == Some(&**queue)
            && death.get("reason").and_then(Value::as_text) == Some(reason.name())
    };
    let death = if let Some(at) = deaths.iter().position(is_same) {
        let mut death = deaths.remove(at);
        for (name, value) in &mut death.0 {
            if name == "count" {
                *value = Value::I64(value.as_integer().unwrap_or(0) + 1);
            }
        }
        death
    } else {
        let mut death = Table::default()
            .with("count", Value::I64(1))
            .with("reason", Value::text(reason.name()))
            .with("queue", Value::text(queue))
            .with("time", Value::Timestamp((now_ms / 1000).max(0) as u64))
            .with("exchange", Value::text(&message.exchange))
            .with("routing-keys", Value::Array(vec![Value::text(&message.routing_key)]));
        if let Some(expiration) = expiration {
            death.push("original-expiration", Value::Text(expiration));
        }
        death
    };
    deaths.insert(0, death);
    deaths.truncate(limits::DEATHS);
    let first = headers.get("x-first-death-reason").is_none();
    headers.0.retain(|(name, _)| name != "x-death");
    headers.push("x-death", Value::Array(deaths.into_iter().map(Value::Table).collect()));
    if first {
        headers.push("x-first-death-reason", Value::text(reason.name()));
        headers.push("x-first-death-queue", Value::text(queue));
        headers.push("x-first-death-exchange", Value::text(&message.exchange));
    }
}
