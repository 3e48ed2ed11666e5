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

/// In a root file system of its own that vanishes: an overlay over this machine's, in its own mount namespace. Arguments: where
/// it is mounted, and a folder that it finds as /opt.
const IN_A_ROOT_OF_ITS_OWN: &str = r#"
set -e
root=$1/root
mount -t tmpfs tmpfs "$1"
mkdir "$1/up" "$1/work" "$root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/up,workdir=$1/work" "$root"
rm -rf "$root/opt" "$root/var/lib/tributary-edge" "$root/etc/tributary"
cp -r "$2" "$root/opt"
in_root() {
  mount --bind /proc "$root/proc"
  mount --bind /dev "$root/dev"
  mount -t tmpfs tmpfs "$root/run"
  chroot "$root" "$@"
  umount "$root/run" "$root/dev" "$root/proc"
}
"#;

/// Lines that begin with `held:` are promises that were kept.
const STEPS: &str = r#"
set -e
export DEBIAN_FRONTEND=noninteractive PATH=/usr/sbin:/usr/bin:/sbin:/bin
data=/var/lib/tributary-edge
settings=/etc/tributary/edge.toml
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

/// What systemd runs instead of a whole system.
const BOOT: &str = r#"
rm -f "$root/etc/machine-id"
: > "$root/etc/machine-id"
in_root sh -c 'dpkg --install /opt/tributary-edge_1.0.0_amd64.deb >/dev/null 2>&1'
printf 'id = "gw-7"\n[listen]\nmqtt = "127.0.0.1:1883"\nadmin = "127.0.0.1:8081"\n' > "$root/etc/tributary/edge.toml"
system=$root/etc/systemd/system
mkdir -p "$system/tributary-edge.service.d"
printf '[Service]\nWatchdogSec=20\n' > "$system/tributary-edge.service.d/quick.conf"
printf '[Unit]\nRequires=basic.target steps.service\n' > "$system/steps.target"
cat > "$system/steps.service" <<UNIT
[Service]
Type=oneshot
ExecStart=/bin/sh /opt/service
StandardOutput=append:/opt/said
StandardError=append:/opt/said
ExecStopPost=/bin/systemctl poweroff --no-block
UNIT
timeout 300 systemd-nspawn --quiet --directory="$root" --machine="tributary-$$" --register=no --keep-unit --private-network \
  --boot -- --unit=steps.target >"$1/console" 2>&1 || cat "$1/console"
cat "$root/opt/said"
"#;

const SERVICE: &str = r#"
set -ex
value() { systemctl show tributary-edge --value --property "$1"; }
# It ended: systemd has begun it anew and has heard that it serves.
again() { while [ "$(value NRestarts)" -lt "$1" ] || [ "$(value ActiveState)" != active ]; do sleep 0.1; done; }

systemctl start tributary-edge
pid=$(value MainPID)
grep -qx 'CapBnd:.0*' "/proc/$pid/status"
grep -qx 'Seccomp:.2' "/proc/$pid/status"
[ "$(stat -c %U "/proc/$pid")" = tributary-edge ]
[ "$(stat -c '%U %a' /var/lib/tributary-edge)" = 'tributary-edge 700' ]
# What the store asks how long messages have waited, and how much is written to the disk.
nsenter --target "$pid" --mount sh -c 'cat /proc/uptime /proc/sys/kernel/random/boot_id /sys/block/*/stat' >/dev/null
tributary-edge pub -t a/b -q 1 -m hi
systemctl reload tributary-edge
[ "$(value ActiveState)" = active ]
echo 'held: it serves with what the unit lets it do'

kill -KILL "$pid"
again 1
echo 'held: it is started again'

kill -STOP "$(value MainPID)"
again 2
tributary-edge pub -t a/b -q 1 -m hi
echo 'held: an edge that hangs is started anew'

systemctl stop tributary-edge
[ "$(value Result)" = success ]
sed -i 's/^id = .*/id = "a+b"/' /etc/tributary/edge.toml
! systemctl start tributary-edge
[ "$(value ExecMainStatus) $(value ActiveState)" = '78 failed' ]
echo 'held: bad settings leave it stopped'
"#;

/// Two versions of the package with the program of this build, and scripts, in a folder. False: they cannot be used here, which is said.
fn packages(folder: &Path, needs: &str) -> bool {
    let to = folder.join("packages");
    fs::create_dir(&to).expect("folder");
    let probe = format!(
        "{IN_A_ROOT_OF_ITS_OWN} in_root sh -ec 'for need in {needs}; do command -v $need; done'"
    );
    if !unshare(&probe, folder).output().is_ok_and(|output| output.status.success()) {
        say(&format!(
            "SKIP no package can be installed here: root, overlay mounts and {needs} are needed"
        ));
        return false;
    }
    let stripped = folder.join("tributary-edge");
    run(Command::new("strip").arg("-o").arg(&stripped).arg(binary("tributary-edge")));
    for version in ["1.0.0", "2.0.0"] {
        let mut package = Command::new(root().join("scripts/package-edge"));
        package.arg("--binary").arg(&stripped).arg("--out").arg(&to);
        run(package.args(["--version", version, "x86-64"]));
    }
    fs::write(to.join("steps"), STEPS).expect("steps");
    fs::write(to.join("service"), SERVICE).expect("steps");
    true
}

/// Runs `script` in a mount namespace of its own.
fn unshare(script: &str, folder: &Path) -> Command {
    let mountpoint = folder.join("root");
    fs::create_dir_all(&mountpoint).expect("folder");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"]);
    command.arg(mountpoint).arg(folder.join("packages"));
    command
}

fn holds(output: &Output, promises: usize) {
    let said = String::from_utf8_lossy(&output.stdout);
    let why = String::from_utf8_lossy(&output.stderr);
    let held = said.lines().filter(|line| line.starts_with("held: ")).count();
    assert!(output.status.success() && held == promises, "{said}\n{why}");
}

#[test]
fn a_package_never_takes_data_or_settings_away() {
    let folder = tempfile::tempdir().expect("folder");
    let needs = "adduser deb-systemd-helper dpkg-deb strip setpriv";
    if !packages(folder.path(), needs) {
        return;
    }
    let script = format!("{IN_A_ROOT_OF_ITS_OWN} in_root sh /opt/steps");
    holds(&unshare(&script, folder.path()).output().expect("unshare"), 6);
}

#[test]
fn the_service_works_with_what_its_unit_lets_it_do() {
    let folder = tempfile::tempdir().expect("folder");
    let needs = "adduser deb-systemd-helper dpkg-deb strip systemd-nspawn /lib/systemd/systemd";
    if !packages(folder.path(), needs) {
        return;
    }
    let script = format!("{IN_A_ROOT_OF_ITS_OWN} {BOOT}");
    holds(&unshare(&script, folder.path()).output().expect("unshare"), 4);
}
