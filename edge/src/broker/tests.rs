//! What the broker does with publishers while the disk is full.
//!
//! In: packets as connections give them. Out: what the numbers say once all is done. Change here: promises about a full disk.
//! Not here: how it comes to be full (`store`).

use tributary_shared::{
    connection,
    mqtt::{
        PacketId, Qos,
        packet::{Connect, Disconnect, Publish, PublishProperties, Will},
    },
    session::{self, Fanout, event::Peer},
};

use super::*;
use crate::{
    own::{Place, Publication, Wish},
    store::{self, After, Opened, Plan},
};

const ONE: ConnectionId = ConnectionId(1);

fn connect(version: Version) -> Incoming {
    let will = Will {
        topic: "will".into(),
        payload: Bytes::from_static(b"gone"),
        qos: Qos::AtMostOnce,
        retain: true,
        delay: 0,
        properties: PublishProperties::default(),
    };
    let connect = Connect {
        version,
        client_id: "device".into(),
        clean_start: true,
        keep_alive: 0,
        will: Some(will),
        user_name: None,
        password: None,
        session_expiry: None,
        receive_maximum: None,
        maximum_packet_size: None,
        topic_alias_maximum: 0,
        request_response_information: false,
        request_problem_information: true,
        user_properties: Vec::new(),
        authentication_method: None,
        authentication_data: None,
    };
    Incoming::Connect {
        connection: ONE,
        connect: Box::new(connect),
        peer: Peer { principal: None, address: None, proof: None },
        outbox: Outbox::new(ONE, &connection::Settings::default()),
    }
}

fn publish(topic: &str, qos: Qos, retain: bool) -> Packet {
    let packet_id = (qos > Qos::AtMostOnce).then(|| PacketId::new(1).unwrap());
    let (topic, payload) = (topic.into(), Bytes::from_static(b"x"));
    Packet::Publish(Publish { qos, retain, topic, packet_id, payload, ..Publish::default() })
}

/// What a client of that version leaves behind that sent these on a full disk and is gone.
async fn after(version: Version, packets: Vec<Packet>) -> Arc<Status> {
    let dir = tempfile::tempdir().unwrap();
    let status = Arc::new(Status::default());
    let plan = Plan {
        dir: dir.path().to_owned(),
        edge_id: "gw1".to_owned(),
        lanes: Vec::new(),
        settings: store::Settings { ballast_bytes: 0, ..store::Settings::default() },
        after: After::Start,
    };
    let Opened { store, journal, restored, .. } = store::open(&plan, &status).unwrap();
    status.disk_full.store(true, Relaxed);
    let clock = Clock::start();
    let settings = session::Settings::default();
    let state = State::new(settings, Fanout::AtOnce, restored, clock.now());
    let (_rules, permissions) = watch::channel(Arc::default());
    let (_own, told) = watch::channel(Told::new());
    let broker = Broker::new(state, store.clone(), journal, status.clone(), clock, permissions);
    let (incoming, queue) = mpsc::channel(8);
    incoming.send(connect(version)).await.unwrap();
    incoming.send(Incoming::Packets(ONE, packets)).await.unwrap();
    incoming.send(Incoming::Closed(ONE, None)).await.unwrap();
    drop(incoming);
    let (_own, _down, inbox) = crate::own::inbox();
    broker.run(queue, told, inbox).await.unwrap();
    store.stop().await;
    status
}

// [MQTT-3.14.4-3] [MQTT311-3.14.4-3]
#[tokio::test]
async fn a_goodbye_behind_a_message_that_waits_for_room_is_heard() {
    let waits = || publish("t", Qos::AtLeastOnce, false);
    let cut = after(Version::V311, vec![waits()]).await;
    assert_eq!(cut.core.retained.get(), 1, "its will");
    let goodbye = Packet::Disconnect(Disconnect::new(Reason::SUCCESS));
    let left = after(Version::V311, vec![waits(), goodbye]).await;
    assert_eq!(left.core.retained.get(), 0, "no will");
}

