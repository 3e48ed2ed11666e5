//! Plays a plan on a broker.
//!
//! A step is over when nothing is under way: whoever acted has an answer to a PINGREQ sent behind it, then every client has
//! one, again until no acknowledgement was due. What a session kept comes after CONNACK at the broker's leisure, so each
//! CONNECT is followed by a message of the client to itself, which comes last.

use std::{io, net::SocketAddr};

use bytes::{Bytes, BytesMut};
use tributary_shared::mqtt::{
    Packet, Qos, Reason, Version,
    packet::{
        Ack, Connect, Disconnect, Publish, PublishProperties, Subscribe, SubscribeFilter,
        SubscriptionOptions, Unsubscribe, Will,
    },
    write::write,
};

use super::{
    generate,
    link::Link,
    plan::{Acks, CLIENTS, Extras, Hello, Plan, Text, What},
    seen::{Seen, Trace},
};
use crate::device::connect_packet;

struct Player<'a> {
    address: SocketAddr,
    prefix: &'a str,
    links: Vec<Option<Link>>,
    /// The CONNECT of each client's last connection.
    hellos: Vec<Option<Hello>>,
    /// What was seen on connections that came to nothing.
    strangers: Vec<Vec<Seen>>,
    trace: Trace,
}

/// Plays a plan to its end and removes what it left. `prefix` is the plan's own at this broker: letters and digits, no `P`.
pub fn play(plan: &Plan, address: SocketAddr, prefix: &str) -> io::Result<Trace> {
    let mut player = Player {
        address,
        prefix,
        links: (0..=CLIENTS).map(|_| None).collect(),
        hellos: vec![None; CLIENTS + 1],
        strangers: vec![Vec::new(); CLIENTS + 1],
        trace: Trace::default(),
    };
    for (at, step) in plan.steps.iter().enumerate() {
        player.act(step.who, &step.what).and_then(|()| player.settle()).map_err(|error| {
            io::Error::new(error.kind(), format!("step {at} {step:?}: {error}"))
        })?;
        player.note(at);
    }
    player.look_at_the_rest(plan.steps.len())?;
    Ok(player.trace)
}

