//! PURE. Exchanges and their bindings: which destinations a routing key, or headers, lead to.
//!
//! Holds: one exchange with its bindings indexed by kind. In: key and headers. Out: destinations.
//! Change here: how a kind matches. Not here: who may declare what (`method::exchange`), following exchanges (`state`).

use std::{
    collections::{HashMap, HashSet},
    fmt,
};

use bytestring::ByteString;
use tributary_shared::amqp::{Table, Value};

use super::{QueueId, pattern::Patterns};

/// The four kinds of the standard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Kind {
    Direct,
    Fanout,
    Topic,
    Headers,
}

impl Kind {
    /// From its name in `exchange.declare`.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "direct" => Self::Direct,
            "fanout" => Self::Fanout,
            "topic" => Self::Topic,
            "headers" => Self::Headers,
            _ => return None,
        })
    }

    /// Its name in `exchange.declare`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Fanout => "fanout",
            Self::Topic => "topic",
            Self::Headers => "headers",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Where a binding leads.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Destination {
    Queue(QueueId),
    Exchange(ByteString),
}

/// One binding; equal ones are one.
#[derive(Debug, Clone, PartialEq)]
pub struct Binding {
    /// Where to.
    pub destination: Destination,
    /// Routing key or pattern.
    pub key: ByteString,
    /// `x-match` and headers.
    pub arguments: Table,
}

/// What `exchange.declare` says of an exchange.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct Declared {
    pub kind: Kind,
    pub durable: bool,
    pub auto_delete: bool,
    pub internal: bool,
    pub arguments: Table,
}

/// An exchange and its bindings.
#[derive(Debug)]
pub struct Exchange {
    /// As declared.
    pub declared: Declared,
    bindings: HashMap<Destination, Vec<Binding>>,
    count: usize,
    direct: HashMap<ByteString, Vec<Destination>>,
    topic: Patterns<Destination>,
}

impl Exchange {
    /// Without bindings.
    pub fn new(declared: Declared) -> Self {
        Self {
            declared,
            bindings: HashMap::new(),
            count: 0,
            direct: HashMap::new(),
            topic: Patterns::default(),
        }
    }

    /// Where unrouted messages go.
    pub fn alternate(&self) -> Option<&str> {
        self.declared.arguments.get("alternate-exchange").and_then(Value::as_text)
    }

    /// Bindings there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Nothing is bound to it.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// All bindings.
    pub fn bindings(&self) -> impl Iterator<Item = &Binding> {
        self.bindings.values().flatten()
    }

    /// Bindings that lead to one destination.
    pub fn bindings_to(&self, destination: &Destination) -> &[Binding] {
        self.bindings.get(destination).map_or(&[], Vec::as_slice)
    }

    /// Adds a binding; `false`: it was there.
    pub fn bind(&mut self, binding: Binding) -> bool {
        let bindings = self.bindings.entry(binding.destination.clone()).or_default();
        if bindings.contains(&binding) {
            return false;
        }
        let first = !bindings.iter().any(|b| b.key == binding.key);
        match self.declared.kind {
            Kind::Direct if first => {
                let keyed = self.direct.entry(binding.key.clone()).or_default();
                keyed.push(binding.destination.clone());
            }
            Kind::Topic if first => self.topic.insert(&binding.key, binding.destination.clone()),
            _ => {}
        }
        bindings.push(binding);
        self.count += 1;
        true
    }

    /// Removes a binding; `false`: it was not there.
    pub fn unbind(&mut self, binding: &Binding) -> bool {
        let Some(bindings) = self.bindings.get_mut(&binding.destination) else { return false };
        let Some(at) = bindings.iter().position(|b| b == binding) else { return false };
        bindings.swap_remove(at);
        let last = !bindings.iter().any(|b| b.key == binding.key);
        if bindings.is_empty() {
            self.bindings.remove(&binding.destination);
        }
        self.count -= 1;
        match self.declared.kind {
            Kind::Direct if last => {
                if let Some(keyed) = self.direct.get_mut(&binding.key) {
                    keyed.retain(|d| *d != binding.destination);
                    if keyed.is_empty() {
                        self.direct.remove(&binding.key);
                    }
                }
            }
            Kind::Topic if last => self.topic.remove(&binding.key, &binding.destination),
            _ => {}
        }
        true
    }

