//! Accepting for a small HTTP server: a bounded number of connections, none of which can wait for ever.
//!
//! A peer has a minute for each whole request, in which our answer has to begin too, for nobody sees here where a request
//! ends; a minute to take each part of an answer; and between two requests it may be silent for a minute. Beyond the
//! limit of connections a new one is closed at once.
//! Change here: how long is too long. Not here: HTTP (`admin` of each program), MQTT's listeners (`accept`).

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep, sleep, sleep_until},
};

/// Connections at a time: a browser holds six, a scraper one.
pub const CONNECTIONS: usize = 32;

/// From the first byte of a request to the first of its answer: some answers take us many seconds.
const REQUEST: Duration = Duration::from_mins(1);

/// Between an answer and the next request, or for a part of an answer to be taken.
const IDLE: Duration = Duration::from_mins(1);

/// After a failure to accept.
const AFTER_ERROR: Duration = Duration::from_millis(100);

/// Where peers come in.
#[derive(Debug)]
pub struct Patient {
    listener: TcpListener,
    room: Arc<Semaphore>,
}

impl Patient {
    /// Accepts from `listener`.
    pub fn new(listener: TcpListener) -> Self {
        Self { listener, room: Arc::new(Semaphore::new(CONNECTIONS)) }
    }

    /// The next peer that there is room for.
    pub async fn next(&self) -> (Visit<TcpStream>, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    if let Ok(room) = Arc::clone(&self.room).try_acquire_owned() {
                        return (Visit::new(stream, Some(room)), peer);
                    }
                    tracing::debug!(%peer, "closed at once: too many HTTP connections");
                }
                Err(error) => {
                    tracing::debug!(%error, "accepting failed");
                    sleep(AFTER_ERROR).await;
                }
            }
        }
    }

    /// Where it listens.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that fails when its peer takes too long.
#[derive(Debug)]
pub struct Visit<S> {
    stream: S,
    /// A request has begun, and no answer to it.
    asking: bool,
    deadline: Pin<Box<Sleep>>,
    _room: Option<OwnedSemaphorePermit>,
}

impl<S> Visit<S> {
    fn new(stream: S, room: Option<OwnedSemaphorePermit>) -> Self {
        let deadline = Box::pin(sleep_until(Instant::now() + REQUEST));
        Self { stream, asking: true, deadline, _room: room }
    }

    fn give(&mut self, time: Duration) {
        self.deadline.as_mut().reset(Instant::now() + time);
    }

    /// The stream has nothing to say: is that still fine?
    fn wait<T>(&mut self, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        ready!(self.deadline.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Visit<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let Poll::Ready(read) = Pin::new(&mut this.stream).poll_read(context, buffer) else {
            return this.wait(context);
        };
        if !this.asking {
            this.asking = true;
            this.give(REQUEST);
        }
        Poll::Ready(read)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Visit<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let Poll::Ready(written) = Pin::new(&mut this.stream).poll_write(context, bytes) else {
            return this.wait(context);
        };
        this.asking = false;
        this.give(IDLE);
        Poll::Ready(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    async fn read(visit: &mut Visit<tokio::io::DuplexStream>) -> io::Result<usize> {
        visit.read(&mut [0; 16]).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_trickles_in_is_cut_off_as_a_whole() {
        let (mut peer, ours) = duplex(16);
        let mut visit = Visit::new(ours, None);
        let began = Instant::now();
        let trickle = async {
            loop {
                peer.write_all(b"x").await.unwrap();
                sleep(Duration::from_secs(3)).await;
            }
        };
        let serve = async {
            loop {
                if let Err(error) = read(&mut visit).await {
                    return error.kind();
                }
            }
        };
        tokio::select! {
            () = trickle => {}
            kind = serve => assert_eq!(kind, io::ErrorKind::TimedOut),
        }
        assert_eq!(began.elapsed().as_secs(), REQUEST.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn between_requests_there_is_more_time_and_an_answer_nobody_takes_ends_it() {
        let (mut peer, ours) = duplex(4);
        let mut visit = Visit::new(ours, None);
        for _ in 0..3 {
            peer.write_all(b"ask").await.unwrap();
            assert_eq!(read(&mut visit).await.unwrap(), 3);
            visit.write_all(b"yes").await.unwrap();
            assert_eq!(peer.read(&mut [0; 4]).await.unwrap(), 3);
            sleep(IDLE.checked_sub(Duration::from_secs(1)).unwrap()).await;
        }
        peer.write_all(b"ask").await.unwrap();
        assert_eq!(read(&mut visit).await.unwrap(), 3);
        let error = visit.write_all(b"a long answer").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_takes_us_long_still_arrives() {
        let (mut peer, ours) = duplex(16);
        let mut visit = Visit::new(ours, None);
        peer.write_all(b"ask").await.unwrap();
        assert_eq!(read(&mut visit).await.unwrap(), 3);
        // As hyper does, which wants to know whether the peer is still there.
        tokio::select! {
            ended = read(&mut visit) => panic!("cut off: {ended:?}"),
            () = sleep(Duration::from_secs(45)) => {}
        }
        visit.write_all(b"yes").await.unwrap();
        assert_eq!(peer.read(&mut [0; 4]).await.unwrap(), 3);
    }

    #[tokio::test]
    async fn beyond_the_limit_a_connection_is_closed_at_once_and_room_comes_back() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let patient = Patient::new(listener);
        let mut inside = Vec::new();
        for _ in 0..CONNECTIONS {
            let peer = TcpStream::connect(address).await.unwrap();
            inside.push((patient.next().await, peer));
        }
        let mut refused = TcpStream::connect(address).await.unwrap();
        let mut byte = [0; 1];
        tokio::select! {
            _ = patient.next() => panic!("over the limit"),
            read = refused.read(&mut byte) => assert!(matches!(read, Ok(0) | Err(_))),
        }
        inside.pop();
        let _peer = TcpStream::connect(address).await.unwrap();
        patient.next().await;
    }
}
