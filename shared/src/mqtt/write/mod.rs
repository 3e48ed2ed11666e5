//! Packets to bytes.

mod delivery;

use bytes::BytesMut;

pub use delivery::Encoded;

use super::packet::{Packet, Version};

/// Appends `packet` as `version` writes it. Properties are left out before version 5. The caller guarantees legal
/// contents (checked types); lengths over the protocol's limits are cut where the standard allows (reason strings).
pub fn write(packet: &Packet, version: Version, out: &mut BytesMut) {
    let _ = (packet, version, out);
    unimplemented!()
}
