//! One group's rules, PURE: members, generations, who waits for what.
//!
//! ```text
//! Empty --first join--> Joining --all in, or time is up--> Syncing --leader's shares--> Stable
//!   ^                      ^------------ join, leave, expiry --------------'--------------'
//!   '---- last member gone
//! ```
//! In: an event and the time (ms on any monotonic clock). Out: [`Action`]s, in order. A question that must wait has a
//! [`Ticket`] that a later action answers. Change here: what members may do when. Not here: coming in (`join`), moving from
//! one generation to the next (`rebalance`), running (`task`), offsets (`offsets`).

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

use super::exchange::{
    DescribedMember, Description, GroupError, Join, Joined, MemberRef, Sync, Synced,
};

/// Milliseconds on a monotonic clock.
pub(super) type Millis = u64;

/// A question that waits for its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Ticket(pub(super) u64);

/// What the task does.
#[derive(Debug)]
pub(super) enum Action {
    /// Remembers the group as it is now, before it does what comes after this.
    Store,
    Joined(Ticket, Result<Joined, GroupError>),
    Synced(Ticket, Result<Synced, GroupError>),
}

/// What a group may grow to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) members: usize,
    pub(super) metadata_bytes: usize,
    pub(super) session_timeout_min_ms: u64,
    pub(super) session_timeout_max_ms: u64,
    pub(super) initial_rebalance_delay_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Empty,
    /// Collecting members. `initial`: the first of a group waits for company, at the latest until `cap`.
    Joining {
        deadline: Millis,
        initial: Option<Initial>,
    },
    Syncing {
        deadline: Millis,
    },
    Stable,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Initial {
    pub(super) cap: Millis,
    pub(super) newcomer: bool,
}

#[derive(Debug)]
pub(super) struct Member {
    pub(super) instance_id: Option<String>,
    pub(super) client_id: String,
    pub(super) client_host: String,
    pub(super) session_timeout_ms: u64,
    pub(super) rebalance_timeout_ms: u64,
    pub(super) protocols: Vec<(String, Bytes)>,
    pub(super) assignment: Bytes,
    pub(super) joining: Option<Ticket>,
    pub(super) syncing: Option<Ticket>,
    pub(super) expires: Millis,
}

impl Member {
    pub(super) fn new(join: &Join, ticket: Ticket, now: Millis) -> Self {
        let mut member = Self {
            instance_id: join.member.instance_id.clone(),
            client_id: join.client_id.clone(),
            client_host: join.client_host.clone(),
            session_timeout_ms: 0,
            rebalance_timeout_ms: 0,
            protocols: Vec::new(),
            assignment: Bytes::new(),
            joining: Some(ticket),
            syncing: None,
            expires: 0,
        };
        member.refresh(join, now);
        member
    }

    /// Takes over what a new join says.
    pub(super) fn refresh(&mut self, join: &Join, now: Millis) {
        self.session_timeout_ms = join.session_timeout_ms.max(0) as u64;
        // Version 0 has no rebalance timeout: the session's counts.
        self.rebalance_timeout_ms = match u64::try_from(join.rebalance_timeout_ms) {
            Ok(timeout) => timeout,
            Err(_) => self.session_timeout_ms,
        };
        self.protocols.clone_from(&join.protocols);
        self.touch(now);
    }

    pub(super) fn touch(&mut self, now: Millis) {
        self.expires = now + self.session_timeout_ms;
    }

    /// Silent members that wait for us are not dead.
    pub(super) fn waits(&self) -> bool {
        self.joining.is_some() || self.syncing.is_some()
    }

    pub(super) fn metadata(&self, protocol: &str) -> Bytes {
        self.protocols
            .iter()
            .find(|(name, _)| name == protocol)
            .map_or_else(Bytes::new, |p| p.1.clone())
    }
}

/// One group.
#[derive(Debug)]
pub(super) struct State {
    pub(super) limits: Limits,
    pub(super) phase: Phase,
    pub(super) generation: i32,
    pub(super) protocol_type: String,
    pub(super) protocol: String,
    pub(super) leader: String,
    pub(super) members: BTreeMap<String, Member>,
    /// Instance id -> member id.
    pub(super) statics: HashMap<String, String>,
    /// Ids given out, not joined with yet, and until when they are kept.
    pub(super) promised: BTreeMap<String, Millis>,
}

