//! The store against a model, through crashes: a crash is a copy of the files as they are, opened elsewhere.

use std::{
    collections::{BTreeMap, VecDeque},
    path::Path,
    sync::Arc,
};

use bytes::Bytes;
use tempfile::TempDir;
use tributary_shared::{
    message::Message,
    mqtt::{PacketId, Qos, packet::PublishProperties, write::Encoded},
    record::{Batch, mqtt::header},
    session::{
        Queued, SessionId,
        action::{Author, Change, SavedDelayed, SavedReplay, SavedSession, SavedSubscription},
    },
};

use super::*;
use crate::{
    lane::{self, Policy},
    status::Status,
};

mod age;
mod full;
mod quarantine;
mod salvage;
mod wear;

fn plan(dir: &Path) -> Plan {
    let settings = Settings { ballast_bytes: 0, ..Settings::default() };
    Plan {
        dir: dir.to_owned(),
        edge_id: "gw1".to_owned(),
        lanes: vec![lane::Settings {
            filters: vec!["up/#".to_owned()],
            ..lane::Settings::default()
        }],
        settings,
        after: After::Start,
    }
}

struct Harness {
    opened: Opened,
    status: Arc<Status>,
}

impl Harness {
    fn open(plan: &Plan) -> Self {
        let status = Arc::new(Status::default());
        Self { opened: open(plan, &status).unwrap(), status }
    }

    async fn apply(&mut self, changes: Vec<Change>) {
        let ticket = self.opened.journal.apply(changes).await.unwrap();
        let mut progress = self.opened.store.progress();
        progress.wait_for(|p| p.committed >= ticket || p.failed.is_some()).await.unwrap();
        assert!(progress.borrow().failed.is_none(), "{:?}", progress.borrow().failed);
    }

    async fn rows(&self) -> Vec<OutboundRow> {
        let acked = self.status.lane("normal").acked_id.get();
        self.opened.store.read_lane(1, acked, 10_000, usize::MAX).await.unwrap()
    }

    async fn stop(self) {
        self.opened.store.stop().await;
        drop((self.opened.store, self.opened.journal));
        for thread in self.opened.threads {
            thread.join().unwrap();
        }
    }
}

fn message(topic: &str, payload: &str) -> Arc<Message> {
    Arc::new(Message {
        topic: topic.into(),
        payload: Bytes::copy_from_slice(payload.as_bytes()),
        qos: Qos::AtLeastOnce,
        retain: false,
        properties: PublishProperties::default(),
        publisher: Some("dev".into()),
        received_ms: 1_700_000_000_000,
        expires_ms: None,
        encoded: Encoded::default(),
        place: None,
    })
}

fn queued(session: u64, seq: u64) -> Queued {
    Queued {
        session: SessionId(session),
        seq,
        qos: Qos::AtLeastOnce,
        retain: false,
        subscription_ids: vec![7, 9],
        packet_id: None,
        released: false,
    }
}

fn publish(topic: &str, payload: &str, queues: Vec<Queued>) -> Change {
    Change::Message { message: message(topic, payload), queued: queues, stored: None }
}

fn session(id: u64) -> SavedSession {
    SavedSession {
        session: SessionId(id),
        client_id: format!("client-{id}").into(),
        principal: None,
        expiry_s: u32::MAX,
        disconnected_ms: None,
        will: None,
        next_seq: 1,
    }
}

/// Payload and `edge.seq` of each record of the rows that were not given up.
fn payloads(rows: &[OutboundRow]) -> Vec<(String, u64)> {
    rows.iter()
        .filter_map(|row| row.body.clone())
        .flat_map(|body| Batch::parse(body).unwrap().records(1 << 20).unwrap())
        .map(|record| {
            let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
            let seq = text(record.header(header::EDGE_SEQ).unwrap()).parse().unwrap();
            (text(record.value.as_ref().unwrap()), seq)
        })
        .collect()
}

#[tokio::test]
async fn a_record_says_whether_the_clock_was_not_trusted_when_its_message_came() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Harness::open(&plan(dir.path()));
    for (payload, unsure) in [("a", true), ("b", false), ("c", true)] {
        store.status.clock_unsure.store(unsure, std::sync::atomic::Ordering::Relaxed);
        store.apply(vec![publish("up/t", payload, Vec::new())]).await;
    }
    let bodies = store.rows().await.into_iter().filter_map(|row| row.body);
    let records = bodies.flat_map(|body| Batch::parse(body).unwrap().records(1 << 20).unwrap());
    let clocks: Vec<_> = records.map(|record| record.header(header::EDGE_CLOCK).cloned()).collect();
    let mark = Some(Bytes::from_static(b"unsynced"));
    assert_eq!(clocks, [mark.clone(), None, mark]);
    store.stop().await;
}

/// The files as a power cut would leave them, minus what the disk had not written: SQLite's promise, not ours.
fn crash(from: &Path) -> TempDir {
    let to = tempfile::tempdir().unwrap();
    for name in ["edge.db", "edge.db-wal"] {
        if from.join(name).exists() {
            std::fs::copy(from.join(name), to.path().join(name)).unwrap();
        }
    }
    to
}