#[tokio::test]
async fn nothing_of_qos_0_is_kept_on_a_full_disk() {
    for version in [Version::V311, Version::V5] {
        let packets = vec![
            publish("t", Qos::AtMostOnce, true),
            publish("$delayed/60/t", Qos::AtMostOnce, false),
            publish("t", Qos::AtMostOnce, false),
            Packet::Disconnect(Disconnect::new(Reason::SUCCESS)),
        ];
        let status = after(version, packets).await;
        assert_eq!((status.core.retained.get(), status.drops()["disk_full"]), (0, 2));
    }
}

#[tokio::test]
async fn what_the_edge_publishes_goes_up_and_what_came_down_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let status = Arc::new(Status::default());
    let plan = Plan {
        dir: dir.path().to_owned(),
        edge_id: "gw1".to_owned(),
        lanes: vec![crate::lane::Settings::default()],
        settings: store::Settings { ballast_bytes: 0, ..store::Settings::default() },
        after: After::Start,
    };
    let Opened { store, journal, restored, followed, threads, .. } =
        store::open(&plan, &status).unwrap();
    assert!(followed.is_empty());
    let clock = Clock::start();
    let state = State::new(session::Settings::default(), Fanout::AtOnce, restored, clock.now());
    let (_rules, permissions) = watch::channel(Arc::default());
    let (_tell, told) = watch::channel(Told::new());
    let broker = Broker::new(state, store.clone(), journal, status.clone(), clock, permissions);
    let (incoming, queue) = mpsc::channel(8);
    let (own, down, inbox) = crate::own::inbox();
    let running = tokio::spawn(broker.run(queue, told, inbox));
    own.publish("tributary/gw1/health", "well", PublishProperties::default(), true).await.unwrap();
    let wrong = own.publish("a/#", "", PublishProperties::default(), false).await;
    assert!(matches!(wrong, Err(crate::own::OwnError::Topic(_))));
    let command = Publication {
        topic: "valve/1".into(),
        payload: Bytes::from_static(b"open"),
        ..Publication::default()
    };
    let place = Some(Place { source: 7, offset: 41 });
    let publication = Some((command, Qos::AtLeastOnce));
    down.send(Wish::Bring { publication, place }).unwrap().await.unwrap();
    assert_eq!(status.lane("normal").messages.get(), 1, "the edge's own, not the command");
    assert_eq!(status.core.retained.get(), 1);
    drop(incoming);
    running.await.unwrap().unwrap();
    store.stop().await;
    drop(store);
    for thread in threads {
        thread.join().unwrap();
    }
    let Opened { followed, .. } = store::open(&plan, &status).unwrap();
    assert_eq!(followed, [(7, 42)].into());
}

#[tokio::test]
async fn what_came_down_waits_while_the_disk_is_full() {
    let dir = tempfile::tempdir().unwrap();
    let status = Arc::new(Status::default());
    let plan = Plan {
        dir: dir.path().to_owned(),
        edge_id: "gw1".to_owned(),
        lanes: Vec::new(),
        settings: store::Settings { ballast_bytes: 0, ..store::Settings::default() },
        after: After::Start,
    };
    let Opened { store, journal, restored, .. } = store::open(&plan, &status).unwrap();
    let clock = Clock::start();
    let state = State::new(session::Settings::default(), Fanout::AtOnce, restored, clock.now());
    let (_rules, permissions) = watch::channel(Arc::default());
    let (_tell, told) = watch::channel(Told::new());
    let broker = Broker::new(state, store.clone(), journal, status.clone(), clock, permissions);
    let (incoming, queue) = mpsc::channel(8);
    let (_own, down, inbox) = crate::own::inbox();
    let running = tokio::spawn(broker.run(queue, told, inbox));
    status.disk_full.store(true, Relaxed);
    // The broker has heard of it with the next thing it does.
    let heard = async |times| {
        incoming.send(connect(Version::V5)).await.unwrap();
        while status.connects.get() < times {
            tokio::task::yield_now().await;
        }
    };
    heard(1).await;
    let place = Some(Place { source: 1, offset: 1 });
    let mut durable = down.send(Wish::Bring { publication: None, place }).unwrap();
    heard(2).await;
    assert!(durable.try_recv().is_err());
    status.disk_full.store(false, Relaxed);
    heard(3).await;
    durable.await.unwrap();
    drop(incoming);
    running.await.unwrap().unwrap();
    store.stop().await;
}
