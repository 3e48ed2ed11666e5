//! Plans from seeds.
//!
//! What is left out, and why, stands where it is left out. Change here: how often what happens.

use tributary_shared::mqtt::{Qos, Version, packet::SubscriptionOptions};

use super::{
    invalid::{AS_FIRST, Invalid, ON_OPEN},
    plan::{Acks, CLIENTS, Extras, Hello, Plan, Step, Text, What, WillText},
};
use crate::random::Random;

/// Second level `P`: what only plain filters match.
const TOPICS: [&str; 14] = [
    "a/P/xP",
    "a/P/yP",
    "a/P/xP/yP",
    "a/P/xP/",
    "a/P/",
    "a/P",
    "b/P/xP",
    "b/P/yP",
    "/P/xP",
    "/P",
    "$x/P/xP",
    "$x/P",
    "a/P//yP",
    "b/P/xP/yP",
];
const FILTERS: [&str; 20] = [
    "a/P/#", "a/P/+", "+/P/xP", "+/P/#", "+/+/xP", "a/P/+/yP", "a/P/xP/#", "a/P/xP/+", "/P/#",
    "/P/+", "$x/P/#", "$x/P/+", "+/P", "+/P/+/#", "b/P/#", "+/+/xP/#", "+/P/+/yP", "a/P//+",
    "$x/+/xP", "b/P/+/#",
];
/// Second level `Ps`: what only shared filters match, so that who of a group gets a message cannot change what others get.
const SHARED_TOPICS: [&str; 4] = ["a/Ps/xPs", "a/Ps/yPs", "b/Ps/xPs", "a/Ps"];
const SHARED_FILTERS: [&str; 4] =
    ["$share/g/a/Ps/#", "$share/g/+/Ps/xPs", "$share/h/a/Ps/#", "$share/h/a/Ps/xPs"];

const ALL_QOS: [Qos; 3] = [Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce];

struct Generator {
    random: Random,
    clients: Vec<Client>,
    shared: bool,
    /// One QoS for every shared filter, so that it does not matter who gets a message.
    shared_qos: Qos,
    payloads: usize,
}

#[derive(Debug, Clone, Default)]
struct Client {
    hello: Option<Hello>,
    aliases: Vec<u16>,
}

impl Plan {
    /// The plan of a seed.
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let clients = vec![Client::default(); if random.percent(60) { 2 } else { CLIENTS }];
        let shared = random.percent(25);
        let shared_qos = random.pick(&ALL_QOS);
        let mut generator = Generator { random, clients, shared, shared_qos, payloads: 0 };
        let mut steps: Vec<Step> = (0..generator.clients.len())
            .map(|who| Step { who, what: generator.connect(who) })
            .collect();
        for _ in 0..4 + generator.random.below(9) {
            let who = generator.random.below(generator.clients.len());
            steps.push(Step { who, what: generator.step(who) });
        }
        Self { seed, steps }
    }
}

impl Generator {
    fn step(&mut self, who: usize) -> What {
        let Some(hello) = self.clients[who].hello.clone() else {
            return if self.random.percent(15) {
                let version = self.random.pick(&[Version::V31, Version::V311, Version::V5]);
                What::Stranger(self.random.pick(&AS_FIRST), version)
            } else {
                self.connect(who)
            };
        };
        match self.random.below(100) {
            0..27 => self.subscribe(hello.version),
            27..34 => self.unsubscribe(),
            73..77 => {
                What::Repeated(Text { qos: Qos::ExactlyOnce, ..self.text(hello.version, false) })
            }
            77..80 if keeps(&hello) => {
                // Not retained: it and a will on its topic are published in either order, as `onward-at-pubrel` says.
                let text = self.text(hello.version, false);
                let text = Text { qos: Qos::ExactlyOnce, retain: false, ..text };
                What::Interrupted { text, again: self.random.percent(50) }
            }
            80..86 => {
                self.clients[who] = Client::default();
                let new = hello.version == Version::V5;
                let expiry = (new && self.random.percent(20)).then(|| self.random.pick(&[0, 3600]));
                What::Leave { with_will: new && self.random.percent(25), expiry }
            }
            86..91 => {
                self.clients[who] = Client::default();
                What::Cut
            }
            91..95 => {
                let mut invalid = self.random.pick(&ON_OPEN);
                // mosquitto forgets session and will of a client that sends a second CONNECT; all that follows would differ.
                let loses = keeps(&hello) || hello.expiry.is_some() || hello.will.is_some();
                if invalid == Invalid::SecondConnect && loses {
                    invalid = Invalid::TypeZero;
                }
                if invalid.is_new() && hello.version != Version::V5 {
                    return self.publish(who, hello.version);
                }
                // Most end the connection; if not, the next CONNECT takes over.
                self.clients[who] = Client::default();
                What::Invalid(invalid)
            }
            95..99 => self.connect(who),
            _ => self.publish(who, hello.version),
        }
    }

