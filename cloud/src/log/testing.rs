//! Logs for the tests of the heads.

use std::sync::Arc;

use super::{Log, LogError, Settings};
use crate::engine::memory::MemoryEngine;

/// A log in memory with that many shards and default settings.
pub async fn test_log(shards: u16) -> Result<Log, LogError> {
    Log::open(Arc::new(MemoryEngine::new(shards)), Settings::default()).await
}
