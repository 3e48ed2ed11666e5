//! The client's side of our Receive Maximum (3.3.4, 4.9): publications it sent and has no final answer to.
//!
//! Counted at the socket, where both ends of the promise are seen: up when a PUBLISH of QoS 1 or 2 is read, down when its
//! PUBACK, its PUBCOMP or a PUBREC that says no is put into the bytes to be written. So an answer that waits for the
//! store counts as long as it waits, and a client that keeps to the number it was told is never over it: what it has
//! read of us was counted down before. Before version 5 there is no such number.
//!
//! Every PUBCOMP counts, whatever it says (4.9). The count may go below zero, by as many as the maximum: PUBCOMP for a
//! message of an earlier connection gives the client one more while its messages may be under way to us. A client that
//! counts itself has never more than that, and one that sends PUBREL without end gains no more than twice the number.
//! Not here: how many ids a session keeps (`session`).

use std::sync::atomic::{AtomicI32, AtomicU16, Ordering};

use crate::mqtt::{Malformed, Packet, Qos, Reason, Version};

/// Both directions of a connection are one task, so a load and a store are enough.
#[derive(Debug)]
pub(super) struct Quota {
    /// 0: without limit, and not counted.
    maximum: AtomicU16,
    open: AtomicI32,
}

impl Quota {
    pub(super) fn new(version: Version) -> Self {
        // Until CONNACK tells another (3.2.2.3.3).
        let maximum = if version == Version::V5 { u16::MAX } else { 0 };
        Self { maximum: AtomicU16::new(maximum), open: AtomicI32::new(0) }
    }

    /// CONNACK is about to tell the client so.
    pub(super) fn announce(&self, maximum: Option<u16>) {
        if self.maximum.load(Ordering::Relaxed) > 0 {
            self.maximum.store(maximum.unwrap_or(u16::MAX).max(1), Ordering::Relaxed);
        }
    }

    /// The client sent `packet`; is it one too many?
    pub(super) fn read(&self, packet: &Packet) -> Result<(), Malformed> {
        let Packet::Publish(publish) = packet else { return Ok(()) };
        let maximum = self.maximum.load(Ordering::Relaxed);
        if publish.qos == Qos::AtMostOnce || maximum == 0 {
            return Ok(());
        }
        let open = self.open.load(Ordering::Relaxed) + 1;
        self.open.store(open, Ordering::Relaxed);
        if open > i32::from(maximum) {
            return Err(Malformed {
                reason: Reason::RECEIVE_MAXIMUM_EXCEEDED,
                detail: "more unanswered messages than Receive Maximum (MQTT-3.3.4-7)",
            });
        }
        Ok(())
    }

    /// `packet` is about to be written.
    pub(super) fn written(&self, packet: &Packet) {
        let ends = match packet {
            Packet::PubAck(_) | Packet::PubComp(_) => true,
            Packet::PubRec(ack) => ack.reason.is_error(),
            _ => false,
        };
        if ends {
            // Only PUBCOMP can be had without a PUBLISH that was counted.
            let asked = matches!(packet, Packet::PubComp(_));
            let least = -i32::from(self.maximum.load(Ordering::Relaxed));
            let open = self.open.load(Ordering::Relaxed) - 1;
            if !asked || open >= least {
                self.open.store(open, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mqtt::{
        PacketId,
        packet::{Ack, Publish},
    };

    fn publish(qos: Qos) -> Packet {
        Packet::Publish(Publish { qos, packet_id: PacketId::new(1), ..Publish::default() })
    }

    fn ack(reason: Reason) -> Ack {
        Ack::new(PacketId::new(1).unwrap(), reason)
    }

    fn quota(maximum: u16) -> Quota {
        let quota = Quota::new(Version::V5);
        quota.announce(Some(maximum));
        quota
    }

    // MQTT-3.3.4-7, MQTT-4.9.0-2
    #[test]
    fn only_a_final_answer_makes_room_for_another_message() {
        use Qos::{AtLeastOnce, ExactlyOnce};
        let (yes, no) = (Reason::SUCCESS, Reason::QUOTA_EXCEEDED);
        for (qos, answer, room) in [
            (AtLeastOnce, Packet::PubAck(ack(yes)), true),
            (AtLeastOnce, Packet::PubAck(ack(no)), true),
            (ExactlyOnce, Packet::PubRec(ack(yes)), false),
            (ExactlyOnce, Packet::PubRec(ack(no)), true),
            (ExactlyOnce, Packet::PubComp(ack(yes)), true),
            (ExactlyOnce, Packet::PubComp(ack(Reason::PACKET_ID_NOT_FOUND)), true),
            (ExactlyOnce, Packet::PingResp, false),
        ] {
            let quota = quota(1);
            assert!(quota.read(&publish(qos)).is_ok());
            quota.written(&answer);
            assert_eq!(quota.read(&publish(qos)).is_ok(), room, "{answer:?}");
        }
    }

    // MQTT-3.3.4-7
    #[test]
    fn a_client_that_keeps_to_the_number_goes_on_for_ever() {
        let quota = quota(100);
        for _ in 0..100 {
            assert!(quota.read(&publish(Qos::AtLeastOnce)).is_ok());
        }
        for _ in 0..100_000 {
            quota.written(&Packet::PubAck(ack(Reason::SUCCESS)));
            assert!(quota.read(&publish(Qos::AtLeastOnce)).is_ok());
            assert!(quota.read(&publish(Qos::AtMostOnce)).is_ok());
        }
        let over = quota.read(&publish(Qos::AtLeastOnce)).unwrap_err();
        assert_eq!(over.reason, Reason::RECEIVE_MAXIMUM_EXCEEDED);
    }

    /// Its PUBREL for a message of an earlier connection gives it one more (4.9), and it may use it at once.
    #[test]
    fn what_an_earlier_connection_left_open_does_not_count() {
        let quota = quota(1);
        quota.written(&Packet::PubComp(ack(Reason::SUCCESS)));
        assert!(quota.read(&publish(Qos::ExactlyOnce)).is_ok());
        assert!(quota.read(&publish(Qos::ExactlyOnce)).is_ok());
        assert!(quota.read(&publish(Qos::ExactlyOnce)).is_err());
    }

    #[test]
    fn endless_pubrels_of_unknown_ids_gain_nothing_that_grows() {
        let quota = quota(10);
        for _ in 0..100_000 {
            quota.written(&Packet::PubComp(ack(Reason::PACKET_ID_NOT_FOUND)));
        }
        let taken = (0..100).take_while(|_| quota.read(&publish(Qos::ExactlyOnce)).is_ok()).count();
        assert_eq!(taken, 20);
    }

    #[test]
    fn older_versions_have_no_such_number() {
        let quota = Quota::new(Version::V311);
        quota.announce(Some(1));
        assert!((0..1_000).all(|_| quota.read(&publish(Qos::AtLeastOnce)).is_ok()));
    }
}
