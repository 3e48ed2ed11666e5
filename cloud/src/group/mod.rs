//! Consumer groups of the classic protocol: who is a member, who gets what, what has been read.
//!
//! Holds: a handle to all groups, one task a group that is in use. A task hands every event to `state` (pure), which
//! answers what to send to whom; offsets and generations are durable in the log before anybody is told. A group lives in its
//! home shard: when that leaves, its task ends, and where it is opened the group is read when it is first asked for.
//! In: joins, syncs, heartbeats, leaves, commits. Out: answers. Change here: how groups are found, begun and ended.
//! Not here: the rules of the protocol (`state`, `rebalance`), wire codes (`kafka::error`).

pub mod exchange;
mod join;
pub mod offsets;
mod rebalance;
mod state;
#[cfg(test)]
mod state_tests;
mod stored;
mod task;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

pub use exchange::{Description, GroupError, Join, Joined, MemberRef, Sync, Synced};
pub use offsets::CommittedOffset;
use task::{Answer, Command, Task};
use tokio::sync::{mpsc, oneshot};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tributary_shared::tasks;

use crate::log::{Log, LogError, PartitionId};

/// Commands that wait for one group's task; more wait in their connections.
const QUEUE: usize = 256;

/// Longest group name, bytes.
const NAME_MAX: usize = 1_024;

tributary_shared::settings! {
    /// Consumer groups: time-outs, limits, how long offsets are kept.
    pub struct Settings {
        /// How long the first members of an empty group wait for company, ms (Kafka: group.initial.rebalance.delay.ms).
        pub initial_rebalance_delay_ms: u64 = 500,
        /// Shortest session timeout taken, ms.
        pub session_timeout_min_ms: u64 = 1_000,
        /// Longest session timeout taken, ms.
        pub session_timeout_max_ms: u64 = 1_800_000,
        /// Members of one group.
        pub members_max: usize = 1_000,
        /// Groups in use at a time.
        pub groups_max: usize = 10_000,
        /// Subscription metadata of one member, bytes.
        pub member_metadata_bytes_max: usize = 262_144,
        /// Text that a client stores with an offset, bytes.
        pub offset_metadata_bytes_max: usize = 4_096,
        /// Offsets of a group without members go after so long, ms; -1 = never.
        pub offsets_retention_ms: i64 = 604_800_000,
        /// How often expired offsets are looked for, ms.
        pub offsets_check_ms: u64 = 600_000,
    }
}

/// Handle to all groups; clones share everything.
#[derive(Clone)]
pub struct Groups {
    shared: Arc<Shared>,
}

struct Shared {
    log: Log,
    settings: Settings,
    stop: CancellationToken,
    tasks: TaskTracker,
    groups: Mutex<HashMap<String, mpsc::Sender<Command>>>,
}

impl Shared {
    fn forget(&self, group: &str) {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner).remove(group);
    }
}

impl Groups {
    /// Groups over `log`; their tasks end when `stop` is cancelled.
    pub fn open(log: Log, settings: Settings, stop: CancellationToken) -> Self {
        let groups = Mutex::new(HashMap::new());
        let tasks = TaskTracker::new();
        let shared = Arc::new(Shared { log, settings, stop, tasks, groups });
        let groups = Self { shared };
        let expiry = groups.shared.tasks.track_future(groups.clone().expire_for_ever());
        drop(tasks::spawn("group offsets expiry", expiry));
        groups
    }

    /// Waits until all tasks have ended; `stop` must have been cancelled.
    pub async fn closed(&self) {
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }

    /// Joins a group; returns when the next generation begins.
    pub async fn join(&self, group: &str, join: Join) -> Result<Joined, GroupError> {
        self.ask(group, |answer| Command::Join(Box::new(join), answer)).await
    }

    /// A member's share of the generation; waits for the leader.
    pub async fn sync(&self, group: &str, sync: Sync) -> Result<Synced, GroupError> {
        self.ask(group, |answer| Command::Sync(sync, answer)).await
    }

    /// A sign of life.
    pub async fn heartbeat(
        &self,
        group: &str,
        who: MemberRef,
        generation: i32,
    ) -> Result<(), GroupError> {
        self.ask(group, |answer| Command::Heartbeat(who, generation, answer)).await
    }

    /// Members leave; one result each.
    pub async fn leave(
        &self,
        group: &str,
        members: Vec<MemberRef>,
    ) -> Result<Vec<Result<(), GroupError>>, GroupError> {
        self.ask(group, |answer| Command::Leave(members, answer)).await
    }

    /// Commits offsets; returns when they are durable. `committed_ms` is set here.
    pub async fn commit(
        &self,
        group: &str,
        who: MemberRef,
        generation: i32,
        mut offsets: Vec<(PartitionId, CommittedOffset)>,
    ) -> Result<(), GroupError> {
        let now = task::wall_ms();
        for (_, offset) in &mut offsets {
            offset.committed_ms = now;
        }
        let pending =
            self.ask(group, |answer| Command::Commit(who, generation, offsets, answer)).await?;
        pending.await.map_err(|_| LogError::Closed)??;
        Ok(())
    }

    /// Longest metadata taken with an offset, bytes.
    pub fn offset_metadata_bytes_max(&self) -> usize {
        self.shared.settings.offset_metadata_bytes_max
    }

    /// One committed offset.
    pub async fn offset(
        &self,
        group: &str,
        partition: PartitionId,
    ) -> Result<Option<CommittedOffset>, LogError> {
        offsets::get(&self.shared.log, group, partition).await
    }

