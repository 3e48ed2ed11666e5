//! One commit of the writing thread, and what it does when there is no room for it.
//!
//! A commit that fails is undone in memory too. A full disk: what was kept free for it is used (`room`), once more, and then
//! again until there is room, or the store is to be closed. Room comes from what the cloud confirms and what sessions are done
//! with, so these go ahead of the group that waits, and so does what a lane waits for before it sends more.
//!
//! In: commands. Out: a durable transaction, answers, [`Progress`](super::Progress). Change here: the order in a transaction.
//! Not here: when it happens (`writer`), what a change does (`group`).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rusqlite::Connection;
use tokio::{sync::oneshot, time};
use tributary_shared::session::action::Change;

use super::{
    COMMANDS, Command, Error,
    group::{Group, State},
    merge, needed,
    outbound::{LaneInfo, LaneState},
    quarantine, renamed,
    writer::{Confirmed, Marks, Writer},
};

/// The file's size is read after so many commits.
const SIZE_EVERY: u64 = 64;

/// Between two attempts on a disk that is full to the last byte.
const FULL_WAIT: Duration = Duration::from_millis(500);

/// Why and how many.
type Dropped = Vec<(&'static str, u64)>;

/// Messages that the cloud has confirmed.
type Synced = Vec<(Arc<LaneInfo>, u64)>;

/// What is to be told when the transaction is durable.
struct Done {
    /// To what was asked, in that order: how many rows a merge made one, after which row an epoch began, a new name.
    answers: Vec<u64>,
    dropped: Dropped,
}

/// The store is to be closed; whom to tell, if there is anybody.
pub(super) type Stop = Option<oneshot::Sender<()>>;

impl Writer {
    /// One transaction, durable when this returns; or the store is to be closed, and there was no room for it.
    pub(super) async fn commit(
        &mut self,
        group: Vec<Command>,
        marks: &mut Marks,
    ) -> Result<Option<Stop>, Error> {
        let began = Instant::now();
        let mut confirmed = marks.take_if_due();
        // Apart: those who wait for an answer must not wait for publishers that wait for room.
        let (group, mut asked): (Vec<_>, Vec<_>) =
            group.into_iter().partition(|command| matches!(command, Command::Apply { .. }));
        let mut before = self.state.clone();
        let mut stop = None;
        let done = loop {
            let error = match self.try_commit(&asked, changes(&group), &confirmed) {
                Ok(done) => break done,
                Err(error) => error,
            };
            before.full = true;
            self.undo(&before, &error)?;
            if self.room.use_reserve(&self.db, &before.status)? {
                continue;
            }
            if stop.is_some() {
                // Nothing of the group was acknowledged.
                return Ok(stop);
            }
            tracing::error!(%error, "no room at all: waiting for it");
            stop = self.listen(&mut asked, marks).await;
            confirmed.extend(std::mem::take(&mut marks.waiting));
            self.go_ahead(&mut asked, &group, &mut confirmed)?;
            before = self.state.clone();
        };
        if let Some(Some(reply)) = stop {
            // In its turn: what came before it may find room now, too.
            self.pending.push_back(Command::Stop { reply });
        }
        self.ends.note(&self.state.lanes);
        self.committed = time::Instant::now();
        self.measure();
        self.keep_log_short();
        self.tell(asked, done)?;
        let last = group.iter().rev().find_map(|command| match command {
            Command::Apply { ticket, .. } => Some(*ticket),
            _ => None,
        });
        self.progress.send_modify(|progress| {
            progress.commits += 1;
            progress.committed = last.unwrap_or(progress.committed);
        });
        self.state.status.committed(began.elapsed());
        if self.state.status.commits.get() % SIZE_EVERY == 1 {
            let pages: i64 = self.db.query_row("PRAGMA page_count", [], |row| row.get(0))?;
            self.state.status.db_bytes.set(pages.max(0) as u64 * self.room.page());
        }
        Ok(None)
    }

    /// Takes back what found no room; hands on any other error.
    fn undo(&mut self, before: &State, error: &Error) -> Result<(), Error> {
        self.state = before.clone();
        if !self.db.is_autocommit() {
            self.db.execute_batch("ROLLBACK")?;
        }
        if error.is_full() { Ok(()) } else { Err(error.clone()) }
    }

    /// Hears for a moment what comes while a group waits for room. What the cloud confirms makes room, so neither that nor
    /// what its lane waits for may wait behind the group.
    async fn listen(&mut self, asked: &mut Vec<Command>, marks: &mut Marks) -> Option<Stop> {
        let until = time::Instant::now() + FULL_WAIT;
        let mut stop = None;
        let known = std::mem::take(&mut self.pending);
        for command in known.into_iter().chain(std::mem::take(asked)) {
            stop = self.hear(command, asked, marks).or(stop);
        }
        if stop.is_some() {
            return stop;
        }
        // The broker and the lanes have no more than so many under way.
        while self.pending.len() + asked.len() < COMMANDS {
            match time::timeout_at(until, self.commands.recv()).await {
                Err(_) => return None,
                Ok(None) => return Some(None),
                Ok(Some(command)) => {
                    if let Some(stop) = self.hear(command, asked, marks) {
                        return Some(stop);
                    }
                }
            }
        }
        time::sleep_until(until).await;
        self.commands.is_closed().then_some(None)
    }

    /// One command while a group waits for room.
    fn hear(
        &mut self,
        command: Command,
        asked: &mut Vec<Command>,
        marks: &mut Marks,
    ) -> Option<Stop> {
        match command {
            Command::Stop { reply } => return Some(Some(reply)),
            Command::Acked { .. } | Command::Ahead { .. } => drop(marks.waiting.add(&command)),
            Command::Apply { .. } => self.pending.push_back(command),
            Command::GiveUp { .. } | Command::Rename { .. } => asked.push(command),
            // It takes room before it makes any.
            Command::Merge { reply, .. } => drop(reply.send(0)),
            // It is in no file; what waits for room is of the new epoch.
            Command::NewEpoch { lane, reply } => {
                let last = self.state.lane(lane).map_or(0, LaneState::end_epoch);
                let _gone = reply.send(last);
            }
        }
        None
    }

    /// Does what makes room, or what a lane waits for before it can confirm more: deletes what the cloud has confirmed and
    /// what sessions are done with, gives up. Entries that are done are in the file since an earlier commit, and their change,
    /// when its turn comes, finds nothing to do: so it may come first.
    fn go_ahead(
        &mut self,
        asked: &mut Vec<Command>,
        group: &[Command],
        confirmed: &mut Confirmed,
    ) -> Result<(), Error> {
        let freeing = |change: &&Change| matches!(change, Change::Dequeued { .. });
        let waiting = changes(group).chain(changes(&self.pending));
        let done: Vec<_> = waiting.filter(freeing).cloned().collect();
        if (!confirmed.is_empty() || !done.is_empty())
            && let Some(done) = self.if_there_is_room(&[], &done, confirmed)?
        {
            *confirmed = Confirmed::default();
            self.tell(Vec::new(), done)?;
        }
        for one in std::mem::take(asked) {
            match self.if_there_is_room(std::slice::from_ref(&one), &[], &Confirmed::default())? {
                Some(done) => self.tell(vec![one], done)?,
                None => asked.push(one),
            }
        }
        Ok(())
    }

    /// A transaction of its own; nothing is done if there is no room for it.
    fn if_there_is_room(
        &mut self,
        asked: &[Command],
        changes: &[Change],
        confirmed: &Confirmed,
    ) -> Result<Option<Done>, Error> {
        let before = self.state.clone();
        match self.try_commit(asked, changes.iter(), confirmed) {
            Ok(done) => Ok(Some(done)),
            Err(error) => self.undo(&before, &error).map(|()| None),
        }
    }

    /// Tells everybody what has become durable.
    fn tell(&mut self, asked: Vec<Command>, done: Done) -> Result<(), Error> {
        for (why, n) in done.dropped {
            self.state.status.dropped(why, n);
        }
        for lane in &self.state.lanes {
            lane.publish(&self.db)?;
        }
        self.state.status.queue_bytes.set(self.state.queues.bytes());
        self.state.status.queue_entries.set(self.state.queues.entries);
        self.state.quarantine.publish(&self.state.status);
        for (command, answer) in asked.into_iter().zip(done.answers) {
            // Who asked may be gone.
            match command {
                Command::Merge { reply, .. } => drop(reply.send(answer as usize)),
                Command::NewEpoch { reply, .. } => drop(reply.send(answer)),
                Command::Rename { reply, .. } => drop(reply.send(answer as i64)),
                Command::GiveUp { reply, .. } => drop(reply.send(())),
                _ => {}
            }
        }
        Ok(())
    }

    fn try_commit<'a>(
        &mut self,
        asked: &[Command],
        changes: impl Iterator<Item = &'a Change>,
        confirmed: &Confirmed,
    ) -> Result<Done, Error> {
        self.db.execute_batch("BEGIN IMMEDIATE")?;
        let mut work = Group::new(&self.db, &mut self.state);
        // Before any row of this group is written: queue entries of new rows are not counted yet, and these would move the
        // messages they point at.
        let mut answers = Vec::with_capacity(asked.len());
        for command in asked {
            answers.push(answer(&mut work, command)?);
        }
        // Also before: who needs which row is counted from what is written.
        let synced = apply_marks(work.db, work.state, confirmed)?;
        for change in changes {
            work.change(change)?;
        }
        if work.state.quarantine.wanted > 0 && !work.state.full {
            quarantine::retry(&mut work)?;
        }
        work.finish()?;
        let dropped = std::mem::take(&mut work.dropped);
        let trimmed = std::mem::take(&mut work.trimmed);
        self.db.execute_batch("COMMIT")?;
        self.trimmed.add(trimmed);
        for (lane, n) in synced {
            lane.status.synced.add(n);
        }
        Ok(Done { answers, dropped })
    }
}

