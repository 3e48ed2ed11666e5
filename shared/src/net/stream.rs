//! A client's stream of bytes, whatever carries it, as one type: what serves a connection is compiled once.
//!
//! Not here: how it is opened (`listener`).

use std::{
    io::{self, IoSlice},
    pin::{Pin, pin},
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::server::TlsStream;

use super::websocket::WebSocket;

/// A stream; the larger ones are boxed.
#[derive(Debug)]
pub enum Stream {
    /// Plain TCP.
    Tcp(TcpStream),
    /// TLS over TCP.
    Tls(Box<TlsStream<TcpStream>>),
    /// WebSocket over TCP.
    WebSocket(Box<WebSocket<TcpStream>>),
    /// WebSocket over TLS over TCP.
    SecureWebSocket(Box<WebSocket<TlsStream<TcpStream>>>),
    /// A socket in the file system.
    Unix(UnixStream),
    /// WebSocket over one.
    UnixWebSocket(Box<WebSocket<UnixStream>>),
}

/// Calls the same on whatever it is.
macro_rules! delegate {
    ($this:expr, $stream:ident => $call:expr) => {
        match $this {
            Stream::Tcp($stream) => $call,
            Stream::Tls($stream) => $call,
            Stream::WebSocket($stream) => $call,
            Stream::SecureWebSocket($stream) => $call,
            Stream::Unix($stream) => $call,
            Stream::UnixWebSocket($stream) => $call,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        delegate!(self.get_mut(), stream => pin!(stream).poll_read(context, buffer))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        delegate!(self.get_mut(), stream => pin!(stream).poll_write(context, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        delegate!(self.get_mut(), stream => pin!(stream).poll_write_vectored(context, pieces))
    }

    fn is_write_vectored(&self) -> bool {
        delegate!(self, stream => stream.is_write_vectored())
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self.get_mut(), stream => pin!(stream).poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self.get_mut(), stream => pin!(stream).poll_shutdown(context))
    }
}