impl Player<'_> {
    fn act(&mut self, who: usize, what: &What) -> io::Result<()> {
        match what {
            What::Connect(hello) => return self.connect(who, hello),
            What::Stranger(invalid, version) => {
                return self.stranger(who, *version, &invalid.bytes(*version, self.prefix));
            }
            _ => {}
        }
        let prefix = self.prefix;
        let named = |text: &str| text.replace('P', prefix);
        let Some(link) = self.links[who].as_mut().filter(|link| link.open) else { return Ok(()) };
        match what {
            What::Subscribe { filters, id } => {
                let subscribe = Packet::Subscribe(Subscribe {
                    packet_id: link.id(),
                    filters: filters
                        .iter()
                        .map(|(filter, options)| SubscribeFilter {
                            filter: named(filter).into(),
                            options: *options,
                        })
                        .collect(),
                    subscription_id: *id,
                    user_properties: Vec::new(),
                });
                link.send_packet(&subscribe);
                link.pong()
            }
            What::Unsubscribe(filters) => {
                let unsubscribe = Packet::Unsubscribe(Unsubscribe {
                    packet_id: link.id(),
                    filters: filters.iter().map(|filter| named(filter).into()).collect(),
                    user_properties: Vec::new(),
                });
                link.send_packet(&unsubscribe);
                link.pong()
            }
            What::Publish(text) => {
                let publish = message(link, text, prefix);
                let id = publish.packet_id;
                link.send_packet(&Packet::Publish(publish));
                link.pong()?;
                if let (Qos::ExactlyOnce, Some(id)) = (text.qos, id) {
                    link.send_packet(&Packet::PubRel(Ack::new(id, Reason::SUCCESS)));
                    link.pong()?;
                }
                Ok(())
            }
            What::Repeated(text) => {
                let publish = message(link, text, prefix);
                let Some(id) = publish.packet_id else { return Ok(()) };
                link.send_packet(&Packet::Publish(publish.clone()));
                link.pong()?;
                link.send_packet(&Packet::Publish(Publish { dup: true, ..publish }));
                link.pong()?;
                for _ in 0..2 {
                    link.send_packet(&Packet::PubRel(Ack::new(id, Reason::SUCCESS)));
                    link.pong()?;
                }
                Ok(())
            }
            What::Interrupted { text, again } => self.interrupted(who, text, *again),
            What::Leave { with_will, expiry } => {
                let reason =
                    if *with_will { Reason::DISCONNECT_WITH_WILL } else { Reason::SUCCESS };
                let disconnect = Disconnect { session_expiry: *expiry, ..Disconnect::new(reason) };
                let mut bytes = BytesMut::new();
                write(&Packet::Disconnect(disconnect), link.version, &mut bytes);
                link.write(&bytes);
                link.expect_end()
            }
            What::Cut => link.finish(),
            What::Invalid(invalid) => {
                let bytes = invalid.bytes(link.version, prefix);
                link.send(&bytes);
                link.pong()?;
                if link.open {
                    // Some brokers go on, some do not: from here on all is the same again.
                    link.seen.push(Seen::Alive);
                    link.finish()?;
                }
                Ok(())
            }
            What::Connect(_) | What::Stranger(..) => Ok(()),
        }
    }

    /// A new connection of a client, in place of one that may be open.
    fn connect(&mut self, who: usize, hello: &Hello) -> io::Result<()> {
        let mut link = Link::open(self.address, hello, self.prefix)?;
        let mut bytes = BytesMut::new();
        let connect = self.packet(who, hello);
        write(&Packet::Connect(Box::new(connect)), hello.version, &mut bytes);
        link.write(&bytes);
        link.answer()?;
        if !matches!(link.seen.last(), Some(Seen::ConnAck { code: 0, .. })) {
            link.expect_end()?;
            self.strangers[who].append(&mut link.seen);
            return Ok(());
        }
        if let Some(mut old) = self.links[who].take() {
            if old.open {
                old.expect_end()?;
            }
            self.strangers[who].append(&mut old.seen);
            link.payloads = old.payloads;
        }
        self.hellos[who] = Some(hello.clone());
        let topic = format!("z/{0}z/c{who}", self.prefix);
        barrier(&mut link, &topic)?;
        self.links[who] = Some(link);
        Ok(())
    }

    fn packet(&self, who: usize, hello: &Hello) -> Connect {
        let will = hello.will.as_ref().map(|will| Will {
            topic: will.text.topic.replace('P', self.prefix).into(),
            payload: Bytes::from(will.text.payload.clone()),
            qos: will.text.qos,
            retain: will.text.retain,
            delay: will.delay,
            properties: properties(will.text.extras),
        });
        Connect {
            clean_start: hello.clean,
            keep_alive: 0,
            will,
            session_expiry: hello.expiry,
            receive_maximum: hello.receive_maximum,
            maximum_packet_size: hello.packet_maximum,
            topic_alias_maximum: hello.aliases,
            ..connect_packet(&format!("{}-c{who}", self.prefix), hello.version)
        }
    }

    /// QoS 2 over two connections.
    fn interrupted(&mut self, who: usize, text: &Text, again: bool) -> io::Result<()> {
        let Some(hello) = self.hellos[who].clone() else { return Ok(()) };
        let Some(link) = self.links[who].as_mut() else { return Ok(()) };
        let publish = message(link, text, self.prefix);
        let Some(id) = publish.packet_id else { return Ok(()) };
        link.send_packet(&Packet::Publish(publish.clone()));
        link.pong()?;
        link.finish()?;
        self.connect(who, &hello)?;
        let Some(link) = self.links[who].as_mut() else { return Ok(()) };
        if again && link.open {
            link.send_packet(&Packet::Publish(Publish { dup: true, ..publish }));
            link.pong()?;
        }
        if link.open {
            link.send_packet(&Packet::PubRel(Ack::new(id, Reason::SUCCESS)));
            link.pong()?;
        }
        Ok(())
    }

    /// Somebody whose first packet is wrong.
    fn stranger(&mut self, who: usize, version: Version, bytes: &[u8]) -> io::Result<()> {
        let mut link = Link::open(self.address, &plain(version, true), self.prefix)?;
        link.send(bytes);
        link.pong()?;
        if link.open {
            link.seen.push(Seen::Alive);
            link.finish()?;
        }
        self.strangers[who].append(&mut link.seen);
        Ok(())
    }

    fn settle(&mut self) -> io::Result<()> {
        let mut all = true;
        loop {
            let mut asked = Vec::new();
            for link in self.links.iter_mut().flatten().filter(|link| link.open) {
                if all || link.has_due() {
                    link.flush();
                    link.send(&[]);
                    asked.push(link);
                }
            }
            if asked.is_empty() {
                return Ok(());
            }
            for link in asked {
                link.pong()?;
            }
            all = false;
        }
    }

    fn note(&mut self, step: usize) {
        for (who, link) in self.links.iter_mut().enumerate() {
            let seen = self.trace.at(step, who);
            seen.append(&mut self.strangers[who]);
            if let Some(link) = link {
                seen.append(&mut link.seen);
            }
        }
        self.trace.at(step, CLIENTS);
    }

    /// What waits for each client, and what is retained; then nothing is left.
    fn look_at_the_rest(&mut self, mut step: usize) -> io::Result<()> {
        for who in 0..CLIENTS {
            self.act(who, &What::Cut)?;
            self.settle()?;
            self.note(step);
            step += 1;
        }
        for who in 0..CLIENTS {
            if self.hellos[who].is_none() {
                continue;
            }
            self.connect(who, &plain(Version::V5, false))?;
            self.settle()?;
            self.note(step);
            step += 1;
        }
        for who in 0..CLIENTS {
            self.act(who, &What::Leave { with_will: false, expiry: None })?;
            self.note(step);
        }
        self.connect(CLIENTS, &plain(Version::V5, true))?;
        let options = SubscriptionOptions {
            qos: Qos::ExactlyOnce,
            retain_as_published: true,
            ..SubscriptionOptions::default()
        };
        let filters = ["+/P/#", "$x/P/#", "+/Ps/#"].map(|filter| (filter.to_owned(), options));
        self.act(CLIENTS, &What::Subscribe { filters: filters.to_vec(), id: None })?;
        self.settle()?;
        self.note(step);
        for topic in generate::topics() {
            let text = Text {
                topic: topic.to_owned(),
                payload: String::new(),
                qos: Qos::AtMostOnce,
                retain: true,
                alias: None,
                extras: Extras::None,
            };
            let Some(link) = self.links[CLIENTS].as_mut().filter(|link| link.open) else { break };
            let mut bytes = BytesMut::new();
            let publish = message(link, &text, self.prefix);
            write(&Packet::Publish(publish), Version::V5, &mut bytes);
            link.write(&bytes);
        }
        self.act(CLIENTS, &What::Leave { with_will: false, expiry: None })
    }
}

