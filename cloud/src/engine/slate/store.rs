//! From a URL to an object store that keeps its word: the folder's lock, the bucket's options, the format object, the probe.
//!
//! ```text
//! <prefix>/tributary.json    {"format":1,"shards":8}   made once, create-if-absent
//! <prefix>/migrating         only while the data is being copied here (`migrate`)
//! <prefix>/lock              file only: held while a process serves the folder
//! <prefix>/probe/<random>    gone after the start
//! <prefix>/shard-<n>/        one SlateDB database each
//! ```
//! Every refusal is one sentence that names the URL and what to do.

use std::{fs::File, path::PathBuf, sync::Arc, time::Duration};

use futures::{StreamExt as _, future::join_all};
use serde::{Deserialize, Serialize};
use slatedb::object_store::{
    Attribute, Attributes, Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload,
    path::Path,
};

use super::{
    tuning::Medium,
    url::{self, Found},
    wal::Wal,
};
use crate::engine::{EngineError, Settings, Sharing};

/// The object that says what the data is.
pub(super) const FORMAT_OBJECT: &str = "tributary.json";
/// There while the data is being copied here.
pub(super) const MIGRATING: &str = "migrating";
/// Version of everything under the prefix.
const FORMAT: u32 = 1;
/// A store that does not answer a first small request for this long is not there.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
/// Writers that race for one object in the probe.
const RACERS: usize = 8;

/// An opened and checked place.
pub(super) struct Store {
    pub objects: Arc<dyn ObjectStore>,
    pub prefix: Path,
    pub medium: Medium,
    /// As in errors.
    pub url: String,
    pub lock: Option<File>,
}

/// What the data is.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Format {
    #[serde(rename = "format")]
    version: u32,
    pub(super) shards: u16,
    /// Where the write-ahead log lies; empty: with the rest.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) wal: String,
    /// What the log's place is marked with.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    wal_id: String,
}

/// `file:///path`: made if missing; one process at a time, or many that are one cluster.
pub(super) fn folder(url: &str, path: &str, sharing: Sharing) -> Result<Store, EngineError> {
    let refuse = |what: &str, error: &dyn std::fmt::Display| {
        EngineError::Store(format!("{url}: {what}: {error}"))
    };
    if !path.starts_with('/') {
        return Err(refuse("not an absolute path", &"write file:///var/lib/tributary"));
    }
    let folder = PathBuf::from(path);
    std::fs::create_dir_all(&folder).map_err(|e| refuse("the folder cannot be made", &e))?;
    let lock = File::create(folder.join("lock"))
        .map_err(|e| refuse("the folder cannot be written", &e))?;
    let locked = match sharing {
        Sharing::Alone => lock.try_lock(),
        Sharing::Cluster => lock.try_lock_shared(),
    };
    match locked {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => {
            let other = match sharing {
                Sharing::Alone => "another tributary-cloud serves it",
                Sharing::Cluster => {
                    "a tributary-cloud without --node serves it; stop that one first"
                }
            };
            return Err(refuse("the folder is in use", &other));
        }
        Err(std::fs::TryLockError::Error(e)) => {
            return Err(refuse("the folder cannot be locked", &e));
        }
    }
    let Found { objects, prefix, medium } = url::find(url, &Settings::default())?;
    Ok(Store { objects, prefix, medium, url: url.into(), lock: Some(lock) })
}

/// A bucket, by its URL.
pub(super) fn bucket(url: &str, settings: &Settings) -> Result<Store, EngineError> {
    let Found { objects, prefix, medium } = url::bucket(url, settings)?;
    Ok(Store { objects, prefix, medium, url: url.into(), lock: None })
}

/// A store that was made elsewhere.
pub(super) fn objects(objects: Arc<dyn ObjectStore>) -> Store {
    let (url, prefix) = (objects.to_string(), Path::default());
    Store { objects, prefix, medium: Medium::Bucket, url, lock: None }
}

