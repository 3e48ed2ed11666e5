//! Commands produced at the cloud, over any protocol, reach the devices behind the right gateway: once in its store, in order,
//! also after days without it, and never back up again.

use std::{collections::BTreeMap, net::SocketAddr, path::Path, time::Duration};

use bytes::Bytes;
use lapin::{
    BasicProperties, Connection, ConnectionProperties,
    options::{BasicPublishOptions, ConfirmSelectOptions},
};
use rdkafka::{
    ClientConfig,
    producer::{BaseRecord, Producer as _, ThreadedProducer},
};
use tributary_shared::mqtt::{
    Qos, Version,
    packet::{Publish, PublishProperties},
};
use tributary_tests::{
    Cloud, Device, Edge, device::connect_packet, http_get, kafka::Reader, process::until,
};

const WAIT: Duration = Duration::from_mins(1);
const QUICK: [&str; 4] =
    ["--set", "uplink.backoff_min_ms=20", "--set", "uplink.backoff_max_ms=200"];

/// A value of a metrics page; 0 if it is not there.
fn metric(admin: SocketAddr, name: &str) -> u64 {
    let page = http_get(admin, "/metrics");
    let value = page.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    value.unwrap_or(0)
}

/// The cloud knows so many filters.
fn subscribed(cloud: &Cloud, filters: u64) {
    let found = || metric(cloud.admin, "tributary_mqtt_subscriptions") >= filters;
    until("the edge listens", found);
}

fn command(topic: &str, payload: impl Into<Bytes>, properties: PublishProperties) -> Publish {
    Publish {
        qos: Qos::AtLeastOnce,
        topic: topic.into(),
        payload: payload.into(),
        properties,
        ..Publish::default()
    }
}

fn at_cloud(cloud: &Cloud, id: &str) -> Device {
    Device::connect_with(cloud.mqtt, connect_packet(id, Version::V5)).expect("connect")
}

/// A cloud whose gateways may listen to these topics, too.
fn start(folder: &Path, common: &str) -> Cloud {
    let data = format!("file://{}", folder.join("cloud").display());
    Cloud::start_with(&data, &["--set", &format!("mqtt.edge_filters=[\"{common}\"]")])
}

fn produce(kafka: SocketAddr, records: &[(&str, &str)]) {
    let producer: ThreadedProducer<_> = ClientConfig::new()
        .set("bootstrap.servers", kafka.to_string())
        .set("enable.idempotence", "true")
        .create()
        .expect("producer");
    for (key, payload) in records {
        producer.send(BaseRecord::to("commands").key(*key).payload(*payload)).expect("queued");
    }
    producer.flush(WAIT).expect("flushed");
}

async fn publish_amqp(amqp: SocketAddr, routing_key: &str, payload: &[u8]) {
    let uri = format!("amqp://guest:guest@{amqp}/%2f");
    let connection =
        Connection::connect(&uri, ConnectionProperties::default()).await.expect("amqp login");
    let channel = connection.create_channel().await.expect("channel");
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirm");
    let confirmation = channel
        .basic_publish(
            "amq.topic".into(),
            routing_key.into(),
            BasicPublishOptions::default(),
            payload,
            BasicProperties::default(),
        )
        .await
        .expect("publish")
        .await
        .expect("confirm");
    assert!(confirmation.is_ack(), "{confirmation:?}");
}

#[test]
fn commands_from_kafka_amqp_and_mqtt_reach_the_device_behind_its_gateway_and_its_answer_comes_up() {
    let folder = tempfile::tempdir().expect("folder");
    let cloud = start(folder.path(), "commands/#");
    let filters = ["--set", "downlink.filters=[\"commands/#\"]"];
    let [one, two] = ["gw1", "gw2"]
        .map(|id| Edge::start_with(&folder.path().join(id), id, Some(cloud.mqtt), &filters));
    let mut device =
        Device::connect_with(one.mqtt, connect_packet("valves", Version::V5)).expect("connect");
    device.subscribe("#", Qos::AtLeastOnce).expect("subscribe");
    let mut other = Device::connect(two.mqtt, "others").expect("connect");
    other.subscribe("#", Qos::AtLeastOnce).expect("subscribe");
    subscribed(&cloud, 4);
    let mut next = || {
        let message = device.message().expect("a command");
        (message.topic.to_string(), message)
    };

    produce(cloud.kafka, &[("tributary/gw1/down/valve/1", "open"), ("commands/all", "beep")]);
    let mut got = BTreeMap::from([next(), next()]);
    assert_eq!(&got.remove("valve/1").expect("from Kafka").payload[..], b"open");
    let all = got.remove("commands/all").expect("from Kafka, by filter");
    assert!(all.properties.user_properties.is_empty(), "{all:?}");

    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    runtime.block_on(publish_amqp(cloud.amqp, "tributary.gw1.down.valve.2", b"close"));
    let (topic, message) = next();
    assert_eq!((&*topic, &message.payload[..]), ("valve/2", &b"close"[..]));

    let mut operator = at_cloud(&cloud, "operator");
    operator.subscribe("answers/#", Qos::AtLeastOnce).expect("subscribe");
    let properties = PublishProperties {
        response_topic: Some("answers/1".into()),
        correlation_data: Some("c-7".into()),
        message_expiry: Some(600),
        user_properties: vec![("k".into(), "v".into())],
        ..PublishProperties::default()
    };
    operator
        .publish(command("tributary/gw1/down/valve/3", "state?", properties.clone()))
        .expect("published");
    let (topic, message) = next();
    let left = message.properties.message_expiry.expect("expires");
    assert!((500..=600).contains(&left), "{left}");
    let mut came = message.properties;
    came.message_expiry = Some(600);
    assert_eq!((&*topic, came), ("valve/3", properties));
    let answer =
        PublishProperties { correlation_data: Some("c-7".into()), ..PublishProperties::default() };
    device.publish(command("answers/1", "shut", answer)).expect("published");
    let message = operator.message().expect("the answer");
    assert_eq!((&*message.topic, &message.payload[..]), ("answers/1", &b"shut"[..]));
    assert_eq!(message.properties.correlation_data.as_deref(), Some(&b"c-7"[..]));
    // Of all that, only what was meant for every gateway came to the other.
    assert_eq!(other.message().expect("by filter").topic, "commands/all");
    other.set_timeout(Duration::from_millis(500)).expect("timeout");
    assert!(other.message().is_err());
}

