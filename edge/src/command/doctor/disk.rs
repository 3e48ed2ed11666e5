//! The data folder: is it ours, is there room, does what is flushed reach the disk, and how fast?

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::Finding;
use crate::config::Config;

/// Below so many bytes an edge soon stops.
const ROOM: u64 = 64 * 1024 * 1024;

/// Beside the lanes' budgets.
const BESIDE: u64 = 256 * 1024 * 1024;

/// Flushes that are timed, each of a page.
const FLUSHES: usize = 16;

/// A flush that takes longer lets devices wait.
const SLOW: Duration = Duration::from_millis(50);

/// Faster than any disk with a plug: flushing does nothing.
const TOO_FAST: Duration = Duration::from_micros(15);

/// `statfs` of a file system in memory.
const TMPFS: rustix::fs::FsWord = 0x0102_1994;

pub(super) fn check(config: &Config) -> Vec<Finding> {
    let folder = Path::new(&config.data);
    let Some(there) = existing(folder) else {
        return vec![Finding::fail(
            format_args!("data: {}: no such disk", config.data),
            "set `data`",
        )];
    };
    let mut all = vec![owner(folder)];
    all.extend(room(&there, config));
    // Where it does not exist yet, its parent is on the same disk.
    match flushes(&there) {
        Ok(times) => all.push(speed(times)),
        Err(error) => all.push(Finding::fail(
            format_args!("data: cannot write in {}: {error}", there.display()),
            "run as the user of the service, or give it the folder (chown)",
        )),
    }
    all
}

/// The folder, or the nearest one above it that is there.
fn existing(folder: &Path) -> Option<PathBuf> {
    folder
        .ancestors()
        .map(|one| if one.as_os_str().is_empty() { Path::new(".") } else { one })
        .find(|one| one.is_dir())
        .map(Path::to_path_buf)
}

fn owner(folder: &Path) -> Finding {
    let name = folder.display();
    let Ok(data) = fs::metadata(folder) else {
        return Finding::ok(format_args!("data: {name} is not there yet; `serve` makes it"));
    };
    if !data.is_dir() {
        return Finding::fail(
            format_args!("data: {name} is not a folder"),
            "set `data` to a folder",
        );
    }
    let mode = data.mode() & 0o777;
    if mode & 0o007 != 0 {
        return Finding::warn(
            format_args!("data: {name} has mode {mode:03o}: everybody here reads all messages"),
            format_args!("chmod o-rwx {name}"),
        );
    }
    Finding::ok(format_args!("data: {name}, mode {mode:03o}"))
}

fn room(there: &Path, config: &Config) -> Vec<Finding> {
    let mut all = Vec::new();
    if let Ok(disk) = rustix::fs::statfs(there)
        && disk.f_type == TMPFS
    {
        all.push(Finding::warn(
            "data: lies in memory (tmpfs): a power cut takes every message",
            "set `data` to a folder on a disk",
        ));
    }
    let Ok(disk) = rustix::fs::statvfs(there) else { return all };
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let used = fs::metadata(there.join("edge.db")).map_or(0, |file| file.len());
    let lanes: u64 = config.active_lanes().iter().map(|lane| lane.budget_bytes).sum();
    let wanted = match config.store.max_bytes {
        0 => (lanes / 4 * 5).saturating_add(BESIDE),
        bytes => bytes,
    };
    all.push(enough(free, wanted.saturating_sub(used)));
    all
}

fn enough(free: u64, wanted: u64) -> Finding {
    let mib = |bytes: u64| bytes / (1024 * 1024);
    if free < ROOM {
        Finding::fail(
            format_args!("disk: {} MiB free", mib(free)),
            "make room: a full disk drops or refuses messages, as the lanes say",
        )
    } else if free < wanted {
        Finding::warn(
            format_args!("disk: {} MiB free, the settings allow {} more", mib(free), mib(wanted)),
            "make room, or set smaller lanes.budget_bytes or store.max_bytes",
        )
    } else {
        Finding::ok(format_args!("disk: {} MiB free, enough for all budgets", mib(free)))
    }
}

/// How long flushes take, sorted.
fn flushes(there: &Path) -> io::Result<Vec<Duration>> {
    let path = there.join(format!(".doctor-{}", std::process::id()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    let mut times = Vec::with_capacity(FLUSHES);
    let outcome = (0..FLUSHES).try_for_each(|_| {
        let began = Instant::now();
        file.write_all(&[7; 4096])?;
        file.sync_data()?;
        times.push(began.elapsed());
        Ok(())
    });
    fs::remove_file(&path)?;
    times.sort_unstable();
    outcome.map(|()| times)
}

fn speed(times: Vec<Duration>) -> Finding {
    let middle = times.get(times.len() / 2).copied().unwrap_or_default();
    let worst = times.last().copied().unwrap_or_default();
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let text = format!("flush: {:.2} ms, at worst {:.1} ms", ms(middle), ms(worst));
    if middle > SLOW {
        Finding::warn(
            text,
            "each acknowledgement waits for one: a faster disk, or fewer others on it",
        )
    } else if middle < TOO_FAST {
        Finding::warn(
            format_args!("{text}: faster than a disk can be"),
            "what is acknowledged may not survive a power cut: see the disk's or the hypervisor's cache mode",
        )
    } else {
        Finding::ok(text)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::command::doctor::Level;

    #[test]
    fn an_open_folder_and_a_full_disk_are_found() {
        let folder = tempfile::tempdir().unwrap();
        for (mode, level) in [(0o700, Level::Ok), (0o755, Level::Warn)] {
            fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(owner(folder.path()).level, level, "{mode:o}");
        }
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        assert_eq!(owner(&file).level, Level::Fail);
        assert_eq!(existing(&folder.path().join("a/b")).as_deref(), Some(folder.path()));
        assert_eq!(enough(ROOM - 1, 0).level, Level::Fail);
        assert_eq!(enough(ROOM, ROOM + 1).level, Level::Warn);
        assert_eq!(enough(2 * ROOM, ROOM).level, Level::Ok);
        assert_eq!(flushes(folder.path()).unwrap().len(), FLUSHES);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left behind");
    }

    #[test]
    fn a_flush_that_is_too_slow_or_too_fast_is_warned_of() {
        for (us, level) in [(5, Level::Warn), (900, Level::Ok), (80_000, Level::Warn)] {
            assert_eq!(speed(vec![Duration::from_micros(us); 3]).level, level, "{us}");
        }
    }
}
