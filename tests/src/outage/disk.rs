//! A disk of its own whose power can be cut: ext4 on a loop device.
//!
//! [`Fuse::cut`] is `EXT4_IOC_SHUTDOWN` without a flush of the journal: what was not synced is gone, and nothing reaches the
//! disk from then on. Needs root and loop devices; who cannot have them gets a reason, not a failure.
//! Not here: disks that lie about their syncs (`preload`), torn blocks.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use tempfile::TempDir;

/// Waits for a line, cuts, says so. `EXT4_IOC_SHUTDOWN` = `_IOR('X', 125, __u32)`, 2 = `EXT4_GOING_FLAGS_NOLOGFLUSH`.
const CUT: &str = "
import fcntl, os, struct, sys
folder = os.open(sys.argv[1], os.O_RDONLY)
print('ready', flush=True)
sys.stdin.readline()
fcntl.ioctl(folder, 0x8004587d, struct.pack('I', 2))
os.close(folder)
print('cut', flush=True)
";

/// An ext4 of its own, mounted until it is dropped.
#[derive(Debug)]
pub struct Disk {
    image: PathBuf,
    mounted: PathBuf,
    _folder: TempDir,
}

impl Disk {
    /// A new, empty disk; or why there can be none here.
    pub fn new(mib: u64) -> Result<Self, String> {
        let root = std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
        if !root {
            return Err("only root can mount a disk".to_owned());
        }
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let (image, mounted) = (folder.path().join("image"), folder.path().join("disk"));
        std::fs::create_dir(&mounted).map_err(|error| error.to_string())?;
        std::fs::File::create(&image)
            .and_then(|file| file.set_len(mib << 20))
            .map_err(|error| error.to_string())?;
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image))?;
        let disk = Self { image, mounted, _folder: folder };
        disk.mount()?;
        Ok(disk)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mounted
    }

    /// Everything written so far is on the disk.
    pub fn sync(&self) {
        run(Command::new("sync").arg("-f").arg(&self.mounted)).expect("sync");
    }

    /// Gets ready to cut: what takes long about it is done before.
    pub fn fuse(&self) -> Fuse {
        let mut child = Command::new("python3")
            .args(["-c", CUT])
            .arg(&self.mounted)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3");
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let (stdin, stdout) = (stdin.expect("piped"), BufReader::new(stdout.expect("piped")));
        let mut fuse = Fuse { child, stdin, stdout };
        fuse.expect("ready");
        fuse
    }

    /// Power is back; nobody may have a file open.
    pub fn restore(&self) {
        run(Command::new("umount").arg(&self.mounted)).expect("umount");
        self.mount().expect("mount");
    }

    fn mount(&self) -> Result<(), String> {
        run(Command::new("mount").args(["-o", "loop"]).arg(&self.image).arg(&self.mounted))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // What was started on it has been killed by now.
        let _ = run(Command::new("umount").arg(&self.mounted));
    }
}

/// A cut that is prepared.
#[derive(Debug)]
pub struct Fuse {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Fuse {
    /// Cuts; returns when nothing reaches the disk any more.
    pub fn cut(mut self) {
        self.stdin.write_all(b"\n").expect("told");
        self.expect("cut");
        self.child.wait().expect("ended");
    }

    fn expect(&mut self, word: &str) {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("a line");
        assert_eq!(line.trim(), word, "the disk cannot be cut");
    }
}

/// Runs it; its complaint if it fails.
pub(super) fn run(command: &mut Command) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| format!("{name}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}
