//! What is special about edges that listen for commands. Pure.
//!
//! ```text
//! CONNECT (v5, client id {edge}.down, user property tributary-down={edge}) -> an ordinary session, but
//!   each PUBLISH ends with user property tributary-at={partition}:{offset}     where the record lies in the log
//!   a record of an edge counts as published by {edge}.down                     No Local keeps it from going back
//!   it publishes nothing, and has filters of its own and those that the operator names only
//! ```
//! The place is the same however often the record is delivered, also after a restart of either side: by it an edge knows what
//! it has stored already. It is empty where there is none, so that nobody can pass one off as ours.
//! Not here: sessions and their queues (`shared::session`), what an edge does with a command.

use bytestring::ByteString;
use tributary_shared::{
    message::{Message, MessageRef},
    mqtt::{
        Version,
        packet::{Connect, Reason, Subscribe},
        write::Encoded,
    },
    record::{Record, mqtt::header},
    session::Delivery,
};

/// User property of CONNECT: the edge that listens.
const DOWN_PROPERTY: &str = "tributary-down";
/// User property of a PUBLISH to an edge.
const PLACE_PROPERTY: &str = "tributary-at";
/// End of the client id.
const SUFFIX: &str = ".down";
/// Bytes that the place takes in a packet.
const PLACE_BYTES: u32 = 64;

/// The edge that a connection listens for.
pub fn edge(connect: &Connect) -> Option<&str> {
    let edge = edge_of(&connect.client_id)?;
    let named = |(name, value): &(ByteString, ByteString)| name == DOWN_PROPERTY && *value == edge;
    let said = connect.version == Version::V5 && connect.user_properties.iter().any(named);
    said.then_some(edge)
}

/// For each filter, why an edge cannot have it: it hears what is for it, for all, and what is in `common`, nothing else.
pub(super) fn refused(edge: &str, common: &[String], subscribe: &Subscribe) -> Vec<Option<Reason>> {
    let no = |filter: &str| (!may_have(edge, common, filter)).then_some(Reason::NOT_AUTHORIZED);
    subscribe.filters.iter().map(|one| no(&one.filter)).collect()
}

fn may_have(edge: &str, common: &[String], filter: &str) -> bool {
    let mut levels = filter.split('/');
    let known = match (levels.next(), levels.next(), levels.next(), levels.next()) {
        (Some("tributary"), Some("all"), Some("settings"), None) => true,
        (Some("tributary"), Some(name), Some("settings"), None)
        | (Some("tributary"), Some(name), Some("down"), _) => name == edge,
        _ => false,
    };
    known || common.iter().any(|common| covers(common, filter))
}

/// Whether every topic of `filter` is one of `common`, too. A shared subscription is under no filter.
fn covers(common: &str, filter: &str) -> bool {
    if filter.starts_with('$') {
        return false;
    }
    let mut narrow = filter.split('/');
    for wide in common.split('/') {
        match (wide, narrow.next()) {
            ("#", _) => return true,
            (_, None | Some("#")) => return false,
            ("+", Some(_)) => {}
            (wide, Some(level)) if wide == level => {}
            _ => return false,
        }
    }
    narrow.next().is_none()
}

/// Whose client id it is, if it is an edge's.
pub(super) fn edge_of(client_id: &str) -> Option<&str> {
    client_id.strip_suffix(SUFFIX).filter(|edge| !edge.is_empty())
}

/// Leaves room for the place in the longest packet.
pub(super) fn reserve(connect: &mut Connect) {
    let limit = &mut connect.maximum_packet_size;
    *limit = limit.map(|bytes| bytes.saturating_sub(PLACE_BYTES).max(PLACE_BYTES));
}

/// The delivery as an edge gets it.
pub(super) fn with_place(delivery: Delivery) -> Delivery {
    let place = delivery.message.place;
    let text = place.map_or_else(String::new, |MessageRef(at, offset)| format!("{at}:{offset}"));
    let mut message = Message { encoded: Encoded::default(), ..Message::clone(&delivery.message) };
    message.properties.user_properties.push((PLACE_PROPERTY.into(), text.into()));
    Delivery { message: message.into(), ..delivery }
}

/// Says of a record's message what edges have to do with it; `false`: a device said what only an operator may, and it is for
/// nobody.
pub(super) fn mark(record: &Record, place: MessageRef, message: &mut Message) -> bool {
    message.place = Some(place);
    let Some(edge) = record.header(header::EDGE_ID) else { return true };
    if is_operators(&message.topic) {
        return false;
    }
    message.publisher = std::str::from_utf8(edge).ok().map(|edge| format!("{edge}{SUFFIX}").into());
    true
}

/// Topics by which gateways are commanded: `tributary/+/down/#` and `tributary/+/settings`.
fn is_operators(topic: &str) -> bool {
    let mut levels = topic.split('/');
    match (levels.next(), levels.next(), levels.next(), levels.next()) {
        (Some("tributary"), Some(_), Some("down"), _) => true,
        (Some("tributary"), Some(_), Some("settings"), rest) => rest.is_none(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_operators_say_is_commands_and_settings() {
        for (topic, operators) in [
            ("tributary/gw1/down/a/b", true),
            ("tributary/gw1/down", true),
            ("tributary/gw1/settings", true),
            ("tributary/all/settings", true),
            ("tributary/gw1/settings/state", false),
            ("tributary/gw1/health", false),
            ("commands/a", false),
        ] {
            assert_eq!(is_operators(topic), operators, "{topic}");
        }
    }

    #[test]
    fn an_edge_hears_what_is_for_it_and_nothing_of_others() {
        for (filter, may) in [
            ("tributary/gw1/down/#", true),
            ("tributary/gw1/settings", true),
            ("tributary/all/settings", true),
            ("commands/#", true),
            ("commands/a/+", true),
            ("commands", true),
            ("rooms/7/light", true),
            ("rooms/+/light", true),
            ("rooms/#", false),
            ("rooms/7/light/x", false),
            ("telemetry/#", false),
            ("tributary/gw1/#", false),
            ("tributary/gw1/settings/state", false),
            ("tributary/gw1/inventory", false),
            ("$share/g/commands/#", false),
            ("tributary/gw2/down/#", false),
            ("tributary/+/settings", false),
            ("tributary/#", false),
            ("+/gw2/down/#", false),
            ("#", false),
        ] {
            let common = ["commands/#", "rooms/+/light"].map(str::to_owned);
            assert_eq!(may_have("gw1", &common, filter), may, "{filter}");
            let own = filter.starts_with("tributary/");
            assert_eq!(may_have("gw1", &[], filter), may && own, "{filter} without common ones");
        }
    }

    #[test]
    fn a_wide_common_filter_covers_what_is_under_it_and_no_shared_subscription() {
        let common = ["#".to_owned()];
        for (filter, may) in [("a/+", true), ("#", true), ("$share/g/a", false), ("$x", false)] {
            assert_eq!(may_have("gw1", &common, filter), may, "{filter}");
        }
    }

    #[test]
    fn an_edge_has_a_name() {
        assert_eq!(edge_of("gw1.down"), Some("gw1"));
        assert_eq!(edge_of(".down"), None);
        assert_eq!(edge_of("gw1.up.normal"), None);
    }
}