#[tokio::test]
async fn an_outbound_batch_survives_a_crash_and_a_new_start_has_a_new_epoch() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = Harness::open(&plan(dir.path()));
    first.apply(vec![publish("up/a", "1", vec![]), publish("up/b", "2", vec![])]).await;
    first.apply(vec![publish("up/a", "3", vec![]), publish("local/x", "-", vec![])]).await;
    let copy = crash(dir.path());
    let mut second = Harness::open(&plan(copy.path()));
    second.apply(vec![publish("up/a", "4", vec![])]).await;
    let rows = second.rows().await;
    assert_eq!(rows.iter().map(|row| (row.s, row.n)).collect::<Vec<_>>(), [(0, 2), (2, 1), (0, 1)]);
    let all = [("1", 0), ("2", 1), ("3", 2), ("4", 0)];
    assert_eq!(payloads(&rows), all.map(|(text, seq)| (text.to_owned(), seq)));
    let (old, new) = (&rows[0], &rows[2]);
    assert_ne!(old.epoch, new.epoch);
    let header = Batch::parse(old.body.clone().unwrap()).unwrap().header();
    assert_eq!((header.producer_id, header.base_sequence), (old.epoch, 0));
    assert_eq!(second.status.lane("normal").messages.get(), 4);
    first.stop().await;
    second.stop().await;
}

#[tokio::test]
async fn sessions_queues_ids_and_retained_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Harness::open(&plan(dir.path()));
    let id = PacketId::new(5).unwrap();
    let will = tributary_shared::mqtt::packet::Will {
        topic: "up/will".into(),
        payload: Bytes::from_static(b"gone"),
        qos: Qos::ExactlyOnce,
        retain: true,
        delay: 9,
        properties: PublishProperties { content_type: Some("t".into()), ..Default::default() },
    };
    let saved = SavedSession { will: Some(will), disconnected_ms: Some(4), ..session(3) };
    let subscription = SavedSubscription {
        session: SessionId(3),
        filter: "$share/g/a/+".into(),
        options: tributary_shared::mqtt::packet::SubscriptionOptions {
            qos: Qos::ExactlyOnce,
            no_local: true,
            retain_as_published: true,
            retain_handling: 2,
        },
        subscription_id: Some(11),
        replay: Some(SavedReplay { after: Some("a/b".into()), since_ms: 7 }),
    };
    let delayed = SavedDelayed {
        number: 7,
        due_ms: 1_700_000_000_000,
        message: message("up/later", "x"),
        author: Author::Principal("ann".into()),
    };
    let sent = Queued { packet_id: Some(id), released: true, ..queued(3, 2) };
    let retained = Arc::new(Message { retain: true, ..(*message("up/r", "keep")).clone() });
    store
        .apply(vec![
            Change::SessionSaved(Box::new(saved.clone())),
            Change::SessionSaved(Box::new(session(4))),
            Change::Subscribed(subscription.clone()),
            publish("up/a", "one", vec![queued(3, 1), queued(4, 1)]),
            publish("local", "two", vec![queued(3, 2)]),
            Change::Enqueued { message: retained.clone(), queued: vec![queued(3, 3)] },
            Change::Inflight(sent.clone()),
            Change::Delayed(delayed.clone()),
            Change::Delayed(SavedDelayed { number: 8, ..delayed.clone() }),
            Change::DelayedDone(8),
            Change::Received { session: SessionId(3), packet_id: id },
            Change::Received { session: SessionId(4), packet_id: id },
            Change::Retained {
                topic: "up/r".into(),
                message: Some(retained.clone()),
                author: Author::Principal("ann".into()),
            },
            Change::Retained {
                topic: "gone".into(),
                message: Some(message("gone", "x")),
                author: Author::Host,
            },
            Change::Retained { topic: "gone".into(), message: None, author: Author::Host },
            Change::SessionRemoved(SessionId(4)),
        ])
        .await;
    let copy = crash(dir.path());
    let again = Harness::open(&plan(copy.path()));
    let restored = &again.opened.restored;
    assert_eq!(restored.retained, [(retained, Author::Principal("ann".into()))]);
    assert_eq!(restored.subscriptions, [subscription]);
    assert_eq!(restored.delayed, [delayed]);
    let [only] = &restored.sessions[..] else { panic!("{restored:?}") };
    assert_eq!(only.saved, saved);
    assert_eq!(only.received, [id]);
    assert_eq!((only.queue.messages, only.queue.first_seq, only.queue.last_seq), (3, 1, 3));
    let (entries, complete) =
        again.opened.store.load(SessionId(3), 1, 2, usize::MAX).await.unwrap();
    assert!(!complete);
    assert_eq!(entries[0].queued, queued(3, 1));
    assert_eq!(entries[1].queued, sent);
    assert_eq!(entries[1].message.as_ref().unwrap().payload, "two");
    let (entries, complete) =
        again.opened.store.load(SessionId(3), 3, 2, usize::MAX).await.unwrap();
    assert!(complete);
    assert_eq!(entries[0].message.as_ref().unwrap().payload, "keep");
    again.stop().await;
    store.stop().await;
}

#[tokio::test]
async fn a_batch_stays_until_the_cloud_and_all_queues_are_done_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Harness::open(&plan(dir.path()));
    store.apply(vec![publish("up/a", "both", vec![queued(1, 1)])]).await;
    store.apply(vec![publish("up/a", "cloud only", vec![])]).await;
    let rows = store.rows().await;
    let last = &rows[1];
    store.opened.store.acked(1, Mark { id: last.id, end: last.end() }).await.unwrap();
    let lane = store.status.lane("normal");
    let mut progress = store.opened.store.progress();
    while lane.batches.get() > 0 {
        progress.changed().await.unwrap();
    }
    assert_eq!(lane.synced.get(), 2);
    assert!(store.rows().await.is_empty());
    let (entries, _) = store.opened.store.load(SessionId(1), 1, 9, usize::MAX).await.unwrap();
    assert_eq!(entries[0].message.as_ref().unwrap().payload, "both");
    store.apply(vec![Change::Dequeued { session: SessionId(1), seq: 1 }]).await;
    store.stop().await;
    assert_eq!(count(dir.path(), "batch"), 0);
    assert_eq!(count(dir.path(), "needed"), 0);
}

