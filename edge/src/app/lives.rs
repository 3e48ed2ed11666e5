//! With which settings and why the store is opened, from one life of the edge's parts to the next.
//!
//! In: how a life ended, settings that the cloud has pushed. Out: the settings of the next life, its open store.
//! Change here: what is carried from one life into the next. Not here: what happens in a life (`app`), whether settings from
//! the cloud are good (`pushed`).

use std::{ops::ControlFlow, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::AppError;
use crate::{
    config::Config,
    status::Status,
    store::{self, After, Error, Opened, Plan},
};

/// For the store of the life before to be closed: a flush that a worn card takes long for. Less than the watchdog's three minutes.
const CLOSING: Duration = Duration::from_mins(2);

/// How often it is looked whether it is.
const LOOK: Duration = Duration::from_millis(100);

/// What is carried on.
#[derive(Debug)]
pub(super) struct Lives {
    /// Settings of the present life, or the next.
    pub(super) config: Config,
    /// To go back to, when the edge cannot be started with what the cloud has pushed.
    before: Option<Config>,
    after: After,
    /// Settings to go on with.
    apply: watch::Receiver<Config>,
    /// The edge could not be started with them.
    failed: mpsc::Sender<String>,
}

impl Lives {
    pub(super) fn new(
        config: Config,
        apply: watch::Receiver<Config>,
        failed: mpsc::Sender<String>,
    ) -> Self {
        Self { config, before: None, after: After::Start, apply, failed }
    }

    /// Waits until there are settings to go on with.
    pub(super) async fn asked(&mut self) {
        if self.apply.changed().await.is_err() {
            // Its task ends only with the process.
            std::future::pending::<()>().await;
        }
    }

    /// What follows a life. `asked`: it was ended for settings; `steady`: a store that failed is opened once more.
    pub(super) fn ended(
        &mut self,
        outcome: Result<(), AppError>,
        asked: bool,
        steady: bool,
        status: &Status,
    ) -> ControlFlow<Result<(), AppError>> {
        match outcome {
            Ok(()) | Err(AppError::Stop) if asked => self.after = After::Start,
            Err(AppError::Store(error)) if steady => {
                tracing::error!(%error, "the store failed: opening it again");
                status.store_reopened.add(1);
                self.after = if error.is_corrupt() { After::Damage } else { After::Failure };
            }
            outcome => return ControlFlow::Break(outcome),
        }
        if asked || self.apply.has_changed().unwrap_or(false) {
            let new = self.apply.borrow_and_update().clone();
            self.before = Some(std::mem::replace(&mut self.config, new));
        }
        ControlFlow::Continue(())
    }

    /// The store of the next life; with the settings before, if it cannot be opened with those that were pushed.
    pub(super) async fn open(
        &mut self,
        status: &Arc<Status>,
        stop: &CancellationToken,
    ) -> Result<Opened, Error> {
        let opened = reopen(&plan(&self.config, self.after), status, stop).await;
        match (opened, self.before.take()) {
            // That it is still open is nobody's fault but its own.
            (Err(error), Some(good)) if !matches!(error, Error::InUse(_)) => {
                // Its task ends only with the process.
                let _gone = self.failed.send(error.to_string()).await;
                self.config = good;
                reopen(&plan(&self.config, self.after), status, stop).await
            }
            (opened, _) => opened,
        }
    }
}

/// Opens what was open a moment ago, and may be for some moments more.
async fn reopen(
    plan: &Plan,
    status: &Arc<Status>,
    stop: &CancellationToken,
) -> Result<Opened, Error> {
    let until = Instant::now() + CLOSING;
    let mut said = false;
    loop {
        match open(plan, status).await {
            Err(Error::InUse(path)) if Instant::now() < until && !stop.is_cancelled() => {
                if !std::mem::replace(&mut said, true) {
                    let path = path.display();
                    tracing::warn!(%path, "the store is not closed yet: waiting for it");
                }
                tokio::select! { () = stop.cancelled() => {} () = sleep(LOOK) => {} }
            }
            opened => return opened,
        }
    }
}

/// Opens the store.
pub(super) async fn open(plan: &Plan, status: &Arc<Status>) -> Result<Opened, Error> {
    let (plan, status) = (plan.clone(), status.clone());
    let opened = tokio::task::spawn_blocking(move || store::open(&plan, &status)).await;
    opened.unwrap_or(Err(Error::Closed))
}

/// Of these settings.
pub(super) fn plan(config: &Config, after: After) -> Plan {
    Plan {
        dir: config.data.clone().into(),
        edge_id: config.id.clone(),
        lanes: config.active_lanes(),
        settings: config.store.clone(),
        after,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config(dir: &Path, id: &str) -> Config {
        let data = dir.to_str().unwrap().to_owned();
        Config { id: id.to_owned(), data, ..Config::default() }
    }

    type Far = (watch::Sender<Config>, mpsc::Receiver<String>);

    fn lives(config: Config) -> (Lives, Far) {
        let (push, apply) = watch::channel(config.clone());
        let (failed, told) = mpsc::channel(1);
        (Lives::new(config, apply, failed), (push, told))
    }

    /// With a store of this name opened before by somebody else.
    async fn opened_by_another(dir: &Path) -> Opened {
        open(&plan(&config(dir, "gw1"), After::Start), &Arc::default()).await.unwrap()
    }

    async fn closed(opened: Opened) {
        let Opened { store, journal, threads, .. } = opened;
        drop(journal);
        store.stop().await;
        drop(store);
        for thread in threads {
            thread.join().unwrap();
        }
    }

    #[test]
    fn settings_that_came_while_the_store_failed_are_those_of_the_next_life() {
        let status = Status::default();
        let failed = || Err(AppError::Store(Error::Check));
        for asked in [true, false] {
            let (mut lives, (push, _told)) = lives(config(Path::new("/"), "old"));
            push.send_replace(config(Path::new("/"), "new"));
            if asked {
                // The life was ended for them, and on its way the store failed.
                lives.apply.borrow_and_update();
            }
            assert!(lives.ended(failed(), asked, true, &status).is_continue());
            assert_eq!(lives.config.id, "new", "asked: {asked}");
            assert_eq!(lives.before.as_ref().map(|before| &*before.id), Some("old"));
            assert_eq!(lives.after, After::Damage);
            assert!(!lives.apply.has_changed().unwrap());
            assert!(lives.ended(failed(), false, false, &status).is_break(), "not for ever");
        }
        assert_eq!(status.store_reopened.get(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_is_closed_slowly_is_waited_for_and_no_settings_are_blamed() {
        let dir = tempfile::tempdir().unwrap();
        let (stop, status) = (CancellationToken::new(), Arc::default());
        let (mut lives, (push, mut told)) = lives(config(dir.path(), "gw1"));
        push.send_replace(config(dir.path(), "gw2"));
        let slow = opened_by_another(dir.path()).await;
        assert!(lives.ended(Ok(()), true, true, &status).is_continue());
        let closing = async {
            sleep(Duration::from_secs(20)).await;
            closed(slow).await;
        };
        let (opened, ()) = tokio::join!(lives.open(&status, &stop), closing);
        closed(opened.unwrap()).await;
        assert_eq!(lives.config.id, "gw2");
        assert!(told.try_recv().is_err());

        let never = opened_by_another(dir.path()).await;
        lives.before = Some(lives.config.clone());
        let waited = Instant::now();
        assert!(matches!(lives.open(&status, &stop).await, Err(Error::InUse(_))));
        assert!(waited.elapsed() >= CLOSING && told.try_recv().is_err());
        closed(never).await;
    }

    #[tokio::test]
    async fn settings_with_which_the_store_cannot_be_opened_are_told_and_those_before_hold() {
        let dir = tempfile::tempdir().unwrap();
        let (stop, status) = (CancellationToken::new(), Arc::default());
        let (mut lives, (push, mut told)) = lives(config(dir.path(), "gw1"));
        let file = dir.path().join("a file");
        std::fs::write(&file, "").unwrap();
        push.send_replace(config(&file, "gw2"));
        assert!(lives.ended(Err(AppError::Stop), true, true, &status).is_continue());
        closed(lives.open(&status, &stop).await.unwrap()).await;
        assert_eq!(lives.config.id, "gw1");
        assert!(told.try_recv().unwrap().contains("a file"));
    }
}
