//! One PUBLISH a record batch, with rumqttc, to a cloud that knows epochs and sequences.
//!
//! rumqttc is a pipe and nothing more. On reconnect it resends out of order and loses what was unacked or queued, and it
//! only logs a PUBACK that says no. So every connection gets a new client and event loop, what is sent stays within a
//! window below its limits, resending is from the store, and every reason code is read here.
//!
//! Change here: what CONNECT says, how an upload becomes a PUBLISH, what a reason code means.

use std::{collections::HashMap, sync::LazyLock, time::Duration};

use rumqttc::{
    Outgoing,
    v5::{
        AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, StateError,
        mqttbytes::{
            self, QoS,
            v5::{
                ConnAck, ConnectProperties, Disconnect, Packet, PubAck, PubAckReason,
                PublishProperties,
            },
        },
    },
};
use tokio::{sync::mpsc, time::timeout};
use tributary_shared::tasks;

use super::{Answer, Caller, Dial, Link, Pipe, Report, Upload, Welcome, reasons, tls};
use crate::{admin::age_s, status::LaneStatus};

/// More than any window: rumqttc's own limits are never met.
const LIMIT: u16 = 1024;

/// Bytes of the longest packet the cloud may send us: a CONNACK that names many epochs.
const INCOMING_BYTES: u32 = 64 * 1024;

/// Bytes of the cloud's words that a log line shows.
const WORDS_BYTES: usize = 256;

/// Content type of a record batch.
const CONTENT_TYPE: &str = "application/vnd.kafka.recordbatch.v2";

/// Which process this is: two that live at once under one edge id are told apart by it.
static INSTANCE: LazyLock<String> =
    LazyLock::new(|| format!("{:016x}", getrandom::u64().unwrap_or_default()));

/// Dials with MQTT 5.
#[derive(Debug, Clone)]
pub struct Batches(pub Caller);

impl Dial for Batches {
    async fn dial(&self) -> Result<(Link, Welcome), String> {
        let caller = &self.0;
        let options = options(caller)?;
        let host = caller.address.host.as_str();
        let (client, mut events) = AsyncClient::new(options, usize::from(LIMIT));
        let connack = timeout(caller.connect_timeout, connected(&mut events, host))
            .await
            .map_err(|_| "no CONNACK in time".to_owned())??;
        let welcome = welcome(connack);
        let (news, reports) = mpsc::channel(usize::from(LIMIT));
        let task = tasks::spawn("uplink pipe", pump(events, news, host.to_owned()));
        let topic = format!("tributary/{}/up/{}", caller.edge_id, caller.lane);
        Ok((Link::new(Box::new(Publisher { client, topic }), reports, task), welcome))
    }
}

struct Publisher {
    client: AsyncClient,
    topic: String,
}

impl Pipe for Publisher {
    fn send(&self, upload: Upload) -> Result<(), String> {
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

    fn goodbye(&self) -> bool {
        self.client.try_disconnect().is_ok()
    }
}

pub(super) fn options(caller: &Caller) -> Result<MqttOptions, String> {
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
            ("tributary-instance".to_owned(), INSTANCE.clone()),
            ("tributary-backlog".to_owned(), backlog(&caller.status)),
        ]);
    if let Some((user, password)) = &caller.login {
        options.set_credentials(user, password);
    }
    let mut network = rumqttc::NetworkOptions::new();
    network.set_tcp_nodelay(true);
    options.set_network_options(network);
    options.set_transport(tls::transport(&caller.address, &caller.identity)?);
    Ok(options)
}

/// What waits to be sent, for whoever watches the fleet: messages, bytes, seconds of the oldest. In CONNECT nothing is ahead
/// of it.
fn backlog(lane: &LaneStatus) -> String {
    format!("{}:{}:{}", lane.messages.get(), lane.bytes.get(), age_s(lane))
}

