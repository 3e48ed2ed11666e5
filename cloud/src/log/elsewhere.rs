//! Partitions of shards that are not here: reading them from their owners, and what was heard of them.
//!
//! What an owner says is durable, so it is true for ever; only how much there is more may be old. Marks never fall.
//! Not here: the way there (`remote`), partitions here (`read`).

use std::sync::{Arc, PoisonError};

use tributary_shared::record::Batch;

use super::{
    Far, Heard, Log, LogError, Offset, PartitionId, Remote, StreamChange, StreamList, Watermarks,
    inner::Inner, partition::Partition, read::check_range,
};

/// Copies of what other nodes own.
impl Log {
    /// All streams as known here; `None`: nothing is known yet. At the owner of shard 0 they are what there is.
    pub fn catalog(&self) -> Option<StreamList> {
        self.inner.stream_list()
    }

    /// Waits until more is known of the streams than version `after`, and returns it.
    pub async fn catalog_changed(&self, after: Option<u64>) -> Result<StreamList, LogError> {
        self.inner.newer_list(after).await
    }

    /// Takes over what the owner of shard 0 said; older than what is known: nothing.
    pub async fn learn(&self, list: StreamList) {
        self.inner.learn(list).await;
    }

    /// A change of the streams for another node; only the owner of shard 0 does it, all others answer [`LogError::NotOwner`].
    pub async fn change_here(&self, change: StreamChange) -> Result<(), LogError> {
        self.inner.apply(change).await.map(drop)
    }

    /// Partitions of shards that are not here, each with the end that was last heard of (`None`: nothing yet).
    pub fn elsewhere(&self) -> Vec<(Far, Option<Offset>)> {
        self.inner.elsewhere()
    }

    /// What the owner of a partition said of it: moves the end known here and wakes followers. Of a partition that is here:
    /// nothing.
    pub fn heard(&self, partition: PartitionId, heard: Heard) {
        self.inner.heard(partition, heard);
    }

    /// Whether somebody follows: then the ends of partitions elsewhere are to be heard of.
    pub fn is_followed(&self) -> bool {
        self.inner.shared.followers.has_any()
    }
}

impl Inner {
    pub(super) async fn newer_list(&self, after: Option<u64>) -> Result<StreamList, LogError> {
        let mut versions = self.catalog.version.subscribe();
        loop {
            let newer = versions.wait_for(|version| *version > after);
            tokio::select! {
                newer = newer => drop(newer.map_err(|_| LogError::Closed)?),
                () = self.stop.cancelled() => return Err(LogError::Closed),
            }
            if let Some(list) = self.stream_list() {
                return Ok(list);
            }
        }
    }

    pub(super) async fn read_anywhere(
        &self,
        id: PartitionId,
        from: Offset,
        max_bytes: usize,
    ) -> Result<Vec<Batch>, LogError> {
        let (Err(LogError::NotOwner), Some(remote)) = (self.served(id), self.remote.as_ref())
        else {
            return self.read(id, from, max_bytes).await;
        };
        let partition = self.partition(id)?;
        if partition.is_heard() && from == partition.marks().high {
            return Ok(Vec::new());
        }
        self.read_far(remote.as_ref(), &partition, from, max_bytes).await
    }

    /// From memory, or else what the owner answers now.
    async fn read_far(
        &self,
        remote: &dyn Remote,
        partition: &Partition,
        from: Offset,
        max_bytes: usize,
    ) -> Result<Vec<Batch>, LogError> {
        let marks = partition.marks();
        if partition.is_heard()
            && from >= marks.start
            && let Some(batches) = partition.cached(from, marks.high, max_bytes)
        {
            return Ok(batches);
        }
        let heard = remote.read(&self.far(partition)?, from, max_bytes).await?;
        let batches = heard.batches.clone();
        // Kept apart from what comes in order: a read of old records is no news.
        self.heard(partition.id, Heard { batches: Vec::new(), ..heard });
        if batches.is_empty() {
            check_range(from, partition.marks())?;
        }
        Ok(batches)
    }

