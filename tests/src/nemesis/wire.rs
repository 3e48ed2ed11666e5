//! Wires between the nodes and their store, each other and their clients: TCP proxies that can hold what they carry, each way apart.
//!
//! Holds: [`Wire`]; a partition is a wire that holds: bytes wait, both sides know nothing, and when it heals they arrive late, also
//! those of a process that has died meanwhile. Needs no rights, so that partitions are tried on any machine.
//! Change here: what a wire can do. Not here: which wires make which partition (`site`).

use std::{
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex},
    thread,
    time::Duration,
};

/// Which ways bytes wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Held {
    /// From who dials.
    pub(super) up: bool,
    /// To who dials.
    pub(super) down: bool,
}

impl Held {
    /// Both ways.
    pub(super) const ALL: Self = Self { up: true, down: true };
}

/// Who dials, as a number of the site's; `None`: it is the same for all.
type Dialler = Option<usize>;
/// Finds out who dials, from its port.
pub(super) type Find = Box<dyn Fn(SocketAddr) -> Dialler + Send>;

/// A proxy with its state.
#[derive(Debug, Clone)]
pub(super) struct Wire {
    /// Where to dial.
    pub(super) address: SocketAddr,
    state: Arc<(Mutex<State>, Condvar)>,
}

#[derive(Debug, Default)]
struct State {
    held: Vec<(Dialler, Held)>,
}

impl State {
    fn of(&self, dialler: Dialler) -> Held {
        let known = |(who, _): &&(Dialler, Held)| *who == dialler || who.is_none();
        let both = |a: Held, b: Held| Held { up: a.up || b.up, down: a.down || b.down };
        self.held.iter().filter(known).map(|(_, held)| *held).fold(Held::default(), both)
    }
}

impl Wire {
    /// To the first of these that answers, beginning with another one each time.
    pub(super) fn start(to: Vec<SocketAddr>, find: Find) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let state = Arc::<(Mutex<State>, Condvar)>::default();
        let of_wire = state.clone();
        thread::spawn(move || {
            for (turn, dialled) in listener.incoming().map_while(Result::ok).enumerate() {
                let who = dialled.peer_addr().ok().and_then(&find);
                let mut to = to.clone();
                let places = to.len();
                to.rotate_left(turn % places);
                let state = of_wire.clone();
                thread::spawn(move || carry(&dialled, &to, who, &state));
            }
        });
        Self { address, state }
    }

    /// To one place, for whoever dials.
    pub(super) fn to(place: SocketAddr) -> Self {
        Self::start(vec![place], Box::new(|_| None))
    }

    /// What `dialler` sends and is sent waits from now on, or no more.
    pub(super) fn hold(&self, dialler: Dialler, held: Held) {
        let mut state = self.state.0.lock().expect("a wire");
        state.held.retain(|(who, _)| *who != dialler);
        state.held.push((dialler, held));
        self.state.1.notify_all();
    }

    /// Nothing waits any more.
    pub(super) fn heal(&self) {
        self.state.0.lock().expect("a wire").held.clear();
        self.state.1.notify_all();
    }
}

fn carry(dialled: &TcpStream, to: &[SocketAddr], who: Dialler, state: &(Mutex<State>, Condvar)) {
    let connect = |place: &SocketAddr| TcpStream::connect_timeout(place, Duration::from_secs(5));
    let Some(there) = to.iter().find_map(|place| connect(place).ok()) else { return };
    let _ = (dialled.set_nodelay(true), there.set_nodelay(true));
    thread::scope(|scope| {
        scope.spawn(|| {
            let _ = copy(dialled, &there, || wait(state, who, |held| held.up));
            let _ = there.shutdown(Shutdown::Write);
        });
        let _ = copy(&there, dialled, || wait(state, who, |held| held.down));
        // Who was left by the other end is told so, and what it still sends is of no use to anybody.
        let _ = dialled.shutdown(Shutdown::Both);
    });
}

fn wait(state: &(Mutex<State>, Condvar), who: Dialler, waits: fn(&Held) -> bool) {
    let lock = state.0.lock().expect("a wire");
    drop(state.1.wait_while(lock, |state| waits(&state.of(who))).expect("a wire"));
}

fn copy(mut from: &TcpStream, mut to: &TcpStream, before_each: impl Fn()) -> io::Result<()> {
    let mut bytes = [0; 16 * 1024];
    loop {
        let read = from.read(&mut bytes)?;
        before_each();
        if read == 0 {
            return Ok(());
        }
        to.write_all(&bytes[..read])?;
    }
}

/// Which of these processes holds the socket whose own address is `address`, as /proc says.
pub(super) fn who_holds(address: SocketAddr, processes: &[u32]) -> Dialler {
    let SocketAddr::V4(v4) = address else { return None };
    let local = format!("{:08X}:{:04X}", u32::from_ne_bytes(v4.ip().octets()), v4.port());
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    let inode = table.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        (words.next() == Some(local.as_str())).then(|| words.nth(7)).flatten()
    })?;
    let socket = format!("socket:[{inode}]");
    let holds = |process: &u32| {
        let files = std::fs::read_dir(format!("/proc/{process}/fd"));
        files.is_ok_and(|mut files| {
            files.any(|file| {
                let link = file.ok().and_then(|file| std::fs::read_link(file.path()).ok());
                link.is_some_and(|link| link.as_os_str() == socket.as_str())
            })
        })
    };
    processes.iter().position(holds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_wire_holds_arrives_when_it_heals_also_from_the_dead() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let me = [u32::MAX, std::process::id()];
        let wire = Wire::start(
            vec![listener.local_addr().unwrap()],
            Box::new(move |address| who_holds(address, &me)),
        );
        // It is the second of the processes that dials; the first is held, and that is nothing to it.
        wire.hold(Some(0), Held::ALL);
        let mut dialled = TcpStream::connect(wire.address).unwrap();
        dialled.write_all(b"at once").unwrap();
        let (mut there, _) = listener.accept().unwrap();
        let mut bytes = [0; 7];
        there.read_exact(&mut bytes).unwrap();
        wire.hold(Some(1), Held { up: true, down: false });
        there.write_all(b"answer!").unwrap();
        dialled.read_exact(&mut bytes).unwrap();
        dialled.write_all(b"later").unwrap();
        drop(dialled);
        there.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        assert!(there.read(&mut bytes).is_err());
        there.set_read_timeout(None).unwrap();
        wire.heal();
        let mut late = String::new();
        there.read_to_string(&mut late).unwrap();
        assert_eq!(late, "later");
    }
}
