//! The gateway's memory: one SQLite file, one writing thread, one reading thread.
//!
//! ```text
//! batch   id = lane << 48 | counter     one row per lane and group commit: an immutable record batch v2, compressed
//!         | epoch | s | n | ...         from 10 messages on; `reason` set: the sequences s..s+n were given up (a gap)
//! part    (batch, s) -> n | reason | body   what became of a batch of which some messages were given up
//! lane    acked_id -------------------> batches up to here are confirmed upstream; they go unless `needed` has them
//! queue   (session, seq) -> (batch, place)   a queue entry refers to a message, it is not a copy
//! needed  (batch, session) -> range of seq   lane 0 holds batches that only queues need, see `queues`
//! session subscription received retained     what MQTT must remember
//! followed                                   how far commands from the cloud are stored, with what they brought
//! quarantine                                 messages that the cloud refused for good, as batches
//! ```
//! Guarantees: when [`Journal::apply`]'s ticket shows as committed in [`Progress`], its changes survive a power cut
//! (WAL, synchronous=FULL). All of one group is there or none: queues, QoS 2 ids, retained and outbound batches lie in
//! one file because two WAL files cannot be committed as one (docs/decisions). Batches are never changed once they may
//! have been sent; small ones are merged before. Every process start has its own random epoch per lane.
//!
//! In: [`Change`]s of the session core. Out: rows for `uplink`, queue entries for `broker`.
//! Change here: the handle. Not here: SQL (the files below), what is dropped when full (`budget`, `queues`), a full disk (`room`).

mod age;
mod aside;
mod budget;
mod commit;
mod ends;
mod entries;
mod error;
mod followed;
mod group;
mod kept;
mod merge;
mod migrate;
mod needed;
mod open;
mod outbound;
mod pages;
mod parts;
mod quarantine;
mod queues;
mod reader;
mod renamed;
mod room;
mod salvage;
mod sessions;
#[cfg(test)]
mod tests;
mod wear;
mod writer;

use std::{collections::HashMap, ops::Range, sync::Arc};

use tokio::sync::{mpsc, oneshot, watch};
use tributary_shared::session::{SessionId, action::Change, event::LoadedEntry};

pub use error::Error;
pub use kept::{Entry as KeptEntry, Kept};
pub use open::{After, Opened, Plan, Prepared, open, prepare};
pub use outbound::{Mark, OutboundRow};
pub use reader::Reader;
pub use renamed::Renamed;
pub use writer::Writer;

use crate::status::LaneStatus;

tributary_shared::settings! {
    /// The store: one SQLite file in the data folder.
    pub struct Settings {
        /// While busy, a commit waits at most this many ms to take more with it. Idle commits never wait, unless the flash
        /// budget is being used up.
        pub commit_window_ms: u64 = 5 => 0..=1000,
        /// GB (10^9 bytes) that the device with the data folder may write a day, by whomever; 0 = no limit. When it writes
        /// more, commits, and so acknowledgements, wait up to `commit_window_max_ms` for others.
        pub flash_budget_gb_per_day: u64 = 0 => 0..=100_000,
        /// The longest a commit waits for the flash budget, ms. Beyond that the budget is overdrawn, and metrics say so.
        pub commit_window_max_ms: u64 = 1000 => 0..=60_000,
        /// GB that the device is good for, as its maker says; 0 = not known. For the projected life in metrics and status.
        pub flash_life_gb: u64 = 0 => 0..=10_000_000,
        /// Bytes the file may grow to; 0 = one and a quarter of the lanes' and the queues' budgets, and 128 MiB.
        pub max_bytes: u64 = 0,
        /// Bytes that messages waiting for sessions may take where no lane keeps them; beyond that the oldest are dropped from
        /// their queues and counted. What waits for the cloud is in the lanes' budgets and never makes room for these.
        pub queue_bytes: u64 = 256 * 1024 * 1024 => 65_536..=1_099_511_627_776,
        /// Bytes of such messages that stay in the rows they came in; beyond that they are moved into large rows.
        pub queue_loose_bytes: u64 = 8 * 1024 * 1024 => 4096..=1_099_511_627_776,
        /// Bytes of a file that is deleted when the disk is full, so that the store can still make room.
        pub ballast_bytes: u64 = 8 * 1024 * 1024,
        /// Uncompressed bytes of one batch. A larger message is a batch of its own.
        pub batch_bytes: usize = 256 * 1024 => 4096..=524_288,
        /// Messages in one batch.
        pub batch_messages: usize = 2000 => 1..=10_000,
        /// Bytes of messages kept that the cloud refused for good; the oldest go first, and are counted.
        pub quarantine_bytes: u64 = 16 * 1024 * 1024,
        /// Pages (4 KiB) in the write-ahead log before it is copied into the file.
        pub checkpoint_pages: u32 = 4000 => 100..=100_000,
    }
}

