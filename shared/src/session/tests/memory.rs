//! What the broker keeps costs what it counts for.

use bytes::Bytes;
use bytestring::ByteString;

use super::{store::Store, world::*};
use crate::{
    mqtt::packet::{Packet, Publish, Subscribe, SubscribeFilter, SubscriptionOptions},
    session::Settings,
};

/// A read of many packets is one buffer; what is kept of one of them must not keep the others.
#[test]
fn what_is_kept_of_a_message_keeps_nothing_of_the_read_it_came_in() {
    let read = Bytes::from(vec![b'x'; 32 * 1024]);
    let of_read = |bytes: usize| {
        let text = ByteString::try_from(read.slice(..bytes)).unwrap();
        (text, read.slice(100..100 + bytes))
    };
    let settings = Settings { inflight_messages: 1, ..Settings::default() };
    let mut w = World::new(settings, crate::session::Fanout::AtOnce);
    let (filter, _) = of_read(10);
    let slow = w.join_subscribed(v5("slow"), &"x".repeat(20), Q1);
    let other = w.join(v5("other"));
    let subscribe = Subscribe {
        packet_id: id(7),
        subscription_id: None,
        filters: vec![SubscribeFilter { filter, options: SubscriptionOptions::default() }],
        user_properties: Vec::new(),
    };
    w.packet(other, Packet::Subscribe(subscribe));
    let writer = w.join(v5("w"));
    // The first fills the window, and the acknowledgement ends what is in flight.
    for (number, retain, alias) in [(1, false, None), (2, false, Some(3)), (3, true, None)] {
        let (topic, payload) = of_read(20);
        let packet = Publish {
            topic,
            payload,
            retain,
            topic_alias: alias,
            ..publish("unused", "", Q1, number)
        };
        w.publish(writer, packet);
    }
    w.ack(slow, Packet::PubAck, 1);
    w.take(slow);
    w.ack(slow, Packet::PubAck, 2);
    assert_eq!(w.state.stats().retained, 1);
    assert_eq!(w.state.queued().0, 1, "one is in flight and was waiting");
    w.store = Store::default();
    assert!(read.is_unique(), "something of the read is kept");
}
