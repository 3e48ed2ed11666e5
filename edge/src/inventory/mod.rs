//! What the edge is and how it is, as one JSON record for whoever looks after the fleet.
//!
//! ```text
//! at the start, when something to act on changes, every `interval_s` --> Own::publish `tributary/{edge}/inventory`
//! ```
//! It goes the way of every message: durable, into a lane, once into the cloud's stream `tributary.edges`; local clients may
//! subscribe to it. It is in the first lane, whatever its filters, so that a backlog of bulk data does not hold it up. While that
//! lane itself is behind by more than an interval, no more are made: an edge that is offline for a week keeps one, not
//! two thousand. How much waits is said in CONNECT too (`link`), which nothing is ahead of.
//! Change here: what is said, and when. Not here: the numbers (`admin::Reading`), how it gets there (`own`).

pub mod clock;

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tributary_shared::{clock::wall_ms, mqtt::packet::PublishProperties};

use crate::{
    admin::{Lane, Reading, Shown},
    enrol::Identity,
    own::{Own, OwnError},
};

tributary_shared::settings! {
    /// What the edge tells its cloud about itself, as messages on topic `tributary/{edge}/inventory`.
    pub struct Settings {
        /// Seconds between two of them; one is also sent at the start and when something changes. 0: none.
        pub interval_s: u64 = 300 => 0..=86_400,
    }
}

/// How often the numbers are looked at for a change.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// No two because of a change within this.
const APART: Duration = Duration::from_secs(30);
/// Seconds of a day.
const DAY_S: i64 = 86_400;

/// Where it is published.
pub fn topic(edge: &str) -> String {
    format!("tributary/{edge}/inventory")
}

/// Publishes until `stop`.
pub async fn run(
    shown: Shown,
    own: Own,
    identity: Arc<Identity>,
    settings: Settings,
    stop: CancellationToken,
) {
    if settings.interval_s == 0 || !shown.has_cloud {
        return stop.cancelled().await;
    }
    let every = Duration::from_secs(settings.interval_s);
    let started_ms = wall_ms() - shown.started.elapsed().as_millis() as i64;
    let mut told: Option<(Instant, Vec<String>)> = None;
    loop {
        let reading = shown.reading();
        if due(told.as_ref(), &reading, every) {
            let clock = clock::synchronised();
            let record = record(&reading, started_ms, clock, certificate_days(&identity));
            told = Some((Instant::now(), to_act_on(&reading)));
            tokio::select! {
                () = stop.cancelled() => return,
                published = publish(&own, &reading.id, &record) => if let Err(error) = published {
                    tracing::warn!(%error, "the inventory is not published");
                },
            }
        }
        tokio::select! { () = stop.cancelled() => return, () = sleep(LOOK_EVERY) => {} }
    }
}

/// Whether one is to be published now; `told`: when the last one was, and what there was to act on.
fn due(told: Option<&(Instant, Vec<String>)>, reading: &Reading, every: Duration) -> bool {
    let Some((at, notes)) = told else { return true };
    let behind = reading.lanes.first().is_some_and(|lane| lane.oldest_s > every.as_secs());
    let wait = if *notes == to_act_on(reading) { every } else { APART.min(every) };
    !behind && at.elapsed() >= wait
}

fn to_act_on(reading: &Reading) -> Vec<String> {
    let mut notes = reading.notes.clone();
    notes.extend((reading.quarantined > 0).then(|| "quarantine".to_owned()));
    notes
}

async fn publish(own: &Own, id: &str, record: &Value) -> Result<(), OwnError> {
    let properties = PublishProperties {
        content_type: Some("application/json".into()),
        ..PublishProperties::default()
    };
    own.publish(topic(id), record.to_string(), properties, false).await
}

/// Days that the certificate is still good for; `None`: there is none.
fn certificate_days(identity: &Identity) -> Option<i64> {
    let until_s = i64::try_from(identity.own_facts()?.until_s).ok()?;
    Some((until_s - wall_ms() / 1000) / DAY_S)
}

fn record(
    reading: &Reading,
    started_ms: i64,
    clock_synchronised: Option<bool>,
    certificate_days: Option<i64>,
) -> Value {
    let lane = |lane: &Lane| {
        json!({
            "name": lane.name, "backlog": lane.buffered, "bytes": lane.bytes, "oldest_s": lane.oldest_s,
            "synced": lane.synced, "given_up": lane.given_up, "connected": lane.connected, "full": lane.full,
        })
    };
    let lanes: Vec<_> = reading.lanes.iter().map(lane).collect();
    json!({
        "id": reading.id, "version": reading.version, "at_ms": wall_ms(), "started_ms": started_ms,
        "uptime_s": reading.uptime_s, "clock_synchronised": clock_synchronised,
        "certificate_days": certificate_days, "connections": reading.connections, "sessions": reading.sessions,
        "received": reading.received, "sent": reading.sent, "dropped": reading.dropped,
        "given_up": reading.given_up, "quarantined": reading.quarantined, "store_bytes": reading.db_bytes,
        "disk_free_bytes": reading.disk_free_bytes, "memory_bytes": reading.memory_bytes,
        "notes": reading.notes, "lanes": lanes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(oldest_s: u64, notes: &[&str]) -> Reading {
        Reading {
            id: "gw1".to_owned(),
            lanes: vec![Lane { name: "normal".to_owned(), oldest_s, ..Lane::default() }],
            notes: notes.iter().map(|&note| note.to_owned()).collect(),
            ..Reading::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_told_at_the_start_on_change_and_in_time_but_not_into_a_backlog() {
        let every = Duration::from_mins(5);
        assert!(due(None, &reading(99_999, &[]), every), "the first is always told");
        let told = (Instant::now(), to_act_on(&reading(0, &[])));
        for (after_s, oldest_s, notes, expected) in [
            (0, 0, &[][..], false),
            (29, 0, &["disk full"], false),
            (30, 0, &["disk full"], true),
            (299, 0, &[], false),
            (300, 0, &[], true),
            (9000, 301, &["disk full"], false),
        ] {
            let told = (told.0, told.1.clone());
            let now = told.0 + Duration::from_secs(after_s);
            tokio::time::advance(now.saturating_duration_since(Instant::now())).await;
            assert_eq!(due(Some(&told), &reading(oldest_s, notes), every), expected, "{after_s}");
        }
    }

    #[test]
    fn the_record_says_what_a_fleet_is_looked_after_by() {
        let record = record(&reading(7, &["disk full"]), 5, Some(true), Some(42));
        assert_eq!(record["lanes"][0]["oldest_s"], 7);
        assert_eq!((&record["certificate_days"], &record["started_ms"]), (&json!(42), &json!(5)));
        assert_eq!(record["notes"][0], "disk full");
        assert!(record.to_string().len() < 1024);
    }
}
