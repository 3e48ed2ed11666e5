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

static KEPT: Mutex<VecDeque<Kept>> = Mutex::new(VecDeque::new());

/// Fields that do not make it another problem: who else has it, and how much of it there is.
const SAME: [&str; 3] = ["peer", "address", "lines"];

#[derive(Debug)]
struct Kept {
    /// What makes it the same one: the text without the fields of `SAME`.
    like: String,
    problem: Problem,
}

/// Something that was warned of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// When it was logged last, ms since 1970.
    pub at_ms: i64,
    /// `warn` or `error`.
    pub level: String,
    /// What it said, the last time.
    pub text: String,
    /// How often since it was new.
    pub times: u64,
}

/// The latest first.
pub fn problems() -> Vec<Problem> {
    kept().iter().rev().map(|one| one.problem.clone()).collect()
}

fn kept() -> MutexGuard<'static, VecDeque<Kept>> {
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
        keep(&mut kept(), level, text, wall_ms());
    }
}

fn keep(kept: &mut VecDeque<Kept>, level: &str, text: Text, at_ms: i64) {
    let Text { message, fields, like } = text;
    let like = line(message.clone() + &like);
    let known = kept.iter().position(|one| one.like == like && one.problem.level == level);
    let times = known.and_then(|at| kept.remove(at)).map_or(1, |one| one.problem.times + 1);
    if kept.len() == LINES {
        kept.pop_front();
    }
    let text = line(message + &fields);
    let problem = Problem { at_ms, level: level.to_owned(), text, times };
    kept.push_back(Kept { like, problem });
}

/// Message first, then fields.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
    /// The fields that tell one problem from another.
    like: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        // Writing to a string does not fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            // Different each time; nobody needs it to know what is wrong.
            "wait" => Ok(()),
            name => {
                let from = self.fields.len();
                let written = write!(self.fields, " {name}={value:?}");
                if !SAME.contains(&name) {
                    self.like.push_str(self.fields.get(from..).unwrap_or_default());
                }
                written
            }
        };
    }
}

/// Not longer than is kept.
fn line(mut line: String) -> String {
    if line.len() > BYTES {
        line.truncate(line.floor_char_boundary(BYTES));
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    fn text(message: impl Into<String>) -> Text {
        Text { message: message.into(), ..Text::default() }
    }

    #[test]
    fn the_last_few_are_kept_and_one_that_comes_again_is_counted() {
        let mut kept = VecDeque::new();
        for at in 0..30_i64 {
            keep(&mut kept, "warn", text(format!("number {at}")), at);
            keep(&mut kept, "error", text("again"), at);
        }
        assert_eq!(kept.len(), LINES);
        let again = &kept.back().unwrap().problem;
        assert_eq!((again.times, again.at_ms, &*again.level), (30, 29, "error"));
        assert_eq!(kept.front().unwrap().problem.text, "number 11");
    }

    #[test]
    fn a_line_is_cut_at_a_character() {
        let line = line("é".repeat(200) + " a=1");
        assert!(line.len() <= BYTES + 3 && line.ends_with("é…"), "{line}");
    }

    /// Of somebody who floods us there is a summary each minute, and each names another number.
    #[test]
    fn who_and_how_many_make_no_other_problem() {
        let log = tracing_subscriber::registry().with(Layer);
        tracing::subscriber::with_default(log, || {
            tracing::error!(disk = "full", "a real problem");
            for lines in 0..30_u64 {
                tracing::warn!(like = "refused", lines, "lines were left out");
                tracing::warn!(peer = %format_args!("192.0.2.{lines}:1"), "somebody is refused");
                tracing::warn!(address = lines, wait = lines, "somebody guesses");
            }
        });
        let all = problems();
        let find = |text: &str| all.iter().find(|one| one.text == text).map(|one| one.times);
        assert_eq!(find("a real problem disk=\"full\""), Some(1), "{all:?}");
        assert_eq!(find("lines were left out like=\"refused\" lines=29"), Some(30), "{all:?}");
        assert_eq!(find("somebody is refused peer=192.0.2.29:1"), Some(30), "{all:?}");
        assert_eq!(find("somebody guesses address=29"), Some(30), "{all:?}");
    }
}
