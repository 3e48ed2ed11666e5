//! Where a broker is and who asks, as flags; and the way there.
//!
//! Change here: a flag, how it is dialled. Not here: packets (`client`).

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use bytestring::ByteString;
use clap::{Args, ValueEnum};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tributary_shared::mqtt::{Qos, Version, packet::Connect};

use super::Wire;
use crate::command::Failed;

/// Where the broker is and who asks; the flags of mosquitto's clients.
#[derive(Debug, Clone, Args)]
pub(in crate::command) struct Server {
    /// Host name or address.
    #[arg(short = 'h', long, default_value = "127.0.0.1", value_name = "HOST")]
    pub host: String,
    /// Port [default: 1883, with --cafile 8883].
    #[arg(short = 'p', long, value_name = "PORT")]
    pub port: Option<u16>,
    /// Unix socket, instead of host and port.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["host", "port", "cafile"])]
    pub unix: Option<PathBuf>,
    /// Client id [default: the broker gives one].
    #[arg(
        short = 'i',
        long = "id",
        value_name = "ID",
        default_value = "",
        hide_default_value = true
    )]
    pub id: String,
    /// User name.
    #[arg(short = 'u', long, value_name = "NAME")]
    pub username: Option<String>,
    /// Password. Others on this machine can see it in the list of processes.
    #[arg(short = 'P', long = "pw", value_name = "PASSWORD", requires = "username")]
    pub password: Option<String>,
    /// Version of the protocol; 5 tells why something is refused.
    #[arg(short = 'V', long = "protocol-version", value_enum, default_value_t = Protocol::V5)]
    pub version: Protocol,
    /// Seconds between pings.
    #[arg(short = 'k', long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u16).range(5..))]
    pub keepalive: u16,
    /// Authorities that may have signed the broker's certificate, PEM; with it the connection is TLS.
    #[arg(long, value_name = "FILE")]
    pub cafile: Option<PathBuf>,
    /// Own certificate, PEM.
    #[arg(long, value_name = "FILE", requires_all = ["key", "cafile"])]
    pub cert: Option<PathBuf>,
    /// Its private key, PEM.
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub key: Option<PathBuf>,
}

/// As mosquitto's clients name them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::command) enum Protocol {
    /// 3.1.
    #[value(name = "mqttv31", alias = "31")]
    V31,
    /// 3.1.1.
    #[value(name = "mqttv311", alias = "311")]
    V311,
    /// 5.0.
    #[value(name = "mqttv5", alias = "5")]
    V5,
}

impl Protocol {
    pub(super) fn version(self) -> Version {
        match self {
            Self::V31 => Version::V31,
            Self::V311 => Version::V311,
            Self::V5 => Version::V5,
        }
    }
}

/// Reads 0, 1 or 2.
pub(in crate::command) fn qos(text: &str) -> Result<Qos, &'static str> {
    match text {
        "0" => Ok(Qos::AtMostOnce),
        "1" => Ok(Qos::AtLeastOnce),
        "2" => Ok(Qos::ExactlyOnce),
        _ => Err("0, 1 or 2"),
    }
}

impl Server {
    /// In words, for messages.
    pub(in crate::command) fn place(&self) -> String {
        match &self.unix {
            Some(path) => format!("unix:{}", path.display()),
            None => format!("{}:{}", self.host, self.port()),
        }
    }

    fn port(&self) -> u16 {
        self.port.unwrap_or(if self.cafile.is_some() { 8883 } else { 1883 })
    }

    pub(super) fn hello(&self, version: Version, clean: bool) -> Connect {
        Connect {
            version,
            client_id: self.client_id(version),
            clean_start: clean,
            keep_alive: self.keepalive,
            will: None,
            user_name: self.username.as_deref().map(Into::into),
            password: self.password.as_ref().map(|text| Bytes::copy_from_slice(text.as_bytes())),
            session_expiry: (!clean && version == Version::V5).then_some(u32::MAX),
            receive_maximum: None,
            maximum_packet_size: None,
            topic_alias_maximum: 0,
            request_response_information: false,
            request_problem_information: true,
            user_properties: Vec::new(),
            authentication_method: None,
            authentication_data: None,
        }
    }

    /// 3.1 has no ids given by the broker (MQTT 3.1, 3.1).
    fn client_id(&self, version: Version) -> ByteString {
        match (self.id.as_str(), version) {
            ("", Version::V31) => format!("tributary-{}", std::process::id()).into(),
            (id, _) => id.into(),
        }
    }

    pub(super) async fn dial(&self) -> Result<Box<dyn Wire>, Failed> {
        let place = self.place();
        let cannot = |error: std::io::Error| {
            Failed::cannot(format_args!("cannot connect to {place}: {error}"))
        };
        if let Some(path) = &self.unix {
            return Ok(Box::new(UnixStream::connect(path).await.map_err(cannot)?));
        }
        let stream = TcpStream::connect((&*self.host, self.port())).await.map_err(cannot)?;
        stream.set_nodelay(true).map_err(cannot)?;
        let Some(authorities) = &self.cafile else { return Ok(Box::new(stream)) };
        let config = self.tls(authorities)?;
        let name = ServerName::try_from(self.host.clone()).map_err(|_| {
            Failed::cannot(format_args!("{} cannot stand in a certificate", self.host))
        })?;
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
        Ok(Box::new(stream.map_err(cannot)?))
    }

    fn tls(&self, authorities: &Path) -> Result<ClientConfig, Failed> {
        let mut roots = RootCertStore::empty();
        for authority in certificates(authorities)? {
            roots.add(authority).map_err(|error| bad(authorities, error))?;
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| bad(authorities, error))?
            .with_root_certificates(roots);
        match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => {
                let chain = certificates(cert)?;
                let key = PrivateKeyDer::from_pem_file(key).map_err(|error| bad(key, error))?;
                builder.with_client_auth_cert(chain, key).map_err(|error| bad(cert, error))
            }
            _ => Ok(builder.with_no_client_auth()),
        }
    }
}

fn bad(file: &Path, error: impl std::fmt::Display) -> Failed {
    Failed::cannot(format_args!("{}: {error}", file.display()))
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, Failed> {
    let all = CertificateDer::pem_file_iter(file).map_err(|error| bad(file, error))?;
    let all: Vec<_> = all.collect::<Result<_, _>>().map_err(|error| bad(file, error))?;
    if all.is_empty() { Err(bad(file, "holds no certificate as PEM")) } else { Ok(all) }
}
