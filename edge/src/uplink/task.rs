//! One lane's task: does what [`Sending`] says, with one connection at a time.
//!
//! In: rows of [`Store`], reports of a [`Link`]. Out: uploads, marks, give-ups, numbers, log lines.
//! Change here: how it is done. Not here: what is done (`sending`), MQTT (`link`).

use std::{
    pin::pin,
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use tokio::time::{sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tributary_shared::backoff::Backoff;

use super::{
    Settings,
    progress::{self, Line, Progress, Rates},
    sending::{MARK_EVERY, Note, Read, Sending, Step, Waiting},
    share::LaneShare,
};
use crate::{
    link::{Dial, Link, Report, Welcome, reasons},
    store::{Error, LaneHandle, Store},
};

/// A cloud that says to stay away is believed up to this.
const RETRY_MAX: Duration = Duration::from_mins(15);

/// What a lane's task works with.
#[derive(Debug)]
pub struct Part {
    /// An open store.
    pub store: Store,
    /// The lane.
    pub lane: LaneHandle,
    /// Its part of the line.
    pub share: LaneShare,
}

/// One lane's task.
#[derive(Debug)]
pub struct Uplink<D> {
    store: Store,
    lane: LaneHandle,
    dial: D,
    stop: CancellationToken,
    sending: Sending,
    progress: Progress,
    /// When the progress is looked at next.
    look: Instant,
    backoff: Backoff,
    /// The cloud said how long to stay away.
    retry_after: Option<Duration>,
    /// Confirmations when the backoff was last looked at.
    confirmed: u64,
}

/// Why a connection is over.
enum End {
    Stopped,
    Lost { why: String, progress: bool },
    Store(Error),
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

impl<D: Dial> Uplink<D> {
    /// For one lane.
    pub fn new(part: Part, dial: D, settings: Settings, stop: CancellationToken) -> Self {
        let Part { store, lane, share } = part;
        let ms = Duration::from_millis;
        Self {
            backoff: Backoff::new(ms(settings.backoff_min_ms), ms(settings.backoff_max_ms)),
            sending: Sending::new(
                settings,
                &lane.settings.clone().unwrap_or_default(),
                lane.status.acked_id.get(),
                share,
            )
            .with_names(&lane.renamed),
            progress: Progress::default(),
            look: now(),
            confirmed: 0,
            retry_after: None,
            store,
            lane,
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
                Err(why) => End::Lost { why, progress: false },
            };
            self.lane.status.connected.store(false, Relaxed);
            let rates = self.progress.stop();
            self.show(rates);
            let wait = match end {
                End::Stopped => return Ok(()),
                End::Store(error) => return Err(error),
                End::Lost { why, progress } => {
                    if progress {
                        self.backoff.reset();
                    }
                    let wait = self.wait().max(self.retry_after.take().unwrap_or_default());
                    tracing::warn!(lane = %self.lane.status.name, why, ?wait, "no connection to the cloud");
                    wait
                }
            };
            tokio::select! { () = stop.cancelled() => return Ok(()), () = sleep(wait) => {} }
        }
    }

    /// The next wait; a new series if anything was confirmed since the last.
    fn wait(&mut self) -> Duration {
        let confirmed = self.sending.done().uploads;
        if confirmed != self.confirmed {
            self.confirmed = confirmed;
            self.backoff.reset();
        }
        self.backoff.next_wait()
    }

    async fn connection(&mut self, mut link: Link, welcome: Welcome) -> End {
        tracing::info!(lane = %self.lane.status.name, epochs = welcome.expect.len(), "connected to the cloud");
        self.lane.status.connected.store(true, Relaxed);
        self.lane.status.connects.add(1);
        let waiting = self.waiting();
        self.sending.connected(welcome, waiting, now());
        self.look = now();
        let end = self.serve(&mut link).await.unwrap_or_else(|end| end);
        if let End::Stopped = end {
            self.sending.closed("stopped".to_owned(), None);
            // What was confirmed and not yet told; losing it would only cost a resend.
            if let Step::Tell(mark) = self.sending.next(now(), 0)
                && let Err(error) = self.store.acked(self.lane.number, mark).await
            {
                return End::Store(error);
            }
            link.close().await;
        }
        end
    }

    async fn serve(&mut self, link: &mut Link) -> Result<End, End> {
        let mut progress = self.store.progress();
        loop {
            let commits = progress.borrow_and_update().commits;
            let look = self.look_around();
            match self.sending.next(now(), commits) {
                Step::Send(upload) => {
                    self.lane.status.sent_bytes.add(upload.payload.len() as u64);
                    if let Err(why) = link.send(upload) {
                        self.sending.closed(why, None);
                    }
                }
                Step::Read(read) => self.read(link, read, commits).await?,
                Step::GiveUp { id, range, reason } => {
                    tracing::error!(
                        lane = %self.lane.status.name, id, ?range, reason,
                        "messages are given up: see quarantine"
                    );
                    let store = self.store.clone();
                    self.meanwhile(link, store.give_up(id, range, reason)).await?;
                }
                step @ (Step::Tell(_) | Step::TellAhead(..)) => self.tell_store(step).await?,
                Step::Backoff(code) => {
                    let wait = self.wait();
                    let why = reasons::words(code);
                    tracing::warn!(
                        lane = %self.lane.status.name, code = format!("{code:#04x}"), why, ?wait,
                        "the cloud takes nothing now; nothing is lost"
                    );
                    self.sending.paused(now() + wait);
                }
                Step::Say(note) => self.say(&note),
                Step::End { why, progress } => return Ok(End::Lost { why, progress }),
                Step::NewEpoch => {
                    let (store, lane) = (self.store.clone(), self.lane.number);
                    let last = self.meanwhile(link, store.new_epoch(lane)).await?;
                    self.sending.fresh_after(last, now());
                }
                Step::Rename { epoch, from } => {
                    let (store, lane) = (self.store.clone(), self.lane.number);
                    let name = self.meanwhile(link, store.rename(lane, epoch, from)).await?;
                    self.sending.renamed(name);
                }
                Step::Wait { until, commits } => tokio::select! {
                    () = self.stop.cancelled() => return Ok(End::Stopped),
                    report = link.report() => self.take(report),
                    changed = progress.changed(), if commits => if changed.is_err() {
                        return Err(End::Store(Error::Closed));
                    },
                    () = at(until), if until.is_some() => {}
                    () = at(look), if look.is_some() => {}
                },
            }
        }
    }

    fn take(&mut self, report: Report) {
        match report {
            Report::Answered(token, answer) => self.sending.answered(token, answer, now()),
            Report::Heard => self.sending.heard(now()),
            Report::RetryAfter(wait) => self.retry_after = Some(wait.min(RETRY_MAX)),
            Report::Clash(epoch) => self.sending.clashed(epoch),
            Report::Closed { why, refused } => self.sending.closed(why, refused),
        }
    }

    /// Waits for the store. It may wait for room that only what the cloud confirms makes: that goes on meanwhile.
    async fn meanwhile<T>(
        &mut self,
        link: &mut Link,
        answer: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, End> {
        let mut answer = pin!(answer);
        let mut open = true;
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => return Ok(answer?),
                () = self.stop.cancelled() => return Err(End::Stopped),
                report = link.report(), if open => {
                    open = !matches!(report, Report::Closed { .. });
                    self.take(report);
                }
                () = sleep(MARK_EVERY) => {}
            }
            while let Some(step) = self.sending.confirmed(now()) {
                self.tell_store(step).await?;
            }
        }
    }

    async fn tell_store(&self, step: Step) -> Result<(), Error> {
        match step {
            Step::Tell(mark) => self.store.acked(self.lane.number, mark).await,
            Step::TellAhead(after, mark) => {
                self.store.acked_ahead(self.lane.number, after, mark).await
            }
            _ => Ok(()),
        }
    }

    async fn read(&mut self, link: &mut Link, read: Read, commits: u64) -> Result<(), End> {
        let (store, lane) = (self.store.clone(), self.lane.number);
        let mut rows = store.read_lane(lane, read.after, read.rows, read.bytes).await?;
        if let Some((after, upto)) = self.sending.worth_merging(read, &rows)
            && self.meanwhile(link, store.merge(lane, after, upto)).await? > 0
        {
            rows = store.read_lane(lane, read.after, read.rows, read.bytes).await?;
        }
        self.sending.rows(read, rows, commits);
        Ok(())
    }

    fn waiting(&self) -> Waiting {
        let status = &self.lane.status;
        let oldest = status.oldest_ms.load(Relaxed);
        let age = tributary_shared::clock::wall_ms().saturating_sub(oldest);
        Waiting {
            messages: status.messages.get(),
            bytes: status.bytes.get(),
            oldest_s: if oldest == 0 { 0 } else { u64::try_from(age / 1000).unwrap_or(0) },
        }
    }

    /// Looks at the progress if it is time to; says when it is next, if there is any.
    fn look_around(&mut self) -> Option<Instant> {
        if now() >= self.look {
            self.look = now() + progress::EVERY;
            let (rates, line) = self.progress.look(now(), self.sending.done(), self.waiting());
            self.show(rates);
            if let Some(line) = line {
                self.tell(line, rates);
            }
        }
        let active = !self.progress.is_quiet() || self.waiting().messages > 0;
        active.then_some(self.look)
    }

    fn show(&self, rates: Rates) {
        let status = &self.lane.status;
        for (place, rate) in [rates.short, rates.long].into_iter().enumerate() {
            if let (Some(messages), Some(bytes)) =
                (status.messages_per_s.get(place), status.bytes_per_s.get(place))
            {
                messages.set(rate.messages);
                bytes.set(rate.bytes);
            }
        }
        let drain = rates.drain_s.and_then(|seconds| i64::try_from(seconds).ok()).unwrap_or(-1);
        status.drain_s.store(drain, Relaxed);
        status.catching_up.store(rates.catching_up, Relaxed);
    }

    fn tell(&self, line: Line, rates: Rates) {
        let (lane, waiting) = (&self.lane.status.name, self.waiting());
        let Waiting { messages, bytes, oldest_s } = waiting;
        match line {
            Line::Begins => tracing::info!(
                %lane, messages, bytes, oldest_s, fresh_first = self.sending.is_divided(),
                "catching up"
            ),
            Line::Goes { done, took } => tracing::info!(
                %lane, messages, bytes, oldest_s, sent = done.messages, sent_bytes = done.bytes,
                seconds = took.as_secs(), messages_per_s = rates.short.messages,
                bytes_per_s = rates.short.bytes, left_s = rates.drain_s, "still catching up"
            ),
            Line::Ends { done, took } => tracing::info!(
                %lane, sent = done.messages, sent_bytes = done.bytes, ?took, "caught up"
            ),
        }
    }

    fn say(&self, note: &Note) {
        let lane = &self.lane.status.name;
        match note {
            Note::Rewind => self.lane.status.rewinds.add(1),
            Note::Searching { epoch, range, code } => tracing::warn!(
                %lane, epoch, ?range, code = format!("{code:#04x}"), why = reasons::words(*code),
                "the cloud refuses a batch: searching for the message"
            ),
            Note::Storm { code, wait } => tracing::error!(
                %lane, code = format!("{code:#04x}"), why = reasons::words(*code), ?wait,
                "the cloud refuses nearly every message: check its settings; the rest waits here"
            ),
            Note::Clash { epoch, from } => tracing::error!(
                %lane, epoch, from,
                "another gateway goes on from this one's memory (a snapshot resumed twice?) and has sent other messages under its \
                 epoch: what waits here goes under a new one; give one of the two another id once its messages \
                 are at the cloud"
            ),
            Note::GapRefused(code) => tracing::error!(
                %lane, code = format!("{code:#04x}"), why = reasons::words(*code),
                "the cloud does not take the record that says what was given up"
            ),
        }
    }
}

/// The time as the runtime has it: tests and simulations hold it.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

async fn at(time: Option<Instant>) {
    if let Some(time) = time {
        sleep_until(time.into()).await;
    }
}
