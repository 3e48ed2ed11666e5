//! What is new goes first after an outage, if the lane says so.

use super::*;

fn fresh_first(catch_up_bytes_per_s: u64) -> lane::Settings {
    lane::Settings { fresh_first: true, catch_up_bytes_per_s, ..lane::Settings::default() }
}

fn start(dir: &Path, cloud: SocketAddr, catch_up: u64) -> Edge {
    Edge::start_with(dir, cloud, Settings::default(), fresh_first(catch_up))
}

/// A data folder with `count` messages of 1 KB that waited.
async fn backlog(dir: &Path, count: usize) {
    let mut edge = start(dir, "127.0.0.1:1".parse().unwrap(), 0);
    for i in 0..count / 10 {
        edge.publish_long(i * 10, 10, 1000).await;
    }
    edge.stop().await;
}

/// Each epoch's messages came in order; all came once.
fn check(seen: &Seen, count: usize) {
    for came in seen.epochs.values() {
        let came: Vec<usize> = came.iter().map(|text| text.parse().unwrap()).collect();
        assert!(came.is_sorted(), "{came:?}");
    }
    let mut all: Vec<usize> = seen.records.iter().map(|text| text.parse().unwrap()).collect();
    all.sort_unstable();
    assert_eq!(all, (0..count).collect::<Vec<_>>());
    assert!(seen.gaps.is_empty(), "{:?}", seen.gaps);
}

#[tokio::test]
async fn new_messages_overtake_those_that_waited_and_these_say_that_they_are_late() {
    let dir = tempfile::tempdir().unwrap();
    backlog(dir.path(), 200).await;
    let (come, mut came) = tokio::sync::mpsc::channel(1000);
    let cloud = Cloud::start(true, move |_, publish| {
        come.try_send(publish.payload.len()).unwrap();
        Act::Follow
    })
    .await;
    let mut edge = start(dir.path(), cloud.address, 100_000);
    // It has begun with what waited.
    came.recv().await.unwrap();
    for i in 0..5 {
        edge.publish(200 + i, 1).await;
        while cloud.seen.lock().unwrap().records.iter().all(|text| *text != (200 + i).to_string()) {
            came.recv().await.unwrap();
        }
    }
    let waits = edge.status.lane("normal").messages.get();
    let late = cloud.seen.lock().unwrap().late.len();
    assert!(late < 200 && waits > 0, "{late} of 200 came before what is new");
    edge.drained().await;
    edge.publish(205, 1).await;
    edge.drained().await;
    edge.stop().await;
    let seen = cloud.seen.lock().unwrap();
    check(&seen, 206);
    assert_eq!(seen.late, numbers(200), "all that waited, and nothing else, is late");
    assert_eq!(seen.epochs.len(), 2);
}

#[tokio::test]
async fn both_arrive_once_and_in_order_through_cuts_and_restarts() {
    for seed in 0..4_usize {
        let dir = tempfile::tempdir().unwrap();
        backlog(dir.path(), 120).await;
        let cloud = Cloud::start(true, move |n, _| match (n * 7 + seed * 13) % 11 {
            0 => Act::CutAfter,
            4 => Act::CutBefore,
            8 if n % 3 == 0 => Act::Say(0x80),
            _ => Act::Follow,
        })
        .await;
        for life in 0..3 {
            let mut edge = start(dir.path(), cloud.address, 0);
            for i in 0..10 {
                edge.publish_long(120 + life * 20 + i * 2, 2, 400).await;
            }
            if life == 2 {
                edge.drained().await;
            }
            edge.stop().await;
        }
        let seen = cloud.seen.lock().unwrap();
        check(&seen, 180);
        assert!(seen.connects.len() > 3, "seed {seed}");
    }
}

#[tokio::test]
async fn an_outage_of_the_running_edge_begins_an_epoch_for_what_is_new() {
    let dir = tempfile::tempdir().unwrap();
    let there = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let open = there.clone();
    let cloud = Cloud::start(
        true,
        move |_, _| {
            if open.load(Relaxed) { Act::Follow } else { Act::CutBefore }
        },
    )
    .await;
    let mut edge = start(dir.path(), cloud.address, 0);
    edge.publish_long(0, 10, 1000).await;
    edge.drained().await;
    there.store(false, Relaxed);
    for i in 1..21 {
        edge.publish_long(i * 10, 10, 1000).await;
    }
    // Connections come and are cut, until one has begun an epoch.
    let connects = || cloud.seen.lock().unwrap().connects.len();
    let mut progress = edge.opened.store.progress();
    let before = connects();
    while connects() < before + 3 {
        let _soon = timeout(Duration::from_millis(20), progress.changed()).await;
    }
    edge.publish(210, 3).await;
    there.store(true, Relaxed);
    edge.drained().await;
    edge.stop().await;
    let seen = cloud.seen.lock().unwrap();
    check(&seen, 213);
    assert_eq!(seen.epochs.len(), 2);
}
