//! The last warnings and errors of the process, for pages that show them: what a log file would say, without a log file.
//!
//! Holds: a few lines, each cut, the same one again counted and not kept twice. In: every event of level `warn` or `error`
//! that is logged. Change here: how much is kept. Not here: where log lines go (`telemetry`), who shows these.

use std::{
    collections::VecDeque,
    fmt::{Debug, Write as _},
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::layer::Context;

use crate::clock::wall_ms;

/// Lines kept; the oldest goes.
const LINES: usize = 20;

/// Bytes of one.
const BYTES: usize = 300;

static KEPT: Mutex<VecDeque<Problem>> = Mutex::new(VecDeque::new());

/// Something that was warned of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// When it was logged last, ms since 1970.
    pub at_ms: i64,
    /// `warn` or `error`.
    pub level: String,
    /// What it said.
    pub text: String,
    /// How often since it was new.
    pub times: u64,
}

/// The latest first.
pub fn problems() -> Vec<Problem> {
    kept().iter().rev().cloned().collect()
}

fn kept() -> MutexGuard<'static, VecDeque<Problem>> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes what is logged.
#[derive(Debug)]
pub struct Layer;

impl<S: Subscriber> tracing_subscriber::Layer<S> for Layer {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let level = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warn",
            _ => return,
        };
        let mut text = Text::default();
        event.record(&mut text);
        keep(&mut kept(), level, text.line(), wall_ms());
    }
}

fn keep(kept: &mut VecDeque<Problem>, level: &str, text: String, at_ms: i64) {
    let known = kept.iter().position(|one| one.text == text && one.level == level);
    let times = known.and_then(|at| kept.remove(at)).map_or(1, |one| one.times + 1);
    if kept.len() == LINES {
        kept.pop_front();
    }
    kept.push_back(Problem { at_ms, level: level.to_owned(), text, times });
}

/// Message first, then fields.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        // Writing to a string does not fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            // Different each time; nobody needs it to know what is wrong.
            "wait" => Ok(()),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

impl Text {
    fn line(self) -> String {
        let mut line = self.message + &self.fields;
        if line.len() > BYTES {
            line.truncate(line.floor_char_boundary(BYTES));
            line.push('…');
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_few_are_kept_and_one_that_comes_again_is_counted() {
        let mut kept = VecDeque::new();
        for at in 0..30_i64 {
            keep(&mut kept, "warn", format!("number {at}"), at);
            keep(&mut kept, "error", "again".to_owned(), at);
        }
        assert_eq!(kept.len(), LINES);
        let again = kept.back().unwrap();
        assert_eq!((again.times, again.at_ms, &*again.level), (30, 29, "error"));
        assert_eq!(kept.front().unwrap().text, "number 11");
    }

    #[test]
    fn a_line_is_cut_at_a_character() {
        let text = Text { message: "é".repeat(200), fields: " a=1".to_owned() };
        let line = text.line();
        assert!(line.len() <= BYTES + 3 && line.ends_with("é…"), "{line}");
    }
}
