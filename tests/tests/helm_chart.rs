//! The Helm chart renders what Kubernetes takes, and refuses values that cannot work.
//!
//! Needs `helm` and `kubernetes-validate`, which scripts/install fetches; without them it says SKIP.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use tributary_tests::say;

/// The oldest Kubernetes of the chart and a newer one.
const VERSIONS: [&str; 2] = ["1.25", "1.34"];
const ENOUGH: &str = "data=s3://bucket/prefix,plaintextInsideTheCluster=true";
const EVERYTHING: &str = "edges.enabled=true,edges.tlsSecret=edges,compactor.enabled=true,autoscaling.enabled=true,\
    serviceMonitor.enabled=true,storeSecret=store,clusterSecret.existing=nodes";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace").to_path_buf()
}

fn helm() -> Command {
    Command::new(root().join("target/tools/helm"))
}

fn validator() -> Command {
    Command::new(root().join("target/venv/bin/kubernetes-validate"))
}

fn are_there() -> bool {
    let works = |mut command: Command, argument| {
        command.arg(argument).output().is_ok_and(|output| output.status.success())
    };
    let there = works(helm(), "version") && works(validator(), "--version");
    if !there {
        say(
            "SKIP no helm or no kubernetes-validate: scripts/install test fetches them where Go and Python are",
        );
    }
    there
}

fn template(version: &str, values: &[&str]) -> Output {
    let mut command = helm();
    command.args(["template", "fleet"]).arg(root().join("config/helm/tributary-cloud"));
    command.args(["--kube-version", version]);
    for value in values {
        command.args(["--set", value]);
    }
    command.output().expect("helm")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn what_the_chart_renders_is_what_kubernetes_takes() {
    if !are_there() {
        return;
    }
    let folder = tempfile::tempdir().expect("folder");
    for version in VERSIONS {
        for values in [vec![ENOUGH], vec![ENOUGH, EVERYTHING]] {
            let rendered = template(version, &values);
            assert!(rendered.status.success(), "{}", text(&rendered.stderr));
            let file = folder.path().join("rendered.yaml");
            std::fs::write(&file, &rendered.stdout).expect("file");
            let mut validate = validator();
            validate.args(["--strict", "-k", version]).arg(&file);
            let checked = validate.output().expect("kubernetes-validate");
            let said = [&checked.stdout[..], &checked.stderr[..]].concat();
            assert!(checked.status.success(), "{version}: {}", text(&said));
            let passed = text(&said).matches(" passed for resource ").count();
            assert!(passed >= 7, "only {passed} resources were checked: {}", text(&said));
        }
    }
    let lint = helm()
        .arg("lint")
        .arg(root().join("config/helm/tributary-cloud"))
        .args(["--strict", "--set", ENOUGH])
        .output()
        .expect("helm");
    assert!(lint.status.success(), "{}", text(&lint.stdout));
}

#[test]
fn the_chart_keeps_nothing_on_a_node_and_lets_one_pod_go_at_a_time() {
    if !are_there() {
        return;
    }
    let rendered = text(&template("1.30", &[ENOUGH]).stdout);
    assert!(!rendered.contains("PersistentVolume"), "{rendered}");
    for part in [
        "maxUnavailable: 0",
        "kind: PodDisruptionBudget",
        "/health/ready",
        "/health/live",
        "--node=$(POD_NAME)",
    ] {
        assert!(rendered.contains(part), "no {part} in {rendered}");
    }
}

/// A setting that the program does not know would end every pod at its start.
#[test]
fn every_setting_of_the_chart_is_one_of_the_cloud() {
    if !are_there() {
        return;
    }
    let reference = std::fs::read_to_string(root().join("config/cloud.toml")).expect("settings");
    let rendered = text(&template("1.30", &[ENOUGH, EVERYTHING]).stdout);
    let mut checked = 0;
    for setting in rendered.split("--set=").skip(1).filter_map(|rest| rest.split('=').next()) {
        let (section, key) = setting.split_once('.').expect("section and key");
        let body = reference.split(&format!("\n[{section}]\n")).nth(1).expect("section");
        let body = body.split("\n[").next().unwrap_or_default();
        assert!(body.contains(&format!("\n#{key} = ")), "{setting} is no setting");
        checked += 1;
    }
    assert!(checked >= 3, "only {checked} settings");
}

#[test]
fn values_that_cannot_work_are_refused_by_name() {
    if !are_there() {
        return;
    }
    for (values, said) in [
        (vec![], "`data`"),
        (vec!["data=file:///tmp"], "`data`"),
        (vec!["data=s3://bucket"], "`plaintextInsideTheCluster`"),
        (vec![ENOUGH, "edges.enabled=true"], "`edges.tlsSecret`"),
        (vec![ENOUGH, "replica=3"], "replica"),
        (vec![ENOUGH, "replicas=0"], "replicas"),
        (vec![ENOUGH, "ports.kafka=70000"], "kafka"),
    ] {
        let refused = template("1.30", &values);
        let error = text(&refused.stderr);
        assert!(!refused.status.success() && error.contains(said), "{values:?}: {error}");
    }
}
