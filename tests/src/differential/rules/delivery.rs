//! How often, when and with which flags a message comes.

use tributary_shared::topic::filter::matches;

use super::{
    super::{
        plan::{Hello, Plan, What},
        seen::{Seen, Trace},
    },
    take_out,
};

/// Copies of a message that came by a client's own subscriptions become one.
pub(super) fn copies(_: &Plan, trace: &mut Trace) {
    for (_, _, seen) in trace.parts() {
        let mut kept: Vec<Seen> = Vec::new();
        for one in seen.drain(..) {
            let same = |other: &Seen| match (other, &one) {
                (Seen::Message(a), Seen::Message(b)) => a.same_but_subscription(b),
                (Seen::Release(a), Seen::Release(b)) => a == b,
                _ => false,
            };
            match (kept.iter().position(same).map(|at| &mut kept[at]), one) {
                (Some(Seen::Message(known)), Seen::Message(copy)) => {
                    known.qos = known.qos.max(copy.qos);
                    known.retain |= copy.retain;
                    known.ids.extend(copy.ids);
                    known.ids.sort_unstable();
                    known.ids.dedup();
                }
                (Some(_), _) => {}
                (None, one) => kept.push(one),
            }
        }
        *seen = kept;
        for one in seen.iter_mut() {
            if let Seen::Message(message) = one {
                message.ids.dedup();
            }
        }
    }
}

pub(super) fn onward_at_pubrel(plan: &Plan, trace: &mut Trace) {
    for (step, who, seen) in trace.parts() {
        let Some(What::Interrupted { text, .. }) =
            plan.steps.get(step).filter(|step| step.who == who).map(|step| &step.what)
        else {
            continue;
        };
        // The last copy counts.
        let mut known: Vec<Seen> = Vec::new();
        seen.reverse();
        seen.retain_mut(|one| {
            match one {
                Seen::Message(message) if message.payload == text.payload => message.dup = false,
                Seen::Release(of) if *of == text.payload => {}
                _ => return true,
            }
            let new = !known.contains(one);
            known.push(one.clone());
            new
        });
        seen.reverse();
    }
}

pub(super) fn copies_while_away(_: &Plan, trace: &mut Trace) {
    for (_, _, seen) in trace.parts() {
        if seen.iter().any(|one| matches!(one, Seen::ConnAck { present: true, .. })) {
            for one in seen.iter_mut() {
                if let Seen::Message(message) = one {
                    message.ids.clear();
                    message.retain = false;
                }
            }
        }
    }
}

pub(super) fn replaced_flags(plan: &Plan, trace: &mut Trace) {
    for (from, client, filter) in replaced(plan) {
        for (_, _, seen) in trace.parts().filter(|(step, who, _)| *step >= from && *who == client) {
            take_out(seen, |message| matches(&filter, &message.topic));
        }
    }
}

/// Retained messages of a client that come to itself after it has asked for No Local.
pub(super) fn own_retained(plan: &Plan, trace: &mut Trace) {
    for (from, step) in plan.steps.iter().enumerate() {
        let What::Subscribe { filters, .. } = &step.what else { continue };
        let asked: Vec<_> = filters.iter().filter(|(_, options)| options.no_local).collect();
        for (_, _, seen) in trace
            .parts()
            .filter(|(at, who, _)| *at >= from && *who == step.who && !asked.is_empty())
        {
            take_out(seen, |message| {
                message.retain
                    && own(plan, step.who, &message.payload)
                    && asked.iter().any(|(filter, _)| matches(filter, &message.topic))
            });
        }
    }
}

/// Whether a client has published this, retained; also as its will.
fn own(plan: &Plan, who: usize, payload: &str) -> bool {
    plan.steps.iter().filter(|step| step.who == who).any(|step| match &step.what {
        What::Publish(text) | What::Repeated(text) | What::Interrupted { text, .. } => {
            text.retain && text.payload == payload
        }
        What::Connect(Hello { will: Some(will), .. }) => will.text.payload == payload,
        _ => false,
    })
}

/// Filters that a client subscribes to again with other flags: from which step on, who.
fn replaced(plan: &Plan) -> Vec<(usize, usize, String)> {
    let mut found = Vec::new();
    let mut known: Vec<(usize, &str, bool, bool)> = Vec::new();
    for (at, step) in plan.steps.iter().enumerate() {
        let What::Subscribe { filters, .. } = &step.what else { continue };
        for (filter, options) in filters {
            let flags = (options.no_local, options.retain_as_published);
            let differs = |one: &(usize, &str, bool, bool)| {
                (one.0, one.1) == (step.who, filter.as_str()) && (one.2, one.3) != flags
            };
            if known.iter().any(differs) {
                found.push((at, step.who, filter.clone()));
            }
            known.push((step.who, filter, flags.0, flags.1));
        }
    }
    found
}
