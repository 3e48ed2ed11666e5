//! What has waited for too long goes, declared; no wall clock has a say in it.

use std::time::Duration;

use tokio::time::advance;

use super::*;

/// Both halves as tasks, so that time is the test's.
fn start(plan: &Plan) -> Harness {
    let status = Arc::new(Status::default());
    let Prepared { store, journal, restored, observed_ms, followed, writing, reading } =
        prepare(plan, &status).unwrap();
    tokio::task::spawn_local(writing.run());
    tokio::task::spawn_local(reading.run());
    let threads = Vec::new();
    Harness { opened: Opened { store, journal, restored, observed_ms, followed, threads }, status }
}

fn hour(dir: &Path, policy: Policy) -> Plan {
    let mut plan = plan(dir);
    plan.lanes[0].budget_age_s = 3600;
    plan.lanes[0].policy = policy;
    plan
}

fn at(received_ms: i64, text: &str) -> Change {
    let message = Message { received_ms, ..(*message("up/a", text)).clone() };
    Change::Message { message: Arc::new(message), queued: vec![], stored: None }
}

async fn pass(minutes: u64) {
    for _ in 0..minutes {
        advance(Duration::from_mins(1)).await;
        // The writer looks at what is due.
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }
}

fn texts(rows: &[OutboundRow]) -> Vec<String> {
    rows.iter()
        .flat_map(|row| match &row.reason {
            Some(reason) => vec![format!("{reason} {}", row.n)],
            None => payloads(std::slice::from_ref(row)).into_iter().map(|(text, _)| text).collect(),
        })
        .collect()
}

const TEN_YEARS_MS: i64 = 10 * 365 * 86_400_000;