    /// Calls `found` for each destination; one may come more than once.
    pub fn matches<'a>(
        &'a self,
        key: &str,
        headers: Option<&Table>,
        mut found: impl FnMut(&'a Destination),
    ) {
        match self.declared.kind {
            Kind::Direct => self.direct.get(key).into_iter().flatten().for_each(found),
            Kind::Fanout => self.bindings.keys().for_each(found),
            Kind::Topic => self.topic.matches(key, found),
            Kind::Headers => {
                let empty = Table::default();
                let headers = headers.unwrap_or(&empty);
                for binding in self.bindings.values().flatten() {
                    if headers_match(&binding.arguments, headers) {
                        found(&binding.destination);
                    }
                }
            }
        }
    }
}

/// `x-match`: `all` (default), `any`, and the two `-with-x` that also look at headers whose name starts with `x-`.
fn headers_match(wanted: &Table, headers: &Table) -> bool {
    let (any, with_x) = match wanted.get("x-match").and_then(Value::as_text) {
        Some("any") => (true, false),
        Some("any-with-x") => (true, true),
        Some("all-with-x") => (false, true),
        _ => (false, false),
    };
    let mut fits = wanted
        .0
        .iter()
        .filter(|(name, _)| name != "x-match" && (with_x || !name.starts_with("x-")))
        .map(|(name, value)| match headers.get(name) {
            // A void value asks only whether the header is there.
            Some(_) if *value == Value::Void => true,
            Some(header) => same(value, header),
            None => false,
        })
        .peekable();
    if any { fits.any(|fit| fit) } else { fits.all(|fit| fit) }
}

