//! Produce (0): batches into the log; the answer after they are durable.
//!
//! Two steps, so that the next request is read meanwhile: [`submit`] hands every batch to the log in order,
//! [`Submitted::answer`] waits. acks=1 and acks=all promise the same: durable. acks=0 gets no answer.
//! Who is sent on to another node is told which one (KIP-951).
//! Not here: sequence numbers (`log`), what a batch must look like (`record`).

use bytes::{BufMut, Bytes, BytesMut};
use tributary_shared::record::{Batch, BatchError};

use super::{Endpoint, Patience};
use crate::{
    kafka::{
        Client, Head, Numbers,
        error::Code,
        frame::{
            self, Close, Request, StrBytes, text,
            wire::{
                BrokerId, TopicName,
                produce_request::{ProduceRequest, TopicProduceData},
                produce_response::{
                    LeaderIdAndEpoch, NodeEndpoint, PartitionProduceResponse, ProduceResponse,
                    TopicProduceResponse,
                },
            },
        },
        place::Named,
    },
    log::{Append, Guard, LogError, PartitionId, Pending, Stream, Transaction},
};

/// Oldest version we append for; below it we only say so.
const SERVED_FROM: i16 = 3;

/// First version that tells who leads a partition that is not led here.
const LEADERS_FROM: i16 = 10;

/// Attribute bits of batches that only transactions may send: transactional, control.
const TRANSACTION_BITS: i16 = 0x30;

/// Records in a batch: offsets are given by this count alone, so it is held to what a batch can hold.
const RECORDS_MAX: i32 = 1_000_000;

/// A Produce whose batches the log has.
pub(in crate::kafka) struct Submitted {
    request: Request,
    acks: i16,
    topics: Vec<(TopicName, Vec<(i32, Outcome)>)>,
}

enum Outcome {
    Submitted(Batched),
    Refused(Code, String),
}

/// A batch that the log has.
struct Batched {
    partition: PartitionId,
    pending: Pending,
    records: u64,
    bytes: u64,
    /// The log sets the time, and the producer wants to know it.
    log_append_time: bool,
}

