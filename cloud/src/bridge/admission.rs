//! Who may bring how much at once, so that a whole fleet comes back fairly.
//!
//! ```text
//! connect   more a second than `connections_per_second`: DISCONNECT 0x9F, `retry-after-s`, behind CONNACK
//! live      what stays below `live_bytes_per_second` is read at once and waits for nobody
//! turn      whoever brings more takes turns with the others: `catch_up_edges` at once, each for some bytes or moments
//! line      too many wait for a turn: DISCONNECT 0x97, `retry-after-s`
//! flight    bytes of catching up that are not durable yet, all edges together: `catch_up_bytes`, less than a shard takes
//! ```
//! Memory is thus bounded whatever the fleet: allowance x connections + packet x (turns + line) + flight. Waiting is by not
//! reading: the edge's own socket fills. First come, first served, a turn at a time, so nobody starves.
//! Not here: reading and answering (`connection`), accepting sockets (`shared::net`).

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Duration, Instant, sleep_until},
};

use tributary_shared::mqtt::packet::UserProperties;

use super::Settings;

/// User property of DISCONNECT: come back after so many seconds, at the earliest.
pub(super) const RETRY_PROPERTY: &str = "retry-after-s";

/// A turn ends after this: a slow or idle edge does not keep it.
const TURN_TIME: Duration = Duration::from_secs(2);
/// Bytes below the live rate may come in one go, in seconds of that rate.
const LIVE_BURST_S: f64 = 2.0;
/// One edge's share of what may be in flight, as a divisor: it never fills it alone.
const SHARE: usize = 8;
/// Seconds after which a refused edge is asked to come back: from, and how many more at random.
const RETRY_S: (u64, u64) = (5, 25);

/// All edges' door. Shared by the connections.
#[derive(Debug)]
pub(super) struct Admission {
    connects: Mutex<Bucket>,
    live_bytes_per_second: usize,
    turns: Arc<Semaphore>,
    turns_max: usize,
    turn_bytes: usize,
    line: AtomicUsize,
    line_max: usize,
    flight: Arc<Semaphore>,
    flight_max: usize,
    /// When the bytes taken so far are paid for, at `rate` bytes a second; 0: no limit.
    paid: Mutex<Instant>,
    rate: u64,
    refused: AtomicU64,
}

/// How busy the door is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Numbers {
    /// Edges that have a turn to bring more than live data.
    pub catching_up: usize,
    /// Edges that wait for one.
    pub waiting: usize,
    /// Bytes of catching up that are not durable yet.
    pub in_flight_bytes: usize,
    /// Connections refused or ended because there were too many.
    pub refused: u64,
}

/// Come back later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Busy {
    pub(super) retry_after_s: u64,
}

impl Busy {
    /// As a user property, for who reads it.
    pub(super) fn properties(self) -> UserProperties {
        vec![(RETRY_PROPERTY.into(), self.retry_after_s.to_string().into())]
    }

    fn some_time() -> Self {
        // Without randomness it is still right, only not spread.
        let (from, more) = RETRY_S;
        Self { retry_after_s: from + getrandom::u64().unwrap_or_default() % (more + 1) }
    }
}

/// So many units a second, and some at once.
#[derive(Debug)]
struct Bucket {
    full: f64,
    left: f64,
    per_second: f64,
    at: Instant,
}

impl Bucket {
    fn new(per_second: f64, full: f64) -> Self {
        Self { full, left: full, per_second, at: Instant::now() }
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + passed * self.per_second).min(self.full);
        self.at = now;
    }

    /// Takes all of it or nothing: who is refused costs those behind nothing, or a fleet that asks often would keep itself out.
    fn take_whole(&mut self, units: f64, now: Instant) -> bool {
        self.fill(now);
        let enough = self.left >= units;
        if enough {
            self.left -= units;
        }
        enough
    }

    /// Takes what is there; whether it was enough.
    fn take(&mut self, units: f64, now: Instant) -> bool {
        self.fill(now);
        let enough = self.left >= units;
        self.left = (self.left - units).max(0.0);
        enough
    }
}

