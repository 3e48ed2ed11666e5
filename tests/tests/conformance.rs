//! The tables of docs/reference/ that name tests name tests that exist, and the tables of MQTT's statements leave none out.
//!
//! A row of docs/reference/mqtt-conformance.md is `| id | what the server must do | where | tests |`. `where` names modules in
//! backticks. The last cell names tests in backticks, each with the row's id in the comment above it; or it says in plain words
//! why there is none: `client` (only a client can break it), or `-` and the reason.
//! Change here: the lists of ids. Not here: what is tested (the tests carry the ids).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

/// The ids of the OASIS standard of 5.0, by section.
#[rustfmt::skip]
const V5: &[(&str, RangeInclusive<u32>)] = &[
    ("1.5.4", 1..=3), ("1.5.5", 1..=1), ("1.5.7", 1..=1), ("2.1.3", 1..=1), ("2.2.1", 2..=6), ("2.2.2", 1..=1),
    ("3.1.0", 1..=2), ("3.1.2", 1..=30), ("3.1.3", 1..=12), ("3.1.4", 1..=6), ("3.2.0", 1..=2), ("3.2.2", 1..=22),
    ("3.3.1", 1..=13), ("3.3.2", 1..=20), ("3.3.4", 1..=10), ("3.4.2", 1..=3), ("3.5.2", 1..=3), ("3.6.1", 1..=1),
    ("3.6.2", 1..=3), ("3.7.2", 1..=3), ("3.8.1", 1..=1), ("3.8.3", 1..=5), ("3.8.4", 1..=8), ("3.9.2", 1..=2),
    ("3.9.3", 1..=2), ("3.10.1", 1..=1), ("3.10.3", 1..=2), ("3.10.4", 1..=6), ("3.11.2", 1..=2), ("3.11.3", 1..=2),
    ("3.12.4", 1..=1), ("3.14.0", 1..=1), ("3.14.1", 1..=1), ("3.14.2", 1..=4), ("3.14.4", 1..=3), ("3.15.1", 1..=1),
    ("3.15.2", 1..=3), ("4.1.0", 1..=2), ("4.2", 1..=1), ("4.3.1", 1..=1), ("4.3.2", 1..=5), ("4.3.3", 1..=13),
    ("4.4.0", 1..=2), ("4.5.0", 1..=2), ("4.6.0", 1..=6), ("4.7.0", 1..=1), ("4.7.1", 1..=2), ("4.7.2", 1..=1),
    ("4.7.3", 1..=4), ("4.8.2", 1..=6), ("4.9.0", 1..=3), ("4.12.0", 1..=7), ("4.12.1", 1..=2), ("4.13.1", 1..=1),
    ("4.13.2", 1..=1), ("6.0.0", 1..=4),
];

/// The ids of the OASIS standard of 3.1.1, by section.
#[rustfmt::skip]
const V311: &[(&str, RangeInclusive<u32>)] = &[
    ("1.5.3", 1..=3), ("2.2.2", 1..=2), ("2.3.1", 1..=7), ("3.1.0", 1..=2), ("3.1.2", 1..=24), ("3.1.3", 1..=11),
    ("3.1.4", 1..=5), ("3.2.0", 1..=1), ("3.2.2", 1..=6), ("3.3.1", 1..=12), ("3.3.2", 1..=3), ("3.3.4", 1..=1),
    ("3.3.5", 1..=2), ("3.6.1", 1..=1), ("3.8.1", 1..=1), ("3.8.3", 1..=4), ("3.8.4", 1..=6), ("3.9.3", 1..=2),
    ("3.10.1", 1..=1), ("3.10.3", 1..=2), ("3.10.4", 1..=6), ("3.12.4", 1..=1), ("3.14.1", 1..=1), ("3.14.4", 1..=3),
    ("4.1.0", 1..=2), ("4.3.1", 1..=1), ("4.3.2", 1..=2), ("4.3.3", 1..=2), ("4.4.0", 1..=1), ("4.5.0", 1..=2),
    ("4.6.0", 1..=6), ("4.7.1", 1..=3), ("4.7.2", 1..=1), ("4.7.3", 1..=4), ("4.8.0", 1..=2), ("6.0.0", 1..=4),
    ("7.0.0", 1..=2), ("7.1.1", 1..=1), ("7.1.2", 1..=1),
];

