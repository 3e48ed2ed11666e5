//! What the broker says of itself: topics below `$SYS/broker/`, each with its last value.
//!
//! They are retained messages that lie in memory only, count for no limit, and go out at QoS 0, so that nothing of them is ever
//! stored or queued. Rights to read them are those of any topic; `#` does not reach them (MQTT-4.7.2-1). Clients do not publish
//! there. Change here: what is special about these topics. Not here: which there are and what they say (the host).

use std::sync::Arc;

use bytes::Bytes;
use bytestring::ByteString;

use super::{Decision, Now, State, action::Author};
use crate::{
    auth::{Action, Permissions, Who},
    message::Message,
    mqtt::{
        packet::{PublishProperties, Qos},
        write::Encoded,
    },
};

const TREE: &str = "$SYS/broker";

/// A topic that the broker alone publishes to.
pub(super) fn is_own(topic: &str) -> bool {
    topic.strip_prefix(TREE).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl State {
    /// Values for topics; one that is as it was, or that is not the broker's own topic, is passed over.
    pub(super) fn tell(&mut self, values: Vec<(ByteString, Bytes)>, now: Now, out: &mut Decision) {
        for (topic, payload) in values {
            if !is_own(&topic) || payload.is_empty() || self.retained.is_value(&topic, &payload) {
                continue;
            }
            let message = Arc::new(Message {
                topic,
                payload,
                qos: Qos::AtMostOnce,
                retain: true,
                properties: PublishProperties::default(),
                publisher: None,
                received_ms: now.wall_ms,
                expires_ms: None,
                encoded: Encoded::default(),
                place: None,
            });
            // QoS 0 leaves nothing to be queued.
            self.fan_out(&message, now, out);
            self.retained.insert(message, Author::Host);
        }
    }
}

/// Somebody may publish there.
pub(super) fn may_publish(permissions: &Permissions, who: Who<'_>, topic: &str) -> bool {
    !is_own(topic) && permissions.may(who, Action::Publish, topic)
}
