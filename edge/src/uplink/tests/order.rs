//! Every record once and in order, whatever the connections do.

use super::*;

#[tokio::test]
async fn every_record_arrives_once_and_in_order_through_cuts_on_both_sides_of_the_commit() {
    for seed in 0..6_usize {
        let (_dir, cloud, mut edge) = setup(move |n, _| match (n * 7 + seed * 13) % 11 {
            0 => Act::CutAfter,
            4 => Act::CutBefore,
            _ => Act::Follow,
        })
        .await;
        for commit in 0..60 {
            edge.publish(commit * 3, 3).await;
        }
        edge.drained().await;
        edge.stop().await;
        let seen = cloud.seen.lock().unwrap();
        assert_eq!(seen.records, numbers(180), "seed {seed}");
        // The first of the first seed is cut; what others have depends on how rows were merged.
        assert!(seen.gaps.is_empty() && (seed > 0 || seen.connects.len() > 1));
        let (id, user) = &seen.connects[0];
        assert_eq!(id, "gw1.up.normal");
        let user: Vec<_> = user.iter().map(|(k, v)| (&**k, &**v)).collect();
        assert_eq!(user[..2], [("tributary-edge", "gw1"), ("tributary-lane", "normal")]);
    }
}

#[tokio::test]
async fn a_cloud_that_names_no_epochs_gets_duplicates_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let act = |n: usize, _: &Publish| if n % 5 == 3 { Act::CutAfter } else { Act::Follow };
    let cloud = Cloud::start(false, act).await;
    let mut edge = Edge::start(dir.path(), cloud.address);
    for i in 0..30 {
        edge.publish(i, 1).await;
    }
    edge.drained().await;
    edge.stop().await;
    let seen = cloud.seen.lock().unwrap();
    assert_eq!(seen.records, numbers(30));
    assert!(seen.duplicates > 0);
}

#[tokio::test]
async fn an_edge_that_lost_its_mark_resumes_where_the_cloud_expects() {
    let dir = tempfile::tempdir().unwrap();
    let copy = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(true, |_, _| Act::Follow).await;
    let nobody = "127.0.0.1:1".parse().unwrap();
    let mut edge = Edge::start(dir.path(), nobody);
    for i in 0..10 {
        edge.publish(i, 1).await;
    }
    edge.stop().await;
    std::fs::copy(dir.path().join("edge.db"), copy.path().join("edge.db")).unwrap();
    let edge = Edge::start(dir.path(), cloud.address);
    edge.drained().await;
    edge.stop().await;
    // The same card, as it was before any of it was confirmed.
    let mut edge = Edge::start(copy.path(), cloud.address);
    edge.drained().await;
    edge.publish(10, 1).await;
    edge.drained().await;
    edge.stop().await;
    let seen = cloud.seen.lock().unwrap();
    assert_eq!(seen.records, numbers(11));
    assert_eq!((seen.duplicates, seen.next.len()), (0, 2), "nothing was sent twice, two epochs");
}

#[tokio::test]
async fn a_cloud_that_lacks_a_batch_gets_it_again_before_anything_else() {
    // The third publish is acknowledged as not understood; what follows it is a gap to the cloud.
    let (_dir, cloud, mut edge) =
        setup(|n, _| if n == 2 { Act::Say(0x80) } else { Act::Follow }).await;
    for i in 0..12 {
        edge.publish(i, 1).await;
    }
    edge.drained().await;
    edge.stop().await;
    let seen = cloud.seen.lock().unwrap();
    assert_eq!(seen.records, numbers(12));
    assert!(seen.gaps.is_empty());
}

/// The cloud tells gaps within an epoch; nothing would hold the next one back.
#[tokio::test]
async fn messages_of_a_new_start_wait_until_those_before_it_are_confirmed() {
    let dir = tempfile::tempdir().unwrap();
    let nobody = "127.0.0.1:1".parse().unwrap();
    for start in 0..3 {
        let mut edge = Edge::start(dir.path(), nobody);
        edge.publish(start, 1).await;
        edge.stop().await;
    }
    let cloud = Cloud::start(true, |n, _| if n < 2 { Act::Say(0x80) } else { Act::Follow }).await;
    let edge = Edge::start(dir.path(), cloud.address);
    edge.drained().await;
    edge.stop().await;
    assert_eq!(cloud.seen.lock().unwrap().records, numbers(3));
}

