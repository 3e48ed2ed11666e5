//! HTTP between nodes: the list of streams and the deny list from their owners, and changes of streams.
//!
//! ```text
//! GET  /peer/streams?after=VERSION   the list of all streams, once it is newer (long poll); 204: nothing newer in time
//! POST /peer/streams                 a change (JSON); it is durable when the answer comes
//! GET  /peer/denied?after=VERSION    the list of edges that are denied, likewise
//! ```
//! Only on `listen.peer`: who asks is a node. Change here: pages, and both ends of them. Not here: HTTP as such (`ask`).

use std::{
    io,
    net::{Ipv6Addr, SocketAddr},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Query, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::get,
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::mpsc,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tributary_shared::net::Admitted;

use super::{Heads, Peers, Protocol, Stream, owners::STREAMS};
use crate::{
    cluster::Node,
    enrol::{DenyList, Enrol},
    log::{Log, LogError, StreamChange, StreamList},
};

/// Connections that wait to be taken.
const WAITING: usize = 64;
/// A long poll at the node that answers; less than [`PATIENCE`].
const POLL: Duration = Duration::from_secs(20);
/// The same at the node that asks.
const PATIENCE: Duration = Duration::from_secs(30);
/// For a change of the streams.
const CHANGE: Duration = Duration::from_secs(10);

/// Why a change was not made, as it goes over the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum NotChanged {
    NotFound(String),
    Exists(String),
    BadName(String),
    BadConfig(String),
    NotOwner,
    Failed(String),
}

impl From<LogError> for NotChanged {
    fn from(error: LogError) -> Self {
        match error {
            LogError::StreamNotFound(name) => Self::NotFound(name),
            LogError::StreamExists(name) => Self::Exists(name),
            LogError::BadStreamName(name) => Self::BadName(name),
            LogError::BadConfig(why) => Self::BadConfig(why),
            LogError::NotOwner | LogError::Closed => Self::NotOwner,
            error => Self::Failed(error.to_string()),
        }
    }
}

impl From<NotChanged> for LogError {
    fn from(why: NotChanged) -> Self {
        match why {
            NotChanged::NotFound(name) => Self::StreamNotFound(name),
            NotChanged::Exists(name) => Self::StreamExists(name),
            NotChanged::BadName(name) => Self::BadStreamName(name),
            NotChanged::BadConfig(why) => Self::BadConfig(why),
            NotChanged::NotOwner => Self::NotOwner,
            NotChanged::Failed(why) => {
                tracing::warn!(why, "the owner of the streams could not change them");
                Self::NotOwner
            }
        }
    }
}

// ---- the node that asks ----

/// Has `node` make a change.
pub(super) async fn change(
    peers: &Peers,
    node: &Node,
    change: &StreamChange,
) -> Result<(), LogError> {
    let body =
        serde_json::to_vec(change).map_err(|error| LogError::BadConfig(error.to_string()))?;
    match peers.ask(node, "/peer/streams", Some(&body), CHANGE).await {
        Ok(answer) if answer.code == 200 => Ok(()),
        Ok(answer) => {
            if let Ok(why) = serde_json::from_slice::<NotChanged>(&answer.body) {
                return Err(why.into());
            }
            tracing::warn!(node = node.name, code = answer.code, "streams cannot be changed");
            Err(LogError::NotOwner)
        }
        Err(error) => {
            tracing::warn!(%error, "streams cannot be changed");
            Err(LogError::NotOwner)
        }
    }
}

/// The list of streams, once it is newer than `after`; `None`: not in time.
pub(super) async fn streams(
    peers: &Peers,
    node: &Node,
    after: Option<u64>,
) -> Result<Option<StreamList>, String> {
    poll(peers, node, "/peer/streams", after).await
}

/// The deny list, likewise.
pub(super) async fn denied(
    peers: &Peers,
    node: &Node,
    after: Option<u64>,
) -> Result<Option<DenyList>, String> {
    poll(peers, node, "/peer/denied", after).await
}

async fn poll<T: for<'de> Deserialize<'de>>(
    peers: &Peers,
    node: &Node,
    page: &str,
    after: Option<u64>,
) -> Result<Option<T>, String> {
    let path = match after {
        Some(after) => format!("{page}?after={after}"),
        None => page.to_owned(),
    };
    let answer = peers.ask(node, &path, None, PATIENCE).await.map_err(|error| error.to_string())?;
    match answer.code {
        200 => serde_json::from_slice(&answer.body).map(Some).map_err(|error| error.to_string()),
        204 => Ok(None),
        code => Err(format!("node {} answers {code}", node.name)),
    }
}

// ---- the node that answers ----

/// Adds the pages to the heads; the future serves them until `stop`.
pub fn open(
    heads: Heads,
    log: Log,
    enrol: Enrol,
    stop: CancellationToken,
) -> (Heads, impl Future<Output = io::Result<()>>) {
    let (sender, visits) = mpsc::channel(WAITING);
    let heads = heads.with(Protocol::Http, move |stream, _, mut admitted| {
        let sender = sender.clone();
        admitted.handshake_done();
        // Its end is the server's: the task that accepted it has no more to do.
        async move { drop(sender.send(Visit { stream, _admitted: admitted }).await) }
    });
    let shared = Shared { log, enrol, stop: stop.clone() };
    let pages = Router::new()
        .route("/peer/streams", get(list).post(make))
        .route("/peer/denied", get(deny_list))
        .with_state(shared);
    let serving = async move {
        axum::serve(Visits(visits), pages).with_graceful_shutdown(stop.cancelled_owned()).await
    };
    (heads, serving)
}

#[derive(Clone)]
struct Shared {
    log: Log,
    enrol: Enrol,
    stop: CancellationToken,
}

#[derive(Deserialize)]
struct After {
    after: Option<u64>,
}

async fn list(State(shared): State<Shared>, Query(After { after }): Query<After>) -> Response {
    // Copies of copies would be right and older.
    if !shared.log.is_here(STREAMS) {
        return StatusCode::MISDIRECTED_REQUEST.into_response();
    }
    shared.newer(shared.log.catalog_changed(after)).await
}

async fn deny_list(State(shared): State<Shared>, Query(After { after }): Query<After>) -> Response {
    if !shared.log.is_here(shared.enrol.home()) {
        return StatusCode::MISDIRECTED_REQUEST.into_response();
    }
    shared.newer(async { Ok(shared.enrol.deny_list_changed(after).await) }).await
}

impl Shared {
    /// The answer to a long poll.
    async fn newer<T: Serialize>(
        &self,
        list: impl Future<Output = Result<T, LogError>>,
    ) -> Response {
        tokio::select! {
            newer = timeout(POLL, list) => match newer {
                Ok(Ok(list)) => Json(list).into_response(),
                Ok(Err(_)) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
                Err(_) => StatusCode::NO_CONTENT.into_response(),
            },
            () = self.stop.cancelled() => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        }
    }
}

async fn make(State(shared): State<Shared>, Json(change): Json<StreamChange>) -> Response {
    match shared.log.change_here(change).await {
        Ok(()) => Json(()).into_response(),
        Err(error) => (StatusCode::CONFLICT, Json(NotChanged::from(error))).into_response(),
    }
}

/// A connection with its place.
struct Visit {
    stream: Stream,
    _admitted: Admitted,
}

struct Visits(mpsc::Receiver<Visit>);

impl axum::serve::Listener for Visits {
    type Io = Visit;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Visit, SocketAddr) {
        match self.0.recv().await {
            Some(visit) => (visit, SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))),
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)))
    }
}

impl AsyncRead for Visit {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Visit {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