/// The changes of a group.
fn changes<'a>(group: impl IntoIterator<Item = &'a Command>) -> impl Iterator<Item = &'a Change> {
    let changes = |command: &'a Command| match command {
        Command::Apply { changes, .. } => changes.as_slice(),
        _ => &[],
    };
    group.into_iter().flat_map(changes)
}

/// Does what somebody waits for, and says what is to be answered.
fn answer(work: &mut Group<'_>, command: &Command) -> Result<u64, Error> {
    match command {
        Command::Merge { lane, after, upto, .. } => {
            Ok(merge::merge(work.db, work.state, *lane, *after, *upto)? as u64)
        }
        Command::NewEpoch { lane, .. } => {
            Ok(work.state.lane(*lane).map_or(0, LaneState::end_epoch))
        }
        Command::Rename { lane, epoch, from, .. } => {
            Ok(renamed::rename(work.db, *lane, *epoch, *from)? as u64)
        }
        Command::GiveUp { id, range, reason, .. } => {
            let gone = quarantine::give_up(work.db, work.state, *id, range.clone(), reason)?;
            work.dropped.push(("given_up", gone.messages));
            work.dropped.push(("quarantine_full", gone.forgotten));
            Ok(0)
        }
        Command::Apply { .. }
        | Command::Acked { .. }
        | Command::Ahead { .. }
        | Command::Stop { .. } => Ok(0),
    }
}

/// The cloud's marks, and then what it has confirmed before older rows.
fn apply_marks(db: &Connection, state: &mut State, confirmed: &Confirmed) -> Result<Synced, Error> {
    let mut synced = Vec::new();
    for (number, mark) in &confirmed.marks {
        if let Some(lane) = state.lane(*number) {
            let from = lane.acked_id + 1;
            let (n, kept) = lane.apply_mark(db, *mark)?;
            let left = needed::count(db, from, lane.acked_id)?;
            synced.push((lane.info.clone(), n));
            state.queues.loose += kept;
            state.queues.left(left);
        }
    }
    for (number, (after, mark)) in &confirmed.ahead {
        if let Some(lane) = state.lane(*number) {
            synced.push((lane.info.clone(), lane.apply_ahead(db, *after, *mark)?));
        }
    }
    Ok(synced)
}