impl State {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            phase: Phase::Empty,
            generation: 0,
            protocol_type: String::new(),
            protocol: String::new(),
            leader: String::new(),
            members: BTreeMap::new(),
            statics: HashMap::new(),
            promised: BTreeMap::new(),
        }
    }

    /// The member if it is in the group under that id.
    pub(super) fn known(&mut self, who: &MemberRef) -> Result<&mut Member, GroupError> {
        if let Some(instance) = &who.instance_id {
            match self.statics.get(instance) {
                None => return Err(GroupError::UnknownMember),
                Some(id) if *id != who.member_id => return Err(GroupError::FencedInstance),
                Some(_) => {}
            }
        }
        self.members.get_mut(&who.member_id).ok_or(GroupError::UnknownMember)
    }

    /// SyncGroup.
    pub(super) fn sync(&mut self, now: Millis, sync: Sync, ticket: Ticket) -> Vec<Action> {
        let mut actions = Vec::new();
        if let Err(error) = self.try_sync(now, sync, ticket, &mut actions) {
            actions.push(Action::Synced(ticket, Err(error)));
        }
        actions
    }

    fn try_sync(
        &mut self,
        now: Millis,
        sync: Sync,
        ticket: Ticket,
        actions: &mut Vec<Action>,
    ) -> Result<(), GroupError> {
        let generation = self.generation;
        self.known(&sync.member)?.touch(now);
        if sync.generation != generation {
            return Err(GroupError::IllegalGeneration);
        }
        let differs =
            |asked: &Option<String>, ours: &str| asked.as_ref().is_some_and(|a| a != ours);
        if differs(&sync.protocol_type, &self.protocol_type)
            || differs(&sync.protocol, &self.protocol)
        {
            return Err(GroupError::InconsistentProtocol);
        }
        match self.phase {
            Phase::Empty => Err(GroupError::UnknownMember),
            Phase::Joining { .. } => Err(GroupError::RebalanceInProgress),
            Phase::Stable => {
                actions.push(Action::Synced(ticket, Ok(self.share_of(&sync.member.member_id))));
                Ok(())
            }
            Phase::Syncing { .. } => {
                let member = self.known(&sync.member)?;
                if let Some(old) = member.syncing.replace(ticket) {
                    actions.push(Action::Synced(old, Err(GroupError::RebalanceInProgress)));
                }
                if sync.member.member_id == self.leader {
                    self.assign(now, sync.assignments, actions);
                }
                Ok(())
            }
        }
    }

    /// Heartbeat.
    pub(super) fn heartbeat(
        &mut self,
        now: Millis,
        who: &MemberRef,
        generation: i32,
    ) -> Result<(), GroupError> {
        let current = self.generation;
        let joining = matches!(self.phase, Phase::Joining { .. });
        let member = self.known(who)?;
        if generation != current {
            return Err(GroupError::IllegalGeneration);
        }
        member.touch(now);
        if joining { Err(GroupError::RebalanceInProgress) } else { Ok(()) }
    }

    /// LeaveGroup, one member. With an instance id the member id may be empty.
    pub(super) fn leave(
        &mut self,
        now: Millis,
        who: &MemberRef,
    ) -> (Result<(), GroupError>, Vec<Action>) {
        let mut actions = Vec::new();
        let mut who = who.clone();
        if let (true, Some(instance)) = (who.member_id.is_empty(), &who.instance_id)
            && let Some(id) = self.statics.get(instance)
        {
            who.member_id.clone_from(id);
        }
        if self.promised.remove(&who.member_id).is_some() {
            self.try_complete(now, &mut actions);
            return (Ok(()), actions);
        }
        if let Err(error) = self.known(&who) {
            return (Err(error), actions);
        }
        self.remove(&who.member_id, &GroupError::UnknownMember, &mut actions);
        self.after_removal(now, &mut actions);
        (Ok(()), actions)
    }

    /// May these offsets be committed? A commit is a sign of life.
    pub(super) fn may_commit(
        &mut self,
        now: Millis,
        who: &MemberRef,
        generation: i32,
    ) -> Result<(), GroupError> {
        if generation < 0 && self.members.is_empty() {
            // A consumer that assigns itself and only keeps its offsets here.
            return Ok(());
        }
        let (current, syncing) = (self.generation, matches!(self.phase, Phase::Syncing { .. }));
        let member = self.known(who)?;
        if generation != current {
            return Err(GroupError::IllegalGeneration);
        }
        member.touch(now);
        if syncing { Err(GroupError::RebalanceInProgress) } else { Ok(()) }
    }

    /// Time that the group itself was kept waiting is not its members' silence.
    pub(super) fn excuse(&mut self, waited: Millis) {
        for member in self.members.values_mut() {
            member.expires += waited;
        }
    }

    /// Nobody is in it or about to be.
    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty() && self.promised.is_empty()
    }

    /// As operators see it.
    pub(super) fn describe(&self) -> Description {
        let state = match self.phase {
            Phase::Empty => "Empty",
            Phase::Joining { .. } => "PreparingRebalance",
            Phase::Syncing { .. } => "CompletingRebalance",
            Phase::Stable => "Stable",
        };
        let stable = self.phase == Phase::Stable;
        let members = self.members.iter().map(|(id, member)| DescribedMember {
            member_id: id.clone(),
            instance_id: member.instance_id.clone(),
            client_id: member.client_id.clone(),
            client_host: member.client_host.clone(),
            metadata: if stable { member.metadata(&self.protocol) } else { Bytes::new() },
            assignment: if stable { member.assignment.clone() } else { Bytes::new() },
        });
        Description {
            state: state.to_owned(),
            protocol_type: self.protocol_type.clone(),
            protocol: if stable { self.protocol.clone() } else { String::new() },
            members: members.collect(),
        }
    }
}
