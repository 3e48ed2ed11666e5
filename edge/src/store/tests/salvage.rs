//! Damaged files: what can be read is kept, what cannot is declared, and a salvage may be killed at any moment.

use std::{fs, path::PathBuf};

use super::*;

#[tokio::test]
async fn a_damaged_file_is_put_aside_and_what_can_be_read_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Harness::open(&plan(dir.path()));
    store.apply(vec![Change::SessionSaved(Box::new(session(1)))]).await;
    for i in 0..200 {
        store.apply(vec![publish("up/a", &format!("{i:0>2000}"), vec![])]).await;
    }
    let before = store.rows().await;
    store.stop().await;
    let path = dir.path().join("edge.db");
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2 / PAGE * PAGE;
    bytes[middle..middle + 3 * PAGE].fill(0xA5);
    std::fs::write(&path, bytes).unwrap();
    let again = Harness::open(&Plan { after: After::Damage, ..plan(dir.path()) });
    assert_eq!(again.status.salvaged_files.get(), 1);
    let after = again.rows().await;
    assert!(after.len() > 180 && after.len() < 200, "{}", after.len());
    assert!(after.iter().all(|row| before.contains(row)));
    assert_eq!(again.opened.restored.sessions.len(), 1);
    let aside = std::fs::read_dir(dir.path()).unwrap().flatten();
    assert_eq!(aside.filter(|f| f.file_name().to_string_lossy().contains(".damaged-")).count(), 1);
    again.stop().await;
}

#[tokio::test]
async fn salvage_leaves_out_what_belongs_to_no_session() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Harness::open(&plan(dir.path()));
    let options = tributary_shared::mqtt::packet::SubscriptionOptions {
        qos: Qos::AtLeastOnce,
        no_local: false,
        retain_as_published: false,
        retain_handling: 0,
    };
    let mut changes = Vec::new();
    for id in 1..=2 {
        let session_id = SessionId(id);
        changes.push(Change::SessionSaved(Box::new(session(id))));
        changes.push(Change::Subscribed(SavedSubscription {
            session: session_id,
            filter: "a".into(),
            options,
            subscription_id: None,
            replay: None,
        }));
        let packet_id = PacketId::new(7).unwrap();
        changes.push(Change::Received { session: session_id, packet_id });
    }
    store.apply(changes).await;
    store.apply(vec![publish("local", "both", vec![queued(1, 1), queued(2, 1)])]).await;
    store.apply(vec![publish("local", "orphan", vec![queued(2, 2)])]).await;
    store.apply(vec![publish("up/a", "for the cloud", vec![queued(2, 3)])]).await;
    store.stop().await;
    // As if the page with the session's row were damaged.
    let old = dir.path().join("edge.db");
    let db = rusqlite::Connection::open(&old).unwrap();
    db.execute("DELETE FROM session WHERE id = 2", []).unwrap();
    drop(db);
    let to = tempfile::tempdir().unwrap();
    let fresh = rusqlite::Connection::open(to.path().join("edge.db")).unwrap();
    migrate::migrate(&fresh).unwrap();
    crate::store::salvage::salvage(&old, &fresh);
    let count = |sql: &str| fresh.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    for table in ["session", "subscription", "received", "queue", "needed"] {
        assert_eq!(count(&format!("SELECT count(*) FROM {table}")), 1, "{table}");
    }
    assert_eq!(count("SELECT count(*) FROM batch WHERE id < (1 << 48)"), 1, "the orphan's body");
    assert_eq!(count("SELECT count(*) FROM batch WHERE id > (1 << 48)"), 1, "the cloud's");
    drop(fresh);
    let again = Harness::open(&plan(to.path()));
    assert_eq!(everything(&again, 1).await, [(1, Some("both".to_owned()))]);
    assert_eq!(payloads(&again.rows().await).len(), 1);
    again.stop().await;
}

#[tokio::test]
async fn a_file_that_is_no_database_does_not_keep_the_edge_from_starting() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("edge.db"), [0x5A; 9000]).unwrap();
    let mut store = Harness::open(&plan(dir.path()));
    store.apply(vec![publish("up/a", "1", vec![])]).await;
    assert_eq!(store.rows().await.len(), 1);
    store.stop().await;
}

const PAGE: usize = crate::store::open::PAGE as usize;
const ROWS: u64 = 200;

/// A closed store with so many rows, one message each, of one epoch.
async fn filled(dir: &Path) -> Vec<OutboundRow> {
    let mut store = Harness::open(&plan(dir));
    for i in 0..ROWS {
        store.apply(vec![publish("up/a", &format!("{i:0>2000}"), vec![])]).await;
    }
    let rows = store.rows().await;
    store.stop().await;
    rows
}