/// Why a batch is not submitted.
enum Refusal {
    Log(LogError),
    Code(Code, &'static str),
}

impl From<LogError> for Refusal {
    fn from(error: LogError) -> Self {
        Self::Log(error)
    }
}

impl From<BatchError> for Refusal {
    fn from(error: BatchError) -> Self {
        Self::Log(error.into())
    }
}

/// Hands all batches of the request to the log.
pub(in crate::kafka) async fn submit(
    client: &Client,
    request: Request,
) -> Result<Submitted, Close> {
    let produce = decode(&request)?;
    let mut refuse_all = None;
    if request.version < SERVED_FROM {
        refuse_all = Some((Code::UnsupportedVersion, "version 3 or later is needed"));
    } else if produce.transactional_id.is_some() {
        let why = "transactions are not served";
        refuse_all = Some((Code::TransactionalIdAuthorizationFailed, why));
    } else if !(-1..=1).contains(&produce.acks) {
        refuse_all = Some((Code::InvalidRequiredAcks, "acks must be 0, 1 or all"));
    }
    let patience = Patience::begin();
    let mut topics = Vec::with_capacity(produce.topic_data.len());
    for topic in produce.topic_data {
        let partitions = submit_topic(client, &topic, refuse_all, patience).await;
        topics.push((topic.name, partitions));
    }
    Ok(Submitted { request, acks: produce.acks, topics })
}

/// Versions 0 to 2 are version 3 without the transactional id.
fn decode(request: &Request) -> Result<ProduceRequest, Close> {
    if request.version >= SERVED_FROM {
        return request.decode();
    }
    let mut body = BytesMut::with_capacity(2 + request.body.len());
    body.put_i16(-1);
    body.extend_from_slice(&request.body);
    let old = Request { version: SERVED_FROM, body: body.freeze(), ..request.clone() };
    old.decode()
}

async fn submit_topic(
    client: &Client,
    topic: &TopicProduceData,
    refuse_all: Option<(Code, &'static str)>,
    patience: Patience,
) -> Vec<(i32, Outcome)> {
    let stream = client.head.log.stream(&topic.name);
    let mut outcomes = Vec::with_capacity(topic.partition_data.len());
    for data in &topic.partition_data {
        let submitted = match (refuse_all, &stream) {
            (Some((code, why)), _) => Err(Refusal::Code(code, why)),
            (None, None) => Err(LogError::StreamNotFound(topic.name.to_string()).into()),
            (None, Some(stream)) => {
                submit_batch(client, stream, data.index, data.records.clone(), patience).await
            }
        };
        let outcome = submitted.unwrap_or_else(|refusal| match refusal {
            Refusal::Log(error) => Outcome::Refused(Code::from(&error), error.to_string()),
            Refusal::Code(code, why) => Outcome::Refused(code, why.to_owned()),
        });
        outcomes.push((data.index, outcome));
    }
    outcomes
}

async fn submit_batch(
    client: &Client,
    stream: &Stream,
    index: i32,
    records: Option<Bytes>,
    patience: Patience,
) -> Result<Outcome, Refusal> {
    let index = super::partition_index(stream, index)?;
    let partition = PartitionId::new(stream.id, index);
    if let Err(code) = client.head.leads(partition, patience).await {
        return Err(Refusal::Code(code, "another node leads the partition"));
    }
    let mut records = records.unwrap_or_default();
    if records.is_empty() {
        return Err(Refusal::Code(Code::InvalidRecord, "a batch is needed"));
    }
    let bytes = records.len() as u64;
    let batch = Batch::split_first(&mut records)?;
    if !records.is_empty() {
        return Err(Refusal::Code(Code::InvalidRecord, "one batch a partition and request"));
    }
    let header = batch.header();
    if header.attributes & TRANSACTION_BITS != 0 {
        return Err(Refusal::Code(Code::InvalidRecord, "transactions are not served"));
    }
    if header.count > RECORDS_MAX {
        return Err(Refusal::Code(Code::InvalidRecord, "too many records in a batch"));
    }
    batch.compression()?;
    let guard = if header.producer_id >= 0 { Guard::Producer } else { Guard::None };
    let log = &client.head.log;
    let shard = log.shard_of(partition)?;
    let appends = vec![Append { partition, batch }];
    let transaction = Transaction { appends, guard, ..Transaction::default() };
    let pending = log.submit(shard, transaction).await?;
    let records = header.count.max(0) as u64;
    let log_append_time = stream.config.log_append_time;
    Ok(Outcome::Submitted(Batched { partition, pending, records, bytes, log_append_time }))
}

impl Submitted {
    /// Waits until everything is durable or refused, and says so.
    pub(in crate::kafka) async fn answer(self, client: &Client) -> Result<Vec<Bytes>, Close> {
        if self.acks == 0 && self.request.version >= SERVED_FROM {
            return self.unanswered();
        }
        let mut responses = Vec::with_capacity(self.topics.len());
        let mut leaders = Leaders::new(client, self.request.version);
        for (name, outcomes) in self.topics {
            let mut partitions = Vec::with_capacity(outcomes.len());
            for (index, outcome) in outcomes {
                let response = settle(client, index, outcome).await;
                partitions.push(leaders.tell(&name, response).await);
            }
            responses.push(
                TopicProduceResponse::default()
                    .with_name(name)
                    .with_partition_responses(partitions),
            );
        }
        if self.request.version < SERVED_FROM {
            return Ok(vec![old_answer(&self.request, &responses)]);
        }
        let response = ProduceResponse::default()
            .with_responses(responses)
            .with_node_endpoints(leaders.nodes());
        Ok(vec![self.request.encode(&response)?])
    }

    /// acks=0: what fails can only be told by closing, as Kafka does it.
    fn unanswered(self) -> Result<Vec<Bytes>, Close> {
        for (_, outcome) in self.topics.into_iter().flat_map(|(_, outcomes)| outcomes) {
            if let Outcome::Refused(_, why) = outcome {
                return Err(Close::UnansweredProduce(why));
            }
        }
        Ok(Vec::new())
    }
}

/// Tells those who are refused by this node who leads.
struct Leaders<'a> {
    client: &'a Client,
    version: i16,
    patience: Patience,
    named: Named,
}

impl<'a> Leaders<'a> {
    fn new(client: &'a Client, version: i16) -> Self {
        Self { client, version, patience: Patience::begin(), named: Named::default() }
    }

