//! A batch and where its records go: as it came where one partition takes all, else one batch a partition.
//!
//! In: a checked batch and the routes. Out: appends that all live in the edge's home shard, so that they are one commit.
//! Change here: what is re-encoded. Not here: rules (`route`), checks of the upload (`upload`).

use std::{collections::HashMap, sync::Arc};

use tributary_shared::{
    record::{Batch, BatchBuilder, Compression, Header, Record},
    topic,
};

use super::{
    answer::Answer,
    upload::{Mark, Refusal},
};
use crate::{
    engine::ShardId,
    log::{Append, Log, LogError, PartitionId},
    route::{PartitionRule, Routing, TOPIC_HEADER, Target},
};

/// Header of a gap record: its value is the reason.
pub const GAP_HEADER: &str = "tributary.gap";

/// Where an edge's records go.
pub(super) struct Divider<'a> {
    pub(super) log: &'a Log,
    pub(super) routing: &'a Routing,
    pub(super) edge: &'a str,
    pub(super) home: ShardId,
    /// Bytes that one batch may unpack to.
    pub(super) unpacked_max: usize,
}

impl Divider<'_> {
    /// The appends of `batch`.
    pub(super) async fn batch(&self, batch: Batch) -> Result<Vec<Append>, Answer> {
        let records = batch.records(self.unpacked_max).map_err(Refusal::Batch)?;
        let routes = self.routing.current();
        let mut shares = Shares::default();
        for (index, mut record) in records.into_iter().enumerate() {
            let topic = topic_of(&record).ok_or(Refusal::RecordTopic(index))?.to_owned();
            let target = routes.target(&topic);
            let partition = self.partition(&mut shares, &target, &topic).await?;
            if target.key.is_some() {
                target.set_key(&mut record, &topic);
                shares.rewritten = true;
            }
            shares.push(partition, record);
        }
        Ok(shares.into_appends(batch)?)
    }

    /// The record that says that `mark` will never come. It goes where the topic `tributary/{edge}/gap/{lane}` goes.
    pub(super) async fn gap(
        &self,
        mark: Mark,
        lane: &str,
        reason: &str,
        now_ms: i64,
    ) -> Result<Vec<Append>, Answer> {
        let topic = format!("tributary/{}/gap/{lane}", self.edge);
        let target = self.routing.current().target(&topic);
        let mut record = gap_record(self.edge, lane, mark, reason, now_ms);
        let partition = self.partition(&mut Shares::default(), &target, &topic).await?;
        target.set_key(&mut record, &topic);
        let mut builder = BatchBuilder::new();
        builder.push(&record);
        let batch = builder.finish(Compression::None, None);
        Ok(vec![Append { partition, batch: batch.map_err(Refusal::Batch)? }])
    }

    async fn partition(
        &self,
        shares: &mut Shares,
        target: &Target,
        topic: &str,
    ) -> Result<PartitionId, Answer> {
        let by_edge = target.rule == PartitionRule::Edge;
        if let Some(partition) = shares.known.get(&target.stream).filter(|_| by_edge) {
            return Ok(*partition);
        }
        let key = target.key.as_deref().unwrap_or(topic.as_bytes());
        let place = self.routing.place_from_edge(self.log, self.edge, target, key).await?;
        if place.shard != self.home {
            // Two shards would be two commits: exactly once would no longer hold.
            tracing::error!(
                edge = self.edge,
                stream = &*place.stream.name,
                "not in the home shard"
            );
            return Err(LogError::NotOwner.into());
        }
        if by_edge {
            shares.known.insert(target.stream.clone(), place.partition);
        }
        Ok(place.partition)
    }
}

/// The records of one batch by partition, in the order they came.
#[derive(Default)]
struct Shares {
    /// Partition of each stream under the `edge` rule.
    known: HashMap<Arc<str>, PartitionId>,
    /// Index into `parts`.
    index: HashMap<PartitionId, usize>,
    parts: Vec<(PartitionId, Vec<Record>)>,
    /// A record is not as it came.
    rewritten: bool,
}

impl Shares {
    fn push(&mut self, partition: PartitionId, record: Record) {
        let index = *self.index.entry(partition).or_insert_with(|| {
            self.parts.push((partition, Vec::new()));
            self.parts.len() - 1
        });
        if let Some((_, records)) = self.parts.get_mut(index) {
            records.push(record);
        }
    }

    fn into_appends(self, batch: Batch) -> Result<Vec<Append>, Refusal> {
        if let ([(partition, _)], false) = (self.parts.as_slice(), self.rewritten) {
            return Ok(vec![Append { partition: *partition, batch }]);
        }
        let compression = batch.compression()?;
        let mut appends = Vec::with_capacity(self.parts.len());
        for (partition, records) in self.parts {
            let mut builder = BatchBuilder::new();
            for record in &records {
                builder.push(record);
            }
            appends.push(Append { partition, batch: builder.finish(compression, None)? });
        }
        Ok(appends)
    }
}

/// The MQTT topic of a record from an edge.
fn topic_of(record: &Record) -> Option<&str> {
    let bytes = record.header(TOPIC_HEADER).or(record.key.as_ref())?;
    std::str::from_utf8(bytes).ok().filter(|name| topic::is_legal_name(name))
}

fn gap_record(edge: &str, lane: &str, mark: Mark, reason: &str, now_ms: i64) -> Record {
    let header = |name: &'static str, value: &str| Header {
        name: name.into(),
        value: Some(bytes::Bytes::copy_from_slice(value.as_bytes())),
    };
    let value = serde_json::json!({
        "edge": edge, "lane": lane, "epoch": mark.epoch, "from": mark.seq,
        "to": mark.seq + u64::from(mark.count), "count": mark.count, "reason": reason,
    });
    Record {
        key: None,
        value: Some(value.to_string().into()),
        timestamp_ms: now_ms,
        headers: vec![
            header("mqtt.content_type", "application/json"),
            header(GAP_HEADER, reason),
            header("edge.id", edge),
            header("edge.lane", lane),
            header("edge.seq", &mark.seq.to_string()),
        ],
    }
}
