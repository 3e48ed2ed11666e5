//! A WebSocket peer that sends any request, any frames, in any pieces, and reads when it likes.
//!
//! An input is: a choice, sizes of pieces, then the request, or the frames behind a good request. The frames are judged by
//! a second decoder that has them all at once, and what the server writes by a strict client.

use std::{
    io,
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tributary_shared::net::websocket::{WebSocket, accept};

use crate::input::Input;

const GOOD: &[u8] = b"GET /mqtt HTTP/1.1\r\nHost: gw\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n";

/// The other end of the socket: every second call waits, each moves as much as the next size says.
#[derive(Debug)]
struct Pipe {
    /// Sent by the peer: all of a part is there before the next begins.
    parts: Vec<Vec<u8>>,
    sizes: Vec<usize>,
    calls: usize,
    written: Vec<u8>,
}

impl Pipe {
    /// How much the next call moves; 0: it waits.
    fn size(&mut self) -> usize {
        self.calls += 1;
        if self.calls.is_multiple_of(3) { 0 } else { self.sizes[self.calls % self.sizes.len()] }
    }
}

impl AsyncRead for Pipe {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let size = this.size();
        if size == 0 {
            return Poll::Pending;
        }
        if this.parts.first().is_some_and(Vec::is_empty) {
            this.parts.remove(0);
        }
        if let Some(part) = this.parts.first_mut() {
            let size = size.min(part.len()).min(buffer.remaining());
            buffer.put_slice(&part[..size]);
            part.drain(..size);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let size = this.size().min(bytes.len());
        if size == 0 && !bytes.is_empty() {
            return Poll::Pending;
        }
        this.written.extend_from_slice(&bytes[..size]);
        Poll::Ready(Ok(size))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Polls to the end: a pipe that waits goes on with the next poll.
fn finish<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    for _ in 0..1_000_000 {
        if let Poll::Ready(outcome) = future.as_mut().poll(&mut Context::from_waker(Waker::noop()))
        {
            return outcome;
        }
    }
    panic!("never done")
}

/// One connection.
pub fn peer(data: &[u8]) {
    let mut input = Input(data);
    let choice = input.byte();
    let mut sizes: Vec<usize> = (0..=input.below(8))
        .map(|_| 1 + usize::from(input.byte()) * (1 + usize::from(choice >> 4)))
        .collect();
    let writes: Vec<usize> = (0..input.below(4)).map(|_| usize::from(input.byte()) * 9).collect();
    if choice & 1 == 0 {
        sizes.push(1);
        let mut pipe = Pipe { parts: vec![input.0.to_vec()], sizes, calls: 0, written: Vec::new() };
        let served = finish(accept(&mut pipe, &["https://ok.example".to_owned()])).is_ok();
        let told = pipe.written.starts_with(b"HTTP/1.1 ")
            && pipe.written.windows(4).any(|end| end == b"\r\n\r\n");
        assert!(told || pipe.written.is_empty(), "an answer is HTTP");
        assert_eq!(served, pipe.written.starts_with(b"HTTP/1.1 101 "));
        return;
    }
    let frames = input.0;
    let parts = vec![GOOD.to_vec(), frames.to_vec()];
    let mut pipe = Pipe { parts, sizes, calls: 0, written: Vec::new() };
    let mut socket = finish(accept(&mut pipe, &[])).expect("a good request");
    let (payload, failed, sent) = converse(&mut socket, &writes);
    drop(socket);
    let (expected, end) = decode(frames);
    assert_eq!(failed, matches!(end, End::Fault));
    if failed {
        assert!(expected.starts_with(&payload), "no more than was legal");
    } else {
        assert_eq!(payload, expected);
    }
    let answer = pipe.written.windows(4).position(|end| end == b"\r\n\r\n").expect("an answer") + 4;
    check_written(&pipe.written[answer..], &sent, failed || end == End::Closed);
}

/// Reads to the end, writes between reads, and says goodbye. What was read, whether by a fault, what was written.
fn converse(socket: &mut WebSocket<&mut Pipe>, writes: &[usize]) -> (Vec<u8>, bool, Vec<u8>) {
    let (mut payload, mut sent, mut failed) = (Vec::new(), Vec::new(), false);
    let mut writes = writes.iter();
    let mut room = [0; 100];
    for read in 1.. {
        if let Some(&size) = writes.next() {
            let piece: Vec<u8> = (0..size).map(|at| (at + sent.len()) as u8).collect();
            // A write after close fails; what it wrote of its piece is not known then, and must be nothing.
            if finish(socket.write_all(&piece)).is_ok() {
                sent.extend(piece);
            }
        }
        match finish(socket.read(&mut room[..1 + read % 100])) {
            Ok(0) => break,
            Ok(size) => payload.extend_from_slice(&room[..size]),
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::InvalidData);
                failed = true;
                break;
            }
        }
    }
    finish(socket.flush()).expect("the pipe takes all");
    finish(socket.shutdown()).expect("the pipe takes all");
    (payload, failed, sent)
}

