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

use crate::bridge::{Books, View};

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

#[derive(Debug, Default)]
struct Queued {
    /// The ack was sent.
    acked: bool,
    /// The broker answered that the ack is durable.
    sure: bool,
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

    /// The AMQP consumer was given it.
    pub fn delivered(&mut self, payload: &[u8]) {
        let queued = self.queue.entry(payload.to_vec()).or_default();
        if queued.sure {
            self.counted.redelivered += 1;
            self.example(|| format!("{} came again after its ack", text(payload)));
        }
    }

    /// The AMQP consumer has sent its ack.
    pub fn ack_sent(&mut self, payload: &[u8]) {
        self.queue.entry(payload.to_vec()).or_default().acked = true;
    }

    /// The broker answered that the ack is durable.
    pub fn ack_sure(&mut self, payload: &[u8]) {
        self.queue.entry(payload.to_vec()).or_default().sure = true;
    }

    /// The MQTT session was given it.
    pub fn in_session(&mut self, payload: &[u8]) {
        self.session.insert(payload.to_vec());
    }

    /// Records that lie in the stream whose records the queue and the session get, and what these have got: all is there when the
    /// three are equal.
    pub fn progress(&self) -> [usize; 3] {
        let of_stream = self.log.iter().filter(|((topic, _), _)| topic == STREAM);
        let records = of_stream.map(|(_, of)| of.records.iter().flatten().count()).sum();
        [records, self.queue.values().filter(|queued| queued.acked).count(), self.session.len()]
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
        let mut there: HashSet<&[u8]> = HashSet::new();
        let mut examples = Vec::new();
        for ((topic, partition), of) in &self.log {
            for (offset, record) in of.records.iter().enumerate() {
                if offset as i64 >= of.high {
                    verdict.back += 1;
                    examples.push(format!("{topic}/{partition}@{offset} is beyond {}", of.high));
                }
                let Some(record) = record else { continue };
                let into = if record.starts_with(b"plain ") { &mut plain } else { &mut view };
                into.read(record);
                if topic != STREAM {
                    continue;
                }
                there.insert(record);
                if !self.queue.get(record).is_some_and(|queued| queued.acked) {
                    verdict.undelivered += 1;
                    examples.push(format!("the queue's consumer never got {}", text(record)));
                }
                if !self.session.contains(record) {
                    verdict.unequal += 1;
                    examples.push(format!("the MQTT session never got {}", text(record)));
                }
            }
            let seen = of.records.iter().flatten().count() as i64;
            let holes = of.high.saturating_sub(seen).max(0);
            verdict.holes += holes as u64;
            if holes > 0 {
                examples.push(format!("{topic}/{partition}: {holes} offsets below {}", of.high));
            }
        }
        for given in self.queue.keys().chain(&self.session) {
            if !there.contains(given.as_slice()) {
                verdict.unequal += 1;
                examples.push(format!("{} was given out and is not in the log", text(given)));
            }
        }
        let (ours, theirs) = self.books.clone().part(|source| !source.starts_with("plain "));
        let (exact, least) = (ours.verdict(&view), theirs.verdict(&plain));
        verdict.lost += exact.lost + least.lost;
        verdict.strange += exact.strange + least.strange;
        verdict.doubled += exact.duplicated;
        verdict.disordered += exact.disordered;
        let lost = ours.missing(&view).into_iter().chain(theirs.missing(&plain));
        examples.extend(lost.map(|message| format!("{message} was acknowledged and is lost")));
        examples.into_iter().for_each(|example| self.example(|| example));
        verdict
    }
}

