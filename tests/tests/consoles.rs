//! The edge's page and the cloud's console in a real browser: their numbers move with the messages, and nothing is
//! complained of in the browser's console.

use std::path::PathBuf;

use tributary_shared::mqtt::Qos;
use tributary_tests::{
    Cloud, Device, Edge,
    browser::{self, Browser},
};

fn chromium() -> Option<PathBuf> {
    let found = browser::installed();
    if found.is_none() {
        tributary_tests::say("SKIP no chromium here: scripts/install test brings it");
    }
    found
}

fn publish(edge: &Edge, count: usize) {
    let mut device = Device::connect(edge.mqtt, "device").expect("connect");
    let messages = (0..count).map(|at| ("site/a/temp".to_owned(), at.to_string().into()));
    device.publish_all(messages, 10, |_| ()).expect("published");
}

/// A line of a chart that has left the ground.
fn rises(line: &str) -> String {
    format!(
        "{line}.getAttribute('points').split(' ').some(p => p.split(',')[0] && Number(p.split(',')[1]) < 20)"
    )
}

/// An edge that publishes nothing of its own: numbers are those of the test.
const QUIET: [&str; 2] = ["--set", "inventory.interval_s=0"];

#[tokio::test(flavor = "multi_thread")]
async fn the_edges_page_moves_with_the_messages() {
    let Some(chromium) = chromium() else { return };
    let folder = tempfile::tempdir().expect("folder");
    let nobody = "127.0.0.1:9".parse().expect("address");
    let edge = Edge::start_with(folder.path(), "gw1", Some(nobody), &QUIET);
    let mut page = Browser::open(&chromium, &format!("http://{}/", edge.admin)).await;
    let shows =
        |id: &str, text: &str| format!("document.getElementById('{id}').textContent === '{text}'");
    page.until(&shows("id", "gw1")).await;
    page.until(&shows("received", "0")).await;
    page.until(&shows("in", "0")).await;

    let mut reader = Device::connect(edge.mqtt, "reader").expect("connect");
    reader.subscribe("site/#", Qos::AtMostOnce).expect("subscribe");
    publish(&edge, 50);
    page.until(&shows("received", "50")).await;
    page.until(&shows("sent", "50")).await;
    page.until(&shows("clients", "1")).await;
    for line in ["line-in", "line-out"] {
        page.until(&rises(&format!("document.getElementById('{line}')"))).await;
    }
    let lane = "[...document.querySelectorAll('#lanes td')].map(cell => cell.textContent)";
    page.until(&format!("{lane}[0] === 'normal' && {lane}[1] === '50'")).await;
    page.until(&format!("{lane}[7] === 'not connected'")).await;
    page.until(
        "document.getElementById('problems').textContent.includes('no connection to the cloud')",
    )
    .await;
    page.until("!document.getElementById('problems-part').hidden").await;
    assert_eq!(page.complaints, Vec::<String>::new());
    drop(reader);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clouds_console_shows_edges_and_streams_as_they_grow() {
    let Some(chromium) = chromium() else { return };
    let folder = tempfile::tempdir().expect("folder");
    let cloud = Cloud::start(&folder.path().join("cloud"));
    let mut page = Browser::open(&chromium, &format!("http://{}/", cloud.admin)).await;
    page.until("document.getElementById('state').textContent === 'ready'").await;
    page.until("!document.getElementById('no-edges').hidden").await;
    let edge = Edge::start_with(&folder.path().join("edge"), "gw1", Some(cloud.mqtt), &QUIET);
    page.until("document.getElementById('connected').textContent === '1 of 1'").await;
    publish(&edge, 50);
    let row = |id: &str, name: &str| {
        format!(
            "[...document.querySelectorAll('#{id} tr')].find(row => row.cells[0].textContent === '{name}')"
        )
    };
    let (stream, edge_row) = (row("streams", "mqtt.messages"), row("edges", "gw1"));
    page.until(&format!("{stream}.cells[5].textContent === '50'")).await;
    page.until(&format!("{edge_row}.cells[3].textContent === '50'")).await;
    page.until(&rises(&format!("{stream}.querySelector('polyline')"))).await;
    page.until("document.querySelector('#edges .dot.on') !== null").await;
    assert_eq!(page.complaints, Vec::<String>::new());
}