#[tokio::test(start_paused = true)]
async fn with_every_policy_what_waited_too_long_goes_and_what_is_counted_is_what_is_declared() {
    for policy in [Policy::DropOldest, Policy::DropQos0First, Policy::Refuse] {
        let local = tokio::task::LocalSet::new();
        local
            .run_until(async {
                let dir = tempfile::tempdir().unwrap();
                let mut store = start(&hour(dir.path(), policy));
                // Clocks ten years wrong, both ways.
                let now = 1_700_000_000_000;
                store.apply(vec![at(now - TEN_YEARS_MS, "a"), at(now, "b")]).await;
                store.apply(vec![at(now + TEN_YEARS_MS, "c")]).await;
                pass(40).await;
                store.apply(vec![at(now - TEN_YEARS_MS, "d")]).await;
                pass(19).await;
                assert_eq!(texts(&store.rows().await), ["a", "b", "c", "d"], "59 minutes");
                pass(3).await;
                assert_eq!(texts(&store.rows().await), ["too old 3", "d"], "{policy:?}");
                let lane = store.status.lane("normal");
                assert_eq!((lane.given_up.get(), lane.messages.get()), (3, 1));
                assert_eq!(store.status.drops()["lane_age"], 3);
                // Nothing else comes: it grows old all the same.
                pass(40).await;
                assert_eq!(texts(&store.rows().await), ["too old 4"], "{policy:?}");
                assert_eq!(store.status.drops()["lane_age"], 4);
                store.opened.store.stop().await;
            })
            .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_start_neither_forgets_how_long_messages_waited_nor_takes_a_wall_clock_s_word() {
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async {
            let dir = tempfile::tempdir().unwrap();
            let mut store = start(&hour(dir.path(), Policy::DropOldest));
            store.apply(vec![at(0, "a")]).await;
            pass(30).await;
            store.apply(vec![at(0, "b")]).await;
            pass(1).await;
            // As after a power cut: another boot, with who knows what clock.
            let copy = crash(dir.path());
            let db = rusqlite::Connection::open(copy.path().join("edge.db")).unwrap();
            db.execute("UPDATE observed SET boot = 'another'", []).unwrap();
            drop(db);
            let again = start(&hour(copy.path(), Policy::DropOldest));
            pass(25).await;
            assert_eq!(texts(&again.rows().await), ["a", "b"]);
            pass(10).await;
            assert_eq!(texts(&again.rows().await), ["too old 1", "b"]);
            again.opened.store.stop().await;
            store.opened.store.stop().await;
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_backlog_of_before_the_limit_ages_from_the_first_start_with_it() {
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async {
            let dir = tempfile::tempdir().unwrap();
            let mut store = start(&plan(dir.path()));
            store.apply(vec![at(0, "a")]).await;
            pass(600).await;
            store.opened.store.stop().await;
            tokio::task::yield_now().await;
            let store = start(&hour(dir.path(), Policy::DropOldest));
            pass(59).await;
            assert_eq!(texts(&store.rows().await), ["a"]);
            pass(4).await;
            assert_eq!(texts(&store.rows().await), ["too old 1"]);
            store.opened.store.stop().await;
        })
        .await;
}

#[tokio::test]
async fn what_expires_and_who_is_away_keep_their_observed_time_over_a_start() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Harness::open(&plan(dir.path()));
    let properties = PublishProperties { message_expiry: Some(60), ..PublishProperties::default() };
    // A record's time is the wall clock's: ten years off.
    let lasting =
        Message { properties, expires_ms: Some(61_500), ..(*message("up/a", "m")).clone() };
    let lasting = Arc::new(Message { received_ms: TEN_YEARS_MS, ..lasting });
    let delayed =
        SavedDelayed { number: 1, due_ms: 9_000, message: lasting.clone(), author: Author::Host };
    store
        .apply(vec![
            Change::SessionSaved(Box::new(SavedSession {
                disconnected_ms: Some(1_500),
                ..session(1)
            })),
            Change::Message { message: lasting.clone(), queued: vec![queued(1, 1)], stored: None },
            Change::Retained {
                topic: "up/a".into(),
                message: Some(lasting.clone()),
                author: Author::Host,
            },
            Change::Delayed(delayed.clone()),
        ])
        .await;
    store.stop().await;
    let store = Harness::open(&plan(dir.path()));
    assert_eq!(store.opened.restored.sessions[0].saved.disconnected_ms, Some(1_500));
    assert_eq!(store.opened.restored.retained[0].0.expires_ms, Some(61_500));
    assert_eq!(store.opened.restored.delayed, [delayed]);
    let (entries, _) = store.opened.store.load(SessionId(1), 0, 9, 9_000).await.unwrap();
    assert_eq!(entries[0].message.as_ref().unwrap().expires_ms, Some(61_500));
    store.stop().await;
}

/// The file as the version before had it.
fn before_lasting_times(dir: &Path, wall_ms: i64) {
    let db = rusqlite::Connection::open(dir.join("edge.db")).unwrap();
    for table in ["queue", "retained", "delayed"] {
        db.execute_batch(&format!("ALTER TABLE {table} DROP COLUMN expires_ms")).unwrap();
    }
    db.execute("UPDATE session SET disconnected_ms = ?1", [wall_ms - TEN_YEARS_MS]).unwrap();
    db.execute("UPDATE delayed SET due_ms = ?1", [wall_ms + 600_000]).unwrap();
    db.execute_batch(&format!("PRAGMA user_version={}", super::super::migrate::VERSION - 1))
        .unwrap();
}

#[tokio::test]
async fn a_file_with_wall_clock_times_opens_and_everything_in_it_lasts_from_then_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Harness::open(&plan(dir.path()));
    let properties = PublishProperties { message_expiry: Some(60), ..PublishProperties::default() };
    let old = Arc::new(Message { properties, ..(*message("up/a", "m")).clone() });
    let delayed = SavedDelayed { number: 1, due_ms: 0, message: old.clone(), author: Author::Host };
    store
        .apply(vec![
            Change::SessionSaved(Box::new(SavedSession { disconnected_ms: Some(0), ..session(1) })),
            Change::Message { message: old.clone(), queued: vec![queued(1, 1)], stored: None },
            Change::Delayed(delayed),
        ])
        .await;
    store.stop().await;
    before_lasting_times(dir.path(), tributary_shared::clock::wall_ms());
    let store = Harness::open(&plan(dir.path()));
    let now = store.opened.observed_ms as i64;
    assert_eq!(store.opened.restored.sessions[0].saved.disconnected_ms, None);
    let left = store.opened.restored.delayed[0].due_ms - now;
    assert!((540_000..=600_000).contains(&left), "{left}");
    let (entries, _) = store.opened.store.load(SessionId(1), 0, 9, 9_000).await.unwrap();
    let expires = entries[0].message.as_ref().unwrap().expires_ms.unwrap();
    assert!(expires >= now + 60_000, "{expires} {now}");
    store.stop().await;
}
