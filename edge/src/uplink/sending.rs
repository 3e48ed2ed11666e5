//! What to send, resend, wait for and give up: one lane's decisions. Pure: no I/O, and time is handed in.
//!
//! ```text
//! connected(welcome)   rows(..)   answered(token, answer)   closed(why)   paused(until)      <- news
//! next(now, commits)   -> Send | Read | GiveUp | Tell | Backoff | Say | Wait | End           -> what to do next
//! ```
//! The lane's order is the order of its rows. What the cloud expects of an epoch starts with CONNACK's `expect`, follows
//! what is sent, and is corrected by 0x83; without an `expect` the local mark counts. After any answer but yes, sending
//! stops until all that is under way is answered, then starts again after the confirmed row: nothing overtakes.
//! Memory is the window and one reading, whatever the backlog. What is decided survives connections, not the process:
//! all that is needed to start again is the mark, and what the cloud says.
//!
//! Change here: when to send, resend, wait. Not here: doing it (`task`), what a row becomes on the wire (`plan`), which
//! message of a batch is refused (`poison`), how much may be under way (`pace`, `share`).

use std::{
    collections::{HashMap, VecDeque},
    ops::Range,
    time::{Duration, Instant},
};

use super::{
    Settings,
    pace::Line,
    plan::{Shape, plan},
    poison::{Poison, Verdict},
    share::LaneShare,
    stream::Stream,
    window::Entry,
};
use crate::{
    link::{Answer, Upload, Welcome},
    store::{Mark, OutboundRow},
};

/// Bytes a second of a line that is still waited for.
const SLOWEST_LINE: u64 = 1024;

/// Rows that are read at once; as many small ones in a row are merged.
const READ: usize = 32;

/// Bytes that are read at once.
const READ_BYTES: usize = 512 * 1024;

/// The store is told a new mark at most this often.
const MARK_EVERY: Duration = Duration::from_millis(200);

/// Goes back without a confirmation between them, before the connection is given up.
const REWINDS: u32 = 8;

/// What is to be done next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Send this; its token is the number of uploads sent on this connection before.
    Send(Upload),
    /// Read rows and give them to [`Sending::rows`].
    Read(Read),
    /// Give these sequences of a row up, for this reason.
    GiveUp {
        /// Row.
        id: u64,
        /// Sequences.
        range: Range<u64>,
        /// Why.
        reason: String,
    },
    /// Tell the store what is confirmed.
    Tell(Mark),
    /// Say [`Sending::paused`] until when nothing is sent: the cloud cannot take more, and said so with this code.
    Backoff(u8),
    /// Tell people.
    Say(Note),
    /// Nothing, until there is news or this time has come.
    Wait {
        /// When to ask again.
        until: Option<Instant>,
        /// A commit of the store is news.
        commits: bool,
    },
    /// The connection is over. `progress`: something was learnt from it, another attempt may follow at once.
    End {
        /// In words.
        why: String,
        /// See above.
        progress: bool,
    },
}

/// Without a connection.
const IDLE: Step = Step::Wait { until: None, commits: false };

/// Rows to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Read {
    /// After this row.
    pub after: u64,
    /// At most.
    pub rows: usize,
    /// At most, unless it is one.
    pub bytes: usize,
}

/// What people are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// Sending goes on from what is confirmed.
    Rewind,
    /// A batch is refused for good and searched for the message.
    Searching {
        /// Epoch.
        epoch: i64,
        /// Sequences.
        range: Range<u64>,
        /// Code.
        code: u8,
    },
    /// So many messages were refused one by one that the rest waits.
    Storm {
        /// Code.
        code: u8,
        /// Until the next may be given up.
        wait: Duration,
    },
    /// The cloud does not take a record that only says what was given up.
    GapRefused(u8),
}

/// What is confirmed so far, since the process started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Done {
    /// Answers that said yes.
    pub uploads: u64,
    /// Messages, without those given up.
    pub messages: u64,
    /// Bytes of batches.
    pub bytes: u64,
}

/// Why sending stopped until everything under way is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Drain {
    /// The cloud goes on from elsewhere.
    Rewind,
    /// The cloud said not now.
    Pause(u8),
}

