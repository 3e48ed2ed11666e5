//! Arguments, settings, start, wait for a signal; no logic.

use std::{io::Write as _, path::PathBuf, process::ExitCode, sync::Arc};

use clap::{Args, Parser, Subcommand};
use tokio::sync::watch;
use tributary_edge::{
    app::{self, AppError},
    command::{
        Failed, check, doctor,
        enrol::Enrol,
        passwd::{self, Change},
        publish::Pub,
        quarantine::Quarantine,
        serve::Serve,
        status::Status,
        sub::Sub,
    },
    config::Config,
    pushed,
};
use tributary_shared::{config::ConfigError, program, telemetry};

/// Settings that do not mend themselves: a service manager need not start us again (EX_CONFIG of sysexits.h).
const SETTINGS: u8 = 78;

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
    /// Run the edge.
    ///
    /// Until SIGTERM or SIGINT. Prints one line `ready {addresses as JSON}` when it serves. SIGHUP: access rules, names and
    /// certificates are read again.
    ///
    /// Example: tributary-edge serve --data /var/lib/tributary-edge --id gw1 --cloud mqtt://127.0.0.1:1884
    Serve(Serve),
    /// Say in plain words what the settings would do.
    ///
    /// What listens where, who gets in, who may do what. Starts nothing; an error (exit code 1, or 78 for bad settings) is
    /// what would keep `serve` from starting.
    ///
    /// Example: tributary-edge check --config /etc/tributary/edge.toml
    Check(Serve),
    /// Add, change or delete a user of a password file.
    ///
    /// A person's password is read from the terminal, or one line of stdin; a device's secret is made and printed, once. A
    /// running edge takes the change within ten seconds, or at SIGHUP.
    ///
    /// Example: tributary-edge passwd --file /etc/tributary/users --device gw-7
    Passwd(Passwd),
    /// Look at everything an edge needs, and say what to do.
    ///
    /// Settings, clock, data folder, free space, flushes to disk, certificates, ports, the way to the cloud. One line each:
    /// OK, WARN or FAIL. Exit code 1 if anything is FAIL. Changes nothing; best run as the user of the service.
    ///
    /// Example: tributary-edge doctor --config /etc/tributary/edge.toml
    Doctor(Serve),
    /// Get this edge's certificate from its cloud, with a one-time token.
    ///
    /// Makes a key on this machine, and stores it with the certificate and the fleet's authority in the data folder. Run it
    /// as the user of the service.
    ///
    /// Example: tributary-cloud enroll token --edge gw7 | ssh gw7 tributary-edge enrol --data /var/lib/tributary-edge -
    Enrol(Enrol),
    /// Show what a running edge does, live.
    ///
    /// Connections, rates, queues, what waits for the cloud and how long that will take, disk, problems. Reads the edge's
    /// admin port.
    ///
    /// Example: tributary-edge status --admin 127.0.0.1:8081
    Status(Status),
    /// What the cloud refused for good: list, export, retry, drop.
    ///
    /// Works on the data folder, while the edge runs or not.
    ///
    /// Example: tributary-edge quarantine export --data /var/lib/tributary-edge
    Quarantine(Quarantine),
    /// Print messages as they come, with mosquitto_sub's flags.
    Sub(Sub),
    /// Publish messages, with mosquitto_pub's flags.
    Pub(Pub),
}

#[derive(Args)]
struct Passwd {
    /// The password file, `auth.password_file` of the settings; made if missing.
    #[arg(long, value_name = "FILE")]
    file: PathBuf,
    /// Make a secret for a device instead of asking for a person's password.
    #[arg(long, conflicts_with = "delete")]
    device: bool,
    /// Store the person's password for SCRAM-SHA-256 (8,192 iterations), by which it is proved without being sent.
    #[arg(long, conflicts_with_all = ["delete", "device"])]
    scram: bool,
    /// Delete the user.
    #[arg(long)]
    delete: bool,
    /// Name.
    user: String,
}

impl Passwd {
    fn run(&self) -> Result<(), Box<dyn std::error::Error>> {
        let change = match (self.device, self.scram, self.delete) {
            (true, ..) => Change::Device,
            (_, true, _) => Change::Scram,
            (.., true) => Change::Delete,
            _ => Change::Person,
        };
        say(&(passwd::change(&self.file, &self.user, change)? + "\n"))
    }
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Serve(serve) => run(&serve),
        Command::Check(serve) => check(&serve),
        Command::Passwd(passwd) => passwd.run(),
        Command::Enrol(enrol) => client(enrol.run()),
        Command::Doctor(serve) => client(doctor::run(&serve)),
        Command::Status(status) => client(status.run()),
        Command::Quarantine(quarantine) => quarantine.run().map_err(Into::into),
        Command::Sub(sub) => client(sub.run()),
        Command::Pub(publish) => client(publish.run()),
    };
    program::end("tributary-edge", outcome, |error| code(error).into())
}

/// The exit code that an error means.
fn code(error: &(dyn std::error::Error + 'static)) -> u8 {
    if let Some(failed) = error.downcast_ref::<Failed>() {
        return failed.code;
    }
    let settings = match error.downcast_ref() {
        Some(AppError::Config(_) | AppError::Exposed(_)) => true,
        Some(AppError::Access(error)) => error.is_setting(),
        Some(AppError::Listen(error)) => error.is_setting(),
        Some(_) => false,
        None => error.is::<ConfigError>(),
    };
    if settings { SETTINGS } else { 1 }
}

fn run(serve: &Serve) -> Result<(), Box<dyn std::error::Error>> {
    let config = serve.config()?;
    telemetry::init(&config.telemetry)?;
    program::serve(async |stop| {
        let (send, changed) = watch::channel(config.clone());
        let reloads = program::at_hangup(|| reload(serve, &send))?;
        tokio::select! {
            outcome = app::serve(config, compose(serve), changed, stop) => Ok(outcome?),
            never = reloads => match never {},
        }
    })
}

/// Settings with those that come from the cloud.
fn compose(serve: &Serve) -> pushed::Compose {
    let serve = serve.clone();
    Arc::new(move |tables| serve.with(tables).map_err(|error| error.to_string()))
}

/// Reads the settings again; bad ones change nothing.
fn reload(serve: &Serve, send: &watch::Sender<Config>) {
    let config = serve.config().map_err(|error| error.to_string());
    match config.and_then(|config| config.check().map(|()| config)) {
        Ok(config) => drop(send.send_replace(config)),
        Err(error) => tracing::error!(%error, "settings not read again"),
    }
}

fn check(serve: &Serve) -> Result<(), Box<dyn std::error::Error>> {
    let config = serve.config()?;
    telemetry::init(&config.telemetry)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    say(&runtime.block_on(check::report(&config))?)
}

/// Runs a command that is a client.
fn client(
    command: impl Future<Output = Result<(), Failed>>,
) -> Result<(), Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(command)?)
}

/// To stdout.
fn say(text: &str) -> Result<(), Box<dyn std::error::Error>> {
    let mut out = std::io::stdout().lock();
    Ok(out.write_all(text.as_bytes()).and_then(|()| out.flush())?)
}