impl Admission {
    pub(super) fn new(settings: &Settings) -> Arc<Self> {
        let connects = f64::from(settings.connections_per_second);
        Arc::new(Self {
            connects: Mutex::new(Bucket::new(connects, connects)),
            live_bytes_per_second: settings.live_bytes_per_second,
            turns: Arc::new(Semaphore::new(settings.catch_up_edges)),
            turns_max: settings.catch_up_edges,
            turn_bytes: settings.catch_up_turn_bytes,
            line: AtomicUsize::new(0),
            line_max: settings.catch_up_waiting,
            flight: Arc::new(Semaphore::new(settings.catch_up_bytes)),
            flight_max: settings.catch_up_bytes,
            paid: Mutex::new(Instant::now()),
            rate: settings.catch_up_bytes_per_second,
            refused: AtomicU64::new(0),
        })
    }

    /// Whether one more edge may connect now.
    pub(super) fn connect(&self) -> Result<(), Busy> {
        let mut connects = self.connects.lock().unwrap_or_else(PoisonError::into_inner);
        if connects.take_whole(1.0, Instant::now()) {
            return Ok(());
        }
        self.refused.fetch_add(1, Ordering::Relaxed);
        Err(Busy::some_time())
    }

    /// For one connection.
    pub(super) fn visitor(self: &Arc<Self>) -> Visitor {
        let rate = self.live_bytes_per_second as f64;
        let allowance = Bucket::new(rate, rate * LIVE_BURST_S);
        Visitor { admission: self.clone(), allowance, turn: None }
    }

    pub(super) fn numbers(&self) -> Numbers {
        Numbers {
            catching_up: self.turns_max.saturating_sub(self.turns.available_permits()),
            waiting: self.line.load(Ordering::Relaxed),
            in_flight_bytes: self.flight_max.saturating_sub(self.flight.available_permits()),
            refused: self.refused.load(Ordering::Relaxed),
        }
    }

    async fn turn(&self) -> Result<Turn, Busy> {
        let permit = if let Ok(permit) = self.turns.clone().try_acquire_owned() {
            permit
        } else {
            let _place = Place::take(self).ok_or_else(|| {
                self.refused.fetch_add(1, Ordering::Relaxed);
                Busy::some_time()
            })?;
            // Never closed; if it were, nobody could be refused for it.
            self.turns.clone().acquire_owned().await.map_err(|_| Busy::some_time())?
        };
        Ok(Turn { _permit: permit, left: self.turn_bytes, until: Instant::now() + TURN_TIME })
    }

    /// Waits until `bytes` more are within the rate of all.
    async fn pace(&self, bytes: usize) {
        if self.rate == 0 {
            return;
        }
        let until = {
            let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
            let cost = Duration::from_secs_f64(bytes as f64 / self.rate as f64);
            *paid = (*paid).max(Instant::now()) + cost;
            *paid
        };
        sleep_until(until).await;
    }
}

/// A place in the line, given up also when its connection ends.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(admission: &'a Admission) -> Option<Self> {
        let more = |waiting| (waiting < admission.line_max).then_some(waiting + 1);
        let line = &admission.line;
        line.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok().map(|_| Self(line))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct Turn {
    _permit: OwnedSemaphorePermit,
    left: usize,
    until: Instant,
}

/// One connection's side of it.
#[derive(Debug)]
pub(super) struct Visitor {
    admission: Arc<Admission>,
    allowance: Bucket,
    turn: Option<Turn>,
}

