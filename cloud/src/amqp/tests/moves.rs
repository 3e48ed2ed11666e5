//! Queues through moves of the virtual host's shard from one node to another.

use super::*;
use crate::{
    engine::ShardId,
    log::nodes_tests::{in_memory, nodes},
};

#[tokio::test]
async fn queues_move_with_their_virtual_host_and_what_was_acked_does_not_come_again() {
    let nodes = nodes(in_memory(2, 2), &crate::log::Settings::default());
    let [(a, _), (b, _)] = &nodes[..] else { panic!("two") };
    let home = a.home_shard("amqp:/");
    let other = ShardId(1 - home.0);
    a.take(home).await.unwrap();
    b.take(other).await.unwrap();
    let (at_a, at_b) = (Server::start(a).await, Server::start(b).await);
    let mut client = Client::open(&at_a).await;
    client.declare("q", Table::default()).await;
    client.call(bind("q", "amq.topic", "plant.#")).await;
    client.publish_all("", "q", &[b"1", b"2", b"3"]).await;
    let mut consumer = Client::open(&at_a).await;
    consumer.qos(2, false).await;
    consumer.consume("q", "c").await;
    assert_eq!(consumer.delivery().await, (1, false, Bytes::from_static(b"1")));
    assert_eq!(consumer.delivery().await, (2, false, Bytes::from_static(b"2")));
    consumer.send(1, ack(1, false)).await;
    assert_eq!(consumer.delivery().await, (3, false, Bytes::from_static(b"3")));

    a.release(home).await.unwrap();
    for mut closed in [client, consumer] {
        let (_, told) = closed.method().await;
        assert!(matches!(told, Method::ConnectionClose { reply_code: 320, .. }), "{told:?}");
    }
    b.take(home).await.unwrap();
    from_mqtt(b, "plant/x", b"4").await;
    let mut consumer = Client::open(&at_b).await;
    consumer.consume("q", "c").await;
    let mut got = Vec::new();
    for _ in 0..3 {
        let (tag, redelivered, body) = consumer.delivery().await;
        consumer.send(1, ack(tag, false)).await;
        got.push((redelivered, body));
    }
    let wanted = [(true, "2"), (true, "3"), (false, "4")];
    assert_eq!(got, wanted.map(|(again, body)| (again, Bytes::from_static(body.as_bytes()))));
}
