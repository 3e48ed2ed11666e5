//! Real handshakes over a pipe, with authorities made for the test.

use std::path::PathBuf;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_rustls::{TlsConnector, client};

use super::*;
use crate::auth;

/// A folder with the files of a small authority.
pub(in crate::net) struct Authority {
    folder: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    pub(in crate::net) pem: String,
}

/// A certificate with its key.
pub(in crate::net) struct Pair {
    pub(in crate::net) certificate: String,
    pub(in crate::net) key: String,
}

impl Authority {
    pub(in crate::net) fn new() -> Self {
        let name = format!("tributary-tls-{:016x}", getrandom::u64().unwrap());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir(&folder).unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "test authority");
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { folder, issuer: Issuer::new(params, key), pem }
    }

    pub(in crate::net) fn sign(&self, name: &str, serial: u64) -> Pair {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::DnsName(name.try_into().unwrap())];
        params.serial_number = Some(SerialNumber::from(serial));
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Pair { certificate, key: key.serialize_pem() }
    }

    fn revocation_list(&self, serial: u64) -> String {
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(2034, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![RevokedCertParams {
                serial_number: SerialNumber::from(serial),
                revocation_time: date_time_ymd(2024, 1, 1),
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }

    pub(in crate::net) fn write(&self, name: &str, text: &str) -> String {
        let path = self.folder.join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Files of a server called `localhost`.
    pub(in crate::net) fn server(&self, serial: u64) -> Files {
        let pair = self.sign("localhost", serial);
        Files {
            certificate: self.write("server.pem", &pair.certificate),
            key: self.write("server.key", &pair.key),
            ..Files::default()
        }
    }

    pub(in crate::net) fn connector(&self, pair: Option<&Pair>, tls12: bool) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        let versions = if tls12 { [&TLS12] } else { [&TLS13] };
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&versions)
            .unwrap()
            .with_root_certificates(roots);
        let config = match pair {
            None => builder.with_no_client_auth(),
            Some(pair) => {
                let chain =
                    vec![CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap()];
                let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        Arc::new(config).into()
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.folder));
    }
}

/// A connection that carried bytes both ways.
struct Exchanged {
    client: client::TlsStream<DuplexStream>,
    server: TlsStream<DuplexStream>,
    /// What the client has proved.
    certificate: auth::Certificate,
}

async fn exchange(tls: &Tls, connector: TlsConnector) -> io::Result<Exchanged> {
    let (theirs, ours) = duplex(64 * 1024);
    let name = ServerName::try_from("localhost").unwrap();
    let client = async {
        let mut stream = connector.connect(name, theirs).await?;
        stream.write_all(b"ping").await?;
        stream.flush().await?;
        let mut got = [0; 4];
        stream.read_exact(&mut got).await?;
        assert_eq!(&got, b"pong");
        Ok(stream)
    };
    let server = async {
        let mut stream = tls.accept(ours).await?;
        let certificate = auth::Certificate::read(client_certificate(&stream));
        let mut got = [0; 4];
        stream.read_exact(&mut got).await?;
        stream.write_all(b"pong").await?;
        stream.flush().await?;
        Ok((stream, certificate))
    };
    let (client, server): (io::Result<_>, io::Result<_>) = tokio::join!(client, server);
    let (server, certificate) = server?;
    Ok(Exchanged { client: client?, server, certificate })
}

fn serial(exchanged: &Exchanged) -> Vec<u8> {
    use x509_cert::{Certificate, der::Decode as _};
    let der = exchanged.client.get_ref().1.peer_certificates().unwrap().first().unwrap();
    let certificate = Certificate::from_der(der).unwrap();
    certificate.tbs_certificate().serial_number().as_bytes().to_vec()
}

#[tokio::test]
async fn version_1_3_is_spoken_and_1_2_only_where_asked_for() {
    let authority = Authority::new();
    let files = authority.server(1);
    let strict = Tls::open(files.clone(), "l").unwrap();
    assert!(exchange(&strict, authority.connector(None, false)).await.is_ok());
    assert!(exchange(&strict, authority.connector(None, true)).await.is_err());
    assert_eq!(strict.failed.load(Ordering::Relaxed), 1);
    let old = Tls::open(Files { tls12: true, ..files }, "l").unwrap();
    assert!(exchange(&old, authority.connector(None, true)).await.is_ok());
    assert!(exchange(&old, authority.connector(None, false)).await.is_ok());
}

#[tokio::test]
async fn a_clients_certificate_is_verified_named_and_revoked() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let (good, bad) = (authority.sign("gw-1", 7), authority.sign("gw-2", 8));
    let foreign = stranger.sign("gw-1", 7);
    let may = Files {
        client_ca: authority.write("ca.pem", &authority.pem),
        client_crl: authority.write("crl.pem", &authority.revocation_list(8)),
        ..authority.server(1)
    };
    let must = Files { client_must: true, ..may.clone() };
    for (files, optional) in [(may, true), (must, false)] {
        let tls = Tls::open(files, "l").unwrap();
        let connect = |pair| exchange(&tls, authority.connector(pair, false));
        assert_eq!(
            connect(Some(&good)).await.unwrap().certificate,
            auth::Certificate::Named("gw-1".into())
        );
        assert!(connect(Some(&bad)).await.is_err(), "revoked");
        assert!(connect(Some(&foreign)).await.is_err(), "of another authority");
        let none = connect(None).await.ok();
        assert_eq!(none.is_some(), optional);
        assert!(none.is_none_or(|none| none.certificate == auth::Certificate::None));
    }
}

