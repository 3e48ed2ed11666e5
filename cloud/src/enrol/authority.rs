//! The fleet's authority: signs the certificates of edges, and those of the cloud's own listeners.
//!
//! Its certificate and key are files that the settings name, made once by `tributary-cloud ca init`; every node of the cloud
//! uses the same. Change here: what stands in a certificate. Not here: who gets one (`book`), HTTP (`est`).

use std::{fs, io::Write as _, os::unix::fs::OpenOptionsExt as _, path::Path, time::Duration};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, DnValue, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData as _, SanType, SerialNumber, date_time_ymd,
};
use tributary_shared::{
    auth::certificate::{EDGE, facts},
    enrol::{hex, pin},
};

use super::EnrolError;

const DAY_S: u64 = 86_400;
/// An authority outlives its gateways.
const AUTHORITY_S: u64 = 20 * 365 * DAY_S;
/// Of the cloud's listeners; `tributary-cloud ca server` makes the next.
const SERVER_S: u64 = 2 * 365 * DAY_S;
/// Before now, for gateways whose clock is late.
const EARLIER_S: u64 = 3_600;
/// What a subject can hold as its common name (RFC 5280, ub-common-name).
const COMMON_NAME_MAX: usize = 64;

/// Signs.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate.
    pub(super) der: Vec<u8>,
}

/// A request whose signature is good.
pub(super) struct Request {
    inner: CertificateSigningRequestParams,
}

/// A new certificate.
pub(super) struct Issued {
    pub(super) der: Vec<u8>,
    pub(super) serial: String,
    pub(super) until_s: u64,
}

impl Request {
    /// Reads a PKCS #10 request for `id`, DER; says what is wrong with it.
    pub(super) fn read(der: &[u8], id: &str) -> Result<Self, &'static str> {
        let inner = CertificateSigningRequestParams::from_der(&der.into()).map_err(|error| {
            if error == rcgen::Error::InvalidCertificationRequestSignature {
                "the request is not signed with its own key"
            } else {
                "this is no request that can be granted (PKCS #10, DER in base64)"
            }
        })?;
        let params = &inner.params;
        let text = |value: &DnValue| match value {
            DnValue::Utf8String(text) => Some(text.clone()),
            DnValue::PrintableString(text) => Some(text.as_str().to_owned()),
            _ => None,
        };
        let common = params.distinguished_name.get(&DnType::CommonName).map(text);
        let uri = format!("{EDGE}{id}");
        let named = |name: &SanType| matches!(name, SanType::URI(name) if name.as_str() == uri);
        let ours = common.is_none_or(|name| name.as_deref() == Some(id))
            && params.subject_alt_names.iter().all(named);
        if ours { Ok(Self { inner }) } else { Err("the request is for another name") }
    }

    /// Stands for its key.
    pub(super) fn key_hash(&self) -> String {
        hex(&pin(self.inner.public_key.der_bytes()))
    }
}

impl Authority {
    /// From its two files.
    pub(super) fn open(certificate: &str, key: &str) -> Result<Self, EnrolError> {
        let read =
            |file: &str| fs::read_to_string(file).map_err(|error| EnrolError::file(file, &error));
        let (pem, key_pem) = (read(certificate)?, read(key)?);
        let pair = KeyPair::from_pem(&key_pem).map_err(|error| EnrolError::file(key, &error))?;
        let public = pair.public_key_raw().to_vec();
        let bad = |why: &dyn std::fmt::Display| EnrolError::file(certificate, why);
        let issuer = Issuer::from_ca_cert_pem(&pem, pair).map_err(|error| bad(&error))?;
        let der = der_of(&pem).ok_or_else(|| bad(&"holds no certificate as PEM"))?;
        if !der.windows(public.len()).any(|window| window == public) {
            return Err(bad(&format_args!("is of another key than {key}")));
        }
        Ok(Self { issuer, der })
    }

    /// A certificate for an edge.
    pub(super) fn issue(
        &self,
        request: &Request,
        id: &str,
        now_s: u64,
        lifetime_s: u64,
    ) -> Result<Issued, EnrolError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        if id.len() <= COMMON_NAME_MAX {
            params.distinguished_name.push(DnType::CommonName, id);
        }
        let uri = format!("{EDGE}{id}").try_into().map_err(EnrolError::sign)?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let earlier = EARLIER_S.min(lifetime_s / 10);
        span(&mut params, now_s.saturating_sub(earlier), now_s + lifetime_s)?;
        let public_key = request.inner.public_key.clone();
        let signed = CertificateSigningRequestParams { params, public_key }
            .signed_by(&self.issuer)
            .map_err(EnrolError::sign)?;
        let der = signed.der().to_vec();
        let said = facts(&der).ok_or_else(|| EnrolError::sign("unreadable"))?;
        Ok(Issued { der, serial: said.serial, until_s: said.until_s })
    }
}

/// From when to when, and a number that nobody can guess.
fn span(params: &mut CertificateParams, from_s: u64, until_s: u64) -> Result<(), EnrolError> {
    let date = |s: u64| date_time_ymd(1970, 1, 1) + Duration::from_secs(s);
    (params.not_before, params.not_after) = (date(from_s), date(until_s));
    let mut serial = [0_u8; 16];
    getrandom::fill(&mut serial).map_err(EnrolError::sign)?;
    if let Some(first) = serial.first_mut() {
        *first = *first & 0x7F | 0x40; // Positive, and of one length.
    }
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(())
}

