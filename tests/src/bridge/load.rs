//! Devices at an edge that publish as fast as they are let, go on after each lost connection, and book every acknowledgement.
//!
//! Holds: [`Station`] (the books behind their lock, and what devices may do), [`Publisher`]. A QoS 1 device begins a new incarnation
//! with each connection; a QoS 2 device keeps its session and repeats what the standard tells it to.
//! Not here: faults (`mod`), readers (`readers`).

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    sync::{Condvar, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use tributary_shared::mqtt::{
    Packet, PacketId, Qos, Reason, Version,
    packet::{Ack, Publish},
};

use super::{books::Books, message::Message};
use crate::{
    Device,
    device::{TIMEOUT, connect_packet},
};

/// Where devices meet.
#[derive(Debug, Default)]
pub struct Station {
    state: Mutex<State>,
    changed: Condvar,
}

/// Behind the lock.
#[derive(Debug, Default)]
pub struct State {
    /// Promises.
    pub books: Books,
    /// What comes from the edge counts.
    counting: bool,
    /// The edge is there.
    up: bool,
    over: bool,
    /// Messages that may still be sent.
    allowance: u64,
    /// Acknowledged in this round, and when the first was.
    acked: u64,
    first: Option<Instant>,
    /// Sessions of QoS 2 devices that were gone.
    pub sessions_lost: u64,
}

impl Station {
    /// The lock.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("station")
    }

    /// Devices may connect and send so many messages more; a new round is counted.
    pub fn open(&self, allowance: u64) {
        let mut state = self.state();
        (state.counting, state.up, state.allowance) = (true, true, allowance);
        (state.acked, state.first) = (0, None);
        self.changed.notify_all();
    }

    /// Devices may send so many messages more.
    pub fn allow(&self, allowance: u64) {
        self.state().allowance = allowance;
        self.changed.notify_all();
    }

    /// What comes from now on does not count. Devices wait for the next [`Station::open`].
    pub fn close(&self) {
        let mut state = self.state();
        (state.counting, state.up) = (false, false);
    }

    /// The edge is gone; what it said before is still read, and counts.
    pub fn down(&self) {
        self.state().up = false;
    }

    /// Devices take the answers to what they sent, and end.
    pub fn end(&self) {
        self.state().over = true;
        self.changed.notify_all();
    }

    /// Waits for so many acknowledgements in this round. How many there were, and in which time since the first.
    pub fn wait(&self, acked: u64, patience: Duration) -> (u64, Duration) {
        let state = self.state();
        let wait = self.changed.wait_timeout_while(state, patience, |state| state.acked < acked);
        let state = wait.expect("station").0;
        (state.acked, state.first.map_or(patience, |first| first.elapsed()))
    }

    /// Waits until devices may connect. False: they end.
    fn is_open(&self) -> bool {
        let wait = self.changed.wait_while(self.state(), |state| !state.up && !state.over);
        !wait.expect("station").over
    }

    fn acked(&self, publisher: &Publisher, seq: u64) -> bool {
        let mut state = self.state();
        if !state.counting && !state.over {
            return false;
        }
        state.books.acked(&publisher.source, publisher.incarnation, seq);
        state.acked += 1;
        state.first.get_or_insert_with(Instant::now);
        self.changed.notify_all();
        true
    }
}

/// A message on its way.
#[derive(Debug, Clone, Copy)]
struct Flow {
    id: PacketId,
    seq: u64,
    /// PUBREC came.
    released: bool,
}

/// A device.
#[derive(Debug)]
pub struct Publisher {
    source: String,
    client: String,
    topic: String,
    qos: Qos,
    window: usize,
    bytes: usize,
    incarnation: u32,
    begun: bool,
    next_seq: u64,
    next_id: u16,
    flows: VecDeque<Flow>,
    patience: Duration,
}

impl Publisher {
    /// A device of that edge.
    pub fn new(edge: &str, device: &str, qos: Qos, window: usize, bytes: usize) -> Self {
        Self {
            source: format!("{edge} {device}"),
            client: device.to_owned(),
            topic: format!("load/{edge}/{device}"),
            qos,
            window,
            bytes,
            incarnation: 0,
            begun: false,
            next_seq: 0,
            next_id: 0,
            flows: VecDeque::new(),
            patience: TIMEOUT,
        }
    }

    /// The same, but to this topic.
    #[must_use]
    pub fn to(mut self, topic: &str) -> Self {
        topic.clone_into(&mut self.topic);
        self
    }

