//! The write-ahead log on a store of its own, faster or nearer than the one that has the rest.
//!
//! Its place is marked with an id that the data knows: without its log, data lacks what was acknowledged last, and nobody
//! would notice. Not here: the format object (`store`).

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use slatedb::object_store::{
    Error, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, PutPayload, path::Path,
    prefix::PrefixStore,
};

use super::{store::Store, url};
use crate::engine::{EngineError, Settings, Sharing};

/// Says whose log lies here.
const MARK: &str = "tributary-wal.json";

/// An opened and probed place.
pub(super) struct Wal {
    pub(super) url: String,
    pub(super) objects: Arc<dyn ObjectStore>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Mark {
    id: String,
    data: String,
}

impl Wal {
    /// Where `settings.wal` says; `None` if with the rest.
    pub(super) async fn open(
        data: &Store,
        settings: &Settings,
        sharing: Sharing,
    ) -> Result<Option<Self>, EngineError> {
        let url = settings.wal.clone();
        if url.is_empty() {
            return Ok(None);
        }
        if let Some(folder) = url.strip_prefix("file://") {
            if sharing == Sharing::Cluster && !data.url.starts_with("file://") {
                let text = format!("{url}: a cluster's log cannot lie on one node; name a bucket");
                return Err(EngineError::Store(text));
            }
            std::fs::create_dir_all(folder)
                .map_err(|e| EngineError::Store(format!("{url}: cannot be made: {e}")))?;
        }
        let found = url::find(&url, settings)?;
        let place = Store {
            objects: found.objects,
            prefix: found.prefix,
            medium: found.medium,
            url: url.clone(),
            lock: None,
        };
        place.answers().await?;
        Ok(Some(Self { url, objects: Arc::new(PrefixStore::new(place.objects, place.prefix)) }))
    }

    /// Marks the place as that of new data at `data`; returns the id.
    pub(super) async fn make(&self, data: &str) -> Result<String, EngineError> {
        let mark = Mark { id: uuid::Uuid::new_v4().to_string(), data: data.to_owned() };
        let body = serde_json::to_vec(&mark).map_err(|e| self.refuse(&e.to_string()))?;
        let create = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let put = self.objects.put_opts(&Path::from(MARK), PutPayload::from(body), create).await;
        match put {
            Ok(_) => return Ok(mark.id),
            Err(Error::AlreadyExists { .. }) => {}
            Err(error) => return Err(self.refuse(&format!("cannot be written: {error}"))),
        }
        // Another node that starts at the same time, or a start that did not get further.
        match self.read().await? {
            Some(found) if found.data == data => Ok(found.id),
            _ => Err(self.refuse("holds the log of other data; name an empty place")),
        }
    }

    /// Refuses a place that is not the one with `id`.
    pub(super) async fn check(&self, id: &str) -> Result<(), EngineError> {
        if self.read().await?.is_some_and(|found| found.id == id) {
            return Ok(());
        }
        Err(self.refuse("is not the place of this data's log; bring the log back first"))
    }

    async fn read(&self) -> Result<Option<Mark>, EngineError> {
        let body = match self.objects.get(&Path::from(MARK)).await {
            Err(Error::NotFound { .. }) => return Ok(None),
            found => async { found?.bytes().await }.await,
        };
        let body = body.map_err(|e| self.refuse(&format!("cannot be read: {e}")))?;
        let mark = serde_json::from_slice(&body);
        mark.map(Some).map_err(|e| self.refuse(&format!("{MARK} is not readable: {e}")))
    }

    fn refuse(&self, what: &str) -> EngineError {
        EngineError::Store(format!("{}: {what}", self.url))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::engine::{Engine, ShardId, Write, open};

    async fn start(url: &str, wal: &str) -> Result<Arc<dyn Engine>, EngineError> {
        let settings = Settings { shards: 1, wal: wal.to_owned(), ..Settings::default() };
        open(url, &settings, Sharing::Alone).await.map(|(engine, _)| engine)
    }

    async fn refusal(url: &str, wal: &str) -> String {
        start(url, wal).await.err().unwrap().to_string()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn data_is_opened_with_its_own_log_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let url = |name: &str| format!("file://{}", folder.path().join(name).display());
        let (data, log, other) = (url("data"), url("log"), url("other"));
        let engine = start(&data, &log).await.unwrap();
        let shard = engine.open(ShardId(0)).await.unwrap();
        let write = Write::Put(Bytes::from_static(b"T"), Bytes::from_static(b"x"));
        let commit = shard.write(vec![write]).await.unwrap();
        shard.durable(commit).await.unwrap();
        drop((shard, engine));

        let without = refusal(&data, "").await;
        assert!(without.contains(&format!("start it with `--wal {log}`")), "{without}");
        let elsewhere = refusal(&data, &other).await;
        assert!(elsewhere.contains(&format!("start it with `--wal {log}`")), "{elsewhere}");
        let taken = refusal(&url("second"), &log).await;
        assert!(taken.contains("holds the log of other data"), "{taken}");
        let moved = folder.path().join("moved");
        std::fs::rename(folder.path().join("log"), &moved).unwrap();
        let lost = refusal(&data, &log).await;
        assert!(lost.contains("bring the log back first"), "{lost}");
        std::fs::remove_dir_all(folder.path().join("log")).unwrap();
        std::fs::rename(&moved, folder.path().join("log")).unwrap();

        let engine = start(&data, &log).await.unwrap();
        let shard = engine.open(ShardId(0)).await.unwrap();
        assert_eq!(shard.get(b"T").await.unwrap().as_deref(), Some(b"x".as_slice()));
        drop((shard, engine));
        let plain = url("plain");
        drop(start(&plain, "").await.unwrap());
        let added = refusal(&plain, &other).await;
        assert!(added.contains("without `--wal"), "{added}");
    }
}
