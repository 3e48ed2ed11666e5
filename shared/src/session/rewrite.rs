//! What the settings do to clients' topics: rules that rewrite them, and subscriptions that every client has.
//!
//! In: `session.rewrite`, `session.auto_subscribe`. Out: the topic or filter that is meant, before anybody's rights are
//! asked. A filter in SUBSCRIBE is matched level by level as it stands, so `old/+` follows a rule for `old/#`.
//! `%c` and `%u` stand for the client id and the proved name; a client whose names could act as more than one level is
//! refused where they are used. Change here: what templates can say. Not here: who may (`rights`).

use bytestring::ByteString;

use super::{
    delayed::{self, Target},
    settings::Settings,
};
use crate::{
    auth::{Action, Who, is_plain},
    mqtt::packet::{Qos, Reason, SubscriptionOptions},
    topic::filter::{self, Subscribed},
};

crate::settings! {
    /// One rule that turns topics into others. The first that matches is followed, once; one that leaves nothing, or needs a
    /// name that the client does not have, is passed over.
    pub struct Rewrite {
        /// Whose topics: publish (messages and wills), subscribe (filters of SUBSCRIBE and UNSUBSCRIBE) or both.
        pub action: Action = Action::Both,
        /// Topic filter of what is rewritten. A filter matches if each of its levels does, + only with + and # only with #.
        pub filter: String = String::new(),
        /// What it becomes. The levels `{1}`, `{2}` stand for what the first and second + matched, a last level `{#}` for
        /// what # did; `%c` for the client id, `%u` for the client's name, `%%` for a percent sign.
        pub to: String = String::new(),
    }
}

crate::settings! {
    /// One subscription that every client has from its CONNECT on, if it may.
    pub struct AutoSubscribe {
        /// Topic filter; `%c` stands for the client id, `%u` for the client's name (those without get none), `%%` for a percent sign.
        pub filter: String = String::new(),
        /// Highest QoS.
        pub qos: u8 = 0 => 0..=2,
        /// The client does not get its own messages.
        pub no_local: bool = false,
        /// Messages keep their retain flag.
        pub retain_as_published: bool = false,
        /// Retained messages: 0 at each CONNECT, 1 when the subscription is new, 2 never.
        pub retain_handling: u8 = 0 => 0..=2,
    }
}

/// All of it, compiled.
#[derive(Debug, Default)]
pub(super) struct Templates {
    rewrites: Vec<Rule>,
    auto: Vec<(Template, SubscriptionOptions)>,
}

#[derive(Debug)]
struct Rule {
    action: Action,
    filter: String,
    to: Template,
}

/// Levels, each of parts.
#[derive(Debug)]
struct Template(Vec<Vec<Part>>);

#[derive(Debug, PartialEq, Eq)]
enum Part {
    Text(Box<str>),
    ClientId,
    Principal,
    /// What the n-th `+` matched, from 0.
    One(usize),
    /// What `#` matched.
    Rest,
}

impl Templates {
    /// An entry that is wrong is left out: [`check`] is asked before.
    pub(super) fn new(settings: &Settings) -> Self {
        let rewrites = settings.rewrite.iter().filter_map(|rule| compile(rule).ok()).collect();
        let auto =
            settings.auto_subscribe.iter().filter_map(|one| compile_auto(one).ok()).collect();
        Self { rewrites, auto }
    }

    /// Puts the topic that is meant in place of the one that was sent; answers in how many seconds, if not at once.
    pub(super) fn readdress(
        &self,
        who: Who<'_>,
        topic: &mut ByteString,
    ) -> Result<Option<u32>, Reason> {
        let Target { topic: inner, delay_s } =
            delayed::target(topic).map_err(|_| Reason::TOPIC_NAME_INVALID)?;
        if delay_s.is_none() && self.rewrites.is_empty() {
            return Ok(None);
        }
        *topic =
            self.rewrite(Action::Publish, who, inner).unwrap_or_else(|| topic.slice_ref(inner));
        Ok(delay_s.filter(|seconds| *seconds > 0))
    }

