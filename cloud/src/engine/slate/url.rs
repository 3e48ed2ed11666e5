//! From a URL to an object store: folders, and the buckets of three kinds of store.
//!
//! Not here: whether the store keeps its word, and who holds a folder (`store`).

use std::{fmt::Display, sync::Arc};

use slatedb::object_store::{
    ClientOptions, ObjectStore, aws::AmazonS3Builder, azure::MicrosoftAzureBuilder,
    gcp::GoogleCloudStorageBuilder, local::LocalFileSystem, path::Path,
};

use super::tuning::Medium;
use crate::engine::{EngineError, Settings};

/// What a URL names.
pub(super) struct Found {
    pub(super) objects: Arc<dyn ObjectStore>,
    pub(super) prefix: Path,
    pub(super) medium: Medium,
}

/// `file:///path` that exists, or a bucket.
pub(super) fn find(url: &str, settings: &Settings) -> Result<Found, EngineError> {
    let Some(path) = url.strip_prefix("file://") else { return bucket(url, settings) };
    let objects = LocalFileSystem::new_with_prefix(path)
        .map_err(|e| refused(url, &format!("the folder cannot be opened: {e}")))?
        // Without it what was acknowledged is lost with the power.
        .with_fsync(true);
    Ok(Found { objects: Arc::new(objects), prefix: Path::default(), medium: Medium::File })
}

/// `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`: credentials, region and endpoint from the variables that
/// such stores' own tools read (`AWS_*`, `GOOGLE_*`, `AZURE_*`).
pub(super) fn bucket(url: &str, settings: &Settings) -> Result<Found, EngineError> {
    let refuse = |error: &dyn Display| refused(url, error);
    let Some((scheme, rest)) = url.split_once("://") else {
        return Err(refuse(&"is not a URL; write s3://bucket/prefix"));
    };
    let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if name.is_empty() {
        return Err(refuse(&format!("names no bucket; write {scheme}://bucket/prefix")));
    }
    let prefix = Path::parse(prefix.trim_end_matches('/')).map_err(|e| refuse(&e))?;
    let objects: Arc<dyn ObjectStore> = match scheme {
        "s3" => Arc::new(s3(name, settings).build().map_err(|e| refuse(&e))?),
        "gs" => {
            let builder = GoogleCloudStorageBuilder::from_env().with_bucket_name(name);
            Arc::new(builder.build().map_err(|e| refuse(&e))?)
        }
        "az" => {
            let builder = MicrosoftAzureBuilder::from_env().with_container_name(name);
            Arc::new(builder.build().map_err(|e| refuse(&e))?)
        }
        _ => return Err(refuse(&"is not file://, s3://, gs:// or az://")),
    };
    Ok(Found { objects, prefix, medium: Medium::Bucket })
}

fn s3(bucket: &str, settings: &Settings) -> AmazonS3Builder {
    let builder = AmazonS3Builder::from_env().with_bucket_name(bucket);
    if settings.s3_endpoint.is_empty() {
        return builder;
    }
    let plain = settings.s3_endpoint.starts_with("http://");
    let options = ClientOptions::new().with_allow_http(plain);
    builder.with_endpoint(&settings.s3_endpoint).with_client_options(options)
}

fn refused(url: &str, what: &dyn Display) -> EngineError {
    EngineError::Store(format!("{url}: {what}"))
}
