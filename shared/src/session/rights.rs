//! What clients may do, asked wherever it matters: CONNECT (names, will), PUBLISH, SUBSCRIBE, a will when it is due, a
//! queued message when it comes back from the store; and all of it again when the rules change.
//!
//! A granted subscription covers all its topics, so what it brings needs no look until then.
//! Not here: the rules (`auth::rules`), who a client is (the host).

use std::sync::Arc;

use bytestring::ByteString;

use super::{Decision, Now, SessionId, State, client::Session, delayed, own::may_publish};
use crate::{
    auth::{Action, Permissions, Who},
    mqtt::packet::{Connect, Reason},
};

/// What was refused since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Denied {
    /// CONNECTs: another owner's session, names that rules cannot hold, wills.
    pub connects: u64,
    /// PUBLISHes.
    pub publishes: u64,
    /// Filters of SUBSCRIBEs.
    pub subscriptions: u64,
    /// Subscriptions that a change of the rules ended.
    pub revoked: u64,
    /// Queued messages that their reader may no longer have, retained ones that their publisher may no longer publish.
    pub deliveries: u64,
    /// Wills when they were due.
    pub wills: u64,
    /// Delayed messages when they were due.
    pub delayed: u64,
}

impl Session {
    /// Who asks for it.
    pub(super) fn who(&self) -> Who<'_> {
        Who { principal: self.principal.as_deref(), client_id: &self.client_id }
    }

    /// It may receive messages of that topic.
    pub(super) fn may_have(&self, topic: &str, permissions: &Permissions) -> bool {
        permissions.may(self.who(), Action::Subscribe, topic)
    }
}

impl State {
    /// A client of that name may connect so; its client id is settled.
    pub(super) fn check_rights(
        &mut self,
        connect: &Connect,
        principal: Option<&str>,
    ) -> Result<(), Reason> {
        let who = Who { principal, client_id: &connect.client_id };
        self.permissions.check_names(who)?;
        let published = |topic| delayed::target(topic).map_or(topic, |target| target.topic);
        match &connect.will {
            Some(will) if !may_publish(&self.permissions, who, published(&will.topic)) => {
                Err(Reason::NOT_AUTHORIZED)
            }
            _ => Ok(()),
        }
    }

    /// New rules: subscriptions that they do not allow end, with the connection, so that its client learns of it; what waits
    /// in memory for somebody who may not have it any more is dropped and counted. What waits in the store is looked at
    /// when it is loaded.
    pub(super) fn permit(&mut self, permissions: Arc<Permissions>, now: Now, out: &mut Decision) {
        if self.permissions == permissions {
            return;
        }
        self.permissions = permissions;
        if self.permissions.is_everything() {
            return;
        }
        let mut sessions: Vec<SessionId> = self.sessions.keys().copied().collect();
        sessions.sort_unstable();
        // All of them before any connection ends: its will must not find a subscription that is not looked at yet.
        sessions.retain(|id| self.check_again(*id, now, out));
        for id in sessions {
            let online = self.sessions.get(&id).and_then(|session| session.online);
            if let Some(online) = online {
                self.fault(online.connection, Reason::NOT_AUTHORIZED, now, out);
            }
        }
    }

    /// Says whether it lost a subscription.
    fn check_again(&mut self, id: SessionId, now: Now, out: &mut Decision) -> bool {
        let Some(session) = self.sessions.get(&id) else { return false };
        let may_not = |filter: &&ByteString| !session.may_have(filter, &self.permissions);
        let revoked: Vec<_> = session.subscriptions.iter().filter(may_not).cloned().collect();
        for filter in &revoked {
            self.unsubscribe_one(id, filter, out);
        }
        self.denied.revoked += revoked.len() as u64;
        let Some(session) = self.sessions.get_mut(&id) else { return false };
        let forbidden: Vec<(u64, usize)> = session
            .queue
            .waiting
            .iter()
            .filter(|entry| !session.may_have(&entry.message.topic, &self.permissions))
            .map(|entry| (entry.seq, entry.bytes()))
            .collect();
        session.queue.remove(&forbidden);
        self.denied.deliveries += forbidden.len() as u64;
        for (seq, bytes) in forbidden {
            session.done(seq, bytes, out);
            session.dropped("not_authorized", out);
        }
        session.pump(&self.settings, now, out);
        !revoked.is_empty()
    }
}
