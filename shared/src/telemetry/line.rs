//! A log line is one line: what peers say in it cannot begin another, nor speak to a terminal.
//!
//! In: whole lines, as formatted. Out: the same with control characters, and those that turn text around, in escaped form.
//! Change here: what is escaped. Not here: how many lines there are (`limit`).

use std::{
    fmt::Write as _,
    io::{self, Write},
};

/// Writes each line to `W` at once. One call of `write` is one line.
#[derive(Debug)]
pub(super) struct Escaped<W>(pub(super) W);

impl<W: Write> Write for Escaped<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.write_all(escaped(&String::from_utf8_lossy(line)).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// The escapes that JSON has: a line may be JSON already, and then has no control characters below 0x20 left.
fn escaped(line: &str) -> String {
    let (text, end) = line.strip_suffix('\n').map_or((line, ""), |text| (text, "\n"));
    let mut out = String::with_capacity(line.len());
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            // Line ends of Unicode, and marks that reverse what is read.
            '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => escape(&mut out, c),
            c if c.is_control() => escape(&mut out, c),
            c => out.push(c),
        }
    }
    out + end
}

fn escape(out: &mut String, c: char) {
    let _ = write!(out, "\\u{:04x}", u32::from(c)); // A string takes everything.
}

/// The beginning of what a peer said, for a log line.
pub fn brief(text: &str) -> &str {
    text.get(..text.floor_char_boundary(64)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_a_peer_says_stays_in_its_line_and_is_no_command_to_a_terminal() {
        let evil = "ann\n2026-01-01 INFO all is well\r\x1b[2J\u{7f}\u{9b}\u{2028}\u{202e}\u{85}";
        for json in [false, true] {
            let kept = Kept::default();
            let writer = kept.clone();
            let lines = tracing_subscriber::fmt()
                .with_ansi(false)
                .with_writer(move || Escaped(writer.clone()));
            let log = || {
                tracing::info!(user = evil, topic = %evil, other = ?evil, "refused: {evil}");
            };
            if json {
                tracing::subscriber::with_default(lines.json().finish(), log);
            } else {
                tracing::subscriber::with_default(lines.finish(), log);
            }
            let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
            let line = text.strip_suffix('\n').unwrap();
            assert!(
                !line.contains(|c: char| c.is_control() || ('\u{2028}'..='\u{202e}').contains(&c)),
                "{line}"
            );
            assert!(line.contains("ann\\n2026"), "{line}");
            if json {
                let value: serde_json::Value = serde_json::from_str(line).unwrap();
                assert_eq!(value["fields"]["user"], evil);
            }
        }
    }

    #[test]
    fn names_are_cut_at_a_character() {
        assert_eq!(brief("short"), "short");
        assert_eq!(brief(&"é".repeat(100)), "é".repeat(32));
    }
}
