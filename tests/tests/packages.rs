//! What brings the edge onto a gateway does what docs/operating/install.md says: the Debian package keeps data and settings, the
//! unit lets it do little, the container has what it copies.
//!
//! Not here: the programs inside (`on_gateways.rs`).

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use tributary_tests::{process::binary, say};

const UNIT: &str = "config/systemd/tributary-edge.service";

/// Of 10; what is left is the network, which an edge is for.
const EXPOSURE_MAX: f64 = 1.5;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace").to_path_buf()
}

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = [&output.stdout[..], &output.stderr[..]].concat();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&said));
    output
}

fn is_there(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

#[test]
fn the_service_is_exposed_to_little() {
    if !is_there("systemd-analyze") {
        return say("SKIP no systemd-analyze here");
    }
    let mut analyze = Command::new("systemd-analyze");
    analyze.args(["security", "--offline=true", "--no-pager"]).arg(root().join(UNIT));
    let said = run(&mut analyze);
    let said = String::from_utf8_lossy(&said.stdout);
    let score: f64 = said
        .rsplit_once("service: ")
        .and_then(|(_, rest)| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or_else(|| panic!("no score in {said}"));
    assert!(score <= EXPOSURE_MAX, "{said}");
}

#[test]
fn the_unit_is_one_that_systemd_understands() {
    if !is_there("systemd-analyze") {
        return say("SKIP no systemd-analyze here");
    }
    // The program need not be installed here.
    let folder = tempfile::tempdir().expect("folder");
    let unit = fs::read_to_string(root().join(UNIT))
        .expect("unit")
        .replace("/usr/bin/tributary-edge", "/bin/true");
    let path = folder.path().join("tributary-edge.service");
    fs::write(&path, unit).expect("unit");
    let said = Command::new("systemd-analyze").arg("verify").arg(&path).output().expect("verify");
    let said = String::from_utf8_lossy(&said.stderr);
    let wrong: Vec<_> =
        said.lines().filter(|line| line.contains("tributary-edge.service")).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn everything_the_container_copies_is_there_or_is_built() {
    let file = fs::read_to_string(root().join("config/container/Containerfile")).expect("file");
    let mut copied = 0;
    for line in file.lines().filter_map(|line| line.strip_prefix("COPY ")) {
        let mut words: Vec<_> = line.split(' ').filter(|word| !word.starts_with("--")).collect();
        let _to = words.pop();
        for from in words {
            copied += 1;
            let built = from == "dist/tributary-edge";
            assert!(built || root().join(from).exists(), "no {from}");
        }
    }
    assert_eq!(copied, 3);
    let user = file.lines().find_map(|line| line.strip_prefix("USER ")).expect("a user");
    assert!(user.starts_with("65532"), "runs as {user}");
}

/// In a root file system of its own that vanishes: an overlay over this machine's, in its own mount namespace.
const IN_A_ROOT_OF_ITS_OWN: &str = r#"
set -e
mount -t tmpfs tmpfs "$1"
mkdir "$1/up" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/up,workdir=$1/work" "$1/root"
cp "$2"/* "$1/root/opt/"
mount --bind /proc "$1/root/proc"
mount -t tmpfs tmpfs "$1/root/run"
mount --bind /dev "$1/root/dev"
exec chroot "$1/root" sh -e /opt/steps
"#;

/// `say NAME` lines are the promises that held.
const STEPS: &str = r#"
export DEBIAN_FRONTEND=noninteractive PATH=/usr/sbin:/usr/bin:/sbin:/bin
data=/var/lib/tributary-edge
settings=/etc/tributary/edge.toml
rm -rf "$data" /etc/tributary
# Serves until it is told to stop; the data folder has a store then.
serve() {
  rm -f /run/said; mkfifo -m 666 /run/said
  setpriv --reuid tributary-edge --regid tributary-edge --clear-groups -- \
    tributary-edge serve --config "$settings" --mqtt 127.0.0.1:0 --admin 127.0.0.1:0 >/run/said 2>/run/log &
  read -r line </run/said || { cat /run/log; exit 1; }
  kill -TERM $!
  wait $!
}

dpkg --install /opt/tributary-edge_1.0.0_amd64.deb >/run/first 2>&1 || { cat /run/first; exit 1; }
grep -q 'not started: mend /etc/tributary/edge.toml' /run/first
[ "$(stat -c '%U %G %a' "$data")" = 'tributary-edge tributary-edge 700' ]
[ "$(stat -c '%U %G %a' "$settings")" = 'root tributary-edge 640' ]
systemctl --root=/ is-enabled tributary-edge.service >/dev/null
echo 'held: a new gateway waits for its name'

sed -i 's/^#id = .*/id = "gw-7"/' "$settings"
serve
echo 'kept' > "$data/marker"
sum=$(cd "$data" && find . -type f -name '*.db' -exec sha256sum {} + | sort)
[ -n "$sum" ]
echo 'held: it serves as its own user'

dpkg --install /opt/tributary-edge_2.0.0_amd64.deb >/run/second 2>&1 || { cat /run/second; exit 1; }
! grep -q 'not started' /run/second
grep -q '^id = "gw-7"' "$settings"
[ "$sum" = "$(cd "$data" && find . -type f -name '*.db' -exec sha256sum {} + | sort)" ]
[ -f "$data/marker" ]
serve
echo 'held: an upgrade keeps data and settings'

dpkg --remove tributary-edge >/dev/null 2>&1
[ ! -e /usr/bin/tributary-edge ] && [ -f "$data/marker" ] && [ -f "$settings" ]
dpkg --install /opt/tributary-edge_2.0.0_amd64.deb >/dev/null 2>&1
serve
echo 'held: remove keeps data and settings'

dpkg --purge tributary-edge >/run/purge 2>&1
grep -q 'is kept, messages may wait in it' /run/purge
[ ! -e "$settings" ] && [ -f "$data/marker" ] && id tributary-edge >/dev/null
echo 'held: purge keeps data'

rm -rf "$data"
dpkg --install /opt/tributary-edge_2.0.0_amd64.deb >/dev/null 2>&1
dpkg --purge tributary-edge >/dev/null 2>&1
[ ! -e "$data" ] && ! id tributary-edge >/dev/null 2>&1 && [ ! -e /etc/tributary ]
echo 'held: purge of an empty edge leaves nothing'
"#;

#[test]
fn a_package_never_takes_data_or_settings_away() {
    let folder = tempfile::tempdir().expect("folder");
    let packages = folder.path().join("packages");
    let mountpoint = folder.path().join("root");
    fs::create_dir(&packages).and_then(|()| fs::create_dir(&mountpoint)).expect("folders");
    let probe = "mount -t tmpfs tmpfs \"$1\" && mkdir \"$1/u\" \"$1/w\" \"$1/r\" && \
        mount -t overlay overlay -o \"lowerdir=/,upperdir=$1/u,workdir=$1/w\" \"$1/r\" && \
        chroot \"$1/r\" sh -c 'command -v adduser deb-systemd-helper dpkg-deb strip setpriv'";
    let unshare = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"]);
        command.arg(&mountpoint).arg(&packages);
        command
    };
    if !unshare(probe).output().is_ok_and(|output| output.status.success()) {
        return say(
            "SKIP no package can be installed here: root, overlay mounts and Debian are needed",
        );
    }
    // The program as it is in this build, for this machine.
    let stripped = folder.path().join("tributary-edge");
    run(Command::new("strip").arg("-o").arg(&stripped).arg(binary("tributary-edge")));
    for version in ["1.0.0", "2.0.0"] {
        let mut package = Command::new(root().join("scripts/package-edge"));
        package.arg("--binary").arg(&stripped).arg("--out").arg(&packages);
        run(package.args(["--version", version, "x86-64"]));
    }
    fs::write(packages.join("steps"), STEPS).expect("steps");
    let output = unshare(IN_A_ROOT_OF_ITS_OWN).output().expect("unshare");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "after: {said}\n{why}");
    assert_eq!(said.lines().filter(|line| line.starts_with("held: ")).count(), 6, "{said}");
}
