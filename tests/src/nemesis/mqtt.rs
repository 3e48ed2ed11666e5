//! MQTT clients of a run: devices at edges and at the cloud, QoS 1 and 2, and a session that stays.
//!
//! Devices are those of the bridge's runs; here each has a station of its own, which paces it. Not here: what they find (`history`).

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use tributary_shared::mqtt::{
    Packet, Qos, Reason,
    packet::{Ack, Publish},
};

use super::{amqp::KEY, run::Run};
use crate::{
    Device,
    bridge::{Publisher, Station},
};

/// A device may send one message more this often.
const PACE: Duration = Duration::from_millis(20);
/// A connection that says nothing for so long is left.
const PATIENCE: Duration = Duration::from_secs(5);
const SESSION: &str = "nemesis";

/// A device, by its source.
#[derive(Debug)]
pub(super) struct Sender {
    source: String,
    station: &'static Station,
}

impl Sender {
    /// `group name` publishes to `broker` from now on. An edge acknowledges by itself: it is no lane of the cloud's.
    pub(super) fn start(
        run: &Arc<Run>,
        group: &str,
        name: &str,
        qos: Qos,
        broker: SocketAddr,
        is_edge: bool,
    ) -> Self {
        // Lives as long as the process: its threads are not bound to this scope.
        let station: &'static Station = Box::leak(Box::default());
        station.open(0);
        let mut device = Publisher::new(group, name, qos, 20, 100)
            .to(&format!("{KEY}/{group}/{name}"))
            .within(PATIENCE);
        thread::spawn(move || device.run(broker, station));
        let source = format!("{group} {name}");
        let (of_run, lane) = (run.clone(), source.clone());
        thread::spawn(move || {
            let mut seen = 0;
            while !of_run.is_over() {
                if !of_run.is_quiet() {
                    station.allow(1);
                }
                let (acked, _) = station.wait(seen + 1, PACE);
                for _ in (seen..acked).filter(|_| !is_edge) {
                    of_run.timeline().acked(&lane, of_run.now_ms());
                }
                if acked > seen {
                    thread::sleep(PACE);
                }
                seen = acked;
            }
        });
        Self { source, station }
    }

    /// Sends nothing more; what it was promised goes into the run's books.
    pub(super) fn end(&self, run: &Run) {
        self.station.end();
        let state = self.station.state();
        run.history().books().join(state.books.clone());
        if state.sessions_lost > 0 {
            run.history().stalled(&format!("{} (its session was gone)", self.source));
        }
    }
}

fn session(broker: SocketAddr) -> io::Result<Device> {
    let mut device = Device::connect_persistent_within(broker, SESSION, PATIENCE)?;
    if !device.connack.session_present {
        device.subscribe(&format!("{KEY}/#"), Qos::AtLeastOnce)?;
    }
    Ok(device)
}

/// Makes the session.
pub(super) fn prepare(broker: SocketAddr) -> Result<(), String> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match session(broker) {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() > deadline => return Err(format!("a session: {error}")),
            Err(_) => thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// Takes what the session is given until the run is over.
pub(super) fn receive(run: &Run, broker: SocketAddr) {
    while !run.is_over() {
        let _ = receive_over_one(run, broker);
        thread::sleep(Duration::from_millis(50));
    }
}

fn receive_over_one(run: &Run, broker: SocketAddr) -> io::Result<()> {
    let mut device = session(broker)?;
    while !run.is_over() {
        // Nothing for so long: the node may be held or paused, another may have the session.
        match device.receive()? {
            Packet::Publish(Publish { payload, packet_id, .. }) => {
                run.history().in_session(&payload);
                if let Some(id) = packet_id {
                    device.send(&Packet::PubAck(Ack::new(id, Reason::SUCCESS)))?;
                }
            }
            Packet::Disconnect(_) => return Ok(()),
            _ => {}
        }
    }
    Ok(())
}
