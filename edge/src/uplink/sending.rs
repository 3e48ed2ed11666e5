//! What to send, resend, wait for and give up: one lane's decisions. Pure: no I/O, and time is handed in.
//!
//! ```text
//! connected(welcome)   rows(..)   answered(token, answer)   closed(why)   paused(until)      <- news
//! next(now, commits)   -> Send | Read | GiveUp | Tell | Backoff | Say | Wait | End           -> what to do next
//! ```
//! The lane's order is the order of its rows. What the cloud expects of an epoch starts with CONNACK's `expect`, follows
//! what is sent, and is corrected by 0x83; without an `expect` the local mark counts. After any answer but yes, sending
//! stops until all that is under way is answered, then starts again after the confirmed row: nothing overtakes.
//! After an outage a lane with `fresh_first` is read by two streams: what is new, in an epoch of its own, goes first, and what
//! waited follows in what is left of the line, at most at its own rate. When it has caught up they are one again.
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
    pace::{Line, Stamp},
    plan::{Shape, Unsendable, plan},
    poison::{Poison, Verdict},
    renamed::Names,
    share::{LaneShare, Share},
    stream::Stream,
    window::Entry,
};
use crate::{
    lane,
    link::{Answer, Upload, Welcome},
    store::{Mark, OutboundRow, Renamed},
};

/// Bytes a second of a line that is still waited for.
const SLOWEST_LINE: u64 = 1024;

/// Rows that are read at once; as many small ones in a row are merged.
const READ: usize = 32;

/// Bytes that are read at once.
const READ_BYTES: usize = 512 * 1024;

/// The store is told a new mark at most this often.
pub(super) const MARK_EVERY: Duration = Duration::from_millis(200);

/// The same for what is confirmed before older rows: each is a commit.
const AHEAD_EVERY: Duration = Duration::from_secs(1);

/// A lane with so many bytes waiting, the oldest for so many seconds, has a backlog.
pub(super) const BACKLOG: u64 = 64 * 1024;
pub(super) const BACKLOG_S: u64 = 10;

/// A new epoch for what is new is begun at most this often: the cloud remembers them for long.
const EPOCH_EVERY: Duration = Duration::from_mins(5);

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
    /// Tell the store what is confirmed of the rows after a row, although those up to it are not.
    TellAhead(u64, Mark),
    /// Begin a new epoch, and give the last row before it to [`Sending::fresh_after`].
    NewEpoch,
    /// Give the sequences of an epoch from this one on another name, and say it to [`Sending::renamed`].
    Rename {
        /// Epoch.
        epoch: i64,
        /// Sequence.
        from: u64,
    },
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
    which: Which,
    /// After this row.
    pub after: u64,
    /// At most.
    pub rows: usize,
    /// At most, unless it is one.
    pub bytes: usize,
}

/// One of a lane's streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    /// What is new, while there are two.
    Fresh,
    /// What waited, or all.
    Oldest,
}

/// What waits in a lane.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Messages.
    pub messages: u64,
    /// Bytes.
    pub bytes: u64,
    /// Seconds that the oldest has waited.
    pub oldest_s: u64,
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
    /// Another gateway uses an epoch, too; from this sequence on ours goes on under a new one.
    Clash {
        /// Epoch.
        epoch: i64,
        /// Sequence.
        from: u64,
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
    new_epoch: bool,
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
    /// All bytes a second of the line are used, until then.
    Spent(Instant),
    /// All bytes a second of this stream are used, until then.
    Until(Instant),
    /// Nothing more of this stream, until there is news.
    Nothing,
}

/// One lane's decisions.
#[derive(Debug)]
pub struct Sending {
    settings: Settings,
    /// Of the lane, if it is to send what is new first.
    fresh_first: bool,
    share: LaneShare,
    /// Of what waited, while there is a stream of what is new.
    catch_up: (u64, LaneShare),
    oldest: Stream,
    fresh: Option<Stream>,
    /// When the last epoch was begun for what is new.
    began: Option<Instant>,
    line: Line,
    poison: Poison,
    open: Option<Open>,
    /// Confirmed and not yet told to the store.
    mark: Option<Mark>,
    told: Option<Instant>,
    /// The same of what is new, while there are two streams.
    ahead: Option<Mark>,
    told_ahead: Option<Instant>,
    give_up: Option<GiveUp>,
    notes: VecDeque<Note>,
    names: Names,
    /// Another gateway uses this epoch, too; from this sequence on ours is to get another name.
    clash: Option<(i64, u64)>,
    /// The last connection showed something new.
    progress: bool,
    done: Done,
}

