//! All means together: what a client showed becomes an [`Identity`] or a [`Refusal`].
//!
//! ```text
//! certificate (verified by TLS) -> token (in the password field) -> name and password -> nothing: anonymous
//! ```
//! The first means that a client uses decides; one that fails is never made up for by a later one. A wrong name takes as
//! long as a wrong password, and at most two slow checks run at once.
//! A client that asks for enhanced authentication in its CONNECT proves its name in an `exchange` instead.
//! Change here: the order of means, what a client id has to do with a name. Not here: sockets, answers (the caller).

mod exchange;

use std::{
    hash::{BuildHasher as _, RandomState},
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytestring::ByteString;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Semaphore, watch},
    time::timeout,
};

use super::{
    cache::Cache,
    certificate::Certificate,
    files::{Files, LoadError},
    password::Stored,
    scram::Strangers,
    throttle::Throttle,
    token::{Token, Trust},
};
use crate::{mqtt::packet::Reason, session::event::Now};
pub use exchange::Exchange;

/// Slow checks at once: 19 MiB each.
const PEOPLE: usize = 2;
/// How long a client may wait for its slow check.
const PATIENCE: Duration = Duration::from_secs(10);

crate::settings! {
    /// How clients prove who they are. Files are read again when they change.
    pub struct Settings {
        /// File with names and hashed passwords, kept with the passwd command. Empty: no passwords.
        pub password_file: String = String::new(),
        /// Files with the public keys of token issuers: PEM, or JSON web key sets. A client gives its token as password.
        pub token_key_files: Vec<String> = Vec::new(),
        /// Files with secrets shared with token issuers (HS256), 32 bytes or more.
        pub token_secret_files: Vec<String> = Vec::new(),
        /// What a token's `iss` must be. Empty: anything.
        pub token_issuer: String = String::new(),
        /// What a token's `aud` must hold. Empty: tokens with an `aud` are refused, they are meant for somebody else.
        pub token_audience: String = String::new(),
        /// The claim that holds the name.
        pub token_claim: String = "sub".to_owned(),
        /// Client ids of devices, which prove their name with a certificate, a generated secret or a token: must_equal = the
        /// name; prefix = the name, or the name and one of - _ . : and more; any.
        pub device_client_id: Binding = Binding::MustEqual,
        /// Client ids of people, who prove their name with a password: must_equal, prefix or any.
        pub person_client_id: Binding = Binding::Any,
        /// Seconds a verified password is remembered (not the password itself), so that reconnecting is cheap.
        pub remember_password_s: u64 = 600,
    }
}

/// What a client id has to do with the name of its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Binding {
    /// It is the name.
    MustEqual,
    /// It is the name, or begins with it and a separator.
    Prefix,
    /// Nothing.
    Any,
}

impl Binding {
    /// May a client of that name use that client id?
    pub fn allows(self, principal: &str, client_id: &str) -> bool {
        match self {
            Self::Any => true,
            Self::MustEqual => client_id == principal,
            Self::Prefix => client_id
                .strip_prefix(principal)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '_', '.', ':'])),
        }
    }
}

/// A means to prove a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// A client certificate.
    Certificate,
    /// A JSON web token in the password field.
    Token,
    /// Name and password.
    Password,
    /// Name and proof of the password, by enhanced authentication with SCRAM-SHA-256.
    Scram,
    /// None: the client stays anonymous.
    Anonymous,
}

/// What a client showed.
#[derive(Debug, Clone, Copy)]
pub struct Shown<'a> {
    /// What TLS says of it.
    pub certificate: &'a Certificate,
    /// User name.
    pub user: Option<&'a str>,
    /// Password.
    pub password: Option<&'a [u8]>,
    /// Client id; empty: it asks for one.
    pub client_id: &'a str,
    /// Where it comes from; `None`: this machine.
    pub address: Option<IpAddr>,
}

/// Who a client is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its name; `None`: anonymous.
    pub principal: Option<ByteString>,
    /// How long that holds.
    pub holds: Holds,
}

/// How long a proof holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// As long as its connection.
    Connection,
    /// Until this wall time, ms, or until what it was checked against is not trusted any more.
    Token(i64, Trust),
    /// Until another password, or none, is stored for the name. What was stored, as a number of this process.
    Stored(u64),
}

/// Why a client is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// What to tell it.
    pub reason: Reason,
    /// How long to wait before.
    pub delay: Duration,
    /// For the log.
    pub why: &'static str,
}

/// Counts since the start.
#[derive(Debug, Default)]
pub struct Counters {
    /// Clients let in.
    pub accepted: AtomicU64,
    /// Clients with a wrong name, password, token or certificate.
    pub wrong: AtomicU64,
    /// Clients that showed nothing where something is needed.
    pub missing: AtomicU64,
    /// Clients with a client id that their name may not use.
    pub client_id: AtomicU64,
    /// Clients not looked at after too many failures.
    pub blocked: AtomicU64,
    /// Slow checks made: each is a person's worth of work, also for names that nobody has.
    pub slow_checks: AtomicU64,
    /// Clients that waited too long for a slow check.
    pub busy: AtomicU64,
    /// Changed files that could not be used; what was read before stays.
    pub bad_files: AtomicU64,
}

