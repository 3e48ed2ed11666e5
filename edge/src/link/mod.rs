//! One connection to the cloud; the only place that names rumqttc.
//!
//! rumqttc is a pipe and nothing more. On reconnect it resends out of order and loses what was unacked or queued, and it
//! only logs a PUBACK that says no. So every connection gets a new client and event loop, what is sent stays within a
//! window below its limits, resending is from the store, and every reason code is read here.
//!
//! In: publishes, with a token each. Out: [`Report`]s: what the cloud said to each token, and the end.
//! Change here: the transport, what CONNECT says. Not here: what to send or resend (`uplink`).

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use rumqttc::{
    Outgoing,
    v5::{
        AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, StateError,
        mqttbytes::{
            self, QoS,
            v5::{ConnAck, ConnectProperties, Packet, PubAck, PubAckReason, PublishProperties},
        },
    },
};
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};
use tributary_shared::tasks;

/// More than any window: rumqttc's own limits are never met.
const LIMIT: u16 = 1024;

/// Bytes of the longest packet the cloud may send us: a CONNACK that names many epochs.
const INCOMING_BYTES: u32 = 64 * 1024;

/// For DISCONNECT to be written.
const GOODBYE: Duration = Duration::from_millis(200);

/// Content type of a record batch.
const CONTENT_TYPE: &str = "application/vnd.kafka.recordbatch.v2";

/// Where the cloud listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Name or address.
    pub host: String,
    /// Port.
    pub port: u16,
}

impl Address {
    /// Reads `mqtt://host:port`; the port may be left out (1883).
    pub fn parse(url: &str) -> Result<Self, &'static str> {
        let Some(rest) = url.strip_prefix("mqtt://") else {
            return Err("must be mqtt://host:port (this release has no TLS)");
        };
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => {
                (host, port.parse().map_err(|_| "the port is not a number from 0 to 65535")?)
            }
            _ => (rest, 1883),
        };
        if host.is_empty() || host.contains(['/', '@']) {
            return Err("must be mqtt://host:port");
        }
        Ok(Self { host: host.to_owned(), port })
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
    /// Until CONNACK.
    pub connect_timeout: Duration,
    /// Pings.
    pub keep_alive: Duration,
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

/// An open connection. Dropped: closed at once.
#[derive(Debug)]
pub struct Link {
    client: AsyncClient,
    topic: String,
    reports: mpsc::Receiver<Report>,
    pipe: JoinHandle<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.pipe.abort();
    }
}

impl Link {
    /// Connects and waits for CONNACK.
    pub async fn open(caller: &Caller) -> Result<(Self, Welcome), String> {
        let (client, mut events) = AsyncClient::new(options(caller), usize::from(LIMIT));
        let welcome = timeout(caller.connect_timeout, connected(&mut events))
            .await
            .map_err(|_| "no CONNACK in time".to_owned())??;
        let (news, reports) = mpsc::channel(usize::from(LIMIT));
        let pipe = tasks::spawn("uplink pipe", pump(events, news));
        let topic = format!("tributary/{}/up/{}", caller.edge_id, caller.lane);
        Ok((Self { client, topic, reports, pipe }, welcome))
    }

    /// Queues one publish. Tokens count from 0 in the order of these calls.
    pub fn send(&self, upload: Upload) -> Result<(), String> {
        let mut user_properties = vec![
            ("ep".to_owned(), upload.epoch.to_string()),
            ("s".to_owned(), upload.s.to_string()),
            ("n".to_owned(), upload.n.to_string()),
        ];
        user_properties.extend(upload.gap.map(|reason| ("gap".to_owned(), reason)));
        let properties = PublishProperties {
            content_type: Some(CONTENT_TYPE.to_owned()),
            user_properties,
            ..PublishProperties::default()
        };
        self.client
            .try_publish_with_properties(
                self.topic.as_str(),
                QoS::AtLeastOnce,
                false,
                upload.payload,
                properties,
            )
            .map_err(|error| error.to_string())
    }

    /// The next news; after [`Report::Closed`] there are none.
    pub async fn report(&mut self) -> Report {
        let closed = || Report::Closed { why: "closed".to_owned(), refused: None };
        self.reports.recv().await.unwrap_or_else(closed)
    }

    /// Says goodbye.
    pub async fn close(mut self) {
        if self.client.try_disconnect().is_ok() {
            let ended = async { while !matches!(self.report().await, Report::Closed { .. }) {} };
            // Late or not, it is closed next.
            let _late = timeout(GOODBYE, ended).await;
        }
    }
}

fn options(caller: &Caller) -> MqttOptions {
    let id = format!("{}.up.{}", caller.edge_id, caller.lane);
    let mut options = MqttOptions::new(id, caller.address.host.as_str(), caller.address.port);
    options
        .set_clean_start(true)
        .set_keep_alive(caller.keep_alive)
        .set_connection_timeout(caller.connect_timeout.as_secs().max(1))
        .set_outgoing_inflight_upper_limit(LIMIT)
        .set_connect_properties(ConnectProperties {
            max_packet_size: Some(INCOMING_BYTES),
            ..ConnectProperties::new()
        })
        .set_user_properties(vec![
            ("tributary-edge".to_owned(), caller.edge_id.clone()),
            ("tributary-lane".to_owned(), caller.lane.clone()),
        ]);
    let mut network = rumqttc::NetworkOptions::new();
    network.set_tcp_nodelay(true);
    options.set_network_options(network);
    options
}

