//! Answers, and what happens to who breaks the rules.

use super::{
    super::{
        invalid::Invalid,
        plan::Plan,
        seen::{Seen, Trace},
    },
    invalid,
};

pub(super) fn no_matching_subscribers(_: &Plan, trace: &mut Trace) {
    for (_, _, seen) in trace.parts() {
        for one in seen.iter_mut() {
            if let Seen::Ack(_, code) = one
                && *code == 0x10
            {
                *code = 0;
            }
        }
    }
}

pub(super) fn taken_over_without_a_word(_: &Plan, trace: &mut Trace) {
    for (_, _, seen) in trace.parts() {
        seen.retain(|one| *one != Seen::Disconnect(0x8e));
    }
}

pub(super) fn why_it_closes(plan: &Plan, trace: &mut Trace) {
    for (step, who, seen) in trace.parts() {
        if let Some(invalid) = invalid(plan, step, who) {
            seen.retain(|one| match one {
                Seen::Disconnect(_) => false,
                Seen::ConnAck { code, .. } => *code == 0,
                // The answer to a level that nobody knows may be of any version.
                Seen::Fault(_) => {
                    !matches!(invalid, Invalid::ConnectLevel6 | Invalid::ConnectLevel0)
                }
                _ => true,
            });
        }
    }
}

pub(super) fn stricter(plan: &Plan, trace: &mut Trace) {
    use Invalid::{
        ConnectFixedFlags, PingFlags, PubRelFlags, PublishDupQos0, ServersPingResp, ServersSubAck,
        SubscribeFlags, SubscribeNothing, SubscribeShareNoLocal, SubscribeShareNoName,
        SubscriptionIdFromClient, UnsubscribeFlags, UnsubscribeNothing,
    };
    let takes = [
        ConnectFixedFlags,
        PingFlags,
        PubRelFlags,
        PublishDupQos0,
        ServersPingResp,
        ServersSubAck,
        SubscribeFlags,
        SubscribeNothing,
        SubscribeShareNoLocal,
        SubscribeShareNoName,
        SubscriptionIdFromClient,
        UnsubscribeFlags,
        UnsubscribeNothing,
    ];
    let mut taken = None;
    for (step, who, seen) in trace.parts() {
        if invalid(plan, step, who).is_some_and(|invalid| takes.contains(&invalid)) {
            seen.retain(|one| matches!(one, Seen::Message(_) | Seen::Release(_) | Seen::Closed));
            taken = taken.or(Some(step));
        }
    }
    // What such a PUBLISH carries.
    for (_, _, seen) in trace.parts().filter(|(step, _, _)| taken.is_some_and(|at| at <= *step)) {
        seen.retain(|one| !matches!(one, Seen::Message(message) if message.payload == "bad"));
    }
}

pub(super) fn bad_filter(plan: &Plan, trace: &mut Trace) {
    use Invalid::{
        SubscribeEmptyFilter, SubscribeHashInside, SubscribePlusInside, UnsubscribeHashInside,
    };
    let answered =
        [SubscribeEmptyFilter, SubscribeHashInside, SubscribePlusInside, UnsubscribeHashInside];
    for (step, who, seen) in trace.parts() {
        if invalid(plan, step, who).is_some_and(|invalid| answered.contains(&invalid)) {
            seen.retain(|one| matches!(one, Seen::Message(_) | Seen::Release(_) | Seen::Closed));
        }
    }
}

pub(super) fn unknown_packet_id(_: &Plan, trace: &mut Trace) {
    for (_, _, seen) in trace.parts() {
        for one in seen.iter_mut() {
            if let Seen::Ack("PUBCOMP", code) = one
                && *code == 0x92
            {
                *code = 0;
            }
        }
    }
}
