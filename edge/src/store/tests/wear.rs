//! Commits wait when the flash budget is being used up, and only then.

use std::time::Duration;

use tokio::time::Instant;

use super::*;
use crate::store::wear::Meter;

/// Time is the test's, and the device has written so many GB when the file says so.
async fn how_long(budget_gb: u64, written_gb: u64) -> [Duration; 2] {
    let dir = tempfile::tempdir().unwrap();
    let mut plan = plan(dir.path());
    plan.settings.flash_budget_gb_per_day = budget_gb;
    plan.settings.commit_window_max_ms = 700;
    let status = Arc::new(Status::default());
    let Prepared { store, journal, restored, observed_ms, followed, mut writing, reading } =
        prepare(&plan, &status).unwrap();
    let stat = dir.path().join("stat");
    let wrote = |gb: u64| {
        let sectors = gb * 1_000_000_000 / 512;
        std::fs::write(&stat, format!("0 0 0 0 0 0 {sectors} 0")).unwrap();
    };
    writing.meter = Meter::Device(stat.clone());
    tokio::task::spawn_local(writing.run());
    tokio::task::spawn_local(reading.run());
    let opened = Opened { store, journal, restored, observed_ms, followed, threads: Vec::new() };
    let mut store = Harness { opened, status };
    wrote(0);
    store.apply(vec![publish("up/a", "first", vec![])]).await;
    wrote(written_gb);
    tokio::time::advance(Duration::from_secs(2)).await;
    let mut took = [Duration::ZERO; 2];
    store.apply(vec![publish("up/a", "tells how much was written", vec![])]).await;
    for took in &mut took {
        let began = Instant::now();
        store.apply(vec![publish("up/a", "a trickle", vec![])]).await;
        *took = began.elapsed();
    }
    let window = store.status.commit_window_ms.get();
    assert_eq!(window, if took[0].is_zero() { 5 } else { 700 });
    // To be told to stop is never to wait.
    let began = Instant::now();
    store.opened.store.stop().await;
    assert!(began.elapsed() < Duration::from_millis(700));
    took
}

#[tokio::test(start_paused = true)]
async fn commits_wait_for_the_flash_budget_and_idle_ones_only_for_that() {
    let wait = Duration::from_millis(700);
    let within = |took: Duration| took + Duration::from_millis(50) > wait && took <= wait;
    tokio::task::LocalSet::new()
        .run_until(async {
            assert_eq!(how_long(0, 100).await, [Duration::ZERO; 2], "no budget");
            assert_eq!(how_long(1000, 1).await, [Duration::ZERO; 2], "within it");
            let took = how_long(1000, 100).await;
            assert!(took.into_iter().all(within), "{took:?}");
        })
        .await;
}