impl Visitor {
    /// To be awaited after `bytes` were read and before more are: a turn, if more than live data came.
    pub(super) async fn read(&mut self, bytes: usize) -> Result<(), Busy> {
        let live = self.allowance.take(bytes as f64, Instant::now());
        if self.turn.is_none() {
            if live {
                return Ok(());
            }
            self.turn = Some(self.admission.turn().await?);
        }
        self.admission.pace(bytes).await;
        if let Some(turn) = &mut self.turn {
            turn.left = turn.left.saturating_sub(bytes);
            if turn.left == 0 || turn.until <= Instant::now() {
                self.turn = None;
            }
        }
        Ok(())
    }

    /// Returns when its turn has lasted long enough, never if it has none.
    pub(super) async fn turn_over(&self) {
        match &self.turn {
            Some(turn) => sleep_until(turn.until).await,
            None => std::future::pending().await,
        }
    }

    /// Lets another have its turn.
    pub(super) fn give_up_turn(&mut self) {
        self.turn = None;
    }

    /// Room for an upload that is part of catching up, until it is dropped. Live ones need none.
    pub(super) async fn flight(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        self.turn.as_ref()?;
        let bytes = bytes.min(self.admission.flight_max);
        self.admission.flight.clone().acquire_many_owned(bytes as u32).await.ok()
    }

    /// Most bytes that this connection may have unanswered.
    pub(super) fn share(&self, window_bytes: usize) -> usize {
        window_bytes.min((self.admission.flight_max / SHARE).max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(edges: usize, waiting: usize) -> Arc<Admission> {
        Admission::new(&Settings {
            connections_per_second: 10,
            catch_up_edges: edges,
            catch_up_waiting: waiting,
            live_bytes_per_second: 1000,
            ..Settings::default()
        })
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_edges_connect_a_second_and_the_others_are_spread_over_later() {
        let admission = admission(1, 1);
        let refused: Vec<_> = (0..100).filter_map(|_| admission.connect().err()).collect();
        assert_eq!(refused.len(), 90);
        assert!(refused.iter().all(|busy| (5..=30).contains(&busy.retry_after_s)));
        assert!(refused.iter().any(|busy| busy != &refused[0]), "jitter");
        tokio::time::advance(Duration::from_millis(500)).await;
        assert_eq!((0..100).filter(|_| admission.connect().is_ok()).count(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn live_data_waits_for_nobody_and_turns_change_hands() {
        let admission = admission(1, 1);
        let mut first = admission.visitor();
        let (mut second, mut third, mut live) =
            (admission.visitor(), admission.visitor(), admission.visitor());
        first.read(10_000).await.unwrap();
        assert!(first.flight(10).await.is_some());
        let mut waits = Box::pin(second.read(10_000));
        assert!(futures::poll!(&mut waits).is_pending());
        assert_eq!(admission.numbers().waiting, 1);
        // The line is full: the third is told so at once, and the live one notices nothing.
        assert!(third.read(10_000).await.is_err());
        live.read(2000).await.unwrap();
        assert!(live.flight(10).await.is_none());
        first.turn_over().await;
        first.give_up_turn();
        waits.await.unwrap();
        assert_eq!(admission.numbers().waiting, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn all_together_bring_no_more_than_the_rate() {
        let settings = Settings { catch_up_bytes_per_second: 1000, ..Settings::default() };
        let admission = Admission::new(&Settings { live_bytes_per_second: 1, ..settings });
        let start = Instant::now();
        let visits = (0..4).map(|_| admission.visitor()).map(async |mut visitor| {
            for _ in 0..5 {
                visitor.read(500).await.unwrap();
            }
        });
        futures::future::join_all(visits).await;
        assert_eq!(start.elapsed().as_secs(), 10);
    }

    #[test]
    fn a_fleet_that_asks_more_often_than_it_may_is_let_in_at_the_rate_all_the_same() {
        let start = Instant::now();
        let mut bucket = Bucket::new(10.0, 10.0);
        let asked = (0..10_000).map(|ms| start + std::time::Duration::from_millis(ms));
        let admitted = asked.filter(|now| bucket.take_whole(1.0, *now)).count();
        assert!((100..=111).contains(&admitted), "{admitted}");
    }
}
