//! Enrolment for the operator of this machine: the only pages that change anything.
//!
//! So they answer only to a peer on loopback that names this machine by an address or as localhost (a web page elsewhere
//! cannot), that speaks for itself (a proxy on this machine is on loopback, too), and take only JSON (a form cannot be that). Change here: these pages. Not here: what they do (`enrol`).

use std::net::{IpAddr, SocketAddr};

use axum::{
    Json, Router,
    extract::{ConnectInfo, Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tributary_shared::clock::wall_ms;

use super::{Peer, Shown};
use crate::enrol::EnrolError;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ForToken {
    edge: String,
    ttl_s: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    name: String,
}

struct Failed(EnrolError);

impl From<EnrolError> for Failed {
    fn from(error: EnrolError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        let code = match self.0 {
            EnrolError::Wrong(_) | EnrolError::Off => StatusCode::BAD_REQUEST,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        (code, Json(json!({"error": self.0.to_string()}))).into_response()
    }
}

pub(super) fn router() -> Router<Shown> {
    Router::new()
        .route("/", get(list))
        .route("/token", post(token))
        .route("/deny", post(deny))
        .route("/allow", post(allow))
        .layer(middleware::from_fn(only_from_here))
}

async fn only_from_here(request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<ConnectInfo<Peer>>().map(|ConnectInfo(Peer(at))| *at);
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    if is_from_here(peer, host.unwrap_or_default()) && !is_forwarded(request.headers()) {
        return next.run(request).await;
    }
    let why = "enrolment is asked for on this machine only, by its address";
    (StatusCode::FORBIDDEN, Json(json!({"error": why}))).into_response()
}

fn is_from_here(peer: Option<SocketAddr>, host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    let local = peer.is_some_and(|peer| peer.ip().to_canonical().is_loopback());
    local && (address || name == "localhost")
}

/// What proxies say of those they speak for.
const FORWARDED: [&str; 5] =
    ["forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via"];

fn is_forwarded(headers: &HeaderMap) -> bool {
    FORWARDED.iter().any(|name| headers.contains_key(*name))
}

async fn token(
    State(shown): State<Shown>,
    Json(asked): Json<ForToken>,
) -> Result<Json<Value>, Failed> {
    Ok(Json(json!({"token": shown.enrol.token(&asked.edge, asked.ttl_s).await?})))
}

async fn deny(State(shown): State<Shown>, Json(asked): Json<Named>) -> Result<Json<Value>, Failed> {
    let denied = shown.enrol.deny(&asked.name).await?;
    Ok(Json(json!({"denied": denied.name, "known": denied.known})))
}

async fn allow(
    State(shown): State<Shown>,
    Json(asked): Json<Named>,
) -> Result<Json<Value>, Failed> {
    Ok(Json(json!({"was_denied": shown.enrol.allow(&asked.name).await?})))
}

async fn list(State(shown): State<Shown>) -> Result<Json<Value>, Failed> {
    let (edges, denied) = shown.enrol.list().await?;
    let now_s = wall_ms() / 1_000;
    let edges: Vec<_> = edges
        .into_iter()
        .map(|(id, one)| {
            let days_left = (one.until_s as i64 - now_s).div_euclid(86_400);
            json!({"id": id, "serial": one.serial, "until_s": one.until_s, "days_left": days_left})
        })
        .collect();
    let denied: Vec<_> =
        denied.into_iter().map(|(name, since)| json!({"name": name, "since_ms": since})).collect();
    Ok(Json(json!({"edges": edges, "denied": denied})))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_may_change_who_comes_in() {
        let (here, there) = ("127.0.0.1:1".parse().ok(), "10.0.0.1:1".parse().ok());
        for (peer, host, may) in [
            (here, "127.0.0.1:8080", true),
            (here, "localhost:8080", true),
            (here, "[::1]:8080", true),
            (here, "evil.example:8080", false),
            (here, "", false),
            (there, "127.0.0.1:8080", false),
            (None, "127.0.0.1:8080", false),
        ] {
            assert_eq!(is_from_here(peer, host), may, "{peer:?} {host}");
        }
    }
}
