//! One connection to another node that speaks Kafka, as a client: Fetch, answered in the order it was asked.
//!
//! In: requests of any number of tasks at once. Out: their answers, found by correlation id. A connection that fails fails all that
//! wait, and is not used again. Not here: which node, when to try again (`owners`).

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicI32, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::{BufMut as _, Bytes, BytesMut};
use kafka_protocol::{
    messages::{ApiKey, FetchRequest, FetchResponse, RequestHeader, ResponseHeader},
    protocol::{Decodable as _, Encodable as _, StrBytes},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf},
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::Stream;

/// Names topics by name, and says where a partition begins.
const FETCH_VERSION: i16 = 11;
/// Header of the requests, and of the answers, of that version.
const REQUEST_HEADER: i16 = 1;
const RESPONSE_HEADER: i16 = 0;
/// Requests that wait for their answers on one connection; more wait for room.
const IN_FLIGHT: usize = 64;
/// Bytes of an answer: more than a Kafka head gives.
const ANSWER_MAX: usize = 128 * 1024 * 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    #[error("the connection is lost")]
    Lost,
    #[error("no answer within {0:?}")]
    Late(Duration),
    #[error("the request or the answer is no Fetch: {0}")]
    Codec(String),
}

struct Call {
    /// With the size before it and its correlation id in it.
    frame: Bytes,
    correlation: i32,
    answer: oneshot::Sender<Bytes>,
}

/// The handle. The connection ends with the last one.
#[derive(Clone)]
pub(super) struct Wire {
    calls: mpsc::Sender<Call>,
    /// Correlation id of the next request.
    next: Arc<AtomicI32>,
}

impl Wire {
    /// Speaks over a stream whose other end is a Kafka head.
    pub(super) fn start(stream: Stream) -> Self {
        let (calls, waiting) = mpsc::channel(IN_FLIGHT);
        drop(tributary_shared::tasks::spawn("a connection to another node", run(stream, waiting)));
        Self { calls, next: Arc::default() }
    }

    /// Whether it is of no use any more.
    pub(super) fn is_lost(&self) -> bool {
        self.calls.is_closed()
    }

    /// Asks, and waits for the answer.
    pub(super) async fn fetch(
        &self,
        request: &FetchRequest,
        within: Duration,
    ) -> Result<FetchResponse, WireError> {
        let asking = async {
            let correlation = self.next.fetch_add(1, Relaxed);
            let frame = frame(request, correlation)?;
            let (answer, answered) = oneshot::channel();
            let call = Call { frame, correlation, answer };
            self.calls.send(call).await.map_err(|_| WireError::Lost)?;
            let mut bytes = answered.await.map_err(|_| WireError::Lost)?;
            FetchResponse::decode(&mut bytes, FETCH_VERSION).map_err(codec)
        };
        timeout(within, asking).await.unwrap_or(Err(WireError::Late(within)))
    }
}

fn codec(error: impl std::fmt::Display) -> WireError {
    WireError::Codec(error.to_string())
}

fn frame(request: &FetchRequest, correlation: i32) -> Result<Bytes, WireError> {
    let header = RequestHeader::default()
        .with_request_api_key(ApiKey::Fetch as i16)
        .with_request_api_version(FETCH_VERSION)
        .with_correlation_id(correlation)
        .with_client_id(Some(StrBytes::from_static_str("tributary-peer")));
    let mut out = BytesMut::new();
    out.put_i32(0);
    header.encode(&mut out, REQUEST_HEADER).map_err(codec)?;
    request.encode(&mut out, FETCH_VERSION).map_err(codec)?;
    let size = i32::try_from(out.len() - 4).map_err(codec)?;
    if let Some(place) = out.first_chunk_mut::<4>() {
        *place = size.to_be_bytes();
    }
    Ok(out.freeze())
}

/// Writes and reads until either fails or nobody asks any more.
async fn run(stream: Stream, calls: mpsc::Receiver<Call>) {
    let (from, to) = tokio::io::split(stream);
    let (sent, pending) = mpsc::channel(IN_FLIGHT);
    let ended = tokio::select! {
        ended = write(to, calls, sent) => ended,
        ended = read(from, pending) => ended,
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection to another node is lost");
    }
}

async fn write(
    mut to: WriteHalf<Stream>,
    mut calls: mpsc::Receiver<Call>,
    sent: mpsc::Sender<(i32, oneshot::Sender<Bytes>)>,
) -> io::Result<()> {
    while let Some(call) = calls.recv().await {
        // Who gave up while it waited here needs no answer.
        if call.answer.is_closed() {
            continue;
        }
        let Ok(()) = sent.send((call.correlation, call.answer)).await else { break };
        to.write_all(&call.frame).await?;
        to.flush().await?;
    }
    to.shutdown().await
}

async fn read(
    mut from: ReadHalf<Stream>,
    mut pending: mpsc::Receiver<(i32, oneshot::Sender<Bytes>)>,
) -> io::Result<()> {
    let bad = |why: &'static str| io::Error::new(io::ErrorKind::InvalidData, why);
    loop {
        let size = usize::try_from(from.read_i32().await?).map_err(|_| bad("a negative size"))?;
        if !(4..=ANSWER_MAX).contains(&size) {
            return Err(bad("an answer of no possible size"));
        }
        let mut bytes = BytesMut::new();
        // Grows with what comes, not with what was announced.
        while bytes.len() < size {
            let room = (size - bytes.len()) as u64;
            if (&mut from).take(room).read_buf(&mut bytes).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let mut bytes = bytes.freeze();
        let header = ResponseHeader::decode(&mut bytes, RESPONSE_HEADER)
            .map_err(|_| bad("an answer without a header"))?;
        let Some((correlation, answer)) = pending.recv().await else { return Ok(()) };
        if header.correlation_id != correlation {
            return Err(bad("the answer to another request"));
        }
        // Nobody waits any more: then nobody needs it.
        let _ = answer.send(bytes);
    }
}
