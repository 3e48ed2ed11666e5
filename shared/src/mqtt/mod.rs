//! MQTT 3.1, 3.1.1 and 5.0 on the wire: one set of packet types, read from and written to bytes.
//!
//! Holds: the codec, pure. In: bytes of one connection. Out: [`Packet`]s, or the [`Malformed`] that says why not and
//! which reason code tells the peer. Change here: what the wire looks like. Not here: what a packet means (`session`).
//! Why it is our own: `docs/decisions/0002-mqtt-codec.md`; the tests compare it with the `mqttbytes` crate.

pub mod check;
pub mod packet;
mod property;
pub mod read;
pub mod write;

#[cfg(test)]
pub(crate) mod tests;

pub use packet::{Packet, PacketId, Qos, Reason, Version};
pub use read::{Malformed, Reader};