#[tokio::test]
async fn an_answer_that_never_comes_ends_the_connection_not_the_lane() {
    let (_dir, cloud, mut edge) =
        setup(|n, _| if n == 1 { Act::Silent } else { Act::Follow }).await;
    for i in 0..6 {
        edge.publish(i, 1).await;
    }
    edge.drained().await;
    edge.stop().await;
    let seen = cloud.seen.lock().unwrap();
    assert_eq!(seen.records, numbers(6));
    assert_eq!(seen.connects.len(), 2);
}

#[tokio::test]
async fn a_large_batch_on_a_slow_line_has_the_time_it_takes() {
    // Three times what an answer may take; at 1 KiB a second the batch alone takes longer.
    let late = |_: usize, publish: &Publish| {
        assert!(publish.payload.len() > 2 * 1024, "{}", publish.payload.len());
        Act::Late(1_000)
    };
    let (_dir, cloud, mut edge) = setup(late).await;
    edge.publish(0, 2000).await;
    edge.drained().await;
    edge.stop().await;
    let seen = cloud.seen.lock().unwrap();
    assert_eq!(seen.records, numbers(2000));
    assert_eq!((seen.connects.len(), seen.batches, seen.duplicates), (1, 1, 0));
}

#[tokio::test]
async fn a_hole_that_nobody_can_fill_is_declared() {
    let dir = tempfile::tempdir().unwrap();
    let mut edge = Edge::start(dir.path(), "127.0.0.1:1".parse().unwrap());
    for i in 0..5 {
        edge.publish(i * 2, 2).await;
    }
    edge.stop().await;
    let db = rusqlite::Connection::open(dir.path().join("edge.db")).unwrap();
    db.execute("DELETE FROM batch WHERE s IN (0, 4)", []).unwrap();
    drop(db);
    let cloud = Cloud::start(true, |_, _| Act::Follow).await;
    let edge = Edge::start(dir.path(), cloud.address);
    edge.drained().await;
    edge.stop().await;
    let seen = cloud.seen.lock().unwrap();
    assert_eq!(seen.records, ["2", "3", "6", "7", "8", "9"]);
    let gaps: Vec<_> = seen.gaps.iter().map(|(s, n, why)| (*s, *n, &**why)).collect();
    assert_eq!(gaps, [(0, 2, "missing"), (4, 2, "missing")]);
}

#[tokio::test]
async fn a_backlog_of_single_messages_travels_in_few_batches() {
    let dir = tempfile::tempdir().unwrap();
    let mut edge = Edge::start(dir.path(), "127.0.0.1:1".parse().unwrap());
    for i in 0..300 {
        edge.publish(i, 1).await;
    }
    edge.stop().await;
    let cloud = Cloud::start(true, |n, _| if n == 6 { Act::CutAfter } else { Act::Follow }).await;
    let edge = Edge::start(dir.path(), cloud.address);
    edge.drained().await;
    edge.stop().await;
    let seen = cloud.seen.lock().unwrap();
    assert_eq!(seen.records, numbers(300));
    assert!(seen.batches < 60, "{}", seen.batches);
}

#[tokio::test]
async fn a_cloud_may_take_more_or_less_at_once_with_every_connection() {
    let dir = tempfile::tempdir().unwrap();
    let cloud =
        Cloud::start(true, |n, _| if n % 7 == 6 { Act::CutAfter } else { Act::Follow }).await;
    cloud.seen.lock().unwrap().receive_maximum = None;
    let settings = Settings { window_batches: 64, ..Settings::default() };
    let mut edge = Edge::start_with(dir.path(), cloud.address, settings, lane::Settings::default());
    for i in 0..60 {
        // Too long to be merged, however slowly they are sent.
        edge.publish_long(i, 1, 3000).await;
    }
    edge.drained().await;
    edge.stop().await;
    let seen = cloud.seen.lock().unwrap();
    assert_eq!(seen.records, numbers(60));
    assert!(seen.connects.len() > 5, "{}", seen.connects.len());
}

#[tokio::test]
async fn a_cloud_that_says_when_to_come_back_is_believed() {
    let began = std::time::Instant::now();
    let (_dir, cloud, mut edge) = setup(|n, _| if n == 0 { Act::Busy } else { Act::Follow }).await;
    edge.publish(0, 3).await;
    edge.drained().await;
    // Its own wait is 20 ms at most.
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
    edge.stop().await;
    assert_eq!(cloud.seen.lock().unwrap().records, numbers(3));
}