fn count(dir: &Path, table: &str) -> i64 {
    let db = rusqlite::Connection::open(dir.join("edge.db")).unwrap();
    db.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
}

#[tokio::test]
async fn drop_oldest_leaves_one_gap_for_all_it_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let mut plan = plan(dir.path());
    plan.lanes[0].budget_bytes = 20_000;
    let mut store = Harness::open(&plan);
    for i in 0..100 {
        store.apply(vec![publish("up/a", &format!("{i:0>1000}"), vec![])]).await;
    }
    let rows = store.rows().await;
    let gap = &rows[0];
    assert_eq!((gap.s, gap.reason.as_deref()), (0, Some("over budget")));
    assert!(rows[1..].iter().all(|row| row.reason.is_none()));
    assert_eq!(rows.iter().map(|row| row.n).sum::<u64>(), 100);
    assert_eq!(store.status.drops()["lane_budget"], gap.n);
    let lane = store.status.lane("normal");
    assert!(lane.bytes.get() <= 20_000);
    assert_eq!(lane.batches.get(), rows.len() as u64);
    assert_eq!(lane.messages.get(), 100 - gap.n);
    store.stop().await;
}

/// A row may be on its way to the cloud when it is given up; the mark that comes back is about that row and no more.
#[tokio::test]
async fn a_gap_that_grew_over_a_row_under_way_outlives_the_confirmation_of_that_row() {
    let dir = tempfile::tempdir().unwrap();
    let mut plan = plan(dir.path());
    plan.lanes[0].budget_bytes = 5_000;
    let mut store = Harness::open(&plan);
    for i in 0..3 {
        store.apply(vec![publish("up/a", &format!("{i:0>1000}"), vec![])]).await;
    }
    let under_way = store.rows().await.remove(1);
    for i in 3..9 {
        store.apply(vec![publish("up/a", &format!("{i:0>1000}"), vec![])]).await;
    }
    let mark = Mark { id: under_way.id, end: under_way.end() };
    store.opened.store.acked(1, mark).await.unwrap();
    store.apply(vec![publish("up/a", "after", vec![])]).await;
    let rows = store.rows().await;
    assert!(rows[0].reason.is_some() && rows[0].s <= under_way.end(), "{rows:?}");
    // Also for whoever reads on behind the row.
    assert!(rows[0].id > under_way.id, "{rows:?}");
    assert!(rows.windows(2).all(|two| two[0].end() == two[1].s), "{rows:?}");
    store.stop().await;
}

#[tokio::test]
async fn what_a_queue_needs_outlives_the_lane_s_budget() {
    let dir = tempfile::tempdir().unwrap();
    let mut plan = plan(dir.path());
    plan.lanes[0].budget_bytes = 5_000;
    let mut store = Harness::open(&plan);
    store.apply(vec![publish("up/a", &"x".repeat(3000), vec![queued(1, 1)])]).await;
    store.apply(vec![publish("up/a", &"y".repeat(3000), vec![])]).await;
    let rows = store.rows().await;
    assert!(rows[0].reason.is_some() && rows[0].body.is_none());
    let (entries, _) = store.opened.store.load(SessionId(1), 1, 9, usize::MAX).await.unwrap();
    assert_eq!(entries[0].message.as_ref().unwrap().payload.len(), 3000);
    store.apply(vec![Change::Dequeued { session: SessionId(1), seq: 1 }]).await;
    store.stop().await;
    let db = rusqlite::Connection::open(dir.path().join("edge.db")).unwrap();
    let bodies: i64 = db.query_row("SELECT count(body) FROM batch", [], |row| row.get(0)).unwrap();
    assert_eq!(bodies, 1);
}

#[tokio::test]
async fn qos_0_goes_first_and_its_loss_is_declared() {
    let dir = tempfile::tempdir().unwrap();
    let mut plan = plan(dir.path());
    plan.lanes[0].budget_bytes = 20_000;
    plan.lanes[0].policy = Policy::DropQos0First;
    let mut store = Harness::open(&plan);
    for i in 0..18 {
        store.apply(vec![publish("up/a", &format!("{i:0>1000}"), vec![])]).await;
    }
    let unkept = Arc::new(Message { qos: Qos::AtMostOnce, ..(*message("up/a", "0")).clone() });
    let unkept = || Change::Message { message: unkept.clone(), queued: vec![], stored: None };
    store.apply(vec![unkept(), publish("up/a", "kept", vec![])]).await;
    store.apply(vec![unkept()]).await;
    let rows = store.rows().await;
    let [.., kept, gap] = &rows[..] else { panic!("{rows:?}") };
    assert_eq!((kept.s, kept.n, gap.s, gap.n), (18, 1, 19, 2));
    assert_eq!(gap.reason.as_deref(), Some("qos0 over budget"));
    // Whoever has read it reads on behind it, and finds what it has grown by.
    let read = gap.id;
    store.apply(vec![unkept()]).await;
    let last = store.rows().await.pop().unwrap();
    assert!((last.s, last.n) == (19, 3) && last.id > read, "{last:?}");
    assert_eq!(store.status.drops()["lane_qos0"], 3);
    store.stop().await;
}

