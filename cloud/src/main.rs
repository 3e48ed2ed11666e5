//! Arguments, settings, start, wait for a signal; no logic.

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tributary_cloud::{app, config};

/// One durable log on an object store, read and written with Kafka, AMQP 0-9-1 and MQTT clients.
#[derive(Parser)]
#[command(name = "tributary-cloud", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the cloud until SIGTERM or SIGINT. Prints one line `ready {addresses as JSON}` when all listeners serve.
    Serve(Serve),
}

/// Flags override the settings file, which overrides the defaults. Listeners are on loopback unless TLS and
/// authentication are set up.
#[derive(Args)]
struct Serve {
    /// Settings file; config/cloud.toml documents every key. An unknown key is an error.
    #[arg(long, value_name = "FILE")]
    config: Option<String>,
    /// Where the data is: file:///path (one machine), s3://bucket/prefix (object store), memory:// (trials).
    #[arg(long, value_name = "URL")]
    data: Option<String>,
    /// Address for MQTT clients and edges; port 0 picks a free one.
    #[arg(long, value_name = "HOST:PORT")]
    mqtt: Option<String>,
    /// Address for Kafka clients.
    #[arg(long, value_name = "HOST:PORT")]
    kafka: Option<String>,
    /// Address for AMQP 0-9-1 clients.
    #[arg(long, value_name = "HOST:PORT")]
    amqp: Option<String>,
    /// Address for HTTP: health, metrics, JSON API, console.
    #[arg(long, value_name = "HOST:PORT")]
    admin: Option<String>,
    /// Any setting by its key, as `bridge.receive_maximum=32`; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl Serve {
    fn config(&self) -> Result<config::Config, config::ConfigError> {
        let mut config = config::load(self.config.as_deref(), &self.set)?;
        let listen = &mut config.listen;
        for (flag, setting) in [
            (&self.data, &mut config.data),
            (&self.mqtt, &mut listen.mqtt),
            (&self.kafka, &mut listen.kafka),
            (&self.amqp, &mut listen.amqp),
            (&self.admin, &mut listen.admin),
        ] {
            if let Some(value) = flag {
                setting.clone_from(value);
            }
        }
        Ok(config)
    }
}

fn main() -> ExitCode {
    let Command::Serve(serve) = Arguments::parse().command;
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()),
        )
        .init();
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
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        let stop = CancellationToken::new();
        let (mut term, mut int) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let stopped = stop.clone();
        let signals = async move {
            tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
            stopped.cancel();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            outcome = app::serve(config, stop) => Ok(outcome?),
            () = signals => Ok(()),
        }
    });
    // Whatever still blocks a thread has nothing left to promise.
    runtime.shutdown_timeout(std::time::Duration::from_millis(200));
    outcome
}

/// One sentence for the person who started it.
#[expect(clippy::print_stderr, reason = "the last word of a program that could not start")]
fn fail(error: &dyn std::error::Error) {
    eprintln!("tributary-cloud: {error}");
}
