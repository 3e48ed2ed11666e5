//! Which stream, key and partition a message goes to.
//!
//! Holds: the ordered rules (first match wins, [`CATCH_ALL`] last), and the handle that changes them while the cloud runs.
//! In: an MQTT topic. Out: a [`Target`], or with a log a [`Place`]. Change here: what a rule can say, and what is refused.
//! Not here: how names are rendered (`template`), which partition a key falls on (`partition`), storing (heads and `log`).
//!
//! A rule is checked when it is set, not when a message meets it: a `{n}` that a matching topic may lack, and literals
//! that are illegal in a Kafka topic name, are refused; topic levels are made legal by `template`'s fixed rule.

mod partition;
mod template;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
pub use partition::{key_index, murmur2};
use serde::{Deserialize, Serialize};
use template::Template;
pub use template::legal_level;
use tokio::sync::watch;
use tributary_shared::{
    record::{Header, Record},
    topic::filter,
};

use crate::{
    engine::ShardId,
    log::{Log, LogError, PartitionId, Stream},
};

/// Stream of everything that no rule takes.
pub const CATCH_ALL: &str = "mqtt.messages";
/// What edges say of themselves, and where it goes unless a rule says otherwise: apart from what devices say.
pub const EDGES_FILTER: &str = "tributary/+/inventory";
/// See [`EDGES_FILTER`].
pub const EDGES: &str = "tributary.edges";
/// Header that carries the topic where the key is something else.
pub const TOPIC_HEADER: &str = tributary_shared::record::mqtt::header::TOPIC;
/// Streams that routing itself may bring a log to. Devices choose topic levels, so templates need an end: when there
/// are this many streams, a message for a new one goes to [`CATCH_ALL`] and is counted ([`Routing::redirected`]).
pub const STREAMS_MAX: usize = 2_000;
/// Rules one table may hold: each message walks it.
pub const RULES_MAX: usize = 256;

/// How a partition is chosen within the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PartitionRule {
    /// The edge's: one batch stays one commit. Records that came from no edge follow their key.
    #[default]
    Edge,
    /// murmur2 of the key, as the Java client does it.
    Key,
}

tributary_shared::settings! {
    /// One rule of the routing table.
    pub struct Rule {
        /// MQTT topic filter.
        pub filter: String = String::new(),
        /// Stream name; `{1}` stands for the first level of the topic, and so on.
        pub stream: String = String::new(),
        /// Record key, same placeholders and `{topic}`; without it the key is the full topic.
        pub key: Option<String> = None,
        /// Partition: `edge` = the edge's own, so that its batches stay whole; `key` = by the record's key, as Kafka clients do.
        pub partition: PartitionRule = PartitionRule::Edge,
    }
}

/// Why a rule is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum RouteError {
    #[error("route {0}: `{1}` is not a legal topic filter")]
    Filter(usize, String),
    #[error(
        "route {0}: placeholder `{{{1}}}` in `{2}` is not a level number from 1 or `topic` in a key"
    )]
    Placeholder(usize, String, String),
    #[error("route {0}: `{{{1}}}` can be missing: filter `{2}` promises only {3} levels")]
    MissingLevel(usize, usize, String, usize),
    #[error(
        "route {0}: stream `{1}` can render an illegal name: 1 to 249 letters, digits, `.`, `_`, `-`"
    )]
    StreamName(usize, String),
    #[error("route {0}: partition rule `key` needs a log of one shard, this one has {1}")]
    KeyRuleNeedsOneShard(usize, u16),
    #[error("{0} routes are over the limit of {RULES_MAX}")]
    TooMany(usize),
}

/// Where a topic's messages go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Stream name; legal, but the stream may not exist yet.
    pub stream: Arc<str>,
    /// Key where it is not the full topic.
    pub key: Option<Bytes>,
    /// How the partition is chosen.
    pub rule: PartitionRule,
}

impl Target {
    /// Gives `record`, whose topic is `topic`, the key of this target. The topic moves to [`TOPIC_HEADER`] where the
    /// key no longer says it.
    pub fn set_key(&self, record: &mut Record, topic: &str) {
        let Some(key) = &self.key else {
            record.key = Some(Bytes::copy_from_slice(topic.as_bytes()));
            return;
        };
        record.key = Some(key.clone());
        if record.header(TOPIC_HEADER).is_none() {
            let value = Some(Bytes::copy_from_slice(topic.as_bytes()));
            record.headers.insert(0, Header { name: TOPIC_HEADER.into(), value });
        }
    }
}

/// The rules, compiled. Immutable; see [`Routing`] for the one in force.
#[derive(Debug, Clone)]
pub struct Routes {
    rules: Vec<Rule>,
    compiled: Vec<Compiled>,
    catch_all: Arc<str>,
    edges: Arc<str>,
}

#[derive(Debug, Clone)]
struct Compiled {
    filter: String,
    stream: Template,
    key: Option<Template>,
    partition: PartitionRule,
}