#[tokio::test]
async fn a_lane_that_refuses_says_that_it_is_full_and_when_it_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut plan = plan(dir.path());
    plan.lanes[0].budget_bytes = 10_000;
    plan.lanes[0].policy = Policy::Refuse;
    let mut store = Harness::open(&plan);
    let full = |store: &Harness| {
        store.status.lane("normal").full.load(std::sync::atomic::Ordering::Relaxed)
    };
    for i in 0..8 {
        store.apply(vec![publish("up/a", &format!("{i:0>1000}"), vec![])]).await;
        assert!(!full(&store));
    }
    store.apply(vec![publish("up/a", &"9".repeat(2000), vec![])]).await;
    assert!(full(&store));
    let rows = store.rows().await;
    assert!(rows.iter().all(|row| row.reason.is_none()));
    store.opened.store.acked(1, Mark { id: rows[4].id, end: rows[4].end() }).await.unwrap();
    let mut progress = store.opened.store.progress();
    while full(&store) {
        progress.changed().await.unwrap();
    }
    store.stop().await;
}

#[tokio::test]
async fn small_batches_become_one_with_the_same_sequences() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Harness::open(&plan(dir.path()));
    for i in 0..20 {
        let queues = if i == 3 { vec![queued(1, 1)] } else { vec![] };
        store.apply(vec![publish("up/a", &i.to_string(), queues)]).await;
    }
    let before = store.rows().await;
    // Behind row 6 others may be on their way: rows 4 to 6 are too few.
    let bounded = store.opened.store.merge(1, before[0].id, before[6].id).await.unwrap();
    assert_eq!((bounded, store.rows().await), (0, before.clone()));
    let merged = store.opened.store.merge(1, before[0].id, u64::MAX).await.unwrap();
    assert_eq!(merged, 16, "4 to 19: row 0 was excluded, row 3 is needed by a queue");
    let after = store.rows().await;
    assert_eq!(payloads(&after), payloads(&before));
    assert_eq!(after[..4], before[..4]);
    let (last, whole) = (before.last().unwrap(), after.last().unwrap());
    assert_eq!((whole.id, whole.s, whole.n), (last.id, 4, 16));
    let header = Batch::parse(whole.body.clone().unwrap()).unwrap().header();
    assert_eq!((header.producer_id, header.base_sequence), (whole.epoch, 4));
    assert_eq!(store.status.lane("normal").batches.get(), 5);
    let copy = crash(dir.path());
    let again = Harness::open(&plan(copy.path()));
    assert_eq!(again.status.lane("normal").bytes.get(), store.status.lane("normal").bytes.get());
    again.stop().await;
    store.stop().await;
}

#[tokio::test]
async fn a_folder_serves_one_process_and_only_its_owner() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let plan = plan(&dir.path().join("data"));
    let store = Harness::open(&plan);
    let second = open(&plan, &Arc::new(Status::default()));
    assert!(matches!(second, Err(Error::InUse(_))));
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&plan.dir), 0o700);
    for file in std::fs::read_dir(&plan.dir).unwrap().flatten() {
        assert_eq!(mode(&file.path()), 0o600, "{:?}", file.path());
    }
    store.stop().await;
    Harness::open(&plan).stop().await;
}

/// Settings under which bodies move all the time.
fn restless(dir: &Path) -> Plan {
    let mut plan = plan(dir);
    plan.settings.queue_loose_bytes = 1000;
    plan
}

fn sum(dir: &Path, sql: &str) -> i64 {
    let db = rusqlite::Connection::open(dir.join("edge.db")).unwrap();
    db.query_row(sql, [], |row| row.get(0)).unwrap()
}

async fn everything(store: &Harness, session: u64) -> Vec<(u64, Option<String>)> {
    let (found, complete) =
        store.opened.store.load(SessionId(session), 0, 100_000, usize::MAX).await.unwrap();
    assert!(complete);
    let text = |message: &Message| String::from_utf8(message.payload.to_vec()).unwrap();
    found.iter().map(|entry| (entry.queued.seq, entry.message.as_deref().map(text))).collect()
}

#[tokio::test]
async fn a_session_that_is_away_does_not_keep_what_others_sent() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Harness::open(&restless(dir.path()));
    for group in 0..40_u64 {
        let others = (0..50).map(|i| publish("up/a", &format!("{group}-{i:0>200}"), vec![]));
        let mine = publish("up/mine", &format!("mine {group}"), vec![queued(1, group + 1)]);
        store.apply(others.chain([mine]).collect()).await;
    }
    let rows = store.rows().await;
    let last = rows.last().unwrap();
    store.opened.store.acked(1, Mark { id: last.id, end: last.end() }).await.unwrap();
    let mut progress = store.opened.store.progress();
    while store.status.lane("normal").batches.get() > 0 || store.status.queue_bytes.get() > 20_000 {
        progress.changed().await.unwrap();
    }
    let expected =
        |from| (from..40).map(|i| (i + 1, Some(format!("mine {i}")))).collect::<Vec<_>>();
    assert_eq!(everything(&store, 1).await, expected(0));
    store
        .apply((1..=30).map(|seq| Change::Dequeued { session: SessionId(1), seq }).collect())
        .await;
    assert_eq!(everything(&store, 1).await, expected(30));
    store.stop().await;
    let bytes = sum(dir.path(), "SELECT sum(length(body)) FROM batch");
    assert!(bytes < 10_000, "{bytes} bytes for 40 short messages");
    let again = Harness::open(&restless(dir.path()));
    assert_eq!(everything(&again, 1).await, expected(30));
    let queue = again.opened.restored.sessions.first().map(|one| one.queue);
    assert_eq!(queue, None, "the session itself was never saved");
    again.stop().await;
}

