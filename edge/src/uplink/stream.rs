//! One pass through a lane's rows: where it reads, what it read, what is on its way. Pure.
//!
//! A lane has one; while what waited follows behind what is new (`fresh_first`) it has two.
//! Change here: what a pass remembers. Not here: when anything is sent (`sending`).

use std::collections::VecDeque;

use super::window::Window;
use crate::{
    link::Upload,
    store::{Mark, OutboundRow},
};

/// A row of fewer bytes is small.
const SMALL: usize = 2 * 1024;

/// One pass.
#[derive(Debug, Default)]
pub(super) struct Stream {
    /// The last row all of which is confirmed.
    pub(super) confirmed: u64,
    /// The last row of the pass; `None`: it follows the lane.
    pub(super) upto: Option<u64>,
    /// All rows up to `upto` are read.
    ended: bool,
    /// How far the pass is confirmed.
    pub(super) mark: Option<Mark>,
    /// The same as epoch and next sequence, for a cloud that does not say where it is.
    pub(super) reached: Option<(i64, u64)>,
    /// The last row read.
    pub(super) cursor: u64,
    /// Rows up to here may have been sent, so they are never merged. `None`: nothing was read yet.
    pub(super) sent: Option<u64>,
    /// Read, not yet planned.
    pub(super) rows: VecDeque<OutboundRow>,
    /// Planned, not yet sent, with the mark each stands for.
    pub(super) uploads: VecDeque<(Mark, Upload)>,
    pub(super) window: Window,
    /// Nothing is stored after the cursor, as of this commit.
    pub(super) exhausted: Option<u64>,
    /// What is on its way travels alone.
    pub(super) alone: bool,
    /// The next upload has had its part of the bytes a second of old messages.
    pub(super) paid: bool,
}

impl Stream {
    /// After a row.
    pub(super) fn after(confirmed: u64) -> Self {
        Self { confirmed, cursor: confirmed, ..Self::default() }
    }

    /// After the last row there is: none of it was ever sent.
    pub(super) fn fresh(last: u64) -> Self {
        Self { sent: Some(last), ..Self::after(last) }
    }

    /// Back to what is confirmed.
    pub(super) fn rewind(&mut self) {
        *self = Self {
            upto: self.upto,
            mark: self.mark,
            reached: self.reached,
            sent: self.sent,
            ..Self::after(self.confirmed)
        };
    }

    /// Takes rows that were read after the cursor at commit number `commits`.
    pub(super) fn read(&mut self, mut rows: Vec<OutboundRow>, commits: u64) {
        if let Some(upto) = self.upto {
            let read = rows.len();
            rows.retain(|row| row.id <= upto);
            self.ended = read == 0 || rows.len() < read;
        }
        self.exhausted = rows.is_empty().then_some(commits);
        self.cursor = rows.last().map_or(self.cursor, |row| row.id);
        self.rows.extend(rows);
    }

    /// Nothing more is to be read.
    pub(super) fn all_read(&self) -> bool {
        self.ended
    }

    /// Reads again what comes after a row.
    pub(super) fn reread(&mut self, after: u64) {
        (self.cursor, self.ended) = (after, false);
    }

    /// All of it is confirmed.
    pub(super) fn done(&self) -> bool {
        self.ended && self.rows.is_empty() && self.uploads.is_empty() && self.window.is_empty()
    }

    /// The row after which rows are worth merging, and the last that may be, if `rows`, of which as many as `asked` were asked for, are mostly small.
    /// `window`: uploads that a process that ran before may have sent and not seen confirmed.
    pub(super) fn worth_merging(
        &mut self,
        rows: &[OutboundRow],
        asked: usize,
        window: usize,
    ) -> Option<(u64, u64)> {
        let last = rows.iter().take(window).last().map_or(0, |row| row.id);
        let sent = *self.sent.get_or_insert(last);
        let small = |row: &&OutboundRow| {
            row.id > sent && row.body.as_ref().is_some_and(|body| body.len() < SMALL)
        };
        let mostly = rows.len() >= asked && rows.iter().filter(small).count() * 2 > asked;
        // What is behind this pass is another's, and may be on its way.
        mostly.then(|| (self.cursor.max(sent), self.upto.unwrap_or(u64::MAX)))
    }
}
