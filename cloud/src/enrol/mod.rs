//! Who may be an edge of this fleet: one-time tokens, certificates for keys made on gateways, renewal, a deny list.
//!
//! ```text
//! operator --admin HTTP on loopback--> token, deny, allow, list (`command`)
//! gateway  --EST over TLS (RFC 7030)--> simpleenroll with a token, simplereenroll with its certificate (`est`)
//! edge     --CONNECT--> is_denied? (`listen`)
//! ```
//! Tokens and denials are in the engine (`book`); the authority's key is a file (`authority`). One request is decided at a
//! time, so that a token cannot be used twice at once. Change here: what enrolling takes. Not here: MQTT (`listen`).

mod authority;
mod book;
pub mod command;
pub mod est;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use tokio::sync::Mutex;
use tributary_shared::{
    auth::certificate::{facts, principal},
    clock::wall_ms,
    enrol::{Token, is_enrollable, pin, split_at},
    tasks,
};

use self::{
    authority::{Authority, Request},
    book::{Book, Given, check, number},
};
use crate::{
    engine::ShardId,
    log::{Log, LogError},
};

pub use self::book::{Certified, DenyList};

/// What was denied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// As it was given.
    pub name: String,
    /// An edge enrolled here is called so, or its newest certificate has this number. Other authorities' are not known.
    pub known: bool,
}

/// Bytes of a token's secret.
const SECRET_BYTES: usize = 32;
/// The longest name that can be denied.
const NAME_MAX: usize = 128;
/// The longest life of a token, seconds.
const TTL_MAX_S: u64 = 30 * 86_400;

tributary_shared::settings! {
    /// Enrolment of edges (EST, RFC 7030): the fleet's authority, made by `tributary-cloud ca init`.
    pub struct Settings {
        /// PEM file: the authority's certificate. Empty: this cloud enrols nobody.
        pub ca: String = String::new(),
        /// PEM file: its private key, for this cloud alone.
        pub ca_key: String = String::new(),
        /// PEM file: the certificate of `listen.est`, signed by the authority.
        pub certificate: String = String::new(),
        /// PEM file: its private key.
        pub key: String = String::new(),
        /// Where gateways reach `listen.est`, as host:port; it stands in their tokens.
        pub reached_at: String = String::new(),
        /// Seconds that an edge's certificate is good for. Edges renew at two thirds.
        pub certificate_s: u64 = 90 * 86_400 => 30..=63_072_000,
    }
}

/// Why something about enrolment is not done. One sentence each.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum EnrolError {
    #[error("{file}: {why}")]
    File { file: String, why: String },
    #[error("{0}")]
    Wrong(String),
    #[error("cannot sign: {0}")]
    Sign(String),
    #[error("this cloud enrols nobody: set `enrol.ca` and the other settings of [enrol]")]
    Off,
    #[error("too many entries are kept")]
    Full,
    #[error(transparent)]
    Log(#[from] LogError),
}

impl EnrolError {
    fn file(file: &str, why: &dyn std::fmt::Display) -> Self {
        Self::File { file: file.to_owned(), why: why.to_string() }
    }

    fn sign(why: impl std::fmt::Display) -> Self {
        Self::Sign(why.to_string())
    }
}

