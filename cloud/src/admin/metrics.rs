//! The numbers of log, bridge and routes for `/metrics`. Heads publish their own.

use std::sync::atomic::Ordering::Relaxed;

use tributary_shared::clock::wall_ms;

use super::Shown;
use crate::{bridge::EdgeView, engine::ShardId, log::PartitionId, status::Page};

/// Partitions with their own samples; a scrape has to end.
const SAMPLES_MAX: usize = 2_000;

pub(super) fn publish(shown: &Shown) {
    let of = shown.clone();
    shown.status.add(move |page| {
        streams(&of, page);
        edges(&of, page);
        cluster(&of, page);
        storage(&of, page);
        page.counter(
            "tributary_routes_redirected_total",
            "Messages sent to the catch-all stream because there are too many streams",
            &[],
            of.routing.redirected(),
        );
    });
}

fn streams(shown: &Shown, page: &mut Page) {
    let streams = shown.log.streams();
    page.gauge("tributary_streams", "Streams", &[], streams.len() as u64);
    let partitions =
        streams.iter().flat_map(|stream| (0..stream.partitions).map(move |index| (stream, index)));
    for (stream, index) in partitions.take(SAMPLES_MAX) {
        let Ok(marks) = shown.log.watermarks(PartitionId::new(stream.id, index)) else { continue };
        let number = index.to_string();
        let labels = &[("stream", stream.name.as_str()), ("partition", &number)];
        let high = marks.high.unsigned_abs();
        page.gauge("tributary_partition_high", "One past the last durable offset", labels, high);
        let start = marks.start.unsigned_abs();
        page.gauge("tributary_partition_start", "First offset still there", labels, start);
    }
}

fn cluster(shown: &Shown, page: &mut Page) {
    let view = shown.cluster.view();
    for (shard, leader) in (0..).map(ShardId).zip(&view.shards) {
        let (number, here) = (shard.0.to_string(), u64::from(shown.log.is_here(shard)));
        let labels = &[("shard", number.as_str())];
        page.gauge("tributary_shard_served", "1 where a shard is served", labels, here);
        let epoch = u64::from(leader.epoch.unsigned_abs());
        page.gauge("tributary_shard_epoch", "Rises with each owner of a shard", labels, epoch);
    }
    let Some(member) = &shown.membership else { return };
    let map = member.map();
    let living = map.living().count() as u64;
    page.gauge("tributary_cluster_nodes", "Nodes in the cluster's map", &[], living);
    page.gauge("tributary_cluster_map_version", "Version of the map known here", &[], map.version);
    let moves = map.shards.iter().filter(|place| place.next.is_some()).count() as u64;
    page.gauge("tributary_cluster_moves", "Shards that are being handed over", &[], moves);
    let sure = u64::from(member.is_sure());
    page.gauge("tributary_cluster_lease", "1 while this node's heartbeats land", &[], sure);
    let counters = member.counters();
    for (name, help, counter) in [
        ("tributary_cluster_taken_total", "Shards opened here", &counters.taken),
        ("tributary_cluster_released_total", "Shards handed over", &counters.released),
        ("tributary_cluster_lost_total", "Shards that another node opened", &counters.lost),
        (
            "tributary_cluster_unanswered_total",
            "Heartbeats and looks at the map that the store did not answer in time",
            &counters.unanswered,
        ),
        (
            "tributary_cluster_ended_total",
            "Times that this node gave up a silent node",
            &counters.ended,
        ),
    ] {
        page.counter(name, help, &[], counter.load(Relaxed));
    }
}

fn storage(shown: &Shown, page: &mut Page) {
    for used in shown.log.usage() {
        let shard = used.shard.0.to_string();
        let kinds = [
            ("put", used.puts),
            ("get", used.gets),
            ("list", used.lists),
            ("delete", used.deletes),
        ];
        for (kind, requests) in kinds {
            page.counter(
                "tributary_store_requests_total",
                "Requests to the store by this process",
                &[("shard", &shard), ("kind", kind)],
                requests,
            );
        }
        page.gauge(
            "tributary_store_cents_a_month",
            "What a month of requests at this process's rate comes to",
            &[("shard", &shard)],
            used.cents_a_month,
        );
    }
}

