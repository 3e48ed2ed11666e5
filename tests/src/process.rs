//! `tributary-edge` and `tributary-cloud` as processes: start, wait for `ready`, kill, start again on the same ports.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::s3;

/// How long a start may take before the test fails.
const READY: Duration = Duration::from_mins(1);

/// For what no event tells of: how long it is waited for, and the time between two looks.
const PATIENCE: Duration = Duration::from_mins(1);
const LOOK: Duration = Duration::from_millis(20);

/// Waits until it `is` so, looking now and then; the test fails if it never is.
pub fn until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(LOOK);
    }
}

/// Runs a program to its end; one that takes longer is killed.
pub fn run(mut command: Command, within: Duration) -> Output {
    let piped = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = piped.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let id = child.id();
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || send.send(child.wait_with_output()));
    let ended = receive.recv_timeout(within).or_else(|_| {
        signal(id, "KILL");
        receive.recv()
    });
    ended.expect("a thread that waits").unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

fn signal(process: u32, name: &str) {
    let _ = Command::new("kill").args(["-s", name, &process.to_string()]).status();
}

/// One running process and what its `ready` line said.
#[derive(Debug)]
pub struct Process {
    child: Child,
    ready: Value,
}

/// An address nobody listens on, for programs that must be told theirs, or come back at the same one. It lies below the ports
/// that the kernel gives to outgoing connections: a client that tries again and again to reach a server which is away
/// could be given the server's own port, and be connected with itself.
pub fn free_address() -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        // Test programs that run at the same time begin at different places.
        let port = 12_000 + (std::process::id().wrapping_mul(97) + step) % 20_000;
        let address = SocketAddr::from(([127, 0, 0, 1], port as u16));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

/// Waits until nobody listens there: the kernel may close the sockets of a process a moment after its end was seen.
fn until_free(addresses: &[SocketAddr]) {
    let free = || addresses.iter().all(|address| TcpListener::bind(address).is_ok());
    until(&format!("nobody else listens on {addresses:?}"), free);
}

/// Where cargo puts the binaries of the profile that runs this test; `TESTED_BINARIES` overrides.
pub fn binary(name: &str) -> PathBuf {
    #[expect(clippy::disallowed_methods, reason = "tests have no settings")]
    let named = std::env::var("TESTED_BINARIES").map(PathBuf::from);
    let directory = named.unwrap_or_else(|_| {
        let exe = std::env::current_exe().expect("own path");
        let deps = exe.parent().expect("a folder");
        if deps.ends_with("deps") { deps.parent().expect("a folder") } else { deps }.to_path_buf()
    });
    let path = directory.join(name);
    assert!(path.exists(), "{} is not built: run `cargo build --bins` first", path.display());
    path
}

impl Process {
    /// Starts `command` and waits for its `ready {json}` line.
    pub fn start(command: Command) -> Self {
        Self::try_start(command).unwrap_or_else(|why| panic!("{why}"))
    }

