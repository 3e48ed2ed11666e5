//! Each message as an ordinary PUBLISH, with rumqttc, to any MQTT 5 broker.
//!
//! ```text
//! upload -> feed: its messages, at most `IN_FLIGHT` unanswered -> event loop -> PUBACKs, counted an upload -> one answer
//! ```
//! At least once: a broker that knows nothing of epochs cannot tell a message it has from one it has not, so what was under
//! way when a connection ended is sent again. Topic = prefix + original topic; payload, properties and the retain flag are
//! as they came, the expiry is what is left of it, and a second where nothing is: the broker drops it, not a gateway whose
//! clock may be wrong. What the edge gave up is told as a message
//! to `{prefix}tributary/{edge}/lost/{lane}`. An upload is refused with the worst code that any of its messages got.
//!
//! Some brokers (mosquitto 2.0) close the connection right behind a refusal, and with much under way the refusal is lost in
//! the reset. So after a few connections that brought no answer at all, messages go one at a time for a while: for whole
//! uploads, or one that is refused further on in an upload would never be reached. On a long line that takes its time, so
//! the uplink hears of single answers, too.
//!
//! Change here: what a message looks like to a foreign broker. Not here: TLS and what CONNECT says (`batches`), what is under
//! way (`books`), when messages go one at a time (`care`).

mod books;
mod care;

use bytes::Bytes;
use rumqttc::{
    Outgoing,
    v5::{
        AsyncClient, Event, EventLoop,
        mqttbytes::{
            QoS,
            v5::{Packet, PublishProperties},
        },
    },
};
use tokio::{sync::mpsc, time::timeout};
use tributary_shared::{
    clock::wall_ms,
    record::{Batch, Record, mqtt::to_message},
    tasks, topic,
};

use self::books::{Left, Shared};
pub use self::care::Care;
use super::{Answer, Caller, Dial, Link, Pipe, Report, Upload, Welcome, batches};

/// Messages that may be unanswered, if the broker takes as many.
const IN_FLIGHT: usize = 256;

/// Uploads that may wait to be taken apart, and reports for the uplink: more than any window.
const UPLOADS: usize = 1024;

/// Bytes a batch may unpack to, far above what the store makes.
const UNPACKED_MAX: usize = 32 * 1024 * 1024;

/// Bytes of a PUBLISH beside payload and topic, for which there must be room; properties are counted apart.
const AROUND: usize = 64;

/// MQTT 5, 3.3.2.1: longest topic.
const TOPIC_MAX: usize = 65_535;

/// Reason codes, MQTT 5, 2.4.
const TOPIC_NAME_INVALID: u8 = 0x90;
const PACKET_TOO_LARGE: u8 = 0x95;
const PAYLOAD_FORMAT_INVALID: u8 = 0x99;

/// Dials a broker that is not Tributary's cloud.
#[derive(Debug, Clone)]
pub struct Plain {
    /// Who and where.
    pub caller: Caller,
    /// Before every topic.
    pub prefix: String,
    /// What the connections so far were like.
    pub care: Care,
}

impl Dial for Plain {
    async fn dial(&self) -> Result<(Link, Welcome), String> {
        let caller = &self.caller;
        let mut options = batches::options(caller)?;
        options.set_user_properties(Vec::new());
        let (client, mut events) = AsyncClient::new(options, IN_FLIGHT);
        let connack =
            timeout(caller.connect_timeout, batches::connected(&mut events, &caller.address.host))
                .await
                .map_err(|_| "no CONNACK in time".to_owned())??;
        let said = connack.properties.as_ref();
        if said.and_then(|said| said.max_qos) == Some(0) {
            return Err("the broker takes QoS 0 only: nothing would be confirmed".to_owned());
        }
        let (uploads, queue) = mpsc::channel(UPLOADS);
        let (news, reports) = mpsc::channel(UPLOADS);
        let in_flight = said.and_then(|said| said.receive_max).map_or(IN_FLIGHT, usize::from);
        let shared = Shared::new(self.care.clone(), in_flight.clamp(1, IN_FLIGHT));
        let feeder = Feeder {
            client,
            shared: shared.clone(),
            news: news.clone(),
            prefix: self.prefix.clone(),
            lost_topic: format!("{}tributary/{}/lost/{}", self.prefix, caller.edge_id, caller.lane),
            packet_bytes: said
                .and_then(|said| said.max_packet_size)
                .map_or(usize::MAX, |bytes| bytes as usize),
            retain: said.and_then(|said| said.retain_available) != Some(0),
        };
        let task = tasks::spawn("plain uplink pipe", async move {
            tokio::select! {
                () = pump(events, shared, news) => {}
                () = feeder.run(queue) => {}
            }
        });
        // The window counts messages here; how many batches they come from does not matter to the broker.
        let welcome =
            Welcome { receive_maximum: UPLOADS, packet_bytes: usize::MAX, ..Welcome::default() };
        Ok((Link::new(Box::new(Sender(uploads)), reports, task), welcome))
    }
}

struct Sender(mpsc::Sender<Work>);

enum Work {
    Upload(Upload),
    Goodbye,
}

impl Pipe for Sender {
    fn send(&self, upload: Upload) -> Result<(), String> {
        self.0.try_send(Work::Upload(upload)).map_err(|error| error.to_string())
    }

    fn goodbye(&self) -> bool {
        self.0.try_send(Work::Goodbye).is_ok()
    }
}

/// One PUBLISH.
struct Message {
    topic: String,
    payload: Bytes,
    retain: bool,
    properties: PublishProperties,
}

/// Takes uploads apart and gives their messages to the client.
struct Feeder {
    client: AsyncClient,
    shared: Shared,
    news: mpsc::Sender<Report>,
    prefix: String,
    lost_topic: String,
    packet_bytes: usize,
    retain: bool,
}

