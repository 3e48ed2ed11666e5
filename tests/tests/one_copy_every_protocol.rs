//! P4: a message is stored once and read over Kafka, AMQP and MQTT with topic, payload, time and properties intact,
//! whichever way it came in.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use lapin::{
    BasicProperties, Connection, ConnectionProperties,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions,
        QueueBindOptions, QueueDeclareOptions,
    },
    types::FieldTable,
};
use rdkafka::{
    ClientConfig, Message as _,
    message::OwnedHeaders,
    producer::{BaseRecord, Producer as _, ThreadedProducer},
};
use tributary_shared::mqtt::{
    Qos, Version,
    packet::{Publish, PublishProperties},
};
use tributary_tests::{
    Cloud, Device, Edge,
    device::connect_packet,
    http_get,
    kafka::{Reader, header},
    process::until,
    say,
};

const WAIT: Duration = Duration::from_secs(20);

async fn amqp(cloud: &Cloud) -> lapin::Channel {
    let uri = format!("amqp://guest:guest@{}/%2f", cloud.amqp);
    let connection =
        Connection::connect(&uri, ConnectionProperties::default()).await.expect("amqp login");
    connection.create_channel().await.expect("channel")
}

async fn queue(channel: &lapin::Channel, binding: &str) -> lapin::Consumer {
    let declared = channel
        .queue_declare("all".into(), QueueDeclareOptions::durable(), FieldTable::default())
        .await
        .expect("declare");
    channel
        .queue_bind(
            declared.name().clone(),
            "amq.topic".into(),
            binding.into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        )
        .await
        .expect("bind");
    channel
        .basic_consume(
            declared.name().clone(),
            "reader".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        )
        .await
        .expect("consume")
}

async fn delivery(consumer: &mut lapin::Consumer) -> lapin::message::Delivery {
    let next = tokio::time::timeout(WAIT, consumer.next()).await.expect("a delivery in time");
    let delivery = next.expect("open").expect("delivery");
    delivery.ack(BasicAckOptions::default()).await.expect("ack");
    delivery
}

