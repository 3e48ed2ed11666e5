//! Enhanced authentication on a connection (MQTT 5, 4.12): the AUTH packets between CONNECT and CONNACK, and those of a
//! client that proves its name again while it is connected.
//!
//! ```text
//! CONNECT (method, first message) -> [AUTH: say it ->] AUTH question -> AUTH proof -> CONNACK (our proof)
//! AUTH 0x19 (first message) -> AUTH 0x18 question -> AUTH 0x18 proof -> AUTH 0x00 (our proof) or DISCONNECT 0x87
//! ```
//! In: a client whose CONNECT names a method. Out: who it is, or a refusal. Change here: what is sent when.
//! Not here: the proof itself (`auth::scram`, `auth::Identities`), bytes (`connection`).

use std::{net::IpAddr, sync::Arc};

use bytes::Bytes;
use bytestring::ByteString;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::Instant,
};
use tributary_shared::{
    auth::{Exchange, Identities, Identity, Method, Refusal},
    clock::Clock,
    connection::{self, Again, Counters, Opened, Refused},
    mqtt::{Reason, packet::Auth},
};

/// What it needs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Enhanced<'a> {
    /// Who is who.
    pub(crate) identities: &'a Arc<Identities>,
    /// The time.
    pub(crate) clock: Clock,
}

impl Enhanced<'_> {
    /// Asks the client for its proof, until `deadline`; gives who it is and what CONNACK is to say. `Err`: the connection came
    /// to nothing, and the client knows.
    pub(crate) async fn prove<S>(
        self,
        opened: &mut Opened<S>,
        address: Option<IpAddr>,
        methods: &[Method],
        deadline: Instant,
        counters: &Counters,
    ) -> Result<Result<(Identity, Bytes), Refusal>, Refused>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let method = opened.connect.authentication_method.clone().unwrap_or_default();
        if !methods.contains(&Method::Scram) || !self.identities.knows_method(&method) {
            return Ok(Err(self.identities.refuse_method())); // MQTT-4.12.0-1
        }
        let first = match opened.connect.authentication_data.take() {
            Some(first) => first,
            None => opened.ask(Bytes::new(), deadline, counters).await?,
        };
        let begun = self.identities.begin(&first, address, self.clock.now());
        let (exchange, question) = match begun {
            Ok(begun) => begun,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let last = opened.ask(question, deadline, counters).await?; // MQTT-4.12.0-2
        let client_id = opened.connect.client_id.clone();
        let outcome = self.identities.conclude(exchange, &last, &client_id, self.clock.now());
        if let Ok((Identity { principal: Some(user), .. }, _)) = &outcome {
            opened.again = Some(self.again(method, user.clone(), client_id, address));
        }
        Ok(outcome)
    }

    /// Answers a client that proves again to be `user` (MQTT-4.12.1-1).
    fn again(
        self,
        method: ByteString,
        user: ByteString,
        client_id: ByteString,
        address: Option<IpAddr>,
    ) -> Again {
        let (identities, clock) = (Arc::clone(self.identities), self.clock);
        let mut begun: Option<Exchange> = None;
        Again::new(move |Auth { reason, method: named, data, .. }| {
            let (data, now) = (data.unwrap_or_default(), clock.now());
            if named.as_ref() != Some(&method) {
                return Err(Reason::PROTOCOL_ERROR); // MQTT-4.12.0-5, MQTT-4.12.1-1
            }
            let failed = |refusal: Refusal| {
                tracing::debug!(user = &*user, why = refusal.why, "not proved again");
                Reason::NOT_AUTHORIZED // MQTT-4.12.1-2
            };
            match (reason, begun.take()) {
                (Reason::REAUTHENTICATE, None) => {
                    let (exchange, question) =
                        identities.begin(&data, address, now).map_err(failed)?;
                    if exchange.user() != &*user {
                        return Err(Reason::NOT_AUTHORIZED); // Its session stays the one that it was let into.
                    }
                    begun = Some(exchange);
                    Ok(answer(Reason::CONTINUE_AUTHENTICATION, &method, question))
                }
                (Reason::CONTINUE_AUTHENTICATION, Some(exchange)) => {
                    let concluded = identities.conclude(exchange, &data, &client_id, now);
                    let (_, proof) = concluded.map_err(failed)?;
                    Ok(answer(Reason::SUCCESS, &method, proof))
                }
                _ => Err(Reason::PROTOCOL_ERROR),
            }
        })
    }
}

fn answer(reason: Reason, method: &ByteString, data: Bytes) -> Auth {
    connection::auth(reason, Some(method.clone()), Some(data))
}

#[cfg(test)]
mod tests;
