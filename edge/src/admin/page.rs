//! The page for people at `/`: one file, embedded, that reads `/status` every two seconds.
//!
//! Topic, client and lane names are a stranger's text, so nothing but our own script runs in it, known by its hash, and
//! nothing is loaded from elsewhere. Change here: its policy. Not here: its numbers (`reading`).

use axum::{
    http::header,
    response::{IntoResponse, Response},
};

const PAGE: &str = include_str!("page.html");

/// The hashes are of what stands in `page.html` (the test tells the right ones).
const POLICY: &str = "default-src 'none'; \
    script-src 'sha256-hJbWXiNCCNIujgqGJYjPz34pURPP61gvS8/YWJiTC5A='; \
    style-src 'sha256-LFSlpg6vExb9tQJGRuijWYWDuKj115Xkz5rPTJ4b50M='; \
    connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub(super) async fn page() -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, PAGE).into_response()
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use ring::digest::{SHA256, digest};

    use super::*;

    #[test]
    fn the_policy_names_the_script_and_style_that_are_there() {
        assert!(PAGE.len() < 15 * 1024, "{} bytes", PAGE.len());
        for tag in ["script", "style"] {
            let (_, rest) = PAGE.split_once(&format!("<{tag}>")).unwrap();
            let (text, after) = rest.split_once(&format!("</{tag}>")).unwrap();
            assert!(!after.contains(&format!("<{tag}")), "one {tag}");
            let hash = STANDARD.encode(digest(&SHA256, text.as_bytes()));
            assert!(POLICY.contains(&format!("{tag}-src 'sha256-{hash}'")), "{tag}: {hash}");
        }
    }
}
