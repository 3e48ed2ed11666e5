//! Whether something keeps this machine's clock right. Looks for what systemd's time service leaves behind.

use std::path::Path;

/// What the service says; `None`: it does not run here, and of others nothing is known.
pub fn synchronised() -> Option<bool> {
    let service = Path::new("/run/systemd/timesync");
    service.is_dir().then(|| service.join("synchronized").exists())
}