    /// The same, but it leaves a connection that says nothing for so long.
    #[must_use]
    pub fn within(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Publishes until the station ends.
    pub fn run(&mut self, broker: SocketAddr, station: &Station) {
        while station.is_open() {
            // A lost connection is what this is about.
            let _ = self.connection(broker, station);
        }
    }

    /// Publishes exactly one message and waits for its acknowledgement.
    pub fn publish_one(&mut self, broker: SocketAddr, station: &Station) -> io::Result<Message> {
        let mut device = self.connect(broker, station)?;
        let seq = self.next_seq;
        self.send_new(&mut device, station)?;
        let packet = device.receive()?;
        let (Some(seq_acked), _) = self.take(&packet) else {
            return Err(io::Error::other(format!("no acknowledgement but {packet:?}")));
        };
        assert_eq!(seq, seq_acked, "one at a time");
        station.acked(self, seq);
        Ok(Message { source: self.source.clone(), incarnation: self.incarnation, seq })
    }

    fn connect(&mut self, broker: SocketAddr, station: &Station) -> io::Result<Device> {
        if self.qos == Qos::AtLeastOnce {
            let connect = connect_packet(&self.client, Version::V311);
            let device = Device::connect_within(broker, connect, self.patience)?;
            self.incarnation = station.state().books.begin(&self.source);
            (self.next_seq, self.next_id) = (0, 0);
            self.flows.clear();
            return Ok(device);
        }
        let device = Device::connect_persistent_within(broker, &self.client, self.patience)?;
        let mut state = station.state();
        if self.begun {
            state.sessions_lost += u64::from(!device.connack.session_present);
        } else {
            self.incarnation = state.books.begin(&self.source);
            self.begun = true;
        }
        Ok(device)
    }

    fn connection(&mut self, broker: SocketAddr, station: &Station) -> io::Result<()> {
        let mut device = self.connect(broker, station)?;
        for flow in self.flows.clone() {
            if flow.released {
                device.send(&Packet::PubRel(Ack::new(flow.id, Reason::SUCCESS)))?;
            } else {
                self.send(&mut device, flow, true)?;
            }
        }
        loop {
            while self.may_send(station) {
                self.send_new(&mut device, station)?;
            }
            if self.flows.is_empty() {
                return Ok(());
            }
            let packet = device.receive()?;
            let (acked, answer) = self.take(&packet);
            if acked.is_some_and(|seq| !station.acked(self, seq)) {
                return Ok(());
            }
            if let Some(answer) = answer {
                device.send(&answer)?;
            }
        }
    }

    /// Takes one message off the allowance. Waits for more of it if no answer is awaited.
    fn may_send(&self, station: &Station) -> bool {
        let mut state = station.state();
        if self.flows.len() >= self.window {
            return false;
        }
        if self.flows.is_empty() {
            let exhausted = |state: &mut State| state.allowance == 0 && !state.over;
            state = station.changed.wait_while(state, exhausted).expect("station");
        }
        if state.over || state.allowance == 0 {
            return false;
        }
        state.allowance -= 1;
        true
    }

    fn send_new(&mut self, device: &mut Device, station: &Station) -> io::Result<()> {
        let flow = Flow { id: self.free_id(), seq: self.next_seq, released: false };
        self.next_seq += 1;
        self.flows.push_back(flow);
        station.state().books.sent(&self.source, self.incarnation, flow.seq);
        self.send(device, flow, false)
    }

    fn send(&self, device: &mut Device, flow: Flow, dup: bool) -> io::Result<()> {
        let (source, incarnation, seq) = (self.source.clone(), self.incarnation, flow.seq);
        device.send(&Packet::Publish(Publish {
            dup,
            qos: self.qos,
            topic: self.topic.clone().into(),
            packet_id: Some(flow.id),
            payload: Message { source, incarnation, seq }.payload(self.bytes).into(),
            ..Publish::default()
        }))
    }

    /// Which message is acknowledged by it, and what to answer.
    fn take(&mut self, packet: &Packet) -> (Option<u64>, Option<Packet>) {
        match packet {
            Packet::PubAck(ack) | Packet::PubComp(ack) => {
                let Some(at) = self.flows.iter().position(|flow| flow.id == ack.packet_id) else {
                    return (None, None);
                };
                let flow = self.flows.remove(at);
                let counts = matches!(packet, Packet::PubAck(_)) && !ack.reason.is_error();
                (flow.filter(|_| counts).map(|flow| flow.seq), None)
            }
            Packet::PubRec(ack) => {
                let flow = self.flows.iter_mut().find(|flow| flow.id == ack.packet_id);
                let Some(flow) = flow.filter(|_| !ack.reason.is_error()) else {
                    return (None, None);
                };
                let first = !std::mem::replace(&mut flow.released, true);
                let answer = Packet::PubRel(Ack::new(ack.packet_id, Reason::SUCCESS));
                (first.then_some(flow.seq), Some(answer))
            }
            _ => (None, None),
        }
    }

    fn free_id(&mut self) -> PacketId {
        loop {
            self.next_id = self.next_id.checked_add(1).unwrap_or(1);
            let id = PacketId::new(self.next_id).expect("not 0");
            if self.flows.iter().all(|flow| flow.id != id) {
                return id;
            }
        }
    }
}