#[tokio::test]
async fn queues_over_their_budget_lose_their_oldest_and_the_cloud_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut plan = restless(dir.path());
    plan.settings.queue_bytes = 65_536;
    let mut store = Harness::open(&plan);
    let mut random = Random(7);
    for seq in 1..=300 {
        let noise: String = (0..1000).map(|_| (b'a' + random.below(26) as u8) as char).collect();
        let local = publish("local", &noise, vec![queued(1, seq), queued(2, seq)]);
        store.apply(vec![local, publish("up/a", &noise, vec![queued(3, seq)])]).await;
    }
    assert_eq!(payloads(&store.rows().await).len(), 300);
    assert!(store.status.queue_bytes.get() <= 65_536, "{}", store.status.queue_bytes.get());
    let dropped = store.status.drops()["queues_full"];
    assert!((200..600).contains(&dropped), "{dropped}");
    let trimmed = store.opened.store.take_trimmed();
    assert_eq!(trimmed.values().map(|(messages, _)| messages).sum::<u64>(), dropped);
    let one = everything(&store, 1).await;
    assert_eq!(one.len() as u64 + trimmed[&SessionId(1)].0, 300);
    assert_eq!(trimmed[&SessionId(1)].1, trimmed[&SessionId(1)].0 * 1005);
    assert_eq!((one.first().unwrap().0, one.last().unwrap().0), (301 - one.len() as u64, 300));
    assert!(one.iter().all(|(_, text)| text.as_ref().is_some_and(|text| text.len() == 1000)));
    assert_eq!(everything(&store, 3).await.len(), 300, "a lane still has them");
    let (bytes, entries) = (store.status.queue_bytes.get(), store.status.queue_entries.get());
    store.stop().await;
    // What a start counts is what was counted all along.
    let db = rusqlite::Connection::open(dir.path().join("edge.db")).unwrap();
    for session in 1..=3 {
        db.execute("INSERT INTO session VALUES(?1,'c',NULL,9,NULL,NULL,NULL,1)", [session])
            .unwrap();
    }
    drop(db);
    let mut again = Harness::open(&plan);
    again.apply(vec![Change::Unsubscribed { session: SessionId(1), filter: "-".into() }]).await;
    assert_eq!(again.status.queue_bytes.get(), bytes);
    assert_eq!(again.status.queue_entries.get(), entries);
    assert_eq!(again.opened.restored.sessions[0].queue.bytes, one.len() as u64 * 1005);
    again.stop().await;
}

#[tokio::test]
async fn what_few_need_of_a_large_row_is_kept_when_room_is_short() {
    let dir = tempfile::tempdir().unwrap();
    let mut plan = restless(dir.path());
    plan.settings.queue_bytes = 65_536;
    let mut store = Harness::open(&plan);
    let mut random = Random(9);
    // Session 2 reads everything soon; session 1 is away and has one message in a hundred.
    for group in 0..30_u64 {
        let mut changes = Vec::new();
        for i in 0..100 {
            let noise: String = (0..100).map(|_| (b'a' + random.below(26) as u8) as char).collect();
            let mut entries = vec![queued(2, group * 100 + i + 1)];
            entries.extend((i == 50).then(|| queued(1, group + 1)));
            changes.push(publish("local", &noise, entries));
        }
        store.apply(changes).await;
        let done = |i| Change::Dequeued { session: SessionId(2), seq: group * 100 + i + 1 };
        store.apply((0..100).map(done).collect()).await;
    }
    assert_eq!(store.status.drops().get("queues_full"), None);
    assert_eq!(everything(&store, 1).await.len(), 30);
    assert!(everything(&store, 1).await.iter().all(|(_, text)| text.is_some()));
    store.stop().await;
}

#[tokio::test]
async fn a_store_of_the_first_release_goes_on_with_its_queues() {
    let dir = tempfile::tempdir().unwrap();
    let store = Harness::open(&plan(dir.path()));
    store.stop().await;
    std::fs::remove_file(dir.path().join("edge.db")).unwrap();
    let db = rusqlite::Connection::open(dir.path().join("edge.db")).unwrap();
    let body = group::alone(&message("local", "old")).unwrap();
    db.execute_batch(include_str!("../schema.sql")).unwrap();
    db.execute_batch("PRAGMA application_id=0x54524942; PRAGMA user_version=1").unwrap();
    db.execute("INSERT INTO batch VALUES(5,0,0,1,200,0,NULL,?1)", [&body[..]]).unwrap();
    db.execute_batch(
        "INSERT INTO refs VALUES(5, 2); INSERT INTO queue VALUES(1,1,5,0,1,NULL,NULL);
         INSERT INTO queue VALUES(2,7,5,0,1,NULL,NULL);",
    )
    .unwrap();
    drop(db);
    let mut store = Harness::open(&plan(dir.path()));
    assert_eq!(everything(&store, 1).await, [(1, Some("old".to_owned()))]);
    store.apply(vec![Change::Dequeued { session: SessionId(1), seq: 1 }]).await;
    assert_eq!(everything(&store, 2).await, [(7, Some("old".to_owned()))]);
    store.apply(vec![Change::SessionRemoved(SessionId(2))]).await;
    assert_eq!((store.status.queue_bytes.get(), store.status.queue_entries.get()), (0, 0));
    store.stop().await;
    assert_eq!((count(dir.path(), "batch"), count(dir.path(), "needed")), (0, 0));
}

