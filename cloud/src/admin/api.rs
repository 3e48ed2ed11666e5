//! The JSON API: streams, edges, routes. Read-only; every list has an end.

use axum::{
    Json, Router,
    extract::{Path, State},
    routing::get,
};
use serde_json::{Value, json};

use tributary_shared::clock::wall_ms;

use super::{Failure, Shown};
use crate::{
    cluster::status::document,
    log::{LogError, PartitionId, Stream, Watermarks},
    route::CATCH_ALL,
};

/// Edges whose marks a list reads; the rest are listed without.
const MARKS_MAX: usize = 500;
/// Epochs shown of one edge.
const EPOCHS_MAX: usize = 16;

pub(super) fn router() -> Router<Shown> {
    Router::new()
        .route("/status", get(status))
        .route("/streams", get(streams))
        .route("/streams/{name}", get(stream))
        .route("/edges", get(edges))
        .route("/routes", get(routes))
        .route("/cluster", get(cluster))
        .fallback(async || Failure::NotFound("resource"))
}

async fn status(State(shown): State<Shown>) -> Json<Value> {
    Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "ready": shown.is_ready(),
        "uptime_s": shown.status.uptime_s(),
        "shards": shown.log.shards(),
        "streams": shown.log.streams().len(),
        "store": shown.log.usage(),
    }))
}

/// Who owns which shard, as this node knows it.
async fn cluster(State(shown): State<Shown>) -> Json<Value> {
    Json(document(&shown.cluster, shown.membership.as_ref(), &shown.log))
}

async fn streams(State(shown): State<Shown>) -> Json<Value> {
    let list: Vec<_> = shown.log.streams().iter().map(|stream| summary(&shown, stream)).collect();
    Json(json!({"streams": list}))
}

fn summary(shown: &Shown, stream: &Stream) -> Value {
    let marks = (0..stream.partitions).filter_map(|index| watermarks(shown, stream, index).ok());
    let (records, written) = marks.fold((0, 0), |(records, written), marks| {
        (records + (marks.high - marks.start), written + marks.high)
    });
    json!({
        "name": stream.name, "partitions": stream.partitions, "compact": stream.config.compact,
        "records": records, "written": written,
    })
}

fn watermarks(shown: &Shown, stream: &Stream, index: u32) -> Result<Watermarks, LogError> {
    shown.log.watermarks(PartitionId::new(stream.id, index))
}

async fn stream(
    State(shown): State<Shown>,
    Path(name): Path<String>,
) -> Result<Json<Value>, Failure> {
    let stream = shown.log.stream(&name).ok_or(Failure::NotFound("stream"))?;
    let mut partitions = Vec::with_capacity(stream.partitions as usize);
    for index in 0..stream.partitions {
        let marks = watermarks(&shown, &stream, index)?;
        let shard = shown.log.shard_of(PartitionId::new(stream.id, index))?;
        partitions.push(json!({
            "index": index, "shard": shard.0, "start": marks.start, "high": marks.high,
        }));
    }
    Ok(Json(json!({
        "name": stream.name, "id": stream.id, "uuid": stream.uuid, "config": stream.config,
        "partitions": partitions,
    })))
}

/// Those that are connected or ever brought something. Counters are since this process started, marks are the log's.
async fn edges(State(shown): State<Shown>) -> Result<Json<Value>, Failure> {
    let live = shown.bridge.live().view(wall_ms());
    let mut list = Vec::new();
    for view in &live {
        list.push(serde_json::to_value(view).unwrap_or_default());
    }
    for (id, last_ms) in shown.bridge.known().await? {
        if live.binary_search_by(|view| view.id.as_str().cmp(&id)).is_err() {
            list.push(json!({"id": id, "connected": false, "lanes": [], "last_ms": last_ms}));
        }
    }
    for edge in list.iter_mut().take(MARKS_MAX) {
        let Some(id) = edge.get("id").and_then(Value::as_str) else { continue };
        let marks = shown.log.edge_marks(id).await?;
        let total: u64 = marks.iter().map(|(_, next)| next).sum();
        // As text: an epoch does not fit into a JavaScript number.
        let epochs: Vec<_> = marks
            .iter()
            .take(EPOCHS_MAX)
            .map(|(epoch, next)| json!({"epoch": epoch.to_string(), "next": next}))
            .collect();
        if let Some(edge) = edge.as_object_mut() {
            edge.insert("total".into(), total.into());
            edge.insert("epochs".into(), epochs.into());
        }
    }
    let live = shown.bridge.live();
    Ok(Json(json!({
        "edges": list, "takeovers": live.takeovers(), "duplicate_ids": live.duplicate_ids(),
        "duplicate_epochs": live.duplicate_epochs(),
    })))
}

async fn routes(State(shown): State<Shown>) -> Json<Value> {
    let routes = shown.routing.current();
    Json(json!({
        "routes": routes.rules(), "catch_all": CATCH_ALL,
        "redirected": shown.routing.redirected(),
    }))
}
