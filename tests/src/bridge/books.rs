//! What devices were promised, what each reader saw, and the verdict: the checker of everything that goes over the bridge.
//!
//! [`Books`] is the devices' side (sent, acknowledged), a [`View`] one reader's. [`Verdict`] sets one against the other:
//!
//! | | must be 0 |
//! |---|---|
//! | L | acknowledged, and not in the log; or a hole in the sequences of an edge |
//! | D | more than once in the log: a message, or a sequence of an edge and epoch |
//! | O | behind a later one of the same device |
//! | G | never sent, or damaged |
//! | V | two readers saw different records at one offset, or one saw a record that is not there |
//! | M | an offset went back, or was read beyond the high watermark |
//! | X | Kafka, AMQP and MQTT readers saw different messages, or another order |
//!
//! Not 0 is A: never acknowledged but there. That is allowed, once. All of it is O(n); no history is searched.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::{bits::Bits, message::Message};

/// The devices' side.
#[derive(Debug, Default, Clone)]
pub struct Books {
    sources: HashMap<String, Vec<Promised>>,
    acked: u64,
}

#[derive(Debug, Default, Clone)]
struct Promised {
    /// The next seq that was not sent.
    end: u64,
    acked: Bits,
}

impl Books {
    /// A new incarnation of a device; its number.
    pub fn begin(&mut self, source: &str) -> u32 {
        let promised = self.sources.entry(source.to_owned()).or_default();
        promised.push(Promised::default());
        promised.len() as u32 - 1
    }

    /// About to be sent. The next of its incarnation, or one sent before.
    pub fn sent(&mut self, source: &str, incarnation: u32, seq: u64) {
        let promised = self.promised(source, incarnation);
        promised.end = promised.end.max(seq + 1);
    }

    /// Its acknowledgement came.
    pub fn acked(&mut self, source: &str, incarnation: u32, seq: u64) {
        let new = self.promised(source, incarnation).acked.put(seq);
        self.acked += u64::from(new);
    }

    /// How many were acknowledged.
    pub fn acked_count(&self) -> u64 {
        self.acked
    }

    /// Books of other sources, too.
    pub fn join(&mut self, other: Self) {
        self.sources.extend(other.sources);
        self.acked += other.acked;
    }

    /// Those of sources that are `in_it`, and the others.
    pub fn part(self, in_it: impl Fn(&str) -> bool) -> (Self, Self) {
        let (ours, theirs): (HashMap<_, _>, HashMap<_, _>) =
            self.sources.into_iter().partition(|(source, _)| in_it(source));
        let count = |sources: &HashMap<String, Vec<Promised>>| {
            sources.values().flatten().map(|promised| promised.acked.count()).sum()
        };
        let books = |sources| Self { acked: count(&sources), sources };
        (books(ours), books(theirs))
    }

    fn promised(&mut self, source: &str, incarnation: u32) -> &mut Promised {
        let of_source =
            self.sources.get_mut(source).and_then(|all| all.get_mut(incarnation as usize));
        of_source.unwrap_or_else(|| panic!("{source} {incarnation} has not begun"))
    }

    /// Some of what was acknowledged and this reader did not see.
    pub fn missing(&self, view: &View) -> Vec<String> {
        let mut missing = Vec::new();
        for (source, incarnation, promised) in self.each() {
            let seen = view.seen(source, incarnation);
            let of_it = promised.acked.numbers().filter(|&seq| !seen.has(seq));
            missing.extend(of_it.take(5).map(|seq| format!("{source} {incarnation} {seq}")));
        }
        missing.truncate(20);
        missing
    }

    /// L, D, O, G and A of one reader's view.
    pub fn verdict(&self, view: &View) -> Verdict {
        let mut verdict = Verdict {
            lost: view.holes,
            duplicated: view.duplicated + view.repeats,
            disordered: view.disordered,
            strange: view.damaged,
            back: view.back,
            declared: view.declared,
            ..Verdict::default()
        };
        for (source, incarnation, promised) in self.each() {
            let seen = view.seen(source, incarnation);
            let unsent = seen.from(promised.end);
            verdict.lost += promised.acked.beyond(&seen);
            verdict.strange += unsent;
            verdict.unacked += seen.beyond(&promised.acked) - unsent;
        }
        for (source, incarnations) in &view.sources {
            let known = self.sources.get(source).map_or(0, Vec::len);
            let strangers = incarnations.seen.iter().skip(known);
            verdict.strange += strangers.map(Bits::count).sum::<u64>();
        }
        // What an edge said that it dropped is not lost in silence.
        verdict.lost = verdict.lost.saturating_sub(view.declared);
        verdict
    }

    fn each(&self) -> impl Iterator<Item = (&str, usize, &Promised)> {
        self.sources.iter().flat_map(|(source, all)| {
            all.iter()
                .enumerate()
                .map(move |(incarnation, one)| (source.as_str(), incarnation, one))
        })
    }
}