    fn connect(&mut self, who: usize) -> What {
        let hello = self.hello();
        self.clients[who] = Client { hello: Some(hello.clone()), aliases: Vec::new() };
        What::Connect(hello)
    }

    fn hello(&mut self) -> Hello {
        let version = match self.random.below(20) {
            0 => Version::V31,
            1..10 => Version::V311,
            _ => Version::V5,
        };
        let new = version == Version::V5;
        // Messages that are not acknowledged go to another member of a shared subscription or stay: the broker's choice.
        let acks = match self.random.below(10) {
            0 if !self.shared => Acks::None,
            1 if !self.shared => Acks::Half,
            _ => Acks::All,
        };
        let clean = self.random.percent(40);
        let small = new && acks == Acks::All;
        let packet_maximum = (small && self.random.percent(10)).then_some(120);
        Hello {
            version,
            clean,
            expiry: (new && self.random.percent(60)).then(|| self.random.pick(&[0, 3600, 3600])),
            will: self.random.percent(35).then(|| WillText {
                text: self.text(version, true),
                delay: if new { self.random.pick(&[0, 0, 3600]) } else { 0 },
            }),
            // mosquitto 2.0 counts a message that is too large for its receiver as in flight, for ever.
            packet_maximum,
            receive_maximum: (small && packet_maximum.is_none() && self.random.percent(30))
                .then(|| 1 + self.random.below(3) as u16),
            aliases: if new { self.random.pick(&[0, 5]) } else { 0 },
            acks,
        }
    }

    fn subscribe(&mut self, version: Version) -> What {
        let new = version == Version::V5;
        let mut filters = Vec::new();
        for _ in 0..=self.random.below(3).min(self.random.below(3)) {
            if self.shared && self.random.percent(50) {
                let options = SubscriptionOptions { qos: self.shared_qos, ..Default::default() };
                filters.push((self.random.pick(&SHARED_FILTERS).to_owned(), options));
                continue;
            }
            let exact = self.random.percent(30);
            let filter = if exact { self.random.pick(&TOPICS) } else { self.random.pick(&FILTERS) };
            let options = SubscriptionOptions {
                qos: self.random.pick(&ALL_QOS),
                no_local: new && self.random.percent(25),
                retain_as_published: new && self.random.percent(30),
                retain_handling: if new { self.random.pick(&[0, 0, 0, 1, 2]) } else { 0 },
            };
            filters.push((filter.to_owned(), options));
        }
        let shared = filters.iter().any(|(filter, _)| filter.starts_with('$'));
        // A member's number would tell who of the group got it.
        let id =
            (new && !shared && self.random.percent(40)).then(|| 1 + self.random.below(5) as u32);
        What::Subscribe { filters, id }
    }

    fn unsubscribe(&mut self) -> What {
        let mut filters = Vec::new();
        for _ in 0..=self.random.below(2) {
            let filter = match self.random.below(10) {
                0..3 if self.shared => self.random.pick(&SHARED_FILTERS),
                0..5 => self.random.pick(&TOPICS),
                _ => self.random.pick(&FILTERS),
            };
            filters.push(filter.to_owned());
        }
        What::Unsubscribe(filters)
    }

    fn publish(&mut self, who: usize, version: Version) -> What {
        let mut text = self.text(version, false);
        if version == Version::V5 && self.random.percent(15) {
            let alias = 1 + self.random.below(3) as u16;
            let known = self.clients[who].aliases.contains(&alias);
            let with_topic = !known || self.random.percent(30);
            text.alias = Some((alias, with_topic));
            if !known {
                self.clients[who].aliases.push(alias);
            }
        }
        What::Publish(text)
    }

    fn text(&mut self, version: Version, will: bool) -> Text {
        self.payloads += 1;
        let topic = if self.shared && self.random.percent(50) {
            self.random.pick(&SHARED_TOPICS)
        } else {
            self.random.pick(&TOPICS)
        };
        let retain = self.random.percent(30);
        let payload = match self.random.below(100) {
            // Told apart from everything else.
            _ if will => format!("w{}", self.payloads),
            0..6 if retain => String::new(),
            0..3 => String::new(),
            3..8 => format!("m{}{}", self.payloads, ".".repeat(200)),
            _ => format!("m{}", self.payloads),
        };
        let extras = if version == Version::V5 && self.random.percent(30) {
            self.random.pick(&[Extras::About, Extras::Request, Extras::Format])
        } else {
            Extras::None
        };
        Text {
            topic: topic.to_owned(),
            payload,
            qos: self.random.pick(&ALL_QOS),
            retain,
            alias: None,
            extras,
        }
    }
}

fn keeps(hello: &Hello) -> bool {
    let lives = hello.version != Version::V5 || hello.expiry.is_some_and(|seconds| seconds > 0);
    !hello.clean && lives
}

/// All topics that a plan may leave retained messages on.
pub(super) fn topics() -> impl Iterator<Item = &'static str> {
    TOPICS.into_iter().chain(SHARED_TOPICS)
}
