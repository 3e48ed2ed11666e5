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
//! Change here: what a message looks like to a foreign broker. Not here: TLS and what CONNECT says (`batches`).

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

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
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, timeout},
};
use tributary_shared::{
    clock::wall_ms,
    record::{Batch, Record, mqtt::to_message},
    tasks, topic,
};

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

/// The uplink hears of single answers at most so often.
const HEARD_EVERY: Duration = Duration::from_millis(50);

/// Connections in a row without an answer, after which messages go one at a time; and how many of them do, at least.
const FRUITLESS: u32 = 3;
const CAREFUL: usize = 256;

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

/// Whether messages go one at a time; shared by the connections of a lane.
#[derive(Debug, Clone, Default)]
pub struct Care(Arc<Mutex<Experience>>);

#[derive(Debug, Default)]
struct Experience {
    /// Connections in a row that ended with messages under way and no upload answered.
    fruitless: u32,
    /// Messages that still go one at a time.
    careful: usize,
}

impl Care {
    fn state(&self) -> MutexGuard<'_, Experience> {
        // Numbers only: whole whatever panicked elsewhere.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_careful(&self) -> bool {
        self.state().careful > 0
    }

    /// An upload of so many messages was answered.
    fn answered(&self, answer: Answer, messages: usize) {
        let mut state = self.state();
        state.careful = match answer {
            Answer::Never(_) => CAREFUL,
            _ => state.careful.saturating_sub(messages),
        };
    }

    /// A connection ended with messages under way; `fruit`: an upload was answered before. Single messages do not count:
    /// in a reset some answers are lost and some are not.
    fn lost(&self, fruit: bool) {
        let mut state = self.state();
        state.fruitless = if fruit { 0 } else { state.fruitless + 1 };
        if state.fruitless >= FRUITLESS {
            state.careful = CAREFUL;
        }
    }
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

/// Which message belongs to which upload: the feeder adds, the pump takes.
#[derive(Clone)]
struct Shared {
    books: Arc<Mutex<Books>>,
    /// Messages that may be given to the client.
    room: Arc<Semaphore>,
    care: Care,
}

#[derive(Default)]
struct Books {
    /// Of messages given to the client and not yet on the wire, in order.
    given: VecDeque<(u64, OwnedSemaphorePermit)>,
    /// By packet id.
    sent: HashMap<u16, (u64, OwnedSemaphorePermit)>,
    uploads: HashMap<u64, Left>,
    /// Uploads answered on this connection.
    reported: u64,
    /// Room that is held back while messages go one at a time.
    spare: usize,
    /// When the uplink last heard of an answer.
    heard: Option<Instant>,
}

/// What an upload still waits for.
#[derive(Clone, Copy)]
struct Left {
    messages: usize,
    /// Of so many.
    all: usize,
    answer: Answer,
    gap: bool,
}

impl Shared {
    fn new(care: Care, in_flight: usize) -> Self {
        let spare = if care.is_careful() { in_flight - 1 } else { 0 };
        let books = Books { spare, ..Books::default() };
        let room = Arc::new(Semaphore::new(in_flight - spare));
        Self { books: Arc::new(Mutex::new(books)), room, care }
    }

