//! From one generation to the next, PURE: collecting members, choosing protocol and leader, handing out shares, time.
//!
//! Change here: when a rebalance begins and ends. Not here: what a single member may do (`state`).

use std::collections::HashMap;

use bytes::Bytes;

use super::{
    exchange::{GroupError, Joined, JoinedMember, Synced},
    state::{Action, Initial, Millis, Phase, State},
};

impl State {
    /// A member was added.
    pub(super) fn newcomer(&mut self, now: Millis, actions: &mut Vec<Action>) {
        if let Phase::Joining { initial: Some(initial), .. } = &mut self.phase {
            initial.newcomer = true;
        }
        self.rebalance(now, actions);
    }

    /// Begins a rebalance if none is under way, and ends it if nobody is missing.
    pub(super) fn rebalance(&mut self, now: Millis, actions: &mut Vec<Action>) {
        match self.phase {
            Phase::Joining { .. } => {}
            Phase::Empty => {
                let cap = now + self.rebalance_timeout_ms();
                let delay = self.limits.initial_rebalance_delay_ms;
                let initial = (delay > 0).then_some(Initial { cap, newcomer: false });
                let deadline = if delay > 0 { cap.min(now + delay) } else { cap };
                self.phase = Phase::Joining { deadline, initial };
            }
            Phase::Syncing { .. } | Phase::Stable => {
                for member in self.members.values_mut() {
                    member.assignment = Bytes::new();
                    if let Some(ticket) = member.syncing.take() {
                        let error = Err(GroupError::RebalanceInProgress);
                        actions.push(Action::Synced(ticket, error));
                        member.touch(now);
                    }
                }
                let deadline = now + self.rebalance_timeout_ms();
                self.phase = Phase::Joining { deadline, initial: None };
            }
        }
        self.try_complete(now, actions);
    }

    fn rebalance_timeout_ms(&self) -> u64 {
        self.members.values().map(|member| member.rebalance_timeout_ms).max().unwrap_or(0)
    }

    /// Ends the joining if all are in.
    pub(super) fn try_complete(&mut self, now: Millis, actions: &mut Vec<Action>) {
        if let Phase::Joining { initial: None, .. } = self.phase
            && self.promised.is_empty()
            && self.members.values().all(|member| member.joining.is_some())
        {
            self.complete(now, actions);
        }
    }

    /// A new generation of those who are in. Static members that did not come keep their place until their session ends.
    fn complete(&mut self, now: Millis, actions: &mut Vec<Action>) {
        let gone: Vec<String> = self
            .members
            .iter()
            .filter(|(_, member)| member.joining.is_none() && member.instance_id.is_none())
            .map(|(id, _)| id.clone())
            .collect();
        for id in gone {
            self.remove(&id, &GroupError::UnknownMember, actions);
        }
        if self.members.is_empty() {
            self.become_empty();
            return;
        }
        let leads = |state: &Self, id: &str| {
            state.members.get(id).is_some_and(|member| member.joining.is_some())
        };
        if !leads(self, &self.leader) {
            let next = self.members.iter().find(|(_, member)| member.joining.is_some());
            let Some((id, _)) = next else {
                // Only static members, and none of them here: they have another round.
                let deadline = now + self.rebalance_timeout_ms().max(1);
                self.phase = Phase::Joining { deadline, initial: None };
                return;
            };
            self.leader.clone_from(id);
        }
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        self.protocol = self.choose_protocol();
        self.phase = Phase::Syncing { deadline: now + self.rebalance_timeout_ms() };
        let mut tickets = Vec::new();
        for (id, member) in &mut self.members {
            member.touch(now);
            tickets.extend(member.joining.take().map(|ticket| (id.clone(), ticket)));
        }
        for (id, ticket) in tickets {
            actions.push(Action::Joined(ticket, Ok(self.generation_for(&id, false))));
        }
    }

    /// The protocol most members like best among those that all can do (there is one: joins are checked).
    fn choose_protocol(&self) -> String {
        let can_all = |name: &str| {
            self.members.values().all(|m| m.protocols.iter().any(|(theirs, _)| theirs == name))
        };
        let mut votes: Vec<(&str, usize)> = Vec::new();
        for member in self.members.values() {
            let Some((choice, _)) = member.protocols.iter().find(|(name, _)| can_all(name)) else {
                continue;
            };
            match votes.iter_mut().find(|(name, _)| name == choice) {
                Some((_, count)) => *count += 1,
                None => votes.push((choice, 1)),
            }
        }
        let winner = votes.iter().rev().max_by_key(|(_, count)| *count);
        winner.map_or_else(String::new, |(name, _)| (*name).to_owned())
    }

    /// The current generation as member `id` sees it.
    pub(super) fn generation_for(&self, id: &str, skip_assignment: bool) -> Joined {
        let leads = self.leader == id;
        let members = self.members.iter().filter(|_| leads).map(|(id, member)| JoinedMember {
            member_id: id.clone(),
            instance_id: member.instance_id.clone(),
            metadata: member.metadata(&self.protocol),
        });
        Joined {
            generation: self.generation,
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone(),
            leader: self.leader.clone(),
            member_id: id.to_owned(),
            skip_assignment: skip_assignment && leads,
            members: members.collect(),
        }
    }

