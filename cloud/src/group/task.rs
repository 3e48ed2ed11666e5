//! The task of one group: commands in, `state` decides, answers out; deadlines; offsets and generations to the log.
//!
//! In: [`Command`]s over a bounded queue. Out: answers, commits. Begins with what the log remembers of the group. Ends itself
//! when the group has been empty and quiet, when it cannot store, and when its shard leaves: then what is stored is true, not
//! what it thinks.
//! Change here: how a group is run. Not here: rules (`state`), finding the task (`super`).

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};

use super::{
    Shared,
    exchange::{Description, GroupError, Join, Joined, MemberRef, Sync, Synced},
    offsets::{self, CommittedOffset},
    state::{Action, Limits, State, Ticket},
    stored::{self, GroupRecord, Stored},
};
use crate::{
    engine::{ShardId, Write},
    log::{Committed, LogError, Opening, PartitionId, Pending, Transaction},
};

/// An empty group's task ends after so long without a command.
const QUIET: Duration = Duration::from_secs(30);

/// Writes of one transaction that removes offsets.
const REMOVALS: usize = 500;

/// Answers that may wait for the log; more are refused.
const HELD_MAX: usize = 10_000;

/// Where an answer goes.
pub(super) type Answer<T> = oneshot::Sender<Result<T, GroupError>>;

/// What a group is asked.
pub(super) enum Command {
    Join(Box<Join>, Answer<Joined>),
    Sync(Sync, Answer<Synced>),
    Heartbeat(MemberRef, i32, Answer<()>),
    Leave(Vec<MemberRef>, Answer<Vec<Result<(), GroupError>>>),
    /// Answers with the submitted commit: durable when it resolves.
    Commit(MemberRef, i32, Vec<(PartitionId, CommittedOffset)>, Answer<Pending>),
    Describe(Answer<Description>),
    Delete(Answer<()>),
    DeleteOffsets(Vec<PartitionId>, Answer<()>),
    /// Removes offsets that have outlived their retention, ms.
    Expire(i64, Answer<()>),
}

/// ms since 1970.
pub(super) fn wall_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as i64)
}

/// What is told when the group as it was is durable.
struct Held {
    durable: Pending,
    answers: Vec<Action>,
}

pub(super) struct Task {
    group: String,
    shared: std::sync::Arc<Shared>,
    state: State,
    /// Where it lives, and the opening of that shard that its state is of.
    home: (ShardId, Opening),
    started: Instant,
    started_ms: i64,
    tickets: u64,
    joins: HashMap<Ticket, Answer<Joined>>,
    syncs: HashMap<Ticket, Answer<Synced>>,
    /// As last written.
    record: Option<GroupRecord>,
    /// In the order of the log; while there are any, time stands still for the members.
    held: VecDeque<Held>,
    held_since: u64,
}

impl Task {
    /// Of the opening of its shard that `home` names.
    pub(super) fn new(
        group: String,
        home: (ShardId, Opening),
        shared: std::sync::Arc<Shared>,
    ) -> Self {
        let settings = &shared.settings;
        let limits = Limits {
            members: settings.members_max,
            metadata_bytes: settings.member_metadata_bytes_max,
            session_timeout_min_ms: settings.session_timeout_min_ms,
            session_timeout_max_ms: settings.session_timeout_max_ms,
            initial_rebalance_delay_ms: settings.initial_rebalance_delay_ms,
        };
        Self {
            group,
            state: State::new(limits),
            home,
            started: Instant::now(),
            started_ms: wall_ms(),
            shared,
            tickets: 0,
            joins: HashMap::new(),
            syncs: HashMap::new(),
            record: None,
            held: VecDeque::new(),
            held_since: 0,
        }
    }