    /// What the filter of a subscription becomes; its group stays.
    pub(super) fn filter(&self, who: Who<'_>, filter: ByteString) -> ByteString {
        if self.rewrites.is_empty() {
            return filter;
        }
        let Ok(parsed) = Subscribed::parse(&filter) else { return filter };
        let Some(new) = self.rewrite(Action::Subscribe, who, parsed.filter) else { return filter };
        match parsed.share {
            Some(name) => format!("$share/{name}/{new}").into(),
            None => new,
        }
    }

    fn rewrite(&self, action: Action, who: Who<'_>, topic: &str) -> Option<ByteString> {
        self.rewrites
            .iter()
            .filter(|rule| rule.action == Action::Both || rule.action == action)
            .find_map(|rule| {
                let (ones, rest) = matched(&rule.filter, topic)?;
                rule.to.fill(who, &ones, rest)
            })
    }

    /// What a client is subscribed to by itself.
    pub(super) fn auto(&self, who: Who<'_>) -> Vec<(ByteString, SubscriptionOptions)> {
        let fill = |(filter, options): &(Template, SubscriptionOptions)| {
            Some((filter.fill(who, &[], None)?, *options))
        };
        self.auto.iter().filter_map(fill).collect()
    }

    /// Whether a client of these names can be put into the templates that use them.
    pub(super) fn check_names(&self, who: Who<'_>) -> Result<(), Reason> {
        let templates =
            || self.rewrites.iter().map(|r| &r.to).chain(self.auto.iter().map(|a| &a.0));
        let uses = |part: &Part| templates().any(|one| one.0.iter().flatten().any(|p| p == part));
        if !is_plain(who.client_id) && uses(&Part::ClientId) {
            return Err(Reason::CLIENT_ID_NOT_VALID);
        }
        if who.principal.is_some_and(|name| !is_plain(name)) && uses(&Part::Principal) {
            return Err(Reason::NOT_AUTHORIZED);
        }
        Ok(())
    }
}

impl Template {
    /// `None`: the client has no name, or nothing is left.
    fn fill(&self, who: Who<'_>, ones: &[&str], rest: Option<&str>) -> Option<ByteString> {
        let mut out = String::new();
        for (at, level) in self.0.iter().enumerate() {
            if *level == [Part::Rest] && rest.is_none() {
                continue;
            }
            if at > 0 {
                out.push('/');
            }
            for part in level {
                out.push_str(match part {
                    Part::Text(text) => text,
                    Part::ClientId => who.client_id,
                    Part::Principal => who.principal?,
                    Part::One(at) => ones.get(*at)?,
                    Part::Rest => rest?,
                });
            }
        }
        (!out.is_empty() && out.len() <= filter::FILTER_LEN_MAX).then(|| out.into())
    }
}

/// What the wildcards of a filter stand for in a topic, or in a filter that asks for no more than this one; `None`: it does
/// not match. Of `#`: nothing for the level above it.
fn matched<'a>(filter: &str, topic: &'a str) -> Option<(Vec<&'a str>, Option<&'a str>)> {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return None;
    }
    let mut ones = Vec::new();
    let mut left = Some(topic);
    for pattern in filter.split('/') {
        if pattern == "#" {
            return Some((ones, left));
        }
        let (level, rest) = left.map(|left| match left.split_once('/') {
            Some((level, rest)) => (level, Some(rest)),
            None => (left, None),
        })?;
        match pattern {
            "+" if level != "#" => ones.push(level),
            _ if pattern == level => {}
            _ => return None,
        }
        left = rest;
    }
    left.is_none().then_some((ones, None))
}

/// What is wrong with these settings; a sentence that names the key below `section`.
pub(super) fn check(settings: &Settings, section: &str) -> Result<(), String> {
    for (at, rule) in settings.rewrite.iter().enumerate() {
        let Rewrite { filter, to, .. } = rule;
        compile(rule).map_err(|why| {
            format!("`{section}.rewrite` {} (filter = {filter:?}, to = {to:?}): {why}", at + 1)
        })?;
    }
    for (at, one) in settings.auto_subscribe.iter().enumerate() {
        compile_auto(one).map_err(|why| {
            format!("`{section}.auto_subscribe` {} (filter = {:?}): {why}", at + 1, one.filter)
        })?;
    }
    Ok(())
}

