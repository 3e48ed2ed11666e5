//! How many lines a peer can cause: so many that somebody learns of it, never so many that they fill a disk.
//!
//! Every place in the code that logs has a few lines at once and then one every few seconds. A line that names who caused it
//! (a field `peer`, `address` or `edge`) has fewer, and fewer still from the same one. What is left out is counted and told
//! once a minute. `debug` and `trace` are not limited: who asks for them wants all.
//! Pure but for the lock: told of lines and times. Change here: how many. Not here: what lines look like (`telemetry`).

use std::{
    collections::HashMap,
    fmt::{Debug, Write as _},
    hash::{BuildHasher as _, RandomState},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{Mutex, PoisonError},
    time::Instant,
};

use tracing::{
    Event, Level, Subscriber,
    callsite::Identifier,
    field::{Field, Visit},
};
use tracing_subscriber::layer::Context;

/// Lines at once, and milliseconds until there is another.
#[derive(Debug, Clone, Copy)]
struct Rate {
    burst: u64,
    every_ms: u64,
}

/// Of one place in the code that names nobody.
const OURS: Rate = Rate { burst: 60, every_ms: 2_000 };
/// Of one place that names who caused it.
const PEERS: Rate = Rate { burst: 20, every_ms: 10_000 };
/// Of one place and one peer.
const PEER: Rate = Rate { burst: 5, every_ms: 60_000 };
/// Peers remembered; beyond that a new one has what its place has.
const REMEMBERED: usize = 1_024;
/// Fields that name who caused a line.
const WHO: [&str; 3] = ["peer", "address", "edge"];
/// Bytes of such a name that count, and of a message that is told.
const BYTES: usize = 80;

/// Lines that were left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// What the first of them said.
    pub like: String,
    /// How many.
    pub lines: u64,
}

/// Tokens of a bucket that fills again.
#[derive(Debug)]
struct Bucket {
    rate: Rate,
    /// When it would have been full if it had gone on.
    full_ms: u64,
}

impl Bucket {
    fn new(rate: Rate) -> Self {
        Self { rate, full_ms: 0 }
    }

    fn is_full(&self, now_ms: u64) -> bool {
        self.full_ms <= now_ms
    }

    fn has_one(&self, now_ms: u64) -> bool {
        let missing_ms = self.full_ms.saturating_sub(now_ms);
        missing_ms <= (self.rate.burst - 1) * self.rate.every_ms
    }

    fn take(&mut self, now_ms: u64) {
        self.full_ms = self.full_ms.max(now_ms) + self.rate.every_ms;
    }
}

#[derive(Debug)]
struct Place {
    bucket: Bucket,
    left_out: Option<LeftOut>,
}

/// What was logged lately. Bounded: by the places in the code, and by [`REMEMBERED`].
#[derive(Debug, Default)]
struct Lines {
    places: HashMap<Identifier, Place>,
    peers: HashMap<(Identifier, u64), Bucket>,
    hashes: RandomState,
}

impl Lines {
    /// Whether a line is written.
    fn may(&mut self, place: Identifier, line: &Line, now_ms: u64) -> bool {
        let rate = if line.who.is_empty() { OURS } else { PEERS };
        let found = self
            .places
            .entry(place.clone())
            .or_insert_with(|| Place { bucket: Bucket::new(rate), left_out: None });
        let mut may = found.bucket.has_one(now_ms);
        if may && !line.who.is_empty() {
            if self.peers.len() >= REMEMBERED {
                self.peers.retain(|_, bucket| !bucket.is_full(now_ms));
            }
            let key = (place, self.hashes.hash_one(network(&line.who)));
            let room = self.peers.len() < REMEMBERED || self.peers.contains_key(&key);
            if room {
                let bucket = self.peers.entry(key).or_insert_with(|| Bucket::new(PEER));
                may = bucket.has_one(now_ms);
                if may {
                    bucket.take(now_ms);
                }
            }
        }
        if may {
            found.bucket.take(now_ms);
        } else {
            let first = || LeftOut { like: line.message.clone(), lines: 0 };
            found.left_out.get_or_insert_with(first).lines += 1;
        }
        may
    }

    fn left_out(&mut self) -> Vec<LeftOut> {
        self.places.values_mut().filter_map(|place| place.left_out.take()).collect()
    }
}

/// An address without its port, an IPv6 network of 64 bits; what is none stays as it is.
fn network(who: &str) -> String {
    let who = who.trim_start_matches("Some(").trim_end_matches(')').trim_matches('"');
    let address = who.parse::<SocketAddr>().map(|address| address.ip()).or_else(|_| who.parse());
    match address.map(|address: IpAddr| address.to_canonical()) {
        Ok(IpAddr::V4(address)) => address.to_string(),
        Ok(IpAddr::V6(address)) => {
            Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).to_string()
        }
        Err(_) => who.to_owned(),
    }
}

