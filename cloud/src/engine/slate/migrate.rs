//! Copies all data from one place to another: from a folder to a bucket, so that a cluster can serve it, or back.
//!
//! In: two URLs. Out: the data at the second, compared byte by byte; how far it is, as it goes. The mark `migrating` is there
//! first and goes last, so that half a copy is never served. A copy that was broken off goes on where it was when it is
//! started again. Not here: what an operator types (`engine::command`).

use std::{collections::BTreeMap, fs::File, sync::Arc};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::{Deserialize, Serialize};
use slatedb::object_store::{
    Error, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, PutPayload, path::Path,
};

use super::{
    store::{self, FORMAT_OBJECT, Format, MIGRATING},
    url::{self, Found},
};
use crate::engine::{EngineError, Settings, Sharing};

/// Objects copied at once; the largest have some 64 MiB.
const AT_ONCE: usize = 4;

/// How far a copy is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Objects that are there and compared.
    pub objects: u64,
    /// Of so many.
    pub objects_all: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Of so many.
    pub bytes_all: u64,
    /// Objects that an earlier run had copied.
    pub kept: u64,
}

/// What the mark says.
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
struct Mark {
    from: String,
    shards: u16,
}

/// Copies; `told` hears of every object. The error is a sentence for the operator.
pub async fn migrate(
    from: &str,
    to: &str,
    settings: &Settings,
    mut told: impl FnMut(Progress),
) -> Result<Progress, EngineError> {
    let source = Source::open(from, settings).await?;
    let target = Target::open(to, settings)?;
    let mark = Mark { from: from.to_owned(), shards: source.format.shards };
    target.begin(&mark).await?;
    let all = source.list().await?;
    let mut progress = Progress {
        objects_all: all.len() as u64,
        bytes_all: all.values().sum(),
        ..Progress::default()
    };
    let copies = stream::iter(&all).map(|(name, size)| {
        let (source, target) = (&source, &target);
        async move { Ok::<_, EngineError>((*size, copy(source, target, name, *size).await?)) }
    });
    let mut copies = copies.buffer_unordered(AT_ONCE);
    while let Some((size, kept)) = copies.try_next().await? {
        progress.objects += 1;
        progress.bytes += size;
        progress.kept += u64::from(kept);
        told(progress);
    }
    if source.list().await? != all {
        let text = "was written to meanwhile; stop everything that serves it, then start again";
        return Err(EngineError::Store(format!("{from} {text}")));
    }
    target.end(&source.format).await?;
    Ok(progress)
}

struct Source {
    url: String,
    at: Found,
    format: Format,
    /// Nobody serves the folder meanwhile.
    _lock: Option<File>,
}

impl Source {
    async fn open(url: &str, settings: &Settings) -> Result<Self, EngineError> {
        // Asked for before the folder's lock, which would make the folder.
        let at = url::find(url, settings)?;
        let lock = match url.strip_prefix("file://") {
            Some(path) => store::folder(url, path, Sharing::Alone)?.lock,
            None => None,
        };
        let refuse = |what: &str| EngineError::Store(format!("{url}: {what}"));
        let object = at.prefix.clone().join(FORMAT_OBJECT);
        let found = match at.objects.get(&object).await {
            Err(Error::NotFound { .. }) => return Err(refuse("there is no data to copy")),
            other => other.map_err(|e| refuse(&e.to_string()))?,
        };
        let body = found.bytes().await.map_err(|e| refuse(&e.to_string()))?;
        let format: Format = serde_json::from_slice(&body)
            .map_err(|e| refuse(&format!("tributary.json is not readable: {e}")))?;
        if !format.wal.is_empty() {
            let text = "its write-ahead log lies elsewhere; data of two stores is not copied";
            return Err(refuse(text));
        }
        if at.objects.head(&at.prefix.clone().join(MIGRATING)).await.is_ok() {
            return Err(refuse("is half a copy itself; finish that one first"));
        }
        Ok(Self { url: url.to_owned(), at, format, _lock: lock })
    }

