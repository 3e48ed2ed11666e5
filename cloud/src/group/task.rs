//! The task of one group: commands in, `state` decides, answers out; deadlines; offsets to the log.
//!
//! In: [`Command`]s over a bounded queue. Out: answers, commits. Ends itself when the group has been empty and quiet.
//! Change here: how a group is run. Not here: rules (`state`), finding the task (`super`).

use std::{
    collections::HashMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};

use super::{
    Shared,
    exchange::{Description, GroupError, Join, Joined, MemberRef, Sync, Synced},
    offsets::{self, CommittedOffset, GroupRecord},
    state::{Action, Limits, State, Ticket},
};
use crate::{
    engine::Write,
    log::{PartitionId, Pending, Transaction},
};

/// An empty group's task ends after so long without a command.
const QUIET: Duration = Duration::from_secs(30);

/// Writes of one transaction that removes offsets.
const REMOVALS: usize = 500;

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

pub(super) struct Task {
    group: String,
    shared: std::sync::Arc<Shared>,
    state: State,
    started: Instant,
    started_ms: i64,
    tickets: u64,
    joins: HashMap<Ticket, Answer<Joined>>,
    syncs: HashMap<Ticket, Answer<Synced>>,
    /// As last written.
    record: Option<GroupRecord>,
}

impl Task {
    pub(super) fn new(group: String, shared: std::sync::Arc<Shared>) -> Self {
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
            started: Instant::now(),
            started_ms: wall_ms(),
            shared,
            tickets: 0,
            joins: HashMap::new(),
            syncs: HashMap::new(),
            record: None,
        }
    }

    /// Runs until the group is empty and quiet, or the process stops.
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        match offsets::record(&self.shared.log, &self.group).await {
            Ok(record) => self.record = record,
            Err(error) => {
                tracing::warn!(group = self.group, %error, "group cannot be read");
                return;
            }
        }
        loop {
            let wake = match self.state.next_deadline() {
                Some(at) => self.started + Duration::from_millis(at),
                None => Instant::now() + QUIET,
            };
            tokio::select! {
                biased;
                () = self.shared.stop.cancelled() => return,
                command = commands.recv() => match command {
                    Some(command) => self.obey(command).await,
                    None => return,
                },
                () = sleep_until(wake) => {
                    if self.state.is_empty() && self.state.next_deadline().is_none() {
                        self.shared.forget(&self.group);
                        // Those that came since are answered "restarting" by being dropped.
                        return;
                    }
                }
            }
            let now = self.now();
            if self.state.next_deadline().is_some_and(|at| at <= now) {
                let actions = self.state.tick(now);
                self.act(actions);
            }
            self.remember().await;
        }
    }

    fn now(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    async fn obey(&mut self, command: Command) {
        let now = self.now();
        match command {
            Command::Join(join, answer) => {
                let ticket = self.ticket();
                self.joins.insert(ticket, answer);
                let name = join.member.instance_id.as_ref().unwrap_or(&join.client_id);
                let name: String = name.chars().take(128).collect();
                let fresh_id = format!("{name}-{}", uuid::Uuid::new_v4());
                let actions = self.state.join(now, &join, fresh_id, ticket);
                self.act(actions);
            }
            Command::Sync(sync, answer) => {
                let ticket = self.ticket();
                self.syncs.insert(ticket, answer);
                let actions = self.state.sync(now, sync, ticket);
                self.act(actions);
            }
            Command::Heartbeat(who, generation, answer) => {
                say(answer, self.state.heartbeat(now, &who, generation));
            }
            Command::Leave(members, answer) => {
                let mut results = Vec::with_capacity(members.len());
                for member in &members {
                    let (result, actions) = self.state.leave(now, member);
                    results.push(result);
                    self.act(actions);
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
    }

    fn ticket(&mut self) -> Ticket {
        self.tickets += 1;
        Ticket(self.tickets)
    }

    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
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
    }

    async fn submit(&self, writes: Vec<Write>) -> Result<Pending, GroupError> {
        let shard = self.shared.log.home_shard(&self.group);
        let transaction = Transaction { writes, ..Transaction::default() };
        Ok(self.shared.log.submit(shard, transaction).await?)
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
            let record =
                GroupRecord { protocol_type: String::new(), empty_since_ms: Some(wall_ms()) };
            writes.push(offsets::put_record(&self.group, &record));
            self.record = Some(record);
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
        let record = GroupRecord {
            protocol_type: self.state.protocol_type.clone(),
            empty_since_ms: (!has_members).then(wall_ms),
        };
        // A restart leaves "active" behind: that is known when nobody has joined since, and means empty since the start.
        if !has_members && self.state.generation == 0 {
            return;
        }
        match self.submit(vec![offsets::put_record(&self.group, &record)]).await {
            Ok(_unwatched) => self.record = Some(record),
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
        let shard = self.shared.log.home_shard(&self.group);
        let mut writes: Vec<Write> = partitions
            .iter()
            .map(|partition| Write::Delete(offsets::key(&self.group, *partition)))
            .collect();
        if record_too {
            writes.push(offsets::delete_record(&self.group));
        }
        for some in writes.chunks(REMOVALS) {
            let transaction = Transaction { writes: some.to_vec(), ..Transaction::default() };
            self.shared.log.commit(shard, transaction).await?;
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

/// Who asked may be gone; then there is nobody to tell.
fn say<T>(answer: Answer<T>, result: Result<T, GroupError>) {
    drop(answer.send(result));
}
