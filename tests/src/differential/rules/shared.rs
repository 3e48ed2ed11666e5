//! Shared subscriptions. Their topics have a second level of their own (`generate`).

use super::{
    super::{
        invalid::AS_FIRST,
        plan::{CLIENTS, Plan, What},
        seen::{Message, Seen, Trace},
    },
    invalid, take_out,
};

pub(super) fn retained_for_shared(plan: &Plan, trace: &mut Trace) {
    for (step, who, seen) in trace.parts() {
        let subscribes = plan
            .steps
            .get(step)
            .is_some_and(|step| step.who == who && matches!(step.what, What::Subscribe { .. }));
        if subscribes {
            take_out(seen, |message| message.retain && is_shared(message));
        }
    }
}

/// Nobody's in particular.
pub(super) fn which_member(_: &Plan, trace: &mut Trace) {
    for clients in &mut trace.steps {
        let mut group: Vec<Seen> = Vec::new();
        for seen in clients.iter_mut() {
            let (shared, own): (Vec<Seen>, Vec<Seen>) =
                std::mem::take(seen).into_iter().partition(|one| match one {
                    Seen::Message(message) => is_shared(message),
                    Seen::Release(_) => true,
                    _ => false,
                });
            *seen = own;
            group.extend(shared);
        }
        group.sort();
        if let Some(first) = clients.first_mut() {
            first.extend(group);
        }
    }
}

/// While somebody is away, and what came for him.
pub(super) fn member_away(plan: &Plan, trace: &mut Trace) {
    let mut away = [false; CLIENTS + 1];
    for (step, clients) in trace.steps.iter_mut().enumerate() {
        let mut returns = false;
        for (who, seen) in clients.iter().enumerate() {
            let stranger = invalid(plan, step, who).is_some_and(|one| AS_FIRST.contains(&one));
            let joined = seen.iter().any(|one| matches!(one, Seen::ConnAck { code: 0, .. }));
            returns |= joined && !stranger;
            if !stranger && (joined || seen.contains(&Seen::Closed)) {
                away[who] = !joined;
            }
        }
        if returns || away.contains(&true) {
            clients.iter_mut().for_each(|seen| take_out(seen, is_shared));
        }
    }
}

fn is_shared(message: &Message) -> bool {
    message.topic.contains("/Ps")
}