    /// All committed offsets of a group.
    pub async fn offsets(
        &self,
        group: &str,
    ) -> Result<Vec<(PartitionId, CommittedOffset)>, LogError> {
        offsets::all(&self.shared.log, group).await
    }

    /// As operators see it; `None`: there is no such group.
    pub async fn describe(&self, group: &str) -> Result<Option<Description>, GroupError> {
        let record = stored::get(&self.shared.log, group).await?.map(|stored| stored.record);
        // A group that had members has them still, or finds out.
        let had_members = record.as_ref().is_some_and(|record| record.empty_since_ms.is_none());
        if had_members || self.running(group).is_some() {
            let description = self.ask(group, Command::Describe).await?;
            if !description.members.is_empty() || description.state != "Empty" {
                return Ok(Some(description));
            }
        }
        Ok(record.map(|record| Description {
            state: "Empty".to_owned(),
            protocol_type: record.protocol_type,
            ..Description::default()
        }))
    }

    /// All groups whose home is here by name, with or without members.
    pub async fn list(&self) -> Result<Vec<(String, Description)>, GroupError> {
        let mut found = BTreeMap::new();
        let mut running: BTreeSet<String> = self.lock().keys().cloned().collect();
        let log = &self.shared.log;
        running.retain(|group| log.is_here(log.home_shard(group)));
        for (group, record) in stored::records(&self.shared.log).await? {
            if record.empty_since_ms.is_none() {
                running.insert(group.clone());
            }
            let protocol_type = record.protocol_type;
            let state = "Empty".to_owned();
            found.insert(group, Description { state, protocol_type, ..Description::default() });
        }
        for group in running {
            if let Some(description) = self.describe(&group).await? {
                found.insert(group, description);
            }
        }
        Ok(found.into_iter().collect())
    }

    /// Removes a group without members, with its offsets.
    pub async fn delete(&self, group: &str) -> Result<(), GroupError> {
        self.ask(group, Command::Delete).await
    }

    /// Removes offsets of a group.
    pub async fn delete_offsets(
        &self,
        group: &str,
        partitions: Vec<PartitionId>,
    ) -> Result<(), GroupError> {
        self.ask(group, |answer| Command::DeleteOffsets(partitions, answer)).await
    }

    /// Hands a command to the group's task and waits for the answer.
    async fn ask<T>(
        &self,
        group: &str,
        command: impl FnOnce(Answer<T>) -> Command,
    ) -> Result<T, GroupError> {
        if group.is_empty() || group.len() > NAME_MAX {
            return Err(GroupError::BadGroupId);
        }
        let (answer, answered) = oneshot::channel();
        let mut command = command(answer);
        // A task that ends between being found and being asked gives the command back.
        loop {
            let task = self.task(group)?;
            match task.send(command).await {
                Ok(()) => break,
                Err(mpsc::error::SendError(back)) => {
                    command = back;
                    self.forget_closed(group);
                    if self.shared.stop.is_cancelled() {
                        return Err(GroupError::Restarting);
                    }
                }
            }
        }
        answered.await.unwrap_or(Err(GroupError::Restarting))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, mpsc::Sender<Command>>> {
        self.shared.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn running(&self, group: &str) -> Option<mpsc::Sender<Command>> {
        self.lock().get(group).filter(|task| !task.is_closed()).cloned()
    }

    fn forget_closed(&self, group: &str) {
        let mut groups = self.lock();
        if groups.get(group).is_some_and(mpsc::Sender::is_closed) {
            groups.remove(group);
        }
    }

    /// The group's task, begun if there is none.
    fn task(&self, group: &str) -> Result<mpsc::Sender<Command>, GroupError> {
        let limit = self.shared.settings.groups_max;
        let shard = self.shared.log.home_shard(group);
        let opening = self.shared.log.opening(shard).ok_or(LogError::NotOwner)?;
        let mut groups = self.lock();
        if let Some(task) = groups.get(group) {
            return Ok(task.clone());
        }
        if groups.len() >= limit {
            return Err(GroupError::TooManyGroups { limit });
        }
        let (task, commands) = mpsc::channel(QUEUE);
        groups.insert(group.to_owned(), task.clone());
        let run =
            Task::new(group.to_owned(), (shard, opening), Arc::clone(&self.shared)).run(commands);
        // Its death ends only this group: the next question begins it anew.
        drop(tasks::spawn("group", self.shared.tasks.track_future(run)));
        Ok(task)
    }

    async fn expire_for_ever(self) {
        let every = Duration::from_millis(self.shared.settings.offsets_check_ms.max(1_000));
        let retention_ms = self.shared.settings.offsets_retention_ms;
        if retention_ms < 0 {
            return;
        }
        loop {
            tokio::select! {
                () = self.shared.stop.cancelled() => return,
                () = tokio::time::sleep(every) => {}
            }
            if let Err(error) = self.expire(retention_ms).await {
                tracing::warn!(%error, "expired offsets not removed");
            }
        }
    }

    async fn expire(&self, retention_ms: i64) -> Result<(), GroupError> {
        for (group, record) in stored::records(&self.shared.log).await? {
            let oldest = task::wall_ms().saturating_sub(retention_ms);
            if record.empty_since_ms.is_none_or(|since| since <= oldest) {
                match self.ask(&group, |answer| Command::Expire(retention_ms, answer)).await {
                    // It left meanwhile.
                    Err(GroupError::Restarting | GroupError::Log(LogError::NotOwner)) => {}
                    done => done?,
                }
            }
        }
        Ok(())
    }
}
