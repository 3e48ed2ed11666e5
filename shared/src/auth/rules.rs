//! Who may do what: an ordered list of rules, and the one question that is asked of it ([`Permissions::may`]).
//!
//! The first rule that speaks of the principal, the action and the topic decides; where none does, the answer is no. A
//! subscription is answered for all its topics at once: an allowing rule must cover the whole filter, and a denying
//! rule before it that touches any part of the filter refuses it. So what a granted subscription brings needs no further
//! look until the rules change.
//! Change here: what rules can say. Not here: who somebody is (`identify`), what is refused how (`session`).

use std::fmt;

use serde::{Deserialize, Serialize};

use super::pattern::{Names, Pattern, PatternError, is_plain};
use crate::{mqtt::packet::Reason, topic::filter::Subscribed};

crate::settings! {
    /// One access rule. The first rule that speaks of a client, its action and the topic decides; without one the answer is no.
    pub struct Rule {
        /// Whom it speaks of: names, names with a trailing * (`gw-*`), `*` for everyone who has proved a name, `anonymous`
        /// for those who have none.
        pub who: Vec<String> = Vec::new(),
        /// publish, subscribe or both.
        pub action: Action = Action::Both,
        /// Topic filters. `%c` stands for the client id, `%u` for the name, `%%` for a percent sign; # and + do not reach
        /// topics that start with $.
        pub topics: Vec<String> = Vec::new(),
        /// false: these may not.
        pub allow: bool = true,
    }
}

/// What somebody does with a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Sends messages to it, wills included.
    Publish,
    /// Receives messages from it.
    Subscribe,
    /// In a rule: either.
    Both,
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Who<'a> {
    /// Proved name; `None` = anonymous.
    pub principal: Option<&'a str>,
    /// Client id.
    pub client_id: &'a str,
}

/// What somebody may do. `Default` allows everything: fit for loopback only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Permissions {
    /// `None`: everything is allowed.
    rules: Option<Vec<Compiled>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Compiled {
    who: Vec<Whom>,
    action: Action,
    topics: Vec<Pattern>,
    allow: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Whom {
    Anonymous,
    /// A name, or (`true`) the beginning of names.
    Name(Box<str>, bool),
}

/// Why a rule is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("rule {number}: {why}")]
pub struct RuleError {
    /// Place in the list, from 1.
    pub number: usize,
    /// What is wrong with it.
    pub why: RuleFault,
}

/// What is wrong with a rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum RuleFault {
    #[error("`who` is empty")]
    Nobody,
    #[error("`topics` is empty")]
    Nothing,
    #[error("{0:?} in `who`: * may only stand at the end")]
    Star(String),
    #[error("an empty name in `who`")]
    EmptyName,
    #[error("{0:?} in `topics`: {1}")]
    Topic(String, PatternError),
}

impl Permissions {
    /// From rules in order. No rules at all forbid everything.
    pub fn new(rules: &[Rule]) -> Result<Self, RuleError> {
        let compiled = rules
            .iter()
            .enumerate()
            .map(|(at, rule)| compile(rule).map_err(|why| RuleError { number: at + 1, why }));
        Ok(Self { rules: Some(compiled.collect::<Result<_, _>>()?) })
    }

    /// Everything is allowed.
    pub fn everything() -> Self {
        Self::default()
    }

    /// There are no rules to look at.
    pub fn is_everything(&self) -> bool {
        self.rules.is_none()
    }

    /// THE question. `topic`: a topic name, or for [`Action::Subscribe`] also a filter (`$share/..` included).
    pub fn may(&self, who: Who<'_>, action: Action, topic: &str) -> bool {
        let Some(rules) = &self.rules else { return true };
        let topic = match action {
            Action::Subscribe => Subscribed::parse(topic).map_or(topic, |asked| asked.filter),
            Action::Publish | Action::Both => topic,
        };
        let names = Names { client_id: who.client_id, principal: who.principal };
        for rule in rules {
            if !rule.speaks_of(who, action) {
                continue;
            }
            if rule.allow && rule.topics.iter().any(|pattern| pattern.covers(topic, names)) {
                return true;
            }
            if !rule.allow && rule.topics.iter().any(|pattern| pattern.overlaps(topic, names)) {
                return false;
            }
        }
        false
    }

