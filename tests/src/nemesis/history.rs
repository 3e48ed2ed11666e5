//! PURE. What every producer was promised and every reader saw, at which offset; and the verdict on it: the checker of the cluster.
//!
//! In: facts, in the order in which they were seen. Out: [`Verdict`], O(n). No search, no clock.
//!
//! | | must be 0 |
//! |---|---|
//! | L | acknowledged, and not in the log |
//! | D | twice in the log, through a door that promises once |
//! | O | behind a later one of its source, through a door that keeps the order |
//! | G | never sent, or damaged |
//! | V | two readers, or one reader at two times, saw different values at one (partition, offset) |
//! | M | an offset was read twice by a reader that goes forward, or lies beyond the high watermark |
//! | C | offsets between the beginning and the high watermark that a reader was not given |
//! | H | a high watermark fell |
//! | K | the committed offset of a group fell behind one whose commit was answered |
//! | R | given to an AMQP consumer again after its ack was committed |
//! | U | in the log, and in the end never given to the AMQP queue's consumer for good |
//! | X | in the log and never given to the MQTT session, or given to a reader and not in the log |
//! | S | sources that got no acknowledgement any more after the last fault |
//!
//! Plain Kafka producers (source `plain ...`) may repeat and reorder: D and O are not counted for them.
//! Change here: what is promised. Not here: producers and readers, times (`timeline`).

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::Serialize;

use crate::bridge::{Books, Message, View};

/// Stream of all doors but Kafka's: the AMQP queue and the MQTT session get its records.
pub(super) const STREAM: &str = "mqtt.messages";
/// Examples that are kept, so that a person can begin to look.
const EXAMPLES: usize = 40;

/// Counts; see above.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "letters of the table above")]
pub struct Verdict {
    #[serde(rename = "L")]
    pub lost: u64,
    #[serde(rename = "D")]
    pub doubled: u64,
    #[serde(rename = "O")]
    pub disordered: u64,
    #[serde(rename = "G")]
    pub strange: u64,
    #[serde(rename = "V")]
    pub different: u64,
    #[serde(rename = "M")]
    pub back: u64,
    #[serde(rename = "C")]
    pub holes: u64,
    #[serde(rename = "H")]
    pub high_fell: u64,
    #[serde(rename = "K")]
    pub commit_fell: u64,
    #[serde(rename = "R")]
    pub redelivered: u64,
    #[serde(rename = "U")]
    pub undelivered: u64,
    #[serde(rename = "X")]
    pub unequal: u64,
    #[serde(rename = "S")]
    pub stalled: u64,
}