impl Routes {
    /// Checks and compiles `rules`; the first bad one is named (counted from 1).
    pub fn new(rules: Vec<Rule>) -> Result<Self, RouteError> {
        if rules.len() > RULES_MAX {
            return Err(RouteError::TooMany(rules.len()));
        }
        let compiled = rules
            .iter()
            .enumerate()
            .map(|(index, rule)| compile(index + 1, rule))
            .collect::<Result<_, _>>()?;
        Ok(Self { rules, compiled, catch_all: CATCH_ALL.into(), edges: EDGES.into() })
    }

    /// As they were given.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Stream, key and rule of `topic`.
    pub fn target(&self, topic: &str) -> Target {
        let Some(rule) = self.compiled.iter().find(|rule| filter::matches(&rule.filter, topic))
        else {
            let edges = filter::matches(EDGES_FILTER, topic);
            return Target {
                stream: if edges { self.edges.clone() } else { self.catch_all.clone() },
                key: None,
                rule: PartitionRule::default(),
            };
        };
        Target {
            stream: rule.stream.render_name(topic),
            key: rule.key.as_ref().map(|key| key.render_key(topic)),
            rule: rule.partition,
        }
    }

    /// With several shards a `key` rule would spread one edge batch over several commits.
    fn check_shards(&self, shards: u16) -> Result<(), RouteError> {
        match self.compiled.iter().position(|rule| rule.partition == PartitionRule::Key) {
            Some(index) if shards > 1 => Err(RouteError::KeyRuleNeedsOneShard(index + 1, shards)),
            _ => Ok(()),
        }
    }
}

impl Default for Routes {
    fn default() -> Self {
        let (catch_all, edges) = (CATCH_ALL.into(), EDGES.into());
        Self { rules: Vec::new(), compiled: Vec::new(), catch_all, edges }
    }
}

fn compile(number: usize, rule: &Rule) -> Result<Compiled, RouteError> {
    if !filter::is_legal(&rule.filter) || rule.filter.starts_with("$share/") {
        return Err(RouteError::Filter(number, rule.filter.clone()));
    }
    let promised = rule.filter.split('/').filter(|level| *level != "#").count();
    let stream = Template::parse(&rule.stream, false)
        .map_err(|name| RouteError::Placeholder(number, name, rule.stream.clone()))?;
    let key = rule
        .key
        .as_deref()
        .map(|text| {
            Template::parse(text, true)
                .map_err(|name| RouteError::Placeholder(number, name, text.to_owned()))
        })
        .transpose()?;
    let highest = stream.highest_level().max(key.as_ref().map_or(0, Template::highest_level));
    if highest > promised {
        return Err(RouteError::MissingLevel(number, highest, rule.filter.clone(), promised));
    }
    if !stream.renders_legal_names() {
        return Err(RouteError::StreamName(number, rule.stream.clone()));
    }
    Ok(Compiled { filter: rule.filter.clone(), stream, key, partition: rule.partition })
}

/// The rules in force, and the way to change them. Cheap to clone; clones share everything.
#[derive(Debug, Clone)]
pub struct Routing {
    current: Arc<watch::Sender<Arc<Routes>>>,
    redirected: Arc<AtomicU64>,
}

impl Routing {
    /// Starts with `routes`.
    pub fn new(routes: Routes) -> Self {
        Self { current: Arc::new(watch::Sender::new(Arc::new(routes))), redirected: Arc::default() }
    }

    /// Messages that went to [`CATCH_ALL`] because of [`STREAMS_MAX`].
    pub fn redirected(&self) -> u64 {
        self.redirected.load(Ordering::Relaxed)
    }

    /// Those that hold now. Take them once a batch, so that a batch is routed by one table.
    pub fn current(&self) -> Arc<Routes> {
        self.current.borrow().clone()
    }

    /// Replaces the table from the next batch on, or says why not and leaves it.
    pub fn set(&self, routes: Routes, log: &Log) -> Result<(), RouteError> {
        routes.check_shards(log.shards())?;
        self.current.send_replace(Arc::new(routes));
        Ok(())
    }

    /// Tells of changes.
    pub fn changes(&self) -> watch::Receiver<Arc<Routes>> {
        self.current.subscribe()
    }

    /// Where a message on `topic` goes that a head whose state is in shard `home` has taken: to a partition there, so that one
    /// commit holds both. Its key picks which, if there are several. Makes the stream if it is not there.
    pub async fn place(&self, log: &Log, home: ShardId, topic: &str) -> Result<Place, LogError> {
        let target = self.current().target(topic);
        let key = target.key.clone().unwrap_or_else(|| Bytes::copy_from_slice(topic.as_bytes()));
        let (stream, partition) = self.at_home(log, home, &target, &key).await?;
        Ok(Place { shard: home, stream, partition, target })
    }

    /// Where the messages of `edge` go by `target`. With the `edge` rule the partition lives in the edge's home shard.
    pub async fn place_from_edge(
        &self,
        log: &Log,
        edge: &str,
        target: &Target,
        key: &[u8],
    ) -> Result<Place, LogError> {
        let (stream, partition) = match target.rule {
            PartitionRule::Key => {
                let stream = self.stream(log, &target.stream).await?;
                let partition = PartitionId::new(stream.id, key_index(key, stream.partitions));
                (stream, partition)
            }
            PartitionRule::Edge => {
                self.at_home(log, log.home_shard(edge), target, edge.as_bytes()).await?
            }
        };
        Ok(Place { shard: log.shard_of(partition)?, stream, partition, target: target.clone() })
    }

