//! DescribeConfigs (32), and the settings of topics by their Kafka names.
//!
//! Listed is what is enforced; what is fixed here is listed read-only, so that tools that look for it find the truth.
//! Not here: changing them (`alter_configs`), what they do (`log`).

use crate::{
    kafka::{
        Client,
        error::Code,
        frame::{
            text,
            wire::{
                describe_configs_request::{DescribeConfigsRequest, DescribeConfigsResource},
                describe_configs_response::{
                    DescribeConfigsResourceResult, DescribeConfigsResponse, DescribeConfigsResult,
                    DescribeConfigsSynonym,
                },
            },
        },
    },
    log::StreamConfig,
};

/// Kinds of resources.
pub(super) const TOPIC: i8 = 2;
pub(super) const BROKER: i8 = 4;

/// Where a value comes from (`DescribeConfigsResponse.ConfigSource`).
const FROM_TOPIC: i8 = 1;
const FROM_FILE: i8 = 4;
const FROM_DEFAULT: i8 = 5;

/// Types (`DescribeConfigsResponse.ConfigType`).
const BOOLEAN: i8 = 1;
const STRING: i8 = 2;
const INT: i8 = 3;
const LONG: i8 = 5;
const LIST: i8 = 7;

/// One setting, as Kafka shows it.
pub(super) struct Entry {
    pub(super) name: &'static str,
    pub(super) value: String,
    pub(super) read_only: bool,
    pub(super) source: i8,
    kind: i8,
    about: &'static str,
    /// The broker setting it falls back to, and its value.
    fallback: Option<(&'static str, String)>,
}

impl Entry {
    fn topic<T: ToString>(
        name: &'static str,
        kind: i8,
        own: Option<T>,
        fallback: (&'static str, T),
        about: &'static str,
    ) -> Self {
        let default = fallback.1.to_string();
        let source = if own.is_some() { FROM_TOPIC } else { FROM_DEFAULT };
        let value = own.map_or_else(|| default.clone(), |own| own.to_string());
        let fallback = Some((fallback.0, default));
        Self { name, value, read_only: false, source, kind, about, fallback }
    }

    fn fixed(
        name: &'static str,
        kind: i8,
        value: impl ToString,
        source: i8,
        about: &'static str,
    ) -> Self {
        let value = value.to_string();
        Self { name, value, read_only: true, source, kind, about, fallback: None }
    }
}

/// A topic's settings.
pub(super) fn topic_entries(client: &Client, config: &StreamConfig) -> Vec<Entry> {
    let log = client.head.log.settings();
    let append_time = config.log_append_time.then_some("LogAppendTime");
    vec![
        Entry::topic(
            "retention.ms",
            LONG,
            config.retention_ms,
            ("log.retention.ms", log.retention_ms),
            "Records older than this go; -1 = never.",
        ),
        Entry::topic(
            "retention.bytes",
            LONG,
            config.retention_bytes,
            ("log.retention.bytes", log.retention_bytes),
            "Oldest records go when a partition is larger; -1 = never.",
        ),
        Entry::topic(
            "max.message.bytes",
            INT,
            config.max_batch_bytes,
            ("message.max.bytes", log.max_batch_bytes),
            "Largest record batch.",
        ),
        Entry::topic(
            "message.timestamp.type",
            STRING,
            append_time,
            ("log.message.timestamp.type", "CreateTime"),
            "Whose clock the timestamps are.",
        ),
        Entry::topic(
            "cleanup.policy",
            LIST,
            policy(config),
            ("log.cleanup.policy", "delete"),
            "What happens to old records.",
        ),
        Entry::topic(
            "min.compaction.lag.ms",
            LONG,
            config.min_compaction_lag_ms,
            ("log.cleaner.min.compaction.lag.ms", log.min_compaction_lag_ms),
            "Younger records are not compacted.",
        ),
        Entry::topic(
            "delete.retention.ms",
            LONG,
            config.delete_retention_ms,
            ("log.cleaner.delete.retention.ms", log.delete_retention_ms),
            "A record without a value stays this long after what it replaced is gone.",
        ),
        Entry::fixed("compression.type", STRING, "producer", FROM_DEFAULT, "As the producer sent."),
        Entry::fixed("min.insync.replicas", INT, 1, FROM_DEFAULT, "The object store replicates."),
    ]
}

fn policy(config: &StreamConfig) -> Option<&'static str> {
    match (config.compact, config.compact_and_delete) {
        (true, true) => Some("compact,delete"),
        (true, false) => Some("compact"),
        (false, _) => None,
    }
}

fn set_policy(config: &mut StreamConfig, value: Option<&str>) -> Result<(), String> {
    let (mut compact, mut delete) = (false, value.is_none());
    for policy in value.unwrap_or_default().split(',').map(str::trim).filter(|p| !p.is_empty()) {
        match policy {
            "compact" => compact = true,
            "delete" => delete = true,
            _ => return Err("`cleanup.policy` is delete, compact, or compact,delete".into()),
        }
    }
    if !compact && !delete {
        return Err("`cleanup.policy` is delete, compact, or compact,delete".into());
    }
    (config.compact, config.compact_and_delete) = (compact, compact && delete);
    Ok(())
}

/// This node's id.
fn me(client: &Client) -> i32 {
    client.head.cluster.view().me.0
}

fn broker_entries(client: &Client) -> Vec<Entry> {
    let head = &client.head;
    let log = head.log.settings();
    let partitions = match log.default_partitions {
        0 => u32::from(head.log.shards()),
        count => count,
    };
    let file = FROM_FILE;
    vec![
        Entry::fixed("broker.id", INT, me(client), file, "Of this node."),
        Entry::fixed("num.partitions", INT, partitions, file, "Of a topic made without a count."),
        Entry::fixed(
            "auto.create.topics.enable",
            BOOLEAN,
            head.settings.auto_create_topics,
            file,
            "Topics are made when they are asked for.",
        ),
        Entry::fixed("default.replication.factor", INT, 1, file, "The object store replicates."),
        Entry::fixed("message.max.bytes", INT, log.max_batch_bytes, file, "Largest record batch."),
        Entry::fixed("log.retention.ms", LONG, log.retention_ms, file, "Default of topics."),
        Entry::fixed("log.retention.bytes", LONG, log.retention_bytes, file, "Default of topics."),
        Entry::fixed("log.cleanup.policy", LIST, "delete", FROM_DEFAULT, "Default of topics."),
    ]
}

/// Sets one topic setting; `None` = back to the default. The text says why not.
pub(super) fn set(
    config: &mut StreamConfig,
    name: &str,
    value: Option<&str>,
) -> Result<(), String> {
    let number = |value: Option<&str>| {
        value
            .map(|value| value.trim().parse::<i64>())
            .transpose()
            .map_err(|_| format!("`{name}` is a whole number"))
    };
    match name {
        "retention.ms" => config.retention_ms = number(value)?,
        "retention.bytes" => config.retention_bytes = number(value)?,
        "max.message.bytes" => {
            let bytes = number(value)?.map(usize::try_from).transpose();
            config.max_batch_bytes = bytes.map_err(|_| format!("`{name}` is not negative"))?;
        }
        "message.timestamp.type" => {
            config.log_append_time = match value {
                None | Some("CreateTime") => false,
                Some("LogAppendTime") => true,
                Some(_) => return Err(format!("`{name}` is CreateTime or LogAppendTime")),
            };
        }
        "cleanup.policy" => set_policy(config, value)?,
        "min.compaction.lag.ms" => config.min_compaction_lag_ms = number(value)?,
        "delete.retention.ms" => config.delete_retention_ms = number(value)?,
        // Fixed here: saying what is true anyway is no change.
        "compression.type" if matches!(value, None | Some("producer")) => {}
        "min.insync.replicas" if matches!(value, None | Some("1")) => {}
        _ => return Err(format!("`{name}` cannot be set here")),
    }
    Ok(())
}

pub(super) async fn answer(
    client: &Client,
    asked: DescribeConfigsRequest,
) -> DescribeConfigsResponse {
    let results = asked.resources.iter().map(|resource| {
        let result = DescribeConfigsResult::default()
            .with_resource_type(resource.resource_type)
            .with_resource_name(resource.resource_name.clone());
        match entries(client, resource) {
            Ok(entries) => {
                let wanted = |entry: &Entry| {
                    let keys = resource.configuration_keys.as_ref();
                    keys.is_none_or(|keys| keys.iter().any(|key| *key == *entry.name))
                };
                let entries = entries.into_iter().filter(wanted);
                result.with_configs(entries.map(|entry| shown(entry, &asked)).collect())
            }
            Err((code, why)) => {
                let (code, why) = super::failure(why, code);
                result.with_error_code(code).with_error_message(why)
            }
        }
    });
    DescribeConfigsResponse::default().with_results(results.collect())
}

fn entries(
    client: &Client,
    resource: &DescribeConfigsResource,
) -> Result<Vec<Entry>, (Code, &'static str)> {
    let name = resource.resource_name.as_str();
    match resource.resource_type {
        TOPIC => {
            let stream = client.head.log.stream(name);
            let stream = stream.ok_or((Code::UnknownTopicOrPartition, "topic not found"))?;
            Ok(topic_entries(client, &stream.config))
        }
        BROKER if name.is_empty() || name == me(client).to_string() => Ok(broker_entries(client)),
        BROKER => Err((Code::InvalidRequest, "another node's settings are asked of that node")),
        _ => Err((Code::InvalidRequest, "only topics and brokers have settings here")),
    }
}

fn shown(entry: Entry, asked: &DescribeConfigsRequest) -> DescribeConfigsResourceResult {
    let mut synonyms = Vec::new();
    if asked.include_synonyms {
        let synonym = |name: &str, value: &str, source: i8| {
            DescribeConfigsSynonym::default()
                .with_name(text(name))
                .with_value(Some(text(value)))
                .with_source(source)
        };
        if entry.source == FROM_TOPIC || entry.fallback.is_none() {
            synonyms.push(synonym(entry.name, &entry.value, entry.source));
        }
        if let Some((name, value)) = &entry.fallback {
            synonyms.push(synonym(name, value, FROM_DEFAULT));
        }
    }
    DescribeConfigsResourceResult::default()
        .with_name(text(entry.name))
        .with_value(Some(text(entry.value)))
        .with_read_only(entry.read_only)
        .with_config_source(entry.source)
        .with_synonyms(synonyms)
        .with_config_type(entry.kind)
        .with_documentation(asked.include_documentation.then(|| text(entry.about)))
}
