//! What has waited for too long goes, declared; no wall clock has a say in it.

use std::time::Duration;

use tokio::time::advance;

use super::*;

/// Both halves as tasks, so that time is the test's.
fn start(plan: &Plan) -> Harness {
    let status = Arc::new(Status::default());
    let Prepared { store, journal, restored, followed, writing, reading } =
        prepare(plan, &status).unwrap();
    tokio::task::spawn_local(writing.run());
    tokio::task::spawn_local(reading.run());
    let threads = Vec::new();
    Harness { opened: Opened { store, journal, restored, followed, threads }, status }
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
