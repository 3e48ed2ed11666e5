//! Commands that go down while the link is bad: each is in the gateway's store once and in order.
//!
//! Holds: [`Commands`]: an operator at the cloud and one valve behind the gateway, which is away until the end. The commands
//! are checked like everything that goes up (`books`). Not here: commands over AMQP and Kafka, expiry (`tests/downlink.rs`).

use std::thread::JoinHandle;

use tributary_shared::mqtt::{Packet, Qos, Reason, packet::Ack};

use super::{Publisher, Station, Verdict, books::View};
use crate::{Cloud, Device, Edge, http_get, process::until};

/// At the edge, and at the cloud for that gateway.
const TOPICS: [&str; 2] = ["valve", "tributary/gw1/down/valve"];
/// Commands under way at once.
const WINDOW: usize = 4;

/// The operator and what was promised to him.
#[derive(Debug)]
pub(super) struct Commands {
    station: &'static Station,
    operator: Option<JoinHandle<()>>,
}

impl Commands {
    /// The valve's session, and an operator who has nothing to send yet.
    pub(super) fn start(cloud: &Cloud, edge: &Edge) -> Self {
        let mut valve = Device::connect_persistent(edge.mqtt, "valve").expect("a session");
        valve.subscribe(TOPICS[0], Qos::AtLeastOnce).expect("subscribed");
        // Until the gateway listens, a command is for nobody. One subscription is a reader's.
        until("the gateway listens", || subscriptions(cloud) >= 2);
        let station: &'static Station = Box::leak(Box::default());
        let (mut operator, mqtt) = (publisher("operator"), cloud.mqtt);
        let operator = Some(std::thread::spawn(move || operator.run(mqtt, station)));
        Self { station, operator }
    }

    /// The operator may send so many more.
    pub(super) fn more(&self, count: u64) {
        self.station.open(count);
    }

    /// What the valve got, against what the operator was promised; and how many those were.
    pub(super) fn finish(mut self, cloud: &Cloud, edge: &Edge) -> (Verdict, u64) {
        self.station.open(0);
        self.station.end();
        if let Some(operator) = self.operator.take() {
            operator.join().expect("the operator");
        }
        let last = publisher("last").publish_one(cloud.mqtt, self.station).expect("the last");
        let mut valve = Device::connect_persistent(edge.mqtt, "valve").expect("the session");
        let mut view = View::default();
        while !view.has(&last)
            && let Ok(packet) = valve.receive()
        {
            let Packet::Publish(publish) = packet else { continue };
            view.read(&publish.payload);
            if let Some(id) = publish.packet_id {
                valve.send(&Packet::PubAck(Ack::new(id, Reason::SUCCESS))).expect("an answer");
            }
        }
        let state = self.station.state();
        (state.books.verdict(&view), state.books.acked_count())
    }
}

fn subscriptions(cloud: &Cloud) -> u64 {
    let page = http_get(cloud.admin, "/metrics");
    let value = page.lines().find_map(|line| line.strip_prefix("tributary_mqtt_subscriptions "));
    value.and_then(|value| value.parse().ok()).unwrap_or(0)
}

fn publisher(name: &str) -> Publisher {
    Publisher::new("cloud", name, Qos::AtLeastOnce, WINDOW, 60).to(TOPICS[1])
}
