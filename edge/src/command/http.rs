//! One GET from the admin port of an edge, for commands. Plain HTTP on loopback, read to its end.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::Failed;

/// For the whole answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Bytes of the longest answer.
const LONGEST: u64 = 4 * 1024 * 1024;

/// The body of a page, whatever its code.
pub(super) async fn get(address: &str, path: &str) -> Result<String, Failed> {
    let cannot = |error: std::io::Error| {
        Failed::cannot(format_args!("no edge at http://{address}: {error}"))
    };
    let answer = timeout(PATIENCE, async {
        let mut stream = TcpStream::connect(address).await?;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(LONGEST).read_to_end(&mut answer).await?;
        Ok(answer)
    });
    let answer = answer.await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
    let answer = String::from_utf8_lossy(&answer.map_err(cannot)?).into_owned();
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 ") => Ok(body.to_owned()),
        _ => Err(Failed::cannot(format_args!("what listens on {address} is no edge's admin port"))),
    }
}
