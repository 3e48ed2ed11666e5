//! Who this edge is to its cloud: its certificate and key, and the authorities it trusts.
//!
//! ```text
//! identity   files -> what TLS shows and trusts          files   PEM files read within bounds, written whole or not at all
//! verify     the cloud's certificate, also by a gateway whose clock is wrong
//! renew      a certificate for a token, and the next one in time      est   the protocol for that (RFC 7030)
//! ```
//! Change here: which parts there are. Not here: connections (`link`).

mod est;
mod files;
mod identity;
mod renew;
#[cfg(test)]
pub(crate) mod testing;
mod verify;

pub use identity::{Identity, IdentityError};
pub use renew::{enrol, run};
