//! Every stored key and value of a virtual host, each with its reader beside its writer.
//!
//! ```text
//! Amqp      vhost 0 'x' name                      -> table: kind durable auto_delete internal arguments
//! Amqp      vhost 0 'q' name                      -> table: id durable auto_delete arguments
//! Amqp      vhost 0 'b' source 0 table           -> 1; the table: queue | exchange, key, arguments
//! Amqp      vhost 0 'n'                           -> u64: ids below were used for queues
//! Queue     queue u64 | position u64              -> Entry
//! QueueAck  'f' queue u64                         -> u64: nothing is stored below this position
//! QueueAck  'p' queue u64 | from u64              -> u64: entries [from, value) are purged, though not all removed yet
//! QueueAck  'c' partition u64                     -> i64: the router has seen everything below this offset
//! QueueAck  's' partition u64 | offset i64        -> u32: this many records from here on were indexed when published
//! ```
//! Definitions are AMQP field tables. Pure.

use bytes::{Buf, BufMut, Bytes};
use bytestring::ByteString;
use tributary_shared::amqp::{Table, Value, wire::Reader};

use super::{
    QueueId,
    exchange::{Binding, Declared, Destination, Kind},
    message::At,
};
use crate::log::{Offset, PartitionId, StateSpace};

/// A change of a key; `None` removes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Space.
    pub space: StateSpace,
    /// Key inside the space.
    pub key: Vec<u8>,
    /// New value.
    pub value: Option<Vec<u8>>,
}

impl Change {
    /// Sets a key.
    pub fn put(space: StateSpace, key: Vec<u8>, value: Vec<u8>) -> Self {
        Self { space, key, value: Some(value) }
    }

    /// Removes a key.
    pub fn delete(space: StateSpace, key: Vec<u8>) -> Self {
        Self { space, key, value: None }
    }
}

/// A message's place in a queue's index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its record.
    pub at: At,
    /// When it leaves the queue, ms since 1970; `None`: never.
    pub expires_ms: Option<i64>,
    /// Bytes of its body.
    pub size: u32,
    /// Exchange, key and properties where they differ from the record's (it was dead-lettered).
    pub overlay: Option<(ByteString, ByteString, Bytes)>,
}

/// Key of an entry.
pub fn entry_key(queue: QueueId, position: u64) -> Vec<u8> {
    [queue.0.to_be_bytes(), position.to_be_bytes()].concat()
}

/// Queue and position of an entry's key.
pub fn read_entry_key(mut key: &[u8]) -> Option<(QueueId, u64)> {
    (key.len() == 16).then(|| (QueueId(key.get_u64()), key.get_u64()))
}

impl Entry {
    /// As stored.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(28);
        out.put_u64(self.at.partition.0);
        out.put_i64(self.at.offset);
        out.put_i64(self.expires_ms.unwrap_or(i64::MAX));
        out.put_u32(self.size);
        if let Some((exchange, key, properties)) = &self.overlay {
            for text in [exchange, key] {
                out.put_u8(text.len().min(255) as u8);
                out.extend_from_slice(text.as_bytes().get(..255).unwrap_or(text.as_bytes()));
            }
            out.extend_from_slice(properties);
        }
        out
    }

    /// From what is stored.
    pub fn decode(mut value: Bytes) -> Option<Self> {
        if value.len() < 28 {
            return None;
        }
        let at = At { partition: PartitionId(value.get_u64()), offset: value.get_i64() };
        let expires_ms = Some(value.get_i64()).filter(|ms| *ms != i64::MAX);
        let size = value.get_u32();
        let short = |value: &mut Bytes| {
            let length = usize::from(value.try_get_u8().ok()?);
            (value.len() >= length).then(|| ByteString::try_from(value.split_to(length)).ok())?
        };
        let overlay = if value.is_empty() {
            None
        } else {
            Some((short(&mut value)?, short(&mut value)?, value))
        };
        Some(Self { at, expires_ms, size, overlay })
    }
}

