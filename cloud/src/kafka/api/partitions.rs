//! CreatePartitions (37) and DeleteRecords (21): a topic's partitions grow, their old records go.

use super::Patience;
use crate::{
    kafka::{
        Client,
        error::Code,
        frame::wire::{
            create_partitions_request::{CreatePartitionsRequest, CreatePartitionsTopic},
            create_partitions_response::{CreatePartitionsResponse, CreatePartitionsTopicResult},
            delete_records_request::DeleteRecordsRequest,
            delete_records_response::{
                DeleteRecordsPartitionResult, DeleteRecordsResponse, DeleteRecordsTopicResult,
            },
        },
    },
    log::LogError,
};

/// "Up to the high watermark".
const ALL: i64 = -1;

pub(super) async fn create(
    client: &Client,
    asked: CreatePartitionsRequest,
) -> CreatePartitionsResponse {
    let mut results = Vec::with_capacity(asked.topics.len());
    for topic in asked.topics {
        let done = grow(client, &topic, asked.validate_only).await;
        let result = CreatePartitionsTopicResult::default().with_name(topic.name);
        results.push(match done {
            Ok(()) => result,
            Err((code, why)) => {
                let (code, why) = super::failure(why, code);
                result.with_error_code(code).with_error_message(why)
            }
        });
    }
    CreatePartitionsResponse::default().with_results(results)
}

async fn grow(
    client: &Client,
    topic: &CreatePartitionsTopic,
    validate_only: bool,
) -> Result<(), (Code, String)> {
    let log = &client.head.log;
    let failed = |error: &LogError| (Code::of_change(error), error.to_string());
    let stream = log
        .stream(&topic.name)
        .ok_or_else(|| failed(&LogError::StreamNotFound(topic.name.to_string())))?;
    let count = u32::try_from(topic.count).ok().filter(|count| *count > stream.partitions);
    let count = count.ok_or_else(|| {
        let why = format!("topic has {} partitions; it can only get more", stream.partitions);
        (Code::InvalidPartitions, why)
    })?;
    let assigned = topic.assignments.iter().flatten().map(|assigned| &assigned.broker_ids);
    super::topics::check_assigned(client, assigned)?;
    if validate_only {
        return Ok(());
    }
    log.grow_stream(&topic.name, count).await.map(|_| ()).map_err(|error| match error {
        LogError::BadConfig(why) => (Code::InvalidPartitions, why),
        error => failed(&error),
    })
}

pub(super) async fn delete_records(
    client: &Client,
    asked: DeleteRecordsRequest,
) -> DeleteRecordsResponse {
    let patience = Patience::begin();
    let mut topics = Vec::with_capacity(asked.topics.len());
    for topic in asked.topics {
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for partition in topic.partitions {
            let (index, before) = (partition.partition_index, partition.offset);
            let trimmed = trim(client, &topic.name, index, before, patience).await;
            let result = DeleteRecordsPartitionResult::default()
                .with_partition_index(partition.partition_index);
            partitions.push(match trimmed {
                Ok(start) => result.with_low_watermark(start),
                Err(code) => result.with_low_watermark(-1).with_error_code(code.number()),
            });
        }
        topics.push(
            DeleteRecordsTopicResult::default().with_name(topic.name).with_partitions(partitions),
        );
    }
    DeleteRecordsResponse::default().with_topics(topics)
}

async fn trim(
    client: &Client,
    topic: &str,
    index: i32,
    before: i64,
    patience: Patience,
) -> Result<i64, Code> {
    let log = &client.head.log;
    let (partition, _) = super::led(client, topic, index, -1, patience).await?;
    let watermarks = log.watermarks(partition).map_err(|error| Code::from(&error))?;
    let before = if before == ALL { watermarks.high } else { before };
    if before < 0 || before > watermarks.high {
        return Err(Code::OffsetOutOfRange);
    }
    if before <= watermarks.start {
        return Ok(watermarks.start);
    }
    let trimmed = log.trim(partition, before).await.map_err(|error| Code::from(&error))?;
    Ok(trimmed.start)
}
