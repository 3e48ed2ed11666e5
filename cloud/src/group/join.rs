//! Coming into a group, PURE: new members, known ones, static ones that come back.
//!
//! Change here: who gets in, and whether that begins a rebalance. Not here: the rebalance itself (`rebalance`).

use super::{
    exchange::{GroupError, Join, MemberRef},
    state::{Action, Member, Millis, Phase, State, Ticket},
};

impl State {
    /// JoinGroup. `fresh_id` is used if the member needs an id.
    pub(super) fn join(
        &mut self,
        now: Millis,
        join: &Join,
        fresh_id: String,
        ticket: Ticket,
    ) -> Vec<Action> {
        let mut actions = Vec::new();
        if let Err(error) = self.try_join(now, join, fresh_id, ticket, &mut actions) {
            actions.push(Action::Joined(ticket, Err(error)));
        }
        actions
    }

    fn try_join(
        &mut self,
        now: Millis,
        join: &Join,
        fresh_id: String,
        ticket: Ticket,
        actions: &mut Vec<Action>,
    ) -> Result<(), GroupError> {
        self.check_join(join)?;
        let MemberRef { member_id, instance_id } = &join.member;
        if !member_id.is_empty() {
            if self.promised.remove(member_id).is_some() {
                return self.add_member(now, join, member_id.clone(), ticket, actions);
            }
            self.known(&join.member)?;
            self.rejoin(now, join, ticket, actions);
            return Ok(());
        }
        match instance_id.as_ref().and_then(|instance| self.statics.get(instance).cloned()) {
            Some(old_id) => {
                self.replace_static(now, join, &old_id, fresh_id, ticket, actions);
                Ok(())
            }
            None if join.id_required && instance_id.is_none() => {
                self.check_room()?;
                let until = now + join.session_timeout_ms.max(0) as u64;
                self.promised.insert(fresh_id.clone(), until);
                Err(GroupError::MemberIdRequired { member_id: fresh_id })
            }
            None => self.add_member(now, join, fresh_id, ticket, actions),
        }
    }

    fn check_join(&self, join: &Join) -> Result<(), GroupError> {
        let (min_ms, max_ms) =
            (self.limits.session_timeout_min_ms, self.limits.session_timeout_max_ms);
        let asked_ms = join.session_timeout_ms;
        if !u64::try_from(asked_ms).is_ok_and(|asked| (min_ms..=max_ms).contains(&asked)) {
            return Err(GroupError::BadSessionTimeout { asked_ms, min_ms, max_ms });
        }
        let size = join.protocols.iter().map(|(name, metadata)| name.len() + metadata.len()).sum();
        if size > self.limits.metadata_bytes {
            return Err(GroupError::MetadataTooLarge { size, limit: self.limits.metadata_bytes });
        }
        if join.protocol_type.is_empty() || join.protocols.is_empty() {
            return Err(GroupError::InconsistentProtocol);
        }
        // Those that are not the one who asks decide what it must be able to do.
        let mut others =
            self.members.iter().filter(|(id, _)| **id != join.member.member_id).peekable();
        if others.peek().is_none() {
            return Ok(());
        }
        let others: Vec<&Member> = others.map(|(_, member)| member).collect();
        let common = join.protocols.iter().any(|(name, _)| {
            others.iter().all(|other| other.protocols.iter().any(|(theirs, _)| theirs == name))
        });
        if join.protocol_type == self.protocol_type && common {
            Ok(())
        } else {
            Err(GroupError::InconsistentProtocol)
        }
    }

    pub(super) fn check_room(&self) -> Result<(), GroupError> {
        let limit = self.limits.members;
        if self.members.len() + self.promised.len() < limit {
            Ok(())
        } else {
            Err(GroupError::Full { limit })
        }
    }

    fn add_member(
        &mut self,
        now: Millis,
        join: &Join,
        id: String,
        ticket: Ticket,
        actions: &mut Vec<Action>,
    ) -> Result<(), GroupError> {
        self.check_room()?;
        if self.members.is_empty() {
            self.protocol_type.clone_from(&join.protocol_type);
        }
        if let Some(instance) = &join.member.instance_id {
            self.statics.insert(instance.clone(), id.clone());
        }
        self.members.insert(id, Member::new(join, ticket, now));
        self.newcomer(now, actions);
        Ok(())
    }

    /// A member that is known joins again.
    fn rejoin(&mut self, now: Millis, join: &Join, ticket: Ticket, actions: &mut Vec<Action>) {
        let id = &join.member.member_id;
        let Some(member) = self.members.get_mut(id) else { return };
        let changed = member.protocols != join.protocols;
        member.refresh(join, now);
        let must_rebalance = match self.phase {
            Phase::Empty | Phase::Joining { .. } => true,
            // It may have missed the answer.
            Phase::Syncing { .. } => changed,
            // The leader asks for a new assignment by joining again.
            Phase::Stable => changed || *id == self.leader,
        };
        if must_rebalance {
            // A second join takes the place of the first.
            if let Some(old) = member.joining.replace(ticket) {
                actions.push(Action::Joined(old, Err(GroupError::RebalanceInProgress)));
            }
            self.rebalance(now, actions);
        } else {
            let answer = self.generation_for(id, false);
            actions.push(Action::Joined(ticket, Ok(answer)));
        }
    }

    /// A static member came back without its member id: it gets a new one, and the old is fenced.
    fn replace_static(
        &mut self,
        now: Millis,
        join: &Join,
        old_id: &str,
        new_id: String,
        ticket: Ticket,
        actions: &mut Vec<Action>,
    ) {
        let Some(mut member) = self.members.remove(old_id) else { return };
        if let Some(old) = member.joining.take() {
            actions.push(Action::Joined(old, Err(GroupError::FencedInstance)));
        }
        if let Some(old) = member.syncing.take() {
            actions.push(Action::Synced(old, Err(GroupError::FencedInstance)));
        }
        let same = member.protocols == join.protocols;
        member.refresh(join, now);
        member.client_id.clone_from(&join.client_id);
        member.client_host.clone_from(&join.client_host);
        if let Some(instance) = &member.instance_id {
            self.statics.insert(instance.clone(), new_id.clone());
        }
        let was_leader = self.leader == old_id;
        if was_leader {
            self.leader.clone_from(&new_id);
        }
        if same && self.phase == Phase::Stable {
            self.members.insert(new_id.clone(), member);
            let mut answer = self.generation_for(&new_id, join.can_skip_assignment);
            if was_leader && !join.can_skip_assignment {
                // An old client that is named leader would assign anew: it is told that another leads.
                old_id.clone_into(&mut answer.leader);
                answer.members.clear();
            }
            // A restart that forgot the new id would fence its owner.
            actions.push(Action::Store);
            actions.push(Action::Joined(ticket, Ok(answer)));
        } else {
            member.joining = Some(ticket);
            self.members.insert(new_id, member);
            self.rebalance(now, actions);
        }
    }
}