    /// Runs until the group is empty and quiet, cannot be stored, its shard leaves, or the process stops. Who still waits for an
    /// answer asks again.
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        match stored::get(&self.shared.log, &self.group).await {
            Ok(None) => {}
            Ok(Some(stored)) => {
                self.record = Some(stored.record.clone());
                self.state = State::from_stored(self.state.limits, self.now(), stored);
            }
            Err(error) => {
                tracing::warn!(group = self.group, %error, "group cannot be read");
                return;
            }
        }
        let (log, (shard, opening)) = (self.shared.log.clone(), self.home);
        let gone = log.gone(shard, opening);
        tokio::pin!(gone);
        loop {
            let wake = match self.state.next_deadline() {
                Some(at) => self.started + Duration::from_millis(at),
                None => Instant::now() + QUIET,
            };
            let done = tokio::select! {
                biased;
                () = self.shared.stop.cancelled() => return,
                () = &mut gone => {
                    self.shared.forget(&self.group);
                    return;
                }
                durable = next_durable(&mut self.held), if !self.held.is_empty() => {
                    self.release(durable)
                }
                command = commands.recv() => match command {
                    Some(command) => self.obey(command).await,
                    None => return,
                },
                () = sleep_until(wake), if self.held.is_empty() => {
                    if self.state.is_empty() && self.state.next_deadline().is_none() {
                        self.shared.forget(&self.group);
                        // Those that came since are answered "restarting" by being dropped.
                        return;
                    }
                    Ok(())
                }
            };
            if let Err(error) = match done {
                Ok(()) => self.after().await,
                failed => failed,
            } {
                tracing::warn!(group = self.group, %error, "group not stored, it begins anew");
                self.shared.forget(&self.group);
                return;
            }
        }
    }

    /// What is due after everything.
    async fn after(&mut self) -> Result<(), GroupError> {
        let now = self.now();
        if self.held.is_empty() && self.state.next_deadline().is_some_and(|at| at <= now) {
            let actions = self.state.tick(now);
            self.act(actions).await?;
        }
        self.remember().await;
        Ok(())
    }

    fn now(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    async fn obey(&mut self, command: Command) -> Result<(), GroupError> {
        let now = self.now();
        match command {
            Command::Join(join, answer) => {
                let ticket = self.ticket();
                self.joins.insert(ticket, answer);
                let name = join.member.instance_id.as_ref().unwrap_or(&join.client_id);
                let name: String = name.chars().take(128).collect();
                let fresh_id = format!("{name}-{}", uuid::Uuid::new_v4());
                let actions = self.state.join(now, &join, fresh_id, ticket);
                self.act(actions).await?;
            }
            Command::Sync(sync, answer) => {
                let ticket = self.ticket();
                self.syncs.insert(ticket, answer);
                let actions = self.state.sync(now, sync, ticket);
                self.act(actions).await?;
            }
            Command::Heartbeat(who, generation, answer) => {
                say(answer, self.state.heartbeat(now, &who, generation));
            }
            Command::Leave(members, answer) => {
                let mut results = Vec::with_capacity(members.len());
                for member in &members {
                    let (result, actions) = self.state.leave(now, member);
                    results.push(result);
                    self.act(actions).await?;
                }
                say(answer, Ok(results));
            }
            Command::Commit(who, generation, offsets, answer) => {
                let result = match self.state.may_commit(now, &who, generation) {
                    Ok(()) => self.commit(&offsets).await,
                    Err(error) => Err(error),
                };
                say(answer, result);
            }
            Command::Describe(answer) => say(answer, Ok(self.state.describe())),
            Command::Delete(answer) => say(answer, self.delete().await),
            Command::DeleteOffsets(partitions, answer) => {
                say(answer, self.remove(&partitions, false).await);
            }
            Command::Expire(retention_ms, answer) => {
                say(answer, self.expire(retention_ms).await);
            }
        }
        Ok(())
    }

    fn ticket(&mut self) -> Ticket {
        self.tickets += 1;
        Ticket(self.tickets)
    }

    async fn act(&mut self, actions: Vec<Action>) -> Result<(), GroupError> {
        for action in actions {
            if matches!(action, Action::Store) {
                self.store().await?;
                continue;
            }
            // Errors promise nothing.
            let promise = matches!(action, Action::Joined(_, Ok(_)) | Action::Synced(_, Ok(_)));
            let waiting: usize = self.held.iter().map(|held| held.answers.len()).sum();
            match self.held.back_mut() {
                Some(_) if promise && waiting >= HELD_MAX => self.tell(refused(action)),
                Some(held) if promise => held.answers.push(action),
                _ => self.tell(action),
            }
        }
        Ok(())
    }

    fn tell(&mut self, action: Action) {
        match action {
            Action::Store => {}
            Action::Joined(ticket, result) => {
                if let Some(answer) = self.joins.remove(&ticket) {
                    say(answer, result);
                }
            }
            Action::Synced(ticket, result) => {
                if let Some(answer) = self.syncs.remove(&ticket) {
                    say(answer, result);
                }
            }
        }
    }

    fn stored(&self) -> Stored {
        self.state.to_stored(self.state.members.is_empty().then(wall_ms))
    }

    /// Hands the group as it is to the log; promises from now on wait for it.
    async fn store(&mut self) -> Result<(), GroupError> {
        if self.held.is_empty() {
            self.held_since = self.now();
        }
        let stored = self.stored();
        let durable = self.submit(vec![stored::put(&self.group, &stored)]).await?;
        self.record = Some(stored.record);
        self.held.push_back(Held { durable, answers: Vec::new() });
        Ok(())
    }

    /// The oldest store is durable, or failed.
    fn release(&mut self, durable: Result<Committed, LogError>) -> Result<(), GroupError> {
        durable?;
        let answers = self.held.pop_front().map(|held| held.answers);
        if self.held.is_empty() {
            self.state.excuse(self.now().saturating_sub(self.held_since));
        }
        for answer in answers.into_iter().flatten() {
            self.tell(answer);
        }
        Ok(())
    }

    async fn submit(&self, writes: Vec<Write>) -> Result<Pending, GroupError> {
        Ok(self.shared.log.submit(self.home.0, self.transaction(writes)).await?)
    }

    /// What another node may have changed since is not overwritten.
    fn transaction(&self, writes: Vec<Write>) -> Transaction {
        Transaction { writes, opening: Some(self.home.1), ..Transaction::default() }
    }

    async fn commit(
        &mut self,
        committed: &[(PartitionId, CommittedOffset)],
    ) -> Result<Pending, GroupError> {
        let mut writes: Vec<Write> = committed
            .iter()
            .map(|(partition, committed)| offsets::put(&self.group, *partition, committed))
            .collect();
        if self.record.is_none() {
            let stored = self.stored();
            writes.push(stored::put(&self.group, &stored));
            self.record = Some(stored.record);
        }
        self.submit(writes).await
    }

    /// Writes down whether the group has members, when that changed. Expiry reads it; nobody waits for it.
    async fn remember(&mut self) {
        let has_members = !self.state.members.is_empty();
        let was_active = self.record.as_ref().is_some_and(|record| record.empty_since_ms.is_none());
        if has_members == was_active {
            return;
        }
        let stored = self.stored();
        match self.submit(vec![stored::put(&self.group, &stored)]).await {
            Ok(_unwatched) => self.record = Some(stored.record),
            Err(error) => tracing::warn!(group = self.group, %error, "group record not written"),
        }
    }

    async fn delete(&mut self) -> Result<(), GroupError> {
        if !self.state.is_empty() {
            return Err(GroupError::NotEmpty);
        }
        let all = offsets::all(&self.shared.log, &self.group).await?;
        if self.record.is_none() && all.is_empty() {
            return Err(GroupError::NotFound);
        }
        let partitions: Vec<PartitionId> =
            all.into_iter().map(|(partition, _)| partition).collect();
        self.remove(&partitions, true).await
    }

    /// Removes offsets durably, and the group's record after the last of them if asked.
    async fn remove(
        &mut self,
        partitions: &[PartitionId],
        record_too: bool,
    ) -> Result<(), GroupError> {
        let mut writes: Vec<Write> = partitions
            .iter()
            .map(|partition| Write::Delete(offsets::key(&self.group, *partition)))
            .collect();
        if record_too {
            writes.push(stored::delete(&self.group));
        }
        for some in writes.chunks(REMOVALS) {
            self.shared.log.commit(self.home.0, self.transaction(some.to_vec())).await?;
        }
        if record_too {
            self.record = None;
        }
        Ok(())
    }

    async fn expire(&mut self, retention_ms: i64) -> Result<(), GroupError> {
        if !self.state.is_empty() {
            return Ok(());
        }
        let empty_since = self
            .record
            .as_ref()
            .and_then(|record| record.empty_since_ms)
            .unwrap_or(self.started_ms);
        let oldest = wall_ms().saturating_sub(retention_ms);
        if empty_since > oldest {
            return Ok(());
        }
        let (old, kept): (Vec<_>, Vec<_>) = offsets::all(&self.shared.log, &self.group)
            .await?
            .into_iter()
            .partition(|(_, committed)| committed.committed_ms < oldest);
        let old: Vec<PartitionId> = old.into_iter().map(|(partition, _)| partition).collect();
        self.remove(&old, kept.is_empty()).await
    }
}

/// Waits for the oldest that is held.
async fn next_durable(held: &mut VecDeque<Held>) -> Result<Committed, LogError> {
    match held.front_mut() {
        Some(held) => (&mut held.durable).await.unwrap_or(Err(LogError::Closed)),
        None => std::future::pending().await,
    }
}

fn refused(action: Action) -> Action {
    match action {
        Action::Store => Action::Store,
        Action::Joined(ticket, _) => Action::Joined(ticket, Err(GroupError::Restarting)),
        Action::Synced(ticket, _) => Action::Synced(ticket, Err(GroupError::Restarting)),
    }
}

/// Who asked may be gone; then there is nobody to tell.
fn say<T>(answer: Answer<T>, result: Result<T, GroupError>) {
    drop(answer.send(result));
}
