//! SUBSCRIBE and UNSUBSCRIBE (3.8 to 3.11). Each filter is answered by itself; the answer waits where subscriptions are stored.

use std::collections::VecDeque;

use bytestring::ByteString;

use super::{
    Change, ConnectionId, Decision, Now, SessionId, State, action::SavedSubscription,
    publish::send, retained::Replay, routes::Subscriber,
};
use crate::{
    mqtt::{
        Version,
        packet::{Packet, Qos, Reason, SubAck, Subscribe, SubscribeFilter, Unsubscribe},
    },
    topic::filter::Subscribed,
};

impl State {
    /// SUBSCRIBE; `refused`: what the host does not grant, by filter.
    pub(super) fn subscribe(
        &mut self,
        connection: ConnectionId,
        subscribe: Subscribe,
        refused: &[Option<Reason>],
        now: Now,
        out: &mut Decision,
    ) {
        let Some(link) = self.connections.get(&connection) else { return };
        let (id, version) = (link.session, link.version);
        let no_local_shared =
            |one: &SubscribeFilter| one.options.no_local && one.filter.starts_with("$share/");
        if subscribe.filters.is_empty() || subscribe.filters.iter().any(no_local_shared) {
            // MQTT-3.8.3-2, 3.8.3-4
            return self.fault(connection, Reason::PROTOCOL_ERROR, now, out);
        }
        // A filter that is subscribed to again starts again, but each of one packet counts (MQTT-3.8.4-5).
        let mut older = self.sessions.get(&id).map_or(0, |session| session.replays.len());
        let mut reasons = Vec::with_capacity(subscribe.filters.len());
        for (at, mut one) in subscribe.filters.into_iter().enumerate() {
            if let Some(session) = self.sessions.get(&id) {
                one.filter = self.templates.filter(session.who(), one.filter);
            }
            let outcome = match refused.get(at).copied().flatten() {
                Some(reason) => {
                    // Nor may it keep what it got before the host refused it.
                    let _none = self.unsubscribe_one(id, &one.filter, out);
                    Err(reason)
                }
                None if at >= self.settings.filters => Err(Reason::QUOTA_EXCEEDED),
                None => {
                    self.subscribe_one(id, one, subscribe.subscription_id, &mut older, now, out)
                }
            };
            reasons.push(match outcome {
                Ok(qos) => Reason(qos as u8),
                Err(_) if version != Version::V5 => Reason::UNSPECIFIED, // 3.1.1: 0x80 is all there is
                Err(reason) => reason,
            });
        }
        send(out, connection, Packet::SubAck(answer(subscribe.packet_id, reasons)));
        self.replay(id, now, out);
    }

    fn subscribe_one(
        &mut self,
        id: SessionId,
        one: SubscribeFilter,
        subscription_id: Option<u32>,
        older: &mut usize,
        now: Now,
        out: &mut Decision,
    ) -> Result<Qos, Reason> {
        let settings = &self.settings;
        let Some(session) = self.sessions.get_mut(&id) else { return Err(Reason::UNSPECIFIED) };
        // A copy: as it came it would keep all of the read it came in.
        let filter = ByteString::from(&*one.filter);
        let parsed = Subscribed::parse(&filter).map_err(|_| Reason::TOPIC_FILTER_INVALID)?;
        let new = !session.subscriptions.contains(&filter);
        if (new && session.subscriptions.len() >= settings.subscriptions)
            || filter.len() > settings.filter_bytes
            || parsed.filter.split('/').count() > settings.topic_levels
        {
            return Err(Reason::QUOTA_EXCEEDED);
        }
        if !session.may_have(&filter, &self.permissions) {
            self.denied.subscriptions += 1;
            return Err(Reason::NOT_AUTHORIZED);
        }
        let options = one.options;
        session.subscriptions.insert(filter.clone());
        self.subscriptions += usize::from(new);
        self.routes.insert(
            &filter,
            parsed,
            Subscriber { session: id, options, id: subscription_id },
        );
        if session.stored {
            out.wait = true;
            out.changes.push(Change::Subscribed(SavedSubscription {
                session: id,
                filter: filter.clone(),
                options,
                subscription_id,
                replay: None,
            }));
        }
        for (at, replay) in session.replays.iter_mut().enumerate() {
            if replay.pattern == filter {
                // The store has just been told of the subscription as it is now. An earlier packet's goes on for it.
                (replay.subscribed, replay.stored) = ((options, subscription_id), None);
                if at < *older {
                    (replay.options, replay.id) = (options, subscription_id);
                }
            }
        }
        let wanted = options.retain_handling == 0 || (options.retain_handling == 1 && new);
        if wanted && parsed.share.is_none() && !self.retained.is_empty() {
            let of_earlier = |replays: &VecDeque<Replay>, older: usize| {
                replays.iter().take(older).position(|replay| replay.pattern == filter)
            };
            while let Some(at) = of_earlier(&session.replays, *older) {
                session.replays.remove(at);
                *older -= 1;
            }
            session.replays.push_back(Replay {
                pattern: filter,
                options,
                id: subscription_id,
                after: None,
                version: self.retained.version(),
                subscribed: (options, subscription_id),
                since_ms: now.wall_ms,
                restored: false,
                stored: None,
            });
        }
        Ok(options.qos)
    }

