//! HTTP on loopback for the one who looks after the gateway: health, metrics, status. Read-only.
//!
//! ```text
//! /              a page for people (`page`)
//! /health        200 or 503, with reasons     /health/live  200 while the process runs
//! /metrics       Prometheus text              /status       one JSON object for people and scripts
//! ```
//! In: the numbers of [`Status`]. Change here: which pages there are. Not here: what the numbers mean (`status`).

pub(crate) mod metrics;
mod page;
mod reading;

use std::{
    io,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, PoisonError, Weak, atomic::Ordering::Relaxed},
    time::Instant,
};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::json;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tributary_shared::{
    clock,
    connection::Context,
    net::{
        Gate,
        patient::{Patient, Visit},
    },
};

pub use reading::{Commands, Lane, Reading};

use crate::{
    access::Access,
    config::Config,
    pushed::Phase,
    status::{LaneStatus, Status},
};

/// What the pages show.
#[derive(Clone)]
pub struct Shown {
    pub(crate) id: Arc<str>,
    pub(crate) has_cloud: bool,
    pub(crate) status: Arc<Status>,
    access: Arc<Access>,
    folder: Arc<Path>,
    /// Of the listeners that are open now.
    open: Arc<Mutex<(Weak<Context>, Weak<Gate>)>>,
    pub(crate) started: Instant,
}

impl Shown {
    /// For one edge.
    pub fn new(config: &Config, status: Arc<Status>, access: Arc<Access>) -> Self {
        Self {
            id: config.id.as_str().into(),
            has_cloud: !config.uplink.cloud.is_empty(),
            status,
            access,
            folder: Path::new(&config.data).into(),
            open: Arc::default(),
            started: Instant::now(),
        }
    }

    /// Shows the counters of these connections from now on.
    pub fn watch(&self, context: &Arc<Context>, gate: &Arc<Gate>) {
        let open = (Arc::downgrade(context), Arc::downgrade(gate));
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = open;
    }

    /// All numbers now.
    pub(crate) fn reading(&self) -> Reading {
        Reading::take(self)
    }

    /// What it shows of access.
    pub fn access(&self) -> &Access {
        &self.access
    }

    pub(crate) fn open(&self) -> Option<(Arc<Context>, Arc<Gate>)> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        Some((open.0.upgrade()?, open.1.upgrade()?))
    }

    /// Bytes that may still be written to the disk with the data folder; `None` where the system does not tell.
    pub(crate) fn disk_free(&self) -> Option<u64> {
        let disk = rustix::fs::statvfs(&*self.folder).ok()?;
        Some(disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    /// Why this edge is not well; the first part makes it unfit to serve.
    fn complaints(&self) -> (Vec<String>, Vec<String>) {
        let mut unfit = Vec::new();
        if !self.status.serving.load(Relaxed) {
            unfit.push("the broker does not run".to_owned());
        }
        let mut notes = Vec::new();
        if self.status.disk_full.load(Relaxed) {
            notes.push("the disk is full: publishers are refused until there is room".to_owned());
        }
        for lane in self.status.lanes() {
            if self.has_cloud && !lane.connected.load(Relaxed) {
                notes.push(format!("lane {}: not connected to the cloud", lane.name));
            }
            if lane.full.load(Relaxed) {
                notes.push(format!("lane {}: full, publishers are refused", lane.name));
            }
        }
        let down = &self.status.down;
        if down.listening.load(Relaxed) && !down.connected.load(Relaxed) {
            notes.push("commands: not connected to the cloud".to_owned());
        }
        let settings = self.status.settings();
        if let (Phase::Refused | Phase::RolledBack, Some(why)) = (settings.state, settings.reason) {
            let version = settings.refused.unwrap_or_default();
            notes.push(format!("settings from the cloud {version} are not in force: {why}"));
        }
        if self.access.stale.load(Relaxed) {
            notes.push(
                "settings or files of access could not be read again; see the log".to_owned(),
            );
        }
        let until_s = self.status.certificate_until_s.get();
        if until_s > 0 && metrics::days_left(until_s) < metrics::LAST_DAYS {
            let days = metrics::days_left(until_s);
            notes.push(format!(
                "the certificate for the cloud ends in {days} days and was not renewed; see the log, or enrol again"
            ));
        }
        if self.status.salvaged_files.get() > 0 {
            notes.push("a damaged store was put aside at start".to_owned());
        }
        (unfit, notes)
    }
}

/// Serves until `stop`.
pub async fn serve(listener: tokio::net::TcpListener, shown: Shown, stop: CancellationToken) {
    let pages = Router::new()
        .route("/", get(page::page))
        .route("/health", get(health))
        .route("/health/live", get(async || Json(json!({ "live": true }))))
        .route("/metrics", get(metrics_page))
        .route("/status", get(status_page))
        .with_state(shown);
    let served = axum::serve(Door(Patient::new(listener)), pages)
        .with_graceful_shutdown(stop.cancelled_owned());
    if let Err(error) = served.await {
        tracing::error!(%error, "the HTTP listener failed");
    }
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

async fn health(State(shown): State<Shown>) -> Response {
    let (unfit, notes) = shown.complaints();
    let code = if unfit.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = json!({ "live": true, "ready": unfit.is_empty(), "reasons": unfit, "notes": notes });
    (code, Json(body)).into_response()
}

async fn metrics_page(State(shown): State<Shown>) -> Response {
    let text = metrics::render(&shown);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

async fn status_page(State(shown): State<Shown>) -> Json<Reading> {
    Json(Reading::take(&shown))
}

/// Seconds until nothing waits in a lane; `None`: it does not become less.
pub(crate) fn drain_s(lane: &LaneStatus) -> Option<u64> {
    u64::try_from(lane.drain_s.load(Relaxed)).ok()
}

/// Seconds since the oldest waiting batch was made.
pub(crate) fn age_s(lane: &LaneStatus) -> u64 {
    match lane.oldest_ms.load(Relaxed) {
        0 => 0,
        made => (clock::wall_ms() - made).max(0) as u64 / 1000,
    }
}
