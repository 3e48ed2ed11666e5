//! The streams there are: made, changed, deleted. Stored in shard 0; which shard a partition lives in is stored, not hashed.
//!
//! One change at a time; readers see it when it is durable. Change here: what a stream may be. Not here: their records.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, PoisonError, RwLock},
};

use super::{
    LogError, PartitionId, Stream, StreamConfig, StreamId,
    inner::Inner,
    keys,
    owner::Shared,
    partition::Partition,
    stored::{self, StoredStream, Tail},
};
use crate::engine::{ScanLimit, Shard, ShardId, Write};

/// A stream's `max_batch_bytes` may be at most this: a batch is in memory as a whole, several times.
const MAX_BATCH_BYTES: usize = 16 * 1024 * 1024;

/// The shard of the metadata.
pub(super) const METADATA: ShardId = ShardId(0);

#[derive(Default)]
pub(super) struct Catalog {
    names: RwLock<Names>,
    changing: tokio::sync::Mutex<Changing>,
}

#[derive(Default)]
struct Names {
    by_name: BTreeMap<String, StreamId>,
    by_id: HashMap<StreamId, Arc<Entry>>,
    partitions: usize,
}

/// What only the one who changes needs.
#[derive(Default)]
struct Changing {
    next_id: u32,
    /// A change failed half-way: it may be in the store.
    doubtful: bool,
}

/// A stream and its partitions.
pub(super) struct Entry {
    pub stream: Arc<Stream>,
    pub partitions: Vec<Arc<Partition>>,
}

/// What shard 0 says.
pub(super) struct Stored {
    next_id: u32,
    streams: Vec<StoredStream>,
}

impl Entry {
    fn stored(&self) -> StoredStream {
        StoredStream {
            stream: (*self.stream).clone(),
            shards: self.partitions.iter().map(|partition| partition.shard.0).collect(),
            deleted: false,
        }
    }
}

impl Catalog {
    pub(super) fn by_name(&self, name: &str) -> Option<Arc<Entry>> {
        let names = self.names.read().unwrap_or_else(PoisonError::into_inner);
        names.by_name.get(name).and_then(|id| names.by_id.get(id)).cloned()
    }

    pub(super) fn by_id(&self, id: StreamId) -> Option<Arc<Entry>> {
        self.names.read().unwrap_or_else(PoisonError::into_inner).by_id.get(&id).cloned()
    }

    /// By name.
    pub(super) fn all(&self) -> Vec<Arc<Entry>> {
        let names = self.names.read().unwrap_or_else(PoisonError::into_inner);
        names.by_name.values().filter_map(|id| names.by_id.get(id)).cloned().collect()
    }

    pub(super) async fn read(shard: &dyn Shard) -> Result<Stored, LogError> {
        let next_id = shard.get(&keys::next_stream()).await?;
        let next_id = next_id.map_or(Ok(1), |bytes| stored::decode_counter(&bytes))?;
        let mut range = keys::streams();
        let mut streams = Vec::new();
        loop {
            let limit = ScanLimit { entries: 1000, bytes: 1024 * 1024 };
            let page = shard.scan(range.clone(), limit).await?;
            let Some((last, _)) = page.last() else { break };
            range.start = [last, &b"\0"[..]].concat().into();
            for (_, value) in &page {
                streams.push(StoredStream::decode(value)?);
            }
        }
        Ok(Stored { next_id, streams })
    }

    /// Takes over what is stored; returns the deleted streams whose keys are still there.
    pub(super) fn fill(
        &self,
        stored: Stored,
        tails: &HashMap<PartitionId, Tail>,
        shared: &Shared,
    ) -> Vec<StoredStream> {
        if let Ok(mut changing) = self.changing.try_lock() {
            changing.next_id = stored.next_id;
        }
        let (deleted, live): (Vec<_>, Vec<_>) =
            stored.streams.into_iter().partition(|stream| stream.deleted);
        for stream in live {
            self.put(stream, tails, shared);
        }
        deleted
    }

