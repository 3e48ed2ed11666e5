//! A line between two processes on loopback: so many bits a second, so much delay, and every byte counted.
//!
//! Each direction is a shaper (bytes leave at the line's rate) and a delay (they arrive later); at most `BUFFER` bytes wait,
//! as in a modem, and then the sender's TCP is not read. Not here: loss; TCP would repair it.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

/// Bytes of one piece; what waits in a direction is at most `PIECES` of them.
const PIECE: usize = 4 * 1024;
const PIECES: usize = 64;

/// What a line does to bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quality {
    /// Bits a second of each direction; 0: as fast as it goes.
    pub(crate) bits_per_s: u64,
    /// One way.
    pub(crate) delay: Duration,
}

/// A listening line; it lives as long as the process.
pub(crate) struct Line {
    pub(crate) address: SocketAddr,
    pub(crate) upward: Arc<AtomicU64>,
    open: Arc<AtomicBool>,
}

impl Line {
    /// Connections to its address go on to `to`, once it lets them through.
    pub(crate) fn new(to: SocketAddr, quality: Quality) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("port");
        let address = listener.local_addr().expect("address");
        let upward = Arc::new(AtomicU64::new(0));
        let open = Arc::new(AtomicBool::new(false));
        let (counter, through) = (upward.clone(), open.clone());
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                if !through.load(Ordering::Relaxed) {
                    continue;
                }
                let Ok(far) = TcpStream::connect(to) else { continue };
                for stream in [&near, &far] {
                    let _ = stream.set_nodelay(true);
                }
                let (near2, far2) =
                    (near.try_clone().expect("handle"), far.try_clone().expect("handle"));
                direction(near, far, quality, counter.clone());
                direction(far2, near2, quality, Arc::default());
            }
        });
        Self { address, upward, open }
    }

    /// From here on connections go through.
    pub(crate) fn let_through(&self) {
        self.open.store(true, Ordering::Relaxed);
    }
}

fn direction(mut from: TcpStream, mut to: TcpStream, quality: Quality, count: Arc<AtomicU64>) {
    let pieces = match quality.bits_per_s {
        0 => PIECES,
        // As much as is on the way, and what the modem holds.
        bits => PIECES + (bits as f64 / 8.0 * quality.delay.as_secs_f64()) as usize / PIECE,
    };
    let (send, receive) = mpsc::sync_channel::<(Instant, Vec<u8>)>(pieces);
    std::thread::spawn(move || {
        let mut free = Instant::now();
        loop {
            let mut piece = vec![0; PIECE];
            let Ok(read @ 1..) = from.read(&mut piece) else { break };
            piece.truncate(read);
            count.fetch_add(read as u64, Ordering::Relaxed);
            if quality.bits_per_s > 0 {
                let took = Duration::from_secs_f64(read as f64 * 8.0 / quality.bits_per_s as f64);
                free = free.max(Instant::now()) + took;
                std::thread::sleep(free.saturating_duration_since(Instant::now()));
            }
            if send.send((Instant::now() + quality.delay, piece)).is_err() {
                break;
            }
        }
        let _ = from.shutdown(Shutdown::Read);
    });
    std::thread::spawn(move || {
        for (due, piece) in receive {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&piece).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
}
