//! What is on its way to the cloud, in the order it was sent. Pure.
//!
//! Holds: one entry an upload; answers may come in any order, the mark moves only over the front.
//! Change here: what is remembered of an upload. Not here: how much may be under way (`pace`).

use std::{collections::VecDeque, ops::Range, time::Instant};

use super::pace::Stamp;
use crate::{link::Answer, store::Mark};

/// One upload, or a row that the cloud had already.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// How far the lane is confirmed once this is.
    pub(super) mark: Mark,
    pub(super) epoch: i64,
    pub(super) range: Range<u64>,
    /// It says that the range was given up.
    pub(super) gap: bool,
    pub(super) bytes: usize,
    /// `None`: nothing was sent for it.
    pub(super) token: Option<u64>,
    pub(super) sent: Instant,
    pub(super) stamp: Stamp,
    pub(super) answer: Option<Answer>,
}

/// The entries.
#[derive(Debug, Default)]
pub(super) struct Window {
    entries: VecDeque<Entry>,
    bytes: usize,
    sent: usize,
}

impl Window {
    pub(super) fn push(&mut self, entry: Entry) {
        self.bytes += entry.bytes;
        self.sent += usize::from(entry.token.is_some());
        self.entries.push_back(entry);
    }

    /// Uploads, and their bytes.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.sent, self.bytes)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The epoch of what is under way: there is one at a time.
    pub(super) fn epoch(&self) -> Option<i64> {
        self.entries.front().map(|entry| entry.epoch)
    }

    /// The first sequence of `epoch` that is under way.
    pub(super) fn first(&self, epoch: i64) -> Option<u64> {
        self.entries.front().filter(|entry| entry.epoch == epoch).map(|entry| entry.range.start)
    }

    /// Notes an answer; gives what it is about.
    pub(super) fn answer(&mut self, token: u64, answer: Answer) -> Option<&Entry> {
        let entry = self.entries.iter_mut().find(|entry| entry.token == Some(token))?;
        entry.answer = Some(answer);
        Some(entry)
    }

    /// Takes what is confirmed from the front.
    pub(super) fn confirmed(&mut self) -> Option<Entry> {
        let done = |entry: &mut Entry| matches!(entry.answer, Some(Answer::Done));
        let entry = self.entries.pop_front_if(done)?;
        self.bytes -= entry.bytes;
        self.sent -= usize::from(entry.token.is_some());
        Some(entry)
    }

    /// Those that have no answer, oldest first.
    pub(super) fn unanswered(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| entry.answer.is_none())
    }

    /// The front, if it was refused for good: all before it is confirmed.
    pub(super) fn refused(&self) -> Option<(&Entry, u8)> {
        match self.entries.front() {
            Some(entry) => match entry.answer {
                Some(Answer::Never(code)) => Some((entry, code)),
                _ => None,
            },
            None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_moves_only_over_an_unbroken_front() {
        let mut window = Window::default();
        for token in 0..3 {
            window.push(Entry {
                mark: Mark { id: token + 10, end: token + 1 },
                epoch: 1,
                range: token..token + 1,
                gap: false,
                bytes: 5,
                token: Some(token),
                sent: Instant::now(),
                stamp: Stamp::default(),
                answer: None,
            });
        }
        window.answer(1, Answer::Done);
        assert!(window.confirmed().is_none());
        window.answer(0, Answer::Done);
        assert_eq!(window.confirmed().map(|entry| entry.range), Some(0..1));
        assert_eq!(window.confirmed().map(|entry| entry.mark), Some(Mark { id: 11, end: 2 }));
        assert_eq!((window.size(), window.unanswered().count()), ((1, 5), 1));
        window.answer(2, Answer::Never(0x99));
        assert_eq!(window.unanswered().count(), 0);
        assert_eq!(window.refused().map(|(entry, code)| (entry.mark.id, code)), Some((12, 0x99)));
    }
}
