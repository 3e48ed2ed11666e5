//! Accepting connections, the same for every listener: which addresses may be opened, and how many peers come in.
//!
//! Holds: binding with errors a person understands ([`bind`]), the rule for listeners beyond loopback
//! ([`check_exposure`]), the accept loop with its limits ([`accept`]), TLS, WebSocket and unix sockets in front of MQTT
//! ([`listener`]). In: an address and the setting that named it.
//! Out: accepted streams. Change here: what is refused before a peer has said anything. Not here: any protocol.

mod accept;
pub mod listener;
pub mod patient;
pub mod stream;
pub mod tls;
mod unix;
pub mod websocket;

use std::{io, net::SocketAddr};

use tokio::net::{TcpListener, TcpSocket};

pub use accept::{Admitted, Gate, accept};
pub use listener::{Listener, Transport};
pub use stream::Stream;

/// Connections the system holds for us before we accept them.
const BACKLOG: u32 = 1_024;

crate::settings! {
    /// Limits of listeners.
    pub struct Settings {
        /// Connections at once, all listeners of one protocol together.
        pub connections: usize = 1_000,
        /// Connections at once of one address (IPv6: of one /64 network). Loopback is not limited by this.
        pub connections_per_address: usize = 100,
        /// Connections at once that have not identified themselves yet.
        pub handshakes: usize = 64,
        /// New connections a second, all addresses together, with a second's worth at once. Loopback is not limited by this.
        pub connections_per_second: usize = 50 => 1..,
        /// Open a listener beyond loopback also without TLS and authentication. Anybody who reaches it can read and write
        /// everything.
        pub allow_insecure: bool = false,
    }
}

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} (`{setting}`): {why}")]
pub struct BindError {
    /// Where.
    pub address: SocketAddr,
    /// What named it.
    pub setting: String,
    why: String,
    source: io::Error,
}

/// Listens on `address`; `setting` is the flag or key that says so, for the error. Port 0 picks a free one.
pub fn bind(address: SocketAddr, setting: &str) -> Result<TcpListener, BindError> {
    listen(address).map_err(|source| {
        let why = match source.kind() {
            io::ErrorKind::AddrInUse => "another process uses this port".to_owned(),
            io::ErrorKind::PermissionDenied => {
                "not permitted; ports below 1024 need the right to bind them".to_owned()
            }
            io::ErrorKind::AddrNotAvailable => "this machine does not have the address".to_owned(),
            _ => source.to_string(),
        };
        BindError { address, setting: setting.to_owned(), why, source }
    })
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A restart must not wait for the old process's closed connections.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// A listener that is about to be opened.
#[derive(Debug, Clone, Copy)]
pub struct Exposure<'a> {
    /// Where.
    pub address: SocketAddr,
    /// The flag or key that names the address.
    pub setting: &'a str,
    /// It speaks only TLS.
    pub tls: bool,
    /// It serves only peers that have proved who they are.
    pub authentication: bool,
}

/// A listener that must not be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{setting}` = {address} can be reached from other machines without {missing}: listen on loopback, configure {missing}, or set `allow_insecure = true`"
)]
pub struct Exposed {
    /// Where.
    pub address: SocketAddr,
    /// What named it.
    pub setting: String,
    /// What would make it safe.
    pub missing: &'static str,
}

/// The rule: beyond loopback only with TLS and authentication. `allow_insecure` overrides it, with a warning.
pub fn check_exposure(listener: Exposure<'_>, allow_insecure: bool) -> Result<(), Exposed> {
    let Exposure { address, setting, tls, authentication } = listener;
    let missing = match (tls, authentication) {
        (true, true) => return Ok(()),
        (false, true) => "TLS",
        (true, false) => "authentication",
        (false, false) => "TLS and authentication",
    };
    if address.ip().to_canonical().is_loopback() {
        return Ok(());
    }
    if allow_insecure {
        tracing::warn!(
            %address,
            setting,
            "INSECURE: this listener can be reached from other machines without {missing} (allow_insecure is set)"
        );
        return Ok(());
    }
    Err(Exposed { address, setting: setting.to_owned(), missing })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(address: &str, tls: bool, authentication: bool, allow: bool) -> Result<(), Exposed> {
        let address = address.parse().unwrap();
        check_exposure(Exposure { address, setting: "--mqtt", tls, authentication }, allow)
    }

    #[test]
    fn beyond_loopback_only_with_tls_and_authentication() {
        for loopback in ["127.0.0.1:1883", "[::1]:1883", "127.9.9.9:1", "[::ffff:127.0.0.1]:1"] {
            assert_eq!(check(loopback, false, false, false), Ok(()));
        }
        for open in ["0.0.0.0:1883", "[::]:1883", "192.168.1.2:1883"] {
            assert_eq!(check(open, true, true, false), Ok(()));
            assert_eq!(check(open, false, false, true), Ok(()), "allowed by setting");
            for (tls, authentication, missing) in [
                (false, false, "TLS and authentication"),
                (true, false, "authentication"),
                (false, true, "TLS"),
            ] {
                let error = check(open, tls, authentication, false).unwrap_err();
                assert_eq!(error.missing, missing);
                assert!(error.to_string().contains("`--mqtt`"), "{error}");
            }
        }
    }

    #[tokio::test]
    async fn a_port_in_use_is_said_in_one_sentence_with_the_setting() {
        let first = bind("127.0.0.1:0".parse().unwrap(), "--mqtt").unwrap();
        let address = first.local_addr().unwrap();
        let error = bind(address, "--mqtt").unwrap_err().to_string();
        assert_eq!(
            error,
            format!("cannot listen on {address} (`--mqtt`): another process uses this port")
        );
        let error = bind("192.0.2.1:0".parse().unwrap(), "--mqtt").unwrap_err().to_string();
        assert!(error.ends_with("this machine does not have the address"), "{error}");
    }
}
