//! Which message belongs to which upload, and how many may be under way.
//!
//! In: messages given to the client, packet ids on the wire, PUBACKs. Out: answers to uploads. Pure but for the time.
//! Change here: when an upload is answered. Not here: what a message looks like (`plain`), why they go one at a time (`care`).

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use super::care::Care;
use crate::link::{Answer, Report};

/// The uplink hears of single answers at most so often.
const HEARD_EVERY: Duration = Duration::from_millis(50);

/// Which message belongs to which upload: the feeder adds, the pump takes.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) books: Arc<Mutex<Books>>,
    /// Messages that may be given to the client.
    pub(super) room: Arc<Semaphore>,
    pub(super) care: Care,
}

#[derive(Default)]
pub(super) struct Books {
    /// Of messages given to the client and not yet on the wire, in order.
    pub(super) given: VecDeque<(u64, OwnedSemaphorePermit)>,
    /// By packet id.
    pub(super) sent: HashMap<u16, (u64, OwnedSemaphorePermit)>,
    pub(super) uploads: HashMap<u64, Left>,
    /// Uploads answered on this connection.
    pub(super) reported: u64,
    /// Room that is held back while messages go one at a time.
    pub(super) spare: usize,
    /// When the uplink last heard of an answer.
    pub(super) heard: Option<Instant>,
}

/// What an upload still waits for.
#[derive(Clone, Copy)]
pub(super) struct Left {
    pub(super) messages: usize,
    /// Of so many.
    pub(super) all: usize,
    pub(super) answer: Answer,
    pub(super) gap: bool,
}

impl Shared {
    pub(super) fn new(care: Care, in_flight: usize) -> Self {
        let spare = if care.is_careful() { in_flight - 1 } else { 0 };
        let books = Books { spare, ..Books::default() };
        let room = Arc::new(Semaphore::new(in_flight - spare));
        Self { books: Arc::new(Mutex::new(books)), room, care }
    }

    /// A message with this packet id is answered.
    pub(super) fn answered(&self, id: u16, answer: Answer) -> Option<Report> {
        let mut books = self.books();
        let (token, _permit) = books.sent.remove(&id)?;
        let Some(upload) = books.answered(token, answer) else {
            let now = Instant::now();
            let due = books.heard.is_none_or(|heard| now >= heard + HEARD_EVERY);
            books.heard = if due { Some(now) } else { books.heard };
            return due.then_some(Report::Heard);
        };
        self.care.answered(upload.answer, upload.all);
        if !self.care.is_careful() {
            self.room.add_permits(std::mem::take(&mut books.spare));
        }
        Some(report(token, upload))
    }

    pub(super) fn books(&self) -> MutexGuard<'_, Books> {
        // Each change is one call, whole whatever panicked elsewhere.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection is over.
    pub(super) fn lost(&self) {
        let books = self.books();
        if !books.sent.is_empty() || !books.given.is_empty() {
            self.care.lost(books.reported > 0);
        }
    }
}

impl Books {
    /// One message of `token` is answered; the upload, if that settles it: the last one is, or one is refused for good. The
    /// rest of a refused upload is not waited for, it is sent again in parts.
    pub(super) fn answered(&mut self, token: u64, answer: Answer) -> Option<Left> {
        let left = self.uploads.get_mut(&token)?;
        left.messages = left.messages.saturating_sub(1);
        left.answer = worse(left.answer, answer);
        let upload = *left;
        if upload.messages > 0 && !matches!(upload.answer, Answer::Never(_)) {
            return None;
        }
        self.uploads.remove(&token);
        self.reported += 1;
        Some(upload)
    }
}

fn report(token: u64, upload: Left) -> Report {
    if let (true, Answer::Never(code)) = (upload.gap, upload.answer) {
        // It is known here already, in numbers and log; a broker that will not hear it is not told again for ever.
        tracing::warn!(code, "the broker takes no message about what was given up");
        return Report::Answered(token, Answer::Done);
    }
    Report::Answered(token, upload.answer)
}

/// A refusal for good says which messages to look at, whatever else there is.
fn worse(one: Answer, other: Answer) -> Answer {
    let rank = |answer: &Answer| match answer {
        Answer::Done => 0,
        Answer::Expected(_) => 1,
        Answer::NotNow(_) => 2,
        Answer::Never(_) => 3,
    };
    if rank(&other) > rank(&one) { other } else { one }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::plain::care::{CAREFUL, FRUITLESS};

    /// `n` messages of upload `token` are on the wire, with packet ids from `id` on.
    fn send(shared: &Shared, token: u64, id: u16, n: u16) {
        let mut books = shared.books();
        for id in id..id + n {
            let permit = shared.room.clone().try_acquire_owned().unwrap();
            books.sent.insert(id, (token, permit));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn messages_go_one_at_a_time_to_the_end_of_an_upload_and_then_as_many_as_the_broker_takes()
     {
        let care = Care::default();
        (0..FRUITLESS).for_each(|_| care.lost(false));
        let shared = Shared::new(care.clone(), 10);
        let all = CAREFUL + 44;
        let left = Left { messages: all, all, answer: Answer::Done, gap: false };
        shared.books().uploads.insert(0, left);
        let mut heard = 0;
        for message in 1..all {
            send(&shared, 0, 1, 1);
            assert_eq!(shared.room.available_permits(), 0, "alone");
            tokio::time::advance(HEARD_EVERY / 2).await;
            match shared.answered(1, Answer::Done) {
                Some(Report::Heard) => heard += 1,
                None => {}
                other => panic!("{message}: {other:?}"),
            }
            assert!(care.is_careful(), "{message}");
        }
        assert_eq!(heard, all / 2, "the uplink hears of it, but not of each");
        send(&shared, 0, 1, 1);
        let done = Report::Answered(0, Answer::Done);
        assert_eq!(shared.answered(1, Answer::Done), Some(done));
        assert_eq!((care.is_careful(), shared.room.available_permits()), (false, 10));
    }

    #[test]
    fn an_upload_is_answered_with_its_last_message_and_refused_with_the_first_that_is() {
        let mut books = Books::default();
        let left = Left { messages: 3, all: 3, answer: Answer::Done, gap: false };
        books.uploads.extend([(0, left), (1, left), (2, Left { gap: true, messages: 1, ..left })]);
        let mut answered =
            |token, answer| books.answered(token, answer).map(|upload| report(token, upload));
        assert_eq!(answered(0, Answer::Done), None);
        assert_eq!(answered(0, Answer::NotNow(0x97)), None);
        let not_now = Report::Answered(0, Answer::NotNow(0x97));
        assert_eq!(answered(0, Answer::Done), Some(not_now));
        let never = Report::Answered(1, Answer::Never(0x87));
        assert_eq!(answered(1, Answer::Never(0x87)), Some(never));
        assert_eq!(answered(1, Answer::Done), None);
        let done = Report::Answered(2, Answer::Done);
        assert_eq!(answered(2, Answer::Never(0x87)), Some(done));
    }
}
