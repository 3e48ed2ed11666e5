//! One MQTT listener with its own address, transport, and rules about who may try.
//!
//! ```text
//! prepare (settings, files) -> bind -> serve: accept -> TLS -> WebSocket -> Arrived, all within one deadline
//! ```
//! In: [`Settings`]. Out: streams that are ready for MQTT, with the name in the client's certificate. Beyond loopback a
//! listener has TLS, takes no anonymous clients, and there are access rules, or it is not opened.
//! Change here: what a listener can be. Not here: limits of accepting (`accept`), who the client is (`auth::identify`).

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    net::{TcpListener, TcpStream, UnixStream},
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{
    Admitted, Exposure, Gate,
    accept::accept_from,
    bind, check_exposure,
    stream::Stream,
    tls::{self, Tls},
    unix::Unix,
    websocket::{self, UpgradeError},
};
use crate::auth::{Certificate, Identities, Method};

crate::settings! {
    /// One more MQTT listener.
    pub struct Settings {
        /// host:port (an IPv6 address in brackets), or unix:/path/of/socket. Port 0 picks a free one.
        pub address: String = String::new(),
        /// tcp; tls = TCP with TLS; ws, wss = WebSocket without and with TLS.
        pub transport: Transport = Transport::Tcp,
        /// PEM file: certificate of this listener and those between it and its authority.
        pub certificate: String = String::new(),
        /// PEM file: its private key.
        pub key: String = String::new(),
        /// PEM file: authorities that sign the certificates of clients.
        pub client_ca: String = String::new(),
        /// PEM file: certificate revocation lists of those authorities. Each needs one then.
        pub client_crl: String = String::new(),
        /// TLS 1.2 besides 1.3.
        pub tls12: bool = false,
        /// How clients prove who they are: certificate, token, password, anonymous. Empty: all that is configured, anonymous
        /// if nothing is.
        pub methods: Vec<Method> = Vec::new(),
        /// WebSocket: pages that may connect beside those of the same host, as https://host:port; * = all.
        pub origins: Vec<String> = Vec::new(),
        /// Connections at once on this listener. 0: only the common limit counts.
        pub connections: usize = 0,
        /// Who may connect to a unix socket, as file mode.
        pub mode: String = "660".to_owned(),
    }
}

/// What carries MQTT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// TLS.
    Tls,
    /// WebSocket.
    Ws,
    /// WebSocket over TLS.
    Wss,
}

impl Transport {
    fn is_tls(self) -> bool {
        matches!(self, Self::Tls | Self::Wss)
    }

    fn is_websocket(self) -> bool {
        matches!(self, Self::Ws | Self::Wss)
    }
}

/// Where a listener is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// On a port.
    Tcp(SocketAddr),
    /// In the file system.
    Unix(PathBuf),
}

impl std::fmt::Display for Address {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(out),
            Self::Unix(path) => write!(out, "unix:{}", path.display()),
        }
    }
}

/// A listener that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// A setting is wrong.
    #[error("`{setting}.{key}`: {why}")]
    Setting {
        /// Which listener.
        setting: String,
        /// Which key of it.
        key: &'static str,
        /// What is wrong.
        why: String,
    },
    /// It would be open to everybody.
    #[error(transparent)]
    Exposed(#[from] super::Exposed),
    /// It could be reached by others, and nothing says what they may do.
    #[error(
        "`{0}` can be reached from other machines and there are no access rules: add [[rules]], or set `allow_insecure = true`"
    )]
    NoRules(String),
    /// Its files are bad.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    /// The address cannot be had.
    #[error(transparent)]
    Bind(#[from] super::BindError),
    /// The socket cannot be had.
    #[error("cannot listen on {path} (`{setting}`): {error}")]
    Unix {
        /// Where.
        path: String,
        /// Which listener.
        setting: String,
        /// Why.
        error: io::Error,
    },
}

