//! Addresses: free, or in use by this edge, or by somebody else?

use std::{io, net::SocketAddr, os::unix::net::UnixStream, path::Path};

use tokio::net::TcpListener;
use tributary_shared::net::listener::Address;

use super::Finding;
use crate::{access::Access, admin::Reading, config::Config};

pub(super) async fn check(
    config: &Config,
    access: Option<&Access>,
    running: Option<&Reading>,
) -> Vec<Finding> {
    let ours = running.is_some_and(|reading| reading.id == config.id);
    let mut all = Vec::new();
    for listener in access.map_or(&[][..], |access| &access.listeners) {
        all.push(match &listener.address {
            Address::Tcp(address) => tcp(&listener.setting, *address, ours).await,
            Address::Unix(path) => unix(&listener.setting, path, ours),
        });
    }
    let admin = tokio::net::lookup_host(&config.listen.admin).await.ok();
    if let Some(address) = admin.and_then(|mut found| found.next()) {
        all.push(tcp("listen.admin", address, ours).await);
    }
    if let Some(reading) = running.filter(|_| !ours) {
        let text = format!("listen.admin: another edge, `{}`, runs there", reading.id);
        all.push(Finding::warn(
            text,
            "two edges on one machine need their own addresses and folders",
        ));
    }
    all
}

async fn tcp(setting: &str, address: SocketAddr, ours: bool) -> Finding {
    let outcome = TcpListener::bind(address).await.map(drop);
    judge(&format!("{setting}: {address}"), outcome.err().as_ref(), ours)
}

fn unix(setting: &str, path: &Path, ours: bool) -> Finding {
    let what = format!("{setting}: unix:{}", path.display());
    match UnixStream::connect(path) {
        Ok(_) => judge(&what, Some(&io::ErrorKind::AddrInUse.into()), ours),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            judge(&what, Some(&error), ours)
        }
        Err(_) if path.parent().is_some_and(Path::is_dir) => judge(&what, None, ours),
        Err(_) => Finding::fail(format_args!("{what}: its folder is not there"), "make the folder"),
    }
}

fn judge(what: &str, error: Option<&io::Error>, ours: bool) -> Finding {
    let Some(error) = error else { return Finding::ok(format_args!("{what} is free")) };
    match error.kind() {
        io::ErrorKind::AddrInUse if ours => {
            Finding::ok(format_args!("{what} is served by this edge"))
        }
        io::ErrorKind::AddrInUse => Finding::fail(
            format_args!("{what} is in use by another program"),
            "stop it (`ss -ltnp` names it), or set another address",
        ),
        io::ErrorKind::PermissionDenied => Finding::fail(
            format_args!("{what}: {error}"),
            "run doctor as the user of the service; ports below 1024 need CAP_NET_BIND_SERVICE",
        ),
        io::ErrorKind::AddrNotAvailable => Finding::fail(
            format_args!("{what}: this machine has no such address"),
            "set one that it has, or [::] for all",
        ),
        _ => Finding::fail(format_args!("{what}: {error}"), "set another address"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::doctor::Level;

    #[tokio::test]
    async fn a_port_in_use_is_fine_only_if_this_edge_uses_it() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = taken.local_addr().unwrap();
        assert_eq!(tcp("x", address, true).await.level, Level::Ok);
        assert_eq!(tcp("x", address, false).await.level, Level::Fail);
        drop(taken);
        assert!(tcp("x", address, false).await.text.ends_with("is free"));
        let nowhere = "192.0.2.1:1883".parse().unwrap();
        assert!(tcp("x", nowhere, false).await.text.contains("no such address"));
    }

    #[test]
    fn a_socket_that_nobody_listens_on_is_free() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mqtt.sock");
        assert!(unix("x", &path, false).text.ends_with("is free"));
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert_eq!(unix("x", &path, false).level, Level::Fail);
        drop(listener);
        assert!(unix("x", &path, false).text.ends_with("is free"));
        assert_eq!(unix("x", &folder.path().join("no/sock"), false).level, Level::Fail);
    }
}
