//! CreateTopics (19) and DeleteTopics (20).
//!
//! Replicas are the object store's business: a replication factor of 1 (or -1) is taken, more is refused.

use uuid::Uuid;

use super::configs;
use crate::{
    kafka::{
        Client,
        error::Code,
        frame::{
            Request, StrBytes, text,
            wire::{
                BrokerId, TopicName,
                create_topics_request::{CreatableTopic, CreateTopicsRequest},
                create_topics_response::{
                    CreatableTopicConfigs, CreatableTopicResult, CreateTopicsResponse,
                },
                delete_topics_request::{DeleteTopicState, DeleteTopicsRequest},
                delete_topics_response::{DeletableTopicResult, DeleteTopicsResponse},
            },
        },
    },
    log::{LogError, Stream, StreamConfig},
};

type Failure = (Code, String);

fn failed(error: &LogError) -> Failure {
    (Code::of_change(error), error.to_string())
}

/// Replicas as a client assigns them can only be the one node there is: in a cluster the map places shards.
pub(super) fn check_assigned<'a>(
    client: &Client,
    assigned: impl IntoIterator<Item = &'a Vec<BrokerId>>,
) -> Result<(), Failure> {
    let view = client.head.cluster.view();
    let alone = |node: i32| view.nodes.len() == 1 && node == view.me.0;
    let fits = |replicas: &Vec<BrokerId>| matches!(replicas[..], [node] if alone(node.0));
    if assigned.into_iter().all(fits) {
        return Ok(());
    }
    let why = if view.nodes.len() == 1 {
        "there is one node: assign to it, or leave the assignment out"
    } else {
        "the cluster places partitions by itself: leave the assignment out"
    };
    Err((Code::InvalidReplicaAssignment, why.to_owned()))
}

pub(super) async fn create(
    client: &Client,
    request: &Request,
    asked: CreateTopicsRequest,
) -> CreateTopicsResponse {
    let mut topics = Vec::with_capacity(asked.topics.len());
    for topic in &asked.topics {
        let twice = asked.topics.iter().filter(|other| other.name == topic.name).count() > 1;
        let made = if twice {
            Err((Code::InvalidRequest, "topic is named twice in the request".to_owned()))
        } else {
            create_one(client, topic, asked.validate_only).await
        };
        let result = CreatableTopicResult::default().with_name(topic.name.clone());
        topics.push(match made {
            Ok(stream) => created(client, request, result, &stream),
            Err((code, why)) => {
                let (code, why) = super::failure(why, code);
                result.with_error_code(code).with_error_message(why)
            }
        });
    }
    CreateTopicsResponse::default().with_topics(topics)
}

fn created(
    client: &Client,
    request: &Request,
    result: CreatableTopicResult,
    stream: &Stream,
) -> CreatableTopicResult {
    if request.version < 5 {
        return result;
    }
    let entries = configs::topic_entries(client, &stream.config).into_iter().map(|entry| {
        CreatableTopicConfigs::default()
            .with_name(text(entry.name))
            .with_value(Some(text(entry.value)))
            .with_read_only(entry.read_only)
            .with_config_source(entry.source)
    });
    let result = result
        .with_num_partitions(stream.partitions as i32)
        .with_replication_factor(1)
        .with_configs(Some(entries.collect()));
    if request.version >= 7 { result.with_topic_id(stream.uuid) } else { result }
}

async fn create_one(
    client: &Client,
    asked: &CreatableTopic,
    validate_only: bool,
) -> Result<Stream, Failure> {
    let log = &client.head.log;
    let partitions = count(client, asked)?;
    let mut config = StreamConfig::default();
    for entry in &asked.configs {
        let value = entry.value.as_ref().map(StrBytes::as_str);
        configs::set(&mut config, &entry.name, value).map_err(|why| (Code::InvalidConfig, why))?;
    }
    if log.stream(&asked.name).is_some() {
        return Err(failed(&LogError::StreamExists(asked.name.to_string())));
    }
    if validate_only {
        // The log checks name and settings when it makes the stream; here only what was said is repeated.
        return Ok(Stream {
            id: crate::log::StreamId(0),
            name: asked.name.to_string(),
            uuid: Uuid::nil(),
            partitions: partitions.unwrap_or_else(|| u32::from(log.shards())),
            config,
        });
    }
    let stream = log.create_stream(&asked.name, partitions, config).await;
    stream.map(|stream| stream.as_ref().clone()).map_err(|error| failed(&error))
}

/// Partitions asked for; `None`: the default.
fn count(client: &Client, asked: &CreatableTopic) -> Result<Option<u32>, Failure> {
    if !asked.assignments.is_empty() {
        check_assigned(client, asked.assignments.iter().map(|assigned| &assigned.broker_ids))?;
        return Ok(Some(asked.assignments.len() as u32));
    }
    if !matches!(asked.replication_factor, -1 | 1) {
        let why = "the object store keeps the copies: the replication factor is 1 or -1".to_owned();
        return Err((Code::InvalidReplicationFactor, why));
    }
    match asked.num_partitions {
        -1 => Ok(None),
        1.. => Ok(Some(asked.num_partitions as u32)),
        _ => Err((Code::InvalidPartitions, "partitions are 1 or more, or -1".to_owned())),
    }
}

pub(super) async fn delete(
    client: &Client,
    request: &Request,
    asked: DeleteTopicsRequest,
) -> DeleteTopicsResponse {
    let topics = if request.version >= 6 {
        asked.topics
    } else {
        let by_name = |name| DeleteTopicState::default().with_name(Some(name));
        asked.topic_names.into_iter().map(by_name).collect()
    };
    let mut responses = Vec::with_capacity(topics.len());
    for topic in topics {
        responses.push(delete_one(client, request, topic).await);
    }
    DeleteTopicsResponse::default().with_responses(responses)
}

async fn delete_one(
    client: &Client,
    request: &Request,
    asked: DeleteTopicState,
) -> DeletableTopicResult {
    let head = &client.head;
    let stream = match &asked.name {
        Some(name) => head.log.stream(name).ok_or(Code::UnknownTopicOrPartition),
        None => head.topic_ids.find(&head.log, asked.topic_id).ok_or(Code::UnknownTopicId),
    };
    let result = DeletableTopicResult::default();
    let deleted = match &stream {
        Ok(stream) => head.log.delete_stream(&stream.name).await.map_err(|error| failed(&error)),
        Err(code) => Err((*code, "topic not found".to_owned())),
    };
    let name = stream.as_ref().ok().map(|stream| TopicName(text(stream.name.as_str())));
    let id = stream.map_or(asked.topic_id, |stream| stream.uuid);
    let result = result.with_name(name.or(asked.name)).with_topic_id(id);
    match deleted {
        Ok(()) => result,
        Err((code, why)) => {
            let (code, why) = super::failure(why, code);
            let result = result.with_error_code(code);
            if request.version >= 5 { result.with_error_message(why) } else { result }
        }
    }
}