/// Knows everybody.
pub struct Identities {
    files: RwLock<Arc<Files>>,
    memory: Mutex<Memory>,
    people: Arc<Semaphore>,
    /// Makes numbers of what is stored.
    numbers: RandomState,
    /// For a password file without a secret of its own.
    spare: [u8; 32],
    /// Changes when files were read again.
    read_again: watch::Sender<()>,
    /// Shown by the host.
    pub counters: Counters,
}

struct Memory {
    cache: Cache,
    throttle: Throttle,
}

impl std::fmt::Debug for Identities {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Identities").finish_non_exhaustive()
    }
}

impl Identities {
    /// Reads all files.
    pub fn open(settings: &Settings) -> Result<Arc<Self>, LoadError> {
        let files = Files::read(settings)?;
        let (mut key, mut spare) = ([0; 32], [0; 32]);
        for random in [&mut key, &mut spare] {
            getrandom::fill(random).map_err(|error| LoadError {
                setting: "auth",
                file: "randomness of the system".to_owned(),
                why: error.to_string(),
            })?;
        }
        let cache = Cache::new(key, settings.remember_password_s.saturating_mul(1000));
        Ok(Arc::new(Self {
            files: RwLock::new(Arc::new(files)),
            memory: Mutex::new(Memory { cache, throttle: Throttle::default() }),
            people: Arc::new(Semaphore::new(PEOPLE)),
            numbers: RandomState::new(),
            spare,
            read_again: watch::Sender::new(()),
            counters: Counters::default(),
        }))
    }

    /// Reads all files again. A bad one is counted and leaves everything as it was.
    pub fn reload(&self, settings: &Settings) -> Result<(), LoadError> {
        let files = Files::read(settings).inspect_err(|_| count(&self.counters.bad_files))?;
        *self.files.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(files);
        self.memory().cache.clear();
        self.read_again.send_replace(());
        Ok(())
    }

    /// Waits until a name's password is not any more what it was, as [`Holds::Stored`] said.
    pub async fn password_changed(self: Arc<Self>, user: ByteString, was: u64) {
        let mut read_again = self.read_again.subscribe();
        while self.number(self.files().passwords.get(&user)) == was {
            if read_again.changed().await.is_err() {
                return;
            }
        }
    }

    /// Waits until tokens that were checked against this are not taken any more.
    pub async fn trust_ended(self: Arc<Self>, by: Trust) {
        let mut read_again = self.read_again.subscribe();
        while self.files().tokens.trusts(by) {
            if read_again.changed().await.is_err() {
                return;
            }
        }
    }

    fn number(&self, stored: Option<&Stored>) -> u64 {
        self.numbers.hash_one(stored.map(ToString::to_string))
    }

    /// Means that can succeed; anonymous is for the listener to say.
    pub fn offers(&self, method: Method) -> bool {
        let files = self.files();
        match method {
            Method::Password | Method::Scram => !files.settings.password_file.is_empty(),
            Method::Token => !files.tokens.is_empty(),
            Method::Certificate | Method::Anonymous => false,
        }
    }

    /// Users in the password file, keys for tokens.
    pub fn sizes(&self) -> (usize, usize) {
        let files = self.files();
        (files.passwords.len(), files.tokens.len())
    }

    /// Who a client is, if one of `methods` says so. Changes nothing but its own memory of failures.
    pub async fn identify(
        &self,
        shown: Shown<'_>,
        methods: &[Method],
        now: Now,
    ) -> Result<Identity, Refusal> {
        let files = self.files();
        let (identity, binding) = self.prove(shown, methods, &files, now).await?;
        if let Some(principal) = &identity.principal
            && !binding.allows(principal, shown.client_id)
        {
            count(&self.counters.client_id);
            let why = "client id not allowed for this name";
            return Err(refusal(Reason::CLIENT_ID_NOT_VALID, why));
        }
        count(&self.counters.accepted);
        Ok(identity)
    }