impl Feeder {
    /// Until nobody uploads any more; the end of the connection ends it too.
    async fn run(self, mut queue: mpsc::Receiver<Work>) {
        let mut token = 0;
        while let Some(work) = queue.recv().await {
            match work {
                Work::Upload(upload) => {
                    if self.upload(token, &upload).await.is_none() {
                        break;
                    }
                    token += 1;
                }
                // The pump sees the end.
                Work::Goodbye if self.client.try_disconnect().is_ok() => {}
                Work::Goodbye => return,
            }
        }
        std::future::pending::<()>().await;
    }

    /// `None`: the connection is over.
    async fn upload(&self, token: u64, upload: &Upload) -> Option<()> {
        let messages = match self.messages(upload) {
            Ok(messages) if messages.is_empty() => {
                return self.news.send(Report::Answered(token, Answer::Done)).await.ok();
            }
            Ok(messages) => messages,
            Err(code) => {
                return self.news.send(Report::Answered(token, Answer::Never(code))).await.ok();
            }
        };
        let gap = upload.gap.is_some();
        let all = messages.len();
        let left = Left { messages: all, all, answer: Answer::Done, gap };
        self.shared.books().uploads.insert(token, left);
        for Message { topic, payload, retain, properties } in messages {
            let permit = self.shared.room.clone().acquire_owned().await.ok()?;
            {
                let mut books = self.shared.books();
                if !books.uploads.contains_key(&token) {
                    break; // Refused: the rest comes again.
                }
                books.given.push_back((token, permit));
            }
            let qos = QoS::AtLeastOnce;
            let given =
                self.client.publish_with_properties(topic, qos, retain, payload, properties);
            given.await.ok()?;
        }
        Some(())
    }

    /// The messages to send, or why the upload cannot be sent as it is.
    fn messages(&self, upload: &Upload) -> Result<Vec<Message>, u8> {
        let batch = Batch::parse(upload.payload.clone()).map_err(|_| PAYLOAD_FORMAT_INVALID)?;
        let records = batch.records(UNPACKED_MAX).map_err(|_| PAYLOAD_FORMAT_INVALID)?;
        if upload.gap.is_some() {
            let said = records.into_iter().filter_map(|record| record.value);
            let lost = |payload| Message {
                topic: self.lost_topic.clone(),
                payload,
                retain: false,
                properties: PublishProperties::default(),
            };
            return Ok(said.map(lost).collect());
        }
        let now_ms = wall_ms();
        records.iter().map(|record| self.message(record, now_ms)).collect()
    }

    fn message(&self, record: &Record, now_ms: i64) -> Result<Message, u8> {
        let message = to_message(record, "");
        let topic = format!("{}{}", self.prefix, message.topic);
        if topic.len() > TOPIC_MAX || !topic::is_legal_name(&topic) {
            return Err(TOPIC_NAME_INVALID);
        }
        let left_s = message.expires_ms.map(|at| (at - now_ms).div_euclid(1000).max(1));
        let properties = message.properties;
        let user = properties.user_properties.iter();
        let user: Vec<_> =
            user.map(|(name, value)| (name.to_string(), value.to_string())).collect();
        let bytes = topic.len()
            + message.payload.len()
            + user.iter().map(|(name, value)| name.len() + value.len() + 5).sum::<usize>()
            + properties.content_type.as_ref().map_or(0, |text| text.len())
            + properties.response_topic.as_ref().map_or(0, |text| text.len())
            + properties.correlation_data.as_ref().map_or(0, Bytes::len)
            + AROUND;
        if bytes > self.packet_bytes {
            return Err(PACKET_TOO_LARGE);
        }
        let properties = PublishProperties {
            payload_format_indicator: properties.payload_format,
            message_expiry_interval: left_s.and_then(|left| u32::try_from(left).ok()),
            response_topic: properties.response_topic.map(|topic| topic.to_string()),
            correlation_data: properties.correlation_data,
            user_properties: user,
            content_type: properties.content_type.map(|text| text.to_string()),
            ..PublishProperties::default()
        };
        let retain = message.retain && self.retain;
        Ok(Message { topic, payload: message.payload, retain, properties })
    }
}

/// Runs the event loop and counts answers, to the end of the connection.
async fn pump(mut events: EventLoop, shared: Shared, news: mpsc::Sender<Report>) {
    loop {
        let event = match events.poll().await {
            Ok(event) => event,
            Err(error) => {
                // Answers that were read together with what broke the connection are still to be told.
                let read = std::mem::take(&mut events.state.events);
                let reports: Vec<_> =
                    read.into_iter().filter_map(|event| note(&shared, event)).collect();
                shared.lost();
                let last = Report::Closed { refused: None, why: error.to_string() };
                for report in reports.into_iter().chain([last]) {
                    if news.send(report).await.is_err() {
                        return;
                    }
                }
                return;
            }
        };
        if let Some(report) = note(&shared, event)
            && news.send(report).await.is_err()
        {
            return;
        }
    }
}

fn note(shared: &Shared, event: Event) -> Option<Report> {
    match event {
        Event::Outgoing(Outgoing::Publish(id)) => {
            let mut books = shared.books();
            let given = books.given.pop_front()?;
            books.sent.insert(id, given);
            None
        }
        Event::Incoming(Packet::PubAck(ack)) => {
            let answer = match batches::answer(&ack) {
                // Of this topic, not of the whole edge: this broker knows nothing of edges.
                Answer::NotNow(code @ 0x87) => Answer::Never(code),
                answer => answer,
            };
            shared.answered(ack.pkid, answer)
        }
        _ => None,
    }
}
