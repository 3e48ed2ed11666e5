//! Settings from the cloud: checked, tried, kept or taken back.
//!
//! ```text
//! downlink --document--> read, compose (file < pushed < environment < flags), check --no--> refused, nothing changes
//!                              \--> on disk as a trial --> app builds its parts anew with them
//!                                    \--> the cloud is reached again: confirmed     or not in time: the last good ones
//! ```
//! Retained at the cloud under `tributary/all/settings` and `tributary/{id}/settings`, so they come with every connection; the
//! same again changes nothing. What became of them is told under `tributary/{id}/settings/state` and on the status page.
//!
//! In: documents, and whether the cloud is reached. Out: whole settings for `app`, a [`State`]. Change here: when settings are
//! taken and taken back. Not here: which may be pushed (`document`), what is remembered (`kept`).

mod document;
mod kept;
#[cfg(test)]
mod tests;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering::Relaxed},
};

use serde::{Deserialize, Serialize};
use tokio::{
    sync::{mpsc, watch},
    time::{Duration, Instant, interval},
};
use tokio_util::sync::CancellationToken;
use toml::Table;
use tributary_shared::mqtt::packet::PublishProperties;

use self::kept::{Kept, Layers};
use crate::{config::Config, downlink, own::Own, status::Status};

/// Documents that may wait; the cloud sends no more before they are acknowledged.
const DOCUMENTS: usize = 32;
/// How often a trial is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// What was taken back is tried again when it comes again: the line may have been down. No more often than this.
const TRIES: u32 = 3;

/// Makes settings of all sources, with these between the file and the environment.
pub type Compose = Arc<dyn Fn(&[Table]) -> Result<Config, String> + Send + Sync>;

/// How it stands with settings from the cloud.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// There are none.
    #[default]
    None,
    /// In force, and the cloud is not reached yet.
    Trial,
    /// In force.
    Applied,
    /// The last that came were not taken.
    Refused,
    /// The last that came were taken back.
    RolledBack,
}

/// What is told of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// How it stands.
    pub state: Phase,
    /// Version for this edge in force.
    pub version: Option<String>,
    /// Version for all edges in force.
    pub version_all: Option<String>,
    /// Version that is not.
    pub refused: Option<String>,
    /// Why.
    pub reason: Option<String>,
}

/// Settings that `folder` has from the cloud, the likeliest first: none of them may keep an edge from starting.
pub fn candidates(folder: &Path) -> Vec<Vec<Table>> {
    let kept = Kept::load(folder);
    let tables = |layers: &Layers| tables(layers).ok();
    kept.trial.iter().chain([&kept.good]).filter_map(tables).collect()
}

fn tables(layers: &Layers) -> Result<Vec<Table>, String> {
    layers.texts().map(document::read).collect()
}

/// What the rest of the edge holds of it.
#[derive(Debug)]
pub struct Ends {
    /// For what comes from the cloud.
    pub documents: mpsc::Sender<downlink::Document>,
    /// Settings to go on with.
    pub apply: watch::Receiver<Config>,
    /// The edge could not be started with them.
    pub failed: mpsc::Sender<String>,
    /// How it stands.
    pub state: watch::Receiver<State>,
}

/// The task.
pub struct Pushed {
    kept: Kept,
    dir: PathBuf,
    compose: Compose,
    running: Config,
    /// Since when a trial runs, and in which life of the edge's parts it began.
    trial: Option<(Instant, u64)>,
    status: Arc<Status>,
    apply: watch::Sender<Config>,
    state: watch::Sender<State>,
    documents: mpsc::Receiver<downlink::Document>,
    failed: mpsc::Receiver<String>,
}

impl Pushed {
    /// `running`: what the edge starts with, those from the cloud included.
    pub fn new(running: Config, compose: Compose, status: Arc<Status>) -> (Self, Ends) {
        let (documents, inbox) = mpsc::channel(DOCUMENTS);
        let (apply, applied) = watch::channel(running.clone());
        let (failed, failures) = mpsc::channel(1);
        let (state, told) = watch::channel(State::default());
        let dir = PathBuf::from(&running.data);
        let ends = Ends { documents, apply: applied, failed, state: told };
        let pushed = Self {
            kept: Kept::load(&dir),
            dir,
            compose,
            running,
            trial: None,
            status,
            apply,
            state,
            documents: inbox,
            failed: failures,
        };
        (pushed, ends)
    }

