//! OffsetCommit (8), OffsetFetch (9), OffsetDelete (47): what groups have read.
//!
//! A commit is answered when it is durable. Offsets belong to a partition of a stream, not to its name: they go with it.

use std::collections::BTreeMap;

use crate::{
    group::{CommittedOffset, GroupError, MemberRef},
    kafka::{
        Client,
        error::Code,
        frame::{
            Request, text,
            wire::{
                TopicName,
                offset_commit_request::{OffsetCommitRequest, OffsetCommitRequestPartition},
                offset_commit_response::{
                    OffsetCommitResponse, OffsetCommitResponsePartition, OffsetCommitResponseTopic,
                },
                offset_delete_request::OffsetDeleteRequest,
                offset_delete_response::{
                    OffsetDeleteResponse, OffsetDeleteResponsePartition, OffsetDeleteResponseTopic,
                },
                offset_fetch_request::{OffsetFetchRequest, OffsetFetchRequestTopics},
                offset_fetch_response::{
                    OffsetFetchResponse, OffsetFetchResponseGroup, OffsetFetchResponsePartition,
                    OffsetFetchResponsePartitions, OffsetFetchResponseTopic,
                    OffsetFetchResponseTopics,
                },
            },
        },
    },
    log::PartitionId,
};

/// First version of OffsetFetch that asks for many groups.
const MANY_GROUPS_FROM: i16 = 8;

pub(super) async fn commit(client: &Client, asked: OffsetCommitRequest) -> OffsetCommitResponse {
    let mut offsets = Vec::new();
    let mut topics = Vec::with_capacity(asked.topics.len());
    for topic in &asked.topics {
        let checked = topic.partitions.iter().map(|partition| {
            let checked = check(client, &topic.name, partition);
            let result = checked.map(|offset| offsets.push(offset));
            (partition.partition_index, result.err().unwrap_or(Code::None))
        });
        topics.push((topic.name.clone(), checked.collect::<Vec<_>>()));
    }
    let who = MemberRef {
        member_id: asked.member_id.to_string(),
        instance_id: asked.group_instance_id.map(|id| id.to_string()),
    };
    let generation = asked.generation_id_or_member_epoch;
    let done = client.head.groups.commit(&asked.group_id, who, generation, offsets);
    let all = super::coordinated(client, &asked.group_id, done).await.err().map(|(code, _)| code);
    let topics = topics.into_iter().map(|(name, partitions)| {
        let partitions = partitions.into_iter().map(|(index, code)| {
            let code = if code == Code::None { all.unwrap_or(code) } else { code };
            OffsetCommitResponsePartition::default()
                .with_partition_index(index)
                .with_error_code(code.number())
        });
        OffsetCommitResponseTopic::default().with_name(name).with_partitions(partitions.collect())
    });
    OffsetCommitResponse::default().with_topics(topics.collect())
}

fn check(
    client: &Client,
    topic: &str,
    asked: &OffsetCommitRequestPartition,
) -> Result<(PartitionId, CommittedOffset), Code> {
    let partition = super::partition(&client.head.log, topic, asked.partition_index)?;
    let metadata = asked.committed_metadata.as_ref().map_or("", |text| text.as_str());
    let limit = client.head.groups.offset_metadata_bytes_max();
    if metadata.len() > limit {
        let size = metadata.len();
        return Err(Code::from(&GroupError::OffsetMetadataTooLarge { size, limit }));
    }
    let committed = CommittedOffset {
        offset: asked.committed_offset,
        leader_epoch: asked.committed_leader_epoch,
        committed_ms: 0,
        metadata: metadata.to_owned(),
    };
    Ok((partition, committed))
}

/// A partition's index and its offset, if one was committed; by topic.
type Found = Vec<(TopicName, Vec<(i32, Option<CommittedOffset>)>)>;

pub(super) async fn fetch(
    client: &Client,
    request: &Request,
    asked: OffsetFetchRequest,
) -> OffsetFetchResponse {
    if request.version >= MANY_GROUPS_FROM {
        let mut groups = Vec::with_capacity(asked.groups.len());
        for group in asked.groups {
            let found = find(client, &group.group_id, group.topics).await;
            let response = OffsetFetchResponseGroup::default().with_group_id(group.group_id);
            groups.push(match found {
                Ok(found) => {
                    response.with_topics(found.into_iter().map(|(n, p)| many(n, p)).collect())
                }
                Err(code) => response.with_error_code(code.number()),
            });
        }
        return OffsetFetchResponse::default().with_groups(groups);
    }
    let topics = asked.topics.map(|topics| {
        topics
            .into_iter()
            .map(|topic| {
                OffsetFetchRequestTopics::default()
                    .with_name(topic.name)
                    .with_partition_indexes(topic.partition_indexes)
            })
            .collect()
    });
    match find(client, &asked.group_id, topics).await {
        Ok(found) => OffsetFetchResponse::default()
            .with_topics(found.into_iter().map(|(name, p)| single(name, p)).collect()),
        Err(code) => OffsetFetchResponse::default().with_error_code(code.number()),
    }
}

