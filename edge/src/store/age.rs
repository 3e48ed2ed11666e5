//! How long messages and sessions have waited, in time that the edge itself saw pass: no wall clock takes part.
//!
//! ```text
//! observed time   grows while the edge runs; goes on over a restart within one boot (the kernel's clock since boot),
//!                 stands still while the machine is off
//! mark (id, at)   all rows of the lane below `id` were there at `at`; one each hundredth of the lane's `budget_age_s`
//! ```
//! A gateway without a battery starts in 1970, or ten years ahead: neither may empty its backlog. So a message may wait
//! longer than asked for by the time the machine was off, and never shorter.
//!
//! In: the time, a lane's newest row. Out: up to which row messages are too old. Pure but for its rows in the file and
//! [`Boot::now`]. Sessions, wills, delays and expiry go by the same time (`Now::lasting_ms`). Change here: what time is. Not here: giving rows up (`budget`).

use std::{collections::VecDeque, fs, time::Duration};

use rusqlite::{Connection, OptionalExtension};
use tokio::time::Instant;
use tributary_shared::message::Message;

use super::{Error, outbound::unsigned};

/// Marks of a lane, at most; and so how late a message may go, as a part of its age.
const MARKS: u64 = 100;

/// No mark is younger than this: each is a row.
const GRAIN_MIN: Duration = Duration::from_secs(1);

/// Observed time is saved with the first commit after so long.
const SAVE_EVERY: Duration = Duration::from_mins(1);

/// Which boot of the machine this is, and for how long it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Boot {
    /// Empty where the system does not tell: then no boot is like another.
    pub(super) id: String,
    pub(super) since_ms: u64,
}

impl Boot {
    pub(super) fn now() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let id = read("/proc/sys/kernel/random/boot_id").trim().to_owned();
        let seconds: Option<f64> =
            read("/proc/uptime").split(' ').next().and_then(|text| text.parse().ok());
        Self { id, since_ms: (seconds.unwrap_or(0.0) * 1000.0) as u64 }
    }
}

/// Observed time; copied before each commit.
#[derive(Debug, Clone)]
pub(super) struct Observed {
    boot: Boot,
    base_ms: u64,
    began: Instant,
    /// What the file has.
    saved_ms: u64,
}

impl Observed {
    /// Goes on where the file says, or begins.
    pub(super) fn load(db: &Connection, boot: Boot) -> Result<Self, Error> {
        let saved = db
            .query_row("SELECT boot, boot_ms, at_ms FROM observed", [], |row| {
                let boot = Boot { id: row.get(0)?, since_ms: unsigned(row, 1)? };
                Ok((boot, unsigned(row, 2)?))
            })
            .optional()?;
        let marked =
            db.query_row("SELECT coalesce(max(at_ms), 0) FROM seen", [], |row| unsigned(row, 0))?;
        let base_ms = resume(saved, &boot).max(marked);
        Ok(Self { boot, base_ms, began: Instant::now(), saved_ms: base_ms })
    }

    pub(super) fn now_ms(&self) -> u64 {
        self.base_ms + ms(self.began.elapsed())
    }

    /// As part of a commit, now and then: after a power cut time goes on from here.
    pub(super) fn save_sometimes(&mut self, db: &Connection) -> Result<(), Error> {
        let now = self.now_ms();
        if now < self.saved_ms + ms(SAVE_EVERY) {
            return Ok(());
        }
        self.saved_ms = now;
        self.save(db)
    }

    pub(super) fn save(&self, db: &Connection) -> Result<(), Error> {
        let since_ms = self.boot.since_ms + ms(self.began.elapsed());
        db.prepare_cached("INSERT OR REPLACE INTO observed VALUES(1, ?1, ?2, ?3)")?.execute((
            &self.boot.id,
            since_ms as i64,
            self.now_ms() as i64,
        ))?;
        Ok(())
    }
}

/// A message as it was stored, and when it expires in observed time. An earlier version stored only how long it may last:
/// then it has that from now on.
pub(super) fn expiring(message: Message, expires_ms: Option<i64>, now_ms: u64) -> Message {
    let from_now = |seconds: u32| (now_ms as i64).saturating_add(i64::from(seconds) * 1000);
    let expires_ms = expires_ms.or_else(|| message.properties.message_expiry.map(from_now));
    Message { expires_ms, ..message }
}

