//! The HTTP request that becomes a WebSocket (RFC 6455, 4.2), with MQTT's rules (MQTT-6.0.0-3, 6.0.0-4).
//!
//! Bounded: a head of 8 KiB, 64 headers. The path does not matter. A request with an `Origin` comes from a web page: it is
//! served if the page came from this host, or from one that is listed. Anything else gets an HTTP answer that says why.
//! Change here: which requests are served. Not here: frames (`frame`), deadlines (the caller).

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::BytesMut;
use ring::digest;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Bytes of a request.
const HEAD: usize = 8 * 1024;
/// Headers of a request; browsers send about twenty.
const HEADERS: usize = 64;
const FIRST_READ: usize = 1_024;
/// RFC 6455, 1.3.
const MAGIC: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Why a request is not served.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// The socket failed or the peer went.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// Told to the peer.
    #[error("HTTP {status}: {why}")]
    Refused {
        /// Status code.
        status: u16,
        /// What is wrong.
        why: &'static str,
    },
}

/// Reads a request and answers it. `origins`: pages that may connect beside those of this host; `*` = all.
pub(super) async fn upgrade<S>(stream: &mut S, origins: &[String]) -> Result<(), UpgradeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let answer = match read(stream, origins).await? {
        Ok(accept) => format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
        ),
        Err((status, why)) => {
            let answer = format!(
                "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Type: text/plain\r\n\
                 Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nContent-Length: {}\r\n\r\n{why}\n",
                why.len() + 1
            );
            stream.write_all(answer.as_bytes()).await?;
            stream.shutdown().await?;
            let status = status.get(..3).and_then(|code| code.parse().ok()).unwrap_or(400);
            return Err(UpgradeError::Refused { status, why });
        }
    };
    stream.write_all(answer.as_bytes()).await?;
    Ok(stream.flush().await?)
}

/// A status line's rest, and what is wrong.
type Fault = (&'static str, &'static str);

const BAD: &str = "400 Bad Request";

async fn read<S>(stream: &mut S, origins: &[String]) -> std::io::Result<Result<String, Fault>>
where
    S: AsyncRead + Unpin,
{
    let mut head = BytesMut::with_capacity(FIRST_READ);
    loop {
        if stream.read_buf(&mut head).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(outcome) = request(&head, origins) {
            return Ok(outcome);
        }
        if head.len() >= HEAD {
            return Ok(Err(("431 Request Header Fields Too Large", "too many bytes of headers")));
        }
        head.reserve(FIRST_READ);
    }
}

/// What a request comes to; `None`: it is not complete.
fn request(head: &[u8], origins: &[String]) -> Option<Result<String, Fault>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(httparse::Status::Partial) => None,
        Ok(httparse::Status::Complete(bytes)) if bytes < head.len() => {
            Some(Err((BAD, "data before the answer")))
        }
        Ok(httparse::Status::Complete(_)) => Some(check(&request, origins)),
        Err(httparse::Error::TooManyHeaders) => {
            Some(Err(("431 Request Header Fields Too Large", "too many headers")))
        }
        Err(_) => Some(Err((BAD, "not an HTTP request"))),
    }
}

fn check(request: &httparse::Request<'_, '_>, origins: &[String]) -> Result<String, Fault> {
    let all = |name: &'static str| {
        let named =
            request.headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name));
        named.filter_map(|header| std::str::from_utf8(header.value).ok())
    };
    let one = |name: &'static str| {
        let mut values = all(name);
        values.next().filter(|_| values.next().is_none()).map(str::trim)
    };
    let lists = |name: &'static str, word: &str, exactly: bool| {
        all(name)
            .flat_map(|value| value.split(','))
            .map(str::trim)
            .any(|token| if exactly { token == word } else { token.eq_ignore_ascii_case(word) })
    };
    if request.method != Some("GET") {
        return Err(("405 Method Not Allowed", "only GET opens a WebSocket"));
    }
    if !lists("Upgrade", "websocket", false) {
        return Err(("426 Upgrade Required", "this is an MQTT port for WebSocket clients"));
    }
    if request.version != Some(1) || !lists("Connection", "Upgrade", false) {
        return Err((BAD, "not an HTTP/1.1 upgrade"));
    }
    if one("Sec-WebSocket-Version") != Some("13") {
        return Err(("426 Upgrade Required", "only WebSocket version 13 is spoken"));
    }
    let key = one("Sec-WebSocket-Key")
        .filter(|key| STANDARD.decode(key).is_ok_and(|key| key.len() == 16));
    let Some(key) = key else { return Err((BAD, "no legal Sec-WebSocket-Key")) };
    if !lists("Sec-WebSocket-Protocol", "mqtt", true) {
        return Err((BAD, "the client does not offer the subprotocol mqtt (MQTT-6.0.0-3)"));
    }
    if !all("Origin").all(|origin| is_welcome(origin.trim(), one("Host"), origins)) {
        return Err(("403 Forbidden", "pages of this origin may not connect; see `origins`"));
    }
    Ok(accept(key))
}

