//! What an edge says of itself reaches every consumer and the console, without anybody asking for it.

use std::time::Duration;

use rdkafka::Message as _;
use serde_json::Value;
use tributary_tests::{Cloud, Edge, http_get, kafka::Reader};

#[test]
fn an_edge_says_what_it_is_and_the_cloud_shows_it() {
    let folder = tempfile::tempdir().expect("folder");
    let cloud = Cloud::start(&folder.path().join("cloud"));
    let edge = Edge::start(&folder.path().join("edge"), "gw1", Some(cloud.mqtt));
    let reader = Reader::new(cloud.kafka, "tributary.edges");
    let message = reader.next(Duration::from_mins(1)).expect("the first inventory");
    assert_eq!(message.key(), Some(&b"tributary/gw1/inventory"[..]));
    let said: Value = serde_json::from_slice(message.payload().unwrap_or_default()).expect("JSON");
    assert_eq!(said["id"], "gw1");
    assert_eq!(said["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(said["lanes"][0]["name"], "normal");

    let page = http_get(cloud.admin, "/api/edges");
    let body = page.find('{').and_then(|at| page.get(at..)).unwrap_or_default();
    let shown: Value = serde_json::from_str(body).expect("JSON");
    let shown = &shown["edges"][0];
    assert_eq!(shown["inventory"]["id"], "gw1", "{shown}");
    assert_eq!(shown["lanes"][0]["backlog"], 0, "{shown}");
    assert_eq!(shown["alarms"], serde_json::json!([]), "{shown}");
    drop(edge);
}
