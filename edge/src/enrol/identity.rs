//! What TLS shows the cloud and trusts of it: from the files that the settings name, else from those that enrolment wrote.
//!
//! ```text
//! DATA/identity/edge.pem   our key and certificate, one file: they only ever change together
//! DATA/identity/ca.pem     the fleet's authorities               DATA/identity/time   the newest date that is certain
//! ```
//! Files are read again for every connection, so that a renewed certificate needs no restart; while they stay the same so
//! does the configuration, and with it the tickets that make reconnecting cheap.
//! Change here: where certificates come from. Not here: how they are had (`enrol`), errors of a connection (`link::tls`).

use std::{
    fmt::Display,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use rustls::{
    ClientConfig, RootCertStore,
    client::WebPkiServerVerifier,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    version::TLS13,
};
use tributary_shared::auth::certificate::{Facts, facts, principal};

use super::{
    files,
    verify::{Evidence, Verifier},
};
use crate::config::Config;

/// What cannot be used, why, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {why}")]
pub struct IdentityError {
    file: String,
    why: String,
}

impl IdentityError {
    fn new(file: &Path, why: impl Display) -> Self {
        Self { file: file.display().to_string(), why: why.to_string() }
    }
}

/// The certificates of this edge.
#[derive(Debug)]
pub struct Identity {
    folder: PathBuf,
    ca: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
    /// The settings name a certificate; without, one that enrolment brought is shown if it is there.
    named: bool,
    evidence: Arc<Evidence>,
    made: Mutex<Option<Made>>,
}

/// A configuration, and what the files said when it was made.
#[derive(Debug)]
struct Made {
    from: [Vec<u8>; 3],
    config: Arc<ClientConfig>,
}

impl Identity {
    /// As the settings say. Reads nothing yet but the newest date.
    pub fn new(config: &Config) -> Arc<Self> {
        let folder = Path::new(&config.data).join("identity");
        let uplink = &config.uplink;
        let file = |setting: &str, enrolled: &str| match setting {
            "" => folder.join(enrolled),
            setting => PathBuf::from(setting),
        };
        Arc::new(Self {
            ca: file(&uplink.ca, "ca.pem"),
            certificate: file(&uplink.certificate, "edge.pem"),
            key: file(&uplink.key, "edge.pem"),
            named: !uplink.certificate.is_empty(),
            evidence: Arc::new(Evidence::open(folder.join("time"))),
            made: Mutex::default(),
            folder,
        })
    }

    /// For a connection that begins now.
    pub fn client(&self) -> Result<Arc<ClientConfig>, IdentityError> {
        let authorities = files::read(&self.ca).map_err(|error| self.no_authority(&error))?;
        let certificate = self.own(&self.certificate)?;
        let key = self.own(&self.key)?;
        let from = [authorities, certificate, key];
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = made.as_ref().filter(|made| made.from == from) {
            return Ok(Arc::clone(&made.config));
        }
        let config = Arc::new(self.configuration(&from, false)?);
        *made = Some(Made { from, config: Arc::clone(&config) });
        Ok(config)
    }

    /// What the certificate that is shown says of itself; `None`: there is none, or it cannot be read.
    pub fn own_facts(&self) -> Option<Facts> {
        let bytes = files::read(&self.certificate).ok()?;
        facts(&CertificateDer::from_pem_slice(&bytes).ok()?)
    }

    /// The name in the certificate that is shown.
    pub(super) fn own_name(&self) -> Option<String> {
        let bytes = files::read(&self.certificate).ok()?;
        Some(principal(&CertificateDer::from_pem_slice(&bytes).ok()?)?.to_string())
    }

    /// The certificate came by enrolment, and is renewed so.
    pub(super) fn is_enrolled(&self) -> bool {
        !self.named && self.folder.join("est").exists()
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// For a connection that tries another key and certificate.
    pub(super) fn with_pair(&self, pem: &str) -> Result<Arc<ClientConfig>, IdentityError> {
        let authorities = files::read(&self.ca).map_err(|error| self.no_authority(&error))?;
        let from = [authorities, pem.as_bytes().to_vec(), pem.as_bytes().to_vec()];
        self.configuration(&from, false).map(Arc::new)
    }

    /// A file of ours; empty if there need be none.
    fn own(&self, file: &Path) -> Result<Vec<u8>, IdentityError> {
        match files::read(file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.named => Ok(Vec::new()),
            outcome => outcome.map_err(|error| IdentityError::new(file, error)),
        }
    }

    fn no_authority(&self, error: &io::Error) -> IdentityError {
        if error.kind() == io::ErrorKind::NotFound && self.ca.starts_with(&self.folder) {
            let why =
                "this edge trusts no authority yet: run `tributary-edge enrol`, or set `uplink.ca`";
            return IdentityError::new(&self.ca, why);
        }
        IdentityError::new(&self.ca, error)
    }

    fn configuration(
        &self,
        from: &[Vec<u8>; 3],
        first_contact: bool,
    ) -> Result<ClientConfig, IdentityError> {
        let [authorities, certificate, key] = from;
        let bad = |file: &Path, why: &dyn Display| IdentityError::new(file, why);
        let mut roots = RootCertStore::empty();
        for authority in certificates(authorities).map_err(|why| bad(&self.ca, &why))? {
            roots.add(authority).map_err(|error| bad(&self.ca, &error))?;
        }
        let chain = match certificate.as_slice() {
            [] => Vec::new(),
            certificate => certificates(certificate).map_err(|why| bad(&self.certificate, &why))?,
        };
        let provider = Arc::new(ring::default_provider());
        let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone());
        let verifier = Verifier {
            inner: inner.build().map_err(|error| bad(&self.ca, &error))?,
            evidence: Arc::clone(&self.evidence),
            own: chain.first().and_then(|own| facts(own)).map(|own| (own.from_s, own.until_s)),
            first_contact,
        };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| bad(&self.ca, &error))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        if chain.is_empty() {
            return Ok(builder.with_no_client_auth());
        }
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|error| bad(&self.key, &format_args!("no private key: {error}")))?;
        builder.with_client_auth_cert(chain, key).map_err(|error| bad(&self.certificate, &error))
    }
}

