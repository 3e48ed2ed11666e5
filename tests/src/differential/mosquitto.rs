//! Debian's mosquitto, or another build of it, as a process on a free port.

use std::{
    io::Write as _,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use crate::process::{free_address, until};

/// A running mosquitto, without persistence unless told; killed when dropped.
#[derive(Debug)]
pub struct Mosquitto {
    child: Child,
    /// Where it listens.
    pub address: SocketAddr,
    _folder: tempfile::TempDir,
}

/// Where Debian puts it.
pub fn installed() -> Option<PathBuf> {
    ["/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto"]
        .into_iter()
        .map(PathBuf::from)
        .find(|path| path.exists())
}

impl Mosquitto {
    /// Starts `binary`, with more lines of configuration, and waits until it takes connections.
    pub fn start(binary: &Path, more: &str) -> Self {
        Self::start_at(free_address(), binary, more)
    }

    /// At an address that is known before it runs.
    pub fn start_at(free: SocketAddr, binary: &Path, more: &str) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("mosquitto.conf");
        let mut file = std::fs::File::create(&path).expect("file");
        writeln!(
            file,
            "listener {} 127.0.0.1\nallow_anonymous true\npersistence false\nset_tcp_nodelay true\n\
             sys_interval 0\nlog_type none\nuser root\nmax_topic_alias 16\nmax_connections -1\n\
             allow_duplicate_messages true\n{more}",
            free.port()
        )
        .expect("written");
        let mut child = Command::new(binary)
            .arg("-c")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("mosquitto starts");
        until(&format!("mosquitto listens on {free}"), || {
            assert!(child.try_wait().expect("status").is_none(), "mosquitto ended at once");
            TcpStream::connect(free).is_ok()
        });
        Self { child, address: free, _folder: folder }
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
