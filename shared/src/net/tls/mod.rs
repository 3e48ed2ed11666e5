//! TLS on listeners: certificates from files, client certificates, both exchanged while connections run.
//!
//! TLS 1.3, and 1.2 where a listener says so; rustls with ring. A reload swaps the whole configuration for new connections
//! and forgets tickets, so nobody resumes past a revocation; clients that are connected are looked at again ([`Held`]). A bad
//! new file keeps what was there and is counted.
//! Change here: what is negotiated. Not here: which name a certificate gives (`auth::certificate`), deadlines (`listener`).

mod held;

use std::{
    fs, io,
    path::Path,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use ::ring::digest;
use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{
        CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime, pem::PemObject,
    },
    server::{NoClientAuth, WebPkiClientVerifier, danger::ClientCertVerifier},
    time_provider::{DefaultTimeProvider, TimeProvider},
    version::{TLS12, TLS13},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use x509_cert::{Certificate, der::Decode as _};

pub use held::Held;

/// 2026-01-01: it is never earlier than that. A gateway without a battery starts in 1970.
const WRITTEN: Duration = Duration::from_hours(490_896);
/// Bytes of a file.
const FILE_BYTES: u64 = 4 * 1024 * 1024;

/// Where the certificates are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Files {
    /// Our certificate and those between it and the authority, PEM.
    pub certificate: String,
    /// Its private key, PEM.
    pub key: String,
    /// Authorities that sign clients' certificates, PEM. Empty: clients show none.
    pub client_ca: String,
    /// Revocation lists, one of each of those authorities, PEM. Empty: nothing is revoked.
    pub client_crl: String,
    /// A client without certificate is not even greeted.
    pub client_must: bool,
    /// TLS 1.2 too.
    pub tls12: bool,
}

/// Files that make no TLS.
#[derive(Debug, thiserror::Error)]
#[error("`{setting}`: {file}: {why}")]
pub struct TlsError {
    /// Key of the listener's setting.
    pub setting: String,
    /// Which.
    pub file: String,
    why: String,
}

/// TLS of one listener.
#[derive(Debug)]
pub struct Tls {
    files: Files,
    setting: String,
    current: RwLock<Current>,
    /// Changes when other clients' certificates may be trusted.
    trust: watch::Sender<()>,
    /// Handshakes that came to nothing.
    pub failed: AtomicU64,
    /// Changed files that could not be used.
    pub bad_files: AtomicU64,
}

/// What the files said when they were read.
#[derive(Debug, Clone)]
struct Current {
    config: Arc<ServerConfig>,
    verifier: Arc<dyn ClientCertVerifier>,
    clients: Clients,
}

/// Stands for the files that say which clients' certificates are trusted.
type Clients = [u8; digest::SHA256_OUTPUT_LEN];

impl Tls {
    /// Reads the files. `setting`: what names the listener, for errors.
    pub fn open(files: Files, setting: &str) -> Result<Arc<Self>, TlsError> {
        let setting = setting.to_owned();
        let current = RwLock::new(configuration(&files, &setting)?);
        let (failed, bad_files) = (AtomicU64::new(0), AtomicU64::new(0));
        let trust = watch::Sender::new(());
        Ok(Arc::new(Self { files, setting, current, trust, failed, bad_files }))
    }

    /// The files to watch.
    pub fn files(&self) -> impl Iterator<Item = &String> {
        let Files { certificate, key, client_ca, client_crl, .. } = &self.files;
        [certificate, key, client_ca, client_crl].into_iter().filter(|file| !file.is_empty())
    }

