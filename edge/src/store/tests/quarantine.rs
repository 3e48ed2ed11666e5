//! What is given up: exactly the messages that were named, kept in the quarantine, declared as a gap.

use super::*;

#[tokio::test]
async fn what_the_cloud_refuses_goes_to_the_quarantine_and_leaves_a_gap() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Harness::open(&plan(dir.path()));
    store.apply(vec![publish("up/a", "poison", vec![])]).await;
    let row = store.rows().await.remove(0);
    store.opened.store.give_up(row.id, row.s..row.end(), "refused 0x99".to_owned()).await.unwrap();
    let gap = store.rows().await.remove(0);
    assert_eq!((gap.s, gap.n, gap.body), (row.s, row.n, None));
    assert_eq!(gap.reason.as_deref(), Some("refused 0x99"));
    store.stop().await;
    let db = rusqlite::Connection::open(dir.path().join("edge.db")).unwrap();
    let body: Vec<u8> = db.query_row("SELECT body FROM quarantine", [], |row| row.get(0)).unwrap();
    assert_eq!(Some(Bytes::from(body)), row.body);
}

/// Texts and sequences of each row or part, and the reason of each gap.
fn shape(rows: &[OutboundRow]) -> Vec<(u64, u64, String)> {
    rows.iter()
        .map(|row| {
            let texts = payloads(std::slice::from_ref(row));
            assert!(row.reason.is_none() || texts.is_empty());
            assert!(texts.iter().map(|(_, seq)| *seq).eq(row.s..row.s + texts.len() as u64));
            if let Some(body) = &row.body {
                let header = Batch::parse(body.clone()).unwrap().header();
                assert_eq!((header.producer_id, header.base_sequence), (row.epoch, row.s as i32));
            }
            let texts: Vec<_> = texts.into_iter().map(|(text, _)| text).collect();
            (row.s, row.n, row.reason.clone().unwrap_or_else(|| texts.join(" ")))
        })
        .collect()
}

fn shapes(expected: &[(u64, u64, &str)]) -> Vec<(u64, u64, String)> {
    expected.iter().map(|(s, n, text)| (*s, *n, (*text).to_owned())).collect()
}

async fn ten(dir: &Path) -> Harness {
    let mut store = Harness::open(&plan(dir));
    let entries = |i: u64| if i == 4 { vec![queued(1, 1)] } else { vec![] };
    store.apply((0..10).map(|i| publish("up/a", &i.to_string(), entries(i))).collect()).await;
    store.apply(vec![publish("up/a", "next", vec![])]).await;
    store
}

#[tokio::test]
async fn only_the_messages_that_were_named_are_given_up_and_the_rest_goes_on_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let store = ten(dir.path()).await;
    let id = store.rows().await[0].id;
    let give_up = async |range| {
        store.opened.store.give_up(id, range, "poison".to_owned()).await.unwrap();
        shape(&store.rows().await)
    };
    assert_eq!(
        give_up(3..5).await,
        shapes(&[(0, 3, "0 1 2"), (3, 2, "poison"), (5, 5, "5 6 7 8 9"), (10, 1, "next")])
    );
    // Neighbours are one gap, what was given up before is not given up again.
    assert_eq!(
        give_up(4..6).await,
        shapes(&[(0, 3, "0 1 2"), (3, 3, "poison"), (6, 4, "6 7 8 9"), (10, 1, "next")])
    );
    let lane = store.status.lane("normal");
    assert_eq!((lane.given_up.get(), lane.messages.get()), (3, 8));
    assert_eq!(store.status.drops()["given_up"], 3);
    // The message that a queue needs is still there.
    let (entries, _) = store.opened.store.load(SessionId(1), 1, 9, usize::MAX).await.unwrap();
    assert_eq!(entries[0].message.as_ref().unwrap().payload, "4");
    let copy = crash(dir.path());
    let again = Harness::open(&plan(copy.path()));
    assert_eq!(shape(&again.rows().await), shape(&store.rows().await));
    let counted = again.status.lane("normal");
    assert_eq!((counted.messages.get(), counted.bytes.get()), (8, lane.bytes.get()));
    again.stop().await;
    assert_eq!(give_up(0..u64::MAX).await, shapes(&[(0, 10, "poison"), (10, 1, "next")]));
    assert_eq!((lane.given_up.get(), lane.messages.get(), lane.batches.get()), (10, 1, 2));
    store.stop().await;
    assert_eq!(count(dir.path(), "part"), 0);
    let db = rusqlite::Connection::open(dir.path().join("edge.db")).unwrap();
    let mut found = db.prepare("SELECT s, n, reason, body FROM quarantine ORDER BY s").unwrap();
    let kept: Vec<(u64, u64)> = found
        .query_map([], |row| {
            let (s, n, body): (i64, i64, Vec<u8>) = (row.get(0)?, row.get(1)?, row.get(3)?);
            assert_eq!(Batch::parse(body.into()).unwrap().count() as i64, n);
            Ok((s as u64, n as u64))
        })
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert_eq!(kept, [(0, 3), (3, 2), (5, 1), (6, 4)]);
}