    /// Whether somebody with these names can be told apart from others by the rules. A value for `%c` or `%u` that is not
    /// plain (`+ # / $`, control characters) is refused where rules use it.
    pub fn check_names(&self, who: Who<'_>) -> Result<(), Reason> {
        let Some(rules) = &self.rules else { return Ok(()) };
        let uses =
            |which: fn(&Pattern) -> bool| rules.iter().flat_map(|rule| &rule.topics).any(which);
        if !is_plain(who.client_id) && uses(|pattern| pattern.client_id) {
            return Err(Reason::CLIENT_ID_NOT_VALID);
        }
        let principal = who.principal.is_some_and(|name| !is_plain(name));
        if principal && uses(|pattern| pattern.principal) {
            return Err(Reason::NOT_AUTHORIZED);
        }
        Ok(())
    }
}

impl Compiled {
    fn speaks_of(&self, who: Who<'_>, action: Action) -> bool {
        (self.action == Action::Both || self.action == action)
            && self.who.iter().any(|whom| whom.is(who.principal))
    }
}

impl Whom {
    fn is(&self, principal: Option<&str>) -> bool {
        match (self, principal) {
            (Self::Anonymous, None) => true,
            (Self::Name(start, true), Some(name)) => name.starts_with(&**start),
            (Self::Name(exact, false), Some(name)) => **exact == *name,
            (Self::Anonymous, Some(_)) | (Self::Name(..), None) => false,
        }
    }
}

fn compile(rule: &Rule) -> Result<Compiled, RuleFault> {
    if rule.who.is_empty() {
        return Err(RuleFault::Nobody);
    }
    if rule.topics.is_empty() {
        return Err(RuleFault::Nothing);
    }
    let topic =
        |text: &String| Pattern::parse(text).map_err(|why| RuleFault::Topic(text.clone(), why));
    Ok(Compiled {
        who: rule.who.iter().map(|text| whom(text)).collect::<Result<_, _>>()?,
        action: rule.action,
        topics: rule.topics.iter().map(topic).collect::<Result<_, _>>()?,
        allow: rule.allow,
    })
}

fn whom(text: &str) -> Result<Whom, RuleFault> {
    let (name, open) = text.strip_suffix('*').map_or((text, false), |start| (start, true));
    if name.contains('*') {
        return Err(RuleFault::Star(text.to_owned()));
    }
    match (name, open) {
        ("", false) => Err(RuleFault::EmptyName),
        (super::ANONYMOUS, false) => Ok(Whom::Anonymous),
        (name, open) => Ok(Whom::Name(name.into(), open)),
    }
}

