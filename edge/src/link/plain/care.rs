//! Whether messages go one at a time, because of what connections so far were like.
//!
//! In: how uploads were answered, how connections ended. Out: yes or no. Change here: when, and for how long.
//! Not here: doing it (`books`).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::link::Answer;

/// Connections in a row without an answer, after which messages go one at a time; and how many of them do, at least.
pub(super) const FRUITLESS: u32 = 3;
pub(super) const CAREFUL: usize = 256;

/// Whether messages go one at a time; shared by the connections of a lane.
#[derive(Debug, Clone, Default)]
pub struct Care(Arc<Mutex<Experience>>);

#[derive(Debug, Default)]
struct Experience {
    /// Connections in a row that ended with messages under way and no upload answered.
    fruitless: u32,
    /// Messages that still go one at a time.
    careful: usize,
}

impl Care {
    fn state(&self) -> MutexGuard<'_, Experience> {
        // Numbers only: whole whatever panicked elsewhere.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_careful(&self) -> bool {
        self.state().careful > 0
    }

    /// An upload of so many messages was answered.
    pub(super) fn answered(&self, answer: Answer, messages: usize) {
        let mut state = self.state();
        state.careful = match answer {
            Answer::Never(_) => CAREFUL,
            _ => state.careful.saturating_sub(messages),
        };
    }

    /// A connection ended with messages under way; `fruit`: an upload was answered before. Single messages do not count:
    /// in a reset some answers are lost and some are not.
    pub(super) fn lost(&self, fruit: bool) {
        let mut state = self.state();
        state.fruitless = if fruit { 0 } else { state.fruitless + 1 };
        if state.fruitless >= FRUITLESS {
            state.careful = CAREFUL;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_connections_without_an_answer_messages_go_one_at_a_time_for_a_while() {
        let care = Care::default();
        for _ in 0..FRUITLESS {
            assert!(!care.is_careful());
            care.lost(false);
        }
        for _ in 0..CAREFUL / 2 {
            assert!(care.is_careful());
            care.answered(Answer::Done, 2);
        }
        assert!(!care.is_careful());
        care.answered(Answer::Never(0x87), 2);
        assert!(care.is_careful());
    }

    #[test]
    fn a_line_that_breaks_now_and_then_is_no_reason_to_go_slowly() {
        let care = Care::default();
        for _ in 0..10 {
            care.lost(false);
            care.lost(false);
            care.lost(true);
        }
        assert!(!care.is_careful());
    }
}