fn amqp_key(vhost: &str, kind: u8, name: &[u8]) -> Vec<u8> {
    [vhost.as_bytes(), &[0, kind], name].concat()
}

/// Prefix of all definitions of a virtual host.
pub fn definitions(vhost: &str) -> Vec<u8> {
    [vhost.as_bytes(), &[0]].concat()
}

/// Key of an exchange.
pub fn exchange_key(vhost: &str, name: &str) -> Vec<u8> {
    amqp_key(vhost, b'x', name.as_bytes())
}

/// Key of a queue.
pub fn queue_key(vhost: &str, name: &str) -> Vec<u8> {
    amqp_key(vhost, b'q', name.as_bytes())
}

/// Key of a binding.
pub fn binding_key(vhost: &str, source: &str, binding: &Binding) -> Vec<u8> {
    amqp_key(vhost, b'b', &[source.as_bytes(), &[0], &encode_binding(binding)].concat())
}

/// Key of the id counter.
pub fn ids_key(vhost: &str) -> Vec<u8> {
    amqp_key(vhost, b'n', &[])
}

/// Key of a queue's floor.
pub fn floor_key(queue: QueueId) -> Vec<u8> {
    [&b"f"[..], &queue.0.to_be_bytes()].concat()
}

/// Key of a purged range.
pub fn purged_key(queue: QueueId, from: u64) -> Vec<u8> {
    [&b"p"[..], &queue.0.to_be_bytes(), &from.to_be_bytes()].concat()
}

/// Key of the router's cursor.
pub fn cursor_key(partition: PartitionId) -> Vec<u8> {
    [&b"c"[..], &partition.0.to_be_bytes()].concat()
}

/// Key of a range that was indexed when it was published.
pub fn skip_key(partition: PartitionId, from: Offset) -> Vec<u8> {
    [&b"s"[..], &partition.0.to_be_bytes(), &from.to_be_bytes()].concat()
}

/// A number that a key of one of these kinds holds.
pub fn number(value: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(value.try_into().ok()?))
}

/// A queue as declared; only durable ones are stored.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct StoredQueue {
    pub id: QueueId,
    pub auto_delete: bool,
    pub arguments: Table,
}

/// One stored definition.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Definition {
    Exchange(ByteString, Declared),
    Queue(ByteString, StoredQueue),
    Binding(ByteString, Binding),
    Ids(u64),
}

/// An exchange's value.
pub fn encode_exchange(declared: &Declared) -> Vec<u8> {
    encode(
        &Table::default()
            .with("kind", Value::text(declared.kind.name()))
            .with("durable", Value::Bool(declared.durable))
            .with("auto_delete", Value::Bool(declared.auto_delete))
            .with("internal", Value::Bool(declared.internal))
            .with("arguments", Value::Table(declared.arguments.clone())),
    )
}

/// A queue's value.
pub fn encode_queue(queue: &StoredQueue) -> Vec<u8> {
    encode(
        &Table::default()
            .with("id", Value::I64(queue.id.0 as i64))
            .with("auto_delete", Value::Bool(queue.auto_delete))
            .with("arguments", Value::Table(queue.arguments.clone())),
    )
}

/// A binding as a part of its key.
fn encode_binding(binding: &Binding) -> Vec<u8> {
    let table = match &binding.destination {
        Destination::Queue(id) => Table::default().with("queue", Value::I64(id.0 as i64)),
        Destination::Exchange(name) => Table::default().with("exchange", Value::text(name)),
    };
    encode(
        &table
            .with("key", Value::text(&binding.key))
            .with("arguments", Value::Table(binding.arguments.clone())),
    )
}

fn encode(table: &Table) -> Vec<u8> {
    let mut out = Vec::new();
    table.encode(&mut out);
    out
}