/// What is known of the open connection.
#[derive(Debug)]
struct Open {
    /// Epoch -> next sequence that the cloud is to be sent.
    expected: HashMap<i64, u64>,
    /// Epoch -> next sequence as the cloud itself said or confirmed.
    known: HashMap<i64, u64>,
    next_token: u64,
    /// Of the last answer: on a slow line a window takes longer than one answer may.
    heard: Instant,
    drain: Option<Drain>,
    rewinds: u32,
    limit: usize,
    packet_bytes: usize,
    paused: Option<Instant>,
    over: Option<String>,
    /// What it refused is decided about.
    settled: bool,
    /// What was refused is known, not guessed.
    sure: bool,
}

/// A give-up that is to be done.
#[derive(Debug)]
struct GiveUp {
    id: u64,
    range: Range<u64>,
    reason: String,
}

/// Where sending from one stream stopped.
enum Halt {
    Do(Step),
    /// There is no room on the line, whatever else there is to send.
    Full,
    /// Nothing more of this stream now.
    Until(Instant),
    /// Nothing more of this stream, until there is news.
    Nothing,
}

/// One lane's decisions.
#[derive(Debug)]
pub struct Sending {
    settings: Settings,
    share: LaneShare,
    stream: Stream,
    line: Line,
    poison: Poison,
    open: Option<Open>,
    /// Confirmed and not yet told to the store.
    mark: Option<Mark>,
    told: Option<Instant>,
    give_up: Option<GiveUp>,
    notes: VecDeque<Note>,
    /// The last connection showed something new.
    progress: bool,
    done: Done,
}

impl Sending {
    /// Of a lane all of whose rows up to `confirmed` are confirmed.
    pub fn new(settings: Settings, confirmed: u64, share: LaneShare) -> Self {
        Self {
            poison: Poison::new(settings.give_ups_per_hour),
            settings,
            share,
            stream: Stream::after(confirmed),
            line: Line::default(),
            open: None,
            mark: None,
            told: None,
            give_up: None,
            notes: VecDeque::new(),
            progress: false,
            done: Done::default(),
        }
    }

    /// What is confirmed.
    pub fn done(&self) -> Done {
        self.done
    }

    /// A connection is open.
    pub fn connected(&mut self, welcome: Welcome, now: Instant) {
        self.stream.rewind();
        self.progress = false;
        self.open = Some(Open {
            expected: welcome.expect.clone(),
            known: welcome.expect,
            next_token: 0,
            heard: now,
            drain: None,
            rewinds: 0,
            limit: self.settings.window_batches.min(welcome.receive_maximum).max(1),
            packet_bytes: welcome.packet_bytes,
            paused: None,
            over: None,
            settled: false,
            sure: true,
        });
    }

    /// The connection is lost. `refused`: the cloud said this to the oldest upload it has not answered.
    pub fn closed(&mut self, why: String, refused: Option<u8>) {
        let Some(open) = &mut self.open else { return };
        open.over.get_or_insert(why);
        let window = &mut self.stream.window;
        let oldest = window.unanswered().next().and_then(|entry| entry.token);
        let alone = window.unanswered().nth(1).is_none();
        if let (Some(code), Some(token)) = (refused, oldest) {
            open.sure = alone;
            window.answer(token, Answer::Never(code));
        }
    }

    /// Nothing is to be sent before `until`.
    pub fn paused(&mut self, until: Instant) {
        if let Some(open) = &mut self.open {
            open.paused = Some(until);
        }
    }

    /// The answer to a token.
    pub fn answered(&mut self, token: u64, answer: Answer, now: Instant) {
        let Some(open) = &mut self.open else { return };
        open.heard = now;
        let Some(entry) = self.stream.window.answer(token, answer) else { return };
        self.line.answered(entry.stamp, entry.sent, entry.bytes, now);
        let epoch = entry.epoch;
        match answer {
            Answer::Done => self.confirm(),
            Answer::Expected(next) => {
                open.known.insert(epoch, next);
                open.drain = open.drain.or(Some(Drain::Rewind));
            }
            Answer::Never(_) => open.drain = open.drain.or(Some(Drain::Rewind)),
            Answer::NotNow(code) => open.drain = Some(Drain::Pause(code)),
        }
    }

    /// The row after which the store should merge what is small, before what was `read` is handed over.
    pub fn worth_merging(&mut self, read: Read, rows: &[OutboundRow]) -> Option<u64> {
        self.stream.worth_merging(rows, read.rows, self.settings.window_batches)
    }

    /// The rows that were asked for, as of commit number `commits`.
    pub fn rows(&mut self, _read: Read, rows: Vec<OutboundRow>, commits: u64) {
        self.stream.read(rows, commits);
    }