/// Counts; see above.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// L.
    #[serde(rename = "L")]
    pub lost: u64,
    /// D.
    #[serde(rename = "D")]
    pub duplicated: u64,
    /// O.
    #[serde(rename = "O")]
    pub disordered: u64,
    /// G.
    #[serde(rename = "G")]
    pub strange: u64,
    /// V.
    #[serde(rename = "V")]
    pub different: u64,
    /// M.
    #[serde(rename = "M")]
    pub back: u64,
    /// X.
    #[serde(rename = "X")]
    pub unequal: u64,
    /// A: allowed.
    #[serde(rename = "A")]
    pub unacked: u64,
    /// Messages that gap records declared as dropped.
    pub declared: u64,
}

impl Verdict {
    /// Something that was promised was not kept. Nothing may be dropped either, unless a run fills a budget.
    pub fn is_broken(&self) -> bool {
        let Self { unacked, .. } = *self;
        *self != Self { unacked, ..Self::default() }
    }
}

impl Verdict {
    /// Both together.
    pub(super) fn add(&mut self, other: &Self) {
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.disordered += other.disordered;
        self.strange += other.strange;
        self.different += other.different;
        self.back += other.back;
        self.unequal += other.unequal;
        self.unacked += other.unacked;
        self.declared += other.declared;
    }
}

/// What one reader saw.
#[derive(Debug, Default)]
pub struct View {
    sources: HashMap<String, Source>,
    /// Per partition, in the order of reading: offset, and a sum of the payload.
    positions: BTreeMap<i32, Vec<(i64, u32)>>,
    /// The offset behind the last record of a partition.
    next: BTreeMap<i32, i64>,
    /// Next sequence of an edge and lane.
    numbers: HashMap<String, u64>,
    total: u64,
    damaged: u64,
    duplicated: u64,
    disordered: u64,
    holes: u64,
    repeats: u64,
    back: u64,
    declared: u64,
}

#[derive(Debug, Default)]
struct Source {
    seen: Vec<Bits>,
    newest: Option<(u32, u64)>,
    /// Over all payloads in their order.
    sum: u32,
    count: u64,
}

impl View {
    /// A checked message, or what has become of one.
    pub fn read(&mut self, payload: &[u8]) {
        self.total += 1;
        let Some(Message { source, incarnation, seq }) = Message::read(payload) else {
            self.damaged += 1;
            return;
        };
        let source = self.sources.entry(source).or_default();
        source.sum = crc32c::crc32c_append(source.sum, payload);
        source.count += 1;
        if source.seen.len() <= incarnation as usize {
            source.seen.resize_with(incarnation as usize + 1, Bits::default);
        }
        let position = (incarnation, seq);
        if !source.seen[incarnation as usize].put(seq) {
            self.duplicated += 1;
        } else if source.newest.is_some_and(|newest| position < newest) {
            self.disordered += 1;
        } else {
            source.newest = Some(position);
        }
    }

    /// Where a message lay.
    pub fn at(&mut self, partition: i32, offset: i64, payload: &[u8]) {
        let sum = crc32c::crc32c(payload);
        self.positions.entry(partition).or_default().push((offset, sum));
    }

    /// Any record was read there, a checked message or not.
    pub fn passed(&mut self, partition: i32, offset: i64) {
        let next = self.next.entry(partition).or_insert(0);
        self.back += u64::from(offset < *next);
        *next = offset + 1;
    }

    /// The offset behind the last one that was read.
    pub fn next_offset(&self, partition: i32) -> i64 {
        self.next.get(&partition).copied().unwrap_or(0)
    }

    /// The high watermark of a partition, asked for after the last reading.
    pub fn watermark(&mut self, partition: i32, high: i64) {
        self.back += u64::from(self.next_offset(partition) > high);
    }

    /// `count` sequences of an edge's lane from `seq` on. Epochs follow each other, and each begins at 0.
    pub fn numbered(&mut self, edge_and_lane: &str, seq: u64, count: u64) {
        let next = self.numbers.entry(edge_and_lane.to_owned()).or_insert(0);
        if seq > *next {
            self.holes += seq - *next;
        } else if seq < *next && seq > 0 {
            self.repeats += 1;
        }
        *next = seq + count;
    }

    /// Holes and repeats in the sequences of an edge do not count: two edges have its name.
    pub fn forget_sequences(&mut self) {
        (self.holes, self.repeats) = (0, 0);
    }

    /// A gap record was read.
    pub fn gap(&mut self, count: u64) {
        self.declared += count;
    }

    /// Checked messages so far.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Has seen this message.
    pub fn has(&self, message: &Message) -> bool {
        self.seen(&message.source, message.incarnation as usize).has(message.seq)
    }

    fn seen(&self, source: &str, incarnation: usize) -> Bits {
        let seen = self.sources.get(source).and_then(|source| source.seen.get(incarnation));
        seen.cloned().unwrap_or_default()
    }

    /// V: offsets at which this (earlier) reader saw something else than the other one.
    pub fn different(&self, other: &Self) -> u64 {
        let none = Vec::new();
        let mut different = 0;
        for (partition, mine) in &self.positions {
            let theirs = other.positions.get(partition).unwrap_or(&none);
            let theirs: HashMap<_, _> = theirs.iter().copied().collect();
            different +=
                mine.iter().filter(|(offset, sum)| theirs.get(offset) != Some(sum)).count() as u64;
        }
        different
    }

