//! What the service manager that started us is told: that we serve, that we live, that we stop (sd_notify of systemd).
//!
//! In: `NOTIFY_SOCKET` and `WATCHDOG_USEC`, which are the manager's and no settings of ours. Out: datagrams to its socket.
//! Without a manager nothing is sent. Change here: what it is told. Not here: what a unit may do (config/systemd).

use std::{
    ffi::{OsStr, OsString},
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    sync::Arc,
    time::Duration,
};

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// For a manager that does not watch over us.
const NEVER: Duration = Duration::from_hours(24);

/// Who started us, if he listens.
#[derive(Debug, Clone, Default)]
pub struct Manager {
    socket: Option<Arc<UnixDatagram>>,
    /// He starts us anew after so long without a sign of life.
    patience: Option<Duration>,
}

impl Manager {
    /// As the environment says.
    pub fn from_environment() -> Self {
        let manager =
            Self::new(std::env::var_os("NOTIFY_SOCKET"), std::env::var_os("WATCHDOG_USEC"));
        manager.unwrap_or_else(|error| {
            tracing::warn!(%error, "the service manager does not hear us");
            Self::default()
        })
    }

    fn new(socket: Option<OsString>, patience: Option<OsString>) -> io::Result<Self> {
        let Some(name) = socket else { return Ok(Self::default()) };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address(&name)?)?;
        // A manager that does not read must not stop us.
        socket.set_nonblocking(true)?;
        let micros = patience.and_then(|text| text.to_str()?.parse().ok()).filter(|&n| n > 0);
        Ok(Self { socket: Some(Arc::new(socket)), patience: micros.map(Duration::from_micros) })
    }

    /// `READY=1`, `STOPPING=1`.
    pub fn say(&self, what: &str) {
        if let Some(Err(error)) = self.socket.as_ref().map(|socket| socket.send(what.as_bytes())) {
            tracing::debug!(%error, what, "the service manager did not take it");
        }
    }

    /// Says that we live, and at last, at `stop`, that we stop. We live while the runtime turns and the broker, whose queue
    /// this is, takes what comes. Without one (a store is opened, which may take long) the first is enough.
    pub async fn beat<T>(
        self,
        broker: watch::Receiver<Option<mpsc::WeakSender<T>>>,
        stop: CancellationToken,
    ) {
        let patience = self.patience.unwrap_or(NEVER);
        // Twice in the time he waits is what sd_watchdog_enabled(3) advises; once more for good measure.
        let mut beats = tokio::time::interval(patience / 3);
        let living = async {
            loop {
                beats.tick().await;
                let queue = broker.borrow().as_ref().and_then(mpsc::WeakSender::upgrade);
                if let Some(queue) = queue {
                    // A queue that is closed belongs to a broker that has ended: another comes.
                    let _room = queue.reserve().await;
                }
                self.say("WATCHDOG=1");
            }
        };
        tokio::select! { () = living => {}, () = stop.cancelled() => self.say("STOPPING=1") }
    }
}

/// A path, or a name that is no file (`@name`).
fn address(name: &OsStr) -> io::Result<SocketAddr> {
    match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> String {
        let mut bytes = [0; 64];
        let read = socket.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..read]).into_owned()
    }

    /// A manager's socket, and the manager as we see it.
    fn manager(micros: &str) -> (UnixDatagram, Manager, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        let manager = Manager::new(Some(path.into_os_string()), Some(micros.into())).unwrap();
        (socket, manager, folder)
    }

    #[test]
    fn the_manager_hears_what_is_said_by_path_and_by_name() {
        let (socket, manager, _folder) = manager("0");
        manager.say("READY=1");
        assert_eq!(heard(&socket), "READY=1");
        assert_eq!(manager.patience, None);
        let name = format!("tributary-notify-{}", std::process::id());
        let socket =
            UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        Manager::new(Some(format!("@{name}").into()), None).unwrap().say("STOPPING=1");
        assert_eq!(heard(&socket), "STOPPING=1");
    }

    #[test]
    fn without_a_manager_nothing_is_said_and_nothing_fails() {
        Manager::new(None, Some("1000".into())).unwrap().say("READY=1");
    }

    #[tokio::test(start_paused = true)]
    async fn life_is_shown_only_while_the_broker_takes_what_comes() {
        let (socket, manager, _folder) = manager("30000000");
        let (queue, mut broker) = mpsc::channel::<()>(1);
        let (tell, told) = watch::channel(None);
        let stop = CancellationToken::new();
        let beating = tokio::spawn(manager.beat(told, stop.clone()));
        // While a store is opened.
        tokio::time::sleep(Duration::from_secs(15)).await;
        assert_eq!((heard(&socket), heard(&socket)), ("WATCHDOG=1".into(), "WATCHDOG=1".into()));
        tell.send_replace(Some(queue.downgrade()));
        // A broker that takes nothing.
        queue.send(()).await.unwrap();
        tokio::time::sleep(Duration::from_mins(5)).await;
        assert!(socket.recv(&mut [0; 64]).is_err());
        // It goes on.
        broker.recv().await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(heard(&socket), "WATCHDOG=1");
        // It is not kept from ending by the sign of life.
        drop(queue);
        assert_eq!(broker.recv().await, None);
        stop.cancel();
        beating.await.unwrap();
    }
}
