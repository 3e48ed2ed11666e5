//! The arguments of `serve`, which other commands take too: where settings come from.
//!
//! Change here: a flag for a setting. Not here: settings (`config`).

use std::path::{Path, PathBuf};

use clap::Args;
use toml::Table;
use tributary_shared::config::{ConfigError, Loader};

use crate::{config::Config, pushed};

/// Flags override environment variables (TRIBUTARY_SECTION__KEY), which override the settings file, which overrides the
/// defaults.
#[derive(Debug, Args, Clone, Default)]
pub struct Serve {
    /// Settings file; config/edge.toml documents every key. An unknown key is an error.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Folder for everything that is kept: one SQLite file, made if missing [default: /var/lib/tributary-edge].
    #[arg(long, value_name = "DIR")]
    pub data: Option<String>,
    /// Name of this edge, unique at its cloud.
    #[arg(long, value_name = "NAME")]
    pub id: Option<String>,
    /// Address for MQTT clients; port 0 picks a free one [default: 127.0.0.1:1883].
    #[arg(long, value_name = "HOST:PORT")]
    pub mqtt: Option<String>,
    /// The cloud, as mqtt://host:port. Without it the edge works alone and keeps nothing to send.
    #[arg(long, value_name = "URL")]
    pub cloud: Option<String>,
    /// Address for HTTP: the page for people, /health, /metrics, /status [default: 127.0.0.1:8081].
    #[arg(long, value_name = "HOST:PORT")]
    pub admin: Option<String>,
    /// Any setting by its key, as `store.commit_window_ms=20`; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

impl Serve {
    /// All settings, those that the cloud has pushed included as far as they hold; read again at each call.
    pub fn config(&self) -> Result<Config, ConfigError> {
        let plain = self.with(&[])?;
        let pushed = pushed::candidates(Path::new(&plain.data));
        let mut good = pushed.iter().filter_map(|tables| self.with(tables).ok());
        Ok(good.find(|config| config.check().is_ok()).unwrap_or(plain))
    }

    /// All settings with `pushed` ones after the file.
    pub fn with(&self, pushed: &[Table]) -> Result<Config, ConfigError> {
        let mut loader = Loader::new();
        if let Some(path) = &self.config {
            loader = loader.file(path)?;
        }
        for table in pushed {
            loader = loader.table("settings from the cloud", table.clone())?;
        }
        loader = loader
            .environment()?
            .flag("--data", "data", self.data.as_ref())?
            .flag("--id", "id", self.id.as_ref())?
            .flag("--mqtt", "listen.mqtt", self.mqtt.as_ref())?
            .flag("--cloud", "uplink.cloud", self.cloud.as_ref())?
            .flag("--admin", "listen.admin", self.admin.as_ref())?;
        loader.pairs("--set", &self.set)?.load()
    }
}