    async fn prove(
        &self,
        shown: Shown<'_>,
        methods: &[Method],
        files: &Files,
        now: Now,
    ) -> Result<(Identity, Binding), Refusal> {
        let device = files.settings.device_client_id;
        match shown.certificate {
            Certificate::Named(name) if methods.contains(&Method::Certificate) => {
                let principal = Some(name.clone());
                return Ok((Identity { principal, holds: Holds::Connection }, device));
            }
            Certificate::Nameless if methods.contains(&Method::Certificate) => {
                count(&self.counters.wrong);
                return Err(refusal(Reason::NOT_AUTHORIZED, "the certificate names nobody"));
            }
            _ => {}
        }
        let token = shown.password.and_then(as_token);
        if let (true, Some(token)) = (methods.contains(&Method::Token), token) {
            let verified = files.tokens.verify(token, now.wall_ms).map_err(|refused| {
                tracing::debug!(%refused, "token refused");
                count(&self.counters.wrong);
                refusal(Reason::BAD_USER_NAME_OR_PASSWORD, "token refused")
            })?;
            let Token { principal, expires_ms, by } = verified;
            let holds = Holds::Token(expires_ms, by);
            let identity = Identity { principal: Some(principal), holds };
            return Ok((identity, device));
        }
        let showed = shown.user.is_some() || shown.password.is_some();
        if methods.contains(&Method::Password) && showed {
            let (user, password) = (shown.user.unwrap_or(""), shown.password.unwrap_or(b""));
            return self.by_password(user, password, shown.address, files, now).await;
        }
        if methods.contains(&Method::Anonymous) {
            return Ok((Identity { principal: None, holds: Holds::Connection }, Binding::Any));
        }
        count(&self.counters.missing);
        Err(refusal(Reason::NOT_AUTHORIZED, "nothing shown that this listener takes"))
    }

    async fn by_password(
        &self,
        user: &str,
        password: &[u8],
        address: Option<IpAddr>,
        files: &Files,
        now: Now,
    ) -> Result<(Identity, Binding), Refusal> {
        self.check_blocked(user, address, now)?;
        if self.is_password(user, password, files, now).await? {
            self.memory().throttle.succeeded(address, user);
            let stored = files.passwords.get(user);
            let device = matches!(stored, Some(Stored::Device { .. }));
            let holds = Holds::Stored(self.number(stored));
            let Settings { device_client_id, person_client_id, .. } = files.settings;
            let binding = if device { device_client_id } else { person_client_id };
            return Ok((Identity { principal: Some(user.into()), holds }, binding));
        }
        Err(self.wrong(user, address, now))
    }

    /// Takes the same time for every "no", whether the user is a person, a device or nobody.
    async fn is_password(
        &self,
        user: &str,
        password: &[u8],
        files: &Files,
        now: Now,
    ) -> Result<bool, Refusal> {
        let stored = files.passwords.get(user);
        let text = stored.map(ToString::to_string).unwrap_or_default();
        let known =
            stored.is_some() && self.memory().cache.knows(user, &text, password, now.mono_ms);
        let device = matches!(stored, Some(Stored::Device { .. }));
        if known || (device && stored.is_some_and(|stored| stored.verify(password))) {
            return Ok(true);
        }
        // One of each kind that the file has, so that all names take the same time.
        let mut checks = Vec::new();
        if files.passwords.has_people() {
            let person = stored.filter(|stored| matches!(stored, Stored::Person { .. }));
            checks.push(person.cloned().unwrap_or_else(Stored::nobody));
        }
        if files.passwords.has_scram() {
            let scram = stored.filter(|stored| matches!(stored, Stored::Scram(_)));
            let stranger = || Stored::Scram(self.strangers(files).verifier(user));
            checks.push(scram.cloned().unwrap_or_else(stranger));
        }
        if checks.is_empty() {
            return Ok(false);
        }
        let right = self.check_slowly(checks, password.to_vec()).await? && stored.is_some();
        if right {
            self.memory().cache.remember(user, &text, password, now.mono_ms);
        }
        Ok(right)
    }

    fn strangers(&self, files: &Files) -> Strangers {
        files.passwords.strangers(&self.spare)
    }

    /// Whether one of them has this password. All are tried.
    async fn check_slowly(&self, all: Vec<Stored>, password: Vec<u8>) -> Result<bool, Refusal> {
        let busy = || {
            count(&self.counters.busy);
            refusal(Reason::SERVER_BUSY, "too many passwords to check")
        };
        let turn = timeout(PATIENCE, Arc::clone(&self.people).acquire_owned());
        let turn = turn.await.map_err(|_| busy())?.map_err(|_| busy())?;
        let check = tokio::task::spawn_blocking(move || {
            let _turn = turn; // To the end, also when nobody waits any more.
            let checks = all.iter().map(|stored| stored.verify(&password));
            checks.fold((0, false), |(made, right), check| (made + 1, right | check)) // To the end.
        });
        let (made, right) = check.await.map_err(|_| busy())?;
        self.counters.slow_checks.fetch_add(made, Ordering::Relaxed);
        Ok(right)
    }

    fn files(&self) -> Arc<Files> {
        Arc::clone(&self.files.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The password looks like a token.
fn as_token(password: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(password).ok()?;
    (text.starts_with("ey") && text.matches('.').count() == 2).then_some(text)
}

fn refusal(reason: Reason, why: &'static str) -> Refusal {
    Refusal { reason, delay: Duration::ZERO, why }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

#[cfg(test)]
mod tests;
