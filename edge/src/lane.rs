//! Lanes: the classes of messages that go upstream, each with its own rows, epochs, budget and connection.
//!
//! Holds: their settings, and which lane takes a topic. Pure. Change here: how a lane is chosen.
//! Not here: what is stored for a lane (`store`), how it is sent (`uplink`).

use serde::{Deserialize, Serialize};
use tributary_shared::topic::filter;

/// What happens to a message when its lane's budget is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// The oldest stored batches make room.
    DropOldest,
    /// From nine tenths of the budget on, QoS 0 messages are no longer kept; then the oldest batches make room.
    DropQos0First,
    /// The publisher is told: 0x97 in MQTT 5, no acknowledgement in 3.1.1.
    Refuse,
}

tributary_shared::settings! {
    /// One lane: a class of messages that goes upstream on its own connection, with its own disk budget.
    pub struct Settings {
        /// Name, 1 to 32 of `a-z 0-9 - _`; part of the upstream topic.
        pub name: String = "normal".to_owned(),
        /// MQTT topic filters it takes. The first lane that matches wins; topics that begin with `$` never match.
        pub filters: Vec<String> = vec!["#".to_owned()],
        /// Bytes on disk that wait to be sent.
        pub budget_bytes: u64 = 1024 * 1024 * 1024,
        /// At the budget: `drop_oldest`, `drop_qos0_first` or `refuse`.
        pub policy: Policy = Policy::DropOldest,
        /// Seconds that a message may wait; older ones are given up, oldest first, whatever the policy, and the cloud is told.
        /// 0 = for ever. Counted in time that the edge itself saw pass: a wrong clock changes nothing, and while the
        /// machine is off no message grows older. A message may go up to a hundredth later than this.
        pub budget_age_s: u64 = 0 => 0..=315_360_000,
        /// When the cloud is there again after an outage, new messages are sent before those that waited. These follow with
        /// the record header `historical` = `true`; order holds among the new and among the old. Otherwise order holds
        /// across outages.
        pub fresh_first: bool = false,
        /// With `fresh_first`: bytes a second at which the old ones follow; 0 = as much as the line takes.
        pub catch_up_bytes_per_s: u64 = 0,
    }
}

impl Settings {
    /// Says what is wrong with a value, if anything is.
    pub fn check_all(&self) -> Result<(), String> {
        let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
        if self.name.is_empty() || self.name.len() > 32 || !self.name.chars().all(legal) {
            return Err(format!("lane name `{}` must be 1 to 32 of a-z 0-9 - _", self.name));
        }
        if let Some(bad) = self.filters.iter().find(|f| !filter::is_legal(f)) {
            return Err(format!("lane `{}`: `{bad}` is not an MQTT topic filter", self.name));
        }
        if self.budget_bytes < 1024 * 1024 {
            return Err(format!("lane `{}`: budget_bytes must be at least 1048576", self.name));
        }
        Ok(())
    }

    /// This lane takes the topic.
    pub fn takes(&self, topic: &str) -> bool {
        !topic.starts_with('$')
            && self.filters.iter().any(|f| f == "#" || filter::matches(f, topic))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_that_begin_with_a_dollar_go_to_no_lane() {
        let lane = Settings::default();
        assert!(lane.takes("a/b"));
        assert!(!lane.takes("$SYS/broker"));
    }

    #[test]
    fn a_bad_name_or_filter_is_named() {
        let lane = Settings { name: "Up!".to_owned(), ..Settings::default() };
        assert!(lane.check_all().is_err_and(|why| why.contains("Up!")));
        let lane = Settings { filters: vec!["a/#/b".to_owned()], ..Settings::default() };
        assert!(lane.check_all().is_err_and(|why| why.contains("a/#/b")));
    }
}
