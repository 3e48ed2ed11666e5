//! Following every partition: whole batches, each partition in its turn, those of other nodes beside the others.
//!
//! In: where to go on per partition. Out: batches, in order per partition. Woken by appends and by what is heard of other nodes,
//! never polling. An owner that does not answer holds up its own partitions only.
//! Not here: what is in a batch (`tail`), reading itself (`read`, `elsewhere`).

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, warn};
use tributary_shared::record::Batch;

use super::{Follower, Log, LogError, Offset, PartitionId, Stream};

/// Reads of other nodes' partitions at a time.
const FAR_READS: usize = 32;
/// Between two attempts when the storage, or the way to another node, fails.
const AGAIN_AFTER: Duration = Duration::from_millis(500);

/// Some batches of one partition.
pub struct Turn {
    /// Whose.
    pub partition: PartitionId,
    /// Its stream.
    pub stream: Arc<Stream>,
    /// What was asked for: the first batch may begin before it.
    pub from: Offset,
    /// Never empty.
    pub batches: Vec<Batch>,
}

/// What a read means.
enum Judged {
    Turn(Turn),
    /// Nothing now; whatever there is to do about it is done.
    Later,
    /// The log is closed.
    Closed,
}

type Read = (PartitionId, Offset, Result<Vec<Batch>, LogError>);

/// See the module.
pub struct Turns {
    log: Log,
    follower: Follower,
    read_bytes: usize,
    cursors: HashMap<PartitionId, Offset>,
    /// Partitions that may have more, in turn.
    ready: VecDeque<PartitionId>,
    queued: HashSet<PartitionId>,
    far: FuturesUnordered<BoxFuture<'static, Read>>,
    /// Partitions in `far`; true: it moved meanwhile.
    flying: HashMap<PartitionId, bool>,
    /// Partitions for which there is no place in `far`.
    waiting: VecDeque<PartitionId>,
    /// Partitions that failed, and when they are tried again.
    failed: Vec<PartitionId>,
    again: Instant,
}

impl Turns {
    /// Goes on at `cursors`; other partitions begin at their beginning. One turn is about `read_bytes`.
    pub fn new(log: Log, cursors: HashMap<PartitionId, Offset>, read_bytes: usize) -> Self {
        Self {
            follower: log.follow(),
            log,
            read_bytes,
            cursors,
            ready: VecDeque::new(),
            queued: HashSet::new(),
            far: FuturesUnordered::new(),
            flying: HashMap::new(),
            waiting: VecDeque::new(),
            failed: Vec::new(),
            again: Instant::now(),
        }
    }

    /// Goes on there instead; before the first turn.
    #[must_use]
    pub fn at(self, cursors: HashMap<PartitionId, Offset>) -> Self {
        Self { cursors, ..self }
    }

    /// Where each partition goes on.
    pub fn cursors(&self) -> &HashMap<PartitionId, Offset> {
        &self.cursors
    }

    /// The partition of the last turn goes on there.
    pub fn advance(&mut self, partition: PartitionId, next: Offset) {
        self.cursors.insert(partition, next);
    }

    /// The next batches; waits for them. Call [`Turns::advance`] before the next call. `None`: the log is closed. Cancelling
    /// loses nothing.
    pub async fn next(&mut self) -> Option<Turn> {
        loop {
            while let Some(Some(read)) = self.far.next().now_or_never() {
                self.landed(read.0);
                match self.judge(read) {
                    Judged::Turn(turn) => return Some(turn),
                    Judged::Later => {}
                    Judged::Closed => return None,
                }
            }
            let Some(partition) = self.ready.front().copied() else {
                self.wait().await?;
                continue;
            };
            let from = self.from(partition);
            if self.log.inner.is_far(partition) {
                self.rest(partition);
                self.read_far(partition, from);
                continue;
            }
            let read = self.log.read(partition, from, self.read_bytes).await;
            self.rest(partition);
            match self.judge((partition, from, read)) {
                Judged::Turn(turn) => return Some(turn),
                Judged::Later => {}
                Judged::Closed => return None,
            }
        }
    }

    fn from(&self, partition: PartitionId) -> Offset {
        let begin = || self.log.watermarks_anywhere(partition).map_or(0, |marks| marks.start);
        self.cursors.get(&partition).copied().unwrap_or_else(begin)
    }

