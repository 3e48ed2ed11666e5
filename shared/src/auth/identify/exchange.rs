//! Enhanced authentication (MQTT 5, 4.12): a name proved by question and answer, SCRAM-SHA-256.
//!
//! ```text
//! begin (who do you say you are) -> question -> conclude (your proof) -> our proof and an identity
//! ```
//! Whoever is not in the password file is asked too, and refused at the end, as late as for a wrong password.
//! Not here: the messages (`scram`), AUTH packets (`connection`).

use std::net::IpAddr;

use bytes::Bytes;

use super::{Holds, Identities, Identity, Refusal, count, refusal};
use crate::{
    auth::{
        password::Stored,
        scram::{Asked, Failed, First, METHOD},
    },
    mqtt::packet::Reason,
    session::event::Now,
};

/// Bytes of randomness in our part of a nonce.
const NONCE_BYTES: usize = 18;

/// A client that was asked for its proof.
#[derive(Debug)]
pub struct Exchange {
    asked: Asked,
    /// The name is in the file.
    known: bool,
    address: Option<IpAddr>,
}

impl Exchange {
    /// Who the client says it is.
    pub fn user(&self) -> &str {
        &self.asked.user
    }
}

impl Identities {
    /// Somebody could prove a name by that authentication method now.
    pub fn knows_method(&self, method: &str) -> bool {
        method == METHOD && self.files().passwords.has_scram()
    }

    /// For a client that asks for another.
    pub fn refuse_method(&self) -> Refusal {
        count(&self.counters.missing);
        refusal(
            Reason::BAD_AUTHENTICATION_METHOD,
            "authentication method that this listener does not take",
        )
    }

    /// A client's first message; gives the question. Changes nothing but the memory of failures.
    pub fn begin(
        &self,
        first: &[u8],
        address: Option<IpAddr>,
        now: Now,
    ) -> Result<(Exchange, Bytes), Refusal> {
        let first = First::parse(first).map_err(|Failed| self.wrong("", address, now))?;
        self.check_blocked(&first.user, address, now)?;
        let ours = nonce().ok_or_else(|| refusal(Reason::UNSPECIFIED, "no randomness"))?;
        let files = self.files();
        // Made for everybody, so that it takes as long for those who are known.
        let stranger = self.strangers(&files).verifier(&first.user);
        let (verifier, known) = match files.passwords.get(&first.user) {
            Some(Stored::Scram(verifier)) => (verifier.clone(), true),
            _ => (stranger, false),
        };
        let (asked, question) = first.ask(&ours, verifier);
        Ok((Exchange { asked, known, address }, question.into()))
    }

    /// The client's proof; gives ours.
    pub fn conclude(
        &self,
        exchange: Exchange,
        last: &[u8],
        client_id: &str,
        now: Now,
    ) -> Result<(Identity, Bytes), Refusal> {
        let Exchange { asked, known, address } = exchange;
        // Again: many may have been begun at once.
        self.check_blocked(&asked.user, address, now)?;
        let checked = asked.check(last).ok().filter(|_| known);
        let Some(proof) = checked else { return Err(self.wrong(&asked.user, address, now)) };
        if !self.files().settings.person_client_id.allows(&asked.user, client_id) {
            count(&self.counters.client_id);
            let why = "client id not allowed for this name";
            return Err(refusal(Reason::CLIENT_ID_NOT_VALID, why));
        }
        self.memory().throttle.succeeded(address, &asked.user);
        count(&self.counters.accepted);
        // What it was checked against: if that was replaced meanwhile, it ends at once.
        let holds = Holds::Stored(self.number(Some(&Stored::Scram(asked.verifier))));
        Ok((Identity { principal: Some(asked.user.into()), holds }, proof.into()))
    }

    pub(super) fn check_blocked(
        &self,
        user: &str,
        address: Option<IpAddr>,
        now: Now,
    ) -> Result<(), Refusal> {
        if self.memory().throttle.is_blocked(address, user, now.mono_ms) {
            count(&self.counters.blocked);
            return Err(refusal(Reason::CONNECTION_RATE_EXCEEDED, "too many failures"));
        }
        Ok(())
    }

    /// Counts a wrong proof and says how late it is answered.
    pub(super) fn wrong(&self, user: &str, address: Option<IpAddr>, now: Now) -> Refusal {
        count(&self.counters.wrong);
        let delay = self.memory().throttle.failed(address, user, now.mono_ms);
        let why = "wrong user name or password";
        Refusal { reason: Reason::BAD_USER_NAME_OR_PASSWORD, delay, why }
    }
}

/// Printable, without a comma.
fn nonce() -> Option<String> {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    let mut bytes = [0; NONCE_BYTES];
    getrandom::fill(&mut bytes).ok()?;
    Some(URL_SAFE_NO_PAD.encode(bytes))
}
