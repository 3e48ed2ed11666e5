//! Settings from the cloud over time, with a cloud that is reached or not.

use tokio::{sync::oneshot, task::JoinHandle, time::sleep};
use tributary_shared::config::Loader;

use super::*;

/// A task over a folder, as a process has it.
struct World {
    ends: Ends,
    status: Arc<Status>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

fn compose(dir: &Path) -> Compose {
    let data = dir.to_str().unwrap().to_owned();
    Arc::new(move |tables| {
        let mut loader = Loader::<Config>::new();
        for table in tables {
            loader = loader.table("pushed", table.clone()).map_err(|error| error.to_string())?;
        }
        let loader = loader
            .flag("--id", "id", Some("gw1"))
            .and_then(|loader| loader.flag("--data", "data", Some(&data)))
            .and_then(|loader| loader.flag("--keep", "uplink.keep_alive_s", Some(77)));
        loader.and_then(Loader::load).map_err(|error| error.to_string())
    })
}

impl World {
    fn start(dir: &Path) -> Self {
        let compose = compose(dir);
        let found = candidates(dir).iter().find_map(|tables| compose(tables).ok());
        let running = found.unwrap_or_else(|| compose(&[]).unwrap());
        let status = Arc::new(Status::default());
        status.serving.store(true, Relaxed);
        status.begin(&[]);
        let (pushed, ends) = Pushed::new(running, compose, status.clone());
        let stop = CancellationToken::new();
        let task = tokio::spawn(pushed.run(stop.clone()));
        Self { ends, status, stop, task }
    }

    async fn push(&mut self, own: bool, text: &str) -> State {
        let (done, dealt_with) = oneshot::channel();
        let document = downlink::Document { own, text: text.to_owned().into(), done };
        self.ends.documents.send(document).await.unwrap();
        dealt_with.await.unwrap();
        self.status.settings()
    }

    /// The parts were built anew, and the cloud is reached or not.
    fn live(&mut self, connected: bool) -> Config {
        self.status.begin(&[]);
        self.status.down.connected.store(connected, Relaxed);
        self.ends.apply.borrow_and_update().clone()
    }

    async fn until(&mut self, phase: Phase) -> State {
        let found = self.ends.state.wait_for(|state| state.state == phase).await;
        found.unwrap().clone()
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn settings_are_in_force_when_the_cloud_is_reached_with_them_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::start(dir.path());
    let for_all = "version = 1\n[uplink]\nwindow_batches = 4\nkeep_alive_s = 9\n";
    let state = world.push(false, for_all).await;
    assert_eq!((state.state, state.version_all.as_deref()), (Phase::Trial, Some("1")));
    let config = world.live(true);
    assert_eq!((config.uplink.window_batches, config.uplink.keep_alive_s), (4, 77), "a flag wins");
    world.until(Phase::Applied).await;
    world.push(true, "version = 'b'\n[uplink]\nwindow_batches = 5\nwindow_bytes = 5000\n").await;
    assert_eq!(world.live(true).uplink.window_batches, 5, "those for this edge win");
    let state = world.until(Phase::Applied).await;
    assert_eq!((state.version.as_deref(), state.version_all.as_deref()), (Some("b"), Some("1")));
    assert_eq!(world.push(false, for_all).await, state, "the same again changes nothing");
    assert!(!world.ends.apply.has_changed().unwrap());
    world.stop().await;

    let mut world = World::start(dir.path());
    assert_eq!(world.until(Phase::Applied).await, state);
    assert_eq!(world.live(true).uplink.window_bytes, 5000);
    world.push(true, "").await;
    assert_eq!(world.live(true).uplink.window_batches, 4, "taken back at the cloud");
    let state = world.until(Phase::Applied).await;
    assert_eq!(state.version, None);
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_wrong_changes_nothing_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::start(dir.path());
    world.push(true, "version = 1\n[uplink]\nwindow_batches = 4\n").await;
    world.live(true);
    let good = world.until(Phase::Applied).await;
    for (text, why) in [
        ("version = 2\nid = 'gw2'", "`id`"),
        ("version = 2\n[uplink]\nwindow_batches = 0", "window_batches"),
        ("version = 2\n[[lanes]]\nname = 'a'\n[[lanes]]\nname = 'a'", "two lanes"),
        ("version = 2\n[uplnk]\nwindow_batches = 1", "uplnk"),
    ] {
        let state = world.push(true, text).await;
        assert_eq!((state.state, state.version.as_deref()), (Phase::Refused, Some("1")), "{text}");
        assert_eq!(state.refused.as_deref(), Some("2"));
        assert!(state.reason.unwrap().contains(why), "{text}");
        assert!(!world.ends.apply.has_changed().unwrap());
    }
    world.stop().await;
    let mut world = World::start(dir.path());
    assert_eq!(world.until(Phase::Applied).await, good);
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn settings_that_cut_the_edge_off_are_taken_back_and_not_tried_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::start(dir.path());
    world.push(true, "version = 1\n[uplink]\nwindow_batches = 4\n").await;
    world.live(true);
    world.until(Phase::Applied).await;
    let bad = "version = 2\n[uplink]\nconnect_timeout_ms = 100\n";
    for _ in 0..TRIES {
        assert_eq!(world.push(true, bad).await.state, Phase::Trial);
        assert_eq!(world.live(false).uplink.connect_timeout_ms, 100);
        sleep(Duration::from_secs(599)).await;
        assert_eq!(world.status.settings().state, Phase::Trial, "it has its time");
        let state = world.until(Phase::RolledBack).await;
        assert_eq!((state.version.as_deref(), state.refused.as_deref()), (Some("1"), Some("2")));
        assert!(state.reason.unwrap().contains("600 s"));
        let config = world.live(true);
        assert_eq!((config.uplink.connect_timeout_ms, config.uplink.window_batches), (10_000, 4));
    }
    assert_eq!(world.push(true, bad).await.state, Phase::RolledBack, "not a fourth time");
    assert_eq!(world.push(true, "version = 3\n").await.state, Phase::Trial, "others are");
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_trial_goes_on_after_a_restart_and_ends_when_the_edge_cannot_start_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::start(dir.path());
    world.push(true, "version = 1\n[store]\nmax_bytes = 1\n").await;
    world.stop().await;
    let mut world = World::start(dir.path());
    world.until(Phase::Trial).await;
    world.ends.failed.send("no room".to_owned()).await.unwrap();
    let state = world.until(Phase::RolledBack).await;
    assert_eq!(state.reason.as_deref(), Some("no room"));
    assert!(!world.ends.apply.has_changed().unwrap(), "it goes back by itself");
    world.stop().await;
    assert_eq!(candidates(dir.path()), [Vec::<Table>::new()]);
}