async fn connected(events: &mut EventLoop) -> Result<Welcome, String> {
    loop {
        if let Event::Incoming(Packet::ConnAck(connack)) =
            events.poll().await.map_err(|error| error.to_string())?
        {
            return Ok(welcome(connack));
        }
    }
}

fn welcome(connack: ConnAck) -> Welcome {
    let properties = connack.properties;
    let expect = properties.iter().flat_map(|p| &p.user_properties).filter_map(|(name, value)| {
        let (epoch, next) = value.split_once(':').filter(|_| name == "expect")?;
        Some((epoch.parse().ok()?, next.parse().ok()?))
    });
    Welcome {
        expect: expect.collect(),
        receive_maximum: properties
            .as_ref()
            .and_then(|p| p.receive_max)
            .map_or(usize::from(u16::MAX), usize::from),
        packet_bytes: properties
            .as_ref()
            .and_then(|p| p.max_packet_size)
            .map_or(usize::MAX, |bytes| bytes as usize),
    }
}

/// Runs the event loop in a task of its own: its future may not be dropped in the middle of a write.
async fn pump(mut events: EventLoop, news: mpsc::Sender<Report>) {
    let mut tokens = Tokens::default();
    loop {
        match events.poll().await {
            Ok(event) => {
                if let Some(report) = tokens.report(event)
                    && news.send(report).await.is_err()
                {
                    return;
                }
            }
            Err(error) => {
                // Answers that were read together with what broke the connection are still to be told.
                let read = std::mem::take(&mut events.state.events);
                let last = Report::Closed { refused: unreadable(&error), why: error.to_string() };
                let reports = read.into_iter().filter_map(|event| tokens.report(event));
                for report in reports.chain([last]) {
                    if news.send(report).await.is_err() {
                        return;
                    }
                }
                return;
            }
        }
    }
}

/// Which packet id stands for which token.
#[derive(Default)]
struct Tokens {
    sent: HashMap<u16, u64>,
    next: u64,
}

impl Tokens {
    fn report(&mut self, event: Event) -> Option<Report> {
        match event {
            Event::Outgoing(Outgoing::Publish(id)) => {
                self.sent.insert(id, self.next);
                self.next += 1;
                None
            }
            Event::Incoming(Packet::PubAck(ack)) => {
                Some(Report::Answered(self.sent.remove(&ack.pkid)?, answer(&ack)))
            }
            _ => None,
        }
    }
}

/// A PUBACK with a code that rumqttc does not know ends the connection; this is the code.
fn unreadable(error: &ConnectionError) -> Option<u8> {
    match error {
        ConnectionError::MqttState(StateError::Deserialization(
            mqttbytes::Error::InvalidConnectReturnCode(code)
            | mqttbytes::Error::InvalidReason(code),
        )) if is_permanent(*code) => Some(*code),
        _ => None,
    }
}

fn answer(ack: &PubAck) -> Answer {
    let code = match ack.reason {
        PubAckReason::Success | PubAckReason::NoMatchingSubscribers => return Answer::Done,
        PubAckReason::UnspecifiedError => 0x80,
        PubAckReason::ImplementationSpecificError => 0x83,
        PubAckReason::NotAuthorized => 0x87,
        PubAckReason::TopicNameInvalid => 0x90,
        PubAckReason::PacketIdentifierInUse => 0x91,
        PubAckReason::QuotaExceeded => 0x97,
        PubAckReason::PayloadFormatInvalid => 0x99,
    };
    let properties = ack.properties.iter().flat_map(|p| &p.user_properties);
    let expected = properties
        .filter(|(name, _)| code == 0x83 && name == "expected")
        .find_map(|(_, next)| next.parse().ok());
    match expected {
        Some(next) => Answer::Expected(next),
        None if is_permanent(code) => Answer::Never(code),
        None => Answer::NotNow(code),
    }
}

/// Codes that say the same again to the same bytes: not authorized, topic, packet too large, payload, QoS.
fn is_permanent(code: u8) -> bool {
    matches!(code, 0x87 | 0x90 | 0x95 | 0x99 | 0x9B)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_and_a_port() {
        let read = |url| Address::parse(url).map(|a| (a.host, a.port));
        assert_eq!(read("mqtt://cloud:1884"), Ok(("cloud".to_owned(), 1884)));
        assert_eq!(read("mqtt://cloud"), Ok(("cloud".to_owned(), 1883)));
        assert_eq!(read("mqtt://[::1]:99"), Ok(("[::1]".to_owned(), 99)));
        for bad in ["cloud:1884", "mqtts://cloud", "mqtt://", "mqtt://a:b", "mqtt://u@h:1"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
