//! One MQTT listener with its own address, transport, and rules about who may try.
//!
//! ```text
//! prepare (settings, files) -> bind -> serve: accept -> TLS -> WebSocket -> Arrived, all within one deadline
//! ```
//! In: [`Settings`]. Out: streams that are ready for MQTT, with the name in the client's certificate. Beyond loopback a
//! listener has TLS, takes no anonymous clients, and there are access rules, or it is not opened.
//! Change here: what a listener can be. Not here: limits of accepting (`accept`), who the client is (`auth::identify`).

mod settings;

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream, UnixStream},
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

pub use settings::{Address, Settings, Transport};
use settings::{address, check_files, methods};

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

impl ListenError {
    /// The settings are wrong: the same start fails again.
    pub fn is_setting(&self) -> bool {
        matches!(self, Self::Setting { .. } | Self::Exposed(_) | Self::NoRules(_))
    }
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
    /// Its certificate, to be looked at again.
    pub held: Option<tls::Held>,
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
                    let listener = Arc::clone(&listener);
                    let opening = listener.open(stream, address, admitted, patience);
                    lasting(Box::pin(opening), serve.clone())
                };
                accept_from(door, gate, stop, peer).await;
            }
            Bound::Unix(door) => {
                let peer = move |stream, _, admitted| {
                    let opening = Arc::clone(&listener).open_local(stream, admitted, patience);
                    lasting(Box::pin(opening), serve.clone())
                };
                accept_from(door, gate, stop, peer).await;
            }
        }
    }

    async fn open(
        self: Arc<Self>,
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
                return Ok((stream, Certificate::None, None));
            };
            let changes = tls.changes();
            let stream = tls.accept(stream).await?;
            let name = Certificate::read(tls::client_certificate(&stream));
            let held = tls::Held::of(tls, &stream, changes);
            let stream = match self.transport {
                Transport::Wss => Stream::SecureWebSocket(Box::new(self.upgrade(stream).await?)),
                Transport::Tcp | Transport::Tls | Transport::Ws => Stream::Tls(Box::new(stream)),
            };
            Ok((stream, name, held))
        };
        let opened = self.settle(timeout_at(deadline, opening).await, address)?;
        let (stream, certificate, held) = opened;
        Some(Box::new(Arrived { stream, address, certificate, held, deadline, admitted }))
    }

    async fn open_local(
        self: Arc<Self>,
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
        let (address, certificate, held) = (None, Certificate::None, None);
        Some(Box::new(Arrived { stream, address, certificate, held, deadline, admitted }))
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

/// What opens a connection is in a box, gone when the connection is open: its task lasts, and is as large as its largest moment.
async fn lasting<O, F, T>(opening: Pin<Box<O>>, serve: F)
where
    O: Future<Output = Option<Box<Arrived>>>,
    F: Fn(Box<Arrived>) -> T,
    T: Future<Output = ()>,
{
    if let Some(arrived) = opening.await {
        serve(arrived).await;
    }
}

#[cfg(test)]
mod tests;