pub(super) async fn connected(events: &mut EventLoop, host: &str) -> Result<ConnAck, String> {
    loop {
        if let Event::Incoming(Packet::ConnAck(connack)) =
            events.poll().await.map_err(|error| tls::why(&error, host))?
        {
            return Ok(connack);
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
async fn pump(mut events: EventLoop, news: mpsc::Sender<Report>, host: String) {
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
                let said = read.iter().find_map(last_words);
                let why = said.unwrap_or_else(|| tls::why(&error, &host));
                let last = Report::Closed { refused: unreadable(&error), why };
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
    /// The cloud has taken something on this connection, and with it our topic.
    taken: bool,
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
                log_refusal(&ack);
                let token = self.sent.remove(&ack.pkid)?;
                let answer = match answer(&ack) {
                    // All batches of a lane have one topic: while none was taken it is the edge that is refused.
                    Answer::Never(code) if reasons::is_about_topic(code) && !self.taken => {
                        Answer::NotNow(code)
                    }
                    answer => answer,
                };
                self.taken |= answer == Answer::Done;
                Some(Report::Answered(token, answer))
            }
            Event::Incoming(Packet::Disconnect(said)) => {
                retry_after(&said).map(Report::RetryAfter).or_else(|| clash(&said))
            }
            _ => None,
        }
    }
}

/// Of a cloud that has too much to do. rumqttc shows no properties of a CONNACK that refuses.
fn retry_after(said: &Disconnect) -> Option<Duration> {
    Some(Duration::from_secs(property(said, "retry-after-s")?.parse().ok()?))
}

/// Of a cloud that has other records under an epoch of ours.
fn clash(said: &Disconnect) -> Option<Report> {
    Some(Report::Clash(property(said, "clash")?.parse().ok()?))
}

fn property<'a>(said: &'a Disconnect, name: &str) -> Option<&'a str> {
    let mut properties = said.properties.iter().flat_map(|p| &p.user_properties);
    properties.find(|(found, _)| found == name).map(|(_, value)| value.as_str())
}

/// What the cloud said when it ended the connection.
fn last_words(event: &Event) -> Option<String> {
    let Event::Incoming(Packet::Disconnect(Disconnect { reason_code, properties })) = event else {
        return None;
    };
    let words = properties.as_ref().and_then(|p| p.reason_string.as_deref());
    let words = words.map(|words| format!(": {}", shown(words)));
    let server = properties.as_ref().and_then(|p| p.server_reference.as_deref());
    let server = server.map(|server| format!("; it names the server {}", shown(server)));
    let code = *reason_code as u8;
    Some(format!(
        "the cloud ended it with {code:#04x}, {}{}{}",
        reasons::words(code),
        words.unwrap_or_default(),
        server.unwrap_or_default()
    ))
}

/// So much of a reason string as a log line shows.
fn shown(words: &str) -> &str {
    words.get(..words.floor_char_boundary(WORDS_BYTES)).unwrap_or_default()
}

/// Says in the cloud's own words why it does not take a batch. Lines of one kind are limited by the log itself.
fn log_refusal(ack: &PubAck) {
    if let Some(words) = ack.properties.as_ref().and_then(|p| p.reason_string.as_deref())
        && !matches!(answer(ack), Answer::Done | Answer::Expected(_))
    {
        let code = format!("{:?}", ack.reason);
        tracing::warn!(code, reason = shown(words), "the cloud does not take a batch");
    }
}

/// A PUBACK with a code that rumqttc does not know ends the connection; this is the code.
fn unreadable(error: &ConnectionError) -> Option<u8> {
    match error {
        ConnectionError::MqttState(StateError::Deserialization(
            mqttbytes::Error::InvalidConnectReturnCode(code)
            | mqttbytes::Error::InvalidReason(code),
        )) if reasons::is_about_batch(*code) => Some(*code),
        _ => None,
    }
}

pub(super) fn answer(ack: &PubAck) -> Answer {
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
        None if reasons::is_about_batch(code) => Answer::Never(code),
        None => Answer::NotNow(code),
    }
}
