//! Metadata (3): the node, the topics and their partitions; makes topics that are asked for, if that is allowed.
//!
//! Topics: version 0 `[]` = all; later null = all, `[]` = none.

use std::sync::Arc;

use crate::{
    kafka::{
        Client, LEADER_EPOCH, NODE,
        error::Code,
        frame::{
            Request, text,
            wire::{
                TopicName,
                metadata_request::{MetadataRequest, MetadataRequestTopic},
                metadata_response::{
                    MetadataResponse, MetadataResponseBroker, MetadataResponsePartition,
                    MetadataResponseTopic,
                },
            },
        },
    },
    log::Stream,
};

pub(super) async fn answer(
    client: &Client,
    request: &Request,
    asked: MetadataRequest,
) -> MetadataResponse {
    let log = &client.head.log;
    // Before version 4 nobody could say no.
    let may_create = request.version < 4 || asked.allow_auto_topic_creation;
    let operations = request.version >= 8 && asked.include_topic_authorized_operations;
    let topics = match asked.topics {
        Some(topics) if !(topics.is_empty() && request.version == 0) => {
            let mut found = Vec::with_capacity(topics.len());
            for topic in topics {
                found.push(one(client, topic, may_create, operations).await);
            }
            found
        }
        _ => log.streams().iter().map(|stream| describe(stream, operations)).collect(),
    };
    let broker = MetadataResponseBroker::default()
        .with_node_id(NODE.into())
        .with_host(text(client.host.as_str()))
        .with_port(i32::from(client.port));
    let response = MetadataResponse::default()
        .with_brokers(vec![broker])
        .with_cluster_id(Some(text(client.head.cluster_id.as_str())))
        .with_controller_id(NODE.into())
        .with_topics(topics);
    if (8..=10).contains(&request.version) && asked.include_cluster_authorized_operations {
        response.with_cluster_authorized_operations(super::CLUSTER_OPERATIONS)
    } else {
        response
    }
}

async fn one(
    client: &Client,
    asked: MetadataRequestTopic,
    may_create: bool,
    operations: bool,
) -> MetadataResponseTopic {
    let log = &client.head.log;
    let Some(name) = asked.name else {
        return match client.head.topic_ids.find(log, asked.topic_id) {
            Some(stream) => describe(&stream, operations),
            None => MetadataResponseTopic::default()
                .with_name(None)
                .with_topic_id(asked.topic_id)
                .with_error_code(Code::UnknownTopicId.number()),
        };
    };
    let found = match log.stream(&name) {
        Some(stream) => Ok(stream),
        None if may_create && client.head.settings.auto_create_topics => {
            log.ensure_stream(&name).await.map_err(|error| Code::from(&error))
        }
        None => Err(Code::UnknownTopicOrPartition),
    };
    match found {
        Ok(stream) => describe(&stream, operations),
        Err(code) => {
            MetadataResponseTopic::default().with_name(Some(name)).with_error_code(code.number())
        }
    }
}

fn describe(stream: &Arc<Stream>, operations: bool) -> MetadataResponseTopic {
    let partitions = (0..stream.partitions).map(|index| {
        MetadataResponsePartition::default()
            .with_partition_index(index as i32)
            .with_leader_id(NODE.into())
            .with_leader_epoch(LEADER_EPOCH)
            .with_replica_nodes(vec![NODE.into()])
            .with_isr_nodes(vec![NODE.into()])
    });
    let topic = MetadataResponseTopic::default()
        .with_name(Some(TopicName(text(stream.name.as_str()))))
        .with_topic_id(stream.uuid)
        .with_partitions(partitions.collect());
    if operations { topic.with_topic_authorized_operations(super::TOPIC_OPERATIONS) } else { topic }
}