#[tokio::test]
async fn a_full_store_keeps_what_it_has_and_says_when_there_is_room_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut plan = plan(dir.path());
    plan.settings.max_bytes = 4 << 20;
    let mut store = Harness::open(&plan);
    let full = |store: &Harness| store.status.disk_full.load(std::sync::atomic::Ordering::Relaxed);
    let mut random = Random(3);
    let mut made = 0;
    while !full(&store) {
        let noise: String = (0..20_000).map(|_| (b' ' + random.below(90) as u8) as char).collect();
        store.apply(vec![publish("up/a", &noise, vec![queued(1, made + 1)])]).await;
        made += 1;
    }
    assert!((150..210).contains(&made), "{made}");
    // What frees room goes on, and so does reading.
    let rows = store.rows().await;
    assert_eq!(rows.len() as u64, made);
    assert_eq!(everything(&store, 1).await.len() as u64, made);
    store
        .apply((1..=made).map(|seq| Change::Dequeued { session: SessionId(1), seq }).collect())
        .await;
    assert!(full(&store), "the lane still has all of it");
    let upto = &rows[rows.len() / 2];
    store.opened.store.acked(1, Mark { id: upto.id, end: upto.end() }).await.unwrap();
    let mut progress = store.opened.store.progress();
    while full(&store) {
        progress.changed().await.unwrap();
    }
    store.apply(vec![publish("up/a", "more", vec![])]).await;
    assert_eq!(store.rows().await.len(), rows.len() - rows.len() / 2);
    assert_eq!(store.status.drops(), BTreeMap::new());
    assert_eq!(store.status.disk_full_total.get(), 1);
    store.stop().await;
}

#[tokio::test]
async fn a_commit_that_finds_no_room_waits_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut plan = plan(dir.path());
    plan.settings.max_bytes = 1 << 20;
    let mut store = Harness::open(&plan);
    let noise = |random: &mut Random| -> String {
        (0..200_000).map(|_| (b' ' + random.below(90) as u8) as char).collect()
    };
    let mut random = Random(5);
    for _ in 0..3 {
        store.apply(vec![publish("up/a", &noise(&mut random), vec![])]).await;
    }
    let rows = store.rows().await;
    let more = (0..3).map(|_| publish("up/a", &noise(&mut random), vec![])).collect();
    let ticket = store.opened.journal.apply(more).await.unwrap();
    let status = store.status.clone();
    let mut progress = store.opened.store.progress();
    while !status.disk_full.load(std::sync::atomic::Ordering::Relaxed) {
        tokio::task::yield_now().await;
    }
    assert!(progress.borrow_and_update().committed < ticket);
    assert_eq!(store.rows().await.len(), 3, "reading goes on");
    // Room is made from outside, as an operator would raise the limit or free the disk.
    let db = rusqlite::Connection::open(dir.path().join("edge.db")).unwrap();
    db.busy_timeout(std::time::Duration::from_secs(9)).unwrap();
    db.execute("DELETE FROM batch WHERE id = ?1", [rows[0].id as i64]).unwrap();
    db.execute("DELETE FROM batch WHERE id = ?1", [rows[1].id as i64]).unwrap();
    progress.wait_for(|progress| progress.committed >= ticket).await.unwrap();
    assert!(progress.borrow().failed.is_none());
    assert_eq!(store.rows().await.len(), 3, "one is left, the new ones are two rows");
    store.stop().await;
}

#[tokio::test]
async fn a_group_that_waits_for_room_gets_it_from_what_the_cloud_confirms() {
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
    let rows = store.rows().await;
    let more = (0..3).map(|_| publish("up/a", &noise(), vec![])).collect();
    let ticket = store.opened.journal.apply(more).await.unwrap();
    let mut progress = store.opened.store.progress();
    while !store.status.disk_full.load(std::sync::atomic::Ordering::Relaxed) {
        tokio::task::yield_now().await;
    }
    assert!(progress.borrow_and_update().committed < ticket);
    let behind = store.opened.journal.apply(vec![publish("up/a", "behind", vec![])]).await.unwrap();
    let upto = &rows[1];
    store.opened.store.acked(1, Mark { id: upto.id, end: upto.end() }).await.unwrap();
    progress.wait_for(|progress| progress.committed >= behind).await.unwrap();
    assert!(progress.borrow().failed.is_none());
    assert_eq!(store.status.lane("normal").synced.get(), 2);
    let left = payloads(&store.rows().await);
    assert_eq!(left.len(), 5, "one is left, three waited, one came behind them");
    assert_eq!(left.last().unwrap().0, "behind");
    store.stop().await;
}

