//! One commit of the writing thread, and what it does when there is no room for it.
//!
//! A commit that fails is undone in memory too. A full disk: what was kept free for it is used (`room`), once more, and then
//! again until there is room, which what the cloud confirms and what sessions are done with meanwhile may make.
//!
//! In: commands. Out: a durable transaction, answers, [`Progress`](super::Progress). Change here: the order in a transaction.
//! Not here: when it happens (`writer`), what a change does (`group`).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rusqlite::Connection;
use tokio::time;
use tributary_shared::session::action::Change;

use super::{
    COMMANDS, Command, Error, Mark,
    group::{Group, State},
    merge, needed,
    outbound::{LaneInfo, LaneState},
    quarantine, renamed,
    writer::{Marks, Writer},
};

/// The file's size is read after so many commits.
const SIZE_EVERY: u64 = 64;

/// Between two attempts on a disk that is full to the last byte.
const FULL_WAIT: Duration = Duration::from_millis(500);

/// Why and how many.
type Dropped = Vec<(&'static str, u64)>;

/// Messages that the cloud has confirmed.
type Synced = Vec<(Arc<LaneInfo>, u64)>;

impl Writer {
    /// One transaction, durable when this returns.
    pub(super) async fn commit(
        &mut self,
        group: Vec<Command>,
        marks: &mut Marks,
    ) -> Result<(), Error> {
        let began = Instant::now();
        let mut due = marks.take_if_due();
        let mut before = self.state.clone();
        let (answers, dropped) = loop {
            let error = match self.try_commit(&group, &due) {
                Ok(done) => break done,
                Err(error) => error,
            };
            before.full = true;
            self.undo(&before, &error)?;
            if self.room.use_reserve(&self.db, &before.status)? {
                continue;
            }
            tracing::error!(%error, "no room at all: waiting for it");
            time::sleep(FULL_WAIT).await;
            self.look_for_marks(marks);
            due.extend(marks.waiting.drain());
            match self.trim(&due, &group) {
                Ok(()) => {
                    due.clear();
                    before = self.state.clone();
                }
                Err(error) => self.undo(&before, &error)?,
            }
        };
        self.ends.note(&self.state.lanes);
        self.committed = time::Instant::now();
        self.measure();
        self.keep_log_short();
        for (why, n) in dropped {
            self.state.status.dropped(why, n);
        }
        for lane in &self.state.lanes {
            lane.publish(&self.db)?;
        }
        self.state.status.queue_bytes.set(self.state.queues.bytes());
        self.state.status.queue_entries.set(self.state.queues.entries);
        self.state.quarantine.publish(&self.state.status);
        let mut committed = None;
        let mut answers = answers;
        for command in group {
            match command {
                Command::Apply { ticket, .. } => committed = Some(ticket),
                Command::Merge { reply, .. } => {
                    let merged = answers.pop().unwrap_or(0);
                    let _gone = reply.send(merged as usize);
                }
                Command::NewEpoch { reply, .. } => {
                    let _gone = reply.send(answers.pop().unwrap_or(0));
                }
                Command::Rename { reply, .. } => {
                    let _gone = reply.send(answers.pop().unwrap_or(0) as i64);
                }
                Command::GiveUp { reply, .. } => {
                    let _gone = reply.send(());
                }
                Command::Acked { .. } | Command::Ahead { .. } | Command::Stop { .. } => {}
            }
        }
        self.progress.send_modify(|progress| {
            progress.commits += 1;
            progress.committed = committed.unwrap_or(progress.committed);
        });
        self.state.status.committed(began.elapsed());
        if self.state.status.commits.get() % SIZE_EVERY == 1 {
            let pages: i64 = self.db.query_row("PRAGMA page_count", [], |row| row.get(0))?;
            self.state.status.db_bytes.set(pages.max(0) as u64 * self.room.page());
        }
        Ok(())
    }

    /// Takes back what found no room; hands on any other error.
    fn undo(&mut self, before: &State, error: &Error) -> Result<(), Error> {
        self.state = before.clone();
        if !self.db.is_autocommit() {
            self.db.execute_batch("ROLLBACK")?;
        }
        if error.is_full() { Ok(()) } else { Err(error.clone()) }
    }

    /// What the cloud confirms makes room, also for a group that waits for it: it is not to wait behind that group.
    fn look_for_marks(&mut self, marks: &mut Marks) {
        // The broker and the lanes have no more than so many under way.
        while self.pending.len() < COMMANDS
            && let Ok(command) = self.commands.try_recv()
        {
            match command {
                Command::Acked { lane, mark } => {
                    marks.waiting.insert(lane, mark);
                }
                other => self.pending.push_back(other),
            }
        }
    }

    /// Deletes what the cloud has confirmed and what sessions are done with, and nothing else. Entries that are done are in
    /// the file since an earlier commit, and their change, when its turn comes, finds nothing to do: so it may come first.
    fn trim(&mut self, marks: &[(u16, Mark)], group: &[Command]) -> Result<(), Error> {
        let mut done = Vec::new();
        for command in group.iter().chain(&self.pending) {
            if let Command::Apply { changes, .. } = command {
                let freeing = |change: &&Change| matches!(change, Change::Dequeued { .. });
                done.extend(changes.iter().filter(freeing).cloned());
            }
        }
        if marks.is_empty() && done.is_empty() {
            return Ok(());
        }
        self.db.execute_batch("BEGIN IMMEDIATE")?;
        let synced = apply_marks(&self.db, &mut self.state, marks)?;
        let mut work = Group::new(&self.db, &mut self.state);
        for change in &done {
            work.change(change)?;
        }
        work.finish()?;
        let dropped = std::mem::take(&mut work.dropped);
        let trimmed = std::mem::take(&mut work.trimmed);
        self.db.execute_batch("COMMIT")?;
        self.trimmed.add(trimmed);
        for (why, n) in dropped {
            self.state.status.dropped(why, n);
        }
        count(synced);
        Ok(())
    }

    /// Answers how many rows each merge made one, after which row each epoch began and the new name of each, last first; and
    /// what was dropped.
    fn try_commit(
        &mut self,
        group: &[Command],
        marks: &[(u16, Mark)],
    ) -> Result<(Vec<u64>, Dropped), Error> {
        self.db.execute_batch("BEGIN IMMEDIATE")?;
        let mut answers = Vec::new();
        let mut ahead = Vec::new();
        let mut work = Group::new(&self.db, &mut self.state);
        // Before any row of this group is written: queue entries of new rows are not counted yet, and these would move the
        // messages they point at.
        for command in group {
            match command {
                Command::Merge { lane, after, .. } => {
                    answers.push(merge::merge(work.db, work.state, *lane, *after)? as u64);
                }
                Command::NewEpoch { lane, .. } => {
                    answers.push(work.state.lane(*lane).map_or(0, LaneState::end_epoch));
                }
                Command::Rename { lane, epoch, from, .. } => {
                    answers.push(renamed::rename(work.db, *lane, *epoch, *from)? as u64);
                }
                Command::Ahead { lane, after, mark } => {
                    if let Some(lane) = work.state.lane(*lane) {
                        let n = lane.apply_ahead(work.db, *after, *mark)?;
                        ahead.push((lane.info.clone(), n));
                    }
                }
                Command::GiveUp { id, range, reason, .. } => {
                    let gone =
                        quarantine::give_up(work.db, work.state, *id, range.clone(), reason)?;
                    work.dropped.push(("given_up", gone.messages));
                    work.dropped.push(("quarantine_full", gone.forgotten));
                }
                _ => {}
            }
        }
        // Also before: who needs which row is counted from what is written.
        let synced = apply_marks(work.db, work.state, marks)?;
        for command in group {
            if let Command::Apply { changes, .. } = command {
                for change in changes {
                    work.change(change)?;
                }
            }
        }
        if work.state.quarantine.wanted > 0 && !work.state.full {
            quarantine::retry(&mut work)?;
        }
        work.finish()?;
        let dropped = std::mem::take(&mut work.dropped);
        let trimmed = std::mem::take(&mut work.trimmed);
        self.db.execute_batch("COMMIT")?;
        self.trimmed.add(trimmed);
        count(synced);
        count(ahead);
        answers.reverse();
        Ok((answers, dropped))
    }
}

fn apply_marks(db: &Connection, state: &mut State, marks: &[(u16, Mark)]) -> Result<Synced, Error> {
    let mut synced = Vec::new();
    for (number, mark) in marks {
        if let Some(lane) = state.lane(*number) {
            let from = lane.acked_id + 1;
            let (n, kept) = lane.apply_mark(db, *mark)?;
            let left = needed::count(db, from, lane.acked_id)?;
            synced.push((lane.info.clone(), n));
            state.queues.loose += kept;
            state.queues.left(left);
        }
    }
    Ok(synced)
}

fn count(synced: Synced) {
    for (lane, n) in synced {
        lane.status.synced.add(n);
    }
}
