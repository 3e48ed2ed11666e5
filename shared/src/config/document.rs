//! The settings file that explains itself: every key with its meaning, its bounds and its default.

use std::{fmt::Write, path::Path};

use serde::Serialize;
use toml::{Table, Value};

use super::{Documented, Field, Kind};

/// Set to 1, tests write the files that they would else compare (`scripts/fix` does).
const WRITE: &str = "WRITE_REFERENCE";

/// A settings file for `program` in which every key stands with its default, commented out.
pub fn reference<T: Default + Serialize + Documented>(program: &str) -> String {
    let mut out = String::new();
    comment(T::ABOUT, &mut out);
    comment(
        &format!(
            "\nEvery key of {program}, with its default. Take the `#` off to change one. The order is:\n\
             this file, then environment variables (section.key is TRIBUTARY_SECTION__KEY), then flags.\n\
             An unknown key or a bad value stops the program with an error that names it.\n"
        ),
        &mut out,
    );
    let defaults = Table::try_from(T::default()).unwrap_or_default();
    section("", &T::fields(), &defaults, &mut out);
    out
}

/// Whether the committed file at `path` is `generated`; the error says what to do. For a test in each program.
pub fn is_current(path: &Path, generated: &str) -> Result<(), String> {
    if std::env::var_os(WRITE).is_some_and(|value| value == "1") {
        return std::fs::write(path, generated).map_err(|e| format!("{}: {e}", path.display()));
    }
    match std::fs::read_to_string(path) {
        Ok(text) if text == generated => Ok(()),
        _ => Err(format!("{} is not what the settings say: run scripts/fix", path.display())),
    }
}

/// Values first, then the sections inside: TOML has no way back to a table.
fn section(path: &str, fields: &[Field], defaults: &Table, out: &mut String) {
    for field in fields.iter().filter(|field| matches!(field.kind, Kind::Value)) {
        out.push('\n');
        explain(field, out);
        // Writing to a String cannot fail.
        let _ = match defaults.get(field.name) {
            Some(value) => writeln!(out, "#{} = {value}", field.name),
            None => writeln!(out, "#{} =    # not set", field.name),
        };
    }
    for field in fields {
        let name =
            if path.is_empty() { field.name.to_owned() } else { format!("{path}.{}", field.name) };
        let default = defaults.get(field.name);
        match field.kind {
            Kind::Value => {}
            Kind::Section(fields) => {
                out.push('\n');
                explain(field, out);
                let _ = writeln!(out, "[{name}]");
                let none = Table::new();
                section(&name, &fields(), default.and_then(Value::as_table).unwrap_or(&none), out);
            }
            Kind::List(fields) => list(&name, field, &fields(), default, out),
        }
    }
}

/// A list's entries: what one may hold, then the default ones, all commented out.
fn list(name: &str, field: &Field, fields: &[Field], default: Option<&Value>, out: &mut String) {
    out.push('\n');
    explain(field, out);
    comment("One section an entry, with these keys:\n", out);
    for key in fields {
        let mut lines = key.doc.lines().map(str::trim);
        let _ = writeln!(out, "#   {}: {}", key.name, lines.next().unwrap_or_default());
        for line in lines {
            let _ = writeln!(out, "#     {line}");
        }
    }
    let entries = default.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    for entry in entries {
        let _ = writeln!(out, "#[[{name}]]");
        for (key, value) in entry.as_table().into_iter().flatten() {
            let _ = writeln!(out, "#{key} = {value}");
        }
    }
}

fn explain(field: &Field, out: &mut String) {
    comment(field.doc, out);
    if let Some(allowed) = field.allowed {
        comment(&format!("Allowed: {allowed}.\n"), out);
    }
}

fn comment(text: &str, out: &mut String) {
    for line in text.lines() {
        out.push_str(format!("# {}", line.trim()).trim_end());
        out.push('\n');
    }
}
