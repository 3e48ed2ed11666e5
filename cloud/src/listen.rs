//! The MQTT listeners: accept, read CONNECT, and hand edges to the bridge and everyone else to the MQTT head.
//!
//! ```text
//! listen.mqtt     plain: an edge is who its CONNECT says, everyone else is a client
//! [[listeners]]   TLS: only edges, and an edge is who its certificate says
//! ```
//! Change here: who is handed to whom. Not here: limits of accepting (`shared::net`), what either does with a connection.

use std::{
    fs,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytestring::ByteString;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tributary_shared::{
    auth::{self, Certificate, Identities, Method, certificate::facts},
    connection::{self, Opened, handshake},
    mqtt::{Reason, packet::Connect},
    net::{
        Admitted, Gate, Listener, Stream, accept,
        listener::{Arrived, Bound, Common, ListenError, Settings},
        tls::Tls,
    },
    telemetry::brief,
};

use crate::{
    bridge::{self, Bridge},
    enrol::Enrol,
    mqtt::{self, Clients},
};

/// How often files with certificates are looked at.
const LOOK: Duration = Duration::from_secs(10);

/// Who serves whom. Cheap to clone.
#[derive(Clone)]
pub struct Door {
    /// Edges.
    pub bridge: Bridge,
    /// Everyone else.
    pub clients: Clients,
    /// Who may not come in.
    pub enrol: Enrol,
    /// The end.
    pub stop: CancellationToken,
}

/// Why there is no listener of `[[listeners]]`.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum DoorError {
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Auth(#[from] auth::LoadError),
    #[error(
        "`listeners[{0}]`: a listener of the cloud is for edges with certificates: transport tls or wss, and `client_ca`"
    )]
    OnlyEdges(usize),
}

/// Checks settings and files of `[[listeners]]`, and opens them. Only edges with certificates come in there.
pub async fn open(
    settings: &[Settings],
    allow_insecure: bool,
) -> Result<Vec<(Listener, Bound)>, DoorError> {
    let identities = Identities::open(&auth::Settings::default())?;
    let mut all = Vec::new();
    for (at, settings) in settings.iter().enumerate() {
        let methods = &settings.methods;
        let others = methods.iter().any(|method| *method != Method::Certificate);
        if settings.client_ca.is_empty() || others {
            return Err(DoorError::OnlyEdges(at));
        }
        let only = Settings { methods: vec![Method::Certificate], ..settings.clone() };
        // The certificate is the rule: an edge may bring its own messages and nothing else.
        let common = Common { identities: &identities, rules: true, allow_insecure };
        let mut listener = Listener::prepare(&only, &format!("listeners[{at}]"), common).await?;
        let bound = listener.bind()?;
        all.push((listener, bound));
    }
    Ok(all)
}

/// Takes certificates that were put in the place of others, until `stop`. Bad ones change nothing.
pub async fn follow(all: Vec<Arc<Tls>>, stop: CancellationToken) {
    let stamp = |file: &String| fs::metadata(file).and_then(|data| data.modified()).ok();
    let stamps = |tls: &Tls| tls.files().map(stamp).collect::<Vec<Option<SystemTime>>>();
    let mut seen: Vec<_> = all.iter().map(|tls| stamps(tls)).collect();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(LOOK) => {}
        }
        for (tls, seen) in all.iter().zip(&mut seen) {
            let now = stamps(tls);
            if *seen == now {
                continue;
            }
            *seen = now;
            match tls.reload() {
                Ok(()) => tracing::info!("new certificates are in force"),
                Err(error) => tracing::error!(%error, "new certificates are not taken"),
            }
        }
    }
}

impl Door {
    /// Serves all until the stop, and until the connections have ended.
    pub async fn serve(self, plain: TcpListener, secured: Vec<(Listener, Bound)>, gate: Arc<Gate>) {
        let mut serving = JoinSet::new();
        let patience = Duration::from_millis(self.clients.settings().handshake_ms);
        for (listener, bound) in secured {
            let (door, stop) = (self.clone(), self.stop.clone());
            let peer = move |arrived| door.clone().certified(arrived);
            serving.spawn(listener.serve(bound, Arc::clone(&gate), patience, stop, peer));
        }
        let (door, stop) = (self.clone(), self.stop.clone());
        let peer = move |stream, address, admitted| door.clone().plain(stream, address, admitted);
        serving.spawn(accept(plain, gate, stop, peer));
        while serving.join_next().await.is_some() {}
    }

