//! What a connection keeps count of: topic aliases toward the client, and messages of the client without an answer.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicBool, AtomicU16},
    task::{self, Poll, Waker},
};

use super::*;
use crate::{
    connection::{quota::Quota, run::Link, writing::Takes},
    mqtt::packet::{Ack, SubAck},
    session::event::ConnectionId,
};

fn message(topic: &str, payload: usize) -> Outgoing {
    let Outgoing::Publish(delivery) = delivery(payload, None) else { panic!() };
    let message = Message { topic: topic.into(), ..Message::clone(&delivery.message) };
    Outgoing::Publish(Delivery { message: Arc::new(message), ..delivery })
}

/// What the client gets for messages of these topics: topic and alias.
async fn received(running: &mut Running, topics: &[&str]) -> Vec<(String, Option<u16>)> {
    let mut found = Vec::new();
    for topic in topics {
        running.outbox.send(message(topic, 10)).unwrap();
        let Some(Packet::Publish(publish)) = running.client.receive().await else { panic!() };
        found.push((publish.topic.to_string(), publish.topic_alias));
    }
    found
}

fn line(topic: &str, alias: Option<u16>) -> (String, Option<u16>) {
    (topic.to_owned(), alias)
}

// [MQTT-3.1.2-26] [MQTT-3.3.2-7] [MQTT-3.3.2-8] [MQTT-3.3.2-9] [MQTT-3.3.2-11]
#[tokio::test(start_paused = true)]
async fn a_client_that_takes_aliases_gets_a_topic_once_a_connection() {
    for _ in 0..2 {
        let mut asked = connect(Version::V5);
        asked.topic_alias_maximum = 2;
        let mut running = accepted(asked, Settings::default()).await;
        let found =
            received(&mut running, &["a/long", "b/long", "a/long", "c/long", "b/long"]).await;
        let expected = [
            line("a/long", Some(1)),
            line("b/long", Some(2)),
            line("", Some(1)),
            line("c/long", None),
            line("", Some(2)),
        ];
        assert_eq!(found, expected);
    }
}

// [MQTT-3.1.2-27] [MQTT-3.3.2-11]
#[tokio::test(start_paused = true)]
async fn a_client_that_takes_no_aliases_gets_none() {
    let settings = || Settings { topic_aliases: 0, ..Settings::default() };
    let taking = Connect { topic_alias_maximum: 9, ..connect(Version::V5) };
    for (asked, settings) in [
        (connect(Version::V5), Settings::default()),
        (connect(Version::V311), Settings::default()),
        (taking, settings()),
    ] {
        let mut running = accepted(asked, settings).await;
        let found = received(&mut running, &["a/long", "a/long"]).await;
        assert_eq!(found, [line("a/long", None), line("a/long", None)]);
    }
}

// [MQTT-3.1.2-24]
#[tokio::test(start_paused = true)]
async fn an_alias_makes_no_packet_too_large() {
    let mut asked = connect(Version::V5);
    // Exactly the packet without an alias: 2 of header, 2 and 6 of topic, 1 of properties, 10 of payload.
    (asked.topic_alias_maximum, asked.maximum_packet_size) = (2, Some(21));
    let mut running = accepted(asked, Settings::default()).await;
    let found = received(&mut running, &["a/long", "a/long"]).await;
    assert_eq!(found, [line("a/long", None), line("a/long", None)]);
    running.outbox.send(message("a/long", 7)).unwrap();
    let Some(Packet::Publish(publish)) = running.client.receive().await else { panic!() };
    assert_eq!((&*publish.topic, publish.topic_alias), ("a/long", Some(1)));
    assert_eq!(received(&mut running, &["a/long"]).await, [line("", Some(1))]);
}

fn numbered(packet_id: u16, qos: Qos) -> Packet {
    let packet_id = PacketId::new(packet_id);
    Packet::Publish(Publish { qos, packet_id, topic: "t".into(), ..Publish::default() })
}