    pub(super) async fn read_known(
        &self,
        id: PartitionId,
        from: Offset,
        max_bytes: usize,
    ) -> Result<Option<Vec<Batch>>, LogError> {
        if self.catalog.by_id(id.stream()).is_none() {
            // Whoever committed it had heard more of the streams than this copy, perhaps.
            let is_deleted = self.catalog.is_deleted(id.stream());
            return if is_deleted { Ok(None) } else { Err(LogError::NotOwner) };
        }
        let (read, is_far) = match (self.served(id), self.remote.as_ref()) {
            (Err(LogError::NotOwner), Some(remote)) => {
                let partition = self.partition(id)?;
                (self.read_far(remote.as_ref(), &partition, from, max_bytes).await, true)
            }
            _ => (self.read(id, from, max_bytes).await, false),
        };
        match read {
            Ok(batches) if !batches.is_empty() => Ok(Some(batches)),
            // Whoever committed it knew more than who answers.
            Ok(_) if is_far => Err(LogError::NotOwner),
            Err(LogError::OffsetOutOfRange { asked, high, .. }) if is_far && asked >= high => {
                Err(LogError::NotOwner)
            }
            Ok(_)
            | Err(
                LogError::OffsetOutOfRange { .. }
                | LogError::StreamNotFound(_)
                | LogError::PartitionNotFound(..),
            ) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn watermarks_anywhere(&self, id: PartitionId) -> Result<Watermarks, LogError> {
        let partition = self.partition(id)?;
        match self.served(id) {
            Err(LogError::NotOwner) if partition.is_heard() => Ok(partition.watermarks()),
            served => served.map(|partition| partition.watermarks()),
        }
    }

    pub(super) async fn end(&self, id: PartitionId) -> Result<Offset, LogError> {
        if let Err(LogError::NotOwner) = self.watermarks_anywhere(id) {
            match self.read_anywhere(id, 0, 1).await {
                Err(LogError::OffsetOutOfRange { high, .. }) => return Ok(high),
                read => drop(read?),
            }
        }
        self.watermarks_anywhere(id).map(|marks| marks.high)
    }

    /// Whether a partition is another node's to read from.
    pub(super) fn is_far(&self, id: PartitionId) -> bool {
        let elsewhere = |partition: Arc<Partition>| self.opening(partition.shard).is_none();
        self.remote.is_some() && self.partition(id).is_ok_and(elsewhere)
    }

    pub(super) fn elsewhere(&self) -> Vec<(Far, Option<Offset>)> {
        let partitions: Vec<_> = {
            let all = self.shared.partitions.read().unwrap_or_else(PoisonError::into_inner);
            all.values().cloned().collect()
        };
        let far = |partition: Arc<Partition>| {
            if self.opening(partition.shard).is_some() {
                return None;
            }
            let high = partition.is_heard().then(|| partition.marks().high);
            Some((self.far(&partition).ok()?, high))
        };
        partitions.into_iter().filter_map(far).collect()
    }

    fn far(&self, partition: &Partition) -> Result<Far, LogError> {
        let id = partition.id;
        let entry = self.catalog.by_id(id.stream()).ok_or_else(|| self.no_partition(id))?;
        let stream = Arc::clone(&entry.stream);
        Ok(Far { partition: id, stream, shard: partition.shard })
    }

    pub(super) fn heard(&self, id: PartitionId, heard: Heard) {
        let Ok(partition) = self.partition(id) else { return };
        if self.handle(partition.shard).is_ok_and(|handle| handle.slot.open().is_ok()) {
            return;
        }
        let (known, before) = (partition.is_heard(), partition.marks());
        for batch in heard.batches {
            let base = batch.header().base_offset;
            self.shared.cache.push(&partition, base, batch);
        }
        partition.hear(heard.marks);
        let after = partition.marks();
        if after != before || !known {
            self.shared.followers.tell(&[id]);
        }
    }
}