    /// X, where both know offsets: what one saw and the other did not.
    pub fn unequal_offsets(&self, other: &Self) -> u64 {
        self.different(other) + other.different(self)
    }

    /// X, device by device: how many messages one saw more, and at least one where their order or content differs.
    pub fn unequal_series(&self, other: &Self) -> u64 {
        let none = Source::default();
        let mut unequal = 0;
        for (name, mine) in &self.sources {
            let theirs = other.sources.get(name).unwrap_or(&none);
            let same = mine.sum == theirs.sum && mine.count == theirs.count;
            unequal += if same { 0 } else { mine.count.abs_diff(theirs.count).max(1) };
        }
        let strangers = other.sources.iter().filter(|(name, _)| !self.sources.contains_key(*name));
        unequal + strangers.map(|(_, theirs)| theirs.count).sum::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(incarnation: u32, seq: u64) -> String {
        Message { source: "gw1 d".to_owned(), incarnation, seq }.payload(0)
    }

    fn view(read: &[(u32, u64)]) -> View {
        let mut view = View::default();
        read.iter().for_each(|&(incarnation, seq)| view.read(payload(incarnation, seq).as_bytes()));
        view
    }

    /// Two incarnations of three messages; of each the first two were acknowledged.
    fn books() -> Books {
        let mut books = Books::default();
        for incarnation in 0..2 {
            assert_eq!(books.begin("gw1 d"), incarnation);
            (0..3).for_each(|seq| books.sent("gw1 d", incarnation, seq));
            (0..2).for_each(|seq| books.acked("gw1 d", incarnation, seq));
        }
        assert_eq!(books.acked_count(), 4);
        books
    }

    fn judged(read: &[(u32, u64)]) -> Verdict {
        books().verdict(&view(read))
    }

    #[test]
    fn each_fault_has_its_verdict() {
        let good = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)];
        assert_eq!(judged(&good), Verdict { unacked: 1, ..Verdict::default() });
        assert!(!judged(&good).is_broken());
        assert_eq!(judged(&good[1..]).lost, 1);
        assert_eq!(judged(&[&good[..], &[(0, 2)]].concat()).duplicated, 1);
        assert_eq!(judged(&[(0, 0), (1, 0), (0, 1), (1, 1)]).disordered, 1);
        assert_eq!(judged(&[&good[..], &[(1, 3)]].concat()).strange, 1);
        assert_eq!(judged(&[&good[..], &[(2, 0)]].concat()).strange, 1);
        assert!(judged(&good[1..]).is_broken());
        let mut damaged = view(&good);
        damaged.read(b"gw1 d 1 2 00000000");
        assert_eq!(books().verdict(&damaged).strange, 1);
    }

    #[test]
    fn sequences_of_an_edge_have_no_holes_and_come_once() {
        let mut view = View::default();
        for seq in [0, 1, 2, 0, 1] {
            view.numbered("gw1/normal", seq, 1);
        }
        assert_eq!(books().verdict(&view).duplicated, 0);
        view.numbered("gw1/normal", 1, 1);
        view.numbered("gw1/normal", 5, 1);
        let verdict = books().verdict(&view);
        assert_eq!((verdict.duplicated, verdict.lost), (1, 4 + 3));
    }

    #[test]
    fn what_was_declared_as_dropped_is_not_lost_in_silence() {
        let mut view = view(&[(0, 0), (0, 1), (1, 0)]);
        view.gap(1);
        let verdict = books().verdict(&view);
        assert_eq!((verdict.lost, verdict.declared, verdict.is_broken()), (0, 1, true));
    }

    #[test]
    fn readers_that_differ_are_told() {
        let at = |records: &[(i64, &str)]| {
            let mut view = View::default();
            records.iter().for_each(|(offset, payload)| view.at(0, *offset, payload.as_bytes()));
            view
        };
        let log = at(&[(0, "a"), (1, "b"), (2, "c")]);
        assert_eq!(at(&[(0, "a"), (1, "b")]).different(&log), 0);
        assert_eq!(at(&[(0, "a"), (1, "x"), (7, "c")]).different(&log), 2);
        assert_eq!(at(&[(0, "a"), (1, "b")]).unequal_offsets(&log), 1);
        let mut back = View::default();
        for offset in [0, 2, 1] {
            back.passed(0, offset);
        }
        back.watermark(0, 2);
        assert_eq!(back.back, 1);
        back.watermark(0, 1);
        assert_eq!(back.back, 2);
        let series = view(&[(0, 0), (0, 1)]);
        assert_eq!(series.unequal_series(&view(&[(0, 0), (0, 1)])), 0);
        assert_eq!(series.unequal_series(&view(&[(0, 1), (0, 0)])), 1);
        assert_eq!(series.unequal_series(&View::default()), 2);
        assert_eq!(View::default().unequal_series(&series), 2);
    }
}
