//! ListOffsets (2) and OffsetForLeaderEpoch (23): offsets by time, by name (latest, earliest, ...) and by epoch.

use crate::{
    kafka::{
        Client, LEADER_EPOCH,
        error::Code,
        frame::{
            Request,
            wire::{
                list_offsets_request::{ListOffsetsPartition, ListOffsetsRequest},
                list_offsets_response::{
                    ListOffsetsPartitionResponse, ListOffsetsResponse, ListOffsetsTopicResponse,
                },
                offset_for_leader_epoch_request::{
                    OffsetForLeaderEpochRequest, OffsetForLeaderPartition,
                },
                offset_for_leader_epoch_response::{
                    EpochEndOffset, OffsetForLeaderEpochResponse, OffsetForLeaderTopicResult,
                },
            },
        },
    },
    log::{Log, LogError, PartitionId},
};

const LATEST: i64 = -1;
const EARLIEST: i64 = -2;
const MAX_TIMESTAMP: i64 = -3;
const EARLIEST_LOCAL: i64 = -4;

/// Offset and timestamp that mean "there is none".
const NOT_FOUND: (i64, i64) = (-1, -1);

pub(super) async fn answer(
    client: &Client,
    request: &Request,
    asked: ListOffsetsRequest,
) -> ListOffsetsResponse {
    let mut topics = Vec::with_capacity(asked.topics.len());
    for topic in asked.topics {
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for partition in topic.partitions {
            partitions.push(one(client, request, &topic.name, &partition).await);
        }
        topics.push(
            ListOffsetsTopicResponse::default().with_name(topic.name).with_partitions(partitions),
        );
    }
    ListOffsetsResponse::default().with_topics(topics)
}

async fn one(
    client: &Client,
    request: &Request,
    topic: &str,
    asked: &ListOffsetsPartition,
) -> ListOffsetsPartitionResponse {
    let response =
        ListOffsetsPartitionResponse::default().with_partition_index(asked.partition_index);
    let log = &client.head.log;
    let found = async {
        let partition = super::partition(log, topic, asked.partition_index)?;
        super::check_epoch(asked.current_leader_epoch)?;
        find(log, partition, asked.timestamp).await.map_err(|error| Code::from(&error))
    };
    match found.await {
        Err(code) => response.with_error_code(code.number()).with_offset(-1).with_timestamp(-1),
        Ok((offset, timestamp)) => {
            let response = response.with_offset(offset).with_timestamp(timestamp);
            if request.version >= 4 { response.with_leader_epoch(LEADER_EPOCH) } else { response }
        }
    }
}

/// (offset, timestamp); the timestamp is -1 where it is not asked for.
async fn find(log: &Log, partition: PartitionId, at: i64) -> Result<(i64, i64), LogError> {
    let watermarks = log.watermarks(partition)?;
    match at {
        LATEST => Ok((watermarks.high, -1)),
        EARLIEST | EARLIEST_LOCAL => Ok((watermarks.start, -1)),
        MAX_TIMESTAMP => latest_record(log, partition).await,
        0.. => Ok(log.offset_at_time(partition, at).await?.unwrap_or(NOT_FOUND)),
        _ => Ok(NOT_FOUND),
    }
}

/// The record with the highest timestamp. Times mostly rise, so the last batch's is tried first; else halving.
async fn latest_record(log: &Log, partition: PartitionId) -> Result<(i64, i64), LogError> {
    let high = log.watermarks(partition)?.high;
    let Some(last) = log.read(partition, high.saturating_sub(1), 1).await?.pop() else {
        return Ok(NOT_FOUND);
    };
    // Invariant: a record at or after `low` exists; none at or after `over` does.
    let (mut low, mut over) = (last.header().max_timestamp_ms, i64::MAX);
    let mut step = 1_i64;
    while over == i64::MAX {
        let probe = low.saturating_add(step);
        match log.offset_at_time(partition, probe).await? {
            Some((_, timestamp)) => low = timestamp,
            None => over = probe,
        }
        step = step.saturating_mul(8);
    }
    while low.saturating_add(1) < over {
        let middle = low + (over - low) / 2;
        match log.offset_at_time(partition, middle).await? {
            Some((_, timestamp)) => low = timestamp,
            None => over = middle,
        }
    }
    Ok(log.offset_at_time(partition, low).await?.unwrap_or(NOT_FOUND))
}

/// OffsetForLeaderEpoch: there has been one epoch.
pub(super) async fn end_of_epoch(
    client: &Client,
    asked: OffsetForLeaderEpochRequest,
) -> OffsetForLeaderEpochResponse {
    let log = &client.head.log;
    let topics = asked.topics.into_iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|p| epoch_end(log, &topic.topic, p)).collect();
        OffsetForLeaderTopicResult::default().with_topic(topic.topic).with_partitions(partitions)
    });
    OffsetForLeaderEpochResponse::default().with_topics(topics.collect())
}

fn epoch_end(log: &Log, topic: &str, asked: &OffsetForLeaderPartition) -> EpochEndOffset {
    let response = EpochEndOffset::default().with_partition(asked.partition);
    let end = || {
        let partition = super::partition(log, topic, asked.partition)?;
        super::check_epoch(asked.current_leader_epoch)?;
        log.watermarks(partition).map_err(|error| Code::from(&error))
    };
    match end() {
        Err(code) => response.with_error_code(code.number()),
        Ok(watermarks) if asked.leader_epoch == LEADER_EPOCH => {
            response.with_leader_epoch(LEADER_EPOCH).with_end_offset(watermarks.high)
        }
        // An epoch that never was.
        Ok(_) => response,
    }
}