    /// Adds or replaces a stream; partitions that were there stay.
    fn put(
        &self,
        StoredStream { stream, shards, .. }: StoredStream,
        tails: &HashMap<PartitionId, Tail>,
        shared: &Shared,
    ) -> Arc<Stream> {
        let mut all = shared.partitions.write().unwrap_or_else(PoisonError::into_inner);
        let partitions: Vec<_> = (0_u32..)
            .zip(shards)
            .map(|(index, shard)| {
                let id = PartitionId::new(stream.id, index);
                let tail = tails.get(&id).copied().unwrap_or_default();
                let new = || Partition::new(id, ShardId(shard), &tail);
                Arc::clone(all.entry(id).or_insert_with(new))
            })
            .collect();
        let mut names = self.names.write().unwrap_or_else(PoisonError::into_inner);
        names.partitions = all.len();
        let stream = Arc::new(stream);
        names.by_name.insert(stream.name.clone(), stream.id);
        let entry = Entry { stream: Arc::clone(&stream), partitions };
        names.by_id.insert(stream.id, Arc::new(entry));
        stream
    }

    fn remove(&self, entry: &Entry, shared: &Shared) {
        let mut all = shared.partitions.write().unwrap_or_else(PoisonError::into_inner);
        let mut names = self.names.write().unwrap_or_else(PoisonError::into_inner);
        names.by_name.remove(&entry.stream.name);
        names.by_id.remove(&entry.stream.id);
        for partition in &entry.partitions {
            all.remove(&partition.id);
            partition.bury();
        }
        names.partitions = all.len();
    }

    /// Streams and partitions.
    fn count(&self) -> (usize, usize) {
        let names = self.names.read().unwrap_or_else(PoisonError::into_inner);
        (names.by_id.len(), names.partitions)
    }
}

impl Inner {
    pub(super) async fn create_stream(
        &self,
        name: &str,
        partitions: Option<u32>,
        config: StreamConfig,
    ) -> Result<Arc<Stream>, LogError> {
        check_name(name)?;
        check_config(&config)?;
        let mut changing = self.start_change().await?;
        if self.catalog.by_name(name).is_some() {
            return Err(LogError::StreamExists(name.into()));
        }
        let shards = u32::from(self.engine.shards());
        let default = match self.settings.default_partitions {
            0 => shards,
            some => some,
        };
        let partitions = partitions.unwrap_or(default);
        self.check_room(1, partitions)?;
        let id = StreamId(changing.next_id);
        // Streams of few partitions start on different shards.
        let shard_of = |index| ((u64::from(id.0) + u64::from(index)) % u64::from(shards)) as u16;
        let stored = StoredStream {
            stream: Stream {
                id,
                name: name.into(),
                uuid: uuid::Uuid::new_v4(),
                partitions,
                config,
            },
            shards: (0..partitions).map(shard_of).collect(),
            deleted: false,
        };
        // An id is never used twice, whatever becomes of this attempt.
        changing.next_id += 1;
        let counter = Write::Put(keys::next_stream(), stored::encode_counter(changing.next_id));
        self.store(&mut changing, stored, vec![counter]).await
    }

    pub(super) async fn ensure_stream(&self, name: &str) -> Result<Arc<Stream>, LogError> {
        if let Some(entry) = self.catalog.by_name(name) {
            return Ok(Arc::clone(&entry.stream));
        }
        match self.create_stream(name, None, StreamConfig::default()).await {
            Err(LogError::StreamExists(_)) => self.existing(name).map(|e| Arc::clone(&e.stream)),
            other => other,
        }
    }

    pub(super) async fn grow_stream(
        &self,
        name: &str,
        partitions: u32,
    ) -> Result<Arc<Stream>, LogError> {
        let mut changing = self.start_change().await?;
        let mut stored = self.existing(name)?.stored();
        let have = stored.stream.partitions;
        let Some(more) = partitions.checked_sub(have) else {
            let text = format!("stream `{name}` has {have} partitions; it cannot shrink");
            return Err(LogError::BadConfig(text));
        };
        self.check_room(0, more.max(1))?;
        let shards = u32::from(self.engine.shards());
        let shard_of =
            |index| ((u64::from(stored.stream.id.0) + u64::from(index)) % u64::from(shards)) as u16;
        let new: Vec<_> = (have..partitions).map(shard_of).collect();
        stored.shards.extend(new);
        stored.stream.partitions = partitions;
        self.store(&mut changing, stored, Vec::new()).await
    }