    /// All objects of all shards, as their names below the prefix, with their sizes.
    async fn list(&self) -> Result<BTreeMap<String, u64>, EngineError> {
        let mut all = BTreeMap::new();
        for shard in 0..self.format.shards {
            let folder = self.at.prefix.clone().join(format!("shard-{shard}"));
            let mut found = self.at.objects.list(Some(&folder));
            while let Some(object) = found.try_next().await.map_err(|e| self.failed(&e))? {
                let name = object.location.as_ref();
                let below = name.strip_prefix(self.at.prefix.as_ref()).unwrap_or(name);
                all.insert(below.trim_start_matches('/').to_owned(), object.size);
            }
        }
        Ok(all)
    }

    fn failed(&self, error: &Error) -> EngineError {
        EngineError::Store(format!("{} cannot be read: {error}", self.url))
    }
}

struct Target {
    url: String,
    at: Found,
}

impl Target {
    fn open(url: &str, settings: &Settings) -> Result<Self, EngineError> {
        if let Some(path) = url.strip_prefix("file://") {
            drop(store::folder(url, path, Sharing::Alone)?);
        }
        Ok(Self { url: url.to_owned(), at: url::find(url, settings)? })
    }

    fn object(&self, name: &str) -> Path {
        self.at.prefix.parts().chain(Path::from(name).parts()).collect()
    }

    /// Leaves the mark, or finds that of an earlier run.
    async fn begin(&self, mark: &Mark) -> Result<(), EngineError> {
        let body = serde_json::to_vec(mark).map_err(|e| self.refuse(&e.to_string()))?;
        let there = self.at.objects.head(&self.object(FORMAT_OBJECT)).await.is_ok();
        match self.at.objects.get(&self.object(MIGRATING)).await {
            Ok(found) => {
                let found = found.bytes().await.map_err(|e| self.failed(&e))?;
                let earlier: Mark = serde_json::from_slice(&found)
                    .map_err(|e| self.refuse(&format!("its mark is not readable: {e}")))?;
                if earlier != *mark {
                    let text = format!("is half a copy of {}; finish or remove that", earlier.from);
                    return Err(self.refuse(&text));
                }
                Ok(())
            }
            Err(Error::NotFound { .. }) if there => {
                Err(self.refuse("holds data already; name an empty place"))
            }
            Err(Error::NotFound { .. }) => {
                let create = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
                let mark = self.object(MIGRATING);
                let put = self.at.objects.put_opts(&mark, body.into(), create).await;
                put.map(drop).map_err(|e| self.failed(&e))
            }
            Err(error) => Err(self.failed(&error)),
        }
    }

    /// Says what the data is, then takes the mark away.
    async fn end(&self, format: &Format) -> Result<(), EngineError> {
        let body = serde_json::to_vec(format).map_err(|e| self.refuse(&e.to_string()))?;
        let put = self.at.objects.put(&self.object(FORMAT_OBJECT), body.into()).await;
        put.map_err(|e| self.failed(&e))?;
        let gone = self.at.objects.delete(&self.object(MIGRATING)).await;
        gone.map_err(|e| self.failed(&e))
    }

    fn refuse(&self, what: &str) -> EngineError {
        EngineError::Store(format!("{}: {what}", self.url))
    }

    fn failed(&self, error: &Error) -> EngineError {
        self.refuse(&format!("cannot be written: {error}"))
    }
}

/// Copies one object unless it is there already; true then.
async fn copy(
    source: &Source,
    target: &Target,
    name: &str,
    size: u64,
) -> Result<bool, EngineError> {
    let from: Path = source.at.prefix.parts().chain(Path::from(name).parts()).collect();
    let (to, objects) = (target.object(name), Arc::clone(&target.at.objects));
    let body = async { source.at.objects.get(&from).await?.bytes().await }.await;
    let body = body.map_err(|e| source.failed(&e))?;
    let there = objects.head(&to).await.is_ok_and(|found| found.size == size);
    if there && same(&*objects, &to, &body).await.map_err(|e| target.failed(&e))? {
        return Ok(true);
    }
    let put = objects.put(&to, PutPayload::from(body.clone())).await;
    put.map_err(|e| target.failed(&e))?;
    if same(&*objects, &to, &body).await.map_err(|e| target.failed(&e))? {
        return Ok(false);
    }
    Err(target.refuse(&format!("{to} came back changed; do not use this store")))
}

