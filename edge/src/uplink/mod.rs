//! Outbound -> cloud: one task and one connection a lane.
//!
//! ```text
//! store rows after the cursor -> plan (what the cloud expects) -> link, at most a window -> answers -> mark -> store
//! ```
//! In: rows of [`crate::store::Store`]. Out: marks to it. `sending` decides and is pure, `task` does.
//! Change here: settings. Not here: MQTT (`link`).

mod pace;
mod plan;
mod poison;
mod progress;
mod renamed;
pub mod sending;
mod share;
mod stream;
mod task;
#[cfg(test)]
mod tests;
mod window;

use serde::{Deserialize, Serialize};
pub use share::{LaneShare, Share};
pub use task::{Part, Uplink};

/// What an uplink sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Record batches with epochs and sequences.
    Batches,
    /// Ordinary publishes.
    Mqtt,
}

tributary_shared::settings! {
    /// The way to the cloud.
    pub struct Settings {
        /// Where the cloud listens: `mqtts://host:port` with TLS, `mqtt://host:port` without. Empty: this edge works alone
        /// and keeps nothing for a cloud.
        pub cloud: String = String::new(),
        /// What is sent: `batches` of records to Tributary's cloud, each exactly once, or each message as an ordinary
        /// publish to any `mqtt` 5 broker, at least once.
        pub format: Format = Format::Batches,
        /// Format mqtt: before every topic, as in `site-7/`.
        pub prefix: String = String::new(),
        /// User name at the cloud. Empty: none.
        pub user: String = String::new(),
        /// File with its password, in the first line.
        pub password_file: String = String::new(),
        /// PEM file: authorities that may have signed the cloud's certificate. Empty: those of enrolment.
        pub ca: String = String::new(),
        /// PEM file: the certificate that this edge shows the cloud, and those between it and its authority. Empty: that of
        /// enrolment; none if there is none.
        pub certificate: String = String::new(),
        /// PEM file: its private key.
        pub key: String = String::new(),
        /// Batches sent and not yet confirmed, a lane.
        pub window_batches: usize = 64 => 1..=512,
        /// Bytes of such batches, at most; one batch is always allowed. Less is under way on a line that carries less.
        pub window_bytes: usize = 2 * 1024 * 1024 => 4096..=67_108_864,
        /// Milliseconds the cloud may take for the next confirmation; then the connection is given up.
        pub ack_timeout_ms: u64 = 30_000 => 100..=600_000,
        /// Milliseconds from dialling to CONNACK.
        pub connect_timeout_ms: u64 = 10_000 => 100..=600_000,
        /// Shortest wait before another attempt, milliseconds; it grows with each failure, with jitter.
        pub backoff_min_ms: u64 = 1000 => 1..=600_000,
        /// Longest such wait.
        pub backoff_max_ms: u64 = 300_000 => 1..=3_600_000,
        /// Bytes a second that all lanes together send, the first lane first; 0 = as much as the line takes.
        pub bytes_per_s: u64 = 0,
        /// Messages that a lane gives up in an hour because the cloud refuses them for good, each alone; after that the rest
        /// waits, so that a cloud that is wrongly set up does not empty this edge into its quarantine.
        pub give_ups_per_hour: u32 = 100 => 1..=100_000,
        /// Seconds between pings on an idle connection.
        pub keep_alive_s: u16 = 30 => 5..=3600,
    }
}

impl Settings {
    /// Says what is wrong with a value, if anything is.
    pub fn check_all(&self) -> Result<(), String> {
        if self.certificate.is_empty() != self.key.is_empty() {
            let why = "`uplink.certificate` and `uplink.key` belong together: set both";
            return Err(why.to_owned());
        }
        if self.cloud.is_empty() {
            return Ok(());
        }
        let wrong = |why| format!("`uplink.cloud` = {:?}: {why}", self.cloud);
        crate::link::Address::parse(&self.cloud).map_err(wrong)?;
        if !self.prefix.is_empty() && !tributary_shared::topic::is_legal_name(&self.prefix) {
            return Err(format!("`uplink.prefix` = {:?} cannot begin a topic", self.prefix));
        }
        Ok(())
    }

    /// User name and password; reads the file.
    pub fn login(&self) -> Result<Option<(String, String)>, String> {
        if self.user.is_empty() {
            return Ok(None);
        }
        let password = match &*self.password_file {
            "" => String::new(),
            path => std::fs::read_to_string(path)
                .map_err(|error| format!("`uplink.password_file` {path}: {error}"))?,
        };
        let password = password.lines().next().unwrap_or_default().to_owned();
        Ok(Some((self.user.clone(), password)))
    }
}
