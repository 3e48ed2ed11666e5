//! AMQP clients of a run: a publisher with confirms, and a consumer whose acks are committed, so that it knows which are durable.
//!
//! Each begins anew at another node when its connection fails. Not here: what they find (`history`).

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
        ConfirmSelectOptions, QueueBindOptions, QueueDeclareOptions,
    },
    types::FieldTable,
};
use tokio::time::{sleep, timeout};

use super::run::Run;
use crate::bridge::Message;

/// Routing keys and MQTT topics begin so; queue and session are bound to all of them, and not to the Kafka topic.
pub(super) const KEY: &str = "devices";
const QUEUE: &str = "nemesis";
/// Its publisher.
pub(super) const SOURCE: &str = "amqp a0";
/// Published before their confirms are awaited, and how often.
const GROUP: u64 = 4;
const PACE: Duration = Duration::from_millis(30);
/// What does not answer for so long is left.
const PATIENCE: Duration = Duration::from_secs(5);
/// Deliveries whose acks are committed together.
const COMMIT: usize = 50;

type Failed = Box<dyn std::error::Error + Send + Sync>;

async fn open(address: SocketAddr) -> Result<(Connection, Channel), Failed> {
    let uri = format!("amqp://guest:guest@{address}/%2f");
    let connect = Connection::connect(&uri, ConnectionProperties::default());
    let connection = timeout(PATIENCE, connect).await??;
    let channel = timeout(PATIENCE, connection.create_channel()).await??;
    Ok((connection, channel))
}

/// Makes the queue.
pub(super) async fn prepare(nodes: &[SocketAddr]) -> Result<(), String> {
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut turn = 0;
    loop {
        let made = async {
            let (_connection, channel) = open(nodes[turn % nodes.len()]).await?;
            let none = FieldTable::default;
            channel.queue_declare(QUEUE.into(), QueueDeclareOptions::durable(), none()).await?;
            let (topic, keys) = ("amq.topic".into(), format!("{KEY}.#").into());
            channel
                .queue_bind(QUEUE.into(), topic, keys, QueueBindOptions::default(), none())
                .await?;
            Ok::<_, Failed>(())
        };
        match made.await {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > deadline => return Err(format!("a queue: {error}")),
            Err(_) => sleep(Duration::from_millis(100)).await,
        }
        turn += 1;
    }
}

/// Publishes until the run is quiet. What was not confirmed when a connection failed is left as it is: nobody knows.
pub(super) async fn publish(run: &Run, nodes: &[SocketAddr]) {
    let mut turn = 0;
    while !run.is_quiet() {
        let _ = publish_over_one(run, nodes[turn % nodes.len()]).await;
        turn += 1;
        sleep(Duration::from_millis(50)).await;
    }
}

async fn publish_over_one(run: &Run, node: SocketAddr) -> Result<(), Failed> {
    let (_connection, channel) = open(node).await?;
    timeout(PATIENCE, channel.confirm_select(ConfirmSelectOptions::default())).await??;
    let incarnation = run.begin(SOURCE);
    let mut seq = 0;
    while !run.is_quiet() {
        let mut confirms = Vec::new();
        for _ in 0..GROUP {
            let message = Message { source: SOURCE.to_owned(), incarnation, seq };
            run.sent(SOURCE, incarnation, seq);
            let payload = message.payload(100).into_bytes();
            let durable = BasicProperties::default().with_delivery_mode(2);
            let key = format!("{KEY}.amqp").into();
            let options = BasicPublishOptions::default();
            let publish =
                channel.basic_publish("amq.topic".into(), key, options, &payload, durable);
            confirms.push((seq, timeout(PATIENCE, publish).await??));
            seq += 1;
        }
        for (seq, confirm) in confirms {
            if matches!(timeout(PATIENCE, confirm).await??, Confirmation::Ack(_)) {
                run.acked(SOURCE, incarnation, seq);
            }
        }
        sleep(PACE).await;
    }
    Ok(())
}

/// Consumes until the run is over.
pub(super) async fn consume(run: &Run, nodes: &[SocketAddr]) {
    let mut turn = 0;
    while !run.is_over() {
        let _ = consume_over_one(run, nodes[turn % nodes.len()]).await;
        turn += 1;
        sleep(Duration::from_millis(50)).await;
    }
}

async fn consume_over_one(run: &Run, node: SocketAddr) -> Result<(), Failed> {
    let (_connection, channel) = open(node).await?;
    timeout(PATIENCE, channel.tx_select()).await??;
    channel.basic_qos(500, BasicQosOptions::default()).await?;
    let options = BasicConsumeOptions::default();
    let consume =
        channel.basic_consume(QUEUE.into(), "nemesis".into(), options, FieldTable::default());
    let mut consumer = timeout(PATIENCE, consume).await??;
    let mut taken: Vec<Vec<u8>> = Vec::new();
    let mut quiet_since = Instant::now();
    while !run.is_over() {
        match timeout(Duration::from_millis(100), consumer.next()).await {
            Ok(Some(delivery)) => {
                let delivery = delivery?;
                delivery.ack(BasicAckOptions::default()).await?;
                run.history().ack_sent(&delivery.data);
                taken.push(delivery.data);
                quiet_since = Instant::now();
            }
            Ok(None) => return Ok(()),
            // A node that is held or paused says nothing at all: another may have the queue. Heartbeats would tell later.
            Err(_) if quiet_since.elapsed() > PATIENCE => return Ok(()),
            Err(_) => {}
        }
        if taken.len() >= COMMIT || (!taken.is_empty() && quiet_since.elapsed() > PACE) {
            timeout(PATIENCE, channel.tx_commit()).await??;
            let mut history = run.history();
            taken.drain(..).for_each(|payload| history.ack_sure(&payload));
        }
    }
    Ok(())
}
