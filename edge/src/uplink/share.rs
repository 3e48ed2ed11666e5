//! The bytes a second that all lanes together may use, the first lane first. Pure but for the lock.
//!
//! A lane takes what an upload needs when there is something left and no lane before it waits; what it takes too much is
//! owed. So a lane waits for at most one upload of a lane after it.
//! Change here: who goes first. Not here: how long an upload is (`pace`).

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Unused bytes are kept for so long.
const KEPT: Duration = Duration::from_millis(250);

/// How much later than it said a lane may come for its turn.
const LATE: Duration = Duration::from_millis(100);

/// Bytes that travel with an upload: headers of MQTT, TLS and TCP.
const AROUND: usize = 160;

#[derive(Debug)]
struct Bucket {
    bytes_per_s: f64,
    left: f64,
    at: Option<Instant>,
    /// A lane waits, and will have come for it by then.
    waiting: Vec<Option<Instant>>,
}

/// The bytes of all lanes.
#[derive(Debug, Clone)]
pub struct Share(Arc<Mutex<Bucket>>);

/// One lane's part.
#[derive(Debug)]
pub struct LaneShare {
    share: Share,
    place: usize,
}

impl Share {
    /// 0: without a limit.
    pub fn new(bytes_per_s: u64) -> Self {
        let bytes_per_s = bytes_per_s as f64;
        Self(Arc::new(Mutex::new(Bucket { bytes_per_s, left: 0.0, at: None, waiting: Vec::new() })))
    }

    /// For one more lane, which goes after those before.
    pub fn lane(&self) -> LaneShare {
        let mut bucket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        bucket.waiting.push(None);
        LaneShare { share: self.clone(), place: bucket.waiting.len() - 1 }
    }
}

impl LaneShare {
    /// Takes the bytes of an upload, or says when to ask again.
    pub(super) fn take(&self, bytes: usize, now: Instant) -> Result<(), Instant> {
        let mut bucket = self.share.0.lock().unwrap_or_else(PoisonError::into_inner);
        if bucket.bytes_per_s <= 0.0 {
            return Ok(());
        }
        let most = bucket.bytes_per_s * KEPT.as_secs_f64();
        let passed = bucket.at.map_or(KEPT, |at| now.saturating_duration_since(at));
        bucket.left = (bucket.left + passed.as_secs_f64() * bucket.bytes_per_s).min(most);
        bucket.at = Some(now);
        let before = bucket.waiting.iter().take(self.place).flatten().filter(|by| **by > now).max();
        let again = match before {
            Some(by) => Some(*by),
            None if bucket.left > 0.0 => None,
            None => {
                let wait = Duration::from_secs_f64(-bucket.left / bucket.bytes_per_s);
                Some(now + wait + Duration::from_millis(1))
            }
        };
        if again.is_none() {
            bucket.left -= (bytes + AROUND) as f64;
        }
        if let Some(waiting) = bucket.waiting.get_mut(self.place) {
            *waiting = again.map(|at| at + LATE);
        }
        again.map_or(Ok(()), Err)
    }

    /// It has nothing to send.
    pub(super) fn leave(&self) {
        let mut bucket = self.share.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waiting) = bucket.waiting.get_mut(self.place) {
            *waiting = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_holds_and_the_first_lane_goes_first() {
        let share = Share::new(10_000);
        let (first, second) = (share.lane(), share.lane());
        let start = Instant::now();
        let mut sent = [0_u32; 2];
        let mut busy = false;
        for ms in 0..10_000 {
            let now = start + Duration::from_millis(ms);
            // The first lane has something to send in the middle only.
            let has = (3_000..6_000).contains(&ms);
            if has && first.take(840, now).is_ok() {
                sent[0] += 1;
            }
            if second.take(840, now).is_ok() {
                sent[1] += 1;
                busy |= (3_100..6_000).contains(&ms);
            }
            if ms == 6_000 {
                first.leave();
            }
        }
        assert!((98..=104).contains(&(sent[0] + sent[1])), "{sent:?}");
        assert!((29..=31).contains(&sent[0]) && !busy, "{sent:?}");
    }

    #[test]
    fn without_a_limit_nobody_waits() {
        let share = Share::new(0);
        let lane = share.lane();
        assert!((0..1000).all(|_| lane.take(1 << 20, Instant::now()).is_ok()));
    }
}
