//! The simulated cloud: the real bridge over the real log, over a store in memory that is durable when the simulation says so.
//!
//! In: connections of gateways. Out: a log that [`stored`] reads when the run is over. Change here: how the cloud is set up.
//! Not here: clouds that break the rules (`wrong`).

use std::{sync::Arc, time::Duration};

use tokio::{
    task::spawn_local,
    time::{MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::CancellationToken;
use tributary_cloud::{
    bridge::{self, Bridge, GAP_HEADER},
    engine::memory::MemoryEngine,
    log::{self, Log, PartitionId},
    route::{PartitionRule, Routes, Routing, Rule},
};
use tributary_shared::{
    connection::{self, Counters, handshake},
    record::Record,
};
use turmoil::net::TcpListener;

use super::{verdict::Stored, world::World};
use crate::random::Random;

/// Its host.
pub(super) const NAME: &str = "cloud";
/// Where it listens.
pub(super) const PORT: u16 = 1883;

/// How often the marks are looked at, ms.
const LOOK_MS: u64 = 250;

/// Runs one life of the cloud; returns only if it cannot go on.
pub(super) async fn run(
    world: World,
    engine: MemoryEngine,
    stop: CancellationToken,
    life: u64,
) -> turmoil::Result {
    let plan = world.lock().plan.clone();
    spawn_local(flush(engine.clone(), plan.flush_ms, Random::new(plan.seed ^ life << 40)));
    let settings = log::Settings { retention_ms: -1, ..log::Settings::default() };
    let log = Log::open(Arc::new(engine), settings).await?;
    let routing = Routing::new(Routes::new(rules(plan.routes))?);
    let settings = bridge::Settings {
        receive_maximum: plan.receive_maximum,
        packet_bytes_max: plan.packet_bytes,
        ..bridge::Settings::default()
    };
    let bridge = Bridge::new(log.clone(), routing, settings);
    spawn_local(look_at_marks(world.clone(), log));
    let listener = TcpListener::bind(("0.0.0.0", PORT)).await?;
    world.event("cloud starts");
    loop {
        let (stream, address) = listener.accept().await?;
        let (bridge, stop) = (bridge.clone(), stop.clone());
        spawn_local(async move {
            let (settings, counters) = (connection::Settings::default(), Counters::default());
            if let Ok(opened) = handshake(stream, &settings, &counters).await {
                bridge.serve(opened, address.to_string(), stop).await;
            }
        });
    }
}

fn rules(some: bool) -> Vec<Rule> {
    let rule = |filter: &str, stream: &str| Rule {
        filter: filter.to_owned(),
        stream: stream.to_owned(),
        key: None,
        partition: PartitionRule::Edge,
    };
    // The second one divides batches.
    if some { vec![rule("c/#", "critical"), rule("n/1", "ones")] } else { Vec::new() }
}

/// A disk that is sometimes slow.
async fn flush(engine: MemoryEngine, longest_ms: u64, mut random: Random) {
    loop {
        sleep(Duration::from_millis(1 + random.below(longest_ms as usize) as u64)).await;
        engine.flush();
    }
}

/// What is durable never goes back, whoever crashed meanwhile.
async fn look_at_marks(world: World, log: Log) {
    let mut ticks = interval(Duration::from_millis(LOOK_MS));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let mut edges: Vec<_> =
            world.lock().hosts.iter().map(|host| host.edge_id.clone()).collect();
        edges.dedup();
        for edge in edges {
            let promised = world.lock().promised.clone();
            for (epoch, next) in log.edge_marks(&edge).await.unwrap_or_default() {
                world.lock().mark_seen(&promised, &edge, epoch, next);
            }
        }
    }
}

/// All that a start of the cloud finds: its records and gaps in the order of their partitions, and its marks.
pub(super) async fn stored(
    engine: &MemoryEngine,
    edges: &[String],
) -> Result<(Vec<Stored>, Vec<(i64, u64)>), String> {
    engine.crash();
    let settings = log::Settings { retention_ms: -1, ..log::Settings::default() };
    let log = Log::open(Arc::new(engine.clone()), settings).await.map_err(|e| e.to_string())?;
    let mut found = Vec::new();
    for stream in log.streams() {
        for index in 0..stream.partitions {
            let partition = PartitionId::new(stream.id, index);
            let high = log.watermarks(partition).map_err(|error| error.to_string())?.high;
            let mut from = 0;
            while from < high {
                let read = log.read(partition, from, 1 << 20).await;
                for batch in read.map_err(|error| error.to_string())? {
                    from = batch.last_offset() + 1;
                    let records = batch.records(1 << 25).map_err(|error| error.to_string())?;
                    found.extend(records.iter().map(|record| describe(partition, record)));
                }
            }
        }
    }
    let mut marks = Vec::new();
    for edge in edges {
        marks.extend(log.edge_marks(edge).await.map_err(|error| error.to_string())?);
    }
    Ok((found, marks))
}

fn describe(partition: PartitionId, record: &Record) -> Stored {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let header = |name: &str| record.header(name).map(|value| text(value)).unwrap_or_default();
    let value = record.value.clone().unwrap_or_default();
    let gap = record.header(GAP_HEADER).map(|reason| {
        let said: serde_json::Value = serde_json::from_slice(&value).unwrap_or_default();
        let number = |name: &str| said[name].as_u64().unwrap_or(u64::MAX);
        (number("epoch") as i64, number("from"), number("to"), text(reason))
    });
    Stored {
        place: partition.0,
        edge: header("edge.id"),
        seq: header("edge.seq").parse().ok(),
        message: number_of(&value),
        gap,
    }
}

/// The number that a payload begins with.
pub(super) fn number_of(payload: &[u8]) -> Option<u64> {
    let digits = payload.split(|byte| *byte == b' ').next()?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}
