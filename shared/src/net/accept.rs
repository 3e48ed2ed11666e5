//! The accept loop and its limits.
//!
//! A peer over a limit is closed at once and counted: it costs a descriptor for a moment and nothing else.

use std::{
    collections::HashMap,
    future::Future,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::Settings;

/// Pause after a failed accept: most are lack of descriptors, which passes when peers go.
const AFTER_ERROR: Duration = Duration::from_millis(100);
/// How long connections may take to end after a stop. The whole process has five seconds.
const DRAIN: Duration = Duration::from_secs(4);
/// Peers that vanished without a word are found out after about two minutes.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(90);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// Who is in, shared by the listeners of one protocol.
#[derive(Debug)]
pub struct Gate {
    settings: Settings,
    /// A place here needs a place there too.
    outer: Option<Arc<Gate>>,
    state: Mutex<State>,
    /// Accepted since the start.
    pub accepted: AtomicU64,
    /// Closed at once for `connections`.
    pub refused_total: AtomicU64,
    /// Closed at once for `connections_per_address`.
    pub refused_address: AtomicU64,
    /// Closed at once for `handshakes`.
    pub refused_handshakes: AtomicU64,
    /// Closed at once for `connections_per_second`.
    pub refused_rate: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    connections: usize,
    handshakes: usize,
    addresses: HashMap<IpAddr, usize>,
    /// Connections from elsewhere in the second that began then.
    second: Option<(Instant, usize)>,
}

impl State {
    /// One more connection from elsewhere in this second.
    fn is_too_fast(&mut self, limit: usize) -> bool {
        let now = Instant::now();
        let began = self.second.filter(|(began, _)| now - *began < Duration::from_secs(1));
        let (began, count) = began.unwrap_or((now, 0));
        self.second = Some((began, count + 1));
        count >= limit
    }
}

/// A peer's place; given back when dropped.
#[derive(Debug)]
pub struct Admitted {
    gate: Arc<Gate>,
    /// `None`: not counted.
    address: Option<IpAddr>,
    in_handshake: bool,
    outer: Option<Box<Admitted>>,
}

impl Gate {
    /// Nobody is in.
    pub fn new(settings: Settings) -> Arc<Self> {
        Self::with(settings, None)
    }

    /// One of several listeners: at most `connections` of what `outer` admits.
    pub fn within(outer: Arc<Gate>, connections: usize) -> Arc<Self> {
        let settings = Settings { connections, ..outer.settings.clone() };
        Self::with(settings, Some(outer))
    }

    fn with(settings: Settings, outer: Option<Arc<Gate>>) -> Arc<Self> {
        Arc::new(Self {
            settings,
            outer,
            state: Mutex::default(),
            accepted: AtomicU64::new(0),
            refused_total: AtomicU64::new(0),
            refused_address: AtomicU64::new(0),
            refused_handshakes: AtomicU64::new(0),
            refused_rate: AtomicU64::new(0),
        })
    }

    /// Connections now.
    pub fn connections(&self) -> usize {
        self.state().connections
    }

    /// A place for a peer, unless a limit is reached. `None`: it comes from this machine by other means than TCP.
    pub fn admit(self: &Arc<Self>, peer: Option<SocketAddr>) -> Option<Admitted> {
        let outer = match &self.outer {
            Some(outer) => Some(Box::new(outer.admit(peer)?)),
            None => None,
        };
        let address = peer.and_then(|peer| counted(peer.ip()));
        let mut state = self.state();
        let of_address = address.and_then(|address| state.addresses.get(&address)).copied();
        let refused = if state.connections >= self.settings.connections {
            Some(&self.refused_total)
        } else if of_address.unwrap_or(0) >= self.settings.connections_per_address {
            Some(&self.refused_address)
        } else if state.handshakes >= self.settings.handshakes {
            Some(&self.refused_handshakes)
        } else if address.is_some() && state.is_too_fast(self.settings.connections_per_second) {
            Some(&self.refused_rate)
        } else {
            None
        };
        if let Some(counter) = refused {
            counter.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        state.connections += 1;
        state.handshakes += 1;
        if let Some(address) = address {
            *state.addresses.entry(address).or_insert(0) += 1;
        }
        drop(state);
        self.accepted.fetch_add(1, Ordering::Relaxed);
        Some(Admitted { gate: Arc::clone(self), address, in_handshake: true, outer })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What connections are counted by: an IPv4 address, an IPv6 network; nothing for this machine itself.
fn counted(address: IpAddr) -> Option<IpAddr> {
    let address = address.to_canonical();
    if address.is_loopback() {
        return None;
    }
    Some(match address {
        IpAddr::V6(address) => {
            let network = address.to_bits() & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from_bits(network))
        }
        IpAddr::V4(_) => address,
    })
}

impl Admitted {
    /// The peer has said who it is: another one may begin.
    pub fn handshake_done(&mut self) {
        if self.in_handshake {
            self.in_handshake = false;
            self.gate.state().handshakes -= 1;
        }
        if let Some(outer) = &mut self.outer {
            outer.handshake_done();
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.handshake_done();
        let mut state = self.gate.state();
        state.connections -= 1;
        if let Some(address) = self.address
            && let Some(count) = state.addresses.get_mut(&address)
        {
            *count -= 1;
            if *count == 0 {
                state.addresses.remove(&address);
            }
        }
    }
}

/// Where peers come in.
pub(super) trait Door {
    /// What a peer is spoken to by.
    type Stream;

    /// The next one, with its address if it has one.
    fn next(&self) -> impl Future<Output = io::Result<(Self::Stream, Option<SocketAddr>)>> + Send;
}

impl Door for TcpListener {
    type Stream = TcpStream;

    async fn next(&self) -> io::Result<(TcpStream, Option<SocketAddr>)> {
        let (stream, peer) = self.accept().await?;
        if let Err(error) = prepare(&stream) {
            tracing::debug!(%peer, %error, "socket options not set");
        }
        Ok((stream, Some(peer)))
    }
}

/// Accepts until `stop`, one task a peer, then waits a few seconds for the tasks to end. `serve` calls
/// [`Admitted::handshake_done`] when the peer has identified itself and keeps the [`Admitted`] to its end.
pub async fn accept<F, T>(listener: TcpListener, gate: Arc<Gate>, stop: CancellationToken, serve: F)
where
    F: Fn(TcpStream, SocketAddr, Admitted) -> T,
    T: Future<Output = ()> + Send + 'static,
{
    let nowhere = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
    accept_from(listener, gate, stop, |stream, peer, admitted| {
        serve(stream, peer.unwrap_or(nowhere), admitted)
    })
    .await;
}

/// [`accept`] for any door.
pub(super) async fn accept_from<D, F, T>(
    door: D,
    gate: Arc<Gate>,
    stop: CancellationToken,
    serve: F,
) where
    D: Door,
    F: Fn(D::Stream, Option<SocketAddr>, Admitted) -> T,
    T: Future<Output = ()> + Send + 'static,
{
    let mut peers = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(ended) = peers.join_next(), if !peers.is_empty() => report(ended),
            accepted = door.next() => match accepted {
                Ok((stream, peer)) => {
                    let Some(admitted) = gate.admit(peer) else {
                        tracing::debug!(?peer, "closed at once: connection limit reached");
                        continue;
                    };
                    peers.spawn(serve(stream, peer, admitted));
                }
                Err(error) => {
                    tracing::warn!(%error, "accepting failed");
                    sleep(AFTER_ERROR).await;
                }
            },
        }
    }
    drop(door);
    let drained = timeout(DRAIN, async {
        while let Some(ended) = peers.join_next().await {
            report(ended);
        }
    });
    if drained.await.is_err() {
        tracing::warn!(connections = peers.len(), "connections did not end in time and were cut");
    }
}

/// A panic in one connection ends that connection only.
fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a connection's task died");
    }
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::net::bind;

    fn gate(connections: usize, connections_per_address: usize, handshakes: usize) -> Arc<Gate> {
        let limits = Settings::default();
        Gate::new(Settings { connections, connections_per_address, handshakes, ..limits })
    }

    fn peer(address: &str) -> Option<SocketAddr> {
        address.parse().ok()
    }

    #[test]
    fn each_limit_refuses_and_counts_on_its_own() {
        let full = gate(3, 2, 10);
        let admitted: Vec<_> = (0..3).filter_map(|_| full.admit(peer("198.51.100.7:1"))).collect();
        assert_eq!(admitted.len(), 2);
        let other = full.admit(peer("198.51.100.8:1")).unwrap();
        assert!(full.admit(peer("198.51.100.9:1")).is_none());
        assert_eq!(full.refused_address.load(Ordering::Relaxed), 1);
        assert_eq!(full.refused_total.load(Ordering::Relaxed), 1);
        drop(admitted);
        drop(other);
        assert_eq!(full.connections(), 0);
        assert!(full.state().addresses.is_empty(), "nothing is kept of peers that went");
        let slow = gate(10, 10, 1);
        let mut first = slow.admit(peer("198.51.100.7:1")).unwrap();
        assert!(slow.admit(peer("198.51.100.7:2")).is_none());
        first.handshake_done();
        assert!(slow.admit(peer("198.51.100.7:2")).is_some());
        assert_eq!(slow.refused_handshakes.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn new_connections_come_no_faster_than_the_limit_but_from_this_machine() {
        let limits = Settings { connections_per_second: 3, ..Settings::default() };
        let gate = Gate::new(limits);
        let elsewhere = || gate.admit(peer("198.51.100.7:1")).is_some();
        assert_eq!([elsewhere(), elsewhere(), elsewhere(), elsewhere()], [true, true, true, false]);
        assert!(gate.admit(peer("127.0.0.1:1")).is_some());
        assert_eq!(gate.refused_rate.load(Ordering::Relaxed), 1);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(elsewhere());
    }

    #[test]
    fn a_listeners_own_limit_counts_within_the_common_one() {
        let common = gate(3, 9, 9);
        let small = Gate::within(Arc::clone(&common), 1);
        let mut first = small.admit(peer("198.51.100.7:1")).unwrap();
        assert!(small.admit(None).is_none());
        assert_eq!((small.connections(), common.connections()), (1, 1), "nothing is kept of it");
        first.handshake_done();
        assert_eq!(common.state().handshakes, 0);
        let _others = [common.admit(None).unwrap(), common.admit(None).unwrap()];
        drop(first);
        let _third = common.admit(None).unwrap();
        assert!(small.admit(None).is_none(), "the common one is full");
        assert_eq!(small.connections(), 0);
    }

    #[test]
    fn a_network_of_version_6_counts_as_one_address_and_loopback_not_at_all() {
        let gate = gate(10, 1, 10);
        let _one = gate.admit(peer("[2001:db8::1]:1")).unwrap();
        assert!(gate.admit(peer("[2001:db8::2]:1")).is_none());
        assert!(gate.admit(peer("[2001:db8:0:1::2]:1")).is_some());
        let _local =
            [gate.admit(peer("127.0.0.1:1")).unwrap(), gate.admit(peer("[::1]:1")).unwrap()];
        assert!(gate.admit(peer("[::ffff:127.0.0.1]:2")).is_some());
    }

    #[tokio::test]
    async fn a_peer_over_the_limit_is_closed_at_once_and_a_stop_ends_the_loop() {
        let listener = bind(peer("127.0.0.1:0").unwrap(), "test").unwrap();
        let address = listener.local_addr().unwrap();
        let gate = gate(1, 1, 1);
        let stop = CancellationToken::new();
        let shared = stop.clone();
        let serve = move |stream: TcpStream, _, admitted: Admitted| {
            let stop = shared.clone();
            async move {
                stop.cancelled().await;
                drop((stream, admitted));
            }
        };
        let accepting = tokio::spawn(accept(listener, Arc::clone(&gate), stop.clone(), serve));
        let mut first = TcpStream::connect(address).await.unwrap();
        let mut second = TcpStream::connect(address).await.unwrap();
        assert_eq!(second.read(&mut [0]).await.unwrap(), 0);
        assert_eq!(gate.connections(), 1);
        stop.cancel();
        assert_eq!(first.read(&mut [0]).await.unwrap(), 0);
        accepting.await.unwrap();
        assert_eq!(gate.connections(), 0);
    }
}