    /// The leader's shares: the group is stable, and all who wait get theirs.
    pub(super) fn assign(
        &mut self,
        now: Millis,
        assignments: Vec<(String, Bytes)>,
        actions: &mut Vec<Action>,
    ) {
        let mut shares: HashMap<String, Bytes> = assignments.into_iter().collect();
        self.phase = Phase::Stable;
        let mut tickets = Vec::new();
        for (id, member) in &mut self.members {
            member.assignment = shares.remove(id).unwrap_or_default();
            member.touch(now);
            tickets.extend(member.syncing.take().map(|ticket| (id.clone(), ticket)));
        }
        actions.push(Action::Store);
        for (id, ticket) in tickets {
            actions.push(Action::Synced(ticket, Ok(self.share_of(&id))));
        }
    }

    pub(super) fn share_of(&self, id: &str) -> Synced {
        Synced {
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone(),
            assignment: self
                .members
                .get(id)
                .map_or_else(Bytes::new, |member| member.assignment.clone()),
        }
    }

    /// Takes a member out; whoever waits in its name hears `why`.
    pub(super) fn remove(&mut self, id: &str, why: &GroupError, actions: &mut Vec<Action>) {
        let Some(member) = self.members.remove(id) else { return };
        if let Some(instance) = &member.instance_id {
            self.statics.remove(instance);
        }
        if let Some(ticket) = member.joining {
            actions.push(Action::Joined(ticket, Err(why.clone())));
        }
        if let Some(ticket) = member.syncing {
            actions.push(Action::Synced(ticket, Err(why.clone())));
        }
    }

    pub(super) fn after_removal(&mut self, now: Millis, actions: &mut Vec<Action>) {
        match self.phase {
            // The first wait for company ends at its time.
            Phase::Empty | Phase::Joining { initial: Some(_), .. } => {}
            Phase::Joining { initial: None, .. } => self.try_complete(now, actions),
            Phase::Syncing { .. } | Phase::Stable => self.rebalance(now, actions),
        }
    }

    fn become_empty(&mut self) {
        self.phase = Phase::Empty;
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        self.leader.clear();
        self.protocol.clear();
        self.statics.clear();
    }

    /// When [`State::tick`] has something to do next.
    pub(super) fn next_deadline(&self) -> Option<Millis> {
        let phase = match self.phase {
            Phase::Joining { deadline, .. } | Phase::Syncing { deadline } => Some(deadline),
            Phase::Empty | Phase::Stable => None,
        };
        let sessions =
            self.members.values().filter(|member| !member.waits()).map(|member| member.expires);
        sessions.chain(self.promised.values().copied()).chain(phase).min()
    }

    /// Does what is due: dead members, unclaimed ids, rebalances out of time.
    pub(super) fn tick(&mut self, now: Millis) -> Vec<Action> {
        let mut actions = Vec::new();
        let promised = self.promised.len();
        self.promised.retain(|_, until| *until > now);
        let dead: Vec<String> = self
            .members
            .iter()
            .filter(|(_, member)| !member.waits() && member.expires <= now)
            .map(|(id, _)| id.clone())
            .collect();
        for id in &dead {
            self.remove(id, &GroupError::UnknownMember, &mut actions);
        }
        if !dead.is_empty() || promised != self.promised.len() {
            if dead.is_empty() {
                self.try_complete(now, &mut actions);
            } else {
                self.after_removal(now, &mut actions);
            }
        }
        match self.phase {
            Phase::Joining { deadline, initial } if deadline <= now => {
                self.joining_is_over(now, initial, &mut actions);
            }
            Phase::Syncing { deadline } if deadline <= now => {
                self.drop_silent(now, &mut actions);
            }
            _ => {}
        }
        actions
    }

    fn joining_is_over(
        &mut self,
        now: Millis,
        initial: Option<Initial>,
        actions: &mut Vec<Action>,
    ) {
        if let Some(Initial { cap, newcomer: true }) = initial
            && now < cap
        {
            let deadline = cap.min(now + self.limits.initial_rebalance_delay_ms);
            self.phase =
                Phase::Joining { deadline, initial: Some(Initial { cap, newcomer: false }) };
            return;
        }
        self.complete(now, actions);
    }

    /// Members that did not ask for their share in time are out.
    fn drop_silent(&mut self, now: Millis, actions: &mut Vec<Action>) {
        let silent: Vec<String> = self
            .members
            .iter()
            .filter(|(_, member)| member.syncing.is_none())
            .map(|(id, _)| id.clone())
            .collect();
        for id in silent {
            self.remove(&id, &GroupError::UnknownMember, actions);
        }
        self.rebalance(now, actions);
    }
}
