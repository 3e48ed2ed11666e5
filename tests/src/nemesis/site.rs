//! What a run is about: the store, nodes, edges, and the wires between them, as processes of their own.
//!
//! In: how many nodes. Out: what can be done to them. Every node reaches the store over a wire of its own, and is reached by the others
//! over another; edges and MQTT clients come in by a front that takes any node, as a load balancer would.
//! Change here: what takes part. Not here: what is done to it, and when (`fault`).

use std::{
    net::SocketAddr,
    path::Path,
    process::Command,
    sync::{Arc, Mutex},
};

use tempfile::TempDir;

use super::wire::{Held, Wire, who_holds};
use crate::{
    Cloud, Edge,
    bridge::{CLOUD, EDGE},
    process::{Process, binary, free_address},
    s3::{Control, Faults},
    say,
};

/// Shards of the log: each node of three owns two.
const SHARDS: &str = "engine.shards=6";
/// A flush every 50 ms: many moments to fail in, and clients have few requests in flight.
const PROFILE: &str = "engine.profile=latency";
/// Of a node whose clock jumps: seconds to add, read at each look at the clock.
const CLOCK: &str = "clock";

/// One node.
#[derive(Debug)]
pub(super) struct Node {
    /// Its process.
    pub(super) cloud: Cloud,
    /// Its way to the store.
    pub(super) store: Wire,
    /// The others' way to it.
    pub(super) peer: Option<Wire>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Site {
    _server: Process,
    pub(super) control: Control,
    pub(super) nodes: Vec<Node>,
    pub(super) edges: Vec<Edge>,
    /// Any node, over MQTT.
    pub(super) front: SocketAddr,
    /// Clocks of nodes can be moved.
    pub(super) clocks: bool,
    processes: Arc<Mutex<Vec<u32>>>,
    folder: TempDir,
}

impl Site {
    /// `count` nodes: one is a single node, more are a cluster. What they say goes to `log`.
    pub(super) fn start(count: usize, log: &Path) -> Result<Self, String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        std::fs::create_dir_all(log).map_err(|error| error.to_string())?;
        let server = Process::try_start(Command::new(binary("s3-server")))?;
        let library = faketime();
        if library.is_none() {
            say("SKIP jumps of clocks: no libfaketime here (Debian package faketime)");
        }
        let processes = Arc::<Mutex<Vec<u32>>>::default();
        let mut nodes = Vec::new();
        for index in 0..count {
            let store = Wire::to(server.address("s3"));
            let place = free_address();
            let known = processes.clone();
            let find = move |from| who_holds(from, &known.lock().expect("processes"));
            let peer = (count > 1).then(|| Wire::start(vec![place], Box::new(find)));
            let mut settings = vec![SHARDS.to_owned(), PROFILE.to_owned()];
            settings.push(format!("engine.s3_endpoint=http://{}", store.address));
            if let Some(wire) = &peer {
                settings.push(format!("cluster.node=n{}", index + 1));
                settings.push(format!("listen.peer={place}"));
                settings.push(format!("cluster.advertise=peer={}", wire.address));
            }
            let mut extra: Vec<&str> = CLOUD.to_vec();
            settings.iter().for_each(|setting| extra.extend(["--set", setting]));
            let said = log.join(format!("n{}.log", index + 1));
            let mut under = format!("exec \"$@\" 2>>{}", said.display());
            if let Some(library) = &library {
                let clock = folder.path().join(format!("{CLOCK}{index}"));
                std::fs::write(&clock, "+0\n").map_err(|error| error.to_string())?;
                under = format!(
                    "export LD_PRELOAD={library} FAKETIME_TIMESTAMP_FILE={} FAKETIME_NO_CACHE=1 FAKETIME_DONT_FAKE_MONOTONIC=1; {}",
                    clock.display(),
                    under
                );
            }
            let under = ["sh", "-c", under.as_str(), "sh"];
            let cloud = Cloud::try_start_under(&under, "s3://test/nemesis", &extra)?;
            processes.lock().expect("processes").push(cloud.process.id());
            nodes.push(Node { cloud, store, peer });
        }
        let front =
            Wire::start(nodes.iter().map(|node| node.cloud.mqtt).collect(), Box::new(|_| None))
                .address;
        let edges = ["gw1", "gw2"]
            .map(|id| Edge::start_with(&folder.path().join(id), id, Some(front), &EDGE));
        Ok(Self {
            control: Control(server.address("control")),
            _server: server,
            nodes,
            edges: edges.into(),
            front,
            clocks: library.is_some(),
            processes,
            folder,
        })
    }

    /// For Kafka clients.
    pub(super) fn brokers(&self) -> String {
        let all: Vec<_> = self.nodes.iter().map(|node| node.cloud.kafka.to_string()).collect();
        all.join(",")
    }

    /// For AMQP clients.
    pub(super) fn amqp(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(|node| node.cloud.amqp).collect()
    }

    /// Starts a node that has ended.
    pub(super) fn start_again(&mut self, node: usize) -> Result<(), String> {
        self.nodes[node].cloud.start_again()?;
        self.processes.lock().expect("processes")[node] = self.nodes[node].cloud.process.id();
        Ok(())
    }

    /// The node's clock is so many seconds off from now on.
    pub(super) fn move_clock(&self, node: usize, seconds: i64) {
        let clock = self.folder.path().join(format!("{CLOCK}{node}"));
        std::fs::write(clock, format!("{seconds:+}\n")).expect("a clock");
    }

    /// What the store does wrong from now on.
    pub(super) fn store(&self, faults: &Faults) {
        self.control.set(faults).expect("the store's control port");
    }

    /// `from` reaches `to` no more, or is not answered.
    pub(super) fn cut(&self, from: usize, to: usize, held: Held) {
        if let Some(wire) = &self.nodes[to].peer {
            wire.hold(Some(from), held);
        }
    }

    /// All wires carry, the store is good, clocks are right.
    pub(super) fn heal(&self) {
        for (index, node) in self.nodes.iter().enumerate() {
            node.store.heal();
            node.peer.iter().for_each(Wire::heal);
            if self.clocks {
                self.move_clock(index, 0);
            }
        }
        self.store(&Faults::default());
    }

    /// Nodes that do not run.
    pub(super) fn fallen(&mut self) -> Vec<usize> {
        let nodes = self.nodes.iter_mut().enumerate();
        nodes.filter_map(|(index, node)| node.cloud.process.has_ended().then_some(index)).collect()
    }
}

/// The library that moves a process's clock, if this machine has it.
fn faketime() -> Option<String> {
    let found = Command::new("sh")
        .args(["-c", "ls /usr/lib/*/faketime/libfaketimeMT.so.1 2>/dev/null | head -1"])
        .output()
        .ok()?;
    let path = String::from_utf8(found.stdout).ok()?.trim().to_owned();
    (!path.is_empty()).then_some(path)
}
