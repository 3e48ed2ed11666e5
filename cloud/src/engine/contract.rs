//! The promises of an engine, as checks that any engine can be held to.
//!
//! In: a way to start an engine on the same data again. Out: the first broken promise in words. Not a test itself: the tests
//! of each engine, and of a bucket on a real server, call [`every_promise`].

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::{Engine, EngineError, ScanLimit, Shard, ShardId, Write};

/// What was promised and not kept.
pub type Broken = Box<dyn std::error::Error + Send + Sync>;

/// A place with data that engines can be started on.
#[async_trait]
pub trait Place: Send + Sync {
    /// A new engine on the data. Earlier ones were dropped without a close, as if their process had been killed.
    async fn start(&self) -> Result<Arc<dyn Engine>, EngineError>;
    /// Whether a second engine can be started while the first is there (it fences; or else it is refused).
    fn shared(&self) -> bool;
}

const SHARD: ShardId = ShardId(0);
const ALL: ScanLimit = ScanLimit { entries: usize::MAX, bytes: usize::MAX };

/// Holds `place` to all of it.
pub async fn every_promise(place: &dyn Place) -> Result<(), Broken> {
    a_write_is_seen_at_once_and_as_a_whole(place).await?;
    commits_have_an_order(place).await?;
    what_is_durable_survives_a_kill(place).await?;
    a_new_opening_stops_the_old_one(place).await?;
    scans_keep_to_range_order_and_limit(place).await?;
    large_values_and_many_keys_come_back(place).await?;
    shards_are_apart(place).await?;
    a_closed_shard_keeps_everything_and_refuses_more(place).await
}

fn kept(promise: bool, words: &str) -> Result<(), Broken> {
    if promise { Ok(()) } else { Err(words.into()) }
}

fn key(test: &str, n: usize) -> Bytes {
    Bytes::from([test.as_bytes(), &(n as u64).to_be_bytes()].concat())
}

fn put(key: Bytes, value: impl AsRef<[u8]>) -> Write {
    Write::Put(key, Bytes::copy_from_slice(value.as_ref()))
}

async fn keys_from(shard: &dyn Shard, test: &str) -> Result<Vec<Bytes>, EngineError> {
    let range = key(test, 0)..key(test, usize::MAX);
    Ok(shard.scan(range, ALL).await?.into_iter().map(|(key, _)| key).collect())
}

async fn a_write_is_seen_at_once_and_as_a_whole(place: &dyn Place) -> Result<(), Broken> {
    let shard = place.start().await?.open(SHARD).await?;
    let (a, b) = (key("a", 1), key("a", 2));
    kept(shard.get(&a).await?.is_none(), "a key that was never written has no value")?;
    shard.write(vec![put(a.clone(), "1"), put(b.clone(), "1"), put(b.clone(), "2")]).await?;
    kept(shard.get(&a).await?.as_deref() == Some(b"1"), "a write is seen at once")?;
    kept(shard.get(&b).await?.as_deref() == Some(b"2"), "the later change of one write wins")?;
    shard.write(vec![Write::Delete(a.clone()), put(b.clone(), "")]).await?;
    kept(shard.get(&a).await?.is_none(), "a deleted key has no value")?;
    kept(shard.get(&b).await?.as_deref() == Some(b""), "an empty value is a value")?;
    kept(keys_from(shard.as_ref(), "a").await? == [b], "a scan does not show deleted keys")
}

async fn commits_have_an_order(place: &dyn Place) -> Result<(), Broken> {
    let shard = place.start().await?.open(SHARD).await?;
    let mut commits = Vec::new();
    for n in 0..20 {
        commits.push(shard.write(vec![put(key("b", 0), [n])]).await?);
    }
    kept(commits.is_sorted_by(|x, y| x < y), "commits ascend")?;
    kept(shard.get(&key("b", 0)).await?.as_deref() == Some(&[19]), "the last write wins")?;
    if let Some(last) = commits.last() {
        shard.durable(*last).await?;
    }
    for commit in commits {
        shard.durable(commit).await?;
    }
    Ok(())
}

async fn what_is_durable_survives_a_kill(place: &dyn Place) -> Result<(), Broken> {
    for round in 0..3 {
        let engine = place.start().await?;
        let shard = engine.open(SHARD).await?;
        let found = keys_from(shard.as_ref(), "c").await?;
        let expected: Vec<_> = (0..round * 10).map(|n| key("c", n)).collect();
        kept(found == expected, "a durable commit and all before it are there after a kill")?;
        let mut last = None;
        for n in round * 10..(round + 1) * 10 {
            last = Some(shard.write(vec![put(key("c", n), "x")]).await?);
        }
        if let Some(last) = last {
            shard.durable(last).await?;
        }
    }
    Ok(())
}

