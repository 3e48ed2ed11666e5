//! Who reads the cloud's log: a Kafka consumer all the time, and at the end another one, an AMQP queue and an MQTT session.
//!
//! The queue and the session are there from the beginning and nobody takes from them before the end. Each reads up to a message
//! that was published behind all others. Not here: what it means (`books`).

use std::{
    net::SocketAddr,
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use lapin::{
    Connection, ConnectionProperties,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueBindOptions,
        QueueDeclareOptions,
    },
    types::{AMQPValue, FieldTable},
};
use rdkafka::{Message as _, message::OwnedMessage};
use tributary_cloud::bridge::GAP_HEADER;
use tributary_shared::mqtt::{Packet, Qos, Reason, packet::Ack};

use super::{books::View, message::Message};
use crate::{
    Cloud, Device,
    kafka::{Reader, header},
};

/// The stream that everything goes to.
pub const STREAM: &str = "mqtt.messages";
/// What a reader waits for the next message at most.
const PATIENCE: Duration = Duration::from_mins(1);
const QUEUE: &str = "bridge";

/// Books what a record says.
fn book(view: &mut View, record: &OwnedMessage) {
    let text = |name| header(record, name).and_then(|value| String::from_utf8(value).ok());
    let payload = record.payload().unwrap_or_default();
    let mut count = 1;
    view.passed(record.partition(), record.offset());
    if header(record, GAP_HEADER).is_some() {
        let said: serde_json::Value = serde_json::from_slice(payload).expect("a gap record");
        count = said["count"].as_u64().expect("its count");
        view.gap(count);
    } else if record.key().is_some_and(|topic| topic.starts_with(b"load/")) {
        view.read(payload);
        view.at(record.partition(), record.offset(), payload);
    }
    if let (Some(edge), Some(lane), Some(seq)) =
        (text("edge.id"), text("edge.lane"), text("edge.seq"))
    {
        view.numbered(&format!("{edge}/{lane}"), seq.parse().expect("a number"), count);
    }
}

/// A consumer that reads while faults happen.
#[derive(Debug)]
pub struct Live {
    shared: Arc<(Mutex<View>, Condvar)>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Live {
    /// Begins to read.
    pub fn start(kafka: SocketAddr) -> Self {
        let shared = Arc::new((Mutex::new(View::default()), Condvar::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let reader = Reader::new(kafka, STREAM);
        let (to, until) = (shared.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                let Some(record) = reader.next(Duration::from_millis(100)) else { continue };
                let mut view = to.0.lock().expect("view");
                book(&mut view, &record);
                to.1.notify_all();
            }
        });
        Self { shared, stop, thread: Some(thread) }
    }

    /// What was read.
    pub fn view(&self) -> MutexGuard<'_, View> {
        self.shared.0.lock().expect("view")
    }

    /// Waits until so many were read.
    pub fn wait_total(&self, total: u64, patience: Duration) -> bool {
        self.wait(patience, |view| view.total() >= total)
    }

    /// Waits for a message.
    pub fn wait_for(&self, message: &Message, patience: Duration) -> bool {
        self.wait(patience, |view| view.has(message))
    }

    fn wait(&self, patience: Duration, arrived: impl Fn(&View) -> bool) -> bool {
        let wait = self.shared.1.wait_timeout_while(self.view(), patience, |view| !arrived(view));
        arrived(&wait.expect("view").0)
    }

    /// What was read in all; nothing more is.
    pub fn finish(mut self) -> View {
        self.end();
        std::mem::take(&mut *self.view())
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the reader");
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.end();
        }
    }
}

/// All of the log from its beginning, and its high watermarks after that.
pub fn read_kafka(kafka: SocketAddr, last: &Message) -> View {
    let reader = Reader::new(kafka, STREAM);
    let mut view = View::default();
    while !view.has(last)
        && let Some(record) = reader.next(PATIENCE)
    {
        book(&mut view, &record);
    }
    for (partition, high) in reader.watermarks(STREAM) {
        // Whatever lies behind the last message was acknowledged twice or is late; it is read, too.
        while view.next_offset(partition) < high
            && let Some(record) = reader.next(PATIENCE)
        {
            book(&mut view, &record);
        }
        view.watermark(partition, high);
    }
    view
}

/// The AMQP queue and the MQTT session of a run.
#[derive(Debug)]
pub struct Waiting;

impl Waiting {
    /// Makes both.
    pub fn prepare(cloud: &Cloud) -> Self {
        let address = cloud.amqp;
        block_on(async {
            let channel = channel(address).await;
            let durable = QueueDeclareOptions::durable();
            channel.queue_declare(QUEUE.into(), durable, FieldTable::default()).await?;
            let (bind, none) = (QueueBindOptions::default(), FieldTable::default());
            channel.queue_bind(QUEUE.into(), "amq.topic".into(), "load.#".into(), bind, none).await
        })
        .expect("a queue");
        let mut device = Device::connect_persistent(cloud.mqtt, QUEUE).expect("a session");
        device.subscribe("load/#", Qos::AtLeastOnce).expect("subscribed");
        Self
    }

    /// Everything in the queue.
    pub fn read_amqp(&self, cloud: &Cloud, last: &Message) -> View {
        block_on(async {
            let channel = channel(cloud.amqp).await;
            channel.basic_qos(2_000, BasicQosOptions::default()).await.expect("prefetch");
            let (options, none) = (BasicConsumeOptions::default(), FieldTable::default());
            let consumer = channel.basic_consume(QUEUE.into(), "reader".into(), options, none);
            let mut consumer = consumer.await.expect("a consumer");
            let (mut view, mut count) = (View::default(), 0);
            while !view.has(last)
                && let Ok(Some(Ok(delivery))) =
                    tokio::time::timeout(PATIENCE, consumer.next()).await
            {
                view.read(&delivery.data);
                let headers = delivery.properties.headers().clone().unwrap_or_default();
                let number = |name| match headers.inner().get(name) {
                    Some(AMQPValue::LongLongInt(number)) => *number,
                    Some(AMQPValue::LongInt(number)) => i64::from(*number),
                    other => panic!("{name}: {other:?}"),
                };
                let partition = number("x-partition") as i32;
                view.at(partition, number("x-stream-offset"), &delivery.data);
                count += 1;
                if count % 500 == 0 || view.has(last) {
                    delivery.ack(BasicAckOptions { multiple: true }).await.expect("ack");
                }
            }
            view
        })
    }

    /// Everything that waits for the session.
    pub fn read_mqtt(&self, cloud: &Cloud, last: &Message) -> View {
        let mut device = Device::connect_persistent(cloud.mqtt, QUEUE).expect("the session");
        let mut view = View::default();
        while !view.has(last)
            && let Ok(packet) = device.receive()
        {
            let Packet::Publish(publish) = packet else { continue };
            view.read(&publish.payload);
            if let Some(id) = publish.packet_id {
                device.send(&Packet::PubAck(Ack::new(id, Reason::SUCCESS))).expect("an answer");
            }
        }
        view
    }
}

async fn channel(address: SocketAddr) -> lapin::Channel {
    let uri = format!("amqp://guest:guest@{address}/%2f");
    let deadline = Instant::now() + PATIENCE;
    loop {
        match Connection::connect(&uri, ConnectionProperties::default()).await {
            Ok(connection) => break connection.create_channel().await.expect("a channel"),
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(future)
}