    /// A message with this packet id is answered.
    fn answered(&self, id: u16, answer: Answer) -> Option<Report> {
        let mut books = self.books();
        let (token, _permit) = books.sent.remove(&id)?;
        let Some(upload) = books.answered(token, answer) else {
            let now = Instant::now();
            let due = books.heard.is_none_or(|heard| now >= heard + HEARD_EVERY);
            books.heard = if due { Some(now) } else { books.heard };
            return due.then_some(Report::Heard);
        };
        self.care.answered(upload.answer, upload.all);
        if !self.care.is_careful() {
            self.room.add_permits(std::mem::take(&mut books.spare));
        }
        Some(report(token, upload))
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        // Each change is one call, whole whatever panicked elsewhere.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection is over.
    fn lost(&self) {
        let books = self.books();
        if !books.sent.is_empty() || !books.given.is_empty() {
            self.care.lost(books.reported > 0);
        }
    }
}

impl Books {
    /// One message of `token` is answered; the upload, if that settles it: the last one is, or one is refused for good. The
    /// rest of a refused upload is not waited for, it is sent again in parts.
    fn answered(&mut self, token: u64, answer: Answer) -> Option<Left> {
        let left = self.uploads.get_mut(&token)?;
        left.messages = left.messages.saturating_sub(1);
        left.answer = worse(left.answer, answer);
        let upload = *left;
        if upload.messages > 0 && !matches!(upload.answer, Answer::Never(_)) {
            return None;
        }
        self.uploads.remove(&token);
        self.reported += 1;
        Some(upload)
    }
}

fn report(token: u64, upload: Left) -> Report {
    if let (true, Answer::Never(code)) = (upload.gap, upload.answer) {
        // It is known here already, in numbers and log; a broker that will not hear it is not told again for ever.
        tracing::warn!(code, "the broker takes no message about what was given up");
        return Report::Answered(token, Answer::Done);
    }
    Report::Answered(token, upload.answer)
}

/// A refusal for good says which messages to look at, whatever else there is.
fn worse(one: Answer, other: Answer) -> Answer {
    let rank = |answer: &Answer| match answer {
        Answer::Done => 0,
        Answer::Expected(_) => 1,
        Answer::NotNow(_) => 2,
        Answer::Never(_) => 3,
    };
    if rank(&other) > rank(&one) { other } else { one }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_connections_without_an_answer_messages_go_one_at_a_time_for_a_while() {
        let care = Care::default();
        for _ in 0..FRUITLESS {
            assert!(!care.is_careful());
            care.lost(false);
        }
        for _ in 0..CAREFUL / 2 {
            assert!(care.is_careful());
            care.answered(Answer::Done, 2);
        }
        assert!(!care.is_careful());
        care.answered(Answer::Never(0x87), 2);
        assert!(care.is_careful());
    }

    /// `n` messages of upload `token` are on the wire, with packet ids from `id` on.
    fn send(shared: &Shared, token: u64, id: u16, n: u16) {
        let mut books = shared.books();
        for id in id..id + n {
            let permit = shared.room.clone().try_acquire_owned().unwrap();
            books.sent.insert(id, (token, permit));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn messages_go_one_at_a_time_to_the_end_of_an_upload_and_then_as_many_as_the_broker_takes()
     {
        let care = Care::default();
        (0..FRUITLESS).for_each(|_| care.lost(false));
        let shared = Shared::new(care.clone(), 10);
        let all = CAREFUL + 44;
        let left = Left { messages: all, all, answer: Answer::Done, gap: false };
        shared.books().uploads.insert(0, left);
        let mut heard = 0;
        for message in 1..all {
            send(&shared, 0, 1, 1);
            assert_eq!(shared.room.available_permits(), 0, "alone");
            tokio::time::advance(HEARD_EVERY / 2).await;
            match shared.answered(1, Answer::Done) {
                Some(Report::Heard) => heard += 1,
                None => {}
                other => panic!("{message}: {other:?}"),
            }
            assert!(care.is_careful(), "{message}");
        }
        assert_eq!(heard, all / 2, "the uplink hears of it, but not of each");
        send(&shared, 0, 1, 1);
        let done = Report::Answered(0, Answer::Done);
        assert_eq!(shared.answered(1, Answer::Done), Some(done));
        assert_eq!((care.is_careful(), shared.room.available_permits()), (false, 10));
    }

    #[test]
    fn a_line_that_breaks_now_and_then_is_no_reason_to_go_slowly() {
        let care = Care::default();
        for _ in 0..10 {
            care.lost(false);
            care.lost(false);
            care.lost(true);
        }
        assert!(!care.is_careful());
    }

    #[test]
    fn an_upload_is_answered_with_its_last_message_and_refused_with_the_first_that_is() {
        let mut books = Books::default();
        let left = Left { messages: 3, all: 3, answer: Answer::Done, gap: false };
        books.uploads.extend([(0, left), (1, left), (2, Left { gap: true, messages: 1, ..left })]);
        let mut answered =
            |token, answer| books.answered(token, answer).map(|upload| report(token, upload));
        assert_eq!(answered(0, Answer::Done), None);
        assert_eq!(answered(0, Answer::NotNow(0x97)), None);
        let not_now = Report::Answered(0, Answer::NotNow(0x97));
        assert_eq!(answered(0, Answer::Done), Some(not_now));
        let never = Report::Answered(1, Answer::Never(0x87));
        assert_eq!(answered(1, Answer::Never(0x87)), Some(never));
        assert_eq!(answered(1, Answer::Done), None);
        let done = Report::Answered(2, Answer::Done);
        assert_eq!(answered(2, Answer::Never(0x87)), Some(done));
    }
}
