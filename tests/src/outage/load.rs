//! Devices and subscribers that keep their side of a session as the standard says, across broken connections.
//!
//! Not here: which of their messages count (`ledger`).

use std::{
    collections::{BTreeSet, VecDeque},
    io,
    net::SocketAddr,
};

use tributary_shared::mqtt::{
    Packet, PacketId, Qos, Reason,
    packet::{Ack, Publish},
};

use super::ledger::{Ledger, Place};
use crate::{
    Device,
    checker::{self, payload},
};

/// A message on its way.
#[derive(Debug, Clone, Copy)]
struct Flow {
    id: PacketId,
    seq: u64,
    /// PUBREC came.
    released: bool,
}

/// A device that publishes a numbered series without end.
#[derive(Debug)]
pub(super) struct Publisher {
    pub(super) name: String,
    pub(super) qos: Qos,
    pub(super) window: usize,
    pub(super) topic: String,
    pub(super) retain: bool,
    /// Where its messages must arrive.
    pub(super) to: Vec<Place>,
    next_seq: u64,
    next_id: u16,
    flows: VecDeque<Flow>,
}

impl Publisher {
    pub(super) fn new(name: &str, qos: Qos, window: usize, to: &[Place]) -> Self {
        Self {
            name: name.to_owned(),
            qos,
            window,
            topic: format!("load/{name}"),
            retain: false,
            to: to.to_vec(),
            next_seq: 0,
            next_id: 0,
            flows: VecDeque::new(),
        }
    }

    /// Publishes until the connection ends or the books are closed.
    pub(super) fn run(&mut self, broker: SocketAddr, ledger: &Ledger) -> io::Result<()> {
        let mut device = Device::connect_persistent(broker, &self.name)?;
        for flow in self.flows.clone() {
            if flow.released {
                device.send(&Packet::PubRel(Ack::new(flow.id, Reason::SUCCESS)))?;
            } else {
                self.send(&mut device, flow, true, ledger)?;
            }
        }
        loop {
            while self.flows.len() < self.window {
                let flow = Flow { id: self.free_id(), seq: self.next_seq, released: false };
                self.next_seq += 1;
                self.flows.push_back(flow);
                self.send(&mut device, flow, false, ledger)?;
            }
            let packet = device.receive()?;
            let Some(mut books) = ledger.open_books() else { return Ok(()) };
            let (acked, answer) = self.handle(&packet);
            if let Some(seq) = acked {
                books.acked(&self.name, self.qos, seq, &self.to);
                books.retained = if self.retain { Some(seq) } else { books.retained };
                ledger.note_ack(&mut books);
            }
            drop(books);
            if let Some(answer) = answer {
                device.send(&answer)?;
            }
        }
    }

    fn send(&self, device: &mut Device, flow: Flow, dup: bool, ledger: &Ledger) -> io::Result<()> {
        // A QoS 2 message counts as sent once, however often it goes out.
        if !dup || self.qos == Qos::AtLeastOnce {
            ledger.all().sent(&self.name, self.qos, flow.seq, &self.to);
        }
        device.send(&Packet::Publish(Publish {
            dup,
            qos: self.qos,
            retain: self.retain,
            topic: self.topic.clone().into(),
            packet_id: Some(flow.id),
            payload: payload(&self.name, flow.seq).into(),
            ..Publish::default()
        }))
    }

    /// Which message is acknowledged by it, and what to answer.
    fn handle(&mut self, packet: &Packet) -> (Option<u64>, Option<Packet>) {
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

/// A subscriber to everything of the load.
#[derive(Debug)]
pub(super) struct Subscriber {
    pub(super) name: &'static str,
    place: Place,
    /// QoS 2 ids received and not released.
    held: BTreeSet<PacketId>,
}

impl Subscriber {
    pub(super) fn new(name: &'static str, place: Place) -> Self {
        Self { name, place, held: BTreeSet::new() }
    }

    pub(super) fn subscribe(&self, broker: SocketAddr) -> io::Result<()> {
        Device::connect_persistent(broker, self.name)?.subscribe("load/#", Qos::ExactlyOnce)
    }

    /// Takes messages until the one with this payload (which is not of the load), or until the connection ends or the books
    /// are closed. Says whether its session was there.
    pub(super) fn run(
        &mut self,
        broker: SocketAddr,
        ledger: &Ledger,
        until: Option<&str>,
    ) -> io::Result<bool> {
        let mut device = Device::connect_persistent(broker, self.name)?;
        let present = device.connack.session_present;
        if !present && until.is_some() {
            // No session, no queue, and no mark in it.
            device.subscribe("load/#", Qos::ExactlyOnce)?;
            return Ok(false);
        }
        loop {
            let packet = device.receive()?;
            let answer = {
                let books = if until.is_some() { Some(ledger.all()) } else { ledger.open_books() };
                let Some(mut books) = books else { return Ok(present) };
                match packet {
                    Packet::Publish(publish) => {
                        if until.is_some_and(|last| publish.payload == last.as_bytes()) {
                            if let Some(answer) = self.answer_to(&publish) {
                                device.send(&answer)?;
                            }
                            return Ok(present);
                        }
                        let id = publish.packet_id;
                        let again = id.is_some_and(|id| self.held.contains(&id));
                        if !again && checker::is_payload(&publish.payload) {
                            books.read(self.place, publish.qos, &publish.payload);
                        }
                        self.answer_to(&publish)
                    }
                    Packet::PubRel(ack) => {
                        self.held.remove(&ack.packet_id);
                        Some(Packet::PubComp(Ack::new(ack.packet_id, Reason::SUCCESS)))
                    }
                    _ => None,
                }
            };
            if let Some(answer) = answer {
                device.send(&answer)?;
            }
        }
    }

    fn answer_to(&mut self, publish: &Publish) -> Option<Packet> {
        let ack = Ack::new(publish.packet_id?, Reason::SUCCESS);
        if publish.qos == Qos::ExactlyOnce {
            self.held.insert(ack.packet_id);
            return Some(Packet::PubRec(ack));
        }
        Some(Packet::PubAck(ack))
    }
}
