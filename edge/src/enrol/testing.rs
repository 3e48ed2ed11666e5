//! An authority made for a test.

use std::{path::Path, sync::Arc};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::{
    RootCertStore,
    client::WebPkiServerVerifier,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer},
};

pub(crate) const DAY_S: u64 = 86_400;

/// From when to when, seconds since 1970.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    pub(crate) from: u64,
    pub(crate) until: u64,
}

impl Span {
    /// A day ago to in so many days, as of now.
    pub(crate) fn days(days: u64) -> Self {
        let now = tributary_shared::clock::wall_ms() as u64 / 1000;
        Self { from: now - DAY_S, until: now + days * DAY_S }
    }
}

pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) pem: String,
}

pub(crate) struct Pair {
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) pem: String,
    pub(crate) key_pem: String,
    pub(crate) key: PrivateKeyDer<'static>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "a test's fleet");
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let (pem, certificate) = (certificate.pem(), certificate.der().clone());
        Self { issuer: Issuer::new(params, key), certificate, pem }
    }

    pub(crate) fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        Arc::new(roots)
    }

    pub(crate) fn verifier(&self) -> Arc<WebPkiServerVerifier> {
        let provider = Arc::new(ring::default_provider());
        WebPkiServerVerifier::builder_with_provider(self.roots(), provider).build().unwrap()
    }

    pub(crate) fn server(&self, host: &str, span: Span) -> Pair {
        let mut params = CertificateParams::new([host.to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(params, span)
    }

    pub(crate) fn edge(&self, id: &str, span: Span) -> Pair {
        let mut params = CertificateParams::default();
        let uri = format!("urn:tributary:edge:{id}");
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params, span)
    }

    fn sign(&self, mut params: CertificateParams, span: Span) -> Pair {
        let date = |s: u64| rcgen::date_time_ymd(1970, 1, 1) + std::time::Duration::from_secs(s);
        (params.not_before, params.not_after) = (date(span.from), date(span.until));
        let key = KeyPair::generate().unwrap();
        let signed = params.signed_by(&key, &self.issuer).unwrap();
        Pair {
            certificate: signed.der().clone(),
            pem: signed.pem(),
            key_pem: key.serialize_pem(),
            key: PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        }
    }
}

/// The identity folder of an enrolled edge, in `data`.
pub(crate) fn enrolled(data: &Path, authority: &Authority, pair: &Pair) {
    let folder = data.join("identity");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("ca.pem"), &authority.pem).unwrap();
    std::fs::write(folder.join("edge.pem"), format!("{}{}", pair.key_pem, pair.pem)).unwrap();
}
