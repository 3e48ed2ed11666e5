//! What an edge's PUBLISH says, checked. Pure.
//!
//! ```text
//! PUBLISH QoS 1  tributary/{edge}/up/{lane}    content type application/vnd.kafka.recordbatch.v2
//! user properties: ep = epoch, s = first sequence, n = records, all decimal     payload: one record batch
//! with `gap` = reason: sequences [s, s+n) will never come; the payload is not read
//! ```
//! Not here: what the log makes of it (`answer`), where its records go (`divide`).

use bytestring::ByteString;
use tributary_shared::{
    mqtt::{
        check::MAX_USER_PROPERTIES,
        packet::{Publish, Qos, Reason},
    },
    record::{Batch, BatchError},
};

/// The only payload an edge sends.
pub const CONTENT_TYPE: &str = "application/vnd.kafka.recordbatch.v2";
/// Longest edge id or lane name, bytes: they go into topics, keys and metrics.
pub(super) const NAME_MAX: usize = 128;
/// Longest reason of a gap that is kept, bytes.
const GAP_REASON_MAX: usize = 256;
/// Headers of one record: as many user properties as MQTT packets are taken with, and room for our own. Readers hold them
/// all at once.
pub(super) const RECORD_HEADERS_MAX: usize = MAX_USER_PROPERTIES + 32;
/// Attribute bits of a batch that only brokers write: transactional and control.
const BROKER_ATTRIBUTES: i16 = 0x30;

/// The place of a batch in its edge's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    /// Epoch.
    pub(super) epoch: i64,
    /// First sequence.
    pub(super) seq: u64,
    /// Records, at least 1.
    pub(super) count: u32,
}

/// A checked upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Upload {
    /// Place in the edge's order.
    pub(super) mark: Mark,
    /// Lane it came on.
    pub(super) lane: ByteString,
    /// What it brings.
    pub(super) content: Content,
}

/// Records, or the word that there are none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Content {
    /// Its CRC, count, producer id and sequence are checked; the records inside are not yet.
    Batch(Batch),
    /// The edge gave these records up, and says why.
    Gap(String),
}

/// Why an upload is not taken. All of these are the edge's fault: sending it again does not help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub(super) enum Refusal {
    #[error("uploads are QoS 1")]
    Qos,
    #[error("topic is not tributary/<edge>/up/<lane>")]
    Topic,
    #[error("topic names another edge than the connection")]
    OtherEdge,
    #[error("content type is not {CONTENT_TYPE}")]
    ContentType,
    #[error("user property `{0}` is missing or not a number in range")]
    Property(&'static str),
    #[error("record batch: {0}")]
    Batch(#[from] BatchError),
    #[error("n = {said} but the batch holds {held} records")]
    Count { said: u32, held: i32 },
    #[error("the batch's producer id or base sequence is not `ep`, `s`")]
    Producer,
    #[error("attributes {0:#06x} are not an edge's to set")]
    Attributes(i16),
    #[error("record {0} has an offset that is not its place")]
    RecordOffset(usize),
    #[error("record {0} has more than {RECORD_HEADERS_MAX} headers")]
    RecordHeaders(usize),
    #[error("record {0} has no legal topic as key or in header mqtt.topic")]
    RecordTopic(usize),
    #[error("the batch has more different topics than one may have; send it in parts")]
    Topics,
    #[error("record {0} has no header edge.id that says whose it is")]
    RecordEdge(usize),
    #[error(
        "header {name} of record {index} is not that of this connection; records made under another edge id go under that id"
    )]
    RecordLabel { index: usize, name: String },
}

impl Refusal {
    /// The code in PUBACK.
    pub(super) fn reason(&self) -> Reason {
        match self {
            Self::Qos => Reason::QOS_NOT_SUPPORTED,
            Self::Topic => Reason::TOPIC_NAME_INVALID,
            // Of the edge, not of the bytes: it keeps them, and people have to look at its id.
            Self::OtherEdge | Self::RecordEdge(_) | Self::RecordLabel { .. } => {
                Reason::NOT_AUTHORIZED
            }
            _ => Reason::PAYLOAD_FORMAT_INVALID,
        }
    }
}