fn damage(dir: &Path, pages: std::ops::Range<usize>) {
    let path = dir.join("edge.db");
    let mut bytes = fs::read(&path).unwrap();
    let end = bytes.len().min(pages.end * PAGE);
    bytes[pages.start * PAGE..end].fill(0xA5);
    fs::write(&path, bytes).unwrap();
}

fn pages(dir: &Path) -> usize {
    fs::metadata(dir.join("edge.db")).unwrap().len() as usize / PAGE
}

fn damaged(dir: &Path) -> Plan {
    Plan { after: After::Damage, ..plan(dir) }
}

/// What is there is as it was; what is not is a hole that `uplink` sees, or a gap at the end.
fn check(before: &[OutboundRow], after: &[OutboundRow]) -> usize {
    let (last, epoch) = (after.last().unwrap(), before[0].epoch);
    assert_eq!((last.epoch, last.end()), (epoch, ROWS), "the end is known");
    assert!(after.windows(2).all(|two| two[0].id < two[1].id && two[0].end() <= two[1].s));
    let kept = after.iter().filter(|row| row.reason.is_none());
    let sound = |row: &&OutboundRow| Batch::parse(row.body.clone().unwrap()).is_ok();
    kept.filter(sound).map(|row| assert!(before.contains(row))).count()
}

#[tokio::test]
async fn whatever_page_is_damaged_what_is_readable_stays_and_the_rest_is_declared() {
    let dir = tempfile::tempdir().unwrap();
    let before = filled(dir.path()).await;
    let pages = pages(dir.path());
    for page in (0..24).chain((24..pages).step_by(13)).chain(pages - 4..pages) {
        let copy = crash(dir.path());
        fs::copy(dir.path().join("ends"), copy.path().join("ends")).unwrap();
        damage(copy.path(), page..page + 1);
        let store = Harness::open(&damaged(copy.path()));
        let kept = check(&before, &store.rows().await);
        // One page has at most the beginnings of nine rows: of each the last whole page lies elsewhere.
        assert!(kept as u64 >= ROWS - 9, "page {page}: {kept}");
        store.stop().await;
    }
}

#[tokio::test]
async fn a_file_with_pages_of_four_kib_opens_and_is_salvaged() {
    let dir = tempfile::tempdir().unwrap();
    let before = filled(dir.path()).await;
    let path = dir.path().join("edge.db");
    let db = rusqlite::Connection::open(&path).unwrap();
    // As a build of before made it.
    db.execute_batch("PRAGMA journal_mode=DELETE; PRAGMA page_size=4096; VACUUM").unwrap();
    drop(db);
    let store = Harness::open(&plan(dir.path()));
    assert_eq!(store.rows().await, before);
    assert_eq!(store.status.db_bytes.get() % 4096, 0);
    store.stop().await;
    // The first page says the size of pages; without it both are tried.
    for (from, to) in [(4096, 2 * 4096), (0, 4096)] {
        let copy = crash(dir.path());
        fs::copy(dir.path().join("ends"), copy.path().join("ends")).unwrap();
        damage(copy.path(), from / PAGE..to / PAGE);
        let store = Harness::open(&damaged(copy.path()));
        assert!(check(&before, &store.rows().await) as u64 >= ROWS - 4, "{from}");
        store.stop().await;
    }
}

#[tokio::test]
async fn the_lost_end_of_every_epoch_is_declared() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Harness::open(&plan(dir.path()));
    let send = |i: i32| vec![publish("up/a", &i.to_string(), vec![])];
    for i in 0..10 {
        store.apply(send(i)).await;
    }
    let first = store.rows().await;
    store.stop().await;
    let mut store = Harness::open(&plan(dir.path()));
    for i in 0..10 {
        store.apply(send(i)).await;
    }
    let second = store.rows().await.split_off(10);
    store.stop().await;
    // As if the pages with these rows were gone.
    let db = rusqlite::Connection::open(dir.path().join("edge.db")).unwrap();
    db.execute("DELETE FROM batch WHERE id IN (?1, ?2)", [first[8].id as i64, first[9].id as i64])
        .unwrap();
    db.execute("DELETE FROM batch WHERE id >= ?1", [second[3].id as i64]).unwrap();
    drop(db);
    for _ in 0..2 {
        let store = Harness::open(&plan(dir.path()));
        let rows = store.rows().await;
        let gaps: Vec<_> = rows
            .iter()
            .filter(|row| row.reason.is_some())
            .map(|row| (row.id, row.epoch, row.s, row.n))
            .collect();
        let expected = [(first[9].id, first[9].epoch, 8, 2), (second[9].id, second[9].epoch, 3, 7)];
        assert_eq!(gaps, expected, "once, in its place");
        assert_eq!(store.status.lane("normal").batches.get(), 13);
        assert_eq!(store.status.lane("normal").messages.get(), 11);
        store.stop().await;
    }
}

