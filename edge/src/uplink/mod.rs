//! Outbound -> cloud: one task and one connection a lane.
//!
//! ```text
//! store rows after the cursor -> plan (what the cloud expects) -> link, at most a window -> answers -> mark -> store
//! ```
//! The lane's order is the order of its rows. What the cloud expects of an epoch starts with CONNACK's `expect`, follows
//! what is sent, and is corrected by 0x83; without an `expect` the local mark counts. After any answer but yes, sending
//! stops until all that is under way is answered, then starts again after the confirmed row: nothing overtakes.
//! No answer for `ack_timeout_ms` ends the connection. Memory is the window, whatever the backlog.
//!
//! In: rows of [`Store`]. Out: marks to it. Change here: when to send, resend, wait. Not here: MQTT (`link`), what a row
//! becomes on the wire (`plan`).

mod plan;
#[cfg(test)]
mod tests;
mod window;

use std::{
    collections::{HashMap, VecDeque},
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tokio::time::{sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tributary_shared::backoff::Backoff;

use self::{
    plan::{Unsendable, plan},
    window::{Entry, Window},
};
use crate::{
    link::{Answer, Dial, Link, Report, Upload, Welcome},
    store::{Error, LaneHandle, Mark, OutboundRow, Store},
};

/// What an uplink sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Record batches with epochs and sequences.
    Batches,
    /// Ordinary publishes.
    Mqtt,
}

tributary_shared::settings! {
    /// The way to the cloud.
    pub struct Settings {
        /// Where the cloud listens, as `mqtt://host:port`. Empty: this edge works alone and keeps nothing for a cloud.
        pub cloud: String = String::new(),
        /// What is sent: `batches` of records to Tributary's cloud, each exactly once, or each message as an ordinary
        /// publish to any `mqtt` 5 broker, at least once.
        pub format: Format = Format::Batches,
        /// Format mqtt: before every topic, as in `site-7/`.
        pub prefix: String = String::new(),
        /// User name at the cloud. Empty: none.
        pub user: String = String::new(),
        /// File with its password, in the first line.
        pub password_file: String = String::new(),
        /// Batches sent and not yet confirmed, a lane.
        pub window_batches: usize = 16 => 1..=512,
        /// Bytes of such batches; one batch is always allowed.
        pub window_bytes: usize = 1024 * 1024 => 4096..=67_108_864,
        /// Milliseconds the cloud may take for the next confirmation; then the connection is given up.
        pub ack_timeout_ms: u64 = 30_000 => 100..=600_000,
        /// Milliseconds from dialling to CONNACK.
        pub connect_timeout_ms: u64 = 10_000 => 100..=600_000,
        /// Shortest wait before another attempt, milliseconds; it grows with each failure, with jitter.
        pub backoff_min_ms: u64 = 1000 => 1..=600_000,
        /// Longest such wait.
        pub backoff_max_ms: u64 = 300_000 => 1..=3_600_000,
        /// Seconds between pings on an idle connection.
        pub keep_alive_s: u16 = 30 => 5..=3600,
    }
}

impl Settings {
    /// Says what is wrong with a value, if anything is.
    pub fn check_all(&self) -> Result<(), String> {
        if self.cloud.is_empty() {
            return Ok(());
        }
        let wrong = |why| format!("`uplink.cloud` = {:?}: {why}", self.cloud);
        crate::link::Address::parse(&self.cloud).map_err(wrong)?;
        if !self.prefix.is_empty() && !tributary_shared::topic::is_legal_name(&self.prefix) {
            return Err(format!("`uplink.prefix` = {:?} cannot begin a topic", self.prefix));
        }
        Ok(())
    }

    /// User name and password; reads the file.
    pub fn login(&self) -> Result<Option<(String, String)>, String> {
        if self.user.is_empty() {
            return Ok(None);
        }
        let password = match &*self.password_file {
            "" => String::new(),
            path => std::fs::read_to_string(path)
                .map_err(|error| format!("`uplink.password_file` {path}: {error}"))?,
        };
        let password = password.lines().next().unwrap_or_default().to_owned();
        Ok(Some((self.user.clone(), password)))
    }
}

/// Bytes a second of a line that is still waited for.
const SLOWEST_LINE: u64 = 1024;

/// Rows that are read at once; as many small ones in a row are merged.
const READ: usize = 32;

/// A row of fewer bytes is small.
const SMALL: usize = 8 * 1024;

/// The store is told a new mark at most this often.
const MARK_EVERY: Duration = Duration::from_millis(200);

/// Goes back without a confirmation between them, before the connection is given up.
const REWINDS: u32 = 8;

/// One lane's task.
pub struct Uplink<D> {
    store: Store,
    lane: LaneHandle,
    settings: Settings,
    dial: D,
    stop: CancellationToken,
    /// The last row all of which is confirmed.
    confirmed: u64,
    /// Rows up to here may have been sent, so they are never merged. `None`: since the process started nothing was read.
    sent: Option<u64>,
    backoff: Backoff,
}

/// Why a connection is over.
enum End {
    Stopped,
    Lost(String),
    Store(Error),
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

impl<D: Dial> Uplink<D> {
    /// For one lane of an open store.
    pub fn new(
        store: Store,
        lane: LaneHandle,
        dial: D,
        settings: Settings,
        stop: CancellationToken,
    ) -> Self {
        let ms = Duration::from_millis;
        Self {
            confirmed: lane.status.acked_id.get(),
            backoff: Backoff::new(ms(settings.backoff_min_ms), ms(settings.backoff_max_ms)),
            sent: None,
            store,
            lane,
            settings,
            dial,
            stop,
        }
    }

    /// Runs until stopped; returns an error only if the store fails.
    pub async fn run(mut self) -> Result<(), Error> {
        let stop = self.stop.clone();
        loop {
            let attempt = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                attempt = self.dial.dial() => attempt,
            };
            let end = match attempt {
                Ok((link, welcome)) => self.connection(link, welcome).await,
                Err(why) => End::Lost(why),
            };
            self.lane.status.connected.store(false, Relaxed);
            let wait = match end {
                End::Stopped => return Ok(()),
                End::Store(error) => return Err(error),
                End::Lost(why) => {
                    let wait = self.backoff.next_wait();
                    tracing::warn!(lane = %self.lane.status.name, why, ?wait, "no connection to the cloud");
                    wait
                }
            };
            tokio::select! { () = stop.cancelled() => return Ok(()), () = sleep(wait) => {} }
        }
    }

    async fn connection(&mut self, link: Link, welcome: Welcome) -> End {
        tracing::info!(lane = %self.lane.status.name, epochs = welcome.expect.len(), "connected to the cloud");
        self.lane.status.connected.store(true, Relaxed);
        self.lane.status.connects.add(1);
        let mut connection = Connection {
            expected: welcome.expect.clone(),
            known: welcome.expect,
            window: Window::default(),
            rows: VecDeque::new(),
            uploads: VecDeque::new(),
            cursor: self.confirmed,
            exhausted: None,
            next_token: 0,
            heard: Instant::now(),
            drain: None,
            rewinds: 0,
            limit: self.settings.window_batches.min(welcome.receive_maximum),
            packet_bytes: welcome.packet_bytes,
            mark: None,
            told: Instant::now(),
            link,
            up: self,
        };
        let end = connection.run().await;
        // What was confirmed and not yet told; losing it would only cost a resend.
        let told = connection.tell().await;
        if let End::Stopped = end {
            connection.link.close().await;
        }
        match (end, told) {
            (End::Lost(_), Err(error)) => End::Store(error),
            (end, _) => end,
        }
    }
}

/// Why sending stopped until everything under way is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Drain {
    /// The cloud goes on from elsewhere.
    Rewind,
    /// The cloud said not now.
    Pause,
}