/// Integers are the same whatever their width.
fn same(a: &Value, b: &Value) -> bool {
    match (a.as_integer(), b.as_integer()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

/// The exchanges every virtual host has; nobody declares or deletes them.
pub fn predeclared() -> impl Iterator<Item = (ByteString, Exchange)> {
    [
        ("amq.direct", Kind::Direct, false),
        ("amq.fanout", Kind::Fanout, false),
        ("amq.topic", Kind::Topic, false),
        ("amq.headers", Kind::Headers, false),
        ("amq.match", Kind::Headers, false),
        ("amq.rabbitmq.trace", Kind::Topic, true),
    ]
    .into_iter()
    .map(|(name, kind, internal)| {
        let declared = Declared {
            kind,
            durable: true,
            auto_delete: false,
            internal,
            arguments: Table::default(),
        };
        (ByteString::from_static(name), Exchange::new(declared))
    })
}

/// Follows bindings from exchange to exchange, each once, and alternate exchanges where nothing matched.
pub(super) fn route(
    exchanges: &HashMap<ByteString, Exchange>,
    start: &ByteString,
    keys: &[&str],
    headers: Option<&Table>,
) -> Vec<QueueId> {
    let mut queues = Vec::new();
    let mut seen: HashSet<ByteString> = HashSet::new();
    let mut todo = vec![start.clone()];
    while let Some(name) = todo.pop() {
        let Some(exchange) = exchanges.get(&name) else { continue };
        let mut matched = false;
        for key in keys {
            exchange.matches(key, headers, |destination| {
                matched = true;
                match destination {
                    Destination::Queue(queue) => queues.push(*queue),
                    Destination::Exchange(next) if *next != name && !seen.contains(next) => {
                        todo.push(next.clone());
                    }
                    Destination::Exchange(_) => {}
                }
            });
        }
        if let (false, Some(alternate)) = (matched, exchange.alternate())
            && !seen.contains(alternate)
        {
            todo.push(alternate.into());
        }
        seen.insert(name);
    }
    queues.sort_unstable();
    queues.dedup();
    queues
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exchange(kind: Kind) -> Exchange {
        Exchange::new(Declared {
            kind,
            durable: false,
            auto_delete: false,
            internal: false,
            arguments: Table::default(),
        })
    }

    fn to_queue(id: u64, key: &'static str, arguments: Table) -> Binding {
        Binding { destination: Destination::Queue(QueueId(id)), key: key.into(), arguments }
    }

    fn all(exchange: &Exchange, key: &str, headers: &Table) -> Vec<u64> {
        let mut found = Vec::new();
        exchange.matches(key, Some(headers), |d| match d {
            Destination::Queue(id) => found.push(id.0),
            Destination::Exchange(_) => unreachable!(),
        });
        found.sort_unstable();
        found.dedup();
        found
    }

    #[test]
    fn each_kind_matches_in_its_way() {
        let none = Table::default();
        for (kind, key, expected) in [
            (Kind::Direct, "a.b", &[1u64][..]),
            (Kind::Fanout, "zzz", &[1, 2]),
            (Kind::Topic, "a.b", &[1, 2]),
            (Kind::Topic, "a.c", &[2]),
        ] {
            let mut e = exchange(kind);
            assert!(e.bind(to_queue(1, "a.b", none.clone())));
            assert!(!e.bind(to_queue(1, "a.b", none.clone())), "the same binding is one");
            assert!(e.bind(to_queue(2, "a.*", none.clone())));
            assert_eq!(all(&e, key, &none), expected, "{kind} {key}");
            assert!(e.unbind(&to_queue(1, "a.b", none.clone())));
            assert!(!e.unbind(&to_queue(1, "a.b", none.clone())));
            assert!(e.unbind(&to_queue(2, "a.*", none.clone())));
            assert_eq!(all(&e, key, &none), [0u64; 0]);
            assert!(e.is_empty());
        }
    }

    #[test]
    fn headers_match_all_or_any() {
        let wanted = |mode: &str| {
            Table::default()
                .with("x-match", Value::text(mode))
                .with("a", Value::I32(1))
                .with("b", Value::text("x"))
        };
        let both = Table::default().with("b", Value::text("x")).with("a", Value::I64(1));
        let one = Table::default().with("a", Value::I8(1));
        for (mode, headers, fits) in [
            ("all", &both, true),
            ("all", &one, false),
            ("any", &one, true),
            ("any", &Table::default(), false),
        ] {
            assert_eq!(headers_match(&wanted(mode), headers), fits, "{mode} {headers:?}");
        }
        assert!(headers_match(&Table::default().with("a", Value::Void), &one));
        assert!(headers_match(&Table::default().with("x-no", Value::Void), &one));
    }

    #[test]
    fn a_queue_gets_a_message_once_whatever_leads_to_it() {
        let mut exchanges: HashMap<_, _> = predeclared().collect();
        let bind = |exchanges: &mut HashMap<ByteString, Exchange>, at: &str, binding: Binding| {
            exchanges.get_mut(at).unwrap().bind(binding);
        };
        let to_exchange = |name: &'static str, key: &'static str| Binding {
            destination: Destination::Exchange(name.into()),
            key: key.into(),
            arguments: Table::default(),
        };
        bind(&mut exchanges, "amq.topic", to_queue(1, "a.#", Table::default()));
        bind(&mut exchanges, "amq.topic", to_queue(1, "a.b", Table::default()));
        bind(&mut exchanges, "amq.topic", to_exchange("amq.fanout", "#"));
        bind(&mut exchanges, "amq.fanout", to_exchange("amq.topic", ""));
        bind(&mut exchanges, "amq.fanout", to_queue(1, "", Table::default()));
        bind(&mut exchanges, "amq.fanout", to_queue(2, "", Table::default()));
        let found = route(&exchanges, &"amq.topic".into(), &["a.b"], None);
        assert_eq!(found, [QueueId(1), QueueId(2)]);
    }
}