#[tokio::test]
async fn an_end_that_was_noted_late_is_not_taken_for_a_loss_when_its_row_is_merged() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Harness::open(&plan(dir.path()));
    let ends = dir.path().join("ends");
    let mut noted = Vec::new();
    for i in 0..8 {
        store.apply(vec![publish("up/a", &i.to_string(), vec![])]).await;
        if i == 6 {
            noted = fs::read(&ends).unwrap();
        }
    }
    // Killed between the last commit and its note; merged after the next start.
    store.stop().await;
    fs::write(&ends, noted).unwrap();
    let store = Harness::open(&plan(dir.path()));
    assert_eq!(store.opened.store.merge(1, 0, u64::MAX).await.unwrap(), 8);
    store.stop().await;
    let store = Harness::open(&plan(dir.path()));
    let rows = store.rows().await;
    assert_eq!(
        rows.iter().map(|row| (row.s, row.n, row.reason.clone())).collect::<Vec<_>>(),
        [(0, 8, None)]
    );
    store.stop().await;
}

#[tokio::test]
async fn what_the_cloud_has_is_not_declared_lost() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Harness::open(&plan(dir.path()));
    for _ in 0..3 {
        store.apply(vec![publish("up/a", "x", vec![])]).await;
    }
    let last = store.rows().await.remove(2);
    store.opened.store.acked(1, Mark { id: last.id, end: last.end() }).await.unwrap();
    store.stop().await;
    let store = Harness::open(&plan(dir.path()));
    assert_eq!(store.rows().await, []);
    store.stop().await;
}

type Step<'a> = &'a dyn Fn(&Path);

#[tokio::test]
async fn a_salvage_that_was_killed_is_done_again_and_neither_loses_nor_doubles_anything() {
    let dir = tempfile::tempdir().unwrap();
    let before = filled(dir.path()).await;
    let middle = pages(dir.path()) / 2;
    damage(dir.path(), middle..middle + 3);
    let whole = crash(dir.path());
    let path = |dir: &Path, name: &str| -> PathBuf { dir.join(name) };
    let store = Harness::open(&damaged(whole.path()));
    let expected = store.rows().await;
    store.stop().await;
    assert!(check_rows(&before, &expected) > 180);
    let (tag, note) = ("0123456789abcdef", "edge.db.salvaging");
    let aside = format!("edge.db.damaged-{tag}");
    let marked = |dir: &Path| fs::write(path(dir, note), tag).unwrap();
    let moved = |dir: &Path| fs::rename(path(dir, "edge.db"), path(dir, &aside)).unwrap();
    let begun = |dir: &Path| {
        let half = fs::read(path(dir, &aside)).unwrap();
        fs::write(path(dir, "edge.db.new"), &half[..half.len() / 3]).unwrap();
        fs::write(path(dir, "edge.db.new-wal"), b"half").unwrap();
    };
    let renamed = |dir: &Path| {
        fs::copy(whole.path().join("edge.db"), path(dir, "edge.db")).unwrap();
    };
    let steps: [&[Step<'_>]; 4] =
        [&[&marked], &[&marked, &moved], &[&marked, &moved, &begun], &[&marked, &moved, &renamed]];
    for (killed, steps) in steps.iter().enumerate() {
        let copy = crash(dir.path());
        for step in *steps {
            step(copy.path());
        }
        // The next start knows nothing of damage.
        let store = Harness::open(&plan(copy.path()));
        assert_eq!(store.rows().await, expected, "killed after step {killed}");
        assert_eq!(store.status.salvaged_files.get(), 1);
        store.stop().await;
        assert!(copy.path().join(&aside).exists() && !copy.path().join(note).exists());
        let store = Harness::open(&plan(copy.path()));
        assert_eq!((store.rows().await, store.status.salvaged_files.get()), (expected.clone(), 0));
        store.stop().await;
    }
    // Killed before anything was moved, in the middle of the note.
    let copy = crash(dir.path());
    fs::write(path(copy.path(), note), "01").unwrap();
    let store = Harness::open(&damaged(copy.path()));
    assert_eq!(store.rows().await, expected);
    store.stop().await;
}

fn check_rows(before: &[OutboundRow], after: &[OutboundRow]) -> usize {
    assert!(after.iter().all(|row| before.contains(row)));
    after.len()
}
