//! HTTP to another node: one request a connection, within a deadline and a size.
//!
//! In: a path, perhaps a body. Out: the code and the body of the answer. Not here: which pages there are (`pages`).

use std::{io, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};

use super::{Header, Io, Peers, Protocol, Unreachable};
use crate::cluster::Node;

/// Bytes of an answer: a list of 10,000 streams with 50,000 partitions is a tenth of it.
const ANSWER_MAX: u64 = 64 * 1024 * 1024;
/// Header lines of an answer.
const HEADERS_MAX: usize = 32;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
    #[error("node {0} does not answer within {1:?}")]
    Late(String, Duration),
    #[error("node {0} gave no answer: {1}")]
    Io(String, io::Error),
}

/// An answer: code and body.
pub(super) struct Answer {
    pub(super) code: u16,
    pub(super) body: Vec<u8>,
}

impl Peers {
    /// GET, or POST if there is a body (JSON).
    pub(super) async fn ask(
        &self,
        node: &Node,
        path: &str,
        body: Option<&[u8]>,
        within: Duration,
    ) -> Result<Answer, AskError> {
        let stream = self.connect(node, &Header::own(Protocol::Http)).await?;
        match timeout(within, exchange(stream, path, body)).await {
            Ok(answer) => answer.map_err(|error| AskError::Io(node.name.clone(), error)),
            Err(_) => Err(AskError::Late(node.name.clone(), within)),
        }
    }
}

async fn exchange(mut stream: impl Io, path: &str, body: Option<&[u8]>) -> io::Result<Answer> {
    let method = if body.is_some() { "POST" } else { "GET" };
    let body = body.unwrap_or_default();
    // HTTP/1.0: the answer ends where the connection does, and has no chunks.
    let head = format!(
        "{method} {path} HTTP/1.0\r\nHost: peer\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body).await?;
    stream.flush().await?;
    let mut bytes = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut bytes).await?;
    read(bytes)
}

/// PURE. An answer in whole.
fn read(mut bytes: Vec<u8>) -> io::Result<Answer> {
    let bad = |why: &'static str| io::Error::new(io::ErrorKind::InvalidData, why);
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Response::new(&mut headers);
    let Ok(httparse::Status::Complete(at)) = parsed.parse(&bytes) else {
        return Err(bad("what came is no HTTP answer"));
    };
    let code = parsed.code.unwrap_or_default();
    let length = parsed.headers.iter().find(|h| h.name.eq_ignore_ascii_case("content-length"));
    let length = length.and_then(|header| std::str::from_utf8(header.value).ok()?.parse().ok());
    let body = bytes.split_off(at);
    if length.is_some_and(|length: usize| length != body.len()) {
        return Err(bad("the answer ends early"));
    }
    Ok(Answer { code, body })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_or_none() {
        let whole = b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}".to_vec();
        let answer = read(whole.clone()).unwrap();
        assert_eq!((answer.code, answer.body), (200, b"{}".to_vec()));
        for end in 0..whole.len() {
            assert!(read(whole[..end].to_vec()).is_err(), "{end}");
        }
        assert!(read(b"SSH-2.0-x\r\n".to_vec()).is_err());
    }
}