/// Where observed time goes on after a start.
fn resume(saved: Option<(Boot, u64)>, now: &Boot) -> u64 {
    match saved {
        Some((boot, at_ms)) if boot.id == now.id && !boot.id.is_empty() => {
            at_ms + now.since_ms.saturating_sub(boot.since_ms)
        }
        Some((_, at_ms)) => at_ms,
        None => 0,
    }
}

/// A lane's marks, oldest first; copied before each commit.
#[derive(Debug, Clone, Default)]
pub(super) struct Marks(VecDeque<Seen>);

#[derive(Debug, Clone, Copy)]
struct Seen {
    /// Rows below were there.
    id: u64,
    at_ms: u64,
}

impl Marks {
    pub(super) fn load(db: &Connection, lane: u16) -> Result<Self, Error> {
        let mut found = db.prepare("SELECT id, at_ms FROM seen WHERE lane = ?1 ORDER BY id")?;
        let marks = found.query_map([lane], |row| {
            Ok(Seen { id: unsigned(row, 0)?, at_ms: unsigned(row, 1)? })
        })?;
        Ok(Self(marks.collect::<Result<_, _>>()?))
    }

    /// Notes that rows up to `upto` are there, if that is not known and it is time to.
    pub(super) fn note(
        &mut self,
        db: &Connection,
        lane: u16,
        upto: u64,
        age: Duration,
        observed: &Observed,
    ) -> Result<(), Error> {
        let now = observed.now_ms();
        if self.note_in(upto, age, now).is_none_or(|wait| !wait.is_zero()) {
            return Ok(());
        }
        let seen = Seen { id: upto + 1, at_ms: now };
        db.prepare_cached("INSERT OR REPLACE INTO seen VALUES(?1, ?2, ?3)")?.execute([
            i64::from(lane),
            seen.id as i64,
            seen.at_ms as i64,
        ])?;
        self.0.push_back(seen);
        observed.save(db)
    }

    /// Rows below this are too old.
    pub(super) fn expired(&self, age: Duration, now: u64) -> Option<u64> {
        let old = |seen: &&Seen| seen.at_ms + ms(age) <= now;
        self.0.iter().take_while(old).last().map(|seen| seen.id)
    }

    /// Nothing of the lane below `id` is left to be sent.
    pub(super) fn forget(&mut self, db: &Connection, lane: u16, id: u64) -> Result<(), Error> {
        let before = self.0.len();
        while self.0.pop_front_if(|seen| seen.id <= id).is_some() {}
        if self.0.len() < before {
            db.prepare_cached("DELETE FROM seen WHERE lane = ?1 AND id <= ?2")?
                .execute([i64::from(lane), id as i64])?;
        }
        Ok(())
    }

    /// When there is something to note or to give up next.
    pub(super) fn due_in(&self, upto: u64, age: Duration, now: u64) -> Option<Duration> {
        let front = self.0.front().map(|seen| wait(seen.at_ms + ms(age), now));
        front.into_iter().chain(self.note_in(upto, age, now)).min()
    }

    fn note_in(&self, upto: u64, age: Duration, now: u64) -> Option<Duration> {
        let grain = (age / MARKS as u32).max(GRAIN_MIN);
        match self.0.back() {
            Some(seen) if upto < seen.id => None,
            Some(seen) => Some(wait(seen.at_ms + ms(grain), now)),
            None => Some(Duration::ZERO),
        }
    }
}

fn wait(until: u64, now: u64) -> Duration {
    Duration::from_millis(until.saturating_sub(now))
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boot(id: &str, since_ms: u64) -> Boot {
        Boot { id: id.to_owned(), since_ms }
    }

    #[test]
    fn observed_time_goes_on_within_a_boot_and_stands_still_between_boots() {
        let saved = || Some((boot("a", 5_000), 90_000));
        assert_eq!(resume(None, &boot("a", 7_000)), 0);
        assert_eq!(resume(saved(), &boot("a", 7_000)), 92_000, "killed, and started again");
        assert_eq!(resume(saved(), &boot("a", 1_000)), 90_000, "never backwards");
        assert_eq!(resume(saved(), &boot("b", 7_000)), 90_000, "off for who knows how long");
        assert_eq!(resume(Some((boot("", 1), 9)), &boot("", 500)), 9, "no system tells");
    }
}
