//! What edge and cloud say to each other when an edge is enrolled: EST (RFC 7030), and the one string that a person carries.
//!
//! Holds: the token, its form `https://ID:SECRET@HOST:PORT/#sha256=...` (of the fleet's authority), certificates as PKCS #7
//! "certs-only" (RFC 7030, 4.1.3). PURE. Change here: these forms. Not here: HTTP, keys, who may enrol (`edge::enrol`,
//! `cloud::enrol`).

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::digest;

/// Where EST is (RFC 7030, 3.2.2).
pub const PATH: &str = "/.well-known/est";
/// Content type of certificates.
pub const PKCS7: &str = "application/pkcs7-mime; smime-type=certs-only";
/// Content type of requests for one.
pub const PKCS10: &str = "application/pkcs10";

/// Bytes of an edge's name that can be enrolled.
const ID_MAX: usize = 128;
/// Certificates of one answer.
const CERTIFICATES_MAX: usize = 16;

/// 1.2.840.113549.1.7.2 and .1, with tag and length.
const SIGNED_DATA: [u8; 11] = [6, 9, 0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 1, 7, 2];
const DATA: [u8; 11] = [6, 9, 0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 1, 7, 1];
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const INTEGER: u8 = 2;
const CONTEXT_0: u8 = 0xA0;

/// SHA-256 of a certificate, DER.
pub type Pin = [u8; 32];

/// The pin of a certificate.
pub fn pin(certificate: &[u8]) -> Pin {
    digest::digest(&digest::SHA256, certificate).as_ref().try_into().unwrap_or_default()
}

/// In hex.
pub fn hex(bytes: &[u8]) -> String {
    let digit = |four: u8| char::from_digit(u32::from(four), 16).unwrap_or_default();
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

fn unhex(text: &str) -> Option<Pin> {
    let mut pin = Pin::default();
    if text.len() != pin.len() * 2 || !text.is_ascii() {
        return None;
    }
    for (at, byte) in pin.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(at * 2..at * 2 + 2)?, 16).ok()?;
    }
    Some(pin)
}

/// A name that an edge can be enrolled by: it stands in a URI and before a colon.
pub fn is_enrollable(id: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '~');
    !id.is_empty() && id.len() <= ID_MAX && id.chars().all(legal)
}

/// What a gateway needs for its first contact.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// Where EST answers, `host:port`.
    pub at: String,
    /// Name of the edge.
    pub id: String,
    /// Proves that the cloud's operator gave it.
    pub secret: String,
    /// Of the fleet's authority.
    pub pin: Pin,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("at", &self.at).field("id", &self.id).finish_non_exhaustive()
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, id, secret, pin } = self;
        write!(f, "https://{id}:{secret}@{at}/#sha256={}", hex(pin))
    }
}

impl Token {
    /// Reads what [`Token`] displays.
    pub fn parse(text: &str) -> Option<Self> {
        let rest = text.trim().strip_prefix("https://")?;
        let (place, pin) = rest.split_once("/#sha256=")?;
        let (who, at) = place.rsplit_once('@')?;
        let (id, secret) = who.split_once(':')?;
        split_at(at)?;
        let legal = is_enrollable(id) && is_enrollable(secret);
        let text = |text: &str| text.to_owned();
        let pin = unhex(pin)?;
        legal.then(|| Self { at: text(at), id: text(id), secret: text(secret), pin })
    }
}

/// Host and port of `host:port`.
pub fn split_at(at: &str) -> Option<(&str, u16)> {
    let (host, port) = at.rsplit_once(':')?;
    let port = port.parse().ok()?;
    (!host.is_empty() && !host.contains(['/', '@', '[', ' '])).then_some((host, port))
}

/// As an EST body: base64 in lines.
pub fn to_body(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut lines = String::with_capacity(text.len() + text.len() / 64 + 2);
    for line in text.as_bytes().chunks(64) {
        lines.push_str(&String::from_utf8_lossy(line));
        lines.push_str("\r\n");
    }
    lines
}

/// From an EST body: base64, spaces and line ends do not count.
pub fn from_body(body: &[u8]) -> Option<Vec<u8>> {
    let text: Vec<u8> = body.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    STANDARD.decode(text).ok()
}

/// HTTP Basic of a name and a secret.
pub fn to_basic(id: &str, secret: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{id}:{secret}")))
}

/// Name and secret of HTTP Basic.
pub fn from_basic(header: &str) -> Option<(String, String)> {
    let (scheme, rest) = header.split_once(' ')?;
    let text =
        STANDARD.decode(rest.trim()).ok().filter(|_| scheme.eq_ignore_ascii_case("basic"))?;
    let (id, secret) = std::str::from_utf8(&text).ok()?.split_once(':')?;
    Some((id.to_owned(), secret.to_owned()))
}