/// Compared as it comes, so that one copy in memory is enough.
async fn same(objects: &dyn ObjectStore, at: &Path, body: &Bytes) -> Result<bool, Error> {
    let mut rest: &[u8] = body;
    let mut stored = objects.get(at).await?.into_stream();
    while let Some(part) = stored.try_next().await? {
        let Some(left) = rest.strip_prefix(part.as_ref()) else { return Ok(false) };
        rest = left;
    }
    Ok(rest.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Engine, ShardId, Write, open};

    fn two_shards() -> Settings {
        Settings { shards: 2, ..Settings::default() }
    }

    async fn start(url: &str) -> Result<Arc<dyn Engine>, EngineError> {
        open(url, &Settings::default(), Sharing::Alone).await.map(|(engine, _)| engine)
    }

    fn key(n: u8) -> Bytes {
        Bytes::from(vec![b'T', n])
    }

    /// A folder with data in two shards, and a free one.
    async fn places() -> (tempfile::TempDir, String, String) {
        let folder = tempfile::tempdir().unwrap();
        let url = |name: &str| format!("file://{}", folder.path().join(name).display());
        let (from, to) = (url("from"), url("to"));
        let (engine, _) = open(&from, &two_shards(), Sharing::Alone).await.unwrap();
        for n in 0..2 {
            let shard = engine.open(ShardId(n)).await.unwrap();
            let commit =
                shard.write(vec![Write::Put(key(n as u8), Bytes::from_static(b"x"))]).await;
            shard.durable(commit.unwrap()).await.unwrap();
            shard.close().await.unwrap();
        }
        (folder, from, to)
    }

    async fn check(url: &str) {
        let engine = start(url).await.unwrap();
        assert_eq!(engine.shards(), 2);
        for n in 0..2 {
            let shard = engine.open(ShardId(n)).await.unwrap();
            assert_eq!(shard.get(&key(n as u8)).await.unwrap().as_deref(), Some(b"x".as_slice()));
            shard.close().await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_copy_holds_everything_and_the_original_too() {
        let (_folder, from, to) = places().await;
        let mut heard = 0;
        let done = migrate(&from, &to, &Settings::default(), |_| heard += 1).await.unwrap();
        assert!(done.objects > 4 && done.objects == done.objects_all, "{done:?}");
        assert_eq!((heard, done.kept, done.bytes), (done.objects, 0, done.bytes_all));
        check(&to).await;
        check(&from).await;
        let again =
            migrate(&from, &to, &Settings::default(), |_| {}).await.unwrap_err().to_string();
        assert!(again.contains("holds data already"), "{again}");
    }

    #[tokio::test]
    async fn half_a_copy_is_not_served_and_goes_on_where_it_was() {
        let (folder, from, to) = places().await;
        migrate(&from, &to, &Settings::default(), |_| {}).await.unwrap();
        // As if it had been killed before the last objects.
        let target = folder.path().join("to");
        std::fs::remove_file(target.join(FORMAT_OBJECT)).unwrap();
        std::fs::remove_dir_all(target.join("shard-1")).unwrap();
        let by_hand = start(&to).await.err().unwrap().to_string();
        assert!(by_hand.contains("no tributary.json"), "{by_hand}");
        let mark = Mark { from: from.clone(), shards: 2 };
        std::fs::write(target.join(MIGRATING), serde_json::to_vec(&mark).unwrap()).unwrap();
        let refused = start(&to).await.err().unwrap().to_string();
        assert!(refused.contains("is half a copy; run the same"), "{refused}");
        let other = migrate(&to, &from, &Settings::default(), |_| {}).await.unwrap_err();
        assert!(other.to_string().contains("no data to copy"), "{other}");
        let done = migrate(&from, &to, &Settings::default(), |_| {}).await.unwrap();
        assert!(done.kept > 0 && done.kept < done.objects, "{done:?}");
        check(&to).await;
    }

    #[tokio::test]
    async fn a_folder_that_is_served_is_not_copied() {
        let (_folder, from, to) = places().await;
        let _serving = start(&from).await.unwrap();
        let refused = migrate(&from, &to, &Settings::default(), |_| {}).await.unwrap_err();
        assert!(refused.to_string().contains("in use"), "{refused}");
    }
}