impl Sending {
    /// Of a lane all of whose rows up to `confirmed` are confirmed.
    pub fn new(
        settings: Settings,
        lane: &lane::Settings,
        confirmed: u64,
        share: LaneShare,
    ) -> Self {
        let catch_up = lane.catch_up_bytes_per_s;
        Self {
            fresh_first: lane.fresh_first,
            catch_up: (catch_up, Share::new(catch_up).lane()),
            poison: Poison::new(settings.give_ups_per_hour),
            settings,
            share,
            oldest: Stream::after(confirmed),
            fresh: None,
            began: None,
            line: Line::default(),
            open: None,
            mark: None,
            told: None,
            ahead: None,
            told_ahead: None,
            give_up: None,
            notes: VecDeque::new(),
            names: Names::default(),
            clash: None,
            progress: false,
            done: Done::default(),
        }
    }

    /// Of a lane with epochs that were given other names before.
    #[must_use]
    pub fn with_names(mut self, renamed: &[Renamed]) -> Self {
        self.names = Names::new(renamed);
        self
    }

    /// What is confirmed.
    pub fn done(&self) -> Done {
        self.done
    }

    /// A connection is open, and so much waits.
    pub fn connected(&mut self, welcome: Welcome, waiting: Waiting, now: Instant) {
        self.rewind();
        self.progress = false;
        let soon = self.began.is_some_and(|at| now.saturating_duration_since(at) < EPOCH_EVERY);
        let much = waiting.bytes >= BACKLOG && waiting.oldest_s >= BACKLOG_S;
        let mut known = self.names.expected(welcome.expect);
        let streams = [Some(&self.oldest), self.fresh.as_ref()].into_iter().flatten();
        for (epoch, next) in streams.filter_map(|stream| stream.reached) {
            let known = known.entry(epoch).or_insert(next);
            if self.names.has(epoch) {
                *known = next.max(*known);
            }
        }
        self.open = Some(Open {
            expected: known.clone(),
            known,
            next_token: 0,
            heard: now,
            drain: None,
            rewinds: 0,
            limit: self.settings.window_batches.min(welcome.receive_maximum).max(1),
            packet_bytes: welcome.packet_bytes,
            paused: None,
            new_epoch: self.fresh_first && much && !soon,
            over: None,
            settled: false,
            sure: true,
        });
    }

    /// The connection is lost. `refused`: the cloud said this to the oldest upload it has not answered.
    pub fn closed(&mut self, why: String, refused: Option<u8>) {
        let Some(open) = &mut self.open else { return };
        open.over.get_or_insert(why);
        let streams = || [Some(&self.oldest), self.fresh.as_ref()].into_iter().flatten();
        let unanswered = || streams().flat_map(|stream| stream.window.unanswered());
        let oldest = unanswered().filter_map(|entry| entry.token).min();
        open.sure = unanswered().nth(1).is_none();
        if let (Some(code), Some(token)) = (refused, oldest) {
            for stream in streams_of(&mut self.oldest, &mut self.fresh) {
                stream.window.answer(token, Answer::Never(code));
            }
        }
    }

    /// The cloud has other records under this epoch and the sequences of the oldest upload it has not confirmed.
    pub fn clashed(&mut self, told: i64) {
        let epoch = self.names.stored(told);
        let streams = [Some(&self.oldest), self.fresh.as_ref()].into_iter().flatten();
        let Some(from) = streams.filter_map(|stream| stream.window.first(epoch)).min() else {
            return;
        };
        if let Some(open) = &mut self.open {
            let why = "another gateway goes on from this one's memory: what waits gets a new epoch";
            open.over.get_or_insert_with(|| why.to_owned());
            self.clash = Some((epoch, from));
            self.notes.push_back(Note::Clash { epoch, from });
        }
    }

    /// What [`Step::Rename`] asked for is done.
    pub fn renamed(&mut self, name: Renamed) {
        self.names.add(name);
        self.progress = true;
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
        let entry = streams_of(&mut self.oldest, &mut self.fresh)
            .find_map(|stream| stream.window.answer(token, answer));
        let Some(entry) = entry else { return };
        self.line.answered(entry.stamp, entry.sent, entry.bytes, now);
        let epoch = entry.epoch;
        match answer {
            Answer::Done => self.confirm(),
            Answer::Expected(next) => {
                open.known.insert(epoch, self.names.stored_seq(epoch, next));
                open.drain = open.drain.or(Some(Drain::Rewind));
            }
            Answer::Never(_) => open.drain = open.drain.or(Some(Drain::Rewind)),
            Answer::NotNow(code) => open.drain = Some(Drain::Pause(code)),
        }
    }

