//! PURE codec of the PROXY protocol, version 2 (haproxy's `proxy-protocol.txt`, section 2.2), as nodes use it among themselves.
//!
//! ```text
//! signature (12) | 0x21: version 2, PROXY | family and transport | length u16 | addresses | TLVs
//! ```
//! TLVs: ALPN says what is spoken after the header; SSL with the client's certificate in it says who TLS proved the client to be.
//! Strict: what we never send is refused, but for TLVs of unknown types, which the specification has us skip.
//! In: bytes of a peer. Out: a [`Header`]. Not here: whether the peer may be believed (`secure`, `accept`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Bytes up to and with the length.
pub(super) const FIXED: usize = 16;
/// Bytes after them. A client's certificate is the most of it.
pub(super) const REST_MAX: usize = 16 * 1024;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
const VERSION_PROXY: u8 = 0x21;
const UNSPECIFIED: u8 = 0x00;
const TCP4: u8 = 0x11;
const TCP6: u8 = 0x21;
const ALPN: u8 = 0x01;
const SSL: u8 = 0x20;
const SSL_CLIENT_CERT: u8 = 0x28;
/// The client spoke TLS, and showed a certificate on this connection and in this session.
const CLIENT_PROVED: u8 = 0x07;
/// Bytes of an SSL TLV before the TLVs in it.
const SSL_FIXED: usize = 5;

/// What is spoken after the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// MQTT, from CONNECT on: clients and edges.
    Mqtt,
    /// AMQP 0-9-1, from the protocol header on.
    Amqp,
    /// EST, from the TLS handshake of the gateway on.
    Est,
    /// Kafka.
    Kafka,
    /// HTTP.
    Http,
}

impl Protocol {
    /// All there are.
    pub const ALL: [Self; 5] = [Self::Mqtt, Self::Amqp, Self::Est, Self::Kafka, Self::Http];

    /// Its name in ALPN.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mqtt => "mqtt",
            Self::Amqp => "amqp",
            Self::Est => "est",
            Self::Kafka => "kafka",
            Self::Http => "http/1.1",
        }
    }
}

/// For whom a connection is, and what it speaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// What is spoken.
    pub protocol: Protocol,
    /// Where the client is; `None`: the node speaks for itself, or the client came by other means than TCP.
    pub address: Option<SocketAddr>,
    /// The certificate that the client proved to the node to have, DER.
    pub certificate: Option<Vec<u8>>,
}

