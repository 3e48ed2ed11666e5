//! Many nodes, one bucket: who owns which shard, and how everybody knows.
//!
//! ```text
//! object store: map (create-only numbered objects), one heartbeat object a node
//!      ^ compare-and-set        | read                     every node's own monotonic clock judges
//! member task --decides (map, placement, judge: PURE)--> takes and releases shards of the log
//!      \--> View: what heads and clients are told
//! ```
//! Promises: a shard has one owner in every version of the map; no owner serves longer than its heartbeats land; the fence of
//! the engine, not a clock, keeps acknowledgements true. Change here: who owns what, and when that changes.
//! Not here: what an owner does (`log`), the way to another node (`peer`).

pub mod judge;
pub mod map;
pub mod member;
pub mod placement;
pub mod settings;
pub mod status;
pub mod store;
pub mod task;
pub mod view;

pub use settings::Settings;
pub use view::{Addresses, Cluster, Leader, Node, NodeId, View};

#[cfg(test)]
mod tests;