impl Definition {
    /// From a key (without the virtual host's prefix) and its value.
    pub fn decode(key: &[u8], value: &Bytes) -> Option<Self> {
        let (kind, name) = key.split_first()?;
        if *kind == b'n' {
            return Some(Self::Ids(number(value)?));
        }
        let (name, table) = match kind {
            b'b' => {
                let end = name.iter().position(|byte| *byte == 0)?;
                let (source, table) = name.split_at_checked(end)?;
                (source, Bytes::copy_from_slice(table.get(1..)?))
            }
            _ => (name, value.clone()),
        };
        let table = Table::decode(&mut Reader::new(table)).ok()?;
        let flag = |name: &str| matches!(table.get(name), Some(Value::Bool(true)));
        let id =
            |name: &str| table.get(name).and_then(Value::as_integer).map(|i| QueueId(i as u64));
        let text = |bytes: &[u8]| ByteString::try_from(Bytes::copy_from_slice(bytes)).ok();
        let arguments = match table.get("arguments") {
            Some(Value::Table(arguments)) => arguments.clone(),
            _ => Table::default(),
        };
        Some(match kind {
            b'x' => Self::Exchange(
                text(name)?,
                Declared {
                    kind: Kind::from_name(table.get("kind")?.as_text()?)?,
                    durable: flag("durable"),
                    auto_delete: flag("auto_delete"),
                    internal: flag("internal"),
                    arguments,
                },
            ),
            b'q' => Self::Queue(
                text(name)?,
                StoredQueue { id: id("id")?, auto_delete: flag("auto_delete"), arguments },
            ),
            b'b' => {
                let destination = match table.get("exchange").and_then(Value::as_text) {
                    Some(name) => Destination::Exchange(name.into()),
                    None => Destination::Queue(id("queue")?),
                };
                let key = table.get("key")?.as_text()?.into();
                Self::Binding(text(name)?, Binding { destination, key, arguments })
            }
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: At = At { partition: PartitionId(0x5_0000_0001), offset: 99 };

    #[test]
    fn entries_come_back_and_sort_by_position() {
        for overlay in [None, Some(("dlx".into(), "a.b".into(), Bytes::from_static(&[0x10, 0, 2])))]
        {
            for expires_ms in [None, Some(5)] {
                let entry = Entry { at: AT, expires_ms, size: 12, overlay: overlay.clone() };
                assert_eq!(Entry::decode(entry.encode().into()), Some(entry));
            }
        }
        let keys = [(1, 255), (1, 256), (2, 0)].map(|(q, p)| entry_key(QueueId(q), p));
        assert!(keys.is_sorted());
        assert_eq!(read_entry_key(&keys[1]), Some((QueueId(1), 256)));
        assert_eq!(Entry::decode(Bytes::from_static(&[1, 2])), None);
    }

    #[test]
    fn definitions_come_back() {
        let arguments = Table::default().with("x-message-ttl", Value::I32(5));
        let prefix = definitions("/").len();
        let declared = Declared {
            kind: Kind::Topic,
            durable: true,
            auto_delete: false,
            internal: true,
            arguments: arguments.clone(),
        };
        let queue = StoredQueue { id: QueueId(7), auto_delete: true, arguments: arguments.clone() };
        let to =
            |destination| Binding { destination, key: "a.#".into(), arguments: arguments.clone() };
        let bindings = [to(Destination::Queue(QueueId(7))), to(Destination::Exchange("y".into()))];
        let mut cases = vec![
            (
                exchange_key("/", "x"),
                encode_exchange(&declared),
                Definition::Exchange("x".into(), declared),
            ),
            (queue_key("/", "q"), encode_queue(&queue), Definition::Queue("q".into(), queue)),
            (ids_key("/"), 9u64.to_be_bytes().to_vec(), Definition::Ids(9)),
        ];
        for binding in bindings {
            let key = binding_key("/", "amq.topic", &binding);
            cases.push((key, vec![1], Definition::Binding("amq.topic".into(), binding)));
        }
        for (key, value, definition) in cases {
            assert_eq!(Definition::decode(&key[prefix..], &value.into()), Some(definition));
        }
    }
}
