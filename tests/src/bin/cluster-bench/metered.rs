//! A node's line to the store: so many bytes a second in each direction, all its connections together.
//!
//! Not here: delay; the store is on the same machine.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::{Instant, sleep_until},
};

/// Bytes carried at a time.
const PIECE: usize = 16 * 1024;

/// One direction: when it is free again.
struct Direction {
    bytes_per_s: u64,
    free: Mutex<Instant>,
}

impl Direction {
    fn new(bytes_per_s: u64) -> Arc<Self> {
        Arc::new(Self { bytes_per_s, free: Mutex::new(Instant::now()) })
    }

    async fn carry(&self, bytes: usize) {
        if self.bytes_per_s == 0 {
            return;
        }
        let took = Duration::from_secs_f64(bytes as f64 / self.bytes_per_s as f64);
        let due = {
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            *free = (*free).max(Instant::now()) + took;
            *free
        };
        sleep_until(due).await;
    }
}

/// See the module; it lives as long as the runtime.
pub(crate) struct Metered;

impl Metered {
    /// Its address. `bytes_per_s` 0: as fast as it goes.
    pub(crate) async fn start(to: SocketAddr, bytes_per_s: u64) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
        let address = listener.local_addr().expect("address");
        let (up, down) = (Direction::new(bytes_per_s), Direction::new(bytes_per_s));
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let (up, down) = (up.clone(), down.clone());
                tokio::spawn(async move {
                    let Ok(far) = TcpStream::connect(to).await else { return };
                    for stream in [&near, &far] {
                        let _ = stream.set_nodelay(true);
                    }
                    let ((near_in, near_out), (far_in, far_out)) =
                        (near.into_split(), far.into_split());
                    tokio::join!(pump(near_in, far_out, up), pump(far_in, near_out, down));
                });
            }
        });
        address
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, direction: Arc<Direction>) {
    let mut piece = vec![0; PIECE];
    while let Ok(read @ 1..) = from.read(&mut piece).await {
        direction.carry(read).await;
        if to.write_all(&piece[..read]).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}