/// What counts of an event.
#[derive(Debug, Default)]
struct Line {
    who: String,
    message: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let text = match field.name() {
            "message" => &mut self.message,
            name if WHO.contains(&name) && self.who.is_empty() => &mut self.who,
            _ => return,
        };
        // A string takes everything.
        let _ = write!(text, "{value:?}");
        text.truncate(text.floor_char_boundary(BYTES));
    }
}

/// Keeps lines beyond their number from whatever writes them.
#[derive(Debug)]
pub struct Limit {
    lines: Mutex<Lines>,
    started: Instant,
}

impl Default for Limit {
    fn default() -> Self {
        Self { lines: Mutex::default(), started: Instant::now() }
    }
}

impl Limit {
    /// What was left out since this was asked last.
    pub fn left_out(&self) -> Vec<LeftOut> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).left_out()
    }

    fn may(&self, event: &Event<'_>) -> bool {
        if *event.metadata().level() > Level::INFO {
            return true;
        }
        let mut line = Line::default();
        event.record(&mut line);
        let now_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let place = event.metadata().callsite();
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).may(place, &line, now_ms)
    }
}

impl<S: Subscriber> tracing_subscriber::Layer<S> for &'static Limit {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        self.may(event)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{
            Arc,
            atomic::{AtomicU64, Ordering},
        },
    };

    use tracing_subscriber::{layer::SubscriberExt as _, registry};

    use super::*;

    /// Counts what gets through.
    struct Through(Arc<AtomicU64>);

    impl<S: Subscriber> tracing_subscriber::Layer<S> for Through {
        fn on_event(&self, _: &Event<'_>, _: Context<'_, S>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Lines that came through, and those that are told to be missing.
    fn logged(log: impl FnOnce()) -> (u64, Vec<LeftOut>) {
        let (through, limit) = (Arc::<AtomicU64>::default(), &*Box::leak(Box::<Limit>::default()));
        let subscriber = registry().with(Through(Arc::clone(&through))).with(limit);
        tracing::subscriber::with_default(subscriber, log);
        (through.load(Ordering::Relaxed), limit.left_out())
    }

    #[test]
    fn ten_thousand_bad_connections_give_a_bounded_number_of_lines() {
        let address = |n: u32| SocketAddr::from((n.to_be_bytes(), 40_000 + (n % 20_000) as u16));
        let (one, left_out) = logged(|| {
            for port in 0..10_000 {
                let peer = SocketAddr::from(([198, 51, 100, 7], port));
                tracing::warn!(%peer, "connection closed: {}", io::Error::other("nonsense"));
            }
        });
        assert_eq!(one, PEER.burst);
        let like = "connection closed: nonsense".to_owned();
        assert_eq!(left_out, [LeftOut { like, lines: 10_000 - PEER.burst }]);
        let (many, left_out) = logged(|| {
            for n in 0..10_000 {
                tracing::info!(address = ?Some(address(n)), user = n, "client refused");
            }
        });
        assert_eq!(many, PEERS.burst);
        assert_eq!(left_out[0].lines, 10_000 - PEERS.burst);
        let (ours, left_out) = logged(|| {
            for n in 0..10_000 {
                tracing::error!(n, "ours");
            }
            tracing::error!("something else");
        });
        assert_eq!((ours, left_out.len()), (OURS.burst + 1, 1));
        let debug = || (0..1_000).for_each(|_| tracing::debug!(peer = "x", "all of it"));
        assert_eq!(logged(debug), (1_000, Vec::new()));
    }

    #[test]
    fn lines_come_again_and_one_peer_does_not_silence_another() {
        let mut lines = Lines::default();
        let place = || {
            let event = tracing::callsite!(name: "x", kind: tracing::metadata::Kind::EVENT, fields: message);
            tracing::Callsite::metadata(event).callsite()
        };
        let place = place();
        let mut may = |who: &str, now_ms| {
            lines.may(place.clone(), &Line { who: who.to_owned(), message: String::new() }, now_ms)
        };
        assert_eq!((0..100).filter(|_| may("[2001:db8::1]:9", 0)).count(), 5);
        assert!(!may("[2001:db8::ffff]:7", 0), "one network");
        assert!(may("\"gw-1\"", 0) && may("[2001:db8:0:1::1]:9", 0));
        assert!(!may("[2001:db8::1]:9", PEER.every_ms - 1));
        assert!(may("[2001:db8::1]:9", PEER.every_ms));
        assert!(!may("[2001:db8::1]:9", PEER.every_ms));
        // In a day, however many they are.
        let day = 24 * 3_600_000;
        let lines = (0..day).step_by(100).filter(|at| may(&at.to_string(), day + at)).count();
        assert!((8_640..8_700).contains(&lines), "{lines}");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut lines = Lines::default();
        let site =
            tracing::callsite!(name: "y", kind: tracing::metadata::Kind::EVENT, fields: message);
        let place = tracing::Callsite::metadata(site).callsite();
        for n in 0..10_000_u64 {
            let line = Line { who: format!("peer {n}"), message: String::new() };
            lines.may(place.clone(), &line, n * PEERS.every_ms / 100);
        }
        assert!(lines.peers.len() <= REMEMBERED);
    }
}
