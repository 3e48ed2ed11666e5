//! A batch and where its records go: as it came where one partition takes all, else one batch a partition.
//!
//! In: a checked batch and the routes. Out: appends that all live in the edge's home shard, so that they are one commit.
//! Change here: what is re-encoded. Not here: rules (`route`), checks of the upload (`upload`) and its records (`label`).

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use tributary_shared::record::{
    Batch, BatchBuilder, BatchError, Compression, Header, Record, Unpacked,
};

use super::{
    answer::Answer,
    clocks::Clocks,
    label::{self, Sender},
    upload::{Mark, Refusal},
};
use crate::{
    engine::ShardId,
    log::{Append, Log, LogError, PartitionId},
    route::{Routing, Target},
};

/// Header of a gap record: its value is the reason.
pub const GAP_HEADER: &str = "tributary.gap";

/// Different topics in one batch: as many as messages that an edge's settings allow in one. Each costs memory and a look at the
/// routes.
pub(super) const TOPICS_MAX: usize = 10_000;

/// Where an edge's records go.
pub(super) struct Divider<'a> {
    pub(super) log: &'a Log,
    pub(super) routing: &'a Routing,
    pub(super) edge: &'a str,
    pub(super) home: ShardId,
    /// Bytes that one batch may unpack to.
    pub(super) unpacked_max: usize,
    pub(super) clocks: Clocks,
}

/// What a batch becomes.
pub(super) struct Divided {
    pub(super) appends: Vec<Append>,
    /// See [`crate::log::Guard::Edge`].
    pub(super) prints: Arc<[u32]>,
    /// Records whose time was absurd.
    pub(super) clamped: u64,
    /// What the edge says of itself, if it is among the records.
    pub(super) inventory: Option<Bytes>,
}

impl Divider<'_> {
    /// The appends of `batch`, which came on `lane` and starts at `seq`. Every record in it is looked at: what is stored must
    /// be readable, and of the edge it says.
    pub(super) async fn batch(
        &self,
        batch: Batch,
        lane: &str,
        seq: u64,
        now_ms: i64,
    ) -> Result<Divided, Answer> {
        let unpacked = batch.unpack(self.unpacked_max).map_err(Refusal::Batch)?;
        let routes = self.routing.current();
        let base = batch.header().base_offset;
        let sender = Sender { edge: self.edge, lane };
        let mut plan = Plan::default();
        let mut topics: HashMap<&str, usize> = HashMap::new();
        let mut prints = Vec::new();
        let (mut latest_ms, mut clamped) = (i64::MIN, 0);
        let (own_topic, mut inventory) = (format!("tributary/{}/inventory", self.edge), None);
        for (index, raw) in unpacked.iter().enumerate() {
            let raw = raw.map_err(Refusal::Batch)?;
            if raw.offset != base + index as i64 {
                return Err(Refusal::RecordOffset(index).into());
            }
            let topic = label::checked(&raw, index, seq + index as u64, sender)?;
            let place = if let Some(place) = topics.get(topic) {
                *place
            } else if topics.len() >= TOPICS_MAX {
                return Err(Refusal::Topics.into());
            } else {
                let target = routes.target(topic);
                let partition = self.partition(&target, topic).await?;
                *topics.entry(topic).or_insert(plan.add(partition, target, topic))
            };
            plan.records.push(place);
            if let Some(value) = raw.value.filter(|_| topic == own_topic) {
                inventory = Some(Bytes::copy_from_slice(value));
            }
            prints.push(raw.fingerprint());
            latest_ms = latest_ms.max(raw.timestamp_ms);
            clamped += u64::from(self.clocks.is_absurd(raw.timestamp_ms, now_ms));
        }
        // Retention and time indexes go by the header, so it has to be true as well.
        plan.rewrites |= clamped > 0 || latest_ms != batch.header().max_timestamp_ms;
        let prints = prints.into();
        if let ([partition], false) = (plan.partitions.as_slice(), plan.rewrites) {
            let appends = vec![Append { partition: *partition, batch }];
            return Ok(Divided { appends, prints, clamped, inventory });
        }
        let clamp = |record: &mut Record| self.clocks.clamp(record, now_ms);
        let appends = plan.split(&batch, &unpacked, clamp).map_err(Refusal::Batch)?;
        Ok(Divided { appends, prints, clamped, inventory })
    }

    /// The record that says that `mark` will never come. It goes where the topic `tributary/{edge}/gap/{lane}` goes.
    pub(super) async fn gap(
        &self,
        mark: Mark,
        lane: &str,
        reason: &str,
        now_ms: i64,
    ) -> Result<Divided, Answer> {
        let topic = format!("tributary/{}/gap/{lane}", self.edge);
        let target = self.routing.current().target(&topic);
        let mut record = gap_record(self.edge, lane, mark, reason, now_ms);
        let partition = self.partition(&target, &topic).await?;
        target.set_key(&mut record, &topic);
        let mut builder = BatchBuilder::new();
        builder.push(&record);
        let batch = builder.finish(Compression::None, None);
        let appends = vec![Append { partition, batch: batch.map_err(Refusal::Batch)? }];
        Ok(Divided { appends, prints: Arc::default(), clamped: 0, inventory: None })
    }

    async fn partition(&self, target: &Target, topic: &str) -> Result<PartitionId, Answer> {
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
        Ok(place.partition)
    }
}

/// Which record of a batch goes where.
#[derive(Default)]
struct Plan {
    /// In the order they were met.
    partitions: Vec<PartitionId>,
    /// One a topic: index into `partitions`, and what the records' key becomes.
    places: Vec<(usize, Target, String)>,
    /// One a record: index into `places`.
    records: Vec<usize>,
    /// Some keys or times change.
    rewrites: bool,
}

impl Plan {
    /// A topic met for the first time; returns its place.
    fn add(&mut self, partition: PartitionId, target: Target, topic: &str) -> usize {
        let known = self.partitions.iter().position(|known| *known == partition);
        let index = known.unwrap_or_else(|| {
            self.partitions.push(partition);
            self.partitions.len() - 1
        });
        self.rewrites |= target.key.is_some();
        self.places.push((index, target, topic.to_owned()));
        self.places.len() - 1
    }

    fn split(
        self,
        batch: &Batch,
        unpacked: &Unpacked,
        clamp: impl Fn(&mut Record),
    ) -> Result<Vec<Append>, BatchError> {
        let mut builders: Vec<_> = self.partitions.iter().map(|_| BatchBuilder::new()).collect();
        for (raw, place) in unpacked.iter().zip(&self.records) {
            let mut record = unpacked.record(&raw?)?;
            clamp(&mut record);
            let Some((index, target, topic)) = self.places.get(*place) else { continue };
            if target.key.is_some() {
                target.set_key(&mut record, topic);
            }
            if let Some(builder) = builders.get_mut(*index) {
                builder.push(&record);
            }
        }
        let compression = batch.compression()?;
        let built = self.partitions.into_iter().zip(builders);
        built
            .map(|(partition, builder)| {
                Ok(Append { partition, batch: builder.finish(compression, None)? })
            })
            .collect()
    }
}

fn gap_record(edge: &str, lane: &str, mark: Mark, reason: &str, now_ms: i64) -> Record {
    let header = |name: &'static str, value: &str| Header {
        name: name.into(),
        value: Some(Bytes::copy_from_slice(value.as_bytes())),
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
