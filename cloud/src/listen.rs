//! The MQTT listeners: accept, read CONNECT, and hand edges to the bridge and everyone else to the MQTT head.
//!
//! ```text
//! listen.mqtt     plain: an edge is who its CONNECT says, everyone else is a client
//! [[listeners]]   TLS: only edges, and an edge is who its certificate says
//! listen.peer     what other nodes hand on, each who that node says it is
//! ```
//! Who is served elsewhere in the cluster is handed on after its CONNECT.
//! Change here: who is handed to whom. Not here: limits of accepting (`shared::net`), what either does with a connection.

use std::{
    fs,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::BytesMut;
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
    mqtt::{Packet, Reason, packet::Connect, write::write},
    net::{
        Admitted, Gate, Listener, accept,
        listener::{Arrived, Bound, Common, ListenError, Settings},
        tls::Tls,
    },
    telemetry::brief,
};

use crate::{
    bridge::{self, Bridge},
    engine::ShardId,
    enrol::Enrol,
    log::Log,
    mqtt::{self, Clients},
    peer::{self, HandedOn, Header, Peers, Protocol},
};

/// How often files with certificates are looked at.
const LOOK: Duration = Duration::from_secs(10);

/// Who serves whom. Cheap to clone.
#[derive(Clone)]
pub struct Door {
    /// Which shards are here.
    pub log: Log,
    /// The way to where others are.
    pub peers: Peers,
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
    /// Takes clients until `closing`, and serves them until their connections have ended.
    pub async fn serve(
        self,
        plain: TcpListener,
        secured: Vec<(Listener, Bound)>,
        gate: Arc<Gate>,
        closing: CancellationToken,
    ) {
        let mut serving = JoinSet::new();
        let patience = Duration::from_millis(self.clients.settings().handshake_ms);
        for (listener, bound) in secured {
            let (door, stop) = (self.clone(), closing.clone());
            let peer = move |arrived| door.clone().certified(arrived);
            serving.spawn(listener.serve(bound, Arc::clone(&gate), patience, stop, peer));
        }
        let peer = move |stream, address, admitted| self.clone().plain(stream, address, admitted);
        serving.spawn(accept(plain, gate, closing, peer));
        while serving.join_next().await.is_some() {}
    }

    async fn plain(self, stream: TcpStream, address: SocketAddr, mut admitted: Admitted) {
        match handshake(stream, self.clients.settings(), self.clients.counters()).await {
            Err(refused) => tracing::debug!(%address, %refused, "no MQTT connection"),
            Ok(opened) => {
                admitted.handshake_done();
                if let Some(opened) = self.here(opened, Some(address), None).await {
                    self.named(opened, None, Some(address)).await;
                }
            }
        }
    }

    /// What another node has handed on: served or refused here.
    pub async fn handed(self, stream: peer::Stream, header: Header, mut admitted: Admitted) {
        let Header { address, certificate, .. } = header;
        let opened = match handshake(stream, self.clients.settings(), self.clients.counters()).await
        {
            Ok(opened) => opened,
            Err(refused) => {
                return tracing::debug!(?address, %refused, "no MQTT connection from another node");
            }
        };
        admitted.handshake_done();
        let shard = self.shard(&opened.connect);
        if self.peers.is_here(&self.log, shard, &self.stop).await {
            self.named(opened, certificate.as_deref(), address).await;
        }
    }

    /// Where a client's state is.
    fn shard(&self, connect: &Connect) -> ShardId {
        match bridge::edge(connect) {
            Some(id) => self.log.home_shard(id),
            None => mqtt::home(&self.log),
        }
    }

    /// The connection, if it is to be served here; else it is handed on or refused.
    async fn here<S>(
        &self,
        mut opened: Opened<S>,
        address: Option<SocketAddr>,
        certificate: Option<&[u8]>,
    ) -> Option<Opened<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let shard = self.shard(&opened.connect);
        if self.log.is_here(shard) {
            return Some(opened);
        }
        let certificate = certificate.map(<[u8]>::to_vec);
        let header = Header { protocol: Protocol::Mqtt, address, certificate };
        let mut first = BytesMut::new();
        write(&Packet::Connect(opened.connect.clone()), opened.connect.version, &mut first);
        let said = (&first[..], &opened.buffer[..]);
        let client = &mut opened.stream;
        let handed = self.peers.hand_on(&self.log, shard, &header, client, said, &self.stop).await;
        match handed {
            HandedOn::Here => Some(opened),
            HandedOn::Served => None,
            HandedOn::Nobody => {
                opened.refuse(Reason::SERVER_UNAVAILABLE).await;
                None
            }
        }
    }

    /// Serves a client, or an edge that is who its certificate says, or, without one, who its CONNECT says.
    async fn named<S>(
        &self,
        opened: Opened<S>,
        certificate: Option<&[u8]>,
        from: Option<SocketAddr>,
    ) where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let Some(der) = certificate else {
            return match edge_of(&opened.connect).map(str::to_owned) {
                Some(id) => self.edge(opened, &id, "", from).await,
                None => self.clients.serve(opened, from).await,
            };
        };
        let address = from.map(|from| from.to_string()).unwrap_or_default();
        let Some(id) = proved(&opened.connect, Certificate::read(Some(der)), &address) else {
            return opened.refuse(Reason::NOT_AUTHORIZED).await;
        };
        let serial = facts(der).map(|facts| facts.serial).unwrap_or_default();
        self.edge(opened, &id, &serial, from).await;
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
        let (Some(held), Some(id)) = (held, proved(&opened.connect, certificate, &address)) else {
            return opened.refuse(Reason::NOT_AUTHORIZED).await;
        };
        let der = held.certificate().to_vec();
        let serving = async {
            if let Some(opened) = self.here(opened, from, Some(&der)).await {
                self.named(opened, Some(&der), from).await;
            }
        };
        tokio::select! {
            () = serving => {}
            () = held.ended() => tracing::warn!(edge = %id, "an edge is cut off: its certificate has ended, or is not trusted any more"),
        }
    }
}

/// The edge that a CONNECT speaks of, whether to bring messages or to hear commands.
fn edge_of(connect: &Connect) -> Option<&str> {
    bridge::edge(connect).or_else(|| mqtt::listening_edge(connect))
}

/// The edge that a certificate proves, if it is the one that CONNECT speaks of.
fn proved(connect: &Connect, certificate: Certificate, address: &str) -> Option<ByteString> {
    let said = edge_of(connect);
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