/// What listeners of one program have in common.
#[derive(Debug, Clone, Copy)]
pub struct Common<'a> {
    /// Who can be known.
    pub identities: &'a Identities,
    /// There are access rules.
    pub rules: bool,
    /// Listeners beyond loopback are opened also without protection.
    pub allow_insecure: bool,
}

/// A listener whose settings and files are good.
#[derive(Debug, Clone)]
pub struct Listener {
    /// Key of its settings, for people.
    pub setting: String,
    /// Where; after [`Listener::bind`] with the port that was picked.
    pub address: Address,
    /// What carries MQTT.
    pub transport: Transport,
    /// How clients prove who they are.
    pub methods: Arc<[Method]>,
    /// Its TLS.
    pub tls: Option<Arc<Tls>>,
    /// Requests that were no WebSocket for MQTT.
    pub refused_upgrades: Arc<AtomicU64>,
    origins: Arc<[String]>,
    connections: usize,
    mode: u32,
}

/// An open listener.
#[derive(Debug)]
pub enum Bound {
    /// On a port.
    Tcp(TcpListener),
    /// In the file system.
    Unix(Unix),
}

/// A peer that can be read from.
#[derive(Debug)]
pub struct Arrived {
    /// Ready for MQTT.
    pub stream: Stream,
    /// Where it comes from; `None`: a unix socket.
    pub address: Option<SocketAddr>,
    /// What TLS says of it.
    pub certificate: Certificate,
    /// When it must have identified itself.
    pub deadline: Instant,
    /// Its place: to be told when it has identified itself, and to be kept to its end.
    pub admitted: Admitted,
}

impl Listener {
    /// Checks settings and reads files. `setting`: their key.
    pub async fn prepare(
        settings: &Settings,
        setting: &str,
        common: Common<'_>,
    ) -> Result<Self, ListenError> {
        let wrong = |key, why: &str| ListenError::Setting {
            setting: setting.to_owned(),
            key,
            why: why.to_owned(),
        };
        let address = address(&settings.address).await.map_err(|why| wrong("address", &why))?;
        check_files(settings, &address).map_err(|(key, why)| wrong(key, why))?;
        let methods = methods(settings, common.identities).map_err(|why| wrong("methods", &why))?;
        let mode = u32::from_str_radix(&settings.mode, 8).ok().filter(|mode| *mode <= 0o777);
        let mode = mode.ok_or_else(|| wrong("mode", "expected a file mode as 660"))?;
        if let Address::Tcp(address) = address {
            let tls = settings.transport.is_tls();
            let authentication = !methods.contains(&Method::Anonymous);
            let exposure = Exposure { address, setting, tls, authentication };
            check_exposure(exposure, common.allow_insecure)?;
            let local = address.ip().to_canonical().is_loopback();
            if !local && !common.rules && !common.allow_insecure {
                return Err(ListenError::NoRules(setting.to_owned()));
            }
        }
        let tls = if settings.transport.is_tls() {
            let files = tls::Files {
                certificate: settings.certificate.clone(),
                key: settings.key.clone(),
                client_ca: settings.client_ca.clone(),
                client_crl: settings.client_crl.clone(),
                client_must: methods == [Method::Certificate],
                tls12: settings.tls12,
            };
            Some(Tls::open(files, setting)?)
        } else {
            None
        };
        Ok(Self {
            setting: setting.to_owned(),
            address,
            transport: settings.transport,
            methods: methods.into(),
            tls,
            refused_upgrades: Arc::default(),
            origins: settings.origins.clone().into(),
            connections: settings.connections,
            mode,
        })
    }

    /// Other machines can reach it.
    pub fn is_exposed(&self) -> bool {
        match &self.address {
            Address::Tcp(address) => !address.ip().to_canonical().is_loopback(),
            Address::Unix(_) => false,
        }
    }