    /// Part of an upload was answered: it takes its time, and is not given up meanwhile.
    pub fn heard(&mut self, now: Instant) {
        if let Some(open) = &mut self.open {
            open.heard = now;
        }
    }

    /// The row after which the store should merge what is small, and up to which, before what was `read` is handed over.
    pub fn worth_merging(&mut self, read: Read, rows: &[OutboundRow]) -> Option<(u64, u64)> {
        let window = self.settings.window_batches;
        self.stream(read.which)?.worth_merging(rows, read.rows, window)
    }

    /// The rows that were asked for, as of commit number `commits`.
    pub fn rows(&mut self, read: Read, rows: Vec<OutboundRow>, commits: u64) {
        if let Some(stream) = self.stream(read.which) {
            stream.read(rows, commits);
        }
    }

    /// Rows after this one are of a new epoch and of no other: they go first.
    pub fn fresh_after(&mut self, last: u64, now: Instant) {
        self.began = Some(now);
        if last > self.oldest.confirmed {
            self.oldest.upto = Some(last);
            self.fresh = Some(Stream::fresh(last));
            self.ahead = None;
        }
    }

    /// What waited follows behind what is new.
    pub fn is_divided(&self) -> bool {
        self.fresh.is_some()
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
        // Behind the mark, so that all before is told.
        if let Some((epoch, from)) = self.clash.take() {
            return Step::Rename { epoch, from };
        }
        let Some(open) = &mut self.open else { return IDLE };
        if let Some(why) = open.over.take() {
            self.open = None;
            self.share.leave();
            return Step::End { why, progress: self.progress };
        }
        if std::mem::take(&mut open.new_epoch) {
            return Step::NewEpoch;
        }
        open.paused = open.paused.filter(|until| *until > now);
        let mut until = open.paused;
        if open.drain.is_some() && self.oldest_unanswered().is_none() {
            return self.turn_back(now);
        }
        // Borrowed again: sending may close it.
        let Some(open) = &self.open else { return IDLE };
        if open.drain.is_none() && open.paused.is_none() {
            match self.fill(now, commits) {
                Ok(step) => return step,
                Err(at) => until = at,
            }
        }
        let tell = self.mark.and(self.told).map(|told| told + MARK_EVERY);
        let ahead = self.ahead.and(self.told_ahead).map(|told| told + AHEAD_EVERY);
        let until = [until, self.late(), tell, ahead].into_iter().flatten().min();
        let last = self.fresh.as_ref().unwrap_or(&self.oldest);
        Step::Wait { until, commits: last.exhausted.is_some() }
    }

    /// What waits to be told: a mark that is due, a give-up (and before it the mark), a note.
    fn housekeeping(&mut self, now: Instant) -> Option<Step> {
        if let Some(step) = self.confirmed(now) {
            return Some(step);
        }
        if let Some(GiveUp { id, range, reason }) = self.give_up.take() {
            return Some(Step::GiveUp { id, range, reason });
        }
        self.notes.pop_front().map(Step::Say)
    }

    /// A mark that is to be told the store now. Also asked for while the store is busy with another step: it may wait for
    /// the room that only what is confirmed makes.
    pub fn confirmed(&mut self, now: Instant) -> Option<Step> {
        let open_over = self.open.as_ref().is_some_and(|open| open.over.is_some());
        let due = self.told.is_none_or(|told| told + MARK_EVERY <= now);
        if let Some(mark) = self.mark.take_if(|_| due || open_over || self.give_up.is_some()) {
            self.told = Some(now);
            return Some(Step::Tell(mark));
        }
        let due = self.told_ahead.is_none_or(|told| told + AHEAD_EVERY <= now);
        if let Some(mark) = self.ahead.take_if(|_| due || open_over || self.give_up.is_some())
            && let Some(after) = self.oldest.upto
        {
            self.told_ahead = Some(now);
            return Some(Step::TellAhead(after, mark));
        }
        None
    }

    /// When the oldest upload is to be answered.
    fn late(&self) -> Option<Instant> {
        let open = self.open.as_ref()?;
        let entry = self.oldest_unanswered()?;
        let timeout = Duration::from_millis(self.settings.ack_timeout_ms);
        // A large batch on a slow line takes its time; without that it would be sent again for ever.
        let line = self.line.time(entry.bytes, SLOWEST_LINE);
        Some(entry.sent.max(open.heard) + timeout + line)
    }

