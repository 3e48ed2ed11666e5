//! EST over TLS (RFC 7030): one request a connection, all of it within one deadline and small limits.
//!
//! ```text
//! GET  /.well-known/est/cacerts          the authority                       anybody
//! POST /.well-known/est/simpleenroll     PKCS #10 -> certificate, PKCS #7    HTTP Basic: edge id and token
//! POST /.well-known/est/simplereenroll   the same                            the certificate it has
//! ```
//! Change here: HTTP. Not here: who gets a certificate (`enrol`).

use std::{
    io,
    net::{Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tributary_shared::{
    enrol::{PATH, PKCS7, from_basic, from_body, to_body, to_pkcs7},
    net::{
        self, Admitted, Gate, accept,
        tls::{Files, Tls, TlsError, client_certificate},
    },
};

use super::{Enrol, Refused};
use crate::{
    log::Log,
    peer::{self, HandedOn, Header, Peers, Protocol},
};

/// Connections at once.
const CONNECTIONS: usize = 64;
/// For a connection, from accepting to the last byte of the answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// Bytes before the body.
const HEAD_MAX: usize = 8 * 1024;
/// Bytes of a body: a request with an RSA key is 2 KiB.
const BODY_MAX: usize = 16 * 1024;
/// Header lines.
const HEADERS_MAX: usize = 64;

/// TLS of `listen.est`: a certificate of the client is looked at, and not asked for.
pub fn tls(settings: &super::Settings) -> Result<Arc<Tls>, TlsError> {
    let files = Files {
        certificate: settings.certificate.clone(),
        key: settings.key.clone(),
        client_ca: settings.ca.clone(),
        ..Files::default()
    };
    Tls::open(files, "enrol")
}

/// One gateway's visit after another, wherever they come in. Cheap to clone.
#[derive(Clone)]
pub struct Door {
    /// Of `listen.est`.
    pub tls: Arc<Tls>,
    /// Who decides.
    pub enrol: Enrol,
    /// Where the book is.
    pub log: Log,
    /// The way there.
    pub peers: Peers,
    /// The end.
    pub stop: CancellationToken,
}

/// Takes gateways until `closing`.
pub async fn serve(listener: TcpListener, door: Door, closing: CancellationToken) {
    let limits = net::Settings {
        connections: CONNECTIONS,
        handshakes: CONNECTIONS,
        ..net::Settings::default()
    };
    let peer = move |stream: TcpStream, address: SocketAddr, admitted: Admitted| {
        let door = door.clone();
        async move {
            door.within_patience(address, door.here_or_there(stream, address)).await;
            drop(admitted);
        }
    };
    accept(listener, Gate::new(limits), closing, peer).await;
}

impl Door {
    /// What another node has handed on: served here, or not at all.
    pub async fn handed(self, stream: peer::Stream, header: Header, admitted: Admitted) {
        let address = header.address.unwrap_or_else(|| (Ipv6Addr::UNSPECIFIED, 0).into());
        let serving = async {
            if self.peers.is_here(&self.log, self.enrol.home(), &self.stop).await {
                return visit(stream, &self.tls, &self.enrol, address).await;
            }
            Err(io::Error::other("the book of enrolment is not here"))
        };
        self.within_patience(address, serving).await;
        drop(admitted);
    }

    /// The gateway's TLS ends where the book is.
    async fn here_or_there(&self, mut stream: TcpStream, address: SocketAddr) -> io::Result<()> {
        let header = Header { protocol: Protocol::Est, address: Some(address), certificate: None };
        let (home, stop) = (self.enrol.home(), &self.stop);
        match self.peers.hand_on(&self.log, home, &header, &mut stream, (b"", b""), stop).await {
            HandedOn::Here => visit(stream, &self.tls, &self.enrol, address).await,
            HandedOn::Served => Ok(()),
            HandedOn::Nobody => Err(io::Error::other("no node has the book of enrolment")),
        }
    }

    async fn within_patience(
        &self,
        address: SocketAddr,
        visit: impl Future<Output = io::Result<()>>,
    ) {
        match timeout(PATIENCE, visit).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%address, %error, "EST: connection lost"),
            Err(_) => tracing::debug!(%address, "EST: too slow"),
        }
    }
}

async fn visit<S>(stream: S, tls: &Tls, enrol: &Enrol, address: SocketAddr) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut stream = tls.accept(stream).await?;
    let certificate = client_certificate(&stream).map(<[u8]>::to_vec);
    let answer = match read(&mut stream).await? {
        Ok(request) => answer(enrol, &request, certificate.as_deref(), address).await,
        Err(answer) => answer,
    };
    stream.write_all(&answer.bytes()).await?;
    stream.shutdown().await
}

/// A request, whole.
struct Request {
    method: String,
    path: String,
    authorization: Option<String>,
    body: Vec<u8>,
}

struct Answer {
    code: u16,
    reason: &'static str,
    body: String,
    certificates: bool,
}

impl Answer {
    fn no(code: u16, reason: &'static str, why: impl std::fmt::Display) -> Self {
        Self { code, reason, body: format!("{why}\n"), certificates: false }
    }

