//! Sessions with a large backlog cost a start no memory: what is queued stays on disk until its client comes.

use tempfile::TempDir;
use tributary_shared::mqtt::Qos;
use tributary_tests::{Device, Edge, http_get};

const SESSIONS: usize = 40;
const MESSAGES: usize = 2_500;

fn session(edge: &Edge, number: usize) -> Device {
    Device::connect_persistent(edge.mqtt, &format!("reader-{number}")).expect("connected")
}

/// An edge that was started again over sessions with so many messages each.
fn restarted(messages: usize) -> (Edge, TempDir) {
    let folder = tempfile::tempdir().expect("folder");
    let mut edge = Edge::start(folder.path(), "gw1", None);
    for number in 0..SESSIONS {
        session(&edge, number).subscribe("t", Qos::AtLeastOnce).expect("subscribed");
    }
    let mut writer = Device::connect(edge.mqtt, "writer").expect("writer");
    let payloads = (0..messages).map(|number| ("t".to_owned(), number.to_string().into()));
    writer.publish_all(payloads, 200, |_| ()).expect("published");
    drop(writer);
    assert_eq!(edge.process.stop(), Some(0));
    (edge.restart(), folder)
}

#[test]
fn a_start_holds_nothing_of_what_is_queued_and_loses_none_of_it() {
    let (empty, _folder) = restarted(0);
    let before = empty.process.rss_kib();
    drop(empty);
    let (edge, _folder) = restarted(MESSAGES);
    let after = edge.process.rss_kib();
    // 100,000 entries of 100 bytes would be 10 MiB; SQLite's two caches have 2 MiB each.
    assert!(after < before + 6 * 1024, "{before} KiB without, {after} KiB with a backlog");
    let metrics = http_get(edge.admin, "/metrics");
    let queued = format!("tributary_queue_stored_messages {}\n", SESSIONS * MESSAGES);
    assert!(metrics.contains(&queued), "{metrics}");
    for number in [0, SESSIONS - 1] {
        let mut reader = session(&edge, number);
        for expected in 0..MESSAGES {
            let payload = reader.message().expect("a message").payload;
            assert_eq!(payload, expected.to_string());
        }
    }
}
