//! Arguments, settings, start, wait for a signal; no logic.

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};
use tributary_cloud::{
    app,
    cluster::status::Status,
    config::Config,
    engine::command::{Compactor, Migrate},
    enrol::command::{Ca, Enroll},
};
use tributary_shared::{
    config::{ConfigError, Loader},
    program, telemetry,
};

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
    /// Make the files of the fleet's authority.
    #[command(subcommand)]
    Ca(Ca),
    /// Say who may be an edge: tokens, the deny list.
    Enroll(Enroll),
    Migrate(Migrate),
    Compactor(Compactor),
    /// Show nodes, shards and their owners, moves, and which node lags. Asks a running node, and through it all others.
    Status(Status),
}

/// Flags override environment variables (TRIBUTARY_SECTION__KEY), which override the settings file, which overrides the
/// defaults. Listeners are on loopback unless TLS and
/// authentication are set up.
#[derive(Args)]
struct Serve {
    /// Settings file; config/cloud.toml documents every key. An unknown key is an error.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the data is: file:///path (one machine), s3://, gs://bucket/prefix, az://container/prefix (object stores),
    /// memory:// (trials).
    #[arg(long, value_name = "URL")]
    data: Option<String>,
    /// Where the write-ahead log is, if not with the data: a URL of a faster store. Always the same for the same data.
    #[arg(long, value_name = "URL")]
    wal: Option<String>,
    /// Address for MQTT clients and edges; port 0 picks a free one.
    #[arg(long, value_name = "HOST:PORT")]
    mqtt: Option<String>,
    /// Address for Kafka clients.
    #[arg(long, value_name = "HOST:PORT")]
    kafka: Option<String>,
    /// Address for AMQP 0-9-1 clients.
    #[arg(long, value_name = "HOST:PORT")]
    amqp: Option<String>,
    /// Name of this node: makes it a member of the cluster whose data this is. The same after every restart.
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Where clients and the other nodes find this node: a host, or kafka=HOST:PORT,mqtt=HOST:PORT,... (see config/cloud.toml).
    #[arg(long, value_name = "HOST")]
    advertise: Option<String>,
    /// Address for the other nodes of the cluster.
    #[arg(long, value_name = "HOST:PORT")]
    peer: Option<String>,
    /// Address for HTTP: health, metrics, JSON API, console.
    #[arg(long, value_name = "HOST:PORT")]
    admin: Option<String>,
    /// Any setting by its key, as `bridge.receive_maximum=32`; may be repeated.
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
            .flag("--wal", "engine.wal", self.wal.as_ref())?
            .flag("--mqtt", "listen.mqtt", self.mqtt.as_ref())?
            .flag("--kafka", "listen.kafka", self.kafka.as_ref())?
            .flag("--amqp", "listen.amqp", self.amqp.as_ref())?
            .flag("--admin", "listen.admin", self.admin.as_ref())?
            .flag("--peer", "listen.peer", self.peer.as_ref())?
            .flag("--node", "cluster.node", self.node.as_ref())?
            .flag("--advertise", "cluster.advertise", self.advertise.as_ref())?;
        loader.pairs("--set", &self.set)?.load()
    }
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Serve(serve) => run(&serve),
        Command::Ca(ca) => ca.run().and_then(|text| say(&text)),
        Command::Enroll(enroll) => enroll.run().and_then(|text| say(&text)),
        Command::Migrate(migrate) => migrate.run().and_then(|text| say(&text)),
        Command::Compactor(compactor) => compactor.run(|text| drop(say(text))),
        Command::Status(status) => status.run().and_then(|text| say(&text)),
    };
    program::end("tributary-cloud", outcome, |_| ExitCode::FAILURE)
}

/// To stdout.
fn say(text: &str) -> Result<(), Box<dyn std::error::Error>> {
    let mut out = std::io::stdout().lock();
    Ok(out.write_all(text.as_bytes()).and_then(|()| out.flush())?)
}

fn run(serve: &Serve) -> Result<(), Box<dyn std::error::Error>> {
    let config = serve.config()?;
    config.check()?;
    telemetry::init(&config.telemetry)?;
    program::serve(async |stop| Ok(app::serve(config, stop).await?))
}
