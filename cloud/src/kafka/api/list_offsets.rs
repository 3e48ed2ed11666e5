//! ListOffsets (2) and OffsetForLeaderEpoch (23): offsets by time, by name (latest, earliest, ...) and by epoch.

use super::Patience;
use crate::{
    kafka::{
        Client,
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
    let patience = Patience::begin();
    let mut topics = Vec::with_capacity(asked.topics.len());
    for topic in asked.topics {
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for partition in topic.partitions {
            partitions.push(one(client, request, &topic.name, &partition, patience).await);
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
    patience: Patience,
) -> ListOffsetsPartitionResponse {
    let response =
        ListOffsetsPartitionResponse::default().with_partition_index(asked.partition_index);
    let log = &client.head.log;
    let found = async {
        let (index, said) = (asked.partition_index, asked.current_leader_epoch);
        let (partition, epoch) = super::led(client, topic, index, said, patience).await?;
        let found = find(log, partition, asked.timestamp).await;
        found.map(|(offset, time)| (offset, time, epoch)).map_err(|error| Code::from(&error))
    };
    match found.await {
        Err(code) => response.with_error_code(code.number()).with_offset(-1).with_timestamp(-1),
        Ok((offset, timestamp, epoch)) => {
            let response = response.with_offset(offset).with_timestamp(timestamp);
            if request.version >= 4 { response.with_leader_epoch(epoch) } else { response }
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

/// OffsetForLeaderEpoch. No leader ever takes back what a reader has seen, so every epoch's records are true up to the end.
pub(super) async fn end_of_epoch(
    client: &Client,
    asked: OffsetForLeaderEpochRequest,
) -> OffsetForLeaderEpochResponse {
    let patience = Patience::begin();
    let mut topics = Vec::with_capacity(asked.topics.len());
    for topic in asked.topics {
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for partition in &topic.partitions {
            partitions.push(epoch_end(client, &topic.topic, partition, patience).await);
        }
        topics.push(
            OffsetForLeaderTopicResult::default()
                .with_topic(topic.topic)
                .with_partitions(partitions),
        );
    }
    OffsetForLeaderEpochResponse::default().with_topics(topics)
}

async fn epoch_end(
    client: &Client,
    topic: &str,
    asked: &OffsetForLeaderPartition,
    patience: Patience,
) -> EpochEndOffset {
    let response = EpochEndOffset::default().with_partition(asked.partition);
    let end = async {
        let (index, said) = (asked.partition, asked.current_leader_epoch);
        let (partition, epoch) = super::led(client, topic, index, said, patience).await?;
        let end = client.head.log.watermarks(partition).map_err(|error| Code::from(&error))?;
        Ok::<_, Code>((end.high, epoch))
    };
    match end.await {
        Err(code) => response.with_error_code(code.number()),
        // An epoch that never was.
        Ok(_) if asked.leader_epoch < 0 => response,
        // A later one than there is here is from a cluster that this data was copied out of: its records are here.
        Ok((end, epoch)) => {
            response.with_leader_epoch(asked.leader_epoch.min(epoch)).with_end_offset(end)
        }
    }
}
