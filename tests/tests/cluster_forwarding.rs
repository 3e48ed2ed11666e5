//! Clients and edges may come to any node of a cluster: what serves them elsewhere is reached through it.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::{
    io::Write as _,
    net::SocketAddr,
    path::Path,
    process::{Command, Output},
};

use tributary_shared::mqtt::{Qos, Version, packet::Publish};
use tributary_tests::{Cloud, Device, Edge, device::connect_packet, http_get, process::until};

const QUICK: [&str; 4] =
    ["--set", "uplink.backoff_min_ms=20", "--set", "uplink.backoff_max_ms=200"];

/// Connects to each of the nodes, publishes at each and consumes at each; the arguments are their ports.
const PIKA: &str = r#"
import sys, pika
ports = [int(port) for port in sys.argv[1:]]
def channel(port):
    connection = pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", port, heartbeat=30))
    return connection, connection.channel()
open_ = [channel(port) for port in ports]
open_[0][1].queue_declare("work", durable=True)
for port, (_, publisher) in zip(ports, open_):
    publisher.confirm_delivery()
    publisher.basic_publish("", "work", str(port).encode(), pika.BasicProperties(delivery_mode=2))
got = []
for _, consumer in open_:
    method, _, body = consumer.basic_get("work")
    got.append(int(body))
    consumer.basic_ack(method.delivery_tag)
assert got == ports, got
for connection, _ in open_:
    connection.close()
print("ok")
"#;

/// Not captured: what was left out must be seen.
fn note(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Three nodes over one folder that share a secret.
fn cluster(folder: &Path) -> Vec<Cloud> {
    let secret = folder.join("secret");
    std::fs::write(&secret, "0123456789abcdef0123456789abcdef").unwrap();
    let data = format!("file://{}", folder.join("data").display());
    let secret = format!("peer.secret={}", secret.display());
    let node = |name: &str| {
        Cloud::start_with(&data, &["--node", name, "--set", &secret, "--set", "engine.shards=8"])
    };
    let nodes: Vec<_> = ["n1", "n2", "n3"].map(node).into();
    // Each has some of the shards: then each is the wrong one for somebody.
    until("all nodes are ready", || {
        nodes.iter().all(|node| http_get(node.admin, "/metrics").contains("tributary_ready 1"))
    });
    // Their shares: from then on nothing moves, and no client is sent away for that.
    until("the shards are spread", || {
        let count = |node: &Cloud, what: &str| {
            metric(node.admin, &format!("tributary_cluster_{what}_total "))
        };
        let served = |node| count(node, "taken").saturating_sub(count(node, "released"));
        let mut served: Vec<_> = nodes.iter().map(served).collect();
        served.sort_unstable();
        served == [2, 3, 3]
    });
    nodes
}

/// A value of a metrics page; 0 if it is not there.
fn metric(admin: SocketAddr, name: &str) -> u64 {
    let page = http_get(admin, "/metrics");
    let value = page.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    value.unwrap_or(0)
}

fn mosquitto(program: &str, at: SocketAddr, arguments: &str) -> Output {
    let port = at.port().to_string();
    let mut command = Command::new(program);
    command.args(["-h", "127.0.0.1", "-p", &port, "-V", "mqttv5"]).args(arguments.split(' '));
    command.output().unwrap()
}

fn mosquitto_works(nodes: &[Cloud]) {
    if Command::new("mosquitto_sub").arg("--help").output().is_err() {
        return note("SKIP MQTT client mosquitto missing: no mosquitto_sub");
    }
    for (n, node) in nodes.iter().enumerate() {
        let out = mosquitto("mosquitto_pub", node.mqtt, &format!("-q 1 -r -t kept/{n} -m m{n}"));
        assert!(out.status.success(), "node {n}: {out:?}");
    }
    for (n, node) in nodes.iter().enumerate() {
        let out = mosquitto("mosquitto_sub", node.mqtt, "-q 1 -t kept/# -C 3 -W 30");
        let mut got: Vec<_> = std::str::from_utf8(&out.stdout).unwrap().lines().collect();
        got.sort_unstable();
        assert_eq!(got, ["m0", "m1", "m2"], "node {n}: {out:?}");
    }
}

fn pika_works(nodes: &[Cloud]) {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let to = here.join("../target/clients/amqp");
    let said = Command::new(here.join("clients/amqp/install")).arg(&to).output().unwrap();
    if !String::from_utf8_lossy(&said.stdout).lines().any(|line| line == "python ok") {
        return note("SKIP amqp client pika: it cannot be installed");
    }
    let ports = nodes.iter().map(|node| node.amqp.port().to_string());
    let mut python = Command::new(to.join("venv/bin/python"));
    let out = python.args(["-c", PIKA]).args(ports).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn whoever_comes_to_a_wrong_node_is_served_by_the_right_one() {
    let folder = tempfile::tempdir().unwrap();
    let nodes = cluster(folder.path());
    mosquitto_works(&nodes);
    pika_works(&nodes);

    // Edges that come to three nodes; a client of each node hears all of them.
    let listeners = nodes.iter().enumerate().map(|(n, node)| {
        let connect = connect_packet(&format!("listener{n}"), Version::V5);
        let mut device = Device::connect_with(node.mqtt, connect).unwrap();
        device.subscribe("from/#", Qos::AtLeastOnce).unwrap();
        device
    });
    let mut listeners: Vec<_> = listeners.collect();
    let edges = nodes.iter().enumerate().map(|(n, node)| {
        let id = format!("gw{n}");
        let edge = Edge::start_with(&folder.path().join(&id), &id, Some(node.mqtt), &QUICK);
        let mut device = Device::connect(edge.mqtt, "device").unwrap();
        let publish = Publish {
            qos: Qos::AtLeastOnce,
            topic: format!("from/{id}").into(),
            payload: id.into(),
            ..Publish::default()
        };
        device.publish(publish).unwrap();
        edge
    });
    let edges: Vec<_> = edges.collect();
    for listener in &mut listeners {
        let mut got: Vec<_> = edges.iter().map(|_| listener.message().unwrap().payload).collect();
        got.sort_unstable();
        assert_eq!(got, ["gw0", "gw1", "gw2"]);
    }
    let handed: u64 =
        nodes.iter().map(|node| metric(node.admin, "tributary_peer_handed_on_total ")).sum();
    assert!(handed >= 6, "{handed} connections were handed on");
}
