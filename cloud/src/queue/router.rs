//! Follows the whole log and brings what other protocols wrote to the virtual host, in the order of each partition.
//!
//! Woken by appends, never polling. What AMQP itself published was indexed in the same transaction as the record; such
//! batches are marked ([`Skips`]) and passed over. The cursor is stored with the index entries it stands for, so after a
//! crash nothing is missed and nothing indexed twice. The very first start begins at the end of every partition; a
//! partition that is new later, at its beginning.
//! Not here: matching (`method::publish`).

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::sync::mpsc;
use tributary_shared::record::{Batch, Record};

use super::{
    Command,
    load::{UNPACKED_BYTES, scan_all, write},
    message,
    store::{self, Change},
};
use crate::{
    engine::ShardId,
    log::{
        Log, LogError, Offset, PartitionId, StateSpace, Transaction,
        turns::{Turn, Turns},
    },
};

/// Bytes of one read.
const READ_BYTES: usize = 1024 * 1024;

/// A stretch of one partition.
#[derive(Debug)]
pub struct Routed {
    /// Partition.
    pub partition: PartitionId,
    /// Name of its stream.
    pub stream: Arc<str>,
    /// Records that may interest a queue.
    pub records: Vec<RoutedRecord>,
    /// Base offsets of marked batches in it.
    pub passed: Vec<Offset>,
    /// One past the stretch.
    pub next: Offset,
}

/// One record of another protocol.
#[derive(Debug)]
pub struct RoutedRecord {
    /// Offset.
    pub offset: Offset,
    /// Its topic as a routing key.
    pub routing_key: String,
    /// It.
    pub record: Record,
}

/// Batches that were indexed when they were published, by partition and base offset. The log's owner adds to it while it
/// applies the transaction, so a batch is marked before anyone can read it.
#[derive(Debug, Clone, Default)]
pub struct Skips {
    marked: Arc<Mutex<BTreeSet<(PartitionId, Offset)>>>,
}

impl Skips {
    /// Marks a batch.
    pub fn mark(&self, partition: PartitionId, base: Offset) {
        self.marked.lock().unwrap_or_else(PoisonError::into_inner).insert((partition, base));
    }

    /// Whether it was marked; it is forgotten.
    fn pass(&self, partition: PartitionId, base: Offset) -> bool {
        self.marked.lock().unwrap_or_else(PoisonError::into_inner).remove(&(partition, base))
    }
}

/// See the module.
pub(super) struct Router {
    pub(super) log: Log,
    pub(super) home: ShardId,
    pub(super) skips: Skips,
    /// Bindings of `amq.topic`: without any, records need not be looked at.
    pub(super) bindings: Arc<AtomicUsize>,
    cursors: HashMap<PartitionId, Offset>,
}

impl Router {
    /// Reads cursors and marks; on the very first start sets the cursors to the ends and stores that.
    pub(super) async fn open(
        log: Log,
        home: ShardId,
        skips: Skips,
        bindings: Arc<AtomicUsize>,
    ) -> Result<Self, LogError> {
        let mut cursors = HashMap::new();
        scan_all(&log, home, (StateSpace::QueueAck, b"c"), |key, value| {
            if let (Some(partition), Some(offset)) =
                (key.get(1..).and_then(store::number), store::number(&value))
            {
                cursors.insert(PartitionId(partition), offset as Offset);
            }
        })
        .await?;
        scan_all(&log, home, (StateSpace::QueueAck, b"s"), |key, _| {
            let (partition, base) = (key.get(1..9), key.get(9..));
            if let (Some(partition), Some(base)) =
                (partition.and_then(store::number), base.and_then(store::number))
            {
                skips.mark(PartitionId(partition), base as Offset);
            }
        })
        .await?;
        let mut router = Self { log, home, skips, bindings, cursors };
        if router.cursors.is_empty() {
            router.begin_at_the_end().await?;
        }
        Ok(router)
    }

    async fn begin_at_the_end(&mut self) -> Result<(), LogError> {
        // A cursor of no partition says that there was a first start, whatever streams there were then.
        self.cursors.insert(PartitionId(u64::MAX), 0);
        for stream in self.log.streams() {
            for index in 0..stream.partitions {
                let partition = PartitionId::new(stream.id, index);
                self.cursors.insert(partition, self.log.end(partition).await?);
            }
        }
        let writes = self
            .cursors
            .iter()
            .map(|(partition, offset)| {
                let value = offset.to_be_bytes().to_vec();
                write(Change::put(StateSpace::QueueAck, store::cursor_key(*partition), value))
            })
            .collect();
        self.log.commit(self.home, Transaction { writes, ..Transaction::default() }).await?;
        Ok(())
    }

    /// Runs until the log closes or the virtual host goes.
    pub(super) async fn run(
        self,
        commands: mpsc::WeakSender<Vec<Command>>,
    ) -> Result<(), LogError> {
        let Self { log, skips, bindings, cursors, .. } = self;
        let mut turns = Turns::new(log, cursors, READ_BYTES);
        while let Some(Turn { partition, stream, from, batches }) = turns.next().await {
            let next = batches.last().map_or(from, |batch| batch.last_offset() + 1);
            turns.advance(partition, next);
            // After the read: who has bound before a record was written gets it.
            let wanted = bindings.load(Ordering::Acquire) > 0;
            let stream: Arc<str> = stream.name.as_str().into();
            let mut routed =
                Routed { partition, stream, records: Vec::new(), passed: Vec::new(), next };
            for batch in &batches {
                if skips.pass(partition, batch.base_offset()) {
                    routed.passed.push(batch.base_offset());
                } else if wanted && !batch.header().is_control() {
                    collect(&mut routed, batch, from);
                }
            }
            let Some(commands) = commands.upgrade() else { return Ok(()) };
            if commands.send(vec![Command::Routed(Box::new(routed))]).await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// Records of a batch from `from` on. A batch that does not unpack was not checked by its head; it is passed over, loudly.
fn collect(routed: &mut Routed, batch: &Batch, from: Offset) {
    let records = match batch.records(UNPACKED_BYTES) {
        Ok(records) => records,
        Err(error) => {
            tracing::error!(stream = %routed.stream, offset = batch.base_offset(), %error, "batch not routed");
            return;
        }
    };
    for (offset, record) in (batch.base_offset()..).zip(records) {
        if offset >= from {
            let routing_key = message::routing_key(&record, &routed.stream);
            routed.records.push(RoutedRecord { offset, routing_key, record });
        }
    }
}
