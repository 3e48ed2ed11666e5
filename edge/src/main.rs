//! Arguments, settings, start, wait for a signal; no logic.

use std::{convert::Infallible, path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tributary_edge::{app, config::Config};
use tributary_shared::{
    config::{ConfigError, Loader},
    telemetry,
};

/// An MQTT 3.1.1 and 5 broker for gateways. It acknowledges a message when it is on disk, serves local subscribers with
/// or without an uplink, and brings every acknowledged message to tributary-cloud exactly once.
#[derive(Parser)]
#[command(name = "tributary-edge", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the edge until SIGTERM or SIGINT. Prints one line `ready {addresses as JSON}` when it serves.
    ///
    /// Example: tributary-edge serve --data /var/lib/tributary-edge --id gw1 --cloud mqtt://127.0.0.1:1884
    Serve(Serve),
}

/// Flags override environment variables (TRIBUTARY_SECTION__KEY), which override the settings file, which overrides the
/// defaults.
#[derive(Args)]
struct Serve {
    /// Settings file; config/edge.toml documents every key. An unknown key is an error.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder for everything that is kept: one SQLite file, made if missing [default: /var/lib/tributary-edge].
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
    /// Name of this edge, unique at its cloud.
    #[arg(long, value_name = "NAME")]
    id: Option<String>,
    /// Address for MQTT clients; port 0 picks a free one [default: 127.0.0.1:1883].
    #[arg(long, value_name = "HOST:PORT")]
    mqtt: Option<String>,
    /// The cloud, as mqtt://host:port. Without it the edge works alone and keeps nothing to send.
    #[arg(long, value_name = "URL")]
    cloud: Option<String>,
    /// Address for HTTP: /health, /metrics, /status [default: 127.0.0.1:8081].
    #[arg(long, value_name = "HOST:PORT")]
    admin: Option<String>,
    /// Any setting by its key, as `store.commit_window_ms=20`; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl Serve {
    fn config(&self) -> Result<Config, ConfigError> {
        let mut loader = Loader::new();
        if let Some(path) = &self.config {
            loader = loader.file(path)?;
        }
        loader = loader
            .environment()?
            .flag("--data", "data", self.data.as_ref())?
            .flag("--id", "id", self.id.as_ref())?
            .flag("--mqtt", "listen.mqtt", self.mqtt.as_ref())?
            .flag("--cloud", "uplink.cloud", self.cloud.as_ref())?
            .flag("--admin", "listen.admin", self.admin.as_ref())?;
        for pair in &self.set {
            let (key, value) = pair.split_once('=').ok_or_else(|| ConfigError::Key {
                name: format!("--set {pair}"),
                message: "expected KEY=VALUE".to_owned(),
            })?;
            loader = loader.flag(&format!("--set {key}"), key, Some(value))?;
        }
        loader.load()
    }
}

fn main() -> ExitCode {
    let Command::Serve(serve) = Arguments::parse().command;
    match run(&serve) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            fail(&*error);
            ExitCode::FAILURE
        }
    }
}

fn run(serve: &Serve) -> Result<(), Box<dyn std::error::Error>> {
    let config = serve.config()?;
    telemetry::init(&config.telemetry)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        let stop = CancellationToken::new();
        let signals = stop_on_signals(stop.clone())?;
        tokio::select! {
            outcome = app::serve(config, stop) => Ok(outcome?),
            never = signals => match never {},
        }
    });
    // Whatever still blocks a thread has nothing left to promise.
    runtime.shutdown_timeout(Duration::from_millis(200));
    outcome
}

/// Cancels `stop` at SIGTERM or SIGINT.
fn stop_on_signals(stop: CancellationToken) -> std::io::Result<impl Future<Output = Infallible>> {
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! { _ = term.recv() => {}, _ = interrupt.recv() => {} }
        tracing::info!("stopping");
        stop.cancel();
        std::future::pending().await
    })
}

/// One sentence for the person who started it.
#[expect(clippy::print_stderr, reason = "the last word of a program that could not start")]
fn fail(error: &dyn std::error::Error) {
    eprintln!("tributary-edge: {error}");
}