    /// Runs until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        self.resume();
        let mut look = interval(LOOK);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                Some(document) = self.documents.recv() => self.take(document),
                Some(why) = self.failed.recv() => self.undo(&why, false),
                _ = look.tick(), if self.trial.is_some() => self.look(),
            }
        }
    }

    /// Goes on with what a former process left.
    fn resume(&mut self) {
        if self.kept.trial.is_some() {
            self.trial = Some((Instant::now(), 0));
        }
        if self.kept.current() == &Layers::default() {
            return;
        }
        match self.composed(self.kept.current()) {
            Ok(config) if config == self.running => self.tell_in_force(),
            Ok(_) => self.tell(Phase::Refused, None, Some("settings changed while it started")),
            Err(why) => {
                tracing::error!(why, "settings from the cloud do not hold any more");
                self.trial = None;
                self.tell(Phase::Refused, None, Some(&why));
            }
        }
    }

    /// Deals with one document; it is acknowledged in any case: asked again, the answer would be the same.
    fn take(&mut self, document: downlink::Document) {
        let downlink::Document { own, text, done } = document;
        let outcome = match std::str::from_utf8(&text) {
            Ok(text) => self.settle(own, (!text.is_empty()).then(|| text.to_owned())),
            Err(_) => Err((None, "not UTF-8".to_owned())),
        };
        if let Err((version, why)) = outcome {
            tracing::warn!(version, why, "settings from the cloud are refused");
            self.tell(Phase::Refused, version, Some(&why));
        }
        // A downlink that is gone gets it again.
        let _gone = done.send(());
    }

    fn settle(&mut self, own: bool, text: Option<String>) -> Result<(), (Option<String>, String)> {
        let version = text.as_deref().and_then(document::version);
        let document = text.as_deref().map(document::read).transpose();
        document.map_err(|why| (version.clone(), why))?;
        let layers = self.kept.current().with(own, text);
        if layers == *self.kept.current() {
            self.tell_in_force();
            return Ok(());
        }
        if self.kept.times_undone(&layers) >= TRIES {
            return Ok(());
        }
        let config = self.composed(&layers).map_err(|why| (version.clone(), why))?;
        let before = self.kept.clone();
        let changes = config != self.running;
        self.kept.trial = Some(layers);
        if !changes && self.trial.is_none() {
            self.kept.confirm();
        }
        if let Err(error) = self.kept.save(&self.dir) {
            self.kept = before;
            return Err((version, format!("cannot be stored: {error}")));
        }
        if changes {
            tracing::info!(version, "settings from the cloud: trying them");
            self.trial = Some((Instant::now(), self.status.lives.get()));
            self.running = config.clone();
            self.apply.send_replace(config);
        }
        self.tell_in_force();
        Ok(())
    }

    fn composed(&self, layers: &Layers) -> Result<Config, String> {
        let config = (self.compose)(&tables(layers)?)?;
        config.check()?;
        Ok(config)
    }

    /// Confirms a trial, or ends it.
    fn look(&mut self) {
        let Some((since, life)) = self.trial else { return };
        let confirm = Duration::from_secs(self.running.downlink.confirm_s);
        if self.status.lives.get() > life && self.reached() {
            self.trial = None;
            self.kept.confirm();
            self.save();
            tracing::info!("settings from the cloud: confirmed");
            self.tell_in_force();
        } else if since.elapsed() >= confirm {
            let why = format!("the cloud was not reached with them in {} s", confirm.as_secs());
            self.undo(&why, true);
        }
    }

    /// The cloud is connected, for every lane and for commands.
    fn reached(&self) -> bool {
        let lanes = self.status.lanes();
        self.status.serving.load(Relaxed)
            && self.status.down.connected.load(Relaxed)
            && lanes.iter().all(|lane| lane.connected.load(Relaxed))
    }

    /// Back to the last good ones.
    fn undo(&mut self, why: &str, apply: bool) {
        self.trial = None;
        if self.kept.trial.is_none() {
            return;
        }
        let version = versions(self.kept.current());
        self.kept.undo();
        self.save();
        tracing::error!(why, "settings from the cloud are taken back");
        let good = self.composed(&self.kept.good.clone()).or_else(|_| (self.compose)(&[]));
        match good {
            Ok(config) if apply => {
                self.running = config.clone();
                self.apply.send_replace(config);
            }
            Ok(config) => self.running = config,
            Err(error) => tracing::error!(error, "the settings before them do not hold either"),
        }
        self.tell(Phase::RolledBack, version.0.or(version.1), Some(why));
    }

    fn save(&self) {
        if let Err(error) = self.kept.save(&self.dir) {
            tracing::error!(%error, "what became of settings from the cloud cannot be stored");
        }
    }

    fn tell_in_force(&self) {
        let phase = match (&self.kept.trial, self.kept.good == Layers::default()) {
            (Some(_), _) => Phase::Trial,
            (None, false) => Phase::Applied,
            (None, true) => Phase::None,
        };
        // A repeat of what is in force does not undo what was said of what is not.
        let said = self.state.borrow().state;
        let bad = matches!(said, Phase::Refused | Phase::RolledBack);
        if !(bad && versions(self.kept.current()) == self.said_versions()) {
            self.tell(phase, None, None);
        }
    }

    fn said_versions(&self) -> (Option<String>, Option<String>) {
        let state = self.state.borrow();
        (state.version.clone(), state.version_all.clone())
    }

    fn tell(&self, state: Phase, refused: Option<String>, reason: Option<&str>) {
        let (version, version_all) = versions(self.kept.current());
        let reason = reason.map(str::to_owned);
        let now = State { state, version, version_all, refused, reason };
        self.status.set_settings(now.clone());
        self.state.send_if_modified(|said| {
            let new = *said != now;
            *said = now;
            new
        });
    }
}

/// For this edge, and for all.
fn versions(layers: &Layers) -> (Option<String>, Option<String>) {
    let version = |text: &Option<String>| text.as_deref().and_then(document::version);
    (version(&layers.own), version(&layers.all))
}

/// Tells the cloud how it stands, whenever that changes, until `stop`.
pub async fn report(
    own: Own,
    edge: String,
    mut state: watch::Receiver<State>,
    stop: CancellationToken,
) {
    let topic = format!("tributary/{edge}/settings/state");
    loop {
        let now = state.borrow_and_update().clone();
        let properties = PublishProperties {
            content_type: Some("application/json".into()),
            ..PublishProperties::default()
        };
        if now.state != Phase::None {
            let text = serde_json::to_vec(&now).unwrap_or_default();
            tokio::select! {
                () = stop.cancelled() => return,
                told = own.publish(topic.as_str(), text, properties, true) => {
                    if let Err(error) = told {
                        tracing::debug!(%error, "the cloud is not told of its settings");
                    }
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = state.changed() => if changed.is_err() {
                return stop.cancelled().await;
            }
        }
    }
}