/// An edge id or lane name: 1 to 128 bytes without `/ + #` and control characters.
pub fn is_legal_id(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= NAME_MAX
        && !name.contains(['/', '+', '#'])
        && !name.chars().any(char::is_control)
}

/// Checks a PUBLISH of the connection of `edge`.
pub(super) fn read(publish: &Publish, edge: &str) -> Result<Upload, Refusal> {
    if publish.qos != Qos::AtLeastOnce {
        return Err(Refusal::Qos);
    }
    let (named, lane) = edge_and_lane(&publish.topic).ok_or(Refusal::Topic)?;
    if named != edge {
        return Err(Refusal::OtherEdge);
    }
    let mark = read_mark(publish)?;
    let gap = property(publish, "gap");
    let content = match gap {
        Some(reason) => Content::Gap(cut(reason, GAP_REASON_MAX).to_owned()),
        None => Content::Batch(read_batch(publish, mark)?),
    };
    Ok(Upload { mark, lane: lane.into(), content })
}

fn edge_and_lane(topic: &str) -> Option<(&str, &str)> {
    let (edge, rest) = topic.strip_prefix("tributary/")?.split_once('/')?;
    let lane = rest.strip_prefix("up/")?;
    (is_legal_id(edge) && is_legal_id(lane)).then_some((edge, lane))
}

fn property<'a>(publish: &'a Publish, name: &str) -> Option<&'a str> {
    let found = publish.properties.user_properties.iter().find(|(key, _)| key == name);
    found.map(|(_, value)| &**value)
}

fn read_mark(publish: &Publish) -> Result<Mark, Refusal> {
    let number = |name| property(publish, name).and_then(|text| text.parse::<u64>().ok());
    let epoch = number("ep").and_then(|epoch| i64::try_from(epoch).ok());
    let epoch = epoch.ok_or(Refusal::Property("ep"))?;
    let count = number("n").and_then(|count| u32::try_from(count).ok()).filter(|count| *count > 0);
    let count = count.ok_or(Refusal::Property("n"))?;
    // Room for any count above it, so that `seq + count` never wraps.
    let seq = number("s").filter(|seq| i64::try_from(*seq).is_ok());
    let seq = seq.ok_or(Refusal::Property("s"))?;
    Ok(Mark { epoch, seq, count })
}

fn read_batch(publish: &Publish, mark: Mark) -> Result<Batch, Refusal> {
    if publish.properties.content_type.as_deref() != Some(CONTENT_TYPE) {
        return Err(Refusal::ContentType);
    }
    let batch = Batch::parse(publish.payload.clone())?;
    let header = batch.header();
    if u32::try_from(header.count) != Ok(mark.count) {
        return Err(Refusal::Count { said: mark.count, held: header.count });
    }
    // Kafka's 31-bit sequence: the low bits of ours.
    let sequence = (mark.seq & 0x7fff_ffff) as i32;
    if header.producer_id != mark.epoch || header.base_sequence != sequence {
        return Err(Refusal::Producer);
    }
    if header.attributes & BROKER_ATTRIBUTES != 0 {
        return Err(Refusal::Attributes(header.attributes));
    }
    Ok(batch)
}