/// What a gateway is told.
#[derive(Debug)]
enum Refused {
    /// It has not proved who it is.
    Unproved(&'static str),
    /// It may not have this.
    Forbidden(&'static str),
    /// It asks for nothing that can be given.
    Bad(&'static str),
    /// Not now.
    Failed(EnrolError),
}

impl<E: Into<EnrolError>> From<E> for Refused {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// All of enrolment. Cheap to clone.
#[derive(Clone)]
pub struct Enrol {
    book: Book,
    authority: Option<Arc<Authority>>,
    settings: Arc<Settings>,
    deciding: Arc<Mutex<()>>,
}

impl Enrol {
    /// Reads files and what the engine holds.
    pub async fn open(log: Log, settings: Settings) -> Result<Self, EnrolError> {
        let authority = match &*settings.ca {
            "" => None,
            ca => Some(Arc::new(Authority::open(ca, &settings.ca_key)?)),
        };
        if authority.is_some() && split_at(&settings.reached_at).is_none() {
            let why = "`enrol.reached_at` must be host:port, where gateways reach `listen.est`";
            return Err(EnrolError::Wrong(why.to_owned()));
        }
        let book = Book::open(log).await?;
        drop(tasks::spawn("deny list", book.clone().keep()));
        Ok(Self { book, authority, settings: Arc::new(settings), deciding: Arc::default() })
    }

    /// The shard that the book is in.
    pub fn home(&self) -> ShardId {
        self.book.home()
    }

    /// A new token for an edge, as the one string that its gateway needs.
    pub async fn token(&self, edge: &str, ttl_s: u64) -> Result<String, EnrolError> {
        let authority = self.authority.as_ref().ok_or(EnrolError::Off)?;
        if !is_enrollable(edge) {
            let why = format!("{edge:?} cannot be enrolled: 1 to 128 letters, digits, - . _ ~");
            return Err(EnrolError::Wrong(why));
        }
        if !(1..=TTL_MAX_S).contains(&ttl_s) {
            return Err(EnrolError::Wrong(format!("a token is good for 1 to {TTL_MAX_S} seconds")));
        }
        let mut secret = [0; SECRET_BYTES];
        getrandom::fill(&mut secret).map_err(EnrolError::sign)?;
        let secret = tributary_shared::enrol::hex(&secret);
        let now_ms = wall_ms();
        let until_ms = now_ms + ttl_s as i64 * 1_000;
        let given = Given { edge: edge.to_owned(), until_ms, used_by: None };
        let _turn = self.deciding.lock().await;
        self.book.give(&secret, &given, now_ms).await?;
        tracing::info!(edge, ttl_s, "a token for an edge was made");
        let (at, id) = (self.settings.reached_at.clone(), edge.to_owned());
        Ok(Token { at, id, secret, pin: pin(&authority.der) }.to_string())
    }

    /// simpleenroll: a certificate for who has a token. DER.
    async fn enrol(&self, id: &str, secret: &str, request: &[u8]) -> Result<Vec<u8>, Refused> {
        let authority = self.authority.as_ref().ok_or(EnrolError::Off)?;
        let _turn = self.deciding.lock().await;
        let decided_in = self.book.ready().await?;
        // Nothing is said of the request to who has no token.
        let given = self.book.token(secret).await?;
        let Some(mut given) = given.filter(|given| given.edge == id) else {
            return Err(Refused::Unproved("this token is not known, or is for another edge"));
        };
        let request = Request::read(request, id).map_err(Refused::Bad)?;
        let key_hash = request.key_hash();
        check(Some(&given), id, &key_hash, wall_ms()).map_err(Refused::Unproved)?;
        if self.book.is_denied(id, "") {
            return Err(Refused::Forbidden("this edge is on the deny list"));
        }
        given.used_by = Some(key_hash);
        let (der, certified) = self.issue(authority, &request, id)?;
        self.book.enrolled(secret, &given, &certified, decided_in).await?;
        tracing::info!(edge = id, serial = certified.serial, "an edge is enrolled");
        Ok(der)
    }

    /// simplereenroll: a new certificate for who has one, which TLS has verified. DER.
    async fn renew(&self, certificate: &[u8], request: &[u8]) -> Result<Vec<u8>, Refused> {
        let authority = self.authority.as_ref().ok_or(EnrolError::Off)?;
        let (name, said) = (principal(certificate), facts(certificate));
        let (Some(id), Some(said)) = (name, said) else {
            return Err(Refused::Forbidden("the certificate names nobody"));
        };
        if !is_enrollable(&id) {
            return Err(Refused::Forbidden("the certificate is no edge's"));
        }
        let _turn = self.deciding.lock().await;
        let decided_in = self.book.ready().await?;
        if self.book.is_denied(&id, &said.serial) {
            return Err(Refused::Forbidden("this edge is on the deny list"));
        }
        let request = Request::read(request, &id).map_err(Refused::Bad)?;
        let (der, certified) = self.issue(authority, &request, &id)?;
        self.book.renewed(&id, &certified, decided_in).await?;
        tracing::info!(edge = %id, serial = certified.serial, "an edge's certificate is renewed");
        Ok(der)
    }

    fn issue(
        &self,
        authority: &Authority,
        request: &Request,
        id: &str,
    ) -> Result<(Vec<u8>, Certified), EnrolError> {
        let now_ms = wall_ms();
        let now_s = u64::try_from(now_ms / 1_000).unwrap_or_default();
        let issued = authority.issue(request, id, now_s, self.settings.certificate_s)?;
        let (serial, until_s) = (issued.serial, issued.until_s);
        Ok((issued.der, Certified { serial, issued_ms: now_ms, until_s }))
    }

    /// Shuts an id, or one certificate by its serial number, out: now and until it is allowed again.
    pub async fn deny(&self, name: &str) -> Result<Denial, EnrolError> {
        legal(name)?;
        self.book.deny(name, wall_ms()).await?;
        let serial = number(name);
        let is = |(id, newest): &(String, Certified)| {
            id == name || (serial.is_some() && number(&newest.serial) == serial)
        };
        let known = self.book.edges().await?.iter().any(is);
        tracing::warn!(name, known, "denied");
        Ok(Denial { name: name.to_owned(), known })
    }

    /// Lets it in again; false: it was not denied.
    pub async fn allow(&self, name: &str) -> Result<bool, EnrolError> {
        legal(name)?;
        let was = self.book.allow(name).await?;
        tracing::info!(name, was, "allowed");
        Ok(was)
    }

    /// Edges with their newest certificates, and what is denied since when (wall ms).
    pub async fn list(&self) -> Result<(Vec<(String, Certified)>, Vec<(String, i64)>), EnrolError> {
        Ok((self.book.edges().await?, self.book.denied().into_iter().collect()))
    }

    /// What is denied as known here, for the other nodes; `None`: nothing is known yet, and no edge can be let in.
    pub fn deny_list(&self) -> Option<DenyList> {
        self.book.deny_list()
    }

    /// Waits until more is known of what is denied than version `after`.
    pub async fn deny_list_changed(&self, after: Option<u64>) -> DenyList {
        self.book.newer(after).await
    }

    /// Takes over what the node with the book said.
    pub async fn learn(&self, list: DenyList) {
        self.book.learn(list).await;
    }

    /// Whether it is known what is denied.
    pub fn is_ready(&self) -> bool {
        self.book.is_known()
    }

    /// Whether an edge, or its certificate, is shut out.
    pub fn is_denied(&self, id: &str, serial: &str) -> bool {
        self.book.is_denied(id, serial)
    }

    /// Waits until it is.
    pub async fn denial(&self, id: &str, serial: &str) {
        self.book.denial(id, serial).await;
    }
}

/// An id or a serial number.
fn legal(name: &str) -> Result<(), EnrolError> {
    if name.is_empty() || name.len() > NAME_MAX || name.contains(char::is_control) {
        return Err(EnrolError::Wrong(format!("expected an id or a serial number, not {name:?}")));
    }
    Ok(())
}
