//! HTTP for operators: health, metrics, a read-only JSON API and the console.
//!
//! ```text
//! /health/live  /health/ready  /metrics     machines
//! /api/...                                  JSON (`api`)
//! /api/enrol/...                            who may be an edge (`enrol`): asked for on this machine only
//! /                                         the console, embedded (`console`); it uses only /api
//! ```
//! Change here: which pages there are. Not here: what the numbers mean (`status`, each part).

mod api;
mod console;
mod enrol;
mod metrics;
#[cfg(test)]
mod tests;

use std::{io, net::SocketAddr};

use axum::{
    Json, Router,
    extract::{State, connect_info::Connected},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
    serve::IncomingStream,
};
use serde_json::json;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tributary_shared::net::patient::{Patient, Visit};

use crate::{
    bridge::Bridge,
    cluster::{Cluster, task::Membership},
    enrol::Enrol,
    log::Log,
    route::Routing,
    status::Status,
};

/// What the pages show.
#[derive(Clone)]
pub struct Shown {
    /// Streams and watermarks.
    pub log: Log,
    /// Edges.
    pub bridge: Bridge,
    /// Who may be an edge.
    pub enrol: Enrol,
    /// Routes.
    pub routing: Routing,
    /// Numbers and readiness.
    pub status: Status,
    /// Who owns what.
    pub cluster: Cluster,
    /// This node's place in it; `None`: a single node.
    pub membership: Option<Membership>,
}

impl Shown {
    /// Whether clients should come here: all heads serve, and as a member of a cluster this node's heartbeats land.
    fn is_ready(&self) -> bool {
        self.status.is_ready() && self.membership.as_ref().is_none_or(Membership::is_sure)
    }
}

/// Serves until `stop`; requests that are being answered are finished.
pub async fn serve(
    listener: tokio::net::TcpListener,
    shown: Shown,
    stop: CancellationToken,
) -> std::io::Result<()> {
    metrics::publish(&shown);
    let app = router(shown).into_make_service_with_connect_info::<Peer>();
    axum::serve(Door(Patient::new(listener)), app)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
}

struct Door(Patient);

impl axum::serve::Listener for Door {
    type Io = Visit<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        self.0.next().await
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// Where a request comes from.
#[derive(Debug, Clone, Copy)]
struct Peer(SocketAddr);

impl Connected<IncomingStream<'_, Door>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Door>) -> Self {
        Self(*stream.remote_addr())
    }
}

fn router(shown: Shown) -> Router {
    Router::new()
        .route("/health", get(ready))
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        .route("/metrics", get(metrics_page))
        .nest("/api", api::router().nest("/enrol", enrol::router()))
        .merge(console::router())
        .fallback(async || Failure::NotFound("page"))
        .with_state(shown)
}

async fn live() -> Json<serde_json::Value> {
    Json(json!({"live": true}))
}

async fn ready(State(shown): State<Shown>) -> Response {
    let ready = shown.is_ready();
    let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(json!({"live": true, "ready": ready}))).into_response()
}

async fn metrics_page(State(shown): State<Shown>) -> Response {
    let text = shown.status.page().render();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

/// Why a request has no answer.
enum Failure {
    NotFound(&'static str),
    Log(crate::log::LogError),
}

impl From<crate::log::LogError> for Failure {
    fn from(error: crate::log::LogError) -> Self {
        Self::Log(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let (code, text) = match self {
            Self::NotFound(what) => (StatusCode::NOT_FOUND, format!("{what} not found")),
            Self::Log(error) => (StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
        };
        (code, Json(json!({"error": text}))).into_response()
    }
}