/// Makes the files of an authority in a folder where there is none.
pub(super) fn init(folder: &Path, name: &str, now_s: u64) -> Result<(), EnrolError> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name = DistinguishedName::new();
    // Two fleets of one name must not be taken for each other.
    let mark = getrandom::u32().map_err(EnrolError::sign)?;
    params.distinguished_name.push(DnType::CommonName, format!("{name} {mark:08x}"));
    span(&mut params, now_s.saturating_sub(EARLIER_S), now_s + AUTHORITY_S)?;
    let key = KeyPair::generate().map_err(EnrolError::sign)?;
    let certificate = params.self_signed(&key).map_err(EnrolError::sign)?;
    fs::create_dir_all(folder)
        .map_err(|error| EnrolError::file(&folder.display().to_string(), &error))?;
    write_new(&folder.join("ca.key"), &key.serialize_pem(), false)?;
    write_new(&folder.join("ca.pem"), &certificate.pem(), false)
}

/// Makes the certificate of the cloud's listeners, in the place of an older one.
pub(super) fn server(folder: &Path, hosts: &[String], now_s: u64) -> Result<(), EnrolError> {
    let file = |name: &str| folder.join(name).display().to_string();
    let authority = Authority::open(&file("ca.pem"), &file("ca.key"))?;
    let mut params = CertificateParams::new(hosts.to_vec()).map_err(EnrolError::sign)?;
    params.distinguished_name = DistinguishedName::new();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    span(&mut params, now_s.saturating_sub(EARLIER_S), now_s + SERVER_S)?;
    let key = KeyPair::generate().map_err(EnrolError::sign)?;
    let certificate = params.signed_by(&key, &authority.issuer).map_err(EnrolError::sign)?;
    write_new(&folder.join("server.key"), &key.serialize_pem(), true)?;
    write_new(&folder.join("server.pem"), &certificate.pem(), true)
}

/// Writes a file that only we can read, whole or not at all.
fn write_new(path: &Path, text: &str, replace: bool) -> Result<(), EnrolError> {
    let wrong = |error: std::io::Error| EnrolError::file(&path.display().to_string(), &error);
    if !replace && path.exists() {
        return Err(wrong(std::io::ErrorKind::AlreadyExists.into()));
    }
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(wrong(error)),
        _ => {}
    }
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new);
    let mut file = file.map_err(wrong)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(wrong)?;
    fs::rename(&new, path).map_err(wrong)
}

fn der_of(pem: &str) -> Option<Vec<u8>> {
    let (_, rest) = pem.split_once("-----BEGIN CERTIFICATE-----")?;
    let (body, _) = rest.split_once("-----END CERTIFICATE-----")?;
    tributary_shared::enrol::from_body(body.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn authority(folder: &Path) -> Authority {
        init(folder, "fleet", NOW).unwrap();
        let file = |name: &str| folder.join(name).to_str().unwrap().to_owned();
        Authority::open(&file("ca.pem"), &file("ca.key")).unwrap()
    }

    fn request(id: &str, change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let uri = format!("{EDGE}{id}").try_into().unwrap();
        params.subject_alt_names = vec![SanType::URI(uri)];
        change(&mut params);
        params.serialize_request(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn an_authority_is_made_once_and_its_key_is_for_us_alone() {
        let folder = tempfile::tempdir().unwrap();
        authority(folder.path());
        let mode = fs::metadata(folder.path().join("ca.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let error = init(folder.path(), "fleet", NOW).unwrap_err().to_string();
        assert!(error.contains("ca.key") && error.contains("exists"), "{error}");
        server(folder.path(), &["cloud.example".to_owned(), "127.0.0.1".to_owned()], NOW).unwrap();
        server(folder.path(), &["cloud.example".to_owned()], NOW).unwrap();
        let other = tempfile::tempdir().unwrap();
        authority(other.path());
        let file = |of: &Path, name: &str| of.join(name).to_str().unwrap().to_owned();
        let mixed = Authority::open(&file(folder.path(), "ca.pem"), &file(other.path(), "ca.key"));
        assert!(mixed.err().unwrap().to_string().contains("another key"));
    }

    #[test]
    fn an_edge_gets_its_own_name_and_nothing_it_asked_for_beside() {
        let folder = tempfile::tempdir().unwrap();
        let authority = authority(folder.path());
        let wants_more = |params: &mut CertificateParams| {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        };
        let request = Request::read(&request("gw1", wants_more), "gw1").unwrap();
        let issued = authority.issue(&request, "gw1", NOW, 90 * DAY_S).unwrap();
        assert_eq!(issued.until_s, NOW + 90 * DAY_S);
        let name = tributary_shared::auth::certificate::principal(&issued.der).unwrap();
        assert_eq!(&*name, "gw1");
        let oid_of = |last: u8| [0x2B, 6, 1, 5, 5, 7, 3, last];
        let holds = |part: &[u8]| issued.der.windows(part.len()).any(|window| window == part);
        assert!(holds(&oid_of(2)) && !holds(&oid_of(1)), "client, not server");
        assert_eq!(issued.serial.len(), 32);
    }

    #[test]
    fn a_request_for_another_name_or_with_a_bad_signature_is_refused() {
        let other = |params: &mut CertificateParams| {
            params.distinguished_name.push(DnType::CommonName, "gw2");
        };
        let dns = |params: &mut CertificateParams| {
            params.subject_alt_names.push(SanType::DnsName("cloud.example".try_into().unwrap()));
        };
        for der in [request("gw2", |_| {}), request("gw1", other), request("gw1", dns)] {
            assert_eq!(
                Request::read(&der, "gw1").err().unwrap(),
                "the request is for another name"
            );
        }
        let mut bad = request("gw1", |_| {});
        *bad.last_mut().unwrap() ^= 1;
        assert!(Request::read(&bad, "gw1").err().unwrap().contains("not signed"));
        assert!(Request::read(b"x", "gw1").err().unwrap().contains("PKCS #10"));
    }
}