#[tokio::test]
async fn a_row_in_parts_stays_until_its_last_part_is_confirmed() {
    let dir = tempfile::tempdir().unwrap();
    let store = ten(dir.path()).await;
    let id = store.rows().await[0].id;
    store.opened.store.give_up(id, 3..5, "poison".to_owned()).await.unwrap();
    let rows = store.rows().await;
    for (part, left) in [(0, 4), (1, 4), (2, 1)] {
        let mark = Mark { id, end: rows[part].end() };
        store.opened.store.acked(1, mark).await.unwrap();
        // A change later than the mark is committed with it or after it.
        store.opened.store.give_up(0, 0..1, String::new()).await.unwrap();
        while store.rows().await.len() != left {
            store.opened.store.progress().changed().await.unwrap();
        }
    }
    store.stop().await;
    assert_eq!(count(dir.path(), "part"), 0);
}

#[tokio::test]
async fn a_row_in_parts_over_the_budget_becomes_one_gap() {
    let dir = tempfile::tempdir().unwrap();
    let mut plan = plan(dir.path());
    plan.lanes[0].budget_bytes = 20_000;
    let mut store = Harness::open(&plan);
    let long = |i: u64| publish("up/a", &format!("{i:0>1000}"), vec![]);
    store.apply((0..8).map(long).collect()).await;
    let id = store.rows().await[0].id;
    store.opened.store.give_up(id, 2..4, "poison".to_owned()).await.unwrap();
    for i in 8..30 {
        store.apply(vec![long(i)]).await;
    }
    let rows = store.rows().await;
    let gap = &rows[0];
    assert_eq!((gap.s, gap.reason.as_deref()), (0, Some("over budget")));
    let lane = store.status.lane("normal");
    assert_eq!(lane.given_up.get(), gap.n);
    assert_eq!(store.status.drops()["lane_budget"], gap.n - 2);
    assert_eq!(lane.messages.get(), 30 - gap.n);
    let bytes = lane.bytes.get();
    store.stop().await;
    assert_eq!(count(dir.path(), "part"), 0);
    let again = Harness::open(&plan);
    assert_eq!(again.status.lane("normal").bytes.get(), bytes);
    again.stop().await;
}

#[tokio::test]
async fn a_body_that_cannot_be_read_is_given_up_whole_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let store = ten(dir.path()).await;
    let id = store.rows().await[0].id;
    store.stop().await;
    let db = rusqlite::Connection::open(dir.path().join("edge.db")).unwrap();
    db.execute("UPDATE batch SET body = zeroblob(length(body)) WHERE id = ?1", [id as i64])
        .unwrap();
    drop(db);
    let store = Harness::open(&plan(dir.path()));
    store.opened.store.give_up(id, 3..4, "poison".to_owned()).await.unwrap();
    let rows = store.rows().await;
    assert_eq!((rows[0].s, rows[0].n), (0, 10));
    assert!(rows[0].reason.as_ref().unwrap().starts_with("damaged on disk"));
    store.stop().await;
    assert_eq!(count(dir.path(), "quarantine"), 1);
}

