//! `quarantine`: what the cloud refused for good, listed, exported, retried or dropped.
//!
//! Works on the data folder, whether the edge runs or not; so it is for who may read that folder. Change here: what is
//! printed. Not here: the file (`store::kept`).

use std::path::{Path, PathBuf};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tributary_shared::record::{Record, mqtt};

use super::{Failed, note, say, serve::Serve};
use crate::store::{Kept, KeptEntry};

/// Arguments.
#[derive(Debug, Clone, Args)]
pub struct Quarantine {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Clone, Subcommand)]
enum Action {
    /// One line a batch: number, lane, sequences, messages, bytes, since when, first topic, why.
    List(Source),
    /// One JSON object a message, on stdout: topic, payload (base64), properties, times, reason.
    Export(Source),
    /// Put batches back at the end of their lanes as new messages; a running edge does so within seconds.
    Retry(Chosen),
    /// Delete batches for ever.
    Drop(Chosen),
}

#[derive(Debug, Clone, Args)]
struct Source {
    /// Settings file of the edge, for its data folder.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The edge's data folder [default: /var/lib/tributary-edge].
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
}

#[derive(Debug, Clone, Args)]
struct Chosen {
    #[command(flatten)]
    source: Source,
    /// Numbers as `list` shows them.
    #[arg(value_name = "NUMBER", required_unless_present = "all")]
    numbers: Vec<u64>,
    /// All there are.
    #[arg(long, conflicts_with = "numbers")]
    all: bool,
}

impl Source {
    fn open(&self) -> Result<Kept, Failed> {
        let settings =
            Serve { config: self.config.clone(), data: self.data.clone(), ..Serve::default() };
        let dir = settings.config().map_err(Failed::cannot)?.data;
        Kept::open(Path::new(&dir)).map_err(Failed::cannot)
    }
}

impl Quarantine {
    /// Does it.
    pub fn run(&self) -> Result<(), Failed> {
        match &self.action {
            Action::List(source) => each(&source.open()?, &|entry| vec![line(entry)]),
            Action::Export(source) => each(&source.open()?, &export),
            Action::Retry(chosen) => chosen.change("to be retried", Kept::retry),
            Action::Drop(chosen) => chosen.change("dropped", Kept::drop_one),
        }
    }
}

fn each(kept: &Kept, lines: &dyn Fn(&KeptEntry) -> Vec<String>) -> Result<(), Failed> {
    let mut after = 0;
    while let Some(entry) = kept.next(after).map_err(Failed::cannot)? {
        after = entry.id;
        for line in lines(&entry) {
            if !say(format!("{line}\n").as_bytes())? {
                return Ok(());
            }
        }
    }
    Ok(())
}

impl Chosen {
    fn change(
        &self,
        what: &str,
        change: impl Fn(&Kept, u64) -> Result<bool, crate::store::Error>,
    ) -> Result<(), Failed> {
        let kept = self.source.open()?;
        let mut numbers = self.numbers.clone();
        let mut after = 0;
        while self.all
            && let Some(entry) = kept.next(after).map_err(Failed::cannot)?
        {
            after = entry.id;
            numbers.push(entry.id);
        }
        let mut missing = Vec::new();
        for number in &numbers {
            if !change(&kept, *number).map_err(Failed::cannot)? {
                missing.push(number.to_string());
            }
        }
        note(&format!("{} {what}", numbers.len() - missing.len()));
        if missing.is_empty() {
            return Ok(());
        }
        Err(Failed::cannot(format_args!("not in the quarantine: {}", missing.join(", "))))
    }
}