#[derive(Debug, PartialEq, Eq)]
enum End {
    /// The peer may go on, or stopped within a frame.
    Open,
    Closed,
    Fault,
}

/// What the frames of a client hold, by RFC 6455 section 5.
fn decode(mut bytes: &[u8]) -> (Vec<u8>, End) {
    let (mut payload, mut in_message) = (Vec::new(), false);
    loop {
        let [first, second, ..] = *bytes else { return (payload, End::Open) };
        let (last, opcode, short) = (first & 0x80 != 0, first & 0x0f, second & 0x7f);
        let legal = match opcode {
            0 => in_message,
            2 => !in_message,
            8..=10 => last && short <= 125,
            _ => false,
        };
        if !legal || first & 0x70 != 0 || second & 0x80 == 0 {
            return (payload, End::Fault);
        }
        let extended = match short {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        if bytes.len() < 6 + extended {
            return (payload, End::Open);
        }
        let length = match extended {
            0 => u64::from(short),
            _ => bytes[2..2 + extended].iter().fold(0, |all, byte| all << 8 | u64::from(*byte)),
        };
        let shortest = match extended {
            0 => true,
            2 => length >= 126,
            _ => length >= 0x1_0000 && length >> 63 == 0,
        };
        if !shortest {
            return (payload, End::Fault);
        }
        let mask = &bytes[2 + extended..6 + extended];
        let body = &bytes[6 + extended..];
        let here = usize::try_from(length).unwrap_or(usize::MAX).min(body.len());
        if opcode < 8 {
            payload.extend(
                body[..here].iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask),
            );
            in_message = !last;
        }
        if (here as u64) < length {
            return (payload, End::Open);
        }
        if opcode == 8 {
            return (payload, if here == 1 { End::Fault } else { End::Closed });
        }
        bytes = &body[here..];
    }
}

/// What a strict client makes of the server's frames.
fn check_written(mut bytes: &[u8], sent: &[u8], closed_early: bool) {
    let mut got = Vec::new();
    let mut closed = false;
    while let [first, short, ..] = *bytes {
        assert!(!closed, "nothing after close");
        assert!(short & 0x80 == 0, "a server does not mask");
        let extended = match short {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let length = match extended {
            0 => usize::from(short),
            _ => bytes[2..2 + extended].iter().fold(0, |all, byte| all << 8 | usize::from(*byte)),
        };
        let body = &bytes[2 + extended..][..length];
        match first {
            0x82 => got.extend_from_slice(body),
            0x8a => assert!(length <= 125),
            0x88 => closed = true,
            other => panic!("frame {other:02x} from a server"),
        }
        bytes = &bytes[2 + extended + length..];
    }
    assert!(bytes.is_empty(), "whole frames");
    assert!(closed, "goodbye is said");
    assert!(got == sent || (closed_early && got.starts_with(sent)));
}