/// For the first connection that trusts a pinned authority, without a certificate of our own.
pub(super) fn first_contact(folder: &Path, ca: &str) -> Result<Arc<ClientConfig>, IdentityError> {
    let data = folder.parent().unwrap_or(folder).display().to_string();
    let identity = Identity::new(&Config { data, ..Config::default() });
    let from = [ca.as_bytes().to_vec(), Vec::new(), Vec::new()];
    identity.configuration(&from, true).map(Arc::new)
}

/// All in a file, at least one.
fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match all {
        Ok(all) if all.is_empty() => Err("holds no certificate as PEM".to_owned()),
        Ok(all) => Ok(all),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::enrol::testing::{Authority, Span, enrolled};

    fn config(data: &Path) -> Config {
        Config { data: data.to_str().unwrap().to_owned(), ..Config::default() }
    }

    #[test]
    fn an_edge_without_any_authority_is_told_to_enrol() {
        let folder = tempfile::tempdir().unwrap();
        let error = Identity::new(&config(folder.path())).client().unwrap_err().to_string();
        assert!(error.contains("ca.pem") && error.contains("tributary-edge enrol"), "{error}");
        let mut named = config(folder.path());
        named.uplink.ca = "/no/such.pem".to_owned();
        let error = Identity::new(&named).client().unwrap_err().to_string();
        assert!(error.starts_with("/no/such.pem: No such file"), "{error}");
    }

    #[test]
    fn a_renewed_certificate_is_shown_from_the_next_connection_on() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new();
        enrolled(folder.path(), &authority, &authority.edge("gw1", Span::days(3)));
        let identity = Identity::new(&config(folder.path()));
        let first = identity.client().unwrap();
        assert!(Arc::ptr_eq(&first, &identity.client().unwrap()), "tickets are kept");
        let before = identity.own_facts().unwrap();
        enrolled(folder.path(), &authority, &authority.edge("gw1", Span::days(90)));
        assert!(!Arc::ptr_eq(&first, &identity.client().unwrap()));
        assert!(identity.own_facts().unwrap().until_s > before.until_s + 86 * 86_400);
    }

    #[test]
    fn files_that_do_not_fit_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new();
        let (one, two) =
            (authority.edge("gw1", Span::days(3)), authority.edge("gw1", Span::days(3)));
        enrolled(folder.path(), &authority, &one);
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(path("key"), &two.key_pem).unwrap();
        std::fs::write(path("cert"), &one.pem).unwrap();
        std::fs::write(path("none"), "nothing").unwrap();
        for (certificate, key, ca, named) in [
            ("cert", "key", "", "cert"),
            ("none", "key", "", "none"),
            ("cert", "none", "", "none"),
            ("cert", "key", "none", "none"),
        ] {
            let mut config = config(folder.path());
            (config.uplink.certificate, config.uplink.key) = (path(certificate), path(key));
            if !ca.is_empty() {
                config.uplink.ca = path(ca);
            }
            let error = Identity::new(&config).client().unwrap_err().to_string();
            assert!(error.starts_with(&path(named)), "{error}");
        }
    }
}