    /// The target's partition in shard `home`; `key` picks one of several.
    async fn at_home(
        &self,
        log: &Log,
        home: ShardId,
        target: &Target,
        key: &[u8],
    ) -> Result<(Arc<Stream>, PartitionId), LogError> {
        let mut stream = self.stream(log, &target.stream).await?;
        let mut partition = partition::at_home(log, &stream, home, key)?;
        if partition.is_none() {
            // A stream made with fewer partitions than there are shards grows to one on each.
            stream = log.grow_stream(&stream.name, u32::from(log.shards())).await?;
            partition = partition::at_home(log, &stream, home, key)?;
        }
        Ok((stream, partition.ok_or(LogError::NotOwner)?))
    }

    async fn stream(&self, log: &Log, name: &str) -> Result<Arc<Stream>, LogError> {
        if let Some(stream) = log.stream(name) {
            return Ok(stream);
        }
        if log.streams().len() < STREAMS_MAX {
            return log.ensure_stream(name).await;
        }
        if self.redirected.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::warn!(
                limit = STREAMS_MAX,
                name,
                "too many streams: {CATCH_ALL} takes the rest"
            );
        }
        log.ensure_stream(CATCH_ALL).await
    }
}

/// A target in a log.
#[derive(Debug, Clone)]
pub struct Place {
    /// Stream.
    pub stream: Arc<Stream>,
    /// Partition.
    pub partition: PartitionId,
    /// Shard the partition lives in.
    pub shard: ShardId,
    /// What led here; sets the record's key.
    pub target: Target,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(filter: &str, stream: &str, key: Option<&str>) -> Rule {
        Rule {
            filter: filter.into(),
            stream: stream.into(),
            key: key.map(Into::into),
            partition: PartitionRule::Edge,
        }
    }

    #[test]
    fn the_first_rule_that_matches_wins_and_the_catch_all_takes_the_rest() {
        let routes = Routes::new(vec![
            rule("plant/+/alarm/#", "alarms.{2}", None),
            rule("plant/#", "plant", Some("{1}")),
            rule("+/status", "status.{1}", Some("k-{1}-{topic}")),
        ])
        .unwrap();
        for (topic, stream, key) in [
            ("plant/a/alarm/x", "alarms.a", None),
            ("plant/a/alarm", "alarms.a", None),
            ("plant/a/temp", "plant", Some("plant")),
            ("plant", "plant", Some("plant")),
            ("gw 1/status", "status.gw_x201", Some("k-gw 1-gw 1/status")),
            ("/status", "status.", Some("k--/status")),
            ("other", CATCH_ALL, None),
            ("tributary/gw1/inventory", EDGES, None),
            ("tributary/gw1/inventory/x", CATCH_ALL, None),
            ("$SYS/status", CATCH_ALL, None),
            ("a/status/b", CATCH_ALL, None),
        ] {
            let target = routes.target(topic);
            assert_eq!(&*target.stream, stream, "{topic}");
            assert_eq!(target.key.as_deref(), key.map(str::as_bytes), "{topic}");
        }
    }

    #[test]
    fn a_rule_that_could_fail_later_is_refused_when_it_is_set() {
        for (filter, stream, key, said) in [
            ("a/#/b", "s", None, "not a legal topic filter"),
            ("", "s", None, "not a legal topic filter"),
            ("a+/b", "s", None, "not a legal topic filter"),
            ("$share/g/a", "s", None, "not a legal topic filter"),
            ("a/+", "s.{3}", None, "can be missing"),
            ("a/#", "s.{2}", None, "can be missing"),
            ("a/#", "s", Some("{2}"), "can be missing"),
            ("a/+", "s.{0}", None, "is not a level number"),
            ("a/+", "s.{x}", None, "is not a level number"),
            ("a/+", "s.{topic}", None, "is not a level number"),
            ("a/+", "s.{2", None, "is not a level number"),
            ("a/+", "s p", None, "illegal name"),
            ("a/+", "", None, "illegal name"),
            ("a/+", "..", None, "illegal name"),
        ] {
            let error = Routes::new(vec![rule(filter, stream, key)]).unwrap_err().to_string();
            assert!(error.contains(said), "{filter} {stream}: {error}");
        }
        assert!(Routes::new(vec![rule("a", &"s".repeat(250), None)]).is_err());
        assert!(Routes::new(vec![rule("a", "b", None); RULES_MAX + 1]).is_err());
    }

    #[test]
    fn a_rewritten_key_leaves_the_topic_in_a_header() {
        let routes = Routes::new(vec![rule("+/t", "s", Some("{1}"))]).unwrap();
        let mut record = Record::default();
        routes.target("d/t").set_key(&mut record, "d/t");
        assert_eq!(record.key.as_deref(), Some(&b"d"[..]));
        assert_eq!(record.header(TOPIC_HEADER).map(|v| &v[..]), Some(&b"d/t"[..]));
    }
}