/// The offsets of a group; `None` = all it has.
async fn find(
    client: &Client,
    group: &str,
    topics: Option<Vec<OffsetFetchRequestTopics>>,
) -> Result<Found, Code> {
    let log = &client.head.log;
    let stored = super::coordinated(client, group, client.head.groups.offsets(group));
    let stored = stored.await.map_err(|(code, _)| code)?;
    let view = client.head.cluster.view();
    let stored = stored.into_iter().map(|(partition, mut committed)| {
        // Of a cluster that this data was copied out of: clients would take our leaders for old ones.
        if committed.leader_epoch > client.head.leader(&view, partition).epoch {
            committed.leader_epoch = -1;
        }
        (partition, committed)
    });
    let mut stored: BTreeMap<PartitionId, CommittedOffset> = stored.collect();
    let Some(topics) = topics else {
        let mut found: BTreeMap<String, Vec<(i32, Option<CommittedOffset>)>> = BTreeMap::new();
        for (partition, committed) in stored {
            if let Some(stream) = log.stream_by_id(partition.stream()) {
                let partitions = found.entry(stream.name.clone()).or_default();
                partitions.push((partition.index() as i32, Some(committed)));
            }
        }
        return Ok(found.into_iter().map(|(name, p)| (TopicName(text(name)), p)).collect());
    };
    let found = topics.into_iter().map(|topic| {
        let partitions = topic.partition_indexes.iter().map(|index| {
            let partition = super::partition(log, &topic.name, *index).ok();
            (*index, partition.and_then(|partition| stored.remove(&partition)))
        });
        let partitions = partitions.collect();
        (topic.name, partitions)
    });
    Ok(found.collect())
}

fn many(
    name: TopicName,
    partitions: Vec<(i32, Option<CommittedOffset>)>,
) -> OffsetFetchResponseTopics {
    let partitions = partitions.into_iter().map(|(index, committed)| {
        let (offset, epoch, metadata) = parts(committed);
        OffsetFetchResponsePartitions::default()
            .with_partition_index(index)
            .with_committed_offset(offset)
            .with_committed_leader_epoch(epoch)
            .with_metadata(Some(text(metadata)))
    });
    OffsetFetchResponseTopics::default().with_name(name).with_partitions(partitions.collect())
}

fn single(
    name: TopicName,
    partitions: Vec<(i32, Option<CommittedOffset>)>,
) -> OffsetFetchResponseTopic {
    let partitions = partitions.into_iter().map(|(index, committed)| {
        let (offset, epoch, metadata) = parts(committed);
        OffsetFetchResponsePartition::default()
            .with_partition_index(index)
            .with_committed_offset(offset)
            .with_committed_leader_epoch(epoch)
            .with_metadata(Some(text(metadata)))
    });
    OffsetFetchResponseTopic::default().with_name(name).with_partitions(partitions.collect())
}

/// Offset -1: none was committed.
fn parts(committed: Option<CommittedOffset>) -> (i64, i32, String) {
    committed.map_or((-1, -1, String::new()), |c| (c.offset, c.leader_epoch, c.metadata))
}

pub(super) async fn delete(client: &Client, asked: OffsetDeleteRequest) -> OffsetDeleteResponse {
    let groups = &client.head.groups;
    let group = &asked.group_id;
    let known = match super::coordinated(client, group, groups.describe(group)).await {
        Ok(Some(description)) if description.members.is_empty() => Ok(()),
        // Which topics its members read is theirs to know: none is deleted under them.
        Ok(Some(_)) => Err(Code::NonEmptyGroup),
        Ok(None) => Err(Code::GroupIdNotFound),
        Err((code, _)) => Err(code),
    };
    if let Err(code) = known {
        return OffsetDeleteResponse::default().with_error_code(code.number());
    }
    let mut partitions = Vec::new();
    let mut topics = Vec::with_capacity(asked.topics.len());
    for topic in asked.topics {
        let results = topic.partitions.iter().map(|asked| {
            let found = super::partition(&client.head.log, &topic.name, asked.partition_index);
            let code = found.map(|partition| partitions.push(partition)).err();
            OffsetDeleteResponsePartition::default()
                .with_partition_index(asked.partition_index)
                .with_error_code(code.unwrap_or(Code::None).number())
        });
        let results = results.collect();
        topics.push(
            OffsetDeleteResponseTopic::default().with_name(topic.name).with_partitions(results),
        );
    }
    let deleted = groups.delete_offsets(group, partitions);
    match super::coordinated(client, group, deleted).await {
        Ok(()) => OffsetDeleteResponse::default().with_topics(topics),
        Err((code, _)) => OffsetDeleteResponse::default().with_error_code(code.number()),
    }
}
