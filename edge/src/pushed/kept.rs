//! What is kept of settings from the cloud: one small file in the data folder.
//!
//! ```text
//! good     the last that were confirmed: the cloud was reached with them
//! trial    in force, not confirmed; a start goes on with them
//! undone   those that were taken back, and how often: they still lie at the cloud, and come again
//! ```
//! Written whole beside the old file, flushed, then renamed over it. A file that cannot be read counts as none: an edge always
//! starts. Change here: what is remembered. Not here: when (`pushed`).

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use serde::{Deserialize, Serialize};

const FILE: &str = "settings-pushed.json";

/// Documents as they came: for all edges, and for this one, which comes over it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Layers {
    pub(super) all: Option<String>,
    pub(super) own: Option<String>,
}

/// Layers that were taken back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Undone {
    pub(super) layers: Layers,
    pub(super) times: u32,
}

/// All of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Kept {
    pub(super) good: Layers,
    pub(super) trial: Option<Layers>,
    pub(super) undone: Option<Undone>,
}

impl Layers {
    /// With one of them replaced.
    pub(super) fn with(&self, own: bool, text: Option<String>) -> Self {
        let mut layers = self.clone();
        *(if own { &mut layers.own } else { &mut layers.all }) = text;
        layers
    }

    /// In the order they are taken.
    pub(super) fn texts(&self) -> impl Iterator<Item = &str> {
        [&self.all, &self.own].into_iter().filter_map(Option::as_deref)
    }
}

impl Kept {
    /// What is in force.
    pub(super) fn current(&self) -> &Layers {
        self.trial.as_ref().unwrap_or(&self.good)
    }

    /// The trial has been confirmed.
    pub(super) fn confirm(&mut self) {
        if let Some(trial) = self.trial.take() {
            self.good = trial;
            self.undone = None;
        }
    }

    /// The trial is taken back.
    pub(super) fn undo(&mut self) {
        let Some(layers) = self.trial.take() else { return };
        let before = self.undone.take().filter(|undone| undone.layers == layers);
        let times = before.map_or(0, |undone| undone.times) + 1;
        self.undone = Some(Undone { layers, times });
    }

    /// These were taken back so often.
    pub(super) fn times_undone(&self, layers: &Layers) -> u32 {
        self.undone.as_ref().filter(|undone| undone.layers == *layers).map_or(0, |one| one.times)
    }

    /// As it was saved last.
    pub(super) fn load(dir: &Path) -> Self {
        let path = dir.join(FILE);
        let read = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Self::default(),
            Err(error) => Err(error.to_string()),
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| error.to_string()),
        };
        read.unwrap_or_else(|error| {
            let path = path.display();
            tracing::error!(%path, error, "settings from the cloud cannot be read: the file's own hold");
            Self::default()
        })
    }

    /// Durable when this returns.
    pub(super) fn save(&self, dir: &Path) -> io::Result<()> {
        let new = dir.join(format!("{FILE}.new"));
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        file.sync_all()?;
        fs::rename(&new, dir.join(FILE))?;
        File::open(dir)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_is_there_again_and_a_broken_file_is_none() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Kept::load(dir.path()), Kept::default());
        let layers = Layers::default().with(true, Some("version = 1".to_owned()));
        let mut kept = Kept { trial: Some(layers.clone()), ..Kept::default() };
        kept.save(dir.path()).unwrap();
        assert_eq!(Kept::load(dir.path()), kept);
        assert_eq!(kept.current(), &layers);
        kept.confirm();
        assert_eq!((kept.current(), &kept.trial), (&layers, &None));
        fs::write(dir.path().join(FILE), b"{").unwrap();
        assert_eq!(Kept::load(dir.path()), Kept::default());
    }

    #[test]
    fn what_was_taken_back_is_counted_until_something_else_is() {
        let one = Layers::default().with(false, Some("a".to_owned()));
        let two = Layers::default().with(false, Some("b".to_owned()));
        let mut kept = Kept::default();
        for times in 1..=2 {
            kept.trial = Some(one.clone());
            kept.undo();
            assert_eq!((kept.times_undone(&one), kept.times_undone(&two)), (times, 0));
            assert_eq!(kept.current(), &Layers::default());
        }
        kept.trial = Some(two.clone());
        kept.undo();
        assert_eq!((kept.times_undone(&one), kept.times_undone(&two)), (0, 1));
    }
}