    pub(super) async fn configure_stream(
        &self,
        name: &str,
        config: StreamConfig,
    ) -> Result<Arc<Stream>, LogError> {
        check_config(&config)?;
        let mut changing = self.start_change().await?;
        let mut stored = self.existing(name)?.stored();
        stored.stream.config = config;
        self.store(&mut changing, stored, Vec::new()).await
    }

    pub(super) async fn delete_stream(self: &Arc<Self>, name: &str) -> Result<(), LogError> {
        let mut changing = self.start_change().await?;
        let entry = self.existing(name)?;
        let stored = StoredStream { deleted: true, ..entry.stored() };
        let write = Write::Put(keys::stream(stored.stream.id), stored.encode()?);
        changing.doubtful = true;
        self.write(METADATA, vec![write]).await?;
        changing.doubtful = false;
        self.catalog.remove(&entry, &self.shared);
        self.remove_in_background(stored);
        Ok(())
    }

    fn existing(&self, name: &str) -> Result<Arc<Entry>, LogError> {
        self.catalog.by_name(name).ok_or_else(|| LogError::StreamNotFound(name.into()))
    }

    /// Waits for earlier changes; if one failed, learns what the store has of it.
    async fn start_change(&self) -> Result<tokio::sync::MutexGuard<'_, Changing>, LogError> {
        let mut changing = self.catalog.changing.lock().await;
        if changing.doubtful {
            let shard = self.handle(METADATA)?.slot.shard()?;
            let stored = Catalog::read(shard.as_ref()).await?;
            changing.next_id = changing.next_id.max(stored.next_id);
            for stream in stored.streams {
                match self.catalog.by_id(stream.stream.id) {
                    Some(entry) if stream.deleted => self.catalog.remove(&entry, &self.shared),
                    None if stream.deleted => {}
                    _ => drop(self.catalog.put(stream, &HashMap::new(), &self.shared)),
                }
            }
            changing.doubtful = false;
        }
        Ok(changing)
    }

    async fn store(
        &self,
        changing: &mut Changing,
        stored: StoredStream,
        mut writes: Vec<Write>,
    ) -> Result<Arc<Stream>, LogError> {
        writes.push(Write::Put(keys::stream(stored.stream.id), stored.encode()?));
        changing.doubtful = true;
        self.write(METADATA, writes).await?;
        changing.doubtful = false;
        Ok(self.catalog.put(stored, &HashMap::new(), &self.shared))
    }

    fn check_room(&self, more_streams: usize, more_partitions: u32) -> Result<(), LogError> {
        let (streams, partitions) = self.catalog.count();
        let (max_streams, max_partitions) =
            (self.settings.max_streams as usize, self.settings.max_partitions as usize);
        let refuse = |text: String| Err(LogError::BadConfig(text));
        if more_partitions == 0 {
            return refuse("a stream has at least one partition".into());
        }
        if streams + more_streams > max_streams {
            return refuse(format!("there are {streams} streams; `max_streams` is {max_streams}"));
        }
        if partitions + more_partitions as usize > max_partitions {
            return refuse(format!(
                "there are {partitions} partitions; `max_partitions` is {max_partitions}"
            ));
        }
        Ok(())
    }
}

fn check_name(name: &str) -> Result<(), LogError> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if name.is_empty()
        || name.len() > 249
        || name == "."
        || name == ".."
        || !name.bytes().all(legal)
    {
        return Err(LogError::BadStreamName(name.chars().take(249).collect()));
    }
    Ok(())
}

/// What is not enforced is refused, not stored.
fn check_config(config: &StreamConfig) -> Result<(), LogError> {
    let refuse = |text: String| Err(LogError::BadConfig(text));
    if config.compact {
        return refuse("compaction is not available yet".into());
    }
    for (name, value) in
        [("retention_ms", config.retention_ms), ("retention_bytes", config.retention_bytes)]
    {
        if value.is_some_and(|value| value < -1) {
            return refuse(format!("`{name}` is -1 or more"));
        }
    }
    if config.max_batch_bytes.is_some_and(|bytes| bytes == 0 || bytes > MAX_BATCH_BYTES) {
        return refuse(format!("`max_batch_bytes` is 1 to {MAX_BATCH_BYTES}"));
    }
    Ok(())
}
