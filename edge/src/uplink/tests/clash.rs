//! Two gateways that go on from one memory: each keeps what is its own, under an epoch of its own.

use super::*;

/// All came, in order, the first `of_old` under the old epoch and the rest under one other.
fn check(seen: &Seen, old: i64, of_old: usize, count: usize) {
    let all: Vec<_> = (0..count).map(|i| i.to_string()).collect();
    assert_eq!(seen.records, all);
    assert_eq!(seen.epochs[&old], all[..of_old]);
    assert_eq!(seen.epochs.len(), 2, "{:?}", seen.epochs);
    assert!(seen.gaps.is_empty() && seen.duplicates == 0, "{:?}", seen.gaps);
}

#[tokio::test]
async fn what_another_gateway_has_used_the_epoch_for_goes_under_a_new_one_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let old = Arc::new(Mutex::new(0));
    let told = old.clone();
    let (come, mut came) = tokio::sync::mpsc::channel(100);
    let cloud = Cloud::start(true, move |_, publish| {
        let (epoch, s) = place(publish);
        let mut old = told.lock().unwrap();
        if *old == 0 {
            *old = epoch;
        }
        come.try_send((epoch == *old, s)).unwrap();
        match (epoch == *old, s) {
            (true, 3) => Act::Clash,
            (true, 4..) => panic!("behind a clash"),
            // So that some of it waits when the edge ends.
            (false, 2) => Act::Late(50),
            _ => Act::Follow,
        }
    })
    .await;
    let one = Settings { window_batches: 1, ..Settings::default() };
    let start =
        || Edge::start_with(dir.path(), cloud.address, one.clone(), lane::Settings::default());
    let mut edge = start();
    for i in 0..10 {
        edge.publish(i, 1).await;
    }
    while came.recv().await.unwrap() != (false, 2) {}
    edge.stop().await;
    let edge = start();
    edge.drained().await;
    edge.stop().await;
    check(&cloud.seen.lock().unwrap(), *old.lock().unwrap(), 3, 10);
}
