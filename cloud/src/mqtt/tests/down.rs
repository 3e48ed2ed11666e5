//! What edges that listen for commands get.

use super::*;

/// Listens for an edge as edges do.
async fn listen(cloud: &mut Cloud, edge: &str, filters: &[&str]) -> (Client, bool) {
    let mut hello = connect(&format!("{edge}.down"), false);
    hello.user_properties = vec![("tributary-down".into(), edge.into())];
    let (mut client, connack) = cloud.connect_as(hello).await;
    let options = SubscriptionOptions {
        qos: Qos::AtLeastOnce,
        no_local: true,
        retain_as_published: true,
        retain_handling: 1,
    };
    let filter = |&filter: &&str| SubscribeFilter { filter: filter.into(), options };
    let subscribe = Subscribe {
        packet_id: PacketId::MIN,
        filters: filters.iter().map(filter).collect(),
        subscription_id: None,
        user_properties: Vec::new(),
    };
    client.send(Packet::Subscribe(subscribe)).await;
    // What waited may come first.
    if connack.session_present {
        return (client, true);
    }
    assert!(matches!(client.receive().await, Packet::SubAck(_)));
    (client, false)
}

fn place(publish: &Publish) -> String {
    let (name, place) = publish.properties.user_properties.last().unwrap();
    assert_eq!(name, "tributary-at");
    place.to_string()
}

/// The next message, whatever else comes before it.
async fn command(client: &mut Client) -> Publish {
    loop {
        if let Packet::Publish(publish) = client.receive().await {
            return publish;
        }
    }
}

#[tokio::test]
async fn a_command_that_comes_again_after_a_kill_names_the_same_place_and_only_edges_see_it() {
    let engine = MemoryEngine::new(1);
    let mut cloud = Cloud::start(&engine).await;
    let (mut edge, _) = listen(&mut cloud, "gw1", &["tributary/gw1/down/#"]).await;
    let (mut other, _) = cloud.connect("other", true).await;
    other.subscribe("tributary/#", Qos::AtLeastOnce).await;
    let (mut writer, _) = cloud.connect("writer", true).await;
    for payload in ["1", "2"] {
        assert_eq!(writer.publish("tributary/gw1/down/v", payload).await, Reason::SUCCESS);
        assert!(other.message().await.properties.user_properties.is_empty());
    }
    let first = edge.message().await;
    let second = place(&edge.message().await);
    let ack = Ack::new(first.packet_id.unwrap(), Reason::SUCCESS);
    edge.send(Packet::PubAck(ack)).await;
    edge.ping_through().await;
    assert_ne!(place(&first), second);
    // Acknowledged and stored, or not: it may come again, as what it was.
    cloud.kill(&engine).await;
    let mut cloud = Cloud::start(&engine).await;
    let (mut edge, present) = listen(&mut cloud, "gw1", &["tributary/gw1/down/#"]).await;
    assert!(present);
    let mut again = command(&mut edge).await;
    if again.payload == "1" {
        assert_eq!(place(&again), place(&first));
        again = command(&mut edge).await;
    }
    assert_eq!((&again.payload[..], place(&again)), (&b"2"[..], second));
    cloud.stop().await;
}

#[tokio::test]
async fn what_an_edge_said_does_not_go_back_to_it_and_devices_command_no_gateway() {
    let engine = MemoryEngine::new(1);
    let mut cloud = Cloud::start(&engine).await;
    cloud.log.create_stream("up", Some(1), StreamConfig::default()).await.unwrap();
    let filters = ["commands/#", "tributary/gw2/down/#"];
    let (mut one, _) = listen(&mut cloud, "gw1", &["commands/#"]).await;
    let (mut two, _) = listen(&mut cloud, "gw2", &filters).await;
    for (topic, from_edge) in
        [("tributary/gw2/down/x", true), ("commands/a", true), ("commands/b", false)]
    {
        let edge = Header { name: "edge.id".into(), value: Some("gw1".into()) };
        let retain = Header { name: "mqtt.retain".into(), value: Some("true".into()) };
        let record = Record {
            key: Some(topic.into()),
            value: Some(topic.into()),
            headers: if from_edge { vec![edge, retain] } else { Vec::new() },
            ..Record::default()
        };
        cloud.append("up", record).await;
    }
    assert_eq!(one.payload().await, "commands/b");
    assert_eq!(two.payload().await, "commands/a");
    assert_eq!(two.payload().await, "commands/b");
    // Nor does it when it comes as a retained message.
    let (mut late, _) = listen(&mut cloud, "gw1", &["commands/#"]).await;
    late.ping_through().await;
    cloud.stop().await;
}

impl Client {
    /// Everything sent so far has been handled; nothing but acknowledgements of what was asked came before.
    async fn ping_through(&mut self) {
        self.send(Packet::PingReq).await;
        loop {
            match self.receive().await {
                Packet::PingResp => return,
                Packet::SubAck(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}
