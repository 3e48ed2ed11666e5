//! The list of all streams as a whole: read from shard 0 by its owner, copied by every other node.
//!
//! Versions are counted in shard 0 with each change, so a copy never goes back, whoever it comes from. A partition is shown only
//! when its ends are known, if its shard is here. Not here: single changes (`catalog`), the way between nodes (`remote`).

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tracing::info;

use super::{
    LogError, PartitionId, Stream, StreamChange, StreamConfig, StreamId,
    catalog::{Changing, Entry, METADATA},
    inner::Inner,
    keys,
    partition::Partition,
    stored::{self, StoredStream},
};
use crate::engine::{ScanLimit, Shard, ShardId, Write};

/// A change made elsewhere is heard of within this.
const HEARD_WITHIN: Duration = Duration::from_secs(10);
/// For a stream that is needed now shard 0 is waited for that long.
const OWNER_WITHIN: Duration = Duration::from_secs(15);
/// Between two attempts to reach the owner of shard 0.
const AGAIN_AFTER: Duration = Duration::from_millis(100);

/// All streams at a moment, as the owner of shard 0 has them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamList {
    /// Rises with each change.
    pub version: u64,
    next_id: u32,
    streams: Vec<StoredStream>,
}

impl Inner {
    pub(super) fn stream_list(&self) -> Option<StreamList> {
        // The version first: what is read after it is at least of it, and what is newer comes again under its own.
        let version = (*self.catalog.version.borrow())?;
        let next_id = self.catalog.next_id();
        let streams = self.catalog.all().iter().map(|entry| entry.stored()).collect();
        Some(StreamList { version, next_id, streams })
    }

    pub(super) async fn learn(self: &Arc<Self>, list: StreamList) {
        // Not beside a change of our own.
        let _changing = self.catalog.lock().await;
        if self.catalog.version.borrow().is_none_or(|known| known < list.version) {
            self.adopt(list).await;
        }
    }

    /// After shard 0 was opened: its streams.
    pub(super) async fn reload(self: &Arc<Self>) -> Result<(), LogError> {
        let mut changing = self.catalog.lock().await;
        self.read_catalog(&mut changing).await
    }

    pub(super) async fn read_catalog(
        self: &Arc<Self>,
        changing: &mut Changing,
    ) -> Result<(), LogError> {
        let (shard, opening) = self.handle(METADATA)?.slot.open()?;
        let (list, deleted) = read(shard.as_ref()).await?;
        self.handle(METADATA)?.slot.landed(opening).await?;
        changing.settle(opening, list.next_id, list.version);
        self.adopt(list).await;
        // An earlier release left these until all their keys were gone.
        if !deleted.is_empty() {
            let writes = deleted.into_iter().map(|id| Write::Delete(keys::stream(id))).collect();
            self.write(METADATA, opening, writes).await?;
        }
        Ok(())
    }

    async fn adopt(self: &Arc<Self>, list: StreamList) {
        let StreamList { version, next_id, streams } = list;
        let there: HashSet<StreamId> = streams.iter().map(|stored| stored.stream.id).collect();
        for entry in self.catalog.all() {
            if !there.contains(&entry.stream.id) {
                self.remove_stream(&entry);
            }
        }
        let changed = streams.into_iter().filter(|stored| {
            let known = self.catalog.by_id(stored.stream.id);
            known.is_none_or(|entry| entry.stored() != *stored)
        });
        self.put_all(changed.collect()).await;
        self.catalog.set_next_id(next_id);
        self.catalog.version.send_if_modified(|known| {
            let newer = known.is_none_or(|known| known < version);
            if newer {
                *known = Some(version);
            }
            newer
        });
        self.sweep_unclaimed();
    }

    /// Adds or changes a stream; partitions that were there stay.
    pub(super) async fn put(self: &Arc<Self>, stored: StoredStream) -> Arc<Stream> {
        let stream = Arc::new(stored.stream.clone());
        self.put_all(vec![stored]).await.pop().unwrap_or(stream)
    }

    async fn put_all(self: &Arc<Self>, streams: Vec<StoredStream>) -> Vec<Arc<Stream>> {
        let mut unknown: BTreeMap<ShardId, Vec<Arc<Partition>>> = BTreeMap::new();
        let entries: Vec<Entry> = {
            let mut all = self.shared.partitions.write().unwrap_or_else(PoisonError::into_inner);
            let entries = streams.into_iter().map(|StoredStream { stream, shards, .. }| {
                let partitions = (0_u32..).zip(shards).map(|(index, shard)| {
                    let (id, shard) = (PartitionId::new(stream.id, index), ShardId(shard));
                    let partition = all.entry(id).or_insert_with(|| Partition::new(id, shard));
                    let opened = self.handle(shard).and_then(|handle| handle.slot.open());
                    if opened.is_ok_and(|(_, opening)| !partition.is_known(opening)) {
                        unknown.entry(shard).or_default().push(Arc::clone(partition));
                    }
                    Arc::clone(partition)
                });
                Entry { partitions: partitions.collect(), stream: Arc::new(stream) }
            });
            entries.collect()
        };
        for (shard, partitions) in unknown {
            // If it is not here, or goes: whoever opens it finds them.
            if let Err(error) = self.know(shard, partitions).await {
                tracing::debug!(shard = shard.0, %error, "the ends of new partitions are not here");
            }
        }
        entries.into_iter().map(|entry| self.catalog.show(entry)).collect()
    }

