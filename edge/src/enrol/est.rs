//! A client of EST (RFC 7030): one request a TLS connection, answers within bounds.
//!
//! Change here: HTTP. Not here: what is asked for and why (`enrolment`, `renew`).

use std::{sync::Arc, time::Duration};

use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tributary_shared::enrol::{PATH, PKCS10, from_body, from_pkcs7, split_at, to_basic, to_body};

use crate::link::tls;

/// For all of a request and its answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of an answer.
const ANSWER_MAX: u64 = 256 * 1024;
/// Characters of what the cloud says that are shown.
const SHOWN: usize = 200;

/// The authorities.
pub(super) async fn cacerts(at: &str, config: Arc<ClientConfig>) -> Result<Vec<Vec<u8>>, String> {
    ask(at, config, "GET", "/cacerts", "", &[]).await
}

/// A certificate, for a token.
pub(super) async fn enroll(
    at: &str,
    config: Arc<ClientConfig>,
    (id, secret): (&str, &str),
    request: &[u8],
) -> Result<Vec<Vec<u8>>, String> {
    let proof = format!("Authorization: {}\r\n", to_basic(id, secret));
    ask(at, config, "POST", "/simpleenroll", &proof, request).await
}

/// A certificate, for the one that `config` shows.
pub(super) async fn reenroll(
    at: &str,
    config: Arc<ClientConfig>,
    request: &[u8],
) -> Result<Vec<Vec<u8>>, String> {
    ask(at, config, "POST", "/simplereenroll", "", request).await
}

async fn ask(
    at: &str,
    config: Arc<ClientConfig>,
    method: &str,
    path: &str,
    proof: &str,
    request: &[u8],
) -> Result<Vec<Vec<u8>>, String> {
    let (host, port) = split_at(at).ok_or_else(|| format!("{at} is not host:port"))?;
    let body = if request.is_empty() { String::new() } else { to_body(request) };
    let length = body.len();
    let text = format!(
        "{method} {PATH}{path} HTTP/1.1\r\nHost: {at}\r\n{proof}Content-Type: {PKCS10}\r\nContent-Transfer-Encoding: base64\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    let answer = timeout(PATIENCE, exchange(host, port, config, text.as_bytes()));
    let answer = answer.await.map_err(|_| format!("{at} did not answer in time"))??;
    read(&answer, at)
}

async fn exchange(
    host: &str,
    port: u16,
    config: Arc<ClientConfig>,
    request: &[u8],
) -> Result<Vec<u8>, String> {
    let wrong = |error: std::io::Error| match tls::in_io(&error) {
        Some(error) => tls::words(error, host),
        None => format!("no connection to {host}:{port}: {error}"),
    };
    let stream = TcpStream::connect((host, port)).await.map_err(wrong)?;
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| format!("{host} cannot stand in a certificate"))?;
    let mut stream = TlsConnector::from(config).connect(name, stream).await.map_err(wrong)?;
    stream.write_all(request).await.map_err(wrong)?;
    stream.flush().await.map_err(wrong)?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut answer).await.map_err(wrong)?;
    Ok(answer)
}

/// The certificates in an answer, or why there are none.
fn read(answer: &[u8], at: &str) -> Result<Vec<Vec<u8>>, String> {
    let no_est = || format!("what answers at {at} is no EST server");
    let mut rest = answer;
    let (head, body) = loop {
        let end = rest.windows(4).position(|window| window == b"\r\n\r\n").ok_or_else(no_est)?;
        let (head, body) = rest.split_at_checked(end + 4).ok_or_else(no_est)?;
        // 100 Continue, and what follows.
        if !head.starts_with(b"HTTP/1.1 1") {
            break (head, body);
        }
        rest = body;
    };
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    let code = head.strip_prefix("http/1.1 ").and_then(|rest| rest.get(..3)).ok_or_else(no_est)?;
    if head.contains("\r\ntransfer-encoding:") {
        return Err(format!("{at} answers in chunks, which this edge does not read"));
    }
    if code != "200" {
        let said: String = String::from_utf8_lossy(body).trim().chars().take(SHOWN).collect();
        return Err(format!("{at} refuses: {said} ({code})"));
    }
    from_body(body).and_then(|der| from_pkcs7(&der)).ok_or_else(no_est)
}

#[cfg(test)]
mod tests {
    use tributary_shared::enrol::to_pkcs7;

    use super::*;

    #[test]
    fn an_answer_is_certificates_or_a_sentence() {
        let certificate = [0x30, 1, 7];
        let body = to_body(&to_pkcs7(&[&certificate]));
        let good = format!("HTTP/1.1 200 OK\r\nA: b\r\n\r\n{body}");
        assert_eq!(read(good.as_bytes(), "c:1").unwrap(), [certificate.to_vec()]);
        let after = format!("HTTP/1.1 100 Continue\r\n\r\n{good}");
        assert!(read(after.as_bytes(), "c:1").is_ok());
        for (answer, words) in [
            ("HTTP/1.1 401 No\r\n\r\nthis token has been used\n", "this token has been used (401)"),
            ("HTTP/1.1 200 OK\r\n\r\nxx", "no EST"),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "chunks"),
            ("SSH-2.0", "no EST"),
            ("", "no EST"),
        ] {
            let error = read(answer.as_bytes(), "c:1").unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }
}
