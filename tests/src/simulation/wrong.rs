//! Clouds that are simpler than ours, to show that the verdict is not blind: one that follows the rule of epochs and
//! sequences, and two that do not.
//!
//! Everything is durable at once; some uploads are refused for the moment, some acknowledgements are lost.
//! In: connections. Out: what was stored. Change here: a wrong rule.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::spawn_local,
};
use tributary_cloud::bridge::{EDGE_PROPERTY, LANE_PROPERTY};
use tributary_shared::{
    connection::{self, Counters, handshake},
    mqtt::{
        Packet, Reason, Version,
        packet::{Ack, ConnAck, ConnAckProperties, Publish},
        write::write,
    },
    record::Batch,
};
use turmoil::net::{TcpListener, TcpStream};

use super::{Control, cloud, verdict::Stored, world::World};
use crate::random::Random;

/// What such a cloud has.
#[derive(Clone, Default)]
pub(super) struct Shelf(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    stored: Vec<Stored>,
    /// By edge and what else the rule tells apart.
    next: BTreeMap<(String, String), u64>,
    lives: u64,
}

impl Shelf {
    /// Records and gaps, and the marks that follow the rule.
    pub(super) fn stored(&self) -> (Vec<Stored>, Vec<(i64, u64)>) {
        let inner = self.0.lock().expect("the shelf");
        let marks = inner.next.iter();
        let marks = marks.filter_map(|((_, epoch), next)| Some((epoch.parse().ok()?, *next)));
        (inner.stored.clone(), marks.collect())
    }
}

/// Serves until it crashes.
pub(super) async fn run(world: World, shelf: Shelf, control: Control) -> turmoil::Result {
    let life = {
        let mut inner = shelf.0.lock().expect("the shelf");
        inner.lives += 1;
        inner.lives
    };
    let seed = world.lock().plan.seed;
    let listener = TcpListener::bind(("0.0.0.0", cloud::PORT)).await?;
    let mut connections = 0;
    loop {
        let (stream, _) = listener.accept().await?;
        connections += 1;
        let random = Random::new(seed ^ life << 32 ^ connections << 16);
        spawn_local(serve(stream, world.clone(), shelf.clone(), control, random));
    }
}

async fn serve(
    stream: TcpStream,
    world: World,
    shelf: Shelf,
    control: Control,
    mut random: Random,
) -> Option<()> {
    let (settings, counters) = (connection::Settings::default(), Counters::default());
    let mut opened = handshake(stream, &settings, &counters).await.ok()?;
    let property = |name: &str| {
        let mut found = opened.connect.user_properties.iter().filter(|(key, _)| key == name);
        found.next().map(|(_, value)| value.to_string())
    };
    let (edge, lane) = (property(EDGE_PROPERTY)?, property(LANE_PROPERTY)?);
    let mut output = BytesMut::new();
    write(&connack(&shelf, &edge, control), Version::V5, &mut output);
    opened.reader.set_maximum(1 << 22);
    loop {
        while let Some(packet) = opened.reader.read(&mut opened.buffer).ok()? {
            match packet {
                Packet::Publish(publish) if random.percent(3) => {
                    let ack = Ack::new(publish.packet_id?, Reason::UNSPECIFIED);
                    write(&Packet::PubAck(ack), Version::V5, &mut output);
                }
                Packet::Publish(publish) => {
                    let ack = shelf.take(&edge, &lane, &publish, control)?;
                    if random.percent(2) {
                        world.event(format!("cloud loses an acknowledgement of {edge} {lane}"));
                        return None;
                    }
                    write(&Packet::PubAck(ack), Version::V5, &mut output);
                }
                Packet::PingReq => write(&Packet::PingResp, Version::V5, &mut output),
                _ => return None,
            }
        }
        opened.stream.write_all(&output).await.ok()?;
        output.clear();
        if opened.stream.read_buf(&mut opened.buffer).await.ok()? == 0 {
            return None;
        }
    }
}

fn connack(shelf: &Shelf, edge: &str, control: Control) -> Packet {
    let inner = shelf.0.lock().expect("the shelf");
    let of_edge = inner.next.iter().filter(|((of, _), _)| of == edge);
    let user_properties = match control {
        // It knows no epochs.
        Control::HighWater => Vec::new(),
        _ => of_edge
            .map(|((_, epoch), next)| ("expect".into(), format!("{epoch}:{next}").into()))
            .collect(),
    };
    let properties = ConnAckProperties {
        receive_maximum: Some(16),
        user_properties,
        ..ConnAckProperties::default()
    };
    let (session_present, reason) = (false, Reason::SUCCESS);
    Packet::ConnAck(Box::new(ConnAck { session_present, reason, properties }))
}

impl Shelf {
    fn take(&self, edge: &str, lane: &str, publish: &Publish, control: Control) -> Option<Ack> {
        let property = |name: &str| {
            let found = publish.properties.user_properties.iter().find(|(key, _)| key == name);
            found.map(|(_, value)| value.to_string())
        };
        let number = |name: &str| property(name)?.parse::<u64>().ok();
        let (epoch, s, n) = (number("ep")? as i64, number("s")?, number("n")?);
        let known_by =
            if control == Control::HighWater { lane.to_owned() } else { epoch.to_string() };
        let mut inner = self.0.lock().expect("the shelf");
        let next = inner.next.entry((edge.to_owned(), known_by)).or_default();
        let mut ack = Ack::new(publish.packet_id?, Reason::SUCCESS);
        if s + n <= *next {
            return Some(ack);
        }
        let checks_gaps = !matches!(control, Control::HighWater | Control::NoGapCheck);
        if checks_gaps && s != *next {
            ack.reason = Reason::IMPLEMENTATION_SPECIFIC;
            ack.user_properties = vec![("expected".into(), next.to_string().into())];
            return Some(ack);
        }
        let records = Batch::parse(publish.payload.clone()).ok()?.records(1 << 25).ok()?;
        if property("gap").is_none() && records.iter().any(|record| is_poison(record.key.as_ref()))
        {
            ack.reason = Reason::PAYLOAD_FORMAT_INVALID;
            return Some(ack);
        }
        *next = s + n;
        let stored =
            |seq, message, gap| Stored { place: 0, edge: edge.to_owned(), seq, message, gap };
        match property("gap") {
            Some(reason) => {
                inner.stored.push(stored(Some(s), None, Some((epoch, s, s + n, reason))));
            }
            None => inner.stored.extend(records.iter().zip(s..).map(|(record, seq)| {
                let message = record.value.as_ref().and_then(|value| cloud::number_of(value));
                stored(Some(seq), message, None)
            })),
        }
        Some(ack)
    }
}

fn is_poison(key: Option<&bytes::Bytes>) -> bool {
    key.is_some_and(|topic| topic.contains(&b'+'))
}
