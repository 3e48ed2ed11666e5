//! Publishers that are not read from at the moment.
//!
//! MQTT before version 5 has no way to say no to a PUBLISH: its connection is left alone until the message can be taken,
//! and TCP tells the publisher. What was read already waits here, in order: no more than the broker's inbox held.
//!
//! Change here: what waits. Not here: why (`broker`).

use std::collections::{HashMap, VecDeque};

use tributary_shared::{connection::Outbox, mqtt::Packet, session::ConnectionId};

/// Packets of connections that are not read from.
#[derive(Debug, Default)]
pub(crate) struct Held(HashMap<ConnectionId, VecDeque<Packet>>);

impl Held {
    /// The connection waits.
    pub(crate) fn has(&self, connection: ConnectionId) -> bool {
        self.0.contains_key(&connection)
    }

    /// Connections that wait.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Keeps packets of a connection that waits already; gives them back if it does not.
    pub(crate) fn add(
        &mut self,
        connection: ConnectionId,
        packets: Vec<Packet>,
    ) -> Result<(), Vec<Packet>> {
        match self.0.get_mut(&connection) {
            Some(held) => {
                held.extend(packets);
                Ok(())
            }
            None => Err(packets),
        }
    }

    /// From here on the connection waits with these.
    pub(crate) fn hold(
        &mut self,
        connection: ConnectionId,
        outbox: &Outbox,
        packets: impl Iterator<Item = Packet>,
    ) {
        outbox.pause();
        self.0.insert(connection, packets.collect());
    }

    /// What each connection waits with first.
    pub(crate) fn firsts(&self) -> impl Iterator<Item = (ConnectionId, &Packet)> {
        self.0.iter().filter_map(|(connection, held)| Some((*connection, held.front()?)))
    }

    /// It is gone. Answers what waited.
    pub(crate) fn forget(&mut self, connection: ConnectionId) -> Option<VecDeque<Packet>> {
        self.0.remove(&connection)
    }
}