    fn stream(&mut self, which: Which) -> Option<&mut Stream> {
        match which {
            Which::Fresh => self.fresh.as_mut(),
            Which::Oldest => Some(&mut self.oldest),
        }
    }

    fn oldest_unanswered(&self) -> Option<&Entry> {
        let streams = [Some(&self.oldest), self.fresh.as_ref()].into_iter().flatten();
        streams.filter_map(|stream| stream.window.unanswered().next()).min_by_key(|e| e.sent)
    }

    fn rewind(&mut self) {
        streams_of(&mut self.oldest, &mut self.fresh).for_each(Stream::rewind);
    }

    /// Uploads under way, and their bytes.
    fn under_way(&self) -> (usize, usize) {
        let (sent, bytes) = self.oldest.window.size();
        let fresh = self.fresh.as_ref().map_or((0, 0), |stream| stream.window.size());
        (sent + fresh.0, bytes + fresh.1)
    }

    /// Everything under way is answered: start again after what is confirmed.
    fn turn_back(&mut self, now: Instant) -> Step {
        let progress = self.settle(now);
        self.rewind();
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
        let streams = [Some(&self.oldest), self.fresh.as_ref()].into_iter().flatten();
        let mut refused = streams.filter_map(|stream| stream.window.refused());
        let Some((entry, code)) = refused.next() else { return false };
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
        true
    }

    /// Sends while the window has room and there is something to send, what is new first; or says until when there is not.
    fn fill(&mut self, now: Instant, commits: u64) -> Result<Step, Option<Instant>> {
        let mut until = None;
        for which in [Which::Fresh, Which::Oldest] {
            match self.fill_from(which, now, commits) {
                Halt::Do(step) => return Ok(step),
                Halt::Full => return Err(until),
                Halt::Spent(at) => {
                    self.line.idle(self.under_way().1);
                    return Err(Some(at));
                }
                Halt::Until(at) => until = Some(at),
                Halt::Nothing => {}
            }
        }
        self.join();
        self.line.idle(self.under_way().1);
        self.share.leave();
        Err(until)
    }

    fn fill_from(&mut self, which: Which, now: Instant, commits: u64) -> Halt {
        loop {
            let bytes = self.settings.window_bytes.min(READ_BYTES);
            let Some(stream) = self.stream(which) else { return Halt::Nothing };
            if let Some((_, upload)) = stream.uploads.front() {
                let (bytes, epoch, s) = (upload.payload.len(), upload.epoch, upload.s);
                let alone = self.poison.alone(epoch, s);
                return match self.room(which, bytes, alone, epoch, now) {
                    Some(halt) => halt,
                    None => self.send(which, alone, now),
                };
            }
            if let Some(row) = stream.rows.pop_front() {
                self.plan(which, row);
                if let Some(step) = self.housekeeping(now) {
                    return Halt::Do(step);
                }
                continue;
            }
            if stream.exhausted == Some(commits) || stream.all_read() {
                return Halt::Nothing;
            }
            let after = stream.cursor;
            return Halt::Do(Step::Read(Read { which, after, rows: READ, bytes }));
        }
    }

    /// Why the next upload of a stream has to wait, if it has to.
    fn room(
        &mut self,
        which: Which,
        bytes: usize,
        alone: bool,
        epoch: i64,
        now: Instant,
    ) -> Option<Halt> {
        let limit = self.open.as_ref()?.limit;
        let (sent, under_way) = self.under_way();
        let stream = self.stream(which)?;
        // The cloud checks for gaps within an epoch: if it refused the end of one for a moment, it would take the next.
        let crosses = stream.window.epoch().is_some_and(|other| other != epoch);
        if stream.window.size().0 > 0 && (alone || stream.alone || crosses) {
            return Some(Halt::Nothing);
        }
        if sent > 0 {
            let most = self.line.window(self.settings.window_bytes, now);
            if sent >= limit || under_way + bytes > most {
                return Some(Halt::Full);
            }
        }
        if which == Which::Oldest && self.fresh.is_some() && !self.oldest.paid {
            if let Err(at) = self.catch_up.1.take(bytes, now) {
                return Some(Halt::Until(at));
            }
            self.oldest.paid = true;
        }
        self.share.take(bytes, now).err().map(Halt::Spent)
    }