type Read = fn(&EdgeView) -> u64;

/// One edge's, all edges' together.
const EDGE_COUNTERS: [(&str, &str, &str, Read); 8] = [
    (
        "tributary_edge_records_total",
        "tributary_edges_records_total",
        "Records made durable",
        |edge| edge.records,
    ),
    (
        "tributary_edge_batches_total",
        "tributary_edges_batches_total",
        "Batches made durable",
        |edge| edge.batches,
    ),
    (
        "tributary_edge_bytes_total",
        "tributary_edges_bytes_total",
        "Bytes of these batches",
        |edge| edge.bytes,
    ),
    (
        "tributary_edge_duplicates_total",
        "tributary_edges_duplicates_total",
        "Batches that had come before",
        |edge| edge.duplicates,
    ),
    (
        "tributary_edge_gaps_total",
        "tributary_edges_gaps_total",
        "Uploads refused because earlier ones are missing",
        |edge| edge.gaps,
    ),
    (
        "tributary_edge_declared_lost_total",
        "tributary_edges_declared_lost_total",
        "Records that the edge gave up",
        |edge| edge.declared_lost,
    ),
    (
        "tributary_edge_clamped_total",
        "tributary_edges_clamped_total",
        "Records whose time was absurd",
        |edge| edge.clamped,
    ),
    (
        "tributary_edge_refused_total",
        "tributary_edges_refused_total",
        "Uploads refused or failed",
        |edge| edge.refused,
    ),
];

/// Records that wait at an edge.
fn backlog(edge: &EdgeView) -> u64 {
    edge.lanes.iter().map(|lane| lane.backlog).sum()
}

fn edges(shown: &Shown, page: &mut Page) {
    let live = shown.bridge.live();
    let mut edges = live.numbers(wall_ms());
    let connected = edges.iter().filter(|edge| edge.connected).count();
    page.gauge("tributary_edges_connected", "Edges connected", &[], connected as u64);
    page.counter(
        "tributary_edge_takeovers_total",
        "Edge connections ended by a newer one of the same edge and lane",
        &[],
        live.takeovers(),
    );
    let busy = shown.bridge.busy();
    let gauges = [
        ("tributary_edges_catching_up", "Edges that bring more than live data", busy.catching_up),
        ("tributary_edges_waiting", "Edges that wait for a turn to catch up", busy.waiting),
        (
            "tributary_edges_in_flight_bytes",
            "Bytes of catching up that are not durable yet",
            busy.in_flight_bytes,
        ),
    ];
    for (name, help, value) in gauges {
        page.gauge(name, help, &[], value as u64);
    }
    page.counter(
        "tributary_edges_turned_away_total",
        "Connections of edges refused or ended because there were too many",
        &[],
        busy.refused,
    );
    page.counter(
        "tributary_edge_duplicate_ids_total",
        "Times that two live gateways with one edge id were noticed",
        &[],
        live.duplicate_ids(),
    );
    page.counter(
        "tributary_edge_duplicate_epochs_total",
        "Batches refused because other records came before under their epoch and sequences",
        &[],
        live.duplicate_epochs(),
    );
    for (_, all, help, read) in EDGE_COUNTERS {
        page.counter(all, help, &[], edges.iter().map(read).sum());
    }
    let help = "Records that wait at all connected edges, by what they said and brought";
    page.gauge("tributary_edges_backlog", help, &[], edges.iter().map(backlog).sum());
    edges.sort_by_key(|edge| std::cmp::Reverse(backlog(edge)));
    for edge in edges.iter().take(shown.bridge.metrics_edges()) {
        let labels = &[("edge", edge.id.as_str())];
        page.gauge("tributary_edge_backlog", "Records that wait there", labels, backlog(edge));
        for (name, _, help, read) in EDGE_COUNTERS {
            page.counter(name, help, labels, read(edge));
        }
    }
}