fn plain(version: Version, clean: bool) -> Hello {
    Hello {
        version,
        clean,
        expiry: None,
        will: None,
        receive_maximum: None,
        packet_maximum: None,
        aliases: 0,
        acks: Acks::All,
    }
}

/// A message of the client to itself, behind all that its session kept.
fn barrier(link: &mut Link, topic: &str) -> io::Result<()> {
    let options = SubscriptionOptions { qos: Qos::AtLeastOnce, ..SubscriptionOptions::default() };
    let subscribe = Packet::Subscribe(Subscribe {
        packet_id: link.id(),
        filters: vec![SubscribeFilter { filter: topic.into(), options }],
        subscription_id: None,
        user_properties: Vec::new(),
    });
    let publish = Packet::Publish(Publish {
        qos: Qos::AtLeastOnce,
        topic: topic.into(),
        packet_id: Some(link.id()),
        ..Publish::default()
    });
    let mut bytes = BytesMut::new();
    write(&subscribe, link.version, &mut bytes);
    write(&publish, link.version, &mut bytes);
    link.write(&bytes);
    link.barrier()
}

fn message(link: &mut Link, text: &Text, prefix: &str) -> Publish {
    let new = link.version == Version::V5;
    let topic = text.topic.replace('P', prefix);
    let hidden = new && matches!(text.alias, Some((_, false)));
    Publish {
        dup: false,
        qos: text.qos,
        retain: text.retain,
        topic: if hidden { String::new() } else { topic }.into(),
        packet_id: (text.qos > Qos::AtMostOnce).then(|| link.id()),
        payload: Bytes::from(text.payload.clone()),
        properties: if new { properties(text.extras) } else { PublishProperties::default() },
        topic_alias: text.alias.filter(|_| new).map(|(alias, _)| alias),
        subscription_ids: Vec::new(),
    }
}

fn properties(extras: Extras) -> PublishProperties {
    let none = PublishProperties::default();
    match extras {
        Extras::None => none,
        Extras::About => PublishProperties {
            content_type: Some("text/plain".into()),
            user_properties: vec![("k".into(), "1".into()), ("k".into(), "2".into())],
            ..none
        },
        Extras::Request => PublishProperties {
            response_topic: Some("answers".into()),
            correlation_data: Some(Bytes::from_static(b"42")),
            ..none
        },
        Extras::Format => {
            PublishProperties { payload_format: Some(1), message_expiry: Some(3600), ..none }
        }
    }
}