    /// Opens it; a picked port is kept, so that it can be opened again.
    pub fn bind(&mut self) -> Result<Bound, ListenError> {
        match &mut self.address {
            Address::Tcp(address) => {
                let listener = bind(*address, &self.setting)?;
                *address = listener.local_addr().unwrap_or(*address);
                Ok(Bound::Tcp(listener))
            }
            Address::Unix(path) => {
                let unix = Unix::bind(path, self.mode).map_err(|error| ListenError::Unix {
                    path: path.display().to_string(),
                    setting: self.setting.clone(),
                    error,
                })?;
                Ok(Bound::Unix(unix))
            }
        }
    }

    /// Accepts until `stop`, one task a peer, as [`super::accept`]. A peer has `patience` for everything up to its
    /// identification.
    pub async fn serve<F, T>(
        self,
        bound: Bound,
        gate: Arc<Gate>,
        patience: Duration,
        stop: CancellationToken,
        serve: F,
    ) where
        F: Fn(Box<Arrived>) -> T + Clone + Send + 'static,
        T: Future<Output = ()> + Send + 'static,
    {
        let gate = if self.connections > 0 { Gate::within(gate, self.connections) } else { gate };
        let listener = Arc::new(self);
        match bound {
            Bound::Tcp(door) => {
                let peer = move |stream, address, admitted| {
                    let (listener, serve) = (Arc::clone(&listener), serve.clone());
                    async move {
                        let opening = listener.open(stream, address, admitted, patience);
                        if let Some(arrived) = Box::pin(opening).await {
                            drop(listener);
                            serve(arrived).await;
                        }
                    }
                };
                accept_from(door, gate, stop, peer).await;
            }
            Bound::Unix(door) => {
                let peer = move |stream, _, admitted| {
                    let (listener, serve) = (Arc::clone(&listener), serve.clone());
                    async move {
                        let opening = listener.open_local(stream, admitted, patience);
                        if let Some(arrived) = Box::pin(opening).await {
                            drop(listener);
                            serve(arrived).await;
                        }
                    }
                };
                accept_from(door, gate, stop, peer).await;
            }
        }
    }

    async fn open(
        &self,
        stream: TcpStream,
        address: Option<SocketAddr>,
        admitted: Admitted,
        patience: Duration,
    ) -> Option<Box<Arrived>> {
        let deadline = Instant::now() + patience;
        let opening = async {
            let Some(tls) = &self.tls else {
                let stream = match self.transport {
                    Transport::Ws => Stream::WebSocket(Box::new(self.upgrade(stream).await?)),
                    Transport::Tcp | Transport::Tls | Transport::Wss => Stream::Tcp(stream),
                };
                return Ok((stream, Certificate::None));
            };
            let stream = tls.accept(stream).await?;
            let name = Certificate::read(tls::client_certificate(&stream));
            let stream = match self.transport {
                Transport::Wss => Stream::SecureWebSocket(Box::new(self.upgrade(stream).await?)),
                Transport::Tcp | Transport::Tls | Transport::Ws => Stream::Tls(Box::new(stream)),
            };
            Ok((stream, name))
        };
        let (stream, certificate) = self.settle(timeout_at(deadline, opening).await, address)?;
        Some(Box::new(Arrived { stream, address, certificate, deadline, admitted }))
    }

    async fn open_local(
        &self,
        stream: UnixStream,
        admitted: Admitted,
        patience: Duration,
    ) -> Option<Box<Arrived>> {
        let deadline = Instant::now() + patience;
        let opening = async {
            Ok(if self.transport.is_websocket() {
                Stream::UnixWebSocket(Box::new(self.upgrade(stream).await?))
            } else {
                Stream::Unix(stream)
            })
        };
        let stream = self.settle(timeout_at(deadline, opening).await, None)?;
        let certificate = Certificate::None;
        Some(Box::new(Arrived { stream, address: None, certificate, deadline, admitted }))
    }

