//! What is on its way to the cloud, in the order it was sent. Pure.
//!
//! Holds: one entry an upload; answers may come in any order, the mark moves only over the front.

use std::{collections::VecDeque, time::Instant};

use crate::{link::Answer, store::Mark};

/// One upload, or a row that the cloud had already.
#[derive(Debug)]
pub(super) struct Entry {
    /// How far the lane is confirmed once this is.
    pub(super) mark: Mark,
    pub(super) epoch: i64,
    pub(super) bytes: usize,
    /// `None`: nothing was sent for it.
    pub(super) token: Option<u64>,
    pub(super) sent: Instant,
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

    /// One more upload of `bytes` fits.
    pub(super) fn has_room(&self, uploads: usize, bytes: usize, next: usize) -> bool {
        self.sent < uploads && (self.sent == 0 || self.bytes + next <= bytes)
    }

    /// Notes an answer; gives the epoch it is about.
    pub(super) fn answer(&mut self, token: u64, answer: Answer) -> Option<i64> {
        let entry = self.entries.iter_mut().find(|entry| entry.token == Some(token))?;
        entry.answer = Some(answer);
        Some(entry.epoch)
    }

    /// Takes what is confirmed from the front: the epochs and ends, and the last mark.
    pub(super) fn confirmed(&mut self) -> Vec<(i64, Mark)> {
        let mut out = Vec::new();
        while let Some(entry) =
            self.entries.pop_front_if(|entry| matches!(entry.answer, Some(Answer::Done)))
        {
            self.bytes -= entry.bytes;
            self.sent -= usize::from(entry.token.is_some());
            out.push((entry.epoch, entry.mark));
        }
        out
    }

    /// The oldest that has no answer.
    pub(super) fn oldest_unanswered(&self) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.answer.is_none())
    }

    /// The oldest that was refused for good.
    pub(super) fn first_refused(&self) -> Option<(u64, u8)> {
        self.entries.iter().find_map(|entry| match entry.answer {
            Some(Answer::Never(code)) => Some((entry.mark.id, code)),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(token: u64, bytes: usize) -> Entry {
        let mark = Mark { id: token + 10, end: token + 1 };
        Entry { mark, epoch: 1, bytes, token: Some(token), sent: Instant::now(), answer: None }
    }

    #[test]
    fn the_mark_moves_only_over_an_unbroken_front() {
        let mut window = Window::default();
        (0..3).for_each(|token| window.push(entry(token, 5)));
        window.answer(1, Answer::Done);
        assert!(window.confirmed().is_empty());
        window.answer(0, Answer::Done);
        assert_eq!(window.confirmed().last().unwrap().1, Mark { id: 11, end: 2 });
        assert_eq!(window.oldest_unanswered().unwrap().token, Some(2));
        window.answer(2, Answer::Never(0x99));
        assert!(window.oldest_unanswered().is_none());
        assert_eq!(window.first_refused(), Some((12, 0x99)));
    }

    #[test]
    fn one_upload_always_fits_and_then_bytes_and_count_decide() {
        let mut window = Window::default();
        assert!(window.has_room(2, 10, 100));
        window.push(entry(0, 8));
        assert!(window.has_room(2, 10, 2));
        assert!(!window.has_room(2, 10, 3));
        window.push(entry(1, 1));
        assert!(!window.has_room(2, 10, 1));
    }
}
