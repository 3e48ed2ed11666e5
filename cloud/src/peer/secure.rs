//! Who is a peer: mutual TLS, with certificates from files, or with an authority that all nodes derive from one shared secret.
//!
//! From a secret: HKDF-SHA256 -> the key (Ed25519) of an authority that is the same at every node and is written nowhere; each
//! node makes itself a certificate of its own. Who does not know the secret has none, and trusts none. Its dates do not
//! end, so that a clock that jumps cuts no cluster: the secret is what ends, by being exchanged.
//! Without either: plain, and only on loopback.
//! In: files. Out: streams whose other end is a node. Change here: what proves a node. Not here: the header (`proxy`).

use std::{fs, io, path::Path, sync::Arc};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ED25519, SerialNumber, date_time_ymd,
};
use ring::hkdf;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::ring::default_provider,
    pki_types::{
        CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, pem::PemObject as _,
    },
    server::WebPkiClientVerifier,
    version::TLS13,
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{PeerError, Settings, Stream};

/// The name in the certificates that come from a secret: every node is a peer like any other.
const NAME: &str = "peer.tributary.internal";
/// Makes the keys different from any other use of the same secret.
const SALT: &[u8] = b"tributary peers 1";
/// Fewer bytes can be guessed.
const SECRET_MIN: usize = 32;
/// Bytes of a file.
const FILE_MAX: u64 = 1024 * 1024;
/// An Ed25519 private key as PKCS #8 (RFC 8410, section 7), before its 32 bytes.
const PKCS8_ED25519: [u8; 16] = [
    0x30, 0x2E, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2B, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// How peers are spoken to. Cheap to clone.
#[derive(Clone)]
pub(super) struct Secure {
    tls: Option<Tls>,
}

#[derive(Clone)]
struct Tls {
    acceptor: TlsAcceptor,
    connector: TlsConnector,
    /// `None`: the host that is connected to.
    name: Option<ServerName<'static>>,
}

/// One node's certificate and whom it trusts.
struct Own {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: RootCertStore,
    name: Option<ServerName<'static>>,
}

impl Secure {
    /// Reads the files.
    pub(super) fn open(settings: &Settings) -> Result<Self, PeerError> {
        let files = [&settings.certificate, &settings.key, &settings.ca];
        let some = files.iter().any(|file| !file.is_empty());
        if some && files.iter().any(|file| file.is_empty()) {
            return Err(PeerError::Some);
        }
        let own = match (some, settings.secret.is_empty()) {
            (false, true) => return Ok(Self { tls: None }),
            (true, false) => return Err(PeerError::Both),
            (true, true) => from_files(settings)?,
            (false, false) => {
                let secret = secret(&settings.secret)?;
                derived(&secret).map_err(|error| wrong(&settings.secret, &error))?
            }
        };
        let tls = own.tls().map_err(|error| wrong("peer", &error))?;
        Ok(Self { tls: Some(tls) })
    }

    /// The far end of a connection to `host`.
    pub(super) async fn connect(&self, stream: TcpStream, host: &str) -> io::Result<Stream> {
        let Some(tls) = &self.tls else {
            let local = stream.peer_addr()?.ip().to_canonical().is_loopback();
            let why =
                "without `peer.secret` or certificates other nodes are reached on loopback only";
            return if local { Ok(Box::new(stream)) } else { Err(io::Error::other(why)) };
        };
        let name = match &tls.name {
            Some(name) => name.clone(),
            None => ServerName::try_from(host.to_owned()).map_err(io::Error::other)?,
        };
        Ok(Box::new(tls.connector.connect(name, stream).await?))
    }

    /// The other end.
    pub(super) async fn accept(&self, stream: TcpStream) -> io::Result<Stream> {
        Ok(match &self.tls {
            Some(tls) => Box::new(tls.acceptor.accept(stream).await?),
            None => Box::new(stream),
        })
    }
}

impl Own {
    fn tls(self) -> Result<Tls, rustls::Error> {
        let provider = Arc::new(default_provider());
        let roots = Arc::new(self.roots);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone());
        let verifier =
            verifier.build().map_err(|error| rustls::Error::General(error.to_string()))?;
        let server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain.clone(), self.key.clone_key())?;
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])?
            .with_root_certificates(roots)
            .with_client_auth_cert(self.chain, self.key)?;
        Ok(Tls {
            acceptor: Arc::new(server).into(),
            connector: Arc::new(client).into(),
            name: self.name,
        })
    }
}

