//! Following every stream record by record, for heads that derive something from all of it (the AMQP router, the MQTT head).
//!
//! In: where to go on per partition. Out: decoded records, in order per partition, each partition in its turn. The head keeps
//! the cursors: [`TailBatch::next`], stored together with what it derived. Woken by appends, never polling.
//! Not here: who wants which record (the heads).

use std::{collections::HashMap, sync::Arc};

use tracing::warn;
use tributary_shared::record::{Batch, Record};

use super::{
    Log, LogError, Offset, PartitionId, Stream,
    turns::{Turn, Turns},
};

/// Read from one partition at its turn, bytes as stored.
const READ_BYTES: usize = 256 * 1024;
/// Records of one answer, bytes unpacked, about: batches beyond it wait for the next turn.
const ANSWER_BYTES: usize = 4 * 1024 * 1024;
/// A batch that unpacks to more is not read.
const UNPACKED_BYTES: usize = 64 * 1024 * 1024;

/// Where to begin with partitions that exist and have no cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// At the first record there is.
    Beginning,
    /// With what comes next.
    End,
}

/// Some records of one partition.
#[derive(Debug, Clone)]
pub struct TailBatch {
    /// Whose.
    pub partition: PartitionId,
    /// Its stream.
    pub stream: Arc<Stream>,
    /// In order; never empty.
    pub records: Vec<(Offset, Record)>,
    /// Where to go on after them: the cursor to keep.
    pub next: Offset,
}

/// See the module.
pub struct Tail {
    turns: Turns,
    skipped: u64,
}

impl Tail {
    /// Goes on at `cursors`. Partitions that are there and not in `cursors` start as `unknown` says; those that appear later
    /// start at their beginning. The end of one elsewhere may have to be asked for: [`LogError::NotOwner`] if nobody answers.
    pub async fn new(
        log: Log,
        mut cursors: HashMap<PartitionId, Offset>,
        unknown: Start,
    ) -> Result<Self, LogError> {
        // Before the look at what is there: what comes meanwhile is not missed.
        let turns = Turns::new(log.clone(), HashMap::new(), READ_BYTES);
        for stream in log.streams() {
            for index in 0..stream.partitions {
                let partition = PartitionId::new(stream.id, index);
                if unknown == Start::End && !cursors.contains_key(&partition) {
                    cursors.insert(partition, log.end(partition).await?);
                }
            }
        }
        Ok(Self { turns: turns.at(cursors), skipped: 0 })
    }

    /// The next records; waits for them. `None`: the log is closed. Cancelling loses nothing.
    pub async fn next(&mut self) -> Option<TailBatch> {
        loop {
            let Turn { partition, stream, from, batches } = self.turns.next().await?;
            let (records, next) = self.decode(partition, from, &batches);
            self.turns.advance(partition, next);
            if !records.is_empty() {
                return Some(TailBatch { partition, stream, records, next });
            }
        }
    }

    /// Where each partition goes on. A head that starts at [`Start::End`] keeps these once at its first start: a partition that
    /// never had a record since would otherwise have no cursor at the next start, and skip what came meanwhile.
    pub fn cursors(&self) -> &HashMap<PartitionId, Offset> {
        self.turns.cursors()
    }

    /// Batches so far that could not be unpacked and were left out.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Records from `from` on, and where to go on.
    fn decode(
        &mut self,
        partition: PartitionId,
        from: Offset,
        batches: &[Batch],
    ) -> (Vec<(Offset, Record)>, Offset) {
        let mut found = Vec::new();
        let mut next = from;
        let mut bytes = 0;
        for batch in batches {
            if bytes >= ANSWER_BYTES {
                break;
            }
            let header = batch.header();
            next = header.last_offset() + 1;
            if header.is_control() {
                continue;
            }
            match batch.records(UNPACKED_BYTES) {
                Ok(records) => {
                    bytes += records.iter().map(size).sum::<usize>();
                    let numbered = (header.base_offset..).zip(records);
                    found.extend(numbered.filter(|(offset, _)| *offset >= from));
                }
                Err(error) => {
                    self.skipped += 1;
                    let offset = header.base_offset;
                    warn!(partition = partition.0, offset, %error, "a batch was left out");
                }
            }
        }
        (found, next)
    }
}

fn size(record: &Record) -> usize {
    let part = |bytes: &Option<bytes::Bytes>| bytes.as_ref().map_or(0, bytes::Bytes::len);
    part(&record.key) + part(&record.value)
}