#[test]
fn commands_wait_for_a_gateway_that_is_away_but_not_longer_than_they_last() {
    let folder = tempfile::tempdir().expect("folder");
    let cloud = Cloud::start(&folder.path().join("cloud"));
    let mut edge = Edge::start_with(&folder.path().join("edge"), "gw1", Some(cloud.mqtt), &QUICK);
    let mut device = Device::connect_persistent(edge.mqtt, "valve").expect("connect");
    device.subscribe("valve/#", Qos::AtLeastOnce).expect("subscribe");
    drop(device);
    subscribed(&cloud, 1);
    edge.process.kill();
    let mut operator = at_cloud(&cloud, "operator");
    for number in 0..300_u32 {
        let short = number % 100 == 50;
        let properties = PublishProperties {
            message_expiry: short.then_some(1),
            ..PublishProperties::default()
        };
        operator
            .publish(command("tributary/gw1/down/valve/1", number.to_string(), properties))
            .expect("published");
    }
    let waiting = "tributary_down_waiting{edge=\"gw1\"}";
    until("300 wait", || metric(cloud.admin, waiting) == 300);
    let cloud = cloud.restart();
    let edge = edge.restart();
    let mut device = Device::connect_persistent(edge.mqtt, "valve").expect("connect");
    for number in (0..300_u32).filter(|number| number % 100 != 50) {
        let message = device.message().expect("a command");
        assert_eq!(message.payload, number.to_string());
    }
    device.set_timeout(Duration::from_millis(500)).expect("timeout");
    assert!(device.message().is_err(), "nothing else comes");
    until("none waits", || metric(cloud.admin, waiting) == 0);
    let expired = "tributary_mqtt_dropped_total{why=\"expired\"}";
    assert_eq!(metric(cloud.admin, expired), 3, "counted where they waited");
}

#[test]
fn each_command_is_in_the_gateways_store_once_and_in_order_however_often_it_is_killed() {
    const COMMANDS: u32 = 3_000;
    const KILLS: u32 = 20;
    let folder = tempfile::tempdir().expect("folder");
    let mut cloud = start(folder.path(), "valve/#");
    let extra = [&QUICK[..], &["--set", "downlink.filters=[\"valve/#\"]"]].concat();
    let mut edge = Edge::start_with(&folder.path().join("edge"), "gw1", Some(cloud.mqtt), &extra);
    let mut device = Device::connect_persistent(edge.mqtt, "valve").expect("connect");
    device.subscribe("valve/#", Qos::AtLeastOnce).expect("subscribe");
    drop(device);
    subscribed(&cloud, 1);
    let mut operator = at_cloud(&cloud, "operator");
    let mut twice = 0;
    for kill in 0..KILLS {
        let share = COMMANDS / KILLS;
        // Both ways, so that the store sees several partitions.
        let messages = (kill * share..(kill + 1) * share).map(|number| {
            let topic = if number % 2 == 0 { "valve/1" } else { "tributary/gw1/down/valve/2" };
            (topic.to_owned(), Bytes::from(number.to_string()))
        });
        operator.publish_all(messages, 50, |_| ()).expect("published");
        // Somewhere on their way: later and later.
        let some = u64::from(share * kill / KILLS);
        until("some came", || metric(edge.admin, "tributary_down_received_total") >= some);
        twice += metric(edge.admin, "tributary_down_duplicates_total");
        if kill % 7 == 3 {
            drop(operator);
            cloud = cloud.restart();
            operator = at_cloud(&cloud, "operator");
        }
        edge = edge.restart();
    }
    let mut device = Device::connect_persistent(edge.mqtt, "valve").expect("connect");
    let mut got: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for _ in 0..COMMANDS {
        let message = device.message().expect("a command");
        let number = std::str::from_utf8(&message.payload).expect("text").parse().expect("number");
        got.entry(message.topic.to_string()).or_default().push(number);
    }
    for (topic, odd) in [("valve/1", 0), ("valve/2", 1)] {
        let all: Vec<u32> = (0..COMMANDS).filter(|number| number % 2 == odd).collect();
        assert_eq!(got.get(topic), Some(&all), "{topic}: once each and in order");
    }
    device.set_timeout(Duration::from_millis(500)).expect("timeout");
    assert!(device.message().is_err(), "nothing comes twice");
    twice += metric(edge.admin, "tributary_down_duplicates_total");
    assert!(twice > 0, "no command came twice: the kills have tested nothing");
    // No loop: the cloud's log has what was published, and nothing waits to go up.
    let reader = Reader::new(cloud.kafka, "mqtt.messages");
    let mut records = 0;
    while reader.next(Duration::from_secs(if records < COMMANDS { 20 } else { 1 })).is_some() {
        records += 1;
    }
    assert_eq!(records, COMMANDS);
    assert_eq!(metric(edge.admin, "tributary_lane_messages{lane=\"normal\"}"), 0);
}