fn wrong(file: &str, why: &dyn std::fmt::Display) -> PeerError {
    PeerError::File { file: file.to_owned(), why: why.to_string() }
}

fn read(file: &str) -> Result<Vec<u8>, PeerError> {
    let size = fs::metadata(file).map_err(|error| wrong(file, &error))?.len();
    if size > FILE_MAX {
        return Err(wrong(file, &format_args!("larger than {FILE_MAX} bytes")));
    }
    fs::read(file).map_err(|error| wrong(file, &error))
}

fn secret(file: &str) -> Result<Vec<u8>, PeerError> {
    let bytes = read(file)?;
    let secret = bytes.trim_ascii();
    if secret.len() < SECRET_MIN {
        let why = format_args!(
            "holds {} bytes, expected at least {SECRET_MIN} that nobody can guess: make one with `openssl rand -hex 32`",
            secret.len()
        );
        return Err(wrong(file, &why));
    }
    tributary_shared::auth::warn_if_open(Path::new(file));
    Ok(secret.to_vec())
}

fn from_files(settings: &Settings) -> Result<Own, PeerError> {
    let certificates = |file: &str| -> Result<Vec<CertificateDer<'static>>, PeerError> {
        let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(file)?).collect();
        match all {
            Ok(all) if all.is_empty() => Err(wrong(file, &"holds no certificate as PEM")),
            all => all.map_err(|error| wrong(file, &error)),
        }
    };
    let key = PrivateKeyDer::from_pem_slice(&read(&settings.key)?)
        .map_err(|error| wrong(&settings.key, &error))?;
    tributary_shared::auth::warn_if_open(Path::new(&settings.key));
    let mut roots = RootCertStore::empty();
    for authority in certificates(&settings.ca)? {
        roots.add(authority).map_err(|error| wrong(&settings.ca, &error))?;
    }
    Ok(Own { chain: certificates(&settings.certificate)?, key, roots, name: None })
}

/// Length of a key, for HKDF.
struct KeyLength;

impl hkdf::KeyType for KeyLength {
    fn len(&self) -> usize {
        32
    }
}

/// The authority that stands for `secret`, and a certificate of it for this process.
fn derived(secret: &[u8]) -> Result<Own, Box<dyn std::error::Error + Send + Sync>> {
    let mut seed = [0; 32];
    let pseudo = hkdf::Salt::new(hkdf::HKDF_SHA256, SALT).extract(secret);
    let expanded = pseudo.expand(&[b"authority"], KeyLength).and_then(|okm| okm.fill(&mut seed));
    expanded.map_err(|_| "no key can be derived")?;
    let pkcs8 = PrivatePkcs8KeyDer::from([&PKCS8_ED25519[..], &seed].concat());
    let authority_key = KeyPair::from_pkcs8_der_and_sign_algo(&pkcs8, &PKCS_ED25519)?;
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    authority.distinguished_name = named("tributary peers");
    authority.serial_number = Some(SerialNumber::from(1_u64));
    for_ever(&mut authority);
    let root = authority.self_signed(&authority_key)?.der().clone();

    let mut leaf = CertificateParams::new(vec![NAME.to_owned()])?;
    leaf.distinguished_name = named("tributary peer");
    leaf.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    for_ever(&mut leaf);
    let key = KeyPair::generate()?;
    let certificate = leaf.signed_by(&key, &Issuer::new(authority, authority_key))?;
    let mut roots = RootCertStore::empty();
    roots.add(root)?;
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let name = Some(ServerName::try_from(NAME)?);
    Ok(Own { chain: vec![certificate.der().clone()], key, roots, name })
}

fn named(name: &str) -> DistinguishedName {
    let mut full = DistinguishedName::new();
    full.push(DnType::CommonName, name);
    full
}

fn for_ever(params: &mut CertificateParams) {
    (params.not_before, params.not_after) = (date_time_ymd(1970, 1, 1), date_time_ymd(9999, 1, 1));
}
