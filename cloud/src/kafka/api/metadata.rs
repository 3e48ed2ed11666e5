//! Metadata (3): the nodes, the topics and their partitions; makes topics that are asked for, if that is allowed.
//!
//! Topics: version 0 `[]` = all; later null = all, `[]` = none.

use std::sync::Arc;

use crate::{
    cluster::View,
    engine::ShardId,
    kafka::{
        Client,
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
        place,
    },
    log::{PartitionId, Stream},
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
    let view = &client.head.cluster.view();
    let topics = match asked.topics {
        Some(topics) if !(topics.is_empty() && request.version == 0) => {
            let mut found = Vec::with_capacity(topics.len());
            for topic in topics {
                found.push(one(client, view, topic, may_create, operations).await);
            }
            found
        }
        _ => {
            let all = log.streams();
            all.iter().map(|stream| describe(client, view, stream, operations)).collect()
        }
    };
    let brokers = client.endpoints(view).into_iter().map(|found| {
        MetadataResponseBroker::default()
            .with_node_id(found.id.into())
            .with_host(text(found.host))
            .with_port(found.port)
    });
    let controller = place::number(view.leader(ShardId(0)).owner);
    let response = MetadataResponse::default()
        .with_brokers(brokers.collect())
        .with_cluster_id(Some(text(client.head.cluster_id(view))))
        .with_controller_id(controller.into())
        .with_topics(topics);
    if (8..=10).contains(&request.version) && asked.include_cluster_authorized_operations {
        response.with_cluster_authorized_operations(super::CLUSTER_OPERATIONS)
    } else {
        response
    }
}

async fn one(
    client: &Client,
    view: &View,
    asked: MetadataRequestTopic,
    may_create: bool,
    operations: bool,
) -> MetadataResponseTopic {
    let log = &client.head.log;
    let Some(name) = asked.name else {
        return match client.head.topic_ids.find(log, asked.topic_id) {
            Some(stream) => describe(client, view, &stream, operations),
            None => MetadataResponseTopic::default()
                .with_name(None)
                .with_topic_id(asked.topic_id)
                .with_error_code(Code::UnknownTopicId.number()),
        };
    };
    let found = match log.stream(&name) {
        Some(stream) => Ok(stream),
        None if may_create && client.head.settings.auto_create_topics => {
            log.ensure_stream(&name).await.map_err(|error| match Code::of_change(&error) {
                // Here that is what makes clients ask again.
                Code::NotController => Code::LeaderNotAvailable,
                code => code,
            })
        }
        // What was not heard of yet may be there.
        None if log.catalog().is_none() => Err(Code::LeaderNotAvailable),
        None => Err(Code::UnknownTopicOrPartition),
    };
    match found {
        Ok(stream) => describe(client, view, &stream, operations),
        Err(code) => {
            MetadataResponseTopic::default().with_name(Some(name)).with_error_code(code.number())
        }
    }
}

fn describe(
    client: &Client,
    view: &View,
    stream: &Arc<Stream>,
    operations: bool,
) -> MetadataResponseTopic {
    let partitions = (0..stream.partitions).map(|index| {
        let leader = client.head.leader(view, PartitionId::new(stream.id, index));
        let node = place::number(leader.owner);
        let code = if leader.owner.is_some() { Code::None } else { Code::LeaderNotAvailable };
        let replicas: Vec<_> = leader.owner.iter().map(|node| node.0.into()).collect();
        MetadataResponsePartition::default()
            .with_error_code(code.number())
            .with_partition_index(index as i32)
            .with_leader_id(node.into())
            .with_leader_epoch(leader.epoch)
            .with_replica_nodes(replicas.clone())
            .with_isr_nodes(replicas)
    });
    let topic = MetadataResponseTopic::default()
        .with_name(Some(TopicName(text(stream.name.as_str()))))
        .with_topic_id(stream.uuid)
        .with_partitions(partitions.collect());
    if operations { topic.with_topic_authorized_operations(super::TOPIC_OPERATIONS) } else { topic }
}
