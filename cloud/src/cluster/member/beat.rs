//! This node's own line of heartbeats, and the lease that follows from it. PURE.
//!
//! The lease counts from the moment at which the heartbeat was first asked for: whoever sees it sees it later.
//! An answer that was lost is found out by reading the object: it is ours, or it ended the line.

use super::{Action, Answer, Ask, Beat, Member, Ms, Refused};
use crate::cluster::map::Incarnation;

/// Between two attempts at one heartbeat.
const AGAIN: Ms = 50;

/// A life whose lease is over for so long is not gone on with.
const LIFE_STALE: Ms = 300_000;

/// The present life's line.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) life: Incarnation,
    name: String,
    random: u64,
    /// So many lives this process had before.
    lives: u32,
    /// Number of the last heartbeat that is there.
    last: u64,
    attempt: Option<Attempt>,
    /// When the next one is due.
    due: Ms,
}

#[derive(Debug)]
struct Attempt {
    number: u64,
    /// When it was first asked for.
    first: Ms,
    /// It is being asked for; else again at `due`.
    asked: bool,
}

impl Line {
    pub(super) fn new(name: &str, random: u64, lives: u32) -> Self {
        let life = Incarnation(format!("{name}.{random:016x}-{lives}"));
        let name = name.to_owned();
        Self { life, name, random, lives, last: 0, attempt: None, due: 0 }
    }
}

impl Member {
    /// The next heartbeat, if it is due.
    pub(super) fn beat(&mut self, now: Ms) {
        // Others remove lines that stood still for longer, and what ended them.
        if self.own.last > 0 && now > self.lease.saturating_add(LIFE_STALE) {
            self.new_life();
        }
        if now < self.own.due {
            return;
        }
        let next = Attempt { number: self.own.last + 1, first: now, asked: false };
        let attempt = self.own.attempt.get_or_insert(next);
        if attempt.asked {
            return;
        }
        attempt.asked = true;
        let number = attempt.number;
        let life = self.own.life.clone();
        self.ask(Ask::CreateBeat(life, number, Beat::default()));
    }

    /// An answer about our own line.
    pub(super) fn own_created(&mut self, number: u64, answer: &Answer, now: Ms) {
        let Some(attempt) = self.own.attempt.as_mut().filter(|a| a.number == number) else {
            return;
        };
        match answer {
            Answer::Done => self.landed(now),
            // Ours, whose answer was lost, or the end.
            Answer::Exists => {
                let life = self.own.life.clone();
                self.ask(Ask::ReadBeat(life, number));
            }
            _ => {
                attempt.asked = false;
                self.own.due = now + AGAIN;
            }
        }
    }

    /// What stands where our heartbeat should.
    pub(super) fn own_read(&mut self, number: u64, answer: &Answer, now: Ms) {
        let Some(attempt) = self.own.attempt.as_mut().filter(|a| a.number == number) else {
            return;
        };
        match answer {
            Answer::Beat(Some(Beat { ended_by: None })) => self.landed(now),
            Answer::Beat(Some(Beat { ended_by: Some(by) })) => {
                let successor =
                    by.0.rsplit_once('.').is_some_and(|(name, _)| name == self.own.name);
                if successor {
                    let name = self.own.name.clone();
                    return self.end(Err(Refused::Superseded(name)));
                }
                self.new_life();
            }
            _ => {
                attempt.asked = false;
                self.own.due = now + AGAIN;
            }
        }
    }

    fn landed(&mut self, now: Ms) {
        let Some(Attempt { number, first, .. }) = self.own.attempt.take() else { return };
        self.own.last = number;
        self.own.due = now.max(first + self.settings.heartbeat_ms);
        self.lease = first + self.settings.lease_ms;
        if !self.unsettled {
            self.actions.push(Action::Lease(self.lease));
        }
        if number > 2 {
            let beats = vec![(self.own.life.clone(), number - 2)];
            self.ask(Ask::Remove { maps: Vec::new(), beats });
        }
    }

    /// Everything this life owned is another's to give.
    fn new_life(&mut self) {
        self.ended.insert(self.own.life.clone());
        self.own = Line::new(&self.own.name, self.own.random, self.own.lives + 1);
        self.lease = 0;
        self.actions.push(Action::Lease(0));
        self.unsettled = true;
        self.judge.doubt();
    }

    /// A shard that the life before was opening would be served under this life's lease, whoever owns it by now. So there is
    /// none until all of that is gone.
    pub(super) fn settle(&mut self) {
        if self.unsettled && self.is_empty() {
            self.unsettled = false;
            self.actions.push(Action::Lease(self.lease));
        }
    }

    /// Whether this life's lease lasts.
    pub(super) fn is_sure(&self, now: Ms) -> bool {
        now < self.lease
    }
}