/// The rule in plain words.
impl fmt::Display for Rule {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, who) in self.who.iter().enumerate() {
            let comma = if at > 0 { ", " } else { "" };
            match who.as_str() {
                "*" => write!(out, "{comma}everyone with a name")?,
                super::ANONYMOUS => write!(out, "{comma}clients without a name")?,
                who => write!(out, "{comma}{who}")?,
            }
        }
        let (may, action) = (
            if self.allow { "may" } else { "may not" },
            match self.action {
                Action::Publish => "publish to",
                Action::Subscribe => "subscribe to",
                Action::Both => "publish and subscribe to",
            },
        );
        write!(out, " {may} {action} {}", self.topics.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(who: &[&str], action: Action, topics: &[&str], allow: bool) -> Rule {
        let own = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        Rule { who: own(who), action, topics: own(topics), allow }
    }

    fn named<'a>(principal: &'a str, client_id: &'a str) -> Who<'a> {
        Who { principal: Some(principal), client_id }
    }

    const NOBODY: Who<'_> = Who { principal: None, client_id: "c" };

    #[test]
    fn the_first_rule_that_speaks_decides_and_silence_is_no() {
        use Action::{Both, Publish, Subscribe};
        let permissions = Permissions::new(&[
            rule(&["ann"], Both, &["secret/ann/#"], true),
            rule(&["*"], Both, &["secret/#"], false),
            rule(&["gw-*"], Publish, &["up/%u/+"], true),
            rule(&["gw-*"], Subscribe, &["down/%u/#", "all"], true),
            rule(&["anonymous"], Subscribe, &["public/#"], true),
            rule(&["ann", "bob"], Both, &["#"], true),
        ])
        .unwrap();
        let ann = named("ann", "c");
        for (who, action, topic, expected) in [
            (ann, Publish, "secret/ann/x", true),
            (ann, Publish, "secret/bob/x", false),
            (ann, Publish, "else", true),
            (ann, Subscribe, "secret/ann/#", true),
            (ann, Subscribe, "secret/#", false),
            (ann, Subscribe, "#", false),
            (ann, Subscribe, "else/#", true),
            (ann, Subscribe, "$SYS/#", false),
            (ann, Subscribe, "$share/g/else/#", true),
            (ann, Subscribe, "$share/g/secret/#", false),
            (named("gw-1", "c"), Publish, "up/gw-1/t", true),
            (named("gw-1", "c"), Publish, "up/gw-2/t", false),
            (named("gw-1", "c"), Publish, "up/gw-1/t/u", false),
            (named("gw-1", "c"), Subscribe, "up/gw-1/t", false),
            (named("gw-1", "c"), Subscribe, "down/gw-1/#", true),
            (named("gw-1", "c"), Subscribe, "down/+/x", false),
            (named("gw-1", "c"), Subscribe, "all", true),
            (named("carl", "c"), Subscribe, "all", false),
            (named("anonymous", "c"), Subscribe, "public/x", false),
            (NOBODY, Subscribe, "public/x", true),
            (NOBODY, Publish, "public/x", false),
            (NOBODY, Subscribe, "else", false),
        ] {
            assert_eq!(permissions.may(who, action, topic), expected, "{who:?} {action:?} {topic}");
        }
    }

    /// mosquitto CVE-2018-12550: an empty list of rules allowed everything.
    #[test]
    fn an_empty_list_of_rules_allows_nothing() {
        let none = Permissions::new(&[]).unwrap();
        assert!(!none.may(named("ann", "c"), Action::Publish, "a"));
        assert!(!none.may(NOBODY, Action::Subscribe, "#"));
        assert!(Permissions::everything().may(NOBODY, Action::Subscribe, "#"));
    }

    #[test]
    fn names_that_would_be_patterns_are_refused_where_rules_use_them() {
        let by_client = Permissions::new(&[rule(&["*"], Action::Both, &["d/%c"], true)]).unwrap();
        let by_user = Permissions::new(&[rule(&["*"], Action::Both, &["d/%u"], true)]).unwrap();
        for evil in ["+", "#", "a/b", "$a", "a\u{7}", ""] {
            let client = by_client.check_names(named("ann", evil));
            assert_eq!(client, Err(Reason::CLIENT_ID_NOT_VALID), "{evil:?}");
            assert_eq!(by_client.check_names(named(evil, "c")), Ok(()));
            assert_eq!(by_user.check_names(named(evil, "c")), Err(Reason::NOT_AUTHORIZED));
            assert_eq!(by_user.check_names(Who { principal: None, client_id: evil }), Ok(()));
            assert_eq!(Permissions::everything().check_names(named(evil, evil)), Ok(()));
        }
        assert_eq!(by_client.check_names(named("a/b", "plain-é")), Ok(()));
    }

    #[test]
    fn a_bad_rule_is_named() {
        let good = rule(&["ann"], Action::Both, &["#"], true);
        for (bad, part) in [
            (rule(&[], Action::Both, &["#"], true), "`who` is empty"),
            (rule(&["a"], Action::Both, &[], true), "`topics` is empty"),
            (rule(&["a*b"], Action::Both, &["#"], true), "\"a*b\""),
            (rule(&[""], Action::Both, &["#"], true), "empty name"),
            (rule(&["a"], Action::Both, &["a/#/b"], true), "\"a/#/b\""),
        ] {
            let error = Permissions::new(&[good.clone(), bad]).unwrap_err().to_string();
            assert!(error.starts_with("rule 2: ") && error.contains(part), "{error}");
        }
    }

    #[test]
    fn rules_speak_plainly() {
        let text = rule(&["gw-*", "anonymous"], Action::Publish, &["a/%c", "b"], false).to_string();
        assert_eq!(text, "gw-*, clients without a name may not publish to a/%c, b");
        let text = rule(&["*"], Action::Both, &["#"], true).to_string();
        assert_eq!(text, "everyone with a name may publish and subscribe to #");
    }
}
