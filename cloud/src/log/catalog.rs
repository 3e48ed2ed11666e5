//! The streams there are: made, changed, deleted. Stored in shard 0, whose owner is the only one that changes them; other nodes
//! keep a copy. Which shard a partition lives in is stored, not hashed.
//!
//! One change at a time; readers see it when it is durable. Change here: what a stream may be. Not here: their records, the copy
//! of all of it (`copy`).

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, PoisonError, RwLock},
};

use tokio::sync::{MutexGuard, watch};

use super::{
    LogError, Opening, Stream, StreamConfig, StreamId,
    inner::Inner,
    keys,
    owner::Shared,
    partition::Partition,
    stored::{self, StoredStream},
};
use crate::engine::{ShardId, Write};

/// A stream's `max_batch_bytes` may be at most this: a batch is in memory as a whole, several times.
const MAX_BATCH_BYTES: usize = 16 * 1024 * 1024;

/// Streams with such names hold messages of queues, which have no keys.
const QUEUES: &str = "amqp.";

/// The shard of the metadata.
pub(super) const METADATA: ShardId = ShardId(0);

pub(super) struct Catalog {
    names: RwLock<Names>,
    changing: tokio::sync::Mutex<Changing>,
    /// Of the copy that readers see; `None`: there is none yet.
    pub version: watch::Sender<Option<u64>>,
}

#[derive(Default)]
pub(super) struct Names {
    by_name: BTreeMap<String, StreamId>,
    by_id: HashMap<StreamId, Arc<Entry>>,
    /// Streams with a smaller id that are not there were deleted.
    pub next_id: u32,
}

/// What only the one who changes needs.
#[derive(Default)]
pub(super) struct Changing {
    /// The opening of shard 0 whose streams these are. Another, or none after a change that failed half-way: the store is asked
    /// before the next change.
    pub opening: Option<Opening>,
    next_id: u32,
    version: u64,
}

/// A stream and its partitions.
pub(super) struct Entry {
    pub stream: Arc<Stream>,
    pub partitions: Vec<Arc<Partition>>,
}

impl Entry {
    pub(super) fn stored(&self) -> StoredStream {
        StoredStream {
            stream: (*self.stream).clone(),
            shards: self.partitions.iter().map(|partition| partition.shard.0).collect(),
            deleted: false,
        }
    }
}

impl Default for Catalog {
    fn default() -> Self {
        Self {
            names: RwLock::default(),
            changing: tokio::sync::Mutex::default(),
            version: watch::Sender::new(None),
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

    /// Of the copy that readers see.
    pub(super) fn next_id(&self) -> u32 {
        self.names.read().unwrap_or_else(PoisonError::into_inner).next_id
    }

    /// Whether the stream was there once and is no more.
    pub(super) fn is_deleted(&self, id: StreamId) -> bool {
        let names = self.names.read().unwrap_or_else(PoisonError::into_inner);
        id.0 < names.next_id && !names.by_id.contains_key(&id)
    }

    /// Makes a stream, or what is new of it, visible.
    pub(super) fn show(&self, entry: Entry) -> Arc<Stream> {
        let mut names = self.names.write().unwrap_or_else(PoisonError::into_inner);
        let stream = Arc::clone(&entry.stream);
        names.by_name.insert(stream.name.clone(), stream.id);
        names.by_id.insert(stream.id, Arc::new(entry));
        stream
    }

    /// Only when all streams below it are shown.
    pub(super) fn set_next_id(&self, next_id: u32) {
        let mut names = self.names.write().unwrap_or_else(PoisonError::into_inner);
        names.next_id = names.next_id.max(next_id);
    }

    pub(super) fn hide(&self, entry: &Entry, shared: &Shared) {
        let mut all = shared.partitions.write().unwrap_or_else(PoisonError::into_inner);
        let mut names = self.names.write().unwrap_or_else(PoisonError::into_inner);
        // Another stream may have the name by now.
        if names.by_name.get(&entry.stream.name) == Some(&entry.stream.id) {
            names.by_name.remove(&entry.stream.name);
        }
        names.by_id.remove(&entry.stream.id);
        for partition in &entry.partitions {
            all.remove(&partition.id);
            partition.bury();
        }
    }

    pub(super) async fn lock(&self) -> MutexGuard<'_, Changing> {
        self.changing.lock().await
    }
}

impl Changing {
    /// What the store says, read in `opening`.
    pub(super) fn settle(&mut self, opening: Opening, next_id: u32, version: u64) {
        *self = Self { opening: Some(opening), next_id, version };
    }
}

impl Inner {
    pub(super) async fn create_stream(
        self: &Arc<Self>,
        name: &str,
        partitions: Option<u32>,
        config: StreamConfig,
    ) -> Result<Arc<Stream>, LogError> {
        check_name(name)?;
        check_config(name, &config)?;
        let (mut changing, opening) = self.start_change().await?;
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
        let stored = StoredStream {
            stream: Stream {
                id,
                name: name.into(),
                uuid: uuid::Uuid::new_v4(),
                partitions,
                config,
            },
            shards: (0..partitions).map(|index| shard_of(id, index, shards)).collect(),
            deleted: false,
        };
        // An id is never used twice, whatever becomes of this attempt.
        changing.next_id += 1;
        self.store(&mut changing, opening, stored).await
    }

