//! The bounded queue from the broker to one client.

use crate::session::{Outgoing, event::ConnectionId};

/// The broker's end: never waits. QoS 0 is dropped and counted when it is full; QoS 1 and 2 are bounded by the window.
#[derive(Debug, Clone)]
pub struct Outbox {
    connection: ConnectionId,
}

/// The client does not read fast enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("outbox full")]
pub struct Full;

impl Outbox {
    /// Whose.
    pub fn connection(&self) -> ConnectionId {
        self.connection
    }

    /// Queues for writing.
    pub fn send(&self, outgoing: Outgoing) -> Result<(), Full> {
        let _ = outgoing;
        unimplemented!()
    }

    /// Writes what is queued, then closes the socket.
    pub fn close(&self) {
        unimplemented!()
    }
}