impl Verdict {
    /// Something that was promised was not kept.
    pub fn is_broken(&self) -> bool {
        *self != Self::default()
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct History {
    books: Books,
    log: BTreeMap<(String, i32), Partition>,
    queue: HashMap<Vec<u8>, Queued>,
    session: HashSet<Vec<u8>>,
    commits: BTreeMap<(String, i32), i64>,
    counted: Verdict,
    examples: Vec<String>,
}

#[derive(Debug, Default)]
struct Partition {
    /// By offset: the value that was seen first.
    records: Vec<Option<Vec<u8>>>,
    /// Highest high watermark seen.
    high: i64,
    /// What readers that only go forward read next.
    next: HashMap<&'static str, i64>,
}

/// A value is as often in the log as its door allows, so the queue's consumer gets it as often.
#[derive(Debug, Default)]
struct Queued {
    /// Acks that were sent.
    acked: usize,
    /// Acks of which the broker answered that they are durable.
    sure: usize,
}

impl History {
    /// The producers' side.
    pub fn books(&mut self) -> &mut Books {
        &mut self.books
    }

    /// A reader that begins at offset 0 and goes forward read this.
    pub fn read_on(
        &mut self,
        reader: &'static str,
        topic: &str,
        partition: i32,
        offset: i64,
        payload: &[u8],
    ) {
        let of = self.log.entry((topic.to_owned(), partition)).or_default();
        let next = of.next.entry(reader).or_insert(0);
        let (back, skipped) = (*next > offset, offset.saturating_sub(*next).max(0));
        let before = std::mem::replace(next, offset + 1);
        self.counted.back += u64::from(back);
        self.counted.holes += skipped as u64;
        if back || skipped > 0 {
            self.example(|| format!("{reader} read {topic}/{partition}@{offset} after {before}"));
        }
        self.saw(reader, topic, partition, offset, payload);
    }

    /// Any reader was given this value there.
    pub fn saw(&mut self, reader: &str, topic: &str, partition: i32, offset: i64, payload: &[u8]) {
        let of = self.log.entry((topic.to_owned(), partition)).or_default();
        let at = usize::try_from(offset).expect("an offset");
        if of.records.len() <= at {
            of.records.resize(at + 1, None);
        }
        match &of.records[at] {
            None => of.records[at] = Some(payload.to_vec()),
            Some(first) if first == payload => {}
            Some(first) => {
                let (was, is) = (text(first), text(payload));
                self.counted.different += 1;
                self.example(|| {
                    format!("{reader} read {is} at {topic}/{partition}@{offset}, where {was} was")
                });
            }
        }
    }

    /// A high watermark, asked for after every one that was told before.
    pub fn high(&mut self, topic: &str, partition: i32, high: i64) {
        let of = self.log.entry((topic.to_owned(), partition)).or_default();
        let before = of.high;
        of.high = high.max(before);
        if high < before {
            self.counted.high_fell += 1;
            self.example(|| {
                format!("high watermark of {topic}/{partition} fell from {before} to {high}")
            });
        }
    }

    /// The group's commit of this offset was answered.
    pub fn committed(&mut self, topic: &str, partition: i32, offset: i64) {
        let commit = self.commits.entry((topic.to_owned(), partition)).or_insert(0);
        *commit = offset;
    }

    /// The group was told that it has committed so far.
    pub fn resumes_at(&mut self, topic: &str, partition: i32, offset: i64) {
        let commit = self.commits.get(&(topic.to_owned(), partition)).copied().unwrap_or(0);
        if offset < commit {
            self.counted.commit_fell += 1;
            self.example(|| {
                format!("the group committed {commit} of {topic}/{partition} and is told {offset}")
            });
        }
    }

    /// The AMQP consumer was given it and has sent its ack.
    pub fn ack_sent(&mut self, payload: &[u8]) {
        self.queue.entry(payload.to_vec()).or_default().acked += 1;
    }

    /// The broker answered that the ack is durable.
    pub fn ack_sure(&mut self, payload: &[u8]) {
        self.queue.entry(payload.to_vec()).or_default().sure += 1;
    }

    /// The MQTT session was given it.
    pub fn in_session(&mut self, payload: &[u8]) {
        self.session.insert(payload.to_vec());
    }

    /// How often each value lies in the stream whose records the queue and the session get.
    fn copies(&self) -> HashMap<&[u8], usize> {
        let of_stream = self.log.iter().filter(|((topic, _), _)| topic == STREAM);
        let mut copies = HashMap::new();
        for record in of_stream.flat_map(|(_, of)| of.records.iter().flatten()) {
            *copies.entry(record.as_slice()).or_insert(0) += 1;
        }
        copies
    }

    /// So many of those values have not reached both yet, and so many there are.
    pub fn on_the_way(&self) -> (usize, usize) {
        let copies = self.copies();
        let waits = |(record, count): &(&&[u8], &usize)| {
            self.queue.get(**record).is_none_or(|queued| queued.acked < **count)
                || !self.session.contains(**record)
        };
        (copies.iter().filter(waits).count(), copies.len())
    }

    /// So many sources never came back.
    pub fn stalled(&mut self, source: &str) {
        self.counted.stalled += 1;
        self.example(|| format!("{source} got no acknowledgement after the last fault"));
    }

    /// Some of what was wrong.
    pub fn examples(&self) -> &[String] {
        &self.examples
    }

    fn example(&mut self, say: impl FnOnce() -> String) {
        if self.examples.len() < EXAMPLES {
            self.examples.push(say());
        }
    }

    /// All that is over; every reader has read to its end.
    pub fn judge(&mut self) -> Verdict {
        let mut verdict = self.counted.clone();
        let (mut view, mut plain) = (View::default(), View::default());
        let mut first: HashMap<&[u8], String> = HashMap::new();
        let mut order = Order::default();
        let mut examples = Vec::new();
        for ((topic, partition), of) in &self.log {
            for (offset, record) in of.records.iter().enumerate() {
                if offset as i64 >= of.high {
                    verdict.back += 1;
                    examples.push(format!("{topic}/{partition}@{offset} is beyond {}", of.high));
                }
                let Some(record) = record else { continue };
                let once = !record.starts_with(b"plain ");
                let into = if once { &mut view } else { &mut plain };
                into.read(record);
                let at = format!("{topic}/{partition}@{offset}");
                if let Some(before) = first.insert(record, at.clone()).filter(|_| once) {
                    examples.push(format!("{} lies at {before} and at {at}", text(record)));
                } else if let Some(later) = order.behind(record).filter(|_| once) {
                    verdict.disordered += 1;
                    examples.push(format!("{} lies at {at}, behind {later:?}", text(record)));
                }
            }
            let seen = of.records.iter().flatten().count() as i64;
            let holes = of.high.saturating_sub(seen).max(0);
            verdict.holes += holes as u64;
            if holes > 0 {
                examples.push(format!("{topic}/{partition}: {holes} offsets below {}", of.high));
            }
        }
        self.judge_queue_and_session(&mut verdict, &mut examples);
        let (ours, theirs) = self.books.clone().part(|source| !source.starts_with("plain "));
        let (exact, least) = (ours.verdict(&view), theirs.verdict(&plain));
        verdict.lost += exact.lost + least.lost;
        verdict.strange += exact.strange + least.strange;
        verdict.doubled += exact.duplicated;
        let lost = ours.missing(&view).into_iter().chain(theirs.missing(&plain));
        examples.extend(lost.map(|message| format!("{message} was acknowledged and is lost")));
        examples.into_iter().for_each(|example| self.example(|| example));
        verdict
    }

    fn judge_queue_and_session(&self, verdict: &mut Verdict, examples: &mut Vec<String>) {
        let copies = self.copies();
        for (record, count) in &copies {
            let queued = self.queue.get(*record).map_or((0, 0), |of| (of.acked, of.sure));
            if queued.0 < *count {
                verdict.undelivered += 1;
                examples.push(format!("the queue's consumer never got {}", text(record)));
            }
            if queued.1 > *count {
                verdict.redelivered += 1;
                examples.push(format!("{} came again after its ack", text(record)));
            }
            if !self.session.contains(*record) {
                verdict.unequal += 1;
                examples.push(format!("the MQTT session never got {}", text(record)));
            }
        }
        for given in self.queue.keys().chain(&self.session) {
            if !copies.contains_key(given.as_slice()) {
                verdict.unequal += 1;
                examples.push(format!("{} was given out and is not in the log", text(given)));
            }
        }
    }
}

/// The newest message of each source. Across connections only devices of an edge keep their order: what another client had on the
/// way when its connection was lost may be late, and come behind what it sent over the next.
#[derive(Debug, Default)]
struct Order {
    newest: HashMap<(String, u32), (u32, u64)>,
}

impl Order {
    /// The message that it should not be behind, if there is one: incarnation and seq.
    fn behind(&mut self, record: &[u8]) -> Option<(u32, u64)> {
        let Message { source, incarnation, seq } = Message::read(record)?;
        let series = if source.starts_with("gw") { 0 } else { incarnation };
        let newest = self.newest.entry((source, series)).or_insert((incarnation, seq));
        let later = *newest;
        *newest = later.max((incarnation, seq));
        (later > (incarnation, seq)).then_some(later)
    }
}

fn text(payload: &[u8]) -> String {
    let text = String::from_utf8_lossy(payload);
    text.split(' ').take(4).collect::<Vec<_>>().join(" ")
}
