//! The sub-commands that work on data directly: `migrate` and `compactor`.
//!
//! Change here: what an operator types and reads. Not here: what they do (`slate`).

use std::{
    io::Write as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::Args;
use tributary_shared::{
    config::{ConfigError, Loader},
    program, telemetry,
};

use super::{
    EngineError, Settings,
    slate::{
        compactor,
        migrate::{Progress, migrate},
    },
};
use crate::config::Config;

/// Between two lines of progress.
const SAID_EVERY: Duration = Duration::from_secs(1);

/// Copy all data from one place to another, so that a cluster can serve what was a single node's.
///
/// Nothing may serve either place meanwhile. If it is broken off, start it again: it goes on where it was. Half a copy is not
/// served. Edges, clients and groups find everything as it was.
///
/// Example: tributary-cloud migrate file:///var/lib/tributary s3://bucket/tributary
#[derive(Debug, Args)]
pub struct Migrate {
    /// Where the data is: file:///path, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix.
    #[arg(value_name = "FROM")]
    from: String,
    /// Where it is to be: an empty place.
    #[arg(value_name = "TO")]
    to: String,
    #[command(flatten)]
    settings: Flags,
}

/// Compact the tables of all shards in a process of its own, for nodes with `engine.compactor = "elsewhere"`.
///
/// One for the data; a second one does no harm. It holds nothing that matters: start it anywhere, stop it at any time.
///
/// Example: tributary-cloud compactor --data s3://bucket/tributary
#[derive(Debug, Args)]
pub struct Compactor {
    /// Where the data is; it must be there already.
    #[arg(long, value_name = "URL")]
    data: String,
    #[command(flatten)]
    settings: Flags,
}

impl Compactor {
    /// Runs until SIGTERM or SIGINT; `said` hears once it compacts.
    pub fn run(&self, said: impl FnOnce(&str)) -> Result<(), Box<dyn std::error::Error>> {
        let config = self.settings.load()?;
        telemetry::init(&config.telemetry)?;
        let url = &self.data;
        let began = |shards| said(&format!("compacting {shards} shards of {url}\n"));
        program::serve(async |stop| Ok(compactor::alone(url, &config.engine, stop, began).await?))
    }
}

/// As for `serve`: only `engine` counts.
#[derive(Debug, Args)]
struct Flags {
    /// Settings file, as for `serve`.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Any setting by its key, as `engine.s3_endpoint=http://127.0.0.1:9000`; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl Flags {
    fn load(&self) -> Result<Config, ConfigError> {
        let mut loader = Loader::<Config>::new();
        if let Some(path) = &self.config {
            loader = loader.file(path)?;
        }
        loader.environment()?.pairs("--set", &self.set)?.load()
    }
}

impl Migrate {
    /// Does it; says what was done. How far it is goes to stderr.
    pub fn run(&self) -> Result<String, Box<dyn std::error::Error>> {
        let settings = self.settings.load()?.engine;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        Ok(runtime.block_on(self.copy(&settings))?)
    }

    async fn copy(&self, settings: &Settings) -> Result<String, EngineError> {
        let began = Instant::now();
        let mut said = began;
        let told = |progress: Progress| {
            if said.elapsed() >= SAID_EVERY {
                said = Instant::now();
                let line = line(&progress, began.elapsed());
                // A terminal that is gone does not stop the copy.
                let _ = writeln!(std::io::stderr(), "{line}");
            }
        };
        let done = migrate(&self.from, &self.to, settings, told).await?;
        let (line, to) = (line(&done, began.elapsed()), &self.to);
        Ok(format!(
            "{line}\n{to} has all of it, compared byte by byte; start nodes with --data {to}, and keep {} until you have looked.\n",
            self.from
        ))
    }
}

fn line(progress: &Progress, since: Duration) -> String {
    let mib = |bytes: u64| bytes as f64 / f64::from(1024 * 1024);
    let (done, all) = (mib(progress.bytes), mib(progress.bytes_all));
    let rate = done / since.as_secs_f64().max(0.001);
    format!(
        "{} of {} objects ({} were there), {done:.1} of {all:.1} MiB, {rate:.1} MiB/s",
        progress.objects, progress.objects_all, progress.kept
    )
}
