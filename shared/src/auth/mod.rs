//! Who is this, and what may they do: the same for every protocol.
//!
//! Holds: credentials and rules; no sessions, no sockets. A client proves a name, its *principal*, by one of these means
//! (`certificate`, `password`, `scram`, `token`), or has none and is *anonymous*; [`rules`] then say what that name may do.
//! In: what a client showed. Out: an identity or a refusal, and [`Permissions`] for whoever decides.
//! Files: password scram certificate token (means), cache throttle (cost and abuse of checking), files identify (all means
//! together), pattern rules (rights).
//! Change here: a new means, what rules can say. Not here: TLS (`net::tls`), sessions and what is refused how (`session`).

mod cache;
pub mod certificate;
mod files;
pub mod identify;
pub mod password;
mod pattern;
pub mod rules;
pub mod scram;
mod throttle;
pub mod token;

pub use certificate::Certificate;
pub use files::{LoadError, warn_if_open};

pub use identify::{
    Binding, Exchange, Holds, Identities, Identity, Method, Refusal, Settings, Shown,
};
pub(crate) use pattern::is_plain;
pub use rules::{Action, Permissions, Rule, Who};

/// What rules call clients without a name; nobody can be named so.
pub const ANONYMOUS: &str = "anonymous";

/// Bytes of a principal.
const PRINCIPAL_BYTES: usize = 256;

/// A name that somebody can have, whatever proves it.
pub fn is_principal(name: &str) -> bool {
    let illegal = |c: char| c == '*' || c.is_control();
    !name.is_empty()
        && name.len() <= PRINCIPAL_BYTES
        && !name.contains(illegal)
        && name != ANONYMOUS
}