/// Certificates (DER) as PKCS #7 that holds nothing else.
pub fn to_pkcs7(certificates: &[&[u8]]) -> Vec<u8> {
    let empty = tlv(SET, &[]);
    let signed = [
        tlv(INTEGER, &[1]),
        empty.clone(),
        tlv(SEQUENCE, &DATA),
        tlv(CONTEXT_0, &certificates.concat()),
        empty,
    ];
    let content = tlv(CONTEXT_0, &tlv(SEQUENCE, &signed.concat()));
    tlv(SEQUENCE, &[&SIGNED_DATA[..], &content].concat())
}

/// The certificates in PKCS #7, DER; `None`: it is none, or holds none.
pub fn from_pkcs7(der: &[u8]) -> Option<Vec<Vec<u8>>> {
    let (mut content, _) = Reader(der).next(SEQUENCE)?;
    let (_, oid) = content.next(6)?;
    if oid != SIGNED_DATA {
        return None;
    }
    let (mut explicit, _) = content.next(CONTEXT_0)?;
    let (mut signed, _) = explicit.next(SEQUENCE)?;
    signed.next(INTEGER)?;
    signed.next(SET)?;
    signed.next(SEQUENCE)?;
    let (mut certificates, _) = signed.next(CONTEXT_0)?;
    let mut all = Vec::new();
    while !certificates.0.is_empty() {
        let (_, whole) = certificates.next(SEQUENCE)?;
        all.push(whole.to_vec());
        if all.len() > CERTIFICATES_MAX {
            return None;
        }
    }
    (!all.is_empty()).then_some(all)
}

fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    let length = content.len().to_be_bytes();
    let short = length.iter().copied().skip_while(|byte| *byte == 0).collect::<Vec<_>>();
    match short.as_slice() {
        [] => out.push(0),
        [one] if *one < 0x80 => out.push(*one),
        more => {
            out.push(0x80 | more.len() as u8);
            out.extend(more);
        }
    }
    out.extend(content);
    out
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// What is next, if it has this tag: its content, and all of it.
    fn next(&mut self, tag: u8) -> Option<(Reader<'a>, &'a [u8])> {
        let [found, first, rest @ ..] = self.0 else { return None };
        let (length, rest) = match usize::from(*first) {
            short @ 0..0x80 => (short, rest),
            long => {
                let (bytes, rest) = rest.split_at_checked(long & 0x7F)?;
                let legal = (1..=4).contains(&bytes.len());
                let length = bytes.iter().fold(0_usize, |sum, byte| sum << 8 | usize::from(*byte));
                (legal.then_some(length)?, rest)
            }
        };
        let (content, after) = rest.split_at_checked(length)?;
        let whole = self.0.get(..self.0.len() - after.len())?;
        self.0 = after;
        (*found == tag).then_some((Reader(content), whole))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_one_string_and_reads_back() {
        let token = Token {
            at: "cloud.example:8443".to_owned(),
            id: "gw-7".to_owned(),
            secret: "c2VjcmV0_-".to_owned(),
            pin: pin(b"authority"),
        };
        let text = token.to_string();
        assert_eq!(Token::parse(&format!(" {text}\n")), Some(token.clone()));
        assert!(!format!("{token:?}").contains("c2VjcmV0"), "no secret in logs");
        for end in 0..text.len() {
            assert_eq!(Token::parse(&text[..end]), None, "cut at {end}");
        }
        for bad in ["a b", "a/b", "", "a:b", "ä"] {
            assert!(!is_enrollable(bad), "{bad}");
        }
    }

    #[test]
    fn certificates_read_back_from_pkcs7_and_nothing_else_does() {
        let one = tlv(SEQUENCE, &[7; 300]);
        let two = tlv(SEQUENCE, &[8; 5]);
        let der = to_pkcs7(&[&one, &two]);
        assert_eq!(from_pkcs7(&der), Some(vec![one, two]));
        for end in 0..der.len() {
            assert_eq!(from_pkcs7(&der[..end]), None, "cut at {end}");
        }
        for at in 0..der.len() {
            let mut bad = der.clone();
            bad[at] ^= 0xFF;
            let _ = from_pkcs7(&bad); // Says something, whatever it is.
        }
        assert_eq!(from_pkcs7(&to_pkcs7(&[])), None);
        assert_eq!(from_body(to_body(&der).as_bytes()), Some(der));
        assert_eq!(from_body(b"no base64!"), None);
    }

    #[test]
    fn basic_carries_a_name_and_a_secret() {
        let both = ("gw7".to_owned(), "s".to_owned());
        assert_eq!(from_basic(&to_basic("gw7", "s")), Some(both));
        for bad in ["", "Basic", "Basic !", "Bearer Z3c3OnM=", "Basic Z3c3"] {
            assert_eq!(from_basic(bad), None, "{bad}");
        }
    }
}
