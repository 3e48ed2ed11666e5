//! What the broker core can be told: limits, each with the reason for its default (RELIABILITY 4.2).
//!
//! Change here: a limit. Not here: limits of bytes on the wire (`connection`) or on disk (the host's store).

use serde::{Deserialize, Serialize};

use super::rewrite::{self, AutoSubscribe, Rewrite};
use crate::mqtt::packet::UserProperties;

crate::settings! {
    /// Limits of MQTT sessions.
    pub struct Settings {
        /// QoS 1 and 2 messages sent to a client and not yet acknowledged by it. A client may ask for fewer.
        pub inflight_messages: u16 = 20,
        /// Bytes of such messages; one message is always allowed.
        pub inflight_bytes: usize = 256 * 1024,
        /// Messages a session keeps in memory for a client that is slower than its subscriptions. More stay on disk where
        /// the session survives its connection, and are dropped and counted where it does not.
        pub queue_messages: usize = 1_000,
        /// Bytes of such messages.
        pub queue_bytes: usize = 1024 * 1024,
        /// Messages a session keeps on disk; further ones are dropped and counted.
        pub queue_stored_messages: u64 = 100_000,
        /// Bytes of such messages.
        pub queue_stored_bytes: u64 = 64 * 1024 * 1024,
        /// QoS 1 and 2 publications that a client of version 5 may have without our final answer, told to it as Receive
        /// Maximum; with one more its connection ends.
        pub receive_maximum: u16 = 100,
        /// Bytes of the longest packet we take, told to clients. 0: not told.
        pub packet_bytes: u32 = 256 * 1024,
        /// Highest topic alias a client may use; 0 = none.
        pub topic_alias_maximum: u16 = 16,
        /// Subscriptions a client may have.
        pub subscriptions: usize = 256,
        /// Filters of one SUBSCRIBE; those beyond are refused, each by itself.
        pub filters: usize = 64,
        /// Bytes of a topic filter.
        pub filter_bytes: usize = 512,
        /// A client with several subscriptions that match a message gets it once for each, with the QoS and id of that one.
        /// false: once, with the highest QoS and all ids.
        pub copy_each_match: bool = false,
        /// Levels of a topic or filter.
        pub topic_levels: usize = 32,
        /// Retained messages; a new topic beyond that is refused.
        pub retained_messages: usize = 10_000,
        /// Bytes of retained messages.
        pub retained_bytes: usize = 64 * 1024 * 1024,
        /// User properties of a message, a CONNECT or a will; one with more is refused.
        pub user_properties: usize = 32,
        /// Bytes of their names and values.
        pub user_property_bytes: usize = 4 * 1024,
        /// Bytes of a will's payload.
        pub will_bytes: usize = 64 * 1024,
        /// Longest delay in seconds of a message to `$delayed/{seconds}/{topic}`; messages over this bound or one of the next
        /// two are refused.
        pub delayed_s: u32 = 4_294_967,
        /// Such messages that wait.
        pub delayed_messages: usize = 10_000,
        /// Their bytes, which are in memory, with 256 for each.
        pub delayed_bytes: usize = 16 * 1024 * 1024,
        /// Sessions, connected or not.
        pub sessions: usize = 10_000,
        /// Seconds a session survives its connection at most. Sessions of 3.1.1 that are not clean get this.
        pub session_expiry_s: u32 = 86_400,
        /// Longest keep-alive in seconds; clients of version 5 that ask for more, or for none, are told this one.
        /// 0: any is accepted, also none.
        pub keep_alive_s: u16 = 0,
        /// Bytes of a client id.
        pub client_id_bytes: usize = 256,
        /// What happens when a client of version 3.1.1 publishes what it may not: its protocol has no way to say so. close: the
        /// connection ends (and again, if the client repeats the message); drop: the message is acknowledged, dropped, and
        /// counted. Clients of version 5 are told.
        pub refused_publish: RefusedPublish = RefusedPublish::Close,
        /// Topic prefix given to clients that ask for response information, followed by `/` and the client id. Empty: none.
        pub response_prefix: String = String::new(),
        /// Rules that turn clients' topics into others; rights are those for what comes out. The first that matches is
        /// followed, once. No change for subscriptions that are there already.
        pub rewrite: Vec<Rewrite> = Vec::new(),
        /// Subscriptions that every client has from its CONNECT on, if it may.
        pub auto_subscribe: Vec<AutoSubscribe> = Vec::new(),
    }
}

impl Settings {
    /// What single values cannot say of themselves. One sentence that names the key below `section`.
    pub fn check_all(&self, section: &str) -> Result<(), String> {
        rewrite::check(self, section)
    }

    /// More user properties than these are not taken.
    pub(super) fn too_many(&self, properties: &UserProperties) -> bool {
        let bytes: usize = properties.iter().map(|(name, value)| name.len() + value.len()).sum();
        properties.len() > self.user_properties || bytes > self.user_property_bytes
    }
}

/// What a client that cannot be told gets for a message it may not publish (MQTT-3.3.5-2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RefusedPublish {
    /// The end of its connection.
    Close,
    /// An acknowledgement.
    Drop,
}

/// When a published message reaches its subscribers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fanout {
    /// With the decision that takes it (edge).
    AtOnce,
    /// When it comes back as [`super::Event::Message`] from the log it was appended to (cloud).
    FromLog,
}