    pub(super) async fn grow_stream(
        self: &Arc<Self>,
        name: &str,
        partitions: u32,
    ) -> Result<Arc<Stream>, LogError> {
        let (mut changing, opening) = self.start_change().await?;
        let mut stored = self.existing(name)?.stored();
        let have = stored.stream.partitions;
        let Some(more) = partitions.checked_sub(have) else {
            let text = format!("stream `{name}` has {have} partitions; it cannot shrink");
            return Err(LogError::BadConfig(text));
        };
        self.check_room(0, more.max(1))?;
        let shards = u32::from(self.engine.shards());
        let id = stored.stream.id;
        stored.shards.extend((have..partitions).map(|index| shard_of(id, index, shards)));
        stored.stream.partitions = partitions;
        self.store(&mut changing, opening, stored).await
    }

    pub(super) async fn configure_stream(
        self: &Arc<Self>,
        name: &str,
        config: StreamConfig,
    ) -> Result<Arc<Stream>, LogError> {
        check_config(name, &config)?;
        let (mut changing, opening) = self.start_change().await?;
        let mut stored = self.existing(name)?.stored();
        stored.stream.config = config;
        self.store(&mut changing, opening, stored).await
    }

    pub(super) async fn delete_stream(self: &Arc<Self>, name: &str) -> Result<(), LogError> {
        let (mut changing, opening) = self.start_change().await?;
        let entry = self.existing(name)?;
        let gone = Write::Delete(keys::stream(entry.stream.id));
        self.write_change(&mut changing, opening, gone).await?;
        self.remove_stream(&entry);
        self.changed(&changing);
        Ok(())
    }

    pub(super) fn existing(&self, name: &str) -> Result<Arc<Entry>, LogError> {
        self.catalog.by_name(name).ok_or_else(|| LogError::StreamNotFound(name.into()))
    }

    /// Waits for earlier changes; learns what the store has, if it is not known.
    async fn start_change(
        self: &Arc<Self>,
    ) -> Result<(MutexGuard<'_, Changing>, Opening), LogError> {
        let mut changing = self.catalog.lock().await;
        let (_, opening) = self.opened(METADATA)?;
        if changing.opening != Some(opening) {
            self.read_catalog(&mut changing).await?;
        }
        // Opened anew meanwhile: the write is refused.
        Ok((changing, opening))
    }

    async fn store(
        self: &Arc<Self>,
        changing: &mut Changing,
        opening: Opening,
        stored: StoredStream,
    ) -> Result<Arc<Stream>, LogError> {
        let write = Write::Put(keys::stream(stored.stream.id), stored.encode()?);
        self.write_change(changing, opening, write).await?;
        let stream = self.put(stored).await;
        self.changed(changing);
        Ok(stream)
    }

    /// One change, durably, and with it the number of this version.
    async fn write_change(
        &self,
        changing: &mut Changing,
        opening: Opening,
        write: Write,
    ) -> Result<(), LogError> {
        let version = changing.version + 1;
        let counter = stored::encode_counter(changing.next_id, version);
        // In doubt until it is known what became of it.
        changing.opening = None;
        let writes = vec![write, Write::Put(keys::next_stream(), counter)];
        self.write(METADATA, opening, writes).await?;
        changing.opening = Some(opening);
        changing.version = version;
        Ok(())
    }

    /// Who keeps a copy is told.
    fn changed(&self, changing: &Changing) {
        self.catalog.set_next_id(changing.next_id);
        self.catalog.version.send_replace(Some(changing.version));
    }

    fn check_room(&self, more_streams: usize, more_partitions: u32) -> Result<(), LogError> {
        let all = self.catalog.all();
        let streams = all.len();
        let partitions: usize = all.iter().map(|entry| entry.partitions.len()).sum();
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

/// Streams of few partitions start on different shards.
fn shard_of(stream: StreamId, index: u32, shards: u32) -> u16 {
    ((u64::from(stream.0) + u64::from(index)) % u64::from(shards.max(1))) as u16
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
fn check_config(name: &str, config: &StreamConfig) -> Result<(), LogError> {
    let refuse = |text: String| Err(LogError::BadConfig(text));
    if config.compact && name.starts_with(QUEUES) {
        return refuse(format!("`{name}` holds what queues wait for, and is not compacted"));
    }
    for (name, value) in [
        ("min_compaction_lag_ms", config.min_compaction_lag_ms),
        ("delete_retention_ms", config.delete_retention_ms),
    ] {
        if value.is_some_and(i64::is_negative) {
            return refuse(format!("`{name}` is 0 or more"));
        }
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
