//! Listening on a socket in the file system, for programs on this machine.
//!
//! Who may connect is what the file's mode says. A socket that a dead process left behind is replaced; one that somebody
//! listens on is not.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::{
        fs::{FileTypeExt as _, PermissionsExt as _},
        net::UnixStream as Probe,
    },
    path::{Path, PathBuf},
};

use tokio::net::{UnixListener, UnixStream};

use super::accept::Door;

/// A socket; its file goes when this is dropped.
#[derive(Debug)]
pub struct Unix {
    listener: UnixListener,
    path: PathBuf,
}

impl Unix {
    /// Listens at `path`, for those whom `mode` (0o660) lets write to it.
    pub(super) fn bind(path: &Path, mode: u32) -> io::Result<Self> {
        if fs::symlink_metadata(path).is_ok_and(|data| data.file_type().is_socket()) {
            match Probe::connect(path) {
                Ok(_) => return Err(io::ErrorKind::AddrInUse.into()),
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    fs::remove_file(path)?;
                }
                Err(error) => return Err(error),
            }
        }
        let unix = Self { listener: UnixListener::bind(path)?, path: path.to_owned() };
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        Ok(unix)
    }
}

impl Drop for Unix {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "socket not removed");
        }
    }
}

impl Door for Unix {
    type Stream = UnixStream;

    async fn next(&self) -> io::Result<(UnixStream, Option<SocketAddr>)> {
        Ok((self.listener.accept().await?.0, None))
    }
}