fn long_string(headers: &FieldTable, name: &str) -> Option<String> {
    headers.inner().get(name).and_then(|value| value.as_long_string()).map(ToString::to_string)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_message_is_read_by_kafka_amqp_and_mqtt_clients() {
    let folder = tempfile::tempdir().expect("folder");
    let cloud = Cloud::start(&folder.path().join("cloud"));
    let edge = Edge::start(&folder.path().join("edge"), "gw1", Some(cloud.mqtt));
    let channel = amqp(&cloud).await;
    let mut consumer = queue(&channel, "site.#").await;
    let mqtt_address = cloud.mqtt;
    let edge_address = edge.mqtt;
    let publish = Publish {
        qos: Qos::AtLeastOnce,
        topic: "site/a/temp".into(),
        payload: Bytes::from_static(b"21.5 \xff\x00 raw"),
        properties: PublishProperties {
            content_type: Some("text/odd".into()),
            response_topic: Some("site/a/answer".into()),
            correlation_data: Some(Bytes::from_static(b"c-1")),
            user_properties: vec![("k".into(), "1".into()), ("k".into(), "2".into())],
            ..PublishProperties::default()
        },
        ..Publish::default()
    };
    let sent = publish.clone();
    let received = tokio::task::spawn_blocking(move || {
        let mut reader = Device::connect_with(mqtt_address, connect_packet("reader", Version::V5))
            .expect("cloud mqtt");
        reader.subscribe("site/+/temp", Qos::AtLeastOnce).expect("subscribe");
        let mut device = Device::connect_with(edge_address, connect_packet("dev-1", Version::V5))
            .expect("edge mqtt");
        let ack = device.publish(sent).expect("publish").expect("puback");
        assert!(!ack.reason.is_error(), "{ack:?}");
        reader.message().expect("message")
    })
    .await
    .expect("mqtt side");
    assert_eq!(received.topic, publish.topic);
    assert_eq!(received.payload, publish.payload);
    assert_eq!(received.properties, publish.properties);

    let delivery = delivery(&mut consumer).await;
    assert_eq!(delivery.data, publish.payload.to_vec());
    assert_eq!(delivery.routing_key.as_str(), "site.a.temp");
    assert_eq!(delivery.exchange.as_str(), "amq.topic");
    assert_eq!(delivery.properties.content_type().as_ref().map(|s| s.as_str()), Some("text/odd"));
    let headers = delivery.properties.headers().clone().expect("headers");
    assert_eq!(long_string(&headers, "x-mqtt-topic").as_deref(), Some("site/a/temp"));

    let kafka = cloud.kafka;
    let message = tokio::task::spawn_blocking(move || {
        Reader::new(kafka, "mqtt.messages").next(WAIT).expect("a kafka message")
    })
    .await
    .expect("kafka side");
    assert_eq!(message.payload(), Some(&publish.payload[..]));
    assert_eq!(message.key(), Some(&b"site/a/temp"[..]));
    assert_eq!(header(&message, "edge.id").as_deref(), Some(&b"gw1"[..]));
    assert_eq!(header(&message, "mqtt.client_id").as_deref(), Some(&b"dev-1"[..]));
    assert_eq!(header(&message, "mqtt.content_type").as_deref(), Some(&b"text/odd"[..]));
    let offset = headers.inner().get("x-stream-offset").cloned();
    assert_eq!(offset, Some(lapin::types::AMQPValue::LongLongInt(message.offset())));
    drop(edge);
}

/// An edge below it has a time service that has not set the clock yet, in a mount namespace of its own.
const WITHOUT_TIME: &str =
    "mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/timesync && exec \"$@\"";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_time_that_the_gateway_did_not_trust_is_marked_for_every_reader() {
    let under = ["unshare", "--mount", "sh", "-c", WITHOUT_TIME, "sh"];
    let mut probe = std::process::Command::new(under[0]);
    if !probe.args(&under[1..]).arg("true").status().is_ok_and(|status| status.success()) {
        return say("SKIP no mount namespace can be made here: root is needed");
    }
    let folder = tempfile::tempdir().expect("folder");
    let cloud = Cloud::start(&folder.path().join("cloud"));
    let channel = amqp(&cloud).await;
    let mut consumer = queue(&channel, "site.#").await;
    let kafka = cloud.kafka;
    let cloud_mqtt = cloud.mqtt;
    let data = folder.path().join("edge");
    let on_kafka = tokio::task::spawn_blocking(move || {
        let mut edge = Edge::start(&data, "gw1", Some(cloud_mqtt));
        edge.under = under.map(ToOwned::to_owned).to_vec();
        let edge = edge.restart();
        let mut device = Device::connect(edge.mqtt, "d").expect("connect");
        let mut publish = |payload: &'static str| {
            let message = ("site/t".to_owned(), Bytes::from_static(payload.as_bytes()));
            device.publish_all([message], 1, |_| ()).expect("published");
        };
        publish("too early");
        // The service has heard of the time.
        let service = format!("/proc/{}/root/run/systemd/timesync", edge.process.id());
        std::fs::write(format!("{service}/synchronized"), "").expect("written");
        let trusted = || http_get(edge.admin, "/metrics").contains("tributary_clock_unsynced 0\n");
        until("the clock is trusted", trusted);
        publish("in time");
        let reader = Reader::new(kafka, "mqtt.messages");
        let next = || reader.next(WAIT).expect("a kafka message");
        [next(), next()].map(|message| header(&message, "edge.clock"))
    });
    let on_kafka = on_kafka.await.expect("kafka side");
    assert_eq!(on_kafka, [Some(b"unsynced".to_vec()), None]);
    for expected in [Some("unsynced"), None] {
        let delivery = delivery(&mut consumer).await;
        let headers = delivery.properties.headers().clone().expect("headers");
        assert_eq!(long_string(&headers, "x-edge-clock").as_deref(), expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_kafka_and_amqp_clients_write_reaches_mqtt_and_each_other() {
    let folder = tempfile::tempdir().expect("folder");
    let cloud = Cloud::start(&folder.path().join("cloud"));
    let channel = amqp(&cloud).await;
    let mut consumer = queue(&channel, "#").await;
    let mqtt_address = cloud.mqtt;
    let mut reader = tokio::task::spawn_blocking(move || {
        let mut reader = Device::connect_with(mqtt_address, connect_packet("reader", Version::V5))
            .expect("cloud mqtt");
        reader.subscribe("#", Qos::AtLeastOnce).expect("subscribe");
        reader
    })
    .await
    .expect("subscribed");

    let kafka = cloud.kafka;
    tokio::task::spawn_blocking(move || {
        let producer: ThreadedProducer<_> = ClientConfig::new()
            .set("bootstrap.servers", kafka.to_string())
            .set("enable.idempotence", "true")
            .set("compression.type", "zstd")
            .create()
            .expect("producer");
        let headers = OwnedHeaders::new()
            .insert(rdkafka::message::Header { key: "origin", value: Some("erp") });
        let record = BaseRecord::to("commands").key("plant/7/set").payload("open").headers(headers);
        producer.send(record).expect("queued");
        producer.flush(WAIT).expect("flushed");
    })
    .await
    .expect("produced");
    let from_kafka = delivery(&mut consumer).await;
    assert_eq!(from_kafka.data, b"open");
    assert_eq!(from_kafka.routing_key.as_str(), "plant.7.set");

    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirm");
    let confirmation = channel
        .basic_publish(
            "amq.topic".into(),
            "plant.8.set".into(),
            BasicPublishOptions::default(),
            b"close",
            BasicProperties::default().with_content_type("text/plain".into()),
        )
        .await
        .expect("publish")
        .await
        .expect("confirm");
    assert!(confirmation.is_ack(), "{confirmation:?}");
    let from_amqp = delivery(&mut consumer).await;
    assert_eq!(from_amqp.data, b"close");

    let messages = tokio::task::spawn_blocking(move || {
        [reader.message().expect("first"), reader.message().expect("second")]
    })
    .await
    .expect("mqtt side");
    assert_eq!(messages[0].topic, "plant/7/set");
    assert_eq!(&messages[0].payload[..], b"open");
    assert_eq!(messages[1].topic, "plant/8/set");
    assert_eq!(&messages[1].payload[..], b"close");
    assert_eq!(messages[1].properties.content_type.as_deref(), Some("text/plain"));

    let message = tokio::task::spawn_blocking(move || {
        Reader::new(kafka, "mqtt.messages").next(WAIT).expect("a kafka message")
    })
    .await
    .expect("kafka side");
    assert_eq!(message.payload(), Some(&b"close"[..]));
    assert_eq!(message.key(), Some(&b"plant/8/set"[..]));
}
