//! Are two traces the same, and if not, which explained differences make them so?
//!
//! Not here: the explanations (`rules`).

use super::{
    plan::{CLIENTS, Plan, What},
    rules::{RULES, Rule},
    seen::{Seen, Trace},
};

/// The outcome for one plan.
#[derive(Debug)]
pub enum Verdict {
    /// The same in every packet.
    Equal,
    /// Different by these rules only, each of which is needed.
    Explained(Vec<&'static Rule>),
    /// Something else.
    Unexplained(String),
}

/// Compares what was seen at our broker with what was seen at the other one.
pub fn judge(plan: &Plan, ours: &Trace, theirs: &Trace) -> Verdict {
    if same(plan, ours, theirs, &[]) {
        return Verdict::Equal;
    }
    let all: Vec<&Rule> = RULES.iter().collect();
    if !same(plan, ours, theirs, &all) {
        return Verdict::Unexplained(difference(plan, ours, theirs));
    }
    let mut needed = all;
    // The later ones are the wider ones.
    for rule in RULES.iter().rev() {
        let without: Vec<&Rule> =
            needed.iter().copied().filter(|one| one.name != rule.name).collect();
        if same(plan, ours, theirs, &without) {
            needed = without;
        }
    }
    Verdict::Explained(needed)
}

fn same(plan: &Plan, ours: &Trace, theirs: &Trace, rules: &[&'static Rule]) -> bool {
    reduced(plan, ours, rules) == reduced(plan, theirs, rules)
}

fn reduced(plan: &Plan, trace: &Trace, rules: &[&'static Rule]) -> Trace {
    let mut trace = trace.clone();
    trace.sort();
    for rule in rules {
        (rule.apply)(plan, &mut trace);
    }
    trace.sort();
    trace
}

/// The plan, and where the traces differ; what no rule explains is marked.
fn difference(plan: &Plan, ours: &Trace, theirs: &Trace) -> String {
    let all: Vec<&Rule> = RULES.iter().collect();
    let (ours_left, theirs_left) = (reduced(plan, ours, &all), reduced(plan, theirs, &all));
    let mut text = format!("seed {}\n", plan.seed);
    for at in 0..ours.steps.len().max(theirs.steps.len()) {
        let what = plan.steps.get(at).map(|step| format!("c{} {}", step.who, short(&step.what)));
        let what = what.unwrap_or_else(|| "what is left".to_owned());
        text += &[at.to_string(), ": ".to_owned(), what, "\n".to_owned()].concat();
        for client in 0..=CLIENTS {
            let (a, b) = (part(ours, at, client), part(theirs, at, client));
            if a == b {
                text += &line(&format!("    c{client}"), a);
                continue;
            }
            let differs = part(&ours_left, at, client) != part(&theirs_left, at, client);
            let mark = if differs { "!!" } else { "  " };
            text += &line(&format!(" {mark} c{client} ours  "), a);
            text += &line(&format!(" {mark} c{client} theirs"), b);
        }
    }
    text
}

/// Without what is as usual.
fn short(what: &What) -> String {
    let mut text = format!("{what:?}");
    for usual in [
        ", no_local: false",
        ", retain_as_published: false",
        ", retain_handling: 0",
        ", id: None",
        ", alias: None",
        ", extras: None",
        ", delay: 0",
        ", receive_maximum: None",
        ", packet_maximum: None",
        ", aliases: 0",
        ", acks: All",
        ", expiry: None",
        ", will: None",
        ", retain: false",
        "SubscriptionOptions ",
    ] {
        text = text.replace(usual, "");
    }
    text.replace(&".".repeat(200), "..")
        .replace("AtMostOnce", "0")
        .replace("AtLeastOnce", "1")
        .replace("ExactlyOnce", "2")
}

fn part(trace: &Trace, step: usize, client: usize) -> &[Seen] {
    let clients = trace.steps.get(step).map_or(&[][..], Vec::as_slice);
    clients.get(client).map_or(&[], Vec::as_slice)
}

fn line(label: &str, seen: &[Seen]) -> String {
    if seen.is_empty() && label.starts_with("    c") {
        return String::new();
    }
    let all: Vec<String> = seen.iter().map(ToString::to_string).collect();
    format!("{label}: {}\n", all.join(" | ").replace(&".".repeat(200), ".."))
}