    async fn plain(self, stream: TcpStream, address: SocketAddr, mut admitted: Admitted) {
        match handshake(stream, self.clients.settings(), self.clients.counters()).await {
            Err(refused) => tracing::debug!(%address, %refused, "no MQTT connection"),
            Ok(opened) => {
                admitted.handshake_done();
                match edge_of(&opened.connect).map(str::to_owned) {
                    Some(id) => self.edge(opened, &id, "", Some(address)).await,
                    None => self.clients.serve(opened, Some(address)).await,
                }
            }
        }
    }

    /// An edge that is who it says, as long as it is not denied.
    async fn edge<S>(&self, opened: Opened<S>, id: &str, serial: &str, from: Option<SocketAddr>)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let address = from.map(|from| from.to_string()).unwrap_or_default();
        if !self.enrol.is_ready() {
            tracing::debug!(edge = brief(id), "it is not known here yet what is denied");
            return opened.refuse(Reason::SERVER_UNAVAILABLE).await;
        }
        if self.enrol.is_denied(id, serial) {
            let id = brief(id);
            tracing::warn!(edge = id, serial, address, "refused: on the deny list");
            return opened.refuse(Reason::NOT_AUTHORIZED).await;
        }
        let serving = async {
            match bridge::edge(&opened.connect) {
                Some(_) => self.bridge.serve(opened, address, self.stop.clone()).await,
                None => self.clients.serve(opened, from).await,
            }
        };
        tokio::select! {
            () = serving => {}
            () = self.enrol.denial(id, serial) => {
                tracing::warn!(edge = id, serial, "an edge is cut off: it is on the deny list now");
            }
        }
    }

    /// A peer with a certificate that TLS has verified.
    async fn certified(self, arrived: Box<Arrived>) {
        let Arrived { stream, address, certificate, held, deadline, mut admitted } = *arrived;
        let left = deadline.saturating_duration_since(Instant::now());
        let handshake_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
        let settings = connection::Settings { handshake_ms, ..self.clients.settings().clone() };
        let from = address;
        let address = address.map(|address| address.to_string()).unwrap_or_default();
        let opened = match handshake(stream, &settings, self.clients.counters()).await {
            Ok(opened) => opened,
            Err(refused) => return tracing::debug!(address, %refused, "no MQTT connection"),
        };
        admitted.handshake_done();
        let (Some(held), Some(id)) = (held, named(&opened, certificate, &address)) else {
            return opened.refuse(Reason::NOT_AUTHORIZED).await;
        };
        let serial = facts(held.certificate()).map(|facts| facts.serial).unwrap_or_default();
        tokio::select! {
            () = self.edge(opened, &id, &serial, from) => {}
            () = held.ended() => tracing::warn!(edge = %id, "an edge is cut off: its certificate has ended, or is not trusted any more"),
        }
    }
}

/// The edge that a CONNECT speaks of, whether to bring messages or to hear commands.
fn edge_of(connect: &Connect) -> Option<&str> {
    bridge::edge(connect).or_else(|| mqtt::listening_edge(connect))
}

/// The edge that a certificate proves, if it is the one that CONNECT speaks of.
fn named(opened: &Opened<Stream>, certificate: Certificate, address: &str) -> Option<ByteString> {
    let said = edge_of(&opened.connect);
    match (certificate, said) {
        (Certificate::Named(name), Some(said)) if name == said => return Some(name),
        (Certificate::Named(certificate), Some(said)) => {
            let said = brief(said);
            tracing::warn!(address, %certificate, said, "refused: the certificate is another edge's than CONNECT says");
        }
        (Certificate::Named(certificate), None) => {
            tracing::warn!(address, %certificate, "refused: only edges are served here, and CONNECT is no edge's");
        }
        (Certificate::None | Certificate::Nameless, _) => {
            tracing::warn!(address, "refused: the certificate names nobody");
        }
    }
    None
}
