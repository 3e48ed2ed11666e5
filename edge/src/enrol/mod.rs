//! Who this edge is to its cloud: its certificate and key, and the authorities it trusts.
//!
//! ```text
//! identity   files -> what TLS shows and trusts          files   PEM files read within bounds, written whole or not at all
//! verify     the cloud's certificate, also by a gateway whose clock is wrong
//! ```
//! Change here: which parts there are. Not here: connections (`link`).

mod files;
mod identity;
#[cfg(test)]
pub(crate) mod testing;
mod verify;

pub use identity::{Identity, IdentityError};
