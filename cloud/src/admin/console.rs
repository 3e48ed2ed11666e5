//! The console's files, embedded; plain HTML, CSS and JavaScript from `console/`, no build step.

use axum::{
    Router,
    http::header,
    response::{IntoResponse, Response},
    routing::get,
};

use super::Shown;

/// The page loads nothing from elsewhere and runs no inline script: topic and edge names are a stranger's text.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub(super) fn router() -> Router<Shown> {
    let html = include_str!("../console/index.html");
    let script = include_str!("../console/app.js");
    let style = include_str!("../console/style.css");
    Router::new()
        .route("/", get(async move || file("text/html; charset=utf-8", html)))
        .route("/app.js", get(async move || file("text/javascript; charset=utf-8", script)))
        .route("/style.css", get(async move || file("text/css; charset=utf-8", style)))
}

fn file(kind: &'static str, text: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, text).into_response()
}
