//! What clients saw, in a form in which two brokers can be compared: no packet ids, no server's own limits.
//!
//! Not here: what may differ (`rules`).

use std::fmt;

/// Everything seen in one sequence: by step, by client.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Trace {
    pub(super) steps: Vec<Vec<Vec<Seen>>>,
}

/// One thing that a client saw.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Seen {
    ConnAck {
        present: bool,
        code: u8,
        assigned: bool,
    },
    /// An answer to its own PUBLISH or PUBREL: which, code.
    Ack(&'static str, u8),
    SubAck(Vec<u8>),
    UnsubAck(Vec<u8>),
    /// Still there after something odd.
    Alive,
    Disconnect(u8),
    Closed,
    Message(Message),
    /// PUBREL for a message with this payload.
    Release(String),
    /// The broker broke a rule that needs no second broker to see.
    Fault(String),
}

/// A message as it came.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Message {
    pub(super) topic: String,
    pub(super) qos: u8,
    pub(super) payload: String,
    pub(super) dup: bool,
    pub(super) retain: bool,
    pub(super) ids: Vec<u32>,
    pub(super) properties: String,
}

impl Trace {
    /// A client's part of a step, made if missing.
    pub(super) fn at(&mut self, step: usize, client: usize) -> &mut Vec<Seen> {
        if self.steps.len() <= step {
            self.steps.resize_with(step + 1, Vec::new);
        }
        let clients = &mut self.steps[step];
        if clients.len() <= client {
            clients.resize_with(client + 1, Vec::new);
        }
        &mut clients[client]
    }

    /// All parts, with step and client.
    pub(super) fn parts(&mut self) -> impl Iterator<Item = (usize, usize, &mut Vec<Seen>)> {
        self.steps.iter_mut().enumerate().flat_map(|(step, clients)| {
            clients.iter_mut().enumerate().map(move |(client, seen)| (step, client, seen))
        })
    }

    /// In an order that does not tell apart what the standard leaves free: answers in their order, then messages, of which only
    /// those of one topic and QoS have an order (MQTT-4.6.0-5, 4.6.0-6).
    pub(super) fn sort(&mut self) {
        for (_, _, seen) in self.parts() {
            seen.sort_by(|a, b| a.place().cmp(&b.place()));
        }
    }
}

impl Seen {
    fn place(&self) -> (u8, &str, u8) {
        match self {
            Self::Message(message) => (1, &message.topic, message.qos),
            Self::Release(payload) => (2, payload, 0),
            Self::Disconnect(_) => (3, "", 0),
            Self::Closed => (4, "", 0),
            _ => (0, "", 0),
        }
    }
}

impl Message {
    /// Another copy of it, by another subscription.
    pub(super) fn same_but_subscription(&self, other: &Self) -> bool {
        let told =
            |one: &Self| (one.topic.clone(), one.payload.clone(), one.dup, one.properties.clone());
        told(self) == told(other)
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ConnAck { present, code, assigned } => {
                write!(out, "CONNACK {code:#04x}")?;
                out.write_str(if *present { " present" } else { "" })?;
                out.write_str(if *assigned { " assigned" } else { "" })
            }
            Self::Ack(name, code) => write!(out, "{name} {code:#04x}"),
            Self::SubAck(codes) => write!(out, "SUBACK {codes:02x?}"),
            Self::UnsubAck(codes) => write!(out, "UNSUBACK {codes:02x?}"),
            Self::Alive => out.write_str("alive"),
            Self::Disconnect(code) => write!(out, "DISCONNECT {code:#04x}"),
            Self::Closed => out.write_str("closed"),
            Self::Release(payload) => write!(out, "PUBREL of {payload:?}"),
            Self::Fault(text) => write!(out, "FAULT {text}"),
            Self::Message(m) => {
                write!(out, "{:?} {:?} q{}", m.topic, m.payload, m.qos)?;
                out.write_str(if m.dup { " dup" } else { "" })?;
                out.write_str(if m.retain { " retain" } else { "" })?;
                if !m.ids.is_empty() {
                    write!(out, " ids={:?}", m.ids)?;
                }
                out.write_str(&m.properties)
            }
        }
    }
}
