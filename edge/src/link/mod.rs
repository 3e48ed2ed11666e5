//! Connections to the cloud: what the uplink asks of them, and the ways there are.
//!
//! ```text
//! Dial::dial -> Link + Welcome     Link::send(upload) -> token 0, 1, 2 ...     Link::report -> Answered(token, ..) | Closed
//! batches    one PUBLISH a record batch, to a cloud that knows epochs and sequences
//! plain      one PUBLISH a message, to any MQTT 5 broker
//! down       the other way: messages of the cloud, acknowledged by hand
//! tls        below both: what is shown and trusted, and errors in words
//! ```
//! A link is a pipe and nothing more: it may lose what is under way when it ends, it never resends, and what is sent stays
//! within the window of its [`Welcome`]. Resending is from the store.
//!
//! Change here: what a connection is to the uplink. Not here: what to send or resend (`uplink`), MQTT (the files below).

mod batches;
mod down;
mod plain;
pub mod reasons;
pub(crate) mod tls;

use std::{collections::HashMap, future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};

pub use batches::Batches;
pub use down::{Down, Filter, Listening};
pub use plain::{Care, Plain};

use crate::{enrol::Identity, status::LaneStatus};

/// For the last words to be written.
const GOODBYE: Duration = Duration::from_millis(200);

/// Where the cloud listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// It speaks TLS.
    pub tls: bool,
}

/// What an address has to look like.
const FORM: &str = "must be mqtts://host:port, or mqtt://host:port without TLS";

impl Address {
    /// Reads `mqtts://host:port` or `mqtt://host:port`; the port may be left out (8883, 1883).
    pub fn parse(url: &str) -> Result<Self, &'static str> {
        let (tls, rest) = match (url.strip_prefix("mqtts://"), url.strip_prefix("mqtt://")) {
            (Some(rest), _) => (true, rest),
            (_, Some(rest)) => (false, rest),
            (None, None) => return Err(FORM),
        };
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => {
                (host, port.parse().map_err(|_| "the port is not a number from 0 to 65535")?)
            }
            _ => (rest, if tls { 8883 } else { 1883 }),
        };
        if host.is_empty() || host.contains(['/', '@']) {
            return Err(FORM);
        }
        if tls && host.starts_with('[') {
            return Err("with TLS the host is a name or an IPv4 address");
        }
        Ok(Self { host: host.to_owned(), port, tls })
    }
}

/// Who connects, and where to.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The cloud.
    pub address: Address,
    /// Edge.
    pub edge_id: String,
    /// Lane.
    pub lane: String,
    /// What waits in it.
    pub status: Arc<LaneStatus>,
    /// Until CONNACK.
    pub connect_timeout: Duration,
    /// Pings.
    pub keep_alive: Duration,
    /// User name and password, for brokers that want them.
    pub login: Option<(String, String)>,
    /// What TLS shows and trusts.
    pub identity: Arc<Identity>,
}

/// What CONNACK said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Welcome {
    /// Epoch -> next sequence, for the epochs the cloud named.
    pub expect: HashMap<i64, u64>,
    /// Publishes that may be unanswered.
    pub receive_maximum: usize,
    /// Bytes of the longest packet it takes.
    pub packet_bytes: usize,
}

/// What the cloud said to a publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Durable there, now or before.
    Done,
    /// It wants to go on from this sequence.
    Expected(u64),
    /// No, and trying again does not help.
    Never(u8),
    /// Not now.
    NotNow(u8),
}

/// News from the connection.
#[derive(Debug, PartialEq, Eq)]
pub enum Report {
    /// The answer to a token.
    Answered(u64, Answer),
    /// Something of what is under way was answered: the other end is there, and takes what it is sent.
    Heard,
    /// Once the connection is gone, the next is not to be made before this has passed.
    RetryAfter(Duration),
    /// Another gateway has sent other records under this epoch, as the cloud was told it.
    Clash(i64),
    /// The connection is gone. `refused`: a reason code for the oldest unanswered publish, which rumqttc cannot read.
    Closed {
        /// Why.
        why: String,
        /// Code.
        refused: Option<u8>,
    },
}

/// What is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upload {
    /// Epoch.
    pub epoch: i64,
    /// First sequence.
    pub s: u64,
    /// Sequences.
    pub n: u64,
    /// Set: these were given up, and this is why.
    pub gap: Option<String>,
    /// The record batch.
    pub payload: Bytes,
}

/// A way to the cloud, for one lane.
pub trait Dial: Send + 'static {
    /// Connects and waits until the cloud has said what it expects. Says why not in a sentence.
    fn dial(&self) -> impl Future<Output = Result<(Link, Welcome), String>> + Send;
}

/// The sending half of a connection.
pub trait Pipe: Send {
    /// Queues one upload, whole. Tokens count from 0 in the order of these calls. An error ends the connection.
    fn send(&self, upload: Upload) -> Result<(), String>;

    /// Queues a goodbye; false: it cannot be said.
    fn goodbye(&self) -> bool;
}

/// An open connection. Dropped: closed at once.
pub struct Link {
    pipe: Box<dyn Pipe>,
    reports: mpsc::Receiver<Report>,
    task: JoinHandle<()>,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Link {
    /// Of a pipe whose `task` makes the reports.
    pub fn new(pipe: Box<dyn Pipe>, reports: mpsc::Receiver<Report>, task: JoinHandle<()>) -> Self {
        Self { pipe, reports, task }
    }

    /// Queues one upload. Tokens count from 0 in the order of these calls.
    pub fn send(&self, upload: Upload) -> Result<(), String> {
        self.pipe.send(upload)
    }

    /// The next news; after [`Report::Closed`] there are none.
    pub async fn report(&mut self) -> Report {
        let closed = || Report::Closed { why: "closed".to_owned(), refused: None };
        self.reports.recv().await.unwrap_or_else(closed)
    }

    /// Says goodbye.
    pub async fn close(mut self) {
        if self.pipe.goodbye() {
            let ended = async { while !matches!(self.report().await, Report::Closed { .. }) {} };
            // Late or not, it is closed next.
            let _late = timeout(GOODBYE, ended).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_and_a_port() {
        let read = |url| Address::parse(url).map(|a| (a.host, a.port, a.tls));
        let is = |host: &str, port, tls| Ok((host.to_owned(), port, tls));
        assert_eq!(read("mqtt://cloud:1884"), is("cloud", 1884, false));
        assert_eq!(read("mqtt://cloud"), is("cloud", 1883, false));
        assert_eq!(read("mqtt://[::1]:99"), is("[::1]", 99, false));
        assert_eq!(read("mqtts://cloud"), is("cloud", 8883, true));
        assert_eq!(read("mqtts://10.0.0.1:1"), is("10.0.0.1", 1, true));
        for bad in [
            "cloud:1884",
            "https://cloud",
            "mqtt://",
            "mqtt://a:b",
            "mqtt://u@h:1",
            "mqtts://[::1]",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
