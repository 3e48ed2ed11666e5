//! What the store does wrong at the moment, and how it is told to from outside while it runs.
//!
//! In: [`Faults`], as a line of JSON on the control port ([`Control`]). Out: what becomes of a request.
//! Change here: which faults there are. Not here: how a request is delayed, refused or left without an answer (`serve`).

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::random::Random;

/// See the module. The default is a good store.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// Every answer takes at least and at most so long, ms.
    pub latency_ms: [u64; 2],
    /// Of a hundred requests so many are answered with 503 and have no effect.
    pub unavailable_percent: u64,
    /// Of a hundred requests so many have their effect, and the connection is closed without an answer.
    pub lost_percent: u64,
    /// Conditional writes overwrite: what fences an old owner off is gone. A control.
    pub overwrite: bool,
    /// Writes of objects with this in their key are acknowledged and dropped. A control.
    pub forget: Option<String>,
}

/// Faults, and the dice for them.
#[derive(Debug)]
pub(super) struct Present {
    faults: Faults,
    random: Random,
    met: Met,
}

/// How often each came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Met {
    /// Requests in all.
    pub requests: u64,
    /// Answered with 503.
    pub unavailable: u64,
    /// Done and not answered.
    pub lost: u64,
    /// Writes acknowledged and dropped.
    pub forgotten: u64,
}

/// What becomes of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// Answered after so long.
    Answered(Duration),
    /// 503 after so long.
    Unavailable(Duration),
    /// Done after so long, and not answered.
    Lost(Duration),
}

impl Default for Present {
    fn default() -> Self {
        Self { faults: Faults::default(), random: Random::new(5), met: Met::default() }
    }
}

impl Present {
    /// These from now on. What came about of those before.
    pub(super) fn set(&mut self, faults: Faults) -> Met {
        self.faults = faults;
        self.met
    }

    /// Of the next request.
    pub(super) fn fate(&mut self) -> Fate {
        let [least, most] = self.faults.latency_ms;
        let spread = most.saturating_sub(least) as usize + 1;
        let latency = Duration::from_millis(least + self.random.below(spread) as u64);
        self.met.requests += 1;
        if self.random.percent(self.faults.unavailable_percent) {
            self.met.unavailable += 1;
            Fate::Unavailable(latency)
        } else if self.random.percent(self.faults.lost_percent) {
            self.met.lost += 1;
            Fate::Lost(latency)
        } else {
            Fate::Answered(latency)
        }
    }

    /// Of a write to this key: whether its condition counts, and whether it is kept.
    pub(super) fn put(&mut self, key: &str) -> (bool, bool) {
        let forgotten = self.faults.forget.as_ref().is_some_and(|part| key.contains(part.as_str()));
        self.met.forgotten += u64::from(forgotten);
        (!self.faults.overwrite, !forgotten)
    }
}

/// Tells a running server what to do wrong.
#[derive(Debug, Clone, Copy)]
pub struct Control(
    /// The control port.
    pub SocketAddr,
);

impl Control {
    /// These from now on; returns when they are in force, with what came about so far.
    pub fn set(&self, faults: &Faults) -> io::Result<Met> {
        let mut stream = TcpStream::connect(self.0)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        writeln!(stream, "{}", serde_json::to_string(faults)?)?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        serde_json::from_str(&line)
            .map_err(|_| io::Error::other(format!("the server says: {line}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_faults_come_about() {
        let mut present = Present::default();
        assert_eq!(present.fate(), Fate::Answered(Duration::ZERO));
        present.set(Faults {
            latency_ms: [5, 7],
            unavailable_percent: 30,
            lost_percent: 50,
            ..Faults::default()
        });
        let fates: Vec<_> = (0..1_000).map(|_| present.fate()).collect();
        let met = present.set(Faults::default());
        assert!((250..350).contains(&met.unavailable), "{met:?}");
        assert!((300..400).contains(&met.lost), "{met:?}");
        let late = |fate: &Fate| match fate {
            Fate::Answered(late) | Fate::Unavailable(late) | Fate::Lost(late) => *late,
        };
        assert_eq!(fates.iter().map(late).min(), Some(Duration::from_millis(5)));
        assert_eq!(fates.iter().map(late).max(), Some(Duration::from_millis(7)));
    }

    #[test]
    fn only_named_writes_are_forgotten() {
        let mut present = Present::default();
        assert_eq!(present.put("a/wal/1"), (true, true));
        present.set(Faults { forget: Some("/wal/".into()), overwrite: true, ..Faults::default() });
        assert_eq!((present.put("a/wal/1"), present.put("a/b")), ((false, false), (false, true)));
    }
}