impl Store {
    /// Probes the store, then reads or makes the format object. Returns the number of shards.
    pub(super) async fn prepare(
        &self,
        shards: u16,
        sharing: Sharing,
        wal: Option<&Wal>,
    ) -> Result<u16, EngineError> {
        self.answers().await?;
        let format = self.in_time(self.format(shards, sharing, wal)).await?;
        self.check_wal(&format, wal).await?;
        Ok(format.shards)
    }

    /// Probes the store.
    pub(super) async fn answers(&self) -> Result<(), EngineError> {
        self.in_time(self.probe()).await
    }

    /// What the data is, without a change.
    pub(super) async fn look(&self) -> Result<Format, EngineError> {
        let path = self.child(FORMAT_OBJECT);
        self.whole(&path).await?;
        let none = || self.refuse("there is no data");
        self.in_time(self.read(&path)).await?.ok_or_else(none)
    }

    async fn in_time<T>(
        &self,
        asked: impl Future<Output = Result<T, EngineError>>,
    ) -> Result<T, EngineError> {
        tokio::time::timeout(ANSWER_WITHIN, asked)
            .await
            .map_err(|_| self.refuse(&format!("no answer within {} s", ANSWER_WITHIN.as_secs())))?
    }

    pub(super) fn child(&self, name: &str) -> Path {
        self.prefix.clone().join(name)
    }

    fn refuse(&self, what: &str) -> EngineError {
        EngineError::Store(format!("{}: {what}", self.url))
    }

    fn failed(&self, doing: &str, error: &Error) -> EngineError {
        let refused =
            matches!(error, Error::PermissionDenied { .. } | Error::Unauthenticated { .. });
        let what = if refused { ", check the credentials and what they allow" } else { "" };
        self.refuse(&format!("{doing}{what}: {error}"))
    }

    /// Reads the format object, or makes it.
    async fn format(
        &self,
        wanted: u16,
        sharing: Sharing,
        wal: Option<&Wal>,
    ) -> Result<Format, EngineError> {
        let path = self.child(FORMAT_OBJECT);
        self.whole(&path).await?;
        let found = match self.read(&path).await? {
            Some(found) => found,
            None => self.make(&path, wanted, sharing, wal).await?,
        };
        if found.version != FORMAT {
            let text = format!("has format {}, this program reads {FORMAT}", found.version);
            return Err(self.refuse(&text));
        }
        if wanted != 0 && wanted != found.shards {
            let have = found.shards;
            let text = format!(
                "was made with {have} shards and `engine.shards` is {wanted}; say {have}, or leave it out"
            );
            return Err(self.refuse(&text));
        }
        Ok(found)
    }

    async fn make(
        &self,
        path: &Path,
        wanted: u16,
        sharing: Sharing,
        wal: Option<&Wal>,
    ) -> Result<Format, EngineError> {
        let default = match sharing {
            Sharing::Alone => self.medium.default_shards(),
            Sharing::Cluster => Medium::Bucket.default_shards(),
        };
        let shards = if wanted == 0 { default } else { wanted };
        let (wal, wal_id) = match wal {
            Some(wal) => (wal.url.clone(), wal.make(&self.url).await?),
            None => Default::default(),
        };
        let format = Format { version: FORMAT, shards, wal, wal_id };
        let body = serde_json::to_vec(&format).map_err(|e| self.refuse(&e.to_string()))?;
        let create = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match self.objects.put_opts(path, PutPayload::from(body), create).await {
            Ok(_) => Ok(format),
            // Another node was first.
            Err(Error::AlreadyExists { .. }) => self.read(path).await?.ok_or_else(|| {
                self.refuse("the store says that the format object is there and that it is not")
            }),
            Err(error) => Err(self.failed("the format object cannot be written", &error)),
        }
    }

    async fn read(&self, path: &Path) -> Result<Option<Format>, EngineError> {
        let body = match self.objects.get(path).await {
            Err(Error::NotFound { .. }) => return Ok(None),
            found => async { found?.bytes().await }.await,
        };
        let body = body.map_err(|e| self.failed("the format object cannot be read", &e))?;
        let format = serde_json::from_slice(&body);
        format.map(Some).map_err(|e| self.refuse(&format!("tributary.json is not readable: {e}")))
    }