    async fn tell(
        &mut self,
        topic: &str,
        response: PartitionProduceResponse,
    ) -> PartitionProduceResponse {
        let refused = response.error_code == Code::NotLeaderOrFollower.number();
        if !refused || self.version < LEADERS_FROM {
            return response;
        }
        match self.find(topic, response.index).await {
            Some((id, epoch)) => response.with_current_leader(
                LeaderIdAndEpoch::default().with_leader_id(BrokerId(id)).with_leader_epoch(epoch),
            ),
            None => response,
        }
    }

    async fn find(&mut self, topic: &str, index: i32) -> Option<(i32, i32)> {
        let head = &self.client.head;
        let partition = super::partition(&head.log, topic, index).ok()?;
        let (view, leader) = head.gone_to(partition, self.patience).await?;
        self.named.leader(self.client, &view, leader)
    }

    fn nodes(self) -> Vec<NodeEndpoint> {
        let node = |at: Endpoint| {
            NodeEndpoint::default()
                .with_node_id(BrokerId(at.id))
                .with_host(text(at.host))
                .with_port(at.port)
        };
        self.named.nodes.into_iter().map(node).collect()
    }
}

async fn settle(client: &Client, index: i32, outcome: Outcome) -> PartitionProduceResponse {
    let settled = match outcome {
        Outcome::Refused(code, why) => Err((code, why)),
        Outcome::Submitted(batched) => {
            batched.settle(client).await.map_err(|error| (Code::from(&error), error.to_string()))
        }
    };
    let response = settled.unwrap_or_else(|(code, why)| {
        PartitionProduceResponse::default()
            .with_base_offset(-1)
            .with_error_code(code.number())
            .with_error_message(Some(text(why)))
    });
    response.with_index(index)
}

impl Batched {
    /// Waits until it is durable.
    async fn settle(self, client: &Client) -> Result<PartitionProduceResponse, LogError> {
        let Head { log, numbers, .. } = client.head.as_ref();
        let committed = self.pending.await.unwrap_or(Err(LogError::Closed))?;
        if !committed.duplicate {
            Numbers::add(&numbers.produced_records_total, self.records);
            Numbers::add(&numbers.produced_bytes_total, self.bytes);
        }
        let base = committed.base_offsets.first().copied().unwrap_or(-1);
        let start = log.watermarks(self.partition).map_or(-1, |watermarks| watermarks.start);
        let response = PartitionProduceResponse::default()
            .with_base_offset(base)
            .with_log_append_time_ms(-1)
            .with_log_start_offset(start);
        if !self.log_append_time {
            return Ok(response);
        }
        // Trimmed already: then nobody needs its time.
        let batch = log.read(self.partition, base, 1).await.ok().and_then(|mut found| found.pop());
        let time = batch.map_or(-1, |batch| batch.header().max_timestamp_ms);
        Ok(response.with_log_append_time_ms(time))
    }
}

/// Versions 0 to 2, which the codec crate does not have: every partition with its error.
fn old_answer(request: &Request, responses: &[TopicProduceResponse]) -> Bytes {
    let mut frame = request.response_head(256);
    frame.put_i32(responses.len() as i32);
    for topic in responses {
        put_string(&mut frame, &topic.name);
        frame.put_i32(topic.partition_responses.len() as i32);
        for partition in &topic.partition_responses {
            frame.put_i32(partition.index);
            frame.put_i16(partition.error_code);
            frame.put_i64(-1);
            if request.version >= 2 {
                frame.put_i64(-1);
            }
        }
    }
    if request.version >= 1 {
        frame.put_i32(0);
    }
    frame::with_size(frame)
}

fn put_string(frame: &mut BytesMut, text: &StrBytes) {
    frame.put_i16(text.len() as i16);
    frame.put_slice(text.as_bytes());
}