#[tokio::test]
async fn a_group_that_waits_for_room_gets_it_from_what_sessions_are_done_with() {
    let dir = tempfile::tempdir().unwrap();
    let mut plan = plan(dir.path());
    plan.settings.max_bytes = 1 << 20;
    let mut store = Harness::open(&plan);
    let mut random = Random(5);
    let mut noise =
        || -> String { (0..200_000).map(|_| (b' ' + random.below(90) as u8) as char).collect() };
    for seq in 1..=3 {
        store.apply(vec![publish("local", &noise(), vec![queued(1, seq)])]).await;
    }
    let more = (4..7).map(|seq| publish("local", &noise(), vec![queued(1, seq)])).collect();
    let ticket = store.opened.journal.apply(more).await.unwrap();
    let mut progress = store.opened.store.progress();
    while !store.status.disk_full.load(std::sync::atomic::Ordering::Relaxed) {
        tokio::task::yield_now().await;
    }
    assert!(progress.borrow_and_update().committed < ticket);
    let done = (1..=2).map(|seq| Change::Dequeued { session: SessionId(1), seq }).collect();
    let behind = store.opened.journal.apply(done).await.unwrap();
    progress.wait_for(|progress| progress.committed >= behind).await.unwrap();
    assert!(progress.borrow().failed.is_none());
    let left = everything(&store, 1).await;
    assert_eq!(left.iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), [3, 4, 5, 6]);
    assert!(left.iter().all(|(_, text)| text.as_ref().is_some_and(|t| t.len() == 200_000)));
    assert_eq!(store.status.queue_entries.get(), 4);
    store.stop().await;
}

#[tokio::test]
async fn what_waits_for_the_cloud_does_not_cost_local_queues_their_messages() {
    let dir = tempfile::tempdir().unwrap();
    let mut plan = plan(dir.path());
    plan.settings.queue_bytes = 65_536;
    let mut store = Harness::open(&plan);
    store.apply(vec![publish("local", "mine", vec![queued(1, 1)])]).await;
    // More entries than the budget has room for, of rows that no drop could free.
    for group in 0..20_u64 {
        let entry = |i| publish("up/a", "x", vec![queued(2, group * 100 + i + 1)]);
        store.apply((0..100).map(entry).collect()).await;
    }
    store
        .apply((1..=100).map(|seq| Change::Dequeued { session: SessionId(2), seq }).collect())
        .await;
    assert_eq!(store.status.drops(), BTreeMap::new());
    assert_eq!(everything(&store, 1).await, [(1, Some("mine".to_owned()))]);
    assert_eq!(store.status.queue_entries.get(), 1901);
    let bytes = store.status.queue_bytes.get();
    assert!(bytes < 1000, "{bytes}");
    // Once the cloud has them they count.
    let rows = store.rows().await;
    let upto = &rows[9];
    store.opened.store.acked(1, Mark { id: upto.id, end: upto.end() }).await.unwrap();
    let mut progress = store.opened.store.progress();
    while store.status.queue_bytes.get() < 900 * 48 {
        progress.changed().await.unwrap();
    }
    assert_eq!(store.status.drops(), BTreeMap::new());
    let last = rows.last().unwrap();
    store.opened.store.acked(1, Mark { id: last.id, end: last.end() }).await.unwrap();
    while store.status.drops().is_empty() {
        progress.changed().await.unwrap();
    }
    assert!(store.status.queue_bytes.get() <= 65_536, "{}", store.status.queue_bytes.get());
    let dropped = store.status.drops()["queues_full"];
    assert_eq!(store.status.queue_entries.get(), 1901 - dropped);
    store.stop().await;
}

#[tokio::test]
async fn a_merge_beside_new_rows_moves_no_message_that_a_queue_points_at() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Harness::open(&plan(dir.path()));
    for i in 0..20 {
        store.apply(vec![publish("up/a", &format!("old {i}"), vec![])]).await;
    }
    // While the first group is written the others wait: they are one commit, with the merge after the new rows.
    for round in 0..40 {
        let new = publish("up/a", &format!("new {round}"), vec![queued(1, round + 1)]);
        store.opened.journal.apply(vec![publish("up/a", "between", vec![])]).await.unwrap();
        let (applied, merged) = tokio::join!(
            store.opened.journal.apply(vec![new]),
            store.opened.store.merge(1, 0, u64::MAX)
        );
        applied.unwrap();
        merged.unwrap();
    }
    let expected: Vec<_> = (0..40).map(|i| (i + 1, Some(format!("new {i}")))).collect();
    assert_eq!(everything(&store, 1).await, expected);
    let mut texts: Vec<_> =
        payloads(&store.rows().await).into_iter().map(|(text, _)| text).collect();
    texts.retain(|text| text != "between");
    let old = (0..20).map(|i| format!("old {i}"));
    assert_eq!(texts, old.chain((0..40).map(|i| format!("new {i}"))).collect::<Vec<_>>());
    store.stop().await;
}

/// What the store must hold.
#[derive(Debug, Default)]
struct Model {
    queues: BTreeMap<u64, VecDeque<(u64, String)>>,
    next: BTreeMap<u64, u64>,
    outbound: Vec<String>,
    made: u64,
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

impl Model {
    /// Random changes; the model knows their outcome.
    fn step(&mut self, random: &mut Random) -> Vec<Change> {
        (0..=random.below(12)).map(|_| self.change(random)).collect()
    }

    fn change(&mut self, random: &mut Random) -> Change {
        let who = random.below(3) + 1;
        match random.below(10) {
            0..=5 => {
                self.made += 1;
                let text = self.made.to_string();
                let up = random.below(2) == 0;
                let mut entries = Vec::new();
                for session in 1..=random.below(4) {
                    let next = self.next.entry(session).or_insert(1);
                    entries.push(queued(session, *next));
                    self.queues.entry(session).or_default().push_back((*next, text.clone()));
                    *next += 1;
                }
                if up {
                    self.outbound.push(text.clone());
                }
                publish(if up { "up/a" } else { "local" }, &text, entries)
            }
            6..=8 => {
                let queue = self.queues.entry(who).or_default();
                let at = random.below(queue.len().max(1) as u64) as usize;
                let seq = queue.remove(at).map_or(0, |(seq, _)| seq);
                Change::Dequeued { session: SessionId(who), seq }
            }
            _ => {
                self.queues.remove(&who);
                Change::SessionRemoved(SessionId(who))
            }
        }
    }

