//! The codec against the standard's bytes, against itself, against wrong bytes and against the `mqttbytes` crate.

pub(crate) mod arbitrary;
mod differential;
mod robust;
mod round_trip;
mod v311;
mod vectors;
mod version_5;
