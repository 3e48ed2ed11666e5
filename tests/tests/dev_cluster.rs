//! A cluster for trials starts with one command, answers, and leaves no process behind.

use std::{path::Path, process::Command};

use tributary_tests::process::binary;

#[test]
fn one_command_starts_a_cluster_and_ends_all_of_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace");
    let binaries = binary("s3-server").parent().expect("a folder").to_path_buf();
    let output = Command::new("python3")
        .arg(root.join("scripts/lib/cluster.py"))
        .arg("--smoke")
        .env("TESTED_BINARIES", &binaries)
        .output()
        .expect("python3");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{complaint}");
    let processes = said.lines().filter_map(|line| line.split_once("  pid ").map(|(_, id)| id));
    let processes: Vec<_> = processes.collect();
    assert_eq!(processes.len(), 5, "three nodes and two edges: {said}");
    for id in processes {
        assert!(!Path::new("/proc").join(id).exists(), "process {id} is still there");
    }
}