    /// Some messages of a random row, or of what is left of one.
    async fn give_up(&mut self, store: &Harness, random: &mut Random) {
        let rows = store.rows().await;
        let Some(row) = rows.get(random.below(rows.len().max(1) as u64) as usize) else { return };
        let from = row.s + random.below(row.n);
        let range = from..from + 1 + random.below(row.n);
        let given_up: Vec<_> = payloads(&rows)
            .into_iter()
            .zip(std::mem::take(&mut self.outbound))
            .map(|((_, seq), text)| (range.contains(&seq), text))
            .collect();
        // Sequences begin anew with each epoch.
        let ours: Vec<_> = rows
            .iter()
            .flat_map(|other| {
                let n = payloads(std::slice::from_ref(other)).len();
                std::iter::repeat_n(other.id == row.id, n)
            })
            .collect();
        let kept = given_up.into_iter().zip(ours).filter(|((hit, _), ours)| !(*hit && *ours));
        self.outbound = kept.map(|((_, text), _)| text).collect();
        store.opened.store.give_up(row.id, range, "poison".to_owned()).await.unwrap();
    }

    async fn check(&self, store: &Harness) {
        for session in 1..=3 {
            let (found, complete) =
                store.opened.store.load(SessionId(session), 0, 100_000, usize::MAX).await.unwrap();
            assert!(complete);
            let found: Vec<_> = found
                .into_iter()
                .map(|entry| {
                    let payload = entry.message.unwrap().payload.to_vec();
                    (entry.queued.seq, String::from_utf8(payload).unwrap())
                })
                .collect();
            let expected = self.queues.get(&session).cloned().unwrap_or_default();
            assert_eq!(found, Vec::from(expected), "session {session}");
        }
        let rows = store.rows().await;
        let found: Vec<_> = payloads(&rows).into_iter().map(|(text, _)| text).collect();
        assert_eq!(found, self.outbound);
        assert_eq!(store.status.lane("normal").messages.get(), found.len() as u64);
    }
}

#[tokio::test]
async fn through_random_changes_marks_merges_and_crashes_the_store_is_its_model() {
    for seed in 0..12 {
        let mut random = Random(seed);
        let mut model = Model::default();
        let mut dir = tempfile::tempdir().unwrap();
        // With even seeds bodies move all the time.
        let plan = if seed % 2 == 0 { restless } else { plan };
        let mut store = Harness::open(&plan(dir.path()));
        for _ in 0..60 {
            match random.below(12) {
                0 => {
                    let copy = crash(dir.path());
                    store.stop().await;
                    dir = copy;
                    store = Harness::open(&plan(dir.path()));
                }
                1 => drop(store.opened.store.merge(1, 0, u64::MAX).await.unwrap()),
                2 | 3 => {
                    let rows = store.rows().await;
                    let mut upto = random.below(rows.len() as u64 + 1) as usize;
                    // A row whose parts are not all confirmed stays.
                    while upto > 0 && rows.get(upto).is_some_and(|row| row.id == rows[upto - 1].id)
                    {
                        upto += 1;
                    }
                    if let Some(row) = rows[..upto].last() {
                        let gone = payloads(&rows[..upto]).len();
                        model.outbound.drain(..gone);
                        let mark = Mark { id: row.id, end: row.end() };
                        store.opened.store.acked(1, mark).await.unwrap();
                        store.stop().await;
                        store = Harness::open(&plan(dir.path()));
                    }
                }
                4 => model.give_up(&store, &mut random).await,
                _ => store.apply(model.step(&mut random)).await,
            }
            model.check(&store).await;
        }
        // Nothing stays that nobody needs.
        let queued: i64 = model.queues.values().map(|queue| queue.len() as i64).sum();
        store.stop().await;
        assert_eq!(count(dir.path(), "queue"), queued);
        let db = rusqlite::Connection::open(dir.path().join("edge.db")).unwrap();
        let stray: i64 = db
            .query_row(
                "SELECT count(*) FROM batch WHERE id NOT IN (SELECT batch FROM queue)
                 AND id <= (SELECT max(acked_id, 1 << 48) FROM lane)",
                [],
                |row| row.get(0),
            )
            .unwrap();
        assert_eq!(stray, 0, "seed {seed}");
    }
}

/// FlashMQ CVE-2025-62723: what waited for a session stayed when the session was over.
#[tokio::test]
async fn an_ended_session_leaves_nothing_on_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Harness::open(&plan(dir.path()));
    let subscription = SavedSubscription {
        session: SessionId(3),
        filter: "#".into(),
        options: tributary_shared::mqtt::packet::SubscriptionOptions::default(),
        subscription_id: None,
        replay: None,
    };
    store
        .apply(vec![
            Change::SessionSaved(Box::new(session(3))),
            Change::Subscribed(subscription),
            Change::Received { session: SessionId(3), packet_id: PacketId::MIN },
        ])
        .await;
    for seq in 1..=50 {
        store.apply(vec![publish("local/x", "kept for it alone", vec![queued(3, seq)])]).await;
    }
    store.apply(vec![Change::SessionRemoved(SessionId(3))]).await;
    store.stop().await;
    for table in ["session", "subscription", "received", "queue", "batch", "needed"] {
        assert_eq!(count(dir.path(), table), 0, "{table}");
    }
}