fn compile(rule: &Rewrite) -> Result<Rule, String> {
    filter::check(&rule.filter).map_err(|why| format!("`filter`: {why}"))?;
    let ones = rule.filter.split('/').filter(|level| *level == "+").count();
    let to = template(&rule.to).map_err(|why| format!("`to`: {why}"))?;
    for (at, level) in to.0.iter().enumerate() {
        let known = |part: &Part| match part {
            Part::One(number) => *number < ones,
            Part::Rest => rule.filter.ends_with('#') && at + 1 == to.0.len(),
            Part::Text(text) => !text.contains(['+', '#']),
            Part::ClientId | Part::Principal => true,
        };
        if !level.iter().all(known) {
            return Err(format!(
                "`to`: level {}: a number is that of a + in `filter`, {{#}} is last and stands for its #, and + and # \
                 stand for nothing",
                at + 1
            ));
        }
    }
    Ok(Rule { action: rule.action, filter: rule.filter.clone(), to })
}

fn compile_auto(one: &AutoSubscribe) -> Result<(Template, SubscriptionOptions), String> {
    let parsed = Subscribed::parse(&one.filter).map_err(|why| why.to_string())?;
    if one.no_local && parsed.share.is_some() {
        return Err("a shared subscription has no `no_local` (MQTT-3.8.3-4)".to_owned());
    }
    let filter = template(&one.filter)?;
    let references = |part: &Part| matches!(part, Part::One(_) | Part::Rest);
    if filter.0.iter().flatten().any(references) {
        return Err("there is nothing that {1} or {#} could stand for".to_owned());
    }
    let options = SubscriptionOptions {
        qos: match one.qos {
            0 => Qos::AtMostOnce,
            1 => Qos::AtLeastOnce,
            _ => Qos::ExactlyOnce,
        },
        no_local: one.no_local,
        retain_as_published: one.retain_as_published,
        retain_handling: one.retain_handling,
    };
    Ok((filter, options))
}

fn template(text: &str) -> Result<Template, String> {
    if text.is_empty() || text.contains('\0') {
        return Err("it is empty, or holds NUL".to_owned());
    }
    text.split('/').map(level).collect::<Result<_, _>>().map(Template)
}

fn level(text: &str) -> Result<Vec<Part>, String> {
    if let Some(inside) = text.strip_prefix('{').and_then(|text| text.strip_suffix('}')) {
        return match (inside, inside.parse::<usize>()) {
            ("#", _) => Ok(vec![Part::Rest]),
            (_, Ok(number @ 1..)) => Ok(vec![Part::One(number - 1)]),
            _ => Err(format!("{text} is neither {{#}} nor a number from {{1}} on")),
        };
    }
    if text.contains(['{', '}']) {
        return Err(format!("in {text:?} a reference is not a whole level"));
    }
    let mut parts = Vec::new();
    let mut literal = String::new();
    let mut rest = text.chars();
    while let Some(next) = rest.next() {
        let part = match (next, if next == '%' { rest.next() } else { None }) {
            ('%', Some('c')) => Part::ClientId,
            ('%', Some('u')) => Part::Principal,
            ('%', Some('%')) => {
                literal.push('%');
                continue;
            }
            ('%', _) => {
                return Err(
                    "`%` is followed by c (client id), u (user) or % (a percent sign)".into()
                );
            }
            _ => {
                literal.push(next);
                continue;
            }
        };
        if !literal.is_empty() {
            parts.push(Part::Text(std::mem::take(&mut literal).into()));
        }
        parts.push(part);
    }
    if !literal.is_empty() {
        parts.push(Part::Text(literal.into()));
    }
    Ok(parts)
}