/// One connection's state.
struct Connection<'a, D> {
    up: &'a mut Uplink<D>,
    link: Link,
    /// Epoch -> next sequence that the cloud is to be sent.
    expected: HashMap<i64, u64>,
    /// Epoch -> next sequence as the cloud itself said or confirmed.
    known: HashMap<i64, u64>,
    window: Window,
    /// Read, not yet planned.
    rows: VecDeque<OutboundRow>,
    /// Planned, not yet sent, with the mark each stands for.
    uploads: VecDeque<(Mark, Upload)>,
    /// The last row read.
    cursor: u64,
    /// Nothing is stored after the cursor, as of this commit.
    exhausted: Option<u64>,
    next_token: u64,
    /// Of the last answer: on a slow line a window takes longer than one answer may.
    heard: Instant,
    drain: Option<Drain>,
    rewinds: u32,
    limit: usize,
    packet_bytes: usize,
    /// Confirmed and not yet told to the store.
    mark: Option<Mark>,
    told: Instant,
}

impl<D: Dial> Connection<'_, D> {
    async fn run(&mut self) -> End {
        let mut progress = self.up.store.progress();
        let stop = self.up.stop.clone();
        loop {
            let commits = progress.borrow_and_update().commits;
            if self.drain.is_some()
                && self.window.oldest_unanswered().is_none()
                && let Err(end) = self.turn_back().await
            {
                return end;
            }
            if self.drain.is_none()
                && let Err(end) = self.fill(commits).await
            {
                return end;
            }
            let timeout = Duration::from_millis(self.up.settings.ack_timeout_ms);
            let late = self.window.oldest_unanswered();
            // A large batch on a slow line takes its time; without that it would be sent again for ever.
            let line = |bytes: usize| Duration::from_millis(bytes as u64 * 1000 / SLOWEST_LINE);
            let late = late.map(|entry| entry.sent.max(self.heard) + timeout + line(entry.bytes));
            let tell = self.mark.is_some().then(|| self.told + MARK_EVERY);
            tokio::select! {
                () = stop.cancelled() => return End::Stopped,
                report = self.link.report() => if let Err(end) = self.take(report).await {
                    return end;
                },
                changed = progress.changed(), if self.exhausted.is_some() => if changed.is_err() {
                    return End::Store(Error::Closed);
                },
                () = at(late), if late.is_some() => {
                    return End::Lost("a batch was not confirmed in time".to_owned());
                }
                () = at(tell), if tell.is_some() => if let Err(error) = self.tell().await {
                    return End::Store(error);
                },
            }
        }
    }

    /// Sends while the window has room and there is something to send.
    async fn fill(&mut self, commits: u64) -> Result<(), End> {
        loop {
            while let Some((_, upload)) = self.uploads.front() {
                let (count, bytes) = (self.limit, self.up.settings.window_bytes);
                if !self.window.has_room(count, bytes, upload.payload.len()) {
                    return Ok(());
                }
                if let Some((mark, upload)) = self.uploads.pop_front() {
                    self.send(mark, upload)?;
                }
            }
            if let Some(row) = self.rows.pop_front() {
                self.plan(row).await?;
                continue;
            }
            if self.exhausted == Some(commits) || !self.read().await? {
                self.exhausted = Some(commits);
                return Ok(());
            }
            self.exhausted = None;
        }
    }

    fn send(&mut self, mark: Mark, upload: Upload) -> Result<(), End> {
        let bytes = upload.payload.len();
        let entry = Entry {
            mark,
            epoch: upload.epoch,
            bytes,
            token: Some(self.next_token),
            sent: Instant::now(),
            answer: None,
        };
        self.link.send(upload).map_err(End::Lost)?;
        self.next_token += 1;
        self.window.push(entry);
        self.up.lane.status.sent_bytes.add(bytes as u64);
        self.up.sent = self.up.sent.max(Some(mark.id));
        Ok(())
    }

    /// Reads the next rows; small ones that were never sent are merged first. Answers whether there were any.
    async fn read(&mut self) -> Result<bool, End> {
        let (store, number) = (&self.up.store, self.up.lane.number);
        let bytes = self.up.settings.window_bytes;
        let mut rows = store.read_lane(number, self.cursor, READ, bytes).await?;
        // A process that ran before may have sent as much as a window of what it did not see confirmed.
        let window = rows.iter().take(self.up.settings.window_batches);
        let unmerged = *self.up.sent.get_or_insert(window.last().map_or(0, |row| row.id));
        let small = |row: &&OutboundRow| {
            row.id > unmerged && row.body.as_ref().is_some_and(|body| body.len() < SMALL)
        };
        if rows.len() == READ && rows.iter().filter(small).count() * 2 > READ {
            let after = self.cursor.max(unmerged);
            if store.merge(number, after).await? > 0 {
                rows = store.read_lane(number, self.cursor, READ, bytes).await?;
            }
        }
        self.cursor = rows.last().map_or(self.cursor, |row| row.id);
        self.rows = rows.into();
        Ok(!self.rows.is_empty())
    }

    async fn plan(&mut self, row: OutboundRow) -> Result<(), End> {
        let expected = self.expected.get(&row.epoch).copied();
        match plan(&row, expected, self.packet_bytes) {
            Ok(uploads) if uploads.is_empty() => {
                let mark = Mark { id: row.id, end: row.end() };
                let (epoch, sent) = (row.epoch, Instant::now());
                let answer = Some(Answer::Done);
                self.window.push(Entry { mark, epoch, bytes: 0, token: None, sent, answer });
                self.confirm();
            }
            Ok(uploads) => {
                self.expected.insert(row.epoch, row.end());
                let marked =
                    |upload: Upload| (Mark { id: row.id, end: upload.s + upload.n }, upload);
                self.uploads.extend(uploads.into_iter().map(marked));
            }
            Err(Unsendable(reason)) => {
                self.give_up(row.id, reason).await?;
                let read = self.up.store.read_lane(self.up.lane.number, row.id - 1, 1, 1).await?;
                for part in read.into_iter().rev().filter(|again| again.id == row.id) {
                    self.rows.push_front(part);
                }
            }
        }
        Ok(())
    }

    async fn give_up(&mut self, id: u64, reason: String) -> Result<(), End> {
        tracing::error!(lane = %self.up.lane.status.name, id, reason, "a batch is given up: see quarantine");
        Ok(self.up.store.give_up(id, 0..u64::MAX, reason).await?)
    }

    /// One piece of news.
    async fn take(&mut self, report: Report) -> Result<(), End> {
        match report {
            Report::Answered(token, answer) => {
                let epoch = self.window.answer(token, answer);
                self.heard = Instant::now();
                match answer {
                    Answer::Done => self.confirm(),
                    Answer::Expected(next) => {
                        if let Some(epoch) = epoch {
                            self.known.insert(epoch, next);
                        }
                        self.drain = self.drain.or(Some(Drain::Rewind));
                    }
                    Answer::Never(_) => self.drain = self.drain.or(Some(Drain::Rewind)),
                    Answer::NotNow(code) => {
                        tracing::warn!(lane = %self.up.lane.status.name, code, "the cloud cannot take more now");
                        self.drain = Some(Drain::Pause);
                    }
                }
                Ok(())
            }
            Report::Closed { why, refused } => {
                if let (Some(code), Some(entry)) = (refused, self.window.oldest_unanswered()) {
                    let id = entry.mark.id;
                    self.give_up(id, format!("refused by the cloud: {code:#04x}")).await?;
                }
                Err(End::Lost(why))
            }
        }
    }

    /// Everything under way is answered: start again after what is confirmed.
    async fn turn_back(&mut self) -> Result<(), End> {
        let drain = self.drain.take();
        self.rewinds += 1;
        self.up.lane.status.rewinds.add(1);
        if self.rewinds > REWINDS {
            return Err(End::Lost("the cloud keeps asking for the same".to_owned()));
        }
        if let Some((id, code)) = self.window.first_refused() {
            self.give_up(id, format!("refused by the cloud: {code:#04x}")).await?;
        }
        if drain == Some(Drain::Pause) {
            let wait = self.up.backoff.next_wait();
            tokio::select! { () = self.up.stop.cancelled() => return Err(End::Stopped), () = sleep(wait) => {} }
        }
        self.window = Window::default();
        self.rows.clear();
        self.uploads.clear();
        self.cursor = self.up.confirmed;
        self.expected.clone_from(&self.known);
        self.exhausted = None;
        Ok(())
    }

    /// Moves the mark over what is confirmed.
    fn confirm(&mut self) {
        for (epoch, mark) in self.window.confirmed() {
            let known = self.known.entry(epoch).or_default();
            *known = (*known).max(mark.end);
            self.mark = Some(mark);
            self.rewinds = 0;
            self.up.backoff.reset();
            // Of the row of the last mark more may be to come; an earlier row is done.
            self.up.confirmed = self.up.confirmed.max(mark.id - 1);
        }
    }

    async fn tell(&mut self) -> Result<(), Error> {
        self.told = Instant::now();
        match self.mark.take() {
            Some(mark) => self.up.store.acked(self.up.lane.number, mark).await,
            None => Ok(()),
        }
    }
}

async fn at(time: Option<Instant>) {
    if let Some(time) = time {
        sleep_until(time.into()).await;
    }
}