fn text(payload: &[u8]) -> String {
    let text = String::from_utf8_lossy(payload);
    text.split(' ').take(4).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bridge::Message;

    fn payload(source: &str, seq: u64) -> Vec<u8> {
        Message { source: source.to_owned(), incarnation: 0, seq }.payload(0).into_bytes()
    }

    /// Three messages of one source, acknowledged; read, queued and acked, and in the session.
    fn good(source: &str) -> History {
        let mut history = History::default();
        history.books().begin(source);
        for seq in 0..3 {
            history.books().sent(source, 0, seq);
            history.books().acked(source, 0, seq);
            see(&mut history, "live", seq as i64, &payload(source, seq));
            history.high(STREAM, 0, seq as i64 + 1);
        }
        history
    }

    fn see(history: &mut History, reader: &'static str, offset: i64, payload: &[u8]) {
        history.read_on(reader, STREAM, 0, offset, payload);
        history.delivered(payload);
        history.ack_sent(payload);
        history.ack_sure(payload);
        history.in_session(payload);
    }

    fn broken(source: &str, by: impl FnOnce(&mut History)) -> Verdict {
        let mut history = good(source);
        by(&mut history);
        let verdict = history.judge();
        assert_eq!(verdict.is_broken(), !history.examples().is_empty() || verdict.doubled > 0);
        verdict
    }

    /// Exactly this, and nothing else.
    #[track_caller]
    fn only(verdict: &Verdict, expected: Verdict) {
        assert_eq!(*verdict, expected);
    }

    #[test]
    fn a_run_without_a_fault_is_clean() {
        only(&broken("amqp a", |_| ()), Verdict::default());
        // Never acknowledged and there: allowed.
        let unsure = |history: &mut History| {
            history.books().sent("amqp a", 0, 3);
            see(history, "live", 3, &payload("amqp a", 3));
            history.high(STREAM, 0, 4);
        };
        only(&broken("amqp a", unsure), Verdict::default());
    }

    #[test]
    fn what_was_acknowledged_and_is_not_there_is_lost() {
        let lose = |history: &mut History| {
            history.books().sent("amqp a", 0, 3);
            history.books().acked("amqp a", 0, 3);
        };
        only(&broken("amqp a", lose), Verdict { lost: 1, ..Verdict::default() });
        let lose = |history: &mut History| {
            history.books().sent("plain p", 0, 3);
            history.books().acked("plain p", 0, 3);
        };
        only(&broken("plain p", lose), Verdict { lost: 1, ..Verdict::default() });
    }

    #[test]
    fn twice_and_out_of_order_count_where_the_door_promises_it() {
        let again = |source: &'static str| {
            move |history: &mut History| {
                history.read_on("live", STREAM, 0, 3, &payload(source, 1));
                history.high(STREAM, 0, 4);
            }
        };
        only(&broken("gw1 d", again("gw1 d")), Verdict { doubled: 1, ..Verdict::default() });
        only(&broken("plain p", again("plain p")), Verdict::default());
        let late = |history: &mut History| {
            (3..5).for_each(|seq| history.books().sent("gw1 d", 0, seq));
            see(history, "live", 3, &payload("gw1 d", 4));
            see(history, "live", 4, &payload("gw1 d", 3));
            history.high(STREAM, 0, 5);
        };
        let disordered = Verdict { disordered: 1, ..Verdict::default() };
        assert_eq!(broken_without_example("gw1 d", late), disordered);
    }

    fn broken_without_example(source: &str, by: impl FnOnce(&mut History)) -> Verdict {
        let mut history = good(source);
        by(&mut history);
        history.judge()
    }

    #[test]
    fn what_nobody_sent_is_strange() {
        let invent = |history: &mut History| {
            see(history, "live", 3, &payload("amqp a", 7));
            history.high(STREAM, 0, 4);
        };
        let strange = Verdict { strange: 1, ..Verdict::default() };
        assert_eq!(broken_without_example("amqp a", invent), strange);
    }

    #[test]
    fn one_offset_has_one_value_for_all_readers_at_all_times() {
        let other = |history: &mut History| {
            history.saw("final", STREAM, 0, 1, &payload("amqp a", 2));
        };
        only(&broken("amqp a", other), Verdict { different: 1, ..Verdict::default() });
        let same = |history: &mut History| {
            (0..3).for_each(|seq| {
                history.read_on("final", STREAM, 0, seq, &payload("amqp a", seq as u64));
            });
        };
        only(&broken("amqp a", same), Verdict::default());
    }

    #[test]
    fn readers_go_forward_and_skip_nothing() {
        let back = |history: &mut History| {
            history.read_on("live", STREAM, 0, 1, &payload("amqp a", 1));
        };
        only(&broken("amqp a", back), Verdict { back: 1, ..Verdict::default() });
        let skip = |history: &mut History| {
            history.read_on("final", STREAM, 0, 0, &payload("amqp a", 0));
            history.read_on("final", STREAM, 0, 2, &payload("amqp a", 2));
        };
        only(&broken("amqp a", skip), Verdict { holes: 1, ..Verdict::default() });
        let never = |history: &mut History| history.high(STREAM, 0, 5);
        only(&broken("amqp a", never), Verdict { holes: 2, ..Verdict::default() });
        let beyond = |history: &mut History| {
            history.books().sent("amqp a", 0, 3);
            see(history, "live", 3, &payload("amqp a", 3));
        };
        only(&broken("amqp a", beyond), Verdict { back: 1, ..Verdict::default() });
    }

    #[test]
    fn watermarks_and_commits_never_fall() {
        let fall = |history: &mut History| history.high(STREAM, 0, 2);
        only(&broken("amqp a", fall), Verdict { high_fell: 1, ..Verdict::default() });
        let fall = |history: &mut History| {
            history.committed(STREAM, 0, 2);
            history.resumes_at(STREAM, 0, 2);
            history.resumes_at(STREAM, 0, 1);
        };
        only(&broken("amqp a", fall), Verdict { commit_fell: 1, ..Verdict::default() });
    }

    #[test]
    fn the_queue_gives_what_is_not_acked_and_only_that() {
        let again = |history: &mut History| history.delivered(&payload("amqp a", 1));
        only(&broken("amqp a", again), Verdict { redelivered: 1, ..Verdict::default() });
        let record = payload("amqp a", 3);
        let in_log = |history: &mut History| {
            history.books().sent("amqp a", 0, 3);
            history.read_on("live", STREAM, 0, 3, &record);
            history.in_session(&record);
            history.high(STREAM, 0, 4);
        };
        let undelivered = Verdict { undelivered: 1, ..Verdict::default() };
        only(&broken("amqp a", in_log), undelivered.clone());
        // Delivered, the connection was lost before its ack, and it never came again.
        let unacked = |history: &mut History| {
            in_log(history);
            history.delivered(&record);
        };
        only(&broken("amqp a", unacked), undelivered);
        // An ack that was not answered: it may come again, and need not.
        let unsure = |history: &mut History| {
            in_log(history);
            history.delivered(&record);
            history.ack_sent(&record);
            history.delivered(&record);
        };
        only(&broken("amqp a", unsure), Verdict::default());
    }

    #[test]
    fn the_session_gets_all_of_the_log_and_nothing_else() {
        let record = payload("amqp a", 3);
        let missing = |history: &mut History| {
            history.books().sent("amqp a", 0, 3);
            history.read_on("live", STREAM, 0, 3, &record);
            history.high(STREAM, 0, 4);
            history.ack_sent(&record);
        };
        only(&broken("amqp a", missing), Verdict { unequal: 1, ..Verdict::default() });
        let stranger = |history: &mut History| history.in_session(b"amqp a 0 9");
        only(&broken("amqp a", stranger), Verdict { unequal: 1, ..Verdict::default() });
    }
}
