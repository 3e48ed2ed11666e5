//! The MQTT listeners: a stream that arrives becomes a client with a name, or is told why not.
//!
//! ```text
//! arrived (shared::net) -> CONNECT (shared::connection) -> who is it (shared::auth) -> its connection runs
//! ```
//! Nothing of the broker's state is touched before the name is proved. Change here: the order of these steps. Not here:
//! transports, limits of accepting, what a connection does.

use std::{future::pending, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use tributary_shared::{
    auth::{Holds, Identities, Identity, Method, Refusal, Shown},
    clock::{self, Clock},
    connection::{self, Context, Opened, Settings, Until},
    net::{
        Admitted, Gate, Listener, Stream,
        listener::{Arrived, Bound},
        tls::Held,
    },
    session::event::Peer,
    telemetry::brief,
};

use crate::enhanced::Enhanced;

/// What every connection needs.
#[derive(Clone)]
pub struct Door {
    /// The broker's connections.
    pub context: Arc<Context>,
    /// Who is who.
    pub identities: Arc<Identities>,
    /// The time.
    pub clock: Clock,
}

/// Serves until the context's stop, and until the connections have ended.
pub async fn serve(listeners: Vec<(Listener, Bound)>, gate: Arc<Gate>, door: Door) {
    let patience = Duration::from_millis(door.context.settings.handshake_ms);
    let door = Arc::new(door);
    let mut serving = JoinSet::new();
    for (listener, bound) in listeners {
        let (door, gate) = (Arc::clone(&door), Arc::clone(&gate));
        let (stop, methods) = (door.context.stop.clone(), Arc::clone(&listener.methods));
        let peer = move |arrived| Arc::clone(&door).client(arrived, Arc::clone(&methods));
        serving.spawn(listener.serve(bound, gate, patience, stop, peer));
    }
    while serving.join_next().await.is_some() {}
}

impl Door {
    /// What is needed until the name is known is in a box: it is large and over soon, while the connection lasts.
    pub(crate) fn client(
        self: Arc<Self>,
        arrived: Box<Arrived>,
        methods: Arc<[Method]>,
    ) -> impl Future<Output = ()> + Send + use<> {
        let context = Arc::clone(&self.context);
        let entering = Box::pin(async move { self.enter(arrived, methods).await });
        async move {
            let Some((opened, peer, admitted)) = entering.await else { return };
            connection::run(opened, peer, &context).await;
            drop(admitted);
        }
    }

    /// A client that is known, or nothing: then it has been told.
    async fn enter(
        &self,
        arrived: Box<Arrived>,
        methods: Arc<[Method]>,
    ) -> Option<(Opened<Stream>, Peer, Admitted)> {
        let Arrived { stream, address, certificate, held, deadline, mut admitted } = *arrived;
        let context = &self.context;
        let left = deadline.saturating_duration_since(Instant::now());
        let handshake_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
        let settings = Settings { handshake_ms, ..context.settings.clone() };
        let opened = tokio::select! {
            () = context.stop.cancelled() => return None,
            opened = connection::handshake(stream, &settings, &context.counters) => opened,
        };
        let mut opened = match opened {
            Ok(opened) => opened,
            Err(refused) => {
                tracing::debug!(?address, %refused, "no connection");
                return None;
            }
        };
        let ip = address.map(|address| address.ip());
        let outcome = if opened.connect.authentication_method.is_some() {
            let enhanced = Enhanced { identities: &self.identities, clock: self.clock };
            let proved = tokio::select! {
                () = context.stop.cancelled() => return None,
                proved = enhanced.prove(&mut opened, ip, &methods, deadline, &context.counters) => proved,
            };
            match proved {
                Ok(outcome) => outcome.map(|(identity, proof)| (identity, Some(proof))),
                Err(refused) => {
                    tracing::debug!(?address, %refused, "no connection");
                    return None;
                }
            }
        } else {
            let connect = &opened.connect;
            let shown = Shown {
                certificate: &certificate,
                user: connect.user_name.as_deref(),
                password: connect.password.as_deref(),
                client_id: &connect.client_id,
                address: ip,
            };
            let identity = self.identities.identify(shown, &methods, self.clock.now()).await;
            identity.map(|identity| (identity, None))
        };
        admitted.handshake_done();
        match outcome {
            Ok((identity, proof)) => {
                opened.until = self.until(&identity, held);
                let principal = identity.principal;
                Some((opened, Peer { principal, address, proof }, admitted))
            }
            Err(refusal) => {
                self.refuse(opened, refusal, address).await;
                None
            }
        }
    }

    async fn refuse(&self, opened: Opened<Stream>, refusal: Refusal, address: Option<SocketAddr>) {
        let Refusal { reason, delay, why } = refusal;
        let user = brief(opened.connect.user_name.as_deref().unwrap_or(""));
        let client = brief(&opened.connect.client_id);
        if delay.is_zero() {
            tracing::debug!(?address, client, user, reason = reason.0, "client refused: {why}");
        } else {
            tracing::info!(?address, client, user, "client refused: {why}");
        }
        tokio::select! {
            () = self.context.stop.cancelled() => {}
            () = sleep(delay) => opened.refuse(reason).await,
        }
    }

    /// When a client that is in has to go.
    fn until(&self, identity: &Identity, held: Option<Held>) -> Option<Until> {
        let identities = Arc::clone(&self.identities);
        let proof = match (identity.holds, &identity.principal) {
            (Holds::Token(wall_ms, by), _) => Some(Until::new(async move {
                tokio::select! {
                    () = clock::reach(wall_ms) => {}
                    () = identities.trust_ended(by) => {}
                }
            })),
            (Holds::Stored(was), Some(user)) => {
                Some(Until::new(identities.password_changed(user.clone(), was)))
            }
            (Holds::Connection | Holds::Stored(_), _) => None,
        };
        let Some(held) = held else { return proof };
        Some(Until::new(async move {
            let proof = async {
                match proof {
                    Some(proof) => proof.0.await,
                    None => pending().await,
                }
            };
            tokio::select! {
                () = proof => {}
                () = held.ended() => {}
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use tributary_shared::{auth, connection::Handle, net};

    use super::*;

    #[tokio::test]
    async fn an_idle_client_stays_small() {
        let (incoming, _queue) = tokio::sync::mpsc::channel(1);
        let stop = tokio_util::sync::CancellationToken::new();
        let context = Context::new(Handle { incoming }, Settings::default(), 1 << 20, stop);
        let identities = Identities::open(&auth::Settings::default()).unwrap();
        let door = Door { context: Arc::new(context), identities, clock: Clock::start() };
        let listener = net::bind("127.0.0.1:0".parse().unwrap(), "test").unwrap();
        let dialed = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let arrived = Box::new(Arrived {
            stream: Stream::Tcp(dialed),
            address: None,
            certificate: auth::Certificate::None,
            held: None,
            deadline: Instant::now(),
            admitted: Gate::new(net::Settings::default()).admit(None).unwrap(),
        });
        let client = Arc::new(door).client(arrived, Arc::new([Method::Anonymous]));
        let bytes = size_of_val(&client);
        assert!(bytes <= 800, "{bytes}");
    }
}