async fn a_new_opening_stops_the_old_one(place: &dyn Place) -> Result<(), Broken> {
    let first = place.start().await?;
    let old = first.open(SHARD).await?;
    let commit = old.write(vec![put(key("d", 1), "old")]).await?;
    old.durable(commit).await?;
    let second = if place.shared() { place.start().await? } else { Arc::clone(&first) };
    if !place.shared() {
        kept(place.start().await.is_err(), "a second engine is refused while the first is there")?;
    }
    let new = second.open(SHARD).await?;
    let commit = new.write(vec![put(key("d", 1), "new")]).await?;
    new.durable(commit).await?;
    let late = match old.write(vec![put(key("d", 1), "late"), put(key("d", 2), "late")]).await {
        Ok(commit) => old.durable(commit).await,
        Err(error) => Err(error),
    };
    kept(late.is_err(), "nothing of a fenced opening becomes durable")?;
    if place.shared() {
        kept(matches!(late, Err(EngineError::Fenced(SHARD))), "a fenced opening is told so")?;
    }
    kept(new.get(&key("d", 1)).await?.as_deref() == Some(b"new"), "the new opening's value stays")?;
    drop((old, new, first, second));
    let again = place.start().await?.open(SHARD).await?;
    kept(again.get(&key("d", 1)).await?.as_deref() == Some(b"new"), "and stays after a kill")?;
    kept(again.get(&key("d", 2)).await?.is_none(), "a fenced write leaves nothing")
}

async fn scans_keep_to_range_order_and_limit(place: &dyn Place) -> Result<(), Broken> {
    let shard = place.start().await?.open(SHARD).await?;
    let some: Vec<_> = [0, 1, 2, 255, 256, 65_536].map(|n| key("e", n)).into();
    for written in [3, 0, 5, 1, 4, 2] {
        if let Some(key) = some.get(written) {
            shard.write(vec![put(key.clone(), vec![7; 100])]).await?;
        }
    }
    kept(keys_from(shard.as_ref(), "e").await? == some, "a scan ascends")?;
    let count = async |from: usize, to: usize, entries: usize, bytes: usize| {
        let range = key("e", from)..key("e", to);
        shard.scan(range, ScanLimit { entries, bytes }).await.map(|found| found.len())
    };
    kept(count(1, 256, 99, 9999).await? == 3, "a range ends before its end")?;
    kept(count(3, 255, 99, 9999).await? == 0, "an empty range is empty")?;
    kept(count(256, 1, 99, 9999).await? == 0, "an inverted range is empty")?;
    kept(count(0, 99_999, 2, 9999).await? == 2, "a scan keeps to its limit of entries")?;
    kept(count(0, 99_999, 99, 250).await? == 2, "a scan keeps to its limit of bytes")?;
    kept(count(0, 99_999, 99, 1).await? == 1, "a scan returns at least one entry")
}

async fn large_values_and_many_keys_come_back(place: &dyn Place) -> Result<(), Broken> {
    const LARGE: usize = 24;
    const MANY: usize = 5000;
    let engine = place.start().await?;
    let shard = engine.open(SHARD).await?;
    let value = |n: usize| {
        let bytes = (0..1024 * 1024_usize).map(|i| (i.wrapping_mul(31) ^ (i >> 7) ^ n) as u8);
        Bytes::from(bytes.collect::<Vec<_>>())
    };
    for n in 0..LARGE {
        shard.write(vec![Write::Put(key("f", n), value(n))]).await?;
    }
    let many = (0..MANY).map(|n| put(key("g", n), n.to_be_bytes())).collect();
    let last = shard.write(many).await?;
    shard.durable(last).await?;
    for reopened in [false, true] {
        let shard = if reopened { engine.open(SHARD).await? } else { Arc::clone(&shard) };
        for n in 0..LARGE {
            kept(shard.get(&key("f", n)).await? == Some(value(n)), "a large value is unchanged")?;
        }
        let found = keys_from(shard.as_ref(), "g").await?;
        kept(found.len() == MANY && found.is_sorted(), "many keys are all there, in order")?;
    }
    Ok(())
}

