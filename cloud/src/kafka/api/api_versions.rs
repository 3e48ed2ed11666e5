//! ApiVersions (18): what we serve, straight from the table.
//!
//! A version we do not know gets a version 0 body with UNSUPPORTED_VERSION and the keys, so that the client can ask again
//! (KIP-511).

use bytes::Bytes;

use crate::kafka::{
    error::Code,
    frame::{
        Close, Request,
        wire::api_versions_response::{ApiVersion, ApiVersionsResponse},
    },
    schema,
};

pub(super) fn answer(request: &Request) -> Result<Bytes, Close> {
    let keys = schema::TABLE.iter().map(|api| {
        ApiVersion::default()
            .with_api_key(api.key)
            .with_min_version(api.min)
            .with_max_version(api.max)
    });
    let response = ApiVersionsResponse::default().with_api_keys(keys.collect());
    let known = schema::api(request.key).is_some_and(|api| api.serves(request.version));
    if known {
        request.encode(&response)
    } else {
        let response = response.with_error_code(Code::UnsupportedVersion.number());
        request.encode_as(&response, 0)
    }
}