fn cut(text: &str, limit: usize) -> &str {
    text.get(..text.floor_char_boundary(limit)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tributary_shared::{
        mqtt::packet::PublishProperties,
        record::{BatchBuilder, Compression, Record, batch::Producer},
    };

    use super::*;

    fn batch(epoch: i64, sequence: i32, count: usize) -> Bytes {
        let mut builder = BatchBuilder::new();
        for _ in 0..count {
            builder.push(&Record { key: Some("t".into()), ..Record::default() });
        }
        let producer = Producer { id: epoch, epoch: 0, base_sequence: sequence };
        builder.finish(Compression::None, Some(producer)).unwrap().bytes().clone()
    }

    fn publish(topic: &str, properties: &[(&str, &str)], payload: Bytes) -> Publish {
        let user_properties =
            properties.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        Publish {
            qos: Qos::AtLeastOnce,
            topic: topic.into(),
            packet_id: std::num::NonZeroU16::new(1),
            payload,
            properties: PublishProperties {
                content_type: Some(CONTENT_TYPE.into()),
                user_properties,
                ..PublishProperties::default()
            },
            ..Publish::default()
        }
    }

    const TOPIC: &str = "tributary/gw1/up/normal";
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], Bytes, Result<u64, Reason>);

    #[test]
    fn a_batch_is_taken_only_when_topic_properties_and_header_agree() {
        let good = [("ep", "7"), ("s", "5"), ("n", "3")];
        let mut flipped = batch(7, 5, 3).to_vec();
        *flipped.last_mut().unwrap() ^= 1;
        let wrap = [("ep", "7"), ("s", "2147483649"), ("n", "1")];
        let cases: &[Case<'_>] = &[
            (TOPIC, &good, batch(7, 5, 3), Ok(5)),
            (TOPIC, &wrap, batch(7, 1, 1), Ok(2_147_483_649)),
            ("tributary/gw2/up/normal", &good, batch(7, 5, 3), Err(Reason::NOT_AUTHORIZED)),
            ("tributary/gw1/up", &good, batch(7, 5, 3), Err(Reason::TOPIC_NAME_INVALID)),
            ("tributary/gw1/up/a/b", &good, batch(7, 5, 3), Err(Reason::TOPIC_NAME_INVALID)),
            ("tributary/gw1/down/a", &good, batch(7, 5, 3), Err(Reason::TOPIC_NAME_INVALID)),
            (TOPIC, &good[..2], batch(7, 5, 3), Err(Reason::PAYLOAD_FORMAT_INVALID)),
            (TOPIC, &good, batch(7, 5, 4), Err(Reason::PAYLOAD_FORMAT_INVALID)),
            (TOPIC, &good, batch(8, 5, 3), Err(Reason::PAYLOAD_FORMAT_INVALID)),
            (TOPIC, &good, batch(7, 6, 3), Err(Reason::PAYLOAD_FORMAT_INVALID)),
            (TOPIC, &good, flipped.into(), Err(Reason::PAYLOAD_FORMAT_INVALID)),
            (TOPIC, &good, Bytes::from_static(b"junk"), Err(Reason::PAYLOAD_FORMAT_INVALID)),
        ];
        for (index, (topic, properties, payload, expected)) in cases.iter().enumerate() {
            let read = read(&publish(topic, properties, payload.clone()), "gw1");
            let got = read.map(|upload| upload.mark.seq).map_err(|refusal| refusal.reason());
            assert_eq!(got, *expected, "case {index}");
        }
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        for (ep, s, n) in [
            ("-1", "0", "1"),
            ("9223372036854775808", "0", "1"),
            ("1", "9223372036854775808", "1"),
            ("1", "0", "0"),
            ("1", "0", "4294967296"),
            ("", "0", "1"),
        ] {
            let publish =
                publish(TOPIC, &[("ep", ep), ("s", s), ("n", n), ("gap", "x")], Bytes::new());
            assert!(matches!(read(&publish, "gw1"), Err(Refusal::Property(_))), "{ep} {s} {n}");
        }
    }

    #[test]
    fn a_gap_needs_no_payload_and_only_qos_1_is_an_upload() {
        let properties = [("ep", "7"), ("s", "5"), ("n", "3"), ("gap", "disk budget")];
        let mut publish = publish(TOPIC, &properties, Bytes::new());
        let upload = read(&publish, "gw1").unwrap();
        assert_eq!(upload.content, Content::Gap("disk budget".into()));
        assert_eq!(upload.mark, Mark { epoch: 7, seq: 5, count: 3 });
        publish.qos = Qos::ExactlyOnce;
        assert_eq!(read(&publish, "gw1"), Err(Refusal::Qos));
    }
}
