//! Wills: which are due when.

use tributary_shared::mqtt::Version;

use super::{
    super::{
        plan::{CLIENTS, Hello, Plan, Text, What},
        seen::{Message, Seen, Trace},
    },
    take_out,
};

pub(super) fn will_at_takeover(plan: &Plan, trace: &mut Trace) {
    for end in ends(plan, trace) {
        if let Some(will) = end.hello.will.filter(|_| end.taken_over && !end.session_too) {
            forget(trace, end.step, &will.text);
        }
    }
}

pub(super) fn delayed_will(plan: &Plan, trace: &mut Trace) {
    for end in ends(plan, trace) {
        if let Some(will) = end.hello.will.filter(|will| end.session_too && will.delay > 0) {
            forget(trace, end.step, &will.text);
        }
    }
}

pub(super) fn will_to_oneself(plan: &Plan, trace: &mut Trace) {
    for end in ends(plan, trace) {
        let Some(will) = end.hello.will else { continue };
        let is_will = |message: &Message| message.payload == will.text.payload;
        take_out(trace.at(end.step, end.who), is_will);
        let later = trace.parts().filter(|(step, who, _)| *step > end.step && *who == end.who);
        for one in later.flat_map(|(_, _, seen)| seen.iter_mut()) {
            if let Seen::Message(message) = one
                && is_will(message)
            {
                message.dup = false;
            }
        }
    }
}

/// The end of a connection, or of a session after it, with its will in place.
struct End {
    step: usize,
    who: usize,
    hello: Hello,
    taken_over: bool,
    session_too: bool,
}

fn ends(plan: &Plan, trace: &mut Trace) -> Vec<End> {
    let mut found = Vec::new();
    // The last CONNECT of each client, and whether its connection is open.
    let mut last: Vec<Option<(Hello, bool)>> = vec![None; CLIENTS + 1];
    for (step, who, seen) in trace.parts() {
        let joined = seen.iter().any(|one| matches!(one, Seen::ConnAck { code: 0, .. }));
        let closed = seen.contains(&Seen::Closed);
        let what = plan.steps.get(step).filter(|step| step.who == who).map(|step| &step.what);
        let new = match what {
            Some(What::Connect(new)) if joined => Some(new.clone()),
            Some(What::Stranger(..)) => continue,
            _ => None,
        };
        let faulty = seen.iter().any(|one| matches!(one, Seen::Disconnect(_)));
        if let Some((hello, open)) = last[who].take() {
            let left = matches!(what, Some(What::Leave { with_will: false, .. })) && !faulty;
            let clean = new.as_ref().is_some_and(|new| new.clean);
            let ended = open && closed;
            if left {
                last[who] = None;
            } else if ended || (clean && !open) {
                let session_too = clean || !lives(&hello, what.filter(|_| !faulty));
                found.push(End {
                    step,
                    who,
                    hello: hello.clone(),
                    taken_over: ended && joined,
                    session_too,
                });
                last[who] = Some((hello, joined));
            } else {
                last[who] = Some((hello, open));
            }
        }
        if let Some(new) = new {
            last[who] = Some((new, true));
        } else if joined && !matches!(what, Some(What::Interrupted { .. })) {
            last[who] = None;
        }
    }
    found
}

/// The session outlives the connection.
fn lives(hello: &Hello, what: Option<&What>) -> bool {
    match what {
        Some(What::Leave { expiry: Some(seconds), .. }) => *seconds > 0,
        _ if hello.version == Version::V5 => hello.expiry.is_some_and(|seconds| seconds > 0),
        _ => !hello.clean,
    }
}

/// A message that one broker published from `step` on and the other did not: it is gone, and what is retained on its topic may
/// be something else.
fn forget(trace: &mut Trace, from: usize, text: &Text) {
    for (_, _, seen) in trace.parts().filter(|(step, _, _)| *step >= from) {
        take_out(seen, |message| {
            message.topic == text.topic
                && (message.payload == text.payload || (text.retain && message.retain))
        });
        // Its flow may go on on a later connection.
        seen.retain(|one| *one != Seen::Release(text.payload.clone()));
    }
}
