//! Who gets a message, once each.
//!
//! In: a message. Out: deliveries, and the queue entries to store with it. Overlapping subscriptions of a session become one
//! copy with the highest QoS and all subscription ids (3.3.4); each shared group gives its copy to one member (4.8.2).
//! Not here: what a session does with it (`deliver`).

use std::{cell::OnceCell, sync::Arc};

use super::{
    Change, Decision, Effect, Fanout, Now, Queued, SessionId, Settings, State,
    action::Author,
    client::Session,
    deliver::Offer,
    ids::IdMap,
    queue::weight,
    routes::{Fit, Group, NodeId},
};
use crate::{
    message::{Message, MessageRef},
    mqtt::packet::Qos,
};

/// Reused from fan-out to fan-out.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    round: u64,
    targets: Vec<Target>,
    groups: Vec<(NodeId, usize)>,
}

#[derive(Debug)]
struct Target {
    session: SessionId,
    qos: Qos,
    retain: bool,
    subscription_ids: Vec<u32>,
}

impl State {
    /// A message that a client or a will publishes.
    pub(super) fn accept(
        &mut self,
        message: Arc<Message>,
        author: Author,
        now: Now,
        out: &mut Decision,
    ) {
        if self.fanout == Fanout::FromLog {
            out.changes.push(Change::Message { message, queued: Vec::new(), stored: None });
            return;
        }
        let queued = self.fan_out(&message, now, out);
        out.changes.push(Change::Message { message: message.clone(), queued, stored: None });
        self.retain(message, author, out);
    }

    /// A message that the host itself publishes; it waits to be durable, as what that is answered does.
    pub(super) fn publish_own(&mut self, message: Arc<Message>, now: Now, out: &mut Decision) {
        out.wait = true;
        self.accept(message, Author::Host, now, out);
    }

    /// A message that the host brings: from the log, from upstream, its own.
    pub(super) fn bring(
        &mut self,
        message: Arc<Message>,
        stored: Option<MessageRef>,
        now: Now,
        out: &mut Decision,
    ) {
        let queued = self.fan_out(&message, now, out);
        if !queued.is_empty() {
            let message = message.clone();
            out.changes.push(match stored {
                Some(_) => Change::Message { message, queued, stored },
                None => Change::Enqueued { message, queued },
            });
        }
        self.retain(message, Author::Host, out);
    }

    /// Keeps or clears the retained message of a topic, if this one says so (MQTT-3.3.1-5 to 3.3.1-7).
    fn retain(&mut self, message: Arc<Message>, author: Author, out: &mut Decision) {
        if !message.retain {
            return;
        }
        let topic = message.topic.clone();
        if message.payload.is_empty() {
            if self.retained.remove(&topic) {
                out.changes.push(Change::Retained { topic, message: None, author });
            }
        } else if self.retained.fits(&topic, weight(&message), &self.settings) {
            // Who subscribes later gets it as of then.
            let message = Arc::new(Message { place: None, ..message.unshared() });
            self.retained.insert(message.clone(), author.clone());
            out.changes.push(Change::Retained { topic, message: Some(message), author });
        } else {
            out.effects.push(Effect::Dropped { session: None, why: "retained_full", count: 1 });
        }
    }

    pub(super) fn fan_out(
        &mut self,
        message: &Arc<Message>,
        now: Now,
        out: &mut Decision,
    ) -> Vec<Queued> {
        self.match_topic(message);
        let kept = &OnceCell::new();
        let mut queued = Vec::new();
        let mut targets = std::mem::take(&mut self.scratch.targets);
        for target in targets.drain(..) {
            let Some(session) = self.sessions.get_mut(&target.session) else { continue };
            let Target { qos, retain, subscription_ids, .. } = target;
            let offer = Offer { message, kept, qos, retain, subscription_ids, group: None };
            queued.extend(session.offer(offer, &self.settings, now, out));
        }
        self.scratch.targets = targets;
        let mut groups = std::mem::take(&mut self.scratch.groups);
        for (node, index) in groups.drain(..) {
            let Some(group) = self.routes.group_at(node, index) else { continue };
            let turn = Turn { message, kept, but: None, least: Fit::Over };
            if let Given::To(Some(entry)) =
                turn.give(group, &mut self.sessions, &self.settings, now, out)
            {
                queued.push(entry);
            }
        }
        self.scratch.groups = groups;
        queued
    }

