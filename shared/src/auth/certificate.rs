//! Who a client certificate names: the first URI of its alternative names, else the first DNS name, else its common name.
//!
//! In: a certificate that TLS has verified. `urn:tributary:edge:gw7`, as edges are enrolled, is `gw7`. A wildcard names nobody.
//! Change here: which name counts. Not here: whether a certificate is trusted (`net::tls`).

use bytestring::ByteString;
use x509_cert::{
    Certificate as X509,
    der::{
        Decode as _,
        asn1::{Ia5StringRef, PrintableStringRef, TeletexStringRef, Utf8StringRef},
        oid::ObjectIdentifier,
        referenced::OwnedToRef as _,
    },
    ext::pkix::{SubjectAltName, name::GeneralName},
};

const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
/// How the names of edges begin in certificates.
pub const EDGE: &str = "urn:tributary:edge:";

/// What TLS says of a client.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Certificate {
    /// It showed no certificate.
    #[default]
    None,
    /// It proved to have one that names nobody.
    Nameless,
    /// It proved this name.
    Named(ByteString),
}

impl Certificate {
    /// From the verified certificate, DER.
    pub fn read(der: Option<&[u8]>) -> Self {
        match der {
            None => Self::None,
            Some(der) => principal(der).map_or(Self::Nameless, Self::Named),
        }
    }
}

/// What a certificate says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Its number, in hex.
    pub serial: String,
    /// When it begins, seconds since 1970.
    pub from_s: u64,
    /// When it ends.
    pub until_s: u64,
}

/// What a certificate (DER) says of itself; `None`: it is none.
pub fn facts(certificate: &[u8]) -> Option<Facts> {
    let certificate = X509::from_der(certificate).ok()?;
    let tbs = certificate.tbs_certificate();
    let number = tbs.serial_number().as_bytes();
    // A leading zero only says that the number is not negative.
    let number = if let [0, rest @ ..] = number { rest } else { number };
    Some(Facts {
        serial: crate::enrol::hex(number),
        from_s: tbs.validity().not_before.to_unix_duration().as_secs(),
        until_s: tbs.validity().not_after.to_unix_duration().as_secs(),
    })
}

/// The name in a certificate (DER); `None`: it has none that can be used.
pub fn principal(certificate: &[u8]) -> Option<ByteString> {
    let certificate = X509::from_der(certificate).ok()?;
    let tbs = certificate.tbs_certificate();
    let names = match tbs.get_extension::<SubjectAltName>() {
        Ok(extension) => extension.map(|(_, names)| names.0).unwrap_or_default(),
        Err(_) => return None,
    };
    let uri = names.iter().find_map(|name| match name {
        GeneralName::UniformResourceIdentifier(uri) => Some(uri.as_str().to_owned()),
        _ => None,
    });
    let dns = || {
        names.iter().find_map(|name| match name {
            GeneralName::DnsName(dns) => Some(dns.as_str().to_owned()),
            _ => None,
        })
    };
    let name = uri.or_else(dns).or_else(|| common_name(&certificate))?;
    let name = name.strip_prefix(EDGE).unwrap_or(&name);
    super::is_principal(name).then(|| name.into())
}

fn common_name(certificate: &X509) -> Option<String> {
    let subject = certificate.tbs_certificate().subject();
    let mut names = subject.iter().filter(|one| one.oid == COMMON_NAME);
    let value = names.next()?.value.owned_to_ref();
    if names.next().is_some() {
        return None; // Two names: which one was verified by whom?
    }
    Utf8StringRef::try_from(value)
        .map(|text| text.as_str().to_owned())
        .or_else(|_| PrintableStringRef::try_from(value).map(|text| text.as_str().to_owned()))
        .or_else(|_| Ia5StringRef::try_from(value).map(|text| text.as_str().to_owned()))
        .or_else(|_| TeletexStringRef::try_from(value).map(|text| text.as_str().to_owned()))
        .ok()
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};

    use super::*;

    fn certificate(common: &[&str], names: Vec<SanType>) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        for name in common {
            params.distinguished_name.push(DnType::CommonName, *name);
        }
        params.subject_alt_names = names;
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    fn uri(text: &str) -> SanType {
        SanType::URI(text.try_into().unwrap())
    }

    fn dns(text: &str) -> SanType {
        SanType::DnsName(text.try_into().unwrap())
    }

    #[test]
    fn uri_then_dns_then_common_name() {
        let of = |common: &[&str], names| principal(&certificate(common, names));
        let name = |text: &str| Some(ByteString::from(text));
        assert_eq!(of(&["cn"], vec![dns("d.x"), uri("urn:tributary:edge:gw7")]), name("gw7"));
        assert_eq!(of(&["cn"], vec![uri("spiffe://x/y"), dns("d.x")]), name("spiffe://x/y"));
        assert_eq!(of(&["cn"], vec![dns("d.x"), dns("e.x")]), name("d.x"));
        assert_eq!(of(&["gerät-1"], vec![]), name("gerät-1"));
        assert_eq!(of(&[], vec![]), None);
    }

    #[test]
    fn a_name_that_is_none_is_nobody() {
        let of = |common: &[&str], names| principal(&certificate(common, names));
        assert_eq!(of(&["cn"], vec![dns("*.x")]), None);
        assert_eq!(of(&["a\u{0}b"], vec![]), None);
        assert_eq!(of(&["anonymous"], vec![]), None);
        assert_eq!(of(&[&"x".repeat(300)], vec![]), None);
        assert_eq!(of(&["cn"], vec![uri("urn:tributary:edge:")]), None);
        assert_eq!(principal(b"not a certificate"), None);
        let whole = certificate(&["cn"], vec![]);
        for end in 0..whole.len() {
            assert_eq!(principal(whole.get(..end).unwrap()), None, "cut at {end}");
        }
    }
}