/// Number of the lane that holds batches only queues need.
pub(crate) const LOCAL: u16 = 0;

/// How many groups and requests may wait for the writer.
pub(crate) const COMMANDS: usize = 64;

/// The first id of a lane; its ids end before the next lane's first.
pub(crate) const fn lane_start(lane: u16) -> u64 {
    (lane as u64) << 48
}

/// How far the writer has come.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// Commits so far.
    pub commits: u64,
    /// All tickets up to this one are durable.
    pub committed: u64,
    /// The writer has stopped because of this; nothing more becomes durable.
    pub failed: Option<Error>,
}

/// What the writing thread is asked.
#[derive(Debug)]
pub(crate) enum Command {
    /// Make these changes durable.
    Apply { ticket: u64, changes: Vec<Change> },
    /// The cloud has confirmed a lane up to here.
    Acked { lane: u16, mark: Mark },
    /// The cloud has confirmed the rows of a lane from `after` to `mark`, before those up to `after`.
    Ahead { lane: u16, after: u64, mark: Mark },
    /// Begin a new epoch of a lane with its next message; answers the last row of those before.
    NewEpoch { lane: u16, reply: oneshot::Sender<u64> },
    /// Another gateway uses an epoch, too: its sequences from `from` on get a name of their own, which is answered.
    Rename { lane: u16, epoch: i64, from: u64, reply: oneshot::Sender<i64> },
    /// Merge small batches of a lane after an id and not behind another; answers how many rows became one.
    Merge { lane: u16, after: u64, upto: u64, reply: oneshot::Sender<usize> },
    /// Give messages of a batch up: keep their bodies in quarantine, leave a gap.
    GiveUp { id: u64, range: Range<u64>, reason: String, reply: oneshot::Sender<()> },
    /// Finish what is queued, save the totals, close.
    Stop { reply: oneshot::Sender<()> },
}

/// What the reading thread is asked.
#[derive(Debug)]
pub(crate) enum Query {
    /// Rows of a lane after an id.
    Lane {
        lane: u16,
        after: u64,
        rows: usize,
        bytes: usize,
        reply: oneshot::Sender<Result<Vec<OutboundRow>, Error>>,
    },
    /// Queue entries of a session.
    Queue {
        session: SessionId,
        from: u64,
        max: usize,
        bytes: usize,
        reply: oneshot::Sender<Result<(Vec<LoadedEntry>, bool), Error>>,
    },
}

/// A lane as the store knows it.
#[derive(Debug, Clone)]
pub struct LaneHandle {
    /// Number in the store.
    pub number: u16,
    /// Its settings; `None`: no longer configured, only what is stored is still sent.
    pub settings: Option<crate::lane::Settings>,
    /// Its numbers.
    pub status: Arc<LaneStatus>,
    /// Its epochs that go upstream under another name, as of the opening.
    pub renamed: Vec<Renamed>,
}

/// The store's handle; cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    commands: mpsc::Sender<Command>,
    queries: mpsc::Sender<Query>,
    progress: watch::Receiver<Progress>,
    trimmed: queues::Trimmings,
    lanes: Arc<[LaneHandle]>,
}

/// The one door for changes; its owner is the broker.
#[derive(Debug)]
pub struct Journal {
    commands: mpsc::Sender<Command>,
    last: u64,
}

impl Journal {
    /// Hands over a group of changes: they become durable together, after all groups before. Waits only when
    /// `COMMANDS` groups are under way.
    pub async fn apply(&mut self, changes: Vec<Change>) -> Result<u64, Error> {
        self.last += 1;
        let ticket = self.last;
        self.commands.send(Command::Apply { ticket, changes }).await.map_err(|_| Error::Closed)?;
        Ok(ticket)
    }