#[tokio::test]
async fn new_files_are_served_from_now_on_and_bad_ones_are_not() {
    let authority = Authority::new();
    let tls = Tls::open(authority.server(1), "listeners[0]").unwrap();
    assert_eq!(tls.files().count(), 2);
    let connector = || authority.connector(None, false);
    let mut old = exchange(&tls, connector()).await.unwrap();
    assert_eq!(serial(&old), [1]);
    authority.server(2);
    tls.reload().unwrap();
    let new = exchange(&tls, connector()).await.unwrap();
    assert_eq!(serial(&new), [2]);
    old.client.write_all(b"still").await.unwrap();
    old.client.flush().await.unwrap();
    let mut got = [0; 5];
    old.server.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"still");

    let file = authority.write("server.pem", "-----BEGIN CERTIFICATE-----\n");
    let error = tls.reload().unwrap_err().to_string();
    assert!(error.contains("listeners[0]") && error.contains(&file), "{error}");
    let pair = authority.sign("localhost", 3);
    authority.write("server.pem", &pair.certificate);
    let error = tls.reload().unwrap_err().to_string();
    assert!(error.contains("server.key"), "of another key: {error}");
    assert_eq!(tls.bad_files.load(Ordering::Relaxed), 2);
    assert_eq!(serial(&exchange(&tls, connector()).await.unwrap()), [2]);
}

/// With the server's end of a connection, and what becomes of its client's certificate.
fn held(tls: &Arc<Tls>, exchanged: &Exchanged) -> impl Future<Output = ()> + use<> {
    Held::of(tls, &exchanged.server, tls.changes()).unwrap().ended()
}

#[tokio::test]
async fn a_certificate_that_is_revoked_while_its_connection_is_open_ends_it() {
    use futures::FutureExt as _;
    let (authority, other) = (Authority::new(), Authority::new());
    let (good, bad) = (authority.sign("gw-1", 7), authority.sign("gw-2", 8));
    let files = Files {
        client_ca: authority.write("ca.pem", &authority.pem),
        client_crl: authority.write("crl.pem", &authority.revocation_list(9)),
        ..authority.server(1)
    };
    let tls = Tls::open(files, "l").unwrap();
    let connect = async |pair| exchange(&tls, authority.connector(pair, false)).await.unwrap();
    let none = connect(None).await;
    assert!(Held::of(&tls, &none.server, tls.changes()).is_none());
    let mut stays = Box::pin(held(&tls, &connect(Some(&good)).await));
    let mut goes = Box::pin(held(&tls, &connect(Some(&bad)).await));
    authority.server(2);
    tls.reload().unwrap();
    for one in [&mut stays, &mut goes] {
        assert!(one.as_mut().now_or_never().is_none(), "only our own certificate changed");
    }
    authority.write("crl.pem", &authority.revocation_list(8));
    tls.reload().unwrap();
    goes.await;
    assert!(stays.as_mut().now_or_never().is_none());
    authority.write("crl.pem", "damaged");
    assert!(tls.reload().is_err());
    assert!(stays.as_mut().now_or_never().is_none(), "a bad file changes nothing");
    authority.write("ca.pem", &other.pem);
    authority.write("crl.pem", &other.revocation_list(1));
    tls.reload().unwrap();
    stays.await;
}

/// KIP-498: what is not TLS was taken for a length of hundreds of megabytes.
#[tokio::test]
async fn plain_text_on_a_tls_port_is_refused_at_once() {
    let authority = Authority::new();
    let tls = Tls::open(authority.server(1), "l").unwrap();
    for bytes in [&b"\x10\x0e\x00\x04MQTT\x04\x02\x00\x3c\x00\x02id"[..], b"GET / HTTP/1.1\r\n\r\n"]
    {
        let (mut theirs, ours) = duplex(1_000);
        theirs.write_all(bytes).await.unwrap();
        assert!(tls.accept(ours).await.is_err());
    }
}

#[test]
fn files_that_make_no_tls_are_named() {
    let authority = Authority::new();
    let good = authority.server(1);
    let nothing = authority.write("empty", "");
    let missing = "/no/such/file".to_owned();
    for (files, named) in [
        (Files { certificate: missing.clone(), ..good.clone() }, &missing),
        (Files { key: good.certificate.clone(), ..good.clone() }, &good.certificate),
        (Files { certificate: nothing.clone(), ..good.clone() }, &nothing),
        (Files { client_ca: nothing.clone(), ..good.clone() }, &nothing),
        (Files { client_ca: good.key.clone(), ..good.clone() }, &good.key),
    ] {
        let error = Tls::open(files, "listeners[3]").unwrap_err().to_string();
        assert!(error.contains("listeners[3]") && error.contains(named.as_str()), "{error}");
    }
}
