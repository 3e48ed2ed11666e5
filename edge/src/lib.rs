//! The edge: an MQTT broker that keeps every message on disk and syncs it upstream.

pub mod lane;
pub mod status;
pub mod store;