fn line(entry: &KeptEntry) -> String {
    let topic = entry.records().ok().and_then(|records| topic(records.first()?));
    let (s, end) = (entry.s, entry.s + entry.n);
    let wanted = if entry.wanted { "to be retried; " } else { "" };
    let text = format!(
        "{}\t{}\t{}:{s}..{end}\t{} messages\t{} B\t{}\t{}\t{wanted}{}",
        entry.id,
        entry.lane,
        entry.epoch,
        entry.n,
        entry.body.len(),
        entry.at_ms,
        topic.unwrap_or_else(|| "-".to_owned()),
        entry.reason,
    );
    // Topics come from clients: nothing of them steers the terminal.
    text.chars().map(|one| if one.is_control() && one != '\t' { ' ' } else { one }).collect()
}

/// A batch that cannot be read is one object with its bytes.
fn export(entry: &KeptEntry) -> Vec<String> {
    let about = |seq: u64| {
        json!({
            "id": entry.id, "lane": entry.lane, "epoch": entry.epoch, "seq": seq,
            "quarantined_ms": entry.at_ms, "reason": entry.reason,
        })
    };
    let with = |mut about: Value, more: Value| {
        if let (Some(about), Value::Object(more)) = (about.as_object_mut(), more) {
            about.extend(more);
        }
        about.to_string()
    };
    match entry.records() {
        Err(error) => vec![with(
            about(entry.s),
            json!({ "messages": entry.n, "damaged": error.to_string(), "batch": BASE64.encode(&entry.body) }),
        )],
        Ok(records) => {
            (entry.s..).zip(&records).map(|(seq, r)| with(about(seq), message(r))).collect()
        }
    }
}

fn message(record: &Record) -> Value {
    let properties: Vec<Value> = record
        .headers
        .iter()
        .filter(|header| !header.name.starts_with("edge."))
        .map(|header| json!([&*header.name, header.value.as_deref().map(text)]))
        .collect();
    json!({
        "time_ms": record.timestamp_ms,
        "topic": topic(record),
        "payload": BASE64.encode(record.value.as_deref().unwrap_or_default()),
        "properties": properties,
    })
}

fn topic(record: &Record) -> Option<String> {
    record.key.as_ref().map(|_| mqtt::to_message(record, "").topic.to_string())
}

/// Bytes that are no text are an object.
fn text(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => json!(text),
        Err(_) => json!({ "base64": BASE64.encode(bytes) }),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tributary_shared::record::{BatchBuilder, Compression, Header};

    use super::*;

    fn entry(body: Bytes) -> KeptEntry {
        let (lane, reason) = ("normal".to_owned(), "refused \u{1b}[2J".to_owned());
        KeptEntry { id: 3, lane, epoch: 7, s: 40, n: 1, at_ms: 5, reason, wanted: false, body }
    }

    #[test]
    fn an_export_has_every_byte_of_a_message_and_a_listing_no_control_characters() {
        let header = |name: &'static str, value: &'static [u8]| Header {
            name: name.into(),
            value: Some(Bytes::from_static(value)),
        };
        let mut builder = BatchBuilder::new();
        builder.push(&Record {
            key: Some("a/b".into()),
            value: Some(Bytes::from_static(&[0, 255])),
            timestamp_ms: 9,
            headers: vec![header("unit", b"C"), header("unit", b"\xff"), header("edge.seq", b"40")],
        });
        let batch = builder.finish(Compression::None, None).unwrap();
        let whole = entry(batch.bytes().clone());
        let found: Value = serde_json::from_str(&export(&whole)[0]).unwrap();
        let expected = json!({
            "id": 3, "lane": "normal", "epoch": 7, "seq": 40, "quarantined_ms": 5,
            "reason": "refused \u{1b}[2J", "time_ms": 9, "topic": "a/b", "payload": "AP8=",
            "properties": [["unit", "C"], ["unit", { "base64": "/w==" }]],
        });
        assert_eq!(found, expected);
        assert!(line(&whole).contains("a/b\trefused  [2J"), "{}", line(&whole));
        let damaged: Value = serde_json::from_str(&export(&entry("??".into()))[0]).unwrap();
        assert_eq!(damaged["batch"], "Pz8=");
        assert!(damaged["damaged"].is_string());
    }
}