/// A page of this very host, whatever its port, or of a listed origin.
fn is_welcome(origin: &str, host: Option<&str>, origins: &[String]) -> bool {
    let name = |authority: &str| {
        let name =
            authority.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
        name.map_or(authority, |(name, _)| name).to_ascii_lowercase()
    };
    let own = origin
        .split_once("://")
        .zip(host)
        .is_some_and(|((_, page), host)| name(page) == name(host));
    own || origins.iter().any(|listed| listed == "*" || listed.eq_ignore_ascii_case(origin))
}

fn accept(key: &str) -> String {
    let mut context = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    context.update(key.as_bytes());
    context.update(MAGIC);
    STANDARD.encode(context.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "GET /mqtt HTTP/1.1\r\nHost: gw:8083\r\nUpgrade: WebSocket\r\nConnection: keep-alive, upgrade\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqttv3.1, mqtt\r\n\r\n";

    fn outcome(text: &str, origins: &[&str]) -> Option<Result<String, &'static str>> {
        let origins: Vec<String> = origins.iter().map(|&origin| origin.to_owned()).collect();
        request(text.as_bytes(), &origins)
            .map(|outcome| outcome.map_err(|(status, _)| status.get(..3).unwrap()))
    }

    /// The key of RFC 6455, 1.3.
    // [MQTT-6.0.0-4]
    #[test]
    fn a_good_request_is_accepted_once_it_is_complete() {
        assert_eq!(outcome(GOOD, &[]), Some(Ok("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=".to_owned())));
        for end in 0..GOOD.len() {
            assert_eq!(outcome(&GOOD[..end], &[]), None, "{end}");
        }
    }

    // [MQTT-6.0.0-3]
    #[test]
    fn bad_requests_are_told_why() {
        for (from, to, status) in [
            ("GET", "POST", "405"),
            ("Upgrade: WebSocket\r\n", "", "426"),
            ("Version: 13", "Version: 8", "426"),
            ("HTTP/1.1", "HTTP/1.0", "400"),
            ("HTTP/1.1", "HTTP/9", "400"),
            ("keep-alive, upgrade", "keep-alive", "400"),
            ("dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ=", "400"),
            ("dGhlIHNhbXBsZSBub25jZQ==", "", "400"),
            ("Host:", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nHost:", "400"),
            ("mqttv3.1, mqtt", "mqttv3.1", "400"),
            ("mqttv3.1, mqtt", "MQTT", "400"),
            ("\r\n\r\n", "\r\n\r\nmore", "400"),
            ("Host", "Origin: http://evil.example\r\nHost", "403"),
            ("Host", "Origin: null\r\nHost", "403"),
            ("Host", "Origin: http://gw.evil.example\r\nHost", "403"),
            ("Host", "Origin: http://gw\r\nOrigin: http://evil.example\r\nHost", "403"),
        ] {
            let text = GOOD.replacen(from, to, 1);
            assert_ne!(text, GOOD);
            assert_eq!(outcome(&text, &["https://ok.example"]), Some(Err(status)), "{text}");
        }
        let many = GOOD.replace("Host", &format!("{}Host", "A: b\r\n".repeat(HEADERS)));
        assert_eq!(outcome(&many, &[]), Some(Err("431")));
    }

    #[test]
    fn pages_of_this_host_and_of_listed_origins_may_connect() {
        for (origin, origins, welcome) in [
            ("http://gw", &[][..], true),
            ("https://GW:8443", &[], true),
            ("http://gw.local", &[], false),
            ("https://ok.example", &["https://ok.example"], true),
            ("https://ok.example:1", &["https://ok.example"], false),
            ("null", &["*"], true),
        ] {
            let text = GOOD.replace("Host", &format!("Origin: {origin}\r\nHost"));
            assert_eq!(outcome(&text, origins).unwrap().is_ok(), welcome, "{origin} {origins:?}");
        }
        assert!(is_welcome("http://[::1]:80", Some("[::1]:8083"), &[]));
        assert!(!is_welcome("http://[::1]:80", Some("[::2]:80"), &[]));
    }
}
