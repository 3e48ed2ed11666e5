//! What is built for gateways (`scripts/build-edge`) keeps its promises on their processors, which are emulated: devices
//! publish, it syncs to a cloud of this machine, is killed in the middle, goes on; so does the cloud.
//!
//! Not here: how fast a gateway is (an emulator says nothing about that), packages (`packages.rs`).

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use rdkafka::Message as _;
use tributary_tests::{
    Checker, Cloud, Device,
    checker::{Verdict, payload},
    kafka::Reader,
    process::{Process, free_address},
    say,
};

const MESSAGES: u64 = 4_000;
const WINDOW: usize = 50;

/// A kill each time so many more have been acknowledged.
const KILL_EVERY: usize = 600;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace").to_path_buf()
}

/// The program for `target` and what runs it, or why it cannot be had.
fn built(target: &str, emulator: &str) -> Result<Vec<PathBuf>, String> {
    let name = format!("tributary-edge-{}-{target}", env!("CARGO_PKG_VERSION"));
    let path = root().join("dist").join(&name);
    if !path.exists() {
        return Err(format!(
            "no dist/{name}: scripts/build-edge --test {target} makes and tests it"
        ));
    }
    let native = target == std::env::consts::ARCH.replace('_', "-");
    if native {
        return Ok(vec![path]);
    }
    let found = Command::new(emulator).arg("--version").output().is_ok();
    let why = || format!("no {emulator}: scripts/install edge brings it");
    if found { Ok(vec![emulator.into(), path]) } else { Err(why()) }
}

struct Gateway {
    process: Process,
    program: Vec<PathBuf>,
    folder: PathBuf,
    cloud: SocketAddr,
    mqtt: SocketAddr,
}

impl Gateway {
    fn start(program: &[PathBuf], folder: &Path, cloud: SocketAddr, mqtt: SocketAddr) -> Self {
        let mut command = Command::new(&program[0]);
        command.args(&program[1..]).arg("serve").arg("--data").arg(folder);
        command.args(["--id", "gw1", "--admin", "127.0.0.1:0", "--mqtt", &mqtt.to_string()]);
        command.args(["--cloud", &format!("mqtt://{cloud}")]);
        command.args(["--set", "uplink.backoff_min_ms=50", "--set", "uplink.backoff_max_ms=500"]);
        let process = Process::start(command);
        let mqtt = process.address("mqtt");
        let (program, folder) = (program.to_vec(), folder.to_path_buf());
        Self { process, program, folder, cloud, mqtt }
    }

    fn restart(mut self) -> Self {
        self.process.kill();
        Self::start(&self.program, &self.folder, self.cloud, self.mqtt)
    }
}

/// Kills the edge with SIGKILL while acknowledgements are under way, and the cloud by turns.
fn keeps_its_promises(target: &str, emulator: &str) {
    let program = match built(target, emulator) {
        Ok(program) => program,
        Err(why) => return say(&format!("SKIP {why}")),
    };
    let folder = tempfile::tempdir().expect("folder");
    let mut cloud = Cloud::start(&folder.path().join("cloud"));
    let any = free_address();
    let mut edge = Gateway::start(&program, &folder.path().join("edge"), cloud.mqtt, any);
    let mut checker = Checker::default();
    let (mut first, mut kills) = (0, 0);
    while first < MESSAGES {
        let mut device = Device::connect(edge.mqtt, "d").expect("connect");
        let mut acked = 0;
        let mut sent = Vec::new();
        let messages = (first..MESSAGES).map(|seq| {
            sent.push(seq);
            ("load/d".to_owned(), payload("d", seq).into())
        });
        let outcome = device.publish_all(messages, WINDOW, |index| {
            checker.acked("d", first + index as u64);
            acked += 1;
            if acked == KILL_EVERY {
                edge.process.kill();
            }
        });
        sent.iter().for_each(|&seq| checker.sent("d", seq));
        first += acked as u64;
        if outcome.is_err() {
            kills += 1;
            if kills % 2 == 0 {
                cloud = cloud.restart();
            }
            edge = edge.restart();
        }
    }
    let reader = Reader::new(cloud.kafka, "mqtt.messages");
    while !checker.complete() {
        let Some(message) = reader.next(Duration::from_mins(1)) else { break };
        checker.read(message.payload().unwrap_or_default());
    }
    // What is still on its way would be a duplicate.
    while let Some(message) = reader.next(Duration::from_secs(2)) {
        checker.read(message.payload().unwrap_or_default());
    }
    assert_eq!(
        checker.verdict(),
        Verdict::default(),
        "{target}: of {} acked",
        checker.acked_count()
    );
    assert_eq!((checker.acked_count() as u64, edge.process.stop()), (MESSAGES, Some(0)));
    say(&format!(
        "{target}: {MESSAGES} messages, {kills} kills: none lost, repeated or out of order"
    ));
}

#[test]
fn aarch64_loses_and_repeats_nothing() {
    keeps_its_promises("aarch64", "qemu-aarch64-static");
}

#[test]
fn armv7_loses_and_repeats_nothing() {
    keeps_its_promises("armv7", "qemu-arm-static");
}

#[test]
fn x86_64_loses_and_repeats_nothing() {
    keeps_its_promises("x86-64", "qemu-x86_64-static");
}