    /// Fills the scratch with targets and groups.
    fn match_topic(&mut self, message: &Message) {
        let Self { settings, routes, sessions, clients, scratch, .. } = self;
        let merge = !settings.copy_each_match;
        scratch.round += 1;
        let round = scratch.round;
        let mut publisher: Option<Option<SessionId>> = None;
        routes.walk(&message.topic, &mut |node, leaf| {
            for subscriber in leaf.subscribers() {
                let options = &subscriber.options;
                if options.no_local {
                    // MQTT-3.8.3-3
                    let publisher = *publisher.get_or_insert_with(|| {
                        message.publisher.as_ref().and_then(|id| clients.get(id)).copied()
                    });
                    if publisher == Some(subscriber.session) {
                        continue;
                    }
                }
                let Some(session) = sessions.get_mut(&subscriber.session) else { continue };
                let qos = options.qos.min(message.qos);
                let retain = message.retain && options.retain_as_published;
                if merge
                    && session.met.0 == round
                    && let Some(target) = scratch.targets.get_mut(session.met.1)
                {
                    target.qos = target.qos.max(qos);
                    target.retain |= retain;
                    target.subscription_ids.extend(subscriber.id);
                    continue;
                }
                session.met = (round, scratch.targets.len());
                let subscription_ids = subscriber.id.map_or_else(Vec::new, |id| vec![id]);
                let session = subscriber.session;
                scratch.targets.push(Target { session, qos, retain, subscription_ids });
            }
            scratch.groups.extend((0..leaf.groups()).map(|index| (node, index)));
        });
    }

    /// Gives a message of a shared group to another member than `from`, who leaves, if one fits at least so.
    pub(super) fn give_again(
        &mut self,
        message: &Arc<Message>,
        filter: &str,
        from: SessionId,
        least: Fit,
        now: Now,
        out: &mut Decision,
    ) -> Given {
        let Some(group) = self.routes.group(filter) else { return Given::Nobody };
        let turn = Turn { message, kept: &OnceCell::new(), but: Some(from), least };
        turn.give(group, &mut self.sessions, &self.settings, now, out)
    }
}

/// What became of a message for a shared group.
#[derive(Debug)]
pub(super) enum Given {
    /// No member fits.
    Nobody,
    /// One took it; with the queue entry to store.
    To(Option<Queued>),
}

/// A message to be given to one member of a shared group.
struct Turn<'a> {
    message: &'a Arc<Message>,
    kept: &'a OnceCell<Arc<Message>>,
    /// Passed over.
    but: Option<SessionId>,
    least: Fit,
}

impl Turn<'_> {
    fn give(
        &self,
        group: &mut Group,
        sessions: &mut IdMap<SessionId, Box<Session>>,
        limits: &Settings,
        now: Now,
        out: &mut Decision,
    ) -> Given {
        let message = self.message;
        let member = group.pick(|member| match sessions.get(&member.session) {
            Some(session) if self.but != Some(member.session) => {
                let fit = session.fit(message, member.options.qos.min(message.qos), limits);
                if fit < self.least { Fit::No } else { fit }
            }
            _ => Fit::No,
        });
        let Some(member) = member else { return Given::Nobody };
        let Some(session) = sessions.get_mut(&member.session) else { return Given::Nobody };
        let offer = Offer {
            message,
            kept: self.kept,
            qos: member.options.qos.min(message.qos),
            retain: message.retain && member.options.retain_as_published,
            subscription_ids: member.id.map_or_else(Vec::new, |id| vec![id]),
            group: Some(group.filter.clone()),
        };
        Given::To(session.offer(offer, limits, now, out))
    }
}

impl Session {
    fn fit(&self, message: &Message, qos: Qos, limits: &Settings) -> Fit {
        let bytes = weight(message);
        let fits = if self.stored {
            self.queue.fits_store(bytes, limits)
        } else {
            self.queue.fits_memory(bytes, limits)
        };
        match (&self.online, qos) {
            (Some(_), Qos::AtMostOnce) => Fit::Ready,
            (None, Qos::AtMostOnce) => Fit::No,
            (None, _) if !self.stored => Fit::No,
            _ if !fits => Fit::Over,
            (None, _) => Fit::Away,
            (Some(_), _) if self.queue.is_roomy(limits) => Fit::Ready,
            (Some(_), _) => Fit::Full,
        }
    }
}