    fn send(&mut self, which: Which, alone: bool, now: Instant) -> Halt {
        let under_way = self.under_way().1;
        let stream = match which {
            Which::Fresh => self.fresh.as_mut(),
            Which::Oldest => Some(&mut self.oldest),
        };
        let (Some(open), Some(stream)) = (&mut self.open, stream) else { return Halt::Nothing };
        let Some((mark, upload)) = stream.uploads.pop_front() else { return Halt::Nothing };
        stream.window.push(Entry {
            mark,
            epoch: upload.epoch,
            range: upload.s..upload.s + upload.n,
            gap: upload.gap.is_some(),
            bytes: upload.payload.len(),
            token: Some(open.next_token),
            sent: now,
            stamp: self.line.sent(under_way, now),
            answer: None,
        });
        open.next_token += 1;
        stream.alone = alone;
        stream.paid = false;
        stream.sent = stream.sent.max(Some(mark.id));
        Halt::Do(Step::Send(self.names.told(upload)))
    }

    fn plan(&mut self, which: Which, row: OutboundRow) {
        let Some(open) = &mut self.open else { return };
        let historical = which == Which::Oldest && self.fresh.is_some();
        let limits = [self.settings.bytes_per_s, self.catch_up.0].into_iter();
        let limits = limits.take(if historical { 2 } else { 1 }).filter(|limit| *limit > 0);
        let shape = Shape {
            packet_bytes: open.packet_bytes,
            line_bytes: self.line.upload_bytes(limits.min().unwrap_or(0)),
            cuts: self.poison.cuts(row.epoch),
            historical,
        };
        let expected = open.expected.get(&row.epoch).copied();
        let planned = plan(&row, expected, shape).and_then(|mut uploads| {
            let sealed = uploads.iter_mut().try_for_each(|upload| self.names.seal(upload));
            sealed.map(|()| uploads).map_err(|error| Unsendable {
                range: row.s..row.end(),
                why: format!("damaged on disk: {error}"),
            })
        });
        if planned.is_ok() {
            let next = open.expected.entry(row.epoch).or_default();
            *next = row.end().max(*next);
        }
        let heard = open.heard;
        let Some(stream) = self.stream(which) else { return };
        match planned {
            Ok(uploads) if uploads.is_empty() => {
                stream.window.push(Entry {
                    mark: Mark { id: row.id, end: row.end() },
                    epoch: row.epoch,
                    range: row.s..row.end(),
                    gap: true,
                    bytes: 0,
                    token: None,
                    sent: heard,
                    stamp: Stamp::default(),
                    answer: Some(Answer::Done),
                });
                self.confirm();
            }
            Ok(uploads) => {
                let marked =
                    |upload: Upload| (Mark { id: row.id, end: upload.s + upload.n }, upload);
                stream.uploads.extend(uploads.into_iter().map(marked));
            }
            Err(unsendable) => {
                // It is read again, as a gap.
                stream.rows.clear();
                stream.reread(row.id - 1);
                let (range, reason) = (unsendable.range, unsendable.why);
                self.give_up = Some(GiveUp { id: row.id, range, reason });
            }
        }
    }

    /// Moves the marks over what is confirmed.
    fn confirm(&mut self) {
        let Some(open) = &mut self.open else { return };
        let divided = self.fresh.is_some();
        let streams = [(Some(&mut self.oldest), false), (self.fresh.as_mut(), divided)];
        for (stream, ahead) in streams.into_iter().filter_map(|(s, ahead)| Some((s?, ahead))) {
            while let Some(entry) = stream.window.confirmed() {
                let known = open.known.entry(entry.epoch).or_default();
                *known = (*known).max(entry.range.end);
                self.poison.confirmed(entry.epoch, *known);
                stream.mark = Some(entry.mark);
                stream.reached = Some((entry.epoch, entry.range.end));
                *(if ahead { &mut self.ahead } else { &mut self.mark }) = stream.mark;
                // Of the row of the last mark more may be to come; an earlier row is done.
                stream.confirmed = stream.confirmed.max(entry.mark.id - 1);
                open.rewinds = 0;
                if entry.token.is_some() {
                    self.done.uploads += 1;
                    self.done.bytes += entry.bytes as u64;
                    self.done.messages +=
                        if entry.gap { 0 } else { entry.range.end - entry.range.start };
                }
            }
        }
        self.join();
    }

    /// What waited is all confirmed: what is new is all there is.
    fn join(&mut self) {
        if self.oldest.done()
            && let Some(fresh) = self.fresh.take()
        {
            self.mark = fresh.mark.or(self.mark);
            self.ahead = None;
            self.oldest = fresh;
        }
    }
}

/// The streams there are.
fn streams_of<'a>(
    oldest: &'a mut Stream,
    fresh: &'a mut Option<Stream>,
) -> impl Iterator<Item = &'a mut Stream> {
    [Some(oldest), fresh.as_mut()].into_iter().flatten()
}
