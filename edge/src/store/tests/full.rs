//! A group that waits for room: what makes room, and what lanes wait for, never waits behind it.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use tokio::time::timeout;

use super::*;

/// For what must not wait for room. Without a bound a test of these would never end.
const SOON: Duration = Duration::from_secs(30);

struct Full {
    dir: TempDir,
    store: Harness,
    rows: Vec<OutboundRow>,
    /// Of the group that waits.
    ticket: u64,
}

/// A store of one MiB with three large rows of a lane and a small one, and a group for which there is no room; `with` is asked at the same time.
async fn full<T>(with: impl AsyncFnOnce(Store, &[OutboundRow]) -> T) -> (Full, T) {
    let dir = tempfile::tempdir().unwrap();
    let mut plan = plan(dir.path());
    plan.settings.max_bytes = 1 << 20;
    let mut store = Harness::open(&plan);
    let mut random = Random(5);
    let mut noise =
        || -> String { (0..200_000).map(|_| (b' ' + random.below(90) as u8) as char).collect() };
    for _ in 0..3 {
        store.apply(vec![publish("up/a", &noise(), vec![])]).await;
    }
    // A lane's last row is not deleted before those before it.
    store.apply(vec![publish("up/a", "last", vec![])]).await;
    let rows = store.rows().await;
    let more = (0..3).map(|_| publish("up/a", &noise(), vec![])).collect();
    let handle = store.opened.store.clone();
    let (ticket, told) = timeout(SOON, async {
        // While this one is written the others gather: they are one group.
        store.opened.journal.apply(vec![publish("up/a", "between", vec![])]).await.unwrap();
        tokio::join!(store.opened.journal.apply(more), with(handle, &rows))
    })
    .await
    .expect("what must not wait for room");
    let ticket = ticket.unwrap();
    while !store.status.disk_full.load(Relaxed) {
        tokio::task::yield_now().await;
    }
    (Full { dir, store, rows, ticket }, told)
}

impl Full {
    async fn confirm(&self, upto: usize) {
        let row = &self.rows[upto];
        let mark = Mark { id: row.id, end: row.end() };
        self.store.opened.store.acked(1, mark).await.unwrap();
    }

    async fn committed(&self) {
        let mut progress = self.store.opened.store.progress();
        let committed = progress.wait_for(|progress| progress.committed >= self.ticket);
        timeout(SOON, committed).await.expect("room").unwrap();
    }

    fn is_waiting(&self) -> bool {
        self.store.opened.store.progress().borrow().committed < self.ticket
    }
}

#[tokio::test]
async fn who_waits_for_an_answer_does_not_wait_with_a_group_for_room() {
    // Of the same group, and behind it.
    let ask = async |store: Store, rows: &[OutboundRow]| {
        let (poison, reason) = (&rows[2], "poison".to_owned());
        let gone = store.give_up(poison.id, poison.s..poison.end(), reason);
        let (merged, last, gone) =
            tokio::join!(store.merge(1, 0, u64::MAX), store.new_epoch(1), gone);
        gone.unwrap();
        (merged.unwrap(), last.unwrap())
    };
    let (full, (merged, last)) = full(ask).await;
    assert_eq!(merged, 0);
    assert!(full.is_waiting());
    let behind = timeout(SOON, ask(full.store.opened.store.clone(), &full.rows)).await;
    assert_eq!(behind.expect("an answer"), (0, last));
    assert_eq!(full.store.rows().await[2].reason.as_deref(), Some("poison"));
    assert_eq!(full.store.status.drops()["given_up"], 1);
    assert!(full.is_waiting());
    full.confirm(1).await;
    full.committed().await;
    let rows = full.store.rows().await;
    let (old, new) = rows.split_at(rows.iter().position(|row| row.id > last).unwrap());
    assert!(new.iter().all(|row| row.epoch == new[0].epoch && row.epoch != old[0].epoch));
    // What came just before it may be of the same group.
    assert!(
        new[0].s == 0 && (3..=4).contains(&payloads(new).len()),
        "what waited is of the new epoch"
    );
    full.store.stop().await;
}

#[tokio::test]
async fn a_group_that_waits_for_room_gets_it_from_what_is_confirmed_ahead() {
    let (full, ()) = full(async |_, _| ()).await;
    let (first, third) = (&full.rows[0], &full.rows[2]);
    let mark = Mark { id: third.id, end: third.end() };
    full.store.opened.store.acked_ahead(1, first.id, mark).await.unwrap();
    full.committed().await;
    assert_eq!(full.store.status.lane("normal").synced.get(), 2);
    assert_eq!(full.store.rows().await[0], *first);
    full.store.stop().await;
}

#[tokio::test]
async fn a_full_store_closes_when_it_is_told_to_and_has_all_that_was_acknowledged() {
    let (full, ()) = full(async |_, _| ()).await;
    assert!(full.is_waiting());
    let Full { dir, store, rows, .. } = full;
    timeout(SOON, store.stop()).await.expect("closed");
    let again = Harness::open(&super::plan(dir.path()));
    assert_eq!(again.rows().await[..4], rows);
    let left = payloads(&again.rows().await).len();
    assert!(left == 4 || left == 5, "{left}: nothing of the group that waited");
    again.stop().await;
}

#[tokio::test]
async fn a_full_store_that_nobody_has_any_more_is_closed() {
    let (Full { dir, store, .. }, ()) = full(async |_, _| ()).await;
    let Opened { store, journal, threads, .. } = store.opened;
    drop((store, journal));
    let joined = tokio::task::spawn_blocking(|| {
        for thread in threads {
            thread.join().unwrap();
        }
    });
    timeout(SOON, joined).await.expect("its threads end").unwrap();
    Harness::open(&super::plan(dir.path())).stop().await;
}
