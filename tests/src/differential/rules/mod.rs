//! Where our broker and mosquitto may differ, and why.
//!
//! A rule takes out of a trace what may differ, and nothing else; it is applied to both. A rule that is not needed to make two
//! traces equal is not counted. Change here: add a rule only with the section that leaves it open.

mod delivery;
mod faults;
mod shared;
mod wills;

use super::{
    invalid::Invalid,
    plan::{Plan, What},
    seen::{Message, Seen, Trace},
};

/// One explained difference.
#[derive(Debug)]
pub struct Rule {
    /// Short name, in reports and in docs/reference/mqtt-differences.md.
    pub name: &'static str,
    /// Where the standard leaves it open, or who is against it.
    pub section: &'static str,
    /// What each does, and why we do so.
    pub why: &'static str,
    pub(super) apply: fn(&Plan, &mut Trace),
}

/// All of them, in the order in which they are applied.
pub const RULES: &[Rule] = &[
    Rule {
        name: "no-matching-subscribers",
        section: "3.4.2.1, 3.5.2.1",
        why: "mosquitto answers 0x10 where nobody gets the message; a server may.",
        apply: faults::no_matching_subscribers,
    },
    Rule {
        name: "taken-over-without-a-word",
        section: "MQTT-3.1.4-3",
        why: "mosquitto 2.0 closes a connection that is taken over without the DISCONNECT 0x8E that is demanded.",
        apply: faults::taken_over_without_a_word,
    },
    Rule {
        name: "will-at-takeover",
        section: "MQTT-3.1.2-8",
        why: "A connection that is taken over ends without DISCONNECT: its will is due. mosquitto forgets it if the session goes on.",
        apply: wills::will_at_takeover,
    },
    Rule {
        name: "why-it-closes",
        section: "4.13.1, 3.1.4",
        why: "Before a connection is closed for a fault a server may say why, with the code it thinks best. We always do.",
        apply: faults::why_it_closes,
    },
    Rule {
        name: "stricter",
        section: "MQTT-2.1.3-1, 3.1.2-3, 3.3.1-2, 3.3.4-6, 3.8.3-4, 4.8.2-1, 3.8.3-3 and 3.10.3-2 of 3.1.1, table 2-1",
        why: "We close (or refuse the filter); mosquitto takes no offence.",
        apply: faults::stricter,
    },
    Rule {
        name: "bad-filter",
        section: "3.9.3, 3.11.3",
        why: "A filter with a misplaced wildcard, or an empty one: we answer it alone, mosquitto closes.",
        apply: faults::bad_filter,
    },
    Rule {
        name: "unknown-packet-id",
        section: "3.6.2.1, 3.7.2.1",
        why: "We tell version 5 that a PUBREL or PUBREC is about an id that we do not know (0x92); mosquitto does not.",
        apply: faults::unknown_packet_id,
    },
    Rule {
        name: "copies",
        section: "3.3.4, MQTT-3.3.5-1 of 3.1.1",
        why: "For overlapping subscriptions mosquitto sends a copy each, we send one: highest QoS, all subscription identifiers.",
        apply: delivery::copies,
    },
    Rule {
        name: "retained-for-shared",
        section: "4.8.2",
        why: "mosquitto 2.0 sends retained messages to new shared subscriptions; none are to be sent.",
        apply: shared::retained_for_shared,
    },
    Rule {
        name: "delayed-will-of-no-session",
        section: "MQTT-3.1.2-8, 3.1.3.2.2",
        why: "A delayed will is due when its session ends, also if that is at once; mosquitto waits for the delay.",
        apply: wills::delayed_will,
    },
    Rule {
        name: "will-to-oneself",
        section: "3.1.2.5",
        why: "A will is published when its connection is no more; mosquitto sends it to that very connection before it closes it.",
        apply: wills::will_to_oneself,
    },
    Rule {
        name: "onward-at-pubrel",
        section: "4.3.3, figure 4.3",
        why: "mosquitto delivers a QoS 2 message when PUBREL comes, we when PUBLISH comes: a publisher cut between them that subscribes to itself gets it on the first connection.",
        apply: delivery::onward_at_pubrel,
    },
    Rule {
        name: "replaced-flags",
        section: "MQTT-3.8.4-3",
        why: "A repeated subscription replaces the first. mosquitto 2.0 keeps the first one's No Local and Retain As Published.",
        apply: delivery::replaced_flags,
    },
    Rule {
        name: "own-retained",
        section: "MQTT-3.8.3-3",
        why: "No Local keeps a client's own messages from it, also retained ones. mosquitto sends those to a new subscription.",
        apply: delivery::own_retained,
    },
    Rule {
        name: "copies-while-away",
        section: "3.3.4",
        why: "As `copies`: of those for a client that is away mosquitto keeps the ones of QoS 1 and 2, we keep all identifiers.",
        apply: delivery::copies_while_away,
    },
    Rule {
        name: "which-member",
        section: "4.8.2",
        why: "Who of a shared subscription gets a message is the server's choice.",
        apply: shared::which_member,
    },
    Rule {
        name: "member-away",
        section: "4.8.2",
        why: "mosquitto gives members that are away their turn, and QoS 0 messages of theirs are lost; we choose one that is there.",
        apply: shared::member_away,
    },
];

/// What a client did wrong in a step.
fn invalid(plan: &Plan, step: usize, who: usize) -> Option<Invalid> {
    match plan.steps.get(step).filter(|step| step.who == who)?.what {
        What::Invalid(invalid) | What::Stranger(invalid, _) => Some(invalid),
        _ => None,
    }
}

/// Takes out messages, with what else there is of their flows.
fn take_out(seen: &mut Vec<Seen>, which: impl Fn(&Message) -> bool) {
    let gone: Vec<String> = seen
        .iter()
        .filter_map(|one| match one {
            Seen::Message(message) if which(message) => Some(message.payload.clone()),
            _ => None,
        })
        .collect();
    seen.retain(|one| match one {
        Seen::Message(message) => !which(message),
        Seen::Release(of) => !gone.contains(of),
        _ => true,
    });
}
