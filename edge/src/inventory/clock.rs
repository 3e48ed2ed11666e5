//! Whether something keeps this machine's clock right. Asks the system; blocks for a moment.

use std::{path::Path, process::Command};

/// What the system says; `None`: nothing.
pub fn synchronised() -> Option<bool> {
    if Path::new("/run/systemd/timesync/synchronized").exists() {
        return Some(true);
    }
    let mut asked = Command::new("timedatectl");
    asked.args(["show", "--property=NTPSynchronized", "--value"]);
    let answer = asked.output().ok().filter(|answer| answer.status.success())?;
    match answer.stdout.trim_ascii() {
        b"yes" => Some(true),
        b"no" => Some(false),
        _ => None,
    }
}