async fn told(maximum: u16) -> Running {
    let mut running = start(connect(Version::V5), Settings::default()).await;
    let properties = ConnAckProperties { receive_maximum: Some(maximum), ..Default::default() };
    running.outbox.send(connack(properties)).unwrap();
    assert!(matches!(running.client.receive().await, Some(Packet::ConnAck(_))));
    running
}

// [MQTT-3.3.4-7] [MQTT-4.9.0-2]
#[tokio::test(start_paused = true)]
async fn one_message_over_our_receive_maximum_ends_the_connection_with_0x93() {
    for qos in [Qos::AtLeastOnce, Qos::ExactlyOnce] {
        let mut running = told(3).await;
        for packet_id in 1..=4 {
            running.client.send(&numbered(packet_id, qos)).await;
        }
        let mut heard = 0;
        let closed = loop {
            match running.incoming.recv().await {
                Some(Incoming::Packets(_, packets)) => heard += packets.len(),
                Some(Incoming::Closed(_, reason)) => break reason,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!((heard, closed), (3, Some(Reason::RECEIVE_MAXIMUM_EXCEEDED)));
        let told = Packet::Disconnect(Disconnect::new(Reason::RECEIVE_MAXIMUM_EXCEEDED));
        assert_eq!(running.client.receive().await, Some(told));
    }
}

// [MQTT-3.3.4-8] [MQTT-4.9.0-1] [MQTT-4.9.0-3]
#[tokio::test(start_paused = true)]
async fn a_client_that_sends_as_many_as_it_may_and_one_for_each_answer_goes_on() {
    let mut running = told(3).await;
    for packet_id in 1..=3 {
        running.client.send(&numbered(packet_id, Qos::AtLeastOnce)).await;
    }
    running.client.send(&Packet::PingReq).await;
    for packet_id in 4..=200 {
        let ack = Ack::new(PacketId::new(packet_id - 3).unwrap(), Reason::SUCCESS);
        running.outbox.send(Outgoing::Packet(Box::new(Packet::PubAck(ack)))).unwrap();
        assert!(matches!(running.client.receive().await, Some(Packet::PubAck(_))));
        running.client.send(&numbered(packet_id, Qos::AtLeastOnce)).await;
    }
    drop(running.client);
    let mut heard = 0;
    while let Some(Incoming::Packets(_, packets)) = running.incoming.recv().await {
        heard += packets.len();
    }
    assert_eq!((heard, running.end.await.unwrap()), (201, End::Gone));
}

// [MQTT-3.1.2-29]
#[tokio::test(start_paused = true)]
async fn who_wants_no_problem_information_gets_none_beside_connack_and_disconnect() {
    for wanted in [true, false] {
        let asked = Connect { request_problem_information: wanted, ..connect(Version::V5) };
        let mut running = start(asked, Settings::default()).await;
        let why = || (Some("why".into()), vec![("k".into(), "v".into())]);
        let (reason_string, user_properties) = why();
        let properties = ConnAckProperties { reason_string, user_properties, ..Default::default() };
        running.outbox.send(connack(properties)).unwrap();
        let Some(Packet::ConnAck(connack)) = running.client.receive().await else { panic!() };
        assert!(connack.properties.reason_string.is_some());
        let (reason_string, user_properties) = why();
        let packet_id = PacketId::new(1).unwrap();
        let ack = Ack { packet_id, reason: Reason::SUCCESS, reason_string, user_properties };
        let (reason_string, user_properties) = why();
        let reasons = vec![Reason::SUCCESS];
        let suback = SubAck { packet_id, reasons, reason_string, user_properties };
        for packet in [
            Packet::PubAck(ack.clone()),
            Packet::PubRec(ack.clone()),
            Packet::PubRel(ack.clone()),
            Packet::PubComp(ack),
            Packet::SubAck(suback.clone()),
            Packet::UnsubAck(suback),
        ] {
            running.outbox.send(Outgoing::Packet(Box::new(packet.clone()))).unwrap();
            let plain = crate::mqtt::write::without_diagnostics(&packet, true).unwrap();
            let expected = if wanted { packet } else { plain };
            assert_eq!(running.client.receive().await, Some(expected));
        }
        let (reason_string, user_properties) = why();
        let last =
            Disconnect { reason_string, user_properties, ..Disconnect::new(Reason::SERVER_BUSY) };
        running.outbox.send(Outgoing::Packet(Box::new(Packet::Disconnect(last.clone())))).unwrap();
        assert_eq!(running.client.receive().await, Some(Packet::Disconnect(last)));
    }
}

// [MQTT-3.1.2-24] [MQTT-3.2.0-1]
#[tokio::test(start_paused = true)]
async fn who_takes_no_packet_as_large_as_an_answer_is_disconnected() {
    for maximum in [1, 9, 10] {
        let asked = Connect { maximum_packet_size: Some(maximum), ..connect(Version::V5) };
        let mut running = start(asked, Settings::default()).await;
        let properties = ConnAckProperties { maximum_packet_size: Some(9), ..Default::default() };
        running.outbox.send(connack(properties)).unwrap();
        running.outbox.send(Outgoing::Packet(Box::new(Packet::PingResp))).unwrap();
        let got = running.client.receive().await;
        if maximum < 10 {
            assert_eq!(got, None, "nothing comes before CONNACK");
            assert!(matches!(running.incoming.recv().await, Some(Incoming::Closed(_, None))));
            continue;
        }
        assert!(matches!(got, Some(Packet::ConnAck(_))));
        assert_eq!(running.client.receive().await, Some(Packet::PingResp));
        let packet_id = PacketId::new(1).unwrap();
        let (reasons, reason_string) = (vec![Reason::SUCCESS; 6], None);
        let suback = SubAck { packet_id, reasons, reason_string, user_properties: Vec::new() };
        running.outbox.send(Outgoing::Packet(Box::new(Packet::SubAck(suback)))).unwrap();
        let told = Packet::Disconnect(Disconnect::new(Reason::PACKET_TOO_LARGE));
        assert_eq!(running.client.receive().await, Some(told));
        assert_eq!(running.client.receive().await, None);
        assert!(matches!(running.incoming.recv().await, Some(Incoming::Closed(_, None))));
    }
}

// [MQTT-3.2.0-1]
#[test]
fn what_was_queued_while_an_answer_was_found_too_large_is_not_written() {
    let (context, _incoming) = context(Settings::default());
    for (accepted, left) in [(false, 0), (true, 1)] {
        let connection = ConnectionId(1);
        let link = Link {
            context: &context,
            outbox: Outbox::new(connection, &context.settings),
            takes: Takes::of(&connect(Version::V5)),
            quota: Quota::new(Version::V5),
            accepted: AtomicBool::new(accepted),
            keep_alive_s: AtomicU16::new(0),
        };
        // The writer holds the answer; meanwhile the broker goes on.
        link.outbox.send(Outgoing::Packet(Box::new(Packet::PingResp))).unwrap();
        link.outbox.send(message("a/b", 10)).unwrap();
        link.give_up();
        let (mut task, mut batch) = (task::Context::from_waker(Waker::noop()), VecDeque::new());
        let more = link.outbox.poll_take(&mut task, &mut batch);
        assert_eq!((more, batch.len()), (Poll::Ready(accepted), left));
        let told = Packet::Disconnect(Disconnect::new(Reason::PACKET_TOO_LARGE));
        assert!(batch.iter().all(|one| matches!(one, Outgoing::Packet(last) if **last == told)));
        batch.clear();
        assert_eq!(link.outbox.poll_take(&mut task, &mut batch), Poll::Ready(false));
    }
}