async fn shards_are_apart(place: &dyn Place) -> Result<(), Broken> {
    let engine = place.start().await?;
    kept(engine.shards() >= 2, "the contract needs a place with two shards")?;
    let (a, b) = (engine.open(SHARD).await?, engine.open(ShardId(1)).await?);
    let commit = a.write(vec![put(key("h", 1), "a")]).await?;
    a.durable(commit).await?;
    kept(b.get(&key("h", 1)).await?.is_none(), "a shard does not see another's keys")?;
    let none = engine.open(ShardId(engine.shards())).await;
    kept(none.is_err(), "a shard that does not exist cannot be opened")
}

async fn a_closed_shard_keeps_everything_and_refuses_more(place: &dyn Place) -> Result<(), Broken> {
    let engine = place.start().await?;
    let shard = engine.open(SHARD).await?;
    shard.write(vec![put(key("i", 1), "x")]).await?;
    shard.close().await?;
    let late = shard.write(vec![put(key("i", 2), "x")]).await;
    kept(matches!(late, Err(EngineError::Closed)), "a closed shard says so")?;
    drop((shard, engine));
    let shard = place.start().await?.open(SHARD).await?;
    kept(keys_from(shard.as_ref(), "i").await? == [key("i", 1)], "a close makes all durable")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Settings, Sharing, memory::MemoryEngine, open, slate::SlateEngine};

    async fn connect(url: &str, settings: &Settings) -> Result<Arc<dyn Engine>, EngineError> {
        open(url, settings, Sharing::Alone).await.map(|(engine, _)| engine)
    }

    #[async_trait]
    impl Place for MemoryEngine {
        async fn start(&self) -> Result<Arc<dyn Engine>, EngineError> {
            Ok(Arc::new(self.clone()))
        }
        fn shared(&self) -> bool {
            true
        }
    }

    #[tokio::test]
    async fn memory_keeps_every_promise() {
        every_promise(&MemoryEngine::new(2)).await.unwrap();
    }

    struct Folder(tempfile::TempDir);

    fn two_shards() -> Settings {
        Settings { shards: 2, ..Settings::default() }
    }

    #[async_trait]
    impl Place for Folder {
        async fn start(&self) -> Result<Arc<dyn Engine>, EngineError> {
            connect(&format!("file://{}", self.0.path().display()), &two_shards()).await
        }
        fn shared(&self) -> bool {
            false
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_folder_keeps_every_promise() {
        every_promise(&Folder(tempfile::tempdir().unwrap())).await.unwrap();
    }

    /// A bucket without a server: fencing between two engines, which a folder's lock does not let happen.
    struct Objects(Arc<slatedb::object_store::memory::InMemory>);

    #[async_trait]
    impl Place for Objects {
        async fn start(&self) -> Result<Arc<dyn Engine>, EngineError> {
            let objects = Arc::clone(&self.0);
            let settings = Settings { flush_ms: 5, ..two_shards() };
            Ok(Arc::new(SlateEngine::objects(objects, &settings).await?))
        }
        fn shared(&self) -> bool {
            true
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_shared_object_store_keeps_every_promise() {
        every_promise(&Objects(Arc::default())).await.unwrap();
    }

    #[tokio::test]
    async fn another_number_of_shards_is_refused() {
        let folder = Folder(tempfile::tempdir().unwrap());
        drop(folder.start().await.unwrap());
        let url = format!("file://{}", folder.0.path().display());
        let three = Settings { shards: 3, ..Settings::default() };
        let refused = connect(&url, &three).await.err().unwrap().to_string();
        assert!(refused.contains("was made with 2 shards"), "{refused}");
        assert_eq!(connect(&url, &Settings::default()).await.unwrap().shards(), 2);
    }

    #[tokio::test]
    async fn a_folder_is_one_clusters_or_one_single_nodes() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("file://{}", folder.path().display());
        let settings = Settings::default();
        let first = open(&url, &settings, Sharing::Cluster).await.unwrap();
        let second = open(&url, &settings, Sharing::Cluster).await.unwrap();
        assert_eq!(second.0.shards(), 8, "new data of a cluster");
        let refused = connect(&url, &settings).await.err().unwrap().to_string();
        assert!(refused.contains("another tributary-cloud serves it"), "{refused}");
        drop((first, second));
        let alone = connect(&url, &settings).await.unwrap();
        let refused = open(&url, &settings, Sharing::Cluster).await.err().unwrap().to_string();
        assert!(refused.contains("without --node"), "{refused}");
        drop(alone);
    }

    #[tokio::test]
    async fn a_place_that_cannot_be_used_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "x").unwrap();
        for url in
            ["file://relative", "ftp://x", "s3:///prefix", &format!("file://{}/x", file.display())]
        {
            let refused = connect(url, &Settings::default()).await.err().unwrap().to_string();
            assert!(refused.contains(url), "{refused}");
        }
    }
}
