//! One file an API key, or a few that belong together; this one finds the file.
//!
//! In: a checked [`Request`]. Out: the frames of its answer (none for Produce with acks=0, which `connection` handles).
//! Change here: a key is added (and in `schema`).

mod alter_configs;
mod api_versions;
mod cluster;
mod commits;
mod configs;
mod fetch;
mod fetch_answer;
mod group_admin;
mod init_producer_id;
mod list_offsets;
mod membership;
mod metadata;
mod partitions;
pub(super) mod produce;
mod topics;

use bytes::Bytes;

use super::{
    Client,
    error::Code,
    frame::{Close, Decodable, Encodable, HeaderVersion, Request, StrBytes, text},
    place::{self, Endpoint, Patience},
    schema,
};
use crate::{
    group::GroupError,
    log::{Log, LogError, PartitionId, Stream},
};

/// Answers every request but Produce.
pub(super) async fn answer(client: &Client, request: &Request) -> Result<Vec<Bytes>, Close> {
    let frame = match request.key {
        schema::FETCH => return fetch::answer(client, request).await,
        schema::LIST_OFFSETS => typed(request, |r| list_offsets::answer(client, request, r)).await,
        schema::METADATA => typed(request, |r| metadata::answer(client, request, r)).await,
        schema::OFFSET_COMMIT => typed(request, |r| commits::commit(client, r)).await,
        schema::OFFSET_FETCH => typed(request, |r| commits::fetch(client, request, r)).await,
        schema::OFFSET_DELETE => typed(request, |r| commits::delete(client, r)).await,
        schema::FIND_COORDINATOR => {
            typed(request, |r| cluster::find_coordinator(client, request, r)).await
        }
        schema::JOIN_GROUP => typed(request, |r| membership::join(client, request, r)).await,
        schema::HEARTBEAT => typed(request, |r| membership::heartbeat(client, r)).await,
        schema::LEAVE_GROUP => typed(request, |r| membership::leave(client, request, r)).await,
        schema::SYNC_GROUP => typed(request, |r| membership::sync(client, r)).await,
        schema::DESCRIBE_GROUPS => {
            typed(request, |r| group_admin::describe(client, request, r)).await
        }
        schema::LIST_GROUPS => typed(request, |r| group_admin::list(client, r)).await,
        schema::DELETE_GROUPS => typed(request, |r| group_admin::delete(client, r)).await,
        schema::API_VERSIONS => return Ok(vec![api_versions::answer(request)?]),
        schema::CREATE_TOPICS => typed(request, |r| topics::create(client, request, r)).await,
        schema::DELETE_TOPICS => typed(request, |r| topics::delete(client, request, r)).await,
        schema::CREATE_PARTITIONS => typed(request, |r| partitions::create(client, r)).await,
        schema::DELETE_RECORDS => typed(request, |r| partitions::delete_records(client, r)).await,
        schema::INIT_PRODUCER_ID => typed(request, |r| init_producer_id::answer(client, r)).await,
        schema::OFFSET_FOR_LEADER_EPOCH => {
            typed(request, |r| list_offsets::end_of_epoch(client, r)).await
        }
        schema::DESCRIBE_CONFIGS => typed(request, |r| configs::answer(client, r)).await,
        schema::ALTER_CONFIGS => typed(request, |r| alter_configs::replace(client, r)).await,
        schema::INCREMENTAL_ALTER_CONFIGS => {
            typed(request, |r| alter_configs::change(client, r)).await
        }
        schema::DESCRIBE_CLUSTER => typed(request, |r| cluster::describe(client, request, r)).await,
        _ => return Err(Close::Unknown { key: request.key, version: request.version }),
    };
    Ok(vec![frame?])
}

async fn typed<Q, R, F>(request: &Request, answer: impl FnOnce(Q) -> F) -> Result<Bytes, Close>
where
    Q: Decodable,
    R: Encodable + HeaderVersion,
    F: Future<Output = R>,
{
    let response = answer(request.decode()?).await;
    request.encode(&response)
}

/// What a group answers, if it is coordinated here; else why not, with what the group said of it.
async fn coordinated<T, E: Into<GroupError>>(
    client: &Client,
    group: &str,
    answer: impl Future<Output = Result<T, E>>,
) -> Result<T, (Code, Option<GroupError>)> {
    client.head.coordinates(group, Patience::begin()).await.map_err(|code| (code, None))?;
    answer.await.map_err(|error| {
        let error = error.into();
        (client.head.group_code(group, &error), Some(error))
    })
}

/// A code with its explanation, where the response has room for one.
fn failure(error: impl std::fmt::Display, code: Code) -> (i16, Option<StrBytes>) {
    (code.number(), Some(text(error.to_string())))
}

/// The partition's index if the stream has it.
fn partition_index(stream: &Stream, index: i32) -> Result<u32, LogError> {
    let known = u32::try_from(index).ok().filter(|index| *index < stream.partitions);
    known.ok_or_else(|| LogError::PartitionNotFound(stream.name.clone(), index.unsigned_abs()))
}

/// The partition of a topic.
fn partition(log: &Log, topic: &str, index: i32) -> Result<PartitionId, Code> {
    let stream = log.stream(topic).ok_or(Code::UnknownTopicOrPartition)?;
    let index = partition_index(&stream, index).map_err(|error| Code::from(&error))?;
    Ok(PartitionId::new(stream.id, index))
}

/// The partition, led by this node, and its epoch; `said` is what the client knows of that.
async fn led(
    client: &Client,
    topic: &str,
    index: i32,
    said: i32,
    patience: Patience,
) -> Result<(PartitionId, i32), Code> {
    let partition = partition(&client.head.log, topic, index)?;
    let epoch = client.head.leads(partition, patience).await?;
    place::check_epoch(said, epoch)?;
    Ok((partition, epoch))
}

/// `topic_authorized_operations`: all that there are; nothing is forbidden here yet.
const TOPIC_OPERATIONS: i32 = 0x0df8;
/// `cluster_authorized_operations`, likewise.
const CLUSTER_OPERATIONS: i32 = 0x1fa0;
/// `authorized_operations` of a group, likewise.
const GROUP_OPERATIONS: i32 = 0x0148;