    /// When the certificate that is served ends, since 1970.
    pub fn expires(&self) -> Option<Duration> {
        expiry(&pems::<CertificateDer<'_>>(&read(&self.files.certificate).ok()?).ok()?)
    }

    /// Reads the files again, for connections from now on.
    pub fn reload(&self) -> Result<(), TlsError> {
        let new = configuration(&self.files, &self.setting).inspect_err(|_| {
            self.bad_files.fetch_add(1, Ordering::Relaxed);
        })?;
        let verifiers = new.clients;
        let old = std::mem::replace(
            &mut *self.current.write().unwrap_or_else(PoisonError::into_inner),
            new,
        );
        if old.clients != verifiers {
            self.trust.send_replace(());
        }
        Ok(())
    }

    fn current(&self) -> Current {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The handshake. Cancel it by a deadline.
    pub async fn accept<S>(&self, stream: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let config = self.current().config;
        TlsAcceptor::from(config).accept(stream).await.inspect_err(|_| {
            self.failed.fetch_add(1, Ordering::Relaxed);
        })
    }
}

/// When a chain's own certificate ends, since 1970.
fn expiry(chain: &[CertificateDer<'_>]) -> Option<Duration> {
    let own = Certificate::from_der(chain.first()?).ok()?;
    Some(own.tbs_certificate().validity().not_after.to_unix_duration())
}

/// The certificate that the client proved to have, DER.
pub fn client_certificate<S>(stream: &TlsStream<S>) -> Option<&[u8]> {
    stream.get_ref().1.peer_certificates()?.first().map(AsRef::as_ref)
}

fn configuration(files: &Files, setting: &str) -> Result<Current, TlsError> {
    let wrong = |file: &str, why: String| TlsError {
        setting: setting.to_owned(),
        file: file.to_owned(),
        why,
    };
    let read = |file: &str| read(file).map_err(|why| wrong(file, why));
    let chain = pems::<CertificateDer<'_>>(&read(&files.certificate)?)
        .map_err(|why| wrong(&files.certificate, why))?;
    crate::auth::warn_if_open(Path::new(&files.key));
    let key = PrivateKeyDer::from_pem_slice(&read(&files.key)?)
        .map_err(|error| wrong(&files.key, format!("no private key: {error}")))?;
    let versions = if files.tls12 { &[&TLS13, &TLS12][..] } else { &[&TLS13] };
    let provider = Arc::new(ring::default_provider());
    let (verifier, clients) = verifier(files, &provider, &read, &wrong)?;
    let config = ServerConfig::builder_with_details(provider, Arc::new(Since))
        .with_protocol_versions(versions)
        .map_err(|error| wrong(&files.certificate, error.to_string()))?
        .with_client_cert_verifier(Arc::clone(&verifier))
        .with_single_cert(chain, key)
        .map_err(|error| wrong(&files.certificate, format!("with {}: {error}", files.key)))?;
    Ok(Current { config: Arc::new(config), verifier, clients })
}

fn verifier(
    files: &Files,
    provider: &Arc<rustls::crypto::CryptoProvider>,
    read: &impl Fn(&str) -> Result<Vec<u8>, TlsError>,
    wrong: &impl Fn(&str, String) -> TlsError,
) -> Result<(Arc<dyn ClientCertVerifier>, Clients), TlsError> {
    let mut said = digest::Context::new(&digest::SHA256);
    if files.client_ca.is_empty() {
        return Ok((Arc::new(NoClientAuth), said.finish().as_ref().try_into().unwrap_or_default()));
    }
    let mut roots = RootCertStore::empty();
    let authorities = read(&files.client_ca)?;
    said.update(&authorities);
    let authorities = pems::<CertificateDer<'_>>(&authorities);
    for authority in authorities.map_err(|why| wrong(&files.client_ca, why))? {
        roots.add(authority).map_err(|error| wrong(&files.client_ca, error.to_string()))?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let builder = if files.client_crl.is_empty() {
        builder
    } else {
        let lists = read(&files.client_crl)?;
        said.update(&lists);
        let lists = pems::<CertificateRevocationListDer<'_>>(&lists);
        // Every authority that signs clients needs a list; those above it are replaced with `client_ca`.
        builder
            .with_crls(lists.map_err(|why| wrong(&files.client_crl, why))?)
            .only_check_end_entity_revocation()
    };
    let builder = if files.client_must { builder } else { builder.allow_unauthenticated() };
    let verifier = builder.build().map_err(|error| wrong(&files.client_ca, error.to_string()))?;
    Ok((verifier, said.finish().as_ref().try_into().unwrap_or_default()))
}

fn read(file: &str) -> Result<Vec<u8>, String> {
    let size = fs::metadata(file).map_err(|error| error.to_string())?.len();
    if size > FILE_BYTES {
        return Err(format!("larger than {FILE_BYTES} bytes"));
    }
    fs::read(file).map_err(|error| error.to_string())
}

/// All of a kind in a file, at least one.
fn pems<T: PemObject>(bytes: &[u8]) -> Result<Vec<T>, String> {
    let all: Result<Vec<T>, _> = T::pem_slice_iter(bytes).collect();
    match all {
        Ok(all) if all.is_empty() => Err("holds nothing of that kind as PEM".to_owned()),
        Ok(all) => Ok(all),
        Err(error) => Err(error.to_string()),
    }
}

/// The system's time, but not before this was written.
#[derive(Debug)]
struct Since;

impl TimeProvider for Since {
    fn current_time(&self) -> Option<UnixTime> {
        let now = DefaultTimeProvider.current_time().map_or(0, |time| time.as_secs());
        Some(UnixTime::since_unix_epoch(Duration::from_secs(now).max(WRITTEN)))
    }
}

#[cfg(test)]
pub(super) mod tests;