    pub(super) fn unsubscribe(
        &mut self,
        connection: ConnectionId,
        unsubscribe: Unsubscribe,
        now: Now,
        out: &mut Decision,
    ) {
        let Some(link) = self.connections.get(&connection) else { return };
        let (id, version) = (link.session, link.version);
        if unsubscribe.filters.is_empty() {
            return self.fault(connection, Reason::PROTOCOL_ERROR, now, out); // MQTT-3.10.3-2
        }
        // All of them, however many: before version 5 a client cannot be told that one stays.
        let reasons = unsubscribe
            .filters
            .into_iter()
            .map(|filter| self.unsubscribe_meant(id, filter, out))
            .collect();
        let reasons = if version == Version::V5 { reasons } else { Vec::new() };
        send(out, connection, Packet::UnsubAck(answer(unsubscribe.packet_id, reasons)));
        self.go_on(connection, now, out);
    }

    /// A subscription that was made before a rule rewrites it has its name still.
    fn unsubscribe_meant(
        &mut self,
        id: SessionId,
        filter: ByteString,
        out: &mut Decision,
    ) -> Reason {
        let Some(session) = self.sessions.get(&id) else { return Reason::UNSPECIFIED };
        let meant = self.templates.filter(session.who(), filter.clone());
        let there = session.subscriptions.contains(&meant);
        self.unsubscribe_one(id, if there { &meant } else { &filter }, out)
    }

    /// Subscribes to what the settings say. What the client may not have, or has no room for, is left out.
    pub(super) fn auto_subscribe(&mut self, id: SessionId, now: Now, out: &mut Decision) {
        let Some(session) = self.sessions.get(&id) else { return };
        let auto = self.templates.auto(session.who());
        if auto.is_empty() {
            return;
        }
        let mut older = session.replays.len();
        for (filter, options) in auto {
            let one = SubscribeFilter { filter, options };
            if let Err(reason) = self.subscribe_one(id, one, None, &mut older, now, out) {
                tracing::debug!(session = id.0, reason = reason.0, "not subscribed by itself");
            }
        }
        self.replay(id, now, out);
    }

    /// What is on its way for the subscription still comes (MQTT-3.10.4-3).
    pub(super) fn unsubscribe_one(
        &mut self,
        id: SessionId,
        filter: &ByteString,
        out: &mut Decision,
    ) -> Reason {
        let parsed = Subscribed::parse(filter);
        let Some(session) = self.sessions.get_mut(&id) else { return Reason::UNSPECIFIED };
        let Ok(parsed) = parsed else { return Reason::TOPIC_FILTER_INVALID };
        if !session.subscriptions.remove(filter) {
            return Reason::NO_SUBSCRIPTION_EXISTED;
        }
        self.subscriptions -= 1;
        session.replays.retain(|replay| replay.pattern != *filter);
        if session.stored {
            out.wait = true;
            out.changes.push(Change::Unsubscribed { session: id, filter: filter.clone() });
        }
        self.routes.remove(filter, parsed, id);
        Reason::SUCCESS
    }
}

fn answer(packet_id: crate::mqtt::PacketId, reasons: Vec<Reason>) -> SubAck {
    SubAck { packet_id, reasons, reason_string: None, user_properties: Vec::new() }
}