    /// The last ticket given out.
    pub fn last(&self) -> u64 {
        self.last
    }
}

impl Store {
    /// Lanes, those with a backlog from an earlier configuration included.
    pub fn lanes(&self) -> &[LaneHandle] {
        &self.lanes
    }

    /// Follows the commits.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// Queue entries that were dropped to keep all queues in their budget, since this was asked last: messages and bytes.
    pub fn take_trimmed(&self) -> HashMap<SessionId, (u64, u64)> {
        self.trimmed.take()
    }

    /// Batches of a lane after `after`, in order: at most `rows`, and no more than `bytes` unless it is one.
    pub async fn read_lane(
        &self,
        lane: u16,
        after: u64,
        rows: usize,
        bytes: usize,
    ) -> Result<Vec<OutboundRow>, Error> {
        let (reply, answer) = oneshot::channel();
        let query = Query::Lane { lane, after, rows, bytes, reply };
        self.queries.send(query).await.map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| Error::Closed)?
    }

    /// Committed queue entries of a session from `from` on, at most `max` and (but for the first) `bytes` bytes, and
    /// whether these are all there are.
    pub async fn load(
        &self,
        session: SessionId,
        from: u64,
        max: usize,
        bytes: usize,
    ) -> Result<(Vec<LoadedEntry>, bool), Error> {
        let (reply, answer) = oneshot::channel();
        let query = Query::Queue { session, from, max, bytes, reply };
        self.queries.send(query).await.map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| Error::Closed)?
    }

    /// The cloud has confirmed a lane up to `mark`. It rides on a later commit: losing it costs a resend.
    pub async fn acked(&self, lane: u16, mark: Mark) -> Result<(), Error> {
        self.commands.send(Command::Acked { lane, mark }).await.map_err(|_| Error::Closed)
    }

    /// The cloud has confirmed the rows of a lane from `after` to `mark`, although not yet those up to `after`. They go, but
    /// for what queues need. Losing it costs a resend.
    pub async fn acked_ahead(&self, lane: u16, after: u64, mark: Mark) -> Result<(), Error> {
        let command = Command::Ahead { lane, after, mark };
        self.commands.send(command).await.map_err(|_| Error::Closed)
    }

    /// Begins a new epoch of a lane with its next message, so that it can be sent before what waits. Answers the last row
    /// of those before.
    pub async fn new_epoch(&self, lane: u16) -> Result<u64, Error> {
        let (reply, answer) = oneshot::channel();
        let command = Command::NewEpoch { lane, reply };
        self.commands.send(command).await.map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| Error::Closed)
    }

    /// Another gateway uses `epoch`, too: gives its sequences from `from` on a name that nobody else has, for good. Answers
    /// it when it is durable.
    pub async fn rename(&self, lane: u16, epoch: i64, from: u64) -> Result<Renamed, Error> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Rename { lane, epoch, from, reply };
        self.commands.send(command).await.map_err(|_| Error::Closed)?;
        let to = answer.await.map_err(|_| Error::Closed)?;
        Ok(Renamed { epoch, from, to })
    }

    /// Makes one batch of small neighbours after `after`, up to `upto`; only for rows that were never sent. Answers how many
    /// rows became one, 0 = there was nothing to merge, or the disk is full.
    pub async fn merge(&self, lane: u16, after: u64, upto: u64) -> Result<usize, Error> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Merge { lane, after, upto, reply };
        self.commands.send(command).await.map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| Error::Closed)
    }

    /// Gives the messages of row `id` with these sequences up for `reason`: their bodies go to the quarantine, a gap stays
    /// in their place, what is before and after it becomes batches of their own with the row's id. A body that cannot be
    /// read is given up whole. Answers when durable; what is not in the row, or was given up before, is left as it is.
    pub async fn give_up(&self, id: u64, range: Range<u64>, reason: String) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        let command = Command::GiveUp { id, range, reason, reply };
        self.commands.send(command).await.map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| Error::Closed)
    }

    /// Writes what is queued and closes the file.
    pub async fn stop(&self) {
        let (reply, answer) = oneshot::channel();
        if self.commands.send(Command::Stop { reply }).await.is_ok() {
            let _closed = answer.await;
        }
    }
}