    /// The same; or why it did not get ready.
    pub fn try_start(mut command: Command) -> Result<Self, String> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{command:?}: {error}"))?;
        let stdout = child.stdout.take().expect("piped");
        let (send, receive) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Some(json) = line.strip_prefix("ready ") {
                    let _ = send.send(serde_json::from_str::<Value>(json).expect("json"));
                }
            }
        });
        if let Ok(ready) = receive.recv_timeout(READY) {
            return Ok(Self { child, ready });
        }
        let _ = child.kill();
        let status = child.wait();
        Err(format!("not ready: {command:?} ended with {status:?}"))
    }

    /// An address of the `ready` line.
    pub fn address(&self, name: &str) -> SocketAddr {
        self.ready[name]
            .as_str()
            .and_then(|text| text.parse().ok())
            .unwrap_or_else(|| panic!("no address `{name}` in {}", self.ready))
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// It has ended by itself, or somebody else killed it.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_some())
    }

    /// Kills without a chance to do anything (SIGKILL), waits for the end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends a signal by its name: `STOP`, `CONT`.
    pub fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }

    /// Asks it to stop (SIGTERM) and returns its exit code.
    pub fn stop(&mut self) -> Option<i32> {
        self.signal("TERM");
        self.child.wait().ok().and_then(|status| status.code())
    }

    /// Resident memory in KiB.
    pub fn rss_kib(&self) -> u64 {
        self.status_kib("VmRSS:")
    }

    /// The most it ever was, in KiB.
    pub fn rss_peak_kib(&self) -> u64 {
        self.status_kib("VmHWM:")
    }

    fn status_kib(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        status
            .unwrap_or_default()
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .and_then(|rest| rest.trim().trim_end_matches(" kB").trim().parse().ok())
            .unwrap_or(0)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A cloud on loopback.
#[derive(Debug)]
pub struct Cloud {
    /// Process.
    pub process: Process,
    /// MQTT and bridge.
    pub mqtt: SocketAddr,
    /// Kafka.
    pub kafka: SocketAddr,
    /// AMQP.
    pub amqp: SocketAddr,
    /// HTTP.
    pub admin: SocketAddr,
    data: String,
    extra: Vec<String>,
    /// Program and first arguments that a restart puts before its own: a tracer, a shell that sets limits.
    pub under: Vec<String>,
}

impl Cloud {
    /// A cloud with its data in `folder`, on free ports.
    pub fn start(folder: &Path) -> Self {
        Self::start_with(&format!("file://{}", folder.display()), &[])
    }

    /// With an engine URL and more arguments.
    pub fn start_with(data: &str, extra: &[&str]) -> Self {
        Self::try_start_under(&[], data, extra).unwrap_or_else(|why| panic!("{why}"))
    }

    /// The same, with a program and first arguments before its own; or why it did not get ready.
    pub fn try_start_under(under: &[&str], data: &str, extra: &[&str]) -> Result<Self, String> {
        let owned = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let (under, extra) = (owned(under), owned(extra));
        let addresses = std::array::from_fn(|_| free_address());
        let process = Process::try_start(Self::command(&under, data, addresses, &extra))?;
        Ok(Self {
            mqtt: process.address("mqtt"),
            kafka: process.address("kafka"),
            amqp: process.address("amqp"),
            admin: process.address("admin"),
            process,
            data: data.to_owned(),
            extra,
            under,
        })
    }

    /// In a bucket of the S3-compatible server at `s3`.
    pub fn start_in_bucket(s3: SocketAddr, prefix: &str) -> Self {
        let endpoint = format!("engine.s3_endpoint=http://{s3}");
        Self::start_with(&format!("s3://test/{prefix}"), &["--set", &endpoint])
    }

    fn command(
        under: &[String],
        data: &str,
        [mqtt, kafka, amqp, admin]: [SocketAddr; 4],
        extra: &[String],
    ) -> Command {
        let mut command = command_under(under, "tributary-cloud");
        command.args(["serve", "--data", data]);
        // Read only where the data lies in a bucket.
        command.env("AWS_ACCESS_KEY_ID", s3::ACCESS_KEY);
        command.env("AWS_SECRET_ACCESS_KEY", s3::SECRET_KEY);
        for (flag, address) in
            [("--mqtt", mqtt), ("--kafka", kafka), ("--amqp", amqp), ("--admin", admin)]
        {
            command.args([flag, &address.to_string()]);
        }
        command.args(extra);
        command
    }

    fn own_command(&self) -> Command {
        let addresses = [self.mqtt, self.kafka, self.amqp, self.admin];
        Self::command(&self.under, &self.data, addresses, &self.extra)
    }

    /// Starts it again on the same data and ports, after [`Process::kill`] or [`Process::stop`].
    #[must_use]
    pub fn restart(mut self) -> Self {
        self.start_again().unwrap_or_else(|why| panic!("{why}"));
        self
    }

    /// The same in place; or why it did not get ready.
    pub fn start_again(&mut self) -> Result<(), String> {
        self.process.kill();
        until_free(&[self.mqtt, self.kafka, self.amqp, self.admin]);
        self.process = Process::try_start(self.own_command())?;
        Ok(())
    }

    /// Starts it and kills it so soon that it may not be ready yet.
    pub fn stumble(&mut self, after: Duration) {
        self.process.kill();
        stumble(self.own_command(), after);
    }
}

/// `under` and then the binary of this name.
fn command_under(under: &[String], name: &str) -> Command {
    let binary = binary(name);
    let Some((first, rest)) = under.split_first() else { return Command::new(binary) };
    let mut command = Command::new(first);
    command.args(rest).arg(binary);
    command
}

fn stumble(mut command: Command, after: Duration) {
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
    let mut child = child.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    std::thread::sleep(after);
    let _ = child.kill();
    let _ = child.wait();
}

/// An edge on loopback.
#[derive(Debug)]
pub struct Edge {
    /// Process.
    pub process: Process,
    /// MQTT.
    pub mqtt: SocketAddr,
    /// HTTP.
    pub admin: SocketAddr,
    id: String,
    folder: PathBuf,
    cloud: Option<SocketAddr>,
    extra: Vec<String>,
    environment: Vec<(String, PathBuf)>,
    /// Program and first arguments that a restart puts before its own: a tracer, a shell that sets limits.
    pub under: Vec<String>,
}

impl Edge {
    /// An edge that keeps its data in `folder`, with or without a cloud.
    pub fn start(folder: &Path, id: &str, cloud: Option<SocketAddr>) -> Self {
        Self::start_with(folder, id, cloud, &[])
    }

    /// With more arguments.
    pub fn start_with(folder: &Path, id: &str, cloud: Option<SocketAddr>, extra: &[&str]) -> Self {
        Self::start_in(folder, id, cloud, extra, &[])
    }

    /// With an environment of its own, too.
    pub fn start_in(
        folder: &Path,
        id: &str,
        cloud: Option<SocketAddr>,
        extra: &[&str],
        environment: &[(&str, PathBuf)],
    ) -> Self {
        let extra: Vec<_> = extra.iter().map(|&argument| argument.to_owned()).collect();
        let own = environment.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
        let (id, environment) = (id.to_owned(), own.collect::<Vec<_>>());
        let addresses = std::array::from_fn(|_| free_address());
        let command = Self::command(&[], folder, &id, cloud, addresses, &extra, &environment);
        let process = Process::start(command);
        let (mqtt, admin) = (process.address("mqtt"), process.address("admin"));
        let (folder, under) = (folder.to_owned(), Vec::new());
        Self { process, mqtt, admin, id, folder, cloud, extra, environment, under }
    }

    fn command(
        under: &[String],
        folder: &Path,
        id: &str,
        cloud: Option<SocketAddr>,
        [mqtt, admin]: [SocketAddr; 2],
        extra: &[String],
        environment: &[(String, PathBuf)],
    ) -> Command {
        let mut command = command_under(under, "tributary-edge");
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        command.arg("serve").arg("--data").arg(folder).args(["--id", id]);
        command.args(["--mqtt", &mqtt.to_string(), "--admin", &admin.to_string()]);
        if let Some(cloud) = cloud {
            command.args(["--cloud", &format!("mqtt://{cloud}")]);
        }
        command.args(extra);
        command
    }

    fn own_command(&self) -> Command {
        let ports = [self.mqtt, self.admin];
        let Self { under, folder, id, cloud, extra, environment, .. } = self;
        Self::command(under, folder, id, *cloud, ports, extra, environment)
    }

    /// Starts it again on the same data and ports.
    #[must_use]
    pub fn restart(mut self) -> Self {
        self.start_again().unwrap_or_else(|why| panic!("{why}"));
        self
    }

    /// The same in place; or why it did not get ready.
    pub fn start_again(&mut self) -> Result<(), String> {
        self.process.kill();
        until_free(&[self.mqtt, self.admin]);
        self.process = Process::try_start(self.own_command())?;
        Ok(())
    }

    /// Starts it and kills it so soon that it may not be ready yet.
    pub fn stumble(&mut self, after: Duration) {
        self.process.kill();
        stumble(self.own_command(), after);
    }
}

/// Body of an HTTP GET on loopback.
pub fn http_get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("connect");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("timeout");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")
        .expect("request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answer");
    answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()
}