    async fn upgrade<S>(&self, stream: S) -> Result<websocket::WebSocket<S>, UpgradeError>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    {
        websocket::accept(stream, &self.origins).await
    }

    /// Logs and counts a peer that came to nothing.
    fn settle<T>(
        &self,
        outcome: Result<Result<T, UpgradeError>, tokio::time::error::Elapsed>,
        address: Option<SocketAddr>,
    ) -> Option<T> {
        let setting = &self.setting;
        match outcome {
            Ok(Ok(opened)) => return Some(opened),
            Ok(Err(refused @ UpgradeError::Refused { .. })) => {
                self.refused_upgrades.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                tracing::debug!(setting, ?address, %refused, "no WebSocket");
            }
            Ok(Err(UpgradeError::Io(error))) => {
                tracing::debug!(setting, ?address, %error, "no connection");
            }
            Err(_) => tracing::debug!(setting, ?address, "no connection in time"),
        }
        None
    }
}

async fn address(text: &str) -> Result<Address, String> {
    if let Some(path) = text.strip_prefix("unix:") {
        let path = PathBuf::from(path);
        let legal = path.is_absolute();
        return if legal { Ok(Address::Unix(path)) } else { Err("expected unix:/path".to_owned()) };
    }
    let form = || format!("`{text}` is no address: expected host:port, [IPv6]:port or unix:/path");
    let mut found = tokio::net::lookup_host(text).await.map_err(|_| form())?;
    found.next().map(Address::Tcp).ok_or_else(form)
}

/// Settings that would have no effect, or that are missing.
fn check_files(settings: &Settings, address: &Address) -> Result<(), (&'static str, &'static str)> {
    let (tls, unix) = (settings.transport.is_tls(), matches!(address, Address::Unix(_)));
    if tls && unix {
        return Err(("transport", "a unix socket is tcp or ws"));
    }
    if tls && settings.certificate.is_empty() {
        return Err(("certificate", "TLS needs one"));
    }
    if tls && settings.key.is_empty() {
        return Err(("key", "TLS needs one"));
    }
    for (key, value) in [
        ("certificate", &settings.certificate),
        ("key", &settings.key),
        ("client_ca", &settings.client_ca),
        ("client_crl", &settings.client_crl),
    ] {
        if !tls && !value.is_empty() {
            return Err((key, "has no effect without transport tls or wss"));
        }
    }
    if settings.client_ca.is_empty() && !settings.client_crl.is_empty() {
        return Err(("client_crl", "has no effect without `client_ca`"));
    }
    if !settings.transport.is_websocket() && !settings.origins.is_empty() {
        return Err(("origins", "has no effect without transport ws or wss"));
    }
    Ok(())
}

fn methods(settings: &Settings, identities: &Identities) -> Result<Vec<Method>, String> {
    let certificate = !settings.client_ca.is_empty();
    let possible = |method: Method| match method {
        Method::Certificate => certificate,
        Method::Anonymous => true,
        Method::Token | Method::Password => identities.offers(method),
    };
    if settings.methods.is_empty() {
        let proofs = [Method::Certificate, Method::Token, Method::Password];
        let proofs: Vec<Method> = proofs.into_iter().filter(|method| possible(*method)).collect();
        return Ok(if proofs.is_empty() { vec![Method::Anonymous] } else { proofs });
    }
    for method in &settings.methods {
        let missing = match method {
            Method::Certificate => "`client_ca` of this listener",
            Method::Token => "`auth.token_key_files` or `auth.token_secret_files`",
            Method::Password => "`auth.password_file`",
            Method::Anonymous => "",
        };
        if !possible(*method) {
            return Err(format!("{method:?} needs {missing}").to_lowercase());
        }
    }
    if certificate && !settings.methods.contains(&Method::Certificate) {
        return Err("`client_ca` has no effect without certificate here".to_owned());
    }
    Ok(settings.methods.clone())
}

#[cfg(test)]
mod tests;