    // ---- changes by a node that does not have shard 0 ----

    /// The stream, made with default settings if it is not there; waits a while for who can make it.
    pub(super) async fn ensure_stream(
        self: &Arc<Self>,
        name: &str,
    ) -> Result<Arc<Stream>, LogError> {
        let config = StreamConfig::default;
        let made = async {
            loop {
                if let Some(entry) = self.catalog.by_name(name) {
                    return Ok(Arc::clone(&entry.stream));
                }
                let change =
                    StreamChange::Create { name: name.into(), partitions: None, config: config() };
                match self.change_streams(change).await {
                    Ok(Some(stream)) => return Ok(stream),
                    // Another was faster; it is seen here, or will be.
                    Ok(None) | Err(LogError::StreamExists(_)) => {
                        if self.catalog.by_name(name).is_some() {
                            continue;
                        }
                    }
                    Err(LogError::NotOwner) if self.remote.is_some() => {}
                    Err(error) => return Err(error),
                }
                tokio::time::sleep(AGAIN_AFTER).await;
            }
        };
        tokio::time::timeout(OWNER_WITHIN, made).await.unwrap_or(Err(LogError::NotOwner))
    }

    /// Here, or by the owner of shard 0, until it is seen here. `None`: deleted.
    pub(super) async fn change_streams(
        self: &Arc<Self>,
        change: StreamChange,
    ) -> Result<Option<Arc<Stream>>, LogError> {
        let Some(remote) = self.remote.as_ref().filter(|_| self.opening(METADATA).is_none()) else {
            return self.apply(change).await;
        };
        let before = self.catalog.by_name(name_of(&change)).map(|entry| entry.stream.id);
        let mut versions = self.catalog.version.subscribe();
        remote.change(change.clone()).await?;
        let seen = async {
            loop {
                versions.borrow_and_update();
                let now = self.catalog.by_name(name_of(&change));
                if is_done(&change, before, now.as_deref()) {
                    return Ok(now.map(|entry| Arc::clone(&entry.stream)));
                }
                versions.changed().await.map_err(|_| LogError::Closed)?;
            }
        };
        if let Ok(seen) = tokio::time::timeout(HEARD_WITHIN, seen).await {
            return seen;
        }
        info!(?change, "a change of the streams was made and is not heard of here yet");
        Err(LogError::NotOwner)
    }

    /// Only here.
    pub(super) async fn apply(
        self: &Arc<Self>,
        change: StreamChange,
    ) -> Result<Option<Arc<Stream>>, LogError> {
        match change {
            StreamChange::Create { name, partitions, config } => {
                self.create_stream(&name, partitions, config).await.map(Some)
            }
            StreamChange::Grow { name, partitions } => {
                self.grow_stream(&name, partitions).await.map(Some)
            }
            StreamChange::Configure { name, config } => {
                self.configure_stream(&name, config).await.map(Some)
            }
            StreamChange::Delete { name } => self.delete_stream(&name).await.map(|()| None),
        }
    }
}

fn name_of(change: &StreamChange) -> &str {
    match change {
        StreamChange::Create { name, .. }
        | StreamChange::Grow { name, .. }
        | StreamChange::Configure { name, .. }
        | StreamChange::Delete { name } => name,
    }
}

/// Whether the copy here shows it.
fn is_done(change: &StreamChange, before: Option<StreamId>, now: Option<&Entry>) -> bool {
    let now = now.map(|entry| &entry.stream);
    match change {
        StreamChange::Create { .. } => now.is_some(),
        StreamChange::Grow { partitions, .. } => now.is_some_and(|s| s.partitions >= *partitions),
        StreamChange::Configure { config, .. } => now.is_some_and(|s| s.config == *config),
        StreamChange::Delete { .. } => now.map(|s| s.id) != before || before.is_none(),
    }
}

/// What shard 0 holds, and streams that are deleted.
async fn read(shard: &dyn Shard) -> Result<(StreamList, Vec<StreamId>), LogError> {
    let counter = shard.get(&keys::next_stream()).await?;
    let (next_id, version) = counter.map_or(Ok((1, 0)), |bytes| stored::decode_counter(&bytes))?;
    let mut range = keys::streams();
    let (mut streams, mut deleted) = (Vec::new(), Vec::new());
    loop {
        let limit = ScanLimit { entries: 1000, bytes: 1024 * 1024 };
        let page = shard.scan(range.clone(), limit).await?;
        let Some((last, _)) = page.last() else { break };
        range.start = [last, &b"\0"[..]].concat().into();
        for (_, value) in &page {
            let stored = StoredStream::decode(value)?;
            if stored.deleted {
                deleted.push(stored.stream.id);
            } else {
                streams.push(stored);
            }
        }
    }
    Ok((StreamList { version, next_id, streams }, deleted))
}