    /// What to do next. `commits`: how many commits the store has made.
    pub fn next(&mut self, now: Instant, commits: u64) -> Step {
        let late = self.late();
        let Some(open) = &mut self.open else { return IDLE };
        if late.is_some_and(|late| late <= now) && open.over.is_none() {
            open.over = Some("a batch was not confirmed in time".to_owned());
        }
        if open.over.is_some() && !std::mem::replace(&mut open.settled, true) {
            self.progress = self.settle(now);
        }
        if let Some(step) = self.housekeeping(now) {
            return step;
        }
        let Some(open) = &mut self.open else { return IDLE };
        if let Some(why) = open.over.take() {
            self.open = None;
            self.share.leave();
            return Step::End { why, progress: self.progress };
        }
        open.paused = open.paused.filter(|until| *until > now);
        let mut until = open.paused;
        if open.drain.is_some() && self.stream.window.unanswered().next().is_none() {
            return self.turn_back(now);
        }
        if open.drain.is_none() && open.paused.is_none() {
            match self.fill(now, commits) {
                Halt::Do(step) => return step,
                Halt::Until(at) => until = Some(at),
                Halt::Full | Halt::Nothing => {}
            }
        }
        let tell = self.mark.and(self.told).map(|told| told + MARK_EVERY);
        let until = [until, self.late(), tell].into_iter().flatten().min();
        Step::Wait { until, commits: self.stream.exhausted.is_some() }
    }

    /// What waits to be told: a mark that is due, a give-up (and before it the mark), a note.
    fn housekeeping(&mut self, now: Instant) -> Option<Step> {
        let open_over = self.open.as_ref().is_some_and(|open| open.over.is_some());
        let due = self.told.is_none_or(|told| told + MARK_EVERY <= now);
        if let Some(mark) = self.mark.take_if(|_| due || open_over || self.give_up.is_some()) {
            self.told = Some(now);
            return Some(Step::Tell(mark));
        }
        if let Some(GiveUp { id, range, reason }) = self.give_up.take() {
            return Some(Step::GiveUp { id, range, reason });
        }
        self.notes.pop_front().map(Step::Say)
    }

    /// When the oldest upload is to be answered.
    fn late(&self) -> Option<Instant> {
        let open = self.open.as_ref()?;
        let entry = self.stream.window.unanswered().next()?;
        let timeout = Duration::from_millis(self.settings.ack_timeout_ms);
        // A large batch on a slow line takes its time; without that it would be sent again for ever.
        let line = self.line.time(entry.bytes, SLOWEST_LINE);
        Some(entry.sent.max(open.heard) + timeout + line)
    }

    /// Everything under way is answered: start again after what is confirmed.
    fn turn_back(&mut self, now: Instant) -> Step {
        let progress = self.settle(now);
        self.stream.rewind();
        let Some(open) = &mut self.open else { return IDLE };
        open.expected.clone_from(&open.known);
        open.rewinds = if progress { 0 } else { open.rewinds + 1 };
        if open.rewinds > REWINDS {
            open.over = Some("the cloud keeps asking for the same".to_owned());
        }
        match open.drain.take() {
            Some(Drain::Pause(code)) => Step::Backoff(code),
            _ => Step::Say(Note::Rewind),
        }
    }

    /// Decides about what was refused for good at the front; true: it will not be refused in the same way again.
    fn settle(&mut self, now: Instant) -> bool {
        let Some(open) = &mut self.open else { return false };
        let Some((entry, code)) = self.stream.window.refused() else { return false };
        let (id, epoch, range) = (entry.mark.id, entry.epoch, entry.range.clone());
        if entry.gap {
            self.notes.push_back(Note::GapRefused(code));
            open.drain = Some(Drain::Pause(code));
            return false;
        }
        // A code that could be read names its upload; one that broke the connection does only if there was no other.
        let sure = open.sure;
        match self.poison.refused(epoch, range.clone(), sure, now) {
            Verdict::Search => self.notes.push_back(Note::Searching { epoch, range, code }),
            Verdict::GiveUp => {
                let reason = format!("refused by the cloud: {code:#04x}");
                self.give_up = Some(GiveUp { id, range, reason });
            }
            Verdict::Wait(until) => {
                let wait = until.saturating_duration_since(now);
                self.notes.push_back(Note::Storm { code, wait });
                open.paused = Some(until);
                return false;
            }
        }
        // Once over, it is not looked at again.
        self.stream.rewind();
        true
    }

