//! A node that must not start says why in one sentence, with what to do, and ends soon: another shard count, another cluster's name, a
//! node's name twice, a single node at a cluster's data, wrong credentials, a store without compare-and-set.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::{net::SocketAddr, process::Command, time::Duration};

use tributary_tests::{
    Cloud,
    process::{binary, run},
    s3::{ACCESS_KEY, Control, Faults, MemoryS3, SECRET_KEY},
};

/// A start that has not ended by itself then is killed: it was not refused.
const SOON: Duration = Duration::from_secs(30);
const DOORS: [&str; 4] = ["--mqtt", "--kafka", "--amqp", "--admin"];

/// What a start that is refused says.
fn refused(s3: SocketAddr, prefix: &str, secret: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(binary("tributary-cloud"));
    command.env("AWS_ACCESS_KEY_ID", ACCESS_KEY).env("AWS_SECRET_ACCESS_KEY", secret);
    command.args(["serve", "--data", &format!("s3://test/{prefix}")]);
    command.args(["--set", &format!("engine.s3_endpoint=http://{s3}")]);
    command.args(["--set", "telemetry.level=error"]).args(arguments);
    command.args(DOORS.iter().flat_map(|door| [door, "127.0.0.1:0"]));
    let output = run(command, SOON);
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
    assert_eq!(said.lines().count(), 1, "one sentence: {said}");
    assert!(said.starts_with("tributary-cloud: ") && !said.contains("panicked"), "{said}");
    said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_must_not_start_says_what_to_do() {
    let any = "127.0.0.1:0".parse().unwrap();
    let store = MemoryS3::default();
    let (s3, control) = (store.serve(any).await.unwrap(), store.serve_control(any).await.unwrap());
    tokio::task::spawn_blocking(move || look(s3, &Control(control))).await.unwrap();
}

fn look(s3: SocketAddr, control: &Control) {
    let endpoint = format!("engine.s3_endpoint=http://{s3}");
    let (node, two) = (["--node", "n2"], "engine.shards=2");
    let own = ["--node", "n1", "--set", &endpoint, "--set", two];
    let _n1 = Cloud::start_with("s3://test/one", &own);
    let said = |secret: &str, prefix: &str, arguments: &[&str], what: &str| {
        let said = refused(s3, prefix, secret, arguments);
        assert!(said.contains(what), "{what}: {said}");
    };
    let with = |set: &'static str| [node[0], node[1], "--set", set];
    said(SECRET_KEY, "one", &with("engine.shards=3"), "say 2, or leave it out");
    said(SECRET_KEY, "one", &with("cluster.name=other"), "use another --data, or that name");
    said(SECRET_KEY, "one", &["--node", "n1"], "give this one another name with --node");
    said(SECRET_KEY, "one", &[], "start this node as a member of it with --node NAME");
    said("wrong", "one", &node, "check the credentials");
    said("wrong", "two", &[], "check the credentials");
    control.set(&Faults { overwrite: true, ..Faults::default() }).unwrap();
    said(SECRET_KEY, "three", &node, "use another store");
    said(SECRET_KEY, "four", &[], "use another store");
}