    async fn check_wal(&self, format: &Format, wal: Option<&Wal>) -> Result<(), EngineError> {
        let (made, said) = (format.wal.as_str(), wal.map_or("", |wal| wal.url.as_str()));
        match wal {
            Some(wal) if made == said => wal.check(&format.wal_id).await,
            None if made.is_empty() => Ok(()),
            _ if made.is_empty() => Err(self.refuse(&format!(
                "was made with its write-ahead log in it; start it without `--wal {said}`"
            ))),
            _ => Err(self.refuse(&format!(
                "was made with its write-ahead log at {made}; start it with `--wal {made}`"
            ))),
        }
    }

    /// Refuses half a copy: one that `migrate` has not ended, and one by hand, which may lack more than the format object.
    async fn whole(&self, format: &Path) -> Result<(), EngineError> {
        match self.objects.head(&self.child(MIGRATING)).await {
            Err(Error::NotFound { .. }) => {}
            Err(error) => return Err(self.failed("the store cannot be read", &error)),
            Ok(_) => {
                let text =
                    "is half a copy; run the same `tributary-cloud migrate` again, it goes on";
                return Err(self.refuse(text));
            }
        }
        match self.objects.head(format).await {
            Err(Error::NotFound { .. }) => {}
            Err(error) => return Err(self.failed("the format object cannot be read", &error)),
            Ok(_) => return Ok(()),
        }
        let mut shard = self.objects.list(Some(&self.child("shard-0")));
        match shard.next().await {
            None => Ok(()),
            Some(Ok(_)) => Err(self.refuse(
                "holds shards and no tributary.json, as half a copy does; copy it anew with `tributary-cloud migrate`",
            )),
            Some(Err(error)) => Err(self.failed("the store cannot be listed", &error)),
        }
    }

    /// Fencing, and so every promise, rests on these three properties of the store.
    async fn probe(&self) -> Result<(), EngineError> {
        let path = self.child("probe").join(uuid::Uuid::new_v4().to_string());
        let outcome = self.probe_at(&path).await;
        let removed = self.objects.delete(&path).await;
        outcome?;
        removed.map_err(|e| self.failed("objects cannot be deleted", &e))
    }

    async fn probe_at(&self, path: &Path) -> Result<(), EngineError> {
        let body = |racer: usize| format!("racer {racer}");
        let race = join_all((0..RACERS).map(async |racer| {
            let mut attributes = Attributes::new();
            if self.medium == Medium::Bucket {
                attributes.insert(Attribute::Metadata("racer".into()), racer.to_string().into());
            }
            let create = PutOptions { mode: PutMode::Create, attributes, ..PutOptions::default() };
            self.objects.put_opts(path, PutPayload::from(body(racer)), create).await
        }))
        .await;
        let mut winner = None;
        for (racer, result) in race.iter().enumerate() {
            match result {
                Ok(_) if winner.is_some() => {
                    return Err(self.refuse(
                        "the store let two writers create one object; it needs conditional writes (If-None-Match): use another store",
                    ));
                }
                Ok(_) => winner = Some(racer),
                Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {}
                Err(error) => return Err(self.failed("objects cannot be written", error)),
            }
        }
        let winner =
            winner.ok_or_else(|| self.refuse("the store refused every writer of a new object"))?;
        let read = self.objects.get(path).await;
        let read = read.map_err(|e| self.failed("what was written cannot be read", &e))?;
        if self.medium == Medium::Bucket {
            let kept = read.attributes.get(&Attribute::Metadata("racer".into()));
            if kept.is_none_or(|value| value.as_ref() != winner.to_string()) {
                return Err(self.refuse("the store does not keep the metadata of objects"));
            }
        }
        let bytes = read.bytes().await;
        let bytes = bytes.map_err(|e| self.failed("what was written cannot be read", &e))?;
        if bytes != body(winner).as_bytes() {
            return Err(self.refuse("the store gave back something else than what was written"));
        }
        Ok(())
    }
}
