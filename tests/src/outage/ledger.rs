//! What devices were promised and what arrived where, by one clock: the lock. Nothing counts after [`Ledger::freeze`].

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Condvar, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use tributary_shared::mqtt::Qos;

use crate::{Checker, checker::Verdict};

/// A place where everything that was acknowledged must arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// The queue of a subscriber that is away while devices publish.
    Away,
    /// A subscriber that is there.
    There,
    /// The cloud's log.
    Cloud,
}

/// One run's books.
#[derive(Debug)]
pub struct Ledger {
    books: Mutex<Books>,
    moved: Condvar,
}

/// Behind the lock.
#[derive(Debug)]
pub struct Books {
    frozen: bool,
    /// Acknowledged since it was opened, and when the first of them was.
    acked: u64,
    first: Option<Instant>,
    /// Separate by QoS: what may happen twice differs.
    checkers: BTreeMap<(Place, Qos), Checker>,
    /// The last retained message that was acknowledged.
    pub(super) retained: Option<u64>,
}

impl Ledger {
    pub(super) fn new(places: &[Place]) -> Self {
        let keys = places.iter().flat_map(|place| QOS.map(|qos| (*place, qos)));
        let checkers = keys.map(|key| (key, Checker::default())).collect();
        let books = Books { frozen: true, acked: 0, first: None, checkers, retained: None };
        Self { books: Mutex::new(books), moved: Condvar::new() }
    }

    /// The books, unless they are frozen.
    pub(super) fn open_books(&self) -> Option<MutexGuard<'_, Books>> {
        Some(self.all()).filter(|books| !books.frozen)
    }

    /// The books whatever state they are in.
    pub(super) fn all(&self) -> MutexGuard<'_, Books> {
        self.books.lock().expect("ledger")
    }

    pub(super) fn thaw(&self) {
        let mut books = self.all();
        (books.frozen, books.acked, books.first) = (false, 0, None);
    }

    pub(super) fn note_ack(&self, books: &mut Books) {
        books.acked += 1;
        books.first.get_or_insert_with(Instant::now);
        self.moved.notify_one();
    }

    /// Waits for so many acknowledgements, then closes the books. How many there were, in which time.
    pub(super) fn freeze(&self, at: u64, patience: Duration) -> (u64, Duration) {
        let wait = self.moved.wait_timeout_while(self.all(), patience, |books| books.acked < at);
        let mut books = wait.expect("ledger").0;
        books.frozen = true;
        (books.acked, books.first.map_or(patience, |first| first.elapsed()))
    }
}

const QOS: [Qos; 2] = [Qos::AtLeastOnce, Qos::ExactlyOnce];

impl Books {
    pub(super) fn sent(&mut self, device: &str, qos: Qos, seq: u64, to: &[Place]) {
        self.each(qos, to, |checker| checker.sent(device, seq));
    }

    pub(super) fn acked(&mut self, device: &str, qos: Qos, seq: u64, to: &[Place]) {
        self.each(qos, to, |checker| checker.acked(device, seq));
    }

    /// A subscriber may get a QoS 1 message again; everything else counts.
    pub(super) fn read(&mut self, place: Place, qos: Qos, payload: &[u8]) {
        let again_is_legal = place != Place::Cloud && qos == Qos::AtLeastOnce;
        if let Some(checker) = self.checkers.get_mut(&(place, qos))
            && !(again_is_legal && checker.has_read(payload))
        {
            checker.read(payload);
        }
    }

    /// Everything acknowledged has arrived there.
    pub(super) fn complete(&self, place: Place) -> bool {
        QOS.iter().all(|&qos| self.checkers.get(&(place, qos)).is_none_or(Checker::complete))
    }

    /// The counts that must be 0, for these places and both QoS together.
    pub(super) fn verdict(&self, at: &[Place]) -> Verdict {
        let mut sum = Verdict::default();
        let mut lost = BTreeSet::new();
        for (_, checker) in self.checkers.iter().filter(|((place, _), _)| at.contains(place)) {
            let one = checker.verdict();
            sum.duplicated += one.duplicated;
            sum.disordered += one.disordered;
            sum.strange += one.strange;
            lost.extend(checker.missing());
        }
        // A message that is missing at two places is one message.
        sum.lost = lost.len() as u64;
        sum
    }

    fn each(&mut self, qos: Qos, to: &[Place], mut act: impl FnMut(&mut Checker)) {
        for (_, checker) in
            self.checkers.iter_mut().filter(|((place, of), _)| *of == qos && to.contains(place))
        {
            act(checker);
        }
    }
}