    /// Sends while the window has room and there is something to send.
    fn fill(&mut self, now: Instant, commits: u64) -> Halt {
        loop {
            if let Some((_, upload)) = self.stream.uploads.front() {
                let (bytes, alone) =
                    (upload.payload.len(), self.poison.alone(upload.epoch, upload.s));
                return match self.room(bytes, alone, now) {
                    Some(halt) => halt,
                    None => self.send(alone, now),
                };
            }
            if let Some(row) = self.stream.rows.pop_front() {
                self.plan(row);
                if let Some(step) = self.housekeeping(now) {
                    return Halt::Do(step);
                }
                continue;
            }
            let stream = &self.stream;
            if stream.exhausted == Some(commits) {
                self.line.idle(stream.window.size().1);
                self.share.leave();
                return Halt::Nothing;
            }
            let bytes = self.settings.window_bytes.min(READ_BYTES);
            let read = Read { after: stream.cursor, rows: READ, bytes };
            return Halt::Do(Step::Read(read));
        }
    }

    /// Why the next upload has to wait, if it has to.
    fn room(&self, bytes: usize, alone: bool, now: Instant) -> Option<Halt> {
        let open = self.open.as_ref()?;
        let (sent, under_way) = self.stream.window.size();
        if sent > 0 {
            if alone || self.stream.alone {
                return Some(Halt::Nothing);
            }
            let most = self.line.window(self.settings.window_bytes, now);
            if sent >= open.limit || under_way + bytes > most {
                return Some(Halt::Full);
            }
        }
        self.share.take(bytes, now).err().map(Halt::Until)
    }

    fn send(&mut self, alone: bool, now: Instant) -> Halt {
        let (Some(open), Some((mark, upload))) = (&mut self.open, self.stream.uploads.pop_front())
        else {
            return Halt::Nothing;
        };
        let bytes = upload.payload.len();
        let window = &mut self.stream.window;
        window.push(Entry {
            mark,
            epoch: upload.epoch,
            range: upload.s..upload.s + upload.n,
            gap: upload.gap.is_some(),
            bytes,
            token: Some(open.next_token),
            sent: now,
            stamp: self.line.sent(window.size().1, now),
            answer: None,
        });
        open.next_token += 1;
        self.stream.alone = alone;
        self.stream.sent = self.stream.sent.max(Some(mark.id));
        Halt::Do(Step::Send(upload))
    }

    fn plan(&mut self, row: OutboundRow) {
        let Some(open) = &mut self.open else { return };
        let shape = Shape {
            packet_bytes: open.packet_bytes,
            line_bytes: self.line.upload_bytes(self.settings.bytes_per_s),
            cuts: self.poison.cuts(row.epoch),
            historical: false,
        };
        let expected = open.expected.get(&row.epoch).copied();
        match plan(&row, expected, shape) {
            Ok(uploads) if uploads.is_empty() => {
                self.stream.window.push(Entry {
                    mark: Mark { id: row.id, end: row.end() },
                    epoch: row.epoch,
                    range: row.s..row.end(),
                    gap: true,
                    bytes: 0,
                    token: None,
                    sent: open.heard,
                    stamp: super::pace::Stamp::default(),
                    answer: Some(Answer::Done),
                });
                self.confirm();
            }
            Ok(uploads) => {
                open.expected.insert(row.epoch, row.end());
                let marked =
                    |upload: Upload| (Mark { id: row.id, end: upload.s + upload.n }, upload);
                self.stream.uploads.extend(uploads.into_iter().map(marked));
            }
            Err(unsendable) => {
                let (range, reason) = (unsendable.range, unsendable.why);
                self.give_up = Some(GiveUp { id: row.id, range, reason });
                // It is read again, as a gap.
                self.stream.rows.clear();
                self.stream.cursor = row.id - 1;
            }
        }
    }

    /// Moves the mark over what is confirmed.
    fn confirm(&mut self) {
        let Some(open) = &mut self.open else { return };
        while let Some(entry) = self.stream.window.confirmed() {
            let known = open.known.entry(entry.epoch).or_default();
            *known = (*known).max(entry.range.end);
            self.poison.confirmed(entry.epoch, *known);
            self.mark = Some(entry.mark);
            // Of the row of the last mark more may be to come; an earlier row is done.
            self.stream.confirmed = self.stream.confirmed.max(entry.mark.id - 1);
            open.rewinds = 0;
            if entry.token.is_some() {
                self.done.uploads += 1;
                self.done.bytes += entry.bytes as u64;
                self.done.messages +=
                    if entry.gap { 0 } else { entry.range.end - entry.range.start };
            }
        }
    }
}