/// Bytes that are no header, or one that nothing can be done with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum Bad {
    #[error("the first bytes are no PROXY protocol version 2")]
    Signature,
    #[error("version and command {0:#04x}: only PROXY of version 2 is used between nodes")]
    Command(u8),
    #[error(
        "family and transport {0:#04x}: only TCP over IPv4, IPv6, or unspecified is used between nodes"
    )]
    Family(u8),
    #[error("{0} bytes after the length: at most {REST_MAX} are taken")]
    TooLong(usize),
    #[error("the header ends inside {0}")]
    Short(&'static str),
    #[error("{0} is there twice")]
    Twice(&'static str),
    #[error("no ALPN says what is spoken")]
    NoProtocol,
    #[error("ALPN names a protocol that is not served between nodes")]
    UnknownProtocol,
    #[error("the client's certificate is empty, or not verified")]
    Unproved,
}

impl Header {
    /// A node's own connection.
    pub fn own(protocol: Protocol) -> Self {
        Self { protocol, address: None, certificate: None }
    }

    /// The bytes to send first.
    pub fn encode(&self) -> Result<Vec<u8>, Bad> {
        let mut rest = Vec::new();
        let family = match self.address {
            None => UNSPECIFIED,
            Some(address) => addresses(address, &mut rest),
        };
        tlv(&mut rest, ALPN, self.protocol.name().as_bytes())?;
        if let Some(certificate) = &self.certificate {
            // Verified: 0.
            let mut inner = vec![CLIENT_PROVED, 0, 0, 0, 0];
            tlv(&mut inner, SSL_CLIENT_CERT, certificate)?;
            tlv(&mut rest, SSL, &inner)?;
        }
        let length = u16::try_from(rest.len()).ok().filter(|_| rest.len() <= REST_MAX);
        let length = length.ok_or(Bad::TooLong(rest.len()))?;
        let mut out = Vec::with_capacity(FIXED + rest.len());
        out.extend_from_slice(&SIGNATURE);
        out.extend_from_slice(&[VERSION_PROXY, family]);
        out.extend_from_slice(&length.to_be_bytes());
        out.append(&mut rest);
        Ok(out)
    }

    /// How many bytes follow the fixed ones.
    pub fn rest(fixed: &[u8; FIXED]) -> Result<usize, Bad> {
        let [signature @ .., command, family, high, low] = fixed;
        if *signature != SIGNATURE {
            return Err(Bad::Signature);
        }
        if *command != VERSION_PROXY {
            return Err(Bad::Command(*command));
        }
        if ![UNSPECIFIED, TCP4, TCP6].contains(family) {
            return Err(Bad::Family(*family));
        }
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        if length > REST_MAX { Err(Bad::TooLong(length)) } else { Ok(length) }
    }

    /// Reads a header: the fixed bytes, and as many more as [`Header::rest`] said.
    pub fn decode(fixed: &[u8; FIXED], rest: &[u8]) -> Result<Self, Bad> {
        Self::rest(fixed)?;
        let [.., family, _, _] = fixed;
        let (address, tlvs) = source(*family, rest)?;
        let (mut protocol, mut certificate) = (None, None);
        each(tlvs, |kind, value| match kind {
            ALPN => once(&mut protocol, "ALPN", known(value)?),
            SSL => once(&mut certificate, "SSL", proved(value)?),
            _ => Ok(()),
        })?;
        let protocol = protocol.ok_or(Bad::NoProtocol)?;
        Ok(Self { protocol, address, certificate: certificate.flatten() })
    }
}

/// Writes where from and where to, and says of which family they are. Where the client went nobody asks: nowhere.
fn addresses(from: SocketAddr, out: &mut Vec<u8>) -> u8 {
    match from.ip().to_canonical() {
        IpAddr::V4(ip) => {
            out.extend_from_slice(&ip.octets());
            out.extend_from_slice(&Ipv4Addr::UNSPECIFIED.octets());
            ports(from, out);
            TCP4
        }
        IpAddr::V6(ip) => {
            out.extend_from_slice(&ip.octets());
            out.extend_from_slice(&Ipv6Addr::UNSPECIFIED.octets());
            ports(from, out);
            TCP6
        }
    }
}

fn ports(from: SocketAddr, out: &mut Vec<u8>) {
    out.extend_from_slice(&from.port().to_be_bytes());
    out.extend_from_slice(&[0, 0]);
}

/// Where the client is, and what follows the addresses.
fn source(family: u8, rest: &[u8]) -> Result<(Option<SocketAddr>, &[u8]), Bad> {
    let short = Bad::Short("the addresses");
    match family {
        TCP4 => {
            let (block, tlvs) = rest.split_first_chunk::<12>().ok_or(short)?;
            let [a, b, c, d, _, _, _, _, high, low, _, _] = *block;
            let port = u16::from_be_bytes([high, low]);
            Ok((Some(SocketAddr::from((Ipv4Addr::new(a, b, c, d), port))), tlvs))
        }
        TCP6 => {
            let (ip, after) = rest.split_first_chunk::<16>().ok_or(short.clone())?;
            let (block, tlvs) = after.split_first_chunk::<20>().ok_or(short)?;
            let [.., high, low, _, _] = *block;
            let port = u16::from_be_bytes([high, low]);
            Ok((Some(SocketAddr::from((Ipv6Addr::from(*ip), port))), tlvs))
        }
        _ => Ok((None, rest)),
    }
}

fn tlv(out: &mut Vec<u8>, kind: u8, value: &[u8]) -> Result<(), Bad> {
    let length = u16::try_from(value.len()).map_err(|_| Bad::TooLong(value.len()))?;
    out.push(kind);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(value);
    Ok(())
}

/// Calls `found` with each TLV; their number is bounded by the bytes there are.
fn each(mut bytes: &[u8], mut found: impl FnMut(u8, &[u8]) -> Result<(), Bad>) -> Result<(), Bad> {
    while !bytes.is_empty() {
        let ([kind, high, low], after) =
            bytes.split_first_chunk::<3>().ok_or(Bad::Short("a TLV's head"))?;
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let (value, after) = after.split_at_checked(length).ok_or(Bad::Short("a TLV's value"))?;
        found(*kind, value)?;
        bytes = after;
    }
    Ok(())
}

fn once<T>(place: &mut Option<T>, what: &'static str, value: T) -> Result<(), Bad> {
    if place.replace(value).is_some() { Err(Bad::Twice(what)) } else { Ok(()) }
}

fn known(name: &[u8]) -> Result<Protocol, Bad> {
    let found = Protocol::ALL.into_iter().find(|protocol| protocol.name().as_bytes() == name);
    found.ok_or(Bad::UnknownProtocol)
}

/// The certificate in an SSL TLV; `None`: the client spoke TLS and showed none.
fn proved(value: &[u8]) -> Result<Option<Vec<u8>>, Bad> {
    let (fixed, inner) = value.split_first_chunk::<SSL_FIXED>().ok_or(Bad::Short("SSL"))?;
    let [client, verify @ ..] = *fixed;
    let mut certificate = None;
    each(inner, |kind, value| match kind {
        SSL_CLIENT_CERT => once(&mut certificate, "the client's certificate", value.to_vec()),
        _ => Ok(()),
    })?;
    match certificate {
        Some(der) if der.is_empty() || verify != [0; 4] || client != CLIENT_PROVED => {
            Err(Bad::Unproved)
        }
        certificate => Ok(certificate),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(bytes: &[u8]) -> Result<Header, Bad> {
        let (fixed, rest) = bytes.split_first_chunk::<FIXED>().ok_or(Bad::Signature)?;
        let length = Header::rest(fixed)?;
        Header::decode(fixed, rest.get(..length).ok_or(Bad::Short("the rest"))?)
    }

    fn headers() -> Vec<Header> {
        let mut all = Vec::new();
        for protocol in Protocol::ALL {
            for address in [None, Some("192.0.2.7:1883"), Some("[2001:db8::7]:65535")] {
                for certificate in [None, Some(vec![0x30; 700])] {
                    let address = address.map(|address| address.parse().unwrap());
                    all.push(Header { protocol, address, certificate });
                }
            }
        }
        all
    }

    #[test]
    fn what_was_written_is_read() {
        for header in headers() {
            assert_eq!(decode(&header.encode().unwrap()).as_ref(), Ok(&header));
        }
    }

    #[test]
    fn the_bytes_are_those_of_the_specification() {
        let address = Some("192.0.2.7:258".parse().unwrap());
        let header = Header { protocol: Protocol::Mqtt, address, certificate: Some(vec![9]) };
        let mut bytes = b"\x0D\x0A\x0D\x0A\x00\x0D\x0A\x51\x55\x49\x54\x0A\x21\x11".to_vec();
        bytes.extend_from_slice(&[0, 12 + 7 + 12, 192, 0, 2, 7, 0, 0, 0, 0, 1, 2, 0, 0]);
        bytes.extend_from_slice(b"\x01\x00\x04mqtt\x20\x00\x09\x07\0\0\0\0\x28\x00\x01\x09");
        assert_eq!(header.encode().unwrap(), bytes);
    }

    #[test]
    fn an_ipv4_client_of_an_ipv6_socket_is_one_of_ipv4() {
        let address = Some("[::ffff:192.0.2.7]:1".parse().unwrap());
        let header = Header { address, ..Header::own(Protocol::Amqp) };
        let read = decode(&header.encode().unwrap()).unwrap();
        assert_eq!(read.address, Some("192.0.2.7:1".parse().unwrap()));
    }

    #[test]
    fn every_prefix_and_every_changed_byte_is_refused_or_is_another_header() {
        for header in headers() {
            let bytes = header.encode().unwrap();
            for end in 0..bytes.len() {
                assert!(decode(&bytes[..end]).is_err(), "{end} of {header:?}");
            }
            // Short ones: each byte, each bit. Longer ones hold nothing but more of the certificate.
            for at in 0..bytes.len().min(80) {
                for bit in 0..8 {
                    let mut changed = bytes.clone();
                    changed[at] ^= 1 << bit;
                    if let Ok(read) = decode(&changed) {
                        // Unknown TLVs are skipped: the same without one of its parts, or with another value.
                        assert!(at >= FIXED || read != header, "byte {at} of {header:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn random_bytes_after_a_legal_beginning_never_panic() {
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for _ in 0..20_000 {
            let length = (next() % 96) as usize;
            let family = [UNSPECIFIED, TCP4, TCP6][(next() % 3) as usize];
            let mut bytes = SIGNATURE.to_vec();
            bytes.extend_from_slice(&[VERSION_PROXY, family, 0, length as u8]);
            // Small values, so that kinds and lengths often fit.
            bytes.extend((0..length).map(|_| (next() % 0x2A) as u8));
            if let Ok(header) = decode(&bytes) {
                assert_eq!(decode(&header.encode().unwrap()), Ok(header));
            }
        }
    }

    #[test]
    fn what_nodes_never_send_is_refused_by_its_name() {
        let good = Header::own(Protocol::Kafka).encode().unwrap();
        let with = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = good.clone();
            change(&mut bytes);
            decode(&bytes).unwrap_err()
        };
        let more = |bytes: &mut Vec<u8>, tlv: &[u8]| {
            bytes.extend_from_slice(tlv);
            bytes[15] += tlv.len() as u8;
        };
        assert_eq!(with(&|bytes| bytes[0] = b'P'), Bad::Signature);
        assert_eq!(with(&|bytes| bytes[12] = 0x20), Bad::Command(0x20), "LOCAL");
        assert_eq!(with(&|bytes| bytes[12] = 0x11), Bad::Command(0x11), "version 1");
        assert_eq!(with(&|bytes| bytes[13] = 0x31), Bad::Family(0x31), "a unix socket");
        assert_eq!(with(&|bytes| bytes[14] = 0xFF), Bad::TooLong(0xFF00 + 8));
        assert_eq!(with(&|bytes| bytes[19] = b'q'), Bad::UnknownProtocol);
        assert_eq!(with(&|bytes| bytes[16] = 0x05), Bad::NoProtocol);
        assert_eq!(with(&|bytes| more(bytes, b"\x01\0\x04mqtt")), Bad::Twice("ALPN"));
        assert_eq!(with(&|bytes| more(bytes, b"\x05\0")), Bad::Short("a TLV's head"));
        assert_eq!(with(&|bytes| more(bytes, b"\x05\0\x01")), Bad::Short("a TLV's value"));
        assert_eq!(with(&|bytes| more(bytes, b"\x20\0\x01\x07")), Bad::Short("SSL"));
        let unverified = b"\x20\0\x09\x07\0\0\0\x01\x28\0\x01\x09";
        assert_eq!(with(&|bytes| more(bytes, unverified)), Bad::Unproved);
        let unshown = b"\x20\0\x09\x01\0\0\0\0\x28\0\x01\x09";
        assert_eq!(with(&|bytes| more(bytes, unshown)), Bad::Unproved);
    }

    #[test]
    fn a_certificate_that_does_not_fit_is_said_before_anything_is_sent() {
        let certificate = Some(vec![1; REST_MAX]);
        let header = Header { certificate, ..Header::own(Protocol::Mqtt) };
        assert!(matches!(header.encode(), Err(Bad::TooLong(_))));
    }
}
