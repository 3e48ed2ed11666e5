//! What becomes of a message from the cloud. Pure.
//!
//! ```text
//! tributary/{edge}/down/a/b  -> local topic a/b
//! tributary/{edge}/settings  -> settings
//! anything else we asked for -> the same topic
//! the last user property tributary-at={partition}:{offset} is taken off: before the place we have -> seen before
//! ```
//! Change here: which topics mean what. Not here: what is done with it (`downlink`), where places are kept (`store`).

use std::collections::HashMap;

use tributary_shared::{
    mqtt::{
        Qos,
        packet::{Publish, PublishProperties},
    },
    topic,
};

use crate::own::{Place, Publication};

/// Name that stands for every edge.
pub(crate) const ALL: &str = "all";
const PLACE_PROPERTY: &str = "tributary-at";

/// Where commands for this edge come, and its settings.
#[derive(Debug, Clone)]
pub(super) struct Topics {
    down: String,
    settings: [String; 2],
}

impl Topics {
    pub(super) fn new(prefix: &str, edge: &str) -> Self {
        let settings = [ALL, edge].map(|name| format!("{prefix}tributary/{name}/settings"));
        Self { down: format!("{prefix}tributary/{edge}/down/"), settings }
    }

    /// The filter of commands.
    pub(super) fn down_filter(&self) -> String {
        format!("{}#", self.down)
    }

    /// Topics of settings: for all edges, for this one.
    pub(super) fn settings(&self) -> &[String; 2] {
        &self.settings
    }
}

/// What a message is.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Sorted {
    /// For local subscribers.
    Command(Publication, Qos),
    /// Its time was over before it came.
    Expired,
    /// For nobody here: its topic is none, or one that only brokers publish to.
    Unusable,
    /// Settings: for all edges, or for this one.
    Settings {
        /// For this one.
        own: bool,
        /// The document; empty: taken back.
        text: bytes::Bytes,
    },
}

/// Sorts; the place is taken off its properties first.
pub(super) fn sort(topics: &Topics, publish: Publish) -> (Sorted, Option<Place>) {
    let Publish { topic, payload, retain, qos, mut properties, .. } = publish;
    let place = take_place(&mut properties);
    if let Some(at) = topics.settings.iter().position(|settings| **settings == *topic) {
        return (Sorted::Settings { own: at == 1, text: payload }, place);
    }
    let local = match topic.strip_prefix(&topics.down) {
        Some(local) => topic.slice_ref(local),
        None => topic,
    };
    if !topic::is_legal_name(&local) || local.starts_with('$') {
        return (Sorted::Unusable, place);
    }
    if properties.message_expiry == Some(0) {
        return (Sorted::Expired, place);
    }
    (Sorted::Command(Publication { topic: local, payload, properties, retain }, qos), place)
}

fn take_place(properties: &mut PublishProperties) -> Option<Place> {
    let user = &mut properties.user_properties;
    let (_, value) = user.pop_if(|(name, _)| *name == PLACE_PROPERTY)?;
    let (source, offset) = value.split_once(':')?;
    Some(Place { source: source.parse().ok()?, offset: offset.parse().ok()? })
}

/// How far everything is stored or on its way there, by partition.
#[derive(Debug, Clone, Default)]
pub(super) struct Places(HashMap<u64, u64>);

impl Places {
    pub(super) fn new(next: HashMap<u64, u64>) -> Self {
        Self(next)
    }

    /// Nothing at this place was taken note of, or behind it.
    pub(super) fn is_new(&self, place: Place) -> bool {
        self.0.get(&place.source).is_none_or(|next| place.offset >= *next)
    }

    /// Takes note of a place.
    pub(super) fn advance(&mut self, place: Place) {
        let next = self.0.entry(place.source).or_default();
        *next = (*next).max(place.offset.saturating_add(1));
    }

    /// They are of a session that is no more.
    pub(super) fn forget(&mut self) {
        self.0.clear();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topics() -> Topics {
        Topics::new("", "gw1")
    }

    fn publish(topic: &str, user: &[(&str, &str)], expiry: Option<u32>) -> Publish {
        let user = user.iter().map(|&(name, value)| (name.into(), value.into())).collect();
        Publish {
            qos: Qos::AtLeastOnce,
            topic: topic.into(),
            payload: "x".into(),
            properties: PublishProperties {
                message_expiry: expiry,
                user_properties: user,
                ..PublishProperties::default()
            },
            ..Publish::default()
        }
    }

    #[test]
    fn a_topic_of_our_own_loses_its_beginning_and_others_stay() {
        for (topic, local) in [
            ("tributary/gw1/down/a/b", Some("a/b")),
            ("commands/a", Some("commands/a")),
            ("tributary/gw2/down/a", Some("tributary/gw2/down/a")),
            ("tributary/gw1/down/", None),
            ("tributary/gw1/down/$SYS/broker/uptime", None),
        ] {
            let (sorted, place) = sort(&topics(), publish(topic, &[], None));
            let found = match sorted {
                Sorted::Command(publication, Qos::AtLeastOnce) => Some(publication.topic),
                Sorted::Unusable => None,
                other => panic!("{other:?}"),
            };
            assert_eq!((found.as_deref(), place), (local, None), "{topic}");
        }
    }

    #[test]
    fn only_the_last_property_is_a_place_and_devices_do_not_see_it() {
        let user = [("tributary-at", "9:9"), ("k", "v"), ("tributary-at", "3:41")];
        let (sorted, place) = sort(&topics(), publish("c", &user, Some(9)));
        assert_eq!(place, Some(Place { source: 3, offset: 41 }));
        let Sorted::Command(publication, _) = sorted else { panic!("{sorted:?}") };
        assert_eq!(publication.properties.user_properties.len(), 2);
        let user = [("tributary-at", "9:9"), ("tributary-at", "")];
        assert_eq!(sort(&topics(), publish("c", &user, None)).1, None, "the cloud knows none");
        let user = [("tributary-at", "9:9"), ("k", "v")];
        assert_eq!(sort(&topics(), publish("c", &user, None)).1, None);
    }

    #[test]
    fn what_has_no_time_left_is_not_delivered_and_settings_are_for_one_or_for_all() {
        let (sorted, _) = sort(&topics(), publish("c", &[], Some(0)));
        assert_eq!(sorted, Sorted::Expired);
        for (name, is_own) in [("all", false), ("gw1", true)] {
            let (sorted, _) =
                sort(&topics(), publish(&format!("tributary/{name}/settings"), &[], None));
            assert!(matches!(sorted, Sorted::Settings { own, .. } if own == is_own), "{name}");
        }
    }

    #[test]
    fn a_place_counts_once_until_all_are_forgotten() {
        let at = |source, offset| Place { source, offset };
        let mut places = Places::new([(1, 5)].into());
        let seen = [(1, 4), (1, 5), (1, 5), (2, 0), (1, 9), (1, 7), (2, 0), (2, 1)].map(
            |(source, offset)| {
                let new = places.is_new(at(source, offset));
                places.advance(at(source, offset));
                new
            },
        );
        assert_eq!(seen, [false, true, false, true, true, false, false, true]);
        places.forget();
        assert!(places.is_empty() && places.is_new(at(1, 0)));
    }
}
