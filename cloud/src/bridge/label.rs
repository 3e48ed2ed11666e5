//! What a record from an edge says of itself, against what its connection and its batch say. Pure.
//!
//! In: one record of an upload. Out: its topic, or why it is not taken.
//! `edge.id` must be there and be the connection's: without it a record counts as an operator's, who may command gateways
//! and write their settings (`mqtt::down`). `edge.lane` and `edge.seq` may be left out, but not say anything else.
//! Change here: which headers an edge vouches for. Not here: the batch's own header (`upload`), where it goes (`divide`).

use tributary_shared::{
    record::{RawRecord, mqtt::header},
    topic,
};

use super::upload::{RECORD_HEADERS_MAX, Refusal};

/// Who brings a record, and as what.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sender<'a> {
    pub(super) edge: &'a str,
    pub(super) lane: &'a str,
}

/// The MQTT topic of record number `index` of its batch, whose sequence is `seq`; all its headers are read for it.
pub(super) fn checked<'a>(
    raw: &RawRecord<'a>,
    index: usize,
    seq: u64,
    sender: Sender<'_>,
) -> Result<&'a str, Refusal> {
    if raw.header_count > RECORD_HEADERS_MAX {
        return Err(Refusal::RecordHeaders(index));
    }
    let (mut topic, mut from) = (None, false);
    for one in raw.headers() {
        let (name, value) = one?;
        let text = value.and_then(|value| std::str::from_utf8(value).ok());
        // Every one of a name counts: readers may take the first or the last.
        let agrees = match std::str::from_utf8(name) {
            Ok(header::TOPIC) => {
                topic = topic.or(value);
                true
            }
            Ok(header::EDGE_ID) => {
                from = true;
                text == Some(sender.edge)
            }
            Ok(header::EDGE_LANE) => text == Some(sender.lane),
            Ok(header::EDGE_SEQ) => text.and_then(|text| text.parse().ok()) == Some(seq),
            _ => true,
        };
        if !agrees {
            let name = String::from_utf8_lossy(name).into_owned();
            return Err(Refusal::RecordLabel { index, name });
        }
    }
    if !from {
        return Err(Refusal::RecordEdge(index));
    }
    topic_of(topic.or(raw.key)).ok_or(Refusal::RecordTopic(index))
}

fn topic_of(bytes: Option<&[u8]>) -> Option<&str> {
    let name = bytes.and_then(|bytes| std::str::from_utf8(bytes).ok())?;
    topic::is_legal_name(name).then_some(name)
}