/// Every `fn` of the tree, with the comments and attributes above each of that name.
fn functions() -> HashMap<String, String> {
    let root = root();
    let mut folders: Vec<PathBuf> =
        ["shared", "edge", "cloud", "tests"].map(|folder| root.join(folder)).into();
    let mut found: HashMap<String, String> = HashMap::new();
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).expect("folder").map(|entry| entry.expect("entry").path())
        {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let mut above = String::new();
                for line in fs::read_to_string(&path).expect("source").lines().map(str::trim) {
                    let declared = line.split_once("fn ").and_then(|(before, rest)| {
                        let name = rest.split(['(', '<']).next()?;
                        ["", "async ", "pub ", "pub async "].contains(&before).then_some(name)
                    });
                    if let Some(name) = declared {
                        found.entry(name.to_owned()).or_default().push_str(&above);
                    }
                    if line.starts_with("//") || line.starts_with("#[") {
                        above = above + line + "\n";
                    } else {
                        above.clear();
                    }
                }
            }
        }
    }
    found
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace").to_path_buf()
}

fn reference(name: &str) -> String {
    fs::read_to_string(root().join("docs/reference").join(name)).expect("a reference page")
}

/// What stands between backticks.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// `shared::session::publish` is `shared/src/session/publish.rs`, or a folder of that name.
fn is_module(name: &str) -> bool {
    let Some((package, path)) = name.split_once("::") else { return false };
    let path = root().join(package).join("src").join(path.replace("::", "/"));
    path.is_dir() || path.with_extension("rs").is_file()
}

/// Does a comment name the id, and not just one that begins so?
fn names(comment: &str, id: &str) -> bool {
    comment
        .match_indices(id)
        .any(|(at, _)| !comment[at + id.len()..].starts_with(|next: char| next.is_ascii_digit()))
}

/// What is wrong with a section's table.
fn faults(section: &str, prefix: &str, known: &[(&str, RangeInclusive<u32>)]) -> Vec<String> {
    let functions = functions();
    let all: BTreeSet<String> = known
        .iter()
        .flat_map(|(section, ids)| {
            ids.clone().map(move |number| format!("{prefix}-{section}-{number}"))
        })
        .collect();
    let page = reference("mqtt-conformance.md");
    let after = page.split_once(&format!("\n## {section}\n")).expect("the section").1;
    let table = after.split("\n## ").next().unwrap_or_default();
    let mut rows: BTreeMap<&str, usize> = BTreeMap::new();
    let mut faults = Vec::new();
    for row in table.lines().filter(|line| line.starts_with(&format!("| {prefix}-"))) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [id, must, place, tests] = cells[..] else {
            faults.push(format!("not four cells: {row}"));
            continue;
        };
        *rows.entry(id).or_default() += 1;
        if !all.is_empty() && !all.contains(id) {
            faults.push(format!("{id}: no such statement"));
        }
        if must.is_empty() {
            faults.push(format!("{id}: says nothing"));
        }
        let named = quoted(tests);
        let excused = tests == "client" || (tests.starts_with("- ") && tests.len() > 10);
        if named.is_empty() != excused || (place.is_empty() && !excused) {
            faults.push(format!("{id}: names tests and a place in the code, or says why not"));
        }
        for module in quoted(place).into_iter().filter(|module| !is_module(module)) {
            faults.push(format!("{id}: there is no module {module}"));
        }
        for test in named {
            match functions.get(test) {
                None => faults.push(format!("{id}: there is no test {test}")),
                Some(comment) if !names(comment, id) => {
                    faults.push(format!("{id} is not in the comment above {test}"));
                }
                Some(_) => {}
            }
        }
    }
    faults.extend(rows.iter().filter(|row| *row.1 > 1).map(|row| format!("{} twice", row.0)));
    let missing = all.iter().filter(|id| !rows.contains_key(id.as_str()));
    faults.extend(missing.map(|id| format!("{id}: no row")));
    faults
}

#[test]
fn every_statement_of_mqtt_5_has_its_tests() {
    assert_eq!(faults("MQTT 5.0", "MQTT", V5), Vec::<String>::new());
}

#[test]
fn every_statement_of_mqtt_3_1_1_has_its_tests() {
    assert_eq!(faults("MQTT 3.1.1", "MQTT311", V311), Vec::<String>::new());
}

#[test]
fn the_tests_that_keep_known_holes_shut_exist() {
    let table = reference("known-holes.md");
    let functions = functions();
    // Settings and files have a dot.
    let mut named = quoted(&table);
    named.retain(|name| !name.contains('.'));
    assert!(named.len() > 20);
    let missing: Vec<_> = named.iter().filter(|name| !functions.contains_key(**name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