    fn certificates(all: &[&[u8]]) -> Self {
        let body = to_body(&to_pkcs7(all));
        Self { code: 200, reason: "OK", body, certificates: true }
    }

    fn bytes(&self) -> Vec<u8> {
        let Self { code, reason, body, certificates } = self;
        let kind = if *certificates { PKCS7 } else { "text/plain; charset=utf-8" };
        let more = match (certificates, code) {
            (true, _) => "Content-Transfer-Encoding: base64\r\n",
            (_, 401) => "WWW-Authenticate: Basic realm=\"est\"\r\n",
            _ => "",
        };
        let length = body.len();
        format!(
            "HTTP/1.1 {code} {reason}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n{more}Connection: close\r\n\r\n{body}"
        )
        .into_bytes()
    }
}

/// Reads one request within the limits, or says what is wrong with it.
async fn read<S>(stream: &mut S) -> io::Result<Result<Request, Answer>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut bytes = Vec::with_capacity(2 * 1024);
    let (mut request, length, at) = loop {
        if stream.take(HEAD_MAX as u64).read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match head(&bytes) {
            Ok(Some(head)) => break head,
            Ok(None) if bytes.len() < HEAD_MAX => {}
            Ok(None) => return Ok(Err(Answer::no(431, "Too Large", "the head is too large"))),
            Err(answer) => return Ok(Err(answer)),
        }
    };
    if length > BODY_MAX {
        let why = format_args!("a request is at most {BODY_MAX} bytes");
        return Ok(Err(Answer::no(413, "Content Too Large", why)));
    }
    let mut body = bytes.split_off(at);
    if body.len() < length {
        // Some clients wait for this, and the others do not mind.
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        stream.flush().await?;
        let missing = length - body.len();
        let read = stream.take(missing as u64).read_to_end(&mut body).await?;
        if read < missing {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    body.truncate(length);
    request.body = body;
    Ok(Ok(request))
}

/// A head, if it is whole: the request, the length of its body, and where that begins.
fn head(bytes: &[u8]) -> Result<Option<(Request, usize, usize)>, Answer> {
    let bad = |why: &dyn std::fmt::Display| Answer::no(400, "Bad Request", why);
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut headers);
    let at = match parsed.parse(bytes).map_err(|error| bad(&error))? {
        httparse::Status::Complete(at) => at,
        httparse::Status::Partial => return Ok(None),
    };
    let value = |name: &str| {
        let found = parsed.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        found.map(|header| String::from_utf8_lossy(header.value).into_owned())
    };
    if value("transfer-encoding").is_some() {
        return Err(Answer::no(411, "Length Required", "say Content-Length"));
    }
    let length = value("content-length").map_or(Ok(0), |length| length.trim().parse());
    let request = Request {
        method: parsed.method.unwrap_or_default().to_owned(),
        path: parsed.path.unwrap_or_default().to_owned(),
        authorization: value("authorization"),
        body: Vec::new(),
    };
    Ok(Some((request, length.map_err(|_| bad(&"Content-Length is no number"))?, at)))
}

async fn answer(
    enrol: &Enrol,
    request: &Request,
    certificate: Option<&[u8]>,
    address: SocketAddr,
) -> Answer {
    let Some(what) = request.path.strip_prefix(PATH) else {
        return Answer::no(404, "Not Found", "this is EST, below /.well-known/est");
    };
    let outcome = match (request.method.as_str(), what) {
        ("GET", "/cacerts") => {
            let Some(authority) = &enrol.authority else {
                return Answer::no(503, "Service Unavailable", super::EnrolError::Off);
            };
            return Answer::certificates(&[&authority.der]);
        }
        ("POST", "/simpleenroll") => {
            let basic = request.authorization.as_deref().and_then(from_basic);
            match (basic, from_body(&request.body)) {
                (None, _) => Err(Refused::Unproved("HTTP Basic with edge id and token is needed")),
                (_, None) => Err(Refused::Bad("the body is not base64")),
                (Some((id, secret)), Some(der)) => enrol.enrol(&id, &secret, &der).await,
            }
        }
        ("POST", "/simplereenroll") => match (certificate, from_body(&request.body)) {
            (None, _) => Err(Refused::Unproved("the certificate to be renewed is needed")),
            (_, None) => Err(Refused::Bad("the body is not base64")),
            (Some(certificate), Some(der)) => enrol.renew(certificate, &der).await,
        },
        (_, "/cacerts" | "/simpleenroll" | "/simplereenroll") => {
            return Answer::no(405, "Method Not Allowed", "not by this method");
        }
        _ => return Answer::no(404, "Not Found", "this part of EST is not offered"),
    };
    match outcome {
        Ok(der) => Answer::certificates(&[&der]),
        Err(refused) => {
            let (code, reason, why) = match refused {
                Refused::Unproved(why) => (401, "Unauthorized", why.to_owned()),
                Refused::Forbidden(why) => (403, "Forbidden", why.to_owned()),
                Refused::Bad(why) => (400, "Bad Request", why.to_owned()),
                Refused::Failed(error) => (503, "Service Unavailable", error.to_string()),
            };
            tracing::warn!(%address, path = what, code, why, "EST: refused");
            Answer::no(code, reason, why)
        }
    }
}