    async fn wait(&mut self) -> Option<()> {
        tokio::select! {
            moved = self.follower.next() => {
                for partition in moved? {
                    match self.flying.get_mut(&partition) {
                        Some(moved) => *moved = true,
                        None => self.queue(partition),
                    }
                }
            }
            Some(read) = self.far.next(), if !self.far.is_empty() => {
                self.landed(read.0);
                // Judged at the next turn, as if it had come just then.
                self.flying.insert(read.0, false);
                self.far.push(std::future::ready(read).boxed());
            }
            () = sleep_until(self.again), if !self.failed.is_empty() => {
                for partition in std::mem::take(&mut self.failed) {
                    self.queue(partition);
                }
            }
        }
        Some(())
    }

    fn queue(&mut self, partition: PartitionId) {
        if self.queued.insert(partition) {
            self.ready.push_back(partition);
        }
    }

    fn rest(&mut self, partition: PartitionId) {
        self.ready.pop_front();
        self.queued.remove(&partition);
    }

    fn read_far(&mut self, partition: PartitionId, from: Offset) {
        if let Some(moved) = self.flying.get_mut(&partition) {
            *moved = true;
            return;
        }
        if self.far.len() >= FAR_READS {
            if !self.waiting.contains(&partition) {
                self.waiting.push_back(partition);
            }
            return;
        }
        self.flying.insert(partition, false);
        let (log, bytes) = (self.log.clone(), self.read_bytes);
        let read = async move {
            let read = log.read_anywhere(partition, from, bytes).await;
            (partition, from, read)
        };
        self.far.push(read.boxed());
    }

    fn landed(&mut self, partition: PartitionId) {
        if self.flying.remove(&partition) == Some(true) {
            self.queue(partition);
        }
        if let Some(next) = self.waiting.pop_front() {
            self.queue(next);
        }
    }

    fn judge(&mut self, (partition, from, read): Read) -> Judged {
        if self.from(partition) != from {
            // Its shard has moved while it was read from the owner before: what comes goes on elsewhere by now.
            self.queue(partition);
            return Judged::Later;
        }
        match read {
            // Who answered knows less than what was heard already: nobody will tell of it again.
            Ok(batches) if batches.is_empty() && self.is_behind(partition, from) => {
                debug!(
                    partition = partition.0,
                    from, "there are records that the owner does not have yet"
                );
                self.fail(partition);
            }
            Ok(batches) if batches.is_empty() => {}
            Ok(batches) => {
                if let Some(stream) = self.log.stream_by_id(partition.stream()) {
                    // There may be more: it gets another turn.
                    self.queue(partition);
                    return Judged::Turn(Turn { partition, stream, from, batches });
                }
                // A node that has just begun can read partitions before it has seen all of the list of streams: nobody could
                // say what these records are, and they must not be passed over.
                if self.log.is_deleted(partition.stream()) {
                    self.cursors.remove(&partition);
                } else {
                    self.fail(partition);
                }
            }
            // As above.
            Err(LogError::OffsetOutOfRange { asked, high, .. })
                if asked > high && self.log.inner.is_far(partition) =>
            {
                warn!(
                    partition = partition.0,
                    asked, high, "the owner does not know of these records; trying again"
                );
                self.fail(partition);
            }
            // Retention was faster, or the cursor is from a store that lost its end.
            Err(LogError::OffsetOutOfRange { asked, start, high }) => {
                warn!(partition = partition.0, asked, start, high, "records are gone");
                self.cursors.insert(partition, asked.clamp(start, high));
                self.queue(partition);
            }
            Err(LogError::StreamNotFound(_) | LogError::PartitionNotFound(..)) => {
                self.cursors.remove(&partition);
            }
            Err(LogError::Closed) => return Judged::Closed,
            Err(error) => {
                if matches!(error, LogError::NotOwner) {
                    debug!(partition = partition.0, "nobody can be asked for a partition now");
                } else {
                    warn!(partition = partition.0, %error, "reading failed; trying again");
                }
                self.fail(partition);
            }
        }
        Judged::Later
    }

    fn is_behind(&self, partition: PartitionId, from: Offset) -> bool {
        self.log.watermarks_anywhere(partition).is_ok_and(|marks| marks.high > from)
    }

    /// It is read again a moment later.
    fn fail(&mut self, partition: PartitionId) {
        if self.failed.is_empty() {
            self.again = Instant::now() + AGAIN_AFTER;
        }
        self.failed.push(partition);
    }
}