#[tokio::test]
async fn the_oldest_of_a_full_quarantine_go_and_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let mut plan = plan(dir.path());
    plan.settings.quarantine_bytes = 5_000;
    let mut store = Harness::open(&plan);
    for i in 0..10 {
        store.apply(vec![publish("up/a", &format!("{i:0>1000}"), vec![])]).await;
    }
    for row in store.rows().await {
        store.opened.store.give_up(row.id, row.s..row.end(), "poison".to_owned()).await.unwrap();
    }
    let kept = store.status.quarantine_messages.get();
    assert!((3..5).contains(&kept), "{kept}");
    assert!(store.status.quarantine_bytes.get() <= 5_000);
    assert_eq!(store.status.drops()["quarantine_full"], 10 - kept);
    store.stop().await;
    let kept_first = Kept::open(dir.path()).unwrap().next(0).unwrap().unwrap();
    assert_eq!(kept_first.s, 10 - kept);
}

/// A store with `0` and `1` in the quarantine, and `2` in the lane.
async fn refused(dir: &Path) -> Harness {
    let mut store = Harness::open(&plan(dir));
    for i in 0..3 {
        store.apply(vec![publish("up/a", &i.to_string(), vec![])]).await;
    }
    for row in &store.rows().await[..2] {
        let reason = "refused 0x99".to_owned();
        store.opened.store.give_up(row.id, row.s..row.end(), reason).await.unwrap();
    }
    store
}

#[tokio::test]
async fn what_is_retried_is_appended_once_at_the_end_of_its_lane() {
    let dir = tempfile::tempdir().unwrap();
    let store = refused(dir.path()).await;
    let kept = Kept::open(dir.path()).unwrap();
    let first = kept.next(0).unwrap().unwrap();
    assert_eq!((first.lane.as_str(), first.s, first.n), ("normal", 0, 1));
    assert_eq!(first.reason, "refused 0x99");
    // While the edge runs.
    assert!(kept.retry(first.id).unwrap());
    assert!(!kept.retry(99).unwrap());
    let mut progress = store.opened.store.progress();
    while store.status.quarantine_messages.get() > 1 {
        progress.changed().await.unwrap();
    }
    let found = payloads(&store.rows().await);
    assert_eq!(found, [("2".to_owned(), 2), ("0".to_owned(), 3)]);
    // While it stands still, and through a crash.
    let second = kept.next(0).unwrap().unwrap();
    store.stop().await;
    assert!(kept.retry(second.id).unwrap());
    drop(kept);
    let store = Harness::open(&plan(dir.path()));
    let mut progress = store.opened.store.progress();
    while store.status.quarantine_messages.get() > 0 {
        progress.changed().await.unwrap();
    }
    let copy = crash(dir.path());
    let again = Harness::open(&plan(copy.path()));
    for store in [&store, &again] {
        let rows = store.rows().await;
        let texts: Vec<_> = payloads(&rows).into_iter().map(|(text, _)| text).collect();
        assert_eq!(texts, ["2", "0", "1"]);
        let batch = Batch::parse(rows.last().unwrap().body.clone().unwrap()).unwrap();
        let record = batch.records(1 << 20).unwrap().remove(0);
        let labels = record.headers.iter().filter(|one| one.name == header::EDGE_SEQ);
        assert_eq!((labels.count(), record.timestamp_ms), (1, 1_700_000_000_000));
    }
    again.stop().await;
    store.stop().await;
}

#[tokio::test]
async fn what_is_dropped_from_the_quarantine_is_gone_also_for_a_running_edge() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = refused(dir.path()).await;
    let kept = Kept::open(dir.path()).unwrap();
    let first = kept.next(0).unwrap().unwrap();
    assert!(kept.drop_one(first.id).unwrap());
    assert!(!kept.drop_one(first.id).unwrap());
    while store.status.quarantine_messages.get() > 1 {
        store.apply(vec![publish("local", "", vec![])]).await;
    }
    store.stop().await;
    assert_eq!(kept.next(0).unwrap().unwrap().s, 1);
}

#[test]
fn a_store_of_an_earlier_release_is_not_touched_from_outside() {
    let dir = tempfile::tempdir().unwrap();
    rusqlite::Connection::open(dir.path().join("edge.db"))
        .unwrap()
        .execute_batch("PRAGMA user_version=5")
        .unwrap();
    assert!(matches!(Kept::open(dir.path()), Err(Error::Older { found: 5, .. })));
}
